"""What became of one object of many, as a value in this process and as JSON between tasks.

It never raises for the object by itself: whoever wants the error asks for the value.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from s3tasks import errors
from s3tasks.errors import InvalidRef, RetryableError, S3TasksError
from s3tasks.refs import ObjectRef


@dataclass(frozen=True)
class Outcome:
    """What became of one object: its `ref` (of a write: of exactly that write), and a `value` or an `error`.

    The value is the bytes of a read, the dict of a head, and None of a write or delete, which say all in the ref.
    """

    ref: ObjectRef
    value: Any = None
    error: S3TasksError | None = None

    @property
    def ok(self) -> bool:
        """Whether there is no error."""
        return self.error is None

    def get(self) -> Any:
        """The value; raises the error, where there is one."""
        if self.error is not None:
            raise self.error
        return self.value

    def to_dict(self) -> dict[str, Any]:
        """The outcome as a JSON dict (a read's bytes as bytes: Celery's JSON knows them); `parse` reads it."""
        said: dict[str, Any] = {"ref": self.ref.to_dict()}
        if self.error is not None:
            return {**said, "error": {"type": type(self.error).__name__, "args": list(self.error.args), "text": str(self.error)}}
        return said if self.value is None else {**said, "value": self.value}

    def __json__(self) -> dict[str, Any]:
        """How kombu writes an outcome that is passed to a task."""
        return self.to_dict()

    @classmethod
    def parse(cls, given: Mapping[str, Any] | Outcome) -> Outcome:
        """The outcome that a dict made by `to_dict` stands for. InvalidRef for anything else."""
        if isinstance(given, Outcome):
            return given
        if not looks_like_outcome(given):
            raise InvalidRef(f"{given!r:.120}", "an outcome is a dict with a ref, and a value or an error")
        said = given.get("error")
        return cls(ObjectRef.parse(given["ref"]), given.get("value"), None if said is None else _error_of(said))


def looks_like_outcome(given: object) -> bool:
    """Whether it is an outcome, or the dict of one, rather than a ref."""
    return isinstance(given, Outcome) or (isinstance(given, Mapping) and "ref" in given and "bucket" not in given)


def failed_before(given: object) -> bool:
    """Whether it is an outcome (or the dict of one) with an error: nothing more is done for that object."""
    return looks_like_outcome(given) and not Outcome.parse(given).ok  # type: ignore[arg-type]


def outcomes_done(done: Iterable[Any] | None) -> list[Outcome | None] | None:
    """What `done` may be given as between tasks: dicts of outcomes, or null."""
    return None if done is None else [None if given is None else Outcome.parse(given) for given in done]


def _error_of(said: object) -> S3TasksError:
    """The error that another process has told of; what cannot be made again keeps its text."""
    name, arguments = (said.get("type"), said.get("args")) if isinstance(said, Mapping) else (None, None)
    kind = getattr(errors, name, None) if isinstance(name, str) else None
    if isinstance(kind, type) and issubclass(kind, S3TasksError) and isinstance(arguments, list):
        # Anybody may have made it: arguments that are not this error's own fail when it is made, or when it is told.
        with suppress(TypeError, ValueError, AttributeError):
            error = kind(*arguments)
            tried = error.attempts + error.waited_seconds if isinstance(error, RetryableError) else 0
            if str(error) and tried >= 0:
                return error
    return S3TasksError(f"{said!r:.500}")
