"""Tasks per second and latency in real workers: this package's tasks next to hand-written ones that check nothing.

It never sends while a queue is drained: the messages are there in one moment, and what is timed is the workers.
"""

from __future__ import annotations

import json
import os
import statistics
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib import import_module, reload
from pathlib import Path
from typing import Any

import redis
from celery import chain

from s3tasks.sandbox import RedisServer
from s3tasks.sandbox.processes import Guardian
from s3tasks.sandbox.worker import WorkerProcess, start_worker_process
from tests.benchmarks.fast_s3 import FastS3
from tests.benchmarks.figures import Figure
from tests.conftest import REPOSITORY

SUBJECT = "in Celery"
BODY_BYTES = 1024
TASKS = 120
# Round trips for each kind and round; all rounds together make the percentiles.
TRIPS = 30
SLOW_SECONDS = 0.015
PATIENCE_SECONDS = 120.0
POOLS = {
    "prefork 1": ("-P", "prefork", "-c", "1"), "prefork 2": ("-P", "prefork", "-c", "2"),
    "prefork 4": ("-P", "prefork", "-c", "4"), "threads 8": ("-P", "threads", "-c", "8"),
}
KNOBS: dict[str, tuple[str, ...]] = {
    "as it comes": (), "events on (-E)": ("-E",), "prefetch 1": ("--prefetch-multiplier", "1"),
    "prefetch 16": ("--prefetch-multiplier", "16"),
}
PAIRS = {"read": "get by hand", "write": "put by hand", "chain(write, read)": "chain by hand"}
THROUGHPUT, SLOW_PUT_THROUGHPUT = 1.3, 1.8


@dataclass(frozen=True)
class Kind:
    """A task (or chain) to send: its signature for an object's number, and how many results each leaves."""

    signature: Callable[[int], Any]
    results: int = 1


class Stage:
    """A Redis as broker, ledger and backend, a fast S3, and messages to be put into any queue at once."""

    def __init__(self, redis_url: str, store_url: str, guardian: Guardian, directory: Path, tasks_at_once: int) -> None:
        self._guardian, self._directory, self._tasks_at_once = guardian, directory, tasks_at_once
        self._environment = {
            "BENCHMARK_BROKER_URL": f"{redis_url}/0", "BENCHMARK_BACKEND_URL": f"{redis_url}/1", "S3TASKS_ENDPOINT_URL": store_url,
            "S3TASKS_LEDGER_URL": f"{redis_url}/2",
            "AWS_ACCESS_KEY_ID": "benchmark", "AWS_SECRET_ACCESS_KEY": "benchmark", "AWS_DEFAULT_REGION": "us-east-1",
        }
        os.environ.update(self._environment)
        # Made anew for each stage, at its addresses: an app keeps the connections that it has made.
        tasks = reload(import_module("tests.benchmarks.celery_app"))
        self.app = tasks.app
        self._broker, self._backend = (redis.Redis.from_url(f"{redis_url}/{number}") for number in (0, 1))
        self.kinds = _kinds(tasks)
        self._messages: dict[tuple[str, bool], list[tuple[str, str]]] = {}

    def worker(self, queue: str, options: Sequence[str]) -> WorkerProcess:
        """A worker that takes from the queue."""
        # What follows in a chain goes to the app's own queue.
        command = ["-A", "tests.benchmarks.celery_app", "worker", "-Q", f"{queue},celery", "--loglevel", "INFO", *options]
        return start_worker_process(
            self._guardian, command, directory=REPOSITORY, environment={**os.environ, **self._environment},
            log_path=self._directory / f"{queue}.log", ready_timeout_seconds=PATIENCE_SECONDS,
        )

    def seconds_to_drain(self, kind: str, queue: str, *, with_results: bool = True, look_seconds: float = 0.002) -> float:
        """How long the worker takes for so many messages that were all there at once."""
        messages = [text.replace(task_id, str(uuid.uuid4())) for task_id, text in self._made(kind, with_results)]
        self._backend.flushdb()
        started = time.perf_counter()
        self._broker.rpush(queue, *messages)
        expected = self._tasks_at_once * self.kinds[kind].results
        done: Callable[[], bool] = lambda: self._backend.dbsize() >= expected  # noqa: E731 - one of two
        if not with_results:
            done = lambda: not self._broker.llen(queue) and not self._broker.hlen("unacked")  # noqa: E731
        while not done():
            if time.perf_counter() - started > PATIENCE_SECONDS:
                raise TimeoutError(f"{kind} on {queue} is not done")
            time.sleep(look_seconds)
        return time.perf_counter() - started

    def _made(self, kind: str, with_results: bool) -> list[tuple[str, str]]:
        """Messages of that kind as Celery makes them, with the id that has to be replaced in each."""
        known = self._messages.get((kind, with_results))
        if known is None:
            for number in range(self._tasks_at_once):
                options = {} if with_results else {"ignore_result": True}
                self.kinds[kind].signature(number).apply_async(queue="parked", **options)
            texts = [text.decode() for text in self._broker.lrange("parked", 0, -1) if isinstance(text, bytes)]
            self._broker.delete("parked")
            known = self._messages[kind, with_results] = [(json.loads(text)["headers"]["id"], text) for text in texts]
        return known

    def redis_seconds(self) -> float:
        """How long this stage's Redis has kept a core busy."""
        said = self._broker.info("cpu")
        return float(said["used_cpu_user"]) + float(said["used_cpu_sys"])

    def trip(self, kind: str, queue: str, number: int) -> float:
        """Seconds from sending one to having its result."""
        started = time.perf_counter()
        self.kinds[kind].signature(number).apply_async(queue=queue).get(timeout=PATIENCE_SECONDS)
        return time.perf_counter() - started

    def close(self) -> None:
        self._broker.close()
        self._backend.close()


