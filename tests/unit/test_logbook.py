"""The lines of the log: one a write, one a verdict that is not fresh, readable by people and by machines, safe against both."""

from __future__ import annotations

import inspect
import json
import logging
import re
from collections.abc import Callable
from typing import Any

import pytest

from s3tasks import ConsistentS3, ObjectRef, S3TasksError, Settings, errors
from s3tasks.errors import LedgerUnavailable, NoSuchKey, StaleRead
from s3tasks.logbook import FIELDS, Acting, line
from s3tasks.store import Store
from s3tasks.write_ids import NumberedWriteIds

Connect = Callable[[Settings], ConsistentS3]
HOSTILE = 'a\r\nINFO forged: all is well\x1b[2K\u2028\u202e"quoted" (etag=forged)\udc80'


@pytest.fixture(autouse=True)
def at_info(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)


def lines(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    return [record for record in caplog.records if hasattr(record, "s3tasks_event")]


def fields(record: logging.LogRecord) -> dict[str, Any]:
    return {name.removeprefix("s3tasks_"): value for name, value in vars(record).items() if name.startswith("s3tasks_")}


def outside_write(store: Store, ref: ObjectRef) -> str:
    """Somebody else's write, within the second: nothing can be told of it."""
    return str(store._writer.put_object(Bucket=ref.bucket, Key=ref.key, Body=b"another's")["ETag"]).strip('"')


def test_a_write_and_a_delete_are_one_line_each_with_all_that_names_them(
    client: ConsistentS3, ref: ObjectRef, caplog: pytest.LogCaptureFixture
) -> None:
    named = client.with_write_ids(NumberedWriteIds("task-7"), 0, Acting("task-7", 0))
    written = named.write(b"secret body", ref)
    named.delete(ref)

    put, deleted = lines(caplog)
    assert fields(put) == {
        "event": "written", "bucket": ref.bucket, "key": ref.key, "etag": written.etag, "size": 11, "write_id": "task-7",
        "task_id": "task-7", "attempt": 1,
    }
    assert put.getMessage() == (
        f"{ref.uri}: written (etag={written.etag} size=11 write_id=task-7 task_id=task-7 attempt=1)"
    )
    assert (put.name, put.levelno) == ("s3tasks.writes", logging.INFO)
    assert fields(deleted) == {
        "event": "deleted", "bucket": ref.bucket, "key": ref.key, "write_id": "task-7.2", "task_id": "task-7", "attempt": 1,
    }


def test_a_fresh_read_is_no_line_and_any_other_is_one(
    client: ConsistentS3, ref: ObjectRef, store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    written = client.write(b"ours", ref)
    assert client.read(ref) == b"ours"
    served = outside_write(store, ref)
    caplog.clear()
    with pytest.raises(StaleRead):
        client.read(ref)
    with pytest.raises(NoSuchKey):
        client.read(f"s3://{ref.bucket}/missing")

    stale, missing = lines(caplog)
    assert fields(stale) == {
        "event": "stale", "bucket": ref.bucket, "key": ref.key, "etag": written.etag, "served_etag": served, "attempt": 1,
    }
    assert stale.getMessage() == (
        f"{ref.uri}: an older object is served: wait (etag={written.etag} served_etag={served} attempt=1)"
    )
    assert fields(missing) == {"event": "missing", "bucket": ref.bucket, "key": "missing", "attempt": 1}


def test_attempts_are_counted_through_over_waiting_and_earlier_deliveries(
    client: ConsistentS3, ref: ObjectRef, store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    client.write(b"ours", ref)
    outside_write(store, ref)
    later = client.with_write_ids(NumberedWriteIds("task-8"), 0, Acting("task-8", 40))
    caplog.clear()
    with pytest.raises(StaleRead) as told:
        later.read(ref, wait=2)

    said = lines(caplog)
    assert told.value.attempts > 1
    assert [record.s3tasks_attempt for record in said] == list(range(41, 41 + told.value.attempts))  # type: ignore[attr-defined]
    assert {record.s3tasks_task_id for record in said} == {"task-8"}  # type: ignore[attr-defined]


def test_many_objects_are_a_line_each_for_the_task_that_asked(
    client: ConsistentS3, bucket: str, caplog: pytest.LogCaptureFixture
) -> None:
    named = client.with_write_ids(NumberedWriteIds("task-9"), 0, Acting("task-9", 0))
    named.write_many([(b"1", f"s3://{bucket}/1"), (b"2", f"s3://{bucket}/2"), (b"3", f"s3://{bucket}/3")])
    named.read_many([f"s3://{bucket}/{number}" for number in (4, 5)])

    said = [fields(record) for record in lines(caplog)]
    assert sorted((one["event"], one["key"]) for one in said) == [
        ("missing", "4"), ("missing", "5"), ("written", "1"), ("written", "2"), ("written", "3"),
    ]
    assert {one["task_id"] for one in said} == {"task-9"}


def test_what_readers_record_is_a_line(
    settings: Settings, connect: Connect, ref: ObjectRef, store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    strong = connect(settings.replace(store_consistency="strong"))
    strong.write(b"ours", ref)
    served = outside_write(store, ref)
    caplog.clear()
    strong.read(ref)

    (adopted,) = lines(caplog)
    assert fields(adopted) == {
        "event": "adopted", "bucket": ref.bucket, "key": ref.key, "served_etag": served, "size": 9, "attempt": 1,
    }


def test_what_is_not_known_here_is_a_line_for_those_who_look_closely(
    client: ConsistentS3, ref: ObjectRef, store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    outside_write(store, ref)
    client.read(ref)
    assert lines(caplog) == []
    caplog.set_level(logging.DEBUG, "s3tasks")
    client.read(ref)

    assert [fields(record)["event"] for record in lines(caplog)] == ["unknown"]


def test_fields_are_json_and_few(client: ConsistentS3, ref: ObjectRef, caplog: pytest.LogCaptureFixture) -> None:
    client.write(b"body", ref)
    client.delete(ref)

    for record in lines(caplog):
        assert json.loads(json.dumps(fields(record))) == fields(record)
        assert fields(record).keys() <= {"event", "bucket", "key", *FIELDS}


def test_a_hostile_key_breaks_no_line_and_forges_no_field(
    client: ConsistentS3, bucket: str, store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    key = HOSTILE.replace("\udc80", "").replace("\u2028", "").replace("\x1b", "").replace("\r", "")
    ref = ObjectRef(bucket, key)
    client.write(b"body", ref)
    outside_write(store, ref)
    with pytest.raises(StaleRead):
        client.read(ref)

    texts = [record.getMessage() for record in lines(caplog)]
    assert len(texts) == 2
    assert all(text.isprintable() for text in texts)
    assert {fields(record)["key"] for record in lines(caplog)} == {key}


@pytest.mark.parametrize("etag", [HOSTILE, "", "two words", 'a"b', "a=b", "x)"])
def test_a_hostile_value_ends_where_it_should(etag: str, caplog: pytest.LogCaptureFixture) -> None:
    ref = ObjectRef("bucket", HOSTILE.replace("\udc80", ""))
    line(logging.getLogger("s3tasks.test"), "stale", ref, "text", etag=etag, write_id="w")

    (record,) = lines(caplog)
    text = record.getMessage()
    assert text.isprintable()
    assert fields(record)["etag"] == etag
    value = re.fullmatch(r"s3://bucket/.*: text \(etag=(\"(?:[^\"\\]|\\.)*\") write_id=w\)", text)
    assert value is not None, text
    assert json.loads(value.group(1)) == etag


def test_no_error_breaks_a_line_whatever_its_fields_hold() -> None:
    for kind in vars(errors).values():
        if isinstance(kind, type) and issubclass(kind, S3TasksError) and kind not in (errors.RetryableError, S3TasksError):
            needed = [one for one in list(inspect.signature(kind).parameters.values()) if one.default is one.empty]
            problem = kind(*(HOSTILE if one.annotation == "str" else 1 for one in needed))
            assert str(problem).isprintable(), kind
            assert repr(problem).isprintable(), kind
    assert str(S3TasksError(HOSTILE)).isprintable()


def test_bodies_and_secrets_are_in_no_line(
    settings: Settings, connect: Connect, ref: ObjectRef, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "s3tasks")
    key = "c2VzYW1lc2VzYW1lc2VzYW1lc2VzYW1lc2VzYW1lISE="
    client = connect(settings.replace(sse_customer_key=key))
    client.write(b"open sesame", ref, metadata={"password": "sesame"})
    away = connect(settings.replace(ledger_url="redis://sesame:sesame@127.0.0.1:1/0"))
    with pytest.raises(LedgerUnavailable) as refused:
        away.read(ref)

    assert lines(caplog)
    said = [*(str(vars(record)) + record.getMessage() for record in caplog.records if record.name.startswith("s3tasks"))]
    assert not [text for text in [*said, str(refused.value)] if "sesame" in text or key in text]


def test_an_attribute_that_every_record_has_costs_no_line(
    client: ConsistentS3, ref: ObjectRef, caplog: pytest.LogCaptureFixture
) -> None:
    """Applications give their records a task id, a key or a bucket by a factory; logging refuses a second one."""
    before = logging.getLogRecordFactory()

    def factory(*args: Any, **kwargs: Any) -> logging.LogRecord:
        record = before(*args, **kwargs)
        for name in ("event", "bucket", "key", *FIELDS):
            setattr(record, name, "the application's")
        return record

    logging.setLogRecordFactory(factory)
    try:
        client.write(b"body", ref)
    finally:
        logging.setLogRecordFactory(before)

    assert [record.s3tasks_key for record in lines(caplog)] == [ref.key]  # type: ignore[attr-defined]
