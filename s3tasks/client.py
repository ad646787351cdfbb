"""ConsistentS3: settings become a ledger and a store, once per process and after the fork, with the verbs in front of them.

It never knows Celery; tasks, web applications and scripts all call the same verbs.
"""

from __future__ import annotations

import os
import threading
import uuid
import weakref
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from s3tasks.errors import InvalidRef, OverlappingWrite, PreconditionFailed, StoreUnavailable
from s3tasks.evidence import Served
from s3tasks.ledger import SAFE_POLICY, Ledger
from s3tasks.reads import Query, Reader
from s3tasks.refs import MARKER_METADATA_KEY, ObjectRef, checked_etag
from s3tasks.settings import Settings
from s3tasks.store import Condition, Content, Store
from s3tasks.waiting import keep_trying, try_times
from s3tasks.writes import delete, put

RefLike = str | Mapping[str, Any] | ObjectRef
T = TypeVar("T")

WriteIds = Callable[[ObjectRef], str]


@dataclass(frozen=True)
class _Rooms:
    ledger: Ledger
    store: Store
    reader: Reader


class Process:
    """The one ledger and the one store of a process for some settings, made when first used and made anew after a fork.

    botocore's connections must not be shared with a forked child: both would read the other's answers.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._lock = threading.Lock()
        self._rooms: _Rooms | None = None
        _living.add(self)

    def rooms(self) -> _Rooms:
        """The ledger, store and reader of this process."""
        if self._rooms is None:
            with self._lock:
                if self._rooms is None:
                    ledger, store = Ledger(self.settings), Store(self.settings)
                    self._rooms = _Rooms(ledger, store, Reader(ledger, store, self.settings))
        return self._rooms

    def close(self) -> None:
        """Closes this process's connections; the next use makes new ones."""
        with self._lock:
            rooms, self._rooms = self._rooms, None
        if rooms is not None:
            rooms.ledger.close()
            rooms.store.close()

    def forget_inherited(self) -> None:
        """In a forked child: neither the parent's connections nor its lock, which another thread may have held."""
        self._lock = threading.Lock()
        self._rooms = None


_living: weakref.WeakSet[Process] = weakref.WeakSet()


def _after_fork() -> None:
    for process in list(_living):
        process.forget_inherited()


os.register_at_fork(after_in_child=_after_fork)


def random_write_ids(_ref: ObjectRef) -> str:
    """A fresh id for every write: for callers whose calls are never delivered twice."""
    return str(uuid.uuid4())


class NumberedWriteIds:
    """Write ids for one delivery of one task: its id, and from the second write to an object on a number behind it.

    A redelivered task that makes the same writes in the same order to each object gets the same ids, so none is done twice.
    """

    def __init__(self, task_id: str) -> None:
        self._task_id = task_id
        self._writes: Counter[str] = Counter()

    def __call__(self, ref: ObjectRef) -> str:
        """The id for the next write to the object."""
        self._writes[ref.uri] += 1
        ordinal = self._writes[ref.uri]
        return self._task_id if ordinal == 1 else f"{self._task_id}.{ordinal}"


