"""The Celery app of the tests: the s3 tasks, and tasks of a user's own around them."""

from __future__ import annotations

import json
import os
import time
from typing import Any

from celery import Celery

from s3tasks import S3Tasks


def make_app() -> tuple[Celery, S3Tasks]:
    """An app configured by the environment, as a worker or a producer makes it."""
    broker, backend = os.environ["CELERY_BROKER_URL"], os.environ["CELERY_RESULT_BACKEND"]
    made = Celery("tests", broker=broker, backend=backend, set_as_current=False)
    made.conf.update(
        broker_connection_retry_on_startup=True,
        broker_transport_options={
            "visibility_timeout": int(os.environ.get("TEST_VISIBILITY_TIMEOUT_SECONDS", "3600")),
            "unacked_restore_interval": 1,
            "unacked_restore_throttle": 1,
            # A worker that is killed while it looks would keep the others from looking for 300 s.
            "unacked_mutex_expire": 2,
        },
        task_default_queue=os.environ.get("TEST_QUEUE", "celery"),
        task_store_errors_even_if_ignored=True,
        worker_prefetch_multiplier=1,
        worker_pool_start_method=os.environ.get("TEST_START_METHOD", "fork"),
        s3tasks_consistency_deadline_seconds=float(os.environ.get("TEST_CONSISTENCY_DEADLINE_SECONDS", "20")),
        s3tasks_outage_deadline_seconds=20.0,
    )
    toolkit = S3Tasks(made)

    @made.task(name="tests.render", shared=False)
    def render(text: str, size_bytes: int = 0) -> bytes:
        return text.encode() + b"." * size_bytes

    @made.task(name="tests.echo", shared=False)
    def echo(value: Any) -> Any:
        return value

    @made.task(name="tests.copy_twice", base=toolkit.Task, bind=True, shared=False)
    def copy_twice(self: Any, source: str, target: str) -> dict[str, Any]:
        body = self.s3.read(source)
        self.s3.write(body + b"1", target)
        return dict(self.s3.write(body + b"2", target).to_dict())

    _add_workflow_tasks(made, toolkit)
    return made, toolkit


def _add_workflow_tasks(made: Celery, toolkit: S3Tasks) -> None:
    """What stands around the s3 tasks in workflows: replacements, a body that reads what its header wrote, witnesses."""

    @made.task(name="tests.replaced_by", bind=True, shared=False)
    def replaced_by(self: Any, previous: Any, successor: dict[str, Any]) -> Any:
        raise self.replace(made.signature(successor))

    @made.task(name="tests.read_all", base=toolkit.Task, bind=True, shared=False)
    def read_all(self: Any, refs: list[dict[str, Any]]) -> list[bytes]:
        return [self.s3.read(ref) for ref in refs]

    @made.task(name="tests.join", shared=False)
    def join(bodies: list[bytes]) -> bytes:
        return b"+".join(bodies)

    @made.task(name="tests.tally", shared=False)
    def tally(value: Any, name: str) -> Any:
        made.backend.client.rpush(name, json.dumps(value, default=str))
        time.sleep(float(os.environ.get("TEST_TALLY_SECONDS", "0")))
        return value

    @made.task(name="tests.witness", shared=False)
    def witness(request: Any, error: BaseException, traceback: Any, name: str) -> None:
        # JSON fields only, as a callback of one's own would log them.
        made.backend.client.rpush(name, json.dumps([type(error).__name__, *error.args], default=str))


if "CELERY_BROKER_URL" in os.environ:
    app, s3 = make_app()
