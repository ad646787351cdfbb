"""Which object is meant, what an etag is, and how an object's Redis keys and marker are spelled.

It never asks Redis or S3 anything: a ref may name an object that does not exist.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
import reprlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, unquote

from s3tasks.errors import InvalidRef, one_line

MAX_KEY_BYTES = 1024
MARKER_METADATA_KEY = "s3tasks-write"

_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,254}")
# Access points, multi-region ones among them, take the place of a bucket name in every object call.
_ACCESS_POINT = re.compile(r"arn:[a-z0-9-]+:s3[a-z0-9-]*:[a-z0-9-]*:[0-9]{12}:accesspoint[:/][A-Za-z0-9.-]+")
# RFC 9110, 8.8.3: what may stand between the quotes of an entity tag; no control character can reach a header this way.
_ETAG = re.compile(r"[\x21\x23-\x7e\x80-\xff]{1,1024}")
_VERSION_ID = re.compile(r"[\x21-\x7e]{1,1024}")
_WRITE_TEXTS = (
    ("etag", _ETAG, "the etag is not an entity tag (RFC 9110)"),
    ("version_id", _VERSION_ID, "the version id is not printable text"),
)
_ACCESS_POINT_AND_KEY = re.compile(f"({_ACCESS_POINT.pattern})/(.*)", re.DOTALL)
_SHOWN_CHARACTERS = 120
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _SHOWN_CHARACTERS


def normal_etag(raw: str | None) -> str | None:
    """The opaque part of an ETag header: no quotes, no `W/`; None where the header is missing or empty (RFC 9110, 8.8.3)."""
    if raw is None:
        return None
    return raw.strip().removeprefix("W/").strip('"') or None


def checked_etag(given: object) -> str:
    """The normal form of an ETag that a caller names; ValueError for what cannot be one."""
    etag = normal_etag(given) if isinstance(given, str) else None
    if etag is None or not _ETAG.fullmatch(etag):
        raise ValueError(f"{_shown(_picture(given)) or repr(given)} is not an ETag: give it as a ref carries it")
    return etag


@dataclass(frozen=True)
class ObjectRef:
    """One object, or one exact write of it.

    `bucket` and `key` say which object. What a write adds says which write: `etag` (unquoted), `version_id` (versioned buckets
    only), `seq` (the ledger's number of the write's commit; it also orders writes in time), `size` in bytes, and `deleted` where
    the write was a delete. A ref with `etag` or `seq` is exact: reading it gives that write's bytes or an error.
    """

    bucket: str
    key: str
    etag: str | None = None
    version_id: str | None = None
    seq: int | None = None
    size: int | None = None
    deleted: bool = False

    def __post_init__(self) -> None:
        problem = _problem_with(self)
        if problem:
            raise InvalidRef(_shown(f"s3://{_picture(self.bucket)}/{_picture(self.key)}"), problem)

    @property
    def uri(self) -> str:
        """`s3://bucket/key`, with the key as it is: nothing in it is percent-encoded."""
        return f"s3://{self.bucket}/{self.key}"

    def __str__(self) -> str:
        return one_line(self.uri)

    @property
    def exact(self) -> bool:
        """Whether this ref names one write rather than whatever is current."""
        return self.etag is not None or self.seq is not None

    @classmethod
    def parse(cls, given: str | Mapping[str, Any] | ObjectRef) -> ObjectRef:
        """The ref that a string (`s3://bucket/key`), a dict made by `to_dict`, or another ref stands for.

        Keys of a dict that are not known here are passed over, so that refs made by a later version can be read.
        Raises InvalidRef for anything else, with what is wrong and what was given.
        """
        if isinstance(given, ObjectRef):
            return given
        if isinstance(given, str):
            return _parse_uri(given)
        if isinstance(given, Mapping):
            return _parse_dict(given)
        raise InvalidRef(_shown(_picture(given)), f"a ref is 's3://bucket/key' or a dict, not {type(given).__name__}")

    def to_dict(self) -> dict[str, Any]:
        """The ref as a plain JSON dict, without the fields that say nothing."""
        fields = dataclasses.asdict(self)
        return {name: value for name, value in fields.items() if value is not None and value is not False}

    def __json__(self) -> dict[str, Any]:
        """How kombu writes a ref that is passed to a task: as the dict that a task returns."""
        return self.to_dict()

    def plain(self) -> ObjectRef:
        """The same object, without saying which write of it."""
        says_more = self.exact or self.deleted or self.version_id is not None or self.size is not None
        return ObjectRef(self.bucket, self.key) if says_more else self


def listed(verb: str, given: object) -> list[Any]:
    """What a verb for many is to do, one by one; TypeError for what would come apart into something else, or not at all."""
    if isinstance(given, str | bytes | Mapping | ObjectRef) or not isinstance(given, Iterable):
        raise TypeError(f"{verb} takes a list, one entry for each object, not {type(given).__name__}")
    return list(given)


_FIELDS = tuple(field.name for field in dataclasses.fields(ObjectRef))


def _parse_uri(given: str) -> ObjectRef:
    if not given.startswith("s3://"):
        raise InvalidRef(_shown(given), "it must begin with s3://")
    rest = given[len("s3://") :]
    arn = _ACCESS_POINT_AND_KEY.fullmatch(rest)
    bucket, key = arn.groups() if arn else rest.partition("/")[::2]
    return ObjectRef(bucket, key)


def _parse_dict(given: Mapping[str, Any]) -> ObjectRef:
    known = {name: given[name] for name in _FIELDS if name in given}
    if "bucket" not in known or "key" not in known:
        missing = {"bucket", "key"} - known.keys()
        raise InvalidRef(_shown(_picture(dict(given))), f"it has no {' and no '.join(sorted(missing))}")
    if isinstance(known.get("etag"), str):
        # An etag that says nothing must not make an exact ref into one that takes any write.
        known["etag"] = normal_etag(known["etag"]) or ""
    return ObjectRef(**known)


def _problem_with(ref: ObjectRef) -> str | None:
    return _problem_with_name(ref.bucket, ref.key) or _problem_with_write(ref)


def _problem_with_name(bucket: object, key: object) -> str | None:
    if not isinstance(bucket, str) or not (_BUCKET.fullmatch(bucket) or _ACCESS_POINT.fullmatch(bucket)):
        return "the bucket must be 1 to 255 letters, digits, dots, dashes or underscores, or an access point's ARN"
    if not isinstance(key, str) or not key:
        return "the key is missing"
    try:
        key_bytes = len(key.encode())
    except UnicodeEncodeError:
        return "the key is not valid Unicode"
    if key_bytes > MAX_KEY_BYTES:
        return f"the key has {key_bytes} bytes, and S3 takes {MAX_KEY_BYTES} at most"
    if "\0" in key:
        return "the key holds a NUL character"
    if any(part in (".", "..") for part in key.split("/")):
        return "a '.' or '..' between slashes is resolved as a path by HTTP clients and S3 servers on the way"
    return None


def _problem_with_write(ref: ObjectRef) -> str | None:
    for name, pattern, problem in _WRITE_TEXTS:
        text = getattr(ref, name)
        if text is not None and not (isinstance(text, str) and pattern.fullmatch(text)):
            return problem
    for name in ("seq", "size"):
        number = getattr(ref, name)
        if number is not None and (type(number) is not int or not 0 <= number < 2**63):
            return f"{name} is not a whole number from 0, below 2^63"
    deleted: object = ref.deleted
    return None if isinstance(deleted, bool) else "deleted is neither true nor false"


def _picture(given: object) -> str:
    """What was given, as text: its repr may be endless, or (for huge numbers) not even possible."""
    if isinstance(given, str):
        return given
    try:
        return _SHORT.repr(given)
    except ValueError:
        return f"a huge {type(given).__name__}"


def _shown(given: str) -> str:
    printable = given.encode("unicode_escape").decode() if not given.isprintable() else given
    return printable if len(printable) <= _SHOWN_CHARACTERS else f"{printable[:_SHOWN_CHARACTERS]}…"


def record_key(prefix: str, ref: ObjectRef) -> str:
    """The Redis key of the object's record. The braces put it in one Redis Cluster slot with `finished_key`."""
    return f"{prefix}:key:{{{ref.bucket}/{ref.key}}}"


