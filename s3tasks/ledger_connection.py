"""How Redis is reached: one server, a cluster, or the master that sentinels name; and the one way out for redis-py's errors.

It never knows what is kept there.
"""

from __future__ import annotations

from collections import deque
from contextlib import suppress
from typing import Any
from urllib.parse import SplitResult, urlsplit, urlunsplit

import redis
from redis.backoff import NoBackoff
from redis.cluster import ClusterNode
from redis.retry import Retry
from redis.sentinel import Sentinel

from s3tasks import events
from s3tasks.errors import LedgerUnavailable, S3TasksError
from s3tasks.settings import CLUSTER_SCHEMES, SENTINEL_SCHEMES

_DEFAULT_SENTINEL_PORT = 26379
# What bounds it is how many threads ask at once; redis-py would refuse the hundred and first.
_MOST_CONNECTIONS = 1_000_000

# What the ledger keeps is bytes, whatever a URL that others use as well says of texts.
_OF_TEXTS = frozenset({"decode_responses", "encoding", "encoding_errors"})

# Not all of redis-py's errors derive from its RedisError, and a connection may break below it.
REDIS_ERRORS: tuple[type[Exception], ...] = (
    OSError,
    *(kind for kind in vars(redis.exceptions).values() if isinstance(kind, type) and issubclass(kind, Exception)),
)


def connect(url: str, timeout_seconds: float) -> Any:
    """A client for the URL: of one Redis, of a cluster, or of the master that sentinels name (redis+sentinel://hosts/service/db).

    ValueError for an option of the URL that redis-py does not take.
    """
    place, _, query = url.partition("?")
    kept = [option for option in query.split("&") if option.partition("=")[0] not in _OF_TEXTS]
    try:
        return _client(f"{place}?{'&'.join(kept)}" if any(kept) else place, timeout_seconds)
    except (TypeError, ValueError) as problem:
        if str(problem).startswith("Port"):
            # Python quotes it, which may be the half of a password.
            hint = "a port is a number up to 65535, and / and # in a password are spelled %2F and %23"
            raise ValueError(f"ledger_url: {hint}") from None
        named = ", ".join(option.partition("=")[0] for option in kept)
        raise ValueError(f"ledger_url, with the options ({named}): {problem}") from problem


def _client(url: str, timeout_seconds: float) -> Any:
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
    client = redis.Redis.from_url(url, **options)
    # It looks at its options when it connects; this one never does.
    client.connection_pool.connection_class(**client.connection_pool.connection_kwargs)
    return client


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
        raise ValueError(f"{database!r} is not the number of a database")
    # redis-py's own reading of credentials and options, for a URL of one host.
    said = redis.connection.parse_url(f"redis://{userinfo}{at}-/{database or 0}?{url.query}")  # type: ignore[no-untyped-call]
    said.pop("host")
    sentinels = Sentinel(_addresses(url, _DEFAULT_SENTINEL_PORT), sentinel_kwargs=options)  # type: ignore[no-untyped-call]
    return sentinels.master_for(service or "mymaster", ssl=tls, **{**options, **said})  # type: ignore[no-untyped-call]


def _addresses(url: SplitResult, default_port: int) -> list[tuple[str, int]]:
    hosts = [urlsplit(f"//{host}") for host in url.netloc.rpartition("@")[2].split(",")]
    return [(host.hostname or "localhost", host.port or default_port) for host in hosts]


