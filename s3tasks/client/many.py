"""The verbs for many objects at once, each with an outcome of its own.

It never fails for one object of many: what is wrong with an argument is said before anything is begun, what goes wrong later is in
that object's outcome.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from s3tasks.batches import Batches
from s3tasks.client.arguments import RefLike, body_bytes, condition_of, content_of, truth
from s3tasks.client.caller import Caller, described, verb
from s3tasks.client.rounds import Budget, Rounds, with_result
from s3tasks.errors import OverlappingWrite, PreconditionFailed, RetryableError, StoreUnavailable
from s3tasks.evidence import Served
from s3tasks.outcomes import Outcome, looks_like_outcome
from s3tasks.reads import Query
from s3tasks.refs import ObjectRef, listed
from s3tasks.trials import Honours
from s3tasks.waiting import keep_trying, try_times
from s3tasks.writes import Write, delete, put

RefOrOutcome = RefLike | Outcome
WriteItem = Sequence[Any] | Mapping[str, Any]
Done = Sequence[Outcome | None] | None

_ITEM_NAMES = frozenset({"body", "ref", "content_type", "metadata", "put_options", "if_match", "if_none_match"})


class ManyVerbs(Caller):
    """Write, read, head and delete many objects.

    All of them keep the order, return an Outcome for each object, and take `done`: outcomes of an earlier try (None where there was
    none), of which those without an error that may pass are kept and not tried again. What they are given in place of a ref may be
    an Outcome, or the dict of one, of another such verb: one with an error keeps it, and nothing is done.
    """

    @verb
    def write_many(self, items: Iterable[WriteItem], *, done: Done = None, wait: float | None = None) -> list[Outcome]:
        """Writes each of `items`: a pair of body and ref, or a dict with `body`, `ref` and any of write's arguments.

        Bodies are bytes or text. Items that name one object are written in their order. `wait` as for `write`.
        """
        writes = [self._write_of(item) for item in listed("write_many", items)]
        given = [Outcome(write.ref) for write in writes]
        return self._persistently(Rounds(writes, given, self._batches().write, _written), done, wait)

    @verb
    def delete_many(self, refs: Iterable[RefOrOutcome], *, done: Done = None, wait: float | None = None) -> list[Outcome]:
        """Deletes each object as `delete` does, up to 1,000 of one bucket in one request. The outcomes' refs have `deleted` set."""
        given = self._given("delete_many", refs)
        rooms, batches = self._rooms(), self._batches()
        writes = [
            delete(rooms.store, outcome.ref.plain(), self._write_ids(outcome.ref.plain()), condition_of(None, False))
            for outcome in given
        ]
        return self._persistently(Rounds(writes, given, batches.delete, _written), done, wait)

    @verb
    def read_many(
        self,
        refs: Iterable[RefOrOutcome],
        *,
        latest: bool = False,
        done: Done = None,
        wait: float | None = None,
        limit_bytes: int | None = None,
        total_limit_bytes: int | None = None,
    ) -> list[Outcome]:
        """Reads each object as `read` does; the values are bytes.

        A body over `limit_bytes`, or one with which all that were read come to more than `total_limit_bytes`, has the error
        PayloadTooLarge and is not fetched. Only what S3 does not serve yet is asked for again, for up to `wait` seconds.
        """
        given, batches = self._given("read_many", refs), self._batches()
        queries = [Query(outcome.ref, truth("latest", latest)) for outcome in given]
        budget = Budget(limit_bytes, total_limit_bytes, done)
        rounds = Rounds(queries, given, lambda jobs: batches.read(jobs, budget.admit), with_result)
        return self._patiently_all(rounds, done, wait)

    @verb
    def head_many(
        self, refs: Iterable[RefOrOutcome], *, latest: bool = False, done: Done = None, wait: float | None = None
    ) -> list[Outcome]:
        """What is known of each object besides its bytes, as `head` says it; the values are those dicts."""
        given, batches = self._given("head_many", refs), self._batches()
        queries = [Query(outcome.ref, truth("latest", latest), with_body=False) for outcome in given]
        return self._patiently_all(Rounds(queries, given, batches.head, _headed), done, wait)

    def _batches(self) -> Batches:
        rooms = self._rooms()
        return Batches(rooms.ledger, rooms.store, rooms.reader, self.settings)

    def _given(self, verb: str, refs: Iterable[RefOrOutcome]) -> list[Outcome]:
        """The refs that are meant, as outcomes without a value: one that had an error before keeps it."""
        given: list[Outcome] = []
        for ref in listed(verb, refs):
            known = Outcome.parse(ref) if looks_like_outcome(ref) else Outcome(ObjectRef.parse(ref))
            given.append(Outcome(self._allowed(known.ref), error=known.error))
        return given

    def _write_of(self, item: WriteItem) -> Write:
        given = _item(item)
        target = self._allowed(given["ref"]).plain()
        condition = condition_of(given.get("if_match"), given.get("if_none_match", False))
        content = content_of(
            ("PutObject",), given.get("content_type"), given.get("metadata"), given.get("put_options"), body_bytes(given["body"])
        )
        self._require(condition, target, Honours.PUT_IF_MATCH, Honours.PUT_IF_NONE_MATCH)
        return put(self._rooms().store, target, self._write_ids(target), content, condition)

    def _persistently(self, rounds: Rounds[Any], done: Done, wait: float | None) -> list[Outcome]:
        settings = self.settings
        rounds.keep(done)
        attempt = self._acting.numbered(lambda: rounds.go(StoreUnavailable))

        def tries() -> None:
            try_times(attempt, settings, times=settings.store_attempts, on=(StoreUnavailable,))

        return rounds.outcomes_of(
            lambda: keep_trying(
                lambda: rounds.after(tries, OverlappingWrite), settings, seconds=self._seconds(wait), on=(OverlappingWrite,)
            )
        )

    def _patiently_all(self, rounds: Rounds[Any], done: Done, wait: float | None) -> list[Outcome]:
        rounds.keep(done)
        patience, goes = self._rooms().patience, 0

        def go() -> None:
            nonlocal goes
            goes += 1
            rounds.go(PreconditionFailed)

        def gap(problem: RetryableError, waited_seconds: float) -> float:
            return patience.gap_seconds(problem, goes, waited_seconds)

        return rounds.outcomes_of(lambda: self._keep_trying(go, wait, gap))


def _written(outcome: Outcome, result: object) -> Outcome:
    return Outcome(result) if isinstance(result, ObjectRef) else with_result(outcome, result)


def _headed(outcome: Outcome, result: object) -> Outcome:
    return Outcome(outcome.ref, dict(described(result))) if isinstance(result, Served) else with_result(outcome, result)


def _item(item: WriteItem) -> Mapping[str, Any]:
    """What is to be written where, by name."""
    if isinstance(item, Mapping):
        unknown = sorted(map(str, item.keys() - _ITEM_NAMES))
        missing = sorted({"body", "ref"} - item.keys())
        if unknown or missing:
            problem = f"does not take {', '.join(unknown)}" if unknown else f"needs {' and '.join(missing)}"
            raise ValueError(f"an item of write_many {problem}: it has {', '.join(sorted(_ITEM_NAMES))}")
        return item
    if isinstance(item, list | tuple) and len(item) == 2:
        return {"body": item[0], "ref": item[1]}
    raise ValueError("an item of write_many is a pair of body and ref, or a dict with them")
