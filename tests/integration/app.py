"""The Celery app of the tests: the s3 tasks, and tasks of a user's own around them."""

from __future__ import annotations

import os
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
        },
        task_default_queue=os.environ.get("TEST_QUEUE", "celery"),
        task_store_errors_even_if_ignored=True,
        worker_prefetch_multiplier=1,
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

    return made, toolkit


if "CELERY_BROKER_URL" in os.environ:
    app, s3 = make_app()
