"""Changes on their way to a replica: each waits its lag, those of one key keep their order, the flow can be stopped.

It never carries a change out, and knows nothing of HTTP.
"""

from __future__ import annotations

import heapq
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(order=True)
class Waiting:
    """A change that waits until `due` (seconds of the monotonic clock); equal times go in the order they came."""

    due: float
    sequence: int
    bucket: str = field(compare=False)
    key: str = field(compare=False)
    carry_out: Callable[[], None] = field(compare=False)
    hurried: bool = field(compare=False, default=False)


class LagQueue:
    """Hands out each change after a lag drawn evenly from `lag_seconds` (low, high), reproducibly for a `seed`.

    Safe for many threads that put and one that takes. A new lag holds for changes put from then on.
    """

    def __init__(self, lag_seconds: tuple[float, float], seed: int | None = None) -> None:
        self.lag_seconds = lag_seconds
        self._random = random.Random(seed)  # noqa: S311 - lags are no secrets
        self._changed = threading.Condition()
        self._heap: list[Waiting] = []
        self._taken: Waiting | None = None
        self._last_due: dict[tuple[str, str], float] = {}
        self._sequence = 0
        self._paused = False

    @property
    def paused(self) -> bool:
        """Whether changes are held back until `pause(False)`, or until they are hurried."""
        return self._paused

    def pending(self, bucket: str | None = None) -> int:
        """How many changes are on their way, the one being carried out included; of one bucket, or of all."""
        with self._changed:
            return self._pending(bucket)

    def put(self, bucket: str, key: str, carry_out: Callable[[], None]) -> None:
        """Let a change wait its lag, and at least as long as earlier changes of the same key."""
        with self._changed:
            self._sequence += 1
            due = time.monotonic() + self._random.uniform(*self.lag_seconds)
            due = max(due, self._last_due.get((bucket, key), due))
            self._last_due[bucket, key] = due
            heapq.heappush(self._heap, Waiting(due, self._sequence, bucket, key, carry_out))
            self._changed.notify_all()

    def take(self) -> Waiting:
        """The next change whose time has come; waits for one. The one taken before is finished by this."""
        with self._changed:
            self._finish()
            while not self._is_due():
                wait_for_due = self._heap and not self._paused
                self._changed.wait(max(0.0, self._heap[0].due - time.monotonic()) if wait_for_due else None)
            self._taken = heapq.heappop(self._heap)
            return self._taken

    def pause(self, paused: bool) -> None:
        """Hold changes back, or let them go on; what came due meanwhile goes at once."""
        with self._changed:
            self._paused = paused
            self._changed.notify_all()

    def hurry(self, bucket: str | None = None) -> None:
        """Let what is pending now (of one bucket, or of all) go at once, even while paused."""
        with self._changed:
            for waiting in self._heap:
                if bucket in (None, waiting.bucket):
                    waiting.due, waiting.hurried = 0.0, True
            heapq.heapify(self._heap)
            self._changed.notify_all()

    def wait_until_none(self, bucket: str, timeout_seconds: float) -> bool:
        """Whether nothing of that bucket is on its way any more within the time."""
        with self._changed:
            return self._changed.wait_for(lambda: self._pending(bucket) == 0, timeout_seconds)

    def _pending(self, bucket: str | None) -> int:
        waiting = [*self._heap, *([self._taken] if self._taken else [])]
        return len(waiting) if bucket is None else sum(one.bucket == bucket for one in waiting)

    def _is_due(self) -> bool:
        if not self._heap:
            return False
        first = self._heap[0]
        return first.due <= time.monotonic() and (first.hurried or not self._paused)

    def _finish(self) -> None:
        finished, self._taken = self._taken, None
        if finished is None:
            return
        name = (finished.bucket, finished.key)
        if self._last_due.get(name, 0.0) <= time.monotonic():
            self._last_due.pop(name, None)
        if not self._heap:
            self._last_due.clear()
        self._changed.notify_all()
