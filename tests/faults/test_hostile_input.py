"""Whatever a message, a ledger record or an object's metadata may hold: a documented error or none, no loop, no other bucket.

What may be sent to a task is what kombu's JSON can carry. A documented error is an S3TasksError, a TypeError or a ValueError.
"""

from __future__ import annotations

import contextlib
import json
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import redis
from celery import Celery
from hypothesis import HealthCheck, Phase, example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from kombu.utils.json import dumps, loads

from s3tasks import ConsistentS3, LedgerUnavailable, ObjectRef, S3Tasks, S3TasksError, Settings, StoreUnavailable
from s3tasks.evidence import Intent, Landed, Record
from s3tasks.headers import AWAITED_HEADER, WAITED_HEADER, awaited_in, waited_in
from s3tasks.lags import weights_of
from s3tasks.ledger import Ledger
from s3tasks.ledger_former_spelling import LARGEST_NUMBER
from s3tasks.refs import MARKER_METADATA_KEY, Marker, finished_key, record_key
from s3tasks.sandbox import Sandbox, WorkerProcess
from s3tasks.store import Store
from tests.conftest import REPOSITORY
from tests.s3_proxy import S3Proxy, proxied

DOCUMENTED = (S3TasksError, TypeError, ValueError)
PATIENCE_SECONDS = 120
# What is left of a deadline of a tenth of a second when an argument holds a task for ever, and the machine is slow besides.
LONGEST_SECONDS = 60.0

fuzzed = hypothesis_settings(
    deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


def once(max_examples: int) -> Any:
    """For what takes long: so many examples, not searched for a smaller one."""
    return hypothesis_settings(fuzzed, max_examples=max_examples, phases=[Phase.explicit, Phase.generate], database=None)


# --- task arguments ---

plain_values = (
    st.none() | st.booleans() | st.integers() | st.just(10**400) | st.floats() | st.text(max_size=20) | st.binary(max_size=20)
)
json_values = st.recursive(
    plain_values, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3), max_leaves=6
)
keys = st.sampled_from(["k", "k/l", "a\r\nb: c", "é", "..", "a/../b", " ", "?x", "k" * 1025, "\ud800", "\0"]) | st.text(max_size=12)
ETAGS = ["", "*", '"', 'W/"x"', "d41d8cd98f00b204e9800998ecf8427e", "a\r\nx: y", "é", "x" * 2000, '"a", "b"']
etags = st.sampled_from(ETAGS) | st.text(max_size=8)
HEADERS = ["a", "A", "x\r\ny", "s3tasks-write", "S3Tasks-Write", "é", "", "a b", "x" * 3000]
BUCKETS = ["%allowed%", "%allowed%", "%allowed%", "%forbidden%", "", "..", "a/b", "arn:aws:s3:us-east-1:123456789012:accesspoint/x"]
OPTIONS = [
    "ACL", "Bucket", "Body", "CacheControl", "ChecksumCRC32", "ChecksumAlgorithm", "ContentDisposition", "ContentEncoding",
    "ContentLength", "ContentMD5", "ExpectedBucketOwner", "Expires", "GrantRead", "IfMatch", "Key", "Metadata", "ObjectLockMode",
    "RequestPayer", "ServerSideEncryption", "SSECustomerKey", "SSEKMSKeyId", "StorageClass", "Tagging", "WebsiteRedirectLocation",
    "WriteOffsetBytes", "?",
]


WRITE_FIELDS: dict[str, st.SearchStrategy[Any]] = {
    "etag": etags, "version_id": etags, "seq": st.integers(0, 2**53), "size": st.integers(), "deleted": st.booleans(),
}


@st.composite
def refs(draw: st.DrawFn) -> Any:
    bucket = draw(st.sampled_from(BUCKETS) | st.text(max_size=6))
    kind = draw(st.integers(0, 9))
    if kind == 0:
        return draw(json_values)
    if kind < 4:
        return draw(st.sampled_from(["s3://", "s3://", "S3://", "http://", ""])) + f"{bucket}/{draw(keys)}"
    fields: dict[str, Any] = {"bucket": bucket, "key": draw(keys)}
    for name, likely in WRITE_FIELDS.items():
        if draw(st.booleans()):
            fields[name] = draw(likely | json_values)
    return fields


