"""Many seeds over several processes, each with a Redis of its own, and what came of them as a table.

It never stops at the first failure of a run: every seed is counted, and the first failures are told in full.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from s3tasks.sandbox import RedisServer
from tests.faults.schedules.checker import Violation, violations
from tests.faults.schedules.families import FAMILIES, Family
from tests.faults.schedules.history import History, Read
from tests.faults.schedules.plan import Schedule
from tests.faults.schedules.protocols import Package, Runnable
from tests.faults.schedules.scheduler import draw, play
from tests.faults.schedules.shrink import shortest
from tests.faults.schedules.telling import told
from tests.faults.schedules.wire import Wire

_TOLD_PER_FAMILY = 3


@dataclass
class Tally:
    """What came of a family's schedules. `broken` counts schedules by guarantee, `told` holds the first failures in words."""

    schedules: int = 0
    reads: int = 0
    seconds: float = 0.0
    outcomes: Counter[str] = field(default_factory=Counter)
    broken: Counter[str] = field(default_factory=Counter)
    told: list[str] = field(default_factory=list)

    def add(self, other: Tally) -> None:
        self.schedules += other.schedules
        self.reads += other.reads
        self.seconds += other.seconds
        self.outcomes += other.outcomes
        self.broken += other.broken
        self.told += other.told[: max(0, _TOLD_PER_FAMILY - len(self.told))]

    def failures(self, family: Family) -> int:
        return sum(count for guarantee, count in self.broken.items() if guarantee in family.asserts)


@contextmanager
def redis_socket() -> Iterator[str]:
    """A Redis for this process alone; the path of its unix socket."""
    with tempfile.TemporaryDirectory(prefix="s3t-") as directory:
        path = str(Path(directory) / "redis.sock")
        with RedisServer(("--unixsocket", path)):
            yield path


def run_family(family: Family, protocol: Runnable, wire: Wire, seeds: range) -> Tally:
    """All seeds of the range, judged and counted."""
    tally, begun = Tally(), time.perf_counter()
    for seed in seeds:
        played = draw(family, protocol, wire, seed)
        found = violations(played.history)
        _count(tally, played.history, found)
        failed = [violation for violation in found if violation.guarantee in family.asserts]
        if failed and len(tally.told) < _TOLD_PER_FAMILY:
            tally.told.append(explained(family, protocol, wire, played.schedule, failed[0]))
    tally.seconds = time.perf_counter() - begun
    return tally


def explained(family: Family, protocol: Runnable, wire: Wire, schedule: Schedule, violation: Violation) -> str:
    """The shortest schedule that breaks the same guarantee, in words."""

    def breaks(candidate: Schedule) -> list[Violation]:
        history = play(family, protocol, wire, candidate).history
        return [found for found in violations(history) if found.guarantee == violation.guarantee]

    short = shortest(schedule, lambda candidate: bool(breaks(candidate)))
    why = "; ".join(found.text for found in breaks(short) or [violation])
    return f"BROKEN: {violation.guarantee}: {why}\n{told(family, protocol, wire, short)}"


def _count(tally: Tally, history: History, found: list[Violation]) -> None:
    tally.schedules += 1
    tally.reads += len(history.reads)
    tally.outcomes.update(_outcome(read) for read in history.reads)
    tally.broken.update({violation.guarantee for violation in found})


def _outcome(read: Read) -> str:
    return read.error or ("absent" if read.body is None else "object")


def campaign(runs: int, first_seed: int, processes: int, names: list[str]) -> dict[str, Tally]:
    """So many schedules in all, evenly over the families and the processes."""
    share = -(-runs // (processes * len(names)))
    parts = [(names, first_seed + number * share, share) for number in range(processes)]
    totals = {name: Tally() for name in names}
    # Spawned, not forked: nothing of this process is shared with them.
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
        for part in pool.map(_part, parts):
            for name, tally in part.items():
                totals[name].add(tally)
    return totals


def _part(task: tuple[list[str], int, int]) -> dict[str, Tally]:
    names, first, count = task
    logging.getLogger("s3tasks").setLevel(logging.ERROR)
    with redis_socket() as path:
        wire = Wire(path)
        tallies = {}
        for name in names:
            family = FAMILIES[name]
            protocol = Package(family.settings_for(f"unix://{path}"), wire)
            tallies[name] = run_family(family, protocol, wire, range(first, first + count))
        wire.close()
    return tallies


def available_processes() -> int:
    return min(os.cpu_count() or 1, 8)
