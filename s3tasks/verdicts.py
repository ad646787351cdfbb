"""What a record and an answer together mean for a read: the table of verdicts.

Pure: no input, no output, no clock. Whoever asks Redis and S3, and acts on a verdict, lives elsewhere.

Two questions are answered here. `before_asking`: does the record alone settle the read? `judge`: given what an endpoint served,
may the reader have it? "Serves a write" means: the served object carries that write's marker, or has its ETag.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, replace

from s3tasks.evidence import Current, Intent, Record, Served
from s3tasks.refs import ObjectRef

# HTTP dates have whole seconds, so two of one clock less than this apart say nothing about order (RFC 9110, 5.6.7).
CLOCK_DOUBT_SECONDS = 1


class Verdict(enum.Enum):
    """What a read concludes. The text is for people."""

    FRESH = "fresh: this is what was promised"
    UNKNOWN = "nothing is known here: assumed consistent"
    STALE = "an older object is served: wait"
    NOT_YET_VISIBLE = "nothing is served yet: wait"
    DELETED = "the object has been deleted"
    MISSING = "there is no such key"
    SUPERSEDED = "the write asked for has been replaced"
    UNFINISHED = "the bytes of a write that has not committed: record it for its writer"
    OUTSIDE = "somebody else's newer write (or delete): adopt it"
    ASK_ORIGIN = "only the write endpoint's own dates can tell"


@dataclass(frozen=True)
class Rules:
    """What the settings say about judging.

    `reject_outside_writes`: somebody else's writes are never adopted (the rule of 2014). `strong_store`: reads and writes go to
    one endpoint that is declared strongly consistent, so a mismatch proves the record wrong.
    """

    reject_outside_writes: bool = False
    strong_store: bool = False


@dataclass(frozen=True)
class Judgement:
    """A verdict with what it rests on: the current write that is served, or the intent that an unfinished write belongs to."""

    verdict: Verdict
    current: Current | None = None
    intent: Intent | None = None


def promised(record: Record, wanted: ObjectRef, latest: bool) -> tuple[Current, ...]:
    """The current writes that may be served to a reader who asks for `wanted`.

    With `latest`, or for a ref that names no exact write: all of them. Empty where the ledger knows nothing that bears on it,
    also where the record is older than the ref itself (Redis has lost what it knew).
    """
    if not _knows(record, wanted):
        return ()
    if latest or not wanted.exact:
        return record.currents
    return tuple(current for current in record.currents if _named_by(current, wanted))


def sole_etag(record: Record, wanted: ObjectRef, latest: bool) -> str | None:
    """The etag of the one current write that may be served, which a cache may answer with; None where S3 must be asked."""
    candidates = () if _unfinished(record) else promised(record, wanted, latest)
    return candidates[0].etag if len(candidates) == 1 else None


def expected_etag(record: Record, wanted: ObjectRef, latest: bool) -> str | None:
    """The one etag that an answer must have, where there is exactly one: what If-Match may be sent with, else None."""
    if _knows(record, wanted):
        return sole_etag(record, wanted, latest)
    return None if latest or _unfinished(record) else wanted.etag


def before_asking(record: Record, wanted: ObjectRef, latest: bool, rules: Rules) -> Verdict | None:
    """The verdict that needs no answer from S3, or None where S3 must be asked."""
    exact = wanted.exact and not latest
    known = _knows(record, wanted)
    candidates = promised(record, wanted, latest)
    if exact and known and not candidates:
        return Verdict.SUPERSEDED
    if exact and wanted.deleted:
        return Verdict.DELETED
    only_tombstones = bool(candidates) and all(current.deleted for current in candidates)
    if only_tombstones and (exact or (rules.reject_outside_writes and not record.intents)):
        return Verdict.DELETED
    return None


def judge(
    record: Record, served: Served | None, wanted: ObjectRef, latest: bool, rules: Rules, *, from_origin: bool
) -> Judgement:
    """What `served` (None: a 404) means for a reader who asks for `wanted`, given the record.

    `from_origin` says that the write endpoint answered, whose clock dates our writes and other people's alike. Call
    `before_asking` first: a record that settles the read by itself is not judged again here.
    """
    if not _knows(record, wanted):
        return _judge_unknown(record, served, wanted, latest, from_origin)
    case = _Case(record, wanted, promised(record, wanted, latest), rules, from_origin)
    if served is None:
        return case.nothing_served()
    for current in case.candidates:
        if serves(served, current):
            return case.current_write(current)
    return case.outside_write(served) if served.marker is None else case.other_write_of_ours(served)


def with_origin(at_origin: Judgement, served: Served | None, origin_served: Served | None) -> Judgement:
    """What an answer is, whose verdict was ASK_ORIGIN, once the origin's own has been judged: that judgement, if it is of the same
    object."""
    good = at_origin.verdict in (Verdict.FRESH, Verdict.UNKNOWN)
    if good and not _same_object(served, origin_served, at_origin.current):
        return replace(at_origin, verdict=Verdict.NOT_YET_VISIBLE if served is None else Verdict.STALE)
    return at_origin


def _same_object(served: Served | None, at_origin: Served | None, current: Current | None) -> bool:
    """Whether the answer in hand is of the object that the origin's was found good for."""
    if served is None or at_origin is None:
        return False
    if current is not None and serves(served, current):
        return True
    return (served.etag, served.marker) == (at_origin.etag, at_origin.marker)


