"""One object made from another by S3 itself: pinned to the source's verified version, or verified before it is there.

It never moves a byte through this process, and never waits.
"""

from __future__ import annotations

from dataclasses import dataclass

from s3tasks.errors import StaleRead, StoreError, WriteConflict
from s3tasks.evidence import Landed
from s3tasks.ledger import Ledger
from s3tasks.probes import Probes
from s3tasks.reads import Query, Reader
from s3tasks.refs import Marker, ObjectRef
from s3tasks.store import Condition, Content, Endpoint, Head, Store
from s3tasks.trials import Honours
from s3tasks.writes import LedgerNotes, Write

# What one CopyObject takes (AWS, CopyObject).
MOST_COPIED_AT_ONCE_BYTES = 5 * 1024**3


@dataclass(frozen=True)
class _Copy:
    """Which object is to become which, under which write id, with what, and on what condition."""

    source: Query
    target: ObjectRef
    write_id: str
    content: Content
    condition: Condition


class Copier:
    """Copies objects of one store under one ledger."""

    def __init__(self, ledger: Ledger, store: Store, reader: Reader, probes: Probes) -> None:
        self._ledger, self._store, self._reader, self._probes = ledger, store, reader, probes

    def copy(self, source: Query, target: ObjectRef, write_id: str, content: Content, condition: Condition) -> Write:
        """The write of a copy. `content` is what the copy is to have besides what its source has.

        The source is held against the ledger at the write endpoint, which is the one that copies, after the copy's intent is open:
        a copy that was done already needs its source no more. Raises as a read of the source, or a write of the target.
        """
        job = _Copy(source, target, write_id, content, condition)

        def send(marker: Marker) -> Landed:
            head = self._reader.answer(source).head
            if head is None:
                raise ValueError("an answer that may be handed out serves an object")
            landed = self._sent_or_not(job, head, marker)
            if landed is None:
                raise StaleRead(source.ref.bucket, source.ref.key, head.served.etag, "a source that changes while it is copied")
            return landed

        return Write(target, write_id, send, in_parts=True, options=content.options)

    def _sent_or_not(self, job: _Copy, head: Head, marker: Marker) -> Landed | None:
        """What S3 has made; None where the source had changed, and nothing was made."""
        try:
            return self._sent(job, head, marker)
        except StoreError as refusal:
            if refusal.status not in (404, 412):
                raise
            # Either may be said of the source's pin or of the target's condition.
            if self._changed(job.source.ref, head):
                return None
            if job.condition and refusal.code != "NoSuchBucket":
                raise WriteConflict(job.target.bucket, job.target.key, str(job.condition)) from refusal
            raise

    def _sent(self, job: _Copy, head: Head, marker: Marker) -> Landed | None:
        size_bytes, store = head.served.size or 0, self._store
        if size_bytes == 0:
            # There are no parts of nothing, and what was verified is known: nothing.
            self._require(job, Honours.PUT_IF_MATCH, Honours.PUT_IF_NONE_MATCH)
            return store.put_empty_like(head, job.target, job.content, marker, job.condition)
        pinned = head.served.version_id is not None or self._probes.honours(Honours.COPY_SOURCE_IF_MATCH, job.target)
        if pinned and size_bytes <= MOST_COPIED_AT_ONCE_BYTES:
            self._require(job, Honours.COPY_IF_MATCH, Honours.COPY_IF_NONE_MATCH)
            return store.copy(job.source.ref, head, job.target, job.content, marker, job.condition)
        self._require(job, Honours.PARTS_IF_MATCH, Honours.PARTS_IF_NONE_MATCH)
        notes = LedgerNotes(self._ledger, job.target, job.write_id)
        return store.copy_in_parts(job.source.ref, head, job.target, job.content, marker, job.condition, notes)

    def _require(self, job: _Copy, if_match: Honours, if_none_match: Honours) -> None:
        if job.condition:
            self._probes.require(if_match if job.condition.if_match else if_none_match, job.target)

    def _changed(self, source: ObjectRef, head: Head) -> bool:
        return self._store.head(source, Endpoint.WRITE, version_id=head.served.version_id).served != head.served
