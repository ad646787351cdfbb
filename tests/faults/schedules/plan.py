"""What a schedule is: operations on one key, and the steps that they and their surroundings take.

Plain data: it never runs anything, and never knows what a step leads to.
"""

from __future__ import annotations

from dataclasses import dataclass

# What goes wrong with the one call that a step makes; a fault that a call cannot have is passed over.
LOST = "lost"  # it is carried out, and the answer never arrives
FAILED = "failed"  # it is not carried out, and there is no answer
LATE = "late"  # no answer; S3 carries it out later, at a `land` step
REFUSED = "refused"  # S3 says a definite no

PUT, DELETE, READ, EXACT, LATEST = "put", "delete", "read", "exact", "latest"
WRITES = (PUT, DELETE)

GO, TICK, OUTSIDE_PUT, OUTSIDE_DELETE, LAND, FLUSH = "go", "tick", "outside put", "outside delete", "land", "flush"


@dataclass(frozen=True)
class Operation:
    """One delivery of a task. Two with the same `write` are deliveries of one write; a read names the write it asks for."""

    kind: str
    write: str = ""
    body: bytes = b""
    only_if_absent: bool = False


@dataclass(frozen=True)
class Step:
    """The next call of an operation (by its number), or something that happens around them.

    `behind` is how many versions behind the newest a stale endpoint is at this step. An operation without further steps has
    crashed: its process has vanished.
    """

    action: str
    operation: int = -1
    fault: str = ""
    behind: int = 0
    seconds: int = 0


@dataclass(frozen=True)
class Schedule:
    """A whole run. `exists` puts somebody's object there first; `outside_last` has somebody write after all have ended."""

    family: str
    seed: int
    exists: bool
    outside_last: bool
    operations: tuple[Operation, ...]
    steps: tuple[Step, ...] = ()
