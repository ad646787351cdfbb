"""The three web applications over real HTTP, each in a process of its own, with a real worker and a replica that lags."""

from __future__ import annotations

import contextlib
import gzip
import os
import re
import time
import uuid
from collections.abc import Callable

import pytest
import redis
from celery import Celery

from s3tasks import ConsistentS3, Settings
from s3tasks.sandbox import RedisServer, Sandbox
from s3tasks.sandbox.redis_server import free_loopback_port
from tests.examples.conftest import COMMANDS, MAX_UPLOAD_BYTES, PATIENCE_SECONDS, Web

every_framework = pytest.mark.parametrize("framework", COMMANDS)


@every_framework
def test_an_upload_is_answered_at_once_and_its_result_can_be_fetched(running: Callable[[str], Web], framework: str) -> None:
    web, body = running(framework), os.urandom(500_000) * 3
    accepted = web.upload(body)
    assert accepted.status_code == 202, accepted.text
    told = accepted.json()
    assert accepted.headers["Location"].endswith(f"/tasks/{told['id']}")
    assert web.http.get(told["status_url"]).status_code == 200
    done = web.finished(told["id"])
    fetched = web.http.get(f"/tasks/{told['id']}/result")
    assert (fetched.status_code, fetched.headers["Content-Type"]) == (200, "application/gzip"), fetched.text
    assert fetched.headers["Content-Length"] == str(done["size"]) == str(len(fetched.content))
    assert gzip.decompress(fetched.content) == body


@every_framework
def test_a_deleted_result_is_gone_for_everyone(running: Callable[[str], Web], framework: str) -> None:
    web = running(framework)
    task_id = web.upload(b"x" * 1000).json()["id"]
    web.finished(task_id)
    assert web.http.delete(f"/tasks/{task_id}/result").status_code == 202
    waiting_until = time.monotonic() + PATIENCE_SECONDS
    while (answered := web.http.get(f"/tasks/{task_id}/result")).status_code == 200:
        assert time.monotonic() < waiting_until
        time.sleep(0.05)
    assert (answered.status_code, answered.json()["error"]) == (410, "This version has been replaced or deleted.")


@every_framework
def test_a_task_that_nobody_enqueued_is_not_found(running: Callable[[str], Web], framework: str) -> None:
    web = running(framework)
    for path in (f"/tasks/{uuid.uuid4()}", f"/tasks/{uuid.uuid4()}/result"):
        answered = web.http.get(path)
        assert (answered.status_code, answered.json()["error"]) == (404, "There is no such task, or its result has expired.")
    assert web.http.get("/tasks/no-id").status_code in (404, 422)


@every_framework
def test_the_result_of_another_kind_of_task_is_not_shown(
    running: Callable[[str], Web], framework: str, environment: dict[str, str]
) -> None:
    app = Celery(broker=environment["CELERY_BROKER_URL"], backend=environment["CELERY_RESULT_BACKEND"], set_as_current=False)
    task_id = str(uuid.uuid4())
    app.backend.store_result(task_id, b"a body that s3.read has returned", "SUCCESS")
    for path in (f"/tasks/{task_id}", f"/tasks/{task_id}/result"):
        answered = running(framework).http.get(path)
        assert (answered.status_code, answered.json()["error"]) == (404, "There is no such task, or its result has expired.")


@every_framework
def test_what_is_no_upload_is_the_clients_error(running: Callable[[str], Web], framework: str) -> None:
    assert running(framework).http.post("/files", data={"other": "field"}).status_code in (400, 422)


@every_framework
def test_a_file_that_is_too_large_is_refused(running: Callable[[str], Web], framework: str) -> None:
    assert running(framework).upload(b"x" * (MAX_UPLOAD_BYTES + 1)).status_code == 413


@every_framework
def test_the_name_of_a_file_never_becomes_a_key(
    running: Callable[[str], Web], framework: str, sandbox: Sandbox, environment: dict[str, str]
) -> None:
    for name in ("../../etc/passwd", "a\u00fc.txt", "x" * 300):
        assert running(framework).upload(b"x", name).status_code in (202, 400)
    keys = {change.key for change in sandbox.changes() if change.bucket == environment["UPLOADS_BUCKET"]}
    assert keys
    assert all(re.fullmatch(r"[0-9a-f-]{36}(\.gz)?", key) for key in keys)


@every_framework
def test_a_larger_file_needs_no_more_memory(running: Callable[[str], Web], framework: str) -> None:
    web, piece = running(framework), os.urandom(1_000_000)
    web.finished(web.upload(piece * 16).json()["id"])
    before = web.most_memory_bytes()
    sent = b"".join(bytes([number]) + piece for number in range(96))
    task_id = web.upload(sent).json()["id"]
    told = web.finished(task_id)
    assert told["state"] == "SUCCESS"
    assert gzip.decompress(web.http.get(f"/tasks/{task_id}/result").content) == sent
    # Four parts more may be in memory, and what is made of each while it is sent; the whole file would be 80 MB more.
    assert web.most_memory_bytes() - before < 60_000_000


@every_framework
def test_an_empty_file_is_a_file(running: Callable[[str], Web], framework: str) -> None:
    web = running(framework)
    task_id = web.upload(b"").json()["id"]
    web.finished(task_id)
    assert gzip.decompress(web.http.get(f"/tasks/{task_id}/result").content) == b""


