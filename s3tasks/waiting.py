"""How long to keep trying, and when to try next; the only room that knows tenacity, and that sleeps.

It never knows what is tried, only which errors say that trying again may help.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable
from typing import NoReturn, TypeVar

from tenacity import RetryCallState, Retrying, retry_if_exception, stop_after_attempt, stop_after_delay, stop_before_delay
from tenacity.stop import stop_base

from s3tasks.errors import RetryableError
from s3tasks.lags import square_gap
from s3tasks.settings import Settings

T = TypeVar("T")

Gap = Callable[[RetryableError, float], float]
"""How many seconds to wait before the next probe, given the last error and the seconds waited so far."""

_JITTER = 0.25


def gap_seconds(settings: Settings, waited_seconds: float, most_seconds: float = math.inf) -> float:
    """How long to wait before the next probe, given how long has been waited so far, by one who knows nothing of the lag.

    Probes come at t = c·n², so gaps grow with the square root of the time waited: within about 1.5 times of the best fixed
    interval in hindsight, whatever the lag turns out to be. Up to a quarter is added at random, so that many waiting readers do not
    come back together. Never more than `most_seconds`, nor (before jitter) than `probe_gap_limit_seconds`.
    """
    gap = min(square_gap(settings.probe_spacing_seconds, waited_seconds), settings.probe_gap_limit_seconds)
    return min(gap * (1 + _JITTER * random.random()), most_seconds)  # noqa: S311 - spreads load, guards nothing


def keep_trying(
    attempt: Callable[[], T],
    settings: Settings,
    *,
    seconds: float,
    on: tuple[type[RetryableError], ...],
    gap: Gap | None = None,
    to_the_end: bool = True,
) -> T:
    """Calls `attempt` until it returns, for up to `seconds`, sleeping in this thread; the last try comes when they are over.

    Only errors of the classes `on` that call themselves retryable are waited for. The last of them is raised, with how often and
    how long it was tried; any other error is raised at once. `gap` is t = c·n² unless given. Not `to_the_end`, the last error is
    raised as soon as the next try would come later than that, for one who can wait elsewhere.
    """
    if seconds <= 0:
        return attempt()
    stop = stop_after_delay(seconds) if to_the_end else stop_before_delay(seconds)
    return _try(attempt, settings, stop, seconds if to_the_end else math.inf, on, gap)


def try_times(
    attempt: Callable[[], T], settings: Settings, *, times: int, on: tuple[type[RetryableError], ...]
) -> T:
    """Calls `attempt` up to `times` times, with the same growing gaps, under the same rules as `keep_trying`."""
    if times <= 1:
        return attempt()
    try:
        # Nearly always all there is: tenacity is set up when it is wanted, for that costs as much as signing a request.
        return attempt()
    except on as problem:
        if not problem.retryable:
            raise
        return _try(_begun_with(problem, attempt), settings, stop_after_attempt(times), math.inf, on, None)


def _begun_with(problem: RetryableError, attempt: Callable[[], T]) -> Callable[[], T]:
    """The attempts, of which the first has been made."""
    made = iter([problem])

    def attempts() -> T:
        for first in made:
            raise first
        return attempt()

    return attempts


def _try(
    attempt: Callable[[], T],
    settings: Settings,
    stop: stop_base,
    seconds: float,
    on: tuple[type[RetryableError], ...],
    gap: Gap | None,
) -> T:
    def wait(state: RetryCallState) -> float:
        waited, problem = state.seconds_since_start or 0.0, state.outcome.exception() if state.outcome else None
        left = max(seconds - waited, 0.0)
        if gap is None or not isinstance(problem, RetryableError):
            return gap_seconds(settings, waited, left)
        return min(gap(problem, waited), left)

    return Retrying(
        sleep=time.sleep,
        retry=retry_if_exception(lambda problem: isinstance(problem, on) and problem.retryable),
        wait=wait,
        stop=stop,
        retry_error_callback=_give_up,
    )(attempt)


def _give_up(state: RetryCallState) -> NoReturn:
    problem = state.outcome.exception() if state.outcome else None
    if not isinstance(problem, RetryableError):
        raise TypeError(f"waited for {problem!r}, which is not an error to wait for")
    raise problem.after(state.attempt_number, state.seconds_since_start or 0.0) from problem
