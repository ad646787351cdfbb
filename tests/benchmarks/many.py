"""A thousand small objects at once, next to a thousand tasks, the best thread pool around boto3, and a raw DeleteObjects.

It never counts the making of a client or of a thread pool against anybody: both are there before the clock starts.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import boto3
from botocore.config import Config

from s3tasks import ConsistentS3
from tests.benchmarks import in_celery
from tests.benchmarks.figures import Figure, interleaved
from tests.benchmarks.in_process import BUCKET, served

SUBJECT = "many"
OBJECTS = 1_000
BODY_BYTES = 1024
# The best of these is what ours is held against.
THREADS = (1, 2, 4, 8, 16, 32)
MOST_TO_RAW_DELETE = 1.2
LEAST_TO_TASKS = 4.0


def _pooled_client(url: str) -> Any:
    return boto3.client("s3", endpoint_url=url, config=Config(max_pool_connections=max(THREADS)))


def read_by_hand(client: Any, pool: ThreadPoolExecutor) -> list[bytes]:
    """What a user writes who knows how: one client, a pool of threads, no check."""

    def one(number: int) -> bytes:
        body: bytes = client.get_object(Bucket=BUCKET, Key=f"many/{number}")["Body"].read()
        return body

    return list(pool.map(one, range(OBJECTS)))


def measure(rounds: int) -> list[Figure]:
    """Reading on a store that answers at once and on one that takes 15 ms, deleting, and reading by tasks."""
    figures = []
    for delay_seconds, store in ((0.0, "at once"), (in_celery.SLOW_SECONDS, "after 15 ms")):
        with served(delay_seconds) as (ours, plain):
            figures += _reads(ours, plain.meta.endpoint_url, store, rounds)
            if not delay_seconds:
                figures += _deletes(ours, plain, rounds)
    return figures + _tasks(rounds)


def _written(ours: ConsistentS3) -> list[Any]:
    body = os.urandom(BODY_BYTES)
    return [outcome.ref for outcome in ours.write_many([(body, f"s3://{BUCKET}/many/{number}") for number in range(OBJECTS)])]


def _reads(ours: ConsistentS3, url: str, store: str, rounds: int) -> list[Figure]:
    refs, client = _written(ours), _pooled_client(url)
    pools = {threads: ThreadPoolExecutor(threads) for threads in THREADS if threads > 4 or store == "at once"}
    calls: dict[str, Callable[[], object]] = {"read_many": lambda: [outcome.get() for outcome in ours.read_many(refs)]}
    calls |= {f"{threads} threads": partial(read_by_hand, client, pool) for threads, pool in pools.items()}
    costs = interleaved(calls, rounds=rounds, repeat=1)
    for pool in pools.values():
        pool.shutdown()
    client.close()
    mine = costs.pop("read_many").wall_seconds
    best, cost = min(costs.items(), key=lambda named: named[1].wall_seconds)
    ratio = mine / cost.wall_seconds
    return [
        Figure(SUBJECT, f"read_many of 1,000 x 1 KiB, store answers {store}", OBJECTS / mine, "objects/s"),
        Figure(SUBJECT, f"the best pool by hand ({best}), store answers {store}", OBJECTS / cost.wall_seconds, "objects/s"),
        Figure(SUBJECT, f"read_many: time / best pool by hand, store answers {store}", ratio, "ratio", 1.0),
    ]


def _deletes(ours: ConsistentS3, plain: Any, rounds: int) -> list[Figure]:
    keys = [f"many/{number}" for number in range(OBJECTS)]

    def by_hand() -> None:
        plain.delete_objects(Bucket=BUCKET, Delete={"Objects": [{"Key": key} for key in keys], "Quiet": False})

    calls: dict[str, Callable[[], object]] = {
        "by hand": by_hand,
        "delete_many": lambda: [outcome.get() for outcome in ours.delete_many([f"s3://{BUCKET}/{key}" for key in keys])],
    }
    for call in calls.values():
        call()
    costs = interleaved(calls, rounds=rounds, repeat=1)
    ratio = costs["delete_many"].wall_seconds / costs["by hand"].wall_seconds
    return [
        Figure(SUBJECT, "delete_many of 1,000", costs["delete_many"].wall_seconds * 1000, "ms"),
        Figure(SUBJECT, "delete_many: time / raw DeleteObjects", ratio, "ratio", MOST_TO_RAW_DELETE),
    ]


def _tasks(rounds: int) -> list[Figure]:
    """The task read_many against as many tasks read, on the same worker."""
    with in_celery.staged(tasks_at_once=OBJECTS) as stage:
        worker = stage.worker("many", in_celery.POOLS["prefork 2"])
        calls = {
            "read": partial(stage.seconds_to_drain, "read", "many"),
            "read_many": partial(stage.trip, "read_many", "many", OBJECTS),
        }
        stage.seconds_to_drain("write", "many")
        for call in calls.values():
            call()
        costs = interleaved(calls, rounds=rounds, repeat=1)
        worker.stop()
    ratio = costs["read"].wall_seconds / costs["read_many"].wall_seconds
    name = "task read_many of 1,000: throughput / 1,000 tasks read"
    return [Figure(SUBJECT, name, ratio, "ratio", LEAST_TO_TASKS, at_least=True)]
