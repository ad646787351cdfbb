"""The app whose tasks are compared: this package's, and what a user would write by hand, with boto3 and no check at all.

It never measures anything, and never turns anything on or off that the worker's command line does not say.
"""

from __future__ import annotations

import os
from functools import cache
from typing import Any

import boto3
from celery import Celery

from s3tasks import S3Tasks

BUCKET = "benchmark"

app = Celery("benchmark", broker=os.environ["BENCHMARK_BROKER_URL"], backend=os.environ["BENCHMARK_BACKEND_URL"])
s3 = S3Tasks(app)


@cache
def by_hand() -> Any:
    """One client for a process, made when first used: the best that is commonly known."""
    return boto3.client("s3", endpoint_url=os.environ["S3TASKS_ENDPOINT_URL"])


@app.task
def put_by_hand(body: bytes, key: str) -> str:
    """Writes, and passes the key on."""
    by_hand().put_object(Bucket=BUCKET, Key=key, Body=body)
    return key


@app.task
def get_by_hand(key: str) -> bytes:
    """Reads whatever is there."""
    body: bytes = by_hand().get_object(Bucket=BUCKET, Key=key)["Body"].read()
    return body


@app.task
def nothing() -> None:
    """What Celery itself costs."""
