"""What is said of an object besides its bytes, its content type and user metadata, checked before it is sent anywhere.

It never asks S3: what no header can carry is refused here, for an HTTP client says that like an outage.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from s3tasks.refs import MARKER_METADATA_KEY

# RFC 9110, 5.6.2: what the name of a header is made of.
_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")


def checked_content_type(content_type: object) -> str | None:
    """The content type, where one is given. TypeError or ValueError for what is none."""
    if content_type is None:
        return None
    if not isinstance(content_type, str):
        raise TypeError(f"content_type is text such as 'text/plain', not {type(content_type).__name__}")
    if not _fits(content_type):
        raise ValueError(f"content_type={content_type!r:.120}: a media type such as 'text/plain' is printable ASCII")
    return content_type


def checked_metadata(metadata: object) -> dict[str, str]:
    """User metadata: text by text, without our own name. TypeError or ValueError for anything else."""
    if metadata is not None and not isinstance(metadata, Mapping):
        raise TypeError(f"metadata is a mapping of text to text, not {type(metadata).__name__}")
    given = dict(metadata or {})
    for name, value in given.items():
        _check_entry(name, value)
    if len({name.lower() for name in given}) < len(given):
        raise ValueError("metadata has two names that differ in case alone, and S3 knows no case: choose another for one of them")
    return given


def _check_entry(name: object, value: object) -> None:
    if not isinstance(name, str) or not isinstance(value, str):
        raise TypeError(f"metadata is made of text, and {name!r}: {value!r} is not")
    if not _NAME.fullmatch(name):
        raise ValueError(f"metadata {name!r:.120}: a name is part of a header's: ASCII letters, digits, dashes and the like")
    if not _fits(value):
        raise ValueError(f"metadata {name!r}: S3 takes printable ASCII; encode the value, with urllib.parse.quote for instance")
    if name.lower() == MARKER_METADATA_KEY:
        raise ValueError(f"metadata {name!r} is where s3tasks keeps its own marker: choose another name")


def _fits(text: str) -> bool:
    return text.isascii() and text.isprintable()
