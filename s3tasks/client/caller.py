"""Who calls the verbs: over which process's connections, with which write ids, and with how much patience.

It never asks S3 or Redis by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import wraps
from typing import Any, TypeVar, cast

from s3tasks import events
from s3tasks.client.arguments import RefLike, seconds_of
from s3tasks.errors import InvalidRef, OverlappingWrite, PreconditionFailed, StoreUnavailable
from s3tasks.evidence import Awaited, Served
from s3tasks.logbook import NOBODY, Acting
from s3tasks.patience import Watch
from s3tasks.process import Process, Rooms
from s3tasks.refs import ObjectRef
from s3tasks.settings import Settings
from s3tasks.store import Condition
from s3tasks.tracing import follow
from s3tasks.trials import Honours
from s3tasks.waiting import Gap, keep_trying, try_times
from s3tasks.write_ids import WriteIds, random_write_ids
from s3tasks.writes import Write, carry_out

T = TypeVar("T")
Method = TypeVar("Method", bound=Callable[..., Any])


def verb(method: Method) -> Method:
    """A method that those who listen are told of, as one operation with all that it takes."""
    name = method.__name__

    @wraps(method)
    def told(*args: Any, **kwargs: Any) -> Any:
        follow()
        if not events.listeners:
            return method(*args, **kwargs)
        operation = events.begin("verb", name, _named_in(args[1:], kwargs))
        error: str | None = None
        try:
            return method(*args, **kwargs)
        except BaseException as problem:
            error = type(problem).__name__
            events.tell(events.Failed("verb", name, error))
            raise
        finally:
            if operation is not None:
                operation.end(error)

    return cast("Method", told)


def _named_in(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> ObjectRef | None:
    """The object that a verb is about: of two that it names, the one that it writes."""
    named = [kwargs.get("target"), kwargs.get("ref"), *reversed(args)]
    for given in named:
        if isinstance(given, ObjectRef):
            return given
        if isinstance(given, Mapping) or (isinstance(given, str) and given.startswith("s3://")):
            with suppress(InvalidRef):
                return ObjectRef.parse(given)
    return None


class Caller:
    """What all verbs share."""

    def __init__(
        self,
        process: Process,
        *,
        write_ids: WriteIds = random_write_ids,
        default_wait_seconds: float = 0.0,
        requeued: bool = False,
        awaited: Awaited | None = None,
        acting: Acting = NOBODY,
    ) -> None:
        self._process = process
        self._write_ids = write_ids
        self._default_wait_seconds = default_wait_seconds
        self._acting = acting
        self._requeued = requeued
        self._awaited = awaited

    @property
    def write_ids(self) -> WriteIds:
        """Where the ids of writes made through this client come from."""
        return self._write_ids

    @property
    def settings(self) -> Settings:
        """What this client was made with."""
        return self._process.settings

    def _rooms(self) -> Rooms:
        return self._process.rooms()

    def _allowed(self, ref: RefLike) -> ObjectRef:
        parsed = ObjectRef.parse(ref)
        allowed = self.settings.allowed_buckets
        if allowed and parsed.bucket not in allowed:
            raise InvalidRef(parsed.uri, f"the bucket is not among allowed_buckets ({', '.join(allowed)})")
        return parsed

    def _require(self, condition: Condition, target: ObjectRef, if_match: Honours, if_none_match: Honours) -> None:
        """A condition that the endpoint would ignore is refused rather than sent."""
        if condition:
            self._rooms().probes.require(if_match if condition.if_match else if_none_match, target)

    def _seconds(self, wait: float | None) -> float:
        return self._default_wait_seconds if wait is None else seconds_of(wait)

    def _patiently(self, ref: ObjectRef, attempt: Callable[[], T], wait: float | None) -> T:
        """Tries to read the object until it is what was promised, and learns from how long that takes."""
        watch = Watch(self._rooms().patience, ref, self._awaited)
        # What an earlier delivery has waited for is seen once.
        if self._awaited is not None and self._awaited.uri == ref.uri:
            self._awaited = None
        return self._keep_trying(watch.probing(attempt), wait, watch.gap_seconds)

    def _keep_trying(self, attempt: Callable[[], T], wait: float | None, gap: Gap) -> T:
        """Waits for what S3 does not serve yet: for one who is requeued, only while the next probe is near."""
        to_the_end = wait is not None or not self._requeued
        return keep_trying(
            self._acting.numbered(attempt), self.settings, seconds=self._seconds(wait), on=(PreconditionFailed,), gap=gap,
            to_the_end=to_the_end,
        )

    def _persist(self, write: Write, wait: float | None, *, repeatable: bool = True) -> ObjectRef:
        """Tries a write again where S3 failed to answer, each time with the same write id and a new ticket."""
        settings, rooms = self.settings, self._rooms()
        times = settings.store_attempts if repeatable else 1

        attempt = self._acting.numbered(lambda: carry_out(rooms.ledger, rooms.store, write))

        def tries() -> ObjectRef:
            return try_times(attempt, settings, times=times, on=(StoreUnavailable,))

        return keep_trying(
            # Whose turn it is not has sent nothing yet.
            tries, settings, seconds=self._seconds(wait), on=(OverlappingWrite, *([PreconditionFailed] if repeatable else ())),
        )


def described(served: Served | None) -> Mapping[str, object]:
    """What is known of an object besides its bytes, as a JSON dict."""
    if served is None:
        raise ValueError("an answer that may be handed out serves an object")
    return {
        "etag": served.etag,
        "version_id": served.version_id,
        "size": served.size,
        "last_modified": served.last_modified,
        "content_type": served.content_type,
        "metadata": dict(served.metadata),
    }