def arguments(**values: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({}, optional=values)


put_options = st.dictionaries(st.sampled_from(OPTIONS), json_values | st.integers(0, 100) | etags, max_size=2)
metadata = st.dictionaries(st.sampled_from(HEADERS) | st.text(max_size=5), st.sampled_from(HEADERS) | json_values, max_size=3)
byte_ranges = st.lists(st.integers(-2, 10) | json_values, max_size=3)


@dataclass(frozen=True)
class Call:
    """One task call as a stranger sends it."""

    name: str
    args: list[Any]
    kwargs: dict[str, Any]

    def _repr_pretty_(self, printer: Any, _cycle: bool) -> None:
        # Hypothesis warns of examples that would fill pages, and a warning, which is an error here, would hide what failed.
        printer.text(f"{self.name}(*{self.args!r:.250}, **{self.kwargs!r:.250})")

    def aimed_at(self, allowed: str, forbidden: str) -> Call:
        """The same call with these bucket names, as it comes out of a message."""
        spelled: str = dumps([self.args, self.kwargs])  # type: ignore[no-untyped-call]
        text = spelled.replace("%allowed%", allowed).replace("%forbidden%", forbidden)
        args, kwargs = loads(text)  # type: ignore[no-untyped-call]
        return Call(self.name, args, kwargs)


@st.composite
def calls(draw: st.DrawFn) -> Call:
    name = draw(st.sampled_from(["write", "write", "write", "read", "read", "delete", "head", "wait_visible"]))
    kwargs = {
        "write": arguments(
            if_match=etags | json_values, if_none_match=json_values, content_type=etags | json_values,
            metadata=metadata | json_values, put_options=put_options | json_values,
        ),
        "read": arguments(byte_range=byte_ranges | json_values, latest=json_values),
        "delete": arguments(if_match=etags | json_values),
        "head": arguments(latest=json_values),
        "wait_visible": arguments(),
    }[name]
    body = [draw(st.binary(max_size=30) | st.text(max_size=10) | json_values)] if name == "write" else []
    return Call(name, [*body, draw(refs())], draw(kwargs))


def sendable(call: Call) -> bool:
    """Whether kombu's JSON takes it there and back: what it does not, no worker is ever handed."""
    try:
        call.aimed_at("a", "b")
    except (TypeError, ValueError, OverflowError):
        return False
    return True


@pytest.fixture
def watched(sandbox: Sandbox) -> Iterator[S3Proxy]:
    with proxied(sandbox.endpoint_url) as proxy:
        yield proxy


@pytest.fixture
def confined(watched: S3Proxy, settings: Settings, bucket: str, sandbox: Sandbox) -> Iterator[S3Tasks]:
    """Tasks that may use one bucket, called in process, with little patience."""
    app = Celery("confined", set_as_current=False)
    app.conf.task_always_eager = True
    toolkit = S3Tasks(
        app,
        settings.replace(
            endpoint_url=watched.url, allowed_buckets=(bucket,), read_timeout_seconds=1.0, store_attempts=1,
            consistency_deadline_seconds=0.1, outage_deadline_seconds=0.1, brief_wait_seconds=0.0,
        ),
    )
    yield toolkit
    toolkit.client.close()
    app.close()


@pytest.fixture
def forbidden(buckets: Iterator[str]) -> str:
    return next(buckets)


def went_elsewhere(proxy: S3Proxy, bucket: str) -> list[tuple[str, str]]:
    return [seen for seen in proxy.seen if not seen[1].startswith(f"/{bucket}/")]


@fuzzed
@given(call=calls().filter(sendable), task_id=st.uuids().map(str) | st.text(min_size=1, max_size=30))
@example(Call("write", [b"x", "s3://%allowed%/k"], {"put_options": {"ContentLength": 10**6}}), "length")
@example(Call("write", [b"x", "s3://%allowed%/k"], {"put_options": {"Bucket": "%forbidden%"}}), "bucket")
@example(Call("read", ["s3://%forbidden%/k"], {}), "forbidden")
def test_no_task_argument_leads_to_anything_but_a_documented_error_or_to_another_bucket(
    confined: S3Tasks, watched: S3Proxy, bucket: str, forbidden: str, call: Call, task_id: str
) -> None:
    aimed = call.aimed_at(bucket, forbidden)
    task = getattr(confined, aimed.name)
    started = time.monotonic()

    outcome = task.apply(args=aimed.args, kwargs=aimed.kwargs, task_id=task_id)

    assert time.monotonic() - started < LONGEST_SECONDS
    assert outcome.state in ("SUCCESS", "FAILURE"), "it is over: not retried"
    if outcome.state == "FAILURE":
        assert isinstance(outcome.result, DOCUMENTED), repr(outcome.result)
        assert not isinstance(outcome.result, StoreUnavailable | LedgerUnavailable), f"taken for an outage: {outcome.result!r}"
    assert went_elsewhere(watched, bucket) == []


@pytest.fixture
def strict_worker(sandbox: Sandbox, settings: Settings, bucket: str) -> Iterator[tuple[WorkerProcess, S3Tasks]]:
    """A real worker that may use one bucket and waits for a second at most, and a producer for its queue."""
    queue = f"q{uuid.uuid4().hex[:8]}"
    worker = sandbox.start_worker(
        "tests.integration.app",
        directory=REPOSITORY,
        options=["-Q", queue],
        environment={
            "TEST_QUEUE": queue,
            "TEST_CONSISTENCY_DEADLINE_SECONDS": "1",
            "S3TASKS_ALLOWED_BUCKETS": bucket,
            "S3TASKS_LEDGER_PREFIX": settings.ledger_prefix,
            "S3TASKS_READ_ENDPOINT_URL": "",
        },
    )
    app = Celery("stranger", broker=sandbox.redis_url, backend=sandbox.redis_url, set_as_current=False)
    app.conf.task_default_queue = queue
    yield worker, S3Tasks(app, settings)
    worker.kill()
    app.close()


NONSENSE_HEADERS = ["never", [0, -5], [0, 0.0], [None, None], {"a": 1}, [0, float("nan")], [7, 1e300], [0, 10**400], [True, True]]


@once(3)
@given(batch=st.lists(calls().filter(sendable), min_size=40, max_size=40))
def test_a_real_worker_answers_hostile_messages_with_documented_errors_and_lives(
    strict_worker: tuple[WorkerProcess, S3Tasks], bucket: str, forbidden: str, batch: list[Call]
) -> None:
    worker, s3 = strict_worker
    sent: list[tuple[Any, Any]] = []
    for call in batch:
        aimed = call.aimed_at(bucket, forbidden)
        # As by a stranger: the tasks themselves would refuse some of it where it is sent.
        sent.append((aimed, s3.app.send_task(f"s3tasks.{aimed.name}", aimed.args, aimed.kwargs)))
    # Nothing was ever written under this ref's name, so it is waited for until the deadline, whatever the header claims.
    never_written = {"bucket": bucket, "key": "never", "etag": "0" * 32}
    sent += [(header, s3.read.apply_async((never_written,), headers={WAITED_HEADER: header})) for header in NONSENSE_HEADERS]

    for what, result in sent:
        problem = result.get(timeout=PATIENCE_SECONDS, propagate=False)
        assert result.state == "SUCCESS" or isinstance(problem, DOCUMENTED), f"{what}: {problem!r}"

    assert worker.running
    assert "WorkerLostError" not in worker.log()
    written = s3.write.delay(b"alive", f"s3://{bucket}/alive").get(timeout=PATIENCE_SECONDS)
    assert s3.read.delay(written).get(timeout=PATIENCE_SECONDS) == b"alive"


forged_headers = st.lists(plain_values | st.just(10**400), min_size=2, max_size=2) | json_values


@fuzzed
@given(header=forged_headers)
@example([0, 10**400])
@example([0, float("nan")])
@example([-1, -1e308])
@example([10**400, float("inf")])
def test_a_forged_header_of_waiting_done_is_a_time_from_zero_on_or_nothing(header: Any) -> None:
    attempts, waited = waited_in({WAITED_HEADER: header})

    assert type(attempts) is int
    assert attempts >= 0
    assert type(waited) is float
    assert waited >= 0


@fuzzed
@given(header=st.lists(plain_values | st.just(10**400), min_size=3, max_size=3) | forged_headers)
@example(["s3://b/k", 1, float("nan")])
@example(["s3://b/k", True, 0.5])
@example(["s3://b/k", 10**400, 10**400])
@example(["x" * 10**6, 2**62, 0])
def test_a_forged_header_of_what_is_awaited_is_a_write_some_time_ago_or_nothing(header: Any) -> None:
    awaited = awaited_in({WAITED_HEADER: [1, 0.5], AWAITED_HEADER: header})

    assert awaited is None or (type(awaited.committed) is int and 0 < awaited.committed < 2**63)
    assert awaited is None or 0 <= awaited.not_visible_at_seconds <= 10**9


def test_whoever_forges_what_is_awaited_spoils_one_lag_and_no_read(confined: S3Tasks, bucket: str) -> None:
    written = confined.client.write(b"x", f"s3://{bucket}/forged")
    for committed in (1, 2**62, written.seq):
        headers = {WAITED_HEADER: [3, 0.5], AWAITED_HEADER: [written.uri, committed, 0.0]}
        assert confined.read.apply(args=(written.to_dict(),), headers=headers).get() == b"x"

    endpoint = str(confined.settings.read_endpoint_url or confined.settings.endpoint_url)
    told = weights_of(confined.client._rooms().ledger.lags(endpoint, bucket)[1])
    assert sum(told.values()) <= 2.01


# --- ledger records ---

WORDS = ["0", "1", "100", "w", "d", "*", "!", "abc", "%0a", "%ff", "é", "-1", "1e9", "0x10", "inf", "nan", "9" * 30, "9" * 5000, ""]
words = st.sampled_from(WORDS)
texts = st.lists(words, max_size=7).map(" ".join) | st.text(max_size=20)
values = texts.map(lambda text: text.encode(errors="surrogatepass")) | st.binary(max_size=20)
NUMBERS = [0, 1, 100, LARGEST_NUMBER - 10**6, LARGEST_NUMBER + 1, 2**56 - 1]
numbers = st.lists(st.sampled_from(NUMBERS), max_size=3).map(lambda chosen: b"".join(one.to_bytes(7, "big") for one in chosen))
values |= st.tuples(st.sampled_from([b"", b"w", b"d", b"f"]), numbers, st.binary(max_size=30)).map(b"".join)
values |= st.tuples(numbers, st.sampled_from([b"\0\0\0\1 ", b"\0\0\0\1\x13", b""]), texts.map(str.encode)).map(b"".join)
FIELDS = [b"seq", b"i:", b"c:", b"i:a", b"c:a", b"c:b", b"i:\xff", b"c:\xff", b"other", b"c", b"c" + b"x" * 16, b"i" + b"y" * 15]
names = st.sampled_from(FIELDS) | st.binary(max_size=8)
of_either_schema = st.sampled_from([{}, {b"v": b"1"}, {b"v": b"2"}])
records = st.builds(
    lambda fields, schema: {**fields, **schema},
    st.dictionaries(names.filter(lambda name: name != b"v"), values, max_size=5), of_either_schema,
)

POISON: dict[str, dict[bytes, bytes]] = {
    "a count with more digits than Python reads": {b"seq": b"9" * 5000},
    "a count with more digits than a double has": {b"seq": b"9" * 400},
    "a count that is infinite": {b"seq": b"inf"},
    "a count that is no number": {b"seq": b"nan"},
    "a count beyond whole numbers": {b"seq": b"1e300"},
    "a current write from the far future": {b"seq": b"5", b"c:a": b"1 999999999999999999 100 abc * *"},
    "an intent from the far future": {b"seq": b"5", b"i:a": b"w 1 999999999999999999"},
    "an intent with more digits than Python reads": {b"seq": b"5", b"i:a": b"w " + b"9" * 5000},
    "an etag with a line break": {b"seq": b"5", b"c:a": b"1 2 100 %0a * *"},
    "an etag that is no text": {b"seq": b"5", b"c:a": b"1 2 100 %ff%fe * *"},
    "numbers beyond whole numbers": {b"v": b"2", b"c:a": b"\xff" * 14 + b"\0\0\0\1 a * *", b"i:b": b"w" + b"\xff" * 7},
    "a current write that ends too soon": {b"v": b"2", b"c:a": bytes(18)},
    "a tail that ends too soon": {b"v": b"2", b"c:a": b"\0\0\0\0\0\0\1\0\0\0\0\0\0\2\0\0\0\1\x13abc"},
    "a write id that ends too soon": {b"v": b"2", b"c" + b"x" * 15: b"\0\0\0\0\0\0\1\0\0\0\0\0\0\2\0\0\0\1 a * *"},
}


@pytest.fixture
def raw(sandbox: Sandbox, closing: Callable[[Any], Any]) -> Any:
    return closing(redis.Redis.from_url(sandbox.redis_url))


def planted(raw: Any, settings: Settings, bucket: str, fields: dict[bytes, bytes]) -> ObjectRef:
    """A new object of this bucket whose record holds these fields."""
    ref = ObjectRef(bucket, uuid.uuid4().hex)
    if fields:
        raw.hset(record_key(settings.ledger_prefix, ref), mapping=fields)
    return ref


def check_repair(client: ConsistentS3, ledger: Ledger, ref: ObjectRef) -> None:
    """A read treats what it finds as it pleases, without a foreign error; the next write puts things right."""
    with contextlib.suppress(S3TasksError):
        client.read(ref)
    assert isinstance(ledger.lookup(ref), Record)
    first = client.write(b"first", ref)
    second = client.write(b"second", ref)
    assert first.seq is not None
    assert second.seq is not None
    assert second.seq > first.seq
    assert client.read(ref) == client.read(second) == b"second"
    assert [current.etag for current in ledger.lookup(ref).currents] == [second.etag]
    gone = client.delete(ref)
    assert gone.deleted
    assert all(current.deleted for current in ledger.lookup(ref).currents)


@hypothesis_settings(fuzzed, max_examples=60)
@given(fields=records)
def test_no_record_is_so_garbled_that_the_next_write_does_not_put_it_right(
    client: ConsistentS3, ledger: Ledger, raw: Any, settings: Settings, bucket: str, fields: dict[bytes, bytes]
) -> None:
    check_repair(client, ledger, planted(raw, settings, bucket, fields))


every_poison = pytest.mark.parametrize("fields", POISON.values(), ids=POISON)


@every_poison
def test_a_poisoned_record_is_put_right_by_the_next_write(
    client: ConsistentS3, ledger: Ledger, raw: Any, settings: Settings, bucket: str, fields: dict[bytes, bytes]
) -> None:
    check_repair(client, ledger, planted(raw, settings, bucket, fields))


@every_poison
def test_a_poisoned_record_counts_as_nothing_known_for_a_read(
    client: ConsistentS3, store: Store, raw: Any, settings: Settings, bucket: str, fields: dict[bytes, bytes]
) -> None:
    ref = planted(raw, settings, bucket, fields)
    store._writer.put_object(Bucket=ref.bucket, Key=ref.key, Body=b"theirs")
    assert client.read(ref) == b"theirs"


@hypothesis_settings(fuzzed, max_examples=300)
@given(fields=st.dictionaries(names | st.just(b"v"), values, max_size=5))
def test_a_lookup_of_whatever_a_hash_may_hold_is_a_record_or_a_newer_versions(
    ledger: Ledger, raw: Any, settings: Settings, bucket: str, fields: dict[bytes, bytes]
) -> None:
    ref = planted(raw, settings, bucket, fields)
    if fields.get(b"v", b"1") in (b"1", b"2"):
        assert isinstance(ledger.lookup(ref), Record)
    else:
        with pytest.raises(LedgerUnavailable, match="knows '2'"):
            ledger.lookup(ref)


OTHER_TYPES: dict[str, Callable[[Any, str], object]] = {
    "string": lambda raw, key: raw.set(key, "x"),
    "list": lambda raw, key: raw.rpush(key, "x"),
    "set": lambda raw, key: raw.sadd(key, "x"),
    "sorted set": lambda raw, key: raw.zadd(key, {"x": 1}),
    "stream": lambda raw, key: raw.xadd(key, {"x": "y"}),
    "bitmap": lambda raw, key: raw.setbit(key, 7, 1),
}


@pytest.mark.parametrize("kind", OTHER_TYPES)
def test_a_key_of_another_type_is_unknown_until_the_next_write_takes_it_over(
    client: ConsistentS3, ledger: Ledger, raw: Any, settings: Settings, ref: ObjectRef, kind: str
) -> None:
    OTHER_TYPES[kind](raw, record_key(settings.ledger_prefix, ref))
    assert ledger.lookup(ref) == Record()
    check_repair(client, ledger, ref)


@hypothesis_settings(fuzzed, max_examples=40)
@given(fields=records, date=st.integers(0, 2**33), etag=st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=20))
def test_readers_moves_on_a_garbled_record_fail_as_an_unavailable_ledger_at_worst(
    ledger: Ledger, raw: Any, settings: Settings, bucket: str, fields: dict[bytes, bytes], date: int, etag: str
) -> None:
    ref = planted(raw, settings, bucket, fields)
    judged, landed = ledger.lookup(ref), Landed(etag=etag or None, date=date)
    moves: list[Callable[[], object]] = [
        lambda: ledger.adopt(ref, judged, landed),
        lambda: ledger.observe(ref, Intent("a", (1, 2**53)), 1, landed),
        lambda: ledger.abort(ref, "a", 1),
    ]
    for move in moves:
        with contextlib.suppress(LedgerUnavailable):
            move()
    assert isinstance(ledger.lookup(ref), Record)


