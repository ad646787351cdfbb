"""The Celery app of these workers: the s3 tasks, and a writer that tells when each of its writes began and ended."""

from __future__ import annotations

import os
import time
from typing import Any

from tests.integration.app import make_app

if "CELERY_BROKER_URL" in os.environ:
    app, s3 = make_app()
    # The result tells which process of the pool has the task, so that a test can kill that one.
    app.conf.task_track_started = True

    @app.task(name="tests.overwrite", base=s3.Task, bind=True, shared=False)
    def overwrite(self: Any, uri: str, writer: str, seconds: float) -> list[tuple[int, float, float]]:
        """Writes `<writer> <number>` for so long; returns number, begin and end of each write by the machine's monotonic clock."""
        told: list[tuple[int, float, float]] = []
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            begun = time.monotonic()
            self.s3.write(f"{writer} {len(told)}", uri)
            told.append((len(told), begun, time.monotonic()))
            time.sleep(0.01)
        return told
