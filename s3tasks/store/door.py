"""The one way out for errors of boto3, botocore, s3transfer and urllib3: as StoreUnavailable, StoreError or WriteConflict.

It never asks S3 anything. Answers are judged by HTTP status, for stores differ in their error codes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import botocore.exceptions
import s3transfer.exceptions
import urllib3.exceptions
from boto3.exceptions import Boto3Error
from botocore.parsers import ResponseParserError

from s3tasks import events
from s3tasks.errors import StoreError, StoreUnavailable, WriteConflict
from s3tasks.refs import ObjectRef
from s3tasks.store.answers import Condition

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
    s3transfer.exceptions.RetriesExceededError,
    s3transfer.exceptions.S3DownloadFailedError,
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

NOT_IMPLEMENTED = 501
"""The one 5xx that says "never": the endpoint does not implement what was asked."""

# What S3 answers of an object that is missing (405: a delete marker), unchanged, or not what a condition demands.
_ANSWERS = frozenset({304, 404, 405, 412})
_BUSY_STATUSES = frozenset({408, 409, 425, 429})
# S3 reports a request that came in too slowly as a 400; the code alone tells it from a bad request. A multipart upload that is gone
# was ended by another delivery of the same write: this one asks the ledger again.
_PASSING_CODES = frozenset({"RequestTimeout", "RequestTimeoutException", "NoSuchUpload"})


class door:  # noqa: N801 - read as a word: `with door("PutObject", ref):`
    """Turns what the libraries raise into this package's errors; errors that are its own already pass unchanged."""

    __slots__ = ("_name", "_ref")

    def __init__(self, operation: str, ref: ObjectRef | None) -> None:
        self._name, self._ref = operation, ref

    def __enter__(self) -> None:
        """Nothing is asked of S3 here."""

    def __exit__(self, _: object, problem: BaseException | None, __: object) -> None:
        error = _converted(self._name, self._ref, problem)
        if error is not None:
            if events.listeners and not _is_answer(error):
                events.tell(events.Failed("store", self._name, _kind(error, problem)))
            raise error from problem


class call(door):  # noqa: N801 - as above
    """The door around one call to S3: those who listen are told how long it took and what went wrong."""

    __slots__ = ("_operation",)

    def __enter__(self) -> None:
        self._operation = events.begin("store", self._name, self._ref) if events.listeners else None

    def __exit__(self, kind: object, problem: BaseException | None, trace: object) -> None:
        try:
            super().__exit__(kind, problem, trace)
        except (StoreError, StoreUnavailable) as error:
            self._end(None if _is_answer(error) else _kind(error, problem))
            raise
        self._end(type(problem).__name__ if problem is not None else None)

    def _end(self, error: str | None) -> None:
        if self._operation is not None:
            self._operation.end(error)


@contextmanager
def told(operation: str, ref: ObjectRef) -> Iterator[None]:
    """Around one call that is made for s3transfer, which wants the client's own errors."""
    began = events.begin("store", operation, ref) if events.listeners else None
    problem: BaseException | None = None
    try:
        yield
    except BaseException as raised:
        problem = raised
        raise
    finally:
        if began is not None:
            error = _converted(operation, ref, problem)
            began.end(None if error is None or _is_answer(error) else _kind(error, problem))


def _converted(operation: str, ref: ObjectRef | None, problem: BaseException | None) -> StoreUnavailable | StoreError | None:
    bucket, key = (ref.bucket, ref.key) if ref else ("", "")
    if isinstance(problem, botocore.exceptions.ClientError):
        return _from_answer(operation, bucket, key, problem)
    if isinstance(problem, TRANSIENT):
        return StoreUnavailable(operation, bucket, key, f"{type(problem).__name__}: {problem}")
    if isinstance(problem, PERMANENT):
        # Some of botocore's validation messages quote the value, which may be a key or a token.
        message = re.sub(r"value: .*?, (type|valid)", r"\1", str(problem), flags=re.DOTALL)
        return StoreError(operation, bucket, key, type(problem).__name__, message=message)
    return None


def _is_answer(error: StoreUnavailable | StoreError) -> bool:
    """Whether it says that the object is missing, unchanged, or not in the state that a condition names."""
    return isinstance(error, StoreError) and error.status in _ANSWERS and error.code != "NoSuchBucket"


def _kind(error: StoreUnavailable | StoreError, problem: BaseException | None) -> str:
    return str(error.status) if error.status else type(problem).__name__


def _from_answer(
    operation: str, bucket: str, key: str, answer: botocore.exceptions.ClientError
) -> StoreUnavailable | StoreError:
    said = answer.response.get("Error", {})
    meta = answer.response.get("ResponseMetadata", {})
    code, message = str(said.get("Code", "")), str(said.get("Message", ""))
    status = meta.get("HTTPStatusCode")
    passing = status is None or status in _BUSY_STATUSES or (status >= 500 and status != NOT_IMPLEMENTED)
    if passing or code in _PASSING_CODES:
        return StoreUnavailable(operation, bucket, key, f"{code}: {message}", status)
    return StoreError(operation, bucket, key, code, status, meta.get("RequestId"), message)


@contextmanager
def conflicts(ref: ObjectRef, condition: Condition) -> Iterator[None]:
    """Turns S3's no to a condition into WriteConflict; a missing object fails If-Match with a 404 on some stores."""
    try:
        yield
    except StoreError as refusal:
        lost = refusal.status == 412 or (refusal.status == 404 and refusal.code != "NoSuchBucket")
        if condition and lost:
            raise WriteConflict(ref.bucket, ref.key, str(condition)) from refusal
        raise
