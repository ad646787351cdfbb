"""How a body that is read piece by piece becomes a write, and the removal of a version one, too.

It never reads a stream twice that cannot go back.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import BinaryIO, cast

from s3tasks.errors import StoreUnavailable
from s3tasks.evidence import Landed
from s3tasks.process import Rooms
from s3tasks.refs import Marker, ObjectRef
from s3tasks.store import Condition, Content, Endpoint, SourceError, read_fully
from s3tasks.writes import LedgerNotes, Write

Progress = Callable[[int, "int | None"], None]
"""Told how many bytes have been moved so far, and how many there are in all, where that is known."""


class Tally:
    """Adds up what several threads have moved, and tells it on."""

    def __init__(self, progress: Progress, total_bytes: int | None) -> None:
        self._progress, self._total_bytes = progress, total_bytes
        self._lock = threading.Lock()
        self._done_bytes = 0

    def __call__(self, more_bytes: int) -> None:
        """So many more; fewer than none where a part is moved again."""
        with self._lock:
            self._done_bytes += more_bytes
            self._progress(self._done_bytes, self._total_bytes)

    def restart(self) -> None:
        """All of it is moved again."""
        with self._lock:
            self._done_bytes = 0


@contextmanager
def callers_errors() -> Iterator[None]:
    """Around a transfer: what the caller's own stream or callback has raised comes out as it is."""
    try:
        yield
    except SourceError as problem:
        raise problem.__cause__ or problem from None


@dataclass(frozen=True)
class Incoming:
    """A stream with its beginning read: all there is (`whole`), or the first of what is to be written in parts.

    `start` is where it began, for a stream that can go back there; `size_bytes` how much there is from there, where that is known.
    """

    stream: BinaryIO
    head: bytes
    whole: bool
    start: int | None
    size_bytes: int | None

    def from_the_start(self) -> BinaryIO:
        """The stream as it was given: gone back, or with its beginning put before the rest."""
        if self.start is None:
            return cast("BinaryIO", _Rejoined(self.head, self.stream))
        self.stream.seek(self.start)
        return self.stream


def as_it_comes(stream: BinaryIO, threshold_bytes: int) -> Incoming:
    """Reads the beginning, to see whether the stream is shorter than the threshold. Raises what reading it raises."""
    seekable = getattr(stream, "seekable", None)
    start = stream.tell() if callable(seekable) and seekable() else None
    head = read_fully(stream, threshold_bytes)
    size_bytes = None if start is None else stream.seek(0, 2) - start
    whole = len(head) < threshold_bytes
    return Incoming(stream, head if whole or start is None else b"", whole, start, size_bytes)


class _Rejoined:
    """A stream that cannot go back, with what was read of it put before the rest."""

    def __init__(self, head: bytes, rest: BinaryIO) -> None:
        self._head, self._rest = memoryview(head), rest

    def seekable(self) -> bool:
        return False

    def read(self, size: int = -1) -> bytes:
        if size is None or size < 0:
            size = 1 << 62
        piece, self._head = bytes(self._head[:size]), self._head[size:]
        return piece or self._rest.read(size if size < 1 << 62 else -1)


def in_parts(
    rooms: Rooms, target: ObjectRef, write_id: str, incoming: Incoming, content: Content, condition: Condition,
    progress: Progress | None,
) -> Write:
    """The write of a stream in parts. Its intent is open before the multipart upload exists."""
    tally = Tally(progress, incoming.size_bytes) if progress else None

    def send(marker: Marker) -> Landed:
        if tally:
            tally.restart()
        stream, notes = incoming.from_the_start(), LedgerNotes(rooms.ledger, target, write_id)
        return rooms.store.upload(target, stream, content, marker, condition, notes, tally)

    return Write(target, write_id, send, in_parts=True, options=content.options)


def versions_removal(rooms: Rooms, wanted: ObjectRef, write_id: str) -> Write:
    """The removal of one version for good. What is current then is looked up at the write endpoint, and recorded."""
    version_id = cast("str", wanted.version_id)

    def send(_marker: Marker) -> Landed:
        rooms.store.delete(wanted, Condition(), version_id=version_id)
        rooms.ledger.note_gone(wanted, version_id)
        answer = rooms.store.head(wanted, Endpoint.WRITE)
        served = answer.served
        if served is None:
            return Landed(deleted=True, date=answer.date)
        if served.version_id == version_id:
            raise StoreUnavailable("DeleteObject", wanted.bucket, wanted.key, "the version that was removed is still served")
        return Landed(etag=served.etag, version_id=served.version_id, size=served.size, date=served.last_modified)

    return Write(wanted.plain(), write_id, send)