@every_framework
def test_a_task_that_waits_says_so_and_a_result_that_is_not_there_yet_is_a_conflict(
    running: Callable[[str], Web], framework: str, sandbox: Sandbox
) -> None:
    web = running(framework)
    sandbox.pause_replication()
    try:
        task_id = web.upload(b"late").json()["id"]
        waiting_until = time.monotonic() + PATIENCE_SECONDS
        while web.state(task_id)["state"] != "RETRY":
            assert time.monotonic() < waiting_until
            time.sleep(0.02)
        assert web.http.get(f"/tasks/{task_id}/result").status_code == 409
    finally:
        sandbox.resume_replication()
    assert web.finished(task_id)["state"] == "SUCCESS"


@every_framework
def test_a_result_that_the_replica_has_not_got_is_come_back_later(
    running: Callable[[str], Web], framework: str, sandbox: Sandbox
) -> None:
    web = running(framework)
    sandbox.set_lag(3600, 3600)
    try:
        task_id = web.upload(b"late").json()["id"]
        # The upload reaches the replica now; the result, written after this, does not.
        with contextlib.suppress(TimeoutError):
            sandbox.drain(0.1)
        web.finished(task_id)
        answered = web.http.get(f"/tasks/{task_id}/result")
    finally:
        sandbox.set_lag(0.2, 0.6)
        sandbox.drain()
    assert (answered.status_code, answered.headers["Retry-After"]) == (503, "2"), answered.text
    assert web.http.get(f"/tasks/{task_id}/result").status_code == 200


@every_framework
def test_a_task_that_failed_says_why_and_with_which_status(
    running: Callable[[str], Web], framework: str, sandbox: Sandbox, environment: dict[str, str]
) -> None:
    web = running(framework)
    sandbox.pause_replication()
    settings = Settings.from_env({name: value for name, value in environment.items() if name.startswith("S3TASKS_")})
    client = ConsistentS3.from_settings(settings)
    try:
        task_id = web.upload(b"deleted before its turn").json()["id"]
        uploaded = max((change for change in sandbox.changes() if not change.key.endswith(".gz")), key=lambda one: one.made_at)
        client.delete(f"s3://{uploaded.bucket}/{uploaded.key}")
        told = web.finished(task_id)
    finally:
        sandbox.resume_replication()
        client.close()
    assert told == {"state": "FAILURE", "status": 410, "error": "This version has been replaced or deleted."}
    assert web.http.get(f"/tasks/{task_id}/result").status_code == 410


@every_framework
@pytest.mark.parametrize("down", ["CELERY_BROKER_URL", "CELERY_RESULT_BACKEND", "S3TASKS_LEDGER_URL"])
def test_without_redis_a_request_is_answered_with_come_back_later(
    serve: Callable[[str, dict[str, str]], Web], environment: dict[str, str], framework: str, down: str
) -> None:
    with RedisServer() as server:
        web = serve(framework, {**environment, down: server.url})
        assert web.upload(b"x").status_code == 202
        server.kill()
        answered = web.upload(b"x")
        assert (answered.status_code, answered.headers["Retry-After"]) == (503, "2"), answered.text
        server.restart()
        assert web.upload(b"x").status_code == 202


@every_framework
def test_without_s3_a_request_is_answered_with_come_back_later(
    serve: Callable[[str, dict[str, str]], Web], environment: dict[str, str], framework: str
) -> None:
    away = f"http://127.0.0.1:{free_loopback_port()}"
    answered = serve(framework, {**environment, "S3TASKS_ENDPOINT_URL": away}).upload(b"x")
    assert (answered.status_code, answered.headers["Retry-After"]) == (503, "2"), answered.text
    assert away not in answered.text


@pytest.mark.parametrize("down", ["CELERY_BROKER_URL", "CELERY_RESULT_BACKEND", "S3TASKS_LEDGER_URL"])
def test_with_a_redis_that_is_silent_a_request_is_answered_all_the_same(
    serve: Callable[[str, dict[str, str]], Web], environment: dict[str, str], down: str
) -> None:
    with RedisServer() as server:
        web = serve("fastapi", {**environment, down: server.url})
        task_id = web.upload(b"x").json()["id"]
        server.pause()
        assert web.upload(b"x").status_code == 503
        if down == "CELERY_RESULT_BACKEND":
            assert web.http.get(f"/tasks/{task_id}").status_code == 503
        server.resume()
        assert web.upload(b"x").status_code == 202


def test_enqueuing_opens_no_subscription_that_nobody_reads(running: Callable[[str], Web], environment: dict[str, str]) -> None:
    web = running("fastapi")
    for _ in range(3):
        web.finished(web.upload(b"x").json()["id"])
    server = redis.Redis.from_url(environment["CELERY_RESULT_BACKEND"])
    assert server.pubsub_channels("celery-task-meta-*") == []
    server.close()


def test_nothing_is_kept_of_a_task_that_nobody_asks_about(running: Callable[[str], Web], environment: dict[str, str]) -> None:
    server = redis.Redis.from_url(environment["CELERY_RESULT_BACKEND"])
    web = running("fastapi")
    task_id = web.upload(b"x").json()["id"]
    web.finished(task_id)
    before = set(server.scan_iter("celery-task-meta-*"))
    web.http.delete(f"/tasks/{task_id}/result")
    waiting_until = time.monotonic() + PATIENCE_SECONDS
    while web.http.get(f"/tasks/{task_id}/result").status_code != 410:
        assert time.monotonic() < waiting_until
        time.sleep(0.05)
    assert set(server.scan_iter("celery-task-meta-*")) == before
    server.close()
