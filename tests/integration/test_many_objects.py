"""Many objects at once: an outcome for each, in order, and nothing of one that becomes another's."""

from __future__ import annotations

import time
from collections.abc import Callable
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
    Outcome,
    PayloadTooLarge,
    Settings,
    StaleRead,
    StoreError,
    StoreUnavailable,
    WriteConflict,
)
from s3tasks.ledger import Ledger
from s3tasks.refs import record_key
from s3tasks.sandbox import RedisServer, Sandbox
from s3tasks.write_ids import NumberedWriteIds
from tests.s3_proxy import Dropped, Forward, Request, Response, proxied, refusal

Connect = Callable[[Settings], ConsistentS3]
COUNT = 60


@pytest.fixture
def uris(bucket: str) -> list[str]:
    return [f"s3://{bucket}/{number}" for number in range(COUNT)]


def bodies(outcomes: list[Outcome]) -> list[Any]:
    return [outcome.value for outcome in outcomes]


def test_many_are_written_read_described_and_deleted_in_order(client: ConsistentS3, uris: list[str]) -> None:
    written = client.write_many([(f"body {uri}", uri) for uri in uris])

    assert [outcome.ref.uri for outcome in written] == uris
    assert all(outcome.ref.etag and outcome.ok for outcome in written)
    assert bodies(client.read_many(uris)) == [f"body {uri}".encode() for uri in uris]
    assert bodies(client.read_many(written)) == bodies(client.read_many([outcome.ref.to_dict() for outcome in written]))
    assert [head["etag"] for head in bodies(client.head_many(uris))] == [outcome.ref.etag for outcome in written]
    gone = client.delete_many(uris)
    assert all(outcome.ref.deleted for outcome in gone)
    assert {type(outcome.error) for outcome in client.read_many(uris)} == {ObjectDeleted}


def test_none_at_all_is_no_trouble(client: ConsistentS3) -> None:
    assert client.write_many([]) == client.read_many([]) == client.head_many([]) == client.delete_many([]) == []


def test_items_may_say_all_that_a_write_may(client: ConsistentS3, uris: list[str]) -> None:
    item = {
        "body": b"x",
        "ref": uris[0],
        "content_type": "text/x",
        "metadata": {"a": "b"},
        "put_options": {"CacheControl": "private"},
    }
    client.write_many([item])
    assert client.head(uris[0])["content_type"] == "text/x"
    (conflict,) = client.write_many([{**item, "if_none_match": True}])
    assert isinstance(conflict.error, WriteConflict)
    with pytest.raises(WriteConflict):
        conflict.get()


@pytest.mark.parametrize(
    ("items", "hint"),
    [
        ([("x",)], "pair"),
        (["x"], "pair"),
        ([{"body": b"x"}], "needs ref"),
        ([{"body": b"x", "ref": "s3://b/k", "contenttype": "x"}], "contenttype"),
        ([{"body": b"x", "ref": "s3://b/k", "put_options": {"StorageClas": "x"}}], "did you mean StorageClass"),
    ],
)
def test_a_wrong_item_is_one_clear_error_and_nothing_is_written(
    client: ConsistentS3, bucket: str, items: list[Any], hint: str
) -> None:
    good = (b"x", f"s3://{bucket}/good")
    with pytest.raises(ValueError, match=hint):
        client.write_many([good, *items])
    with pytest.raises(InvalidRef):
        client.write_many([good, (b"x", "no ref")])
    with pytest.raises(NoSuchKey):
        client.read(good[1])


@pytest.mark.parametrize("given", ["s3://b/k", b"x", {"s3://b/k": b"x"}, None, 5])
def test_what_is_no_list_is_refused_by_name(client: ConsistentS3, given: Any) -> None:
    for verb in ("write_many", "read_many", "head_many", "delete_many"):
        with pytest.raises(TypeError, match=f"{verb} takes a list"):
            getattr(client, verb)(given)


def test_items_of_one_object_are_written_in_their_order(client: ConsistentS3, ref: ObjectRef) -> None:
    outcomes = client.write_many([(str(number), ref) for number in range(9)])
    assert client.read(ref) == b"8"
    assert [outcome.ref.seq for outcome in outcomes] == sorted(outcome.ref.seq or 0 for outcome in outcomes)


