"""What a transfer through s3transfer is given: the caller's stream, whom to tell of its progress, and how much to hold in memory.

It never asks S3 anything, and never lets the caller's own errors pass for S3's.
"""

from __future__ import annotations

import io
import os
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, BinaryIO

from s3transfer.manager import TransferConfig
from s3transfer.subscribers import BaseSubscriber
from s3transfer.utils import ChunksizeAdjuster, OSUtils

from s3tasks.settings import Settings

Progress = Callable[[int], None]
"""Told how many bytes more have been moved; fewer than none where a part is moved again."""

# Parts of streams are held in memory until they are sent, and botocore holds them once more while it sends.
_MOST_IN_MEMORY_BYTES = 32 * 1024 * 1024
# What has been fetched and waits for a disk that is slower than S3.
_MOST_UNWRITTEN_BYTES = 16 * 1024 * 1024
_CHUNK_BYTES = 256 * 1024


class SourceError(Exception):
    """The caller's stream or progress callback raised what `__cause__` is, which is none of S3's business."""


def read_fully(stream: BinaryIO, size_bytes: int) -> bytes:
    """So many bytes, fewer only at the stream's end: a raw stream may give less than it is asked for (io.RawIOBase.read).

    TypeError for a stream of text, BlockingIOError for one that has nothing at the moment, which is not its end.
    """
    pieces: list[bytes] = []
    left = size_bytes
    while left > 0:
        piece = stream.read(left)
        if piece is None:
            raise BlockingIOError("a file must be in blocking mode: this one has nothing to read at the moment")
        if not isinstance(piece, bytes | bytearray | memoryview):
            raise TypeError("a file must be open for reading in binary mode: this one reads text")
        if not piece:
            break
        pieces.append(bytes(piece))
        left -= len(piece)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def source_of(stream: BinaryIO) -> FileSource | StreamSource:
    """The caller's stream from where it stands, for s3transfer. Parts of a file are read as they are sent, of others before."""
    # In others it may cost much to go to and fro: gzip begins anew.
    is_file = isinstance(stream, io.BufferedReader | io.FileIO) and isinstance(getattr(stream, "raw", stream), io.FileIO)
    if is_file and stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
        return FileSource(stream)
    return StreamSource(stream)


class FileSource(OSUtils):  # type: ignore[misc]
    """What a regular file has left, read part by part by whoever sends the part, so that none is held in memory.

    s3transfer opens files by name through this: all that it gets is views of the one that is open, whatever stands under its name.
    """

    given = "the caller's file"

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._start = file, file.tell()
        self.size_bytes = file.seek(0, os.SEEK_END) - self._start
        self._problem: Exception | None = None
        self._lock = threading.Lock()

    @property
    def osutil(self) -> FileSource:
        """Through what s3transfer is to open what it is `given`."""
        return self

    def open(self, _name: str, _mode: str) -> _FileView:
        """A view of the file with a place of its own, for one part."""
        return _FileView(self)

    def read_at(self, place: int, size_bytes: int) -> bytes:
        """So many bytes from that place, counted from where the stream stood; what goes wrong is kept for `raising`."""
        wanted = max(min(size_bytes, self.size_bytes - place), 0)
        try:
            with self._lock:
                self._file.seek(self._start + place)
                piece = read_fully(self._file, wanted)
            if len(piece) < wanted:
                raise EOFError(f"the file became shorter while it was read: of {self.size_bytes} bytes some are gone")
        except Exception as problem:
            self._problem = self._problem or problem
            raise SourceError from problem
        return piece

    @contextmanager
    def raising(self) -> Iterator[None]:
        """Around a transfer: raises SourceError where the file could not be read, which looks like the network's to a sender."""
        try:
            yield
        except Exception:
            if self._problem is None:
                raise
            raise SourceError from self._problem
        self._file.seek(self._start + self.size_bytes)


class _FileView:
    def __init__(self, source: FileSource) -> None:
        self._source, self._place = source, 0

    def read(self, size_bytes: int | None = None) -> bytes:
        left = self._source.size_bytes - self._place
        piece = self._source.read_at(self._place, left if size_bytes is None or size_bytes < 0 else size_bytes)
        self._place += len(piece)
        return piece

    def seek(self, place: int, _whence: int = 0) -> None:
        self._place = place

    def tell(self) -> int:
        return self._place

    def close(self) -> None:
        """The file is the caller's."""


