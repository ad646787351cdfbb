"""The tasks for files, copies and many objects, in a real prefork worker, reading from a replica that lags."""

from __future__ import annotations

import os
import threading
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from celery import chain, group

from s3tasks import (
    LocalFileError,
    NoSuchKey,
    NotYetVisible,
    ObjectDeleted,
    ObjectRef,
    Outcome,
    PayloadTooLarge,
    S3Tasks,
    S3TasksError,
    StoreUnavailable,
)
from s3tasks.sandbox import Sandbox, WorkerProcess
from tests.conftest import REPOSITORY
from tests.s3_proxy import Forward, Request, Response, proxied, refusal

PATIENCE_SECONDS = 120
BIG_BYTES = 11 * 1024 * 1024


def done(result: Any) -> Any:
    return result.get(timeout=PATIENCE_SECONDS)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("root")


@pytest.fixture(scope="module")
def queue(sandbox: Sandbox, root: Path) -> Iterator[str]:
    """A worker of its own, which may use files below a root."""
    name = f"files-{uuid.uuid4().hex[:8]}"
    worker: WorkerProcess = sandbox.start_worker(
        "tests.integration.app", directory=REPOSITORY, environment={"TEST_QUEUE": name, "S3TASKS_FILE_ROOT": str(root)}
    )
    yield name
    worker.stop()


def on(queue: str, task: Any, *args: Any, **kwargs: Any) -> Any:
    return task.s(*args, **kwargs).set(queue=queue)


def test_a_file_is_uploaded_and_downloaded_and_its_progress_shown(s3: S3Tasks, bucket: str, queue: str, root: Path) -> None:
    body = os.urandom(BIG_BYTES)
    (root / "in").write_bytes(body)
    upload = on(queue, s3.upload, "in", f"s3://{bucket}/big", content_type="x/y").delay()
    states = watched(upload)
    written = done(upload)
    assert written["size"] == BIG_BYTES

    download = on(queue, s3.download, written, "out").delay()
    states += watched(download)

    assert done(download) == "out"
    assert (root / "out").read_bytes() == body
    assert sorted(os.listdir(root)) == ["in", "out"]
    progress = [info for state, info in states if state == "PROGRESS"]
    assert progress
    assert all(0 <= info["bytes_done"] <= info["bytes_total"] == BIG_BYTES for info in progress)


def watched(result: Any) -> list[tuple[str, Any]]:
    seen = []
    until = time.monotonic() + PATIENCE_SECONDS
    while not result.ready() and time.monotonic() < until:
        said = result._get_task_meta()
        seen.append((said["status"], said["result"]))
        time.sleep(0.002)
    return seen


@pytest.mark.parametrize(
    "path", ["../outside", "/etc/passwd", "a/../../x", "", ".", "nul\0", "missing", "link", "directory", "fifo", "link/x"]
)
@pytest.mark.parametrize("verb", ["upload", "download"])
def test_a_path_that_leads_outside_or_to_no_file_is_one_clear_error(
    s3: S3Tasks, bucket: str, queue: str, root: Path, path: str, verb: str
) -> None:
    if not (root / "link").is_symlink():
        (root / "link").symlink_to("/etc")
        (root / "directory").mkdir()
        os.mkfifo(root / "fifo")
    if (verb, path) == ("download", "missing"):
        path = "missing/directory"
    if verb == "download":
        s3.client.write(b"x", f"s3://{bucket}/k")
        task = on(queue, s3.download, f"s3://{bucket}/k", path)
    else:
        task = on(queue, s3.upload, path, f"s3://{bucket}/k")
    with pytest.raises(LocalFileError):
        done(task.delay())


def test_without_a_file_root_files_are_off_and_the_error_says_how_to_turn_them_on(s3: S3Tasks, bucket: str) -> None:
    with pytest.raises(LocalFileError, match="S3TASKS_FILE_ROOT"):
        done(s3.upload.delay("in", f"s3://{bucket}/k"))
    with pytest.raises(LocalFileError, match="S3TASKS_FILE_ROOT"):
        done(s3.download.delay(f"s3://{bucket}/k", "out"))


def test_copies_chain_like_writes(s3: S3Tasks, bucket: str) -> None:
    work = chain(
        s3.write.s(b"x", f"s3://{bucket}/a"), s3.copy.s(f"s3://{bucket}/b"), s3.copy.s(f"s3://{bucket}/c", content_type="t/x"),
        s3.wait_visible.s(), s3.read.s(),
    )
    assert done(work.delay()) == b"x"