@pytest.mark.parametrize("memory", [b"", b"garbage", b"1 2 3", b"1 2 3 4 5 x", b"9" * 6000, b"\xff"])
def test_a_garbled_memory_of_a_finished_write_does_not_keep_its_redelivery_from_ending(
    client: ConsistentS3, raw: Any, settings: Settings, ref: ObjectRef, memory: bytes
) -> None:
    redelivered = client.with_write_ids(lambda _ref: "w", 0.0)
    raw.set(finished_key(settings.ledger_prefix, ref, "w"), memory)

    written = redelivered.write(b"body", ref)

    assert client.read(written) == client.read(ref) == b"body"


# --- forged markers ---


def forge(store: Store, ref: ObjectRef, body: bytes, marker: str) -> None:
    """An outsider who may write to the bucket puts an object there with a marker of its own making."""
    store._writer.put_object(Bucket=ref.bucket, Key=ref.key, Body=body, Metadata={MARKER_METADATA_KEY: marker})


@hypothesis_settings(fuzzed, max_examples=60)
@given(marker=st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=60) | st.just(";;") | st.just("a;1;b"))
def test_a_marker_that_is_nonsense_is_an_outsiders_object(
    client: ConsistentS3, store: Store, bucket: str, marker: str
) -> None:
    ref = ObjectRef(bucket, uuid.uuid4().hex)
    forge(store, ref, b"theirs", marker)
    assert client.read(ref) == b"theirs"
    assert json.loads(json.dumps(client.head(ref)))["size"] == 6


