"""The verbs in process: a real Redis, a real S3, and a replica that lags when it is told to."""

from __future__ import annotations

import gc
import os
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis

from s3tasks import (
    ConsistentS3,
    InvalidRef,
    LedgerUnavailable,
    NoSuchKey,
    NotYetVisible,
    ObjectDeleted,
    ObjectRef,
    OverlappingWrite,
    Settings,
    StaleRead,
    StoreError,
    StoreUnavailable,
    Superseded,
    WriteConflict,
)
from s3tasks.evidence import Landed
from s3tasks.ledger import Ledger, Opened
from s3tasks.process import Process
from s3tasks.refs import Marker, record_key
from s3tasks.sandbox import RedisServer, Sandbox
from s3tasks.store import Condition, Content, Endpoint, Store
from s3tasks.store.wire import Arriving
from s3tasks.write_ids import NumberedWriteIds
from tests.s3_proxy import Dropped, Forward, Request, Response, proxied, refusal

Connect = Callable[[Settings], ConsistentS3]


@pytest.fixture
def paused(sandbox: Sandbox) -> Iterator[Sandbox]:
    """A replica that gets nothing until it is told to."""
    sandbox.pause_replication()
    yield sandbox
    sandbox.drain()
    sandbox.resume_replication()


@pytest.fixture
def lagging(replicated: Settings, connect: Connect) -> ConsistentS3:
    """A client that reads from the replica."""
    return connect(replicated)


@pytest.fixture
def outsider(store: Store) -> Callable[[ObjectRef, bytes], str]:
    """Somebody else's program: it writes to the bucket and knows nothing of us."""

    def write(ref: ObjectRef, body: bytes) -> str:
        said = store._writer.put_object(Bucket=ref.bucket, Key=ref.key, Body=body)
        return str(said["ETag"]).strip('"')

    return write


def test_what_was_written_is_read(client: ConsistentS3, ref: ObjectRef) -> None:
    written = client.write(b"body", ref.uri, content_type="text/x", metadata={"a": "b"})

    assert client.read(ref) == client.read(written) == client.read(written.to_dict()) == b"body"
    described = client.head(written)
    assert (described["etag"], described["size"], described["content_type"]) == (written.etag, 4, "text/x")
    assert described["metadata"] == {"a": "b"}


ODD_KEYS = ["with space", "ünïcode/日本", "{braces}", "}odd{", "per%cent%2F", "a//b", "q?x=1&y#z", "k" * 1024, "/lead"]


@pytest.mark.parametrize("key", ODD_KEYS)
def test_odd_keys_are_kept_exactly(client: ConsistentS3, bucket: str, key: str) -> None:
    written = client.write(key, ObjectRef(bucket, key))
    assert client.read(written).decode() == key
    client.delete(written)
    with pytest.raises(ObjectDeleted):
        client.read(f"s3://{bucket}/{key}")


@pytest.mark.parametrize("body", [b"", b"\0", "text ü"])
def test_bodies_of_every_kind_come_back_as_bytes(client: ConsistentS3, ref: ObjectRef, body: bytes | str) -> None:
    written = client.write(body, ref)
    assert client.read(written) == (body.encode() if isinstance(body, str) else body)


@pytest.mark.parametrize("body", [None, 5, ["x"], {"a": 1}])
def test_what_is_no_body_is_refused(client: ConsistentS3, ref: ObjectRef, body: Any) -> None:
    with pytest.raises(TypeError, match="bytes or str"):
        client.write(body, ref)


def test_a_key_that_was_never_written_is_missing_at_once(client: ConsistentS3, ref: ObjectRef) -> None:
    with pytest.raises(NoSuchKey) as caught:
        client.read(ref, wait=30)
    assert type(caught.value) is NoSuchKey


def test_a_deleted_key_says_so(client: ConsistentS3, ref: ObjectRef) -> None:
    client.write(b"x", ref)
    gone = client.delete(ref)
    assert gone.deleted
    for wanted in (ref, gone):
        with pytest.raises(ObjectDeleted):
            client.read(wanted, wait=30)


