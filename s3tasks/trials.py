"""What an endpoint does with conditions, tried on scratch objects that are removed again.

It never says what that means for anybody, and never takes an endpoint's word for anything.
"""

from __future__ import annotations

import enum
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from s3tasks.errors import S3TasksError, StoreError, WriteConflict
from s3tasks.evidence import Landed
from s3tasks.refs import Marker, ObjectRef
from s3tasks.store import Condition, Content, Endpoint, Store

logger = logging.getLogger(__name__)

RIVALS = 8
"""How many writers come at once where one may win."""

SCRATCH_BODY = b"s3tasks asks what this store does with conditions; safe to delete"
WRONG_ETAG = "00000000000000000000000000000000"


class Honours(enum.Enum):
    """Something that an endpoint may honour or ignore; the text is for people."""

    PUT_IF_NONE_MATCH = "if_none_match of a write"
    PUT_IF_MATCH = "if_match of a write"
    DELETE_IF_MATCH = "if_match of a delete"
    COPY_IF_NONE_MATCH = "if_none_match of a copy"
    COPY_IF_MATCH = "if_match of a copy"
    PARTS_IF_NONE_MATCH = "if_none_match of a write in parts"
    PARTS_IF_MATCH = "if_match of a write in parts"
    COPY_SOURCE_IF_MATCH = "the pin of a copy to its source"


@dataclass(frozen=True)
class Heard:
    """What came of a trial: whether the condition was honoured, and what the endpoint answered to what, for people."""

    honoured: bool
    said: str


@dataclass(frozen=True)
class Reply:
    """The answer to one request: whether it was `refused` by the very status that says that a condition does not hold."""

    refused: bool
    said: str


def tried(what: Honours, store: Store, ref: ObjectRef) -> Heard:
    """Tries it on a scratch object of that name, which nobody else uses, and removes that again.

    Raises StoreUnavailable or StoreError where the trial itself could not be made.
    """
    scratch = Scratch(store, ref)
    try:
        return _TRIALS[what](scratch)
    finally:
        problem = scratch.remove()
        if problem is not None:
            logger.warning("%s: a scratch object could not be removed: %s", ref, problem)


class Scratch:
    """One object to try things on, and what was written there."""

    def __init__(self, store: Store, ref: ObjectRef) -> None:
        self.store, self.ref = store, ref
        self._versions: list[str | None] = []
        # Requests that have not been answered, perhaps never will be, and may have been carried out.
        self._unanswered: list[object] = []
        self._tickets = 0

    def put(self, condition: Condition, body: bytes = SCRATCH_BODY) -> Landed:
        """Writes the object."""
        return self._kept(lambda: self.store.put(self.ref, Content(body), self.next_marker(), condition))

    def put_in_parts(self, condition: Condition) -> Landed:
        """Writes the object as a multipart upload of one small part."""
        content = Content(SCRATCH_BODY)
        return self._kept(lambda: self.store.put_in_parts(self.ref, content, self.next_marker(), condition, _Unnoted()))

    def copy(self, condition: Condition, source_etag: str | None = None) -> Landed:
        """Copies the object onto itself, which S3 allows where metadata change."""
        head = self.store.head(self.ref, Endpoint.WRITE).head
        if head is None:
            raise StoreError("CopyObject", self.ref.bucket, self.ref.key, "NotVisible", message="a scratch object has vanished")
        pinned = head.with_etag(source_etag or head.served.etag)
        return self._kept(
            lambda: self.store.copy(self.ref, pinned, self.ref, Content(), self.next_marker(), condition)
        )

    def delete(self, condition: Condition) -> Landed:
        """Deletes the object, which in a versioned bucket leaves a marker that `remove` removes, too."""
        return self._kept(lambda: self.store.delete(self.ref, condition))

    @property
    def landed(self) -> bool:
        """Whether a write of it is known to have been carried out."""
        return bool(self._versions)

    def remove(self) -> S3TasksError | None:
        """Deletes what was written, each version of it; the error where that was refused."""
        try:
            for version_id in dict.fromkeys(self._versions):
                self.store.delete(self.ref, Condition(), version_id=version_id)
            for _ in self._unanswered:
                self._remove_what_is_served()
        except S3TasksError as problem:
            return problem
        return None

    def next_marker(self) -> Marker:
        """The marker of the next write, which no other one has."""
        self._tickets += 1
        return Marker("probe", self._tickets)

    def _kept(self, attempt: Callable[[], Landed]) -> Landed:
        request = object()
        self._unanswered.append(request)
        try:
            landed = attempt()
            self._versions.append(landed.version_id)
        except (StoreError, WriteConflict):
            self._unanswered.remove(request)
            raise
        self._unanswered.remove(request)
        return landed

    def _remove_what_is_served(self) -> None:
        served = self.store.head(self.ref, Endpoint.WRITE).served
        if served is not None:
            self.store.delete(self.ref, Condition(), version_id=served.version_id)


