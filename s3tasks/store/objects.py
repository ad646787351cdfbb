"""S3 behind its one or two endpoints: one method for each question that this package asks of it.

It never judges what it is served, and never tries a write twice: an attempt is one request, counted by the ledger's tickets.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any, BinaryIO
from urllib.parse import urlencode

from s3tasks.errors import S3TasksError, StoreError, StoreUnavailable
from s3tasks.evidence import Landed
from s3tasks.refs import Marker, ObjectRef
from s3tasks.settings import Settings
from s3tasks.store.answers import (
    ByteRange,
    Condition,
    Content,
    Endpoint,
    Head,
    date_of,
    exact_version,
    head_of,
    landed_of,
)
from s3tasks.store.bodies import Answer, Body, cut_of, measured
from s3tasks.store.clients import Clients
from s3tasks.store.door import NOT_IMPLEMENTED, call, conflicts, told
from s3tasks.store.downloads import download
from s3tasks.store.model import known_to
from s3tasks.store.parts import PartsRequest, UploadNotes, abort_upload, copy_in_parts, upload, upload_at_once
from s3tasks.store.transfers import Progress

logger = logging.getLogger(__name__)

MOST_DELETED_AT_ONCE = 1000
"""How many keys one DeleteObjects takes (AWS, DeleteObjects)."""

# What an XML 1.0 document cannot carry, and so no DeleteObjects either.
_NOT_IN_XML = frozenset(map(chr, [*range(9), 11, 12, *range(14, 32), 0xFFFE, 0xFFFF]))
_METHOD_NOT_ALLOWED = 405
_NOT_MODIFIED = 304


class Store:
    """S3, shared by the threads of one process. Every method raises StoreUnavailable or StoreError as the package says.

    One that `insists` takes an endpoint's refusal of If-Match for an answer. With `required_checksums_only`, botocore sends no
    checksum that S3 does not ask for, and looks at none.
    """

    def __init__(self, settings: Settings, *, insists: bool = False, required_checksums_only: bool = False) -> None:
        self._settings, self._insists = settings, insists
        self._clients = Clients(settings, required_checksums_only=required_checksums_only)
        self._writer, self._reader = self._clients.writer, self._clients.reader

    @property
    def write_endpoint_url(self) -> str:
        """Where writes go, wherever boto3 has it from."""
        return str(self._writer.meta.endpoint_url)

    def put(self, ref: ObjectRef, content: Content, marker: Marker, condition: Condition) -> Landed:
        """Writes the object with our marker in its metadata, in one attempt.

        Raises WriteConflict where S3 says that the condition does not hold.
        """
        given = {**content.parameters(marker, ref), **condition.parameters(), "Body": content.body}
        with conflicts(ref, condition), call("PutObject", ref):
            said = self._clients.ask(Endpoint.WRITE, "PutObject", ref, **given)
        return landed_of(said, etag=said.get("ETag"), size=len(content.body))

    def upload(
        self, ref: ObjectRef, stream: BinaryIO, content: Content, marker: Marker, condition: Condition, notes: UploadNotes,
        progress: Progress | None = None,
    ) -> Landed:
        """Writes what the stream has left, `multipart_threshold_bytes` or more, in parallel parts with our marker. Raises as `put`.

        Raises SourceError where reading the stream, or `progress`, raised something else: nothing has been written then.
        """
        request = PartsRequest(ref, content.parameters(marker, ref), condition, notes)
        return upload(self._clients, request, stream, self._settings, progress)

    def put_in_parts(
        self, ref: ObjectRef, content: Content, marker: Marker, condition: Condition, notes: UploadNotes
    ) -> Landed:
        """Writes a body that is at hand as a multipart upload of one part. Raises as `put`."""
        request = PartsRequest(ref, content.parameters(marker, ref), condition, notes)
        return upload_at_once(self._clients, request, content.body)

    def abort_upload(self, ref: ObjectRef, upload_id: str) -> None:
        """Removes a multipart upload and its parts; one that is gone already is no error."""
        abort_upload(self._clients, ref, upload_id)

    def copy(
        self, source: ObjectRef, head: Head, target: ObjectRef, content: Content, marker: Marker, condition: Condition
    ) -> Landed:
        """Has S3 copy the object that `head` describes, in one request pinned to its ETag and version, with our marker.

        Whether the endpoint honours the pin is for the caller to know. Raises WriteConflict where the target's condition does not
        hold, StoreError (412) where the source is another object by now.
        """
        given = {**self._source(source, head), "MetadataDirective": "REPLACE", **_kept(head, content, marker, target)}
        if "Tagging" in content.options:
            # Without the directive AWS keeps the source's tags and says nothing.
            given["TaggingDirective"] = "REPLACE"
        with call("CopyObject", target):
            said = self._writer.copy_object(**self._clients.parameters("CopyObject", target, **given, **condition.parameters()))
        return landed_of(said, etag=said.get("CopyObjectResult", {}).get("ETag"), size=head.served.size)

    def put_empty_like(
        self, head: Head, target: ObjectRef, content: Content, marker: Marker, condition: Condition
    ) -> Landed:
        """Writes an empty object that has what `head` describes: the copy of an empty one. Raises as `put`."""
        given = {**known_to("PutObject", _kept(head, content, marker, target)), **condition.parameters(), "Body": b""}
        with conflicts(target, condition), call("PutObject", target):
            said = self._clients.ask(Endpoint.WRITE, "PutObject", target, **given)
        return landed_of(said, etag=said.get("ETag"), size=0)

    def copy_in_parts(
        self, source: ObjectRef, head: Head, target: ObjectRef, content: Content, marker: Marker, condition: Condition,
        notes: UploadNotes,
    ) -> Landed | None:
        """Has S3 copy an object of any size; completed only if the source, looked at again, is still what `head` describes.

        None where it is not: nothing has been written then.
        """
        kept = _kept(head, content, marker, target)
        if head.tag_count and "Tagging" not in kept:
            kept["Tagging"] = self._tags(source, head)

        def still_the_same() -> bool:
            return self.head(source, Endpoint.WRITE, version_id=head.served.version_id).served == head.served

        request = PartsRequest(target, known_to("CreateMultipartUpload", kept), condition, notes)
        pin, size_bytes = self._source(source, head), head.served.size or 0
        return copy_in_parts(self._clients, request, pin, size_bytes, self._settings, still_the_same)

    def _source(self, source: ObjectRef, head: Head) -> dict[str, Any]:
        version = {} if head.served.version_id is None else {"VersionId": head.served.version_id}
        pin = {} if head.served.etag is None else {"CopySourceIfMatch": f'"{head.served.etag}"'}
        return {"CopySource": {"Bucket": source.bucket, "Key": source.key, **version}, **pin}

    def _tags(self, source: ObjectRef, head: Head) -> str:
        version = {} if head.served.version_id is None else {"VersionId": head.served.version_id}
        with call("GetObjectTagging", source):
            said = self._clients.mover.get_object_tagging(**self._clients.parameters("GetObjectTagging", source, **version))
        return urlencode([(tag["Key"], tag["Value"]) for tag in said.get("TagSet", [])])

    def delete(self, ref: ObjectRef, condition: Condition, *, version_id: str | None = None) -> Landed:
        """Deletes the object (in a versioned bucket: puts a delete marker), in one attempt. A missing key is no error in S3.

        With a version id, that version (or delete marker) is removed for good instead.
        """
        version = {} if version_id is None else {"VersionId": version_id}
        with conflicts(ref, condition), call("DeleteObject", ref):
            said = self._clients.ask(Endpoint.WRITE, "DeleteObject", ref, **version, **condition.parameters())
        return Landed(version_id=exact_version(said.get("VersionId")), date=date_of(said), deleted=True)

    def delete_many(self, refs: Sequence[ObjectRef]) -> list[Landed | S3TasksError]:
        """Deletes up to MOST_DELETED_AT_ONCE objects of one bucket in one request; what became of each, in order.

        A key that an XML document cannot carry is deleted by itself.
        """
        fits = [ref for ref in refs if not _NOT_IN_XML & set(ref.key)]
        outcomes = self._delete_batch(fits) if fits else {}
        return [outcomes[ref.key] if ref.key in outcomes else self._deleted(ref) for ref in refs]

    def _deleted(self, ref: ObjectRef) -> Landed | S3TasksError:
        try:
            return self.delete(ref, Condition())
        except S3TasksError as problem:
            return problem

    def _delete_batch(self, refs: Sequence[ObjectRef]) -> dict[str, Landed | S3TasksError]:
        bucket = refs[0].bucket
        request = {"Bucket": bucket, "Delete": {"Objects": [{"Key": key} for key in dict.fromkeys(ref.key for ref in refs)]}}
        with call("DeleteObjects", refs[0]):
            said = self._writer.delete_objects(**request, **self._clients.carried("DeleteObjects"))
        outcomes: dict[str, Landed | S3TasksError] = {
            deleted["Key"]: Landed(version_id=exact_version(deleted.get("DeleteMarkerVersionId")), date=date_of(said), deleted=True)
            for deleted in said.get("Deleted", [])
        }
        for refused in said.get("Errors", []):
            outcomes[refused["Key"]] = _refused(bucket, refused)
        unanswered = {"Code": "NotAnswered", "Message": "the answer to DeleteObjects does not mention the key"}
        return {ref.key: outcomes.get(ref.key) or _refused(bucket, {"Key": ref.key, **unanswered}) for ref in refs}

    def get(
        self,
        ref: ObjectRef,
        endpoint: Endpoint,
        *,
        if_match: str | None = None,
        if_none_match: str | None = None,
        byte_range: ByteRange | None = None,
        version_id: str | None = None,
    ) -> Answer:
        """Asks for the object, or for `byte_range` of it (first and last byte, both included; no last: to the end).

        An endpoint that refuses If-Match altogether is asked again without it, unless this store `insists`.
        """
        parameters: dict[str, Any] = {} if version_id is None else {"VersionId": version_id}
        if byte_range is not None:
            first, last = byte_range
            parameters["Range"] = f"bytes={first}-{'' if last is None else last}"
        condition = {}
        if if_none_match is not None:
            condition["IfNoneMatch"] = f'"{if_none_match}"'
        elif if_match is not None and self._settings.send_if_match:
            condition["IfMatch"] = f'"{if_match}"'
        try:
            return self._ask("GetObject", ref, endpoint, {**parameters, **condition}, byte_range)
        except StoreError as problem:
            # botocore stumbles (TypeError) over a 304 that names the checksum of a body which is not there.
            refused = problem.status in (400, NOT_IMPLEMENTED) or (problem.code == "TypeError" and if_none_match is not None)
            if self._insists or not condition or not refused:
                raise
        logger.warning("%s refuses %s (see send_if_match): asked without", ref, " and ".join(condition))
        return self._ask("GetObject", ref, endpoint, parameters, byte_range)

    def head(
        self, ref: ObjectRef, endpoint: Endpoint, *, version_id: str | None = None, with_checksum: bool = False,
        options: Mapping[str, Any] | None = None,
    ) -> Answer:
        """What a GET would be served, without its body. `options` are those of a write that bear on a HEAD, too (who pays, …)."""
        parameters = known_to("HeadObject", options or {})
        if version_id is not None:
            parameters["VersionId"] = version_id
        if with_checksum:
            parameters["ChecksumMode"] = "ENABLED"
        return self._ask("HeadObject", ref, endpoint, parameters)

    def download(
        self, ref: ObjectRef, head: Head, endpoint: Endpoint, file: BinaryIO, progress: Progress | None = None
    ) -> None:
        """Writes the whole object that `head` describes into the empty file, in parallel ranges pinned to its ETag and version.

        Raises StaleRead where the endpoint serves something else meanwhile, SourceError where `progress` raised something.
        """
        client = self._clients.mover if endpoint is Endpoint.WRITE else self._reader
        version = {} if head.served.version_id is None else {"VersionId": head.served.version_id}

        def ask(given: dict[str, Any]) -> dict[str, Any]:
            if not self._settings.send_if_match:
                given.pop("IfMatch", None)
            with told("GetObject", ref):
                said: dict[str, Any] = client.get_object(
                    **{**self._clients.parameters("GetObject", ref, **version), **given}
                )
            return said

        download(self._clients, ref, head, ask, file, self._settings, progress)

    def close(self) -> None:
        """Closes the connections."""
        self._clients.close()

    def _ask(
        self,
        operation: str,
        ref: ObjectRef,
        endpoint: Endpoint,
        parameters: dict[str, Any],
        byte_range: ByteRange | None = None,
    ) -> Answer:
        try:
            with call(operation, ref):
                said = self._clients.ask(endpoint, operation, ref, **parameters)
        except StoreError as refusal:
            return _refusal(refusal, of_version="VersionId" in parameters)
        body = None
        if "Body" in said:
            if "ContentLength" not in said:
                kept, length = measured(said["Body"], ref)
                said = {**said, "Body": kept, "ContentLength": length}
            body = Body(said["Body"], said["ContentLength"], ref, cut_of(byte_range, said.get("ContentRange", "")))
        return Answer(head_of(said, ref), date=date_of(said), body=body, endpoint=endpoint)


def _refusal(refusal: StoreError, *, of_version: bool) -> Answer:
    """The answer that a refusal amounts to; raises it again where it is a refusal indeed."""
    if refusal.status == 412:
        return Answer(None, condition_failed=True)
    if refusal.status == _NOT_MODIFIED:
        return Answer(None, unchanged=True)
    # 405 is how S3 answers for a delete marker that is asked for by its version id.
    missing = refusal.status == 404 or (of_version and refusal.status == _METHOD_NOT_ALLOWED)
    if missing and refusal.code != "NoSuchBucket":
        return Answer(None, date=date_of(getattr(refusal.__cause__, "response", {})))
    raise refusal


def _kept(head: Head, content: Content, marker: Marker, target: ObjectRef) -> dict[str, Any]:
    """What goes with a copy: what its source had, what the caller has named besides, and our own marker."""
    named = content.parameters(marker, target)
    metadata = {**head.served.metadata, **named["Metadata"]}
    return {**head.system_metadata, **named, "Metadata": metadata}


def _refused(bucket: str, said: Mapping[str, Any]) -> S3TasksError:
    code, message = str(said.get("Code", "")), str(said.get("Message", ""))
    if code in ("InternalError", "SlowDown", "ServiceUnavailable", "NotAnswered", "OperationAborted"):
        return StoreUnavailable("DeleteObjects", bucket, said["Key"], f"{code}: {message}")
    return StoreError("DeleteObjects", bucket, said["Key"], code, 200, None, message)
