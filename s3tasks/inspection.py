"""What the ledger and both endpoints say of an object right now, and what a read would conclude: for people who look into trouble.

It never changes anything: what a read would record or adopt is only named.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice

from s3tasks.errors import LedgerUnavailable, S3TasksError
from s3tasks.evidence import Record, Served
from s3tasks.ledger_server import LedgerServer
from s3tasks.process import Rooms
from s3tasks.reads import rules_of
from s3tasks.refs import ObjectRef
from s3tasks.settings import Settings
from s3tasks.store import Endpoint
from s3tasks.verdicts import Verdict, before_asking, judge, with_origin

_AT_ONCE = 200

WAITING = (Verdict.STALE, Verdict.NOT_YET_VISIBLE)
"""Verdicts of a read that waits."""

GONE = (Verdict.DELETED, Verdict.MISSING)
"""Verdicts of a read that finds nothing."""

Look = Served | S3TasksError | None
"""What an endpoint serves, None for a 404, or the error that asking it ended in."""


@dataclass(frozen=True)
class Picture:
    """One object: its record, what each endpoint serves, and the verdict of a read.

    `verdict` is None where an endpoint could not be asked. `now_seconds` is by Redis's clock, as the record's numbers are.
    """

    ref: ObjectRef
    record: Record
    at_write: Look
    at_read: Look
    verdict: Verdict | None
    now_seconds: float

    def age_seconds(self, number: int) -> float:
        """How long ago a number of the record was handed out."""
        return max(self.now_seconds - number / 1e6, 0.0)


class Inspector:
    """Looks at objects of one process's ledger and store."""

    def __init__(self, rooms: Rooms, server: LedgerServer, settings: Settings) -> None:
        self._rooms, self._server, self._settings = rooms, server, settings
        self._rules = rules_of(settings)

    def look(self, ref: ObjectRef) -> Picture:
        """All that is to be known of one object. LedgerUnavailable where Redis cannot be asked."""
        return self._picture(ref, self._rooms.ledger.lookup(ref), self._server.now_seconds())

    def look_through(self, bucket: str | None, key_prefix: str, limit: int) -> Iterator[Picture]:
        """The objects that have a record, `limit` of them at most, each as `look` sees it."""
        found = islice(self._server.objects(bucket, key_prefix), limit)
        with ThreadPoolExecutor(self._settings.concurrent_requests) as pool:
            while refs := list(islice(found, _AT_ONCE)):
                now, records = self._server.now_seconds(), self._rooms.ledger.lookup_many(refs)
                yield from pool.map(self._picture, refs, records, [now] * len(refs))

    def records(self, bucket: str | None, key_prefix: str, limit: int) -> Iterator[Picture]:
        """As `look_through`, without asking S3: nothing is served, and there is no verdict."""
        found = islice(self._server.objects(bucket, key_prefix), limit)
        while refs := list(islice(found, _AT_ONCE)):
            now = self._server.now_seconds()
            for ref, record in zip(refs, self._rooms.ledger.lookup_many(refs), strict=True):
                if isinstance(record, LedgerUnavailable):
                    yield _unreadable(ref, record, now)
                else:
                    yield Picture(ref, record, None, None, None, now)

    def _picture(self, ref: ObjectRef, record: Record | LedgerUnavailable, now_seconds: float) -> Picture:
        if isinstance(record, LedgerUnavailable):
            return _unreadable(ref, record, now_seconds)
        at_write = self._served(ref, Endpoint.WRITE)
        at_read = self._served(ref, Endpoint.READ) if self._settings.separate_read_endpoint else at_write
        verdict = self._conclusion(ref, record, at_read, at_write)
        return Picture(ref, record, at_write, at_read, verdict, now_seconds)

    def _served(self, ref: ObjectRef, endpoint: Endpoint) -> Look:
        try:
            return self._rooms.store.head(ref, endpoint).served
        except S3TasksError as problem:
            return problem

    def _conclusion(self, ref: ObjectRef, record: Record, at_read: Look, at_write: Look) -> Verdict | None:
        """What a read would conclude; None where an endpoint that it would ask did not answer."""
        early = before_asking(record, ref, False, self._rules)
        if early is not None:
            return early
        if isinstance(at_read, S3TasksError):
            return None
        separate = self._settings.separate_read_endpoint
        verdict = judge(record, at_read, ref, False, self._rules, from_origin=not separate).verdict
        asks_again = verdict in WAITING and separate and self._settings.on_stale == "origin"
        if verdict is not Verdict.ASK_ORIGIN and not asks_again:
            return verdict
        if isinstance(at_write, S3TasksError):
            return None
        at_origin = judge(record, at_write, ref, False, self._rules, from_origin=True)
        return at_origin.verdict if asks_again else with_origin(at_origin, at_read, at_write).verdict


def _unreadable(ref: ObjectRef, problem: LedgerUnavailable, now_seconds: float) -> Picture:
    """One whose record a newer version keeps: what its error says is all there is to say."""
    return Picture(ref, Record(), problem, problem, None, now_seconds)
