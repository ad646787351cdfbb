"""The cache: a hit, ledger check and verification included, next to boto3's own get_object of the same body.

It never measures a fill, or a body that is not in the page cache.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from tests.benchmarks.figures import Figure, interleaved
from tests.benchmarks.in_process import SIZES, calls_of, served

_SLOW_SECONDS = 0.015
_GOALS = {"1 KiB": 0.12, "64 KiB": None, "1 MiB": 0.2}
_SLOW_GOAL = 0.02
_REPEAT = 60


def measure(rounds: int) -> list[Figure]:
    """Ratios of a hit to a get_object, on a store that answers at once and on one that takes 15 ms."""
    figures = []
    for delay_seconds, store in ((0.0, "at once"), (_SLOW_SECONDS, "after 15 ms")):
        with tempfile.TemporaryDirectory() as folder, served(delay_seconds, cache_dir=str(Path(folder) / "cache")) as (ours, plain):
            for size, size_bytes in SIZES.items():
                calls = {name: call for name, call in calls_of(ours, plain, size_bytes).items() if name in ("read", "get_object")}
                calls["read"]()
                costs = interleaved(calls, rounds=rounds, repeat=_REPEAT if not delay_seconds else _REPEAT // 6)
                hit, plain_get = costs["read"], costs["get_object"]
                goal = _SLOW_GOAL if delay_seconds else _GOALS[size]
                wall = hit.wall_seconds / plain_get.wall_seconds
                figures.append(Figure("cached", f"hit, {size}, store answers {store}: time / get_object", wall, "ratio", goal))
                if not delay_seconds:
                    cpu = hit.cpu_seconds / plain_get.cpu_seconds
                    figures.append(Figure("cached", f"hit, {size}: CPU / get_object", cpu, "ratio", goal))
            assert ours.cache_counts()["hits"] > rounds
    return figures