def test_an_object_nobody_recorded_is_assumed_consistent(
    client: ConsistentS3, ref: ObjectRef, outsider: Callable[[ObjectRef, bytes], str]
) -> None:
    outsider(ref, b"theirs")
    assert client.read(ref) == b"theirs"


def test_a_late_object_is_not_yet_visible_and_then_read(lagging: ConsistentS3, ref: ObjectRef, paused: Sandbox) -> None:
    written = lagging.write(b"x", ref)
    for wanted in (ref, written):
        with pytest.raises(NotYetVisible):
            lagging.read(wanted)
    paused.drain()
    assert lagging.read(written) == b"x"


def test_an_older_object_is_stale_and_never_returned(lagging: ConsistentS3, ref: ObjectRef, paused: Sandbox) -> None:
    lagging.write(b"old", ref)
    paused.drain()
    lagging.write(b"new", ref)

    with pytest.raises(StaleRead):
        lagging.read(ref)
    with pytest.raises(StaleRead):
        lagging.head(ref)
    paused.drain()
    assert lagging.read(ref) == b"new"


def test_a_deleted_object_that_the_replica_still_has_is_deleted(lagging: ConsistentS3, ref: ObjectRef, paused: Sandbox) -> None:
    lagging.write(b"x", ref)
    paused.drain()
    lagging.delete(ref)
    with pytest.raises(ObjectDeleted):
        lagging.read(ref)


def test_waiting_ends_when_the_replica_has_caught_up(lagging: ConsistentS3, ref: ObjectRef, sandbox: Sandbox) -> None:
    written = lagging.write(b"x", ref)
    assert lagging.read(written, wait=20) == b"x"
    (change,) = [change for change in sandbox.changes() if change.bucket == ref.bucket]
    assert change.applied_at is not None


def test_the_last_error_says_how_often_and_how_long_was_tried(lagging: ConsistentS3, ref: ObjectRef, paused: Sandbox) -> None:
    lagging.write(b"x", ref)
    # On a crowded machine one look may take longer than a short wait.
    for wait in (0.3, 3, 30):
        with pytest.raises(NotYetVisible) as caught:
            lagging.read(ref, wait=wait)
        if caught.value.attempts >= 2:
            break
    assert caught.value.attempts >= 2
    assert caught.value.waited_seconds >= 0.3


def test_the_origin_may_be_asked_at_once(replicated: Settings, connect: Connect, ref: ObjectRef, paused: Sandbox) -> None:
    client = connect(replicated.replace(on_stale="origin"))
    client.write(b"old", ref)
    assert client.read(ref) == b"old"
    paused.drain()
    written = client.write(b"new", ref)
    assert client.read(ref) == client.read(written) == b"new"
    assert client.head(ref)["etag"] == written.etag


def test_a_barrier_waits_for_the_read_endpoint_itself(
    replicated: Settings, connect: Connect, ref: ObjectRef, paused: Sandbox
) -> None:
    client = connect(replicated.replace(on_stale="origin"))
    written = client.write(b"x", ref)
    with pytest.raises(NotYetVisible):
        client.wait_visible(written)
    paused.drain()
    assert client.wait_visible(written) == written

    gone = client.delete(ref)
    with pytest.raises(StaleRead):
        client.wait_visible(gone)
    paused.drain()
    assert client.wait_visible(gone) == gone


def test_a_barrier_for_a_delete_that_was_overwritten_does_not_wait(lagging: ConsistentS3, ref: ObjectRef, paused: Sandbox) -> None:
    lagging.write(b"x", ref)
    gone = lagging.delete(ref)
    lagging.write(b"y", ref)
    paused.drain()
    with pytest.raises(Superseded):
        lagging.wait_visible(gone, wait=30)


def test_an_exact_ref_gives_that_write_or_says_that_it_was_replaced(client: ConsistentS3, ref: ObjectRef) -> None:
    first = client.write(b"1", ref)
    client.write(b"2", ref)
    with pytest.raises(Superseded):
        client.read(first, wait=30)
    assert client.read(first, latest=True) == b"2"
    client.delete(ref)
    with pytest.raises(Superseded):
        client.read(first)
    with pytest.raises(ObjectDeleted):
        client.read(first, latest=True)


