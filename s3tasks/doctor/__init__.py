"""Questions asked before work begins, or when it has stopped: of Redis, of Celery, and of S3, by trying it.

It never changes a setting, never prints, and never lets one question keep the others from being asked.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from s3tasks.doctor.celery_questions import ask_celery
from s3tasks.doctor.conclusions import Guarantee, guarantees, settings_to_use, verification
from s3tasks.doctor.findings import Examination, Finding, Grade
from s3tasks.doctor.redis_questions import ask_broker, ask_redis
from s3tasks.doctor.store_questions import Trial, ask_store, left_out
from s3tasks.errors import InvalidRef
from s3tasks.refs import ObjectRef
from s3tasks.settings import Settings
from s3tasks.version import __version__

SCHEMA = 1
"""The schema of the JSON; fields may be added to it, none is taken away."""

__all__ = ["Examination", "Finding", "Grade", "Report", "Trial", "examine"]


@dataclass(frozen=True)
class Report:
    """All findings, and what they mean together. `reached` says that Redis or S3 answered at all.

    `settings` would fit better than those in force; `verification` says whether reads must be checked here (see conclusions).
    """

    findings: tuple[Finding, ...]
    guarantees: tuple[Guarantee, ...]
    settings: dict[str, str]
    verification: str
    reached: bool

    @property
    def to_change(self) -> tuple[Finding, ...]:
        """The findings that ask for a change."""
        return tuple(finding for finding in self.findings if finding.verdict in (Grade.WARN, Grade.BAD))

    @property
    def verdict(self) -> Grade:
        """The worst of the findings; what could not be found out counts for nothing, unless that is all."""
        grades = {finding.verdict for finding in self.findings}
        return next(grade for grade in (Grade.BAD, Grade.WARN, Grade.OK, Grade.UNKNOWN) if grade in grades)

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON."""
        return {
            "schema": SCHEMA,
            "s3tasks": __version__,
            "verdict": self.verdict.value,
            "reached": self.reached,
            "findings": [finding.to_dict() for finding in self.findings],
            "verification": self.verification,
            "guarantees": [guarantee.to_dict() for guarantee in self.guarantees],
            "settings": self.settings,
        }


def examine(
    settings: Settings, *, app: Any = None, trial: Trial | None = None, seconds: float = 120.0, worker_seconds: float = 2.0
) -> Report:
    """Asks all questions, for about `seconds` in all: of Redis, of the Celery app if there is one, of S3 if a bucket is named.

    Workers get `worker_seconds` to answer. Raises ValueError where the settings name no ledger, InvalidRef for a bucket that may
    not be used.
    """
    if trial is not None:
        _check(trial, settings)
    if settings.ledger_url is None:
        raise ValueError("no ledger_url: set S3TASKS_LEDGER_URL, or ask through the app: celery -A APP s3tasks doctor")
    examination = Examination(seconds)
    redis_answered = ask_redis(examination, settings)
    if app is not None:
        ask_broker(examination, settings, app.conf.broker_url)
        ask_celery(examination, app, settings, worker_seconds)
    facts = None
    if trial is None:
        left_out(examination, "name a bucket to try things in: --bucket")
    else:
        facts = ask_store(examination, settings, trial)
    findings = tuple(examination.findings)
    return Report(
        findings=findings,
        guarantees=tuple(guarantees(findings, facts)),
        settings=settings_to_use(findings),
        verification=verification(facts),
        reached=redis_answered or facts is not None,
    )


def _check(trial: Trial, settings: Settings) -> None:
    named = ObjectRef(trial.bucket, f"{trial.prefix}any")
    if settings.allowed_buckets and named.bucket not in settings.allowed_buckets:
        raise InvalidRef(named.uri, f"the bucket is not among allowed_buckets ({', '.join(settings.allowed_buckets)})")
