"""Every way this library can fail, as one tree; each error says whether trying again can help.

It never decides what to do about a failure, and never speaks to Redis, S3 or Celery.

    S3TasksError
    ├── PreconditionFailed        what was promised is not what S3 serves
    │   ├── StaleRead             an older object is served: retried
    │   ├── NotYetVisible         nothing is served yet: retried
    │   └── Superseded            the write asked for has been replaced: not retried
    ├── NoSuchKey                 the key is missing, not late
    │   └── ObjectDeleted         it was there and has been deleted
    ├── WriteConflict             a conditional write or delete lost
    ├── OverlappingWrite          another write to the key is under way (on_overlap="serialize"): retried
    ├── LedgerUnavailable         Redis did not answer as it should: retried
    ├── StoreUnavailable          S3 did not answer as it should: retried
    ├── StoreError                S3 said a definite no
    ├── PayloadTooLarge           a body that does not belong in a message
    ├── InvalidRef                what was given names no object
    └── LocalFileError            a file here may not, or cannot, be used

Fields are positional arguments made of JSON primitives, and `args` is exactly those: Celery's JSON result backend rebuilds an
exception as `cls(*args)`, so nothing else survives the way back to the caller. New fields go to the end, with a default, and
`_later` takes those of a later version, which are passed over: its workers may serve a caller of this one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from typing_extensions import Self


def one_line(text: str) -> str:
    """The text with what would break a line, or what a terminal would obey, made visible as an escape."""
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in text)


class S3TasksError(Exception):
    """The root: catches everything this library raises about objects, S3 and Redis.

    `retryable` says whether the same call may succeed later without anybody changing anything.
    """

    retryable: ClassVar[bool] = False

    def __str__(self) -> str:
        return one_line(self._text())

    def _text(self) -> str:
        """The error in words; keys and other people's words stand in it as they are."""
        return super().__str__()


class RetryableError(S3TasksError):
    """An error that waiting may cure; once it surfaces it carries how often and how long that was tried.

    Every subclass keeps `attempts` (calls made, at least 1) and `waited_seconds` (from the first call to the last) as the last
    two of its arguments.
    """

    retryable: ClassVar[bool] = True
    attempts: int
    waited_seconds: float

    def after(self, attempts: int, waited_seconds: float) -> Self:
        """The same error with what waiting for it has cost so far."""
        return type(self)(*self.args[:-2], attempts, round(waited_seconds, 3))

    def _waited(self) -> str:
        if self.attempts <= 1:
            return ""
        return f" (tried {self.attempts} times over {self.waited_seconds:.1f} s)"


class PreconditionFailed(RetryableError):
    """What the ledger (or the caller's ref) promises is not what S3 serves.

    `expected` and `found` are etags or short descriptions, for people; None where nothing is known.
    """

    _problem: ClassVar[str] = "S3 does not serve what was promised"
    # For whoever waits in this process: the number of the write's commit, where one is waited for, and when (by time.monotonic) the
    # probe began that did not find it. No arguments: they mean nothing to another process.
    committed: int | None = None
    probed_at: float | None = None

    def __init__(
        self,
        bucket: str,
        key: str,
        expected: str | None = None,
        found: str | None = None,
        attempts: int = 1,
        waited_seconds: float = 0.0,
        *_later: object,
    ) -> None:
        super().__init__(bucket, key, expected, found, attempts, waited_seconds)
        self.bucket, self.key = bucket, key
        self.expected, self.found = expected, found
        self.attempts, self.waited_seconds = attempts, waited_seconds

    def _text(self) -> str:
        expected = self.expected or "a known write"
        return (
            f"s3://{self.bucket}/{self.key}: {self._problem}: expected {expected}, "
            f"found {self.found or 'nothing'}{self._waited()}"
        )

    def after(self, attempts: int, waited_seconds: float) -> Self:
        """The same error with what waiting for it has cost so far."""
        told = super().after(attempts, waited_seconds)
        if self.committed is not None:
            told.committed, told.probed_at = self.committed, self.probed_at
        return told


class StaleRead(PreconditionFailed):
    """S3 still serves an older object than the one the ledger calls current."""

    _problem = "a stale object is served"


class NotYetVisible(PreconditionFailed):
    """S3 does not serve the object yet, though a finished write says it exists."""

    _problem = "the object is not visible yet"


class Superseded(PreconditionFailed):
    """The exact write that was asked for has been replaced, so waiting cannot bring it back.

    Read with `latest=True` to take whatever replaced it.
    """

    retryable: ClassVar[bool] = False
    _problem = "this write has been replaced by a newer one"


class NoSuchKey(S3TasksError):
    """The object does not exist, and no write known here says that it should."""

    def __init__(self, bucket: str, key: str, *_later: object) -> None:
        super().__init__(bucket, key)
        self.bucket, self.key = bucket, key

    def _text(self) -> str:
        return f"s3://{self.bucket}/{self.key}: no such key"


class ObjectDeleted(NoSuchKey):
    """The object was deleted, and nothing has been written in its place since."""

    def _text(self) -> str:
        return f"s3://{self.bucket}/{self.key}: the object has been deleted"


