"""How evidence is spelled in Redis: the fields of a record, as the scripts of the ledger read and write them.

It never asks Redis anything. What cannot be read is passed over and logged: a record may have been put there by anybody. A record
of a schema that is not known here is neither read nor written: it is a newer version's, and waits for a worker that knows it.

The spelling is short because Redis keeps a hash in one piece, in half the memory, only while each of its fields and values has 64
bytes or less (hash-max-listpack-value). So a UUID is its 16 bytes, an ETag of hex digits is theirs, and a number has seven.
"""

from __future__ import annotations

import base64
import logging
import re
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any, TypeVar
from urllib.parse import unquote

from s3tasks import ledger_former_spelling as former
from s3tasks.errors import LedgerUnavailable
from s3tasks.evidence import Current, Intent, Landed, Record
from s3tasks.refs import ObjectRef

SCHEMA = "2"
_NUMBER_BYTES, _DATE_BYTES = 7, 4
_LATEST_DATE = 0xFFFFFFFF
_DATE_AT = 2 * _NUMBER_BYTES
_TAIL_AT = _DATE_AT + _DATE_BYTES
_UUID = re.compile("[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_UUID_BYTES, _UUID_CHARACTERS = 16, 36
_AWS_VERSION = re.compile("[A-Za-z0-9._]{32}")
_AWS_VERSION_BYTES = 24
_HEX_ETAG = re.compile("([0-9a-f]{32})(?:-([1-9][0-9]{0,3}|10000))?")
_ETAG_BYTES, _PARTS_BYTES = 16, 2
# The first byte of a packed tail: how many bytes the size has, and whether the ETag ends with a number of parts. Words begin with
# a space instead.
_SIZE_BYTES, _HAS_PARTS = 0x0F, 0x10

# Records of hot keys, with more, would fill the memory that keeps them.
_MOST_KEPT_FIELDS = 8

Entry = TypeVar("Entry")
Fields = tuple[tuple[bytes, bytes], ...]

logger = logging.getLogger(__name__)


def spelled_write_id(write_id: str) -> bytes:
    """A write id as fields and scripts have it: a UUID's 16 bytes and what follows it, or a colon and the text."""
    packed = bytes.fromhex(write_id[:_UUID_CHARACTERS].replace("-", "")) if _UUID.match(write_id) else b":"
    if packed.startswith(b":"):
        return b":" + write_id.encode(errors="surrogateescape")
    return packed + write_id[_UUID_CHARACTERS:].encode(errors="surrogateescape")


def _write_id(spelled: bytes) -> str:
    if spelled.startswith(b":"):
        return _text(spelled[1:])
    return _uuid(spelled[:_UUID_BYTES]) + _text(spelled[_UUID_BYTES:])


def _uuid(packed: bytes) -> str:
    digits = packed.hex()
    if len(packed) != _UUID_BYTES:
        raise ValueError("too short for a UUID")
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"


def rest_of(landed: Landed) -> bytes:
    """What the scripts take for the rest of a current write: its date, and a tail that they need not understand."""
    date = min(max(landed.date, 0), _LATEST_DATE).to_bytes(_DATE_BYTES, "big")
    return date + (_packed(landed) or b" " + former.tail_of(landed).encode())


def _packed(landed: Landed) -> bytes | None:
    """Size, ETag and version id in a few bytes; None where one of them has a form that is told in words."""
    etag, version = _HEX_ETAG.fullmatch(landed.etag or ""), _packed_version(landed.version_id)
    if landed.deleted or etag is None or version is None or (landed.size or 0) > former.LARGEST_NUMBER:
        return None
    size = b"" if landed.size is None else landed.size.to_bytes(max(1, (landed.size.bit_length() + 7) // 8), "big")
    parts = int(etag[2]).to_bytes(_PARTS_BYTES, "big") if etag[2] else b""
    head = len(size) | (_HAS_PARTS if parts else 0)
    return bytes([head]) + size + bytes.fromhex(etag[1]) + parts + version


def _packed_version(version_id: str | None) -> bytes | None:
    """AWS's version ids (32 of 64 characters) as 24 bytes, UUIDs as 16, none as nothing; None for all others."""
    if version_id is None:
        return b""
    if _UUID.fullmatch(version_id):
        return bytes.fromhex(version_id.replace("-", ""))
    return base64.b64decode(version_id, altchars=b"._") if _AWS_VERSION.fullmatch(version_id) else None


def current_of(write_id: str, text: bytes) -> Current:
    """The current write that a field of the record holds. ValueError where it holds none."""
    begun, committed = _begun_and_committed(text)
    date, tail = int.from_bytes(text[_DATE_AT:_TAIL_AT], "big"), text[_TAIL_AT:]
    facts = former.facts_of(date, tail[1:].decode()) if tail.startswith(b" ") else _facts(date, tail)
    return Current(write_id=write_id, begun=begun, committed=committed, **facts)


def _facts(date: int, tail: bytes) -> dict[str, Any]:
    etag_at = 1 + (tail[0] & _SIZE_BYTES)
    parts_at = etag_at + _ETAG_BYTES
    version_at = parts_at + (_PARTS_BYTES if tail[0] & _HAS_PARTS else 0)
    if len(tail) < version_at:
        raise ValueError("too short for a current write")
    parts = f"-{int.from_bytes(tail[parts_at:version_at], 'big')}" if version_at > parts_at else ""
    return {
        "date": date,
        "etag": tail[etag_at:parts_at].hex() + parts,
        "version_id": _version(tail[version_at:]),
        "size": int.from_bytes(tail[1:etag_at], "big") if etag_at > 1 else None,
    }


def _version(packed: bytes) -> str | None:
    if not packed:
        return None
    if len(packed) == _UUID_BYTES:
        return _uuid(packed)
    if len(packed) != _AWS_VERSION_BYTES:
        raise ValueError("no version id has so many bytes")
    return base64.b64encode(packed, altchars=b"._").decode()


def _numbers(text: bytes) -> tuple[int, ...]:
    found = tuple(int.from_bytes(text[at : at + _NUMBER_BYTES], "big") for at in range(0, len(text), _NUMBER_BYTES))
    if len(text) % _NUMBER_BYTES or not found or max(found) > former.LARGEST_NUMBER:
        raise ValueError("not the numbers that a record may hold")
    return found


def _begun_and_committed(text: bytes) -> tuple[int, int]:
    begun, committed = int.from_bytes(text[:_NUMBER_BYTES], "big"), int.from_bytes(text[_NUMBER_BYTES:_DATE_AT], "big")
    # The scripts look at the first byte of a tail, and no further.
    if not b"" < text[_TAIL_AT : _TAIL_AT + 1] <= b" " or max(begun, committed) > former.LARGEST_NUMBER:
        raise ValueError("not a current write")
    return begun, committed


def _intent(write_id: str, text: bytes) -> Intent:
    return Intent(write_id, _numbers(text[1:]), **former.KINDS[text[:1].decode()])


def record_of(fields: dict[bytes, bytes], ref: ObjectRef) -> Record:
    """The record that a hash holds. LedgerUnavailable where its schema is not known here: a read of it would go unchecked."""
    schema = fields.get(b"v", former.SCHEMA.encode()).decode(errors="replace")
    if schema not in (SCHEMA, former.SCHEMA):
        raise unknown_schema("lookup", ref, schema)
    understand = _kept_record if len(fields) <= _MOST_KEPT_FIELDS else _record
    record, garbage = understand(schema, tuple(fields.items()))
    for name in garbage:
        logger.warning("the ledger's record of %s holds garbage in %.80r: passed over", ref, name)
    return record


def _record(schema: str, fields: Fields) -> tuple[Record, tuple[bytes, ...]]:
    """The record in these fields, and the names of those that hold garbage."""
    garbage: list[bytes] = []
    record = _former_record(fields, garbage) if schema == former.SCHEMA else Record(
        _seq(fields),
        tuple(_readable(fields, b"i", lambda name, text: _intent(_write_id(name), text), garbage)),
        tuple(_readable(fields, b"c", lambda name, text: current_of(_write_id(name), text), garbage)),
        tuple(_readable(fields, b"u:", lambda name, text: (unquote(_text(name)), _write_id(text)), garbage)),
    )
    return record, tuple(garbage)


# What is read more often than it is written is understood once: a sixth of what a body from the cache costs otherwise.
_kept_record = lru_cache(maxsize=1024)(_record)


def unknown_schema(operation: str, ref: ObjectRef, schema: str) -> LedgerUnavailable:
    """The error for a record that another version of this package keeps: retried, for a newer worker may take the task."""
    return LedgerUnavailable(
        operation,
        f"the record of {ref.uri} has schema {schema!r:.20}, and this version of s3tasks knows {SCHEMA!r}: a newer version keeps "
        "it; upgrade this process, or have the record dropped: s3tasks forget",
    )


def _seq(fields: Fields) -> int:
    """The newest number: spelled out, or the newest that a field shows, as the scripts see it."""
    return max(former.seq_of(dict(fields)), *(_shown(name, text) for name, text in fields))


def _shown(name: bytes, text: bytes) -> int:
    if not (name[1:2] == b":" or len(name) > _UUID_BYTES):
        return 0
    try:
        if name.startswith(b"c"):
            return _begun_and_committed(text)[1]
        return _numbers(text[1:])[-1] if name.startswith(b"i") and text[:1].decode() in former.KINDS else 0
    except ValueError:
        return 0


def _former_record(fields: Fields, garbage: list[bytes]) -> Record:
    seq = former.seq_of(dict(fields))
    intents = _readable(fields, b"i:", lambda name, text: former.intent_of(_text(name), text.decode()), garbage)
    currents = _readable(fields, b"c:", lambda name, text: former.current_of(_text(name), text.decode()), garbage)
    uploads = _readable(fields, b"u:", lambda name, text: (unquote(_text(name)), text.decode()), garbage)
    # What the record has not counted yet was not put there by a move.
    return Record(
        seq,
        tuple(intent for intent in intents if intent.last <= seq),
        tuple(current for current in currents if current.committed <= seq),
        tuple(uploads),
    )


def _text(spelled: bytes) -> str:
    return spelled.decode(errors="surrogateescape")


def _readable(
    fields: Fields, kind: bytes, read: Callable[[bytes, bytes], Entry], garbage: list[bytes]
) -> Iterator[Entry]:
    for name, value in fields:
        if not name.startswith(kind):
            continue
        try:
            yield read(name[len(kind) :], value)
        except (ValueError, KeyError):
            garbage.append(name)
