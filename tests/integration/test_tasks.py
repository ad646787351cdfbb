"""The tasks in a real prefork worker, on a real Redis, reading from a replica that lags."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from celery import Celery, chain, chord, group

from s3tasks import (
    InvalidRef,
    LedgerUnavailable,
    NoSuchKey,
    NotYetVisible,
    ObjectDeleted,
    ObjectRef,
    PayloadTooLarge,
    S3Tasks,
    Settings,
    StoreError,
    Superseded,
)
from s3tasks.lags import weights_of
from s3tasks.ledger import Ledger
from s3tasks.sandbox import RedisServer, Sandbox, WorkerProcess
from s3tasks.sandbox.processes import wait_until
from s3tasks.store import Endpoint, Store
from s3tasks.tasks import enqueuing_app
from tests.conftest import REPOSITORY
from tests.s3_proxy import Dropped, Forward, Request, Response, proxied

PATIENCE_SECONDS = 120


def done(result: Any) -> Any:
    return result.get(timeout=PATIENCE_SECONDS)


def test_a_chain_reads_back_what_it_wrote_where_the_naive_read_does_not(s3: S3Tasks, bucket: str, sandbox: Sandbox) -> None:
    naive = Store(Settings.from_env())
    wrong = 0
    for turn in range(5):
        body, ref = f"version {turn}".encode(), ObjectRef(bucket, "key")
        read = chain(s3.write.s(body, ref.uri), s3.read.s()).delay()
        done(read.parent)
        answer = naive.get(ref, Endpoint.READ)
        wrong += not answer.has_body or answer.read() != body
        assert done(read) == body
    naive.close()
    assert wrong > 0


def test_a_body_comes_from_the_step_before(s3: S3Tasks, bucket: str) -> None:
    render = s3.app.signature("tests.render", ("report",))
    assert done(chain(render, s3.write.s(f"s3://{bucket}/r"), s3.read.s()).delay()) == b"report"


def test_every_verb_is_a_task(s3: S3Tasks, bucket: str) -> None:
    uri = f"s3://{bucket}/k"
    written = done(s3.write.delay(b"0123456789", uri, content_type="text/x", metadata={"a": "b"}))
    assert json.loads(json.dumps(written)) == written
    assert done(s3.wait_visible.delay(written)) == written
    assert done(s3.head.delay(written))["content_type"] == "text/x"
    assert done(s3.read.delay(written, byte_range=(2, 4))) == b"234"
    gone = done(s3.delete.delay(uri))
    assert gone["deleted"] is True
    assert done(s3.wait_visible.delay(gone)) == gone
    with pytest.raises(ObjectDeleted):
        done(s3.read.delay(uri))
    with pytest.raises(Superseded):
        done(s3.read.delay(written))
    with pytest.raises(ObjectDeleted):
        done(s3.read.delay(written, latest=True))


def test_tasks_have_their_fixed_names(s3: S3Tasks) -> None:
    tasks = (s3.write, s3.read, s3.delete, s3.head, s3.wait_visible)
    assert [task.name for task in tasks] == [f"s3tasks.{name}" for name in ("write", "read", "delete", "head", "wait_visible")]


def test_a_missing_key_fails_at_once_and_a_late_one_is_waited_for(s3: S3Tasks, bucket: str, sandbox: Sandbox) -> None:
    with pytest.raises(NoSuchKey):
        done(s3.read.delay(f"s3://{bucket}/missing"))
    sandbox.pause_replication()
    try:
        read = chain(s3.write.s(b"late", f"s3://{bucket}/late"), s3.read.s()).delay()
        done(read.parent)
        waiting_until = time.monotonic() + PATIENCE_SECONDS
        while read.state != "RETRY" or read.result.attempts < 2:
            assert time.monotonic() < waiting_until
            time.sleep(0.02)
        assert isinstance(read.result, NotYetVisible)
    finally:
        sandbox.resume_replication()
    assert done(read) == b"late"


def test_groups_and_chords_of_s3_tasks_wait_like_any(s3: S3Tasks, bucket: str) -> None:
    reads = group(chain(s3.write.s(str(n), f"s3://{bucket}/{n}"), s3.read.s()) for n in range(4))
    assert done(chord(reads)(s3.app.signature("tests.echo"))) == [b"0", b"1", b"2", b"3"]


def test_a_users_own_task_retries_and_numbers_its_writes(s3: S3Tasks, bucket: str) -> None:
    done(s3.write.delay(b"body", f"s3://{bucket}/source"))
    copied = done(s3.app.signature("tests.copy_twice", (f"s3://{bucket}/source", f"s3://{bucket}/target")).delay())
    assert done(s3.read.delay(copied)) == b"body2"


@pytest.mark.parametrize(
    ("given", "error"),
    [
        (("no ref",), InvalidRef), ((5,), InvalidRef), (("s3://no-such-bucket/k",), StoreError),
        (({"bucket": "b", "key": "k", "etag": "a\nb"},), InvalidRef),
    ],
)
def test_nonsense_is_one_clear_error_with_its_own_class(s3: S3Tasks, given: tuple[Any, ...], error: type[Exception]) -> None:
    with pytest.raises(error) as caught:
        done(s3.read.delay(*given))
    assert type(caught.value) is error


def test_a_body_that_does_not_belong_in_a_message_is_refused_where_it_is_sent(s3: S3Tasks, bucket: str) -> None:
    limit = s3.settings.max_inline_bytes
    assert done(s3.write.delay(b"x" * limit, f"s3://{bucket}/fits"))["size"] == limit
    refused: list[Callable[[], object]] = [
        lambda: s3.write.delay(b"x" * (limit + 1), f"s3://{bucket}/k"),
        lambda: s3.write.delay(body="ü" * limit, ref=f"s3://{bucket}/k"),
        lambda: chain(s3.write.s(b"x" * (limit + 1), f"s3://{bucket}/k"), s3.read.s()).delay(),
    ]
    for send in refused:
        with pytest.raises(PayloadTooLarge, match="in process"):
            send()


def test_a_body_too_large_on_its_way_through_a_chain_fails_the_write(s3: S3Tasks, bucket: str) -> None:
    render = s3.app.signature("tests.render", ("x", s3.settings.max_inline_bytes))
    result = chain(render, s3.write.s(f"s3://{bucket}/k"), s3.read.s()).delay()
    with pytest.raises(PayloadTooLarge):
        done(result)


def test_an_object_that_does_not_belong_in_a_result_is_refused(s3: S3Tasks, bucket: str) -> None:
    s3.client.write(b"x" * (s3.settings.max_inline_bytes + 1), f"s3://{bucket}/large")
    with pytest.raises(PayloadTooLarge):
        done(s3.read.delay(f"s3://{bucket}/large"))
    assert done(s3.read.delay(f"s3://{bucket}/large", byte_range=(0, 3))) == b"xxxx"


@pytest.fixture
def own_worker(sandbox: Sandbox) -> Iterator[Callable[..., WorkerProcess]]:
    """Starts workers on a queue of their own, with a visibility timeout that a test can wait for."""
    started: list[WorkerProcess] = []

    def start(environment: dict[str, str]) -> WorkerProcess:
        started.append(
            sandbox.start_worker(
                "tests.integration.app", directory=REPOSITORY, environment=environment, options=["-Q", environment["TEST_QUEUE"]]
            )
        )
        return started[-1]

    yield start
    for worker in started:
        worker.kill()


@pytest.fixture
def producer(sandbox: Sandbox) -> Iterator[Callable[[Settings], S3Tasks]]:
    """Makes apps that only enqueue, with the settings given."""
    made: list[S3Tasks] = []

    def make(settings: Settings) -> S3Tasks:
        app = Celery("producer", broker=sandbox.redis_url, backend=sandbox.redis_url, set_as_current=False)
        app.conf.broker_transport_options = {"visibility_timeout": 3}
        made.append(S3Tasks(app, settings))
        return made[-1]

    yield make
    for toolkit in made:
        toolkit.client.close()
        toolkit.app.close()


@pytest.mark.parametrize("overwritten", [False, True])
def test_a_worker_killed_between_s3s_answer_and_its_commit_does_no_harm(
    sandbox: Sandbox,
    own_worker: Callable[..., WorkerProcess],
    producer: Callable[[Settings], S3Tasks],
    settings: Settings,
    ref: ObjectRef,
    overwritten: bool,
) -> None:
    workers: list[WorkerProcess] = []

    def kills_the_worker_once(request: Request, forward: Forward) -> Response:
        response = forward(request)
        if request.method == "PUT" and len(workers) == 1 and workers[0].running:
            workers[0].kill()
            raise Dropped
        return response

    queue = f"q{uuid.uuid4().hex[:8]}"
    direct = producer(settings)
    with proxied(sandbox.endpoint_url, kills_the_worker_once) as proxy:
        environment = {
            "TEST_QUEUE": queue,
            "TEST_VISIBILITY_TIMEOUT_SECONDS": "3",
            "S3TASKS_ENDPOINT_URL": proxy.url,
            "S3TASKS_READ_ENDPOINT_URL": "",
            "S3TASKS_LEDGER_PREFIX": settings.ledger_prefix,
        }
        direct.client.write(b"before", ref)
        workers.append(own_worker(environment))
        result = direct.write.apply_async((b"after", ref.uri), queue=queue)
        while workers[0].running:
            time.sleep(0.02)
        assert direct.client.read(ref) == b"after", "readable though its writer is dead"
        if overwritten:
            direct.client.write(b"newer", ref)
        workers.append(own_worker(environment))
        while not result.ready():
            assert direct.client.read(ref) == (b"newer" if overwritten else b"after")
            time.sleep(0.05)
        written = done(result)
        assert proxy.count("PUT") == 1, "written once"
    assert direct.client.read(ref) == (b"newer" if overwritten else b"after")
    if not overwritten:
        assert direct.client.read(written) == b"after"


def test_redis_that_cannot_be_reached_is_retried_until_it_can(
    sandbox: Sandbox,
    own_worker: Callable[..., WorkerProcess],
    producer: Callable[[Settings], S3Tasks],
    settings: Settings,
    ref: ObjectRef,
) -> None:
    with RedisServer() as ledger_server:
        queue = f"q{uuid.uuid4().hex[:8]}"
        direct = producer(settings)
        own_worker({"TEST_QUEUE": queue, "S3TASKS_LEDGER_URL": ledger_server.url, "S3TASKS_READ_ENDPOINT_URL": ""})
        ledger_server.kill()
        result = direct.write.apply_async((b"x", ref.uri), queue=queue)
        while result.state != "RETRY":
            time.sleep(0.02)
        assert isinstance(result.result, LedgerUnavailable)
        store = Store(settings)
        assert store.head(ref, Endpoint.WRITE).served is None, "nothing was written without its intent"
        store.close()
        ledger_server.restart()
        assert done(result)["size"] == 1


def test_the_last_error_surfaces_when_the_deadline_is_over(
    sandbox: Sandbox,
    own_worker: Callable[..., WorkerProcess],
    producer: Callable[[Settings], S3Tasks],
    settings: Settings,
    ref: ObjectRef,
) -> None:
    direct = producer(settings)
    queue = f"q{uuid.uuid4().hex[:8]}"
    own_worker({
        "TEST_QUEUE": queue, "S3TASKS_LEDGER_PREFIX": settings.ledger_prefix, "TEST_CONSISTENCY_DEADLINE_SECONDS": "4",
    })
    sandbox.pause_replication()
    try:
        written = direct.client.write(b"x", ref)
        with pytest.raises(NotYetVisible) as caught:
            done(direct.read.apply_async((written.to_dict(),), queue=queue))
    finally:
        sandbox.resume_replication()
    assert caught.value.attempts >= 2
    assert caught.value.waited_seconds >= 4


@pytest.fixture
def eager(sandbox: Sandbox, settings: Settings) -> Iterator[S3Tasks]:
    app = Celery("eager", broker=sandbox.redis_url, backend=sandbox.redis_url, set_as_current=False)
    app.conf.update(task_always_eager=True, task_eager_propagates=True)
    toolkit = S3Tasks(app, settings.replace(read_endpoint_url=sandbox.read_endpoint_url, consistency_deadline_seconds=10.0))
    yield toolkit
    toolkit.client.close()
    app.close()


def test_eager_tasks_wait_in_process(eager: S3Tasks, ref: ObjectRef) -> None:
    assert chain(eager.write.s(b"x", ref.uri), eager.read.s()).delay().get() == b"x"
    assert eager.read(eager.write(b"y", ref.uri)) == b"y", "so do tasks that are called like functions"


def test_eager_tasks_raise_the_error_itself(eager: S3Tasks, ref: ObjectRef) -> None:
    first = eager.write(b"1", ref.uri)
    eager.write(b"2", ref.uri)
    with pytest.raises(Superseded):
        eager.read.delay(first)
    with pytest.raises(NoSuchKey):
        eager.read.delay(ref.uri + "missing")


def test_settings_come_from_the_app_then_the_environment_then_the_broker(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("S3TASKS_RETENTION_SECONDS", "7200")
    monkeypatch.setenv("S3TASKS_MAX_INLINE_BYTES", "5")
    app = Celery("settings", broker=sandbox.redis_url, set_as_current=False)
    toolkit = S3Tasks(app)
    app.conf.s3tasks_max_inline_bytes = 6
    app.conf.s3tasks_allowed_buckets = ["one", "two"]

    settings = toolkit.settings

    assert (settings.retention_seconds, settings.max_inline_bytes) == (7200, 6)
    assert settings.allowed_buckets == ("one", "two")
    assert settings.ledger_url == sandbox.redis_url


def test_a_misspelt_key_in_the_apps_configuration_is_refused_by_name(sandbox: Sandbox) -> None:
    app = Celery("misspelt", broker=sandbox.redis_url, set_as_current=False)
    app.conf.s3tasks_retention = 5
    with pytest.raises(ValueError, match="s3tasks_retention"):
        _ = S3Tasks(app).settings


def test_a_broker_that_is_no_redis_needs_a_ledger_url() -> None:
    toolkit = S3Tasks(Celery("amqp", broker="amqp://nowhere", set_as_current=False), None)
    with pytest.raises(ValueError, match="S3TASKS_LEDGER_URL"):
        _ = toolkit.settings


def test_finished_writes_are_remembered_for_twice_the_visibility_timeout(sandbox: Sandbox) -> None:
    app = Celery("horizon", broker=sandbox.redis_url, set_as_current=False)
    app.conf.broker_transport_options = {"visibility_timeout": 50_000}
    settings = S3Tasks(app).settings
    assert settings.redelivery_horizon_seconds == 100_000
    assert settings.retention_seconds == 100_000


def test_a_ref_itself_may_be_passed_to_a_task(s3: S3Tasks, bucket: str) -> None:
    written = s3.client.write(b"x", f"s3://{bucket}/k")
    assert done(s3.read.delay(written)) == b"x"


def test_a_misspelt_argument_is_refused_where_it_is_sent(s3: S3Tasks) -> None:
    with pytest.raises(TypeError, match=r"^write\(\) .*contenttype"):
        s3.write.delay(b"x", "s3://b/k", contenttype="text/plain")


@pytest.mark.parametrize(("name", "value"), [("S3TASKS_ON_STALE", "orgin"), ("S3TASKS_LEDGER_URI", "redis://x")])
def test_a_worker_does_not_start_with_settings_that_would_fail_its_tasks(sandbox: Sandbox, name: str, value: str) -> None:
    with pytest.raises(RuntimeError, match=r"s3tasks: this worker cannot start: .*(on_stale|LEDGER_URI)"):
        sandbox.start_worker("tests.integration.app", directory=REPOSITORY, environment={name: value})


@pytest.mark.parametrize("ending", ["killed", "silent"])
def test_a_producers_app_does_not_wait_for_ever_for_a_redis_that_is_down(settings: Settings, ending: str) -> None:
    with RedisServer() as server:
        toolkit = S3Tasks(enqueuing_app(server.url, server.url), settings)
        toolkit.read.apply_async(("s3://b/k",), ignore_result=True)
        if ending == "killed":
            server.kill()
        else:
            server.pause()
        with pytest.raises(Exception, match=r"(?i)connect|time|retry"):
            toolkit.read.apply_async(("s3://b/k",), ignore_result=True)
        toolkit.app.close()


def test_tasks_belong_to_their_own_app_only(sandbox: Sandbox) -> None:
    one, other = (Celery(name, broker=sandbox.redis_url, set_as_current=False) for name in ("one", "other"))
    S3Tasks(one)
    one.finalize()
    other.finalize()
    assert "s3tasks.write" in one.tasks
    assert "s3tasks.write" not in other.tasks


def test_the_deployable_worker_runs_and_ends_on_sigterm(sandbox: Sandbox, bucket: str) -> None:
    queue = f"q{uuid.uuid4().hex[:8]}"
    worker = sandbox.start_worker(directory=REPOSITORY, options=["-Q", queue])
    try:
        app = Celery("client", broker=sandbox.redis_url, backend=sandbox.redis_url, set_as_current=False)
        sent = app.signature("s3tasks.write", (b"x", f"s3://{bucket}/k")).apply_async(queue=queue)
        assert done(sent)["size"] == 1
        app.close()
    finally:
        worker.stop()
    assert not worker.running


PRODUCER = """
import sys
from celery import Celery, chain
from s3tasks import S3Tasks

