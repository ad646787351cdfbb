"""Real workers, a real Redis and a real S3 server, and everything that may happen to them between any two steps.

After each fault: nothing stale was served, nothing acknowledged was lost, the key is readable, no intent stays open.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest

from s3tasks import ConsistentS3, ObjectRef, StaleRead, StoreError, StoreUnavailable
from s3tasks.ledger import Ledger
from s3tasks.refs import record_key
from s3tasks.sandbox import RedisServer, Sandbox
from s3tasks.sandbox.processes import wait_until
from tests.faults.processes.kills import (
    AFTER,
    BEFORE,
    CHILD,
    DELETE_STEPS,
    READ_STEPS,
    WORKER,
    WRITE_STEPS,
    Kill,
    carried_out,
    outcome_of,
)
from tests.faults.processes.overwriting import Reading, Write, replaced_reads
from tests.faults.processes.stage import PATIENCE_SECONDS, STORE_SILENCE_SECONDS, Stage, result_of, staged
from tests.faults.processes.traps import Trap, When
from tests.faults.processes.watching import GONE, READABLE_WITHIN_SECONDS, Watcher, assert_in_order, assert_sound, open_intents
from tests.s3_proxy import Dropped, Forward, Request, Response, refusal

OVERWRITING_SECONDS = float(os.environ.get("FAULTS_SECONDS", "5"))
STEADY = "steady"
PATIENT = ("patient-1", "patient-2")
Fault = Callable[[Request, Forward], Response]


@pytest.fixture(scope="module")
def stage(sandbox: Sandbox) -> Iterator[Stage]:
    with staged(sandbox) as made:
        yield made


@pytest.fixture(scope="module")
def workers(stage: Stage) -> Iterator[None]:
    """One worker that gives up on a silent S3 soon and has a process for each child that is killed, and two that are patient."""
    started = [stage.start_worker(STEADY, concurrency=6)]
    started += [stage.start_worker(queue, concurrency=2, S3TASKS_READ_TIMEOUT_SECONDS="60") for queue in PATIENT]
    yield
    for worker in started:
        worker.kill()


@pytest.fixture
def set_stage(stage: Stage, workers: None) -> Iterator[Stage]:
    """The stage with its workers; what a test has set up on it is cleared away afterwards."""
    yield stage
    stage.traps.clear()
    stage.redis_proxy.mend()
    stage.redis_proxy.move_to(stage.durable.url)


@pytest.fixture(scope="module")
def kills(stage: Stage, workers: None) -> dict[tuple[str, str], Kill]:
    return carried_out(stage, STEADY)


STEPS_WITH_VICTIMS = [
    *((WORKER, str(step)) for step in (*WRITE_STEPS, *READ_STEPS)),
    *((CHILD, str(step)) for step in (*WRITE_STEPS, *READ_STEPS, *DELETE_STEPS)),
]


@pytest.mark.parametrize(("victim", "step"), STEPS_WITH_VICTIMS)
def test_a_task_that_is_killed_at_any_step_is_done_once_and_nobody_is_served_anything_stale(
    stage: Stage, kills: dict[tuple[str, str], Kill], victim: str, step: str
) -> None:
    kill = kills[victim, step]
    verb = kill.step.verb

    outcome = outcome_of(kill)

    assert_in_order(kill.watcher, BEFORE, *([kill.expected] if verb != "read" else []))
    assert kill.watcher.phases()[-1] == kill.expected
    assert kill.watcher.unreadable_seconds(kill.killed_at) < READABLE_WITHIN_SECONDS
    for client in (stage.direct, stage.replicated):
        assert_sound(client, stage.ledger, kill.ref, kill.expected, kill.task_id)
    if verb == "read":
        assert outcome == BEFORE
    elif verb == "write":
        assert stage.direct.read(outcome) == AFTER, "the ref that the task returned names what it wrote"
        assert stage.s3_proxy.count_of("PUT", kill.ref) == 1, "written once"


@dataclass(frozen=True)
class Moment:
    """A step of a write or a read at which Redis is harmed. `answers`: its answer still arrives, or else never does."""

    name: str
    verb: str
    step: str
    when: When
    answers: bool = False


MOMENTS = (
    Moment("before begin", "write", "begin", When.BEFORE),
    Moment("after begin's answer", "write", "begin", When.AFTER, answers=True),
    Moment("before commit", "write", "commit", When.BEFORE),
    Moment("after commit, its answer lost", "write", "commit", When.AFTER),
    Moment("at a lookup", "read", "lookup", When.BEFORE),
)


@dataclass(frozen=True)
class Outage:
    """A way to lose Redis, and to get it back. While it is paused, what was sent to it waits to be done later."""

    name: str
    begin: Callable[[Stage, RedisServer], None]
    end: Callable[[Stage, RedisServer], None]
    seconds: float = 0.2
    keeps_data: bool = True
    swallows: bool = True


OUTAGES = (
    Outage("killed and restarted with its data", lambda _, server: server.kill(), lambda _, server: server.start()),
    Outage(
        "killed and restarted without its data", lambda _, server: server.kill(), lambda _, server: server.start(), keeps_data=False
    ),
    # Longer than the worker's client asks twice.
    Outage("paused", lambda _, server: server.pause(), lambda _, server: server.resume(), seconds=0.75, swallows=False),
    Outage("cut off", lambda stage, _: stage.redis_proxy.cut(), lambda stage, _: stage.redis_proxy.mend()),
)


@pytest.mark.parametrize("outage", OUTAGES, ids=lambda outage: outage.name)
@pytest.mark.parametrize("moment", MOMENTS, ids=lambda moment: moment.name)
def test_redis_lost_between_any_two_steps_delays_the_task_and_harms_nothing(
    set_stage: Stage, moment: Moment, outage: Outage, closing: Callable[[Any], Any]
) -> None:
    stage, server = set_stage, set_stage.durable if outage.keeps_data else set_stage.volatile
    stage.redis_proxy.move_to(server.url)
    direct, ledger = stage.client(ledger_url=server.url), closing(Ledger(stage.settings.replace(ledger_url=server.url)))
    # Where the ledger's data are lost, a replica's answers go unchecked: see test_ledger_loss.
    clients = (direct, stage.replicated) if outage.keeps_data else (direct,)
    ref = stage.new_ref()
    direct.write(BEFORE, ref)
    answers = moment.answers or (not outage.swallows and moment.when is When.BEFORE)
    trap = stage.traps.set(Trap(ref, moment.step, moment.when, lambda: outage.begin(stage, server), answers=answers))

    with Watcher(ref, clients) as watcher:
        sent = stage.send(STEADY, moment.verb, *((AFTER,) if moment.verb == "write" else ()), ref.uri)
        assert trap.sprung.wait(PATIENCE_SECONDS)
        time.sleep(outage.seconds)
        outage.end(stage, server)
        outcome = result_of(sent)

    expected = AFTER if moment.verb == "write" else BEFORE
    assert_in_order(watcher, BEFORE, *([AFTER] if moment.verb == "write" else []))
    stage.sandbox.drain()
    for client in clients:
        assert_sound(client, ledger, ref, expected, sent.id)
    if moment.verb == "read":
        assert outcome == BEFORE
    else:
        assert direct.read(outcome) == AFTER
        # A Redis that has lost its data has forgotten the write as well, and its task does it again.
        assert stage.s3_proxy.count_of("PUT", ref) <= (1 if outage.keeps_data else 2)


def test_broker_and_ledger_in_one_redis_come_back_together_from_its_crash(set_stage: Stage, closing: Callable[[Any], Any]) -> None:
    stage, ref = set_stage, set_stage.new_ref()
    with RedisServer(persistent=True) as only, ExitStack() as stack:
        worker = stage.start_worker(
            "celery", CELERY_BROKER_URL=only.url, CELERY_RESULT_BACKEND=only.url, S3TASKS_LEDGER_URL=only.url
        )
        stack.callback(worker.kill)
        direct = stage.client(ledger_url=only.url)
        direct.write(BEFORE, ref)
        trap = stage.traps.set(Trap(ref, "PUT", When.AFTER, only.kill, answers=True))
        from celery import Celery

        app = closing(Celery("one", broker=only.url, backend=only.url, set_as_current=False))
        sent = app.signature("s3tasks.write", (AFTER, ref.uri)).apply_async()
        assert trap.sprung.wait(PATIENCE_SECONDS)
        time.sleep(0.3)
        only.start()

        written = result_of(sent)

        assert direct.read(written) == AFTER
        assert_sound(direct, closing(Ledger(stage.settings.replace(ledger_url=only.url))), ref, AFTER, sent.id)
        assert stage.s3_proxy.count_of("PUT", ref) == 1


def silent_after_applying(request: Request, forward: Forward) -> Response:
    answer = forward(request)
    time.sleep(STORE_SILENCE_SECONDS + 0.3)
    return answer


def closed_after_applying(request: Request, forward: Forward) -> Response:
    forward(request)
    raise Dropped


def closed(_request: Request, _forward: Forward) -> Response:
    raise Dropped


def closed_in_mid_body(request: Request, forward: Forward) -> Response:
    answer = forward(request)
    return Response(answer.status, answer.headers, answer.body, cut_at=len(answer.body) // 2)


def truncated_with_a_length_to_match(request: Request, forward: Forward) -> Response:
    answer = forward(request)
    return Response(answer.status, answer.headers, answer.body[: len(answer.body) // 2])


def truncated_where_nobody_keeps_checksums(request: Request, forward: Forward) -> Response:
    answer = forward(request)
    headers = {name: value for name, value in answer.headers.items() if not name.lower().startswith("x-amz-checksum")}
    return Response(answer.status, headers, answer.body[: len(answer.body) // 2])


def answering(status: int) -> Fault:
    return lambda _request, _forward: refusal(status)


EITHER: dict[str, Fault] = {
    "silent after applying": silent_after_applying,
    "closed without an answer": closed,
    **{f"answering {status}": answering(status) for status in (500, 503, 409)},
}
WRITE_FAULTS: dict[str, Fault] = {**EITHER, "closed after applying": closed_after_applying}
READ_FAULTS: dict[str, Fault] = {
    **EITHER,
    "answering 412": answering(412),
    "closed in mid-body": closed_in_mid_body,
    "truncated, with a length to match": truncated_with_a_length_to_match,
}
# Some also more often than the worker asks by itself, so that Celery has to requeue.
LASTING = ("closed without an answer", "answering 503", "answering 409", "closed in mid-body")


def fault_cases(faults: dict[str, Fault]) -> list[tuple[str, int]]:
    return [(name, times) for name in faults for times in ((1, 4) if name in LASTING else (1,))]


def faulty(ref: ObjectRef, method: str, fault: Fault, times: int) -> Fault:
    """What becomes of requests: the first so many of that method, about that object, meet the fault."""
    left = [fault] * times

    def rule(request: Request, forward: Forward) -> Response:
        mine = request.method == method and request.path.split("?")[0] == f"/{ref.bucket}/{ref.key}"
        return left.pop()(request, forward) if mine and left else forward(request)

    return rule


@pytest.mark.parametrize(("fault", "times"), fault_cases(WRITE_FAULTS))
@pytest.mark.parametrize("verb", ["write", "delete"])
def test_an_s3_that_fails_a_write_leaves_it_done_once_it_answers(set_stage: Stage, verb: str, fault: str, times: int) -> None:
    stage, ref = set_stage, set_stage.new_ref()
    stage.direct.write(BEFORE, ref)
    stage.traps.request_rule = faulty(ref, "PUT" if verb == "write" else "DELETE", WRITE_FAULTS[fault], times)
    expected = AFTER if verb == "write" else GONE

    with Watcher(ref, (stage.direct, stage.replicated)) as watcher:
        sent = stage.send(STEADY, verb, *((AFTER,) if verb == "write" else ()), ref.uri)
        outcome = result_of(sent)

    assert_in_order(watcher, BEFORE, expected)
    stage.sandbox.drain()
    for client in (stage.direct, stage.replicated):
        assert_sound(client, stage.ledger, ref, expected, sent.id)
    if verb == "write":
        assert stage.direct.read(outcome) == AFTER


@pytest.mark.parametrize(("fault", "times"), fault_cases(READ_FAULTS))
def test_an_s3_that_fails_a_read_is_asked_again_until_the_whole_body_came(set_stage: Stage, fault: str, times: int) -> None:
    stage, ref = set_stage, set_stage.new_ref()
    stage.direct.write(BEFORE, ref)
    stage.traps.request_rule = faulty(ref, "GET", READ_FAULTS[fault], times)

    assert result_of(stage.send(STEADY, "read", ref.uri)) == BEFORE
    assert open_intents(stage.ledger, ref) == ()


def test_a_body_shorter_than_the_one_that_was_written_is_not_handed_out(set_stage: Stage) -> None:
    stage, ref = set_stage, set_stage.new_ref()
    written = stage.direct.write(BEFORE, ref)
    for asked in (ref.uri, written.to_dict()):
        stage.traps.request_rule = faulty(ref, "GET", truncated_where_nobody_keeps_checksums, 1)
        assert len(result_of(stage.send(STEADY, "read", asked))) == len(BEFORE)


def test_a_commit_that_arrives_a_second_time_does_not_bring_back_what_was_replaced(set_stage: Stage) -> None:
    stage, ref = set_stage, set_stage.new_ref()
    released = threading.Event()
    # The first answer is lost, and what the client then sends once more is on its way for long.
    again = Trap(ref, "commit", When.BEFORE, partial(released.wait, PATIENCE_SECONDS), answers=True)
    stage.traps.set(Trap(ref, "commit", When.AFTER, partial(stage.traps.set, again)))
    sent = stage.send(STEADY, "write", AFTER, ref.uri)
    result_of(sent)
    assert stage.replicated.read(ref, wait=READABLE_WITHIN_SECONDS) == AFTER
    stage.sandbox.pause_replication()
    try:
        stage.direct.write(b"newer", ref)
        seen = stage.ledger.lookup(ref).seq
        released.set()
        assert again.sprung.wait(PATIENCE_SECONDS)
        wait_until(lambda: stage.ledger.lookup(ref).seq > seen, 0.5)
        with pytest.raises(StaleRead):
            stage.replicated.read(ref)
    finally:
        released.set()
        stage.sandbox.resume_replication()
    assert_sound(stage.replicated, stage.ledger, ref, b"newer", sent.id)


@pytest.mark.parametrize("status", [412, 403, 501])
def test_a_definite_no_fails_the_task_and_changes_nothing(set_stage: Stage, status: int) -> None:
    stage, ref = set_stage, set_stage.new_ref()
    stage.direct.write(BEFORE, ref)
    stage.traps.request_rule = faulty(ref, "PUT", answering(status), 1)

    with pytest.raises(StoreError) as caught:
        result_of(stage.send(STEADY, "write", AFTER, ref.uri))

    assert caught.value.status == status
    assert stage.s3_proxy.count_of("PUT", ref) == 1
    assert_sound(stage.direct, stage.ledger, ref, BEFORE)


def test_a_write_that_nobody_delivers_again_keeps_its_intent_until_the_retention_is_over(
    set_stage: Stage, closing: Callable[[Any], Any]
) -> None:
    stage, ref = set_stage, set_stage.new_ref()
    settings = stage.settings.replace(
        endpoint_url=stage.s3_proxy.url, retention_seconds=2, redelivery_horizon_seconds=2, read_timeout_seconds=0.3
    )
    short, ledger = closing(ConsistentS3.from_settings(settings)), closing(Ledger(settings))
    short.write(BEFORE, ref)
    stage.traps.request_rule = faulty(ref, "PUT", closed, 3)
    with pytest.raises(StoreUnavailable):
        short.write(AFTER, ref)

    assert short.read(ref) == BEFORE, "an abandoned write is in nobody's way"
    assert len(open_intents(ledger, ref)) == 1
    short.write(b"next", ref)
    left_by_the_next_write = len(open_intents(ledger, ref))
    time.sleep(2.1)
    short.write(b"later", ref)

    assert left_by_the_next_write == 1, "a following write replaces it, but does not know that it is over"
    assert_sound(short, ledger, ref, b"later")


@dataclass
class SlowWrite:
    """A write whose first PUT is held on its way to S3 until `release`."""

    stage: Stage
    ref: ObjectRef

    def __post_init__(self) -> None:
        self._release, self.held, self.landed = threading.Event(), threading.Event(), threading.Event()

    def rule(self, request: Request, forward: Forward) -> Response:
        if request.method != "PUT" or self.held.is_set() or not request.body.startswith(AFTER[:5]):
            return forward(request)
        self.held.set()
        self._release.wait(PATIENCE_SECONDS)
        answer = forward(request)
        self.landed.set()
        return answer

    def release(self) -> None:
        self._release.set()
        assert self.landed.wait(PATIENCE_SECONDS)


@pytest.fixture
def slow(set_stage: Stage) -> Iterator[SlowWrite]:
    made = SlowWrite(set_stage, set_stage.new_ref())
    set_stage.traps.request_rule = made.rule
    yield made
    made._release.set()


def test_a_slow_write_that_is_delivered_again_after_a_newer_one_is_not_done_again(slow: SlowWrite) -> None:
    stage, ref = slow.stage, slow.ref
    record = record_key(stage.settings.ledger_prefix, ref)
    stage.direct.write(BEFORE, ref)
    sent = stage.send(PATIENT[0], "write", AFTER, ref.uri)
    assert slow.held.wait(PATIENCE_SECONDS)
    stage.direct.write(b"newer", ref)

    with Watcher(ref, (stage.direct,)) as at_origin, Watcher(ref, (stage.replicated,)) as at_replica:
        # The second delivery says that it was replaced, while the first still hangs.
        written = result_of(sent)
        assert stage.redis_proxy.count("begin", record) == 2
        before_the_release = at_origin.phases()
        slow.release()
        for watcher in (at_origin, at_replica):
            assert wait_until(lambda watcher=watcher: watcher.phases()[-1:] == [AFTER], 10), "what S3 serves may be read"  # type: ignore[misc]

    assert before_the_release == [b"newer"], "the second delivery wrote nothing"
    assert_in_order(at_origin, b"newer", AFTER)
    assert_in_order(at_replica, b"newer", AFTER)
    assert stage.s3_proxy.count_of("PUT", ref) == 1, "the slow write's own, which S3 applied last"
    assert stage.direct.read(written, latest=True) == AFTER
    stage.direct.write(b"last", ref)
    assert_sound(stage.replicated, stage.ledger, ref, b"last", sent.id)


def test_a_request_that_lands_after_its_write_was_done_again_and_replaced_leaves_the_key_readable(slow: SlowWrite) -> None:
    stage, ref = slow.stage, slow.ref
    stage.direct.write(BEFORE, ref)
    # The worker gives up on the request that is held, and its next one is answered.
    result_of(stage.send(STEADY, "write", AFTER, ref.uri))
    stage.direct.write(b"newer", ref)
    time.sleep(2.1)  # the write endpoint's clock, by which S3 says what came last, has whole seconds
    slow.release()

    assert stage.direct.read(ref, wait=READABLE_WITHIN_SECONDS / 2)[:5] in (AFTER[:5], b"newer")


def test_no_reader_is_served_what_was_replaced_while_two_workers_overwrite_one_key(
    set_stage: Stage, record_testsuite_property: Callable[[str, object], None]
) -> None:
    stage, ref = set_stage, set_stage.new_ref()
    stage.direct.write("first 0", ref)
    escalating = stage.client(read_endpoint_url=stage.sandbox.read_endpoint_url, on_stale="origin")
    readers = [Reading(client, ref) for client in (stage.direct, escalating) for _ in range(5)]
    for reader in readers:
        reader.start()

    app = stage.tasks.app
    sent = {
        writer: app.signature("tests.overwrite", (ref.uri, writer, OVERWRITING_SECONDS)).apply_async(queue=queue)
        for writer, queue in (("one", PATIENT[0]), ("two", PATIENT[1]))
    }
    assert wait_until(lambda: all(one.ready() for one in sent.values()), OVERWRITING_SECONDS + PATIENCE_SECONDS, 0.1)
    for reader in readers:
        reader.stop()

    told = {writer: one.get(timeout=1) for writer, one in sent.items()}
    writes = [Write(f"{writer} {n}", begun, ended) for writer, finished in told.items() for n, begun, ended in finished]
    reads = [read for reader in readers for read in reader.reads]
    record_testsuite_property("overwriting", f"{len(writes)} writes, {len(reads)} reads in {OVERWRITING_SECONDS:g} s")
    assert [reader.errors for reader in readers if reader.errors] == []
    assert replaced_reads(writes, reads) == []
    assert min(map(len, told.values())) > OVERWRITING_SECONDS
    assert all(len(reader.reads) > OVERWRITING_SECONDS for reader in readers), "every reader was served, and often"
    last = {stage.direct.read(ref, wait=READABLE_WITHIN_SECONDS).decode(), escalating.read(ref).decode()}
    finals = {writer: finished[-1][0] for writer, finished in told.items()}
    assert len(last) == 1
    assert last <= {f"{writer} {number}" for writer, number in finals.items()}, "the last write of either worker"
    failed = sum(finals[writer] + 1 - len(finished) for writer, finished in told.items())
    assert len(open_intents(stage.ledger, ref)) <= failed


def test_the_judge_of_overwriting_knows_a_replaced_version_from_an_overlapping_one() -> None:
    from tests.faults.processes.overwriting import Read

    writes = [Write("a", 0, 1), Write("b", 2, 5), Write("c", 3, 4)]

    assert replaced_reads(writes, [Read("a", 3.9), Read("b", 9), Read("c", 9), Read("unfinished", 9)]) == []
    assert replaced_reads(writes, [Read("a", 4.1)]) == [Read("a", 4.1)]