def test_an_exact_ref_is_held_to_its_etag_after_the_ledger_was_lost(lagging: ConsistentS3, ref: ObjectRef, paused: Sandbox) -> None:
    lagging.write(b"old", ref)
    paused.drain()
    written = lagging.write(b"new", ref)
    lagging.forget(ref)

    for latest in (False, True):
        with pytest.raises(StaleRead):
            lagging.read(written, latest=latest)
    paused.drain()
    assert lagging.read(written) == b"new"


def test_ranges_are_of_the_object_that_was_promised(lagging: ConsistentS3, ref: ObjectRef, paused: Sandbox) -> None:
    lagging.write(b"old-0123", ref)
    paused.drain()
    written = lagging.write(b"new-4567", ref)
    with pytest.raises(StaleRead):
        lagging.read(written, byte_range=(4, None))
    paused.drain()
    assert lagging.read(written, byte_range=(4, 5)) == b"45"


@pytest.mark.parametrize("wait", ["10", -1, True, float("nan")])
def test_a_wait_that_is_no_time_is_refused(client: ConsistentS3, ref: ObjectRef, wait: Any) -> None:
    with pytest.raises(ValueError, match="wait="):
        client.read(ref, wait=wait)


@pytest.mark.parametrize("byte_range", [(3, 1), (-1, 2), ("0", 1), (1,), 5, (None, 4), (True, 4)])
def test_a_range_that_is_none_is_refused(client: ConsistentS3, ref: ObjectRef, byte_range: Any) -> None:
    with pytest.raises(ValueError, match="byte_range"):
        client.read(ref, byte_range=byte_range)


def test_versions_are_read_by_id_without_the_ledger(settings: Settings, connect: Connect, sandbox: Sandbox) -> None:
    sandbox.create_bucket("versioned-client", versioned=True)
    client = connect(settings)
    first = client.write(b"1", "s3://versioned-client/k")
    client.write(b"2", "s3://versioned-client/k")
    client.forget("s3://versioned-client/k")

    assert client.read(first) == b"1"
    assert client.head(first)["version_id"] == first.version_id
    assert client.read(first, latest=True) == b"2"


def test_a_version_that_has_not_arrived_is_late_and_an_unknown_one_is_missing(
    replicated: Settings, connect: Connect, sandbox: Sandbox, paused: Sandbox
) -> None:
    sandbox.create_bucket("versioned-late", versioned=True)
    client = connect(replicated)
    written = client.write(b"1", "s3://versioned-late/k")
    with pytest.raises(NotYetVisible):
        client.read(written)
    with pytest.raises(NoSuchKey):
        client.read({"bucket": "versioned-late", "key": "k", "version_id": "00000000-0000-0000-0000-000000000000"}, wait=30)
    assert connect(replicated.replace(on_stale="origin")).read(written) == b"1"


def test_a_store_that_ignores_version_ids_serves_no_other_version(
    settings: Settings, connect: Connect, sandbox: Sandbox
) -> None:
    def serves_the_latest(request: Request, forward: Forward) -> Response:
        path = request.path.partition("?")[0] if request.method in ("GET", "HEAD") else request.path
        return forward(Request(request.method, path, request.headers, request.body))

    sandbox.create_bucket("versioned-ignored", versioned=True)
    with proxied(str(settings.endpoint_url), serves_the_latest) as proxy:
        client = connect(settings.replace(endpoint_url=proxy.url))
        first = client.write(b"1", "s3://versioned-ignored/k")
        client.write(b"2", "s3://versioned-ignored/k")
        for call in (client.read, client.head):
            with pytest.raises(NotYetVisible):
                call(first)


