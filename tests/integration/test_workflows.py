"""The s3 tasks in every position of Celery's canvas, in a real prefork worker that reads from a replica which lags."""

from __future__ import annotations

import json
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from celery import chain, chord, group
from celery.exceptions import ChordError

from s3tasks import InvalidRef, NoSuchKey, NotYetVisible, ObjectDeleted, S3Tasks, StoreError, Superseded
from s3tasks.sandbox import Sandbox, WorkerProcess
from s3tasks.sandbox.processes import wait_until
from tests.conftest import REPOSITORY
from tests.s3_proxy import Forward, Request, Response, proxied

PATIENCE_SECONDS = 120
Signature = Any


def done(result: Any) -> Any:
    return result.get(timeout=PATIENCE_SECONDS)


@pytest.fixture
def task(s3: S3Tasks) -> Callable[..., Signature]:
    """Signatures of the tests' own tasks."""
    return lambda name, *arguments: s3.app.signature(f"tests.{name}", arguments)


class Notes:
    """What witnesses in the worker have noted down under one name, which tasks are given as `name`."""

    def __init__(self, s3: S3Tasks) -> None:
        self.name = f"notes-{uuid.uuid4().hex}"
        self._redis = s3.app.backend.client

    def all(self) -> list[Any]:
        return [json.loads(note) for note in self._redis.lrange(self.name, 0, -1)]

    def at_least(self, number: int) -> list[Any]:
        """All notes, once there are so many."""
        waiting_until = time.monotonic() + PATIENCE_SECONDS
        while len(self.all()) < number:
            assert time.monotonic() < waiting_until, self.all()
            time.sleep(0.02)
        return self.all()


@pytest.fixture
def notes(s3: S3Tasks) -> Notes:
    return Notes(s3)


@pytest.fixture
def lag(sandbox: Sandbox) -> Iterator[Callable[[Any], None]]:
    """Keeps the replica back until every result given is being retried."""
    sandbox.pause_replication()

    def until_retried(*results: Any) -> None:
        waiting_until = time.monotonic() + PATIENCE_SECONDS
        while any(result.state != "RETRY" for result in results):
            assert time.monotonic() < waiting_until, [result.state for result in results]
            time.sleep(0.02)
        sandbox.resume_replication()

    yield until_retried
    sandbox.resume_replication()


# --- chains ---


def test_each_verb_follows_a_write_in_a_chain(s3: S3Tasks, bucket: str) -> None:
    for number, (verb, expected) in enumerate([
        (s3.read.s(), b"body"),
        (s3.read.s(byte_range=[1, 2]), b"od"),
        (s3.head.s(), {"etag", "size"}),
        (s3.wait_visible.s(), {"etag", "size"}),
        (s3.delete.s(), {"deleted"}),
    ]):
        result = chain(s3.write.s(b"body", f"s3://{bucket}/{number}"), verb).delay()
        got = done(result)
        assert got == expected if isinstance(expected, bytes) else expected <= got.keys()


def test_s3_tasks_are_head_middle_and_tail_of_one_chain(s3: S3Tasks, bucket: str, task: Callable[..., Signature]) -> None:
    long = chain(
        s3.write.s(b"a", f"s3://{bucket}/1"), s3.wait_visible.s(), s3.read.s(), task("echo"),
        s3.write.s(f"s3://{bucket}/2"), s3.read.s(), s3.write.s(f"s3://{bucket}/3"), s3.delete.s(), s3.wait_visible.s(),
    )
    assert done(long.delay())["deleted"] is True
    assert s3.client.read(f"s3://{bucket}/2", wait=10) == b"a"


def test_an_immutable_step_takes_nothing_from_the_step_before(s3: S3Tasks, bucket: str) -> None:
    uri = f"s3://{bucket}/k"
    steps = chain(s3.write.s(b"1", uri), s3.write.si(b"2", uri), s3.read.si(uri))
    assert done(steps.delay()) == b"2"
    gone = chain(s3.write.s(b"3", uri), s3.delete.si(uri), s3.read.si(uri)).delay()
    with pytest.raises(ObjectDeleted):
        done(gone)


