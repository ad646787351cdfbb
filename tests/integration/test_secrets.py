"""A key of one's own (SSE-C) encrypts what is written, and is to be seen nowhere but in the requests to S3."""

from __future__ import annotations

import base64
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import redis
from celery import chain
from celery.events import EventReceiver

from s3tasks import S3Tasks, Settings, StoreError
from s3tasks.sandbox import Sandbox, WorkerProcess
from tests.conftest import REPOSITORY
from tests.s3_proxy import Forward, Request, Response, proxied, refusal

PATIENCE_SECONDS = 60
KEY = b"a key of 32 bytes, quite secret!"
SECRETS = (base64.b64encode(KEY), KEY)


@dataclass
class Stage:
    worker: WorkerProcess
    queue: str
    root: Path
    sent: list[str] = field(default_factory=list)


@pytest.fixture(scope="module")
def stage(sandbox: Sandbox, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """A worker that logs all there is to log and sends all events; S3 as it answers for keys of one's own."""
    queue, root, sent = f"secrets-{uuid.uuid4().hex[:8]}", tmp_path_factory.mktemp("root"), []

    def notes(request: Request, forward: Forward) -> Response:
        headers = {name.lower(): value for name, value in request.headers.items()}
        sent.append(headers.get("x-amz-server-side-encryption-customer-key", ""))
        return refusal(403, "AccessDenied") if "forbidden" in request.path else forward(request)

    with proxied(sandbox.endpoint_url, notes) as proxy:
        worker = sandbox.start_worker(
            "tests.integration.app", directory=REPOSITORY, options=["--loglevel", "DEBUG", "-E"],
            environment={
                "TEST_QUEUE": queue,
                "S3TASKS_FILE_ROOT": str(root),
                "S3TASKS_ENDPOINT_URL": proxy.url,
                "S3TASKS_READ_ENDPOINT_URL": proxy.url,
                "S3TASKS_SSE_CUSTOMER_KEY": SECRETS[0].decode(),
            },
        )
        yield Stage(worker, queue, root, sent)
        worker.stop()


@contextmanager
def events_of(s3: S3Tasks) -> Iterator[list[str]]:
    """Celery's events while the block runs."""
    seen: list[str] = []
    with s3.app.connection_for_read() as connection:
        receiver = EventReceiver(connection, handlers={"*": lambda event: seen.append(repr(event))}, app=s3.app)
        listening = threading.Thread(target=lambda: receiver.capture(timeout=PATIENCE_SECONDS), daemon=True)
        listening.start()
        with s3.app.events.default_dispatcher() as dispatcher:
            wait_for(lambda: (dispatcher.send("sandbox-listening"), bool(seen))[-1])
        yield seen
        receiver.should_stop = True
        listening.join(PATIENCE_SECONDS)


def wait_for(there: Callable[[], bool]) -> None:
    until = time.monotonic() + PATIENCE_SECONDS
    while not there():
        assert time.monotonic() < until
        time.sleep(0.02)


def everything_in(url: str) -> bytes:
    """All that Redis holds, as bytes."""
    with redis.Redis.from_url(url) as server:
        return b"\n".join(key + b" " + (server.dump(key) or b"") for key in server.scan_iter(count=1000))


def test_a_key_of_ones_own_is_seen_in_no_log_message_result_event_or_error(
    s3: S3Tasks, sandbox: Sandbox, bucket: str, stage: Stage
) -> None:
    (stage.root / "in").write_bytes(os.urandom(11 * 1024 * 1024))

    def on(task: Any, *args: Any, **kwargs: Any) -> Any:
        return task.s(*args, **kwargs).set(queue=stage.queue)

    with events_of(s3) as events:
        work = chain(on(s3.write, b"x", f"s3://{bucket}/a"), on(s3.read))
        assert work.delay().get(timeout=PATIENCE_SECONDS) == b"x"
        for signature in (
            on(s3.upload, "in", f"s3://{bucket}/big"),
            on(s3.download, f"s3://{bucket}/big", "out"),
            on(s3.write_many, [(b"x", f"s3://{bucket}/{number}") for number in range(3)]),
        ):
            signature.delay().get(timeout=PATIENCE_SECONDS)
        with pytest.raises(StoreError, match="403") as caught:
            on(s3.write, b"x", f"s3://{bucket}/forbidden").delay().get(timeout=PATIENCE_SECONDS)
        wait_for(lambda: any("task-failed" in event for event in events))

    log = stage.worker.log_path.read_bytes()
    assert stage.sent.count(SECRETS[0].decode()) > 8
    assert b"Making request" in log
    places = {
        "log": log,
        "redis": everything_in(sandbox.redis_url),
        "events": "".join(events).encode(),
        "error": repr((caught.value, caught.value.args, caught.value.__cause__)).encode(),
    }
    shown = {name for name, content in places.items() for secret in SECRETS if secret in content}
    assert shown == set()


def test_settings_that_are_wrong_do_not_show_it_either() -> None:
    for wrong in ({"sse_customer_key": SECRETS[0].decode() + "="}, {"sse_customer_key": KEY}):
        with pytest.raises(ValueError, match="sse_customer_key") as caught:
            Settings(**wrong)
        assert "secret" not in str(caught.value)
        assert SECRETS[0].decode() not in str(caught.value)
