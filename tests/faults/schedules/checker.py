"""The guarantees of DESIGN.md, section 4, asked of a history.

It never looks into the ledger and never uses the package's code: what may be served follows from who overlapped whom alone.

A write begins when its first delivery is known to the ledger. It has ended when one of its deliveries has returned, none of its
requests reaches S3 after that, and no other delivery that has asked S3 is still to report; until then (a crash: until a redelivery
returns) it is going on, and overlaps what comes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from tests.faults.schedules.history import BEFORE, NEVER, Attempt, History, Read

DONE = "done"
DEFINITE = ("StoreError", "WriteConflict")
SAYS_NOTHING_THERE = ("NoSuchKey", "ObjectDeleted")


@dataclass(frozen=True)
class Violation:
    """A promise that a history breaks, and how."""

    guarantee: str
    text: str


@dataclass(frozen=True)
class Write:
    """A write with all its deliveries: one span of time. A refused one is over with the refusal, and counts for nothing after."""

    name: str
    body: bytes | None
    began: int
    ended: int
    refused: bool = False
    ours: bool = True


def violations(history: History) -> list[Violation]:
    """Every broken promise, for the scheduler to weigh: which of them a family must keep is said in `families`."""
    writes = writes_of(history)
    found: list[Violation] = []
    for guarantee, check in CHECKS.items():
        found += [Violation(guarantee, text) for text in check(history, writes)]
    return found


def writes_of(history: History) -> list[Write]:
    """The writes of a history, ours and other people's; what was there before is one that ended before all."""
    by_name: dict[str, list[Attempt]] = {}
    for attempt in history.attempts:
        if attempt.began is not None:
            by_name.setdefault(attempt.write, []).append(attempt)
    ours = [_write(name, attempts, history) for name, attempts in by_name.items()]
    return ours + [Write("somebody", held.body, held.step, held.step, ours=False) for held in history.held if not held.write]


def _write(name: str, attempts: list[Attempt], history: History) -> Write:
    arrivals = [held.step for held in history.held if held.write == name]
    reports = [attempt.finished for attempt in attempts if attempt.asked and attempt.finished is not None]
    returns = [attempt.ended for attempt in attempts if attempt.outcome == DONE and attempt.ended is not None]
    last_news = max([*arrivals, *reports], default=BEFORE)
    ended = min((step for step in [*returns, *reports] if step >= last_news), default=NEVER) if returns else NEVER
    refused = not arrivals and all(attempt.outcome in DEFINITE for attempt in attempts)
    if refused:
        ended = max(attempt.ended or BEFORE for attempt in attempts)
    # A try that S3 has refused is over for good: a later one begins the write anew.
    tries = [attempt for attempt in attempts if attempt.outcome not in DEFINITE] or attempts
    began = min(attempt.began for attempt in tries if attempt.began is not None)
    return Write(name, attempts[0].body, began, ended, refused)


def _sources(read: Read, writes: list[Write]) -> list[Write]:
    """The writes that the read may have seen: those with that body that had begun."""
    return [
        write
        for write in writes
        if write.body == read.body and write.began <= read.ended and not (write.refused and write.ended < read.started)
    ]


def _replacer(write: Write, read: Read, writes: list[Write]) -> Write | None:
    """A write of ours that began after `write` had ended, and had finished before the read began."""
    for other in writes:
        finished = other.ours and not other.refused and other.ended < read.started
        if finished and other.began > write.ended:
            return other
    return None


def _replaced_versions(history: History, writes: list[Write]) -> Iterator[str]:
    for read in history.reads:
        if read.error or read.pinned:
            continue
        sources = _sources(read, writes)
        if not sources:
            yield f"{_told(read)}, which nobody has written"
        elif all(_replacer(write, read, writes) for write in sources):
            newer = _replacer(sources[-1], read, writes)
            yield f"{_told(read)}, replaced by {newer.name if newer else ''}, which had finished before"


def _inversions(history: History, writes: list[Write]) -> Iterator[str]:
    # A key that the ledger does not know is assumed consistent, which stale replicas make untrue.
    known_from = min((attempt.finished for attempt in history.attempts if attempt.finished is not None), default=NEVER)
    answered = [read for read in history.reads if not read.error and not read.exact and read.started > known_from]
    for later in answered:
        old = _sources(later, writes)
        for earlier in answered:
            new = _sources(earlier, writes) if earlier.ended < later.started else []
            if old and new and all(write.ended < other.began for write in old for other in new):
                yield f"{_told(later)} after {_told(earlier)}, which is newer"