def _kinds(tasks: Any) -> dict[str, Kind]:
    body, s3 = os.urandom(BODY_BYTES), tasks.s3

    def uri(number: int) -> str:
        return f"s3://{tasks.BUCKET}/{number}"

    return {
        "put by hand": Kind(lambda number: tasks.put_by_hand.s(body, f"by-hand/{number}")),
        "write": Kind(lambda number: s3.write.s(body, uri(number))),
        "get by hand": Kind(lambda number: tasks.get_by_hand.s(f"by-hand/{number}")),
        "read": Kind(lambda number: s3.read.s(uri(number))),
        "chain by hand": Kind(
            lambda number: chain(tasks.put_by_hand.s(body, f"by-hand/{number}"), tasks.get_by_hand.s()), results=2
        ),
        "chain(write, read)": Kind(lambda number: chain(s3.write.s(body, uri(number)), s3.read.s()), results=2),
        "nothing": Kind(lambda _: tasks.nothing.s()),
        "read_many": Kind(lambda count: s3.read_many.s([uri(number) for number in range(count)])),
    }


@contextmanager
def staged(delay_seconds: float = 0.0, tasks_at_once: int = TASKS) -> Iterator[Stage]:
    """A stage whose S3 answers after so many seconds, and whose queues are filled with so many tasks."""
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        guardian = Guardian()
        stack.callback(guardian.close)
        store, server = stack.enter_context(FastS3(delay_seconds)), stack.enter_context(RedisServer())
        stage = Stage(server.url.rpartition("/")[0], store.url, guardian, directory, tasks_at_once)
        stack.callback(stage.close)
        yield stage


def measure(rounds: int) -> list[Figure]:
    """Throughput and latency of each pool, next to a slow store, and what can be turned off."""
    figures: list[Figure] = []
    with staged() as stage:
        for pool, options in POOLS.items():
            figures += _one_pool(stage, pool, options, rounds, trips=TRIPS if pool in ("prefork 2", "threads 8") else 0)
        figures += _knobs(stage, rounds)
        figures += _carried(stage, rounds)
    with staged(SLOW_SECONDS) as stage:
        figures += _one_pool(stage, "prefork 2, 15 ms store", POOLS["prefork 2"], rounds, trips=0)
    return figures


