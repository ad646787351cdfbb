"""What is there: S3, asked one question at a time; the only room that knows boto3.

It never judges what it is served, and never tries a write twice: an attempt is one request, counted by the ledger's tickets.

Answers are judged by HTTP status, for stores differ in their error codes; ETags are taken from answers, never computed. Every
failure leaves through one door, as StoreUnavailable (it may work later; a write may have landed) or StoreError (a definite no).
"""

from __future__ import annotations

import enum
import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import Any

import boto3
import botocore.exceptions
import urllib3.exceptions
from boto3.exceptions import Boto3Error
from botocore.config import Config
from botocore.parsers import ResponseParserError

from s3tasks.errors import PayloadTooLarge, StoreError, StoreUnavailable, WriteConflict
from s3tasks.evidence import Landed, Served
from s3tasks.refs import MARKER_METADATA_KEY, Marker, ObjectRef, normal_etag
from s3tasks.settings import Settings

logger = logging.getLogger(__name__)

TRANSIENT = (
    botocore.exceptions.ConnectionError,
    botocore.exceptions.HTTPClientError,
    botocore.exceptions.IncompleteReadError,
    botocore.exceptions.ChecksumError,
    botocore.exceptions.FlexibleChecksumError,
    botocore.exceptions.AwsChunkedWrapperError,
    botocore.exceptions.CapacityNotAvailableError,
    # Credentials that are fetched over the network, which may be down for a moment.
    botocore.exceptions.CredentialRetrievalError,
    botocore.exceptions.MetadataRetrievalError,
    botocore.exceptions.TokenRetrievalError,
    ResponseParserError,
    urllib3.exceptions.HTTPError,
    OSError,
)
"""The client's errors after which the same call may succeed; all others of its errors are definite."""

PERMANENT = (
    botocore.exceptions.BotoCoreError,
    botocore.exceptions.UndefinedModelAttributeError,
    Boto3Error,
    # botocore's own handlers raise these for parameters of the wrong type, and on answers that they cannot make sense of.
    TypeError,
    ValueError,
)

ByteRange = tuple[int, int | None]
WHOLE: ByteRange = (0, None)
OUR_PUT_PARAMETERS = frozenset({"Bucket", "Key", "Body", "Metadata", "ContentType", "IfMatch", "IfNoneMatch"})
_BUSY_STATUSES = frozenset({408, 409, 425, 429})
# 501 is the one 5xx that says "never": the endpoint does not implement what was asked.
_NOT_IMPLEMENTED = 501
# S3 reports a request that came in too slowly as a 400; the code alone tells it from a bad request.
_SLOW_REQUEST_CODES = frozenset({"RequestTimeout", "RequestTimeoutException"})


class Endpoint(enum.Enum):
    """Which of the two endpoints is asked: the one written to (the origin), or the one read from."""

    WRITE = "write"
    READ = "read"


@dataclass(frozen=True)
class Condition:
    """What a conditional write or delete demands: the current ETag (`if_match`), or that there is no object (`if_none_match`)."""

    if_match: str | None = None
    if_none_match: bool = False

    def __bool__(self) -> bool:
        return self.if_match is not None or self.if_none_match

    def __str__(self) -> str:
        return f'If-Match: "{self.if_match}"' if self.if_match is not None else "If-None-Match: *"

    def parameters(self) -> dict[str, str]:
        """The condition as parameters of a botocore call."""
        if self.if_match is not None:
            return {"IfMatch": f'"{self.if_match}"'}
        return {"IfNoneMatch": "*"} if self.if_none_match else {}


@dataclass(frozen=True)
class Content:
    """What is to be written: the bytes, and what goes with them. `options` are further parameters of S3's PutObject by name."""

    body: bytes
    content_type: str | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Answer:
    """An endpoint's answer to a GET or HEAD: what is served (None: a 404), or that the If-Match sent did not hold.

    `length` is how many bytes a GET's body has, `date` when the endpoint answered, by its clock (seconds since 1970, 0 where it did
    not say). The body is still on its way: `read` or `close` it.
    """

    served: Served | None
    condition_failed: bool = False
    length: int = 0
    date: int = 0
    _ref: ObjectRef | None = None
    _body: Any = None
    # What of the body was asked for: a server may take no notice of the Range header, or send more (RFC 9110, 14.2).
    _cut: ByteRange = WHOLE

    @property
    def has_body(self) -> bool:
        """Whether a body is waiting to be read."""
        return self._body is not None

    def read(self, limit_bytes: int | None = None) -> bytes:
        """The whole body. PayloadTooLarge, before a byte is read, if it is over the limit; StoreUnavailable if it breaks off."""
        if self._ref is None or self._body is None:
            raise ValueError("this answer has no body")
        with closing(self._body):
            wanted = len(range(self.length)[slice(*self._cut)])
            if limit_bytes is not None and wanted > limit_bytes:
                raise PayloadTooLarge("read", wanted, limit_bytes)
            with _door("GetObject", self._ref):
                body: bytes = self._body.read()
        if len(body) != self.length:
            raise StoreUnavailable(
                "GetObject", self._ref.bucket, self._ref.key, f"{len(body)} of {self.length} bytes arrived"
            )
        return body[slice(*self._cut)]

    def close(self) -> None:
        """Gives up the body."""
        if self._body is not None:
            self._body.close()


