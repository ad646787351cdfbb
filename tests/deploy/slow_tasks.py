"""Tasks of a user's own in the deployable worker: they say in a file when they begin and when they end."""

from __future__ import annotations

import time
from pathlib import Path

from celery import shared_task

PATIENCE_SECONDS = 120.0


@shared_task(name="tests.nap")
def nap(path: str, seconds: float) -> str:
    """Sleeps, and leaves a line before and one after."""
    _say(path, "begun")
    time.sleep(seconds)
    _say(path, "ended")
    return path


@shared_task(name="tests.nap_until")
def nap_until(path: str, awaited: str) -> str:
    """Sleeps until a file is there, however slow the machine is, and leaves a line before and one after."""
    _say(path, "begun")
    gives_up_at = time.monotonic() + PATIENCE_SECONDS
    while not Path(awaited).exists():
        if time.monotonic() > gives_up_at:
            raise TimeoutError(f"{awaited} never came")
        time.sleep(0.02)
    _say(path, "ended")
    return path


def _say(path: str, line: str) -> None:
    with Path(path).open("a") as said:
        said.write(f"{line}\n")
