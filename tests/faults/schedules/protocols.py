"""What the schedules run: the package itself, ways to break it, and the order of 2014 as a control.

It never changes the package: a mutant is a script altered on its way to Redis, or a wrapper around a ledger or a store.
"""

from __future__ import annotations

from typing import Any, Protocol, cast

from s3tasks.errors import NoSuchKey, NotYetVisible, ObjectDeleted, OverlappingWrite, StaleRead
from s3tasks.evidence import Current, Intent, Landed
from s3tasks.ledger import Busy, Finished, Ledger, _script
from s3tasks.reads import Query, Reader
from s3tasks.refs import Marker, ObjectRef
from s3tasks.settings import Settings
from s3tasks.store import Condition, Content, Endpoint, Store
from s3tasks.writes import carry_out, delete, put
from tests.faults.schedules.model_s3 import etag_of
from tests.faults.schedules.plan import DELETE, Operation
from tests.faults.schedules.tape import Tape, TapedLedger, TapedStore
from tests.faults.schedules.wire import Reply, Wire


class Runnable(Protocol):
    """What runs operations: a protocol between a ledger and a store."""

    def write(self, tape: Tape, store: Store, ref: ObjectRef, operation: Operation) -> ObjectRef:
        """One delivery of a put or delete."""

    def read(self, tape: Tape, store: Store, query: Query) -> bytes:
        """One attempt at a read."""


class Package:
    """The code under test: `s3tasks.writes` and `s3tasks.reads` on the real scripts."""

    ledger_class: type[Ledger] = Ledger
    altered: tuple[tuple[str, str, str], ...] = ()

    def __init__(self, settings: Settings, wire: Wire) -> None:
        self.settings = settings
        self.ledger = self.ledger_class(settings)
        self.ledger._ask = cast("Any", AlteredWire(wire, self.altered) if self.altered else wire)

    def write(self, tape: Tape, store: Store, ref: ObjectRef, operation: Operation) -> ObjectRef:
        ledger, taped = TapedLedger(self.ledger, tape), TapedStore(store, tape)
        condition = Condition(if_none_match=operation.only_if_absent)
        if operation.kind == DELETE:
            return carry_out(ledger, taped, delete(taped, ref, operation.write, condition))
        return carry_out(ledger, taped, put(taped, ref, operation.write, Content(operation.body), condition))

    def read(self, tape: Tape, store: Store, query: Query) -> bytes:
        return Reader(TapedLedger(self.ledger, tape), TapedStore(store, tape), self.settings).answer(query).read()


class AlteredWire:
    """A wire that sends some of the scripts with a piece of text replaced."""

    def __init__(self, wire: Wire, altered: tuple[tuple[str, str, str], ...]) -> None:
        self._wire = wire
        self._sources: dict[str, str] = {}
        for move, old, new in altered:
            source, digest = _script(move)
            if source.count(old) != 1:
                raise ValueError(f"{move}.lua does not hold {old!r} once: this mutation has to be written anew")
            self._sources[digest] = source.replace(old, new)

    def __call__(self, *words: str | int | bytes) -> Reply | dict[Reply, Reply]:
        source = self._sources.get(str(words[1]))
        if words[0] == "EVALSHA" and source is not None:
            return self._wire("EVAL", source, *words[2:])
        return self._wire(*words)


class NoIntent(Package):
    """A write asks S3 first and only then says so: its ticket is handed out and forgotten."""

    altered = (("begin", "keep_attempts(record, id, attempts)\n", ""),)


class CommitFirst(Package):
    """The ledger is told that S3 has taken a write before S3 is asked."""

    def write(self, tape: Tape, store: Store, ref: ObjectRef, operation: Operation) -> ObjectRef:
        ledger, taped = TapedLedger(self.ledger, tape), TapedStore(store, tape)
        begun = ledger.begin(ref, operation.write, deletes=operation.kind == DELETE)
        if isinstance(begun, Busy):
            raise OverlappingWrite(ref.bucket, ref.key, begun.lease_seconds_left)
        if isinstance(begun, Finished):
            current = begun.current
            return ObjectRef(ref.bucket, ref.key, current.etag, seq=current.committed, deleted=current.deleted)
        date = cast("Any", store).second
        deletes = operation.kind == DELETE
        landed = Landed(deleted=True, date=date) if deletes else Landed(etag=etag_of(operation.body), date=date)
        current = ledger.commit(ref, operation.write, begun.ticket, landed, landed_ticket=begun.ticket)
        if deletes:
            taped.delete(ref, Condition())
        else:
            taped.put(ref, Content(operation.body), Marker(operation.write, begun.ticket), Condition())
        return ObjectRef(ref.bucket, ref.key, landed.etag, seq=current.committed, deleted=deletes)


