"""The place where a schedule happens: one key, its S3, its ledger, and the operations under way.

It never chooses a step, and never judges what came of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from s3tasks.errors import NoSuchKey, S3TasksError, StoreError, WriteConflict
from s3tasks.evidence import Current
from s3tasks.ledger import Opened
from s3tasks.reads import Query
from s3tasks.refs import ObjectRef
from tests.faults.schedules import history, plan
from tests.faults.schedules.families import Family
from tests.faults.schedules.model_s3 import ModelS3
from tests.faults.schedules.plan import Operation, Schedule, Step
from tests.faults.schedules.protocols import Runnable
from tests.faults.schedules.tape import Call, Tape
from tests.faults.schedules.wire import Wire

REF = ObjectRef("bucket", "key")
_LAST_ATTEMPTS = 5
_CALM_SECONDS = 5


@dataclass
class Run:
    """An operation under way, or at its end."""

    operation: Operation
    ref: ObjectRef = REF
    tape: Tape = field(default_factory=Tape)
    started: int | None = None
    ended: int | None = None
    result: Any = None
    error: S3TasksError | None = None

    @property
    def done(self) -> bool:
        return self.ended is not None and self.error is None

    @property
    def outcome(self) -> str:
        return "" if self.ended is None else type(self.error).__name__ if self.error else "done"


class World:
    """One schedule under way. The database behind the wire belongs to it alone, and is empty when it begins."""

    def __init__(self, family: Family, protocol: Runnable, wire: Wire, schedule: Schedule) -> None:
        self._family, self._protocol, self._wire = family, protocol, wire
        self.schedule = schedule
        self.s3 = ModelS3(
            reads_are_late=family.reads_are_late,
            origin_is_late=family.origin_is_late,
            if_match_ignored=schedule.seed % 3 == 0,
            versioned=family.versioned,
            late_deletes=family.late_deletes,
        )
        self.s3.step = history.BEFORE
        if schedule.exists:
            self.s3.happen(b"before")
        self.runs = [Run(operation) for operation in schedule.operations]
        self.step = 0
        self._outside = 0
        if wire.ask("DBSIZE"):
            wire.ask("FLUSHDB")

    def add(self, operation: Operation) -> int:
        """Another operation, and its number."""
        self.runs.append(Run(operation))
        return len(self.runs) - 1

    def take(self, step: Step) -> None:
        """Lets a step happen. One that has no meaning here (an operation that has ended) changes nothing."""
        self.step += 1
        self.s3.step, self.s3.fault, self.s3.behind = self.step, step.fault, step.behind
        self.s3.second += step.seconds
        if step.action == plan.GO:
            self._go(self.runs[step.operation], step)
        elif step.action == plan.OUTSIDE_PUT:
            self._outside += 1
            self.s3.happen(f"somebody's {self._outside}".encode())
        elif step.action == plan.OUTSIDE_DELETE:
            self.s3.happen(None)
        elif step.action == plan.LAND:
            self.s3.land()
        elif step.action == plan.FLUSH:
            self._wire.ask("FLUSHDB")

    def _go(self, run: Run, step: Step) -> None:
        if run.ended is not None:
            return
        if run.started is None:
            run.started = self.step
            if not self._find_ref(run):
                run.ended, run.error = self.step, NoSuchKey(REF.bucket, REF.key)
                return
        self.s3.asked_by = run.operation.write
        self._advance(run, step.fault)

    def _find_ref(self, run: Run) -> bool:
        """The ref that a read asks with; False where the write has not returned one."""
        if run.operation.kind in (plan.EXACT, plan.LATEST):
            returned = [other.result for other in self.runs if other.done and other.operation.write == run.operation.write]
            returned = [ref for ref in returned if isinstance(ref, ObjectRef)]
            if not returned:
                return False
            run.ref = returned[0]
        return True

    def _advance(self, run: Run, fault: str) -> None:
        try:
            ended, result = run.tape.advance(self._code(run), self.step, fault)
        except S3TasksError as error:
            run.ended, run.error = self.step, error
            return
        if ended:
            run.ended, run.result = self.step, result

    def _code(self, run: Run) -> Callable[[], Any]:
        operation, protocol = run.operation, self._protocol
        if operation.kind in plan.WRITES:
            return lambda: protocol.write(run.tape, self.s3, REF, operation)
        query = Query(run.ref, latest=operation.kind == plan.LATEST)
        return lambda: protocol.read(run.tape, self.s3, query)

    def finish(self) -> history.History:
        """Lets what is on its way arrive, all endpoints agree and some seconds pass, and reads once more."""
        self._calm_down()
        last = [self._last_read(Operation(plan.READ), REF)]
        for run in self.runs:
            if run.done and isinstance(run.result, ObjectRef) and run.result.etag:
                last += [self._last_read(Operation(plan.EXACT, run.operation.write), run.result)]
        held = tuple(history.Held(version.step, version.body, version.write) for version in self.s3.history)
        numbered = list(enumerate(self.runs))
        reads = tuple(_read(n, run) for n, run in numbered if run.operation.kind not in plan.WRITES and _looked(run))
        attempts = tuple(_attempt(n, run) for n, run in numbered if run.operation.kind in plan.WRITES and run.tape.calls)
        return history.History(attempts, reads, held, tuple(_helped(self.runs)), tuple(last), held[-1].write)

    def _calm_down(self) -> None:
        self.s3.fault, self.s3.behind = "", 0
        while self.s3.on_their_way:
            self.step += 1
            self.s3.step = self.step
            self.s3.land()
        self.s3.second += _CALM_SECONDS
        if self.schedule.outside_last:
            self.step += 1
            self.s3.step = self.step
            self.s3.happen(b"somebody's last")
            self.s3.second += _CALM_SECONDS

    def _last_read(self, operation: Operation, ref: ObjectRef) -> history.Read:
        """Reads as often as a patient reader would, without a fault."""
        for _ in range(_LAST_ATTEMPTS):
            run = Run(operation, ref, started=self.step + 1)
            while not run.outcome:
                self.step += 1
                self._advance(run, "")
            if run.error is None or not run.error.retryable:
                break
        return _read(-1, run)


def _helped(runs: list[Run]) -> Iterator[tuple[int, str]]:
    for run in runs:
        for call in run.tape.calls:
            if call.name == "observe" and isinstance(call.result, Current):
                yield call.step, call.result.write_id


def _looked(run: Run) -> bool:
    return run.ended is not None and bool(run.tape.calls)


def _read(number: int, run: Run) -> history.Read:
    exact = run.operation.write if run.operation.kind == plan.EXACT else ""
    started, ended = run.started or 0, run.ended or 0
    body = run.result if run.error is None else None
    error = "" if run.error is None or isinstance(run.error, NoSuchKey) else type(run.error).__name__
    return history.Read(number, started, ended, body, error, exact, bool(exact and run.ref.version_id))


def _attempt(number: int, run: Run) -> history.Attempt:
    calls = run.tape.calls
    operation = run.operation
    asked = [call for call in calls if call.name in ("PUT", "DELETE")]
    return history.Attempt(
        number,
        operation.write,
        operation.body if operation.kind == plan.PUT else None,
        started=calls[0].step,
        ended=run.ended,
        began=_first(calls, lambda call: isinstance(call.result, Opened) or call.name in ("PUT", "DELETE")),
        finished=_first(calls, lambda call: call.name in ("commit", "SET") and call.result is not None),
        asked=tuple(call.step for call in asked),
        outcome=run.outcome,
        refused=bool(asked) and isinstance(asked[-1].error, StoreError | WriteConflict),
    )


def _first(calls: list[Call], wanted: Callable[[Call], bool]) -> int | None:
    return next((call.step for call in calls if wanted(call)), None)