def record_pattern(prefix: str, bucket: str | None, key_prefix: str) -> str:
    """The pattern (of Redis's SCAN) that the keys of records fit, of one bucket and beginning of key or of all."""
    wanted = "" if bucket is None else f"{bucket}/{key_prefix}"
    literal = re.sub(r"([*?\[\]\\^-])", r"\\\1", f"{prefix}:key:{{{wanted}")
    return f"{literal}*}}"


def ref_of_record(prefix: str, key: bytes) -> ObjectRef:
    """The object whose record has this Redis key; InvalidRef where it is the key of no record."""
    name = key.decode(errors="replace").removeprefix(f"{prefix}:key:{{").removesuffix("}")
    return ObjectRef.parse(f"s3://{name}")


def finished_key(prefix: str, ref: ObjectRef, write_id: str) -> str:
    """The Redis key that remembers a finished write. The write id is percent-encoded: no two pairs of key and id share a name."""
    return f"{prefix}:write:{{{ref.bucket}/{ref.key}}}:{quote(write_id, safe='')}"


def gone_key(prefix: str, ref: ObjectRef, version_id: str) -> str:
    """The Redis key that remembers a version as removed for good."""
    return f"{prefix}:gone:{{{ref.bucket}/{ref.key}}}:{quote(version_id, safe='')}"


def endpoint_key(prefix: str, endpoint_url: str, bucket: str) -> str:
    """The Redis key that remembers what an endpoint was found to honour for a bucket. URLs may hold secrets, so it is hashed."""
    return f"{prefix}:endpoint:{_endpoint_hash(endpoint_url, bucket)}"


def lags_key(prefix: str, endpoint_url: str, bucket: str) -> str:
    """The Redis key of the histogram of lags with which the endpoint serves the bucket. Hashed as `endpoint_key` is."""
    return f"{prefix}:lags:{_endpoint_hash(endpoint_url, bucket)}"


def _endpoint_hash(endpoint_url: str, bucket: str) -> str:
    return hashlib.sha256(f"{endpoint_url} {bucket}".encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Marker:
    """Which attempt of which write put an object's bytes there: kept in the object's user metadata.

    `ticket` is the ledger's number for the attempt. The text form carries a short hash of bucket and key, so a copy of an object
    under another name is not taken for a write of ours to that name.
    """

    write_id: str
    ticket: int

    def text(self, ref: ObjectRef) -> str:
        """The metadata value for this object: ASCII, without spaces."""
        return f"{quote(self.write_id, safe='')};{self.ticket};{_name_hash(ref)}"

    @classmethod
    def parse(cls, text: str | None, ref: ObjectRef) -> Marker | None:
        """The marker that `text` holds for this object, or None where there is none, or one of another object."""
        write_id, ticket, name_hash = (text or "").split(";") if (text or "").count(";") == 2 else ("", "", "")
        if not write_id or name_hash != _name_hash(ref) or not re.fullmatch("[0-9]{1,18}", ticket):
            return None
        return cls(unquote(write_id), int(ticket))


def _name_hash(ref: ObjectRef) -> str:
    return hashlib.sha256(f"{ref.bucket}/{ref.key}".encode()).hexdigest()[:16]