def serves(served: Served, current: Current) -> bool:
    """Whether the served object is what this write put there."""
    if current.deleted:
        return False
    if served.marker is not None and served.marker.write_id == current.write_id:
        return True
    return current.etag is not None and served.etag == current.etag


@dataclass(frozen=True)
class _Case:
    """One read of an object that the ledger knows, with `candidates` for what may be served."""

    record: Record
    wanted: ObjectRef
    candidates: tuple[Current, ...]
    rules: Rules
    from_origin: bool

    @property
    def mismatch_proves_record_wrong(self) -> bool:
        return self.rules.strong_store and not self.rules.reject_outside_writes and self.from_origin

    def current_write(self, current: Current) -> Judgement:
        """A write that may be served, unless a delete that readers have seen at work is under way: then the origin tells."""
        deleting = {intent.write_id for intent in self.record.intents if intent.deletes}
        seen = any(other.write_id in deleting and other.begun > current.committed for other in self.record.currents)
        return Judgement(Verdict.ASK_ORIGIN if seen and not self.from_origin else Verdict.FRESH, current=current)

    def older_object(self) -> Judgement:
        """What an object served in place of the promised one means when it proves nothing new."""
        return Judgement(Verdict.DELETED if all(current.deleted for current in self.candidates) else Verdict.STALE)

    def nothing_served(self) -> Judgement:
        for current in self.candidates:
            if current.deleted:
                return Judgement(Verdict.DELETED, current=current)
        for intent in self.record.intents:
            if intent.deletes:
                return self.unfinished_delete(intent)
        return Judgement(Verdict.OUTSIDE if self.mismatch_proves_record_wrong else Verdict.NOT_YET_VISIBLE)

    def unfinished_delete(self, intent: Intent) -> Judgement:
        """Nothing is there, and a delete has begun: it, too, counts as going on until its task is delivered again."""
        if any(current.write_id == intent.write_id for current in self.record.currents):
            return Judgement(Verdict.SUPERSEDED)
        return Judgement(Verdict.UNFINISHED if self.from_origin else Verdict.ASK_ORIGIN, intent=intent)

    def other_write_of_ours(self, served: Served) -> Judgement:
        """An object with our marker, of a write that the reader may not be served as such."""
        intent = _intent_of(self.record, served)
        if intent is not None:
            return self.unfinished_write(served, intent)
        for current in self.record.currents:
            if serves(served, current):
                return self.rival(served, current)
        if served.marker is not None and served.marker.ticket > self.record.seq:
            # Redis has lost what it knew of this write, in a failover: the object itself is all there is.
            return Judgement(Verdict.OUTSIDE if self.from_origin else Verdict.ASK_ORIGIN)
        return Judgement(Verdict.OUTSIDE) if self.mismatch_proves_record_wrong else self.older_object()

    def unfinished_write(self, served: Served, intent: Intent) -> Judgement:
        """Bytes of a write that has begun: the newest there is, unless a later write has replaced it."""
        if not self.from_origin:
            return Judgement(Verdict.ASK_ORIGIN, intent=intent)
        not_older = all(served.last_modified >= current.date for current in self.record.currents)
        if not_older or not _replaced(self.record, intent):
            return Judgement(Verdict.UNFINISHED, intent=intent)
        return self.older_object()

    def rival(self, served: Served, other: Current) -> Judgement:
        """The reader asks for one of several overlapping writes, and another of them is served: has that one won?"""
        if not self.from_origin:
            return Judgement(Verdict.ASK_ORIGIN)
        # A write without a date was found replaced when its task came again: by the later one that is served.
        found_replaced = all(not asked.date and asked.begun < other.begun for asked in self.candidates)
        won = self.rules.strong_store or found_replaced or _proven_newer(served, self.candidates)
        return Judgement(Verdict.SUPERSEDED if won else Verdict.STALE)

    def outside_write(self, served: Served) -> Judgement:
        if self.rules.reject_outside_writes:
            return self.older_object()
        if not self.from_origin:
            return Judgement(Verdict.ASK_ORIGIN)
        newer = self.rules.strong_store or _proven_newer(served, self.record.currents)
        return Judgement(Verdict.OUTSIDE) if newer else self.older_object()


