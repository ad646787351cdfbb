"""An embedded S3 server seen from outside: its process, its address, and the few requests a sandbox makes of it.

It never imports moto; that happens in the server's own process.
"""

from __future__ import annotations

import http.client
import importlib.util
import json
import select
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from s3tasks.sandbox.processes import Child, Guardian, SandboxUnavailable, environment_with_package
from s3tasks.sandbox.wsgi import SIGNED

_NEEDED = ("moto", "flask", "flask_cors", "werkzeug")
_MOTO_SETTINGS = {"S3_IGNORE_SUBDOMAIN_BUCKETNAME": "true"}
"""Every path begins with a bucket, whatever name the host goes by; moto reads this when it is imported."""
_VERSIONED = b"<VersioningConfiguration><Status>Enabled</Status></VersioningConfiguration>"


def require_moto() -> None:
    """Raise `SandboxUnavailable` when what the S3 server is made of is not installed."""
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise SandboxUnavailable(f"the embedded S3 needs {', '.join(missing)}: pip install 's3tasks[sandbox]'")


class S3Process:
    """One running S3 server. Started by the constructor without waiting; `wait_until_ready` must follow."""

    def __init__(self, guardian: Guardian, directory: Path, role: str, options: Sequence[str] = ()) -> None:
        self._role = role
        self._port: int | None = None
        self._child = Child(
            guardian,
            [sys.executable, "-m", "s3tasks.sandbox.s3_server", role, *options],
            directory / f"s3-{role}.log",
            environment=environment_with_package(_MOTO_SETTINGS),
            with_stdout=True,
        )

    @property
    def pid(self) -> int:
        """The server's process id."""
        return self._child.pid

    @property
    def port(self) -> int:
        """The port on 127.0.0.1, known once it is ready."""
        if self._port is None:
            raise RuntimeError(f"the {self._role} S3 server is not ready")
        return self._port

    @property
    def endpoint_url(self) -> str:
        """`http://127.0.0.1:PORT`."""
        return f"http://127.0.0.1:{self.port}"

    def wait_until_ready(self, timeout_seconds: float = 30.0) -> None:
        """Wait until it listens; raises `SandboxUnavailable` with its last lines when it does not."""
        deadline = time.monotonic() + timeout_seconds
        readable, _, _ = select.select([self._child.stdout], [], [], max(0.0, deadline - time.monotonic()))
        line = self._child.stdout.readline() if readable else b""
        if not line.startswith(b"{"):
            raise SandboxUnavailable(f"the {self._role} S3 server did not start; it said:\n{self._child.log_tail()}")
        self._port = int(json.loads(line)["port"])

    def create_bucket(self, name: str, versioned: bool) -> None:
        """Create a bucket, with versioning enabled if wanted; raises RuntimeError when the store refuses."""
        self.request("PUT", f"/{name}")
        if versioned:
            self.request("PUT", f"/{name}?versioning", _VERSIONED)

    def control(self, method: str, name: str, wanted: object = None) -> Any:
        """Use one of the primary's controls (`replication`, `changes`) and return what it answers."""
        body = b"" if wanted is None else json.dumps(wanted).encode()
        return json.loads(self.request(method, f"/_sandbox/{name}", body))

    def request(self, method: str, path: str, body: bytes = b"") -> bytes:
        """Make one request and return the body of the answer; raises RuntimeError unless it is 2xx."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30.0)
        try:
            connection.request(method, path, body, {"Authorization": SIGNED})
            response = connection.getresponse()
            said = response.read()
        finally:
            connection.close()
        if response.status >= 300:
            raise RuntimeError(f"{method} {path}: {response.status} {said.decode(errors='replace')}")
        return said

    def stop(self, timeout_seconds: float = 5.0) -> None:
        """End the server; what it stored is gone."""
        self._child.stop(timeout_seconds)
