"""Many objects at once: the ledger's moves in one round trip, S3's calls in a bounded pool of threads, deletes in batches.

It never lets one object's trouble become another's: each has an outcome of its own, in the order in which they were given. It
never waits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import TypeVar

from s3tasks.errors import LedgerUnavailable, S3TasksError, StoreError, StoreUnavailable
from s3tasks.evidence import Landed, Record, Served
from s3tasks.ledger import Busy, Commit, Finished, Ledger, Opened
from s3tasks.reads import Query, Reader
from s3tasks.refs import ObjectRef
from s3tasks.settings import Settings
from s3tasks.store import MOST_DELETED_AT_ONCE, Store
from s3tasks.writes import Write, ask, committed, refuse, without_asking

T = TypeVar("T")
R = TypeVar("R")

Begun = Opened | Finished | Busy | LedgerUnavailable

# Writes are committed so many at a time: a process that is killed leaves no more than these for readers to record.
_WRITES_AT_ONCE = 250


class Batches:
    """Many objects of one store under one ledger."""

    def __init__(self, ledger: Ledger, store: Store, reader: Reader, settings: Settings) -> None:
        self._ledger, self._store, self._reader, self._settings = ledger, store, reader, settings

    def read(self, queries: Sequence[Query], admit: Callable[[int], None]) -> list[bytes | S3TasksError]:
        """The bytes of each, or why not. `admit` is told the size of each body before it is read, from several threads."""
        return self._each_known(queries, lambda query, record: self._reader.read(query, admit, record))

    def head(self, queries: Sequence[Query]) -> list[Served | S3TasksError | None]:
        """What is served of each (Served), or why not."""
        return self._each_known(queries, lambda query, record: self._reader.answer(query, record).served)

    def write(self, writes: Sequence[Write]) -> list[ObjectRef | S3TasksError]:
        """The ref of each write, or why there is none. Writes of one object are done in their order."""
        return self._in_waves(writes, _WRITES_AT_ONCE, self._write_wave)

    def delete(self, writes: Sequence[Write]) -> list[ObjectRef | S3TasksError]:
        """The ref of each delete, or why there is none. Those of one bucket go to S3 in one request."""
        return self._in_waves(writes, MOST_DELETED_AT_ONCE, self._delete_wave)

    def _each_known(self, queries: Sequence[Query], read: Callable[[Query, Record], R]) -> list[R | S3TasksError]:
        """What came of reading each whose record could be read."""
        records = self._looked_up(queries)

        def asked(pair: tuple[Query, Record | LedgerUnavailable]) -> R:
            query, record = pair
            if isinstance(record, LedgerUnavailable):
                raise record
            return read(query, record)

        return self._each(asked, list(zip(queries, records, strict=True)))

    def _looked_up(self, queries: Sequence[Query]) -> Sequence[Record | LedgerUnavailable]:
        try:
            return self._ledger.lookup_many([query.ref for query in queries])
        except LedgerUnavailable as problem:
            return [problem] * len(queries)

    def _in_waves(
        self,
        writes: Sequence[Write],
        most: int,
        carry_out: Callable[[Sequence[Write], Sequence[Begun]], list[ObjectRef | S3TasksError]],
    ) -> list[ObjectRef | S3TasksError]:
        results: dict[int, ObjectRef | S3TasksError] = {}
        for wave in _waves(writes, most):
            batch = [writes[number] for number in wave]
            begun = self._ledger.begin_many(
                [(write.ref, write.write_id) for write in batch], deletes=batch[0].deletes
            )
            results.update(zip(wave, carry_out(batch, begun), strict=True))
        return [results[number] for number in range(len(writes))]

    def _write_wave(self, batch: Sequence[Write], begun: Sequence[Begun]) -> list[ObjectRef | S3TasksError]:
        asked = self._each(self._asked, list(zip(batch, begun, strict=True)))
        return self._committed(asked)

    def _asked(self, pair: tuple[Write, Begun]) -> Commit | ObjectRef:
        write, begun = pair
        if isinstance(begun, LedgerUnavailable):
            raise begun
        return ask(self._ledger, self._store, write, begun) if isinstance(begun, Opened) else without_asking(write.ref, begun)

    def _delete_wave(self, batch: Sequence[Write], begun: Sequence[Begun]) -> list[ObjectRef | S3TasksError]:
        opened = [number for number, move in enumerate(begun) if isinstance(move, Opened)]
        taken = dict(zip(opened, self._deleted([batch[number].ref for number in opened]), strict=True))
        asked: list[Commit | ObjectRef | S3TasksError] = []
        for number, (write, move) in enumerate(zip(batch, begun, strict=True)):
            if isinstance(move, Opened):
                asked.append(self._to_commit(write, move, taken[number]))
            else:
                asked += self._each(self._asked, [(write, move)])
        return self._committed(asked)

    def _to_commit(self, write: Write, begun: Opened, taken: Landed | S3TasksError) -> Commit | S3TasksError:
        if isinstance(taken, Landed):
            return Commit(write.ref, write.write_id, begun.ticket, taken, begun.ticket)
        if not isinstance(taken, StoreUnavailable):
            refuse(self._ledger, write, begun)
        return taken

    def _deleted(self, refs: Sequence[ObjectRef]) -> list[Landed | S3TasksError]:
        """What S3 said to each delete, by one request for each bucket."""
        said: dict[ObjectRef, Landed | S3TasksError] = {}
        for bucket in dict.fromkeys(ref.bucket for ref in refs):
            mine = [ref for ref in refs if ref.bucket == bucket]
            said.update(zip(mine, self._deleted_in_bucket(mine), strict=True))
        return [said[ref] for ref in refs]

    def _deleted_in_bucket(self, refs: Sequence[ObjectRef]) -> list[Landed | S3TasksError]:
        try:
            return self._store.delete_many(refs)
        except (StoreError, StoreUnavailable) as problem:
            return [problem] * len(refs)

    def _committed(self, asked: Sequence[Commit | ObjectRef | S3TasksError]) -> list[ObjectRef | S3TasksError]:
        commits = [item for item in asked if isinstance(item, Commit)]
        answers = iter(self._ledger.commit_many(commits))
        results: list[ObjectRef | S3TasksError] = []
        for item in asked:
            if not isinstance(item, Commit):
                results.append(item)
                continue
            current = next(answers)
            results.append(current if isinstance(current, LedgerUnavailable) else committed(item, current))
        return results

    def _each(self, call: Callable[[T], R], items: Sequence[T]) -> list[R | S3TasksError]:
        """What the call returns for each item, or the error of this package that it raises, in order."""

        def outcome(item: T) -> R | S3TasksError:
            try:
                return call(item)
            except S3TasksError as problem:
                return problem

        threads = min(self._settings.concurrent_requests, len(items))
        if threads <= 1:
            return [outcome(item) for item in items]
        # Each thread acts for whoever called.
        contexts = [copy_context() for _ in items]
        with ThreadPoolExecutor(threads) as pool:
            return list(pool.map(lambda context, item: context.run(outcome, item), contexts, items))


def _waves(writes: Sequence[Write], most: int) -> Iterator[list[int]]:
    """The numbers of the writes, `most` at a time, no object twice in one wave and in order for each object."""
    left = list(range(len(writes)))
    while left:
        wave: list[int] = []
        later: list[int] = []
        seen: set[ObjectRef] = set()
        for number in left:
            fits = len(wave) < most and writes[number].ref not in seen
            (wave if fits else later).append(number)
            seen.add(writes[number].ref)
        yield wave
        left = later
