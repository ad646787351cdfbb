"""What is in the wheel and the sdist: every file that belongs there and no other, and what the metadata says.

`python tests/package/contents.py WHEEL SDIST`, in a clone. Needs nothing but Python; .ci/package runs it.
"""

from __future__ import annotations

import subprocess
import sys
import tarfile
import zipfile
from email.parser import Parser
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]
NEEDED = {"boto3", "celery[redis]", "redis", "tenacity"}
SOURCES = ("s3tasks", "worker_config", "tests", ".ci")
# hatchling puts .gitignore there, for those who build from the sdist.
ALONE = {"README.md", "pyproject.toml", ".gitignore", "PKG-INFO"}


def tracked(*folders: str) -> set[str]:
    """The files of these folders that belong to the project."""
    # The owner of the files may be another than the user of this machine, which git would refuse.
    command = ["git", "-c", "safe.directory=*", "ls-files", "-z", "--", *folders]
    listed = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, check=False)
    names = listed.stdout.split("\0") if listed.returncode == 0 else on_disk(*folders)
    return {name for name in names if name and (CHECKOUT / name).exists()}


def on_disk(*folders: str) -> list[str]:
    """The files that are there, of a copy without history."""
    files = (path for folder in folders for path in (CHECKOUT / folder).rglob("*") if path.is_file())
    return [str(path.relative_to(CHECKOUT)) for path in files if not {"__pycache__", ".hypothesis"} & set(path.parts)]


def problems_of_wheel(path: Path) -> list[str]:
    with zipfile.ZipFile(path) as wheel:
        names = {name for name in wheel.namelist() if ".dist-info/" not in name}
        (metadata,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
        said = Parser().parsestr(wheel.read(metadata).decode())
        (entry_points,) = (wheel.read(name).decode() for name in wheel.namelist() if name.endswith("entry_points.txt"))
    expected = {name.replace("worker_config/", "s3tasks/_deploy/worker_config/", 1) for name in tracked("worker_config")}
    problems = differences("the wheel", names, expected | tracked("s3tasks"))
    requirements = said.get_all("Requires-Dist") or []
    needed = {requirement.split(">")[0].strip() for requirement in requirements if "extra ==" not in requirement}
    if needed != NEEDED:
        problems.append(f"without extras it needs {sorted(needed)}, not {sorted(NEEDED)}")
    for name in ("Name", "Version", "Summary", "License", "Requires-Python", "Description-Content-Type", "Classifier"):
        if not said.get(name):
            problems.append(f"its metadata has no {name}")
    if "s3tasks = s3tasks.cli:main" not in entry_points:
        problems.append("it has no s3tasks command")
    return problems


def problems_of_sdist(path: Path) -> list[str]:
    with tarfile.open(path) as sdist:
        names = {name.partition("/")[2] for name in sdist.getnames()}
    return differences("the sdist", names, tracked(*SOURCES) | ALONE)


def differences(what: str, found: set[str], expected: set[str]) -> list[str]:
    return [
        *(f"{what} lacks {name}" for name in sorted(expected - found)),
        *(f"{what} holds {name}" for name in sorted(found - expected)),
    ]


if __name__ == "__main__":
    wheel_path, sdist_path = map(Path, sys.argv[1:])
    problems = [*problems_of_wheel(wheel_path), *problems_of_sdist(sdist_path)]
    sys.exit("\n".join(problems) or None)