class Store:
    """S3 behind its one or two endpoints, shared by the threads of one process (botocore's clients must not be forked).

    Credentials are found by boto3 itself. Every method raises StoreUnavailable or StoreError as the module says.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        with _door("connect", None):
            session = boto3.session.Session(region_name=settings.region_name)
            self._writer = self._client(session, settings.endpoint_url, attempts=1)
            self._reader = self._client(
                session, settings.read_endpoint_url or settings.endpoint_url, attempts=settings.store_attempts
            )

    def _client(self, session: Any, endpoint_url: str | None, attempts: int) -> Any:
        settings = self._settings
        config = Config(
            connect_timeout=settings.connect_timeout_seconds,
            read_timeout=settings.read_timeout_seconds,
            max_pool_connections=settings.pool_connections,
            retries={"total_max_attempts": attempts, "mode": "standard"},
            s3={"addressing_style": settings.addressing_style},
            user_agent_extra="s3tasks",
        )
        return session.client("s3", endpoint_url=endpoint_url, config=config)

    def put(self, ref: ObjectRef, content: Content, marker: Marker, condition: Condition) -> Landed:
        """Writes the object with our marker in its metadata, in one attempt.

        Raises WriteConflict where S3 says that the condition does not hold; ValueError for an option that PutObject has not.
        """
        parameters: dict[str, Any] = {**content.options, **condition.parameters()}
        parameters["Metadata"] = {**content.metadata, MARKER_METADATA_KEY: marker.text(ref)}
        if content.content_type is not None:
            parameters["ContentType"] = content.content_type
        with _conflicts(ref, condition), _door("PutObject", ref):
            said = self._writer.put_object(Bucket=ref.bucket, Key=ref.key, Body=content.body, **parameters)
        return Landed(
            etag=normal_etag(said.get("ETag")),
            version_id=_exact_version(said.get("VersionId")),
            size=len(content.body),
            date=_date_of(said),
        )

    def delete(self, ref: ObjectRef, condition: Condition) -> Landed:
        """Deletes the object (in a versioned bucket: puts a delete marker), in one attempt. A missing key is no error in S3."""
        with _conflicts(ref, condition), _door("DeleteObject", ref):
            said = self._writer.delete_object(Bucket=ref.bucket, Key=ref.key, **condition.parameters())
        return Landed(version_id=_exact_version(said.get("VersionId")), date=_date_of(said), deleted=True)

    def get(
        self,
        ref: ObjectRef,
        endpoint: Endpoint,
        *,
        if_match: str | None = None,
        byte_range: ByteRange | None = None,
        version_id: str | None = None,
    ) -> Answer:
        """Asks for the object, or for `byte_range` of it (first and last byte, both included; no last: to the end).

        An endpoint that refuses If-Match altogether is asked again without it.
        """
        parameters: dict[str, Any] = {"Bucket": ref.bucket, "Key": ref.key}
        if byte_range is not None:
            first, last = byte_range
            parameters["Range"] = f"bytes={first}-{'' if last is None else last}"
        if version_id is not None:
            parameters["VersionId"] = version_id
        conditional = if_match is not None and self._settings.send_if_match
        condition = {"IfMatch": f'"{if_match}"'} if conditional else {}
        try:
            return self._ask("get_object", ref, endpoint, {**parameters, **condition}, byte_range)
        except StoreError as problem:
            if not conditional or problem.status not in (400, _NOT_IMPLEMENTED):
                raise
        logger.warning("%s refuses If-Match (set send_if_match to false): asked without", ref.uri)
        return self._ask("get_object", ref, endpoint, parameters, byte_range)

    def head(self, ref: ObjectRef, endpoint: Endpoint, *, version_id: str | None = None) -> Answer:
        """What a GET would be served, without its body."""
        version = {} if version_id is None else {"VersionId": version_id}
        return self._ask("head_object", ref, endpoint, {"Bucket": ref.bucket, "Key": ref.key, **version})

    def check_put_options(self, options: Mapping[str, Any]) -> None:
        """Raises ValueError for an option that S3's PutObject does not have, or that has an argument of its own here."""
        known = self._writer.meta.service_model.operation_model("PutObject").input_shape.members
        for name in options:
            # A length that is not the body's keeps S3 waiting for the rest, which looks like an outage.
            if name in OUR_PUT_PARAMETERS or name == "ContentLength":
                raise ValueError(f"put_options: {name} is set by s3tasks itself: use the argument of write for it")
            if name not in known:
                raise ValueError(f"put_options: S3's PutObject has no {name!r}; it has {', '.join(sorted(known))}")

    def close(self) -> None:
        """Closes the connections."""
        self._writer.close()
        self._reader.close()

    def _ask(
        self,
        method: str,
        ref: ObjectRef,
        endpoint: Endpoint,
        parameters: dict[str, Any],
        byte_range: ByteRange | None = None,
    ) -> Answer:
        client = self._writer if endpoint is Endpoint.WRITE else self._reader
        operation = "GetObject" if method == "get_object" else "HeadObject"
        try:
            with _door(operation, ref):
                said = getattr(client, method)(**parameters)
        except StoreError as refusal:
            if refusal.status == 412:
                return Answer(None, condition_failed=True)
            if refusal.status == 404 and refusal.code != "NoSuchBucket":
                return Answer(None, date=_date_of(getattr(refusal.__cause__, "response", {})))
            raise
        return Answer(
            _served(said, ref), length=said.get("ContentLength", 0), _ref=ref, _body=said.get("Body"),
            _cut=_cut(byte_range, said.get("ContentRange", "")),
        )