def test_a_delete_that_a_reader_has_seen_at_work_stays_seen_by_readers_of_a_replica(
    lagging: ConsistentS3, ledger: Ledger, store: Store, ref: ObjectRef, paused: Sandbox
) -> None:
    written = lagging.write(b"x", ref)
    paused.drain()
    begun = ledger.begin(ref, "dead", deletes=True)
    assert lagging.read(ref) == b"x"
    store.delete(ref, Condition())
    assert lagging.read(ref) == b"x", "nobody has seen it yet"
    paused.drain()
    with pytest.raises(ObjectDeleted):
        lagging.read(ref)
    with pytest.raises(Superseded):
        lagging.read(written)
    assert isinstance(begun, Opened)
    assert isinstance(ledger.begin(ref, "dead", deletes=True), Opened), "its task still asks S3"


def test_an_outside_write_is_adopted_once_it_is_proven_newer(
    client: ConsistentS3, ref: ObjectRef, outsider: Callable[[ObjectRef, bytes], str]
) -> None:
    client.write(b"ours", ref)
    time.sleep(2.2)
    outsider(ref, b"theirs")

    assert client.read(ref) == b"theirs"
    assert client.read(ref) == b"theirs"


def test_an_outside_write_is_adopted_from_a_replica_too(
    lagging: ConsistentS3, ref: ObjectRef, outsider: Callable[[ObjectRef, bytes], str], paused: Sandbox
) -> None:
    lagging.write(b"ours", ref)
    paused.drain()
    time.sleep(2.2)
    outsider(ref, b"theirs")
    assert lagging.read(ref) == b"ours", "nobody can know yet"
    paused.drain()
    assert lagging.read(ref) == b"theirs"


def test_outside_writes_may_be_rejected(
    settings: Settings, connect: Connect, ref: ObjectRef, outsider: Callable[[ObjectRef, bytes], str]
) -> None:
    client = connect(settings.replace(outside_writes="reject"))
    client.write(b"ours", ref)
    time.sleep(2.2)
    outsider(ref, b"theirs")
    with pytest.raises(StaleRead):
        client.read(ref)


def test_a_strong_store_is_believed_at_once(
    settings: Settings, connect: Connect, ref: ObjectRef, store: Store, outsider: Callable[[ObjectRef, bytes], str]
) -> None:
    client = connect(settings.replace(store_consistency="strong"))
    client.write(b"ours", ref)
    outsider(ref, b"theirs")
    assert client.read(ref) == b"theirs"
    store._writer.delete_object(Bucket=ref.bucket, Key=ref.key)
    with pytest.raises(ObjectDeleted):
        client.read(ref)


def half_done(ledger: Ledger, store: Store, ref: ObjectRef, write_id: str, body: bytes) -> int:
    """A writer that dies between S3's answer and its commit."""
    begun = ledger.begin(ref, write_id)
    assert isinstance(begun, Opened)
    store.put(ref, Content(body), Marker(write_id, begun.ticket), Condition())
    return begun.ticket


def test_a_writer_that_died_before_its_commit_leaves_the_key_readable(
    client: ConsistentS3, ledger: Ledger, store: Store, ref: ObjectRef
) -> None:
    client.write(b"before", ref)
    half_done(ledger, store, ref, "dead", b"after")

    assert client.read(ref) == b"after"
    record = ledger.lookup(ref)
    assert [current.write_id for current in record.currents] == ["dead"]
    assert record.intents == ()


def test_a_dead_writers_object_is_recorded_through_a_replica_by_the_origins_date(
    lagging: ConsistentS3, ledger: Ledger, store: Store, ref: ObjectRef, paused: Sandbox
) -> None:
    lagging.write(b"before", ref)
    paused.drain()
    half_done(ledger, store, ref, "dead", b"after")
    assert lagging.read(ref) == b"before", "the write is still going on"
    paused.drain()
    assert lagging.read(ref) == b"after"


