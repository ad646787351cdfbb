"""When this process's readers look again for what they wait for, and what they tell the ledger of how long it took.

It never sleeps, and asks the ledger nothing for a read that need not wait. What it cannot learn costs no read: it then knows
nothing of lags, and probes come at t = c·n².
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from s3tasks import events
from s3tasks.errors import LedgerUnavailable, PreconditionFailed, RetryableError
from s3tasks.evidence import Awaited
from s3tasks.lags import Plan, weights_of
from s3tasks.ledger import Ledger
from s3tasks.refs import ObjectRef
from s3tasks.settings import Settings
from s3tasks.waiting import gap_seconds

T = TypeVar("T")

# How long a process goes by the histogram that it has fetched, and of how many buckets it keeps one.
_KEPT_SECONDS = 1.0
_MOST_BUCKETS = 256

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Known:
    """What was fetched: good until then (time.monotonic), the ledger's clock less that one, and the plan."""

    until: float
    clock_offset: float
    plan: Plan


class Patience:
    """What this process knows of lags, asked of the ledger while somebody waits, and for a second only once."""

    def __init__(self, ledger: Ledger, settings: Settings) -> None:
        self._ledger, self._settings = ledger, settings
        self._endpoint_url = settings.read_endpoint_url or settings.endpoint_url or ""
        self._known: dict[str, _Known] = {}

    def gap_seconds(self, problem: RetryableError, probes: int, waited_seconds: float) -> float:
        """How long to wait before the next probe, after so many and so long."""
        settings = self._settings
        committed = getattr(problem, "committed", None) if settings.probe_schedule == "learn" else None
        known = self._learnt(problem.bucket) if isinstance(problem, PreconditionFailed) and committed else None
        age = time.monotonic() + known.clock_offset - committed / 1e6 if known and committed else -1.0
        # A record from a clock that has gone back since tells no age.
        if known is None or age < 0 or not known.plan.enough:
            return gap_seconds(settings, waited_seconds)
        spacing, draw = settings.probe_spacing_seconds, random.random()  # noqa: S311 - spreads load, guards nothing
        return min(known.plan.next_probe(age, probes, spacing, draw) - age, settings.probe_gap_limit_seconds)

    def awaited(self, problem: RetryableError, probes: int) -> Awaited | None:
        """What the error says is waited for, as the next delivery of a task needs it; None where nothing can be learnt of it."""
        if not isinstance(problem, PreconditionFailed) or not problem.committed or problem.probed_at is None:
            return None
        known = self._learnt(problem.bucket)
        if known is None:
            return None
        age = max(problem.probed_at + known.clock_offset - problem.committed / 1e6, 0.0)
        return Awaited(f"s3://{problem.bucket}/{problem.key}", problem.committed, age, probes)

    def seen(self, ref: ObjectRef, awaited: Awaited, probed_at: float) -> None:
        """The write that was waited for has become visible to a probe that began then (time.monotonic)."""
        span = time.monotonic() - probed_at
        try:
            seconds = self._ledger.note_seen(
                self._endpoint_url, ref.bucket, awaited.committed, span, awaited.not_visible_at_seconds
            )
        except LedgerUnavailable as problem:
            logger.warning("%s: how long it took to become visible is not learnt: %s", ref.uri, problem)
            return
        if seconds is not None and events.listeners:
            events.tell(events.FirstFresh(seconds))

    def _learnt(self, bucket: str) -> _Known | None:
        now, known = time.monotonic(), self._known.get(bucket)
        if known is not None and now < known.until:
            return known
        try:
            clock, text = self._ledger.lags(self._endpoint_url, bucket)
        except LedgerUnavailable as problem:
            logger.warning("lags of %s are not known: %s", bucket, problem)
            return None
        then = time.monotonic()
        if len(self._known) >= _MOST_BUCKETS:
            self._known.clear()
        known = self._known[bucket] = _Known(then + _KEPT_SECONDS, clock - (now + then) / 2, Plan(weights_of(text)))
        return known


class Watch:
    """One read that may have to wait: it is called for each probe, and told of by what it raises and returns."""

    def __init__(self, patience: Patience, ref: ObjectRef, earlier: Awaited | None) -> None:
        self._patience, self._ref = patience, ref
        self._awaited = earlier if earlier is not None and earlier.uri == ref.uri else None
        self._probes = self._awaited.probes if self._awaited else 0

    def probing(self, attempt: Callable[[], T]) -> Callable[[], T]:
        """The attempt, watched."""

        def probe() -> T:
            probed_at = time.monotonic()
            self._probes += 1
            try:
                result = attempt()
            except PreconditionFailed as problem:
                problem.probed_at = probed_at
                raise
            if self._awaited is not None:
                self._patience.seen(self._ref, self._awaited, probed_at)
            return result

        return probe

    def gap_seconds(self, problem: RetryableError, waited_seconds: float) -> float:
        """How long to wait before the next probe, which will know what it waited for."""
        self._awaited = self._patience.awaited(problem, self._probes)
        return self._patience.gap_seconds(problem, self._probes, waited_seconds)
