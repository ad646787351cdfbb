"""Objects in parts: uploads, downloads and streams, against a real S3, through faults on the wire."""

from __future__ import annotations

import errno
import gzip
import io
import os
import random
import resource
import threading
import zlib
from base64 import b64encode
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from botocore.session import Session

from s3tasks import (
    ConsistentS3,
    LocalFileError,
    NoSuchKey,
    NotYetVisible,
    ObjectRef,
    Settings,
    StaleRead,
    StoreError,
    StoreUnavailable,
    Superseded,
    WriteConflict,
)
from s3tasks.evidence import Landed
from s3tasks.ledger import Ledger, Opened
from s3tasks.refs import Marker
from s3tasks.sandbox import Sandbox
from s3tasks.store import Condition, Content, Store, model, parts, transfers
from s3tasks.write_ids import NumberedWriteIds
from tests.s3_proxy import Dropped, Forward, Request, Response, Rule, proxied, refusal

MIB = 1024 * 1024
PART_BYTES = 5 * MIB
BIG = random.Random(1).randbytes(2 * PART_BYTES + 17)
OTHER = random.Random(2).randbytes(len(BIG))

Connect = Callable[[Settings], ConsistentS3]


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.replace(multipart_threshold_bytes=PART_BYTES, part_bytes=PART_BYTES, concurrent_requests=4)


@pytest.fixture
def behind(settings: Settings, connect: Connect) -> Iterator[Callable[[Rule], ConsistentS3]]:
    """Makes clients whose requests go through a rule."""
    proxies = []

    def make(rule: Rule, **changes: Any) -> ConsistentS3:
        context = proxied(str(settings.endpoint_url), rule)
        proxy = context.__enter__()
        proxies.append(context)
        client = connect(settings.replace(endpoint_url=proxy.url, **changes))
        client.proxy = proxy  # type: ignore[attr-defined]
        return client

    yield make
    for context in proxies:
        context.__exit__(None, None, None)


def is_part(request: Request) -> bool:
    return request.method == "PUT" and "partNumber=" in request.path


def completes(request: Request) -> bool:
    return request.method == "POST" and "uploadId=" in request.path


def begins(request: Request) -> bool:
    return request.method == "POST" and "uploads" in request.path


def uploads_left(store: Store, bucket: str) -> list[Any]:
    return list(store._writer.list_multipart_uploads(Bucket=bucket).get("Uploads", []))


class Pipe(io.RawIOBase):
    """A stream that cannot go back, like a socket."""

    def __init__(self, content: bytes, error: Exception | None = None) -> None:
        super().__init__()
        self._content, self._error = io.BytesIO(content), error

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        piece = self._content.read(min(len(buffer), 100_000))
        if not piece and self._error is not None:
            raise self._error
        buffer[: len(piece)] = piece
        return len(piece)


# --- uploads ---


def test_a_large_file_is_written_in_parts_and_read_back(client: ConsistentS3, ref: ObjectRef, tmp_path: Path, store: Store) -> None:
    (tmp_path / "big").write_bytes(BIG)
    told: list[tuple[int, int | None]] = []

    written = client.upload(
        tmp_path / "big", ref, content_type="x/y", metadata={"a": "b"}, progress=lambda done, total: told.append((done, total))
    )

    assert written.etag is not None
    assert written.etag.endswith("-3")
    assert written.size == len(BIG)
    assert client.read(written) == BIG
    head = client.head(ref)
    assert (head["content_type"], head["metadata"]) == ("x/y", {"a": "b"})
    assert told[-1] == (len(BIG), len(BIG))
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    assert uploads_left(store, ref.bucket) == []


@pytest.mark.parametrize("size", [0, 1, PART_BYTES - 1, PART_BYTES, PART_BYTES + 1])
@pytest.mark.parametrize("kind", [io.BytesIO, Pipe])
def test_a_stream_of_any_length_is_written_whole(client: ConsistentS3, ref: ObjectRef, size: int, kind: Any) -> None:
    written = client.write(io.BufferedReader(kind(BIG[:size])) if kind is Pipe else kind(BIG[:size]), ref)
    assert (written.size, client.read(written) == BIG[:size]) == (size, True)


def test_a_stream_is_written_from_where_it_stands(client: ConsistentS3, ref: ObjectRef) -> None:
    stream = io.BytesIO(BIG)
    stream.seek(7)
    assert client.read(client.write(stream, ref)) == BIG[7:]


class Watched(io.FileIO):
    """A file that counts how often as much as a part was read at once, and cannot be read at `breaks_at` after so many times."""

    breaks_at = -1
    readings_left = 0
    parts_at_once = 0

    def readinto(self, buffer: Any) -> int:
        self.parts_at_once += len(buffer) >= PART_BYTES
        if self.tell() == self.breaks_at:
            self.readings_left -= 1
            if self.readings_left < 0:
                raise OSError(errno.EIO, "the disk is broken")
        return super().readinto(buffer)