def test_an_immutable_read_stays_immutable_through_its_retries(s3: S3Tasks, bucket: str, lag: Callable[..., None]) -> None:
    result = chain(s3.write.s(b"other", f"s3://{bucket}/other"), s3.write.si(b"x", f"s3://{bucket}/k"),
                   s3.read.si(f"s3://{bucket}/k")).delay()
    lag(result)
    assert done(result) == b"x"


def test_a_step_behind_a_read_that_retries_runs_once_and_gets_its_bytes(
    s3: S3Tasks, bucket: str, task: Callable[..., Signature], notes: Notes, lag: Callable[..., None]
) -> None:
    result = chain(s3.write.s(b"late", f"s3://{bucket}/k"), s3.read.s(), task("echo"), task("tally", notes.name)).delay()
    lag(result.parent.parent)
    assert done(result) == b"late"
    assert len(notes.all()) == 1


def test_what_earlier_steps_return_may_be_ignored(s3: S3Tasks, bucket: str, task: Callable[..., Signature]) -> None:
    quiet = s3.write.s(f"s3://{bucket}/k").set(ignore_result=True)
    result = chain(task("render", "x").set(ignore_result=True), quiet, s3.read.s()).delay()
    assert done(result) == b"x"
    assert result.parent.result is None


def test_a_chain_whose_ignored_step_fails_does_not_hang(s3: S3Tasks, bucket: str) -> None:
    with pytest.raises(StoreError) as caught:
        done(chain(s3.write.s(b"x", "s3://no-such-bucket/k").set(ignore_result=True), s3.read.s()).delay())
    assert caught.value.code == "NoSuchBucket"


def test_a_waiting_chain_does_not_hold_the_worker(s3: S3Tasks, bucket: str, lag: Callable[..., None]) -> None:
    # More reads wait than the worker has processes.
    waiting = [chain(s3.write.s(str(n), f"s3://{bucket}/{n}"), s3.read.s()).delay() for n in range(6)]
    for result in waiting:
        done(result.parent)
    assert done(s3.write.delay(b"x", f"s3://{bucket}/quick"))["size"] == 1
    lag(*waiting)
    assert [done(result) for result in waiting] == [str(n).encode() for n in range(6)]


# --- groups and chords ---


def test_members_of_a_group_write_and_read_side_by_side(s3: S3Tasks, bucket: str) -> None:
    refs = done(group(s3.write.s(str(n), f"s3://{bucket}/{n}") for n in range(6)).delay())
    assert [ref["key"] for ref in refs] == [str(n) for n in range(6)]
    assert done(group(s3.read.s(ref) for ref in refs).delay()) == [str(n).encode() for n in range(6)]


def test_one_write_fans_out_to_a_group_of_readers(s3: S3Tasks, bucket: str) -> None:
    fan = chain(s3.write.s(b"body", f"s3://{bucket}/k"), group(s3.read.s(), s3.head.s(), s3.wait_visible.s()))
    body, head, ref = done(fan.delay())
    assert (body, head["size"], ref["etag"]) == (b"body", 4, head["etag"])


def test_a_body_reads_all_that_its_header_wrote(s3: S3Tasks, bucket: str, task: Callable[..., Signature]) -> None:
    header = [s3.write.s(str(n), f"s3://{bucket}/{n}") for n in range(8)]
    assert done(chord(header)(task("read_all"))) == [str(n).encode() for n in range(8)]


def test_a_body_that_waits_for_the_replica_runs_to_its_end_once(
    s3: S3Tasks, bucket: str, task: Callable[..., Signature], notes: Notes, lag: Callable[..., None]
) -> None:
    header = [s3.write.s(str(n), f"s3://{bucket}/{n}") for n in range(3)]
    body = task("read_all")
    body.link(task("tally", notes.name))
    result = chord(header)(body)
    lag(result)
    assert done(result) == [b"0", b"1", b"2"]
    assert len(notes.at_least(1)) == 1


