"""Two workers overwrite one key while readers check: the history of it, and who was served what had been replaced.

It never asks the ledger: the judgement rests on when each write and each read began and ended, by one clock.
"""

from __future__ import annotations

import bisect
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass

from s3tasks import ConsistentS3, ObjectRef
from s3tasks.errors import RetryableError

WAIT_SECONDS = 1.0


@dataclass(frozen=True)
class Write:
    """One finished write of `<writer> <number>`."""

    body: str
    begun: float
    ended: float


@dataclass(frozen=True)
class Read:
    """One read that was served `body`."""

    body: str
    begun: float


class Reading:
    """One reader's thread; stops at the end of the `with`. `refused` counts reads that could not be served in time."""

    def __init__(self, client: ConsistentS3, ref: ObjectRef) -> None:
        self.reads: list[Read] = []
        self.refused = 0
        self.errors: list[Exception] = []
        self._client, self._ref = client, ref
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._over.is_set():
            begun = time.monotonic()
            try:
                self.reads.append(Read(self._client.read(self._ref, wait=WAIT_SECONDS).decode(), begun))
            except RetryableError:
                self.refused += 1
            except Exception as problem:  # noqa: BLE001 - whatever else a reader meets is told by the test
                self.errors.append(problem)
                return
            time.sleep(0.01)


def replaced_reads(writes: Sequence[Write], reads: Sequence[Read]) -> list[Read]:
    """The reads that were served a version after a write that began when that version was finished had itself finished.

    A body that nobody tells of was written by a write that did not finish, and counts as never replaced.
    """
    replaced_at = replacement_times(writes)
    return [read for read in reads if replaced_at.get(read.body, float("inf")) < read.begun]


def replacement_times(writes: Sequence[Write]) -> dict[str, float]:
    """When each version was certainly replaced: the earliest end of a write that began after this one had ended."""
    by_begin = sorted(writes, key=lambda write: write.begun)
    begins = [write.begun for write in by_begin]
    earliest_end = [write.ended for write in by_begin]
    for n in reversed(range(len(earliest_end) - 1)):
        earliest_end[n] = min(earliest_end[n], earliest_end[n + 1])
    times: dict[str, float] = {}
    for write in writes:
        later = bisect.bisect_right(begins, write.ended)
        if later < len(begins):
            times[write.body] = earliest_end[later]
    return times
