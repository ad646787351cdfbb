"""The files of worker_config as their programs read them: units, Dockerfile, YAML, environment files, redis.conf.

It never changes them, and never guesses: a line that it does not understand is a ValueError.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.conftest import REPOSITORY

WORKER_CONFIG = REPOSITORY / "worker_config"
UNIT = WORKER_CONFIG / "systemd" / "s3tasks-worker@.service"
DOCKERFILE = WORKER_CONFIG / "docker" / "Dockerfile"
COMPOSE = WORKER_CONFIG / "docker" / "compose.yaml"
KUBERNETES = WORKER_CONFIG / "kubernetes"
REDIS_CONF = WORKER_CONFIG / "redis.conf"
REDIS_ACL = WORKER_CONFIG / "redis-acl.conf"
GUIDE = WORKER_CONFIG / "README.md"


def unit_settings(text: str) -> dict[str, list[str]]:
    """Every setting of a systemd unit, with its values in order; sections are left out, for no name is in two of ours."""
    settings: dict[str, list[str]] = {}
    for line in text.splitlines():
        if not line or line[0] in "#[":
            continue
        name, equals, value = line.partition("=")
        if not equals:
            raise ValueError(f"{line!r} is no line of a unit")
        settings.setdefault(name, []).append(value)
    return settings


def unit_environment(text: str) -> dict[str, str]:
    """What the unit's Environment= lines set."""
    words = [word for value in unit_settings(text)["Environment"] for word in shlex.split(value)]
    return dict(word.split("=", 1) for word in words)


@dataclass(frozen=True)
class Instruction:
    """One instruction of a Dockerfile: its name, its arguments, and the stage it stands in."""

    stage: str
    name: str
    text: str

    def words(self) -> list[str]:
        """The arguments, of the JSON form or of the other."""
        return list(json.loads(self.text)) if self.text.startswith("[") else shlex.split(self.text)


def dockerfile_instructions(text: str) -> list[Instruction]:
    """The instructions in order; continued lines are joined. A stage is called by its AS, which each of ours has."""
    found: list[Instruction] = []
    stage = ""
    for line in re.sub(r"\\\n\s*", "", text).splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        name, _, rest = line.partition(" ")
        if name == "FROM":
            stage = rest.split(" AS ")[1]
        found.append(Instruction(stage, name, rest))
    return found


def of_stage(instructions: list[Instruction], stage: str) -> list[Instruction]:
    """What makes up the stage, from the stages it is built on downwards."""
    own = [instruction for instruction in instructions if instruction.stage == stage]
    base = own[0].text.split(" AS ")[0]
    stages = {instruction.stage for instruction in instructions}
    return [*(of_stage(instructions, base) if base in stages else []), *own]


def yaml_documents(path: Path) -> list[dict[str, Any]]:
    """The documents of a YAML file."""
    return [dict(document) for document in yaml.safe_load_all(path.read_text())]


def manifest(kind: str) -> dict[str, Any]:
    """The only Kubernetes manifest of that kind."""
    documents = [document for path in sorted(KUBERNETES.glob("*.yaml")) for document in yaml_documents(path)]
    (found,) = [document for document in documents if document["kind"] == kind]
    return found


def compose_services() -> dict[str, dict[str, Any]]:
    """The services of compose.yaml."""
    (document,) = yaml_documents(COMPOSE)
    return dict(document["services"])


def redis_settings(text: str) -> dict[str, str]:
    """The settings of redis.conf; one that occurs twice is a ValueError."""
    settings: dict[str, str] = {}
    for line in text.splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        name, _, value = line.partition(" ")
        if name in settings:
            raise ValueError(f"{name} is set twice")
        settings[name] = value.strip('"')
    return settings


def environment_file(path: Path) -> dict[str, str]:
    """The variables that an environment file sets."""
    lines = [line for line in path.read_text().splitlines() if line and not line.startswith("#")]
    return dict(line.split("=", 1) for line in lines)


def seconds(text: str | int) -> float:
    """A time as systemd, Docker and Compose write it: 60, 60s, 1m30s."""
    units = {"s": 1.0, "m": 60.0, "h": 3600.0, "": 1.0}
    parts = re.findall(r"(\d+)([smh]?)", str(text))
    if "".join(number + unit for number, unit in parts) != str(text):
        raise ValueError(f"{text!r} is no time")
    return sum(int(number) * units[unit] for number, unit in parts)


def size_bytes(text: str | int) -> int:
    """A size as Redis, Compose, systemd and Kubernetes write it; all of ours mean powers of two."""
    match = re.fullmatch(r"(\d+)\s*([kmg]?)(?:i|b|ib)?", str(text).lower())
    if match is None:
        raise ValueError(f"{text!r} is no size")
    return int(match[1]) * {"": 1, "k": 2**10, "m": 2**20, "g": 2**30}[match[2]]


def files_of_deployment() -> Iterator[Path]:
    """Every file of worker_config but what Python leaves there."""
    yield from (path for path in sorted(WORKER_CONFIG.rglob("*")) if path.is_file() and "__pycache__" not in path.parts)
