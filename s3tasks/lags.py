"""What the lags seen before say about when to look next: a histogram of lags, and the cheapest plan of probes for it.

Pure: no input, no output, no clock, no chance; it knows nothing of what is waited for.

A lag is the time from a write's commit until the read endpoint serves it. Bins grow by a twelfth of an octave, for what counts is
how late a reader comes in proportion to the lag. The script `seen.lua` fills them, and lets older lags fade.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

SCHEMA = "1"
LEAST_SECONDS = 0.001
BINS_PER_OCTAVE = 12
# The last one ends above a day, which is the longest deadline.
LAST_BIN = 319
# Lags that must have been seen (faded ones count for less) before they are relied on.
ENOUGH = 5.0

# What one probe costs, in the unit of coming late by the whole lag: a probe is made where it saves more than 3 % of lateness.
_PROBE_PRICE = 0.03
# However sure the histogram is, no gap is longer than so many of those that would be made knowing nothing.
MOST_TIMES_THE_SQUARE_GAP = 4.0
# Readers of one write must not come back in one instant.
_EARLIEST, _LATEST = 0.97, 1.05
# No lag below so many seconds takes more probes than this, the first included.
_BUDGET_SECONDS, _BUDGET_PROBES, _FREE_PROBES = 5.0, 10, 6
_LONGEST_TEXT = 16_384
# Fading lags never add up to more.
_MOST_WEIGHT = 21.0
_ENTRY = re.compile(r"([0-9]{1,3}):([0-9]{1,3}\.[0-9]{1,4})")


def bin_end(number: int) -> float:
    """The longest lag of a bin, in seconds."""
    return float(LEAST_SECONDS * 2.0 ** (number / BINS_PER_OCTAVE))


def weights_of(text: str) -> dict[int, float]:
    """The weight of each bin that the text of a histogram tells; none where it is not one.

    Anybody may have put it there: what cannot be read, or claims too much, counts for nothing.
    """
    schema, _, rest = text.partition(";")
    if schema != SCHEMA or len(text) > _LONGEST_TEXT:
        return {}
    entries = (_ENTRY.fullmatch(entry) for entry in rest.partition(";")[0].split(","))
    told = {int(entry[1]): float(entry[2]) for entry in entries if entry}
    weights = {number: weight for number, weight in told.items() if number <= LAST_BIN and weight > 0}
    return weights if sum(weights.values()) <= _MOST_WEIGHT else {}


def square_gap(spacing_seconds: float, waited_seconds: float) -> float:
    """The gap that follows after so many seconds when probes come at t = c·n², with c the spacing."""
    probes_so_far = math.sqrt(max(waited_seconds, 0.0) / spacing_seconds)
    return spacing_seconds * (2 * probes_so_far + 1)


class Plan:
    """When to probe, given the weights of a histogram: the plan whose lateness (in proportion to the lag) and number of probes
    together cost least.

    Found from the last bin backwards: `_ahead[i]` is the cost of what is still to come for one who knows at the end of the bin
    before the i-th that nothing is visible yet.
    """

    def __init__(self, weights: Mapping[int, float]) -> None:
        self._bins = sorted(weights)
        self._weights = [weights[number] for number in self._bins]
        self._ahead = [0.0] * (len(self._bins) + 1)
        for first in reversed(range(len(self._bins))):
            self._ahead[first], _ = self._best(first, self._weights[first], 0.0)

    @property
    def enough(self) -> bool:
        """Whether so many lags have been seen that they may be relied on."""
        return sum(self._weights) >= ENOUGH

    def next_probe(self, age_seconds: float, probes: int, spacing_seconds: float, draw: float) -> float:
        """How old the write should be at the next probe, when at this age, after so many probes, it was not visible.

        `draw`, from 0 to 1, is what sets readers of one write apart. Where reality has left the histogram, probes come at t = c·n²
        with c the spacing again; and no gap is ever longer than four of that schedule's.
        """
        longest = square_gap(spacing_seconds, age_seconds)
        target = self._target(max(age_seconds, LEAST_SECONDS / 2))
        if target is None:
            age = age_seconds + longest * (1 + draw / 4)
        elif target > age_seconds + MOST_TIMES_THE_SQUARE_GAP * longest:
            age = age_seconds + MOST_TIMES_THE_SQUARE_GAP * longest * (1 - draw / 5)
        else:
            age = target * (_EARLIEST + draw * (_LATEST - _EARLIEST))
        return max(age, age_seconds + LEAST_SECONDS, _not_before(probes))

    def _target(self, age_seconds: float) -> float | None:
        """The end of the bin at which the plan probes next; None beyond the last one."""
        ahead = next((at for at, number in enumerate(self._bins) if bin_end(number) > age_seconds * 1.02), None)
        if ahead is None:
            return None
        number = self._bins[ahead]
        passed = age_seconds / bin_end(number - 1)
        left = 1.0 if passed <= 1 else 1 - math.log2(passed) * BINS_PER_OCTAVE
        _, last = self._best(ahead, self._weights[ahead] * left, age_seconds)
        return bin_end(self._bins[last])

    def _best(self, first: int, first_weight: float, age_seconds: float) -> tuple[float, int]:
        """What is still to come costs so much at least, if the next probe is at the end of that bin."""
        weights = [first_weight, *self._weights[first + 1 :]]
        probe = _PROBE_PRICE * sum(weights)
        best, last = math.inf, first
        lateness = found = 0.0
        for at, weight in enumerate(weights, first):
            end, middle = bin_end(self._bins[at]), max(bin_end(self._bins[at]) * _HALF_A_BIN, age_seconds)
            lateness += weight / middle
            found += weight
            cost = probe + lateness * end - found + self._ahead[at + 1]
            if cost < best:
                best, last = cost, at
        return best, last


_HALF_A_BIN = 2.0 ** (-0.5 / BINS_PER_OCTAVE)


def _not_before(probes: int) -> float:
    """The age before which so many probes allow no further one: the last that the budget has comes when its time is over."""
    beyond = probes - _FREE_PROBES
    return min(_BUDGET_SECONDS * (beyond / (_BUDGET_PROBES - 1 - _FREE_PROBES)) ** 2, _BUDGET_SECONDS) if beyond > 0 else 0.0
