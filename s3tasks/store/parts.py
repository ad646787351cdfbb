"""Objects written in parts: multipart uploads of files and streams, through s3transfer, and of copies.

It never completes an upload of which a part is missing or in doubt, and leaves none of its parts behind when it fails.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import copy_context
from dataclasses import dataclass
from typing import Any, BinaryIO, Protocol

from s3transfer.manager import TransferManager

from s3tasks.errors import S3TasksError, StoreError
from s3tasks.evidence import Landed
from s3tasks.refs import ObjectRef, normal_etag
from s3tasks.settings import Settings
from s3tasks.store.answers import Condition, landed_of
from s3tasks.store.clients import Clients
from s3tasks.store.door import call, conflicts, door
from s3tasks.store.model import known_to
from s3tasks.store.transfers import Known, Progress, Told, size_of_parts, source_of, transfer_config

logger = logging.getLogger(__name__)

MOST_PARTS = 10_000
"""How many parts an object has at most (AWS, "Amazon S3 multipart upload limits")."""

_GONE = 404


class UploadNotes(Protocol):
    """Who remembers which multipart uploads are under way, so that those of a killed process can be found."""

    def begun(self, upload_id: str) -> None:
        """The upload exists, and has no parts yet."""

    def over(self, upload_id: str) -> None:
        """The upload has been completed or aborted."""


@dataclass(frozen=True)
class PartsRequest:
    """What is to be written in parts: `parameters` go with the object (of PutObject, by name), `condition` with its completion."""

    ref: ObjectRef
    parameters: dict[str, Any]
    condition: Condition
    notes: UploadNotes


class MultipartUpload:
    """One multipart upload. Its methods are called as botocore's client is, for s3transfer takes it for one.

    What completed it is kept in `landed`: the answer to this very upload, not what a later look would show.
    """

    def __init__(self, clients: Clients, request: PartsRequest) -> None:
        self._clients, self._request = clients, request
        self.meta = clients.mover.meta
        self.landed: Landed | None = None
        self._sizes: dict[int, int] = {}
        # s3transfer's threads act for whoever called.
        self._context = copy_context()
        self._lock = threading.Lock()

    def create_multipart_upload(self, **given: Any) -> dict[str, Any]:
        """Begins the upload, and has it noted before it has any parts."""
        said = self._call("CreateMultipartUpload", {**given, **self._request.parameters})
        try:
            self._request.notes.begun(said["UploadId"])
        except BaseException:
            self.abort_multipart_upload(UploadId=said["UploadId"])
            raise
        return said

    def upload_part(self, **given: Any) -> dict[str, Any]:
        """Sends one part."""
        size_bytes = len(given["Body"])
        if given["PartNumber"] > MOST_PARTS:
            ref, most = self._request.ref, f"a stream of unknown length has room in {MOST_PARTS:,} parts: raise part_bytes"
            raise StoreError("UploadPart", ref.bucket, ref.key, "TooManyParts", message=most)
        said = self._call("UploadPart", given)
        # A proxy on the way may have made it weak, and S3 would not know its own part again.
        said["ETag"] = f'"{normal_etag(said["ETag"])}"'
        with self._lock:
            self._sizes[given["PartNumber"]] = size_bytes
        return said

    def upload_part_copy(self, size_bytes: int, **given: Any) -> dict[str, Any]:
        """Has S3 copy one part from another object."""
        said = self._call("UploadPartCopy", given)
        with self._lock:
            self._sizes[given["PartNumber"]] = size_bytes
        return said

    def complete_multipart_upload(self, **given: Any) -> dict[str, Any]:
        """Makes the parts an object. May be repeated after a lost answer: an upload can be completed once only."""
        request = self._request
        with conflicts(request.ref, request.condition):
            said = self._call("CompleteMultipartUpload", {**given, **request.condition.parameters()})
        self.landed = landed_of(said, etag=said.get("ETag"), size=sum(self._sizes.values()))
        self._request.notes.over(given["UploadId"])
        return said

    def abort_multipart_upload(self, **given: Any) -> dict[str, Any]:
        """Gives up the upload and its parts."""
        abort_upload(self._clients, self._request.ref, given["UploadId"])
        self._request.notes.over(given["UploadId"])
        return {}

    def _call(self, operation: str, given: dict[str, Any]) -> dict[str, Any]:
        return self._context.copy().run(self._asked, operation, given)

    def _asked(self, operation: str, given: dict[str, Any]) -> dict[str, Any]:
        ref = self._request.ref
        parameters = self._clients.parameters(operation, ref, **known_to(operation, {**self._request.parameters, **given}))
        with call(operation, ref):
            method = getattr(self._clients.mover, _METHODS[operation])
            said: dict[str, Any] = method(**parameters)
        return said


_METHODS = {
    "CreateMultipartUpload": "create_multipart_upload",
    "UploadPart": "upload_part",
    "UploadPartCopy": "upload_part_copy",
    "CompleteMultipartUpload": "complete_multipart_upload",
}


def abort_upload(clients: Clients, ref: ObjectRef, upload_id: str) -> None:
    """Removes the upload and its parts; one that is gone already is no error."""
    try:
        with call("AbortMultipartUpload", ref):
            clients.mover.abort_multipart_upload(**clients.parameters("AbortMultipartUpload", ref, UploadId=upload_id))
    except S3TasksError as problem:
        if getattr(problem, "status", None) != _GONE:
            raise


def upload(
    clients: Clients, request: PartsRequest, stream: BinaryIO, settings: Settings, progress: Progress | None
) -> Landed:
    """Writes what the stream has left, `multipart_threshold_bytes` or more, in parallel parts; memory does not grow with it.

    Raises WriteConflict, StoreError (refused), StoreUnavailable (it may have landed) or SourceError (nothing has been written).
    """
    parts, source, told = MultipartUpload(clients, request), source_of(stream), Told(progress)
    with (
        told.raising(),
        source.raising(),
        door("CompleteMultipartUpload", request.ref),
        TransferManager(parts, transfer_config(settings, source.size_bytes), osutil=source.osutil) as manager,
    ):
        manager.upload(
            source.given, request.ref.bucket, request.ref.key,
            extra_args=_checksums(parts, request), subscribers=[Known(source.size_bytes), told],
        ).result()
    return _completed(parts, request.ref)


def _checksums(parts: MultipartUpload, request: PartsRequest) -> dict[str, str]:
    """Which checksums the parts are sent with: the caller's choice, else botocore's, over the whole object."""
    chosen = request.parameters.get("ChecksumAlgorithm")
    if chosen is not None:
        return {"ChecksumAlgorithm": chosen}
    return {"ChecksumType": "FULL_OBJECT"} if parts.meta.config.request_checksum_calculation == "when_supported" else {}


def upload_at_once(clients: Clients, request: PartsRequest, body: bytes) -> Landed:
    """Writes a small body as a multipart upload of one part, which S3 allows to be of any size."""
    parts = MultipartUpload(clients, request)
    with _begun(parts, request.ref) as upload_id:
        said = parts.upload_part(UploadId=upload_id, PartNumber=1, Body=body)
        part = {"PartNumber": 1, "ETag": said["ETag"], **_checksums_in(said)}
        parts.complete_multipart_upload(UploadId=upload_id, MultipartUpload={"Parts": [part]})
    return _completed(parts, request.ref)


def copy_in_parts(
    clients: Clients, request: PartsRequest, source: dict[str, Any], size_bytes: int, settings: Settings,
    still_the_same: Callable[[], bool],
) -> Landed | None:
    """Has S3 copy an object (of one byte or more) part by part. `source` are parameters of UploadPartCopy that name and pin it.

    What is asked for is not taken for what was copied: the copy is completed only if the source is `still_the_same` once all
    parts are there. None where it is not.
    """
    parts = MultipartUpload(clients, request)
    with _begun(parts, request.ref) as upload_id:
        with ThreadPoolExecutor(settings.concurrent_requests) as pool:
            copied = list(pool.map(
                lambda part: _copied_part(parts, upload_id, source, *part), _part_ranges(size_bytes, settings.part_bytes)
            ))
        if not still_the_same():
            parts.abort_multipart_upload(UploadId=upload_id)
            return None
        parts.complete_multipart_upload(UploadId=upload_id, MultipartUpload={"Parts": copied})
    return _completed(parts, request.ref)


@contextmanager
def _begun(parts: MultipartUpload, ref: ObjectRef) -> Iterator[str]:
    """A multipart upload that is aborted if anything goes wrong."""
    upload_id = parts.create_multipart_upload()["UploadId"]
    try:
        yield upload_id
    except BaseException:
        try:
            parts.abort_multipart_upload(UploadId=upload_id)
        except S3TasksError as problem:
            logger.warning("%s: the parts of a failed copy could not be removed: %s", ref, problem)
        raise


def _copied_part(
    parts: MultipartUpload, upload_id: str, source: dict[str, Any], number: int, first: int, last: int
) -> dict[str, Any]:
    said = parts.upload_part_copy(
        last - first + 1, UploadId=upload_id, PartNumber=number, CopySourceRange=f"bytes={first}-{last}", **source
    )
    result = said["CopyPartResult"]
    return {"PartNumber": number, "ETag": result["ETag"], **_checksums_in(result)}


def _checksums_in(said: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in said.items() if name.startswith("Checksum")}


def _part_ranges(size_bytes: int, part_bytes: int) -> Iterator[tuple[int, int, int]]:
    """Number, first and last byte of each part."""
    part_bytes = size_of_parts(part_bytes, size_bytes)
    for number, first in enumerate(range(0, size_bytes, part_bytes), start=1):
        yield number, first, min(first + part_bytes, size_bytes) - 1


def _completed(parts: MultipartUpload, ref: ObjectRef) -> Landed:
    if parts.landed is None:
        raise StoreError("CompleteMultipartUpload", ref.bucket, ref.key, "NotCompleted", message="no completion was answered")
    return parts.landed


