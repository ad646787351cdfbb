"""Readers that watch an object while a fault goes on, and what everybody may expect afterwards.

It never knows which fault it was.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import TracebackType

from s3tasks import ConsistentS3, LedgerUnavailable, NoSuchKey, ObjectRef, PreconditionFailed
from s3tasks.evidence import Intent
from s3tasks.ledger import Ledger

GONE = b"<no object>"
READABLE_WITHIN_SECONDS = 5.0


@dataclass
class Watcher:
    """Reads the object in turn through each client, from entering to leaving; `served` is all it got, in order, with the time.

    A refusal to serve what is late is no answer; it is counted in `refusals`.
    """

    ref: ObjectRef
    clients: Sequence[ConsistentS3]
    every_seconds: float = 0.05
    served: list[tuple[float, bytes]] = field(default_factory=list)
    refusals: int = 0
    errors: list[Exception] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Watcher:  # noqa: PYI034 - Self is not in Python 3.10
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._over.set()
        self._thread.join()

    def phases(self) -> list[bytes]:
        """What was served, without repetitions in a row."""
        bodies = [body for _, body in self.served]
        return [body for before, body in zip([None, *bodies], bodies, strict=False) if body != before]

    def unreadable_seconds(self, since: float) -> float:
        """How long after that moment (of the monotonic clock) the object was first served."""
        return min((moment for moment, _ in self.served if moment > since), default=float("inf")) - since

    def _watch(self) -> None:
        while not self._over.is_set():
            for client in self.clients:
                self._look(client)
            self._over.wait(self.every_seconds)

    def _look(self, client: ConsistentS3) -> None:
        try:
            body = client.read(self.ref)
        except NoSuchKey:
            body = GONE
        except (PreconditionFailed, LedgerUnavailable):
            self.refusals += 1
            return
        except Exception as problem:  # noqa: BLE001 - whatever else a reader meets is told by the test
            self.errors.append(problem)
            return
        self.served.append((time.monotonic(), body))


def assert_in_order(watcher: Watcher, *bodies: bytes) -> None:
    """Readers were served these versions in this order and never went back; they met no error but a refusal to serve stale data."""
    # Large bodies are told by their beginnings.
    phases, order = [body[:12] for body in watcher.phases()], [body[:12] for body in bodies]
    assert phases == [body for body in order if body in phases], "readers went back, or were served something else"
    assert watcher.served, "nothing was served at all"
    assert watcher.errors == []


def assert_sound(client: ConsistentS3, ledger: Ledger, ref: ObjectRef, body: bytes, done_by: str = "") -> None:
    """The object is readable within a few seconds, it is the acknowledged version, and no write counts as still going on.

    An attempt of the write `done_by` whose end nobody knows may stay on record, until the retention is over: its request may be
    slow rather than dead.
    """
    served = _read(client, ref)
    assert (served[:12], len(served)) == (body[:12], len(body))
    assert {intent.write_id for intent in open_intents(ledger, ref)} <= {done_by}


def open_intents(ledger: Ledger, ref: ObjectRef) -> tuple[Intent, ...]:
    return ledger.lookup(ref).intents


def _read(client: ConsistentS3, ref: ObjectRef) -> bytes:
    try:
        return client.read(ref, wait=READABLE_WITHIN_SECONDS)
    except NoSuchKey:
        return GONE
