"""Draws schedules from seeds while they happen, and plays given ones again.

It never judges: the same family, seed and protocol give the same schedule.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

from tests.faults.schedules import plan
from tests.faults.schedules.families import Family
from tests.faults.schedules.history import History
from tests.faults.schedules.plan import Operation, Schedule, Step
from tests.faults.schedules.protocols import Runnable
from tests.faults.schedules.wire import Wire
from tests.faults.schedules.world import World

_MOST_DELIVERIES = 4
_MOST_STEPS = 300
_DEFINITE = ("StoreError", "WriteConflict")


@dataclass(frozen=True)
class Played:
    """A schedule that has happened, with all its steps, and what came of it."""

    schedule: Schedule
    history: History


def play(family: Family, protocol: Runnable, wire: Wire, schedule: Schedule) -> Played:
    """Takes exactly the schedule's steps."""
    world = World(family, protocol, wire, schedule)
    for step in schedule.steps:
        world.take(step)
    return Played(schedule, world.finish())


def draw(family: Family, protocol: Runnable, wire: Wire, seed: int) -> Played:
    """Draws the seed's schedule and lets it happen."""
    return _Drawing(family, protocol, wire, seed).finished()


class _Drawing:
    """A schedule being drawn: what has happened so far bears on what may come next."""

    def __init__(self, family: Family, protocol: Runnable, wire: Wire, seed: int) -> None:
        self._family = family
        self._random = random.Random(f"{family.name} {seed}")
        chance = self._random.random
        head = Schedule(family.name, seed, chance() < 0.3, chance() < family.outside * 5, self._operations())
        self._world = World(family, protocol, wire, head)
        self._steps: list[Step] = []
        self._waiting = list(range(len(head.operations)))
        self._live: list[int] = []
        self._unfinished = ""

    def _operations(self) -> tuple[Operation, ...]:
        pick = self._random
        count = pick.randint(1, 4)
        operations = [self._write(number) for number in range(1, count + 1)]
        for _ in range(pick.randint(1, 4)):
            kind = pick.choice((plan.READ, plan.READ, plan.EXACT, plan.LATEST))
            operations.append(Operation(kind, "" if kind == plan.READ else f"w{pick.randint(1, count)}"))
        pick.shuffle(operations)
        return tuple(operations)

    def _write(self, number: int) -> Operation:
        chance = self._random.random
        if chance() < self._family.deletes:
            return Operation(plan.DELETE, f"w{number}")
        body = b"body 1" if chance() < self._family.same_bodies else b"body %d" % number
        return Operation(plan.PUT, f"w{number}", body, only_if_absent=chance() < 0.08)

    def finished(self) -> Played:
        while (self._live or self._waiting) and len(self._steps) < _MOST_STEPS:
            self._happen_around()
            number = self._next()
            if number is None:
                break
            self._take(self._step(number))
            self._look_after(number)
        operations = tuple(run.operation for run in self._world.runs)
        schedule = replace(self._world.schedule, operations=operations, steps=tuple(self._steps))
        return Played(schedule, self._world.finish())

    def _happen_around(self) -> None:
        family, chance = self._family, self._random.random
        for action, likely in (
            (plan.OUTSIDE_PUT, family.outside),
            (plan.OUTSIDE_DELETE, family.outside_deletes),
            (plan.FLUSH, family.flushes),
            (plan.LAND, 0.2 if self._world.s3.on_their_way else 0.0),
        ):
            if likely and chance() < likely:
                self._take(Step(action, seconds=self._seconds()))

    def _seconds(self) -> int:
        if self._family.own_seconds:
            return 2
        return self._random.randint(1, 2) if self._random.random() < self._family.ticks else 0

    def _take(self, step: Step) -> None:
        self._steps.append(step)
        self._world.take(step)

    def _step(self, number: int) -> Step:
        chance, fault = self._random.random(), ""
        for name, likely in self._family.faults:
            if chance < likely:
                fault = name
                break
            chance -= likely
        stale = self._family.reads_are_late and self._random.random() < 0.5
        behind = self._random.randint(1, len(self._world.s3.history)) if stale else 0
        return Step(plan.GO, number, fault, behind, self._seconds())

    def _next(self) -> int | None:
        """An operation that takes the next step: one that is live, or one that starts."""
        ready = [number for number in self._waiting if self._may_start(number)]
        if ready and (not self._live or self._random.random() < 0.25):
            number = self._random.choice(ready)
            self._waiting.remove(number)
            self._live.append(number)
            if self._random.random() < self._family.redelivered_early:
                self._redeliver(self._world.runs[number].operation)
            return number
        return self._random.choice(self._live) if self._live else None

    def _may_start(self, number: int) -> bool:
        operation = self._world.runs[number].operation
        if operation.kind not in plan.WRITES or not self._family.one_by_one:
            return True
        under_way = any(self._world.runs[live].operation.kind in plan.WRITES for live in self._live)
        return not under_way and self._unfinished in ("", operation.write)

    def _look_after(self, number: int) -> None:
        """Takes an operation that has ended, or crashes now, off the stage; a write may be delivered again."""
        run = self._world.runs[number]
        is_write = run.operation.kind in plan.WRITES
        crashes = run.ended is None and is_write and self._random.random() < self._family.crash
        if run.ended is None and not crashes:
            return
        self._live.remove(number)
        if not is_write:
            return
        open_still = not run.done and run.outcome not in _DEFINITE
        if self._family.one_by_one:
            self._unfinished = run.operation.write if open_still else ""
        if run.outcome not in _DEFINITE and self._random.random() < self._family.redelivered:
            self._redeliver(run.operation)

    def _redeliver(self, operation: Operation) -> None:
        deliveries = sum(run.operation.write == operation.write for run in self._world.runs)
        if operation.kind in plan.WRITES and deliveries < _MOST_DELIVERIES:
            self._waiting.append(self._world.add(operation))
