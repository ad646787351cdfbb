"""Redis started with exactly redis.conf, redis-acl.conf and choose_passwords.py, and a worker and a producer that live on it."""

from __future__ import annotations

import os
import re
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import redis
from celery import Celery, chain

from s3tasks import S3Tasks, Settings
from s3tasks.sandbox import Sandbox
from s3tasks.sandbox.processes import Child, Guardian, wait_until
from s3tasks.sandbox.redis_binary import find_redis_server, runnable
from s3tasks.sandbox.redis_server import free_loopback_port, is_answered_by
from tests.deploy.deployed import PATIENCE_SECONDS, deployed
from tests.deploy.files import REDIS_ACL, REDIS_CONF, WORKER_CONFIG, environment_file, redis_settings, size_bytes

ADDRESS = "127.0.0.1"
CHOOSE = WORKER_CONFIG / "choose_passwords.py"
USERS = {
    "admin": "default", "worker": "s3tasks-worker", "producer": "s3tasks-producer", "monitor": "s3tasks-monitor",
    "operator": "s3tasks-operator",
}
CONF = redis_settings(REDIS_CONF.read_text())


def choose(directory: Path, *address: str) -> subprocess.CompletedProcess[str]:
    """As a person runs it, with a Python that has nothing installed."""
    command = [sys.executable, "-I", "-S", str(CHOOSE), str(directory), *address]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture
def port() -> int:
    return free_loopback_port()


@pytest.fixture
def etc(tmp_path: Path, port: int) -> Path:
    """What an operator has in /etc/s3tasks."""
    directory = tmp_path / "etc" / "s3tasks"
    said = choose(directory, f"{ADDRESS}:{port}")
    assert said.returncode == 0, said.stderr
    return directory


@contextmanager
def started(place: Path, etc: Path, port: int) -> Iterator[Child]:
    """The server program on redis.conf; only the port and the directories are other than on the machine it is for."""
    (place / "data").mkdir(exist_ok=True)
    text = REDIS_CONF.read_text()
    assert text.count("include /etc/s3tasks/redis-acl.conf\n") == 1
    conf = place / "redis.conf"
    conf.write_text(text.replace("/etc/s3tasks/", f"{etc}/"))
    guardian = Guardian()
    binary = runnable(find_redis_server(), place)
    command = [str(binary), str(conf), "--port", str(port), "--dir", str(place / "data"), "--bind", ADDRESS]
    child = Child(guardian, command, place / "redis.log")
    try:
        assert wait_until(lambda: is_answered_by(port, child.pid) or not child.running, 20), child.log_tail()
        assert child.running, child.log_tail()
        yield child
    finally:
        if child.running:
            child.stop(10)
        guardian.close()


@pytest.fixture
def server(etc: Path, port: int, tmp_path: Path) -> Iterator[Child]:
    with started(tmp_path, etc, port) as child:
        yield child


def url_of(etc: Path, name: str) -> str:
    return environment_file(etc / f"{name}.env")["CELERY_BROKER_URL"]


@pytest.fixture
def admin(server: Child, etc: Path) -> Iterator[Any]:
    client = redis.Redis.from_url(url_of(etc, "admin"), decode_responses=True)
    yield client
    client.close()


def test_redis_has_the_settings_of_the_file(admin: Any) -> None:
    in_force = admin.config_get("*")
    ours = {name: value for name, value in CONF.items() if name not in ("port", "dir", "bind", "include")}

    for name in ("maxmemory", "auto-aof-rewrite-min-size"):
        assert int(in_force[name]) == size_bytes(ours.pop(name))
    kind, *limits = ours.pop("client-output-buffer-limit").split()
    numbers = [str(size_bytes(limit)) for limit in limits]
    assert f"{kind} {' '.join(numbers)}" in in_force["client-output-buffer-limit"]
    assert {name: in_force[name] for name in ours} == ours
    assert (ours["maxmemory-policy"], ours["appendonly"], ours["protected-mode"]) == ("noeviction", "yes", "yes")


def test_each_line_of_the_configuration_has_its_reason_above_it_or_above_its_group() -> None:
    lines = REDIS_CONF.read_text().splitlines()
    untold = [line for above, line in zip(["", *lines], lines, strict=False) if line and line[0] != "#" and not above]

    assert untold == []
    assert len([line for line in lines if line.startswith("#")]) > len(CONF)


def test_what_was_written_is_there_again_after_redis_is_killed(
    server: Child, admin: Any, etc: Path, tmp_path: Path, port: int
) -> None:
    admin.set("celery-task-meta-1", "kept")
    # everysec: the file has it within two seconds.
    files = (tmp_path / "data").rglob
    assert wait_until(lambda: any(b"celery-task-meta-1" in path.read_bytes() for path in files("*.aof")), 10, 0.05)

    server.signal(signal.SIGKILL)
    assert wait_until(lambda: not server.running, 10)

    with started(tmp_path, etc, port):
        assert admin.get("celery-task-meta-1") == "kept"


def refusals(admin: Any) -> list[tuple[str, str, str]]:
    seen = [(entry["username"], entry["reason"], entry["object"]) for entry in admin.acl_log(count=128)]
    return [refusal for refusal in seen if "client" not in refusal[2].lower() or refusal[1] != "command"]


