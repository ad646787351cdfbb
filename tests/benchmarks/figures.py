"""What benchmarks say: figures with their goals, as a table for people and as JSON for programs; and the rounds they come from.

It never knows what is measured.
"""

from __future__ import annotations

import json
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version

MEASURED_WITH = ("s3tasks", "celery", "kombu", "boto3", "botocore", "redis", "tenacity")


@dataclass(frozen=True)
class Figure:
    """One figure. `goal` is what it should reach: at most that, or (`at_least`) no less; None where there is none."""

    subject: str
    name: str
    value: float
    unit: str
    goal: float | None = None
    at_least: bool = False

    @property
    def met(self) -> bool | None:
        """Whether the goal is reached; None where there is none."""
        if self.goal is None:
            return None
        return self.value >= self.goal if self.at_least else self.value <= self.goal


@dataclass(frozen=True)
class Cost:
    """What one call costs: seconds on the clock, and seconds of this process's CPU."""

    wall_seconds: float
    cpu_seconds: float


def interleaved(calls: Mapping[str, Callable[[], object]], *, rounds: int, repeat: int) -> dict[str, Cost]:
    """The median cost of one call of each, over rounds in which each takes its turn `repeat` times.

    Turns change their order from round to round, so that whatever else the machine does falls on all alike.
    """
    costs: dict[str, list[Cost]] = {name: [] for name in calls}
    names = list(calls)
    for number in range(rounds):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            costs[name].append(_cost(calls[name], repeat))
    return {
        name: Cost(
            statistics.median(cost.wall_seconds for cost in each), statistics.median(cost.cpu_seconds for cost in each)
        )
        for name, each in costs.items()
    }


def _cost(call: Callable[[], object], repeat: int) -> Cost:
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(repeat):
        call()
    return Cost((time.perf_counter() - wall) / repeat, (time.process_time() - cpu) / repeat)


def as_table(figures: Sequence[Figure]) -> str:
    """The figures for people, a line each."""
    lines = []
    for figure in figures:
        goal = "" if figure.goal is None else f"{'at least' if figure.at_least else 'at most'} {figure.goal:g}"
        verdict = {None: "", True: "met", False: "MISSED"}[figure.met]
        told = f"{figure.subject:<14} {figure.name:<72} {figure.value:>12.4g} {figure.unit:<12} {goal:<15} {verdict}"
        lines.append(told.rstrip())
    return "\n".join(lines)


def as_json(figures: Sequence[Figure]) -> str:
    """The figures with the versions they were measured with."""
    versions = {"python": platform.python_version(), **{name: version(name) for name in MEASURED_WITH}}
    return json.dumps({"versions": versions, "figures": [{**asdict(figure), "met": figure.met} for figure in figures]}, indent=1)