def test_a_header_with_reads_that_retry_runs_its_body_once(
    s3: S3Tasks, bucket: str, task: Callable[..., Signature], notes: Notes, lag: Callable[..., None]
) -> None:
    refs = [s3.client.write(str(n), f"s3://{bucket}/{n}").to_dict() for n in range(4)]
    result = chord([s3.read.s(ref) for ref in refs])(task("tally", notes.name))
    lag(*result.parent.children)
    assert done(result) == [b"0", b"1", b"2", b"3"]
    assert len(notes.all()) == 1


def test_s3_tasks_are_bodies(s3: S3Tasks, bucket: str, task: Callable[..., Signature]) -> None:
    def header() -> Any:
        return group(chain(s3.write.s(str(n), f"s3://{bucket}/{n}"), s3.read.s()) for n in range(2))

    joined = f"s3://{bucket}/joined"
    assert done(chord(header())(chain(task("join"), s3.write.s(joined), s3.read.s()))) == b"0+1"
    assert done(chord(header())(s3.read.si(joined))) == b"0+1"
    assert done(chord(header())(s3.delete.si(joined)))["deleted"] is True


def test_a_body_may_be_a_group_and_a_header_may_hold_chains_and_groups(
    s3: S3Tasks, bucket: str, task: Callable[..., Signature]
) -> None:
    members = [
        s3.write.s(b"a", f"s3://{bucket}/a"),
        chain(s3.write.s(b"b", f"s3://{bucket}/b"), s3.wait_visible.s()),
        chain(task("render", "c"), s3.write.s(f"s3://{bucket}/c")),
    ]
    nested = chain(group(members), task("read_all"), group(task("echo"), task("join")), task("echo"))
    assert done(nested.delay()) == [[b"a", b"b", b"c"], b"a+b+c"]


def test_chords_follow_each_other_in_a_chain(s3: S3Tasks, bucket: str, task: Callable[..., Signature]) -> None:
    def stage(name: str) -> Any:
        return group(s3.write.si(f"{name}{n}", f"s3://{bucket}/{name}{n}") for n in range(3))

    assert done(chain(stage("a"), task("read_all"), stage("b"), task("read_all")).delay()) == [b"b0", b"b1", b"b2"]


# --- replace ---


def test_a_task_replaces_itself_by_an_s3_task_and_the_chain_goes_on(
    s3: S3Tasks, bucket: str, task: Callable[..., Signature], lag: Callable[..., None]
) -> None:
    ref = s3.client.write(b"x", f"s3://{bucket}/k").to_dict()
    result = chain(task("echo", 1), task("replaced_by", s3.read.si(ref)), s3.write.s(f"s3://{bucket}/copy")).delay()
    lag(result.parent)
    assert s3.client.read(done(result), wait=10) == b"x"


def test_a_task_replaces_itself_by_a_chain_of_s3_tasks(s3: S3Tasks, bucket: str, task: Callable[..., Signature]) -> None:
    steps = chain(s3.write.si(b"x", f"s3://{bucket}/k"), s3.read.s())
    assert done(chain(task("echo", 1), task("replaced_by", steps), task("echo")).delay()) == b"x"


def test_replaced_tasks_count_as_members_of_a_chord(s3: S3Tasks, bucket: str, task: Callable[..., Signature], notes: Notes) -> None:
    def member(number: int) -> Any:
        steps = chain(s3.write.si(str(number), f"s3://{bucket}/{number}"), s3.read.s())
        return task("replaced_by", None, steps)

    result = chord([member(0), member(1), member(2)])(task("tally", notes.name))
    assert done(result) == [b"0", b"1", b"2"]
    assert len(notes.all()) == 1


def test_a_task_replaces_itself_by_a_group_whose_members_are_read(
    s3: S3Tasks, bucket: str, task: Callable[..., Signature]
) -> None:
    writes = group(s3.write.si(str(n), f"s3://{bucket}/{n}") for n in range(3))
    assert done(chain(task("echo", 1), task("replaced_by", writes), task("read_all")).delay()) == [b"0", b"1", b"2"]


