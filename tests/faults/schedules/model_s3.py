"""A key in S3: the history of its versions, the endpoints that serve them more or less late, and what goes wrong on the way.

It never knows the ledger, and never decides what goes wrong: the step under way says so.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from io import BytesIO
from typing import Any

from s3tasks.errors import StoreError, StoreUnavailable, WriteConflict
from s3tasks.evidence import Landed, Served
from s3tasks.refs import Marker, ObjectRef
from s3tasks.store import Answer, Body, Condition, Content, Endpoint, Head, Store
from tests.faults.schedules.plan import FAILED, LATE, LOST, REFUSED

NOT_THERE = -1
FIRST_SECOND = 1_000_000



class _Replayed(BytesIO):
    """A body that the tape hands out once more when the code that had it in hand was cut off, and gave it up."""

    def close(self) -> None:
        self.seek(0)


@dataclass(frozen=True)
class Version:
    """What a key held from one step on. `body` None: nothing; `write`: whose it is, "" for somebody else's; `number`: its place."""

    step: int
    body: bytes | None
    write: str
    marker: Marker | None
    second: int
    number: int = 0

    @property
    def etag(self) -> str:
        return etag_of(self.body or b"")


def etag_of(body: bytes) -> str:
    return hashlib.md5(body, usedforsecurity=False).hexdigest()


class ModelS3(Store):
    """One key behind the interface of `s3tasks.store.Store`.

    `origin_is_late`: the write endpoint serves old versions too (an eventual store behind one endpoint). `if_match_ignored`: as
    STORES.md has it of two servers. `versioned`: the bucket keeps versions, and an unknown one is a 404. `late_deletes`: deletes
    too may arrive late. The scheduler sets `step`, `fault`, `behind` and `second` before each call.
    """

    def __init__(
        self, *, reads_are_late: bool, origin_is_late: bool, if_match_ignored: bool, versioned: bool, late_deletes: bool
    ) -> None:
        self._versioned, self._late_deletes = versioned, late_deletes
        self._reads_are_late, self._origin_is_late, self._if_match_ignored = reads_are_late, origin_is_late, if_match_ignored
        self.history = [Version(NOT_THERE, None, "", None, FIRST_SECOND)]
        self.on_their_way: list[Callable[[], Version]] = []
        self.step, self.fault, self.behind, self.second = 0, "", 0, FIRST_SECOND
        self.asked_by = ""

    @property
    def newest(self) -> Version:
        return self.history[-1]

    def happen(self, body: bytes | None, write: str = "", marker: Marker | None = None) -> Version:
        """The key takes a new version, whoever asked for it."""
        version = Version(self.step, body, write, marker, self.second, len(self.history))
        self.history.append(version)
        return version

    def land(self) -> None:
        """The oldest of the requests that are still on their way arrives."""
        if self.on_their_way:
            self.on_their_way.pop(0)()

    def put(self, ref: ObjectRef, content: Content, marker: Marker, condition: Condition) -> Landed:
        if condition.if_none_match and self.newest.body is not None and self.fault not in (FAILED, LATE):
            raise WriteConflict(ref.bucket, ref.key, str(condition))
        self._carry_out(ref, "PutObject", lambda: self.happen(content.body, marker.write_id, marker))
        etag, size = etag_of(content.body), len(content.body)
        return Landed(etag=etag, version_id=self._id_of(self.newest), size=size, date=self.second)

    def delete(self, ref: ObjectRef, condition: Condition, *, version_id: str | None = None) -> Landed:
        _refuse(condition, version_id)
        if self.fault == LATE and not self._late_deletes:
            self.fault = LOST
        write = self.asked_by
        self._carry_out(ref, "DeleteObject", lambda: self.happen(None, write))
        return Landed(date=self.second, deleted=True)

    def _carry_out(self, ref: ObjectRef, operation: str, change: Callable[[], Version]) -> None:
        if self.fault == REFUSED:
            raise StoreError(operation, ref.bucket, ref.key, "AccessDenied", 403)
        if self.fault == LATE:
            self.on_their_way.append(change)
        elif self.fault != FAILED:
            change()
        if self.fault in (LATE, FAILED, LOST):
            raise StoreUnavailable(operation, ref.bucket, ref.key, "no answer")

    def get(
        self,
        ref: ObjectRef,
        endpoint: Endpoint,
        *,
        if_match: str | None = None,
        if_none_match: str | None = None,
        byte_range: tuple[int, int | None] | None = None,
        version_id: str | None = None,
    ) -> Answer:
        _refuse(byte_range, if_none_match)
        version = self._seen(ref, endpoint, version_id)
        if version.body is None:
            return Answer(None, date=self.second)
        if if_match is not None and if_match != version.etag and not self._if_match_ignored:
            return Answer(None, condition_failed=True, date=self.second)
        body = version.body
        head = Head(self._served(version, endpoint))
        return Answer(head, date=self.second, body=Body(_Replayed(body), len(body), ref), endpoint=endpoint)

    def head(
        self, ref: ObjectRef, endpoint: Endpoint, *, version_id: str | None = None, with_checksum: bool = False,
        options: Mapping[str, Any] | None = None,
    ) -> Answer:
        _refuse(with_checksum, options)
        version = self._seen(ref, endpoint, version_id)
        head = None if version.body is None else Head(self._served(version, endpoint))
        return Answer(head, date=self.second, endpoint=endpoint)

    def _id_of(self, version: Version) -> str | None:
        return f"version-{version.number}" if self._versioned else None

    def _seen(self, ref: ObjectRef, endpoint: Endpoint, version_id: str | None) -> Version:
        if self.fault in (FAILED, LOST):
            raise StoreUnavailable("GetObject", ref.bucket, ref.key, "no answer")
        late = self._origin_is_late if endpoint is Endpoint.WRITE else self._reads_are_late
        seen = self.history[: max(0, len(self.history) - 1 - (self.behind if late else 0)) + 1]
        if version_id is None:
            return seen[-1]
        return next((version for version in seen if self._id_of(version) == version_id), self.history[0])

    def _served(self, version: Version, endpoint: Endpoint) -> Served:
        # A replica may stamp the time of replication, which can be any time until now.
        replicated = endpoint is Endpoint.READ and self._reads_are_late and not self._origin_is_late
        modified = self.second if replicated else version.second
        size = len(version.body or b"")
        return Served(version.etag, self._id_of(version), size, last_modified=modified, marker=version.marker)


def _refuse(*wishes: object) -> None:
    if any(wishes):
        raise NotImplementedError(f"no schedule asks for {wishes}")
