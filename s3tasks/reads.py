"""Look up, ask S3, judge, and act on the verdict: one attempt at reading an object.

It never waits: what S3 cannot serve yet leaves as StaleRead or NotYetVisible, and whoever wants to wait asks again.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace

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
from s3tasks.refs import ObjectRef
from s3tasks.settings import Settings
from s3tasks.store import Answer, Endpoint, Store
from s3tasks.verdicts import Judgement, Rules, Verdict, before_asking, expected_etag, judge, serves

logger = logging.getLogger(__name__)

# How often one attempt may start over because the record changed under it, or because it changed the record itself.
_TURNS = 4


@dataclass(frozen=True)
class Query:
    """One read: which object (or exact write of it), whether what replaced that write will do, and how much is wanted.

    `byte_range` is first and last byte, both included. Without `with_body` only a HEAD is asked for. `barrier` says that the read
    endpoint itself must serve the object, for readers that know nothing of the ledger.
    """

    ref: ObjectRef
    latest: bool = False
    with_body: bool = True
    byte_range: tuple[int, int | None] | None = None
    barrier: bool = False


class Reader:
    """Reads objects of one store under one ledger."""

    def __init__(self, ledger: Ledger, store: Store, settings: Settings) -> None:
        self._ledger, self._store, self._settings = ledger, store, settings
        self._rules = Rules(
            reject_outside_writes=settings.outside_writes == "reject",
            strong_store=settings.store_consistency == "strong",
        )
        # Without a read endpoint of its own, every answer comes from the endpoint that dates the writes.
        self._read_endpoint_is_origin = not settings.separate_read_endpoint

    def answer(self, query: Query) -> Answer:
        """An answer that may be handed out: what is promised, or what nothing is known against.

        Raises StaleRead or NotYetVisible (ask again later), Superseded, NoSuchKey or ObjectDeleted (do not), LedgerUnavailable,
        StoreUnavailable or StoreError.
        """
        if query.ref.version_id is not None and not query.latest:
            return self._exact_version(query)
        for _ in range(_TURNS):
            answer = self._turn(query)
            if answer is not None:
                return answer
        raise StaleRead(query.ref.bucket, query.ref.key, query.ref.etag, "a record that changes faster than it is read")

    def absent(self, ref: ObjectRef) -> None:
        """Returns once the read endpoint no longer serves an object that the ref says was deleted; raises as `answer`."""
        if self._store.head(ref, Endpoint.READ).served is None:
            return
        record = self._ledger.lookup(ref)
        if before_asking(record, ref, False, self._rules) is Verdict.SUPERSEDED:
            raise Superseded(ref.bucket, ref.key, "a delete", "a newer write")
        raise StaleRead(ref.bucket, ref.key, "a delete", "an object")

    def _turn(self, query: Query) -> Answer | None:
        """One look at ledger and store. None: the record has changed, look again."""
        record = self._ledger.lookup(query.ref)
        early = before_asking(record, query.ref, query.latest, self._rules)
        if early is not None:
            raise self._refusal(early, query, record, None)
        answer = self._ask(query, Endpoint.READ, expected_etag(record, query.ref, query.latest))
        answer, judgement = self._judged(query, record, answer, Endpoint.READ)
        if judgement.verdict is Verdict.ASK_ORIGIN:
            opinion = self._second_opinion(query, record, answer)
            if opinion is None:
                return None
            judgement = opinion
        behind = judgement.verdict in (Verdict.STALE, Verdict.NOT_YET_VISIBLE)
        if behind and self._may_ask_origin(query):
            answer.close()
            answer, judgement = self._judged(query, record, self._ask(query, Endpoint.WRITE, None), Endpoint.WRITE)
        return self._act(query, record, answer, judgement)

    def _ask(self, query: Query, endpoint: Endpoint, if_match: str | None) -> Answer:
        if not query.with_body:
            return self._store.head(query.ref, endpoint)
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
        good = judgement.verdict in (Verdict.FRESH, Verdict.UNKNOWN)
        if good and not _same_object(answer.served, origin.served, judgement.current):
            return replace(judgement, verdict=Verdict.NOT_YET_VISIBLE if answer.served is None else Verdict.STALE)
        return judgement

    def _may_ask_origin(self, query: Query) -> bool:
        wants_origin = self._settings.on_stale == "origin" and not query.barrier
        return wants_origin and not self._read_endpoint_is_origin

    def _act(self, query: Query, record: Record, answer: Answer, judgement: Judgement) -> Answer | None:
        verdict = judgement.verdict
        if verdict in (Verdict.FRESH, Verdict.UNKNOWN):
            _check_whole(query, judgement.current, answer)
            return answer
        if verdict is Verdict.UNFINISHED and self._record(query, record, answer, judgement):
            # A reader of one exact write starts over, and learns from the new record what became of it.
            if answer.served is not None and not (query.ref.exact and not query.latest):
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
            logger.info("%s: adopted somebody else's %s", query.ref.uri, f"write {landed.etag}" if served else "delete")
            return self._ledger.adopt(query.ref, record, landed) is not None
        ticket = served.marker.ticket if served is not None and served.marker else judgement.intent.first
        logger.info("%s: recorded an unfinished write by %s", query.ref.uri, judgement.intent.write_id)
        return self._ledger.observe(query.ref, judgement.intent, ticket, landed) is not None

    def _exact_version(self, query: Query) -> Answer:
        """A ref with a version id names bytes that never change: the ledger need not be asked."""
        ref, version_id = query.ref, query.ref.version_id
        for endpoint in (Endpoint.READ, Endpoint.WRITE):
            if query.with_body:
                answer = self._store.get(ref, endpoint, byte_range=query.byte_range, version_id=version_id)
            else:
                answer = self._store.head(ref, endpoint, version_id=version_id)
            # Some stores ignore an id that they do not know and serve the newest object.
            if answer.served is not None and answer.served.version_id == version_id:
                return answer
            answer.close()
            if not self._may_ask_origin(query):
                break
        if ref.seq is None:
            raise NoSuchKey(ref.bucket, ref.key)
        raise NotYetVisible(ref.bucket, ref.key, f"version {version_id}", None)

    def _refusal(self, verdict: Verdict, query: Query, record: Record, served: Served | None) -> S3TasksError:
        """The error that a verdict means for the caller, and a line in the log."""
        bucket, key = query.ref.bucket, query.ref.key
        logger.info("%s: %s (served %s)", query.ref.uri, verdict.value, served.etag if served else None)
        if verdict is Verdict.MISSING:
            return NoSuchKey(bucket, key)
        if verdict is Verdict.DELETED:
            return ObjectDeleted(bucket, key)
        refusals: dict[Verdict, type[PreconditionFailed]] = {
            Verdict.SUPERSEDED: Superseded,
            Verdict.NOT_YET_VISIBLE: NotYetVisible,
        }
        current = " or ".join(sorted(current.etag or "a delete" for current in record.currents)) or None
        wanted = query.ref.etag if query.ref.exact and not query.latest else current
        found = current if verdict is Verdict.SUPERSEDED else served.etag if served else None
        return refusals.get(verdict, StaleRead)(bucket, key, wanted, found)


def _check_whole(query: Query, current: Current | None, answer: Answer) -> None:
    """Raises StoreUnavailable where the object served is not as long as the one that was written."""
    ref, served = query.ref, answer.served
    written = current.size if current is not None else ref.size if served is not None and served.etag == ref.etag else None
    if served is None or None in (written, served.size) or written == served.size:
        return
    answer.close()
    raise StoreUnavailable("GetObject", ref.bucket, ref.key, f"{served.size} bytes are served of an object of {written}")


def _same_object(served: Served | None, at_origin: Served | None, current: Current | None) -> bool:
    """Whether the answer in hand is of the object that the origin's was found good for."""
    if served is None or at_origin is None:
        return False
    if current is not None and serves(served, current):
        return True
    return (served.etag, served.marker) == (at_origin.etag, at_origin.marker)


def _landed(served: Served | None, date: int) -> Landed:
    if served is None:
        return Landed(deleted=True, date=date)
    return Landed(etag=served.etag, version_id=served.version_id, size=served.size, date=served.last_modified)
