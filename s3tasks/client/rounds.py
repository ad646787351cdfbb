"""Trying many things until each has its outcome, with only those tried again that may still succeed.

It never waits by itself: it says by an error that another round may help.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Generic, TypeVar

from s3tasks.errors import PayloadTooLarge, RetryableError, S3TasksError
from s3tasks.outcomes import Outcome

J = TypeVar("J")

Told = Callable[[Outcome, object], Outcome]


class Rounds(Generic[J]):
    """Jobs, and the outcome of each: given with an error it is left alone, else `attempt` is made and `told` what came of it."""

    def __init__(
        self, jobs: Sequence[J], given: Sequence[Outcome], attempt: Callable[[Sequence[J]], Sequence[object]], told: Told
    ) -> None:
        self._jobs, self._attempt, self._told = jobs, attempt, told
        self._outcomes = list(given)
        self._pending = [number for number, outcome in enumerate(given) if outcome.ok]
        self._waited_for: type[RetryableError] = RetryableError

    def keep(self, done: Sequence[Outcome | None] | None) -> None:
        """Takes over the outcomes of an earlier try, but for those whose error may pass."""
        if done is None:
            return
        if len(done) != len(self._outcomes):
            raise ValueError(f"done has {len(done)} outcomes for {len(self._outcomes)} objects: give one for each, or None")
        kept = {
            number: outcome for number, outcome in enumerate(done)
            if outcome is not None and not (outcome.error is not None and outcome.error.retryable)
        }
        for number, outcome in kept.items():
            self._outcomes[number] = outcome
        self._pending = [number for number in self._pending if number not in kept]

    def go(self, on: type[RetryableError]) -> None:
        """Tries all that are pending; raises the first error of the kind `on` that is left, after which they are pending still."""
        results = self._attempt([self._jobs[number] for number in self._pending]) if self._pending else []
        left = []
        for number, result in zip(self._pending, results, strict=True):
            self._outcomes[number] = self._told(self._outcomes[number], result)
            if isinstance(result, RetryableError) and result.retryable:
                left.append(number)
        self._pending = left
        self._raise_first(on)

    def _raise_first(self, on: type[RetryableError]) -> None:
        self._waited_for = on
        for number in self._pending:
            error = self._outcomes[number].error
            if isinstance(error, on) and error.retryable:
                raise error

    def after(self, tries: Callable[[], None], on: type[RetryableError]) -> None:
        """Makes the tries, whose own error need not end it, and raises the first error of the kind `on` that is left."""
        try:
            tries()
        except RetryableError as told:
            self._mark(told)
        self._raise_first(on)

    def outcomes_of(self, waiting: Callable[[], None]) -> list[Outcome]:
        """All outcomes, once the waiting is over; what is left then says how often and how long was tried."""
        try:
            waiting()
        except RetryableError as told:
            self._mark(told)
        return self._outcomes

    def _mark(self, told: RetryableError) -> None:
        for number in self._pending:
            error = self._outcomes[number].error
            if isinstance(error, self._waited_for):
                self._outcomes[number] = replace(self._outcomes[number], error=error.after(told.attempts, told.waited_seconds))


def with_result(outcome: Outcome, result: object) -> Outcome:
    """The outcome with the value that came, or the error."""
    if isinstance(result, S3TasksError):
        return replace(outcome, error=result)
    return Outcome(outcome.ref, result)


class Budget:
    """How much may be read: of one object, and of all together."""

    def __init__(self, limit_bytes: int | None, total_limit_bytes: int | None, done: Sequence[Outcome | None] | None) -> None:
        self._limit_bytes, self._total_limit_bytes = limit_bytes, total_limit_bytes
        self._lock = threading.Lock()
        self._taken_bytes = sum(len(outcome.value) for outcome in done or () if outcome and isinstance(outcome.value, bytes))

    def admit(self, size_bytes: int) -> None:
        """PayloadTooLarge where a body of this size is too much."""
        if self._limit_bytes is not None and size_bytes > self._limit_bytes:
            raise PayloadTooLarge("read", size_bytes, self._limit_bytes)
        with self._lock:
            total_bytes = self._taken_bytes + size_bytes
            if self._total_limit_bytes is not None and total_bytes > self._total_limit_bytes:
                raise PayloadTooLarge("read_many", total_bytes, self._total_limit_bytes)
            self._taken_bytes = total_bytes
