"""The system calls of a real worker, held against the unit's SystemCallFilter: `python -m tests.deploy.syscalls`.

It never guesses what systemd's groups hold: `systemd-analyze syscall-filter` says it. Needs strace. A worker that writes, reads and
is stopped makes all the calls that count: what it cannot make on its first day would otherwise be found out on a Sunday.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from celery import Celery, chain

from s3tasks import S3Tasks, Settings
from s3tasks.sandbox import Sandbox
from s3tasks.sandbox.processes import Child, Guardian, environment_with_package, wait_until
from tests.conftest import REPOSITORY
from tests.deploy.deployed import PATIENCE_SECONDS, command_of_unit, environment_of_unit
from tests.deploy.files import UNIT, unit_settings


def groups() -> dict[str, list[str]]:
    """systemd's groups of system calls, as it lists them."""
    said = subprocess.run(["systemd-analyze", "syscall-filter", "--no-pager"], capture_output=True, text=True, check=True).stdout
    found: dict[str, list[str]] = {}
    for line in said.splitlines():
        if line.startswith("@"):
            members = found.setdefault(line.strip(), [])
        elif line.startswith(" ") and not line.strip().startswith("#"):
            members.append(line.strip())
    return found


def members_of(name: str, known: dict[str, list[str]]) -> set[str]:
    """The calls of a group, those of the groups in it included; of a call, itself."""
    if not name.startswith("@"):
        return {name}
    return {call for member in known[name] for call in members_of(member, known)}


def allowed() -> set[str]:
    """What the unit's filter lets through: an allow list, from which later lines with ~ take away. @default is always in."""
    known = groups()
    calls = members_of("@default", known)
    for value in unit_settings(UNIT.read_text())["SystemCallFilter"]:
        names = {call for name in value.removeprefix("~").split() for call in members_of(name, known)}
        calls = calls - names if value.startswith("~") else calls | names
    return calls


def traced() -> str:
    """What strace says of a worker that was started as the unit starts it."""
    with tempfile.TemporaryDirectory(prefix="s3tasks-calls-") as directory, Sandbox(replica=False) as sandbox:
        place, guardian = Path(directory), Guardian()
        more = {**sandbox.environment(), **environment_of_unit(), "CELERY_HEARTBEAT_FILE": str(place / "heartbeat")}
        command = ["strace", "-f", "-qq", "-o", str(place / "trace"), *command_of_unit()]
        child = Child(guardian, command, place / "log", directory=REPOSITORY, environment=environment_with_package(more))
        try:
            _work(sandbox)
            (worker,) = Path(f"/proc/{child.pid}/task/{child.pid}/children").read_text().split()
            os.kill(int(worker), signal.SIGTERM)
            if not wait_until(lambda: not child.running, PATIENCE_SECONDS):
                raise SystemExit(f"the worker does not end; it said:\n{child.log_tail()}")
            return (place / "trace").read_text(errors="replace")
        finally:
            if child.running:
                child.kill()
            guardian.close()


def _work(sandbox: Sandbox) -> None:
    sandbox.create_bucket("calls")
    app = Celery("producer", broker=sandbox.redis_url, backend=sandbox.redis_url, set_as_current=False)
    s3 = S3Tasks(app, Settings(ledger_url=sandbox.redis_url, endpoint_url=sandbox.endpoint_url))
    done = chain(s3.write.s(b"x", "s3://calls/key"), s3.read.s(), s3.write.s("s3://calls/other"), s3.delete.s()).delay()
    done.get(timeout=PATIENCE_SECONDS)
    s3.client.close()
    app.close()


def main() -> str | None:
    """What is wrong, or None."""
    trace = traced()
    made = set(re.findall(r"^\d+\s+([a-z0-9_]+)\(", trace, flags=re.MULTILINE))
    refused = made - allowed()
    if refused or "execve" not in made:
        return f"the unit does not allow {', '.join(sorted(refused))}"
    if re.search(r"(mmap|mprotect)\([^)]*PROT_WRITE\|PROT_EXEC", trace):
        return "memory is both written to and executed: MemoryDenyWriteExecute= forbids it"
    (families_allowed,) = unit_settings(UNIT.read_text())["RestrictAddressFamilies"]
    families = set(re.findall(r"socket\((AF_\w+)", trace)) - set(families_allowed.split())
    if families:
        return f"the unit does not allow sockets of {', '.join(sorted(families))}"
    sys.stdout.write(f"{len(made)} system calls, all of them allowed\n")
    return None


if __name__ == "__main__":
    sys.exit(main())