def test_the_deployed_worker_and_a_producer_write_and_read_with_the_passwords_that_were_chosen(
    sandbox: Sandbox, server: Child, admin: Any, etc: Path, tmp_path: Path, bucket: str
) -> None:
    aws = {name: value for name, value in sandbox.environment().items() if name.startswith("AWS_")}
    variables = {**aws, **environment_file(etc / "worker.env"), "S3TASKS_ENDPOINT_URL": sandbox.endpoint_url}
    with deployed("unit", tmp_path, variables) as worker:
        app = Celery("producer", broker=url_of(etc, "producer"), backend=url_of(etc, "producer"), set_as_current=False)
        s3 = S3Tasks(app, Settings(ledger_url=url_of(etc, "producer"), endpoint_url=sandbox.endpoint_url))
        try:
            result = chain(s3.write.s(b"paid", f"s3://{bucket}/17"), s3.read.s()).delay()
            assert result.get(timeout=PATIENCE_SECONDS) == b"paid"
            pending = s3.read.apply_async((f"s3://{bucket}/17",), countdown=600)
            assert wait_until(lambda: admin.hlen("unacked") == 1, PATIENCE_SECONDS)
            worker.signal(signal.SIGTERM)
            # Giving back what waits needs rights, too.
            assert wait_until(lambda: not worker.running, PATIENCE_SECONDS)
            assert (admin.hlen("unacked"), admin.llen("celery")) == (0, 1)
            pending.forget()
        finally:
            s3.client.close()
            app.close()
        log = worker.log()
    assert refusals(admin) == []
    assert "NOPERM" not in log
    assert "maxmemory" not in log, "the worker is content with the eviction policy"
    for name in USERS:
        password = environment_file(etc / f"{name}.env")["REDIS_PASSWORD"]
        assert password not in log


def test_keda_may_ask_how_long_the_queue_is_and_no_more(admin: Any, etc: Path) -> None:
    monitor = redis.Redis.from_url(url_of(etc, "monitor"))
    admin.lpush("celery", "x", "y")
    # In kind what KEDA's scaler sends: the type of the key, then its length.
    script = "if redis.call('type', KEYS[1]).ok == 'list' then return redis.call('llen', KEYS[1]) end"
    assert monitor.eval(script, 1, "celery") == 2
    with pytest.raises(redis.exceptions.ResponseError, match=r"(?i)permission|ACL"):
        monitor.eval("return redis.call('lrange', KEYS[1], 0, -1)", 1, "celery")
    monitor.close()


# --- choose_passwords.py ---


def test_the_passwords_are_as_many_as_the_users_and_only_their_hashes_are_in_the_file_for_redis(etc: Path) -> None:
    acl = (etc / "redis-acl.conf").read_text()
    secrets = [environment_file(etc / f"{name}.env")["REDIS_PASSWORD"] for name in USERS]

    assert "REPLACE" not in acl.replace("REPLACE (Redis", "").replace("REPLACE_WITH_SHA256_OF_X", "")
    assert len(set(secrets)) == len(USERS) == len(re.findall("^user ", acl, flags=re.MULTILINE))
    assert not any(secret in acl for secret in secrets)
    assert {environment_file(etc / f"{name}.env")["REDIS_USERNAME"] for name in USERS} == set(USERS.values())
    assert re.sub("#[0-9a-f]{64}", "#", acl) == re.sub("#REPLACE_WITH_SHA256_OF_[A-Z]+_PASSWORD", "#", REDIS_ACL.read_text())


def test_only_their_owner_may_read_the_passwords_and_redis_its_users(etc: Path) -> None:
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in etc.iterdir()}

    assert modes.pop("redis-acl.conf") == 0o644
    assert set(modes) == {f"{name}.env" for name in [*USERS, "compose"]}
    assert set(modes.values()) == {0o600}


def test_redis_finds_its_users_whatever_the_umask(tmp_path: Path) -> None:
    command = f"umask 077; exec {sys.executable} {CHOOSE} {tmp_path / 'etc'}"
    subprocess.run(["sh", "-c", command], capture_output=True, check=True)

    assert stat.S_IMODE((tmp_path / "etc").stat().st_mode) == 0o755


def test_nothing_is_said_of_the_passwords_and_nothing_is_written_over(etc: Path) -> None:
    before = {path: path.read_text() for path in etc.iterdir()}

    again = choose(etc)

    assert again.returncode == 1
    assert "is there already" in again.stderr
    assert {path: path.read_text() for path in etc.iterdir()} == before
    assert not any(secret in again.stderr for path in before for secret in re.findall(r"PASSWORD=(.*)", before[path]))


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ([], "usage"), (["-h"], "usage"), (["a", "b", "c"], "usage"), (["a", "http://host"], "is no HOST"),
        (["a", "ho st"], "is no HOST"),
        ([str(WORKER_CONFIG / "docker" / "secrets")], "goes into images"),
    ],
)
def test_what_cannot_be_meant_is_refused(arguments: list[str], reason: str, tmp_path: Path) -> None:
    said = subprocess.run([sys.executable, str(CHOOSE), *arguments], cwd=tmp_path, capture_output=True, text=True, check=False)

    assert said.returncode == 1
    assert reason in said.stderr
    assert os.listdir(tmp_path) == []


def test_compose_asks_for_no_variable_that_was_not_chosen(etc: Path) -> None:
    asked = set(re.findall(r"\$\{(\w+):\?", (WORKER_CONFIG / "docker" / "compose.yaml").read_text()))

    assert environment_file(etc / "compose.env").keys() == asked
