"""How long is waited, for what, and what the error then says. The clock is the real one; the waits are tiny."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s3tasks import Settings
from s3tasks.errors import (
    LedgerUnavailable,
    NoSuchKey,
    NotYetVisible,
    OverlappingWrite,
    PreconditionFailed,
    RetryableError,
    S3TasksError,
    StaleRead,
    StoreUnavailable,
    Superseded,
)
from s3tasks.waiting import gap_seconds, keep_trying, try_times

SETTINGS = Settings(probe_spacing_seconds=0.001)
STALE = StaleRead("b", "k", "etag-a", "etag-b")
TINY = 0.02

spacings = st.floats(0.001, 60)
limits = st.floats(0.001, 3600)
waits = st.floats(0, 86400)


class Attempts:
    """Raises what it is given, one after the other and the last one for ever; returns once it comes to a text."""

    def __init__(self, *outcomes: Exception | str) -> None:
        self.outcomes = outcomes
        self.made = 0

    def __call__(self) -> str:
        outcome = self.outcomes[min(self.made, len(self.outcomes) - 1)]
        self.made += 1
        if isinstance(outcome, Exception):
            raise outcome
        return outcome


def patient(attempt: Callable[[], str], seconds: float = TINY, on: tuple[type[RetryableError], ...] = (PreconditionFailed,)) -> str:
    return keep_trying(attempt, SETTINGS, seconds=seconds, on=on)


def stubborn(attempt: Callable[[], str], times: int = 4, on: tuple[type[RetryableError], ...] = (StoreUnavailable,)) -> str:
    return try_times(attempt, SETTINGS, times=times, on=on)


@pytest.fixture
def no_jitter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(random, "random", lambda: 0.0)


@pytest.fixture
def most_jitter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(random, "random", lambda: math.nextafter(1.0, 0.0))


@pytest.mark.usefixtures("no_jitter")
def test_probes_come_at_the_squares_of_their_numbers() -> None:
    settings = Settings(probe_spacing_seconds=0.015, probe_gap_limit_seconds=3600)
    waited = 0.0

    for number in range(1, 200):
        waited += gap_seconds(settings, waited)
        assert waited == pytest.approx(0.015 * number * number)


@pytest.mark.usefixtures("no_jitter")
@pytest.mark.parametrize("waited", [0.1, 1.0, 10.0, 60.0])
def test_the_gap_grows_with_the_square_root_of_the_time_waited(waited: float) -> None:
    settings = Settings(probe_spacing_seconds=0.015, probe_gap_limit_seconds=3600)
    first = gap_seconds(settings, 0.0)

    assert gap_seconds(settings, 4 * waited) - first == pytest.approx(2 * (gap_seconds(settings, waited) - first))


@pytest.mark.usefixtures("no_jitter")
def test_the_first_gap_is_the_spacing() -> None:
    assert gap_seconds(Settings(probe_spacing_seconds=0.25), 0.0) == 0.25


@pytest.mark.usefixtures("no_jitter")
def test_no_gap_is_longer_than_the_limit() -> None:
    assert gap_seconds(Settings(probe_gap_limit_seconds=2.0), 80_000.0) == 2.0


@pytest.mark.usefixtures("most_jitter")
def test_jitter_adds_a_quarter_at_most() -> None:
    assert gap_seconds(Settings(probe_spacing_seconds=0.1), 0.0) == pytest.approx(0.125)
    assert gap_seconds(Settings(probe_gap_limit_seconds=2.0), 80_000.0) == pytest.approx(2.5)


@given(spacings, limits, waits, waits)
def test_a_gap_is_never_negative_and_never_longer_than_allowed(spacing: float, limit: float, waited: float, most: float) -> None:
    settings = Settings(probe_spacing_seconds=spacing, probe_gap_limit_seconds=limit)

    gap = gap_seconds(settings, waited, most)

    assert 0 <= gap <= min(most, 1.25 * limit)


@given(spacings, limits, waits)
def test_a_gap_is_never_below_its_floor(spacing: float, limit: float, waited: float) -> None:
    settings = Settings(probe_spacing_seconds=spacing, probe_gap_limit_seconds=limit)

    assert gap_seconds(settings, waited) >= min(spacing, limit)


def test_readers_that_wait_for_the_same_write_do_not_come_back_together() -> None:
    gaps = {gap_seconds(Settings(), 1.0) for _ in range(20)}

    assert len(gaps) > 1


def test_a_clock_that_seems_to_run_backwards_does_no_harm() -> None:
    assert gap_seconds(Settings(), -5.0) > 0


@pytest.mark.parametrize("seconds", [0.0, -1.0, 60.0])
def test_what_succeeds_at_once_is_returned_at_once(seconds: float) -> None:
    attempt = Attempts("body")

    assert patient(attempt, seconds) == "body"
    assert attempt.made == 1


def test_what_succeeds_later_is_returned() -> None:
    attempt = Attempts(STALE, NotYetVisible("b", "k"), "body")

    assert patient(attempt, 60.0) == "body"
    assert attempt.made == 3


@pytest.mark.parametrize("seconds", [0.0, -1.0])
def test_without_patience_the_first_error_is_raised_as_it_is(seconds: float) -> None:
    attempt = Attempts(STALE)

    with pytest.raises(StaleRead) as refusal:
        patient(attempt, seconds)

    assert refusal.value is STALE
    assert attempt.made == 1


@pytest.mark.parametrize("problem", [STALE, NotYetVisible("b", "k", "etag-a"), PreconditionFailed("b", "k")])
def test_the_last_error_says_how_often_and_how_long_was_tried(problem: PreconditionFailed) -> None:
    attempt = Attempts(problem)

    with pytest.raises(PreconditionFailed) as refusal:
        patient(attempt)

    assert type(refusal.value) is type(problem)
    assert refusal.value.args[:4] == problem.args[:4]
    assert refusal.value.attempts == attempt.made > 1
    assert refusal.value.waited_seconds >= TINY
    assert refusal.value.__cause__ is problem


def test_of_several_errors_the_last_is_raised() -> None:
    attempt = Attempts(NotYetVisible("b", "k"), STALE)

    with pytest.raises(StaleRead):
        patient(attempt)


def test_the_last_probe_comes_when_the_time_is_over() -> None:
    begun: list[float] = []

    def attempt() -> str:
        begun.append(time.monotonic())
        if begun[-1] - begun[0] < TINY:
            raise STALE
        return "visible at the last moment"

    # The clock of the attempts starts after that of the waiting, so a hair is left to it.
    assert keep_trying(attempt, SETTINGS, seconds=TINY + 0.005, on=(PreconditionFailed,)) == "visible at the last moment"


def test_even_a_short_patience_probes_twice() -> None:
    attempt = Attempts(STALE, "body")

    assert keep_trying(attempt, Settings(probe_spacing_seconds=60), seconds=0.001, on=(PreconditionFailed,)) == "body"


def test_no_sleep_reaches_beyond_the_time_that_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    asked_for: list[float] = []
    sleep = time.sleep

    def short_sleep(seconds: float) -> None:
        asked_for.append(seconds)
        sleep(min(seconds, 2 * TINY))

    monkeypatch.setattr(time, "sleep", short_sleep)

    with pytest.raises(StaleRead):
        keep_trying(Attempts(STALE), Settings(probe_spacing_seconds=60), seconds=TINY, on=(PreconditionFailed,))

    assert 0 < max(asked_for) <= TINY


def test_a_replaced_write_is_not_waited_for() -> None:
    superseded = Superseded("b", "k", "etag-a", "etag-b")
    attempt = Attempts(superseded)

    with pytest.raises(Superseded) as refusal:
        patient(attempt, 60.0)

    assert refusal.value is superseded
    assert attempt.made == 1


def test_a_write_that_is_replaced_while_it_is_waited_for_is_told_at_once() -> None:
    attempt = Attempts(STALE, STALE, Superseded("b", "k"))

    with pytest.raises(Superseded):
        patient(attempt, 60.0)

    assert attempt.made == 3


@pytest.mark.parametrize(
    "problem",
    [
        LedgerUnavailable("lookup", "refused"),
        StoreUnavailable("GetObject", "b", "k", "timeout"),
        OverlappingWrite("b", "k", 1.0),
        NoSuchKey("b", "k"),
        S3TasksError("something else"),
        ValueError("a bug"),
        OSError("a disk"),
    ],
    ids=lambda problem: type(problem).__name__,
)
@pytest.mark.parametrize("wait", [patient, lambda attempt: stubborn(attempt, on=(PreconditionFailed,))], ids=["seconds", "times"])
def test_an_error_that_is_not_named_passes_through_unchanged(problem: Exception, wait: Callable[[Attempts], str]) -> None:
    attempt = Attempts(problem)

    with pytest.raises(type(problem)) as refusal:
        wait(attempt)

    assert refusal.value is problem
    assert attempt.made == 1


def test_an_interrupt_ends_the_waiting() -> None:
    def attempt() -> str:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        patient(attempt, 60.0)


@pytest.mark.parametrize("times", [0, 1, 2, 5])
def test_a_call_is_tried_so_often_and_no_more(times: int) -> None:
    attempt = Attempts(StoreUnavailable("PutObject", "b", "k", "timeout"))

    with pytest.raises(StoreUnavailable) as refusal:
        stubborn(attempt, times)

    assert attempt.made == max(times, 1)
    assert refusal.value.attempts == attempt.made


def test_a_call_that_succeeds_is_not_tried_again() -> None:
    attempt = Attempts(StoreUnavailable("PutObject", "b", "k", "timeout"), "written")

    assert stubborn(attempt) == "written"
    assert attempt.made == 2


def test_waiting_inside_waiting_counts_its_own_tries_only() -> None:
    attempt = Attempts(OverlappingWrite("b", "k", 1.0), StoreUnavailable("PutObject", "b", "k", "timeout"), "written")

    assert patient(lambda: stubborn(attempt), 60.0, on=(OverlappingWrite,)) == "written"
    assert attempt.made == 3
