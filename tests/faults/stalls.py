"""python -m tests.faults.stalls COMMAND …: runs a command on a machine that stands still now and then, as a shared one does.

It never stops a process that is stopped already, nor one that the command has not started: what it has started is known by a
variable in its environment (Linux' /proc), so children that change their session or lose their parent are stopped as well.

    python -m tests.faults.stalls --seed 2 .venv/bin/python -m pytest -n 3 --dist worksteal
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

MARK = "S3TASKS_STALLED_BY"
GAP_SECONDS = (3.0, 10.0)
STALL_SECONDS = (0.5, 1.0, 2.0, 3.0, 4.0, 6.0)
SHARE_OF_SOME = 0.35


def main() -> int:
    asked = _arguments()
    chance, mark = random.Random(asked.seed), f"{MARK}={os.getpid()}"
    command = subprocess.Popen(asked.command, env={**os.environ, MARK: str(os.getpid())})
    stalls = 0
    while not _over(command, chance.uniform(*GAP_SECONDS)):
        # Half of the time all of them, as a hypervisor does; else some, as a full processor or a slow disk does.
        share = 1.0 if chance.random() < 0.5 else SHARE_OF_SOME
        with _stopped([pid for pid in _running(mark) if chance.random() < share]):
            time.sleep(chance.choice(STALL_SECONDS))
        stalls += 1
    print(f"{stalls} stalls, seed {asked.seed}")  # noqa: T201 - a command for people
    return command.returncode


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.stalls", description="Runs a command while its processes stall.")
    parser.add_argument("--seed", type=int, default=1, help="what the stalls are drawn from")
    parser.add_argument("command", nargs=argparse.REMAINDER, help="the command and its arguments")
    asked = parser.parse_args()
    if not asked.command:
        parser.error("name a command to run")
    return asked


def _over(command: subprocess.Popen[bytes], within_seconds: float) -> bool:
    with suppress(subprocess.TimeoutExpired):
        command.wait(within_seconds)
        return True
    return False


def _running(mark: str) -> Iterator[int]:
    """Processes of the command that are not stopped by somebody else."""
    for process in Path("/proc").glob("[0-9]*"):
        # A process that ends meanwhile takes its files with it.
        with suppress(OSError):
            state = (process / "stat").read_text().rpartition(")")[2].split()[0]
            if state != "T" and mark.encode() in (process / "environ").read_bytes().split(b"\0"):
                yield int(process.name)


@contextmanager
def _stopped(pids: list[int]) -> Iterator[None]:
    try:
        _signal(pids, signal.SIGSTOP)
        yield
    finally:
        _signal(pids, signal.SIGCONT)


def _signal(pids: list[int], number: signal.Signals) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


if __name__ == "__main__":
    sys.exit(main())
