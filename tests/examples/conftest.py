"""The web applications of the examples, each in a process of its own on a loopback port, with a real worker for their tasks."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from s3tasks.sandbox import Sandbox, WorkerProcess
from s3tasks.sandbox.redis_server import free_loopback_port
from tests.conftest import REPOSITORY

MODULE = [sys.executable, "-m"]
COMMANDS: dict[str, Callable[[int], list[str]]] = {
    "fastapi": lambda port: [*MODULE, "uvicorn", "tests.examples.fastapi_app:app", "--port", str(port)],
    "flask": lambda port: [*MODULE, "flask", "--app", "tests.examples.flask_app", "run", "--port", str(port)],
    "django": lambda port: [*MODULE, "tests.examples.django_app", "runserver", "--noreload", f"127.0.0.1:{port}"],
}
MAX_UPLOAD_BYTES = 100_000_000
PATIENCE_SECONDS = 120


@dataclass(frozen=True)
class Web:
    """A running web application, and a client of it that gives up rather than wait for ever."""

    http: httpx.Client
    pid: int

    def upload(self, body: bytes, name: str = "a.txt") -> httpx.Response:
        return self.http.post("/files", files={"file": (name, body)})

    def state(self, task_id: str) -> dict[str, object]:
        answered = self.http.get(f"/tasks/{task_id}")
        assert answered.status_code == 200, answered.text
        return dict(answered.json())

    def finished(self, task_id: str) -> dict[str, object]:
        waiting_until = time.monotonic() + PATIENCE_SECONDS
        while (told := self.state(task_id))["state"] not in ("SUCCESS", "FAILURE"):
            assert time.monotonic() < waiting_until, told
            time.sleep(0.05)
        return told

    def most_memory_bytes(self) -> int:
        peak = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{self.pid}/status").read_text())
        assert peak is not None
        return int(peak[1]) * 1024


@pytest.fixture(scope="module")
def environment(sandbox: Sandbox, buckets: Iterator[str]) -> dict[str, str]:
    """A database of its own for the queue: the other tests' worker knows none of these tasks."""
    url = f"{sandbox.redis_url.removesuffix('/0')}/7"
    return {
        **sandbox.environment(), "CELERY_BROKER_URL": url, "CELERY_RESULT_BACKEND": url, "UPLOADS_BUCKET": next(buckets),
        "MAX_UPLOAD_BYTES": str(MAX_UPLOAD_BYTES),
    }


@pytest.fixture(scope="module")
def shop_worker(sandbox: Sandbox, environment: dict[str, str]) -> Iterator[WorkerProcess]:
    worker = sandbox.start_worker("tests.examples.shop", directory=REPOSITORY, environment=environment)
    yield worker
    worker.stop()


@pytest.fixture(scope="module")
def serve(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str, dict[str, str]], Web]]:
    """Starts web applications; they end with the module."""
    started: list[tuple[subprocess.Popen[bytes], httpx.Client]] = []

    def start(framework: str, environment: dict[str, str]) -> Web:
        port = free_loopback_port()
        log = (tmp_path_factory.mktemp("web") / "log").open("w+b")
        given = {**os.environ, **environment, "PYTHONPATH": str(REPOSITORY)}
        process = subprocess.Popen(COMMANDS[framework](port), cwd=REPOSITORY, env=given, stdout=log, stderr=log)
        http = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=PATIENCE_SECONDS, trust_env=False)
        started.append((process, http))
        log.close()
        waiting_until = time.monotonic() + PATIENCE_SECONDS
        while not _answers(http):
            assert process.poll() is None, Path(log.name).read_text()
            assert time.monotonic() < waiting_until, Path(log.name).read_text()
            time.sleep(0.05)
        return Web(http, process.pid)

    yield start
    for process, http in started:
        http.close()
        process.terminate()
        process.wait(PATIENCE_SECONDS)


def _answers(http: httpx.Client) -> bool:
    try:
        http.get("/nothing-here")
    except httpx.TransportError:
        return False
    return True


@pytest.fixture(scope="module")
def running(
    serve: Callable[[str, dict[str, str]], Web], environment: dict[str, str], shop_worker: WorkerProcess
) -> Callable[[str], Web]:
    """One application per framework, with the worker."""
    known: dict[str, Web] = {}

    def get(framework: str) -> Web:
        if framework not in known:
            known[framework] = serve(framework, environment)
        return known[framework]

    return get
