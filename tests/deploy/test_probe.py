"""The very probe commands against real workers: alive, hung, dead, and with a Redis that is away."""

from __future__ import annotations

import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from celery import Celery

from s3tasks.sandbox import RedisServer, Sandbox
from s3tasks.sandbox.processes import Child, wait_until
from tests.conftest import REPOSITORY
from tests.deploy.deployed import PATIENCE_SECONDS, deployed
from tests.deploy.files import DOCKERFILE, compose_services, dockerfile_instructions, manifest, of_stage
from worker_config import heartbeat, probe

pytestmark = pytest.mark.usefixtures("sandbox")


def probe_commands() -> dict[str, list[str]]:
    """The commands as the image, Compose and Kubernetes run them."""
    image = of_stage(dockerfile_instructions(DOCKERFILE.read_text()), "worker")
    (check,) = [item.text.partition("CMD ")[2] for item in image if item.name == "HEALTHCHECK"]
    (container,) = manifest("Deployment")["spec"]["template"]["spec"]["containers"]
    names = ("startupProbe", "livenessProbe", "readinessProbe")
    return {
        "image": json.loads(check),
        "compose": compose_services()["worker"]["healthcheck"]["test"][1:],
        **{name: container[name]["exec"]["command"] for name in names},
    }


COMMANDS = probe_commands()
LIVE, READY = COMMANDS["livenessProbe"], COMMANDS["readinessProbe"]


def run(command: list[str], directory: Path, **variables: str) -> int:
    """How the command ends in a container whose heartbeat file is in the directory."""
    assert command[0] == "python"
    environment = {"PATH": os.environ["PATH"], "CELERY_HEARTBEAT_FILE": str(directory / "heartbeat"), **variables}
    said = [sys.executable, *command[1:]]
    return subprocess.run(said, cwd=REPOSITORY, env=environment, capture_output=True, timeout=30, check=False).returncode


def age(directory: Path, seconds: float = 3600.0) -> None:
    """As if there had been no heartbeat for so long."""
    then = time.time() - seconds
    os.utime(directory / "heartbeat", (then, then))


@pytest.fixture
def broker() -> Iterator[RedisServer]:
    with RedisServer(persistent=True) as server:
        yield server


@pytest.fixture
def urls(broker: RedisServer) -> dict[str, str]:
    return {"CELERY_BROKER_URL": broker.url, "CELERY_RESULT_BACKEND": broker.url, "S3TASKS_LEDGER_URL": broker.url}


@pytest.fixture
def worker(sandbox: Sandbox, urls: dict[str, str], tmp_path: Path) -> Iterator[Child]:
    # What is running when Redis goes is delivered again only after the visibility timeout.
    more = {"CELERY_IMPORTS": "tests.deploy.slow_tasks", "CELERY_VISIBILITY_TIMEOUT_SECONDS": "5"}
    with deployed("image", tmp_path, {**sandbox.environment(), **urls, **more}) as child:
        yield child


def test_the_startup_probe_and_the_health_checks_ask_what_the_liveness_probe_asks() -> None:
    assert COMMANDS["image"] == COMMANDS["compose"] == COMMANDS["startupProbe"] == LIVE == [*READY[:-1], "live"]
    assert (REPOSITORY / LIVE[-2]).is_file()


def test_a_worker_that_runs_is_alive_and_ready_and_says_so_again_and_again(
    worker: Child, urls: dict[str, str], tmp_path: Path
) -> None:
    assert [run(command, tmp_path, **urls) for command in (LIVE, READY)] == [0, 0]
    age(tmp_path)
    assert wait_until(lambda: run(READY, tmp_path, **urls) == 0, 3 * heartbeat.BEAT_SECONDS, 0.2)


@pytest.mark.parametrize("way", [signal.SIGSTOP, signal.SIGKILL], ids=["hangs", "is dead"])
def test_a_worker_that_hangs_or_is_dead_is_not_alive(
    worker: Child, urls: dict[str, str], tmp_path: Path, way: signal.Signals
) -> None:
    if way is signal.SIGKILL:
        worker.kill()
    else:
        worker.signal(way)
    assert run(LIVE, tmp_path, **urls) == 0, "a probe does not jump to conclusions"
    age(tmp_path)

    assert [run(command, tmp_path, **urls) for command in (LIVE, READY)] == [1, 1]

    if way is signal.SIGSTOP:
        worker.signal(signal.SIGCONT)
        assert wait_until(lambda: run(LIVE, tmp_path, **urls) == 0, 3 * heartbeat.BEAT_SECONDS, 0.2)


@pytest.mark.parametrize("away", ["killed", "silent"])
def test_a_worker_with_its_hands_full_is_not_blamed_for_a_redis_that_is_away_and_recovers_with_it(
    worker: Child, broker: RedisServer, urls: dict[str, str], tmp_path: Path, away: str
) -> None:
    producer = Celery("producer", broker=broker.url, backend=broker.url, set_as_current=False)
    for number in range(4):
        producer.send_task("tests.nap", (str(tmp_path / str(number)), 1.0), ignore_result=True)
    producer.close()
    assert wait_until((tmp_path / "1").exists, PATIENCE_SECONDS)
    if away == "killed":
        broker.kill()
    else:
        broker.pause()

    # Its event loop stands still, for it cannot store what it has to.
    age(tmp_path)
    assert run(LIVE, tmp_path, **urls) == 0
    if away == "killed":
        broker.start()
    else:
        broker.resume()
    # As long again as at first, though no heartbeat has come yet.
    age(tmp_path)
    assert run(LIVE, tmp_path, **urls) == 0

    assert wait_until(lambda: run(READY, tmp_path, **urls) == 0, PATIENCE_SECONDS, 0.2)
    naps = [tmp_path / str(number) for number in range(4)]
    assert wait_until(lambda: all(nap.exists() and nap.read_text().endswith("ended\n") for nap in naps), PATIENCE_SECONDS, 0.2)
    assert worker.running