def test_each_object_has_its_own_trouble(client: ConsistentS3, uris: list[str]) -> None:
    client.write_many([(b"x", uri) for uri in uris[:2]])
    client.delete(uris[1])
    outcomes = client.read_many(uris[:3])
    assert outcomes[0].get() == b"x"
    assert (type(outcomes[1].error), type(outcomes[2].error)) == (ObjectDeleted, NoSuchKey)


def test_one_that_is_late_does_not_fail_the_others_and_only_it_is_asked_for_again(
    settings: Settings, connect: Connect, client: ConsistentS3, uris: list[str]
) -> None:
    client.write_many([(b"x", uri) for uri in uris])
    hidden = iter([True] * 3)

    def hides_one(request: Request, forward: Forward) -> Response:
        late = request.method in ("GET", "HEAD") and request.path.endswith("/7") and next(hidden, False)
        return refusal(404, "NoSuchKey") if late else forward(request)

    with proxied(str(settings.endpoint_url), hides_one) as proxy:
        reading = connect(settings.replace(endpoint_url=proxy.url))
        outcomes = reading.read_many(uris)
        assert [outcome.ok for outcome in outcomes].count(False) == 1
        assert isinstance(outcomes[7].error, NotYetVisible)
        assert proxy.count("GET") == COUNT

        again = reading.read_many(uris, done=outcomes, wait=10)

        assert bodies(again) == [b"x"] * COUNT
        assert proxy.count("GET") == COUNT + 3


def test_waiting_that_was_in_vain_is_told_in_the_outcome(
    replicated: Settings, sandbox: Sandbox, connect: Connect, uris: list[str]
) -> None:
    client = connect(replicated)
    client.write(b"x", uris[0])
    sandbox.drain()
    sandbox.pause_replication()
    try:
        client.write(b"y", uris[0])
        client.write(b"y", uris[1])
        stale, missing = client.read_many(uris[:2], wait=2)
    finally:
        sandbox.resume_replication()
    assert isinstance(stale.error, StaleRead)
    assert isinstance(missing.error, NotYetVisible)
    assert stale.error.attempts > 1
    assert missing.error.waited_seconds >= 2
    assert bodies(client.read_many(uris[:2], wait=20)) == [b"y", b"y"]


def test_the_ledger_is_asked_in_few_round_trips(client: ConsistentS3, uris: list[str]) -> None:
    pipelines: list[int] = []
    original = client._rooms().ledger._redis.pipeline

    def counted(**options: Any) -> Any:
        pipelines.append(1)
        return original(**options)

    client._rooms().ledger._redis.pipeline = counted
    client.write_many([(b"y", uri) for uri in uris])
    assert len(pipelines) == 2
    client.read_many(uris)
    assert len(pipelines) == 3
    client.delete_many(uris)
    assert len(pipelines) == 5


def test_deletes_of_a_bucket_are_one_request_and_odd_keys_go_by_themselves(
    settings: Settings, connect: Connect, client: ConsistentS3, bucket: str, buckets: Any
) -> None:
    other = next(buckets)
    refs = [ObjectRef(bucket, f"k{number}") for number in range(30)]
    refs += [ObjectRef(other, f"k{number}") for number in range(30)] + [
        ObjectRef(bucket, "odd\x01key"),
        ObjectRef(bucket, "<&>'ü日"),
    ]
    client.write_many([(b"x", ref) for ref in refs])
    with proxied(str(settings.endpoint_url)) as proxy:
        outcomes = connect(settings.replace(endpoint_url=proxy.url)).delete_many(refs)
        assert (proxy.count("POST"), proxy.count("DELETE")) == (2, 1)
    assert all(outcome.ref.deleted for outcome in outcomes)
    assert {type(outcome.error) for outcome in client.read_many(refs)} == {ObjectDeleted}


