"""An answer whose body is still on its way, and how it is taken in: whole, or piece by piece.

It never hands out fewer bytes than were asked for without saying so.
"""

from __future__ import annotations

import re
from contextlib import closing
from dataclasses import dataclass
from io import BytesIO
from tempfile import SpooledTemporaryFile
from typing import IO, Any

from s3tasks.errors import LocalFileError, PayloadTooLarge, StoreUnavailable
from s3tasks.evidence import Served
from s3tasks.refs import ObjectRef
from s3tasks.store.answers import ByteRange, Endpoint, Head
from s3tasks.store.door import door

WHOLE: ByteRange = (0, None)
_SKIP_BYTES = 1024 * 1024
# What is more goes through a temporary file.
_MEASURED_IN_MEMORY_BYTES = 8 * 1024 * 1024
_MEASURED_AT_ONCE_BYTES = 1024 * 1024


class Body:
    """The bytes of one answer. `length` is how many are on their way, of which those in `cut` were asked for.

    A server may take no notice of the Range header, or send more (RFC 9110, 14.2).
    """

    def __init__(self, raw: Any, length: int, ref: ObjectRef, cut: ByteRange = WHOLE) -> None:
        self._raw, self._length, self._ref = raw, length, ref
        self._wanted = range(length)[slice(*cut)]
        self._position = 0

    @property
    def size_bytes(self) -> int:
        """How many bytes there are of what was asked for."""
        return len(self._wanted)

    def read(self, limit_bytes: int | None = None) -> bytes:
        """All that was asked for.

        Raises PayloadTooLarge, before a byte is read, if that is over the limit, and StoreUnavailable if it breaks off.
        """
        with closing(self._raw):
            if limit_bytes is not None and len(self._wanted) > limit_bytes:
                raise PayloadTooLarge("read", len(self._wanted), limit_bytes)
            body = self._some(None)
        if len(body) != self._length:
            raise self._broken(len(body))
        return body if len(self._wanted) == len(body) else body[self._wanted.start : self._wanted.stop]

    def take(self, size_bytes: int) -> bytes:
        """The next of what was asked for, `size_bytes` at most; nothing at its end. StoreUnavailable if it breaks off."""
        while self._position < self._wanted.start:
            self._advance(min(_SKIP_BYTES, self._wanted.start - self._position))
        left = self._wanted.stop - self._position
        return self._advance(min(size_bytes, left)) if left > 0 else b""

    def close(self) -> None:
        """Gives up what has not been read."""
        self._raw.close()

    def _advance(self, size_bytes: int) -> bytes:
        came = self._some(size_bytes)
        self._position += len(came)
        if not came:
            raise self._broken(self._position)
        return came

    def _some(self, size_bytes: int | None) -> bytes:
        with door("GetObject", self._ref):
            came: bytes = self._raw.read(size_bytes)
        return came

    def _broken(self, arrived: int) -> StoreUnavailable:
        ref = self._ref
        return StoreUnavailable("GetObject", ref.bucket, ref.key, f"{arrived} of {self._length} bytes arrived")


@dataclass(frozen=True)
class Answer:
    """An endpoint's answer to a GET or HEAD: what is served (None: a 404), or that a condition sent did not hold.

    `condition_failed`: the If-Match did not hold. `unchanged`: the If-None-Match did not, the object still has that ETag.
    `date` is when the endpoint answered, by its clock (seconds since 1970, 0 where it did not say). A body, where there is one, is
    still on its way: `read` it, take it from `body`, or `close` it. `from_cache`: S3 had given it before, and it was kept.
    """

    head: Head | None
    condition_failed: bool = False
    unchanged: bool = False
    date: int = 0
    body: Body | None = None
    endpoint: Endpoint = Endpoint.READ
    from_cache: bool = False

    @property
    def served(self) -> Served | None:
        """What the endpoint serves under the object's name."""
        return self.head.served if self.head else None

    @property
    def has_body(self) -> bool:
        """Whether a body is waiting to be read."""
        return self.body is not None

    def read(self, limit_bytes: int | None = None) -> bytes:
        """The whole body, as Body.read. ValueError where there is none."""
        if self.body is None:
            raise ValueError("this answer has no body")
        return self.body.read(limit_bytes)

    def close(self) -> None:
        """Gives up the body."""
        if self.body is not None:
            self.body.close()


def at_hand(served: Served, body: bytes, ref: ObjectRef) -> Answer:
    """An answer that S3 gave before, and that was kept."""
    return Answer(Head(served), body=Body(BytesIO(body), len(body), ref), from_cache=True)


def measured(raw: Any, ref: ObjectRef) -> tuple[IO[bytes], int]:
    """A body that came without its length, taken in whole, and how many bytes it has.

    Without a length nobody could refuse it for its size, or tell that some of it is missing. StoreUnavailable if it breaks off,
    LocalFileError if this machine cannot keep it.
    """
    kept = SpooledTemporaryFile(_MEASURED_IN_MEMORY_BYTES)  # noqa: SIM115 - whoever reads it closes it
    try:
        with closing(raw):
            while came := _next(raw, ref):
                _keep(kept, came, ref)
    except BaseException:
        kept.close()
        raise
    length = kept.tell()
    kept.seek(0)
    return kept, length


def _next(raw: Any, ref: ObjectRef) -> bytes:
    with door("GetObject", ref):
        came: bytes = raw.read(_MEASURED_AT_ONCE_BYTES)
    return came


def _keep(kept: IO[bytes], came: bytes, ref: ObjectRef) -> None:
    try:
        kept.write(came)
    except OSError as problem:
        where = f"a temporary file for s3://{ref.bucket}/{ref.key}, which came without its length"
        raise LocalFileError(where, problem.strerror or str(problem)) from problem


def cut_of(byte_range: ByteRange | None, content_range: str) -> ByteRange:
    """Where in the body that came lie the bytes that were asked for."""
    if byte_range is None:
        return WHOLE
    came = re.match(r"bytes (\d+)-", content_range)
    first, last = byte_range
    begins = int(came.group(1)) if came else 0
    return max(first - begins, 0), None if last is None else last + 1 - begins
