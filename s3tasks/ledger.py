"""What ought to be there: the record of begun and finished writes, kept in Redis; the only room that knows redis.

It never speaks to S3, and never decides what a record means for a reader.

Every move is atomic: one Lua script, or one plain read, in one round trip, on keys of one cluster slot. Each may be repeated
after a lost answer without harm. All clocks are Redis's own. Every failure leaves as LedgerUnavailable.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any, TypeVar
from urllib.parse import SplitResult, quote, unquote, urlsplit, urlunsplit

import redis
from redis.backoff import NoBackoff
from redis.cluster import ClusterNode
from redis.retry import Retry
from redis.sentinel import Sentinel

from s3tasks.errors import LedgerUnavailable
from s3tasks.evidence import Current, Intent, Landed, Record
from s3tasks.refs import ObjectRef, finished_key, record_key
from s3tasks.settings import CLUSTER_SCHEMES, SENTINEL_SCHEMES, Settings

SCHEMA = "1"
SAFE_POLICY = "noeviction"
_UNKNOWN, _DELETED = "*", "!"
_KINDS: dict[str, dict[str, bool]] = {"w": {}, "d": {"deletes": True}, "f": {"finished": True}}
_MICROSECONDS = 1_000_000
# As in record.lua: beyond it a double, which is what Lua counts in, has no whole numbers left.
_LARGEST_NUMBER = 9_000_000_000_000_000
_DEFAULT_SENTINEL_PORT = 26379
# What bounds it is how many threads ask at once; redis-py would refuse the hundred and first.
_MOST_CONNECTIONS = 1_000_000

# Not all of redis-py's errors derive from its RedisError, and a connection may break below it.
REDIS_ERRORS: tuple[type[Exception], ...] = (
    OSError,
    *(kind for kind in vars(redis.exceptions).values() if isinstance(kind, type) and issubclass(kind, Exception)),
)

Entry = TypeVar("Entry", Intent, Current)

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Opened:
    """The intent is recorded: S3 may be asked. `sole` says that no earlier attempt of this write can have landed."""

    ticket: int
    sole: bool


@dataclass(frozen=True)
class Finished:
    """The write had finished, or has been replaced (`superseded`): S3 must not be asked again."""

    current: Current
    superseded: bool


@dataclass(frozen=True)
class Busy:
    """Another write to the key is under way and is waited for, at most so long."""

    lease_seconds_left: float


class Ledger:
    """The ledger on one Redis, shared by threads; connections are made when first used.

    `settings.ledger_url` must be set. Every method raises LedgerUnavailable when Redis cannot be asked or refuses.
    """

    def __init__(self, settings: Settings) -> None:
        if settings.ledger_url is None:
            raise ValueError("no ledger_url: set S3TASKS_LEDGER_URL (or use a Celery app whose broker is Redis)")
        self._settings = settings
        with _door("connect"):
            self._redis = _connect(settings.ledger_url, settings.ledger_timeout_seconds)

    def lookup(self, ref: ObjectRef) -> Record:
        """What is known about the object, in one plain read. A record that cannot be read counts as none, and is logged."""
        key = record_key(self._settings.ledger_prefix, ref)
        with _door("lookup"):
            try:
                return _record(self._redis.hgetall(key), ref)
            except redis.ResponseError as problem:
                if not str(problem).startswith("WRONGTYPE"):
                    raise
        logger.warning("the ledger's record of %s is not a hash: treated as unknown", ref.uri)
        return Record()

    def begin(self, ref: ObjectRef, write_id: str, *, deletes: bool = False) -> Opened | Finished | Busy:
        """Opens the write's intent, unless it has finished, has been replaced, or must wait for its turn.

        A write id whose intent is open already is a redelivery: it gets a new ticket on the same intent.
        """
        settings = self._settings
        lease = int(settings.overlap_lease_seconds * _MICROSECONDS) if settings.on_overlap == "serialize" else 0
        answer = self._move(
            "begin", ref, write_id,
            "d" if deletes else "w", settings.retention_seconds, settings.redelivery_horizon_seconds, lease,
        )
        said = answer[0].decode()
        if said == "open":
            return Opened(ticket=int(answer[1]), sole=answer[2] == 1)
        if said == "busy":
            return Busy(int(answer[1]) / _MICROSECONDS)
        return Finished(_current(write_id, answer[1].decode()), superseded=said == "superseded")

    def commit(self, ref: ObjectRef, write_id: str, ticket: int, landed: Landed, *, landed_ticket: int) -> Current:
        """Makes the write current and remembers it as finished.

        `ticket` is of the attempt that ends here, `landed_ticket` of the attempt whose bytes are in S3: another one only where
        a redelivery found the work done.
        """
        settings = self._settings
        text = self._move(
            "commit", ref, write_id,
            ticket, landed_ticket, _rest(landed), settings.retention_seconds, settings.redelivery_horizon_seconds,
        )
        return _current(write_id, text.decode())

    def abort(self, ref: ObjectRef, write_id: str, ticket: int) -> bool:
        """Ends an attempt that S3 has refused; False where other attempts keep the write's intent open."""
        return bool(self._move("abort", ref, write_id, ticket, self._settings.retention_seconds))

    def observe(self, ref: ObjectRef, intent: Intent, ticket: int, landed: Landed) -> Current | None:
        """Records an unfinished write that a reader was served as current; None where the record has moved on."""
        settings = self._settings
        text = self._move(
            "observe", ref, intent.write_id,
            ticket, _rest(landed), settings.retention_seconds, settings.redelivery_horizon_seconds,
        )
        return _current(intent.write_id, text.decode()) if text else None

    def adopt(self, ref: ObjectRef, judged: Record, landed: Landed) -> Current | None:
        """Makes somebody else's write the only current one; None where the record is no longer the one judged."""
        text = self._move("adopt", ref, None, judged.seq, _rest(landed), self._settings.retention_seconds)
        return _current("", text.decode()) if text else None

    def forget(self, ref: ObjectRef) -> bool:
        """Removes the object's record: reads of it go unchecked until it is written again. False where there was none."""
        return bool(self._move("forget", ref, None))

    def eviction_policy(self) -> str:
        """Redis's `maxmemory-policy`: anything but `noeviction` may drop records (and queued tasks) before their time."""
        with _door("info"):
            said = self._redis.info("memory")
        # A cluster answers for each node.
        nodes = [said] if "maxmemory_policy" in said else list(said.values())
        policies = {str(node["maxmemory_policy"]) for node in nodes}
        return next((policy for policy in sorted(policies) if policy != SAFE_POLICY), SAFE_POLICY)

    def close(self) -> None:
        """Closes the connections."""
        self._redis.close()

    def _move(self, name: str, ref: ObjectRef, write_id: str | None, *arguments: str | int) -> Any:
        prefix = self._settings.ledger_prefix
        keys = [record_key(prefix, ref)]
        words: list[str | int] = list(arguments)
        if write_id is not None:
            keys.append(finished_key(prefix, ref, write_id))
            words.insert(0, write_id)
        source, digest = _script(name)
        with _door(name):
            try:
                return self._redis.evalsha(digest, len(keys), *keys, *words)
            except redis.exceptions.NoScriptError:
                return self._redis.eval(source, len(keys), *keys, *words)


