"""Begin, ask S3, commit: how a write, a copy or a delete goes through the ledger.

It never waits or tries again by itself: whoever calls again passes the same write id.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from s3tasks import events
from s3tasks.errors import LedgerUnavailable, OverlappingWrite, RetryableError, S3TasksError, StoreUnavailable, WriteConflict
from s3tasks.evidence import Current, Landed
from s3tasks.ledger import Busy, Commit, Finished, Ledger, Opened
from s3tasks.logbook import line
from s3tasks.refs import Marker, ObjectRef
from s3tasks.store import Condition, Content, Endpoint, SourceError, Store

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Write:
    """One write of one object, done once however often it is tried with this id.

    `send` asks S3, once, to put the object there with the marker it is given. `options` are the write's own (who pays, …), for the
    looks that are taken at the object. `in_parts` says that one attempt may ask for its completion more than once.
    """

    ref: ObjectRef
    write_id: str
    send: Callable[[Marker], Landed]
    deletes: bool = False
    in_parts: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)


def put(store: Store, ref: ObjectRef, write_id: str, content: Content, condition: Condition) -> Write:
    """The write of a body that is at hand."""
    return Write(ref, write_id, lambda marker: store.put(ref, content, marker, condition), options=content.options)


def delete(store: Store, ref: ObjectRef, write_id: str, condition: Condition) -> Write:
    """The delete of an object, which leaves a tombstone."""
    return Write(ref, write_id, lambda _: store.delete(ref, condition), deletes=True)


def carry_out(ledger: Ledger, store: Store, write: Write) -> ObjectRef:
    """Does the write unless it has been done, and returns the ref that names exactly this write.

    Raises OverlappingWrite, WriteConflict, LedgerUnavailable (nothing was written, or the write has landed and its intent is
    open), StoreUnavailable (it may have landed; its intent is open) or another error of `send` (it was refused).
    """
    begun = ledger.begin(write.ref, write.write_id, deletes=write.deletes)
    if isinstance(begun, Opened) and begun.sole:
        return _done(ledger, store, write, begun)
    try:
        done = _done(ledger, store, write, begun)
    except RetryableError:
        # What earlier attempts have left is cleared by the one that ends it: until then it may be another's upload under way.
        raise
    except Exception:
        clear_uploads(ledger, store, write.ref, write.write_id)
        raise
    clear_uploads(ledger, store, write.ref, write.write_id)
    return done


def _done(ledger: Ledger, store: Store, write: Write, begun: Opened | Finished | Busy) -> ObjectRef:
    if not isinstance(begun, Opened):
        return without_asking(write.ref, begun)
    commit = ask(ledger, store, write, begun)
    return committed(commit, ledger.commit(
        commit.ref, commit.write_id, commit.ticket, commit.landed, landed_ticket=commit.landed_ticket
    ))


def without_asking(ref: ObjectRef, begun: Finished | Busy) -> ObjectRef:
    """The ref of a write that is done already; OverlappingWrite where it must wait for its turn."""
    if isinstance(begun, Busy):
        raise OverlappingWrite(ref.bucket, ref.key, begun.lease_seconds_left)
    if begun.superseded:
        line(
            logger, "not_done_again", ref, "a redelivered write has been replaced meanwhile and is not done again",
            etag=begun.current.etag, write_id=begun.current.write_id,
        )
    return _named(ref, begun.current)


def ask(ledger: Ledger, store: Store, write: Write, begun: Opened) -> Commit:
    """Asks S3 for a write whose intent is open, unless an earlier attempt has landed; what is to be committed then.

    Raises as `carry_out`; an attempt that was refused is ended in the ledger.
    """
    if not begun.sole and not write.deletes:
        landed = _landed_before(store, write)
        if landed is not None:
            return Commit(write.ref, write.write_id, begun.ticket, *landed)
    try:
        taken = write.send(Marker(write.write_id, begun.ticket))
    except WriteConflict:
        # An earlier attempt may have landed after we looked, and made the condition false itself. So may the first of several
        # requests to complete one upload, which are tried again within one attempt.
        done = None if begun.sole and not write.in_parts else _done_before(store, write)
        if done is None:
            refuse(ledger, write, begun)
            raise
        landed_ticket = begun.ticket if done[1] is None else done[1]
        return Commit(write.ref, write.write_id, begun.ticket, done[0], landed_ticket)
    except (StoreUnavailable, LedgerUnavailable):
        raise
    except (S3TasksError, SourceError):
        refuse(ledger, write, begun)
        raise
    return Commit(write.ref, write.write_id, begun.ticket, _with_etag(store, write, begun, taken), begun.ticket)


def committed(commit: Commit, current: Current) -> ObjectRef:
    """The ref of a write that the ledger calls current, and a line in the log."""
    landed = commit.landed
    if events.listeners:
        events.tell(events.Committed("delete" if landed.deleted else "write"))
    event = "deleted" if landed.deleted else "written"
    line(
        logger, event, commit.ref, event,
        etag=landed.etag, version_id=landed.version_id, size=landed.size, write_id=commit.write_id,
    )
    return _named(commit.ref, current)


def clear_uploads(ledger: Ledger, store: Store, ref: ObjectRef, write_id: str) -> None:
    """Removes the multipart uploads that attempts of a write which is over have left behind, however it was tried last."""
    try:
        for upload_id, noted_for in ledger.lookup(ref).uploads:
            if noted_for == write_id:
                store.abort_upload(ref, upload_id)
                ledger.upload_is_over(ref, upload_id)
    except S3TasksError as problem:
        logger.warning("%s: parts of an upload that was cut off could not be removed: %s", ref, problem)


class LedgerNotes:
    """Has the ledger remember the multipart uploads of a write."""

    def __init__(self, ledger: Ledger, ref: ObjectRef, write_id: str) -> None:
        self._ledger, self._ref, self._write_id = ledger, ref, write_id

    def begun(self, upload_id: str) -> None:
        """The upload exists, and has no parts yet. LedgerUnavailable: then it must not get any."""
        self._ledger.note_upload(self._ref, self._write_id, upload_id)

    def over(self, upload_id: str) -> None:
        """The upload has been completed or aborted."""
        try:
            self._ledger.upload_is_over(self._ref, upload_id)
        except LedgerUnavailable as problem:
            # What S3 has done is what counts; whoever looks for leftovers finds this one gone.
            logger.warning("%s: a finished upload stays noted: %s", self._ref, problem)


def _done_before(store: Store, write: Write) -> tuple[Landed, int | None] | None:
    """What an earlier attempt has done that makes this one's condition false: its bytes, or that nothing is there any more."""
    if not write.deletes:
        return _landed_before(store, write)
    answer = store.head(write.ref, Endpoint.WRITE)
    return None if answer.served is not None else (Landed(deleted=True, date=answer.date), None)


