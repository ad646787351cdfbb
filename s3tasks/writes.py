"""Begin, ask S3, commit: how a write or a delete goes through the ledger.

It never waits or tries again by itself: whoever calls again passes the same write id.
"""

from __future__ import annotations

import logging

from s3tasks.errors import LedgerUnavailable, OverlappingWrite, StoreError, WriteConflict
from s3tasks.evidence import Landed
from s3tasks.ledger import Busy, Finished, Ledger, Opened
from s3tasks.refs import Marker, ObjectRef
from s3tasks.store import Condition, Content, Endpoint, Store

logger = logging.getLogger(__name__)


def put(ledger: Ledger, store: Store, ref: ObjectRef, write_id: str, content: Content, condition: Condition) -> ObjectRef:
    """Writes the object once per write id, and returns the ref that names exactly this write.

    Raises OverlappingWrite, WriteConflict, LedgerUnavailable (nothing was written, or the write has landed and its intent is
    open), StoreUnavailable (it may have landed; its intent is open) or StoreError (it was refused).
    """
    begun = ledger.begin(ref, write_id)
    if not isinstance(begun, Opened):
        return _without_asking(ref, begun)
    if not begun.sole:
        landed = _landed_before(store, ref, write_id)
        if landed is not None:
            return _commit(ledger, ref, write_id, begun.ticket, *landed)
    try:
        taken = store.put(ref, content, Marker(write_id, begun.ticket), condition)
    except WriteConflict:
        # An earlier attempt may have landed after we looked, and made the condition false itself.
        landed = None if begun.sole else _landed_before(store, ref, write_id)
        if landed is None:
            _abort(ledger, ref, write_id, begun)
            raise
        return _commit(ledger, ref, write_id, begun.ticket, *landed)
    except StoreError:
        _abort(ledger, ref, write_id, begun)
        raise
    if taken.etag is None:
        # Some stores complete a write without an ETag; a HEAD that shows our marker may name it, anything else may not.
        landed = _landed_before(store, ref, write_id)
        taken = landed[0] if landed is not None and landed[1] == begun.ticket else taken
    return _commit(ledger, ref, write_id, begun.ticket, taken, begun.ticket)


def delete(ledger: Ledger, store: Store, ref: ObjectRef, write_id: str, condition: Condition) -> ObjectRef:
    """Deletes the object once per write id, and leaves a tombstone. The ref returned has `deleted` set. Raises as `put`."""
    begun = ledger.begin(ref, write_id, deletes=True)
    if not isinstance(begun, Opened):
        return _without_asking(ref, begun)
    try:
        taken = store.delete(ref, condition)
    except WriteConflict:
        # An earlier attempt may have deleted the very object that the condition names.
        answer = None if begun.sole else store.head(ref, Endpoint.WRITE)
        if answer is None or answer.served is not None:
            _abort(ledger, ref, write_id, begun)
            raise
        taken = Landed(deleted=True, date=answer.date)
    except StoreError:
        _abort(ledger, ref, write_id, begun)
        raise
    return _commit(ledger, ref, write_id, begun.ticket, taken, begun.ticket)


def _without_asking(ref: ObjectRef, begun: Finished | Busy) -> ObjectRef:
    if isinstance(begun, Busy):
        raise OverlappingWrite(ref.bucket, ref.key, begun.lease_seconds_left)
    if begun.superseded:
        logger.info("%s: a redelivered write has been replaced meanwhile and is not done again", ref.uri)
    return _named(ref, begun.current, begun.current.committed)


def _landed_before(store: Store, ref: ObjectRef, write_id: str) -> tuple[Landed, int] | None:
    """What an earlier attempt of this write has put there, if the write endpoint still serves it, with that attempt's ticket."""
    served = store.head(ref, Endpoint.WRITE).served
    if served is None or served.marker is None or served.marker.write_id != write_id:
        return None
    landed = Landed(etag=served.etag, version_id=served.version_id, size=served.size, date=served.last_modified)
    return landed, served.marker.ticket


def _commit(
    ledger: Ledger, ref: ObjectRef, write_id: str, ticket: int, landed: Landed, landed_ticket: int
) -> ObjectRef:
    current = ledger.commit(ref, write_id, ticket, landed, landed_ticket=landed_ticket)
    logger.info("%s: %s, etag %s", ref.uri, "deleted" if landed.deleted else "written", landed.etag)
    return _named(ref, current, current.committed)


def _named(ref: ObjectRef, landed: Landed, seq: int) -> ObjectRef:
    return ObjectRef(ref.bucket, ref.key, landed.etag, landed.version_id, seq, landed.size, landed.deleted)


def _abort(ledger: Ledger, ref: ObjectRef, write_id: str, begun: Opened) -> None:
    """Ends a refused attempt in the ledger. Earlier ones, which may have landed, stay open."""
    try:
        ledger.abort(ref, write_id, begun.ticket)
    except LedgerUnavailable as problem:
        # The refusal is what the caller must hear of; an intent left open does no harm.
        logger.warning("%s: the intent of a refused write stays open: %s", ref.uri, problem)