# --- errors ---


def test_an_error_callback_gets_the_error_itself_with_its_fields(
    s3: S3Tasks, bucket: str, task: Callable[..., Signature], notes: Notes
) -> None:
    s3.read.apply_async((f"s3://{bucket}/missing",), link_error=task("witness", notes.name))
    assert notes.at_least(1) == [["NoSuchKey", bucket, "missing"]]


@pytest.mark.parametrize("position", [0, 1, 2])
def test_a_chains_error_callback_hears_of_a_failure_in_any_position_once(
    s3: S3Tasks, bucket: str, task: Callable[..., Signature], notes: Notes, position: int
) -> None:
    steps = [s3.write.si(b"x", f"s3://{bucket}/k"), s3.head.s(), task("echo")]
    steps[position] = s3.read.si(f"s3://{bucket}/missing")
    result = chain(*steps).on_error(task("witness", notes.name)).delay()
    with pytest.raises(NoSuchKey) as caught:
        done(result)
    assert (caught.value.bucket, caught.value.key) == (bucket, "missing")
    assert notes.at_least(1) == [["NoSuchKey", bucket, "missing"]]


FAILING: dict[str, Callable[[S3Tasks, Signature, Signature], Any]] = {
    "of a task": lambda _, missing, tidy: missing.apply_async(link_error=tidy),
    "of a chain": lambda s3, missing, tidy: chain(missing, s3.write.s("s3://b/never")).on_error(tidy).delay(),
    "of a group's member": lambda _, missing, tidy: group(missing.on_error(tidy), missing).delay(),
    "of a header's member": lambda s3, missing, tidy: chord([missing.on_error(tidy)])(s3.app.signature("tests.echo")),
    "of a body": lambda s3, missing, tidy: chord([s3.app.signature("tests.echo", (1,))])(missing.on_error(tidy)),
    "of a chord": lambda s3, missing, tidy: chord([missing])(s3.app.signature("tests.echo").on_error(tidy)),
}


@pytest.mark.parametrize("fails", FAILING.values(), ids=FAILING)
def test_an_s3_task_tidies_up_as_an_error_callback(
    s3: S3Tasks, bucket: str, fails: Callable[[S3Tasks, Signature, Signature], Any]
) -> None:
    draft = s3.client.write(b"draft", f"s3://{bucket}/draft")
    fails(s3, s3.read.si(f"s3://{bucket}/missing"), s3.delete.si(draft.uri))
    waiting_until = time.monotonic() + PATIENCE_SECONDS
    while not all(current.deleted for current in s3.client._rooms().ledger.lookup(draft).currents):
        assert time.monotonic() < waiting_until
        time.sleep(0.02)


def test_an_s3_task_follows_as_a_callback(s3: S3Tasks, bucket: str) -> None:
    result = s3.write.apply_async((b"x", f"s3://{bucket}/k"), link=s3.copy.s(f"s3://{bucket}/copy"))
    done(result)
    (callback,) = result.children
    assert s3.client.read(done(callback), wait=PATIENCE_SECONDS) == b"x"


def test_a_retry_is_no_failure_to_an_error_callback(
    s3: S3Tasks, bucket: str, task: Callable[..., Signature], notes: Notes, lag: Callable[..., None]
) -> None:
    result = chain(s3.write.s(b"x", f"s3://{bucket}/k"), s3.read.s()).on_error(task("witness", notes.name)).delay()
    lag(result)
    assert done(result) == b"x"
    assert notes.all() == []


def test_a_missing_key_in_a_header_fails_the_chord_with_its_own_error(
    s3: S3Tasks, bucket: str, task: Callable[..., Signature], notes: Notes
) -> None:
    member, whole, body = Notes(s3), notes, Notes(s3)
    header = [
        s3.write.s(b"x", f"s3://{bucket}/k"),
        s3.read.s(f"s3://{bucket}/missing").on_error(task("witness", member.name)),
    ]
    result = chord(header)(task("tally", body.name).on_error(task("witness", whole.name)))
    with pytest.raises((NoSuchKey, ChordError)) as caught:
        done(result)
    assert isinstance(caught.value, NoSuchKey)
    assert (caught.value.bucket, caught.value.key) == (bucket, "missing")
    assert member.at_least(1) == [["NoSuchKey", bucket, "missing"]]
    told = whole.at_least(1)
    assert [note[0] for note in told] == ["ChordError"], "Celery tells the body's callback which member failed, not with what class"
    assert f"s3://{bucket}/missing: no such key" in str(told[0]) or "NoSuchKey" in str(told[0])
    assert body.all() == []


