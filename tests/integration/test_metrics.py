"""The metrics of real workers, scraped over HTTP: they equal what was done, whatever became of those who did it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from celery import chain

from s3tasks import NoSuchKey, S3Tasks
from s3tasks.sandbox import Sandbox, WorkerProcess
from s3tasks.sandbox.redis_server import free_loopback_port
from tests.conftest import REPOSITORY
from tests.scraping import Scraped, scrape, scraped_until, total

Start = Callable[..., tuple[WorkerProcess, int]]


@pytest.fixture
def queue() -> str:
    return f"metrics-{uuid.uuid4().hex[:8]}"


@pytest.fixture
def start(sandbox: Sandbox, queue: str, tmp_path: Path) -> Iterator[Start]:
    """Starts workers of a queue of their own that serve metrics, each on a port of its own, and stops them."""
    workers: list[WorkerProcess] = []

    def one(app: str = "tests.integration.app", **options: Any) -> tuple[WorkerProcess, int]:
        port = options.pop("port", None) or free_loopback_port()
        environment = {
            "TEST_QUEUE": queue, "TMPDIR": str(tmp_path), "S3TASKS_METRICS_PORT": str(port),
            # Each not fresh look is a delivery of its own.
            "S3TASKS_BRIEF_WAIT_SECONDS": "0", **options.pop("environment", {}),
        }
        worker = sandbox.start_worker(
            app, directory=REPOSITORY, environment=environment, options=["-Q", queue], log_path=tmp_path / f"{port}.log", **options
        )
        workers.append(worker)
        return worker, port

    yield one
    for worker in workers:
        worker.stop()


@pytest.fixture
def toolkit(s3: S3Tasks, queue: str) -> S3Tasks:
    """The tasks of a producer that sends to the queue."""
    s3.app.conf.task_default_queue = queue
    return s3


def children_of(pid: int) -> list[int]:
    listed = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True, check=False)
    return [int(line) for line in listed.stdout.split()]


def commits(scraped: Scraped) -> float:
    return total(scraped, "s3tasks_commits_total")


def test_counts_equal_what_was_done_also_after_a_child_was_killed(start: Start, toolkit: S3Tasks, bucket: str) -> None:
    worker, port = start(concurrency=2)
    before = scrape(port)
    assert before["s3tasks_commits_total", ("write",)] == 0
    assert before["s3tasks_verdicts_total", ("stale",)] == 0

    writes = [toolkit.write.delay(f"{number}", f"s3://{bucket}/{number}") for number in range(12)]
    refs = [write.get(timeout=60) for write in writes]
    first = scraped_until(port, lambda said: commits(said) >= 12)
    for child in children_of(worker.pid):
        os.kill(child, signal.SIGKILL)
    reads = [toolkit.read.delay(ref) for ref in refs]
    bodies = [read.get(timeout=60) for read in reads]
    deletes = [chain(toolkit.head.si(ref), toolkit.delete.si(ref)).delay() for ref in refs[:3]]
    for delete in deletes:
        delete.get(timeout=60)
    with pytest.raises(NoSuchKey):
        toolkit.read.delay(f"s3://{bucket}/missing").get(timeout=60)
    last = scraped_until(port, lambda said: said["s3tasks_verdicts_total", ("missing",)] >= 1)

    assert bodies == [f"{number}".encode() for number in range(12)]
    assert first["s3tasks_commits_total", ("write",)] == last["s3tasks_commits_total", ("write",)] == 12
    assert last["s3tasks_commits_total", ("delete",)] == 3
    # Twelve reads and three heads; what a killed child had in hand was delivered again, and looked at again.
    assert last["s3tasks_verdicts_total", ("fresh",)] >= 15
    assert last["s3tasks_verdicts_total", ("missing",)] == 1
    assert last["s3tasks_verb_errors_total", ("NoSuchKey", "read")] == 1
    # A retried task, and only that, is a retry.
    lags = total(last, "s3tasks_verdicts_total", "stale") + total(last, "s3tasks_verdicts_total", "not_yet_visible")
    assert total(last, "s3tasks_retries_total") == lags
    assert total(last, "s3tasks_ledger_seconds_count", "commit") == 15
    assert total(last, "s3tasks_store_seconds_count", "PutObject") == 12
    assert "metrics are at http://127.0.0.1:" in worker.log()


def test_threads_count_as_well(start: Start, toolkit: S3Tasks, bucket: str) -> None:
    _, port = start(concurrency=4, pool="threads")
    for result in [toolkit.write.delay("body", f"s3://{bucket}/{number}") for number in range(8)]:
        result.get(timeout=60)

    assert scraped_until(port, lambda said: commits(said) >= 8)["s3tasks_commits_total", ("write",)] == 8


def test_children_that_are_started_anew_count_with_their_parent(start: Start, toolkit: S3Tasks, bucket: str) -> None:
    """As on macOS, where billiard does not fork."""
    _, port = start(concurrency=2, environment={"TEST_START_METHOD": "spawn"})
    for result in [toolkit.write.delay("body", f"s3://{bucket}/{number}") for number in range(8)]:
        result.get(timeout=60)

    assert scraped_until(port, lambda said: commits(said) >= 8)["s3tasks_commits_total", ("write",)] == 8


def test_two_workers_of_one_machine_have_metrics_of_their_own_and_leave_nothing_behind(
    start: Start, toolkit: S3Tasks, bucket: str, tmp_path: Path
) -> None:
    (first, one_port), (second, other_port) = start(concurrency=1), start(concurrency=1)
    for result in [toolkit.write.delay("body", f"s3://{bucket}/{number}") for number in range(8)]:
        result.get(timeout=60)

    assert sum(commits(scrape(port)) for port in (one_port, other_port)) == 8
    first.kill()
    second.stop()
    assert len(list(tmp_path.glob("s3tasks-metrics-*"))) == 1
    third, port = start(concurrency=1)
    assert len(list(tmp_path.glob("s3tasks-metrics-*"))) == 1
    assert commits(scrape(port)) == 0
    third.stop()
    assert list(tmp_path.glob("s3tasks-metrics-*")) == []


def test_a_port_that_is_taken_costs_the_metrics_and_not_the_worker(start: Start, toolkit: S3Tasks, bucket: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        worker, _ = start(concurrency=1, pool="solo", port=port)
        assert toolkit.write.delay("all the same", f"s3://{bucket}/key").get(timeout=60)["size"] == len("all the same")

    said = [line for line in worker.log().splitlines() if "no metrics" in line]
    assert len(said) == 1
    assert f"127.0.0.1:{port}" in said[0]
    assert "S3TASKS_METRICS_PORT" in said[0]
    assert "Traceback" not in worker.log()


def test_without_the_library_a_worker_that_is_to_have_metrics_says_what_to_install(
    start: Start, sandbox: Sandbox, tmp_path: Path
) -> None:
    (tmp_path / "prometheus_client.py").write_text("raise ModuleNotFoundError('No module', name='prometheus_client')")
    with pytest.raises(RuntimeError, match=r"this worker cannot start: .*pip install 's3tasks\[prometheus\]'") as refused:
        start(concurrency=1, environment={"PYTHONPATH": f"{tmp_path}{os.pathsep}{REPOSITORY}"})

    assert "Traceback" not in str(refused.value)


def test_the_deployable_worker_needs_one_variable(sandbox: Sandbox, tmp_path: Path) -> None:
    port = free_loopback_port()
    worker = sandbox.start_worker(directory=REPOSITORY, concurrency=1, environment={"S3TASKS_METRICS_PORT": str(port)})
    try:
        assert scrape(port)["s3tasks_commits_total", ("write",)] == 0
    finally:
        worker.stop()
