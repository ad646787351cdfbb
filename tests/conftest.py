"""One sandbox for the whole test session, and what tests ask of it: buckets, settings, clients and workers of their own."""

from __future__ import annotations

import itertools
import os
import signal
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from s3tasks import ConsistentS3, ObjectRef, S3Tasks, Settings
from s3tasks.ledger import Ledger
from s3tasks.sandbox import Sandbox, WorkerProcess
from s3tasks.store import Store

REPOSITORY = Path(__file__).resolve().parent.parent

# What a script starts with & ignores Ctrl-C, and so do the processes that it starts, some of which are told to end like that here.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# A slow machine is no reason for a test to fail.
hypothesis.settings.register_profile("without deadlines", deadline=None)
hypothesis.settings.load_profile("without deadlines")


@pytest.fixture(scope="session")
def sandbox() -> Iterator[Sandbox]:
    # A lag that no test waits out by chance: those that want the replica to catch up say so.
    with Sandbox(lag_seconds=(0.2, 0.6), seed=1) as started:
        # A server of one's own brings its credentials; the sandbox takes any.
        given = os.environ if "TEST_S3_ENDPOINT_URL" in os.environ else {}
        aws = {name: value for name, value in started.environment().items() if name.startswith("AWS_")}
        os.environ.update({name: given.get(name, value) for name, value in aws.items()})
        yield started


@pytest.fixture(scope="session")
def buckets(sandbox: Sandbox) -> Iterator[str]:
    """An endless supply of buckets nobody has used."""

    def made() -> Iterator[str]:
        for number in itertools.count():
            name = f"bucket-{number}"
            sandbox.create_bucket(name)
            yield name

    return made()


@pytest.fixture
def bucket(buckets: Iterator[str]) -> str:
    return next(buckets)


@pytest.fixture
def ref(bucket: str) -> ObjectRef:
    return ObjectRef(bucket, "key")


@pytest.fixture
def settings(sandbox: Sandbox) -> Settings:
    """One endpoint. Time-outs outlast a machine that stands still for a moment; who tests them sets his own."""
    return Settings(
        ledger_url=sandbox.redis_url,
        endpoint_url=sandbox.endpoint_url,
        ledger_prefix=f"t{uuid.uuid4().hex[:8]}",
        read_timeout_seconds=20.0,
        ledger_timeout_seconds=20.0,
    )


@pytest.fixture
def replicated(settings: Settings, sandbox: Sandbox) -> Settings:
    """Reads go to the replica that lags."""
    return settings.replace(read_endpoint_url=sandbox.read_endpoint_url)


@pytest.fixture
def closing() -> Iterator[Callable[[Any], Any]]:
    """Closes what it is handed when the test is over."""
    handed: list[Any] = []

    def keep(thing: Any) -> Any:
        handed.append(thing)
        return thing

    yield keep
    for thing in reversed(handed):
        thing.close()


@pytest.fixture
def connect(closing: Callable[[Any], Any]) -> Callable[..., ConsistentS3]:
    """Makes clients that are closed when the test is over."""
    return lambda settings: closing(ConsistentS3.from_settings(settings))


@pytest.fixture
def client(settings: Settings, connect: Callable[[Settings], ConsistentS3]) -> ConsistentS3:
    return connect(settings)


@pytest.fixture
def ledger(settings: Settings, closing: Callable[[Any], Any]) -> Ledger:
    return closing(Ledger(settings))  # type: ignore[no-any-return]


@pytest.fixture
def store(settings: Settings, closing: Callable[[Any], Any], sandbox: Sandbox) -> Store:
    return closing(Store(settings))  # type: ignore[no-any-return]


@pytest.fixture(scope="session")
def worker(sandbox: Sandbox) -> WorkerProcess:
    """A real prefork worker for tests.integration.app, whose reads go to the replica."""
    return sandbox.start_worker("tests.integration.app", directory=REPOSITORY)


@pytest.fixture
def s3(sandbox: Sandbox, worker: WorkerProcess, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Tasks]:
    """The toolkit of tests.integration.app in this process, as a producer has it."""
    for name, value in sandbox.environment().items():
        monkeypatch.setenv(name, value)
    from tests.integration.app import make_app

    toolkit = make_app()[1]
    yield toolkit
    toolkit.client.close()
    # Celery leaves its connections to the garbage collector, and a result that is collected later would open one again.
    toolkit.app.backend.result_consumer.stop()
    toolkit.app.backend.result_consumer.cancel_for = lambda _task_id: None
    toolkit.app.backend.client.connection_pool.disconnect()
    toolkit.app.close()