def test_an_error_in_a_body_reaches_its_callback_whole(
    s3: S3Tasks, bucket: str, task: Callable[..., Signature], notes: Notes
) -> None:
    first = s3.client.write(b"1", f"s3://{bucket}/k").to_dict()
    newer = s3.client.write(b"2", f"s3://{bucket}/k")
    s3.client.wait_visible(newer, wait=10)
    body = s3.read.si(first).on_error(task("witness", notes.name))
    with pytest.raises(Superseded) as caught:
        done(chord([task("echo", 1), task("echo", 2)])(body))
    assert caught.value.key == "k"
    assert [note[:3] for note in notes.at_least(1)] == [["Superseded", bucket, "k"]]


def test_an_error_in_a_replacement_is_the_error_of_the_task_it_replaced(
    s3: S3Tasks, bucket: str, task: Callable[..., Signature], notes: Notes
) -> None:
    missing = s3.read.si(f"s3://{bucket}/missing")
    replaced = task("replaced_by", None, missing).on_error(task("witness", notes.name))
    with pytest.raises(NoSuchKey):
        done(replaced.delay())
    assert notes.at_least(1) == [["NoSuchKey", bucket, "missing"]]


def test_a_failed_member_of_a_group_leaves_the_others_alone(s3: S3Tasks, bucket: str) -> None:
    s3.client.write(b"x", f"s3://{bucket}/there")
    results = group(s3.read.s(f"s3://{bucket}/there"), s3.read.s(f"s3://{bucket}/missing"), s3.read.s("nonsense")).delay()
    there, missing, nonsense = results.results
    assert done(there) == b"x"
    with pytest.raises(NoSuchKey):
        done(missing)
    with pytest.raises(InvalidRef):
        done(nonsense)


# --- with a worker of their own ---


@pytest.fixture
def own_worker(sandbox: Sandbox) -> Iterator[Callable[[dict[str, str]], str]]:
    """Starts workers, each on a queue of its own, whose name is returned, and with room for what is delivered again."""
    started: list[WorkerProcess] = []

    def start(environment: dict[str, str]) -> str:
        queue = f"q{uuid.uuid4().hex[:8]}"
        given = {**environment, "TEST_QUEUE": queue}
        started.append(sandbox.start_worker(
            "tests.integration.app", directory=REPOSITORY, environment=given, options=["-Q", queue], concurrency=5,
        ))
        return queue

    yield start
    for worker in started:
        worker.kill()


def test_the_error_after_retries_reaches_callbacks_with_what_waiting_has_cost(
    s3: S3Tasks, bucket: str, task: Callable[..., Signature], sandbox: Sandbox, own_worker: Callable[[dict[str, str]], str]
) -> None:
    queue = own_worker({"TEST_CONSISTENCY_DEADLINE_SECONDS": "2.5"})
    alone, member, whole = Notes(s3), Notes(s3), Notes(s3)

    def here(signature: Signature, notes: Notes | None = None) -> Signature:
        placed = signature.set(queue=queue)
        return placed if notes is None else placed.on_error(task("witness", notes.name))

    sandbox.pause_replication()
    try:
        late = s3.client.write(b"x", f"s3://{bucket}/k").to_dict()
        read = here(s3.read.s(late), alone).delay()
        header = [here(task("echo", 1)), here(s3.read.s(late), member)]
        both = chord(header)(here(task("echo"), whole))
        for result in (read, both):
            with pytest.raises(NotYetVisible) as caught:
                done(result)
            assert caught.value.attempts >= 2
            assert caught.value.waited_seconds >= 2.5
        for notes in (alone, member):
            [[name, *fields]] = notes.at_least(1)
            assert (name, fields[:2]) == ("NotYetVisible", [bucket, "k"])
            assert fields[-2] >= 2
            assert fields[-1] >= 2.5
        assert [note[0] for note in whole.at_least(1)] == ["ChordError"]
    finally:
        sandbox.resume_replication()


