"""What ought to be there: the record of begun and finished writes, kept in Redis; the only room that knows redis.

It never speaks to S3, and never decides what a record means for a reader.

Every move is atomic: one Lua script, or one plain read, in one round trip, on keys of one cluster slot. Each may be repeated
after a lost answer without harm. All clocks are Redis's own. Every failure leaves as LedgerUnavailable.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any
from urllib.parse import quote

import redis

from s3tasks.errors import LedgerUnavailable
from s3tasks.evidence import Current, Intent, Landed, Record
from s3tasks.ledger_connection import Asker, connect, door, unavailable
from s3tasks.ledger_spelling import current_of, record_of, rest_of, spelled_write_id, unknown_schema
from s3tasks.refs import ObjectRef, endpoint_key, finished_key, gone_key, lags_key, record_key
from s3tasks.settings import Settings

SAFE_POLICY = "noeviction"
_MICROSECONDS = 1_000_000

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


@dataclass(frozen=True)
class Commit:
    """A write that S3 has taken: see Ledger.commit."""

    ref: ObjectRef
    write_id: str
    ticket: int
    landed: Landed
    landed_ticket: int


@dataclass(frozen=True)
class _Move:
    """One call of a script, about one object and (mostly) one write."""

    name: str
    ref: ObjectRef
    write_id: str | None
    arguments: tuple[str | int | bytes, ...] = ()


class Ledger:
    """The ledger on one Redis, shared by threads; connections are made when first used.

    `settings.ledger_url` must be set. Every method raises LedgerUnavailable when Redis cannot be asked or refuses.
    """

    def __init__(self, settings: Settings) -> None:
        if settings.ledger_url is None:
            raise ValueError("no ledger_url: set S3TASKS_LEDGER_URL (or use a Celery app whose broker is Redis)")
        self._settings = settings
        with door("connect"):
            self._redis = connect(settings.ledger_url, settings.ledger_timeout_seconds)
        self._ask = Asker(self._redis)

    def lookup(self, ref: ObjectRef) -> Record:
        """What is known about the object, in one plain read. A record that cannot be read counts as none, and is logged.

        LedgerUnavailable, as for every move, for a record that a newer version keeps.
        """
        key = record_key(self._settings.ledger_prefix, ref)
        with door("lookup", self._redis):
            try:
                return record_of(self._ask("HGETALL", key), ref)
            except redis.ResponseError as problem:
                return _no_record(ref, problem)

    def lookup_many(self, refs: Sequence[ObjectRef]) -> list[Record | LedgerUnavailable]:
        """What is known about each of the objects, in one round trip; LedgerUnavailable for a record that a newer version keeps."""
        prefix = self._settings.ledger_prefix
        with door("lookup", self._redis):
            pipeline = self._redis.pipeline(transaction=False)
            for ref in refs:
                pipeline.hgetall(record_key(prefix, ref))
            said = pipeline.execute(raise_on_error=False)
            return [_known(ref, fields) for ref, fields in zip(refs, said, strict=True)]

    def begin(self, ref: ObjectRef, write_id: str, *, deletes: bool = False) -> Opened | Finished | Busy:
        """Opens the write's intent, unless it has finished, has been replaced, or must wait for its turn.

        A write id whose intent is open already is a redelivery: it gets a new ticket on the same intent.
        """
        return _begun(write_id, self._move(self._begin(ref, write_id, deletes)))

    def begin_many(
        self, writes: Sequence[tuple[ObjectRef, str]], *, deletes: bool = False
    ) -> list[Opened | Finished | Busy | LedgerUnavailable]:
        """Opens the intents of many writes (object and write id) in one round trip; what became of each, in order."""
        answers = self._moves([self._begin(ref, write_id, deletes) for ref, write_id in writes])
        return [
            answer if isinstance(answer, LedgerUnavailable) else _begun(write_id, answer)
            for (_, write_id), answer in zip(writes, answers, strict=True)
        ]

    def _begin(self, ref: ObjectRef, write_id: str, deletes: bool) -> _Move:
        settings = self._settings
        lease = int(settings.overlap_lease_seconds * _MICROSECONDS) if settings.on_overlap == "serialize" else 0
        return _Move(
            "begin", ref, write_id,
            ("d" if deletes else "w", settings.retention_seconds, settings.redelivery_horizon_seconds, lease),
        )

    def commit(self, ref: ObjectRef, write_id: str, ticket: int, landed: Landed, *, landed_ticket: int) -> Current:
        """Makes the write current and remembers it as finished.

        `ticket` is of the attempt that ends here, `landed_ticket` of the attempt whose bytes are in S3: another one only where
        a redelivery found the work done.
        """
        move = self._commit(Commit(ref, write_id, ticket, landed, landed_ticket))
        return current_of(write_id, self._move(move))

    def commit_many(self, commits: Sequence[Commit]) -> list[Current | LedgerUnavailable]:
        """Makes many writes current in one round trip; what became of each, in order."""
        answers = self._moves([self._commit(commit) for commit in commits])
        return [
            answer if isinstance(answer, LedgerUnavailable) else current_of(commit.write_id, answer)
            for commit, answer in zip(commits, answers, strict=True)
        ]

    def _commit(self, commit: Commit) -> _Move:
        settings = self._settings
        return _Move(
            "commit", commit.ref, commit.write_id,
            (
                commit.ticket, commit.landed_ticket, rest_of(commit.landed),
                settings.retention_seconds, settings.redelivery_horizon_seconds,
            ),
        )

    def abort(self, ref: ObjectRef, write_id: str, ticket: int) -> bool:
        """Ends an attempt that S3 has refused; False where other attempts keep the write's intent open."""
        return bool(self._move(_Move("abort", ref, write_id, (ticket, self._settings.retention_seconds))))

    def observe(self, ref: ObjectRef, intent: Intent, ticket: int, landed: Landed) -> Current | None:
        """Records an unfinished write that a reader was served as current; None where the record has moved on."""
        settings = self._settings
        arguments = (ticket, rest_of(landed), settings.retention_seconds, settings.redelivery_horizon_seconds)
        text = self._move(_Move("observe", ref, intent.write_id, arguments))
        return current_of(intent.write_id, text) if text else None

    def adopt(self, ref: ObjectRef, judged: Record, landed: Landed) -> Current | None:
        """Makes somebody else's write the only current one; None where the record is no longer the one judged."""
        text = self._move(_Move("adopt", ref, None, (judged.seq, rest_of(landed), self._settings.retention_seconds)))
        return current_of("", text) if text else None

    def forget(self, ref: ObjectRef) -> bool:
        """Removes the object's record: reads of it go unchecked until it is written again. False where there was none."""
        return bool(self._move(_Move("forget", ref, None)))

    def note_upload(self, ref: ObjectRef, write_id: str, upload_id: str) -> None:
        """Remembers that a multipart upload of the open write exists."""
        self._move(_Move("note", ref, write_id, (quote(upload_id, safe=""), self._settings.retention_seconds)))

    def upload_is_over(self, ref: ObjectRef, upload_id: str) -> None:
        """Forgets a multipart upload that has been completed or aborted."""
        with door("hdel", self._redis):
            self._redis.hdel(record_key(self._settings.ledger_prefix, ref), f"u:{quote(upload_id, safe='')}")

    def version_is_gone(self, ref: ObjectRef, version_id: str) -> bool:
        """Whether the version is known to have been removed for good."""
        with door("lookup", self._redis):
            return bool(self._redis.exists(gone_key(self._settings.ledger_prefix, ref, version_id)))

    def note_gone(self, ref: ObjectRef, version_id: str) -> None:
        """Remembers that the version has been removed for good."""
        settings = self._settings
        with door("set", self._redis):
            self._redis.set(gone_key(settings.ledger_prefix, ref, version_id), 1, ex=settings.retention_seconds)

    def found(self, endpoint_url: str, bucket: str) -> dict[str, str]:
        """What the endpoint was found to honour for the bucket: name and "yes" or "no"."""
        with door("lookup", self._redis):
            said = self._redis.hgetall(endpoint_key(self._settings.ledger_prefix, endpoint_url, bucket))
        return {name.decode(): value.decode() for name, value in said.items()}

    def note_found(self, endpoint_url: str, bucket: str, name: str, value: str) -> None:
        """Remembers what the endpoint was found to honour, as long as writes are remembered."""
        key = endpoint_key(self._settings.ledger_prefix, endpoint_url, bucket)
        with door("hset", self._redis):
            pipeline = self._redis.pipeline(transaction=False)
            pipeline.hset(key, name, value)
            pipeline.expire(key, self._settings.retention_seconds)
            pipeline.execute()

    def lags(self, endpoint_url: str, bucket: str) -> tuple[float, str]:
        """Redis's clock in seconds since 1970, and the text of the histogram of lags (see s3tasks.lags) of an endpoint's bucket."""
        with door("lags", self._redis):
            clock, text = self._run("lags", [lags_key(self._settings.ledger_prefix, endpoint_url, bucket)], [])
        return int(clock) / _MICROSECONDS, text.decode(errors="replace")

    def note_seen(
        self, endpoint_url: str, bucket: str, committed: int, since_probe_seconds: float, not_visible_at_seconds: float
    ) -> float | None:
        """Has the histogram learn that a write has become visible, and returns its age in seconds at the probe that found it.

        `committed` is the write's number; the probe began `since_probe_seconds` ago, and at the age of `not_visible_at_seconds` the
        write was not visible yet. None where another reader has told of this write.
        """
        key = lags_key(self._settings.ledger_prefix, endpoint_url, bucket)
        spans = [int(span * _MICROSECONDS) for span in (since_probe_seconds, not_visible_at_seconds)]
        with door("seen", self._redis):
            age = int(self._run("seen", [key], [committed, *spans, self._settings.retention_seconds]))
        return None if age < 0 else age / _MICROSECONDS

    def eviction_policy(self) -> str:
        """Redis's `maxmemory-policy`: anything but `noeviction` may drop records (and queued tasks) before their time."""
        with door("info", self._redis):
            # redis-py asks one node of a cluster unless told otherwise; asked for all, it answers for each.
            said = self._redis.info("memory", **({"target_nodes": "all"} if isinstance(self._redis, redis.RedisCluster) else {}))
        nodes = [said] if "maxmemory_policy" in said else list(said.values())
        policies = {str(node["maxmemory_policy"]) for node in nodes}
        return next((policy for policy in sorted(policies) if policy != SAFE_POLICY), SAFE_POLICY)

    def close(self) -> None:
        """Closes the connections."""
        self._redis.close()

    def _move(self, move: _Move) -> Any:
        keys, words = self._spelled(move)
        with door(move.name, self._redis):
            try:
                return self._run(move.name, keys, words)
            except redis.ResponseError as problem:
                raise _refusal(move, problem) from problem

    def _run(self, name: str, keys: Sequence[str], words: Sequence[str | int | bytes]) -> Any:
        source, digest = _script(name)
        try:
            return self._ask("EVALSHA", digest, len(keys), *keys, *words)
        except redis.exceptions.NoScriptError:
            return self._ask("EVAL", source, len(keys), *keys, *words)

    def _moves(self, moves: Sequence[_Move]) -> list[Any]:
        """The answers to moves of one kind, asked in one round trip; LedgerUnavailable in place of those that got none."""
        if not moves or isinstance(self._redis, redis.RedisCluster):
            # redis-py sends no scripts through a cluster's pipeline.
            return [self._moved(move) for move in moves]
        # The first goes alone: Redis knows the script then, and a Redis that is away is asked once.
        first = self._moved(moves[0])
        if isinstance(first, LedgerUnavailable):
            return [first] * len(moves)
        try:
            with door(moves[0].name, self._redis):
                return [first, *self._pipelined(moves[1:])]
        except LedgerUnavailable as problem:
            return [first, *[problem] * (len(moves) - 1)]

    def _pipelined(self, moves: Sequence[_Move]) -> list[Any]:
        pipeline = self._redis.pipeline(transaction=False)
        for move in moves:
            keys, words = self._spelled(move)
            pipeline.evalsha(_script(move.name)[1], len(keys), *keys, *words)
        answers = pipeline.execute(raise_on_error=False)
        return [
            _refusal(move, answer) if isinstance(answer, Exception) else answer
            for move, answer in zip(moves, answers, strict=True)
        ]

    def _moved(self, move: _Move) -> Any:
        try:
            return self._move(move)
        except LedgerUnavailable as problem:
            return problem

    def _spelled(self, move: _Move) -> tuple[list[str], list[str | int | bytes]]:
        prefix = self._settings.ledger_prefix
        keys, words = [record_key(prefix, move.ref)], list(move.arguments)
        if move.write_id is not None:
            keys.append(finished_key(prefix, move.ref, move.write_id))
            words.insert(0, spelled_write_id(move.write_id))
        return keys, words