def test_a_dead_writers_body_is_given_up_where_the_ledger_cannot_be_told_of_it(
    settings: Settings, connect: Connect, ledger: Ledger, store: Store, ref: ObjectRef, sandbox: Sandbox
) -> None:
    half_done(ledger, store, ref, "dead", b"x" * 100_000)
    with redis.Redis.from_url(sandbox.redis_url) as raw:
        raw.acl_setuser("looks", enabled=True, passwords=["+on"], keys=["*"], commands=["+hgetall", "+client", "+hello"])
    client = connect(settings.replace(ledger_url=sandbox.redis_url.replace("redis://", "redis://looks:on@")))

    with pytest.raises(LedgerUnavailable) as told:
        client.read(ref)
    # While the error is held, so is all that its frames had in hand.
    left_open = [thing for thing in gc.get_objects() if isinstance(thing, Arriving) and not thing.closed]
    assert not left_open, told


def test_a_redelivered_write_that_had_landed_is_not_written_again(
    settings: Settings, connect: Connect, ledger: Ledger, store: Store, ref: ObjectRef
) -> None:
    half_done(ledger, store, ref, "task", b"once")
    with proxied(str(settings.endpoint_url)) as proxy:
        client = connect(settings.replace(endpoint_url=proxy.url)).with_write_ids(NumberedWriteIds("task"), 0)
        written = client.write(b"once", ref)
        again = connect(settings.replace(endpoint_url=proxy.url)).with_write_ids(NumberedWriteIds("task"), 0).write(b"once", ref)
        assert proxy.count("PUT") == 0
        assert written == again
        assert client.read(written) == b"once"


def test_a_redelivered_write_that_was_replaced_does_not_overwrite(
    settings: Settings, connect: Connect, ledger: Ledger, store: Store, ref: ObjectRef, client: ConsistentS3
) -> None:
    half_done(ledger, store, ref, "task", b"old")
    client.write(b"newer", ref)

    redelivered = client.with_write_ids(NumberedWriteIds("task"), 0).write(b"old", ref)

    assert client.read(ref) == b"newer"
    assert redelivered.etag is None
    with pytest.raises(Superseded):
        client.read(redelivered, wait=30)


def commits_cross(ledger: Ledger, store: Store, ref: ObjectRef) -> None:
    """Two overlapping writers: S3 takes a then b, the ledger hears of b then a."""
    tickets = {name: ledger.begin(ref, name) for name in ("a", "b")}
    landed: dict[str, Landed] = {}
    for name in ("a", "b"):
        opened = tickets[name]
        assert isinstance(opened, Opened)
        landed[name] = store.put(ref, Content(name.encode()), Marker(name, opened.ticket), Condition())
    for name in ("b", "a"):
        opened = tickets[name]
        assert isinstance(opened, Opened)
        ledger.commit(ref, name, opened.ticket, landed[name], landed_ticket=opened.ticket)


def test_commits_in_the_other_order_leave_the_key_readable(
    client: ConsistentS3, ledger: Ledger, store: Store, ref: ObjectRef
) -> None:
    commits_cross(ledger, store, ref)
    assert client.read(ref) == b"b"


def test_control_the_order_of_2014_poisons_the_key_on_the_same_schedule(sandbox: Sandbox, store: Store, ref: ObjectRef) -> None:
    memory: dict[str, str] = {}
    etags = {name: store.put(ref, Content(name.encode()), Marker(name, 1), Condition()).etag for name in ("a", "b")}
    for name in ("b", "a"):
        memory["etag"] = str(etags[name])

    answer = store.get(ref, Endpoint.READ)
    answer.close()
    assert answer.served is not None
    assert answer.served.etag != memory["etag"], "every read of this key would fail until the record expires"


def monitored(sandbox: Sandbox, ref: ObjectRef, call: Callable[[], object]) -> list[str]:
    """The commands that reach Redis about the object meanwhile, each one round trip."""
    seen: list[str] = []
    with redis.Redis.from_url(sandbox.redis_url) as watching, watching.monitor() as monitor:
        call()
        with redis.Redis.from_url(sandbox.redis_url) as marking:
            marking.echo("over")
        for command in monitor.listen():
            words = command["command"]
            if words.startswith("ECHO"):
                return seen
            if command["client_type"] != "lua" and ref.bucket in words:
                seen.append(words.split(" ")[0])
    return seen


