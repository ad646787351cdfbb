"""Files of one directory that are put there whole and together never take more than a bound, whoever fills it and is killed.

It never looks into a file, and never keeps anybody waiting: what cannot be put in place now is refused.

Whoever adds to the disk first reserves its size in the running total (the file `total`), under a lock: flock on the directory
itself, which nobody can remove on its own. A file is filled in the folder `filling`, already as long as it will be and under a
flock of its own, and then renamed. A process that is killed anywhere leaves the total too high, never too low; a scan, made when
the bound is reached or the total cannot be read, puts that right, and removes the fills whose owner is gone.
"""

from __future__ import annotations

import fcntl
import os
import re
import secrets
import stat
import threading
import time
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache

NAME = re.compile("[0-9a-f]{64}")
"""What a file may be called: 32 bytes in hexadecimal, evenly spread, for the first two digits are its folder."""

LARGEST_SHARE = 4
"""A file that takes more than one part in so many of the bound is refused."""

EVICTED_DOWN_TO = 0.9
"""How much of the bound is left in use when files had to make room, those least recently used first."""

_FILL_NAME = re.compile("fill-[0-9a-f]{16}")
_FOLDERS = tuple(f"{number:02x}" for number in range(256))
_DISK_BLOCK_BYTES = 4096
_TOTAL = re.compile(rb"(?P<said>(?P<boot>\S+) (?P<bytes>\d{20})) (?P<checksum>[0-9a-f]{8})\n")
_CLOCK_DOUBT_NANOSECONDS = 60 * 10**9
# A millisecond or two, more than the lock is ever held but for a scan. Threads, which must share the interpreter, get longer.
_LOCK_TRIES = 1000
_THREAD_LOCK_SECONDS = 0.05
_CREATE_FLAGS = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC



class _HeldLocks:
    """The locks that this process holds: descriptors with a flock, and one lock between its threads.

    A fork copies both, and the copies would hold on to the locks after their owners are gone.
    """

    def __init__(self) -> None:
        self.descriptors: set[int] = set()
        self.between_threads = threading.Lock()

    def forget(self) -> None:
        self.between_threads = threading.Lock()
        while self.descriptors:
            os.close(self.descriptors.pop())


_held = _HeldLocks()
os.register_at_fork(after_in_child=_held.forget)


class NoRoom(Exception):
    """The file is too large, the room is taken by other fills, or the lock is not to be had soon."""


def problem_with(path: str) -> str | None:
    """Why the directory may not be used by this process, and the way out; None where it may, or where it is missing."""
    try:
        status = os.stat(path)
    except FileNotFoundError:
        return None
    except OSError as trouble:
        return f"{path}: {trouble.strerror}: name a directory of this user's, or one that can be made"
    return _problem_with_status(path, status)


def _problem_with_status(path: str, status: os.stat_result) -> str | None:
    if not stat.S_ISDIR(status.st_mode):
        return f"{path} is not a directory: name one, or one that can be made"
    if status.st_uid != os.geteuid():
        return f"{path} belongs to user {status.st_uid}, this process to {os.geteuid()}: name one of this user's, or chown it"
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return f"{path} is writable by others, who could put anything there: chmod go-w it"
    return None


