"""The price of consistency in process: read and write, ledger included, next to boto3's own get_object and put_object.

It never measures S3: what answers is so quick that the client's own cost is nearly all there is.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import boto3

from s3tasks import ConsistentS3, Settings
from s3tasks.sandbox import RedisServer
from tests.benchmarks.fast_s3 import FastS3
from tests.benchmarks.figures import Figure, interleaved

SIZES = {"1 KiB": 1024, "64 KiB": 64 * 1024, "1 MiB": 1024 * 1024}
BUCKET = "benchmark"
_GOALS = {"read": 0.35, "write": 0.45}
_PEERS = {"read": "get_object", "write": "put_object"}
_REPEAT = 60


def plain_client(url: str) -> Any:
    """boto3's client as it comes."""
    return boto3.client("s3", endpoint_url=url)


@contextmanager
def served(delay_seconds: float = 0.0, **settings: Any) -> Iterator[tuple[ConsistentS3, Any]]:
    """A client of ours and one of boto3's, of one fast S3, with a ledger of its own."""
    os.environ.update(AWS_ACCESS_KEY_ID="benchmark", AWS_SECRET_ACCESS_KEY="benchmark", AWS_DEFAULT_REGION="us-east-1")
    with FastS3(delay_seconds) as store, RedisServer() as redis:
        ours = ConsistentS3.from_settings(Settings(ledger_url=redis.url, endpoint_url=store.url, **settings))
        plain = plain_client(store.url)
        try:
            yield ours, plain
        finally:
            ours.close()
            plain.close()


def calls_of(ours: ConsistentS3, plain: Any, size_bytes: int) -> dict[str, Callable[[], object]]:
    """The four calls that are compared, on one object of that size."""
    body, key = os.urandom(size_bytes), f"object-{size_bytes}"
    written = ours.write(body, f"s3://{BUCKET}/{key}").to_dict()
    plain.put_object(Bucket=BUCKET, Key=f"{key}-plain", Body=body)
    return {
        "get_object": lambda: plain.get_object(Bucket=BUCKET, Key=f"{key}-plain")["Body"].read(),  # noqa: PLW0108 - asks each time
        "read": lambda: ours.read(written),
        "put_object": lambda: plain.put_object(Bucket=BUCKET, Key=f"{key}-plain", Body=body),
        "write": lambda: ours.write(body, f"s3://{BUCKET}/{key}-written"),
    }


def measure(rounds: int) -> list[Figure]:
    """Ratios of CPU and of time on the clock, per size."""
    figures = []
    with served() as (ours, plain):
        for size, size_bytes in SIZES.items():
            calls = calls_of(ours, plain, size_bytes)
            for call in calls.values():
                call()
            figures += _figures(size, interleaved(calls, rounds=rounds, repeat=_REPEAT if size_bytes < 2**20 else _REPEAT // 3))
    return figures


def _figures(size: str, costs: Any) -> list[Figure]:
    figures = []
    for verb, peer in _PEERS.items():
        ours, plain = costs[verb], costs[peer]
        figures += [
            Figure("in_process", f"{peer}, {size}: CPU", plain.cpu_seconds * 1000, "ms"),
            Figure("in_process", f"{verb}, {size}: CPU", ours.cpu_seconds * 1000, "ms"),
            Figure("in_process", f"{verb}, {size}: CPU / {peer}", ours.cpu_seconds / plain.cpu_seconds, "ratio", _GOALS[verb]),
            Figure("in_process", f"{verb}, {size}: time / {peer}", ours.wall_seconds / plain.wall_seconds, "ratio", _GOALS[verb]),
        ]
    return figures