def test_a_worker_that_starts_before_redis_is_alive_but_not_ready(
    sandbox: Sandbox, broker: RedisServer, urls: dict[str, str], tmp_path: Path
) -> None:
    broker.stop()
    from s3tasks.sandbox.processes import Guardian
    from tests.deploy.deployed import command_of_image, environment_of_image

    guardian = Guardian()
    environment = {**os.environ, **environment_of_image(), **sandbox.environment(), **urls, "PYTHONPATH": str(REPOSITORY)}
    environment["CELERY_HEARTBEAT_FILE"] = str(tmp_path / "heartbeat")
    worker = Child(guardian, command_of_image(), tmp_path / "log", directory=tmp_path, environment=environment)
    try:
        assert wait_until(lambda: run(LIVE, tmp_path, **urls) == 0, PATIENCE_SECONDS, 0.1)
        assert run(READY, tmp_path, **urls) == 1
        age(tmp_path)
        assert run(LIVE, tmp_path, **urls) == 0
        broker.start()
        assert wait_until(lambda: run(READY, tmp_path, **urls) == 0, PATIENCE_SECONDS, 0.2), worker.log_tail()
    finally:
        worker.kill()
        guardian.close()


# --- the probe by itself ---


@pytest.fixture
def silent_worker(tmp_path: Path) -> Path:
    (tmp_path / "heartbeat").write_text("consuming\n")
    age(tmp_path)
    return tmp_path


def asked(directory: Path, *urls: str, question: str = "live") -> str | None:
    names = ("CELERY_BROKER_URL", "CELERY_RESULT_BACKEND")
    return probe.problem(question, {"CELERY_HEARTBEAT_FILE": str(directory / "heartbeat"), **dict(zip(names, urls, strict=False))})


def test_a_silent_worker_is_blamed_if_redis_answers_though_it_tells_no_strangers_anything(silent_worker: Path) -> None:
    with RedisServer(("--requirepass", "secret")) as server:
        assert asked(silent_worker, server.url) is not None


def test_a_silent_worker_is_not_blamed_if_its_backend_is_away(silent_worker: Path, broker: RedisServer) -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        assert asked(silent_worker, broker.url, f"redis://127.0.0.1:{mute.getsockname()[1]}/0") is None
        assert asked(silent_worker, f"rediss://127.0.0.1:{mute.getsockname()[1]}/0") is None


def test_a_silent_worker_gets_as_long_again_once_redis_is_back_and_no_longer(silent_worker: Path, broker: RedisServer) -> None:
    broker.stop()
    assert asked(silent_worker, broker.url) is None
    broker.start()
    assert asked(silent_worker, broker.url) is None
    then = time.time() - probe.STALE_AFTER_SECONDS - 1
    os.utime(silent_worker / "heartbeat.excused", (then, then))
    assert "no heartbeat for 1" in str(asked(silent_worker, broker.url))


@pytest.mark.parametrize("answer", [b"-LOADING Redis is loading the dataset in memory\r\n", b"-MISCONF Errors writing\r\n"])
def test_a_redis_that_is_of_no_use_yet_is_away(answer: bytes) -> None:
    import threading

    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(64)
                connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        assert not probe.answers(f"redis://user:secret@127.0.0.1:{server.getsockname()[1]}/0")
        thread.join()


@pytest.mark.parametrize("url", ["sentinel://127.0.0.1:26379", "redis://127.0.0.1:1;redis://x", "redis://[::1", "amqp://x"])
def test_nobody_is_blamed_by_a_redis_that_cannot_be_asked(silent_worker: Path, url: str) -> None:
    assert asked(silent_worker, url) is None


@pytest.mark.parametrize(
    ("environment", "question"),
    [({}, "live"), ({"CELERY_HEARTBEAT_FILE": "/nowhere/beat"}, "live"), ({"CELERY_HEARTBEAT_FILE": "/nowhere/beat"}, "alive")],
)
def test_a_probe_that_cannot_know_says_no_and_why(environment: dict[str, str], question: str) -> None:
    assert probe.problem(question, environment)


def test_the_probe_loads_nothing_that_takes_long() -> None:
    program = "import runpy, sys; runpy.run_path('worker_config/probe.py'); print(*sys.modules)"
    said = subprocess.run([sys.executable, "-I", "-c", program], cwd=REPOSITORY, capture_output=True, text=True, check=True)

    assert {"celery", "boto3", "redis", "s3tasks", "worker_config"} & set(said.stdout.split()) == set()


def test_the_guide_says_how_to_run_the_probe_by_hand_on_one_machine() -> None:
    said = (REPOSITORY / "worker_config" / "README.md").read_text()

    assert shlex.join(LIVE[1:-2]) in said
    assert "/run/s3tasks-worker-1/heartbeat" in said
