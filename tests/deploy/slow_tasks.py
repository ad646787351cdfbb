"""Tasks of a user's own in the deployable worker: they say in a file when they begin and when they end."""

from __future__ import annotations

import time
from pathlib import Path

from celery import shared_task


@shared_task(name="tests.nap")
def nap(path: str, seconds: float) -> str:
    """Sleeps, and leaves a line before and one after."""
    with Path(path).open("a") as said:
        said.write("begun\n")
    time.sleep(seconds)
    with Path(path).open("a") as said:
        said.write("ended\n")
    return path
