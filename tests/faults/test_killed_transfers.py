"""Pool processes killed amid uploads, downloads, copies and batches: the next delivery does the work, and nothing is left over."""

from __future__ import annotations

import os
import random
import signal
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from s3tasks import ConsistentS3, ObjectRef, S3Tasks, Settings
from s3tasks.ledger import Ledger
from s3tasks.sandbox import Sandbox, WorkerProcess
from s3tasks.store import Store
from tests.conftest import REPOSITORY
from tests.s3_proxy import Forward, Request, Response, proxied

PATIENCE_SECONDS = 120
BIG = random.Random(9).randbytes(11 * 1024 * 1024)

Where = Callable[[Request], bool]


@dataclass
class Executioner:
    """Kills the worker's pool process once, when a request comes by: before it reaches S3, or after S3 has carried it out."""

    worker: WorkerProcess | None = None
    where: Where | None = None
    after: bool = False
    killed: list[int] = field(default_factory=list)

    def aim(self, where: Where, *, after: bool) -> None:
        self.where, self.after = where, after
        self.killed.clear()

    def __call__(self, request: Request, forward: Forward) -> Response:
        aimed = self.where is not None and self.where(request)
        if not aimed:
            return forward(request)
        self.where = None
        if self.after:
            forward(request)
        self._kill()
        raise ConnectionError

    def _kill(self) -> None:
        assert self.worker is not None
        children = Path(f"/proc/{self.worker.pid}/task/{self.worker.pid}/children").read_text().split()
        for child in map(int, children):
            if b"celery" in Path(f"/proc/{child}/cmdline").read_bytes():
                os.kill(child, signal.SIGKILL)
                self.killed.append(child)


@dataclass
class Stage:
    """A worker of one process behind the executioner, and what looks at it directly."""

    s3: S3Tasks
    queue: str
    root: Path
    executioner: Executioner

    def done(self, task: Any, *args: Any) -> Any:
        return task.s(*args).set(queue=self.queue).delay().get(timeout=PATIENCE_SECONDS)


@pytest.fixture(scope="module")
def started(sandbox: Sandbox, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path, Executioner]]:
    executioner, queue, root = Executioner(), f"killed-{uuid.uuid4().hex[:8]}", tmp_path_factory.mktemp("root")
    with proxied(sandbox.endpoint_url, executioner) as proxy:
        executioner.worker = sandbox.start_worker(
            "tests.integration.app",
            directory=REPOSITORY,
            concurrency=1,
            environment={
                "TEST_QUEUE": queue,
                "S3TASKS_FILE_ROOT": str(root),
                "S3TASKS_ENDPOINT_URL": proxy.url,
                "S3TASKS_READ_ENDPOINT_URL": proxy.url,
                "S3TASKS_MULTIPART_THRESHOLD_BYTES": str(5 * 1024 * 1024),
                "S3TASKS_PART_BYTES": str(5 * 1024 * 1024),
            },
        )
        yield queue, root, executioner
        executioner.worker.stop()


@pytest.fixture
def stage(started: tuple[str, Path, Executioner], s3: S3Tasks) -> Stage:
    queue, root, executioner = started
    return Stage(s3, queue, root, executioner)


@pytest.fixture
def direct(s3: S3Tasks, sandbox: Sandbox, closing: Callable[[Any], Any]) -> ConsistentS3:
    settings = Settings(ledger_url=s3.settings.ledger_url, endpoint_url=sandbox.endpoint_url)
    return closing(ConsistentS3.from_settings(settings))  # type: ignore[no-any-return]


@pytest.fixture
def look(s3: S3Tasks, closing: Callable[[Any], Any]) -> Ledger:
    return closing(Ledger(s3.settings))  # type: ignore[no-any-return]


def begins(request: Request) -> bool:
    return request.method == "POST" and "uploads" in request.path


def part(request: Request) -> bool:
    return request.method == "PUT" and "partNumber=" in request.path


def completes(request: Request) -> bool:
    return request.method == "POST" and "uploadId=" in request.path