app = Celery("shop", broker=sys.argv[1], backend=sys.argv[1])
s3 = S3Tasks(app)
chain(s3.write.s(b"x", "s3://b/k"), s3.read.s(), s3.delete.si("s3://b/k")).apply_async(queue=sys.argv[2])
s3.write_many.apply_async(([["x", "s3://b/k"]],), queue=sys.argv[2])
assert s3.settings.ledger_url == sys.argv[1]
"""
TELL = "print(*sorted(name for name in sys.modules if name.count('.') < 2))"
WORKS_WITH = {"boto3", "botocore", "s3transfer", "tenacity", "s3tasks.store", "s3tasks.ledger"}


def modules_after(program: str, *arguments: str) -> set[str]:
    command = [sys.executable, "-c", f"{program}\n{TELL}", *arguments]
    return set(subprocess.run(command, capture_output=True, text=True, check=True, cwd=REPOSITORY).stdout.split())


def test_a_producer_loads_nothing_that_only_work_needs(sandbox: Sandbox) -> None:
    loaded = modules_after(PRODUCER, sandbox.redis_url, f"unread-{uuid.uuid4().hex}")
    assert "celery" in loaded
    assert loaded & WORKS_WITH == set()


def test_a_worker_loads_what_its_processes_share_before_it_forks(sandbox: Sandbox) -> None:
    starts = "from celery import signals; signals.worker_init.send(sender=type('Worker', (), {'app': app})())"
    assert modules_after(PRODUCER + starts, sandbox.redis_url, f"unread-{uuid.uuid4().hex}") >= WORKS_WITH


@pytest.mark.parametrize("policy", ["allkeys-lru", "volatile-ttl", "noeviction"])
def test_a_worker_says_loudly_that_its_redis_may_evict_the_ledger(sandbox: Sandbox, policy: str) -> None:
    with RedisServer(["--maxmemory-policy", policy]) as server:
        worker = sandbox.start_worker(
            "tests.integration.app",
            directory=REPOSITORY,
            environment={"CELERY_BROKER_URL": server.url, "S3TASKS_LEDGER_URL": server.url, "CELERY_RESULT_BACKEND": server.url},
        )
        worker.stop()
        warned = f"ERROR/MainProcess] the ledger's Redis has maxmemory-policy {policy}" in worker.log()
    assert warned is (policy != "noeviction")


# --- waiting ---


def test_of_a_lag_that_was_learnt_fewer_probes_find_the_end(sandbox: Sandbox, s3: S3Tasks, buckets: Iterator[str]) -> None:
    known, unknown = next(buckets), next(buckets)
    prefix, queue = f"lag{uuid.uuid4().hex[:6]}", f"lag{uuid.uuid4().hex[:6]}"
    with proxied(str(sandbox.read_endpoint_url)) as proxy:
        url = proxy.url
        settings = Settings.from_env().replace(read_endpoint_url=url, ledger_prefix=prefix)
        ledger = Ledger(settings)
        seconds, microseconds = ledger._redis.time()
        # Twenty writes that became visible 3 s after their commit.
        for number in range(20):
            ledger.note_seen(url, known, seconds * 1_000_000 + microseconds - 3_000_000 - number, 0.0, 2.9)
        ledger.close()
        sandbox.start_worker(
            "tests.integration.app", directory=REPOSITORY,
            environment={"S3TASKS_READ_ENDPOINT_URL": url, "S3TASKS_LEDGER_PREFIX": prefix, "TEST_QUEUE": queue},
        )
        sandbox.set_lag(3.0, 3.0)
        try:
            reads = []
            for number, bucket in enumerate((known, unknown) * 3):
                write = s3.write.s(b"x", f"s3://{bucket}/{number}").set(queue=queue)
                reads.append(chain(write, s3.read.s().set(queue=queue)).delay())
            assert [done(read) for read in reads] == [b"x"] * 6
        finally:
            sandbox.set_lag(0.2, 0.6)

    asked = Counter(path.partition("?")[0].rpartition("/")[2] for _, path in proxy.seen)
    learnt, unlearnt = ([asked[str(number)] for number in range(first, 6, 2)] for first in (0, 1))
    # Soon, before a second is over, before three are, and at the end: t = c·n² takes seven and more.
    assert max(learnt) < min(unlearnt)


def test_a_retry_has_had_its_turn_and_goes_before_a_backlog_of_lower_priority(
    sandbox: Sandbox, s3: S3Tasks, bucket: str, ref: ObjectRef
) -> None:
    queue, told = f"ahead{uuid.uuid4().hex[:6]}", f"told-{uuid.uuid4().hex}"
    low = {"queue": queue, "priority": 6}
    tally = s3.app.signature("tests.tally")
    sandbox.pause_replication()
    try:
        written = s3.client.write(b"x", ref)
        read = s3.read.s(written).apply_async(**low)
        for number in range(60):
            tally.clone(args=(number, told)).apply_async(**low)
        worker = sandbox.start_worker(
            "tests.integration.app", directory=REPOSITORY, concurrency=1,
            environment={"TEST_QUEUE": queue, "TEST_TALLY_SECONDS": "0.3"},
        )
        assert wait_until(lambda: read.state == "RETRY", PATIENCE_SECONDS)
    finally:
        sandbox.drain()
        sandbox.resume_replication()
    assert done(read) == b"x"
    waiting_still = s3.app.backend.client.llen(queue + "\x06\x166")
    worker.stop()

    assert waiting_still > 0, "the read was done before the backlog was"


def test_a_worker_learns_from_what_its_tasks_have_waited_for(s3: S3Tasks, bucket: str, sandbox: Sandbox) -> None:
    sandbox.pause_replication()
    try:
        reads = [chain(s3.write.s(b"x", f"s3://{bucket}/{number}"), s3.read.s()).delay() for number in range(3)]
        assert wait_until(lambda: all(read.state == "RETRY" for read in reads), PATIENCE_SECONDS)
    finally:
        sandbox.resume_replication()
    assert [done(read) for read in reads] == [b"x"] * 3

    settings = s3.client.settings
    ledger = Ledger(settings)
    told = weights_of(ledger.lags(str(settings.read_endpoint_url), bucket)[1])
    ledger.close()
    # Each write once, and the older ones a twentieth and a tenth less.
    assert sum(told.values()) == pytest.approx(1 + 0.95 + 0.95**2, abs=0.1)
