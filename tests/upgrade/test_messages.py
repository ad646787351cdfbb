"""Messages, results and outcomes of earlier versions are taken up; what newer ones add to them is passed over."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from celery.backends.base import Backend
from kombu.utils.json import loads

from s3tasks import NoSuchKey, NotYetVisible, ObjectRef, Outcome, S3Tasks, S3TasksError, StaleRead, errors
from s3tasks.sandbox import Sandbox
from tests.unit.test_errors import CLASSES, SAMPLES, assert_same

PATIENCE_SECONDS = 120
BUCKET = "upgrade"
FOLDERS = sorted(path.parent for path in Path(__file__).parent.glob("*/messages.json"))
every_version = pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)


def kept(folder: Path, name: str) -> Any:
    return json.loads((folder / f"{name}.json").read_text())


@pytest.fixture(scope="module")
def kept_bucket(sandbox: Sandbox) -> str:
    """The bucket that the kept messages name."""
    sandbox.create_bucket(BUCKET)
    return BUCKET


@pytest.fixture
def send(s3: S3Tasks, kept_bucket: str, folder: Path) -> Callable[[str], Any]:
    """Puts a kept message into the queue of today's worker, as the broker has kept it meanwhile; the result of its task."""
    messages = kept(folder, "messages")

    def sent(task_id: str) -> Any:
        message = messages[task_id]
        message["body"] = base64.b64encode(json.dumps(message["body"]).encode()).decode()
        s3.app.backend.client.lpush("celery", json.dumps(message))
        return s3.app.AsyncResult(task_id)

    return sent


def done(result: Any) -> Any:
    return result.get(timeout=PATIENCE_SECONDS)


def retrying(result: Any) -> Any:
    """Why the task is tried again, once it is."""
    until = time.monotonic() + PATIENCE_SECONDS
    while result.state != "RETRY":
        assert time.monotonic() < until
        time.sleep(0.05)
    return result.result


@every_version
def test_messages_of_producers_are_carried_out(s3: S3Tasks, send: Callable[[str], Any]) -> None:
    written = done(send("fresh-write"))
    assert done(s3.app.AsyncResult("fresh-write-read")) == b"hell", "with the rest of their chain"
    head = s3.client.head(written, wait=PATIENCE_SECONDS)
    assert (head["content_type"], head["metadata"]) == ("text/plain", {"a": "b"})
    assert s3.client.read(done(send("fresh-text")), wait=PATIENCE_SECONDS) == "text é".encode()
    assert s3.client.read(done(send("fresh-binary")), wait=PATIENCE_SECONDS) == b"\xff\x00"
    many = [Outcome.parse(outcome) for outcome in done(send("fresh-many"))]
    assert [s3.client.read(outcome.ref, wait=PATIENCE_SECONDS) for outcome in many] == [b"1", b"2"]


@every_version
def test_messages_of_workers_that_wait_go_on_where_they_were(
    s3: S3Tasks, send: Callable[[str], Any], folder: Path, sandbox: Sandbox
) -> None:
    sandbox.drain()
    sandbox.pause_replication()
    try:
        s3.client.write(b"late", f"s3://{BUCKET}/late.txt")
        read, many = send("retried-read"), send("retried-many")
        for task_id, task in (("retried-read", read), ("retried-many", many)):
            attempts, waited_seconds = kept(folder, "messages")[task_id]["headers"]["s3tasks_waited"]
            problem = retrying(task)
            assert isinstance(problem, NotYetVisible)
            assert problem.attempts > attempts
            assert problem.waited_seconds >= waited_seconds
    finally:
        sandbox.resume_replication()
    assert done(read) == b"late"
    assert done(s3.app.AsyncResult("retried-read-write"))["size"] == 4
    missing, late = map(Outcome.parse, done(many))
    assert isinstance(missing.error, NoSuchKey), "as an earlier delivery had found"
    assert late.value == b"late"


@pytest.fixture(scope="module")
def backend() -> Backend:
    return Backend(app=Celery("upgrade", set_as_current=False))


@every_version
def test_errors_are_rebuilt_from_what_the_result_backend_kept(folder: Path, backend: Backend) -> None:
    for name, told in kept(folder, "results")["errors"].items():
        found = backend.exception_to_python(told["stored"])
        assert type(found) is getattr(errors, name)
        assert {name: getattr(found, name) for name in told["fields"]} == told["fields"]


@every_version
def test_outcomes_are_what_they_were(folder: Path) -> None:
    outcomes = loads(json.dumps(kept(folder, "results")["outcomes"]))  # type: ignore[no-untyped-call]
    written, read, failed = map(Outcome.parse, outcomes)
    assert written.ref == ObjectRef(BUCKET, "k", "e", "v", 7, 5, deleted=True)
    assert read.value == b"bytes"
    assert_same(failed.error, StaleRead(BUCKET, "k", "e", "f", 3, 1.5))


# --- newer versions ---


@pytest.mark.parametrize("kind", [kind for kind in CLASSES if kind not in (S3TasksError, errors.RetryableError)])
def test_an_error_with_more_fields_than_are_known_here_keeps_its_class(kind: type[S3TasksError], backend: Backend) -> None:
    known = kind(*SAMPLES[kind.__name__][0])
    told = {"exc_type": kind.__name__, "exc_module": kind.__module__, "exc_message": [*known.args, "something new", {"a": 1}]}

    assert_same(backend.exception_to_python(told), known)
    outcome = {"ref": {"bucket": "b", "key": "k"}, "error": {"type": kind.__name__, "args": told["exc_message"], "text": "…"}}
    assert_same(Outcome.parse(outcome).error, known)


def test_an_error_that_is_not_known_here_keeps_its_words() -> None:
    outcome = Outcome.parse({"ref": {"bucket": "b", "key": "k"}, "error": {"type": "Melted", "args": ["b"], "text": "it melted"}})
    assert type(outcome.error) is S3TasksError
    assert "it melted" in str(outcome.error)


def test_what_is_not_known_here_in_refs_and_outcomes_is_passed_over() -> None:
    ref = {"bucket": "b", "key": "k", "etag": "e", "checksum": {"sha256": "…"}, "region": "eu"}
    assert ObjectRef.parse(ref) == ObjectRef("b", "k", "e")
    assert Outcome.parse({"ref": ref, "value": 1, "took": 0.3, "replica": None}) == Outcome(ObjectRef("b", "k", "e"), 1)


def test_fields_and_headers_of_newer_messages_are_passed_over(s3: S3Tasks, bucket: str) -> None:
    ref = {"bucket": bucket, "key": "k", "checksum": "…"}
    headers = {"s3tasks_waited": {"attempts": 3, "lag": 1.5}, "s3tasks_later": [1, {"a": 2}]}
    written = done(s3.write.apply_async((b"new", ref), headers=headers))
    assert done(s3.read.apply_async(({**written, "tier": "cold"},), headers=headers)) == b"new"
    many = done(s3.read_many.apply_async(([{"ref": {**written, "tier": "cold"}, "took": 1}],), headers=headers))
    assert many[0]["value"] == b"new"


def test_a_message_with_an_argument_that_is_not_known_here_does_nothing(s3: S3Tasks, bucket: str) -> None:
    """Half of what was meant is not done: upgrade workers before producers use what is new."""
    message = s3.app.signature("s3tasks.write", (b"x", f"s3://{bucket}/k"), {"compress": "zstd"})
    with pytest.raises(TypeError, match="compress"):
        done(message.delay())
    with pytest.raises(NoSuchKey):
        s3.client.read(f"s3://{bucket}/k")
