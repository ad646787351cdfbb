"""How long after an object has become visible a waiting read returns it, and what the waiting costs; next to Celery's autoretry.

It never times anything itself: the replica tells when it got the object, the worker when the read was done.
"""

from __future__ import annotations

import json
import os
import statistics
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

import redis

from s3tasks.sandbox import Sandbox
from s3tasks.sandbox.processes import wait_until
from s3tasks.sandbox.worker import WorkerProcess
from tests.benchmarks.figures import Figure
from tests.conftest import REPOSITORY

SUBJECT = "waiting"
LAGS_SECONDS = (0.05, 0.2, 1.0, 2.0, 5.0, 30.0)
# With a lag this long by hand, one would wait for minutes.
LONGEST_BY_HAND_SECONDS = 5.0
LEARNT_FROM = 8
TIMES = 3
CROWD, CROWD_LAG_SECONDS = 500, 2.0
BACKLOG, NAP_SECONDS = 50, 0.05
PATIENCE_SECONDS = 120.0
MEDIAN, P95, PROBES, SLOT = 0.10, 0.25, 10, 0.05

Read = Callable[[Any], Any]


@dataclass
class Spent:
    """What one read has cost: seconds of a worker's slot and probes in all, and when (time.time) it was done."""

    slot_seconds: float = 0.0
    probes: float = 0.0
    done_at: float = 0.0
    slots: list[float] = field(default_factory=list)


class Stage:
    """A sandbox whose replica is late by what is asked for, and a worker of two processes."""

    def __init__(self, sandbox: Sandbox) -> None:
        self.sandbox = sandbox
        self.redis = redis.Redis.from_url(sandbox.redis_url)
        os.environ.update({**sandbox.environment(), "BENCHMARK_QUEUE": f"q{uuid.uuid4().hex[:6]}"})
        self.tasks = import_module("tests.benchmarks.waiting_app")
        self.worker = self._worker(2)

    def _worker(self, concurrency: int) -> WorkerProcess:
        return self.sandbox.start_worker(
            "tests.benchmarks.waiting_app", directory=REPOSITORY, concurrency=concurrency,
            environment={"BENCHMARK_QUEUE": os.environ["BENCHMARK_QUEUE"]},
        )

    def bucket(self) -> str:
        name = f"b{uuid.uuid4().hex[:8]}"
        self.sandbox.create_bucket(name)
        return name

    def ours(self, ref: Any) -> Any:
        return self.tasks.s3.read.s(ref.to_dict())

    def by_hand(self, ref: Any) -> Any:
        return self.tasks.read_by_hand.s(ref.bucket, ref.key, ref.etag)

    def readings(self, bucket: str, lag: float, count: int, read: Read) -> list[tuple[float, Spent]]:
        """Seconds from visible to done, and the cost, of so many reads, each of an object of its own written just before."""
        self.sandbox.set_lag(lag, lag)
        sent = []
        for _ in range(count):
            ref = self.tasks.s3.client.write(uuid.uuid4().hex, f"s3://{bucket}/{uuid.uuid4().hex}")
            sent.append((ref.key, read(ref).apply_async()))
            time.sleep(0.08)
        return self._told(sent)

    def crowd(self, bucket: str, read: Read) -> list[tuple[float, Spent]]:
        """The same of five hundred reads of one object."""
        self.sandbox.set_lag(CROWD_LAG_SECONDS, CROWD_LAG_SECONDS)
        ref = self.tasks.s3.client.write(uuid.uuid4().hex, f"s3://{bucket}/{uuid.uuid4().hex}")
        signature = read(ref)
        return self._told([(ref.key, signature.apply_async()) for _ in range(CROWD)])

    def behind_a_backlog(self, bucket: str, priority: int) -> float:
        """Seconds from visible to done of a read whose retry finds 2.5 s of other work in the queue of a worker of one process."""
        self.sandbox.set_lag(0.2, 0.2)
        self.worker.stop()
        self.sandbox.pause_replication()
        ref = self.tasks.s3.client.write(uuid.uuid4().hex, f"s3://{bucket}/{uuid.uuid4().hex}")
        result = self.ours(ref).apply_async(priority=priority)
        for _ in range(BACKLOG):
            self.tasks.nap.apply_async((NAP_SECONDS,), priority=priority)
        self.worker = self._worker(1)
        wait_until(lambda: result.state == "RETRY", PATIENCE_SECONDS, 0.01)
        self.sandbox.resume_replication()
        ((seconds, _),) = self._told([(ref.key, result)])
        wait_until(lambda: self.redis.llen(os.environ["BENCHMARK_QUEUE"]) == 0, PATIENCE_SECONDS)
        return seconds

    def _told(self, sent: Sequence[tuple[str, Any]]) -> list[tuple[float, Spent]]:
        for _, result in sent:
            result.get(timeout=PATIENCE_SECONDS)
        wait_until(lambda: all(spent.done_at for spent in self._spent([result.id for _, result in sent])), PATIENCE_SECONDS)
        visible = {change.key: change.applied_at or 0.0 for change in self.sandbox.changes()}
        costs = self._spent([result.id for _, result in sent])
        return [(spent.done_at - visible[key], spent) for (key, _), spent in zip(sent, costs, strict=True)]

    def _spent(self, ids: Sequence[str]) -> list[Spent]:
        costs: dict[str, Spent] = defaultdict(Spent)
        for raw in self.redis.lrange(self.tasks.NOTES, 0, -1):
            task_id, at, slot, probes, state = json.loads(raw)
            spent = costs[task_id]
            spent.slot_seconds += slot
            spent.slots.append(slot)
            spent.probes += probes
            if state == "SUCCESS":
                spent.done_at = at
        return [costs[task_id] for task_id in ids]


