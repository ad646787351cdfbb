"""Workers started as the unit and the image start them: with their very command lines and environments, only the places differ.

It never starts anything that outlives the test.
"""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from s3tasks.sandbox.processes import Child, Guardian, wait_until
from tests.conftest import REPOSITORY
from tests.deploy.files import DOCKERFILE, UNIT, dockerfile_instructions, of_stage, unit_environment, unit_settings

PATIENCE_SECONDS = 60.0
SOFT_SHUTDOWN_SECONDS = 3.0


def command_of_unit() -> list[str]:
    """The unit's ExecStart, as systemd expands it for instance 1."""
    (command,) = unit_settings(UNIT.read_text())["ExecStart"]
    expanded = command.replace("%i", "1").replace("%H", "localhost")
    variables = unit_environment(UNIT.read_text())
    expanded = re.sub(r"\$\{(\w+)\}", lambda match: variables[match[1]], expanded)
    return _with_this_python(shlex.split(expanded))


def command_of_image() -> list[str]:
    """What the image runs."""
    said = {item.name: item for item in of_stage(dockerfile_instructions(DOCKERFILE.read_text()), "worker")}
    return _with_this_python([*said["ENTRYPOINT"].words(), *said["CMD"].words()])


def environment_of_unit() -> dict[str, str]:
    """What the unit sets by itself."""
    return unit_environment(UNIT.read_text())


def environment_of_image() -> dict[str, str]:
    """What the image sets by itself, but for the places that only it has."""
    instructions = of_stage(dockerfile_instructions(DOCKERFILE.read_text()), "worker")
    words = [word for item in instructions if item.name == "ENV" for word in item.words()]
    return {name: value for name, _, value in (word.partition("=") for word in words) if name not in ("PATH", "HOME")}


COMMANDS = {"unit": command_of_unit, "image": command_of_image}
ENVIRONMENTS = {"unit": environment_of_unit, "image": environment_of_image}


def _with_this_python(command: list[str]) -> list[str]:
    if not command[0].endswith("celery"):
        raise ValueError(f"{command[0]} is not celery")
    return [sys.executable, "-m", "celery", *command[1:]]


@contextmanager
def deployed(kind: str, directory: Path, variables: Mapping[str, str]) -> Iterator[Child]:
    """A worker of that kind that says it is ready; its heartbeat file is `heartbeat` in the directory, unless told otherwise."""
    guardian = Guardian()
    environment = {
        **os.environ,
        **ENVIRONMENTS[kind](),
        "CELERY_HEARTBEAT_FILE": str(directory / "heartbeat"),
        "CELERY_SOFT_SHUTDOWN_TIMEOUT_SECONDS": str(SOFT_SHUTDOWN_SECONDS),
        **variables,
        "PYTHONPATH": str(REPOSITORY),
    }
    work = directory / "work"
    work.mkdir(exist_ok=True)
    child = Child(guardian, COMMANDS[kind](), directory / "worker.log", directory=work, environment=environment)
    said_before = child.log().count("ready.")
    try:
        wait_until(lambda: not child.running or child.log().count("ready.") > said_before, PATIENCE_SECONDS, 0.05)
        if not child.running or child.log().count("ready.") == said_before:
            raise AssertionError(f"the worker is not ready; it said:\n{child.log_tail(40)}")
        yield child
    finally:
        if child.running:
            child.kill()
        guardian.close()
