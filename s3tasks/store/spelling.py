"""How the plainest calls are spelled in HTTP: parameters as headers and a query, headers of an answer as botocore's members.

It never sends anything, and spells nothing of which it is not sure: such calls are botocore's own business.
"""

from __future__ import annotations

import base64
import hashlib
import re
import zlib
from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime
from email.utils import parsedate_to_datetime
from functools import lru_cache
from typing import Any, Literal, Protocol

from botocore.compat import HAS_CRT
from botocore.exceptions import FlexibleChecksumError
from botocore.parsers import ResponseParserError
from botocore.utils import parse_timestamp, percent_encode

METHODS = {"GetObject": "GET", "HeadObject": "HEAD", "PutObject": "PUT", "DeleteObject": "DELETE"}
"""The operations that can be spelled here."""

# A body of a megabyte is still sent as a small one is; beyond, botocore's share of the cost is small (PERFORMANCE: a PUT of 1 MiB).
MOST_BODY_BYTES = 1024 * 1024
CHECKSUM_HEADER = "x-amz-checksum-crc32"

_HEADERS = {
    "IfMatch": "If-Match", "IfNoneMatch": "If-None-Match", "Range": "Range", "ContentType": "Content-Type",
    "ExpectedBucketOwner": "x-amz-expected-bucket-owner", "RequestPayer": "x-amz-request-payer",
    "ChecksumMode": "x-amz-checksum-mode",
}
_ELSEWHERE = frozenset({"Bucket", "Key", "Body", "Metadata", "VersionId"})
# Nothing that needs a thought about trimming, folding or encoding; botocore refuses or spells the rest.
_PLAIN_VALUE = re.compile(r"[\x21-\x7e](?:[\x20-\x7e]*[\x21-\x7e])?")
_PLAIN_NAME = re.compile(r"[A-Za-z0-9_.-]+")
# Access points have rules of their own, and buckets of S3 Express (directory buckets) credentials of their own.
_ORDINARY_BUCKET = re.compile(r"(?!.*--x-s3$)[A-Za-z0-9][A-Za-z0-9._-]*")

_TEXTS = {
    "etag": "ETag", "x-amz-version-id": "VersionId", "content-type": "ContentType", "content-range": "ContentRange",
    "cache-control": "CacheControl", "content-disposition": "ContentDisposition", "content-encoding": "ContentEncoding",
    "content-language": "ContentLanguage", "x-amz-website-redirect-location": "WebsiteRedirectLocation",
    "x-amz-checksum-type": "ChecksumType",
}
_NUMBERS = {"content-length": "ContentLength", "x-amz-tagging-count": "TagCount"}
_METADATA = "x-amz-meta-"
_DIGESTS = ("sha1", "sha256", "sha512")
_CHECKSUMS = "x-amz-checksum-"


def can_spell(operation: str, parameters: Mapping[str, Any]) -> bool:
    """Whether the call holds nothing but what is spelled here."""
    if operation not in METHODS or not (parameters.keys() <= _HEADERS.keys() | _ELSEWHERE):
        return False
    key, body = parameters["Key"], parameters.get("Body", b"")
    # What an empty segment at the beginning becomes in a URL depends on the endpoint.
    if not _ORDINARY_BUCKET.fullmatch(parameters["Bucket"]) or key.startswith("/"):
        return False
    if not isinstance(body, bytes) or len(body) > MOST_BODY_BYTES:
        return False
    texts = [parameters[name] for name in parameters if name not in ("Bucket", "Key", "Body", "Metadata")]
    metadata = parameters.get("Metadata", {})
    if not (all(_plain(text) for text in (*texts, *metadata.values())) and all(map(_PLAIN_NAME.fullmatch, metadata))):
        return False
    # Of names that differ in case alone botocore sends the last one.
    return len(set(map(str.lower, metadata))) == len(metadata)


def _plain(text: object) -> bool:
    return isinstance(text, str) and _PLAIN_VALUE.fullmatch(text) is not None


def path_of(parameters: Mapping[str, Any]) -> str:
    """The end of the URL: the key, percent-encoded as botocore does, and a query where the call has one."""
    key: str = percent_encode(parameters["Key"], safe="/~")
    version_id = parameters.get("VersionId")
    return key if version_id is None else f"{key}?versionId={percent_encode(version_id)}"


