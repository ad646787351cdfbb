"""A gibibyte moved for real: up, through a stream, copied and down again, in bounded memory. Not collected by name; CI runs it."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from s3tasks.sandbox import Sandbox
from tests.conftest import REPOSITORY

SIZE_BYTES = int(os.environ.get("FAULTS_LARGE_BYTES", str(1024**3)))
MOST_RESIDENT_BYTES = 200 * 1024**2

MOVES = """
import json, resource, sys
from s3tasks import ConsistentS3, Settings
uri, path, out, way = sys.argv[1:]
client = ConsistentS3.from_settings(Settings.from_env())
if way == "up":
    client.upload(path, uri)
elif way == "down":
    client.download(uri, out)
else:
    with client.open(uri) as stream:
        client.write(stream, uri + "-streamed")
print(json.dumps({"resident_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}))
"""


def digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _digest(file.fileno())


def _digest(descriptor: int) -> str:
    found = hashlib.sha256()
    while piece := os.read(descriptor, 1024 * 1024):
        found.update(piece)
    return found.hexdigest()


@pytest.fixture(scope="module")
def big(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("big") / "in"
    block = os.urandom(1024 * 1024)
    with path.open("wb") as file:
        for number in range(SIZE_BYTES // len(block)):
            file.write(number.to_bytes(8, "big") + block[8:])
    return path


def moved(sandbox: Sandbox, *arguments: str) -> int:
    environment = {**os.environ, **sandbox.environment(), "PYTHONPATH": str(REPOSITORY)}
    environment.pop("S3TASKS_READ_ENDPOINT_URL", None)
    said = subprocess.run(
        [sys.executable, "-c", MOVES, *arguments], env=environment, capture_output=True, text=True, check=True, timeout=600
    )
    return int(json.loads(said.stdout)["resident_bytes"])


def test_a_large_object_is_moved_in_bounded_memory(sandbox: Sandbox, bucket: str, big: Path, tmp_path: Path) -> None:
    uri, out = f"s3://{bucket}/big", tmp_path / "out"
    sandbox.pause_replication()

    resident = {way: moved(sandbox, uri, str(big), str(out), way) for way in ("up", "down", "through a stream")}

    assert digest(out) == digest(big)
    assert max(resident.values()) < MOST_RESIDENT_BYTES, resident
    assert moved(sandbox, uri + "-streamed", str(big), str(out), "down") < MOST_RESIDENT_BYTES
    assert digest(out) == digest(big)
