"""What Celery's own events say of the s3 tasks, and so Flower and whoever else listens: names, refs, reasons; no bodies."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest
from celery import chain

from s3tasks import S3Tasks
from s3tasks.sandbox import Sandbox, WorkerProcess
from tests.conftest import REPOSITORY

BODY = "a body that nobody else is to see"
QUEUE = "seen-by-flower"


@pytest.fixture
def seen(s3: S3Tasks) -> Iterator[list[dict[str, Any]]]:
    """The events of all tasks while the test goes on."""
    came: list[dict[str, Any]] = []
    listening = threading.Event()
    with s3.app.connection_for_read() as connection:
        receiver = s3.app.events.Receiver(connection, handlers={"*": came.append})
        receiver.on_consume_ready = lambda *_args, **_kwargs: listening.set()
        thread = threading.Thread(target=lambda: receiver.capture(limit=None, timeout=None, wakeup=False), daemon=True)
        thread.start()
        assert listening.wait(20)
        yield came
        receiver.should_stop = True
        thread.join(20)


@pytest.fixture
def watched(sandbox: Sandbox) -> Iterator[WorkerProcess]:
    """A worker that sends events, and says all that it would say to somebody who looks for an error."""
    worker = sandbox.start_worker(
        "tests.integration.app", directory=REPOSITORY, environment={"TEST_QUEUE": QUEUE}, options=["-E", "-Q", QUEUE]
    )
    yield worker
    worker.stop()


def test_events_name_the_objects_and_the_reasons_and_show_no_body(
    s3: S3Tasks, sandbox: Sandbox, watched: WorkerProcess, bucket: str, seen: list[dict[str, Any]]
) -> None:
    s3.app.conf.task_default_queue = QUEUE
    s3.app.conf.task_send_sent_event = True
    ref = f"s3://{bucket}/17.txt"
    sandbox.pause_replication()
    try:
        steps = chain(s3.write.s(BODY, ref), s3.read.s()).delay()
        retried = _wait_for(seen, "task-retried", steps.id)
    finally:
        sandbox.drain()
        sandbox.resume_replication()
    assert steps.get(timeout=60) == BODY.encode()
    _wait_for(seen, "task-succeeded", steps.id)

    received = {event["uuid"]: event for event in seen if event["type"] == "task-received"}
    write, read = received[steps.parent.id], received[steps.id]
    assert (write["name"], write["args"], write["kwargs"]) == ("s3tasks.write", f"(<{len(BODY)} characters>, '{ref}')", "{}")
    assert (read["name"], read["args"]) == ("s3tasks.read", f"('{ref}',)")
    sent = [event["args"] for event in seen if event["type"] == "task-sent" and event["uuid"] == steps.parent.id]
    assert sent == [write["args"]]
    assert retried["exception"].startswith(f"NotYetVisible('{bucket}', '17.txt'")
    assert BODY not in str(seen)
    assert BODY not in watched.log()
    # The lines of the log say for which task, and which time, a read looked.
    looked = [line for line in watched.log().splitlines() if "nothing is served yet" in line]
    assert all(f"task_id={steps.id}" in line for line in looked)
    attempts = [int(line.rsplit("attempt=", 1)[1].rstrip(")")) for line in looked]
    assert attempts == sorted(attempts)
    assert attempts[0] == 1


def _wait_for(seen: list[dict[str, Any]], kind: str, task_id: str, seconds: float = 30.0) -> dict[str, Any]:
    came = threading.Event()
    for _ in range(int(seconds / 0.05)):
        for event in list(seen):
            if event["type"] == kind and event["uuid"] == task_id:
                return event
        came.wait(0.05)
    raise AssertionError(f"no {kind} among {seen}")
