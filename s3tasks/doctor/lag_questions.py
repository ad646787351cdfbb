"""How long after a write the read endpoint serves it, measured: how often it was stale, for how long, and whether it flaps.

It never takes a status for an answer: the bytes that come tell which write they are of.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass, field

from s3tasks.doctor.findings import Examination, Said, bad, ok, unknown, warn
from s3tasks.doctor.scratch import Scratches
from s3tasks.errors import NotYetVisible, StoreError, StoreUnavailable
from s3tasks.evidence import Served
from s3tasks.probes import is_aws
from s3tasks.refs import ObjectRef
from s3tasks.settings import Settings
from s3tasks.store import Condition, Endpoint, Store
from s3tasks.waiting import keep_trying

LAG = ("s3.lag", "How long after a write do reads serve it?")
_LOOK_SPACING_SECONDS = 0.005
_LONGEST_LOOK_GAP_SECONDS = 1.0
_LONG_SECONDS = 5.0
NO_VERIFICATION = "you do not need verification here"


@dataclass
class Lags:
    """What was measured: `tries` writes, after `stale` of which the first read was not served them, and how long that lasted.

    `flaps` counts reads that were stale after a fresh one; `never` that a write was not served while it was waited for.
    `markers_lost` and `other_etags` count fresh reads without the write's marker, and with another ETag than it had.
    """

    one_endpoint: bool
    tries: int = 0
    stale: int = 0
    flaps: int = 0
    never: bool = False
    markers_lost: int = 0
    other_etags: int = 0
    problem: str = ""
    seconds: list[float] = field(default_factory=list)


def measured(
    examination: Examination, store: Store, scratches: Scratches, settings: Settings, tries: int, wait_seconds: float
) -> Lags:
    """Writes `tries` times, new objects and over old ones, and reads each until it is served."""
    lags = Lags(one_endpoint=not settings.separate_read_endpoint)
    patience = settings.replace(
        probe_spacing_seconds=_LOOK_SPACING_SECONDS, probe_gap_limit_seconds=_LONGEST_LOOK_GAP_SECONDS
    )
    scratch = scratches.new()
    try:
        for number in range(tries):
            seconds = min(wait_seconds, examination.seconds_left)
            if seconds <= 0 or lags.never:
                break
            if number % 2 == 0:
                scratch = scratches.new()
            body = f"s3tasks measures how late reads are here; safe to delete ({number})".encode()
            landed = scratch.put(Condition(), body)
            _measure_one(lags, store, scratch.ref, Write(body, landed.etag), patience, seconds)
    except (StoreError, StoreUnavailable) as problem:
        lags.problem = str(problem)
    return lags


@dataclass(frozen=True)
class Write:
    """What was written: a body that no other write has, and the ETag that the store says it has."""

    body: bytes
    etag: str | None


def _measure_one(lags: Lags, store: Store, ref: ObjectRef, write: Write, patience: Settings, seconds: float) -> None:
    began = time.monotonic()
    served = _served_if_fresh(store, ref, write.body)
    lags.tries += 1
    if served is None:
        lags.stale += 1
        served = _waited_for(store, ref, write.body, patience, seconds)
    lags.seconds.append(time.monotonic() - began)
    if served is None:
        lags.never = True
        return
    lags.markers_lost += served.marker is None
    lags.other_etags += write.etag is not None and served.etag != write.etag
    lags.flaps += _served_if_fresh(store, ref, write.body) is None


def _served_if_fresh(store: Store, ref: ObjectRef, body: bytes) -> Served | None:
    answer = store.get(ref, Endpoint.READ)
    return answer.served if answer.has_body and answer.read() == body else None


def _waited_for(store: Store, ref: ObjectRef, body: bytes, patience: Settings, seconds: float) -> Served | None:
    def look() -> Served:
        served = _served_if_fresh(store, ref, body)
        if served is None:
            raise NotYetVisible(ref.bucket, ref.key)
        return served

    try:
        return keep_trying(look, patience, seconds=seconds, on=(NotYetVisible,))
    except NotYetVisible:
        return None


def lag(lags: Lags | None, settings: Settings, write_endpoint_url: str) -> Said:
    """What the measurement means for the settings."""
    if lags is None or not (lags.tries or lags.problem):
        return unknown("not measured")
    if lags.problem:
        place = "endpoint_url" if lags.one_endpoint else "read_endpoint_url"
        so_far = f" to the end (of {lags.tries} writes, {lags.stale} were read stale)" if lags.tries else ""
        advice = f"look at S3 itself, at {place}, at the rights there, and at what lies between"
        return bad(f"not measured{so_far}: {lags.problem}", advice)
    if lags.markers_lost and lags.other_etags:
        heard = "the read endpoint changes ETags and drops user metadata: no read can be told to be fresh"
        return bad(heard, "let user metadata (x-amz-meta-s3tasks-write) through to readers")
    if lags.stale or lags.flaps:
        return _stale(lags, settings)
    if not lags.one_endpoint:
        heard = f"at once, {lags.tries} times of {lags.tries}, from another endpoint than writes go to"
        return ok(f"{heard}: that proves nothing, keep verification on")
    if settings.store_consistency == "strong":
        return ok(f"at once, {lags.tries} times of {lags.tries}; the store is declared strong")
    heard = f"at once, {lags.tries} times of {lags.tries}, from the one endpoint for reads and writes"
    if is_aws(write_endpoint_url):
        return ok(f"{heard}. AWS in one region is strongly consistent by contract: {NO_VERIFICATION}", store_consistency="strong")
    return ok(f"{heard}: {NO_VERIFICATION} if the store's own documentation promises this, for tries prove nothing in general")


def _stale(lags: Lags, settings: Settings) -> Said:
    longest = max(lags.seconds)
    heard = (
        f"stale after {lags.stale} of {lags.tries} writes: verification is needed. Lag median "
        f"{statistics.median(lags.seconds):.2f} s, longest {longest:.2f} s"
        f"{' and still not served' if lags.never else ''}"
        f"{f'; stale again after a fresh read {lags.flaps} times' if lags.flaps else ''}"
    )
    if settings.store_consistency == "strong":
        return bad(heard, "set store_consistency=eventual: this store is not strong", store_consistency="eventual")
    if lags.never:
        advice = "look whether the read endpoint gets the changes at all; set on_stale=origin meanwhile"
        return bad(heard, advice, on_stale="origin")
    if longest * 2 > settings.consistency_deadline_seconds:
        enough = str(max(round(4 * longest), 10))
        advice = f"raise consistency_deadline_seconds to {enough} or more"
        return bad(heard, advice, consistency_deadline_seconds=enough)
    if longest > _LONG_SECONDS and settings.on_stale != "origin":
        return warn(heard, "set on_stale=origin if reads need not wait for the replica", on_stale="origin")
    return ok(heard)
