"""Keeps what this version puts into Redis, S3 and messages: `python -m tests.upgrade`, once for each release.

The tests in this folder then hold every later version against it. A folder that is there already is never written again.
"""

from __future__ import annotations

import base64
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import redis
from celery import Celery, chain
from celery.backends.base import Backend
from kombu.utils.json import dumps

import s3tasks
from s3tasks import Outcome, S3Tasks, Settings, errors
from s3tasks.ledger import Ledger
from s3tasks.sandbox import Sandbox
from tests.conftest import REPOSITORY
from tests.unit.test_errors import SAMPLES
from tests.upgrade.states import samples

BUCKET = "upgrade"
QUEUE = "celery"
PATIENCE_SECONDS = 60
ENOUGH_ATTEMPTS = 3


def fresh_messages(s3: S3Tasks) -> Iterator[tuple[str, Any]]:
    """What a producer sends, by task id."""
    uri = f"s3://{BUCKET}/fresh.txt"
    yield "fresh-write", chain(
        s3.write.s(b"hello", uri, content_type="text/plain", metadata={"a": "b"}).set(task_id="fresh-write"),
        s3.read.s(byte_range=(0, 3)).set(task_id="fresh-write-read"),
    )
    options = {"CacheControl": "no-cache"}
    yield "fresh-text", s3.write.s("text é", f"s3://{BUCKET}/text.txt", if_none_match=True, put_options=options)
    yield "fresh-binary", s3.write.s(b"\xff\x00", f"s3://{BUCKET}/binary")
    yield "fresh-many", s3.write_many.s([[b"1", f"s3://{BUCKET}/many/1"], {"body": "2", "ref": f"s3://{BUCKET}/many/2"}])


def retried_messages(s3: S3Tasks) -> Iterator[tuple[str, Any]]:
    """What a worker sends itself, by task id, while the replica has not got what is asked for."""
    late = s3.client.write(b"late", f"s3://{BUCKET}/late.txt")
    yield "retried-read", chain(
        s3.read.s(late).set(task_id="retried-read"), s3.write.s(f"s3://{BUCKET}/copy.txt").set(task_id="retried-read-write")
    )
    yield "retried-many", s3.read_many.s([f"s3://{BUCKET}/missing.txt", late])


def queued(raw: redis.Redis) -> dict[str, Any]:
    """The messages in the queue, by task id, with bodies that can be read. Whose machine this is, is nobody's business."""
    found = {}
    for message in map(json.loads, raw.lrange(QUEUE, 0, -1)):
        message["body"] = json.loads(base64.b64decode(message["body"]))
        for place in (message["headers"], message["properties"]):
            place.update({"origin": "producer@example"} if "origin" in place else {})
        found[message["headers"]["id"]] = message
    return dict(sorted(found.items()))


def messages(sandbox: Sandbox, raw: redis.Redis) -> dict[str, Any]:
    os.environ.update(sandbox.environment())
    from tests.integration.app import make_app

    app, s3 = make_app()
    sandbox.create_bucket(BUCKET)
    send(fresh_messages(s3))
    fresh = queued(raw)
    raw.delete(QUEUE)
    worker = sandbox.start_worker("tests.integration.app", directory=REPOSITORY)
    sandbox.pause_replication()
    wait_for_retries(app, send(retried_messages(s3)))
    worker.stop()
    return {**fresh, **queued(raw)}


def send(signatures: Iterator[tuple[str, Any]]) -> list[str]:
    """Sends them under their ids; the steps of a chain carry theirs already."""
    ids = []
    for task_id, signature in signatures:
        signature.apply_async(**({} if signature.task == "celery.chain" else {"task_id": task_id}))
        ids.append(task_id)
    return ids


def is_waiting(task: Any) -> bool:
    return task.state == "RETRY" and isinstance(task.result, errors.RetryableError) and task.result.attempts > ENOUGH_ATTEMPTS


def wait_for_retries(app: Celery, ids: list[str]) -> None:
    until = time.monotonic() + PATIENCE_SECONDS
    while not all(is_waiting(app.AsyncResult(task_id)) for task_id in ids):
        if time.monotonic() > until:
            raise TimeoutError("the reads are not waiting")
        time.sleep(0.05)


def results() -> dict[str, Any]:
    """What the result backend keeps of every error, and what tasks return."""
    backend = Backend(app=Celery("upgrade", set_as_current=False))
    failed = {}
    for name, (arguments, _) in SAMPLES.items():
        error = getattr(errors, name)(*arguments)
        stored = json.loads(dumps(backend.prepare_exception(error, "json")))  # type: ignore[no-untyped-call]
        failed[name] = {"stored": stored, "fields": vars(error)}
    ref = {"bucket": BUCKET, "key": "k", "etag": "e", "version_id": "v", "seq": 7, "size": 5, "deleted": True}
    outcomes = [
        Outcome(s3tasks.ObjectRef.parse(ref)).to_dict(),
        Outcome(s3tasks.ObjectRef.parse(f"s3://{BUCKET}/k"), b"bytes").to_dict(),
        Outcome(s3tasks.ObjectRef.parse(f"s3://{BUCKET}/k"), error=errors.StaleRead(BUCKET, "k", "e", "f", 3, 1.5)).to_dict(),
    ]
    return {"errors": failed, "outcomes": json.loads(dumps(outcomes))}  # type: ignore[no-untyped-call]


def keep(folder: Path) -> None:
    with Sandbox(lag_seconds=(0.0, 0.0), seed=1) as sandbox:
        raw = redis.Redis.from_url(sandbox.redis_url)
        settings = Settings(ledger_url=sandbox.redis_url, ledger_prefix="sample")
        kept = {
            "records": dict(samples(Ledger(settings), raw, settings)),
            "messages": messages(sandbox, raw),
            "results": results(),
        }
    folder.mkdir()
    for name, content in kept.items():
        (folder / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    keep(Path(__file__).parent / s3tasks.__version__)
    sys.stdout.write(f"kept: {s3tasks.__version__}\n")