def test_a_key_that_s3_refuses_to_delete_is_that_keys_error_and_its_intent_is_closed(
    settings: Settings, connect: Connect, client: ConsistentS3, uris: list[str], ledger: Ledger
) -> None:
    client.write_many([(b"x", uri) for uri in uris[:3]])
    key = ObjectRef.parse(uris[1]).key

    def refuses_one(request: Request, forward: Forward) -> Response:
        response = forward(Request(request.method, request.path, request.headers, request.body))
        if request.method == "POST" and b"<Deleted>" in response.body:
            said = response.body.decode()
            said = said.replace(
                f"<Deleted><Key>{key}</Key>",
                f"<Error><Key>{key}</Key><Code>AccessDenied</Code><Message>no</Message></Error><Deleted><Key>none</Key>",
            )
            response.body = said.encode()
        return response

    with proxied(str(settings.endpoint_url), refuses_one) as proxy:
        outcomes = connect(settings.replace(endpoint_url=proxy.url)).delete_many(uris[:3])
    assert [type(outcome.error) for outcome in outcomes] == [type(None), StoreError, type(None)]
    assert ledger.lookup(ObjectRef.parse(uris[1])).intents == ()


def test_a_batch_of_deletes_without_an_answer_is_sent_again_and_done_once(
    settings: Settings, connect: Connect, client: ConsistentS3, uris: list[str]
) -> None:
    client.write_many([(b"x", uri) for uri in uris])
    lost = iter([True])

    def loses_the_answer(request: Request, forward: Forward) -> Response:
        response = forward(request)
        if request.method == "POST" and next(lost, False):
            raise Dropped
        return response

    with proxied(str(settings.endpoint_url), loses_the_answer) as proxy:
        outcomes = connect(settings.replace(endpoint_url=proxy.url)).delete_many(uris)
        assert proxy.count("POST") == 2
    assert all(outcome.ok for outcome in outcomes)


def test_writes_that_fail_for_a_moment_are_tried_again_and_the_others_are_not(
    settings: Settings, connect: Connect, uris: list[str], client: ConsistentS3
) -> None:
    failing = iter([True])

    def fails_once(request: Request, forward: Forward) -> Response:
        if request.method == "PUT" and request.path.endswith("/5") and next(failing, False):
            return refusal(503)
        return forward(request)

    with proxied(str(settings.endpoint_url), fails_once) as proxy:
        outcomes = connect(settings.replace(endpoint_url=proxy.url)).write_many([(uri, uri) for uri in uris])
        assert proxy.count("PUT") == COUNT + 1
    assert bodies(client.read_many(outcomes)) == [uri.encode() for uri in uris]


def test_a_store_that_stays_away_is_each_objects_error(settings: Settings, connect: Connect, uris: list[str]) -> None:
    away = connect(settings.replace(endpoint_url="http://127.0.0.1:9", connect_timeout_seconds=0.2))
    outcomes = away.write_many([(b"x", uri) for uri in uris[:4]])
    assert {type(outcome.error) for outcome in outcomes} == {StoreUnavailable}
    assert {outcome.error.attempts for outcome in outcomes if isinstance(outcome.error, StoreUnavailable)} == {3}


def test_a_ledger_that_is_away_is_each_objects_error_and_nothing_reaches_s3(
    settings: Settings, connect: Connect, uris: list[str], client: ConsistentS3
) -> None:
    with RedisServer() as server:
        gone = server.url
    with proxied(str(settings.endpoint_url)) as proxy:
        away = connect(settings.replace(ledger_url=gone, endpoint_url=proxy.url))
        for outcomes in (away.write_many([(b"x", uri) for uri in uris]), away.read_many(uris), away.delete_many(uris)):
            assert {type(outcome.error) for outcome in outcomes} == {LedgerUnavailable}
        assert proxy.seen == []


def test_a_ledgers_record_that_is_no_record_is_that_objects_only(
    client: ConsistentS3, uris: list[str], settings: Settings, sandbox: Sandbox
) -> None:
    client.write_many([(b"x", uri) for uri in uris[:3]])
    with redis.Redis.from_url(sandbox.redis_url) as raw:
        raw.set(record_key(settings.ledger_prefix, ObjectRef.parse(uris[1])), "garbage")
    assert bodies(client.read_many(uris[:3])) == [b"x"] * 3
    assert all(outcome.ok for outcome in client.write_many([(b"y", uri) for uri in uris[:3]]))


