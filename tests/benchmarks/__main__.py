"""Every figure, in one command: `python -m tests.benchmarks [SUBJECT ...] [--rounds 9] [--json FILE]`.

It never asserts anything: figures are for people to judge.
"""

from __future__ import annotations

import argparse
import sys
from importlib import import_module
from pathlib import Path

from tests.benchmarks.figures import Figure, as_json, as_table

SUBJECTS: tuple[str, ...] = (
    "in_process", "cached", "in_celery", "waiting", "many", "large", "ledger_scale", "ledger_million", "start_up",
)
"""Modules of this folder, each with `measure(rounds: int) -> list[Figure]`."""


def main(arguments: list[str]) -> None:
    """Measures the subjects, and says the figures as soon as each is done."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks")
    parser.add_argument("subjects", nargs="*", metavar="SUBJECT", help=f"of {', '.join(SUBJECTS)}; none named: all")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, with versions")
    chosen = parser.parse_args(arguments)
    unknown = set(chosen.subjects) - set(SUBJECTS)
    if unknown:
        parser.error(f"no such subject: {', '.join(sorted(unknown))} (there are {', '.join(SUBJECTS)})")
    figures: list[Figure] = []
    for subject in chosen.subjects or SUBJECTS:
        measured = import_module(f"tests.benchmarks.{subject}").measure(chosen.rounds)
        sys.stdout.write(as_table(measured) + "\n")
        sys.stdout.flush()
        figures += measured
    if chosen.json:
        chosen.json.write_text(as_json(figures))


if __name__ == "__main__":
    main(sys.argv[1:])
