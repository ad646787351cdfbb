"""What happened, told to whoever listens: verdicts, commits, retries, calls and how long they took.

It never knows who listens, never raises for what a listener does, and costs one look at an empty tuple where nobody does:

    if events.listeners:
        events.tell(events.Concluded("fresh"))

What an event holds takes few values (names of verdicts, errors, operations): never a key, a body or a secret. Only an Operation
names the object that it is about, for those who follow a single call.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

from s3tasks.refs import ObjectRef

logger = logging.getLogger(__name__)


class Operation:
    """Something that takes time: a verb of the client, a call to the ledger, a call to the store.

    `room` is "verb", "ledger" or "store", `name` the verb ("read"), the ledger's move ("commit") or S3's operation ("PutObject").
    Once it has ended, `seconds` says how long it took and `error` what went wrong (a class's name or an HTTP status, None for
    nothing).
    """

    __slots__ = ("_started", "error", "name", "ref", "room", "seconds")

    def __init__(self, room: str, name: str, ref: ObjectRef | None) -> None:
        self.room, self.name, self.ref = room, name, ref
        self.seconds, self.error = 0.0, None
        self._started = time.perf_counter()

    seconds: float
    error: str | None

    def end(self, error: str | None = None) -> None:
        """It is over: says so to those who listen."""
        self.seconds, self.error = time.perf_counter() - self._started, error
        tell(Ended(self))


@dataclass(frozen=True)
class Began:
    """An operation has begun, in this thread; its Ended comes in the same one."""

    operation: Operation


@dataclass(frozen=True)
class Ended:
    """An operation is over."""

    operation: Operation


@dataclass(frozen=True)
class Failed:
    """Redis or S3 did not do what it was asked to: `kind` is the client's error class, or the HTTP status.

    That an object is missing, or a condition does not hold, is an answer and no failure.
    """

    room: str
    operation: str
    kind: str


@dataclass(frozen=True)
class Concluded:
    """A look at an object came to this verdict (s3tasks.verdicts.Verdict, its name in small letters)."""

    verdict: str


@dataclass(frozen=True)
class Committed:
    """A write or a delete of one object is done and recorded: `kind` is "write" or "delete"."""

    kind: str


@dataclass(frozen=True)
class Recorded:
    """A reader has told the ledger what it saw: `what` is "adopted" (somebody else's write) or "observed" (an unfinished one)."""

    what: str


@dataclass(frozen=True)
class FirstFresh:
    """The first fresh read of a write came so many seconds after its commit: what is called staleness."""

    seconds: float


@dataclass(frozen=True)
class Retried:
    """A task is sent again for this error (its class's name)."""

    error: str


@dataclass(frozen=True)
class DeadlineMissed:
    """A task gave up on this error (its class's name): the time that it may wait is over."""

    error: str


@dataclass(frozen=True)
class CacheAsked:
    """A body was looked for in the cache."""

    hit: bool


Event = (
    Began | Ended | Failed | Concluded | Committed | Recorded | FirstFresh | Retried | DeadlineMissed | CacheAsked
)
Listener = Callable[[Event], None]

listeners: tuple[Listener, ...] = ()
"""Who is told, in this process. Look at it before an event is made; change it by `listen` only."""

_failing: set[int] = set()


def listen(listener: Listener) -> Callable[[], None]:
    """Has the listener told of every event of this process, in the thread where it happens; what is returned ends that.

    It is called while the caller waits, so it must be quick. What it raises is logged, once as an error.
    """
    global listeners  # noqa: PLW0603 - one tuple, replaced as a whole, is what makes the look at it cheap
    listeners = (*listeners, listener)

    def stop() -> None:
        global listeners  # noqa: PLW0603
        listeners = tuple(other for other in listeners if other is not listener)

    return stop


def tell(event: Event) -> None:
    """Tells everyone who listens."""
    for listener in listeners:
        _tell_one(listener, event)


def begin(room: str, name: str, ref: ObjectRef | None = None) -> Operation | None:
    """An operation that begins now, to be ended by its `end`; None where nobody listens."""
    if not listeners:
        return None
    operation = Operation(room, name, ref)
    tell(Began(operation))
    return operation


def _tell_one(listener: Listener, event: Event) -> None:
    try:
        listener(event)
    except Exception as problem:  # noqa: BLE001 - whatever a listener does wrong, the object is read and written all the same
        _complain(listener, event, problem)


def _complain(listener: Listener, event: Event, problem: Exception) -> None:
    """Once for each listener as an error: events are many."""
    level = logging.DEBUG if id(listener) in _failing else logging.ERROR
    _failing.add(id(listener))
    logger.log(level, "a listener failed on %s: %r", type(event).__name__, problem, exc_info=problem)
