"""`s3tasks doctor`: the findings, for a person or as JSON.

It never asks anything itself.
"""

from __future__ import annotations

import argparse
import signal
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

from s3tasks.cli.terminal import (
    DONE,
    FAILED,
    USAGE,
    Surroundings,
    count,
    interrupt,
    plain,
    put,
    put_json,
    say,
    seconds,
)

if TYPE_CHECKING:
    from s3tasks.doctor import Finding, Report

_DESCRIPTION = (
    "Asks Redis, S3 (by trying it on scratch objects that are removed again) and, as `celery -A APP s3tasks doctor`, Celery and "
    "its workers, and says what it asked, what it heard and what to change. Status 0: nothing to change; 1: something to change; "
    "2: wrong arguments, or nothing answered."
)
_AREAS = {"redis": "Redis", "celery": "Celery", "s3": "S3"}
_HOLDS = {True: "yes", False: "no", None: "?"}


def add_to(commands: Any) -> None:
    """Adds the command."""
    command = commands.add_parser("doctor", help="what Redis, Celery and S3 really do, what to change", description=_DESCRIPTION)
    command.set_defaults(run=_doctor)
    command.add_argument("--bucket", metavar="BUCKET[/PREFIX]", help="where S3 is tried; without it, it is not asked")
    command.add_argument("--tries", type=count, default=20, help="writes that the lag is measured with (default: 20)")
    command.add_argument(
        "--wait", type=seconds, default=30.0, metavar="SECONDS", help="how long one of them is waited for (default: 30)"
    )
    command.add_argument("--seconds", type=seconds, default=120.0, help="how long all of it may take (default: 120)")
    command.add_argument("--json", action="store_true", help="print JSON")


def _doctor(options: argparse.Namespace, surroundings: Surroundings) -> int:
    from s3tasks.doctor import Trial, examine

    trial = None
    if options.bucket is not None:
        bucket, _, prefix = options.bucket.removeprefix("s3://").partition("/")
        trial = Trial(bucket, prefix, options.tries, options.wait)
    # Told to stop, it removes its scratch objects first, as after Ctrl-C.
    signal.signal(signal.SIGTERM, interrupt)
    say(f"asking; this takes up to {options.seconds:g} s …")
    report = examine(surroundings.settings(), app=surroundings.app, trial=trial, seconds=options.seconds)
    if options.json:
        put_json(report.to_dict())
    else:
        for line in lines_of(report):
            put(plain(line))
    if not report.reached:
        return USAGE
    return FAILED if report.to_change else DONE


def lines_of(report: Report) -> Iterator[str]:
    """The report in words."""
    for area, findings in groupby(report.findings, lambda finding: finding.name.partition(".")[0]):
        yield f"{_AREAS[area]}"
        for _, alike in groupby(findings, lambda finding: finding.heard if finding.verdict.value == "unknown" else finding.name):
            yield from _lines_of_some(list(alike))
        yield ""
    yield "What holds here"
    yield f"  checking reads against the ledger: {report.verification}"
    for guarantee in report.guarantees:
        yield f"  {_HOLDS[guarantee.holds]:<4} {guarantee.text}"
    yield ""
    if report.settings:
        yield "Settings that fit better than those in force"
        for name, value in report.settings.items():
            yield f"  {name} = {value}   (S3TASKS_{name.upper()}={value})"
        yield ""
    yield _last_line_of(report)


def _last_line_of(report: Report) -> str:
    changes, unanswered = len(report.to_change), sum(finding.verdict.value == "unknown" for finding in report.findings)
    to_change = f"{_counted(changes, 'thing')} to change: see the lines with ->." if changes else "Nothing to change."
    return f"{to_change} {_counted(unanswered, 'question')} without an answer." if unanswered else to_change


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"


def _lines_of_some(alike: Sequence[Finding]) -> Iterator[str]:
    """One finding, or some that have no answer for one reason."""
    finding = alike[0]
    yield f"  {finding.verdict.value:<8} {finding.question if len(alike) == 1 else _counted(len(alike), 'question')}"
    yield f"           {finding.heard}"
    if finding.advice:
        yield f"        -> {finding.advice}"
