"""Child processes that end with the process that started them, even when that one is killed.

It never knows what the children do, and never signals a process that it did not start.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO

_GUARDIAN = Path(__file__).with_name("guardian.py")
_PACKAGE_PARENT = Path(__file__).resolve().parents[2]
_REGISTER_THEN_RUN = 'echo "+$$" >&0; exec "$@" </dev/null'
"""Standard input is the guardian's pipe: the child is on its list before it runs, so there is no gap to die in."""


class SandboxUnavailable(RuntimeError):
    """The sandbox cannot run here; the message says what is missing, or ends with the last lines of what failed."""


class Guardian:
    """One process that outlives this one just long enough to end its children; started with the first child.

    `grace_seconds` is how long children may take to end on SIGTERM after this process has died before they are killed.
    """

    def __init__(self, grace_seconds: float = 5.0) -> None:
        self._grace_seconds = grace_seconds
        self._process: subprocess.Popen[bytes] | None = None
        self._owner_pid = os.getpid()

    @property
    def pid(self) -> int | None:
        """The guardian's process id; None before the first child and after `close`."""
        return self._process.pid if self._process else None

    @property
    def owned(self) -> bool:
        """Whether this process started it: a fork inherits the object, not the children."""
        return self._owner_pid == os.getpid()

    def pipe(self) -> IO[bytes]:
        """The pipe on which processes to guard are announced; starts the guardian when there is none."""
        if self._process is None:
            command = [sys.executable, "-I", "-S", str(_GUARDIAN), str(self._grace_seconds)]
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
                bufsize=0,
            )
        if self._process.stdin is None:
            raise RuntimeError("the guardian was started without a pipe")
        return self._process.stdin

    def private_directory(self) -> Path:
        """A new directory for this user only, which the guardian removes once this process is gone."""
        directory = tempfile.mkdtemp(prefix="s3tasks-sandbox-")
        self._write(self.pipe(), directory)
        return Path(directory)

    def forget(self, pid: int) -> None:
        """Take a process that has ended off the list, so that its number may be used again."""
        if self._process is not None:
            self._write(self.pipe(), f"-{pid}")

    @staticmethod
    def _write(pipe: IO[bytes], line: str) -> None:
        # A guardian that somebody killed leaves a broken pipe; starting children reports that, ending them must not.
        with contextlib.suppress(BrokenPipeError):
            pipe.write(os.fsencode(line) + b"\n")

    def close(self) -> None:
        """Let the guardian end what is still listed, and wait for it. Calling it again does nothing."""
        process, self._process = self._process, None
        if process is None:
            return
        if process.stdin is not None:
            process.stdin.close()
        process.wait()


class Child:
    """One running child process, the leader of its own session, with everything it says in a log file.

    `command` is run without a shell's interpretation, `log_path` receives its output (appended), `environment` replaces
    this process's. With `with_stdout` its standard output is kept apart and offered as `stdout`.
    """

    def __init__(
        self,
        guardian: Guardian,
        command: Sequence[str],
        log_path: Path,
        *,
        directory: Path | None = None,
        environment: Mapping[str, str] | None = None,
        with_stdout: bool = False,
    ) -> None:
        self._guardian = guardian
        self._log_path = log_path
        with log_path.open("ab") as log:
            self._process = subprocess.Popen(
                ["/bin/sh", "-c", _REGISTER_THEN_RUN, "sh", *command],
                stdin=guardian.pipe(),
                stdout=subprocess.PIPE if with_stdout else log,
                stderr=log,
                cwd=directory,
                env=None if environment is None else dict(environment),
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """The process id; it names the process group as well."""
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether the process has not ended yet."""
        return self._process.poll() is None

    @property
    def stdout(self) -> IO[bytes]:
        """Its standard output, when it was started `with_stdout`."""
        if self._process.stdout is None:
            raise RuntimeError("this child was started without a standard output of its own")
        return self._process.stdout

    def log(self) -> str:
        """Everything it has said so far."""
        return self._log_path.read_text(encoding="utf-8", errors="replace") if self._log_path.exists() else ""

    def log_tail(self, lines: int = 20) -> str:
        """The last lines of what it has said."""
        return "\n".join(self.log().splitlines()[-lines:])

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the process itself; one that has ended gets none."""
        self._process.send_signal(number)

    def stop(self, timeout_seconds: float) -> None:
        """Ask it to end (SIGTERM to the leader), wait, then kill what is left of its group."""
        if self.running:
            self.signal(signal.SIGTERM)
            self.signal(signal.SIGCONT)
            try:
                self._process.wait(timeout_seconds)
            except subprocess.TimeoutExpired:
                self.signal(signal.SIGKILL)
        self._finish()

    def kill(self) -> None:
        """End the process with SIGKILL, then everything it left in its group."""
        self.signal(signal.SIGKILL)
        self._finish()

    def _finish(self) -> None:
        # The leader is waited for first: its pool's processes must not see a chance to be replaced.
        self._process.wait()
        # Nobody left in the group is the usual case (macOS says "not permitted" where only zombies are).
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._guardian.forget(self.pid)


def wait_until(condition: Callable[[], bool], timeout_seconds: float, interval_seconds: float = 0.01) -> bool:
    """Whether the condition came true within the time; it is asked at least once."""
    deadline = time.monotonic() + timeout_seconds
    while not condition():
        if time.monotonic() >= deadline:
            return False
        time.sleep(interval_seconds)
    return True


def environment_with_package(*overlays: Mapping[str, str]) -> dict[str, str]:
    """The environment of this process, changed by the overlays, in which this very copy of s3tasks can be imported."""
    environment = dict(os.environ)
    for overlay in overlays:
        environment.update(overlay)
    inherited = environment.get("PYTHONPATH")
    environment["PYTHONPATH"] = os.pathsep.join([str(_PACKAGE_PARENT), *([inherited] if inherited else [])])
    return environment
