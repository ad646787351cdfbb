"""The shortest schedule that still breaks a promise, and its telling.

It never looks for another failure than the one it is given.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from tests.faults.schedules import plan
from tests.faults.schedules.plan import Schedule, Step

_MOST_TRIALS = 4000


def shortest(schedule: Schedule, fails: Callable[[Schedule], bool]) -> Schedule:
    """Drops and simplifies steps for as long as the schedule still fails."""
    trials = 0
    smaller = True
    while smaller and trials < _MOST_TRIALS:
        smaller = False
        for candidate in _candidates(schedule):
            trials += 1
            if fails(candidate):
                schedule, smaller = candidate, True
                break
    return schedule


def _candidates(schedule: Schedule) -> Iterator[Schedule]:
    """Every simpler schedule worth a trial, the boldest first."""
    for steps in _fewer(schedule):
        yield replace(schedule, steps=steps)
    if schedule.exists:
        yield replace(schedule, exists=False)
    if schedule.outside_last:
        yield replace(schedule, outside_last=False)
    steps = schedule.steps
    for position, step in enumerate(steps):
        for simpler in _simpler(step):
            yield replace(schedule, steps=(*steps[:position], simpler, *steps[position + 1 :]))


def _fewer(schedule: Schedule) -> Iterator[tuple[Step, ...]]:
    """The steps without one of the operations, then without a few in a row."""
    steps = schedule.steps
    for number in range(len(schedule.operations)):
        kept = tuple(step for step in steps if step.action != plan.GO or step.operation != number)
        if len(kept) < len(steps):
            yield kept
    for size in (8, 4, 2, 1):
        for start in range(len(steps) - size, -1, -1):
            yield steps[:start] + steps[start + size :]


def _simpler(step: Step) -> Iterator[Step]:
    if step.fault:
        yield replace(step, fault="")
    if step.behind:
        yield replace(step, behind=0)
        if step.behind > 1:
            yield replace(step, behind=step.behind - 1)
