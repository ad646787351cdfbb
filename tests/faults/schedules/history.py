"""What happened in one schedule, as the checker sees it: who did what from which step to which, and what S3 held.

It never holds anything of the protocol's own record: no ticket, no intent, no verdict.
"""

from __future__ import annotations

from dataclasses import dataclass

NEVER = 1 << 30
BEFORE = -1


@dataclass(frozen=True)
class Attempt:
    """One delivery of a write. `began`: from when on the ledger knew of it; `finished`: when the ledger called it done, both None
    where that never came; `asked`: when S3 was asked; `outcome`: "done", the error's name, or "" where the process vanished;
    `refused`: the last that it heard of S3 was a definite no."""

    number: int
    write: str
    body: bytes | None
    started: int
    ended: int | None
    began: int | None
    finished: int | None
    asked: tuple[int, ...]
    outcome: str
    refused: bool = False


@dataclass(frozen=True)
class Read:
    """One attempt at a read.

    `body` None: it says that there is nothing; `error`: it says neither. `exact`: the write asked for; `pinned` where it was asked
    for by a version of the bucket, which stays.
    """

    number: int
    started: int
    ended: int
    body: bytes | None
    error: str
    exact: str = ""
    pinned: bool = False


@dataclass(frozen=True)
class Held:
    """What the key held from a step on, and whose it was ("": somebody else's)."""

    step: int
    body: bytes | None
    write: str


@dataclass(frozen=True)
class History:
    """All of it.

    `helped`: when readers recorded whose unfinished write. `last_reads`: after everything has ended and all endpoints agree, first
    of the key, then of every ref returned. `last_write`: whose object S3 holds then.
    """

    attempts: tuple[Attempt, ...]
    reads: tuple[Read, ...]
    held: tuple[Held, ...]
    helped: tuple[tuple[int, str], ...]
    last_reads: tuple[Read, ...]
    last_write: str
