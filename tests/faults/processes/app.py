"""The Celery app of these workers: the s3 tasks, and a writer that tells when each of its writes began and ended."""

from __future__ import annotations

import itertools
import os
import time
from typing import Any

from s3tasks.errors import RetryableError
from tests.integration.app import make_app

if "CELERY_BROKER_URL" in os.environ:
    app, s3 = make_app()
    # The result tells which process of the pool has the task, so that a test can kill that one.
    app.conf.task_track_started = True

    # Delivered once: a later delivery would find its writes done, and would tell of them as of new ones.
    @app.task(name="tests.overwrite", base=s3.Task, bind=True, shared=False, acks_late=False)
    def overwrite(self: Any, uri: str, writer: str, seconds: float) -> list[tuple[int, float, float]]:
        """Writes `<writer> <number>` for so long; returns number, begin and end of each write by the machine's monotonic clock.

        A write that Redis or S3 failed is not told of; the last one is.
        """
        told: list[tuple[int, float, float]] = []
        deadline = time.monotonic() + seconds
        for number in itertools.count():
            begun = time.monotonic()
            try:
                self.s3.write(f"{writer} {number}", uri)
            except RetryableError:
                continue
            told.append((number, begun, time.monotonic()))
            if begun >= deadline:
                return told
            time.sleep(0.01)
        raise AssertionError("there are more numbers")