def test_a_read_costs_one_round_trip_to_redis_and_a_write_two(client: ConsistentS3, ref: ObjectRef, sandbox: Sandbox) -> None:
    client.write(b"scripts are loaded", ref)
    assert monitored(sandbox, ref, lambda: client.write(b"x", ref)) == ["EVALSHA", "EVALSHA"]
    assert monitored(sandbox, ref, lambda: client.read(ref)) == ["HGETALL"]
    assert monitored(sandbox, ref, lambda: client.delete(ref)) == ["EVALSHA", "EVALSHA"]


def test_no_write_reaches_s3_without_its_intent(settings: Settings, connect: Connect, ref: ObjectRef) -> None:
    with proxied(str(settings.endpoint_url)) as proxy:
        client = connect(settings.replace(endpoint_url=proxy.url, ledger_url="redis://127.0.0.1:1/0"))
        for call in (lambda: client.write(b"x", ref), lambda: client.delete(ref), lambda: client.read(ref)):
            with pytest.raises(LedgerUnavailable):
                call()
        assert proxy.seen == []


def test_a_ledger_that_was_restarted_is_used_again(settings: Settings, connect: Connect, ref: ObjectRef) -> None:
    with RedisServer() as server:
        client = connect(settings.replace(ledger_url=server.url))
        client.write(b"x", ref)
        server.restart()
        assert client.read(ref) == b"x"


def test_a_refused_write_leaves_no_intent(settings: Settings, connect: Connect, ledger: Ledger, ref: ObjectRef) -> None:
    with proxied(str(settings.endpoint_url), lambda _request, _forward: refusal(403, "AccessDenied")) as proxy:
        client = connect(settings.replace(endpoint_url=proxy.url))
        with pytest.raises(StoreError, match="AccessDenied"):
            client.write(b"x", ref)
        with pytest.raises(StoreError, match="AccessDenied"):
            client.delete(ref)
    assert ledger.lookup(ref).intents == ()


def test_a_write_whose_answer_was_lost_is_found_done_by_the_next_attempt(
    settings: Settings, connect: Connect, ledger: Ledger, ref: ObjectRef
) -> None:
    lost = iter([True])

    def loses_one_answer(request: Request, forward: Forward) -> Response:
        response = forward(request)
        if request.method == "PUT" and next(lost, False):
            raise Dropped
        return response

    with proxied(str(settings.endpoint_url), loses_one_answer) as proxy:
        client = connect(settings.replace(endpoint_url=proxy.url))
        written = client.write(b"x", ref)
        assert proxy.count("PUT") == 1
        assert client.read(written) == b"x"
    assert ledger.lookup(ref).intents == ()


def test_a_store_that_stays_down_is_unavailable_and_the_intent_stays_open(
    settings: Settings, connect: Connect, ledger: Ledger, ref: ObjectRef
) -> None:
    with proxied(str(settings.endpoint_url), lambda _request, _forward: refusal(503)) as proxy:
        client = connect(settings.replace(endpoint_url=proxy.url))
        with pytest.raises(StoreUnavailable) as caught:
            client.write(b"x", ref)
    assert caught.value.attempts == settings.store_attempts
    assert len(ledger.lookup(ref).intents) == 1


def test_conditional_writes_have_one_winner(client: ConsistentS3, ref: ObjectRef, ledger: Ledger) -> None:
    written = client.write(b"1", ref, if_none_match=True)
    with pytest.raises(WriteConflict):
        client.write(b"2", ref, if_none_match=True)
    with pytest.raises(WriteConflict):
        client.delete(ref, if_match="0" * 32)
    client.write(b"3", ref, if_match=written.etag)
    assert client.read(ref) == b"3"
    assert ledger.lookup(ref).intents == ()


