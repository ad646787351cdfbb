"""A real Celery worker in a process of its own, started and ended like a deployed one.

It never imports Celery, and never knows what the worker's tasks do.
"""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from s3tasks.sandbox.processes import Child, Guardian, wait_until

_QUIET = ("--without-gossip", "--without-mingle", "--without-heartbeat")
_numbers = itertools.count(1)


class WorkerProcess:
    """A running worker. Made by `Sandbox.start_worker`; `name` is its node name, `log_path` where it writes."""

    def __init__(self, child: Child, name: str, log_path: Path) -> None:
        self._child = child
        self.name = name
        self.log_path = log_path

    @property
    def pid(self) -> int:
        """The id of the main process."""
        return self._child.pid

    @property
    def running(self) -> bool:
        """Whether the main process is there."""
        return self._child.running

    def log(self) -> str:
        """Everything the worker has said so far."""
        return self._child.log()

    def stop(self, timeout_seconds: float = 20.0) -> None:
        """Ask for a warm shutdown (SIGTERM): tasks may finish within the time, then all its processes are killed."""
        self._child.stop(timeout_seconds)

    def kill(self) -> None:
        """Crash the worker: SIGKILL for the main process, then for its pool. What it was doing stays unacknowledged."""
        self._child.kill()


def start_worker_process(
    guardian: Guardian,
    command_line: Sequence[str],
    *,
    directory: Path,
    environment: Mapping[str, str],
    log_path: Path,
    ready_timeout_seconds: float,
) -> WorkerProcess:
    """Start a worker with these arguments and wait until it says that it is ready.

    Raises RuntimeError with the end of its log when it is not ready within the time or ends before.
    """
    name = f"sandbox-{os.getpid()}-{next(_numbers)}@localhost"
    command = [sys.executable, "-m", "celery", *command_line, *_QUIET, "-n", name]
    already_there = log_path.stat().st_size if log_path.exists() else 0
    child = Child(guardian, command, log_path, directory=directory, environment=environment)
    worker = WorkerProcess(child, name, log_path)
    try:
        wait_until(lambda: not child.running or _is_ready(log_path, already_there), ready_timeout_seconds, 0.05)
        if not child.running or not _is_ready(log_path, already_there):
            raise RuntimeError(f"the worker is not ready; it said:\n{child.log_tail()}")
    except BaseException:
        worker.kill()
        raise
    return worker


def _is_ready(log_path: Path, offset: int) -> bool:
    return b"ready." in log_path.read_bytes()[offset:]
