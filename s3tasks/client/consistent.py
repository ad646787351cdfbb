"""The client that applications hold: all verbs in one, and how one is made.

It never connects to anything before a verb is called.
"""

from __future__ import annotations

from s3tasks.client.arguments import RefLike
from s3tasks.client.files import FileVerbs
from s3tasks.client.many import ManyVerbs
from s3tasks.errors import RetryableError
from s3tasks.evidence import Awaited
from s3tasks.ledger import SAFE_POLICY
from s3tasks.logbook import NOBODY, Acting
from s3tasks.process import Process
from s3tasks.settings import Settings
from s3tasks.write_ids import WriteIds


class ConsistentS3(FileVerbs, ManyVerbs):
    """Reads, writes and deletes of S3 objects, each read held against the ledger; safe to share between threads.

    Refs are given as `"s3://bucket/key"`, as the dict of another ref, or as an ObjectRef. All verbs raise InvalidRef for what is
    no ref or names a bucket that is not allowed, LedgerUnavailable when Redis does not answer, StoreUnavailable when S3 does
    not, and StoreError when S3 refuses. `wait` is how many seconds a verb may wait in this thread (None: the client's default,
    which is 0 unless said otherwise); the error that surfaces then says how often and how long was tried.
    """

    @classmethod
    def from_settings(cls, settings: Settings) -> ConsistentS3:
        """A client of its own for these settings. Nothing is connected before the first verb is called.

        Raises ValueError when the settings name no ledger.
        """
        if settings.ledger_url is None:
            raise ValueError("no ledger_url: set S3TASKS_LEDGER_URL, or Settings(ledger_url=...)")
        return cls(Process(settings))

    def forget(self, ref: RefLike) -> bool:
        """Removes the ledger's record of the object: reads of it go unchecked until it is written again.

        For operators. False where there was no record.
        """
        return self._rooms().ledger.forget(self._allowed(ref))

    def ledger_may_be_evicted(self) -> str | None:
        """The Redis eviction policy under which records may vanish before the retention is over, or None where none may."""
        policy = self._rooms().ledger.eviction_policy()
        return None if policy == SAFE_POLICY else policy

    def cache_counts(self) -> dict[str, int]:
        """How often this process found a body in the cache (`hits`) or not (`misses`), and what else it counted."""
        cache = self._rooms().cache
        return cache.counts() if cache else {}

    def with_write_ids(
        self, write_ids: WriteIds, default_wait_seconds: float, acting: Acting = NOBODY, *, requeued: bool = False,
        awaited: Awaited | None = None,
    ) -> ConsistentS3:
        """The same client over the same connections, for a caller with write ids and patience of its own, and a name in the log.

        One who can be `requeued` gives up as soon as the next probe would come after those seconds; `awaited` is what its earlier
        deliveries have waited for.
        """
        return ConsistentS3(
            self._process, write_ids=write_ids, default_wait_seconds=default_wait_seconds, acting=acting, requeued=requeued,
            awaited=awaited,
        )

    def next_probe(self, problem: RetryableError, probes: int, waited_seconds: float) -> tuple[float, Awaited | None]:
        """In how many seconds what failed should be tried again, after so many tries and so long, and what is waited for."""
        patience = self._rooms().patience
        return patience.gap_seconds(problem, probes, waited_seconds), patience.awaited(problem, probes)

    def close(self) -> None:
        """Closes the connections of this process. The next verb makes new ones."""
        self._process.close()