def _knows(record: Record, wanted: ObjectRef) -> bool:
    """Whether the record bears on the ref: it has current writes, and is not older than the write that the ref names."""
    return bool(record.currents) and (wanted.seq is None or wanted.seq <= record.seq)


def _unfinished(record: Record) -> bool:
    return any(not intent.finished for intent in record.intents)


def _named_by(current: Current, wanted: ObjectRef) -> bool:
    if wanted.deleted:
        return current.deleted
    if wanted.etag is not None:
        return current.etag == wanted.etag and not current.deleted
    return current.committed == wanted.seq


def _judge_unknown(
    record: Record, served: Served | None, wanted: ObjectRef, latest: bool, from_origin: bool
) -> Judgement:
    if served is None:
        return Judgement(Verdict.NOT_YET_VISIBLE if wanted.exact and not wanted.deleted else Verdict.MISSING)
    intent = _intent_of(record, served)
    if intent is not None and not record.currents:
        return Judgement(Verdict.UNFINISHED if from_origin else Verdict.ASK_ORIGIN, intent=intent)
    if not wanted.exact or (wanted.etag is not None and served.etag == wanted.etag):
        return Judgement(Verdict.UNKNOWN)
    began_after_it = served.marker is not None and wanted.seq is not None and served.marker.ticket > wanted.seq
    return Judgement(Verdict.UNKNOWN if latest and began_after_it else Verdict.STALE)


def _proven_newer(served: Served, than: tuple[Current, ...]) -> bool:
    """Whether the object was made more than a clock second after each of these writes whose date is known.

    Both by the write endpoint's own clock. A write of unknown date is one that was replaced before it could tell.
    """
    dates = [current.date for current in than if current.date]
    return bool(dates) and served.last_modified > max(dates) + CLOCK_DOUBT_SECONDS


def _intent_of(record: Record, served: Served) -> Intent | None:
    """The open intent whose attempt put the served object there."""
    marker = served.marker
    if marker is None:
        return None
    for intent in record.intents:
        if intent.write_id == marker.write_id and marker.ticket in intent.tickets:
            return intent
    return None


def _replaced(record: Record, intent: Intent) -> bool:
    return any(current.begun > intent.last for current in record.currents)
