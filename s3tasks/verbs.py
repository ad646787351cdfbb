"""What each s3 task does, and what is checked where it is sent: the verbs of ConsistentS3, with JSON on both sides.

It never knows Celery: `self` is one delivery of a task, whoever makes it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol

from s3tasks.errors import LocalFileError, PayloadTooLarge
from s3tasks.metadata import checked_content_type, checked_metadata
from s3tasks.outcomes import Outcome
from s3tasks.refs import listed
from s3tasks.settings import Settings

if TYPE_CHECKING:
    from s3tasks.client import ConsistentS3, Progress

Ref = str | Mapping[str, Any]


class Toolkit(Protocol):
    """Where the settings in force come from."""

    @property
    def settings(self) -> Settings:
        """The settings in force."""


class Delivery(Protocol):
    """One delivery of a task."""

    @property
    def s3(self) -> ConsistentS3:
        """The client whose write ids come from the task's id."""

    @property
    def toolkit(self) -> Toolkit:
        """What the task belongs to."""

    def progress(self) -> Progress:
        """What tells how far a transfer is."""

    def outcomes(
        self, run: Callable[[list[Outcome | None]], list[Outcome]], done: object, given: Sequence[Any]
    ) -> list[dict[str, Any]]:
        """The outcomes of many objects as JSON, tried again by the task queue where that may help."""


