"""Bodies kept on this machine's disk under the ETag that S3 gave them, for all processes of this machine.

It never asks Redis or S3, and never decides whether a body may be served: whoever asks names the ETag.

A file holds one object: a prefix (magic, schema, lengths, checksum of the head), the object as S3 described it in JSON, a CRC-32 of
each block of the body, and the body. Readers take no lock, for files are put in place whole; one that is torn, flipped or not ours
is no hit, and is removed.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import stat
import struct
import time
import zlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeVar

from s3tasks import events
from s3tasks.disk import BoundedDirectory, NoRoom, problem_with
from s3tasks.evidence import Served
from s3tasks.refs import Marker, ObjectRef

logger = logging.getLogger(__name__)

ByteRange = tuple[int, int | None]
T = TypeVar("T")

_MAGIC, _SCHEMA = b"s3tcache", 1
_PREFIX = struct.Struct(">8sIIQI")
_CHECKSUM = struct.Struct(">I")
# A range is checked by the blocks that it touches. CRC-32 is the fastest of the standard library that finds every short burst.
_BLOCK_BYTES = 256 * 1024
# One read brings a small object whole; of a larger one the body comes with a second read, straight into the bytes handed out.
_FIRST_READ_BYTES = 16 * 1024
_MOST_DESCRIPTION_BYTES = 64 * 1024
# What is hit is hit again: a description is understood once, unless it is so large that many would fill the memory.
_MOST_KEPT_BYTES = 1024
# Linux reads 2 GiB at most in one call.
_MOST_BODY_BYTES = 1024**3
_TOUCH_EVERY_SECONDS = 60
_COUNTED = ("hits", "misses", "stored", "refused", "failed", "damaged", "evicted")


@dataclass(frozen=True)
class Cached:
    """A body, checked, and the object as S3 described it when it was read; for a byte range `body` is only that slice."""

    served: Served
    body: bytes


class Cache:
    """Bodies in files of `directory` that together take at most `max_bytes` (see BoundedDirectory), for all processes and threads.

    Nothing is made before the first fill. ValueError where the directory (or what a symlink names) is none, belongs to another
    user, or is writable by others. No method raises for trouble with the disk: it is counted, and logged as a warning once.
    """

    def __init__(self, directory: str, max_bytes: int) -> None:
        problem = problem_with(directory)
        if problem:
            raise ValueError(f"the cache directory {problem}")
        self._files = BoundedDirectory(directory, max_bytes)
        self._counts, self._counting_process = dict.fromkeys(_COUNTED, 0), os.getpid()
        self._warned = False

    def get(self, ref: ObjectRef, etag: str, byte_range: ByteRange | None = None) -> Cached | None:
        """What is kept of the object under this ETag (and the ref's version id, if it has one); None where that is nothing.

        `byte_range` is first and last byte, both included; no last: to the end. A range that begins behind the body's end is a
        miss, so that S3 words the refusal. A hit costs no lock: open, fstat, one read (two over 16 KiB), close.
        """
        for place in self._places(ref):
            cached = self._read(place, lambda entry: entry.cached(ref, etag, byte_range))
            if cached is not None:
                self._asked("hits")
                return cached
        self._asked("misses")
        return None

    def missed(self) -> None:
        """Counts a miss that was found otherwise than by `get`: nothing was kept, or S3 said that it has changed."""
        self._asked("misses")

    def _asked(self, what: str) -> None:
        self._count(what)
        if events.listeners:
            events.tell(events.CacheAsked(what == "hits"))

    def etag_of(self, ref: ObjectRef) -> str | None:
        """The ETag under which the plain key is kept, whichever write the ref names; None where it is not.

        The body is not read for this: `get` may find it damaged, and then S3 must be asked without a condition.
        """
        plain = ref.plain()
        return self._read(self._files.place(_name(plain)), lambda entry: entry.described(plain).etag)

    def put(self, ref: ObjectRef, served: Served, body: bytes) -> None:
        """Keeps a whole body for the ref's version id, or for the plain key, instead of what was kept there.

        Best effort: not kept is a body that is too large for the bound, whose `served` has no ETag or another size or version id,
        or that would have to wait for other fills.
        """
        try:
            head = _head(ref, served, body)
            evicted = self._files.fill(_name(ref), (head, body))
        except NoRoom:
            self._count("refused")
        except OSError as trouble:
            self._failed(trouble)
        else:
            self._count("stored")
            self._count("evicted", evicted)

    def counts(self) -> dict[str, int]:
        """What this process has met: hits, misses, bodies stored, refused and failed for the disk, files damaged and evicted.

        A fork begins at nothing. Threads that count at the same instant may lose a count.
        """
        self._count("hits", 0)
        return dict(self._counts)

    def stored_bytes(self) -> int:
        """What all processes have taken and reserved on the disk; too high after one was killed in a fill, until the next scan."""
        try:
            return self._files.total_bytes()
        except OSError as trouble:
            self._failed(trouble)
            return 0

    def _places(self, ref: ObjectRef) -> list[str]:
        """Where the object may be: the version's own file, then the plain key's, which may hold that version."""
        names = [_name(ref)] if ref.version_id is None else [_name(ref), _name(ref.plain())]
        return [self._files.place(name) for name in names]

    def _read(self, place: str, take: Callable[[_Entry], T]) -> T | None:
        """What `take` finds in the file; None where there is no file, or none in order."""
        try:
            descriptor = os.open(place, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        except OSError as trouble:
            self._unopened(place, trouble)
            return None
        try:
            return take(_Entry(descriptor))
        except _DamagedError:
            self._damaged(place, descriptor)
        except OSError as trouble:
            self._failed(trouble)
        finally:
            os.close(descriptor)
        return None

    def _unopened(self, place: str, trouble: OSError) -> None:
        if trouble.errno != errno.ELOOP:
            self._failed(trouble)
            return
        # A symlink is not followed: only a stranger can have put it there.
        self._count("damaged")
        with suppress(OSError):
            os.unlink(place)

    def _damaged(self, place: str, descriptor: int) -> None:
        self._count("damaged")
        logger.warning("%s in the cache is not what was put there: removed", place)
        # Not another file that was put in its place meanwhile.
        with suppress(OSError):
            if os.path.samestat(os.lstat(place), os.fstat(descriptor)):
                os.unlink(place)

    def _failed(self, trouble: OSError) -> None:
        self._count("failed")
        level, self._warned = logging.DEBUG if self._warned else logging.WARNING, True
        logger.log(level, "the cache in %s cannot be used as it should: %s", self._files.path, trouble)

    def _count(self, what: str, number: int = 1) -> None:
        if self._counting_process != os.getpid():
            self._counts, self._counting_process = dict.fromkeys(_COUNTED, 0), os.getpid()
        self._counts[what] += number


class _DamagedError(Exception):
    """A file that is not what its head, or its name, says."""


class _Entry:
    """An open file of the cache. Whatever is wrong with it is _DamagedError."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor, self._status = descriptor, os.fstat(descriptor)
        if not stat.S_ISREG(self._status.st_mode) or self._status.st_uid != os.geteuid():
            raise _DamagedError
        self._first = os.pread(descriptor, _FIRST_READ_BYTES, 0)
        if len(self._first) < _PREFIX.size:
            raise _DamagedError
        magic, schema, self._description_bytes, self._body_bytes, checksum = _PREFIX.unpack_from(self._first)
        self._checksums_at = _PREFIX.size + self._description_bytes
        self._body_at = self._checksums_at + _CHECKSUM.size * _blocks(self._body_bytes)
        # Before anything is read that may be large: the lengths must fit the file.
        if (magic, schema, self._body_at + self._body_bytes) != (_MAGIC, _SCHEMA, self._status.st_size):
            raise _DamagedError
        self._head = self._first[: self._body_at]
        if self._body_at > len(self._first):
            self._head = os.pread(descriptor, self._body_at, 0)
        if len(self._head) != self._body_at or checksum != _head_checksum(self._head):
            raise _DamagedError

    def described(self, ref: ObjectRef) -> Served:
        """The object as S3 described it, if it is the one that the ref names."""
        said = self._head[_PREFIX.size : self._checksums_at]
        bucket, key, served = (_kept_description if len(said) <= _MOST_KEPT_BYTES else _description)(said)
        if (bucket, key) != (ref.bucket, ref.key):
            raise _DamagedError
        return served

    def cached(self, ref: ObjectRef, etag: str, byte_range: ByteRange | None) -> Cached | None:
        """The body, or the range of it, if it is kept under this ETag and the version id that the ref names."""
        served = self.described(ref)
        if served.etag != etag or ref.version_id not in (None, served.version_id):
            return None
        first, last = byte_range or (0, None)
        stop = self._body_bytes if last is None else min(last + 1, self._body_bytes)
        if byte_range is not None and not 0 <= first < stop:
            return None
        body = self._body(first, stop)
        self._touch()
        return Cached(served, body)

    def _body(self, start: int, stop: int) -> bytes:
        low, high = start - start % _BLOCK_BYTES, min(_blocks(stop) * _BLOCK_BYTES, self._body_bytes)
        if self._body_at + high <= len(self._first):
            read = self._first[self._body_at + low : self._body_at + high]
        else:
            read = os.pread(self._descriptor, high - low, self._body_at + low)
        sums_at = self._checksums_at + low // _BLOCK_BYTES * _CHECKSUM.size
        sums = self._head[sums_at : sums_at + _blocks(high - low) * _CHECKSUM.size]
        if len(read) != high - low or _checksums(read) != sums:
            raise _DamagedError
        return read if len(read) == stop - start else read[start - low : stop - low]

    def _touch(self) -> None:
        """Says that the file is in use, now and then: eviction looks at the date. A disk that cannot be written still serves."""
        if abs(time.time() - self._status.st_mtime) > _TOUCH_EVERY_SECONDS:
            with suppress(OSError):
                os.utime(self._descriptor)


def _description(said: bytes) -> tuple[str, str, Served]:
    """Bucket, key and the object as S3 described it. _DamagedError where the text says something else."""
    try:
        facts = json.loads(said)
        bucket, key, marker = facts.pop("bucket"), facts.pop("key"), facts.pop("marker")
        return bucket, key, Served(**facts, marker=None if marker is None else Marker(*marker))
    except (ValueError, KeyError, TypeError, AttributeError) as strange:
        raise _DamagedError from strange


_kept_description = lru_cache(maxsize=1024)(_description)


def _name(ref: ObjectRef) -> str:
    # No bucket, key or version id holds a NUL, so that no two objects share a name.
    return hashlib.sha256(f"{ref.bucket}\0{ref.key}\0{ref.version_id or ''}".encode()).hexdigest()


def _head(ref: ObjectRef, served: Served, body: bytes) -> bytes:
    """All that precedes the body. NoRoom where what is given must not be kept."""
    marker = served.marker
    said = {
        "bucket": ref.bucket, "key": ref.key, "etag": served.etag, "version_id": served.version_id, "size": served.size,
        "last_modified": served.last_modified, "marker": None if marker is None else [marker.write_id, marker.ticket],
        "content_type": served.content_type, "metadata": dict(served.metadata),
    }
    description = json.dumps(said, separators=(",", ":")).encode()
    belongs = served.etag is not None and served.size in (None, len(body)) and ref.version_id in (None, served.version_id)
    if not belongs or len(body) > _MOST_BODY_BYTES or len(description) > _MOST_DESCRIPTION_BYTES:
        raise NoRoom(ref.uri)
    rest = description + _checksums(body)
    prefix = _PREFIX.pack(_MAGIC, _SCHEMA, len(description), len(body), 0)
    return prefix[: -_CHECKSUM.size] + _CHECKSUM.pack(_head_checksum(prefix + rest)) + rest


def _head_checksum(head: bytes) -> int:
    """Of all that precedes the body, but for this checksum itself."""
    return zlib.crc32(head[_PREFIX.size :], zlib.crc32(head[: _PREFIX.size - _CHECKSUM.size]))


def _checksums(body: bytes) -> bytes:
    view = memoryview(body)
    blocks = range(0, len(body), _BLOCK_BYTES)
    return b"".join(_CHECKSUM.pack(zlib.crc32(view[at : at + _BLOCK_BYTES])) for at in blocks)


def _blocks(size_bytes: int) -> int:
    return -(-size_bytes // _BLOCK_BYTES)