class _Unnoted:
    """Nobody needs to remember a probe's upload: it is over at once."""

    def begun(self, upload_id: str) -> None:
        """Begun."""

    def over(self, upload_id: str) -> None:
        """Over."""


def reply_to(attempt: Callable[[], object]) -> Reply:
    """What the endpoint answers: 412 (or the 404 of a condition on a missing key) refuses, any other no does not."""
    try:
        attempt()
    except WriteConflict as conflict:
        return Reply(True, str(getattr(conflict.__cause__, "status", 412)))
    except StoreError as refusal:
        return Reply(refusal.status == 412, str(refusal.status or refusal.code))
    return Reply(False, "carried out")


def _one_winner(scratch: Scratch) -> Heard:
    """Of writers that come at once, each on condition that nothing is there, exactly one may win; and nobody after it."""
    fresh = Condition(if_none_match=True)

    def write(_: object = None) -> Reply:
        return reply_to(lambda: scratch.put(fresh))

    with ThreadPoolExecutor(RIVALS) as pool:
        replies = list(pool.map(write, range(RIVALS)))
    winners, after = sum(not reply.refused for reply in replies), write()
    return Heard(winners == 1 and after.refused, f"{winners} of {RIVALS} at once got through; another one then: {after.said}")


def _if_match(write: Callable[[Condition], Landed], scratch: Scratch) -> Heard:
    """The wrong ETag is refused, the right one is not."""
    etag = scratch.put(Condition()).etag
    wrong = reply_to(lambda: write(Condition(if_match=WRONG_ETAG)))
    if not wrong.refused:
        return Heard(False, f"wrong ETag: {wrong.said}")
    right = reply_to(lambda: write(Condition(if_match=etag)))
    said = f"wrong ETag: {wrong.said}, right ETag: {right.said}"
    if not right.refused:
        return Heard(right.said == "carried out", said)
    bare = reply_to(lambda: write(Condition(if_match=etag, quoted=False)))
    return Heard(False, f"{said}, right ETag without its quotes: {bare.said}")


def _if_none_match(write: Callable[[Condition], Landed], scratch: Scratch) -> Heard:
    scratch.put(Condition())
    reply = reply_to(lambda: write(Condition(if_none_match=True)))
    return Heard(reply.refused, f"on a key that exists: {reply.said}")


def _copy_source_if_match(scratch: Scratch) -> Heard:
    scratch.put(Condition())
    reply = reply_to(lambda: scratch.copy(Condition(), source_etag=WRONG_ETAG))
    return Heard(reply.refused, f"wrong ETag: {reply.said}")


_TRIALS: dict[Honours, Callable[[Scratch], Heard]] = {
    Honours.PUT_IF_NONE_MATCH: _one_winner,
    Honours.PUT_IF_MATCH: lambda scratch: _if_match(scratch.put, scratch),
    Honours.DELETE_IF_MATCH: lambda scratch: _if_match(scratch.delete, scratch),
    Honours.COPY_IF_NONE_MATCH: lambda scratch: _if_none_match(scratch.copy, scratch),
    Honours.COPY_IF_MATCH: lambda scratch: _if_match(scratch.copy, scratch),
    Honours.PARTS_IF_NONE_MATCH: lambda scratch: _if_none_match(scratch.put_in_parts, scratch),
    Honours.PARTS_IF_MATCH: lambda scratch: _if_match(scratch.put_in_parts, scratch),
    Honours.COPY_SOURCE_IF_MATCH: _copy_source_if_match,
}
