"""The checker of histories: what keeps each promise passes, and what breaks it by a hair is found."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.faults.schedules.checker import (
    CHECKS,
    EXACT,
    ONCE,
    ORDER,
    READABLE,
    REF_READABLE,
    REPLACED,
    TURNS,
    violations,
)
from tests.faults.schedules.history import BEFORE, Attempt, Held, History, Read

NOTHING = Held(BEFORE, None, "")


def write(name: str, began: int, ended: int | None, *, body: bytes | None = None, outcome: str = "done") -> Attempt:
    """A delivery that asks S3 one step after it began; without an end its process has vanished."""
    done = ended is not None and outcome == "done"
    return Attempt(
        began, name, body or name.encode(), began, ended, began, ended if done else None, (began + 1,), outcome if ended else ""
    )


def deletion(name: str, began: int, ended: int | None) -> Attempt:
    done = "done" if ended else ""
    return Attempt(began, name, None, began, ended, began, ended, (began + 1,), done)


def landed(*attempts: Attempt) -> tuple[Held, ...]:
    return (NOTHING, *(Held(attempt.asked[0], attempt.body, attempt.write) for attempt in attempts if attempt.asked))


def read(started: int, ended: int, body: bytes | None, *, error: str = "", exact: str = "") -> Read:
    return Read(started, started, ended, body, error, exact)


def history(attempts: list[Attempt], reads: list[Read], *, last: list[Read] | None = None, held: tuple[Held, ...] = ()) -> History:
    held = held or landed(*attempts)
    readable = [read(98, 99, held[-1].body)]
    return History(tuple(attempts), tuple(reads), held, (), tuple(last or readable), held[-1].write)


def broken(what: History) -> set[str]:
    return {found.guarantee for found in violations(what)}


FIRST, SECOND = write("w1", 1, 3), write("w2", 5, 7)
OVERLAPPING = write("w2", 2, 7)
CRASHED = write("w1", 1, None)

GOOD = {
    "the newest is read": history([FIRST, SECOND], [read(8, 9, b"w2")]),
    "a read that overlaps a write may see either": history([FIRST, SECOND], [read(6, 9, b"w1")]),
    "either of two overlapping writes is read": history([FIRST, OVERLAPPING], [read(8, 9, b"w1"), read(10, 11, b"w2")]),
    "a crashed write is going on": history([CRASHED, SECOND], [read(8, 9, b"w1"), read(10, 11, b"w2")]),
    "nothing is read before the first write": history([FIRST], [read(1, 2, None)]),
    "nothing is read after a delete": history([FIRST, deletion("w2", 5, 7)], [read(8, 9, None)]),
    "an error is no answer": history([FIRST, SECOND], [read(8, 9, None, error="StaleRead")]),
    "a refused write replaces nothing": history(
        [FIRST, write("w2", 5, 7, outcome="StoreError")], [read(8, 9, b"w1")], held=landed(FIRST)
    ),
    "a crashed write is written again": history([CRASHED, write("w1", 5, 7)], [read(8, 9, b"w1")]),
    "a refused write is written again, whose process vanished before it said so": history(
        [replace(CRASHED, refused=True), SECOND, write("w1", 8, 9)], [read(10, 11, b"w1")]
    ),
    "a delete is done again after a write that began before it, and that was found done later": history(
        [
            Attempt(1, "w2", b"w2", 1, None, 1, None, (4,), ""), Attempt(2, "w1", None, 2, None, 2, None, (), ""),
            Attempt(3, "w2", b"w2", 3, 6, 3, 6, (5,), "done", refused=True), deletion("w1", 8, 10),
        ],
        [read(11, 12, None)], held=(NOTHING, Held(4, b"w2", "w2"), Held(9, None, "w1")),
    ),
    "a write is written again after another that began before it, and whose bytes came late": history(
        [write("w2", 1, None), write("w1", 2, None), replace(write("w2", 3, 6), refused=True), write("w1", 8, 10)],
        [read(11, 12, b"w1")], held=(NOTHING, Held(5, b"w2", "w2"), Held(9, b"w1", "w1")),
    ),
    "the same bytes were written again": history(
        [FIRST, SECOND, write("w3", 9, 11, body=b"w1")], [read(12, 13, b"w1")]
    ),
}  # fmt: skip

BAD = {
    "a replaced version is read": (REPLACED, history([FIRST, SECOND], [read(8, 9, b"w1")])),
    "a deleted version is read": (REPLACED, history([FIRST, deletion("w2", 5, 7)], [read(8, 9, b"w1")])),
    "nothing is read after a write": (REPLACED, history([FIRST], [read(4, 5, None)])),
    "bytes that nobody wrote": (REPLACED, history([FIRST], [read(4, 5, b"w9")])),
    "bytes from the future": (REPLACED, history([FIRST, SECOND], [read(3, 4, b"w2")])),
    "a replaced version after its redelivery returned": (
        REPLACED, history([CRASHED, write("w1", 3, 4), SECOND], [read(8, 9, b"w1")]),
    ),
    "an older version after a newer one": (
        ORDER, history([FIRST, write("w2", 5, 20)], [read(7, 8, b"w2"), read(9, 10, b"w1")]),
    ),
    "a write begins before another has arrived": (TURNS, history([FIRST, OVERLAPPING], [])),
    "a write begins while a crashed one may still be done again": (
        TURNS, history([Attempt(1, "w1", b"w1", 1, None, 1, None, (), ""), OVERLAPPING], []),
    ),
    "the key stays unreadable": (READABLE, history([FIRST], [], last=[read(98, 99, None, error="StaleRead")])),
    "the key reads as deleted": (READABLE, history([FIRST], [], last=[read(98, 99, None)])),
    "the ref of what S3 holds is unreadable": (
        REF_READABLE,
        history([FIRST], [], last=[read(98, 99, b"w1"), read(98, 99, None, error="Superseded", exact="w1")]),
    ),
    "a finished write is written again": (ONCE, history([FIRST, write("w1", 5, 7)], [])),
    "a replaced write is written again": (ONCE, history([CRASHED, SECOND, write("w1", 8, 9)], [])),
    "a replaced write is written again, one of whose tries was refused": (
        ONCE, history([CRASHED, write("w1", 2, None), replace(write("w1", 3, None), refused=True), SECOND, write("w1", 8, 9)], []),
    ),
    "a write that a write of two deliveries has replaced is written again": (
        ONCE,
        history([CRASHED, write("w2", 4, None), replace(write("w2", 5, 7), refused=True), write("w1", 8, 9)], []),
    ),
    "a ref reads other bytes": (EXACT, history([FIRST, SECOND], [read(8, 9, b"w2", exact="w1")])),
}  # fmt: skip


@pytest.mark.parametrize("case", GOOD)
def test_a_history_that_keeps_every_promise_passes(case: str) -> None:
    assert broken(GOOD[case]) - {TURNS} == set()


@pytest.mark.parametrize("case", BAD)
def test_a_broken_promise_is_found(case: str) -> None:
    guarantee, what = BAD[case]
    assert guarantee in broken(what)


def test_every_promise_is_seen_broken() -> None:
    assert {guarantee for guarantee, _ in BAD.values()} == set(CHECKS)
