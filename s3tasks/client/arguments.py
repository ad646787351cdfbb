"""What callers give to the verbs, checked before anything is begun.

It never asks Redis or S3 anything: what is wrong with an argument by itself is said here, in one clear error.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, BinaryIO

from s3tasks.metadata import checked_content_type, checked_metadata
from s3tasks.refs import ObjectRef, checked_etag
from s3tasks.store import ByteRange, Condition, Content, check_options

RefLike = str | Mapping[str, Any] | ObjectRef
Body = bytes | bytearray | memoryview | str | BinaryIO


def body_bytes(body: object) -> bytes:
    """The bytes of a body that is at hand: text is written as UTF-8. TypeError for what is neither bytes nor text."""
    if isinstance(body, str):
        return body.encode()
    if isinstance(body, bytes | bytearray | memoryview):
        return bytes(body)
    raise TypeError(f"a body is bytes or str, or a file open for reading in binary mode, not {type(body).__name__}")


def is_stream(body: object) -> bool:
    """Whether the body is read piece by piece."""
    return callable(getattr(body, "read", None))


def content_of(
    operations: tuple[str, ...],
    content_type: str | None,
    metadata: Mapping[str, str] | None,
    put_options: Mapping[str, Any] | None,
    body: bytes = b"",
) -> Content:
    """What goes with a body, fit for each of the operations (`PutObject`, …) that may write it. TypeError or ValueError if not."""
    if put_options:
        check_options(operations, put_options)
    return Content(body, checked_content_type(content_type), checked_metadata(metadata), dict(put_options or {}))


def condition_of(if_match: str | None, if_none_match: object) -> Condition:
    """The condition that a write is to be made on."""
    fresh = truth("if_none_match", if_none_match)
    if if_match is not None and fresh:
        raise ValueError("if_match and if_none_match contradict each other: give one")
    return Condition(if_none_match=fresh) if if_match is None else Condition(if_match=checked_etag(if_match))


def truth(name: str, given: object) -> bool:
    """True or false; ValueError for anything else, which might be meant either way."""
    if not isinstance(given, bool):
        raise ValueError(f"{name}={given!r}: must be true or false")  # noqa: TRY004 - a wrong value, wherever it comes from
    return given


def byte_range_of(given: object) -> ByteRange | None:
    """First and last byte, both included; no last: to the end."""
    if given is None:
        return None
    first, last = given if isinstance(given, list | tuple) and len(given) == 2 else (None, None)
    good = type(first) is int and first >= 0 and (last is None or (type(last) is int and last >= first))
    if not good or first is None:
        raise ValueError(f"byte_range={given!r}: must be [first, last] with 0 <= first <= last, last may be null")
    return first, last


def seconds_of(wait: object) -> float:
    """How long to wait."""
    if not isinstance(wait, int | float) or isinstance(wait, bool) or not wait >= 0:
        raise ValueError(f"wait={wait!r}: must be a number of seconds from 0")
    return wait