def measure(rounds: int) -> list[Figure]:
    """The figures, from `rounds` reads for each lag, of readers that have learnt it."""
    figures: list[Figure] = []
    with Sandbox(lag_seconds=(0.0, 0.0)) as sandbox:
        stage = Stage(sandbox)
        for lag in LAGS_SECONDS:
            bucket, few = stage.bucket(), rounds if lag < 10 else min(rounds, 5)
            for _ in range(TIMES):
                stage.readings(bucket, lag, LEARNT_FROM, stage.ours)
            figures += _figures(f"lag {lag:g} s", lag, stage.readings(bucket, lag, few, stage.ours), goals=True)
            if lag <= LONGEST_BY_HAND_SECONDS:
                figures += _figures(f"lag {lag:g} s, autoretry", lag, stage.readings(bucket, lag, few, stage.by_hand))
        bucket = stage.bucket()
        stage.readings(bucket, CROWD_LAG_SECONDS, LEARNT_FROM, stage.ours)
        figures += _figures(f"{CROWD} readers at once, lag 2 s", CROWD_LAG_SECONDS, stage.crowd(bucket, stage.ours))
        figures += _figures(f"{CROWD} readers at once, autoretry", CROWD_LAG_SECONDS, stage.crowd(bucket, stage.by_hand))
        bucket = stage.bucket()
        for name, priority in (("0", 0), ("6", 6)):
            late = statistics.median(stage.behind_a_backlog(bucket, priority) for _ in range(3))
            figures.append(Figure(SUBJECT, f"behind 2.5 s of backlog of priority {name}: visible to done", late, "s"))
    return figures


def _figures(name: str, lag: float, told: Sequence[tuple[float, Spent]], *, goals: bool = False) -> list[Figure]:
    late = sorted(max(seconds, 0.0) / lag for seconds, _ in told)
    # The probe that finds the object would be made by a reader who need not wait, too.
    slot = statistics.median((spent.slot_seconds - spent.slots[-1]) / lag for _, spent in told)
    wanted = (MEDIAN, P95, PROBES, SLOT) if goals else (None,) * 4
    return [
        Figure(SUBJECT, f"{name}: visible to done, median", statistics.median(late), "of the lag", wanted[0]),
        Figure(SUBJECT, f"{name}: visible to done, p95", late[int(0.95 * len(late))], "of the lag", wanted[1]),
        Figure(SUBJECT, f"{name}: most probes", max(spent.probes for _, spent in told), "probes", wanted[2] if lag < 5 else None),
        Figure(SUBJECT, f"{name}: slot held by waiting, median", slot, "of the lag", wanted[3]),
    ]