class _DeafToObserve(Ledger):
    def observe(self, ref: ObjectRef, intent: Intent, ticket: int, landed: Landed) -> Current | None:  # noqa: ARG002 - deaf
        return None


class _ForgetfulOfObserve(Ledger):
    def observe(self, ref: ObjectRef, intent: Intent, ticket: int, landed: Landed) -> Current | None:  # noqa: ARG002 - deaf
        facts = {name: getattr(landed, name) for name in ("etag", "date", "deleted")}
        return Current(write_id=intent.write_id, begun=ticket, committed=ticket, **facts)


class ObserveRefused(Package):
    """A reader that finds a dead writer's bytes records nothing and hands nothing out."""

    ledger_class = _DeafToObserve


class ObserveUnrecorded(Package):
    """A reader that finds a dead writer's bytes hands them out and records nothing."""

    ledger_class = _ForgetfulOfObserve


class _NoTombstones(Ledger):
    def commit(self, ref: ObjectRef, write_id: str, ticket: int, landed: Landed, *, landed_ticket: int) -> Current:
        current = super().commit(ref, write_id, ticket, landed, landed_ticket=landed_ticket)
        if landed.deleted:
            self.forget(ref)
        return current


class NoTombstone(Package):
    """A delete removes the record instead of leaving a tombstone."""

    ledger_class = _NoTombstones


_DROP_RULE = "if current.committed < ticket then"


class DropAll(Package):
    """A commit drops every other current write, whatever its own ticket."""

    altered = (("commit", _DROP_RULE, "if true then"),)


class DropNone(Package):
    """A commit drops no current write."""

    altered = (("commit", _DROP_RULE, "if false then"),)


class FinishedForgotten(Package):
    """A redelivered write that has finished is done again."""

    altered = (("begin", "if finished then", "if false then"),)


class ReplacedIgnored(Package):
    """A redelivered write that has been replaced is done again."""

    altered = (("begin", "if intent and replaced(record, last(intent)) then", "if false then"),)


class OverlapIgnored(Package):
    """Writes that should take turns do not."""

    altered = (("begin", "if lease > 0 and busy > 0 then", "if false then"),)


class Order2014:
    """S3 is written, then the ETag is put into Redis; a read compares with the last ETag put there."""

    def __init__(self, settings: Settings, wire: Wire) -> None:
        self.settings, self._wire = settings, wire

    def write(self, tape: Tape, store: Store, ref: ObjectRef, operation: Operation) -> ObjectRef:
        taped = TapedStore(store, tape)
        if operation.kind == DELETE:
            landed = taped.delete(ref, Condition())
        else:
            condition = Condition(if_none_match=operation.only_if_absent)
            landed = taped.put(ref, Content(operation.body), Marker(operation.write, 1), condition)
        tape.call("SET", lambda: self._wire.ask("SET", ref.uri, landed.etag or "DELETED"), to_ledger=True)
        return ObjectRef(ref.bucket, ref.key, landed.etag, deleted=landed.deleted)

    def read(self, tape: Tape, store: Store, query: Query) -> bytes:
        ref, taped = query.ref, TapedStore(store, tape)
        said = cast("bytes | None", tape.call("lookup", lambda: self._wire.ask("GET", ref.uri), to_ledger=True))
        if said == b"DELETED":
            raise ObjectDeleted(ref.bucket, ref.key)
        exact = ref.etag if ref.exact and not query.latest else None
        etag = exact or (said.decode() if said else None)
        answer = taped.get(ref, Endpoint.READ)
        if answer.served is None:
            raise NotYetVisible(ref.bucket, ref.key) if etag else NoSuchKey(ref.bucket, ref.key)
        if etag is not None and answer.served.etag != etag:
            raise StaleRead(ref.bucket, ref.key, etag, answer.served.etag)
        return answer.read()


MUTANTS: dict[str, type[Package]] = {
    "drop the intent": NoIntent,
    "commit before S3": CommitFirst,
    "skip observe": ObserveRefused,
    "hand out without observe": ObserveUnrecorded,
    "forget the tombstone": NoTombstone,
    "commit drops all": DropAll,
    "commit drops none": DropNone,
    "forget finished writes": FinishedForgotten,
    "repeat replaced writes": ReplacedIgnored,
    "do not take turns": OverlapIgnored,
}