@contextmanager
def _door(operation: str, ref: ObjectRef | None) -> Iterator[None]:
    """The one way out for errors of boto3, botocore and urllib3."""
    bucket, key = (ref.bucket, ref.key) if ref else ("", "")
    try:
        yield
    except botocore.exceptions.ClientError as answer:
        raise _from_answer(operation, bucket, key, answer) from answer
    except TRANSIENT as problem:
        raise StoreUnavailable(operation, bucket, key, f"{type(problem).__name__}: {problem}") from problem
    except PERMANENT as problem:
        # Some of botocore's validation messages quote the value, which may be a key or a token.
        message = re.sub(r"value: .*?, (type|valid)", r"\1", str(problem), flags=re.DOTALL)
        raise StoreError(operation, bucket, key, type(problem).__name__, message=message) from problem


def _from_answer(
    operation: str, bucket: str, key: str, answer: botocore.exceptions.ClientError
) -> StoreUnavailable | StoreError:
    said = answer.response.get("Error", {})
    meta = answer.response.get("ResponseMetadata", {})
    code, message = str(said.get("Code", "")), str(said.get("Message", ""))
    status = meta.get("HTTPStatusCode")
    passing = status is None or status in _BUSY_STATUSES or (status >= 500 and status != _NOT_IMPLEMENTED)
    if passing or code in _SLOW_REQUEST_CODES:
        return StoreUnavailable(operation, bucket, key, f"{code}: {message}", status)
    return StoreError(operation, bucket, key, code, status, meta.get("RequestId"), message)


@contextmanager
def _conflicts(ref: ObjectRef, condition: Condition) -> Iterator[None]:
    """Turns S3's no to a condition into WriteConflict; a missing object fails If-Match with a 404 on some stores."""
    try:
        yield
    except StoreError as refusal:
        lost = refusal.status == 412 or (refusal.status == 404 and refusal.code != "NoSuchBucket")
        if condition and lost:
            raise WriteConflict(ref.bucket, ref.key, str(condition)) from refusal
        raise


def _cut(byte_range: ByteRange | None, content_range: str) -> ByteRange:
    """Where in the body that came lie the bytes that were asked for."""
    if byte_range is None:
        return WHOLE
    came = re.match(r"bytes (\d+)-", content_range)
    first, last = byte_range
    begins = int(came.group(1)) if came else 0
    return max(first - begins, 0), None if last is None else last + 1 - begins


def _served(said: Mapping[str, Any], ref: ObjectRef) -> Served:
    metadata = {name.lower(): value for name, value in said.get("Metadata", {}).items()}
    marker = metadata.pop(MARKER_METADATA_KEY, None)
    modified = said.get("LastModified")
    whole = re.fullmatch(r"bytes \d+-\d+/(\d+)", said.get("ContentRange", ""))
    return Served(
        etag=normal_etag(said.get("ETag")),
        version_id=_exact_version(said.get("VersionId")),
        size=int(whole.group(1)) if whole else said.get("ContentLength"),
        last_modified=int(modified.timestamp()) if modified else 0,
        marker=Marker.parse(marker, ref),
        content_type=said.get("ContentType"),
        metadata=metadata,
    )


def _exact_version(version_id: str | None) -> str | None:
    # "null" is the one version id that a later write takes over, so it names no exact write.
    return None if version_id in (None, "", "null") else version_id


def _date_of(said: Mapping[str, Any]) -> int:
    date = said.get("ResponseMetadata", {}).get("HTTPHeaders", {}).get("date")
    try:
        return int(parsedate_to_datetime(date).timestamp()) if date else 0
    except ValueError:
        return 0
