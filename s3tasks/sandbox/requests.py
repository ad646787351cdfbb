"""Which bucket and keys a path-style S3 request changes, read from the request and its answer.

It never carries a change anywhere.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from dataclasses import dataclass
from urllib.parse import parse_qs, quote, unquote

from s3tasks.sandbox.wsgi import Answer, Environ, body_of

_OBJECT_PARTS = frozenset(
    {"acl", "attributes", "legal-hold", "partNumber", "restore", "retention", "select", "tagging", "torrent", "uploads"}
)
"""Queries that concern something about an object other than its bytes and headers: those are not replicated."""


@dataclass(frozen=True)
class Target:
    """One object that a request changed: as a whole, or (`removed_version_id`) only by removing one of its versions."""

    bucket: str
    key: str
    removed_version_id: str | None = None

    @property
    def path(self) -> str:
        """The percent-encoded path of the object."""
        return f"/{self.bucket}/{quote(self.key, safe='/')}"


def split_path(environ: Environ) -> tuple[str, str]:
    """Bucket and key as they were asked for, both decoded; either may be empty."""
    path = str(environ.get("RAW_URI") or environ.get("PATH_INFO", "/")).split("?", 1)[0]
    bucket, _, key = path.removeprefix("/").partition("/")
    return unquote(bucket), unquote(key)


def changes_bucket(environ: Environ) -> bool:
    """Whether the request creates, deletes or configures a bucket."""
    return environ["REQUEST_METHOD"] in ("PUT", "DELETE") and not split_path(environ)[1]


def deletes_bucket(environ: Environ) -> bool:
    """Whether the request removes a bucket itself, rather than a part of its configuration."""
    return changes_bucket(environ) and environ["REQUEST_METHOD"] == "DELETE" and not _query(environ).keys() - {"x-id"}


def changed_objects(environ: Environ, answer: Answer) -> list[Target]:
    """The objects that a request has changed, in its own order."""
    method, query = environ["REQUEST_METHOD"], _query(environ)
    bucket, key = split_path(environ)
    if method not in ("PUT", "POST", "DELETE") or not answer.succeeded or not bucket:
        return []
    if not key:
        return _multi_delete(bucket, body_of(environ), answer) if method == "POST" and "delete" in query else []
    return [] if _leaves_object_alone(method, query) else _single(method, bucket, key, query)


def _leaves_object_alone(method: str, query: dict[str, list[str]]) -> bool:
    if query.keys() & _OBJECT_PARTS:
        return True
    # Of an upload in parts, only the POST that completes it changes the object; and of POSTs, only that one.
    return ("uploadId" in query) != (method == "POST")


def _single(method: str, bucket: str, key: str, query: dict[str, list[str]]) -> list[Target]:
    version_id = query.get("versionId", [None])[0] if method == "DELETE" else None
    return [Target(bucket, key, version_id)]


def _multi_delete(bucket: str, body: bytes, answer: Answer) -> list[Target]:
    refused = [_text(error, "Key") for error in _elements(answer.body, "Error")]
    asked = [(_text(one, "Key"), _text(one, "VersionId")) for one in _elements(body, "Object")]
    return [Target(bucket, key, version_id) for key, version_id in asked if key is not None and key not in refused]


def _elements(document: bytes, name: str) -> list[ET.Element]:
    # S3 takes these documents with its namespace and without. They come from this machine's own client.
    return [one for one in ET.fromstring(document).iter() if one.tag.rpartition("}")[2] == name]  # noqa: S314


def _text(parent: ET.Element, name: str) -> str | None:
    return next((one.text or "" for one in parent if one.tag.rpartition("}")[2] == name), None)


def _query(environ: Environ) -> dict[str, list[str]]:
    return parse_qs(environ.get("QUERY_STRING", ""), keep_blank_values=True)
