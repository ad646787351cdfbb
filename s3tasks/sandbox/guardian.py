"""Ends the processes of a sandbox when the process that started them is gone, however it went.

It never starts anything, never speaks to Redis or S3, and imports the standard library only: it is run by path.

Lines on standard input: `+PID` guard this process (a session leader), `-PID` it has ended, `/DIRECTORY` remove this at
the end. End of file, or a new parent, means that the starter is gone.
"""

from __future__ import annotations

import os
import select
import shutil
import signal
import sys
import time
from collections.abc import Callable

PARENT_POLL_SECONDS = 0.5
"""How often the parent is looked at: a fork of the starter may hold the pipe open after the starter was killed."""


def main(grace_seconds: float) -> None:
    """Guard until the starter is gone, then end what is still listed and remove what was listed for removal."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    pids, directories = _watch(os.getppid())
    _end(pids, grace_seconds)
    for directory in directories:
        shutil.rmtree(directory, ignore_errors=True)


def _watch(starter_pid: int) -> tuple[set[int], set[str]]:
    pids: set[int] = set()
    directories: set[str] = set()
    rest = b""
    while os.getppid() == starter_pid:
        if not select.select([0], [], [], PARENT_POLL_SECONDS)[0]:
            continue
        received = os.read(0, 65536)
        if not received:
            break
        *lines, rest = (rest + received).split(b"\n")
        for line in lines:
            _note(os.fsdecode(line), pids, directories)
    return pids, directories


def _note(line: str, pids: set[int], directories: set[str]) -> None:
    if line.startswith("/"):
        directories.add(line)
    elif line.startswith("+"):
        pids.add(int(line[1:]))
    elif line.startswith("-"):
        pids.discard(int(line[1:]))


def _end(pids: set[int], grace_seconds: float) -> None:
    for pid in pids:
        # A stopped process takes no SIGTERM until it goes on.
        _signal(os.kill, pid, signal.SIGTERM)
        _signal(os.kill, pid, signal.SIGCONT)
    deadline = time.monotonic() + grace_seconds
    while time.monotonic() < deadline and any(_signal(os.killpg, pid, 0) for pid in pids):
        time.sleep(0.02)
    for pid in pids:
        _signal(os.killpg, pid, signal.SIGKILL)


def _signal(send: Callable[[int, int], None], pid: int, number: int) -> bool:
    try:
        send(pid, number)
    except (ProcessLookupError, PermissionError):
        return False
    return True


if __name__ == "__main__":
    main(float(sys.argv[1]))