def test_of_a_file_no_part_is_held_in_memory(client: ConsistentS3, ref: ObjectRef, tmp_path: Path) -> None:
    (tmp_path / "big").write_bytes(b"before" + BIG)
    with Watched(tmp_path / "big") as raw, io.BufferedReader(raw) as file:
        file.seek(len(b"before"))
        written = client.write(file, ref)

        assert file.tell() == len(b"before" + BIG), "it stands where the write has read to"
        assert raw.parts_at_once == 1, "to see whether it is large enough for parts"
    assert client.read(written) == BIG


@pytest.mark.parametrize("readings", [0, 1, 2])
def test_a_file_that_cannot_be_read_to_its_end_is_no_outage_of_s3(
    settings: Settings, connect: Connect, ref: ObjectRef, tmp_path: Path, store: Store, readings: int
) -> None:
    """Neither for its checksums, nor when it is sent, where botocore takes what is raised for the network's."""
    client = connect(settings.replace(store_attempts=1))
    (tmp_path / "big").write_bytes(BIG)
    with Watched(tmp_path / "big") as raw, io.BufferedReader(raw) as file:
        raw.breaks_at, raw.readings_left = PART_BYTES, readings
        with pytest.raises(OSError, match="the disk is broken"):
            client.write(file, ref)
    assert uploads_left(store, ref.bucket) == []


def test_what_is_written_of_a_compressed_file_is_what_it_reads_as(client: ConsistentS3, ref: ObjectRef, tmp_path: Path) -> None:
    with gzip.open(tmp_path / "big.gz", "wb", compresslevel=1) as packed:
        packed.write(BIG)
    with gzip.open(tmp_path / "big.gz", "rb") as packed:
        assert client.read(client.write(packed, ref)) == BIG  # type: ignore[arg-type]