class BoundedDirectory:
    """The files in `path`, which take at most `max_bytes`, each rounded up to disk blocks of 4 KiB.

    Fills under way and the total's own file count; the (up to 257) folders do not, nor does an evicted file that somebody still has
    open. Of processes with different bounds, each keeps to its own whenever it fills. Missing directories are made, with mode 0700.
    """

    def __init__(self, path: str, max_bytes: int) -> None:
        self.path, self._max_bytes = os.path.abspath(path), max_bytes
        self._filling = os.path.join(self.path, "filling")
        self._total_file = os.path.join(self.path, "total")

    def place(self, name: str) -> str:
        """The path of the file of this name (see NAME), there or not."""
        return f"{self.path}/{name[:2]}/{name}"

    def fill(self, name: str, parts: Sequence[bytes]) -> int:
        """Puts a file made of `parts` in its place, on the disk and whole, instead of what is there; the number of files evicted.

        Raises NoRoom or OSError; the file is then not there, or whole.
        """
        size_bytes = sum(len(part) for part in parts)
        takes_bytes = _on_disk(size_bytes)
        if takes_bytes * LARGEST_SHARE > self._max_bytes:
            raise NoRoom(name)
        with self._locked():
            evicted = self._reserve(takes_bytes)
            fill = os.path.join(self._filling, f"fill-{secrets.token_hex(8)}")
            descriptor = self._begin(fill, size_bytes)
        try:
            _write(descriptor, parts)
            with self._locked():
                self._put_in_place(fill, name)
        except BaseException:
            _remove(fill)
            raise
        finally:
            _unlock_and_close(descriptor)
        return evicted

    def total_bytes(self) -> int:
        """What is taken and reserved: never too low, and too high at most until the next scan. Raises OSError."""
        total = self._recorded()
        if total is None:
            total = _DISK_BLOCK_BYTES + sum(takes for _, takes, _ in self._files()) + self._fills_bytes()
        return total

    @contextmanager
    def _locked(self) -> Iterator[None]:
        between_threads = _held.between_threads
        if not between_threads.acquire(timeout=_THREAD_LOCK_SECONDS):
            raise NoRoom("another thread holds the lock")
        try:
            with self._locked_for_processes():
                yield
        finally:
            between_threads.release()

    @contextmanager
    def _locked_for_processes(self) -> Iterator[None]:
        os.makedirs(self.path, mode=0o700, exist_ok=True)
        descriptor = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        _held.descriptors.add(descriptor)
        try:
            self._take_lock(descriptor)
            yield
        finally:
            _unlock_and_close(descriptor)

    def _take_lock(self, descriptor: int) -> None:
        """Spins for the lock: a process that was stopped while it held it must not stop the readers of the others."""
        for _ in range(_LOCK_TRIES):
            if _flock(descriptor):
                break
            os.sched_yield()
        else:
            raise NoRoom("another process holds the lock")
        status = os.fstat(descriptor)
        problem = _problem_with_status(self.path, status)
        if problem:
            raise PermissionError(problem)
        if not os.path.samestat(status, os.stat(self.path)):
            raise NoRoom("the directory was replaced")

    def _reserve(self, takes_bytes: int) -> int:
        """Counts the bytes as taken, before anything takes them; the number of files that were evicted for them."""
        total, evicted = self._recorded(), 0
        if total is None or total + takes_bytes > self._max_bytes:
            total, evicted = self._swept(takes_bytes)
        if total + takes_bytes > self._max_bytes:
            raise NoRoom("other fills are under way")
        self._record(total + takes_bytes)
        return evicted

    def _begin(self, fill: str, size_bytes: int) -> int:
        """An empty file of the full size, told from an orphan by the flock that its descriptor holds."""
        os.makedirs(self._filling, mode=0o700, exist_ok=True)
        descriptor = os.open(fill, _CREATE_FLAGS | os.O_EXCL, 0o600)
        _held.descriptors.add(descriptor)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(descriptor, size_bytes)
        except BaseException:
            _remove(fill)
            _unlock_and_close(descriptor)
            raise
        return descriptor

    def _put_in_place(self, fill: str, name: str) -> None:
        place = self.place(name)
        os.makedirs(os.path.dirname(place), mode=0o700, exist_ok=True)
        replaced_bytes = _taken_by(place)
        os.replace(fill, place)
        total = self._recorded()
        if total is not None:
            self._record(max(total - replaced_bytes, 0))

    def _swept(self, wanted_bytes: int) -> tuple[int, int]:
        """The total by a scan, after files made room for what is wanted if they had to, and how many did."""
        # Fills first: one that is put in place meanwhile is then counted twice rather than not at all.
        total = _DISK_BLOCK_BYTES + self._fills_bytes(sweep=True)
        files = list(self._files())
        total += sum(takes for _, takes, _ in files)
        if total + wanted_bytes <= self._max_bytes:
            return total, 0
        evicted = 0
        for _, takes, path in sorted(files):
            if total + wanted_bytes <= self._max_bytes * EVICTED_DOWN_TO:
                break
            if _remove(path):
                total, evicted = total - takes, evicted + 1
        return total, evicted

    def _files(self) -> Iterator[tuple[int, int, str]]:
        """When each file was last used, what it takes, and its path."""
        latest = time.time_ns() + _CLOCK_DOUBT_NANOSECONDS
        for folder in _FOLDERS:
            for entry in _listed(os.path.join(self.path, folder), NAME):
                with suppress(FileNotFoundError):
                    status = entry.stat(follow_symlinks=False)
                    # A date in the future, of a clock that was put right, must not keep a file for ever.
                    used = status.st_mtime_ns if status.st_mtime_ns <= latest else 0
                    yield used, _on_disk(status.st_size), entry.path

    def _fills_bytes(self, sweep: bool = False) -> int:
        """What the fills take; those whose owner is gone are removed if they are to be swept."""
        fills = _listed(self._filling, _FILL_NAME)
        return sum(_taken_by(fill.path) for fill in fills if not (sweep and _removed_as_orphan(fill.path)))

    def _recorded(self) -> int | None:
        """The running total, or None where there is none that can be relied on: after a reboot, files may be newer than it."""
        try:
            descriptor = os.open(self._total_file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            said = _TOTAL.fullmatch(os.read(descriptor, 1024))
        except OSError:
            return None
        finally:
            os.close(descriptor)
        good = said and int(said["checksum"], 16) == zlib.crc32(said["said"]) and said["boot"] == _boot_id()
        return int(said["bytes"]) if said and good else None

    def _record(self, total: int) -> None:
        said = b"%b %020d" % (_boot_id(), total)
        line = b"%b %08x\n" % (said, zlib.crc32(said))
        descriptor = os.open(self._total_file, _CREATE_FLAGS, 0o600)
        try:
            os.pwrite(descriptor, line, 0)
            os.ftruncate(descriptor, len(line))
        finally:
            os.close(descriptor)


@cache
def _boot_id() -> bytes:
    """What tells this run of the machine from others, where the system says so; always as long."""
    try:
        with open("/proc/sys/kernel/random/boot_id", "rb") as said:
            return b"%08x" % zlib.crc32(said.read())
    except OSError:
        return b"%08x" % 0


def _on_disk(size_bytes: int) -> int:
    return -(-size_bytes // _DISK_BLOCK_BYTES) * _DISK_BLOCK_BYTES


def _taken_by(path: str) -> int:
    try:
        return _on_disk(os.lstat(path).st_size)
    except FileNotFoundError:
        return 0


def _listed(folder: str, name: re.Pattern[str]) -> Iterator[os.DirEntry[str]]:
    """The entries that are ours by their name; none where there is no such folder."""
    try:
        with os.scandir(folder) as entries:
            yield from (entry for entry in entries if name.fullmatch(entry.name))
    except (FileNotFoundError, NotADirectoryError):
        return


def _write(descriptor: int, parts: Sequence[bytes]) -> None:
    for part in parts:
        rest = memoryview(part)
        while rest:
            rest = rest[os.write(descriptor, rest) :]
    os.fsync(descriptor)


def _flock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _unlock_and_close(descriptor: int) -> None:
    # Unlocked by word: closing frees nothing while a fork of this process has a copy.
    fcntl.flock(descriptor, fcntl.LOCK_UN)
    _held.descriptors.discard(descriptor)
    os.close(descriptor)


def _removed_as_orphan(fill: str) -> bool:
    try:
        descriptor = os.open(fill, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return _flock(descriptor) and _remove(fill)
    finally:
        os.close(descriptor)


def _remove(path: str) -> bool:
    """Whether there is nothing at the path any more."""
    try:
        os.unlink(path)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True