class Asker:
    """Sends one command at a time to Redis, over connections that are kept for it rather than taken from the pool each time.

    Half of what redis-py spends on a command is the pool, its wrappers and the packing: a look-up costs 0.11 of a boto3 GET through
    the client, and 0.06 like this. Where the connection has been lost meanwhile, the client itself makes the one fresh try, as it
    would have; clients of clusters and sentinels, which choose the server anew, are asked as they are. So is one whose connections
    are bounded by its URL: those that were kept here would be missing there.
    """

    def __init__(self, client: Any) -> None:
        self._client = client
        self._direct = (
            type(client) is redis.Redis and type(client.connection_pool) is redis.ConnectionPool
            and client.connection_pool.max_connections == _MOST_CONNECTIONS
        )
        self._kept: deque[Any] = deque()

    def __call__(self, *words: bytes | str | int) -> Any:
        """The server's answer as it came; a map is a dict, whichever protocol is spoken. Raises redis-py's errors."""
        if not self._direct:
            return self._client.execute_command(*words)
        try:
            connection = self._kept.pop()
        except IndexError:
            connection = self._client.connection_pool.get_connection()
        try:
            said = _asked(connection, words)
        except redis.ResponseError as refusal:
            if not _is_read_only(refusal):
                self._kept.append(connection)
                raise
            # It has become a replica, and did nothing. Whoever has taken its place is found by connecting anew.
            _given_up(self._client, connection)
            self._forget_idle()
            return self._client.execute_command(*words)
        except redis.ConnectionError:
            _given_up(self._client, connection)
            return self._client.execute_command(*words)
        except BaseException:
            # What was asked may still be answered, and must not be taken for the answer to something else.
            _given_up(self._client, connection)
            raise
        self._kept.append(connection)
        return dict(zip(said[::2], said[1::2], strict=True)) if words[0] == "HGETALL" and isinstance(said, list) else said


    def _forget_idle(self) -> None:
        with suppress(IndexError):
            while True:
                _given_up(self._client, self._kept.pop())
        _close_idle(self._client)


def _close_idle(client: Any) -> None:
    """Closes the connections that are in the client's pools, and leaves those alone that are in use."""
    clients = [client]
    if isinstance(client, redis.RedisCluster):
        nodes = client.get_nodes()  # type: ignore[no-untyped-call]
        clients = [node.redis_connection for node in nodes if node.redis_connection is not None]
    for one in clients:
        one.connection_pool.disconnect(inuse_connections=False)


def _is_read_only(refusal: redis.ResponseError) -> bool:
    """Redis 6.2 tells it of a script's first write in the words of the script's failure."""
    return isinstance(refusal, redis.ReadOnlyError) or " -READONLY " in str(refusal)


def _asked(connection: Any, words: tuple[bytes | str | int, ...]) -> Any:
    packed = [b"*%d\r\n" % len(words)]
    for word in words:
        spelled = word if isinstance(word, bytes) else str(word).encode()
        packed.append(b"$%d\r\n%b\r\n" % (len(spelled), spelled))
    connection.send_packed_command([b"".join(packed)])
    return connection.read_response()


def _given_up(client: Any, connection: Any) -> None:
    connection.disconnect()
    client.connection_pool.release(connection)


class door:  # noqa: N801 - read as a word: `with door("commit"):`
    """The one way out for redis-py's errors: all of them leave as LedgerUnavailable, with the client's words.

    A call to Redis goes on inside it; those who listen are told how long it took and what went wrong. When it is interrupted, the
    client's idle connections are closed: redis-py puts one that still owes answers among them, and would take the first of those
    for the answer to whatever is asked next.
    """

    __slots__ = ("_client", "_name", "_operation")

    def __init__(self, operation: str, client: Any = None) -> None:
        self._name, self._client = operation, client
        self._operation: events.Operation | None = None

    def __enter__(self) -> None:
        if events.listeners:
            self._operation = events.begin("ledger", self._name)

    def __exit__(self, kind: type[BaseException] | None, problem: BaseException | None, _: object) -> None:
        error = unavailable(self._name, problem) if isinstance(problem, REDIS_ERRORS) else None
        if problem is not None and error is None and not isinstance(problem, S3TasksError) and self._client is not None:
            _close_idle(self._client)
        if self._operation is not None:
            self._operation.end(kind.__name__ if kind else None)
        if error is not None:
            raise error from problem


def unavailable(operation: str, problem: Exception) -> LedgerUnavailable:
    """The error for a move that redis-py could not make, with the client's own words (they hold no credentials)."""
    kind = type(problem).__name__
    if events.listeners:
        events.tell(events.Failed("ledger", operation, kind))
    return LedgerUnavailable(operation, f"{kind}: {problem}")
