"""Objects fetched in parallel ranges, through s3transfer, into a file that somebody else has opened.

It never writes a byte of another object than the one asked for: every range is pinned to its ETag, and every answer compared.
"""

from __future__ import annotations

import base64
import hashlib
import logging
import zlib
from collections.abc import Callable, Iterator
from contextvars import copy_context
from typing import Any, BinaryIO

from s3transfer.exceptions import S3DownloadFailedError
from s3transfer.manager import TransferManager

from s3tasks.errors import StaleRead, StoreUnavailable
from s3tasks.evidence import Served
from s3tasks.refs import ObjectRef
from s3tasks.settings import Settings
from s3tasks.store.answers import Head, served_of
from s3tasks.store.clients import Clients
from s3tasks.store.door import door
from s3tasks.store.transfers import Known, Progress, Told, transfer_config

logger = logging.getLogger(__name__)

_CHUNK_BYTES = 1024 * 1024

Ask = Callable[[dict[str, Any]], dict[str, Any]]


class _Pinned:
    """The client that s3transfer fetches ranges through: each answer must be of the object that was verified."""

    def __init__(self, clients: Clients, ref: ObjectRef, pinned: Served, ask: Ask) -> None:
        self.meta = clients.reader.meta
        self._ref, self._served, self._ask = ref, pinned, ask
        # s3transfer's threads act for whoever called.
        self._context = copy_context()

    def get_object(self, **given: Any) -> dict[str, Any]:
        """One range of the object; StaleRead where another object is served."""
        said = self._context.copy().run(self._ask, given)
        came = served_of(said, self._ref)
        if (came.etag, came.marker, came.size) != (self._served.etag, self._served.marker, self._served.size):
            said["Body"].close()
            raise StaleRead(self._ref.bucket, self._ref.key, self._served.etag, came.etag)
        return said


def download(
    clients: Clients, ref: ObjectRef, head: Head, ask: Ask, file: BinaryIO, settings: Settings, progress: Progress | None
) -> None:
    """Writes the whole object that `head` describes into the file, which is empty, and checks what came.

    `ask` makes one GetObject call with more parameters. Raises StaleRead where S3 serves something else meanwhile, StoreUnavailable
    where bytes are missing or wrong.
    """
    size_bytes = head.served.size or 0
    client, told = _Pinned(clients, ref, head.served, ask), Told(progress)
    try:
        with told.raising(), door("GetObject", ref), TransferManager(client, transfer_config(settings)) as manager:
            manager.download(ref.bucket, ref.key, file, subscribers=[Known(size_bytes, head.served.etag), told]).result()
    except StoreUnavailable as problem:
        if isinstance(problem.__cause__, S3DownloadFailedError):
            # s3transfer's word for a range whose If-Match did not hold.
            raise StaleRead(ref.bucket, ref.key, head.served.etag, "another object") from problem
        raise
    _check(ref, head, file)


def _check(ref: ObjectRef, head: Head, file: BinaryIO) -> None:
    """Raises StoreUnavailable unless the file holds as many bytes as the object has, with its checksum where the store gave one."""
    length = file.seek(0, 2)
    if length != head.served.size:
        raise StoreUnavailable("GetObject", ref.bucket, ref.key, f"{length} of {head.served.size} bytes arrived")
    if head.checksum is None:
        if head.unchecked:
            logger.info("%s: its checksum (%s) is of a kind that is not checked here", ref.uri, ", ".join(head.unchecked))
        return
    name, expected = head.checksum
    if _checksum(name, file) != expected:
        raise StoreUnavailable("GetObject", ref.bucket, ref.key, f"the bytes that arrived do not have the object's {name}")


def _checksum(name: str, file: BinaryIO) -> str:
    """S3's spelling of the checksum: its bytes, most significant first, in base64."""
    if name == "CRC32":
        crc = 0
        for chunk in _chunks(file):
            crc = zlib.crc32(chunk, crc)
        return base64.b64encode(crc.to_bytes(4, "big")).decode()
    digest = hashlib.new(name, usedforsecurity=False)
    for chunk in _chunks(file):
        digest.update(chunk)
    return base64.b64encode(digest.digest()).decode()


def _chunks(file: BinaryIO) -> Iterator[bytes]:
    file.seek(0)
    while chunk := file.read(_CHUNK_BYTES):
        yield chunk
