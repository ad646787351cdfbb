"""How long to keep trying, and when to try next; the only room that knows tenacity, and that sleeps.

It never knows what is tried, only which errors say that trying again may help.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable
from typing import NoReturn, TypeVar

from tenacity import RetryCallState, Retrying, retry_if_exception, stop_after_attempt, stop_after_delay
from tenacity.stop import stop_base

from s3tasks.errors import RetryableError
from s3tasks.settings import Settings

T = TypeVar("T")

_JITTER = 0.25


def gap_seconds(settings: Settings, waited_seconds: float, most_seconds: float = math.inf) -> float:
    """How long to wait before the next probe, given how long has been waited so far.

    Probes come at t = c·n², so gaps grow with the square root of the time waited: within about 1.5 times of the best fixed
    interval in hindsight, whatever the lag turns out to be. Up to a quarter is added at random, so that many waiting readers do not
    come back together. Never more than `most_seconds`, nor (before jitter) than `probe_gap_limit_seconds`.
    """
    spacing = settings.probe_spacing_seconds
    probes_so_far = math.sqrt(max(waited_seconds, 0.0) / spacing)
    gap = min(spacing * (2 * probes_so_far + 1), settings.probe_gap_limit_seconds)
    return min(gap * (1 + _JITTER * random.random()), most_seconds)  # noqa: S311 - spreads load, guards nothing


def keep_trying(
    attempt: Callable[[], T], settings: Settings, *, seconds: float, on: tuple[type[RetryableError], ...]
) -> T:
    """Calls `attempt` until it returns, for up to `seconds`, sleeping in this thread; the last try comes when they are over.

    Only errors of the classes `on` that call themselves retryable are waited for. The last of them is raised, with how often and
    how long it was tried; any other error is raised at once.
    """
    return _try(attempt, settings, stop_after_delay(seconds), seconds, on) if seconds > 0 else attempt()


def try_times(
    attempt: Callable[[], T], settings: Settings, *, times: int, on: tuple[type[RetryableError], ...]
) -> T:
    """Calls `attempt` up to `times` times, with the same growing gaps, under the same rules as `keep_trying`."""
    return _try(attempt, settings, stop_after_attempt(times), math.inf, on) if times > 1 else attempt()


def _try(
    attempt: Callable[[], T],
    settings: Settings,
    stop: stop_base,
    seconds: float,
    on: tuple[type[RetryableError], ...],
) -> T:
    def gap(state: RetryCallState) -> float:
        waited = state.seconds_since_start or 0.0
        return gap_seconds(settings, waited, max(seconds - waited, 0.0))

    return Retrying(
        sleep=time.sleep,
        retry=retry_if_exception(lambda problem: isinstance(problem, on) and problem.retryable),
        wait=gap,
        stop=stop,
        retry_error_callback=_give_up,
    )(attempt)


def _give_up(state: RetryCallState) -> NoReturn:
    problem = state.outcome.exception() if state.outcome else None
    if not isinstance(problem, RetryableError):
        raise TypeError(f"waited for {problem!r}, which is not an error to wait for")
    raise problem.after(state.attempt_number, state.seconds_since_start or 0.0) from problem