def _landed_before(store: Store, write: Write) -> tuple[Landed, int] | None:
    """What an earlier attempt of this write has put there, if the write endpoint still serves it, with that attempt's ticket."""
    served = store.head(write.ref, Endpoint.WRITE, options=write.options).served
    if served is None or served.marker is None or served.marker.write_id != write.write_id:
        return None
    landed = Landed(etag=served.etag, version_id=served.version_id, size=served.size, date=served.last_modified)
    return landed, served.marker.ticket


def _with_etag(store: Store, write: Write, begun: Opened, taken: Landed) -> Landed:
    """Some stores complete a write without an ETag; a HEAD that shows our marker may name it, anything else may not."""
    if taken.etag is not None or taken.deleted:
        return taken
    landed = _landed_before(store, write)
    return landed[0] if landed is not None and landed[1] == begun.ticket else taken


def _named(ref: ObjectRef, current: Current) -> ObjectRef:
    return ObjectRef(
        ref.bucket, ref.key, current.etag, current.version_id, current.committed, current.size, current.deleted
    )


def refuse(ledger: Ledger, write: Write, begun: Opened) -> None:
    """Ends a refused attempt in the ledger. Earlier ones, which may have landed, stay open."""
    try:
        ledger.abort(write.ref, write.write_id, begun.ticket)
    except LedgerUnavailable as problem:
        # The refusal is what the caller must hear of; an intent left open does no harm.
        logger.warning("%s: the intent of a refused write stays open: %s", write.ref, problem)