def test_what_failed_before_stays_failed_and_is_not_read(client: ConsistentS3, uris: list[str]) -> None:
    client.write(b"old", uris[0])
    failed = Outcome(ObjectRef.parse(uris[0]), error=WriteConflict("b", "k", "If-None-Match: *"))
    fine = client.write_many([(b"new", uris[1])])[0]
    for given in ([failed, fine], [failed.to_dict(), fine.to_dict()]):
        first, second = client.read_many(given)
        assert isinstance(first.error, WriteConflict)
        assert second.get() == b"new"


def test_bodies_beyond_the_limits_are_not_fetched(client: ConsistentS3, uris: list[str]) -> None:
    client.write_many([(b"x" * 100, uri) for uri in uris[:5]] + [(b"x" * 500, uris[5])])
    outcomes = client.read_many(uris[:6], limit_bytes=400, total_limit_bytes=350)
    assert [len(outcome.value) for outcome in outcomes if outcome.ok] == [100] * 3
    assert {type(outcome.error) for outcome in outcomes if not outcome.ok} == {PayloadTooLarge}
    assert isinstance(outcomes[5].error, PayloadTooLarge)


def test_redelivered_writes_are_done_once_each(settings: Settings, connect: Connect, uris: list[str]) -> None:
    items = [(b"1", uris[0]), (b"2", uris[1]), (b"3", uris[0])]
    with proxied(str(settings.endpoint_url)) as proxy:
        client = connect(settings.replace(endpoint_url=proxy.url))
        first = client.with_write_ids(NumberedWriteIds("task"), 0).write_many(items)
        assert client.with_write_ids(NumberedWriteIds("task"), 0).write_many(items) == first
        assert proxy.count("PUT") == 3


def test_outcomes_survive_json(client: ConsistentS3, uris: list[str]) -> None:
    (written,) = client.write_many([(b"x", uris[0])])
    read, missing = client.read_many([uris[0], uris[1]])
    for outcome in (written, read, missing):
        parsed = Outcome.parse(outcome.to_dict())
        assert (parsed.ref, parsed.value, type(parsed.error)) == (outcome.ref, outcome.value, type(outcome.error))
    assert missing.to_dict()["error"]["type"] == "NoSuchKey"


@pytest.mark.parametrize(
    "given", [{"ref": "s3://b/k", "error": {"type": "os.system", "args": ["x"]}}, {"ref": "s3://b/k", "error": 5}]
)
def test_an_error_that_cannot_be_made_again_stays_an_error(given: dict[str, Any]) -> None:
    parsed = Outcome.parse(given)
    assert not parsed.ok


def test_a_thousand_are_deleted_in_one_request(settings: Settings, connect: Connect, bucket: str) -> None:
    refs = [f"s3://{bucket}/{number}" for number in range(1001)]
    with proxied(str(settings.endpoint_url)) as proxy:
        # A request that takes long is not to be sent again.
        outcomes = connect(settings.replace(endpoint_url=proxy.url, read_timeout_seconds=60.0)).delete_many(refs)
        assert proxy.count("POST") + proxy.count("DELETE") == 2
    assert len({outcome.ref.key for outcome in outcomes if outcome.ref.deleted}) == 1001


def test_reads_go_on_at_the_same_time_but_no_more_than_allowed(
    settings: Settings, connect: Connect, client: ConsistentS3, uris: list[str]
) -> None:
    client.write_many([(b"x", uri) for uri in uris])
    now, most = [0], [0]

    def counts(request: Request, forward: Forward) -> Response:
        now[0] += 1
        most[0] = max(most[0], now[0])
        time.sleep(0.02)
        try:
            return forward(request)
        finally:
            now[0] -= 1

    with proxied(str(settings.endpoint_url), counts) as proxy:
        connect(settings.replace(endpoint_url=proxy.url, concurrent_requests=5)).read_many(uris)
    assert 2 <= most[0] <= 5
