"""README.md of worker_config: its links lead somewhere, its commands name what exists, its figures are those of files and Redis."""

from __future__ import annotations

import re
import shlex
import subprocess

import pytest

from s3tasks import Settings
from tests.benchmarks.ledger_scale import memory
from tests.conftest import REPOSITORY
from tests.deploy.files import (
    GUIDE,
    REDIS_CONF,
    WORKER_CONFIG,
    compose_services,
    files_of_deployment,
    manifest,
    redis_settings,
    size_bytes,
)
from worker_config import celeryconfig

TEXT = GUIDE.read_text()
COMMANDS = re.findall(r"`([^`]+)`", TEXT)
STARTERS = ("sudo ", "docker ", "kubectl ", "python3 ", "install ", "systemctl ", "redis-cli ", "python -m")


def chapter(title: str) -> str:
    found: list[str] = re.findall(rf"^## {title}\n(.*?)(?=^## |\Z)", TEXT, flags=re.MULTILINE | re.DOTALL)
    assert len(found) == 1
    return found[0]


def figures(text: str) -> list[float]:
    return [float(number.replace(",", "")) for number in re.findall(r"\d[\d,]*(?:\.\d+)?", text)]


@pytest.mark.parametrize("target", sorted(set(re.findall(r"\]\(([^)]+)\)", TEXT))))
def test_a_link_leads_somewhere(target: str) -> None:
    name, _, chapter_name = target.partition("#")
    path = WORKER_CONFIG / name if name else GUIDE
    assert path.is_file()
    if chapter_name:
        titles = re.findall(r"^## (.+)$", path.read_text(), flags=re.MULTILINE)
        assert chapter_name in {title.lower().replace(" ", "-") for title in titles}


@pytest.mark.parametrize("title", ["One machine", "Containers", "Cluster"])
def test_each_way_has_five_steps_and_says_how_to_roll_out_and_back(title: str) -> None:
    said = chapter(title)

    assert re.findall(r"^(\d)\. ", said, flags=re.MULTILINE) == ["1", "2", "3", "4", "5"]
    assert "**Roll out**" in said
    assert "**Roll back**" in said


@pytest.mark.parametrize("command", [command for command in COMMANDS if command.startswith(STARTERS)])
def test_a_command_is_one_that_a_shell_understands_and_names_files_that_exist(command: str) -> None:
    subprocess.run(["bash", "-n", "-c", command], check=True)
    for word in shlex.split(command):
        if word.startswith("worker_config/"):
            assert (REPOSITORY / word).exists(), word
        if word.startswith("/opt/s3tasks/worker_config/"):
            assert (REPOSITORY / word.removeprefix("/opt/s3tasks/")).exists(), word


@pytest.mark.parametrize("path", list(files_of_deployment()), ids=lambda path: path.name)
def test_every_file_of_the_folder_is_told_of_somewhere(path: object) -> None:
    name = str(path).rpartition("/")[2]
    others = "".join(other.read_text() for other in files_of_deployment() if other != path)

    assert name.removesuffix(".py") in others or name == "README.md"


def test_the_times_are_those_of_the_files() -> None:
    said = TEXT[: TEXT.index("## One machine")]
    pod = manifest("Deployment")["spec"]["template"]["spec"]
    grace, visibility = pod["terminationGracePeriodSeconds"], celeryconfig.visibility_timeout_seconds
    times = [celeryconfig.worker_soft_shutdown_timeout, grace, visibility]

    assert f"Keep {times[0]:.0f} < {times[1]} < {times[2]} in this order" in said
    assert f"({celeryconfig.task_soft_time_limit} s, then {celeryconfig.task_time_limit} s)" in said
    night = chapter("At three in the morning")
    assert set(re.findall(r"(\d+) s\b", night)) == {f"{times[0]:.0f}", "300", str(times[2])}
    assert Settings().outage_deadline_seconds == Settings().consistency_deadline_seconds == 300


def test_the_settings_and_variables_that_are_named_exist() -> None:
    known = (WORKER_CONFIG / "env.example").read_text()
    for name in re.findall(r"\b((?:CELERY|S3TASKS)_[A-Z_]+)", TEXT):
        assert name in known


def test_the_bytes_are_what_redis_takes() -> None:
    rows = re.findall(r"^\| (\w[^|]*) \| (\d+)", chapter("Size Redis"), flags=re.MULTILINE)
    record, finished, message, result = (int(number) for _, number in rows)
    measured = memory(objects=3000)

    assert record == pytest.approx(measured.record, rel=0.1)
    assert finished == pytest.approx(measured.finished_write, rel=0.1)
    assert message == pytest.approx(measured.message, rel=0.1)
    assert result == pytest.approx(measured.result, rel=0.1)


def test_the_readme_reckons_with_the_same_bytes() -> None:
    rows = re.findall(r"^\| \w[^|]* \| (\d+)", chapter("Size Redis"), flags=re.MULTILINE)
    reckoned = (REPOSITORY / "README.md").read_text().partition("## What one Redis carries")[2].partition("\n\n")[2]

    assert re.findall(r"(\d+) bytes", reckoned.partition("\n\n")[0]) == rows


def test_the_times_in_the_table_of_bytes_are_the_defaults() -> None:
    said = chapter("Size Redis")

    assert f"retention, {Settings().retention_seconds // 3600} h" in said
    assert f"redelivery horizon, {Settings().redelivery_horizon_seconds // 3600} h" in said
    assert f"{celeryconfig.result_expires // 3600} h |\n<!-- /memory" in said


def test_the_example_is_reckoned_right_and_fits_the_configuration() -> None:
    said = chapter("Size Redis")
    rows = [int(number) for _, number in re.findall(r"^\| (\w[^|]*) \| (\d+)", said, flags=re.MULTILINE)]
    (sums,) = re.findall(r"^(1,000,000 x.*?) MB", said, flags=re.MULTILINE)
    objects, record, writes, finished, messages, message, results, result, total = figures(sums)
    most = size_bytes(redis_settings(REDIS_CONF.read_text())["maxmemory"])

    assert [record, finished, message, result] == rows
    assert writes == objects * Settings().redelivery_horizon_seconds // 86400
    assert results == 2 * objects * celeryconfig.result_expires // 86400
    sum_bytes = objects * record + writes * finished + messages * message + results * result
    assert total == round(sum_bytes / 1e6)
    assert f"{sum_bytes / most:.0%}".replace("%", " %") in said
    assert round(Settings().max_inline_bytes * 4 / 3 / 1000) == 350


def test_the_warnings_come_at_the_same_levels_in_both_files() -> None:
    levels = re.findall(r"Warn at (\d+) %,\s+(?:# )?wake somebody at (\d+) %", REDIS_CONF.read_text() + TEXT)

    assert len(levels) == 2
    assert len(set(levels)) == 1


def test_the_memory_of_a_worker_is_within_what_it_is_given() -> None:
    (first, further) = (int(number) * 10**6 for number in re.findall(r"takes (\d+) MB, each further process (\d+) MB", TEXT)[0])

    assert first + 2 * further < size_bytes(compose_services()["worker"]["mem_limit"])
    for path in files_of_deployment():
        for number in re.findall(r"some (\d+) MB \(README|processes, (\d+) MB \(README", path.read_text()):
            assert {int(text) * 10**6 for text in number if text} == {first}