class StreamSource:
    """The caller's stream from where it stands, for s3transfer: read in full pieces, its errors told from S3's.

    `size_bytes` is what a stream that can seek has left, and then all that is read of it, though it may grow meanwhile; one that
    becomes shorter is an EOFError. None: not known.
    """

    osutil = None

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self.size_bytes = self._left = None
        # s3transfer takes what has these for something that it may go back in.
        if stream.seekable():
            self.seek, self.tell = stream.seek, stream.tell
            start = stream.tell()
            self.size_bytes = self._left = stream.seek(0, 2) - start
            stream.seek(start)

    def read(self, size: int = -1) -> bytes:
        """The next `size` bytes, fewer at the end. Raises SourceError."""
        try:
            return self._next(size)
        except Exception as problem:
            raise SourceError from problem

    @property
    def given(self) -> StreamSource:
        """What s3transfer is to send."""
        return self

    def raising(self) -> AbstractContextManager[None]:
        """Around a transfer: what `read` has raised comes out by itself."""
        return nullcontext()

    def _next(self, size: int) -> bytes:
        if self._left is None:
            return read_fully(self._stream, size)
        wanted = min(size, self._left)
        piece = read_fully(self._stream, wanted)
        self._left -= len(piece)
        if len(piece) < wanted:
            raise EOFError(f"the stream became shorter while it was read: its last {self._left} bytes are gone")
        return piece


class Told(BaseSubscriber):  # type: ignore[misc]
    """Passes on what s3transfer says of its progress. What the callback raises ends the transfer, and is kept in `problem`."""

    def __init__(self, progress: Progress | None) -> None:
        super().__init__()
        self._progress = progress
        self._lock = threading.Lock()
        self.problem: Exception | None = None

    def on_progress(self, future: Any, bytes_transferred: int, **_: Any) -> None:
        """So many bytes more."""
        if self._progress is None or self.problem is not None:
            return
        try:
            self._progress(bytes_transferred)
        except Exception as problem:  # noqa: BLE001 - whatever it is, it is the caller's, and raised there
            with self._lock:
                self.problem = self.problem or problem
            # Raised here, in the middle of a request, it would look like the network's and be tried again.
            future.cancel()

    @contextmanager
    def raising(self) -> Iterator[None]:
        """Around a transfer: raises SourceError where the callback has ended it."""
        try:
            yield
        except Exception:
            if self.problem is None:
                raise
        if self.problem is not None:
            raise SourceError from self.problem


class Known(BaseSubscriber):  # type: ignore[misc]
    """Tells s3transfer the size, and the ETag of what is fetched, that it would ask for."""

    def __init__(self, size_bytes: int | None, etag: str | None = None) -> None:
        super().__init__()
        self._size_bytes, self._etag = size_bytes, etag

    def on_queued(self, future: Any, **_: Any) -> None:
        """Before the transfer begins."""
        if self._size_bytes is not None:
            future.meta.provide_transfer_size(self._size_bytes)
        if self._etag is not None:
            future.meta.provide_object_etag(f'"{self._etag}"')


def size_of_parts(part_bytes: int, size_bytes: int | None) -> int:
    """How large the parts of an object must be, for S3 takes 10,000 of them at most (AWS, "Amazon S3 multipart upload limits")."""
    return int(ChunksizeAdjuster().adjust_chunksize(part_bytes, size_bytes))


def transfer_config(settings: Settings, size_bytes: int | None = None) -> TransferConfig:
    """How s3transfer is to move an object: as many parts at once as requests, but in memory no more than fit."""
    fit = _MOST_IN_MEMORY_BYTES // size_of_parts(settings.part_bytes, size_bytes)
    return TransferConfig(
        multipart_threshold=settings.multipart_threshold_bytes,
        multipart_chunksize=settings.part_bytes,
        max_request_concurrency=settings.concurrent_requests,
        max_in_memory_upload_chunks=max(1, min(settings.concurrent_requests, fit)),
        max_submission_concurrency=1,
        max_io_queue_size=_MOST_UNWRITTEN_BYTES // _CHUNK_BYTES,
        io_chunksize=_CHUNK_BYTES,
        num_download_attempts=settings.store_attempts,
    )
