"""A private Redis server on a loopback port, for as long as this process lives.

It never touches a Redis that it did not start, and never listens on anything but 127.0.0.1.
"""

from __future__ import annotations

import shutil
import signal
import socket
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from s3tasks.sandbox.processes import Child, Guardian, SandboxUnavailable
from s3tasks.sandbox.redis_binary import find_redis_server, runnable

_ADDRESS = "127.0.0.1"
_PORT_ATTEMPTS = 5


class RedisServer:
    """One Redis (or Valkey) server that keeps its port over restarts and ends with this process.

    `options` are further command line arguments of the server (`("--maxmemory", "64mb")`). With `persistent` its data
    survive `restart` and even `kill` (an append-only file in a private directory); without, a restart loses everything.
    `ready_timeout_seconds` bounds how long a start may take. A context manager; `start` works again after
    `stop`.
    """

    def __init__(
        self,
        options: Sequence[str] = (),
        *,
        persistent: bool = False,
        ready_timeout_seconds: float = 10.0,
        guardian: Guardian | None = None,
    ) -> None:
        self._options = tuple(options)
        self._persistent = persistent
        self._ready_timeout_seconds = ready_timeout_seconds
        self._own_guardian = guardian is None
        self._guardian = guardian or Guardian()
        self._directory: Path | None = None
        self._child: Child | None = None
        self._port: int | None = None

    @property
    def port(self) -> int:
        """The port on 127.0.0.1; the same for the life of this object once it was started."""
        if self._port is None:
            raise RuntimeError("this Redis server has not been started")
        return self._port

    @property
    def url(self) -> str:
        """`redis://127.0.0.1:PORT/0`."""
        return f"redis://{_ADDRESS}:{self.port}/0"

    @property
    def pid(self) -> int:
        """The process id of the server that is running now."""
        return self._running_child().pid

    @property
    def running(self) -> bool:
        """Whether a server process is there (a paused one is)."""
        return self._child is not None and self._child.running

    def start(self) -> None:
        """Start the server and wait until it answers. On a running one this does nothing.

        Raises `SandboxUnavailable` when there is no server program, or when it does not answer in time.
        """
        if self.running:
            return
        try:
            self._start()
        except BaseException:
            self.close()
            raise

    def stop(self, timeout_seconds: float = 5.0) -> None:
        """End the server as an operator would (SIGTERM), by force after the timeout. A stopped one is left alone."""
        child, self._child = self._child, None
        if child is not None and self._guardian.owned:
            child.stop(timeout_seconds)

    def kill(self) -> None:
        """End the server with SIGKILL, as a crash would; `start` or `restart` brings it back on the same port."""
        child, self._child = self._running_child(), None
        child.kill()

    def restart(self) -> None:
        """Stop the server if it runs and start it again on the same port."""
        self.stop()
        self.start()

    def pause(self) -> None:
        """Freeze the server: connections stay open and nothing is answered, as on a machine that hangs."""
        self._running_child().signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let a paused server go on."""
        self._running_child().signal(signal.SIGCONT)

    def close(self) -> None:
        """Stop the server and remove its files. Calling it again does nothing."""
        if not self._guardian.owned:
            return
        self.stop()
        directory, self._directory = self._directory, None
        if directory is not None:
            shutil.rmtree(directory, ignore_errors=True)
        if self._own_guardian:
            self._guardian.close()

    def __enter__(self) -> RedisServer:  # noqa: PYI034 - typing.Self is younger than Python 3.10
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()

    def _running_child(self) -> Child:
        if self._child is None or not self._child.running:
            raise RuntimeError("this Redis server is not running")
        return self._child

    def _start(self) -> None:
        if not self._guardian.owned:
            raise RuntimeError("this Redis server belongs to the process that forked this one")
        binary = find_redis_server()
        if self._directory is None:
            self._directory = self._guardian.private_directory()
        binary = runnable(binary, self._directory)
        keeps_port = self._port is not None
        for attempts_left in reversed(range(_PORT_ATTEMPTS)):
            if not keeps_port:
                self._port = free_loopback_port()
            self._child = Child(self._guardian, self._command(binary, self._directory), self._directory / "redis.log")
            if self._answers(self._child):
                return
            problem = self._child.log_tail()
            self.stop()
            if attempts_left == 0 or "Address already in use" not in problem:
                raise SandboxUnavailable(f"{binary} did not answer on port {self.port}; it said:\n{problem}")

    def _command(self, binary: Path, directory: Path) -> list[str]:
        settings = {
            "bind": _ADDRESS,
            "port": str(self.port),
            "dir": str(directory),
            "save": "",
            "appendonly": "yes" if self._persistent else "no",
            "maxmemory-policy": "noeviction",
            "protected-mode": "no",
        }
        arguments = [part for name, value in settings.items() for part in (f"--{name}", value)]
        return [str(binary), *arguments, *self._options]

    def _answers(self, child: Child) -> bool:
        deadline = time.monotonic() + self._ready_timeout_seconds
        while child.running and time.monotonic() < deadline:
            if is_answered_by(self.port, child.pid):
                return True
            time.sleep(0.01)
        return False


def free_loopback_port() -> int:
    """A port on 127.0.0.1 that was free a moment ago; whoever binds it must be ready to find it taken."""
    with socket.socket() as probe:
        probe.bind((_ADDRESS, 0))
        return int(probe.getsockname()[1])


def is_answered_by(port: int, pid: int) -> bool:
    """Whether a Redis on that port is ready and is that very process: somebody else's may have taken the port."""
    try:
        with socket.create_connection((_ADDRESS, port), timeout=1.0) as connection:
            connection.sendall(b"PING\r\nINFO server\r\n")
            received = _answer(connection)
    except OSError:
        return False
    # A server with a password of its own tells nobody who it is.
    return received.startswith(b"-NOAUTH") or (received.startswith(b"+PONG") and f"process_id:{pid}\r\n".encode() in received)


def _answer(connection: socket.socket) -> bytes:
    """What the server says until it has named its process, refused, or hung up."""
    received = b""
    while b"process_id:" not in received and received[:1] in (b"", b"+"):
        chunk = connection.recv(65536)
        if not chunk:
            break
        received += chunk
    return received