def test_a_member_that_is_delivered_twice_at_once_counts_once(
    s3: S3Tasks, bucket: str, task: Callable[..., Signature], notes: Notes, sandbox: Sandbox,
    own_worker: Callable[[dict[str, str]], str],
) -> None:
    twice, last = threading.Event(), threading.Event()
    puts: list[str] = []

    def holds_the_first_until_it_is_delivered_again(request: Request, forward: Forward) -> Response:
        if request.method == "PUT" and "/twice" in request.path:
            puts.append(request.path)
            (twice.set if len(puts) > 1 else twice.wait)()
        if request.method == "PUT" and "/last" in request.path:
            last.wait(PATIENCE_SECONDS)
        return forward(request)

    with proxied(sandbox.endpoint_url, holds_the_first_until_it_is_delivered_again) as proxy:
        queue = own_worker({
            "TEST_VISIBILITY_TIMEOUT_SECONDS": "3", "S3TASKS_ENDPOINT_URL": proxy.url, "S3TASKS_READ_ENDPOINT_URL": "",
        })
        header = [s3.write.s(name, f"s3://{bucket}/{name}").set(queue=queue) for name in ("one", "twice", "last")]
        result = chord(header)(task("tally", notes.name).set(queue=queue))
        assert twice.wait(PATIENCE_SECONDS)
        for member in result.parent.children[:2]:
            done(member)
        assert notes.all() == [], "the body waits for the last member, however often another was delivered"
        last.set()
        refs = done(result)
    assert [ref["key"] for ref in refs] == ["one", "twice", "last"]
    assert len(puts) == 2
    assert len(notes.all()) == 1
    assert [s3.client.read(ref, wait=10) for ref in refs] == [b"one", b"twice", b"last"]


def test_a_chord_whose_worker_is_killed_while_it_writes_runs_its_body_once(
    s3: S3Tasks, bucket: str, task: Callable[..., Signature], notes: Notes, sandbox: Sandbox
) -> None:
    workers: list[WorkerProcess] = []
    written: set[str] = set()
    queue = f"q{uuid.uuid4().hex[:8]}"

    def kills_the_worker_once(request: Request, forward: Forward) -> Response:
        response = forward(request)
        if request.method == "PUT":
            written.add(request.path[-2:])
        if request.method == "PUT" and request.path.endswith("/2") and len(workers) == 1:
            # A message that kombu has taken off the list and not yet noted as unacknowledged would be lost with the worker.
            wait_until(lambda: written == {"/0", "/1", "/2", "/3"}, PATIENCE_SECONDS)
            workers[0].kill()
        return response

    def start(environment: dict[str, str]) -> None:
        workers.append(sandbox.start_worker(
            "tests.integration.app", directory=REPOSITORY, environment=environment, options=["-Q", queue],
        ))

    with proxied(sandbox.endpoint_url, kills_the_worker_once) as proxy:
        environment = {"TEST_QUEUE": queue, "TEST_VISIBILITY_TIMEOUT_SECONDS": "8", "S3TASKS_ENDPOINT_URL": proxy.url}
        start(environment)
        header = [s3.write.s(str(n), f"s3://{bucket}/{n}").set(queue=queue) for n in range(4)]
        body = chain(task("read_all").set(queue=queue), task("tally", notes.name).set(queue=queue))
        result = chord(header)(body)
        assert wait_until(lambda: not workers[0].running, PATIENCE_SECONDS)
        start(environment)
        try:
            assert done(result) == [b"0", b"1", b"2", b"3"]
        finally:
            workers[1].stop()
    assert len(notes.all()) == 1
