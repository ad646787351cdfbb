"""The app whose readers wait: this package's task, and what a user would write by hand with boto3 and Celery's autoretry.

It never decides how long is waited; it only notes when a read was done, how long it held the worker, and how often it asked S3.
"""

from __future__ import annotations

import json
import os
import time
from functools import cache
from typing import Any

import boto3
from botocore.exceptions import ClientError
from celery import Celery, signals

from s3tasks import S3Tasks, events

NOTES = "benchmark-waiting"

app = Celery("waiting", broker=os.environ["CELERY_BROKER_URL"], backend=os.environ["CELERY_RESULT_BACKEND"])
app.conf.update(worker_prefetch_multiplier=1, task_default_queue=os.environ.get("BENCHMARK_QUEUE", "celery"))
s3 = S3Tasks(app)
_now: dict[str, float] = {"probes": 0.0}


class Late(Exception):
    """Not what was written."""


@cache
def by_hand() -> Any:
    """One client for a process."""
    return boto3.client("s3", endpoint_url=os.environ["S3TASKS_READ_ENDPOINT_URL"])


@app.task(autoretry_for=(Late,), retry_backoff=True, max_retries=None)
def read_by_hand(bucket: str, key: str, etag: str) -> bytes:
    """Reads until the ETag is the right one, with Celery's own backoff and jitter, but for as long as it takes."""
    _now["probes"] += 1
    try:
        answer = by_hand().get_object(Bucket=bucket, Key=key)
    except ClientError as problem:
        raise Late from problem
    if answer["ETag"].strip('"') != etag:
        raise Late
    body: bytes = answer["Body"].read()
    return body


@app.task
def nap(seconds: float) -> None:
    """Something else that wants the worker."""
    time.sleep(seconds)


def _count(event: events.Event) -> None:
    if isinstance(event, events.Began) and event.operation.room == "store":
        _now["probes"] += 1


@signals.worker_process_init.connect
def _listen(**_: Any) -> None:
    events.listen(_count)


@signals.task_prerun.connect
def _begin(**_: Any) -> None:
    _now.update(began=time.perf_counter(), probes=0.0)


@signals.task_postrun.connect
def _end(task_id: str = "", state: str = "", **_: Any) -> None:
    note = [task_id, time.time(), time.perf_counter() - _now["began"], _now["probes"], state]
    app.backend.client.rpush(NOTES, json.dumps(note))
