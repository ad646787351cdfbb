"""SIGTERM, as systemd, Docker and Kubernetes send it to a busy worker: what is running ends or is done by the next one."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from celery import Celery

from s3tasks.sandbox import RedisServer, Sandbox
from s3tasks.sandbox.processes import wait_until
from tests.deploy.deployed import COMMANDS, PATIENCE_SECONDS, SOFT_SHUTDOWN_SECONDS, deployed
from tests.deploy.files import UNIT, seconds, unit_settings

LONG_SECONDS = SOFT_SHUTDOWN_SECONDS + 3.0


@pytest.fixture
def broker() -> Iterator[RedisServer]:
    with RedisServer() as server:
        yield server


@pytest.fixture
def variables(sandbox: Sandbox, broker: RedisServer) -> dict[str, str]:
    urls = {"CELERY_BROKER_URL": broker.url, "CELERY_RESULT_BACKEND": broker.url, "S3TASKS_LEDGER_URL": broker.url}
    return {**sandbox.environment(), **urls, "CELERY_IMPORTS": "tests.deploy.slow_tasks"}


@pytest.fixture
def producer(broker: RedisServer) -> Iterator[Celery]:
    app = Celery("producer", broker=broker.url, backend=broker.url, set_as_current=False)
    yield app
    app.close()


def lines_of(path: Path) -> list[str]:
    return path.read_text().split() if path.exists() else []


@pytest.mark.parametrize("kind", COMMANDS)
def test_what_is_running_at_a_sigterm_ends_in_time_or_is_given_back_at_once_and_nothing_is_lost(
    kind: str, variables: dict[str, str], producer: Celery, broker: RedisServer, tmp_path: Path
) -> None:
    short, long, late, queued = (tmp_path / name for name in ("short", "long", "late", "queued"))
    short_may_end, long_may_end = tmp_path / "short may end", tmp_path / "long may end"
    admin = redis.Redis.from_url(broker.url)
    with deployed(kind, tmp_path, variables) as worker:
        waiting = producer.send_task("tests.nap", (str(late), 0.1), countdown=SOFT_SHUTDOWN_SECONDS + 2)
        results = [
            producer.send_task("tests.nap_until", (str(long), str(long_may_end))),
            producer.send_task("tests.nap_until", (str(short), str(short_may_end))),
            *(producer.send_task("tests.nap", (str(queued), 0.1)) for _ in range(5)),
        ]
        assert wait_until(lambda: lines_of(long) == lines_of(short) == ["begun"], PATIENCE_SECONDS)

        worker.signal(signal.SIGTERM)
        short_may_end.touch()

        assert wait_until(lambda: not worker.running, seconds(unit_settings(UNIT.read_text())["TimeoutStopSec"][0]))
        assert worker._process.returncode == 0
    assert lines_of(short) == ["begun", "ended"]
    assert lines_of(long) == ["begun"]
    # Nobody has to wait for the visibility timeout: everything is in the queue again.
    assert admin.hlen("unacked") == 0
    assert admin.llen("celery") == 1 + 1 + 5
    admin.close()

    long_may_end.touch()
    with deployed(kind, tmp_path, variables):
        assert waiting.get(timeout=PATIENCE_SECONDS) == str(late)
        for result in results:
            result.get(timeout=PATIENCE_SECONDS)

    assert lines_of(short) == ["begun", "ended"]
    assert lines_of(long) == ["begun", "begun", "ended"]
    assert lines_of(late) == ["begun", "ended"]
    assert sorted(lines_of(queued)) == ["begun"] * 5 + ["ended"] * 5


def test_an_idle_worker_ends_at_once(variables: dict[str, str], tmp_path: Path) -> None:
    with deployed("image", tmp_path, {**variables, "CELERY_SOFT_SHUTDOWN_TIMEOUT_SECONDS": "600"}) as worker:
        begun_at = time.monotonic()
        worker.signal(signal.SIGTERM)
        assert wait_until(lambda: not worker.running, PATIENCE_SECONDS)
        assert time.monotonic() - begun_at < PATIENCE_SECONDS
        assert worker._process.returncode == 0


def test_without_the_remapping_a_sigterm_waits_for_the_longest_task(
    variables: dict[str, str], producer: Celery, tmp_path: Path
) -> None:
    """Why REMAP_SIGTERM is set: a supervisor that loses patience first kills the worker, and the message is back an hour later."""
    long = tmp_path / "long"
    with deployed("image", tmp_path, {**variables, "REMAP_SIGTERM": ""}) as worker:
        producer.send_task("tests.nap", (str(long), LONG_SECONDS), ignore_result=True)
        assert wait_until(lambda: lines_of(long) == ["begun"], PATIENCE_SECONDS)
        worker.signal(signal.SIGTERM)
        assert wait_until(lambda: not worker.running, PATIENCE_SECONDS)
    assert lines_of(long) == ["begun", "ended"]
