"""Look up, ask S3, judge, and act on the verdict: one attempt at reading an object.

It never waits: what S3 cannot serve yet leaves as StaleRead or NotYetVisible, and whoever wants to wait asks again.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace

from s3tasks import events
from s3tasks.cache import Cache
from s3tasks.errors import (
    NoSuchKey,
    NotYetVisible,
    ObjectDeleted,
    PreconditionFailed,
    S3TasksError,
    StaleRead,
    StoreUnavailable,
    Superseded,
)
from s3tasks.evidence import Current, Landed, Record, Served
from s3tasks.ledger import Ledger
from s3tasks.logbook import line
from s3tasks.refs import ObjectRef
from s3tasks.settings import Settings
from s3tasks.store import NULL_VERSION, Answer, Endpoint, Store, at_hand
from s3tasks.verdicts import Judgement, Rules, Verdict, before_asking, expected_etag, judge, promised, sole_etag, with_origin

logger = logging.getLogger(__name__)

# How often one attempt may start over because the record changed under it, or because it changed the record itself.
_TURNS = 4


@dataclass(frozen=True)
class Query:
    """One read: which object (or exact write of it), whether what replaced that write will do, and how much is wanted.

    `byte_range` is first and last byte, both included. Without `with_body` only a HEAD is asked for, which names the object's
    checksum `with_checksum`. `barrier` says that the read endpoint itself must serve the object, for readers that know nothing of
    the ledger, `at_origin` that the write endpoint must.
    """

    ref: ObjectRef
    latest: bool = False
    with_body: bool = True
    byte_range: tuple[int, int | None] | None = None
    barrier: bool = False
    with_checksum: bool = False
    at_origin: bool = False

    @property
    def endpoint(self) -> Endpoint:
        """Which endpoint is asked first."""
        return Endpoint.WRITE if self.at_origin else Endpoint.READ

    @property
    def of_version(self) -> bool:
        """Whether one version of the object is wanted, which never changes."""
        return self.ref.version_id is not None and not self.ref.deleted and not self.latest

    @property
    def whole(self) -> bool:
        """Whether the whole body is wanted."""
        return self.with_body and self.byte_range is None


class Reader:
    """Reads objects of one store under one ledger, and bodies that the ledger calls current from the cache, where there is one."""

    def __init__(self, ledger: Ledger, store: Store, settings: Settings, cache: Cache | None = None) -> None:
        self._ledger, self._store, self._settings, self._cache = ledger, store, settings, cache
        self._rules = rules_of(settings)
        # Without a read endpoint of its own, every answer comes from the endpoint that dates the writes.
        self._read_endpoint_is_origin = not settings.separate_read_endpoint

    def read(self, query: Query, admit: Callable[[int], None], record: Record | None = None) -> bytes:
        """The bytes of an answer that may be handed out.

        `admit` is told how many there are before any is read, and raises where that is too many. Raises as `answer` otherwise.
        """
        answer = self.answer(query, record)
        try:
            admit(answer.body.size_bytes if answer.body else 0)
        except BaseException:
            answer.close()
            raise
        body = answer.read()
        keeps = query.whole and not answer.from_cache and query.ref.version_id != NULL_VERSION
        if self._cache and keeps and answer.served is not None:
            self._cache.put(query.ref if query.of_version else query.ref.plain(), answer.served, body)
        return body

    def answer(self, query: Query, record: Record | None = None) -> Answer:
        """An answer that may be handed out: what is promised, or what nothing is known against.

        `record` is the ledger's, where it has been looked up just now. Raises StaleRead or NotYetVisible (ask again later),
        Superseded, NoSuchKey or ObjectDeleted (do not), LedgerUnavailable, StoreUnavailable or StoreError.
        """
        if query.of_version:
            return self._exact_version(query)
        for _ in range(_TURNS):
            answer = self._turn(query, record or self._ledger.lookup(query.ref))
            if answer is not None:
                return answer
            record = None
        raise StaleRead(query.ref.bucket, query.ref.key, query.ref.etag, "a record that changes faster than it is read")

    def absent(self, ref: ObjectRef) -> None:
        """Returns once the read endpoint no longer serves an object that the ref says was deleted; raises as `answer`."""
        if self._store.head(ref, Endpoint.READ).served is None:
            return
        record = self._ledger.lookup(ref)
        if before_asking(record, ref, False, self._rules) is Verdict.SUPERSEDED:
            _concluded(Verdict.SUPERSEDED, ref)
            raise Superseded(ref.bucket, ref.key, "a delete", "a newer write")
        _concluded(Verdict.STALE, ref)
        raise _late(StaleRead(ref.bucket, ref.key, "a delete", "an object"), Query(ref), record)

    def _turn(self, query: Query, record: Record) -> Answer | None:
        """One look at what the store has to say to the record. None: the record has changed, look again."""
        early = before_asking(record, query.ref, query.latest, self._rules)
        if early is not None:
            raise self._refusal(early, query, record, None)
        kept_etag = sole_etag(record, query.ref, query.latest) if self._cache and query.with_body else None
        if self._cache and kept_etag is not None:
            # To check the names of a plain ref once more would be a fortieth of the hit.
            named = query.ref if query.ref.version_id is None else query.ref.plain()
            kept = self._cache.get(named, kept_etag, query.byte_range)
            if kept is not None:
                _concluded(Verdict.FRESH, query.ref)
                return at_hand(kept.served, kept.body, query.ref)
        expected = expected_etag(record, query.ref, query.latest)
        answer = self._ask(query, query.endpoint, expected, unknown=not record.currents)
        answer, judgement = self._judged(query, record, answer, query.endpoint)
        try:
            if judgement.verdict is Verdict.ASK_ORIGIN:
                opinion = self._second_opinion(query, record, answer)
                if opinion is None:
                    return None
                judgement = opinion
            behind = judgement.verdict in (Verdict.STALE, Verdict.NOT_YET_VISIBLE)
            if behind and self._may_ask_origin(query, answer):
                answer.close()
                answer, judgement = self._judged(query, record, self._ask(query, Endpoint.WRITE, None), Endpoint.WRITE)
            return self._act(query, record, answer, judgement)
        except BaseException:
            answer.close()
            raise

    def _ask(self, query: Query, endpoint: Endpoint, if_match: str | None, *, unknown: bool = False) -> Answer:
        """What the endpoint serves. Of an object that is `unknown` to the ledger, S3 itself says whether the cache has it."""
        if not query.with_body:
            return self._store.head(query.ref, endpoint, with_checksum=query.with_checksum)
        if self._cache and unknown:
            return self._unless_changed(self._cache, query, endpoint, if_match)
        return self._store.get(query.ref, endpoint, if_match=if_match, byte_range=query.byte_range)

    def _unless_changed(self, cache: Cache, query: Query, endpoint: Endpoint, if_match: str | None) -> Answer:
        """What the endpoint serves, or what is kept, where the endpoint says that it serves the same."""
        plain = query.ref.plain()
        known_etag = cache.etag_of(plain)
        if known_etag is not None and if_match in (None, known_etag):
            answer = self._store.get(query.ref, endpoint, if_none_match=known_etag, byte_range=query.byte_range)
            if not answer.unchanged:
                cache.missed()
                return answer
            kept = cache.get(plain, known_etag, query.byte_range)
            if kept is not None:
                return at_hand(kept.served, kept.body, query.ref)
        else:
            cache.missed()
        return self._store.get(query.ref, endpoint, if_match=if_match, byte_range=query.byte_range)

    def _judged(
        self, query: Query, record: Record, answer: Answer, endpoint: Endpoint
    ) -> tuple[Answer, Judgement]:
        """The answer with its verdict. After a failed If-Match a HEAD tells what is there, and what may be had is then fetched."""
        if answer.condition_failed:
            answer = self._store.head(query.ref, endpoint)
        judgement = self._judge(query, record, answer.served, endpoint)
        wanted_body_missing = query.with_body and answer.served is not None and not answer.has_body
        if wanted_body_missing and judgement.verdict in (Verdict.FRESH, Verdict.UNKNOWN, Verdict.UNFINISHED):
            answer = self._ask(query, endpoint, answer.served.etag if answer.served else None)
            if answer.condition_failed:
                return answer, Judgement(Verdict.STALE)
            judgement = self._judge(query, record, answer.served, endpoint)
        return answer, judgement

    def _judge(self, query: Query, record: Record, served: Served | None, endpoint: Endpoint) -> Judgement:
        from_origin = endpoint is Endpoint.WRITE or self._read_endpoint_is_origin
        return judge(record, served, query.ref, query.latest, self._rules, from_origin=from_origin)

    def _second_opinion(self, query: Query, record: Record, answer: Answer) -> Judgement | None:
        """What the write endpoint's HEAD makes of an answer that its dates must settle.

        None where that HEAD brought news for the ledger, after which the record is judged anew.
        """
        origin = self._store.head(query.ref, Endpoint.WRITE)
        judgement = self._judge(query, record, origin.served, Endpoint.WRITE)
        if judgement.verdict in (Verdict.OUTSIDE, Verdict.UNFINISHED):
            answer.close()
            self._record(query, record, origin, judgement)
            return None
        return with_origin(judgement, answer.served, origin.served)

    def _may_ask_origin(self, query: Query, answer: Answer) -> bool:
        wants_origin = self._settings.on_stale == "origin" and not query.barrier and answer.endpoint is Endpoint.READ
        return wants_origin and not self._read_endpoint_is_origin

    def _act(self, query: Query, record: Record, answer: Answer, judgement: Judgement) -> Answer | None:
        verdict = judgement.verdict
        if verdict in (Verdict.FRESH, Verdict.UNKNOWN):
            _check_whole(query, judgement.current, answer)
            _concluded(verdict, query.ref)
            return answer
        if verdict is Verdict.UNFINISHED and self._record(query, record, answer, judgement):
            # A reader of one exact write starts over, and learns from the new record what became of it.
            if answer.served is not None and not (query.ref.exact and not query.latest):
                _concluded(verdict, query.ref, served_etag=answer.served.etag)
                return answer
        elif verdict is Verdict.OUTSIDE:
            self._record(query, record, answer, judgement)
        answer.close()
        if verdict in (Verdict.UNFINISHED, Verdict.OUTSIDE):
            return None
        raise self._refusal(verdict, query, record, answer.served)

    def _record(self, query: Query, record: Record, answer: Answer, judgement: Judgement) -> bool:
        """Tells the ledger what the store has shown; False where the record has moved on meanwhile."""
        served = answer.served
        landed = _landed(served, answer.date)
        if judgement.intent is None:
            text = f"somebody else's {'write' if served else 'delete'} is adopted"
            line(logger, "adopted", query.ref, text, served_etag=landed.etag, version_id=landed.version_id, size=landed.size)
            return _recorded("adopted", self._ledger.adopt(query.ref, record, landed))
        ticket = served.marker.ticket if served is not None and served.marker else judgement.intent.first
        line(
            logger, "observed", query.ref, "an unfinished write is recorded for its writer",
            served_etag=landed.etag, version_id=landed.version_id, size=landed.size, write_id=judgement.intent.write_id,
        )
        return _recorded("observed", self._ledger.observe(query.ref, judgement.intent, ticket, landed))

    def _exact_version(self, query: Query) -> Answer:
        """A ref with a version id names bytes that never change: the ledger need not be asked."""
        ref, version_id = query.ref, query.ref.version_id
        stays = version_id != NULL_VERSION
        kept = self._cache.get(ref, ref.etag, query.byte_range) if self._cache and query.with_body and ref.etag and stays else None
        if kept is not None and not self._ledger.version_is_gone(ref, str(version_id)):
            _concluded(Verdict.FRESH, ref)
            return at_hand(kept.served, kept.body, ref)
        for endpoint in dict.fromkeys((query.endpoint, Endpoint.WRITE)):
            if query.with_body:
                answer = self._store.get(ref, endpoint, byte_range=query.byte_range, version_id=version_id)
            else:
                answer = self._store.head(ref, endpoint, version_id=version_id, with_checksum=query.with_checksum)
            # Some stores ignore an id that they do not know and serve the newest object.
            if answer.head is not None and answer.head.served.version_id == (version_id if stays else None):
                _concluded(Verdict.FRESH, ref)
                return replace(answer, head=answer.head.of_version(version_id))
            answer.close()
            if not self._may_ask_origin(query, answer):
                break
        verdict, error = self._missing_version(ref, str(version_id))
        _concluded(verdict, ref, version_id=version_id)
        raise error

    def _missing_version(self, ref: ObjectRef, version_id: str) -> tuple[Verdict, S3TasksError]:
        if self._ledger.version_is_gone(ref, version_id):
            return Verdict.DELETED, ObjectDeleted(ref.bucket, ref.key)
        if ref.seq is None:
            return Verdict.MISSING, NoSuchKey(ref.bucket, ref.key)
        late = NotYetVisible(ref.bucket, ref.key, f"version {version_id}", None)
        return Verdict.NOT_YET_VISIBLE, _late(late, Query(ref), Record())

    def _refusal(self, verdict: Verdict, query: Query, record: Record, served: Served | None) -> S3TasksError:
        """The error that a verdict means for the caller, and a line in the log."""
        bucket, key = query.ref.bucket, query.ref.key
        current = " or ".join(sorted(current.etag or "a delete" for current in record.currents)) or None
        wanted = query.ref.etag if query.ref.exact and not query.latest else current
        _concluded(verdict, query.ref, etag=wanted, served_etag=served.etag if served else None)
        if verdict is Verdict.MISSING:
            return NoSuchKey(bucket, key)
        if verdict is Verdict.DELETED:
            return ObjectDeleted(bucket, key)
        refusals: dict[Verdict, type[PreconditionFailed]] = {
            Verdict.SUPERSEDED: Superseded,
            Verdict.NOT_YET_VISIBLE: NotYetVisible,
        }
        found = current if verdict is Verdict.SUPERSEDED else served.etag if served else None
        return _late(refusals.get(verdict, StaleRead)(bucket, key, wanted, found), query, record)


def _late(problem: PreconditionFailed, query: Query, record: Record) -> PreconditionFailed:
    """The error, with the number of the write that the read endpoint is waited for to serve."""
    if not query.at_origin:
        numbers = [current.committed for current in promised(record, query.ref, query.latest)]
        problem.committed = max(numbers, default=query.ref.seq)
    return problem


def _concluded(verdict: Verdict, ref: ObjectRef, **fields: str | None) -> None:
    """Tells those who listen; of what is not fresh there is a line in the log, of what is only unknown for who looks closely."""
    if events.listeners:
        events.tell(events.Concluded(verdict.name.lower()))
    if verdict is not Verdict.FRESH:
        level = logging.DEBUG if verdict is Verdict.UNKNOWN else logging.INFO
        line(logger, verdict.name.lower(), ref, verdict.value, level=level, **fields)


def _recorded(what: str, current: Current | None) -> bool:
    """Whether the ledger took what it was told, for those who listen as well."""
    if current is not None and events.listeners:
        events.tell(events.Recorded(what))
    return current is not None


def rules_of(settings: Settings) -> Rules:
    """What the settings say about judging."""
    return Rules(
        reject_outside_writes=settings.outside_writes == "reject",
        strong_store=settings.store_consistency == "strong",
    )


def _check_whole(query: Query, current: Current | None, answer: Answer) -> None:
    """Raises StoreUnavailable where the object served is not as long as the one that was written."""
    ref, served = query.ref, answer.served
    written = current.size if current is not None else ref.size if served is not None and served.etag == ref.etag else None
    if served is None or None in (written, served.size) or written == served.size:
        return
    answer.close()
    raise StoreUnavailable("GetObject", ref.bucket, ref.key, f"{served.size} bytes are served of an object of {written}")


def _landed(served: Served | None, date: int) -> Landed:
    if served is None:
        return Landed(deleted=True, date=date)
    return Landed(etag=served.etag, version_id=served.version_id, size=served.size, date=served.last_modified)
