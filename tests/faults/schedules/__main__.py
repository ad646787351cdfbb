"""python -m tests.faults.schedules: runs as many seeded schedules as asked and prints what came of them.

It never hides a broken promise: a family that must keep it fails the run, one that need not shows the count.
"""

from __future__ import annotations

import argparse
import sys
import time

from tests.faults.schedules.campaign import Tally, available_processes, campaign
from tests.faults.schedules.checker import CHECKS
from tests.faults.schedules.families import FAMILIES


def main() -> int:
    asked = _arguments()
    begun = time.perf_counter()
    tallies = campaign(asked.runs, asked.seed, asked.processes, asked.family or list(FAMILIES))
    seconds = time.perf_counter() - begun
    lines = [_table(tallies)]
    lines += [f"\n{text}" for tally in tallies.values() for text in tally.told]
    schedules = sum(tally.schedules for tally in tallies.values())
    failures = sum(tally.failures(FAMILIES[name]) for name, tally in tallies.items())
    lines.append(f"\n{schedules} schedules in {seconds:.0f} s, {schedules / seconds:.0f} per second; {failures} broken promises")
    print("\n".join(lines))  # noqa: T201 - a command for people
    return 1 if failures else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.schedules", description=__doc__)
    parser.add_argument("--runs", type=int, default=10_000, help="schedules in all (default 10000)")
    parser.add_argument("--seed", type=int, default=1, help="the first seed")
    parser.add_argument("--processes", type=int, default=available_processes())
    parser.add_argument("--family", action="append", choices=list(FAMILIES), help="only this family (may be repeated)")
    return parser.parse_args()


def _table(tallies: dict[str, Tally]) -> str:
    heads = ["family", "schedules", "reads", "object", "absent", "other", *CHECKS, "per s"]
    rows = [heads, *(_row(name, tally) for name, tally in tallies.items())]
    widths = [max(len(row[column]) for row in rows) for column in range(len(heads))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([*lines, "(n): counted, not promised for this family"])


def _row(name: str, tally: Tally) -> list[str]:
    asserts = FAMILIES[name].asserts
    other = tally.reads - tally.outcomes["object"] - tally.outcomes["absent"]
    counted = [str(tally.broken[check]) if check in asserts else f"({tally.broken[check]})" for check in CHECKS]
    figures = [tally.schedules, tally.reads, tally.outcomes["object"], tally.outcomes["absent"], other]
    return [name, *map(str, figures), *counted, f"{tally.schedules / max(tally.seconds, 1e-9):.0f}"]


if __name__ == "__main__":
    sys.exit(main())