def _turns_not_taken(history: History, writes: list[Write]) -> Iterator[str]:
    ours = [write for write in writes if write.ours and not write.refused]
    for first in ours:
        settled = _settled(first, history)
        for second in ours:
            if first.began < second.began < settled:
                yield f"{second.name} began at {second.began}, while {first.name} was going on"


def _settled(write: Write, history: History) -> int:
    """When it was known what became of the write: it returned, it was called done, or a reader recorded it."""
    arrivals = max((held.step for held in history.held if held.write == write.name), default=BEFORE)
    known = [write.ended]
    known += [attempt.finished for attempt in history.attempts if attempt.write == write.name and attempt.finished is not None]
    known += [step for step, name in history.helped if name == write.name]
    return min(step for step in known if step >= arrivals)


def _unreadable(history: History, writes: list[Write]) -> Iterator[str]:
    last, expected = history.last_reads[0], history.held[-1].body
    if last.error:
        yield f"after convergence the key reads {last.error}, S3 holds {_shown(expected)}"
    elif last.body != expected:
        yield f"after convergence the key reads {_shown(last.body)}, S3 holds {_shown(expected)}"


def _lost_refs(history: History, writes: list[Write]) -> Iterator[str]:
    for read in history.last_reads[1:]:
        if read.exact == history.last_write and read.error:
            yield f"after convergence the ref of {read.exact}, which S3 holds, reads {read.error}"


def _repeated_writes(history: History, writes: list[Write]) -> Iterator[str]:
    for attempt in history.attempts:
        if not attempt.asked:
            continue
        earlier = [other for other in history.attempts if other.write == attempt.write and other.started < attempt.started]
        if any(other.finished is not None and other.finished < attempt.started for other in earlier):
            yield f"operation {attempt.number}: {attempt.write} had finished, and S3 was asked again"
        elif _was_replaced(attempt, earlier, history):
            yield f"operation {attempt.number}: {attempt.write} had been replaced, and S3 was asked again"


def _was_replaced(attempt: Attempt, earlier: list[Attempt], history: History) -> bool:
    """Whether another write began after the last try of this one, and finished before the redelivery.

    A write whose every try S3 has refused has written nothing that could be replaced, though a process vanished before it said so.
    """
    tries = [other for other in earlier if other.began is not None]
    if not tries or all(other.refused or other.outcome in DEFINITE for other in tries):
        return False
    last_try = max(other.began or 0 for other in tries)
    return any(
        other.write != attempt.write
        and other.finished is not None
        and other.asked
        and _put_by(other, history) > last_try
        and other.finished < attempt.started
        for other in history.attempts
    )


def _put_by(finished: Attempt, history: History) -> int:
    """When the delivery began whose request S3 has followed: an earlier one, where this one has found the work done.

    Of a request that S3 has followed late nobody can tell whose it was: the earliest counts.
    """
    followed = {held.step for held in history.held if held.write == finished.write}
    asked = [other for other in history.attempts if other.write == finished.write and other.asked]
    deliveries = [other for other in asked if followed & set(other.asked)] or (asked if followed else [finished])
    return min(other.began or 0 for other in deliveries)


def _other_bytes(history: History, writes: list[Write]) -> Iterator[str]:
    bodies = {attempt.write: attempt.body for attempt in history.attempts}
    for read in history.reads + history.last_reads:
        if read.exact and not read.error and read.body is not None and read.body != bodies[read.exact]:
            yield f"the ref of {read.exact}: {_told(read)}"


def _told(read: Read) -> str:
    return f"read {read.number} (steps {read.started} to {read.ended}) returned {_shown(read.body)}"


def _shown(body: bytes | None) -> str:
    return "nothing" if body is None else body.decode()


REPLACED = "1 no replaced version"
ORDER = "2 order of reads"
TURNS = "2 taking turns"
READABLE = "3 key readable"
REF_READABLE = "3 ref readable"
ONCE = "4 no second write"
EXACT = "5 exact ref"

CHECKS: dict[str, Callable[[History, list[Write]], Iterator[str]]] = {
    REPLACED: _replaced_versions,
    ORDER: _inversions,
    TURNS: _turns_not_taken,
    READABLE: _unreadable,
    REF_READABLE: _lost_refs,
    ONCE: _repeated_writes,
    EXACT: _other_bytes,
}
