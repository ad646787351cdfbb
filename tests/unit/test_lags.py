"""When to look next, given the lags seen before: properties of the plan, and its goals, in simulation.

The lags are learnt by the real script on a real Redis where that is what is promised (tests/unit/test_ledger.py); here by
`learn`, which does the same sums.
"""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Callable, Mapping

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from s3tasks.lags import (
    BINS_PER_OCTAVE,
    LAST_BIN,
    LEAST_SECONDS,
    MOST_TIMES_THE_SQUARE_GAP,
    Plan,
    bin_end,
    square_gap,
    weights_of,
)

SPACING = 0.0625
Weights = dict[int, float]

bins = st.integers(0, LAST_BIN)
histograms = st.dictionaries(bins, st.floats(0.002, 1.0), max_size=20)
ages = st.floats(0, 80_000)
draws = st.floats(0, 1)
some = settings(max_examples=60, deadline=None)


def bin_of(seconds: float) -> int:
    return max(0, min(LAST_BIN, math.ceil(BINS_PER_OCTAVE * math.log2(max(seconds, 1e-6) / LEAST_SECONDS) - 1e-6)))


def learn(weights: Mapping[int, float], not_visible_at: float, visible_at: float) -> Weights:
    """What seen.lua makes of one more lag."""
    last = bin_of(visible_at)
    first = min(last, max(bin_of(not_visible_at) + 1, bin_of(visible_at / 8)))
    between = range(first, last + 1)
    before = sum(weights.get(number, 0.0) for number in between)
    learnt = {number: weight * 0.95 for number, weight in weights.items()}
    for number in between:
        even = 1 / len(between)
        share = (even + weights.get(number, 0.0) / before) / 2 if before else even
        learnt[number] = learnt.get(number, 0.0) + share
    return {number: weight for number, weight in learnt.items() if weight > 0.002}


def wait_for(weights: Weights, lag: float, chance: random.Random) -> tuple[float, float, int]:
    """A reader that begins soon after the commit: when it last found nothing, when it found it, and after how many probes.

    Timers are late by 2 ms on average.
    """
    plan, age, before, probes = Plan(weights), chance.uniform(0.002, 0.008), 0.0, 1
    began = age
    while age < lag:
        before = age
        if plan.enough:
            age = plan.next_probe(age, probes, SPACING, chance.random())
        else:
            age += square_gap(SPACING, age - began) * (1 + chance.random() / 4)
        age += chance.expovariate(500)
        probes += 1
    return before, age, probes


def readings(lag_of: Callable[[random.Random], float], *, seed: int, count: int = 60) -> list[tuple[float, float, int]]:
    """Lag, lateness in proportion to it, and probes, of readers one after the other, who learn from each other."""
    chance, told = random.Random(seed), []
    weights: Weights = {}
    for _ in range(count):
        lag = lag_of(chance)
        before, at, probes = wait_for(weights, lag, chance)
        weights = learn(weights, before, at)
        told.append((lag, (at - lag) / lag, probes))
    return told


# --- what the goals are, once learnt ---


@pytest.mark.parametrize("lag", [0.05, 0.2, 1.0, 2.0, 5.0, 30.0])
def test_a_lag_that_has_been_learnt_is_overshot_by_a_tenth_at_most_and_seldom_by_a_quarter(lag: float) -> None:
    told = [reading for seed in range(4) for reading in readings(lambda _: lag, seed=seed)[10:]]
    late = sorted(lateness for _, lateness, _ in told)

    assert statistics.median(late) <= 0.10
    assert late[int(0.95 * len(late))] <= 0.25


@pytest.mark.parametrize(
    "lag_of",
    [
        lambda _: 4.99,
        lambda chance: chance.uniform(0.1, 2),
        lambda chance: math.exp(chance.gauss(0, 0.7)),
        lambda chance: 0.1 * math.exp(chance.gauss(0, 0.7)),
        lambda chance: chance.choice((0.1, 3.0)),
        lambda chance: chance.choice((0.004, 0.03, 0.2, 1.3, 4.9)),
    ],
    ids=["constant", "even", "lognormal", "short", "two kinds", "anything"],
)
def test_no_lag_below_five_seconds_takes_more_than_ten_probes_before_or_after_it_was_learnt(
    lag_of: Callable[[random.Random], float],
) -> None:
    for seed in range(3):
        assert max(probes for lag, _, probes in readings(lag_of, seed=seed) if lag < 5) <= 10


def test_lags_of_many_lengths_are_overshot_less_than_by_a_reader_who_knows_nothing() -> None:
    def lag_of(chance: random.Random) -> float:
        return math.exp(chance.gauss(0, 0.7))

    told = [reading for seed in range(6) for reading in readings(lag_of, seed=seed)]
    unlearnt = statistics.mean(lateness for number, (_, lateness, _) in enumerate(told) if number % 60 < 6)
    learnt = statistics.mean(lateness for number, (_, lateness, _) in enumerate(told) if number % 60 >= 20)

    assert learnt < 0.95 * unlearnt


# --- what a change of the lags costs ---


