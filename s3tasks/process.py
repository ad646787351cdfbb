"""The one ledger, store, reader and so on of a process for some settings: made when first used, and made anew after a fork.

It never carries a connection into a forked child: botocore's would have both read the other's answers.
"""

from __future__ import annotations

import os
import threading
import weakref
from dataclasses import dataclass

from s3tasks.cache import Cache
from s3tasks.copies import Copier
from s3tasks.ledger import Ledger
from s3tasks.patience import Patience
from s3tasks.probes import Probes
from s3tasks.reads import Reader
from s3tasks.settings import Settings
from s3tasks.store import Store


@dataclass(frozen=True)
class Rooms:
    """What the verbs work with."""

    ledger: Ledger
    store: Store
    reader: Reader
    probes: Probes
    copier: Copier
    patience: Patience
    cache: Cache | None


class Process:
    """The rooms of this process for its settings."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._lock = threading.Lock()
        self._rooms: Rooms | None = None
        _living.add(self)

    def rooms(self) -> Rooms:
        """The rooms, furnished when first asked for."""
        if self._rooms is None:
            with self._lock:
                if self._rooms is None:
                    self._rooms = _furnished(self.settings)
        return self._rooms

    def close(self) -> None:
        """Closes this process's connections; the next use makes new ones."""
        with self._lock:
            rooms, self._rooms = self._rooms, None
        if rooms is not None:
            rooms.ledger.close()
            rooms.store.close()

    def forget_inherited(self) -> None:
        """In a forked child: neither the parent's connections nor its lock, which another thread may have held."""
        self._lock = threading.Lock()
        self._rooms = None


def _furnished(settings: Settings) -> Rooms:
    cache = Cache(settings.cache_dir, settings.cache_max_bytes) if settings.cache_dir else None
    ledger, store = Ledger(settings), Store(settings)
    reader = Reader(ledger, store, settings, cache)
    probes = Probes(ledger, store, settings)
    return Rooms(ledger, store, reader, probes, Copier(ledger, store, reader, probes), Patience(ledger, settings), cache)


_living: weakref.WeakSet[Process] = weakref.WeakSet()


def _after_fork() -> None:
    for process in list(_living):
        process.forget_inherited()


os.register_at_fork(after_in_child=_after_fork)
