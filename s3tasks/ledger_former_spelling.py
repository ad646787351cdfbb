"""How evidence was spelled by schema 1, in words: records that older workers have left are still understood, as long as they last.

It never spells a record anew: the scripts do, in the first move that meets one.
"""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import quote, unquote

from s3tasks.evidence import Current, Intent, Landed

SCHEMA = "1"
KINDS: dict[str, dict[str, bool]] = {"w": {}, "d": {"deletes": True}, "f": {"finished": True}}
# As in record.lua: beyond it a double, which is what Lua counts in, has no whole numbers left.
LARGEST_NUMBER = 9_000_000_000_000_000
_UNKNOWN, _DELETED = "*", "!"


def tail_of(landed: Landed) -> str:
    """The last three words of a current write, "<etag> <version id> <size>", which schema 2 keeps for what it cannot pack."""
    etag = _DELETED if landed.deleted else _word(landed.etag)
    size = _UNKNOWN if landed.size is None else str(landed.size)
    return f"{etag} {_word(landed.version_id)} {size}"


def _word(text: str | None) -> str:
    return _UNKNOWN if text is None else quote(text, safe="")


def facts_of(date: int, tail: str) -> dict[str, Any]:
    """What S3 had said, by those three words: the fields of a Landed. ValueError where they are others."""
    etag, version_id, size = tail.split(" ")
    return {
        "date": date,
        "etag": None if etag in (_UNKNOWN, _DELETED) else _unquoted(etag),
        "version_id": None if version_id == _UNKNOWN else _unquoted(version_id),
        "size": None if size == _UNKNOWN else number(size),
        "deleted": etag == _DELETED,
    }


def current_of(write_id: str, text: str) -> Current:
    """The current write of "<begun> <committed> <date> <etag> <version id> <size>". ValueError for anything else."""
    begun, committed, date, tail = text.split(" ", 3)
    return Current(write_id=write_id, begun=number(begun), committed=number(committed), **facts_of(number(date), tail))


def intent_of(write_id: str, text: str) -> Intent:
    """The intent of "<w|d|f> <ticket> <ticket> …". ValueError or KeyError for anything else."""
    does, first, *later = text.split(" ")
    return Intent(write_id, (number(first), *map(number, later)), **KINDS[does])


def seq_of(fields: dict[bytes, bytes]) -> int:
    """What the field `seq` says, 0 where that is nothing."""
    try:
        return number(fields.get(b"seq", b"0").decode())
    except ValueError:
        return 0


def number(text: str) -> int:
    """A whole number that a record may hold; ValueError for anything else."""
    if not re.fullmatch("[0-9]{1,16}", text) or int(text) > LARGEST_NUMBER:
        raise ValueError(f"{text:.40} is no number that a record may hold")
    return int(text)


def _unquoted(word: str) -> str:
    text = unquote(word, errors="strict")
    if any(character < " " or character == "\x7f" or character > "\xff" for character in text):
        raise ValueError("what goes into a header holds no such character")
    return text
