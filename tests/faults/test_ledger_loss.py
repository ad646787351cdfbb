"""What still holds when Redis has lost what it knew: flushed, failed over to a replica that missed the last writes, evicting, full.

What does not hold is asserted too, as measured: the README says the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import pytest
import redis

from s3tasks import (
    ConsistentS3,
    LedgerUnavailable,
    NotYetVisible,
    ObjectDeleted,
    ObjectRef,
    PreconditionFailed,
    Settings,
    StaleRead,
    Superseded,
)
from s3tasks.evidence import Landed
from s3tasks.ledger import Finished, Ledger, Opened
from s3tasks.refs import finished_key, record_key
from s3tasks.sandbox import RedisServer, Sandbox
from s3tasks.sandbox.processes import wait_until
from tests.conftest import REPOSITORY
from tests.redis_proxy import RedisProxy, redis_proxied

Connect = Callable[[Settings], ConsistentS3]
KEYS = 20


@pytest.fixture
def held_back(sandbox: Sandbox) -> Iterator[Callable[[], None]]:
    """From the call on, and until the test is over, the replica serves what it has now."""

    def hold() -> None:
        sandbox.drain()
        sandbox.pause_replication()

    yield hold
    sandbox.resume_replication()


def outcome(read: Callable[[], Any]) -> Any:
    """What a read returned, or the class of its refusal."""
    try:
        return read()
    except (PreconditionFailed, ObjectDeleted) as refusal:
        return type(refusal)


def each(client: ConsistentS3, refs: Sequence[ObjectRef], *, latest: bool = False) -> list[Any]:
    """The outcome of a read of each."""
    return [outcome(partial(client.read, ref, latest=latest)) for ref in refs]


def wipe(url: str) -> None:
    with redis.Redis.from_url(url) as raw:
        raw.flushall()


@pytest.fixture
def own_redis() -> Iterator[RedisServer]:
    with RedisServer() as server:
        yield server


def test_a_flushed_redis_leaves_refs_exact_and_plain_keys_unchecked(
    own_redis: RedisServer, replicated: Settings, connect: Connect, bucket: str, held_back: Callable[[], None]
) -> None:
    client = connect(replicated.replace(ledger_url=own_redis.url))
    refs = [ObjectRef(bucket, f"k{n}") for n in range(KEYS)]
    old = [client.write(b"old", ref) for ref in refs]
    held_back()
    new = [client.write(b"new", ref) for ref in refs]
    checked = each(client, refs)
    wipe(own_redis.url)

    plain = each(client, refs)
    exact = each(client, new)
    latest = each(client, new, latest=True)
    replaced = each(client, old)

    assert checked == [StaleRead] * KEYS
    assert plain == [b"old"] * KEYS, "not promised: nothing is known, so the replica is believed"
    assert exact == [StaleRead] * KEYS
    assert latest == [StaleRead] * KEYS
    assert replaced == [b"old"] * KEYS, "exactly the write that was asked for, though nobody can tell that it was replaced"


def test_after_a_flush_a_chain_reads_what_it_wrote_once_the_replica_has_it(
    own_redis: RedisServer, replicated: Settings, connect: Connect, ref: ObjectRef, sandbox: Sandbox, held_back: Callable[[], None]
) -> None:
    client = connect(replicated.replace(ledger_url=own_redis.url))
    held_back()
    written = client.write(b"new", ref)
    wipe(own_redis.url)
    assert outcome(lambda: client.read(written)) is NotYetVisible
    sandbox.resume_replication()

    assert client.read(written, wait=10) == b"new"
    assert client.read(ref) == b"new"


def test_a_flush_in_the_middle_of_writes_leaves_every_key_readable_and_the_next_write_checked(
    own_redis: RedisServer, replicated: Settings, connect: Connect, ref: ObjectRef, closing: Callable[[Any], Any],
    held_back: Callable[[], None],
) -> None:
    settings = replicated.replace(ledger_url=own_redis.url)
    client, ledger = connect(settings), closing(Ledger(settings))
    client.write(b"old", ref)
    begun = ledger.begin(ref, "interrupted")
    wipe(own_redis.url)

    assert isinstance(ledger.begin(ref, "interrupted"), Opened), "a redelivered write is forgotten, and is done again"
    held_back()
    client.write(b"next", ref)
    assert isinstance(begun, Opened)
    assert outcome(lambda: client.read(ref)) is StaleRead, "the next write is promised as ever"


def master_link_is_up(replica: redis.Redis) -> bool:
    return bool(replica.info("replication")["master_link_status"] == "up")


class Failover:
    """A primary, a replica of it, and one address before both, which moves to the replica when the primary is lost."""

    def __init__(self, primary: RedisServer, replica: RedisServer, proxy: RedisProxy, raw: redis.Redis) -> None:
        self.primary, self.replica, self.proxy, self._raw = primary, replica, proxy, raw

    def cut_replication(self) -> None:
        """The replica has what was written so far, and gets nothing more."""
        with redis.Redis.from_url(self.primary.url) as primary:
            assert primary.wait(1, 10_000) == 1
        self._raw.slaveof("127.0.0.1", 1)

    def promote(self) -> None:
        self.primary.kill()
        self._raw.slaveof()
        self.proxy.move_to(self.replica.url)


@pytest.fixture(scope="module")
def replica_server() -> Iterator[RedisServer]:
    with RedisServer() as server:
        yield server


@pytest.fixture
def failover(replica_server: RedisServer) -> Iterator[Failover]:
    with (
        RedisServer(("--repl-diskless-sync-delay", "0")) as primary,
        redis_proxied(primary.url) as proxy,
        redis.Redis.from_url(replica_server.url) as raw,
    ):
        raw.slaveof("127.0.0.1", primary.port)
        assert wait_until(lambda: master_link_is_up(raw), 15)
        yield Failover(primary, replica_server, proxy, raw)
        raw.slaveof()


@pytest.fixture
def over(failover: Failover, settings: Settings) -> Settings:
    """Settings whose ledger is behind the one address."""
    return settings.replace(ledger_url=failover.proxy.url)


def test_after_a_failover_that_missed_writes_refs_are_exact_and_never_serve_another_write(
    failover: Failover, over: Settings, sandbox: Sandbox, connect: Connect, bucket: str, held_back: Callable[[], None]
) -> None:
    client = connect(over.replace(read_endpoint_url=sandbox.read_endpoint_url))
    refs = [ObjectRef(bucket, f"k{n}") for n in range(KEYS)]
    for ref in refs:
        client.write(b"old", ref)
    held_back()
    failover.cut_replication()
    new = [client.write(b"new", ref) for ref in refs]
    failover.promote()

    exact = each(client, new)
    plain = each(client, refs)
    sandbox.drain()

    assert exact == [StaleRead] * KEYS
    assert plain == [b"old"] * KEYS, "not promised: the promoted Redis knows only the write before"
    assert [client.read(ref) for ref in new] == [b"new"] * KEYS


def test_after_a_failover_that_missed_a_write_its_key_is_readable(
    failover: Failover, over: Settings, connect: Connect, ref: ObjectRef
) -> None:
    client = connect(over)
    client.write(b"old", ref)
    failover.cut_replication()
    client.write(b"new", ref)
    failover.promote()

    assert client.read(ref, wait=1) == b"new"


def test_after_a_failover_that_missed_a_commit_readers_record_it_themselves(
    failover: Failover, over: Settings, connect: Connect, ref: ObjectRef, closing: Callable[[Any], Any]
) -> None:
    client, ledger = connect(over), closing(Ledger(over))

    def cut_before_commit(command: Any, forward: Any) -> bytes:
        if command.move == "commit":
            failover.cut_replication()
        return bytes(forward(command))

    client.write(b"old", ref)
    failover.proxy.rule = cut_before_commit
    written = client.write(b"new", ref)
    failover.proxy.rule = None
    failover.promote()

    assert len(ledger.lookup(ref).intents) == 1
    assert client.read(ref) == b"new"
    assert client.read(written) == b"new"
    assert ledger.lookup(ref).intents == ()


def test_after_a_failover_that_missed_a_delete_its_ref_says_deleted_and_the_plain_key_late(
    failover: Failover, over: Settings, connect: Connect, ref: ObjectRef
) -> None:
    client = connect(over)
    client.write(b"old", ref)
    failover.cut_replication()
    gone = client.delete(ref)
    failover.promote()

    assert outcome(lambda: client.read(gone)) is ObjectDeleted
    assert outcome(lambda: client.read(ref)) is NotYetVisible, "not promised: a 404 proves nothing to a ledger that knows a write"
    client.write(b"next", ref)
    assert client.read(ref) == b"next"


def test_after_a_failover_the_next_write_is_above_all_numbers_that_were_lost(
    failover: Failover, over: Settings, connect: Connect, ref: ObjectRef
) -> None:
    client = connect(over)
    client.write(b"old", ref)
    failover.cut_replication()
    lost = client.write(b"lost", ref)
    failover.promote()
    next_one = client.write(b"next", ref)

    assert lost.seq is not None
    assert next_one.seq is not None
    assert next_one.seq > lost.seq
    assert client.read(ref) == b"next"
    assert outcome(lambda: client.read(lost)) is Superseded


@pytest.fixture(scope="module")
def evicting() -> Iterator[RedisServer]:
    with RedisServer(("--maxmemory", "4mb", "--maxmemory-policy", "allkeys-lru")) as server:
        yield server


def fill(url: str, megabytes: float) -> None:
    with redis.Redis.from_url(url) as raw:
        for n in range(int(megabytes * 256)):
            raw.set(f"filling:{n}", b"." * 4096)


def test_an_evicting_redis_leaves_refs_exact_and_evicted_keys_unchecked(
    evicting: RedisServer, replicated: Settings, connect: Connect, bucket: str, held_back: Callable[[], None]
) -> None:
    settings = replicated.replace(ledger_url=evicting.url)
    client = connect(settings)
    refs = [ObjectRef(bucket, f"k{n}") for n in range(KEYS)]
    for ref in refs:
        client.write(b"old", ref)
    held_back()
    new = [client.write(b"new", ref) for ref in refs]
    fill(evicting.url, 8)
    with redis.Redis.from_url(evicting.url) as raw:
        kept = {ref for ref in refs if raw.exists(record_key(settings.ledger_prefix, ref))}

    plain = dict(zip(refs, each(client, refs), strict=True))
    exact = each(client, new)

    assert len(kept) < KEYS, "some were evicted"
    assert exact == [StaleRead] * KEYS
    assert plain == {ref: StaleRead if ref in kept else b"old" for ref in refs}, "not promised where the record was evicted"


def test_an_evicted_memory_of_a_finished_write_lets_its_redelivery_write_again(
    evicting: RedisServer, settings: Settings, ref: ObjectRef, connect: Connect, closing: Callable[[Any], Any]
) -> None:
    settings = settings.replace(ledger_url=evicting.url)
    ledger, client = closing(Ledger(settings)), connect(settings)
    client.with_write_ids(lambda _: "once", 0.0).write(b"x", ref)
    assert isinstance(ledger.begin(ref, "once"), Finished)
    with redis.Redis.from_url(evicting.url) as raw:
        raw.delete(record_key(settings.ledger_prefix, ref), finished_key(settings.ledger_prefix, ref, "once"))

    assert isinstance(ledger.begin(ref, "once"), Opened), "not promised: hence noeviction"
    assert client.read(ref) == b"x"


def test_a_worker_on_a_redis_that_may_evict_says_so_at_its_start(sandbox: Sandbox, evicting: RedisServer) -> None:
    worker = sandbox.start_worker(
        directory=REPOSITORY, concurrency=1, options=["-Q", "nobody"], environment={"S3TASKS_LEDGER_URL": evicting.url}
    )
    try:
        assert wait_until(lambda: "maxmemory-policy allkeys-lru" in worker.log(), 10)
    finally:
        worker.kill()
    assert "ERROR" in next(line for line in worker.log().splitlines() if "allkeys-lru" in line)


def test_a_full_redis_that_does_not_evict_begins_no_write_but_finishes_those_that_have_begun(
    own_redis: RedisServer, settings: Settings, bucket: str, connect: Connect, closing: Callable[[Any], Any]
) -> None:
    settings = settings.replace(ledger_url=own_redis.url)
    client, ledger = connect(settings), closing(Ledger(settings))
    ref, begun_before, landed = ObjectRef(bucket, "k"), ObjectRef(bucket, "begun"), Landed(etag="e")
    written = client.write(b"old", ref)
    client.write(b"old", begun_before)
    opened = ledger.begin(begun_before, "slow")
    assert isinstance(opened, Opened)
    with redis.Redis.from_url(own_redis.url) as raw:
        raw.config_set("maxmemory", "1mb")
        with pytest.raises(redis.exceptions.OutOfMemoryError):
            fill(own_redis.url, 2)

        with pytest.raises(LedgerUnavailable, match=r"OutOfMemory|OOM"):
            client.write(b"new", ref)
        assert client.read(ref) == b"old", "nothing was written, and reads need no room"
        assert client.read(written) == b"old"
        committed = ledger.commit(begun_before, "slow", opened.ticket, landed, landed_ticket=opened.ticket)
        assert ledger.lookup(begun_before).currents == (committed,), "all of the commit or nothing"

        raw.config_set("maxmemory", "0")
    assert client.read(client.write(b"new", ref)) == b"new"
