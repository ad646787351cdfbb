"""A gibibyte up and down, next to s3transfer alone with the same parts and threads; and the memory that it takes.

It never compares with s3transfer's own defaults: parts and threads are ours on both sides.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import boto3
from boto3.s3.transfer import TransferConfig

from s3tasks import ConsistentS3, Settings
from s3tasks.sandbox import RedisServer
from tests.benchmarks.fast_s3 import FastS3
from tests.benchmarks.figures import Figure
from tests.conftest import REPOSITORY

SUBJECT = "large"
SIZE_BYTES = 2**30
SMALL_BYTES = 2**26
MOST_TO_S3TRANSFER = 1.05
MOST_ROUNDS = 5
MOST_GROWTH_MIB = 32.0
BUCKET = "benchmark"
KEY = "large"


def move(who: str, url: str, ledger_url: str, folder: str) -> None:
    """Up and down once; says the seconds of each, and the peak of resident memory in MiB. In a process of its own."""
    source, target = Path(folder) / "source", Path(folder) / "target"
    up, down = (_ours if who == "s3tasks" else _s3transfer)(url, ledger_url, source, target)
    seconds = [_seconds(up), _seconds(down)]
    if target.stat().st_size != source.stat().st_size:
        raise RuntimeError("the file came back with another size")
    target.unlink()
    # Linux's own line for it: what getrusage says counts the process that this one was forked from.
    peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    sys.stdout.write(f"{seconds[0]} {seconds[1]} {int(peak.split()[1]) / 1024}\n")


def _ours(url: str, ledger_url: str, source: Path, target: Path) -> tuple[Callable[[], object], Callable[[], object]]:
    store = ConsistentS3.from_settings(Settings(ledger_url=ledger_url, endpoint_url=url))
    # The connections and the ledger's scripts are there before the clock starts, as boto3's client is.
    store.write(b"warm", f"s3://{BUCKET}/warm")
    name = f"s3://{BUCKET}/{KEY}-ours"
    return lambda: store.upload(source, name), lambda: store.download(name, target)


def _s3transfer(url: str, _: str, source: Path, target: Path) -> tuple[Callable[[], object], Callable[[], object]]:
    settings = Settings()
    client = boto3.client("s3", endpoint_url=url)
    client.put_object(Bucket=BUCKET, Key="warm", Body=b"warm")
    config = TransferConfig(
        multipart_threshold=settings.multipart_threshold_bytes, multipart_chunksize=settings.part_bytes,
        max_concurrency=settings.concurrent_requests, preferred_transfer_client="classic",
    )
    return (
        lambda: client.upload_file(str(source), BUCKET, KEY, Config=config),
        lambda: client.download_file(BUCKET, KEY, str(target), Config=config),
    )


def _seconds(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def _moved(who: str, store_url: str, ledger_url: str, folder: str) -> list[float]:
    command = [sys.executable, "-m", "tests.benchmarks.large", who, store_url, ledger_url, folder]
    environment = {
        **os.environ, "AWS_ACCESS_KEY_ID": "benchmark", "AWS_SECRET_ACCESS_KEY": "benchmark", "AWS_DEFAULT_REGION": "us-east-1",
    }
    said = subprocess.run(command, cwd=REPOSITORY, env=environment, check=True, capture_output=True, text=True, timeout=300)
    return [float(number) for number in said.stdout.split()]


def measure(rounds: int) -> list[Figure]:
    """Ratios of time, and peaks of memory, over at most five rounds: each moves four gibibytes."""
    with tempfile.TemporaryDirectory() as folder, FastS3() as store, RedisServer() as redis:
        small = _of_size(SMALL_BYTES, folder, store.url, redis.url, rounds=1)
        large = _of_size(SIZE_BYTES, folder, store.url, redis.url, rounds=min(rounds, MOST_ROUNDS))
    figures = []
    for place, verb in enumerate(("upload", "download")):
        ratio = statistics.median(mine[place] / theirs[place] for mine, theirs in zip(*large.values(), strict=True))
        seconds = statistics.median(mine[place] for mine in large["s3tasks"])
        figures += [
            Figure(SUBJECT, f"{verb} of 1 GiB", SIZE_BYTES / 2**20 / seconds, "MiB/s"),
            Figure(SUBJECT, f"{verb} of 1 GiB: time / s3transfer", ratio, "ratio", MOST_TO_S3TRANSFER),
        ]
    peaks = {who: statistics.median(moved[2] for moved in each) for who, each in large.items()}
    growth = peaks["s3tasks"] - small["s3tasks"][0][2]
    return [
        *figures,
        *(Figure(SUBJECT, f"peak of resident memory, 1 GiB, {who}", peak, "MiB") for who, peak in peaks.items()),
        Figure(SUBJECT, "peak of resident memory, 1 GiB over 64 MiB", growth, "MiB", MOST_GROWTH_MIB),
    ]


def _of_size(size_bytes: int, folder: str, store_url: str, ledger_url: str, *, rounds: int) -> dict[str, list[list[float]]]:
    with (Path(folder) / "source").open("wb") as source:
        block = os.urandom(2**20)
        for _ in range(size_bytes // 2**20):
            source.write(block)
    moved: dict[str, list[list[float]]] = {"s3tasks": [], "s3transfer": []}
    for number in range(rounds):
        for who in sorted(moved, reverse=bool(number % 2)):
            moved[who].append(_moved(who, store_url, ledger_url, folder))
    return moved


if __name__ == "__main__":
    move(*sys.argv[1:])