def _connect(url: str, timeout_seconds: float) -> Any:
    """A client for the URL: of one Redis, of a cluster, or of the master that sentinels name (redis+sentinel://hosts/service/db)."""
    scheme, _, rest = url.partition("://")
    options: dict[str, Any] = {"socket_timeout": timeout_seconds, "socket_connect_timeout": timeout_seconds}
    options["max_connections"] = _MOST_CONNECTIONS
    if scheme != "unix":
        options["socket_keepalive"] = True
    plain_scheme = scheme.partition("+")[0]
    if scheme in CLUSTER_SCHEMES:
        return _cluster(urlsplit(f"{plain_scheme}://{rest}"), options)
    # A pooled connection may have died with a restarted Redis: one fresh try, and no sleeping in here. Silence is not asked twice.
    options["retry"] = Retry(NoBackoff(), 1, supported_errors=(redis.ConnectionError,))
    if scheme in SENTINEL_SCHEMES:
        return _master(urlsplit(url), plain_scheme == "rediss", options)
    return redis.Redis.from_url(url, **options)


def _cluster(url: SplitResult, options: dict[str, Any]) -> Any:
    """A client for the cluster that any one of the hosts knows."""
    userinfo, at, _ = url.netloc.rpartition("@")
    first, *others = _addresses(url, 6379)
    nodes = [ClusterNode(host, port) for host, port in others]  # type: ignore[no-untyped-call]
    host, port = first
    host = f"[{host}]" if ":" in host else host
    one = url._replace(netloc=f"{userinfo}{at}{host}:{port}")
    return redis.RedisCluster.from_url(urlunsplit(one), startup_nodes=nodes, **options)