def headers_of(parameters: Mapping[str, Any]) -> dict[str, str]:
    """The headers that the parameters call for."""
    headers = {_HEADERS[name]: value for name, value in parameters.items() if name in _HEADERS}
    for name, value in parameters.get("Metadata", {}).items():
        headers[_METADATA + name] = value
    return headers


def checksum_of(body: bytes) -> str:
    """The body's CRC-32 in S3's spelling: most significant byte first, in base64."""
    return base64.b64encode(zlib.crc32(body).to_bytes(4, "big")).decode()


def said_by(headers: Mapping[str, str]) -> dict[str, Any]:
    """What an answer's headers (names in lower case) say, under botocore's names: as much of it as is asked for in this package.

    Raises botocore's ResponseParserError for what makes no sense.
    """
    said: dict[str, Any] = {_TEXTS[name]: value for name, value in headers.items() if name in _TEXTS}
    said["Metadata"] = {name[len(_METADATA) :]: value for name, value in headers.items() if name.startswith(_METADATA)}
    said["ResponseMetadata"] = {"HTTPHeaders": headers}
    for name in _NUMBERS.keys() & headers.keys():
        said[_NUMBERS[name]] = _number(headers[name])
    for name in headers.keys() - _TEXTS.keys():
        if name.startswith(_CHECKSUMS):
            said[f"Checksum{name[len(_CHECKSUMS) :].upper()}"] = headers[name]
    if "last-modified" in headers:
        said["LastModified"] = _moment(headers["last-modified"])
    return said


def _number(text: str) -> int:
    try:
        return int(text)
    except ValueError as problem:
        raise ResponseParserError(f"{text!r:.80} is no number") from problem


@lru_cache(maxsize=1024)
def _moment(text: str) -> datetime:
    """The time that a header gives: as HTTP spells it (RFC 9110, 5.6.7), or in any other way that botocore knows."""
    for read in (_http_date, parse_timestamp):
        with suppress(ValueError, OverflowError, RuntimeError):
            moment: datetime = read(text)
            # Some of what can be read is on no calendar.
            moment.timestamp()
            return moment
    raise ResponseParserError(f"{text!r:.80} is no time")


def _http_date(text: str) -> datetime:
    moment = parsedate_to_datetime(text)
    if moment.tzinfo is None:
        raise ValueError("a time of no zone")
    return moment


class _Readable(Protocol):
    """A body that is still to be read."""

    def read(self, size_bytes: int | None = None, /) -> bytes: ...

    def close(self) -> None: ...


def checksum_to_verify(headers: Mapping[str, str]) -> tuple[str, str] | Literal[False] | None:
    """Name and value of the checksum that the body must have, as botocore would check it; None where there is none.

    False where botocore can check one that is not known here (CRC-64/NVME and others, where its CRT is installed).
    """
    named = {name[len(_CHECKSUMS) :]: value for name, value in headers.items() if name.startswith(_CHECKSUMS)}
    if not named:
        return None
    for name in ("crc32", *_DIGESTS):
        # A checksum of the parts' checksums ends in their number, and says nothing of these bytes.
        if name in named and "-" not in named[name]:
            return name, named[name]
    return False if HAS_CRT and named.keys() - {"crc32", *_DIGESTS, "type"} else None


class Verified:
    """A body that is compared with its checksum when its end has been read: FlexibleChecksumError, as botocore's own."""

    def __init__(self, raw: _Readable, checksum: tuple[str, str] | None) -> None:
        self._raw, self._checksum = raw, checksum
        self._crc = 0
        self._digest = hashlib.new(checksum[0], usedforsecurity=False) if checksum and checksum[0] in _DIGESTS else None

    def read(self, size_bytes: int | None = None) -> bytes:
        """The next bytes, `size_bytes` at most, or all there are."""
        came = self._raw.read(size_bytes)
        if self._checksum is not None:
            self._check(self._checksum, came, at_end=size_bytes is None or (not came and size_bytes > 0))
        return came

    def close(self) -> None:
        """Gives up what has not been read."""
        self._raw.close()

    def _check(self, checksum: tuple[str, str], came: bytes, *, at_end: bool) -> None:
        name, expected = checksum
        if self._digest is not None:
            self._digest.update(came)
        else:
            self._crc = zlib.crc32(came, self._crc)
        if not at_end:
            return
        digest = self._digest.digest() if self._digest is not None else self._crc.to_bytes(4, "big")
        found = base64.b64encode(digest).decode()
        if found != expected:
            raise FlexibleChecksumError(error_msg=f"Expected checksum {expected} did not match calculated {name}: {found}")