def test_a_conditional_write_whose_answer_was_lost_is_no_conflict_with_itself(
    settings: Settings, connect: Connect, ref: ObjectRef
) -> None:
    hidden = iter([True])
    lost = iter([True])

    def loses_the_answer_and_the_first_look(request: Request, forward: Forward) -> Response:
        response = forward(request)
        if request.method == "PUT" and next(lost, False):
            raise Dropped
        return refusal(404) if request.method == "HEAD" and next(hidden, False) else response

    with proxied(str(settings.endpoint_url), loses_the_answer_and_the_first_look) as proxy:
        client = connect(settings.replace(endpoint_url=proxy.url, conditional_writes="trust"))
        written = client.write(b"x", ref, if_none_match=True)
        assert proxy.count("PUT") == 2
        assert client.read(written) == b"x"


def test_a_conditional_delete_whose_answer_was_lost_is_no_conflict_with_itself(
    settings: Settings, connect: Connect, ref: ObjectRef, client: ConsistentS3
) -> None:
    written = client.write(b"x", ref)
    lost = iter([True])

    def loses_one_answer(request: Request, forward: Forward) -> Response:
        response = forward(request)
        if request.method == "DELETE" and next(lost, False):
            raise Dropped
        return response

    with proxied(str(settings.endpoint_url), loses_one_answer) as proxy:
        trusting = settings.replace(endpoint_url=proxy.url, conditional_writes="trust")
        assert connect(trusting).delete(ref, if_match=written.etag).deleted
        assert proxy.count("DELETE") == 2
    with pytest.raises(ObjectDeleted):
        client.read(ref)


@pytest.mark.parametrize("hidden", [False, True])
def test_a_write_that_was_answered_without_an_etag_is_known_by_its_marker(
    settings: Settings, connect: Connect, ref: ObjectRef, ledger: Ledger, hidden: bool
) -> None:
    def nameless(request: Request, forward: Forward) -> Response:
        response = forward(request)
        if request.method == "HEAD" and hidden:
            return response.with_header("x-amz-meta-s3tasks-write", "somebody;1;else")
        return response.with_header("etag", '""') if request.method == "PUT" else response

    with proxied(str(settings.endpoint_url), nameless) as proxy:
        client = connect(settings.replace(endpoint_url=proxy.url))
        written = client.write(b"x", ref)
        (current,) = ledger.lookup(ref).currents
        assert (current.etag is None) is hidden, "an empty etag is never recorded"
        assert client.read(written) == client.read(ref) == b"x"


@pytest.mark.parametrize(
    "condition", [{"if_match": ""}, {"if_match": 5}, {"if_match": "a\r\nb"}, {"if_match": "a", "if_none_match": True}]
)
def test_a_condition_that_is_none_is_refused(client: ConsistentS3, ref: ObjectRef, condition: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"ETag|contradict"):
        client.write(b"x", ref, **condition)


def test_the_marker_in_the_metadata_is_ours_alone(client: ConsistentS3, ref: ObjectRef) -> None:
    with pytest.raises(ValueError, match="marker"):
        client.write(b"x", ref, metadata={"S3Tasks-Write": "forged"})
    with pytest.raises(TypeError, match="text"):
        client.write(b"x", ref, metadata={"n": 5})  # type: ignore[dict-item]


def test_writes_take_turns_where_that_is_asked_for(settings: Settings, connect: Connect, ref: ObjectRef, ledger: Ledger) -> None:
    client = connect(settings.replace(on_overlap="serialize", overlap_lease_seconds=60.0))
    first = ledger.begin(ref, "slow")
    assert isinstance(first, Opened)

    with pytest.raises(OverlappingWrite):
        client.write(b"x", ref)
    threading.Timer(0.1, lambda: ledger.abort(ref, "slow", first.ticket)).start()
    assert client.read(client.write(b"y", ref, wait=30)) == b"y"


def test_a_dead_writer_is_waited_for_no_longer_than_its_lease(
    settings: Settings, connect: Connect, ref: ObjectRef, ledger: Ledger
) -> None:
    client = connect(settings.replace(on_overlap="serialize", overlap_lease_seconds=1.0))
    ledger.begin(ref, "dead")
    assert client.read(client.write(b"y", ref, wait=10)) == b"y"