def test_many_are_written_and_read_back_in_a_chain_though_the_replica_lags(s3: S3Tasks, bucket: str) -> None:
    items = [(f"body {number}", f"s3://{bucket}/{number}") for number in range(40)]
    outcomes = done(chain(s3.write_many.s(items), s3.read_many.s()).delay())
    assert [outcome["value"] for outcome in outcomes] == [body.encode() for body, _ in items]
    heads = done(s3.head_many.delay([uri for _, uri in items]))
    assert [Outcome.parse(head).value["size"] for head in heads] == [len(body) for body, _ in items]
    gone = done(s3.delete_many.delay([uri for _, uri in items]))
    assert all(outcome["ref"]["deleted"] for outcome in gone)


def test_only_the_late_ones_of_many_are_read_again(s3: S3Tasks, bucket: str, sandbox: Sandbox) -> None:
    uris = [f"s3://{bucket}/{number}" for number in range(20)]
    s3.client.write_many([(b"old", uri) for uri in uris])
    sandbox.drain()
    sandbox.pause_replication()
    try:
        s3.client.write(b"new", uris[3])
        reading = s3.read_many.delay([*uris, f"s3://{bucket}/missing"])
        until = time.monotonic() + PATIENCE_SECONDS
        while reading.state != "RETRY":
            assert time.monotonic() < until
            time.sleep(0.02)
        assert "stale" in str(reading.result)
    finally:
        sandbox.resume_replication()
    *found, missing = done(reading)
    assert [outcome["value"] for outcome in found] == [b"new" if number == 3 else b"old" for number in range(20)]
    assert isinstance(Outcome.parse(missing).error, NoSuchKey)


def test_of_a_thousand_only_the_late_one_is_asked_for_again(s3: S3Tasks, bucket: str, sandbox: Sandbox) -> None:
    """Counted where they arrive."""
    name, asked, hiding = f"counted-{uuid.uuid4().hex[:8]}", Counter[str](), threading.Event()

    def notes(request: Request, forward: Forward) -> Response:
        if request.method == "GET":
            asked[request.path] += 1
            if request.path.endswith("/500") and not hiding.is_set():
                return refusal(404, "NoSuchKey")
        return forward(request)

    refs = [f"s3://{bucket}/{number}" for number in range(1000)]
    assert all(outcome.ok for outcome in s3.client.write_many([(b"x", ref) for ref in refs]))
    with proxied(sandbox.endpoint_url, notes) as proxy:
        worker = sandbox.start_worker(
            "tests.integration.app", directory=REPOSITORY,
            environment={"TEST_QUEUE": name, "S3TASKS_READ_ENDPOINT_URL": proxy.url},
        )
        reading = on(name, s3.read_many, refs).delay()
        until = time.monotonic() + PATIENCE_SECONDS
        while asked[f"/{bucket}/500"] < 4:
            assert time.monotonic() < until
            time.sleep(0.02)
        hiding.set()
        outcomes = done(reading)
        worker.stop()
    assert [outcome["value"] for outcome in outcomes] == [b"x"] * 1000
    assert [outcome["ref"]["key"] for outcome in outcomes] == [str(number) for number in range(1000)]
    assert asked.pop(f"/{bucket}/500") > 4
    assert set(asked.values()) == {1}
    assert len(asked) == 999


def test_what_failed_in_an_earlier_step_is_not_waited_for(s3: S3Tasks, bucket: str) -> None:
    """Its error might have passed then; nobody tries it again, so there is nothing to wait for."""
    s3.client.write(b"x", f"s3://{bucket}/fine")
    failed = Outcome(ObjectRef(bucket, "failed"), error=StoreUnavailable("PutObject", bucket, "failed", "away", 503, 4, 20.0))
    for task in (s3.read_many, s3.head_many, s3.delete_many):
        sent = task.delay([failed.to_dict(), f"s3://{bucket}/fine"])
        before, fine = done(sent)
        assert before["error"] == failed.to_dict()["error"]
        assert "error" not in fine
        assert not sent._get_task_meta().get("retries")


@pytest.mark.parametrize(
    "said",
    [
        {"type": "StaleRead", "args": ["b", "k", None, None, "many", "x"]},
        {"type": "OverlappingWrite", "args": ["b", "k", "long"]},
        {"type": "RetryableError", "args": []},
        {"type": "PayloadTooLarge", "args": [1]},
        {"type": "__builtins__", "args": []},
        {"type": ["x"], "args": 5},
        "x",
    ],
    ids=str,
)
def test_outcomes_that_nobody_could_have_made_are_told_as_errors(s3: S3Tasks, bucket: str, said: Any) -> None:
    outcome, = done(s3.read_many.delay([{"ref": f"s3://{bucket}/k", "error": said}]))
    assert isinstance(Outcome.parse(outcome).error, S3TasksError)


