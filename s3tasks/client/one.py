"""The verbs for one object whose body is at hand or read piece by piece.

It never leaves the two rules out: a write goes through the ledger, a read is held against it.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, BinaryIO, cast

from s3tasks.client.arguments import (
    Body,
    RefLike,
    body_bytes,
    byte_range_of,
    condition_of,
    content_of,
    is_stream,
    truth,
)
from s3tasks.client.caller import Caller, described, verb
from s3tasks.client.sending import Progress, as_it_comes, callers_errors, in_parts, versions_removal
from s3tasks.errors import PayloadTooLarge
from s3tasks.reads import Query
from s3tasks.refs import ObjectRef
from s3tasks.store import ByteRange, Condition, Content
from s3tasks.streams import ObjectStream
from s3tasks.trials import Honours
from s3tasks.writes import delete, put

_STREAM_BUFFER_BYTES = 256 * 1024


class ObjectVerbs(Caller):
    """Write, read, head, delete, copy and open one object."""

    @verb
    def write(
        self,
        body: Body,
        ref: RefLike,
        *,
        if_match: str | None = None,
        if_none_match: bool = False,
        content_type: str | None = None,
        metadata: Mapping[str, str] | None = None,
        put_options: Mapping[str, Any] | None = None,
        progress: Progress | None = None,
        wait: float | None = None,
    ) -> ObjectRef:
        """Writes the object and returns the ref of exactly this write.

        `body` is bytes, text (written as UTF-8), or a file open for reading in binary mode: one of `multipart_threshold_bytes` or
        more is written in parallel parts, in bounded memory (one that cannot seek has room in 10,000 parts of `part_bytes`).
        `progress` is told the bytes done so far, and the bytes in all (None where that is unknown); what it raises ends the write.

        `if_match` (an ETag) or `if_none_match` ask S3 to write only if that holds; WriteConflict where it does not, StoreError
        where the endpoint does not honour it. `metadata` is user metadata, `put_options` are further parameters of S3's PutObject
        by their names there (of a file: those that CreateMultipartUpload takes, too). Where writes take turns
        (`on_overlap="serialize"`), OverlappingWrite is raised while another one is under way, after `wait` seconds. A stream that
        cannot seek is read once: StoreUnavailable then means that the caller must begin again.
        """
        target = self._allowed(ref).plain()
        condition = condition_of(if_match, if_none_match)
        if is_stream(body):
            content = content_of(("PutObject", "CreateMultipartUpload"), content_type, metadata, put_options)
            return self._write_stream(cast("BinaryIO", body), target, content, condition, progress, wait)
        content = content_of(("PutObject",), content_type, metadata, put_options, body_bytes(body))
        self._require(condition, target, Honours.PUT_IF_MATCH, Honours.PUT_IF_NONE_MATCH)
        write_id = self._write_ids(target)
        return self._persist(put(self._rooms().store, target, write_id, content, condition), wait)

    def _write_stream(
        self, stream: BinaryIO, target: ObjectRef, content: Content, condition: Condition, progress: Progress | None,
        wait: float | None,
    ) -> ObjectRef:
        incoming = as_it_comes(stream, self.settings.multipart_threshold_bytes)
        kinds = (Honours.PARTS_IF_MATCH, Honours.PARTS_IF_NONE_MATCH)
        if incoming.whole:
            kinds = (Honours.PUT_IF_MATCH, Honours.PUT_IF_NONE_MATCH)
        self._require(condition, target, *kinds)
        rooms, write_id = self._rooms(), self._write_ids(target)
        if incoming.whole:
            written = self._persist(put(rooms.store, target, write_id, replace(content, body=incoming.head), condition), wait)
            if progress:
                progress(len(incoming.head), len(incoming.head))
            return written
        write = in_parts(rooms, target, write_id, incoming, content, condition, progress)
        with callers_errors():
            return self._persist(write, wait, repeatable=incoming.start is not None)

    @verb
    def delete(
        self, ref: RefLike, *, if_match: str | None = None, this_version: bool = False, wait: float | None = None
    ) -> ObjectRef:
        """Deletes the object (where the bucket keeps versions: puts a delete marker) and returns a ref with `deleted` set.

        With `this_version`, exactly the version that the ref names is removed for good instead, and the ref returned is of what is
        current then. A missing key is no error, as in S3. `if_match` and `wait` are as for `write`.
        """
        wanted = self._allowed(ref)
        condition = condition_of(if_match, False)
        self._require(condition, wanted, Honours.DELETE_IF_MATCH, Honours.DELETE_IF_MATCH)
        rooms, target = self._rooms(), wanted.plain()
        if not truth("this_version", this_version):
            return self._persist(delete(rooms.store, target, self._write_ids(target), condition), wait)
        if wanted.version_id is None or condition:
            raise ValueError("this_version needs a ref with a version id, and takes no if_match: a version never changes")
        return self._persist(versions_removal(rooms, wanted, self._write_ids(target)), wait)

    @verb
    def copy(
        self,
        source: RefLike,
        target: RefLike,
        *,
        latest: bool = False,
        if_match: str | None = None,
        if_none_match: bool = False,
        content_type: str | None = None,
        metadata: Mapping[str, str] | None = None,
        put_options: Mapping[str, Any] | None = None,
        wait: float | None = None,
    ) -> ObjectRef:
        """Has S3 make `target` from `source`, of any size, and returns the ref of exactly this write. No byte passes through here.

        The source is held against the ledger like a read of it (`latest` as there), at the write endpoint. The copy keeps its
        content type, system metadata, user metadata and tags, but for what is named here. Conditions, `put_options` (of CopyObject
        and CreateMultipartUpload) and `wait` are as for `write`. Raises also what a read of the source raises.
        """
        wanted = Query(self._allowed(source), truth("latest", latest), with_body=False, at_origin=True)
        place = self._allowed(target).plain()
        condition = condition_of(if_match, if_none_match)
        content = content_of(("CopyObject", "CreateMultipartUpload"), content_type, metadata, put_options)
        return self._persist(self._rooms().copier.copy(wanted, place, self._write_ids(place), content, condition), wait)

    @verb
    def read(
        self,
        ref: RefLike,
        *,
        byte_range: tuple[int, int | None] | None = None,
        latest: bool = False,
        wait: float | None = None,
        limit_bytes: int | None = None,
    ) -> bytes:
        """The object's bytes: for a ref that a write returned exactly that write's, else those of the current write.

        `latest` takes whatever replaced the write that the ref names. `byte_range` is the first and the last byte, both included; a
        last of None reads to the end. A body over `limit_bytes` is PayloadTooLarge, and is not fetched. Raises StaleRead or
        NotYetVisible while S3 does not serve what was promised (after `wait` seconds), Superseded, NoSuchKey or ObjectDeleted.
        """
        query = Query(self._allowed(ref), truth("latest", latest), byte_range=byte_range_of(byte_range))
        reader = self._rooms().reader

        def admit(size_bytes: int) -> None:
            if limit_bytes is not None and size_bytes > limit_bytes:
                raise PayloadTooLarge("read", size_bytes, limit_bytes)

        return self._patiently(query.ref, lambda: reader.read(query, admit), wait)

    @verb
    def head(self, ref: RefLike, *, latest: bool = False, wait: float | None = None) -> dict[str, Any]:
        """What is known of the object besides its bytes, as a JSON dict: `etag`, `version_id`, `size` in bytes, `last_modified`
        (seconds since 1970), `content_type`, `metadata`. Held against the ledger, waits and raises as `read`."""
        query = Query(self._allowed(ref), truth("latest", latest), with_body=False)
        reader = self._rooms().reader
        return self._patiently(query.ref, lambda: dict(described(reader.answer(query).served)), wait)

    @verb
    def open(self, ref: RefLike, *, latest: bool = False, wait: float | None = None) -> BinaryIO:
        """The object as a readable, seekable binary stream, fetched as it is read; close it, or use it in a `with`.

        All of it is of one version: a broken answer is asked for again from where it broke, on the same ETag, and an object that
        is replaced meanwhile is Superseded (in a versioned bucket its version is read on). `wait` holds for each time S3 is asked.
        Raises as `read`, while reading, too.
        """
        query = Query(self._allowed(ref), truth("latest", latest))
        reader = self._rooms().reader
        opened = self._patiently(query.ref, lambda: reader.answer(query), wait)
        version_id = opened.served.version_id if opened.served else None
        wanted = query.ref if version_id is None else ObjectRef(
            query.ref.bucket, query.ref.key, version_id=version_id, seq=query.ref.seq
        )

        def fetch(byte_range: ByteRange) -> Any:
            again = Query(wanted, query.latest and version_id is None, byte_range=byte_range)
            return self._patiently(wanted, lambda: reader.answer(again), wait)

        stream = ObjectStream(query.ref, opened, fetch, self.settings.store_attempts)
        return io.BufferedReader(stream, _STREAM_BUFFER_BYTES)

    @verb
    def wait_visible(self, ref: RefLike, *, wait: float | None = None) -> ObjectRef:
        """Returns the ref once the read endpoint serves it (for the ref of a delete: serves nothing any more).

        A barrier before readers that know nothing of the ledger. Raises as `read`, NotYetVisible or StaleRead after `wait` seconds.
        """
        wanted = self._allowed(ref)
        reader = self._rooms().reader
        if wanted.deleted:
            self._patiently(wanted, lambda: reader.absent(wanted), wait)
        else:
            query = Query(wanted, with_body=False, barrier=True)
            self._patiently(query.ref, lambda: reader.answer(query), wait)
        return wanted
