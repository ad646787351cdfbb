"""A million tracked objects in one Redis, loaded as workers load them and expired for real: what they take, and what is left.

It never deletes: Redis's own expiry does, and is waited for.
"""

from __future__ import annotations

import multiprocessing
import sys
import time
from typing import Any

import redis

from s3tasks import Settings
from s3tasks.ledger import Ledger
from s3tasks.sandbox import RedisServer
from tests.benchmarks.figures import Figure
from tests.benchmarks.ledger_scale import MOST_BYTES_PER_OBJECT, used_memory, write_all

SUBJECT = "ledger million"
OBJECTS = 1_000_000
LOADERS = 2
BATCH = 500
TRIAL = 5_000
# Objects are remembered until all are loaded, twice as long as a trial says that it takes and no less than this.
LEAST_RETENTION_SECONDS = 120
# Finished writes are forgotten sooner, so that records alone are there when they are counted.
HORIZON_SECONDS = 10
PATIENCE_SECONDS = 7200.0


def load(url: str, retention_seconds: int, first: int, count: int) -> None:
    """Writes so many objects once each; in a process of its own."""
    ledger = Ledger(
        Settings(
            ledger_url=url, retention_seconds=retention_seconds, redelivery_horizon_seconds=HORIZON_SECONDS,
            consistency_deadline_seconds=5.0, outage_deadline_seconds=5.0, probe_gap_limit_seconds=1.0,
        )
    )
    for start in range(first, first + count, BATCH):
        write_all(ledger, range(start, start + BATCH))
    ledger.close()


def measure(rounds: int) -> list[Figure]:
    """Bytes per object, seconds to load, and what remains once all have expired; once, however many rounds are asked for."""
    with RedisServer() as server:
        admin = redis.Redis.from_url(server.url)
        retention_seconds = max(LEAST_RETENTION_SECONDS, int(2 * _trial_seconds(server.url) * OBJECTS / TRIAL))
        admin.flushdb()
        before, started = used_memory(admin), time.monotonic()
        _load_all(server.url, retention_seconds)
        seconds = time.monotonic() - started
        _until(lambda: admin.dbsize() <= OBJECTS)
        objects, full = int(admin.dbsize()), used_memory(admin)
        _tell(f"{objects} objects take {full - before} bytes after {seconds:.0f} s, and are remembered for {retention_seconds} s")
        _until(lambda: admin.dbsize() == 0)
        # Redis gives its tables back a little at a time.
        _until(lambda: used_memory(admin) - before < 0.02 * (full - before))
        left = used_memory(admin) - before
        admin.close()
    return [
        Figure(SUBJECT, "objects that were there together", objects, "objects", OBJECTS, at_least=True),
        Figure(SUBJECT, "a tracked object, server's growth", (full - before) / objects, "bytes", MOST_BYTES_PER_OBJECT),
        Figure(SUBJECT, "all of them", (full - before) / 1e6, "MB"),
        Figure(SUBJECT, "writes recorded a second, by two processes in batches", OBJECTS / seconds, "/s"),
        Figure(SUBJECT, "left when all have expired, of what they took", left / (full - before), "", 0.02),
    ]


def _tell(progress: str) -> None:
    sys.stderr.write(f"{SUBJECT}: {progress}\n")
    sys.stderr.flush()


def _trial_seconds(url: str) -> float:
    started = time.monotonic()
    load(url, LEAST_RETENTION_SECONDS, 0, TRIAL)
    return (time.monotonic() - started) / LOADERS


def _load_all(url: str, retention_seconds: int) -> None:
    each = OBJECTS // LOADERS
    new = multiprocessing.get_context("spawn").Process
    loaders = [new(target=load, args=(url, retention_seconds, number * each, each)) for number in range(LOADERS)]
    for loader in loaders:
        loader.start()
    for loader in loaders:
        loader.join()
        if loader.exitcode != 0:
            raise RuntimeError(f"a loader ended with {loader.exitcode}")


def _until(happened: Any) -> None:
    end = time.monotonic() + PATIENCE_SECONDS
    while not happened():
        if time.monotonic() > end:
            raise TimeoutError("Redis still keeps what should have expired")
        time.sleep(0.25)
