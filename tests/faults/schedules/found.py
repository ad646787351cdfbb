"""The shortest schedules of the faults that were found by seeds: each is played again, for ever.

It never holds a schedule that broke no promise when it was found.
"""

from __future__ import annotations

from tests.faults.schedules.plan import DELETE, EXACT, FLUSH, GO, LATE, OUTSIDE_PUT, PUT, READ, REFUSED, Operation, Schedule, Step


def _put(number: int) -> Operation:
    return Operation(PUT, f"w{number}", b"body %d" % number)


def _delete(number: int) -> Operation:
    return Operation(DELETE, f"w{number}")


def _steps(*operations: int) -> tuple[Step, ...]:
    """So many calls, each by the operation of that number, two seconds apart."""
    return tuple(Step(GO, operation, seconds=2) for operation in operations)


def _stale(operation: int) -> Step:
    return Step(GO, operation, behind=1, seconds=2)


def _schedule(
    family: str, operations: tuple[Operation, ...], steps: tuple[Step, ...], *, exists: bool = False, outside_last: bool = False
) -> Schedule:
    return Schedule(family, 1, exists=exists, outside_last=outside_last, operations=operations, steps=steps)


_READ = Operation(READ)

FOUND: dict[str, Schedule] = {
    "a delete lands after a write that overlaps it, and crashes": _schedule(
        "overlapping", (_delete(1), _put(2)), _steps(0, 1, 1, 1, 0)
    ),
    "a replaced write is delivered again, then somebody else writes": _schedule(
        "outside writers", (_put(1), _put(2), _put(1)), _steps(0, 1, 1, 1, 2), outside_last=True
    ),
    "a reader records a crashed delete, then somebody else writes": _schedule(
        "outside writers", (_put(1), _delete(2), _READ), _steps(0, 0, 0, 1, 1, 2, 2, 2, 2), outside_last=True
    ),
    "a stale 404 is taken for the work of a delete that never asked S3": _schedule(
        "eventual origin", (_put(1), _delete(2), _READ), (*_steps(0, 0, 0, 1, 2), _stale(2), *_steps(2))
    ),
    "a stale 404 is taken for the work of a delete that S3 then refuses": _schedule(
        "eventual origin",
        (_put(1), _delete(2), _READ, _READ),
        (*_steps(0, 0, 0, 1, 2), _stale(2), *_steps(2), Step(GO, 1, REFUSED, seconds=2), *_steps(1, 3), _stale(3)),
    ),
    "an older attempt commits after a newer one of the same write": _schedule(
        "redelivered early", (_delete(1), _put(2), _delete(1), _put(2)), _steps(0, 0, 1, 2, 2, 2, 0, 3, 3, 3)
    ),
    "a redelivery reports a landed write that has been replaced meanwhile": _schedule(
        "redelivered early", (_put(1), _put(1), _put(2), _READ), (*_steps(0, 0, 1, 1, 0, 2, 2, 2, 1, 3), _stale(3))
    ),
    "a request lands after its write was done again and replaced": _schedule(
        "late puts",
        (_put(1), _put(1), _put(2)),
        (*_steps(0), Step(GO, 0, LATE, seconds=2), *_steps(1, 1, 1, 1, 2, 2, 2)),
    ),
    "a slow delivery writes after its redelivery was replaced, and crashes": _schedule(
        "redelivered early", (_put(1), _put(1), _put(2)), _steps(0, 1, 1, 1, 1, 2, 2, 2, 0)
    ),
    "a stale 404 makes a delete look newer than somebody's write that it has not seen": _schedule(
        "outside writers, eventual origin",
        (_put(1), _delete(2), _READ),
        (*_steps(0, 0, 0, 1), Step(OUTSIDE_PUT, seconds=2), *_steps(2), Step(GO, 2, behind=2, seconds=2), *_steps(2)),
    ),
    "the origin holds what the ref names, the replica what a crashed write left, the ledger nothing": _schedule(
        "ledger flushed",
        (_put(1), _put(2), Operation(EXACT, "w1"), _put(1)),
        (*_steps(0, 0, 0), Step(FLUSH), *_steps(1, 1, 2, 3, 2, 3, 2)),
    ),
    "a write that a reader has recorded is taken for as old as its first delivery": _schedule(
        "overlapping, one second",
        (_put(2), _put(1), _put(2), _READ, _put(1)),
        tuple(Step(GO, operation) for operation in (0, 1, 1, 2, 2, 3, 3, 2, 3, 3, 2, 4, 4, 4)),
    ),
    "somebody's write is adopted while a later write of ours is under way, and outlives it": _schedule(
        "outside writers, eventual origin",
        (_put(2), _READ, _put(3), _READ),
        (*_steps(0, 0, 0), Step(OUTSIDE_PUT, seconds=2), *_steps(2, 1, 1, 2, 1, 1, 1, 1, 3), _stale(3)),
    ),
    "somebody's write is adopted while a delete of ours is under way, and outlives it": _schedule(
        "outside deletes",
        (_put(2), _delete(1), _READ, _READ),
        (*_steps(0, 0), Step(OUTSIDE_PUT, seconds=2), *_steps(0, 1, 2, 2, 2, 2, 1, 1, 3), _stale(3)),
    ),
    "a second delivery of a finished delete is refused, and the delete is forgotten": _schedule(
        "redelivered early, deletes",
        (_delete(1), _delete(1), _READ),
        (*_steps(0, 0, 1), Step(GO, 1, REFUSED, seconds=2), *_steps(0, 1, 2), _stale(2)),
        exists=True,
    ),
}