class WriteConflict(S3TasksError):
    """A conditional write or delete lost: the object was not in the state that its condition names.

    `condition` is the condition as sent ("If-Match: …" or "If-None-Match: *").
    """

    def __init__(self, bucket: str, key: str, condition: str, found: str | None = None, *_later: object) -> None:
        super().__init__(bucket, key, condition, found)
        self.bucket, self.key = bucket, key
        self.condition, self.found = condition, found

    def _text(self) -> str:
        return f"s3://{self.bucket}/{self.key}: {self.condition} does not hold (found {self.found or 'another state'})"


class OverlappingWrite(RetryableError):
    """Another write to the key is under way and `on_overlap="serialize"` makes this one wait its turn.

    `lease_seconds_left` is when, at the latest, the other one stops being waited for.
    """

    def __init__(
        self, bucket: str, key: str, lease_seconds_left: float, attempts: int = 1, waited_seconds: float = 0.0, *_later: object
    ) -> None:
        super().__init__(bucket, key, lease_seconds_left, attempts, waited_seconds)
        self.bucket, self.key = bucket, key
        self.lease_seconds_left = lease_seconds_left
        self.attempts, self.waited_seconds = attempts, waited_seconds

    def _text(self) -> str:
        return (
            f"s3://{self.bucket}/{self.key}: another write is under way, "
            f"waited for up to {self.lease_seconds_left:.1f} s more{self._waited()}"
        )


class LedgerUnavailable(RetryableError):
    """Redis could not be asked, or refused: no write reaches S3 without its intent, no read goes unchecked.

    `operation` is the move of the ledger protocol, `reason` the client's own words (they hold no credentials).
    """

    def __init__(self, operation: str, reason: str, attempts: int = 1, waited_seconds: float = 0.0, *_later: object) -> None:
        super().__init__(operation, reason, attempts, waited_seconds)
        self.operation, self.reason = operation, reason
        self.attempts, self.waited_seconds = attempts, waited_seconds

    def _text(self) -> str:
        return f"the ledger (Redis) is unavailable for {self.operation}: {self.reason}{self._waited()}"


class StoreUnavailable(RetryableError):
    """S3 timed out, broke the connection or the body, or answered that it cannot serve now (5xx, 429, 409).

    Whether a write with this outcome has landed is not known. `status` is None where there was no answer.
    """

    def __init__(
        self,
        operation: str,
        bucket: str,
        key: str,
        reason: str,
        status: int | None = None,
        attempts: int = 1,
        waited_seconds: float = 0.0,
        *_later: object,
    ) -> None:
        super().__init__(operation, bucket, key, reason, status, attempts, waited_seconds)
        self.operation, self.bucket, self.key = operation, bucket, key
        self.reason, self.status = reason, status
        self.attempts, self.waited_seconds = attempts, waited_seconds

    def _text(self) -> str:
        status = f"HTTP {self.status}, " if self.status else ""
        return f"{self.operation} s3://{self.bucket}/{self.key}: S3 is unavailable: {status}{self.reason}{self._waited()}"


class StoreError(S3TasksError):
    """S3 (or botocore, before asking it) said a definite no: access denied, no such bucket, bad credentials, …

    `code` is the store's own error code or the client's error class, `status` the HTTP status or None, `request_id` what the
    store's operators ask for.
    """

    def __init__(
        self,
        operation: str,
        bucket: str,
        key: str,
        code: str,
        status: int | None = None,
        request_id: str | None = None,
        message: str = "",
        *_later: object,
    ) -> None:
        super().__init__(operation, bucket, key, code, status, request_id, message)
        self.operation, self.bucket, self.key = operation, bucket, key
        self.code, self.status, self.request_id, self.message = code, status, request_id, message

    def _text(self) -> str:
        status = f" (HTTP {self.status}, request id {self.request_id or 'none'})" if self.status else ""
        return f"{self.operation} s3://{self.bucket}/{self.key}: {self.code}{status}: {self.message}"


class PayloadTooLarge(S3TasksError):
    """A body over `max_inline_bytes`, which does not belong in a Celery message or result."""

    def __init__(self, operation: str, size_bytes: int, max_inline_bytes: int, *_later: object) -> None:
        super().__init__(operation, size_bytes, max_inline_bytes)
        self.operation, self.size_bytes, self.max_inline_bytes = operation, size_bytes, max_inline_bytes

    def _text(self) -> str:
        return (
            f"{self.operation}: a body of {self.size_bytes} bytes does not belong in a message (max_inline_bytes is "
            f"{self.max_inline_bytes}): {self.operation} it in process (S3Tasks.client, or self.s3 in a task) and pass the ref on"
        )


class InvalidRef(S3TasksError):
    """What was given names no object that may be used here. `given` is a shortened picture of it."""

    def __init__(self, given: str, problem: str, *_later: object) -> None:
        super().__init__(given, problem)
        self.given, self.problem = given, problem

    def _text(self) -> str:
        return f"{self.given} is not a usable object ref: {self.problem}"


class LocalFileError(S3TasksError):
    """A file on this machine may not be used (it lies outside `file_root`, or is no regular file), or cannot be.

    `path` is a shortened picture of what was given.
    """

    def __init__(self, path: str, problem: str, *_later: object) -> None:
        super().__init__(path, problem)
        self.path, self.problem = path, problem

    def _text(self) -> str:
        return f"{self.path}: {self.problem}"
