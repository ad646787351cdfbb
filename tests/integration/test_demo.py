"""`s3tasks demo` and `s3tasks dev`, as a person starts them."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from s3tasks.cli import trying_out
from s3tasks.demo import Report, files_in, spread, steps_for
from tests.conftest import REPOSITORY

COMMAND = [sys.executable, "-m", "s3tasks.cli"]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(REPOSITORY)}


def run(*arguments: str, timeout_seconds: float = 120) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *arguments], env=ENVIRONMENT, capture_output=True, text=True, timeout=timeout_seconds, check=False
    )


@pytest.fixture
def files(tmp_path: Path) -> Path:
    (tmp_path / "deep").mkdir()
    for number, name in enumerate(("a.txt", "b c.bin", "deep/ü.txt")):
        (tmp_path / name).write_bytes(bytes([number]) * 100)
    (tmp_path / "empty").touch()
    return tmp_path


def test_the_demo_counts_what_each_way_of_reading_was_served(files: Path) -> None:
    ran = run("demo", "--path", str(files), "--json", "--lag", "0.3", "0.6", "--seed", "1")

    assert ran.returncode == 0, ran.stderr
    figures = json.loads(ran.stdout)
    assert (figures["files"], figures["writes"], figures["deletes"], figures["reads"]) == (4, 8, 1, 9)
    assert figures["stale"] == 0
    assert figures["naive_stale"] > 0
    assert figures["failures"] == []
    assert figures["retries"] > 0
    assert figures["passed"] is True
    assert figures["lags_seconds"]["median"] >= 0.3
    assert figures["waits_seconds"]["p95"] >= figures["waits_seconds"]["median"] >= 0.3


def test_the_demo_says_what_it_found_in_a_table(files: Path) -> None:
    ran = run("demo", "--path", str(files), "--lag", "0", "0.1", "--files", "2")
    assert re.search(r"stale reads, s3tasks +0 of 4", ran.stdout)
    assert "█" in ran.stdout
    assert "passed" in ran.stdout
    assert "2 more left out" in ran.stderr


def test_a_stale_byte_is_a_failure() -> None:
    assert not Report(stale=1).passed
    assert not Report(failures=["x"]).passed
    assert Report(naive_stale=5).passed
    assert "FAILED" in trying_out._table(Report(stale=1))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["demo", "--path", "/no/such/directory"], "not a directory"),
        (["demo", "--lag", "2", "1"], "lag"),
        (["demo", "--files", "0"], "no files"),
        (["nonsense"], "nonsense"),
        (["dev", "--bucket", "Bad Bucket!"], "bucket"),
    ],
)
def test_nonsense_is_one_clear_line_and_status_2(arguments: list[str], words: str) -> None:
    ran = run(*arguments)
    assert ran.returncode == 2
    assert words in ran.stderr
    assert "Traceback" not in ran.stderr


def test_a_missing_redis_binary_is_named_with_the_way_out() -> None:
    environment = {**ENVIRONMENT, "S3TASKS_REDIS_SERVER": "/no/redis"}
    ran = subprocess.run([*COMMAND, "demo"], env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert ran.returncode == 2
    assert "S3TASKS_REDIS_SERVER" in ran.stderr


def children_of(pid: int) -> set[int]:
    listed = subprocess.run(["ps", "-eo", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
    parents = {int(child): int(parent) for child, parent in (line.split() for line in listed.splitlines())}
    found: set[int] = set()
    grown = {pid}
    while grown:
        grown = {child for child, parent in parents.items() if parent in grown}
        found |= grown
    return found


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_dev_keeps_the_stack_up_and_ends_all_of_it(ending: signal.Signals) -> None:
    with subprocess.Popen(
        [*COMMAND, "dev"], env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        assert process.stdout is not None
        printed = []
        for line in process.stdout:
            printed.append(line)
            if "Ctrl-C" in line:
                break
        exported = dict(re.findall(r"^export (\w+)=(.*)$", "".join(printed), re.MULTILINE))
        program = (
            "from s3tasks import S3Tasks\nfrom s3tasks.tasks import enqueuing_app\n"
            f"s3 = S3Tasks(enqueuing_app({exported['CELERY_BROKER_URL']!r}, {exported['CELERY_RESULT_BACKEND']!r}))\n"
            "print((s3.write.s('hello', 's3://dev/greeting') | s3.read.s()).delay().get(timeout=30))\n"
        )
        environment = {**ENVIRONMENT, **exported}
        used = subprocess.run(
            [sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=60, check=False
        )
        started = children_of(process.pid)
        process.send_signal(ending)
        process.wait(timeout=60)
    assert used.stdout.strip() == "b'hello'", used.stderr
    assert len(started) >= 5
    deadline = time.monotonic() + 30
    while (alive := {pid for pid in started if Path(f"/proc/{pid}").exists()}) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not alive


def test_every_file_is_written_twice_and_every_third_deleted(files: Path) -> None:
    chosen, left_out = files_in(files, most_files=3, most_bytes=1000)
    assert left_out == 1
    plans = steps_for(chosen, files, "b")
    assert [len(plan) for plan in plans] == [2, 2, 3]
    assert plans[0][1].body == (files / "a.txt").read_bytes()
    assert plans[2][2].body is None


def test_a_directory_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotADirectoryError, match="not a directory"):
        files_in(tmp_path / "missing", 1, 1)


@pytest.mark.parametrize(("times", "expected"), [([], (0.0, 0.0)), ([1.0], (1.0, 1.0)), ([1.0, 2.0, 3.0], (2.0, 2.9))])
def test_a_spread_is_median_and_95th_percentile(times: list[float], expected: tuple[float, float]) -> None:
    assert spread(times) == expected


def test_help_names_the_commands() -> None:
    ran = run("--help")
    assert ran.returncode == 0
    assert "demo" in ran.stdout
    assert "dev" in ran.stdout


def test_dev_without_a_worker_leaves_the_queue_to_ones_own_and_ends_when_its_redis_does() -> None:
    command = [*COMMAND, "dev", "--no-worker", "--bucket", "mine"]
    with subprocess.Popen(
        command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if "Ctrl-C" in line:
                break
        named = {pid: Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ") for pid in children_of(process.pid)}
        assert not [line for line in named.values() if "celery" in line]
        (redis_pid,) = [pid for pid, line in named.items() if "--bind 127.0.0.1" in line or "127.0.0.1:" in line]
        os.kill(redis_pid, signal.SIGKILL)
        said = process.stderr.read() if process.stderr else ""
        assert process.wait(timeout=60) == 2
    assert "Redis has ended" in said