@pytest.mark.parametrize(("before", "after"), [(5.0, 0.05), (0.05, 5.0), (1.0, 0.1), (30.0, 2.0)])
def test_when_the_lags_change_the_new_ones_are_learnt(before: float, after: float) -> None:
    late = []
    for seed in range(3):
        lags = iter([before] * 30 + [after] * 40)
        late += [lateness for _, lateness, _ in readings(lambda _, lags=lags: next(lags), seed=seed, count=70)[42:]]  # type: ignore[misc]

    assert statistics.median(late) <= 0.15


def cost_of(lags: list[float], gap: Callable[[float], float]) -> float:
    """What waiting for these lags costs on average, late seconds and probes together: a probe costs the spacing."""
    cost = 0.0
    for lag in lags:
        waited = 0.0
        while waited < lag:
            waited += gap(waited)
            cost += SPACING
        cost += waited - lag
    return cost / len(lags)


@pytest.mark.parametrize(("lag", "most"), [(0.3, 2), (1.0, 1.5), (5.0, 1.5), (30.0, 1.5), (180.0, 1.5)])
def test_knowing_nothing_costs_at_most_half_more_than_the_best_fixed_interval_but_for_short_lags(lag: float, most: float) -> None:
    chance = random.Random(1)
    lags = [lag * chance.uniform(0.8, 1.25) for _ in range(200)]
    best = min(cost_of(lags, lambda _, factor=factor: factor * math.sqrt(2 * SPACING * lag)) for factor in (0.7, 0.85, 1, 1.2, 1.4))  # type: ignore[misc]

    assert cost_of(lags, lambda waited: square_gap(SPACING, waited) * (1 + chance.random() / 4)) <= most * best


@some
@given(histograms, ages, st.integers(0, 6), draws)
def test_no_gap_is_longer_than_four_of_a_reader_who_knows_nothing(weights: Weights, age: float, probes: int, draw: float) -> None:
    nxt = Plan(weights).next_probe(age, probes, SPACING, draw)

    # The draw puts a probe up to a twentieth later than it is planned.
    assert age < nxt <= 1.05 * (age + MOST_TIMES_THE_SQUARE_GAP * square_gap(SPACING, age))


@some
@given(histograms, ages, st.integers(0, 5000), draws)
def test_a_reader_always_comes_back_and_never_too_soon(weights: Weights, age: float, probes: int, draw: float) -> None:
    nxt = Plan(weights).next_probe(age, probes, SPACING, draw)

    assert math.isfinite(nxt)
    assert nxt >= age + 0.9 * LEAST_SECONDS


@some
@given(bins.filter(lambda number: number > 60), draws)
def test_where_reality_has_left_the_histogram_gaps_grow_with_the_square_root_of_the_age(number: int, draw: float) -> None:
    plan, beyond = Plan({number: 9.0}), bin_end(number) * 1.1

    gap = plan.next_probe(beyond, 3, SPACING, draw) - beyond

    assert gap == pytest.approx(square_gap(SPACING, beyond) * (1 + draw / 4))


def test_a_lag_that_is_certain_is_waited_out_in_one_gap() -> None:
    number = bin_of(0.2)

    assert Plan({number: 9.0}).next_probe(0.005, 1, SPACING, 0.4) == pytest.approx(bin_end(number), rel=0.05)


def test_readers_of_one_write_come_back_at_times_of_their_own() -> None:
    plan, chance = Plan({bin_of(1.0): 9.0}), random.Random(1)
    times = sorted(plan.next_probe(0.9, 2, SPACING, chance.random()) for _ in range(500))

    # In no millisecond more than a few of five hundred.
    assert max(sum(1 for other in times if time <= other < time + 0.001) for time in times) <= 20


def test_fewer_lags_than_enough_are_not_relied_on() -> None:
    weights: Weights = {}
    enough = []
    for _ in range(8):
        weights = learn(weights, 0.9, 1.0)
        enough.append(Plan(weights).enough)

    assert enough == [False] * 5 + [True] * 3
    assert not Plan({}).enough


# --- what Redis may hold ---


def test_the_text_of_a_histogram_is_read() -> None:
    assert weights_of("1;3:0.5000,120:1.2500;1795580406710214") == {3: 0.5, 120: 1.25}


@pytest.mark.parametrize(
    "text",
    [
        "", "1", "1;", "2;3:0.5", "1;3", "1;3:", "1;-3:0.5", "1;3:nan", "1;3:1e9", "1;3:0.5e1", "1;320:0.5", "1;999:0.5", "1;3:0.0",
        "1;3:999.0", "\x00", "1;3:0.5.5", "1;\ufffd", "1;" + "3:0.5000," * 100_000 + "x",
    ],
)
def test_what_is_no_histogram_counts_for_nothing_or_for_what_can_be_read(text: str) -> None:
    assert weights_of(text) == {}


@some
@given(st.text(max_size=200) | st.lists(st.text(alphabet="0123456789:.,;-e", max_size=12)).map(lambda some: "1;" + ",".join(some)))
def test_no_text_is_too_odd_to_plan_with(text: str) -> None:
    weights = weights_of(text)

    assert all(0 <= number <= LAST_BIN and 0 < weight <= 1000 for number, weight in weights.items())
    assert math.isfinite(Plan(weights).next_probe(0.01, 1, SPACING, 0.5))
