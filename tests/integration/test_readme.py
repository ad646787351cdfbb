"""The README's examples, run as a reader would run them: one after the other, with a worker for its shop."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from s3tasks.sandbox import Sandbox
from tests.conftest import REPOSITORY

README = (REPOSITORY / "README.md").read_text()
BLOCK = re.compile(r"^```python(?: file=(\S+))?\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks() -> tuple[dict[str, str], str]:
    """The files that the README shows, and the rest of its Python as one program."""
    files: dict[str, str] = {}
    program: list[str] = []
    for name, code in BLOCK.findall(README):
        if name:
            files[name] = code
        else:
            program.append(code)
    return files, "\n".join(program)


@pytest.fixture(scope="module")
def own_sandbox() -> Iterator[Sandbox]:
    """The reader's queue is Celery's default one, which no worker of other tests may serve."""
    with Sandbox(lag_seconds=(0.2, 0.6), seed=1) as started:
        yield started


COMMANDS = re.findall(r"^\$ (.*celery -A shop s3tasks .*)$", README, re.MULTILINE)
# The sandbox's Redis keeps nothing over a restart, which the doctor says; the replica may be behind.
STATUSES = {"doctor": {1}, "list": {0, 3}}


def typed(command: str, shop: Path, sandbox: Sandbox) -> tuple[int, str]:
    """How a command ends that a reader types, and what it says."""
    environment = environment_for(shop, sandbox)
    environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), environment["PATH"]])
    ran = subprocess.run(
        ["bash", "-c", command], cwd=shop, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    return ran.returncode, f"{command}: {ran.returncode}\n{ran.stdout}{ran.stderr}"


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    for name, code in blocks()[0].items():
        (tmp_path / name).write_text(code)
    return tmp_path


def environment_for(shop: Path, sandbox: Sandbox) -> dict[str, str]:
    return {**os.environ, **sandbox.environment(), "PYTHONPATH": os.pathsep.join([str(shop), str(REPOSITORY)])}


def test_the_tour_runs_as_it_stands(shop: Path, own_sandbox: Sandbox) -> None:
    sandbox = own_sandbox
    sandbox.create_bucket("invoices")
    program = blocks()[1] + (
        "\napp.AsyncResult(large).get(timeout=30)\n"
        "assert status(large)['ref']['bucket'] == 'invoices', status(large)\n"
        "s3.client.close()\n"
    )
    worker = sandbox.start_worker("workflows", directory=shop, environment={"PYTHONPATH": f"{shop}{os.pathsep}{REPOSITORY}"})
    try:
        ran = subprocess.run(
            [sys.executable, "-c", program],
            cwd=shop, env=environment_for(shop, sandbox), capture_output=True, text=True, timeout=120, check=False,
        )
        asked = [(command, *typed(command, shop, sandbox)) for command in COMMANDS]
    finally:
        worker.stop()
    assert ran.returncode == 0, ran.stderr
    assert "deleted, and nobody gets it back" in ran.stdout
    for command, status, said in asked:
        assert status in STATUSES.get(command.partition(" s3tasks ")[2].split()[0], {0}), said


def test_the_sandbox_serves_a_users_own_tests(shop: Path) -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_shop.py"],
        cwd=shop, env={**os.environ, "PYTHONPATH": str(REPOSITORY)}, capture_output=True, text=True, timeout=120, check=False,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "1 passed" in ran.stdout


def test_the_two_commands_are_the_ones_that_ci_runs_and_that_the_package_has() -> None:
    demo, tests = re.findall(r"^```sh\n(.*?)\n```$", README, re.MULTILINE | re.DOTALL)
    assert demo.endswith("s3tasks demo")
    assert tests in (REPOSITORY / ".ci" / "run").read_text()
