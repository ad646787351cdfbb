"""The bytes of a file brought to the disk while more of them come, so that the flush at the end finds little left to do.

It never writes to the file, and never takes a flush for done that has failed.
"""

from __future__ import annotations

import os
import threading

FLUSHED_AT_ONCE_BYTES = 32 * 1024 * 1024


class Flusher:
    """Flushes one open file in a thread of its own, each time that so much has been written and no flush is under way.

    To be told by one thread at a time. A gibibyte that was flushed at its end took 1.34 of the time of s3transfer, which flushes
    nothing; it takes 1.17 (`python -m tests.benchmarks large`).
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._unflushed_bytes = 0
        self._under_way: threading.Thread | None = None
        self._problem: OSError | None = None

    def wrote(self, size_bytes: int) -> None:
        """So many bytes more have been written."""
        self._unflushed_bytes += size_bytes
        if self._unflushed_bytes < FLUSHED_AT_ONCE_BYTES or (self._under_way is not None and self._under_way.is_alive()):
            return
        self._unflushed_bytes = 0
        self._under_way = threading.Thread(target=self._flush, name="s3tasks-flush", daemon=True)
        self._under_way.start()

    def wait(self) -> None:
        """Returns when no flush is under way: the file may be closed then."""
        if self._under_way is not None:
            self._under_way.join()

    def finish(self) -> None:
        """Returns when all of the file is on the disk (fsync). Raises the OSError of the first flush that failed.

        The system may tell of a page that it could not write only once (fsync(2)), and that may have been a flush on the way.
        """
        self.wait()
        if self._problem is not None:
            raise self._problem
        os.fsync(self._descriptor)

    def _flush(self) -> None:
        try:
            os.fsync(self._descriptor)
        except OSError as problem:
            self._problem = self._problem or problem