@pytest.mark.parametrize("forged", [[5], ["x", "y"], [{"ref": "no ref"}], [{"ref": "s3://b/k"}] * 3], ids=str)
def test_a_done_that_nobody_could_have_made_is_refused(s3: S3Tasks, bucket: str, forged: Any) -> None:
    with pytest.raises((S3TasksError, ValueError)):
        done(s3.read_many.delay([f"s3://{bucket}/k"], done=forged))


def test_when_the_deadline_is_over_the_late_ones_keep_their_error(sandbox: Sandbox, bucket: str, s3: S3Tasks) -> None:
    name = f"short-{uuid.uuid4().hex[:8]}"
    worker = sandbox.start_worker(
        "tests.integration.app", directory=REPOSITORY,
        environment={"TEST_QUEUE": name, "TEST_CONSISTENCY_DEADLINE_SECONDS": "4"},
    )
    sandbox.pause_replication()
    try:
        s3.client.write(b"x", f"s3://{bucket}/late")
        outcome, = done(on(name, s3.read_many, [f"s3://{bucket}/late"]).delay())
    finally:
        sandbox.resume_replication()
        worker.stop()
    error = Outcome.parse(outcome).error
    assert isinstance(error, NotYetVisible)
    assert error.attempts > 1
    assert error.waited_seconds >= 4


def test_what_does_not_belong_in_a_message_is_refused_at_delay(s3: S3Tasks, bucket: str) -> None:
    body = b"x" * s3.settings.max_inline_bytes
    with pytest.raises(PayloadTooLarge, match="write_many"):
        s3.write_many.delay([(body, f"s3://{bucket}/{number}") for number in range(17)])
    with pytest.raises(PayloadTooLarge):
        s3.write_many.delay([(body + b"x", f"s3://{bucket}/1")])


@pytest.mark.parametrize("verb", ["write", "write_many", "upload", "copy"])
def test_a_misspelt_option_is_one_clear_error_at_delay(s3: S3Tasks, bucket: str, verb: str) -> None:
    uri, options = f"s3://{bucket}/k", {"StorageClas": "x"}
    calls: dict[str, Any] = {
        "write": lambda: s3.write.delay(b"x", uri, put_options=options),
        "write_many": lambda: s3.write_many.delay([{"body": b"x", "ref": uri, "put_options": options}]),
        "upload": lambda: s3.upload.delay("in", uri, put_options=options),
        "copy": lambda: s3.copy.delay(uri, uri, put_options=options),
    }
    with pytest.raises(ValueError, match="did you mean StorageClass"):
        calls[verb]()
    with pytest.raises(ValueError, match="printable ASCII"):
        s3.write.delay(b"x", uri, metadata={"a": "x\ny"})
    with pytest.raises(TypeError, match="write_many takes a list"):
        s3.write_many.delay("s3://b/k")
    with pytest.raises(ValueError, match="S3TASKS_SSE_CUSTOMER_KEY"):
        s3.write.delay(b"x", uri, put_options={"SSECustomerKey": "k"})


def test_in_the_middle_of_a_chain_it_is_the_task_that_says_so(s3: S3Tasks, bucket: str) -> None:
    render = s3.app.signature("tests.render", ("x",))
    work = chain(render, s3.app.signature("s3tasks.write", (f"s3://{bucket}/k",), {"put_options": {"StorageClas": "x"}})).delay()
    with pytest.raises(ValueError, match="did you mean StorageClass"):
        done(work)


@pytest.mark.parametrize("verb", ["write", "upload", "copy"])
def test_a_chain_with_a_misspelt_option_anywhere_is_not_sent(s3: S3Tasks, bucket: str, verb: str) -> None:
    with pytest.raises(ValueError, match="did you mean StorageClass"):
        chain(s3.head.s(f"s3://{bucket}/k"), getattr(s3, verb).s(f"s3://{bucket}/k", put_options={"StorageClas": "x"})).delay()


def test_a_version_is_removed_by_a_task(s3: S3Tasks, sandbox: Sandbox) -> None:
    sandbox.create_bucket("task-versions", versioned=True)
    uri = "s3://task-versions/k"
    first = done(s3.write.delay(b"first", uri))
    second = done(s3.write.delay(b"second", uri))
    assert done(s3.read.delay(first)) == b"first"
    done(s3.delete.delay(second, this_version=True))
    # A version is read without asking the ledger, and a replica serves it until it has heard of the removal.
    sandbox.drain()
    with pytest.raises(ObjectDeleted):
        done(s3.read.delay(second))


def test_groups_of_the_new_tasks_work(s3: S3Tasks, bucket: str) -> None:
    done(group(s3.write_many.s([(b"x", f"s3://{bucket}/{number}")]) for number in range(5)).delay())
    assert len(done(group(s3.head_many.s([f"s3://{bucket}/{number}"]) for number in range(5)).delay())) == 5