def test_a_marker_made_for_another_object_says_nothing_about_this_one(client: ConsistentS3, store: Store, bucket: str) -> None:
    ours, copy = ObjectRef(bucket, "ours"), ObjectRef(bucket, "copy")
    written = client.write(b"x", copy)
    forge(store, copy, b"forged", Marker("anything", 5).text(ours))
    # Within the second that HTTP dates cannot tell apart, then after it.
    with pytest.raises(S3TasksError):
        client.read(copy)
    assert written.etag is not None


def test_who_may_write_to_the_bucket_can_pass_off_bytes_as_a_write_whose_marker_they_copy(
    client: ConsistentS3, ledger: Ledger, store: Store, ref: ObjectRef
) -> None:
    """Stated, not prevented: markers are not secret, and whoever can write here could as well be believed as an outside write."""
    written = client.write(b"genuine", ref)
    (current,) = ledger.lookup(ref).currents
    forge(store, ref, b"forged!", Marker(current.write_id, current.begun).text(ref))

    assert client.read(ref) == b"forged!"
    assert written.etag == current.etag
    assert client.read(client.write(b"again", ref)) == b"again", "nothing is stuck"


def test_a_marker_of_a_write_that_never_was_makes_an_object_stale_until_the_next_write(
    client: ConsistentS3, store: Store, ref: ObjectRef
) -> None:
    """Stated, not prevented: an outsider who forges a marker is not adopted as one who has none would be."""
    client.write(b"genuine", ref)
    forge(store, ref, b"forged!", Marker("never", 10**15).text(ref))

    with pytest.raises(S3TasksError, match="stale"):
        client.read(ref)

    assert client.read(client.write(b"again", ref)) == b"again", "nothing is stuck"
