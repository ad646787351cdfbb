"""A heartbeat file for probes: whether the worker takes messages, touched by its own event loop as long as that turns.

It never asks Redis anything, and never judges: `probe.py` reads the file, and says why it is not Celery's own `inspect ping`.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from celery import bootsteps

BEAT_SECONDS = 5.0
CONSUMING, WAITING = "consuming", "waiting"


class Heartbeat(bootsteps.StartStopStep):
    """Says `consuming` while the worker takes messages, with a fresh time every few seconds; `waiting` before, between and after.

    On the prefork pool the timer belongs to the event loop, so that a worker that hangs falls silent. Other pools have a thread for
    it: there the file tells only that the process lives and is connected.
    """

    # What consumes is the last to start and the first to stop.
    requires = ("celery.worker.consumer.tasks:Tasks",)

    def __init__(self, consumer: Any, **options: Any) -> None:
        super().__init__(consumer, **options)
        self._beat: Any = None
        self._path = Path(consumer.app.conf.get("heartbeat_file") or os.devnull)
        self.enabled = self._path != Path(os.devnull)
        if self.enabled:
            self._say(WAITING)

    def include_if(self, _: Any) -> bool:
        """Only where a file is named."""
        return bool(self.enabled)

    def start(self, consumer: Any) -> None:
        """The worker is connected: says so, now and every few seconds."""
        self._say(CONSUMING)
        self._beat = consumer.timer.call_repeatedly(BEAT_SECONDS, os.utime, (self._path,))

    def stop(self, _: Any) -> None:
        """The connection is lost, or the worker ends."""
        if self._beat is not None:
            self._beat.cancel()
        self._beat = None
        self._say(WAITING)

    def _say(self, state: str) -> None:
        # A probe must not see half a word.
        written = self._path.with_name(f"{self._path.name}.new")
        written.write_text(f"{state}\n")
        written.replace(self._path)
