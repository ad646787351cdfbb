"""One operation of the real code, advanced by one call at a time without threads.

It never changes what the code does: the code runs again from its start at every step, its earlier calls are answered from the
tape, and it is cut off when it asks for one call more than the step allows. That is sound because the code under test has no
state of its own between two calls of its ledger or its store.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from s3tasks.errors import LedgerUnavailable, S3TasksError
from s3tasks.evidence import Current, Intent, Landed, Record
from s3tasks.ledger import Busy, Finished, Ledger, Opened
from s3tasks.refs import Marker, ObjectRef
from s3tasks.store import Answer, Condition, Content, Endpoint, Store
from tests.faults.schedules.plan import FAILED, LOST

T = TypeVar("T")


class CutOff(BaseException):
    """The step's one call has been made, and the code asks for another."""


@dataclass(frozen=True)
class Call:
    """A call that was made: at which step, what it led to (also when the answer was lost), and what the code got."""

    step: int
    name: str
    fault: str
    result: Any
    error: S3TasksError | None


class Tape:
    """The calls of one operation. `advance` makes one more; True when the code has come to its end."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self._position = 0
        self._step, self._fault, self._allowed = 0, "", False

    def advance(self, code: Callable[[], T], step: int, fault: str) -> tuple[bool, T | None]:
        """Runs the code until it has made one new call and asks for the next; (True, result) when it returns.

        What the code raises comes out as it is.
        """
        self._position, self._step, self._fault, self._allowed = 0, step, fault, True
        try:
            return True, code()
        except CutOff:
            return False, None

    def call(self, name: str, make: Callable[[], T], *, to_ledger: bool) -> T:
        if self._position == len(self.calls):
            if not self._allowed:
                raise CutOff
            self._allowed = False
            self.calls.append(self._made(name, make, to_ledger))
        made = self.calls[self._position]
        self._position += 1
        if made.error is not None:
            raise made.error
        result: T = made.result
        return result

    def _made(self, name: str, make: Callable[[], T], to_ledger: bool) -> Call:
        if to_ledger and self._fault == FAILED:
            return Call(self._step, name, FAILED, None, LedgerUnavailable(name, "not reached"))
        try:
            result = make()
        except S3TasksError as error:
            return Call(self._step, name, self._fault, None, error)
        lost = to_ledger and self._fault == LOST
        return Call(self._step, name, self._fault, result, LedgerUnavailable(name, "the answer was lost") if lost else None)


class TapedLedger(Ledger):
    """A ledger whose every move is one call on the tape."""

    def __init__(self, ledger: Ledger, tape: Tape) -> None:
        self._inner, self._tape = ledger, tape

    def lookup(self, ref: ObjectRef) -> Record:
        return self._tape.call("lookup", lambda: self._inner.lookup(ref), to_ledger=True)

    def begin(self, ref: ObjectRef, write_id: str, *, deletes: bool = False) -> Opened | Finished | Busy:
        return self._tape.call("begin", lambda: self._inner.begin(ref, write_id, deletes=deletes), to_ledger=True)

    def commit(self, ref: ObjectRef, write_id: str, ticket: int, landed: Landed, *, landed_ticket: int) -> Current:
        move = lambda: self._inner.commit(ref, write_id, ticket, landed, landed_ticket=landed_ticket)  # noqa: E731 - one line
        return self._tape.call("commit", move, to_ledger=True)

    def abort(self, ref: ObjectRef, write_id: str, ticket: int) -> bool:
        return self._tape.call("abort", lambda: self._inner.abort(ref, write_id, ticket), to_ledger=True)

    def observe(self, ref: ObjectRef, intent: Intent, ticket: int, landed: Landed) -> Current | None:
        return self._tape.call("observe", lambda: self._inner.observe(ref, intent, ticket, landed), to_ledger=True)

    def adopt(self, ref: ObjectRef, judged: Record, landed: Landed) -> Current | None:
        return self._tape.call("adopt", lambda: self._inner.adopt(ref, judged, landed), to_ledger=True)

    def version_is_gone(self, ref: ObjectRef, version_id: str) -> bool:  # noqa: ARG002 - no schedule removes a version
        return False


class TapedStore(Store):
    """A store whose every request is one call on the tape."""

    def __init__(self, store: Store, tape: Tape) -> None:
        self._inner, self._tape = store, tape

    def put(self, ref: ObjectRef, content: Content, marker: Marker, condition: Condition) -> Landed:
        return self._tape.call("PUT", lambda: self._inner.put(ref, content, marker, condition), to_ledger=False)

    def delete(self, ref: ObjectRef, condition: Condition, *, version_id: str | None = None) -> Landed:
        delete = lambda: self._inner.delete(ref, condition, version_id=version_id)  # noqa: E731 - one line
        return self._tape.call("DELETE", delete, to_ledger=False)

    def get(
        self,
        ref: ObjectRef,
        endpoint: Endpoint,
        *,
        if_match: str | None = None,
        if_none_match: str | None = None,
        byte_range: tuple[int, int | None] | None = None,
        version_id: str | None = None,
    ) -> Answer:
        def ask() -> Answer:
            return self._inner.get(
                ref, endpoint, if_match=if_match, if_none_match=if_none_match, byte_range=byte_range, version_id=version_id
            )

        return self._tape.call(f"GET {endpoint.value}", ask, to_ledger=False)

    def head(
        self, ref: ObjectRef, endpoint: Endpoint, *, version_id: str | None = None, with_checksum: bool = False,
        options: Mapping[str, Any] | None = None,
    ) -> Answer:
        def ask() -> Answer:
            return self._inner.head(ref, endpoint, version_id=version_id, with_checksum=with_checksum, options=options)

        return self._tape.call(f"HEAD {endpoint.value}", ask, to_ledger=False)
