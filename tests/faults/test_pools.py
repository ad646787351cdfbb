"""Clients under every kind of pool: made when first used, one per process, never shared with a fork, as many connections as users.

Against an S3 that keeps connections alive: one that closes them hides how a fork treats them.
"""

from __future__ import annotations

import http.client
import importlib.util
import logging
import os
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from celery import Celery, chain

from s3tasks import ConsistentS3, ObjectRef, S3Tasks, Settings
from s3tasks.evidence import Record
from s3tasks.ledger import Ledger
from s3tasks.sandbox import RedisServer, Sandbox, WorkerProcess
from tests.conftest import REPOSITORY

Connect = Callable[[Settings], ConsistentS3]

PATIENCE_SECONDS = 120
CHAINS = 200
FULL_POOL = "Connection pool is full"
LINUX = pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts sockets in /proc")


def test_the_sandboxs_s3_keeps_connections_alive(sandbox: Sandbox, ref: ObjectRef) -> None:
    connection = http.client.HTTPConnection(urlsplit(sandbox.endpoint_url).netloc, timeout=10)
    ports = set()
    for method in ("PUT", "GET", "HEAD", "DELETE"):
        connection.request(method, f"/{ref.bucket}/kept", b"body" if method == "PUT" else None, {"Authorization": "none"})
        connection.getresponse().read()
        assert connection.sock is not None, f"closed after {method}"
        ports.add(connection.sock.getsockname()[1])
    connection.close()
    assert len(ports) == 1


POOLS = {
    "prefork": ("prefork", 4, "fork"),
    "spawn": ("prefork", 2, "spawn"),
    "threads": ("threads", 32, "fork"),
    "gevent": ("gevent", 32, "fork"),
}


@pytest.fixture(params=POOLS)
def pool(request: pytest.FixtureRequest) -> str:
    if request.param == "gevent" and importlib.util.find_spec("gevent") is None:
        pytest.skip("gevent is not installed: pip install gevent")
    return str(request.param)


@pytest.fixture
def queue() -> str:
    return f"q{uuid.uuid4().hex[:8]}"


@pytest.fixture
def warmed(sandbox: Sandbox, settings: Settings, bucket: str, pool: str, queue: str) -> Iterator[WorkerProcess]:
    """A worker with the pool, whose main process has used its client before the pool was made."""
    kind, concurrency, start_method = POOLS[pool]
    worker = sandbox.start_worker(
        "tests.faults.redis_variants.warmed_app",
        directory=REPOSITORY, pool=kind, concurrency=concurrency, options=["-Q", queue],
        environment={
            "S3TASKS_READ_ENDPOINT_URL": "",
            "S3TASKS_LEDGER_PREFIX": settings.ledger_prefix,
            "S3TASKS_POOL_CONNECTIONS": str(concurrency),
            "TEST_QUEUE": queue,
            # Celery promises to deliver at least once: what a pool loses comes again within the test's patience.
            "TEST_VISIBILITY_TIMEOUT_SECONDS": "15",
            "TEST_START_METHOD": start_method,
            "TEST_WARM_URI": f"s3://{bucket}/warm",
        },
    )
    yield worker
    worker.kill()


@pytest.fixture
def s3_on_queue(sandbox: Sandbox, settings: Settings, queue: str) -> Iterator[S3Tasks]:
    app = Celery("producer", broker=sandbox.redis_url, backend=sandbox.redis_url, set_as_current=False)
    app.conf.task_default_queue = queue
    toolkit = S3Tasks(app, settings)
    yield toolkit
    toolkit.client.close()
    app.close()


def test_every_chain_of_two_hundred_reads_its_own_bytes_though_the_client_was_used_before_the_pool_was_made(
    warmed: WorkerProcess, s3_on_queue: S3Tasks, bucket: str
) -> None:
    s3 = s3_on_queue
    bodies = [f"{number} {uuid.uuid4()} ".encode() * (1 + number % 40) for number in range(CHAINS)]

    reads = [chain(s3.write.s(body, f"s3://{bucket}/{number}"), s3.read.s()).delay() for number, body in enumerate(bodies)]

    # Results are polled for: one that is announced while the producer is busy must not be missed.
    patient_until = time.monotonic() + PATIENCE_SECONDS
    while not all(read.ready() for read in reads) and time.monotonic() < patient_until:
        time.sleep(0.05)
    assert [read.result for read in reads] == bodies, warmed.log()[-4000:]
    said = warmed.log()
    assert said.count("s3tasks.read") >= CHAINS
    for trouble in ("Traceback", FULL_POOL, "Retry in", "WorkerLost"):
        assert trouble not in said, said[max(0, said.find(trouble) - 2000) :][:4000]