def write(
    self: Delivery,
    body: bytes | str,
    ref: Ref,
    *,
    if_match: str | None = None,
    if_none_match: bool = False,
    content_type: str | None = None,
    metadata: Mapping[str, str] | None = None,
    put_options: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Writes `body` and returns the ref of exactly this write, as a JSON dict; arguments as of ConsistentS3.write.

    Delivered twice, it is done once; replaced meanwhile, it is not done again. PayloadTooLarge over `max_inline_bytes`.
    """
    check_body("write", body, self.toolkit.settings.max_inline_bytes)
    written = self.s3.write(
        body, ref,
        if_match=if_match, if_none_match=if_none_match,
        content_type=content_type, metadata=metadata, put_options=put_options,
    )
    return written.to_dict()


def read(
    self: Delivery, ref: Ref, *, byte_range: tuple[int, int | None] | None = None, latest: bool = False
) -> bytes:
    """The object's bytes, never stale; arguments as of ConsistentS3.read. PayloadTooLarge over `max_inline_bytes`."""
    limit = self.toolkit.settings.max_inline_bytes
    return self.s3.read(ref, byte_range=byte_range, latest=latest, limit_bytes=limit)


def head(self: Delivery, ref: Ref, *, latest: bool = False) -> dict[str, Any]:
    """etag, version_id, size, last_modified, content_type and metadata of the object, held against the ledger like a read."""
    return self.s3.head(ref, latest=latest)


def delete(self: Delivery, ref: Ref, *, if_match: str | None = None, this_version: bool = False) -> dict[str, Any]:
    """Deletes the object and returns a ref with `deleted`; arguments as of ConsistentS3.delete. Done once, as `write`."""
    return self.s3.delete(ref, if_match=if_match, this_version=this_version).to_dict()


def copy(
    self: Delivery,
    source: Ref,
    target: Ref,
    *,
    latest: bool = False,
    if_match: str | None = None,
    if_none_match: bool = False,
    content_type: str | None = None,
    metadata: Mapping[str, str] | None = None,
    put_options: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Has S3 copy the object and returns the ref of exactly this write; arguments as of ConsistentS3.copy.

    Done once, as `write`.
    """
    copied = self.s3.copy(
        source, target,
        latest=latest, if_match=if_match, if_none_match=if_none_match,
        content_type=content_type, metadata=metadata, put_options=put_options,
    )
    return copied.to_dict()


def upload(
    self: Delivery,
    path: str,
    ref: Ref,
    *,
    if_match: str | None = None,
    if_none_match: bool = False,
    content_type: str | None = None,
    metadata: Mapping[str, str] | None = None,
    put_options: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Writes a file below `file_root` and returns the ref of exactly this write; arguments as of ConsistentS3.upload.

    The task's state is PROGRESS meanwhile, with `bytes_done` and `bytes_total`. LocalFileError for any path that leads outside.
    """
    root = _file_root(self, path)
    uploaded = self.s3.upload(
        path, ref,
        inside=root, progress=self.progress(), if_match=if_match, if_none_match=if_none_match,
        content_type=content_type, metadata=metadata, put_options=put_options,
    )
    return uploaded.to_dict()


def download(self: Delivery, ref: Ref, path: str, *, latest: bool = False) -> str:
    """Writes the object to a file below `file_root` and returns the path; as ConsistentS3.download, progress as of `upload`."""
    root = _file_root(self, path)
    return self.s3.download(ref, path, inside=root, latest=latest, progress=self.progress())


def wait_visible(self: Delivery, ref: Ref) -> dict[str, Any]:
    """The ref, once the read endpoint serves it: a barrier before readers that know nothing of the ledger."""
    return self.s3.wait_visible(ref).to_dict()


def write_many(
    self: Delivery, items: Sequence[Any], *, done: Sequence[Mapping[str, Any] | None] | None = None
) -> list[dict[str, Any]]:
    """Writes each of `items` (see ConsistentS3.write_many) and returns an outcome for each, as JSON dicts, in order.

    Each write is done once; those that may yet succeed are tried again, and only those. PayloadTooLarge for a body over
    `max_inline_bytes`, or for all over `max_batch_inline_bytes`. `done` is what earlier deliveries have achieved.
    """
    check_bodies(items, self.toolkit.settings)
    return self.outcomes(lambda known: self.s3.write_many(items, done=known), done, items)


def read_many(
    self: Delivery, refs: Sequence[Ref], *, latest: bool = False, done: Sequence[Mapping[str, Any] | None] | None = None
) -> list[dict[str, Any]]:
    """Reads each object and returns an outcome for each, in order, with its bytes as `value`, or an `error`.

    Only those that S3 does not serve yet are read again. `max_inline_bytes` holds for each body, `max_batch_inline_bytes` for all.
    """
    settings = self.toolkit.settings

    def run(known: list[Outcome | None]) -> list[Outcome]:
        return self.s3.read_many(
            refs, latest=latest, done=known,
            limit_bytes=settings.max_inline_bytes, total_limit_bytes=settings.max_batch_inline_bytes,
        )

    return self.outcomes(run, done, refs)


def head_many(
    self: Delivery, refs: Sequence[Ref], *, latest: bool = False, done: Sequence[Mapping[str, Any] | None] | None = None
) -> list[dict[str, Any]]:
    """What `head` says of each object, as the `value` of an outcome, in order."""
    return self.outcomes(lambda known: self.s3.head_many(refs, latest=latest, done=known), done, refs)


def delete_many(
    self: Delivery, refs: Sequence[Ref], *, done: Sequence[Mapping[str, Any] | None] | None = None
) -> list[dict[str, Any]]:
    """Deletes each object, up to 1,000 in one request, and returns an outcome for each, in order. Done once, as `delete`."""
    return self.outcomes(lambda known: self.s3.delete_many(refs, done=known), done, refs)


def _file_root(self: Delivery, path: object) -> str:
    root = self.toolkit.settings.file_root
    if root is None:
        raise LocalFileError(f"{path!r:.120}", "upload and download tasks are off here: set file_root (S3TASKS_FILE_ROOT)")
    return root


def check_body(operation: str, body: object, max_inline_bytes: int) -> int:
    """The size of a body; PayloadTooLarge where that does not belong in a message."""
    size_bytes = len(body.encode() if isinstance(body, str) else body) if isinstance(body, str | bytes) else 0
    if size_bytes > max_inline_bytes:
        raise PayloadTooLarge(operation, size_bytes, max_inline_bytes)
    return size_bytes


def check_bodies(items: Sequence[Any], settings: Settings) -> None:
    """PayloadTooLarge where the bodies of write_many, one or all of them, do not belong in a message."""
    bodies = [item.get("body") if isinstance(item, Mapping) else item[0] if item else None for item in items]
    total_bytes = sum(check_body("write", body, settings.max_inline_bytes) for body in bodies)
    if total_bytes > settings.max_batch_inline_bytes:
        raise PayloadTooLarge("write_many", total_bytes, settings.max_batch_inline_bytes)


def _check_write(settings: Settings, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    check_body("write", args[0] if args else kwargs.get("body", b""), settings.max_inline_bytes)


def _check_write_many(settings: Settings, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    items = listed("write_many", args[0] if args else kwargs.get("items", []))
    check_bodies(items, settings)
    for item in items:
        check_options_of(write, item if isinstance(item, Mapping) else {})


def check_options_of(verb: Callable[..., Any], kwargs: Mapping[str, Any]) -> None:
    """TypeError or ValueError for a content type, metadata or `put_options` that the operations which may do the verb do not
    take."""
    checked_content_type(kwargs.get("content_type"))
    checked_metadata(kwargs.get("metadata"))
    if kwargs.get("put_options"):
        # By S3's own model, which is botocore's: loaded by producers that need it, and by no other.
        import_module("s3tasks.store").check_options(_OPERATIONS.get(verb, ()), kwargs["put_options"])


_OPERATIONS: dict[Callable[..., Any], tuple[str, ...]] = {
    write: ("PutObject",),
    upload: ("PutObject", "CreateMultipartUpload"),
    copy: ("CopyObject", "CreateMultipartUpload"),
}

CHECKS: dict[Callable[..., Any], Callable[[Settings, Sequence[Any], Mapping[str, Any]], None]] = {
    write: _check_write,
    write_many: _check_write_many,
    upload: lambda *_: None,
    copy: lambda *_: None,
}
"""What is checked of a task's arguments where it is sent, besides its options."""
