"""Sums that several processes keep together, each in a file of its own that outlives it.

It never knows what is counted, and never has two processes write to one file: they are added up by whoever asks.

A file is mapped into memory, so counting costs no call to the system, and what a killed process has counted is there all the same.
Its process holds a lock on it. Where the lock can be had, the process is dead: its file is added to the sums of all the dead, which
are one file that is replaced as a whole, and removed. So there are as many files as living processes, and no sum ever falls.
"""

from __future__ import annotations

import fcntl
import json
import mmap
import os
import threading
import uuid
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from s3tasks.disk import problem_with

Sums = dict[str, float]

_SUFFIX = ".tally"
_MOST_NAMES = 1024
_NAME_BYTES = 120
_VALUE_BYTES = 8
_FILE_BYTES = _MOST_NAMES * (_VALUE_BYTES + _NAME_BYTES)


class Tallies:
    """Sums by name in the files of a directory, which must be there, belong to this user and not be writable by others.

    Shared by threads; a forked child counts in a file of its own. ValueError for a directory that may not be used.
    """

    def __init__(self, directory: str) -> None:
        problem = problem_with(directory)
        if problem or not os.path.isdir(directory):
            raise ValueError(f"the directory for counts {problem or f'{directory} is missing'}")
        self._directory = Path(directory)
        self._lock = threading.Lock()
        self._own: _Tally | None = None
        _living.add(self)

    def add(self, name: str, amount: float = 1.0) -> None:
        """Adds to a sum of this process. A name has 118 bytes at most.

        OSError where there is no room for the process's file, ValueError where there are too many names, or one is too long.
        """
        with self._lock:
            if self._own is None:
                self._own = _Tally(self._directory)
            self._own.add(name, amount)

    def totals(self) -> dict[str, float]:
        """The sums of all processes that count in this directory, and of those that did."""
        with self._alone():
            folded, totals = self._folded()
            dead: dict[str, Sums] = {}
            for path in self._directory.glob(f"*{_SUFFIX}"):
                if path.name in folded:
                    path.unlink()
                    continue
                is_dead, sums = _read(path)
                _add(totals, sums)
                if is_dead:
                    dead[path.name] = sums
            if dead:
                self._fold(dead)
        return totals

    def forget_inherited(self) -> None:
        """In a forked child: the parent's file is the parent's, and its lock may have been held."""
        self._lock = threading.Lock()
        if self._own is not None:
            self._own.leave()
        self._own = None

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """While no other process adds up the dead."""
        with (self._directory / "adding-up").open("wb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _folded(self) -> tuple[set[str], Sums]:
        """The files whose sums are among those of the dead already, and these sums."""
        try:
            said = json.loads((self._directory / "dead.json").read_text())
        except FileNotFoundError:
            return set(), {}
        return set(said["files"]), said["sums"]

    def _fold(self, dead: Mapping[str, Sums]) -> None:
        """Adds the files to the sums of the dead. Killed half-way, it has been done wholly, or not at all."""
        sums = self._folded()[1]
        for counted in dead.values():
            _add(sums, counted)
        place, draft = self._directory / "dead.json", self._directory / "dead.json.new"
        draft.write_text(json.dumps({"files": sorted(dead), "sums": sums}))
        draft.replace(place)
        for name in dead:
            (self._directory / name).unlink()


class _Tally:
    """One process's file: values, then the names that they belong to, in order of their first use."""

    def __init__(self, directory: Path) -> None:
        path = directory / f"{os.getpid()}-{uuid.uuid4().hex}{_SUFFIX}"
        draft = path.with_suffix(".new")
        with draft.open("x+b") as file:
            # Written rather than left as a hole: a full disk is to be met here, as an error, not later by the process's death.
            file.write(bytes(_FILE_BYTES))
            file.flush()
            fcntl.flock(file, fcntl.LOCK_EX)
            # The map keeps a duplicate of the descriptor, and with it the lock.
            self._map = mmap.mmap(file.fileno(), _FILE_BYTES)
        draft.rename(path)
        self._values = memoryview(self._map)[: _MOST_NAMES * _VALUE_BYTES].cast("d")
        self._places: dict[str, int] = {}

    def add(self, name: str, amount: float) -> None:
        place = self._places.get(name)
        if place is None:
            place = self._placed(name)
        self._values[place] += amount

    def _placed(self, name: str) -> int:
        place, spelled = len(self._places), name.encode()
        if place == _MOST_NAMES or not 0 < len(spelled) < _NAME_BYTES:
            raise ValueError(f"there is no room for {name!r:.200} among {place} names")
        start = _MOST_NAMES * _VALUE_BYTES + place * _NAME_BYTES
        # The length comes last: a reader takes no notice of a name that is still being written.
        self._map[start + 1 : start + 1 + len(spelled)] = spelled
        self._map[start] = len(spelled)
        self._places[name] = place
        return place

    def leave(self) -> None:
        """Closes what this process holds of the file; the lock is gone when nobody holds any of it."""
        self._values.release()
        self._map.close()


def _read(path: Path) -> tuple[bool, Sums]:
    """Whether the file's process is dead, and what it counted."""
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            is_dead = True
        except BlockingIOError:
            is_dead = False
        content = file.read()
    values = memoryview(content)[: _MOST_NAMES * _VALUE_BYTES].cast("d")
    sums: Sums = {}
    for place, start in enumerate(range(_MOST_NAMES * _VALUE_BYTES, len(content), _NAME_BYTES)):
        length = content[start]
        if length == 0:
            break
        sums[content[start + 1 : start + 1 + length].decode()] = values[place]
    return is_dead, sums


def _add(to: Sums, sums: Sums) -> None:
    for name, amount in sums.items():
        to[name] = to.get(name, 0.0) + amount


_living: weakref.WeakSet[Tallies] = weakref.WeakSet()


def _after_fork() -> None:
    for tallies in list(_living):
        tallies.forget_inherited()


os.register_at_fork(after_in_child=_after_fork)