def test_a_bucket_that_is_not_allowed_is_not_asked_for(settings: Settings, connect: Connect, ref: ObjectRef) -> None:
    client = connect(settings.replace(allowed_buckets=("mine",)))
    verbs: list[Callable[[], object]] = [
        lambda: client.read(ref), lambda: client.write(b"", ref), lambda: client.delete(ref),
        lambda: client.head(ref), lambda: client.wait_visible(ref), lambda: client.forget(ref),
    ]
    for verb in verbs:
        with pytest.raises(InvalidRef, match="allowed_buckets"):
            verb()


@pytest.mark.parametrize("given", ["b/k", "s3://", "s3://b", "", None, 7, {"bucket": "b"}, ["s3://b/k"], b"s3://b/k"])
def test_what_is_no_ref_is_refused(client: ConsistentS3, given: Any) -> None:
    with pytest.raises(InvalidRef):
        client.read(given)


def test_an_etag_that_changes_on_the_replica_is_known_by_its_marker(
    replicated: Settings, connect: Connect, ref: ObjectRef, sandbox: Sandbox
) -> None:
    def re_encrypts(request: Request, forward: Forward) -> Response:
        stripped = request.without("if-match")
        response = forward(stripped)
        asked = next((value for name, value in request.headers.items() if name.lower() == "if-match"), '"re-encrypted"')
        if response.status == 200 and asked != '"re-encrypted"':
            return refusal(412, "PreconditionFailed")
        return response.with_header("etag", '"re-encrypted"') if response.status == 200 else response

    with proxied(str(replicated.read_endpoint_url), re_encrypts) as proxy:
        client = connect(replicated.replace(read_endpoint_url=proxy.url))
        written = client.write(b"x", ref)
        sandbox.drain()
        assert client.read(written) == client.read(ref) == b"x"


def test_a_store_that_ignores_if_match_still_serves_nothing_stale(
    replicated: Settings, connect: Connect, ref: ObjectRef, paused: Sandbox
) -> None:
    with proxied(str(replicated.read_endpoint_url), lambda request, forward: forward(request.without("if-match"))) as proxy:
        client = connect(replicated.replace(read_endpoint_url=proxy.url))
        client.write(b"old", ref)
        paused.drain()
        client.write(b"new", ref)
        with pytest.raises(StaleRead):
            client.read(ref)


def test_one_client_serves_many_threads(client: ConsistentS3, bucket: str) -> None:
    problems: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for turn in range(5):
                written = client.write(f"{number}.{turn}", f"s3://{bucket}/{number}")
                assert client.read(written).decode() == f"{number}.{turn}"
        except BaseException as problem:  # noqa: BLE001 - reported below, in the test's own thread
            problems.append(problem)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == []


def test_a_forked_child_makes_connections_of_its_own(client: ConsistentS3, ref: ObjectRef) -> None:
    client.write(b"parent", ref)
    inherited = client._process.rooms()
    process: Process = client._process

    child = os.fork()
    if child == 0:
        status = 1
        try:
            fresh = process.rooms() is not inherited
            status = 0 if fresh and client.read(ref) == b"parent" and client.write(b"child", ref) else 1
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert client.read(ref) == b"child"
    assert process.rooms() is inherited


def test_a_client_needs_a_ledger() -> None:
    with pytest.raises(ValueError, match="S3TASKS_LEDGER_URL"):
        ConsistentS3.from_settings(Settings())


def test_a_promise_that_s3_never_keeps_stays_an_error(
    client: ConsistentS3, ref: ObjectRef, settings: Settings, sandbox: Sandbox
) -> None:
    written = client.write(b"x", ref)
    with redis.Redis.from_url(sandbox.redis_url) as raw:
        key = record_key(settings.ledger_prefix, ref)
        (name,) = [name for name in raw.hkeys(key) if name.startswith(b"c")]
        raw.hdel(key, name)
        raw.hset(key, mapping={"v": "1", "seq": str(written.seq), "c:other": "9 9 99999999999 other * 1"})
    with pytest.raises(StaleRead):
        client.read(ref)