STEPS: list[tuple[Where, bool]] = [(begins, False), (part, False), (part, True), (completes, False), (completes, True)]
steps = pytest.mark.parametrize(
    ("where", "after"), STEPS, ids=[f"{'after' if after else 'before'} {where.__name__}" for where, after in STEPS]
)


def parts_left(store: Store, bucket: str) -> int:
    uploads = store._writer.list_multipart_uploads(Bucket=bucket).get("Uploads", [])
    parts = [store._writer.list_parts(Bucket=bucket, Key=one["Key"], UploadId=one["UploadId"]).get("Parts", []) for one in uploads]
    return sum(map(len, parts))


@steps
def test_an_upload_whose_process_is_killed_is_done_once_and_leaves_no_parts(
    stage: Stage, bucket: str, store: Store, direct: ConsistentS3, look: Ledger, where: Where, after: bool
) -> None:
    (stage.root / "in").write_bytes(BIG)
    ref = ObjectRef(bucket, "big")
    direct.write(b"before", ref)
    stage.executioner.aim(where, after=after)

    written = stage.done(stage.s3.upload, "in", ref.uri)

    assert stage.executioner.killed
    assert direct.read(written) == direct.read(ref) == BIG
    assert parts_left(store, bucket) == 0
    record = look.lookup(ref)
    assert [intent for intent in record.intents if not intent.finished] == []
    assert record.uploads == ()


def test_a_download_whose_process_is_killed_is_done_by_the_next_and_leaves_nothing_else(
    stage: Stage, bucket: str, direct: ConsistentS3
) -> None:
    direct.write(BIG, f"s3://{bucket}/big")
    before = {path.name for path in stage.root.iterdir()}
    stage.executioner.aim(lambda request: request.method == "GET", after=True)

    stage.done(stage.s3.download, f"s3://{bucket}/big", "out")

    assert stage.executioner.killed
    assert (stage.root / "out").read_bytes() == BIG
    assert {path.name for path in stage.root.iterdir()} - before == {"out"}


@pytest.mark.parametrize("after", [False, True])
def test_a_copy_whose_process_is_killed_is_made_by_the_next(
    stage: Stage, bucket: str, store: Store, direct: ConsistentS3, look: Ledger, after: bool
) -> None:
    direct.write(b"source", f"s3://{bucket}/source")
    target = ObjectRef(bucket, "target")
    direct.write(b"before", target)
    stage.executioner.aim(lambda request: completes(request) and "target" in request.path, after=after)

    copied = stage.done(stage.s3.copy, f"s3://{bucket}/source", target.uri)

    assert stage.executioner.killed
    assert direct.read(copied) == direct.read(target) == b"source"
    assert parts_left(store, bucket) == 0
    assert look.lookup(target).uploads == ()


@pytest.mark.parametrize("after", [False, True])
def test_many_writes_whose_process_is_killed_are_each_done_once_by_the_next(
    stage: Stage, bucket: str, direct: ConsistentS3, look: Ledger, after: bool
) -> None:
    refs = [ObjectRef(bucket, f"k{number}") for number in range(30)]
    stage.executioner.aim(lambda request: request.method == "PUT" and request.path.endswith("/k17"), after=after)

    outcomes = stage.done(stage.s3.write_many, [(ref.key, ref.uri) for ref in refs])

    assert stage.executioner.killed
    assert [outcome.value for outcome in direct.read_many(outcomes)] == [ref.key.encode() for ref in refs]
    assert [ref for ref in refs if any(not intent.finished for intent in look.lookup(ref).intents)] == []


@pytest.mark.parametrize("after", [False, True])
def test_many_deletes_whose_process_is_killed_are_done_by_the_next(
    stage: Stage, bucket: str, direct: ConsistentS3, after: bool
) -> None:
    uris = [f"s3://{bucket}/k{number}" for number in range(30)]
    direct.write_many([(b"x", uri) for uri in uris])
    stage.executioner.aim(lambda request: request.method == "POST" and "delete" in request.path, after=after)

    outcomes = stage.done(stage.s3.delete_many, uris)

    assert stage.executioner.killed
    assert all(outcome["ref"]["deleted"] for outcome in outcomes)
    assert {type(outcome.error).__name__ for outcome in direct.read_many(uris)} == {"ObjectDeleted"}
