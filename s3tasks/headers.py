"""What the message of a task that is tried again says of its earlier deliveries.

It never trusts a message: whoever can send one may have written it, and what makes no sense counts as not there.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from s3tasks.evidence import Awaited

WAITED_HEADER = "s3tasks_waited"
AWAITED_HEADER = "s3tasks_awaited"
# What a header may claim; more is a forgery, and an int can be too large for a float.
MOST_WAITED_SECONDS = 10**9


def retry_headers(
    headers: Mapping[str, Any] | None, attempts: int, waited_seconds: float, awaited: Awaited | None
) -> dict[str, Any]:
    """The headers of the next delivery: attempts and seconds so far, its countdown included, and the write that is waited for."""
    told = {**(headers or {}), WAITED_HEADER: [attempts, round(waited_seconds, 4)]}
    if awaited is not None:
        told[AWAITED_HEADER] = [awaited.uri, awaited.committed, round(awaited.not_visible_at_seconds, 6)]
    return told


def waited_in(headers: Mapping[str, Any] | None) -> tuple[int, float]:
    """Attempts and seconds that earlier deliveries have spent on waiting."""
    header = (headers or {}).get(WAITED_HEADER)
    if not isinstance(header, list) or len(header) != 2:
        return 0, 0.0
    attempts, waited = header
    good = type(attempts) is int and attempts >= 0 and type(waited) in (int, float) and 0 <= waited <= MOST_WAITED_SECONDS
    return (attempts, float(waited)) if good else (0, 0.0)


def awaited_in(headers: Mapping[str, Any] | None) -> Awaited | None:
    """The write that the earlier delivery waited for."""
    header, attempts = (headers or {}).get(AWAITED_HEADER), waited_in(headers)[0]
    if not attempts or not isinstance(header, list) or len(header) != 3:
        return None
    uri, committed, age = header
    good = isinstance(uri, str) and type(committed) is int and type(age) in (int, float) and 0 <= age <= MOST_WAITED_SECONDS
    return Awaited(uri, committed, float(age), attempts) if good and 0 < committed < 2**63 else None