class ConsistentS3:
    """Reads, writes and deletes of S3 objects, each read held against the ledger; safe to share between threads.

    Refs are given as `"s3://bucket/key"`, as the dict of another ref, or as an ObjectRef. All verbs raise InvalidRef for what is
    no ref or names a bucket that is not allowed, LedgerUnavailable when Redis does not answer, StoreUnavailable when S3 does
    not, and StoreError when S3 refuses. `wait` is how many seconds a verb may wait in this thread (None: the client's default,
    which is 0 unless said otherwise); the error that surfaces then says how often and how long was tried.
    """

    def __init__(
        self, process: Process, *, write_ids: WriteIds = random_write_ids, default_wait_seconds: float = 0.0
    ) -> None:
        self._process = process
        self._write_ids = write_ids
        self._default_wait_seconds = default_wait_seconds

    @classmethod
    def from_settings(cls, settings: Settings) -> ConsistentS3:
        """A client of its own for these settings. Nothing is connected before the first verb is called.

        Raises ValueError when the settings name no ledger.
        """
        if settings.ledger_url is None:
            raise ValueError("no ledger_url: set S3TASKS_LEDGER_URL, or Settings(ledger_url=...)")
        return cls(Process(settings))

    @property
    def write_ids(self) -> WriteIds:
        """Where the ids of writes made through this client come from."""
        return self._write_ids

    @property
    def settings(self) -> Settings:
        """What this client was made with."""
        return self._process.settings

    def write(
        self,
        body: bytes | str,
        ref: RefLike,
        *,
        if_match: str | None = None,
        if_none_match: bool = False,
        content_type: str | None = None,
        metadata: Mapping[str, str] | None = None,
        put_options: Mapping[str, Any] | None = None,
        wait: float | None = None,
    ) -> ObjectRef:
        """Writes the object and returns the ref of exactly this write. Text is written as UTF-8.

        `if_match` (an ETag) or `if_none_match` ask S3 to write only if that holds; WriteConflict where it does not. `metadata` is
        user metadata, `put_options` are further parameters of S3's PutObject by their names there. Where writes take turns
        (`on_overlap="serialize"`), OverlappingWrite is raised while another one is under way, after `wait` seconds.
        """
        target = self._allowed(ref).plain()
        condition = _condition(if_match, if_none_match)
        rooms = self._process.rooms()
        content = Content(_bytes(body), content_type, _metadata(metadata), dict(put_options or {}))
        rooms.store.check_put_options(content.options)
        write_id = self._write_ids(target)
        return self._persist(lambda: put(rooms.ledger, rooms.store, target, write_id, content, condition), wait)

    def delete(self, ref: RefLike, *, if_match: str | None = None, wait: float | None = None) -> ObjectRef:
        """Deletes the object (its newest version, where the bucket keeps versions) and returns a ref with `deleted` set.

        A missing key is no error, as in S3. `if_match` and `wait` are as for `write`.
        """
        target = self._allowed(ref).plain()
        condition = _condition(if_match, False)
        rooms = self._process.rooms()
        write_id = self._write_ids(target)
        return self._persist(lambda: delete(rooms.ledger, rooms.store, target, write_id, condition), wait)

    def read(
        self,
        ref: RefLike,
        *,
        byte_range: tuple[int, int | None] | None = None,
        latest: bool = False,
        wait: float | None = None,
        limit_bytes: int | None = None,
    ) -> bytes:
        """The object's bytes: for a ref that a write returned exactly that write's, else those of the current write.

        `latest` takes whatever replaced the write that the ref names. `byte_range` is the first and the last byte, both included; a
        last of None reads to the end. A body over `limit_bytes` is PayloadTooLarge, and is not fetched. Raises StaleRead or
        NotYetVisible while S3 does not serve what was promised (after `wait` seconds), Superseded, NoSuchKey or ObjectDeleted.
        """
        query = Query(self._allowed(ref), latest, byte_range=_byte_range(byte_range))
        reader = self._process.rooms().reader
        return self._patiently(lambda: reader.answer(query).read(limit_bytes), wait)

    def head(self, ref: RefLike, *, latest: bool = False, wait: float | None = None) -> dict[str, Any]:
        """What is known of the object besides its bytes, as a JSON dict: `etag`, `version_id`, `size` in bytes, `last_modified`
        (seconds since 1970), `content_type`, `metadata`. Held against the ledger, waits and raises as `read`."""
        query = Query(self._allowed(ref), latest, with_body=False)
        reader = self._process.rooms().reader
        return self._patiently(lambda: _described(reader.answer(query).served), wait)

    def wait_visible(self, ref: RefLike, *, wait: float | None = None) -> ObjectRef:
        """Returns the ref once the read endpoint serves it (for the ref of a delete: serves nothing any more).

        A barrier before readers that know nothing of the ledger. Raises as `read`, NotYetVisible or StaleRead after `wait` seconds.
        """
        wanted = self._allowed(ref)
        reader = self._process.rooms().reader
        if wanted.deleted:
            self._patiently(lambda: reader.absent(wanted), wait)
        else:
            query = Query(wanted, with_body=False, barrier=True)
            self._patiently(lambda: reader.answer(query), wait)
        return wanted

    def forget(self, ref: RefLike) -> bool:
        """Removes the ledger's record of the object: reads of it go unchecked until it is written again.

        For operators. False where there was no record.
        """
        return self._process.rooms().ledger.forget(self._allowed(ref))

    def ledger_may_be_evicted(self) -> str | None:
        """The Redis eviction policy under which records may vanish before the retention is over, or None where none may."""
        policy = self._process.rooms().ledger.eviction_policy()
        return None if policy == SAFE_POLICY else policy

    def with_write_ids(self, write_ids: WriteIds, default_wait_seconds: float) -> ConsistentS3:
        """The same client over the same connections, for a caller with write ids and patience of its own."""
        return ConsistentS3(self._process, write_ids=write_ids, default_wait_seconds=default_wait_seconds)

    def close(self) -> None:
        """Closes the connections of this process. The next verb makes new ones."""
        self._process.close()

    def _allowed(self, ref: RefLike) -> ObjectRef:
        parsed = ObjectRef.parse(ref)
        allowed = self.settings.allowed_buckets
        if allowed and parsed.bucket not in allowed:
            raise InvalidRef(parsed.uri, f"the bucket is not among allowed_buckets ({', '.join(allowed)})")
        return parsed

    def _seconds(self, wait: float | None) -> float:
        if wait is None:
            return self._default_wait_seconds
        if not isinstance(wait, int | float) or isinstance(wait, bool) or not wait >= 0:
            raise ValueError(f"wait={wait!r}: must be a number of seconds from 0")
        return wait

    def _patiently(self, attempt: Callable[[], T], wait: float | None) -> T:
        return keep_trying(attempt, self.settings, seconds=self._seconds(wait), on=(PreconditionFailed,))

    def _persist(self, attempt: Callable[[], ObjectRef], wait: float | None) -> ObjectRef:
        """Tries a write again where S3 failed to answer, each time with the same write id and a new ticket."""
        settings = self.settings

        def tries() -> ObjectRef:
            return try_times(attempt, settings, times=settings.store_attempts, on=(StoreUnavailable,))

        return keep_trying(tries, settings, seconds=self._seconds(wait), on=(OverlappingWrite,))


