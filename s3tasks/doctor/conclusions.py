"""What all findings together mean: which guarantees hold here, which settings to use, and whether verification is needed.

It never asks anything, and concludes nothing from what was not found out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from s3tasks.doctor.findings import Finding, Grade
from s3tasks.doctor.store_questions import StoreFacts
from s3tasks.probes import is_aws
from s3tasks.trials import Honours


@dataclass(frozen=True)
class Guarantee:
    """Something that holds here, or does not; None: it was not found out."""

    name: str
    holds: bool | None
    text: str

    def to_dict(self) -> dict[str, Any]:
        """The guarantee as JSON."""
        return {"name": self.name, "holds": self.holds, "text": self.text}


def guarantees(findings: Sequence[Finding], facts: StoreFacts | None) -> list[Guarantee]:
    """What a user of s3tasks may rely on here."""
    grades = {finding.name: finding.verdict for finding in findings}
    redis = [grades.get(name, Grade.UNKNOWN) for name in ("redis.reachable", "redis.rights", "redis.eviction")]
    kept = _all_ok(redis)
    facts = facts or StoreFacts()
    return [
        Guarantee("never_stale", kept, "a read is never served what a finished write has replaced"),
        Guarantee("done_once", kept, "a task that is delivered twice writes once"),
        Guarantee("survives_restart", _all_ok([grades.get("redis.persistence", Grade.UNKNOWN)]), "both, across a restart of Redis"),
        Guarantee("dead_writers", facts.marker_kept, "a write whose worker died is known again"),
        Guarantee("outside_writes", facts.dates_tell, "other programs' newer writes are noticed (outside_writes=adopt)"),
        Guarantee("if_none_match", facts.honours.get(Honours.PUT_IF_NONE_MATCH), "of writers with if_none_match one wins"),
        Guarantee("if_match", facts.honours.get(Honours.PUT_IF_MATCH), "a write with if_match replaces only what it saw"),
        Guarantee("delete_if_match", facts.honours.get(Honours.DELETE_IF_MATCH), "a delete with if_match deletes only what it saw"),
        Guarantee("versions", facts.versions, "a ref can be read after its object was overwritten"),
    ]


def _all_ok(grades: Sequence[Grade]) -> bool | None:
    if Grade.BAD in grades or Grade.WARN in grades:
        return False
    return None if Grade.UNKNOWN in grades else True


def verification(facts: StoreFacts | None) -> str:
    """Whether reads must be held against the ledger here: `needed`, `not needed` (by AWS's contract), `not needed if promised` (by
    the store's own documentation), `not disproved` (nothing was stale on another endpoint, which proves nothing) or `unknown`."""
    lags = facts.lags if facts else None
    if lags is None or not lags.tries:
        return "unknown"
    if lags.stale or lags.flaps:
        return "needed"
    if lags.problem:
        return "unknown"
    if not lags.one_endpoint:
        return "not disproved"
    return "not needed" if facts is not None and is_aws(facts.write_endpoint_url) else "not needed if promised"


def settings_to_use(findings: Sequence[Finding]) -> dict[str, str]:
    """The settings that would fit better than those in force, by name."""
    return {name: value for finding in findings for name, value in finding.settings.items()}