def _master(url: SplitResult, tls: bool, options: dict[str, Any]) -> Any:
    userinfo, at, _ = url.netloc.rpartition("@")
    service, _, database = url.path.strip("/").partition("/")
    if database and not database.isdigit():
        raise ValueError(f"ledger_url: {database!r} is not the number of a database")
    # redis-py's own reading of credentials and options, for a URL of one host.
    said = redis.connection.parse_url(f"redis://{userinfo}{at}-/{database or 0}?{url.query}")  # type: ignore[no-untyped-call]
    said.pop("host")
    sentinels = Sentinel(_addresses(url, _DEFAULT_SENTINEL_PORT), sentinel_kwargs=options)  # type: ignore[no-untyped-call]
    return sentinels.master_for(service or "mymaster", ssl=tls, **{**options, **said})  # type: ignore[no-untyped-call]


def _addresses(url: SplitResult, default_port: int) -> list[tuple[str, int]]:
    hosts = [urlsplit(f"//{host}") for host in url.netloc.rpartition("@")[2].split(",")]
    return [(host.hostname or "localhost", host.port or default_port) for host in hosts]


@contextmanager
def _door(operation: str) -> Iterator[None]:
    """The one way out for redis-py's errors: all of them leave as LedgerUnavailable, with the client's words."""
    try:
        yield
    except REDIS_ERRORS as problem:
        raise LedgerUnavailable(operation, f"{type(problem).__name__}: {problem}") from problem


@cache
def _script(name: str) -> tuple[str, str]:
    folder = files("s3tasks") / "ledger_scripts"
    source = "".join((folder / f"{part}.lua").read_text() for part in ("record", name))
    return source, hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest()


def _rest(landed: Landed) -> str:
    etag = _DELETED if landed.deleted else _word(landed.etag)
    size = _UNKNOWN if landed.size is None else str(landed.size)
    return f"{landed.date} {etag} {_word(landed.version_id)} {size}"


def _word(text: str | None) -> str:
    return _UNKNOWN if text is None else quote(text, safe="")


def _current(write_id: str, text: str) -> Current:
    begun, committed, date, etag, version_id, size = text.split(" ")
    return Current(
        write_id=write_id,
        begun=_number(begun),
        committed=_number(committed),
        date=_number(date),
        etag=None if etag in (_UNKNOWN, _DELETED) else _unquoted(etag),
        version_id=None if version_id == _UNKNOWN else _unquoted(version_id),
        size=None if size == _UNKNOWN else _number(size),
        deleted=etag == _DELETED,
    )


def _intent(write_id: str, text: str) -> Intent:
    does, first, *later = text.split(" ")
    return Intent(write_id, (_number(first), *map(_number, later)), **_KINDS[does])


def _number(text: str) -> int:
    if not re.fullmatch("[0-9]{1,16}", text) or int(text) > _LARGEST_NUMBER:
        raise ValueError(f"{text:.40} is no number that a record may hold")
    return int(text)


def _unquoted(word: str) -> str:
    text = unquote(word, errors="strict")
    if any(character < " " or character == "\x7f" or character > "\xff" for character in text):
        raise ValueError("what goes into a header holds no such character")
    return text


def _record(fields: dict[bytes, bytes], ref: ObjectRef) -> Record:
    schema = fields.get(b"v", SCHEMA.encode()).decode(errors="replace")
    if schema != SCHEMA:
        logger.warning("the ledger's record of %s has schema %.20s, this is %s: treated as unknown", ref.uri, schema, SCHEMA)
        return Record()
    seq = _seq(fields.get(b"seq", b"0"))
    # What the record has not counted yet was not put there by a move.
    return Record(
        seq,
        tuple(intent for intent in _readable(fields, b"i:", _intent, ref) if intent.last <= seq),
        tuple(current for current in _readable(fields, b"c:", _current, ref) if current.committed <= seq),
    )


def _seq(value: bytes) -> int:
    try:
        return _number(value.decode())
    except ValueError:
        return 0


def _readable(
    fields: dict[bytes, bytes], kind: bytes, read: Callable[[str, str], Entry], ref: ObjectRef
) -> Iterator[Entry]:
    for name, value in fields.items():
        if not name.startswith(kind):
            continue
        try:
            yield read(name[2:].decode(errors="surrogateescape"), value.decode())
        except (ValueError, KeyError):
            logger.warning("the ledger's record of %s holds garbage in %.80r: passed over", ref.uri, name)
