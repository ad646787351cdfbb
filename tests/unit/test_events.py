"""What happened is told to whoever listens, and nobody who acts is the worse for it."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import pytest

from s3tasks import ConsistentS3, LedgerUnavailable, NoSuchKey, ObjectRef, Settings, StaleRead, StoreError, StoreUnavailable, events
from s3tasks.errors import NotYetVisible, WriteConflict
from s3tasks.refs import record_key
from s3tasks.sandbox import Sandbox
from s3tasks.store import Store
from tests.s3_proxy import Forward, Request, Response, proxied, refusal


@pytest.fixture
def heard() -> Iterator[list[events.Event]]:
    """All that is told while the test goes on."""
    told: list[events.Event] = []
    stop = events.listen(told.append)
    yield told
    stop()


@pytest.fixture
def outsider(store: Store) -> Callable[[ObjectRef, bytes], None]:
    """Somebody else's program: it writes to the bucket and knows nothing of us."""
    return lambda ref, body: store._writer.put_object(Bucket=ref.bucket, Key=ref.key, Body=body)


def plain(told: list[events.Event]) -> list[events.Event]:
    """What was told, but for operations and for what verbs made of it."""
    others = [event for event in told if not isinstance(event, events.Began | events.Ended)]
    return [event for event in others if not (isinstance(event, events.Failed) and event.room == "verb")]


def operations(told: list[events.Event], room: str) -> list[tuple[str, str | None]]:
    """Name and error of each operation of the room, in the order of their ends."""
    ended = [event.operation for event in told if isinstance(event, events.Ended)]
    return [(operation.name, operation.error) for operation in ended if operation.room == room]


def refused() -> None:
    raise RuntimeError("a listener that fails")


# --- listeners ---


def test_nothing_is_made_while_nobody_listens() -> None:
    assert events.listeners == ()
    assert events.begin("ledger", "lookup") is None


def test_a_listener_hears_until_it_stops() -> None:
    heard: list[events.Event] = []
    stop = events.listen(heard.append)
    events.tell(events.Concluded("fresh"))
    stop()
    stop()
    events.tell(events.Concluded("stale"))

    assert heard == [events.Concluded("fresh")]
    assert events.listeners == ()


def test_what_a_listener_raises_is_logged_once_and_reaches_nobody(
    client: ConsistentS3, ref: ObjectRef, heard: list[events.Event], caplog: pytest.LogCaptureFixture
) -> None:
    stop = events.listen(lambda _: refused())
    try:
        assert client.read(client.write(b"all the same", ref)) == b"all the same"
    finally:
        stop()

    complaints = [record for record in caplog.records if record.name == "s3tasks.events" and record.levelno == logging.ERROR]
    assert [record.getMessage() for record in complaints] == ["a listener failed on Began: RuntimeError('a listener that fails')"]
    assert events.Committed("write") in heard


@pytest.mark.parametrize("kind", get_args(events.Event))
def test_an_event_is_frozen_and_holds_nothing_of_which_there_are_many(kind: Any) -> None:
    assert kind.__dataclass_params__.frozen
    held = {field.name: field.type for field in dataclasses.fields(kind)}
    assert set(held.values()) <= {"str", "float", "bool", "Operation"}
    assert not {"key", "ref", "etag", "bucket"} & held.keys()


# --- what is told ---


def test_a_write_and_a_fresh_read_are_told_with_the_calls_that_they_took(
    client: ConsistentS3, ref: ObjectRef, heard: list[events.Event]
) -> None:
    client.read(client.write(b"body", ref))
    client.delete(ref)

    assert plain(heard) == [events.Committed("write"), events.Concluded("fresh"), events.Committed("delete")]
    ledger_calls = ["connect", "begin", "commit", "lookup", "begin", "commit"]
    assert operations(heard, "ledger") == [(name, None) for name in ledger_calls]
    assert operations(heard, "store") == [("PutObject", None), ("GetObject", None), ("DeleteObject", None)]
    ended = [event.operation for event in heard if isinstance(event, events.Ended)]
    assert all(operation.seconds > 0 for operation in ended)
    assert {operation.ref.plain() for operation in ended if operation.ref} == {ref}


def test_each_beginning_has_its_end(client: ConsistentS3, ref: ObjectRef, heard: list[events.Event]) -> None:
    client.write(b"body", ref)

    began = [event.operation for event in heard if isinstance(event, events.Began)]
    ended = [event.operation for event in heard if isinstance(event, events.Ended)]
    assert sorted(map(id, began)) == sorted(map(id, ended))


def test_verdicts_are_told_by_name(
    client: ConsistentS3, ref: ObjectRef, store: Store, outsider: Callable[[ObjectRef, bytes], None], heard: list[events.Event]
) -> None:
    with pytest.raises(NoSuchKey):
        client.read(ref)
    outsider(ref, b"unknown here")
    client.read(ref)
    client.write(b"known", ref)
    outsider(ref, b"somebody else's, within the second: nothing can be told")
    with pytest.raises(StaleRead):
        client.read(ref)
    store._writer.delete_object(Bucket=ref.bucket, Key=ref.key)
    with pytest.raises(NotYetVisible):
        client.read(ref)

    verdicts = [event.verdict for event in heard if isinstance(event, events.Concluded)]
    assert verdicts == ["missing", "unknown", "stale", "not_yet_visible"]