FORKED = """
import os, signal, sys, threading
from s3tasks import ConsistentS3, Settings
client = ConsistentS3.from_settings(Settings.from_env())
uri = sys.argv[1]
client.read(client.write(b"parent", uri + "parent"))
inherited = client._process.rooms()
held, done = threading.Event(), threading.Event()
def hold():
    with client._process._lock:
        held.set()
        done.wait(60)
threading.Thread(target=hold, daemon=True).start()
held.wait()
children = []
for number in range(4):
    child = os.fork()
    if not child:
        signal.alarm(40)
        good = client._process.rooms() is not inherited
        for turn in range(25):
            body = f"{number} {turn}".encode()
            good = good and client.read(client.write(body, f"{uri}{number}")) == body
        os._exit(0 if good else 1)
    children.append(child)
for turn in range(25):
    body = f"parent {turn}".encode()
    assert client.read(client.write(body, uri + "parent")) == body
assert client._process.rooms() is inherited
statuses = [os.waitpid(child, 0)[1] for child in children]
done.set()
client.close()
sys.exit(any(statuses))
"""


def test_forks_of_a_process_in_use_make_clients_of_their_own_even_while_a_thread_holds_the_lock(
    settings: Settings, bucket: str
) -> None:
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")]),
        "S3TASKS_LEDGER_URL": str(settings.ledger_url),
        "S3TASKS_ENDPOINT_URL": str(settings.endpoint_url),
        "S3TASKS_LEDGER_PREFIX": settings.ledger_prefix,
    }
    # Python 3.12 warns of any fork beside a thread, which is what is tried here.
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", FORKED, f"s3://{bucket}/fork-"]

    finished = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=False)

    assert (finished.returncode, finished.stderr) == (0, "")


def test_nothing_is_connected_before_the_first_verb() -> None:
    nowhere = Settings(ledger_url="redis://127.0.0.1:1/0", endpoint_url="http://127.0.0.1:1")
    client = ConsistentS3.from_settings(nowhere)
    assert client._process._rooms is None
    client.close()


def in_threads(count: int, run: Callable[[int], None]) -> list[Exception]:
    """Runs it in that many threads at once, and returns what went wrong."""
    gate = threading.Barrier(count)
    problems: list[Exception] = []

    def work(number: int) -> None:
        try:
            gate.wait(30)
            run(number)
        except Exception as problem:  # noqa: BLE001 - a thread's trouble is told to the test
            problems.append(problem)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_SECONDS)
    return problems


def check_empty(ledger: Ledger, ref: ObjectRef) -> None:
    assert ledger.lookup(ref) == Record()


def open_sockets() -> int:
    return sum(os.readlink(f"/proc/self/fd/{number}").startswith("socket:") for number in open_descriptors())


def open_descriptors() -> list[str]:
    return [number for number in os.listdir("/proc/self/fd") if os.path.lexists(f"/proc/self/fd/{number}")]


@LINUX
def test_threads_that_come_and_go_share_one_client_and_leave_no_socket_behind(
    settings: Settings, connect: Connect, bucket: str, caplog: pytest.LogCaptureFixture
) -> None:
    users = 24
    client = connect(settings.replace(pool_connections=users))
    before = open_sockets()
    clients_made = set()

    def work(number: int) -> None:
        body = f"{number} {uuid.uuid4()}".encode()
        written = client.write(body, f"s3://{bucket}/{number}")
        if client.read(written) != body:
            raise AssertionError(f"thread {number} was given another thread's bytes")
        clients_made.add(id(client._process.rooms()))

    with caplog.at_level(logging.WARNING):
        for _wave in range(5):
            assert in_threads(users, work) == []
            # Two endpoints' clients and the ledger's, each with no more connections than there are users.
            assert open_sockets() - before <= 3 * users
    assert FULL_POOL not in caplog.text
    assert len(clients_made) == 1

    client.close()
    assert open_sockets() <= before


def test_more_threads_than_redis_py_has_connections_by_default_wait_for_a_slow_redis_rather_than_fail(settings: Settings) -> None:
    with RedisServer() as slow:
        ledger = Ledger(settings.replace(ledger_url=slow.url, ledger_timeout_seconds=20.0))
        ledger.lookup(ObjectRef("bucket", "key"))
        slow.pause()
        waking = threading.Timer(1.5, slow.resume)
        waking.start()

        problems = in_threads(120, lambda number: check_empty(ledger, ObjectRef("bucket", str(number))))

        waking.join()
        ledger.close()
    assert problems == []
