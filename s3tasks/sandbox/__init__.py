"""An embedded Redis, S3 and lagging replica, for demo, dev and users' tests.

It never imports the rest of s3tasks, and never listens on anything but the loopback address.

    with Sandbox() as sandbox:
        sandbox.create_bucket("invoices")
        worker = sandbox.start_worker("worker_config", directory=".")

`s3tasks_sandbox` is the same as a session-wide pytest fixture: import it by that name in a conftest.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from s3tasks.sandbox.processes import SandboxUnavailable
from s3tasks.sandbox.redis_server import RedisServer
from s3tasks.sandbox.stack import Change, Sandbox
from s3tasks.sandbox.worker import WorkerProcess

if TYPE_CHECKING:
    from s3tasks.sandbox.fixtures import s3tasks_sandbox as s3tasks_sandbox

__all__ = ["Change", "RedisServer", "Sandbox", "SandboxUnavailable", "WorkerProcess"]


def __getattr__(name: str) -> object:
    # The fixture needs pytest, which a machine that runs the demo need not have.
    if name == "s3tasks_sandbox":
        from s3tasks.sandbox.fixtures import s3tasks_sandbox  # noqa: PLC0415 - imports pytest

        return s3tasks_sandbox
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
