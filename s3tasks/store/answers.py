"""What is asked of S3 and what it answers, in this package's own words: endpoints, conditions, contents, answers.

It never sends anything. ETags are taken from answers, never computed.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from email.utils import parsedate_to_datetime
from functools import lru_cache
from typing import Any

from s3tasks.evidence import Landed, Served
from s3tasks.refs import MARKER_METADATA_KEY, Marker, ObjectRef, normal_etag

ByteRange = tuple[int, int | None]

NULL_VERSION = "null"
"""The id of what was written while a bucket kept no versions, or none any more: the next such write takes it over."""

# What a copy takes over from its source besides the user metadata (AWS, CopyObject: with the REPLACE directive none of it is).
SYSTEM_METADATA = (
    "CacheControl", "ContentDisposition", "ContentEncoding", "ContentLanguage", "ContentType", "Expires",
    "WebsiteRedirectLocation",
)


# The checksums that the standard library computes; CRC-32C and CRC-64/NVME would take minutes for a gigabyte without it.
CHECKED = ("CRC32", "SHA256", "SHA1")


class Endpoint(enum.Enum):
    """Which of the two endpoints is asked: the one written to (the origin), or the one read from."""

    WRITE = "write"
    READ = "read"


@dataclass(frozen=True)
class Condition:
    """What a conditional write or delete demands: the current ETag (`if_match`), or that there is no object (`if_none_match`).

    HTTP has ETags in quotes; whether an endpoint wants them without is tried out by sending them not `quoted`.
    """

    if_match: str | None = None
    if_none_match: bool = False
    quoted: bool = True

    def __bool__(self) -> bool:
        return self.if_match is not None or self.if_none_match

    def __str__(self) -> str:
        return f'If-Match: "{self.if_match}"' if self.if_match is not None else "If-None-Match: *"

    def parameters(self) -> dict[str, str]:
        """The condition as parameters of a botocore call."""
        if self.if_match is not None:
            return {"IfMatch": f'"{self.if_match}"' if self.quoted else self.if_match}
        return {"IfNoneMatch": "*"} if self.if_none_match else {}


@dataclass(frozen=True)
class Content:
    """What goes with the bytes that are written, and the bytes themselves where they are at hand.

    `options` are further parameters of S3's PutObject (CreateMultipartUpload, CopyObject) by name.
    """

    body: bytes = b""
    content_type: str | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)

    def parameters(self, marker: Marker, ref: ObjectRef) -> dict[str, Any]:
        """All of it but the body as parameters of a botocore call, with our marker in the metadata."""
        parameters: dict[str, Any] = {**self.options}
        parameters["Metadata"] = {**self.metadata, MARKER_METADATA_KEY: marker.text(ref)}
        if self.content_type is not None:
            parameters["ContentType"] = self.content_type
        return parameters


@dataclass(frozen=True)
class Head:
    """What an endpoint serves, with what a copy or a download needs to know besides.

    `system_metadata` are botocore's names and values (see SYSTEM_METADATA), `tag_count` how many tags the object has, `checksum`
    the name and value of a checksum of the whole object, where the store gives one that can be checked here, `unchecked` the names
    of those that cannot: of other kinds, or of parts.
    """

    served: Served
    system_metadata: Mapping[str, Any] = field(default_factory=dict)
    tag_count: int = 0
    checksum: tuple[str, str] | None = None
    unchecked: tuple[str, ...] = ()

    def with_etag(self, etag: str | None) -> Head:
        """The same, pinned to another ETag."""
        return replace(self, served=replace(self.served, etag=etag))

    def of_version(self, version_id: str | None) -> Head:
        """The same, pinned to the version id that it was asked for by."""
        return replace(self, served=replace(self.served, version_id=version_id))


def head_of(said: Mapping[str, Any], ref: ObjectRef) -> Head:
    """What botocore's answer to a HEAD or GET says."""
    kind = said.get("ChecksumType", "FULL_OBJECT")
    # A checksum of the parts' checksums ends in their number.
    given = {name: value for name, value in said.items() if name.startswith("Checksum") and name != "ChecksumType" and value}
    whole = [name for name in CHECKED if kind == "FULL_OBJECT" and "-" not in given.get(f"Checksum{name}", "-")]
    return Head(
        served_of(said, ref),
        {name: said[name] for name in SYSTEM_METADATA if said.get(name) is not None},
        int(said.get("TagCount") or 0),
        (whole[0], given[f"Checksum{whole[0]}"]) if whole else None,
        () if whole else tuple(name.removeprefix("Checksum") for name in given),
    )


def served_of(said: Mapping[str, Any], ref: ObjectRef) -> Served:
    """The object that botocore's answer to a GET or HEAD describes."""
    metadata = {name.lower(): value for name, value in said.get("Metadata", {}).items()}
    marker = metadata.pop(MARKER_METADATA_KEY, None)
    modified = said.get("LastModified")
    whole = re.fullmatch(r"bytes \d+-\d+/(\d+)", said["ContentRange"]) if "ContentRange" in said else None
    return Served(
        etag=normal_etag(said.get("ETag")),
        version_id=exact_version(said.get("VersionId")),
        size=int(whole.group(1)) if whole else said.get("ContentLength"),
        last_modified=int(modified.timestamp()) if modified else 0,
        marker=Marker.parse(marker, ref),
        content_type=said.get("ContentType"),
        metadata=metadata,
    )


def landed_of(said: Mapping[str, Any], *, etag: str | None, size: int | None) -> Landed:
    """What botocore's answer to a write says of it."""
    return Landed(etag=normal_etag(etag), version_id=exact_version(said.get("VersionId")), size=size, date=date_of(said))


def exact_version(version_id: str | None) -> str | None:
    """The version id, or None for what names no exact write: "null" is the one id that a later write takes over."""
    return None if version_id in (None, "", NULL_VERSION) else version_id


def date_of(said: Mapping[str, Any]) -> int:
    """When the endpoint answered, by its own clock: seconds since 1970, 0 where it did not say."""
    date = said.get("ResponseMetadata", {}).get("HTTPHeaders", {}).get("date")
    return _seconds(date) if date else 0


@lru_cache(maxsize=64)
def _seconds(date: str) -> int:
    # Many answers come within one second.
    try:
        return int(parsedate_to_datetime(date).timestamp())
    except (ValueError, OverflowError):
        return 0