def _one_pool(stage: Stage, pool: str, options: Sequence[str], rounds: int, *, trips: int) -> list[Figure]:
    queue = pool.replace(" ", "-").replace(",", "")
    worker = stage.worker(queue, options)
    kinds = [*PAIRS, *PAIRS.values(), "nothing"]
    seconds: dict[str, list[float]] = {kind: [] for kind in kinds}
    latencies: dict[str, list[float]] = {kind: [] for kind in kinds}
    for kind in kinds:
        stage.seconds_to_drain(kind, queue)
    for number in range(rounds):
        for kind in kinds[number % len(kinds) :] + kinds[: number % len(kinds)]:
            seconds[kind].append(stage.seconds_to_drain(kind, queue))
        for trip in range(trips):
            for kind in kinds:
                latencies[kind].append(stage.trip(kind, queue, trip))
    worker.stop()
    return [*_throughput(pool, seconds), *(_latency(pool, latencies) if trips else [])]


def _throughput(pool: str, seconds: Mapping[str, Sequence[float]]) -> list[Figure]:
    figures = [
        Figure(SUBJECT, f"{pool}: {kind}", TASKS / statistics.median(times), "/s") for kind, times in seconds.items()
    ]
    slow = "store" in pool
    for ours, peer in PAIRS.items():
        ratio = statistics.median(theirs / mine for mine, theirs in zip(seconds[ours], seconds[peer], strict=True))
        goal = (SLOW_PUT_THROUGHPUT if ours == "write" else None) if slow else THROUGHPUT
        figures.append(Figure(SUBJECT, f"{pool}: {ours} / {peer}, tasks per second", ratio, "ratio", goal, at_least=True))
    return figures


def _latency(pool: str, latencies: Mapping[str, Sequence[float]]) -> list[Figure]:
    figures = []
    for ours, peer in PAIRS.items():
        mine, theirs = (statistics.quantiles(latencies[kind], n=100) for kind in (ours, peer))
        figures += [
            Figure(SUBJECT, f"{pool}: {ours}, p50", mine[49] * 1000, "ms"),
            Figure(SUBJECT, f"{pool}: {ours} / {peer}, p50", mine[49] / theirs[49], "ratio"),
            Figure(SUBJECT, f"{pool}: {ours}, p99", mine[98] * 1000, "ms"),
            Figure(SUBJECT, f"{pool}: {ours} / {peer}, p99", mine[98] / theirs[98], "ratio", 1.0),
        ]
    return figures


def _knobs(stage: Stage, rounds: int) -> list[Figure]:
    """What `read` gains by each thing that a user can turn on or off, by workers that wait side by side."""
    queues = {knob: f"knob-{number}" for number, knob in enumerate(KNOBS)}
    workers = [stage.worker(queues[knob], (*POOLS["prefork 2"], *options)) for knob, options in KNOBS.items()]
    seconds: dict[str, list[float]] = {knob: [] for knob in (*KNOBS, "results ignored")}
    for number in range(rounds + 1):
        for knob, queue in queues.items():
            seconds[knob].append(stage.seconds_to_drain("read", queue))
        seconds["results ignored"].append(stage.seconds_to_drain("read", queues["as it comes"], with_results=False))
        if number == 0:
            # The first round of each warms its worker.
            seconds = {knob: [] for knob in seconds}
    for worker in workers:
        worker.stop()
    plain = seconds.pop("as it comes")
    return [
        Figure(SUBJECT, f"read, {knob}: tasks per second / as it comes", statistics.median(
            mine / other for mine, other in zip(plain, times, strict=True)
        ), "ratio")
        for knob, times in seconds.items()
    ]


def _carried(stage: Stage, rounds: int) -> list[Figure]:
    """How many tasks a core of Redis carries that is broker, backend and ledger in one, the sending left out."""
    worker, figures = stage.worker("carried", POOLS["prefork 2"]), []
    for kind in ("nothing", "read", "write"):
        stage.seconds_to_drain(kind, "carried")
        before = stage.redis_seconds()
        for _ in range(rounds):
            # To look more often would keep Redis busy, too.
            stage.seconds_to_drain(kind, "carried", look_seconds=0.05)
        busy = stage.redis_seconds() - before
        figures.append(Figure(SUBJECT, f"{kind}: tasks a second of one Redis core", rounds * TASKS / busy, "/s"))
    worker.stop()
    return figures
