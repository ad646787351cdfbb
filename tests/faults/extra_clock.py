"""Workers whose clock is an hour wrong: run by name, where FAULTS_FAKETIME names libfaketime (Debian's package of that name).

    FAULTS_FAKETIME=/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1 pytest tests/faults/extra_clock.py

s3tasks compares no worker's clock with anything: order is Redis's clock, age is S3's, waiting is the monotonic clock. Celery
does: the time of a retry is absolute, and so is the age of an unacknowledged message. A retry that a worker an hour ahead hands
to one that is right waits an hour there, or for the visibility timeout; that is Celery's to promise, and nothing here says else.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone

import pytest

from s3tasks.refs import record_key
from s3tasks.sandbox import Sandbox
from s3tasks.sandbox.processes import wait_until
from tests.faults.processes.stage import VISIBILITY_TIMEOUT_SECONDS, Stage, result_of, staged
from tests.faults.processes.traps import Trap, When
from tests.faults.processes.watching import Watcher, assert_in_order, assert_sound

LIBRARY = os.environ["FAULTS_FAKETIME"]
OFFSETS = {"an hour ahead": "+1h", "an hour behind": "-1h"}


def wrong(offset: str) -> dict[str, str]:
    """The environment of a process whose clocks are wrong by so much; they run as fast as ever.

    The monotonic one is shifted as well: left alone, libfaketime 0.9.10 breaks Python's time.sleep (EINVAL).
    """
    return {"LD_PRELOAD": LIBRARY, "FAKETIME": offset, "FAKETIME_DONT_RESET": "1"}


@contextmanager
def wrong_clocks(sandbox: Sandbox, visibility_timeout_seconds: int) -> Iterator[Stage]:
    """A worker for each offset, and one that is right."""
    timeout = str(visibility_timeout_seconds)
    with staged(sandbox) as made:
        started = [made.start_worker("right", TEST_VISIBILITY_TIMEOUT_SECONDS=timeout)]
        # Behind the proxies for what they write, on the replica for what they read: so there is something to wait for.
        replica = str(sandbox.read_endpoint_url)
        started += [
            made.start_worker(
                name, concurrency=2, S3TASKS_READ_ENDPOINT_URL=replica, S3TASKS_LEDGER_TIMEOUT_SECONDS="60",
                TEST_VISIBILITY_TIMEOUT_SECONDS=timeout, **wrong(offset),
            )
            for name, offset in OFFSETS.items()
        ]
        yield made
        for worker in started:
            worker.kill()


@pytest.fixture(scope="module")
def stage(sandbox: Sandbox) -> Iterator[Stage]:
    with wrong_clocks(sandbox, VISIBILITY_TIMEOUT_SECONDS) as made:
        yield made


@pytest.fixture
def delivering_once(sandbox: Sandbox) -> Iterator[Stage]:
    """By the age that Celery sees in a message of a worker an hour behind, it is delivered again at once, and the second request
    may land when it likes: what lands last is current, whoever's clock was wrong."""
    with wrong_clocks(sandbox, 3 * 3600) as made:
        yield made


@pytest.mark.parametrize("offset", OFFSETS)
def test_the_workers_clock_is_wrong_indeed(stage: Stage, offset: str) -> None:
    ref = stage.new_ref()
    sent = stage.send(offset, "write", b"x", ref.uri)
    result_of(sent)
    done = datetime.fromisoformat(str(stage.tasks.app.backend.get_task_meta(sent.id)["date_done"]))
    aware = done if done.tzinfo else done.replace(tzinfo=timezone.utc)
    assert abs(abs(aware.timestamp() - time.time()) - 3600) < 60


@pytest.mark.parametrize("offset", OFFSETS)
def test_writes_of_a_worker_whose_clock_is_wrong_are_in_order_with_those_of_one_that_is_right(
    delivering_once: Stage, offset: str
) -> None:
    stage, ref = delivering_once, delivering_once.new_ref()
    with Watcher(ref, (stage.direct, stage.replicated)) as watcher:
        bodies = [b"%d" % n for n in range(6)]
        written = [
            result_of(stage.send(queue, "write", body, ref.uri))
            for body, queue in zip(bodies, [offset, "right"] * 3, strict=True)
        ]
        time.sleep(0.8)

    assert_in_order(watcher, b"<no object>", *bodies)
    numbers = [ref["seq"] for ref in written]
    assert numbers == sorted(numbers)
    assert_sound(stage.replicated, stage.ledger, ref, bodies[-1])


@pytest.mark.parametrize("offset", OFFSETS)
def test_a_worker_whose_clock_is_wrong_waits_for_the_replica_as_long_as_any(
    stage: Stage, sandbox: Sandbox, offset: str
) -> None:
    ref = stage.new_ref()
    written = result_of(stage.send("right", "write", b"x", ref.uri))
    sandbox.drain()
    sandbox.pause_replication()
    newer = result_of(stage.send(offset, "write", b"y", ref.uri))
    begun = time.monotonic()
    reads = [stage.send(offset, "read", asked) for asked in (newer, ref.uri)]
    time.sleep(1.0)
    states = [read.state for read in reads]
    sandbox.resume_replication()

    assert set(states) <= {"RETRY", "STARTED"}, [read.result for read in reads]
    assert [result_of(read) for read in reads] == [b"y", b"y"]
    assert time.monotonic() - begun < 1800, "an hour's difference is not waited out"
    assert written["seq"] < newer["seq"]


@pytest.mark.parametrize("offset", OFFSETS)
def test_a_write_by_a_worker_with_the_wrong_clock_is_done_once_though_delivered_again(stage: Stage, offset: str) -> None:
    ref = stage.new_ref()
    record = record_key(stage.settings.ledger_prefix, ref)

    def hold_until_delivered_again() -> None:
        wait_until(lambda: stage.redis_proxy.count("begin", record) > 1, 8 * VISIBILITY_TIMEOUT_SECONDS)

    stage.traps.set(Trap(ref, "commit", When.AFTER, hold_until_delivered_again))
    sent = stage.send(offset, "write", b"x", ref.uri)

    assert stage.direct.read(result_of(sent)) == b"x"
    assert stage.s3_proxy.count_of("PUT", ref) == 1
    assert stage.redis_proxy.count("begin", record) > 1, "delivered again"
    assert_sound(stage.direct, stage.ledger, ref, b"x", sent.id)
