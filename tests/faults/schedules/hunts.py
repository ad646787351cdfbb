"""How soon a broken protocol is found out: seeds are drawn until the first schedule that breaks a promise.

It never says whether that is soon enough: the tests state the numbers.
"""

from __future__ import annotations

from dataclasses import dataclass

from tests.faults.schedules.checker import Violation, violations
from tests.faults.schedules.families import Family
from tests.faults.schedules.plan import Schedule
from tests.faults.schedules.protocols import Runnable
from tests.faults.schedules.scheduler import draw
from tests.faults.schedules.wire import Wire


@dataclass(frozen=True)
class Catch:
    """The first schedule that breaks a promise of its family, and how many seeds that took."""

    seeds: int
    violation: Violation
    schedule: Schedule


def hunt(family: Family, protocol: Runnable, wire: Wire, seeds: int, guarantee: str = "") -> Catch | None:
    """The first break within so many seeds, of that guarantee if one is given; None if there is none."""
    wanted = {guarantee} if guarantee else family.asserts
    for seed in range(1, seeds + 1):
        played = draw(family, protocol, wire, seed)
        for violation in violations(played.history):
            if violation.guarantee in wanted:
                return Catch(seed, violation, played.schedule)
    return None