@cache
def _script(name: str) -> tuple[str, str]:
    folder = files("s3tasks") / "ledger_scripts"
    source = "".join((folder / f"{part}.lua").read_text() for part in ("record", name))
    return source, hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest()


def _begun(write_id: str, answer: Any) -> Opened | Finished | Busy:
    said = answer[0].decode()
    if said == "open":
        return Opened(ticket=int(answer[1]), sole=answer[2] == 1)
    if said == "busy":
        return Busy(int(answer[1]) / _MICROSECONDS)
    return Finished(current_of(write_id, answer[1]), superseded=said == "superseded")


def _refusal(move: _Move, problem: Exception) -> LedgerUnavailable:
    _, told, schema = str(problem).partition("S3TASKSSCHEMA ")
    return unknown_schema(move.name, move.ref, schema) if told else unavailable(move.name, problem)


def _known(ref: ObjectRef, said: Any) -> Record | LedgerUnavailable:
    try:
        return _no_record(ref, said) if isinstance(said, Exception) else record_of(said, ref)
    except LedgerUnavailable as problem:
        return problem


def _no_record(ref: ObjectRef, problem: Exception) -> Record:
    """An empty record, for a key that holds something else; any other problem is raised."""
    if not (isinstance(problem, redis.ResponseError) and str(problem).startswith("WRONGTYPE")):
        raise problem
    logger.warning("the ledger's record of %s is not a hash: treated as unknown", ref)
    return Record()