def test_botocores_model_of_s3_is_loaded_once_for_all_operations(monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes some 25 MB each time."""
    loaded: list[str] = []
    load = Session.get_service_model

    def counted(session: Session, name: str, *more: Any) -> Any:
        loaded.append(name)
        return load(session, name, *more)

    monkeypatch.setattr(Session, "get_service_model", counted)
    for kept in (model._service, model._shape):
        kept.cache_clear()
    for operation in ("PutObject", "CreateMultipartUpload", "UploadPart", "CompleteMultipartUpload"):
        model.known_to(operation, {})
    assert loaded == ["s3"]


def test_a_text_file_is_refused(client: ConsistentS3, ref: ObjectRef) -> None:
    with pytest.raises(TypeError, match="binary mode"):
        client.write(io.StringIO("text"), ref)  # type: ignore[arg-type]


class Halting(io.BytesIO):
    """A stream that can go back, and gives less than it is asked for."""

    def read(self, size: int | None = -1) -> bytes:
        return super().read(min(size, 700_001) if size and size > 0 else size)


@pytest.mark.parametrize("kind", [Pipe, Halting])
def test_a_raw_stream_that_gives_less_than_asked_is_written_whole(client: ConsistentS3, ref: ObjectRef, kind: Any) -> None:
    assert client.read(client.write(kind(BIG), ref)) == BIG


def test_a_stream_that_has_nothing_yet_is_not_taken_for_one_at_its_end(client: ConsistentS3, ref: ObjectRef) -> None:
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    os.write(writing, b"the beginning")
    with open(reading, "rb", buffering=0) as raw, pytest.raises(BlockingIOError, match="blocking mode"):
        client.write(raw, ref)
    os.close(writing)
    with pytest.raises(NoSuchKey):
        client.read(ref)


def test_a_file_that_becomes_shorter_is_not_written(behind: Any, ref: ObjectRef, tmp_path: Path, store: Store) -> None:
    path = tmp_path / "log"
    path.write_bytes(BIG)

    def shortens(request: Request, forward: Forward) -> Response:
        if begins(request):
            os.truncate(path, PART_BYTES + 5)
        return forward(request)

    with pytest.raises(EOFError, match="shorter"):
        behind(shortens, concurrent_requests=1).upload(path, ref)
    assert uploads_left(store, ref.bucket) == []


def test_a_file_that_grows_is_written_as_it_was(behind: Any, ref: ObjectRef, tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(BIG)

    def grows(request: Request, forward: Forward) -> Response:
        if begins(request):
            with path.open("ab") as file:
                file.write(b"more")
        return forward(request)

    client = behind(grows)
    assert client.read(client.upload(path, ref)) == BIG


@pytest.mark.parametrize("error", [ValueError("stop"), OSError("stop"), KeyError("stop")])
def test_what_a_progress_callback_raises_ends_the_transfer_and_comes_out(
    client: ConsistentS3, ref: ObjectRef, tmp_path: Path, store: Store, ledger: Ledger, error: Exception
) -> None:
    """Whoever wants to cancel does it so. An OSError of theirs is no outage of S3."""

    def stops(done: int, _total: int | None) -> None:
        if done > MIB:
            raise error

    with pytest.raises(type(error), match="stop") as caught:
        client.write(io.BytesIO(BIG), ref, progress=stops)
    assert caught.value is error
    assert uploads_left(store, ref.bucket) == []
    assert ledger.lookup(ref).intents == ()
    client.write(io.BytesIO(BIG), ref)
    with pytest.raises(type(error), match="stop") as caught:
        client.download(ref, tmp_path / "out", progress=stops)
    assert caught.value is error
    assert os.listdir(tmp_path) == []


def test_a_stream_of_too_many_parts_is_told_what_to_do(
    client: ConsistentS3, ref: ObjectRef, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts, "MOST_PARTS", 2)
    with pytest.raises(StoreError, match="raise part_bytes"):
        client.write(io.BufferedReader(Pipe(BIG)), ref)
    assert uploads_left(store, ref.bucket) == []


def test_memory_is_bounded_however_large_the_parts_must_be(settings: Settings) -> None:
    """Parts that are held at once, and what waits for a slow disk; S3 takes 10,000 parts, so those of 5 TiB have 525 MiB each."""
    for size_bytes in (None, 0, 10 * 1024 * MIB, 200 * 1024 * MIB, 5 * 1024 * 1024 * MIB):
        config = transfers.transfer_config(settings.replace(concurrent_requests=100), size_bytes)
        part_bytes = transfers.size_of_parts(settings.part_bytes, size_bytes)
        held = config.max_in_memory_upload_chunks * part_bytes
        assert held <= max(32 * MIB, part_bytes)
        assert config.max_io_queue_size * config.io_chunksize <= 16 * MIB


@pytest.mark.parametrize("chosen", [None, "CRC32", "SHA256"])
def test_parts_are_sent_with_the_checksum_that_the_upload_was_begun_with(behind: Any, ref: ObjectRef, chosen: str | None) -> None:
    """AWS refuses parts with another one."""
    begun, sent = [], []

    def notes(request: Request, forward: Forward) -> Response:
        headers = {name.lower(): value for name, value in request.headers.items()}
        if begins(request):
            begun.append((headers.get("x-amz-checksum-algorithm"), headers.get("x-amz-checksum-type")))
        if is_part(request):
            sent.append(headers["x-amz-sdk-checksum-algorithm"])
        return forward(request)

    behind(notes).write(io.BytesIO(BIG), ref, put_options={"ChecksumAlgorithm": chosen} if chosen else None)
    # botocore's own choice is a CRC-32, which can be of the whole object; a reader can check that.
    assert begun == [(chosen, None) if chosen else ("CRC32", "FULL_OBJECT")]
    assert set(sent) == {chosen or "CRC32"}


def test_where_checksums_are_turned_off_none_is_sent(behind: Any, ref: ObjectRef, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some stores break on botocore's default checksums."""
    monkeypatch.setenv("AWS_REQUEST_CHECKSUM_CALCULATION", "when_required")
    seen: list[str] = []

    def notes(request: Request, forward: Forward) -> Response:
        seen.extend(name.lower() for name in request.headers if request.method in ("POST", "PUT"))
        return forward(request)

    client = behind(notes)
    assert client.read(client.write(io.BytesIO(BIG), ref)) == BIG
    assert [name for name in seen if "checksum" in name] == []


@pytest.mark.parametrize("content", [BIG, BIG[:100]])
def test_what_reading_the_stream_raises_comes_out_and_nothing_is_written(
    client: ConsistentS3, ref: ObjectRef, ledger: Ledger, store: Store, content: bytes
) -> None:
    with pytest.raises(OSError, match="the camera is off"):
        client.write(io.BufferedReader(Pipe(content, OSError("the camera is off"))), ref)
    assert uploads_left(store, ref.bucket) == []
    assert ledger.lookup(ref).intents == ()
    with pytest.raises(NoSuchKey):
        client.read(ref)


def test_the_intent_is_open_before_the_upload_exists_and_the_upload_is_noted_before_it_has_parts(
    behind: Any, ref: ObjectRef, ledger: Ledger
) -> None:
    seen: list[tuple[str, int, int]] = []

    def looks_at_the_ledger(request: Request, forward: Forward) -> Response:
        record = ledger.lookup(ref)
        if request.method in ("POST", "PUT"):
            kind = "begin" if begins(request) else "part" if is_part(request) else "complete"
            seen.append((kind, len(record.intents), len(record.uploads)))
        return forward(request)

    client = behind(looks_at_the_ledger)
    client.write(io.BytesIO(BIG), ref)

    assert seen[0] == ("begin", 1, 0)
    assert seen[-1] == ("complete", 1, 1)
    assert {entry for entry in seen if entry[0] == "part"} == {("part", 1, 1)}
    assert ledger.lookup(ref).uploads == ()
    assert ledger.lookup(ref).intents == ()


def test_an_upload_that_fails_leaves_no_parts_and_the_intent_is_closed(
    behind: Any, ref: ObjectRef, store: Store, ledger: Ledger
) -> None:
    client = behind(lambda request, forward: refusal(403) if "partNumber=2" in request.path else forward(request))
    with pytest.raises(StoreError, match="403"):
        client.write(io.BytesIO(BIG), ref)
    assert uploads_left(store, ref.bucket) == []
    record = ledger.lookup(ref)
    assert (record.intents, record.uploads) == ((), ())


def test_parts_that_fail_for_a_moment_are_sent_again_without_a_new_upload(behind: Any, ref: ObjectRef) -> None:
    failing = iter([True, True])

    def fails_twice(request: Request, forward: Forward) -> Response:
        return refusal(503) if is_part(request) and next(failing, False) else forward(request)

    client = behind(fails_twice)
    assert client.read(client.write(io.BufferedReader(Pipe(BIG)), ref)) == BIG
    assert sum("uploads" in path for method, path in client.proxy.seen if method == "POST") == 1


def test_a_completion_whose_answer_is_lost_is_no_second_upload(behind: Any, ref: ObjectRef, store: Store) -> None:
    lost = iter([True])

    def loses_the_answer(request: Request, forward: Forward) -> Response:
        response = forward(request)
        if completes(request) and next(lost, False):
            raise Dropped
        return response

    client = behind(loses_the_answer)
    written = client.write(io.BytesIO(BIG), ref)
    assert client.read(written) == BIG
    assert uploads_left(store, ref.bucket) == []


def test_a_conditional_completion_whose_answer_is_lost_is_no_conflict_with_itself(behind: Any, ref: ObjectRef) -> None:
    """botocore asks again, and S3 says that something is there: what this very upload has put there."""
    lost = iter([True])
    later = threading.Event()

    def loses_the_answer(request: Request, forward: Forward) -> Response:
        if completes(request) and later.is_set():
            return refusal(412, "PreconditionFailed")
        response = forward(request)
        if completes(request) and next(lost, False):
            later.set()
            raise Dropped
        return response

    client = behind(loses_the_answer, conditional_writes="trust")
    written = client.write(io.BytesIO(BIG), ref, if_none_match=True)
    assert client.read(written) == BIG


def test_an_empty_etag_is_filled_by_a_head_that_shows_our_marker(behind: Any, ref: ObjectRef) -> None:
    """Ceph RGW completes a multipart upload with an empty ETag."""

    def says_no_etag(request: Request, forward: Forward) -> Response:
        response = forward(request)
        if completes(request):
            before, _, rest = response.body.partition(b"<ETag>")
            response.body = before + b"<ETag></ETag>" + rest.partition(b"</ETag>")[2]
        return response

    written = behind(says_no_etag).write(io.BytesIO(BIG), ref)
    assert written.etag is not None
    assert written.etag.endswith("-3")


def test_the_parts_of_a_killed_process_are_cleared_when_its_write_is_delivered_again(
    client: ConsistentS3, ref: ObjectRef, ledger: Ledger, store: Store
) -> None:
    ledger.begin(ref, "task")
    theirs = store._writer.create_multipart_upload(Bucket=ref.bucket, Key=ref.key)["UploadId"]
    stranger = store._writer.create_multipart_upload(Bucket=ref.bucket, Key=ref.key)["UploadId"]
    store._writer.upload_part(Bucket=ref.bucket, Key=ref.key, UploadId=theirs, PartNumber=1, Body=b"x" * PART_BYTES)
    ledger.note_upload(ref, "task", theirs)

    again = client.with_write_ids(NumberedWriteIds("task"), 0)
    assert client.read(again.write(io.BytesIO(BIG), ref)) == BIG

    assert [upload["UploadId"] for upload in uploads_left(store, ref.bucket)] == [stranger]
    assert ledger.lookup(ref).uploads == ()


def left_by_a_killed_process(ref: ObjectRef, ledger: Ledger, store: Store, write_id: str = "task") -> None:
    """An upload with a part, as a process leaves it that is killed amid a write."""
    ledger.begin(ref, write_id)
    upload_id = store._writer.create_multipart_upload(Bucket=ref.bucket, Key=ref.key)["UploadId"]
    ledger.note_upload(ref, write_id, upload_id)
    store._writer.upload_part(Bucket=ref.bucket, Key=ref.key, UploadId=upload_id, PartNumber=1, Body=b"x" * PART_BYTES)


def test_they_are_cleared_too_when_the_next_delivery_needs_no_parts(
    client: ConsistentS3, ref: ObjectRef, ledger: Ledger, store: Store
) -> None:
    """The file has become a small one since."""
    left_by_a_killed_process(ref, ledger, store)
    client.with_write_ids(NumberedWriteIds("task"), 0).write(io.BytesIO(b"small"), ref)
    assert uploads_left(store, ref.bucket) == []
    assert ledger.lookup(ref).uploads == ()


def test_they_are_cleared_too_when_s3_refuses_the_next_delivery(
    behind: Any, ref: ObjectRef, ledger: Ledger, store: Store
) -> None:
    left_by_a_killed_process(ref, ledger, store)
    client = behind(lambda request, forward: refusal(403) if is_part(request) else forward(request))
    with pytest.raises(StoreError, match="403"):
        client.with_write_ids(NumberedWriteIds("task"), 0).write(io.BytesIO(BIG), ref)
    assert uploads_left(store, ref.bucket) == []


def test_they_are_cleared_too_when_the_next_delivery_finds_no_file(
    client: ConsistentS3, ref: ObjectRef, ledger: Ledger, store: Store, tmp_path: Path
) -> None:
    left_by_a_killed_process(ref, ledger, store)
    left_by_a_killed_process(ref, ledger, store, "another task")
    with pytest.raises(LocalFileError):
        client.with_write_ids(NumberedWriteIds("task"), 0).upload(tmp_path / "gone", ref)
    assert len(uploads_left(store, ref.bucket)) == 1
    assert [write_id for _, write_id in ledger.lookup(ref).uploads] == ["another task"]


def test_they_are_not_cleared_while_the_next_delivery_is_to_be_tried_again(
    behind: Any, ref: ObjectRef, ledger: Ledger, store: Store
) -> None:
    """The earlier delivery may be slow rather than dead."""
    left_by_a_killed_process(ref, ledger, store)
    client = behind(lambda request, forward: refusal(503) if begins(request) else forward(request))
    with pytest.raises(StoreUnavailable):
        client.with_write_ids(NumberedWriteIds("task"), 0).write(io.BytesIO(BIG), ref)
    assert len(uploads_left(store, ref.bucket)) == 1


def test_a_killed_upload_that_was_replaced_meanwhile_is_cleared_and_not_done_again(
    client: ConsistentS3, ref: ObjectRef, ledger: Ledger, store: Store
) -> None:
    ledger.begin(ref, "task")
    theirs = store._writer.create_multipart_upload(Bucket=ref.bucket, Key=ref.key)["UploadId"]
    ledger.note_upload(ref, "task", theirs)
    client.write(b"newer", ref)

    client.with_write_ids(NumberedWriteIds("task"), 0).write(io.BytesIO(BIG), ref)

    assert client.read(ref) == b"newer"
    assert uploads_left(store, ref.bucket) == []


def test_of_two_deliveries_of_one_upload_the_slow_one_learns_that_it_is_done(behind: Any, ref: ObjectRef, store: Store) -> None:
    """The second delivery clears the first one's parts, which must not make the first one fail."""
    at_part, go_on = threading.Event(), threading.Event()

    def is_slow(request: Request, forward: Forward) -> Response:
        if is_part(request) and "partNumber=3" in request.path and not go_on.is_set():
            at_part.set()
            go_on.wait(30)
        return forward(request)

    slow, fast = behind(is_slow), behind(lambda request, forward: forward(request))
    results: list[ObjectRef] = []
    first = threading.Thread(
        target=lambda: results.append(slow.with_write_ids(NumberedWriteIds("task"), 0).write(io.BytesIO(BIG), ref))
    )
    first.start()
    assert at_part.wait(30)
    second = fast.with_write_ids(NumberedWriteIds("task"), 0).write(io.BytesIO(BIG), ref)
    go_on.set()
    first.join(30)

    assert results == [second]
    assert fast.read(second) == BIG
    assert uploads_left(store, ref.bucket) == []


def test_a_readers_record_of_an_unfinished_upload_is_that_uploads(
    client: ConsistentS3, ref: ObjectRef, ledger: Ledger, store: Store
) -> None:
    """The writer was killed between the completion and its commit."""
    begun = ledger.begin(ref, "task")
    assert isinstance(begun, Opened)

    class Notes:
        def begun(self, upload_id: str) -> None:
            ledger.note_upload(ref, "task", upload_id)

        def over(self, upload_id: str) -> None:
            """Killed before it could say so."""

    landed = store.upload(ref, io.BytesIO(BIG), Content(), Marker("task", begun.ticket), Condition(), Notes())
    assert isinstance(landed, Landed)
    assert client.read(ref) == BIG
    assert ledger.lookup(ref).currents[0].etag == landed.etag

    again = client.with_write_ids(NumberedWriteIds("task"), 0).write(io.BytesIO(BIG), ref)
    assert again.etag == landed.etag
    assert ledger.lookup(ref).uploads == ()


def test_a_conditional_upload_that_loses_is_a_conflict_and_leaves_no_parts(
    client: ConsistentS3, ref: ObjectRef, store: Store
) -> None:
    client.write(b"there", ref)
    with pytest.raises(WriteConflict):
        client.write(io.BytesIO(BIG), ref, if_none_match=True)
    assert uploads_left(store, ref.bucket) == []
    assert client.read(ref) == b"there"


def test_an_upload_may_ask_for_the_etag_it_replaces_where_the_endpoint_honours_that(
    behind: Any, ref: ObjectRef, store: Store
) -> None:
    def honours_if_match_of_completions(request: Request, forward: Forward) -> Response:
        wanted = next((value for name, value in request.headers.items() if name.lower() == "if-match"), None)
        if completes(request) and wanted is not None:
            signed = {name: value for name, value in request.headers.items() if name.lower() == "authorization"}
            there = forward(Request("HEAD", request.path.partition("?")[0], signed, b""))
            if there.header("etag") != wanted:
                return refusal(412, "PreconditionFailed")
        return forward(request)

    client = behind(honours_if_match_of_completions)
    written = client.write(b"there", ref)
    with pytest.raises(WriteConflict):
        client.write(io.BytesIO(BIG), ref, if_match="0" * 32)
    assert uploads_left(store, ref.bucket) == []
    assert client.read(client.write(io.BytesIO(BIG), ref, if_match=written.etag)) == BIG


def test_a_condition_that_the_endpoint_ignores_is_refused_before_anything_is_sent(client: ConsistentS3, ref: ObjectRef) -> None:
    """moto completes an upload whatever its If-Match says."""
    written = client.write(b"there", ref)
    with pytest.raises(StoreError, match="ignores if_match of a write in parts"):
        client.write(io.BytesIO(BIG), ref, if_match=written.etag)
    assert client.read(ref) == b"there"


# --- downloads ---


def test_a_large_object_is_downloaded_whole(client: ConsistentS3, ref: ObjectRef, tmp_path: Path) -> None:
    written = client.write(io.BytesIO(BIG), ref)
    told: list[tuple[int, int | None]] = []
    target = tmp_path / "out"

    assert client.download(written, target, progress=lambda done, total: told.append((done, total))) == str(target)

    assert target.read_bytes() == BIG
    assert told[-1] == (len(BIG), len(BIG))
    assert os.listdir(tmp_path) == ["out"]


@pytest.mark.parametrize("body", [b"", b"small"])
def test_a_small_or_empty_object_is_downloaded_too(client: ConsistentS3, ref: ObjectRef, tmp_path: Path, body: bytes) -> None:
    client.download(client.write(body, ref), tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == body


def test_every_range_of_a_download_is_pinned_to_the_verified_etag(behind: Any, ref: ObjectRef, tmp_path: Path) -> None:
    pins: list[tuple[str | None, str | None]] = []

    def notes_pins(request: Request, forward: Forward) -> Response:
        if request.method == "GET":
            headers = {name.lower(): value for name, value in request.headers.items()}
            pins.append((headers.get("if-match"), headers.get("range")))
        return forward(request)

    client = behind(notes_pins)
    written = client.write(io.BytesIO(BIG), ref)
    client.download(ref, tmp_path / "out")

    assert len(pins) == 3
    assert {pin for pin, _ in pins} == {f'"{written.etag}"'}
    assert all(ranged for _, ranged in pins)


@pytest.mark.parametrize("if_match_ignored", [False, True])
def test_an_object_replaced_while_it_is_downloaded_is_never_mixed(
    settings: Settings, connect: Connect, client: ConsistentS3, ref: ObjectRef, tmp_path: Path, if_match_ignored: bool
) -> None:
    written = client.write(io.BytesIO(BIG), ref)
    replaced = threading.Event()

    def replaces(request: Request, forward: Forward) -> Response:
        if request.method == "GET" and not replaced.is_set():
            replaced.set()
            client.write(io.BytesIO(OTHER), ref)
        return forward(request.without("if-match") if if_match_ignored else request)

    (tmp_path / "out").write_bytes(b"what was there")
    with proxied(str(settings.endpoint_url), replaces) as proxy:
        downloading = connect(settings.replace(endpoint_url=proxy.url))
        with pytest.raises(StaleRead):
            downloading.download(written, tmp_path / "out")
        assert (tmp_path / "out").read_bytes() == b"what was there"
        assert os.listdir(tmp_path) == ["out"]
        with pytest.raises(Superseded):
            downloading.download(written, tmp_path / "out", wait=5)
        downloading.download(written, tmp_path / "out", latest=True)
    assert (tmp_path / "out").read_bytes() == OTHER


def test_a_download_from_a_replica_waits_for_what_was_promised(
    settings: Settings, sandbox: Sandbox, connect: Connect, ref: ObjectRef, tmp_path: Path
) -> None:
    client = connect(settings.replace(read_endpoint_url=sandbox.read_endpoint_url))
    sandbox.pause_replication()
    try:
        written = client.write(io.BytesIO(BIG), ref)
        with pytest.raises(NotYetVisible):
            client.download(written, tmp_path / "out")
        assert os.listdir(tmp_path) == []
    finally:
        sandbox.resume_replication()
    client.download(written, tmp_path / "out", wait=20)
    assert (tmp_path / "out").read_bytes() == BIG


def test_ranges_that_break_off_are_fetched_again(behind: Any, ref: ObjectRef, tmp_path: Path) -> None:
    breaking = iter([True, True])

    def breaks_off(request: Request, forward: Forward) -> Response:
        response = forward(request)
        if request.method == "GET" and next(breaking, False):
            response.cut_at = 100_000
        return response

    client = behind(breaks_off)
    client.write(io.BytesIO(BIG), ref)
    client.download(ref, tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == BIG


def test_bytes_that_do_not_have_the_objects_checksum_are_never_shown(behind: Any, ref: ObjectRef, tmp_path: Path) -> None:
    def flips_a_bit(request: Request, forward: Forward) -> Response:
        response = forward(request)
        if request.method == "HEAD" and response.status == 200:
            crc = b64encode(zlib.crc32(BIG).to_bytes(4, "big")).decode()
            response = response.with_header("x-amz-checksum-crc32", crc).with_header("x-amz-checksum-type", "FULL_OBJECT")
        if request.method == "GET":
            clean = {name: value for name, value in response.headers.items() if "checksum" not in name.lower()}
            response = Response(response.status, clean, bytes([response.body[0] ^ 1]) + response.body[1:])
        return response

    client = behind(flips_a_bit)
    client.write(io.BytesIO(BIG), ref)
    with pytest.raises(StoreUnavailable, match="CRC32"):
        client.download(ref, tmp_path / "out")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("name", "value", "kind"),
    [
        ("x-amz-checksum-crc64nvme", "AAAAAAAAAAA=", "FULL_OBJECT"),
        ("x-amz-checksum-crc32c", "AAAAAA==", "FULL_OBJECT"),
        ("x-amz-checksum-crc32", "AAAAAA==-3", "COMPOSITE"),
        ("x-amz-checksum-sha256", "AAAAAA==-3", None),
    ],
)
def test_a_checksum_that_cannot_be_checked_is_named_in_the_log_and_does_no_harm(
    behind: Any, ref: ObjectRef, tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, value: str, kind: str | None
) -> None:
    """CRC-64/NVME is what AWS gives of its own accord; what was uploaded in parts may have a checksum of the parts' checksums."""

    def gives_it(request: Request, forward: Forward) -> Response:
        response = forward(request)
        if request.method in ("HEAD", "GET") and response.status < 300:
            plain = {given: said for given, said in response.headers.items() if "checksum" not in given.lower()}
            response = Response(response.status, plain, response.body).with_header(name, value)
            response = response.with_header("x-amz-checksum-type", kind) if kind else response
        return response

    client = behind(gives_it)
    client.write(io.BytesIO(BIG), ref)
    caplog.set_level("INFO", logger="s3tasks")
    client.download(ref, tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == BIG
    assert client.read(ref) == BIG
    assert f"({name.rpartition('-')[2].upper()})" in caplog.text


def test_a_full_disk_leaves_nothing_and_keeps_what_was_there(client: ConsistentS3, ref: ObjectRef, tmp_path: Path) -> None:
    """A limit for files that the system itself sets: it, too, comes in the middle of the write."""
    client.write(io.BytesIO(BIG), ref)
    (tmp_path / "out").write_bytes(b"what was there")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (6 * MIB, hard))
    try:
        with pytest.raises(LocalFileError, match="too large"):
            client.download(ref, tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (tmp_path / "out").read_bytes() == b"what was there"
    assert os.listdir(tmp_path) == ["out"]


def test_a_directory_that_may_not_be_written_is_one_clear_error(client: ConsistentS3, ref: ObjectRef, tmp_path: Path) -> None:
    client.write(b"x", ref)
    place = tmp_path / "closed"
    place.mkdir(mode=0o500)
    if os.geteuid() == 0:
        # The superuser may write anywhere but where the kernel itself keeps the files.
        place = Path("/sys" if Path("/sys/kernel").exists() else "/dev/fd")
    with pytest.raises(LocalFileError, match=str(place)):
        client.download(ref, place / "out")


def test_a_download_that_cannot_be_written_leaves_nothing(client: ConsistentS3, ref: ObjectRef, tmp_path: Path) -> None:
    client.write(io.BytesIO(BIG), ref)
    with pytest.raises(LocalFileError, match="no such file or directory"):
        client.download(ref, tmp_path / "missing" / "out")
    (tmp_path / "directory").mkdir()
    with pytest.raises(LocalFileError, match="directory"):
        client.download(ref, tmp_path / "directory")


# --- streams ---


def test_a_stream_can_be_read_sought_and_closed(client: ConsistentS3, ref: ObjectRef) -> None:
    client.write(io.BytesIO(BIG), ref)
    with client.open(ref) as stream:
        assert (stream.readable(), stream.seekable(), stream.writable()) == (True, True, False)
        assert stream.read(10) == BIG[:10]
        assert stream.seek(-17, io.SEEK_END) == len(BIG) - 17
        assert stream.read() == BIG[-17:]
        assert stream.read() == b""
        stream.seek(3)
        assert stream.read(2_000_000) == BIG[3:2_000_003]
        assert stream.tell() == 2_000_003
        stream.seek(len(BIG) + 5)
        assert stream.read(1) == b""
        with pytest.raises(ValueError, match="seek"):
            stream.seek(-1)
    with pytest.raises(ValueError, match="closed"):
        stream.read(1)


def test_seeks_and_reads_at_random_give_what_a_file_gives(client: ConsistentS3, ref: ObjectRef) -> None:
    client.write(io.BytesIO(BIG), ref)
    chance, twin = random.Random(3), io.BytesIO(BIG)
    with client.open(ref) as stream:
        for _ in range(60):
            if chance.random() < 0.5:
                place = chance.randrange(len(BIG) + 10)
                assert stream.seek(place) == twin.seek(place)
            size = chance.choice([1, 100, 70_000, 600_000])
            assert stream.read(size) == twin.read(size)


def test_a_broken_stream_goes_on_where_it_broke_on_the_same_etag(behind: Any, ref: ObjectRef) -> None:
    breaking = iter([True, True])
    asked: list[str | None] = []

    def breaks_off(request: Request, forward: Forward) -> Response:
        response = forward(request)
        if request.method == "GET":
            asked.append(request.headers.get("Range"))
            if next(breaking, False):
                response.cut_at = 1_000_000
        return response

    client = behind(breaks_off)
    client.write(io.BytesIO(BIG), ref)
    with client.open(ref) as stream:
        assert stream.read() == BIG
    assert asked[0] is None
    assert len(asked) == 3
    assert all(again and not again.startswith("bytes=0-") for again in asked[1:])


@pytest.mark.parametrize("if_match_ignored", [False, True])
def test_a_stream_never_mixes_two_versions(
    settings: Settings, connect: Connect, client: ConsistentS3, ref: ObjectRef, if_match_ignored: bool
) -> None:
    client.write(io.BytesIO(BIG), ref)

    def ignores(request: Request, forward: Forward) -> Response:
        return forward(request.without("if-match") if if_match_ignored else request)

    with proxied(str(settings.endpoint_url), ignores) as proxy:
        reading = connect(settings.replace(endpoint_url=proxy.url))
        for wanted in (ref, client.head(ref) and ref):
            with reading.open(wanted) as stream:
                assert stream.read(100) == BIG[:100]
                client.write(io.BytesIO(OTHER), ref)
                stream.seek(PART_BYTES)
                with pytest.raises(Superseded):
                    stream.read(100)
            client.write(io.BytesIO(BIG), ref)


def test_in_a_versioned_bucket_a_stream_goes_on_with_its_version(client: ConsistentS3, sandbox: Sandbox) -> None:
    sandbox.create_bucket("versioned-streams", versioned=True)
    ref = ObjectRef("versioned-streams", "key")
    client.write(io.BytesIO(BIG), ref)
    with client.open(ref) as stream:
        assert stream.read(100) == BIG[:100]
        client.write(io.BytesIO(OTHER), ref)
        stream.seek(PART_BYTES)
        assert stream.read() == BIG[PART_BYTES:]


def test_a_stream_of_what_is_missing_is_refused_at_once(client: ConsistentS3, ref: ObjectRef) -> None:
    with pytest.raises(NoSuchKey):
        client.open(ref)


def test_an_empty_object_is_an_empty_stream(client: ConsistentS3, ref: ObjectRef) -> None:
    client.write(b"", ref)
    with client.open(ref) as stream:
        assert stream.read() == b""


def test_one_objects_stream_may_be_written_as_another(client: ConsistentS3, ref: ObjectRef) -> None:
    client.write(io.BytesIO(BIG), ref)
    with client.open(ref) as stream:
        copied = client.write(stream, ObjectRef(ref.bucket, "other"))
    assert client.read(copied) == BIG