def test_what_readers_record_is_told(
    settings: Settings, connect: Callable[[Settings], ConsistentS3], ref: ObjectRef, outsider: Callable[[ObjectRef, bytes], None],
    heard: list[events.Event],
) -> None:
    strong = connect(settings.replace(store_consistency="strong"))
    strong.write(b"ours", ref)
    outsider(ref, b"theirs")

    assert strong.read(ref) == b"theirs"
    assert events.Recorded("adopted") in heard


def test_an_unfinished_write_that_a_reader_records_is_told(
    client: ConsistentS3, ref: ObjectRef, heard: list[events.Event], monkeypatch: pytest.MonkeyPatch
) -> None:
    rooms = client._process.rooms()
    with monkeypatch.context() as dying:
        dying.setattr(rooms.ledger, "commit", lambda *_, **__: refused())
        with pytest.raises(RuntimeError):
            client.write(b"landed, not committed", ref)

    assert client.read(ref) == b"landed, not committed"
    assert plain(heard) == [events.Recorded("observed"), events.Concluded("unfinished")]


def test_a_redis_that_is_away_is_told_by_move_and_kind(
    settings: Settings, connect: Callable[[Settings], ConsistentS3], ref: ObjectRef, heard: list[events.Event]
) -> None:
    away = connect(settings.replace(ledger_url="redis://user:secret@127.0.0.1:1/0"))

    with pytest.raises(LedgerUnavailable):
        away.read(ref)

    assert plain(heard) == [events.Failed("ledger", "lookup", "ConnectionError")]
    assert operations(heard, "ledger")[-1] == ("lookup", "ConnectionError")
    assert "secret" not in str(heard)


def test_a_store_that_fails_is_told_by_operation_and_status(
    settings: Settings, connect: Callable[[Settings], ConsistentS3], ref: ObjectRef, sandbox: Sandbox, heard: list[events.Event]
) -> None:
    def refuses_writes(request: Request, forward: Forward) -> Response:
        return refusal(403, "AccessDenied") if request.method == "PUT" else refusal(503, "SlowDown")

    with proxied(sandbox.endpoint_url, refuses_writes) as proxy:
        client = connect(settings.replace(endpoint_url=proxy.url, store_attempts=1))
        with pytest.raises(StoreError):
            client.write(b"body", ref)
        with pytest.raises(StoreUnavailable):
            client.read(ref)

    assert plain(heard) == [events.Failed("store", "PutObject", "403"), events.Failed("store", "GetObject", "503")]
    assert operations(heard, "store") == [("PutObject", "403"), ("GetObject", "503")]


def test_that_an_object_is_missing_or_a_condition_fails_is_no_failure(
    client: ConsistentS3, ref: ObjectRef, heard: list[events.Event]
) -> None:
    client.write(b"first", ref)
    with pytest.raises(WriteConflict):
        client.write(b"second", ref, if_none_match=True)
    with pytest.raises(NoSuchKey):
        client.head(ObjectRef(ref.bucket, "nothing"))
    with pytest.raises(StoreError):
        client.write(b"", ObjectRef("no-such-bucket-here", "key"))

    assert [event for event in heard if isinstance(event, events.Failed)] == [
        events.Failed("verb", "write", "WriteConflict"), events.Failed("verb", "head", "NoSuchKey"),
        events.Failed("store", "PutObject", "404"), events.Failed("verb", "write", "StoreError"),
    ]


def test_the_cache_tells_whether_it_had_the_body(
    settings: Settings, connect: Callable[[Settings], ConsistentS3], ref: ObjectRef, tmp_path: Path, heard: list[events.Event]
) -> None:
    (tmp_path / "cache").mkdir(mode=0o700)
    client = connect(settings.replace(cache_dir=str(tmp_path / "cache")))
    written = client.write(b"kept", ref)
    client.read(written)
    client.read(written)

    asked = [event.hit for event in heard if isinstance(event, events.CacheAsked)]
    assert asked == [False, True]
    assert [event.verdict for event in heard if isinstance(event, events.Concluded)] == ["fresh", "fresh"]


def test_large_objects_are_told_call_by_call(
    client: ConsistentS3, ref: ObjectRef, tmp_path: Path, heard: list[events.Event]
) -> None:
    (tmp_path / "large").write_bytes(b"x" * (9 * 1024 * 1024))
    written = client.upload(tmp_path / "large", ref)
    client.download(written, tmp_path / "again")

    names = [name for name, error in operations(heard, "store") if error is None]
    assert sorted(names) == sorted([
        "CreateMultipartUpload", "UploadPart", "UploadPart", "CompleteMultipartUpload", "HeadObject", "GetObject", "GetObject",
    ])


def test_a_record_that_is_no_hash_is_no_failure_of_redis(client: ConsistentS3, ref: ObjectRef, heard: list[events.Event]) -> None:
    ledger = client._process.rooms().ledger
    ledger._redis.set(record_key(client.settings.ledger_prefix, ref), "garbage")
    with pytest.raises(NoSuchKey):
        client.read(ref)

    assert plain(heard) == [events.Concluded("missing")]
