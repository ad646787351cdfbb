"""SIGKILL at each step of a write, a delete and a read: all of them at once, for starting workers is what takes the time.

It never ends a process that the stage did not start.
"""

from __future__ import annotations

import os
import signal
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from s3tasks import ObjectRef
from s3tasks.sandbox.processes import wait_until
from tests.faults.processes.stage import PATIENCE_SECONDS, Stage, result_of
from tests.faults.processes.traps import Trap, When
from tests.faults.processes.watching import GONE, Watcher

BEFORE, AFTER = b"before" * 5000, b"after" * 5000


@dataclass(frozen=True)
class Step:
    """Where on its way a task is killed: the verb, the step on the wire, and on which side of it."""

    verb: str
    step: str
    when: When
    name: str

    def __str__(self) -> str:
        return f"{self.verb} {self.name}"


WRITE_STEPS = (
    Step("write", "begin", When.BEFORE, "before begin"),
    Step("write", "begin", When.AFTER, "after begin, before PUT"),
    Step("write", "PUT", When.AFTER, "after PUT, before commit"),
    Step("write", "commit", When.AFTER, "after commit, before ack"),
)
READ_STEPS = (
    Step("read", "lookup", When.BEFORE, "before lookup"),
    Step("read", "lookup", When.AFTER, "after lookup"),
    Step("read", "GET", When.DURING, "before the body's end"),
)
DELETE_STEPS = (
    Step("delete", "begin", When.AFTER, "after begin, before DELETE"),
    Step("delete", "DELETE", When.AFTER, "after DELETE, before commit"),
    Step("delete", "commit", When.AFTER, "after commit, before ack"),
)
WORKER, CHILD = "the whole worker", "a child of the pool"
VICTIM = "victim"


@dataclass
class Kill:
    """One task that is killed at one step, and what came of it."""

    step: Step
    victim: str
    ref: ObjectRef
    watcher: Watcher
    task_id: str = field(default_factory=lambda: str(uuid.uuid4()))
    killed_at: float = 0.0
    sent: Any = None

    @property
    def expected(self) -> bytes:
        return {"write": AFTER, "read": BEFORE, "delete": GONE}[self.step.verb]

    @property
    def arguments(self) -> tuple[Any, ...]:
        return (AFTER, self.ref.uri) if self.step.verb == "write" else (self.ref.uri,)


def planned(stage: Stage) -> Iterator[Kill]:
    """Every step with every victim; deletes, which go the way of writes, with one."""
    for victim in (WORKER, CHILD):
        for step in (*WRITE_STEPS, *READ_STEPS, *(DELETE_STEPS if victim is CHILD else ())):
            ref = stage.new_ref()
            yield Kill(step, victim, ref, Watcher(ref, (stage.direct, stage.replicated), every_seconds=0.3))


def carried_out(stage: Stage, steady_queue: str) -> dict[tuple[str, str], Kill]:
    """Kills every planned task, has each delivered again, and tells what became of them, by victim and step."""
    kills = list(planned(stage))
    for kill in kills:
        stage.direct.write(BEFORE, kill.ref)
    crashing = Crash(stage, sum(kill.victim is WORKER for kill in kills))
    try:
        with ExitStack() as watching:
            for kill in kills:
                watching.enter_context(kill.watcher)
                act = crashing.spring(kill) if kill.victim is WORKER else partial(_kill_child, stage, kill)
                stage.traps.set(Trap(kill.ref, kill.step.step, kill.step.when, act))
                queue = VICTIM if kill.victim is WORKER else steady_queue
                kill.sent = stage.send(queue, kill.step.verb, *kill.arguments, task_id=kill.task_id)
            crashing.wait()
            _wait_for_all(stage, kills)
    finally:
        stage.traps.clear()
    return {(kill.victim, str(kill.step)): kill for kill in kills}


class Crash:
    """One worker whose tasks are held, each at its own step, until all have got there; then all of its processes are killed."""

    def __init__(self, stage: Stage, tasks: int) -> None:
        patience = {f"S3TASKS_{name}_TIMEOUT_SECONDS": "60" for name in ("READ", "LEDGER")}
        self._worker = stage.start_worker(VICTIM, tasks, TEST_VISIBILITY_TIMEOUT_SECONDS="60", **patience)
        self._all_there = threading.Barrier(tasks + 1)
        self._dead = threading.Event()

    def spring(self, kill: Kill) -> Callable[[], None]:
        """What holds that task at its step until its worker is dead."""

        def act() -> None:
            self._all_there.wait(PATIENCE_SECONDS)
            self._dead.wait(PATIENCE_SECONDS)
            kill.killed_at = time.monotonic()

        return act

    def wait(self) -> None:
        """Returns when all tasks were at their steps, and the worker has been killed."""
        try:
            self._all_there.wait(PATIENCE_SECONDS)
        finally:
            self._worker.kill()
            self._dead.set()


def _wait_for_all(stage: Stage, kills: list[Kill]) -> None:
    rescuer = stage.start_worker(VICTIM, concurrency=2)
    try:
        for kill in kills:
            assert wait_until(lambda kill=kill: kill.killed_at > 0, PATIENCE_SECONDS), f"{kill.step} never came by"  # type: ignore[misc]
            assert wait_until(kill.sent.ready, PATIENCE_SECONDS, 0.05), f"{kill.step}: nobody delivered it again"
        time.sleep(1.0)  # the replica catches up, and the watchers see it
    finally:
        rescuer.kill()


def _kill_child(stage: Stage, kill: Kill) -> None:
    os.kill(stage.process_of(kill.task_id), signal.SIGKILL)
    kill.killed_at = time.monotonic()


def outcome_of(kill: Kill) -> Any:
    return result_of(kill.sent)
