"""The stage: a broker that stays, two ledgers that may be harmed, both proxies, and workers between them.

It never harms anything itself; whoever does puts it right again.
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from celery import Celery

from s3tasks import ConsistentS3, ObjectRef, S3Tasks, Settings
from s3tasks.ledger import Ledger
from s3tasks.sandbox import RedisServer, Sandbox, WorkerProcess
from s3tasks.sandbox.processes import wait_until
from tests.conftest import REPOSITORY
from tests.faults.processes.traps import Traps, TrapS3Proxy
from tests.redis_proxy import RedisProxy, redis_proxied

PATIENCE_SECONDS = 60.0
# Messages that wait behind others in a worker must not come back, however slow the machine is.
VISIBILITY_TIMEOUT_SECONDS = 6
STORE_SILENCE_SECONDS = 0.5
_NUMBERS = itertools.count()


class Stage:
    """What the tests of a session share. `durable` keeps its data over a crash, `volatile` loses them.

    `direct` and `replicated` are clients of this process, past the proxies; `replicated` reads from the replica that lags.
    """

    def __init__(self, sandbox: Sandbox, stack: ExitStack) -> None:
        self.sandbox = sandbox
        self.broker = stack.enter_context(RedisServer())
        self.durable = stack.enter_context(RedisServer(persistent=True))
        self.volatile = stack.enter_context(RedisServer())
        self.traps = Traps()
        self.redis_proxy: RedisProxy = stack.enter_context(redis_proxied(self.durable.url, self.traps.redis_rule))
        self.s3_proxy = TrapS3Proxy(sandbox.endpoint_url, self.traps.s3_rule)
        stack.enter_context(self.s3_proxy)
        self.settings = Settings(ledger_url=self.durable.url, endpoint_url=sandbox.endpoint_url, ledger_timeout_seconds=1.0)
        self._stack = stack
        self.direct, self.ledger = self.client(), self._ledger()
        self.replicated = self.client(read_endpoint_url=sandbox.read_endpoint_url)
        self.tasks = self._producer()
        sandbox.create_bucket("faults")

    def client(self, **changes: Any) -> ConsistentS3:
        """A client of this process, past the proxies unless the changed settings say otherwise."""
        made = ConsistentS3.from_settings(self.settings.replace(**changes))
        self._stack.callback(made.close)
        return made

    def new_ref(self) -> ObjectRef:
        """An object nobody has used, on this stage or another."""
        return ObjectRef("faults", f"object-{next(_NUMBERS)}")

    def environment(self, **changes: str) -> dict[str, str]:
        """What a worker between the proxies is started with."""
        return {
            "CELERY_BROKER_URL": self.broker.url,
            "CELERY_RESULT_BACKEND": self.broker.url,
            "S3TASKS_LEDGER_URL": self.redis_proxy.url,
            "S3TASKS_ENDPOINT_URL": self.s3_proxy.url,
            "S3TASKS_READ_ENDPOINT_URL": "",
            "S3TASKS_LEDGER_TIMEOUT_SECONDS": "0.3",
            "S3TASKS_READ_TIMEOUT_SECONDS": str(STORE_SILENCE_SECONDS),
            "TEST_VISIBILITY_TIMEOUT_SECONDS": str(VISIBILITY_TIMEOUT_SECONDS),
            **changes,
        }

    def start_worker(self, queues: str, concurrency: int = 1, **changes: str) -> WorkerProcess:
        """A prefork worker for these queues; the changes are of its environment. Safe to call from several threads."""
        directory = self._stack.enter_context(_directory())
        return self.sandbox.start_worker(
            "tests.faults.processes.app", directory=REPOSITORY, concurrency=concurrency, options=["-Q", queues],
            environment=self.environment(**changes), log_path=f"{directory}/worker.log", ready_timeout_seconds=PATIENCE_SECONDS,
        )

    def send(self, queue: str, verb: str, *arguments: Any, task_id: str | None = None) -> Any:
        """Sends the s3 task of that name; what has to be known of it is asked with `result_of`."""
        return getattr(self.tasks, verb).apply_async(arguments, queue=queue, task_id=task_id)

    def process_of(self, task_id: str) -> int:
        """The process of the pool that has begun the task."""
        meta: Mapping[str, Any] = self.tasks.app.backend.get_task_meta(task_id)
        assert meta["status"] == "STARTED", f"the task is {meta['status']}, so nobody knows who has it"
        return int(meta["result"]["pid"])

    def _ledger(self) -> Ledger:
        ledger = Ledger(self.settings)
        self._stack.callback(ledger.close)
        return ledger

    def _producer(self) -> S3Tasks:
        app = Celery("producer", broker=self.broker.url, backend=self.broker.url, set_as_current=False)
        app.conf.broker_transport_options = {"visibility_timeout": VISIBILITY_TIMEOUT_SECONDS}
        self._stack.callback(app.close)
        return S3Tasks(app, self.settings)


@contextmanager
def _directory() -> Iterator[str]:
    with tempfile.TemporaryDirectory(prefix="s3tasks-faults-") as directory:
        yield directory


@contextmanager
def staged(sandbox: Sandbox) -> Iterator[Stage]:
    """A stage on the sandbox's S3, cleared at the end."""
    with ExitStack() as stack:
        yield Stage(sandbox, stack)


def result_of(sent: Any) -> Any:
    """What the task returned, or its error raised, once it is over."""
    assert wait_until(sent.ready, PATIENCE_SECONDS, 0.03), f"the task is still {sent.state}"
    return sent.get(timeout=1)
