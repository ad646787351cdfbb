"""What the three web applications share: an upload becomes a task, a task has a state, an error has an HTTP status.

It never blocks for long: with Redis or S3 down, a request is answered with 503 after some seconds, with a silent S3 after some 15.

A file of any size is streamed to S3 in this process, and only its ref is enqueued. Whoever knows a task's id sees its result, as
with any link that cannot be guessed: put your own login before it.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from typing import Any, BinaryIO

import kombu.exceptions
import redis

from s3tasks import (
    InvalidRef,
    LedgerUnavailable,
    NoSuchKey,
    ObjectDeleted,
    ObjectRef,
    OverlappingWrite,
    PayloadTooLarge,
    PreconditionFailed,
    S3Tasks,
    S3TasksError,
    Settings,
    StoreError,
    StoreUnavailable,
    Superseded,
    WriteConflict,
)
from s3tasks.tasks import enqueuing_app

BUCKET = os.environ.get("UPLOADS_BUCKET", "uploads")
MAX_UPLOAD_BYTES = int(os.environ.get("MAX_UPLOAD_BYTES", str(1024**3)))
READ_WAIT_SECONDS = 3
PIECE_BYTES = 256 * 1024

# enqueuing_app gives a silent Redis up after 5 s.
results = enqueuing_app(os.environ["CELERY_BROKER_URL"], os.environ["CELERY_RESULT_BACKEND"])
results.conf.update(result_backend_thread_safe=True)
# Sends without a result backend: with one, each task would open a subscription, which a process that never calls .get() keeps for
# ever. States are polled from `results`, by key. (As an argument "disabled" would lose to a CELERY_RESULT_BACKEND variable.)
producer = enqueuing_app(os.environ["CELERY_BROKER_URL"], os.environ["CELERY_RESULT_BACKEND"])
producer.backend_cls = "disabled"
# A request that finds all connections in use waits for one, but not for ever.
producer.conf.update(broker_pool_limit=10, broker_pool_acquire_timeout=5)
# A person waits for the answer, so S3 gets less time than in a worker; uploads share this process's memory, so each has fewer
# parts in it.
s3 = S3Tasks(producer, Settings.from_env().replace(read_timeout_seconds=5.0, store_attempts=2, concurrent_requests=2))


class UploadTooLarge(Exception):
    """More than MAX_UPLOAD_BYTES."""


class UnknownTask(Exception):
    """No task of this id was enqueued here, or its result has expired."""


class NotDone(Exception):
    """The task has no result yet."""


# Error, HTTP status, and what a stranger may be told; the error's own words name buckets and hosts: they are for the log.
ANSWERS: dict[type[Exception], tuple[int, str]] = {
    InvalidRef: (400, "That names no object that can be used here."),
    UnknownTask: (404, "There is no such task, or its result has expired."),
    NoSuchKey: (404, "There is no such object."),
    NotDone: (409, "The task is not done yet."),
    WriteConflict: (409, "Somebody else has changed this object meanwhile."),
    ObjectDeleted: (410, "This has been deleted."),
    Superseded: (410, "This version has been replaced or deleted."),
    PayloadTooLarge: (413, "This is too large."),
    UploadTooLarge: (413, f"Files may have {MAX_UPLOAD_BYTES:,} bytes at most."),
    StoreError: (502, "The storage has refused this."),
    # Not 412, which is about a condition of the client's own, nor 425, which is about TLS early data (RFC 8470).
    PreconditionFailed: (503, "The storage does not serve this yet. Please try again in a moment."),
    OverlappingWrite: (503, "Somebody else is writing this object. Please try again in a moment."),
    LedgerUnavailable: (503, "The service is not available. Please try again in a moment."),
    StoreUnavailable: (503, "The storage is not available. Please try again in a moment."),
    kombu.exceptions.OperationalError: (503, "The queue is not available. Please try again in a moment."),
    redis.RedisError: (503, "The service is not available. Please try again in a moment."),
    S3TasksError: (500, "Something went wrong."),
    Exception: (500, "Something went wrong."),
}
EXPECTED = (S3TasksError, UploadTooLarge, UnknownTask, NotDone, kombu.exceptions.OperationalError, redis.RedisError)
RETRY_AFTER_SECONDS = "2"


def accept(file: BinaryIO) -> str:
    """Stores the file and enqueues its compression; returns the task's id.

    The key is our own, never the file's name. What cannot be enqueued is left to the bucket's lifecycle rule: a message whose
    sending timed out may have arrived all the same, and then needs its object.
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    if size > MAX_UPLOAD_BYTES:
        raise UploadTooLarge
    uploaded = s3.client.write(file, f"s3://{BUCKET}/{uuid.uuid4()}")
    task_id = str(uuid.uuid4())
    # Celery says PENDING for ids that it has never heard of, too. This record, made before the task can run, tells them apart.
    results.backend.store_result(task_id, None, "QUEUED")
    producer.send_task("shop.compress", (uploaded.to_dict(),), task_id=task_id)
    return task_id


def state(task_id: object) -> dict[str, Any]:
    """The task's state as JSON: `state`; with PROGRESS `done` and `total`, with FAILURE `status` and `error`, with SUCCESS `size`.

    Raises UnknownTask.
    """
    found = results.backend.get_task_meta(str(task_id))
    said: dict[str, Any] = {"state": found["status"]}
    if found["status"] == "PENDING":
        raise UnknownTask
    if found["status"] == "FAILURE":
        said["status"], said["error"] = answer(found["result"])
    if found["status"] == "PROGRESS":
        said["done"], said["total"] = found["result"]["bytes_done"], found["result"]["bytes_total"]
    if found["status"] == "SUCCESS":
        said["size"] = _packed(found).size
    return said


def answer(error: Exception) -> tuple[int, str]:
    """The HTTP status of an error, and what to say."""
    return next(ANSWERS[kind] for kind in type(error).__mro__ if kind in ANSWERS)


def answer_headers(status: int) -> dict[str, str]:
    """What goes with an error's status: no error may be cached, and a 503 says when to come back."""
    return {"Cache-Control": "no-store", **({"Retry-After": RETRY_AFTER_SECONDS} if status == 503 else {})}


def result(task_id: object) -> tuple[Iterator[bytes], int]:
    """The result's bytes, a piece at a time, and its size; raises the task's error, NotDone, or what reading runs into.

    Exactly the write that the task returned is read, however long the download takes.
    """
    ref = _result_ref(task_id)
    # Opened here rather than in the generator, while the answer may still be an error.
    return _pieces(s3.client.open(ref, wait=READ_WAIT_SECONDS)), ref.size or 0


def _pieces(stream: BinaryIO) -> Iterator[bytes]:
    with stream:
        while piece := stream.read(PIECE_BYTES):
            yield piece


def discard(task_id: object) -> None:
    """Deletes the upload and its result. Nobody asks what became of these tasks, so no result is kept of them."""
    packed = _result_ref(task_id).uri
    for uri in (packed, packed.removesuffix(".gz")):
        s3.delete.apply_async((uri,), ignore_result=True)


def _result_ref(task_id: object) -> ObjectRef:
    found = results.backend.get_task_meta(str(task_id))
    if found["status"] == "PENDING":
        raise UnknownTask
    if found["status"] == "FAILURE":
        raise found["result"]
    if found["status"] != "SUCCESS":
        raise NotDone
    return _packed(found)


def _packed(found: dict[str, Any]) -> ObjectRef:
    """What the task has written. Redis keeps the results of all tasks: another one's is nobody's business here."""
    try:
        return ObjectRef.parse(found["result"])
    except InvalidRef as problem:
        raise UnknownTask from problem