def _bytes(body: bytes | str) -> bytes:
    if isinstance(body, str):
        return body.encode()
    if isinstance(body, bytes | bytearray | memoryview):
        return bytes(body)
    raise TypeError(f"a body is bytes or str, not {type(body).__name__}")


def _metadata(metadata: Mapping[str, str] | None) -> dict[str, str]:
    if metadata is not None and not isinstance(metadata, Mapping):
        raise TypeError(f"metadata is a mapping of text to text, not {type(metadata).__name__}")
    given = dict(metadata or {})
    for name, value in given.items():
        if not isinstance(name, str) or not isinstance(value, str):
            raise TypeError(f"metadata is made of text, and {name!r}: {value!r} is not")
        if name.lower() == MARKER_METADATA_KEY:
            raise ValueError(f"metadata {name!r} is where s3tasks keeps its own marker: choose another name")
    return given


def _condition(if_match: str | None, if_none_match: bool) -> Condition:
    if if_match is not None and if_none_match:
        raise ValueError("if_match and if_none_match contradict each other: give one")
    if if_match is None:
        return Condition(if_none_match=bool(if_none_match))
    return Condition(if_match=checked_etag(if_match))


def _byte_range(given: tuple[int, int | None] | None) -> tuple[int, int | None] | None:
    if given is None:
        return None
    first, last = given if isinstance(given, list | tuple) and len(given) == 2 else (None, None)
    good = type(first) is int and first >= 0 and (last is None or (type(last) is int and last >= first))
    if not good or first is None:
        raise ValueError(f"byte_range={given!r}: must be [first, last] with 0 <= first <= last, last may be null")
    return first, last


def _described(served: Served | None) -> dict[str, Any]:
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
