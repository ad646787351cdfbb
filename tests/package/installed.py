"""What an installation without extras has brought along: what celery, boto3, redis and tenacity need, and nothing else.

`python -I tests/package/installed.py`, by the Python of an environment that holds s3tasks alone. It prints who needs what, and
fails for what nobody needs, for what is missing, and where the package does not work without the rest.
"""

from __future__ import annotations

import importlib
import pkgutil
import subprocess
import sys
from collections.abc import Iterable
from importlib.metadata import distributions, requires, version
from pathlib import Path

from pip._vendor.packaging.requirements import Requirement
from pip._vendor.packaging.utils import canonicalize_name

ROOTS = ("celery[redis]", "boto3", "redis", "tenacity")
# What a new environment holds by itself, and the package.
GIVEN = {"pip", "setuptools", "wheel", "s3tasks"}


def closure() -> dict[str, set[str]]:
    """All that the four need here, by name, with those that need it."""
    needed: dict[str, set[str]] = {}
    todo = [("s3tasks", Requirement(root)) for root in ROOTS]
    seen = set()
    while todo:
        by, requirement = todo.pop()
        name = canonicalize_name(requirement.name)
        needed.setdefault(name, set()).add(by)
        extras = frozenset(requirement.extras)
        if (name, extras) in seen:
            continue
        seen.add((name, extras))
        for inner in map(Requirement, requires(name) or []):
            marker = inner.marker
            if marker is None or any(marker.evaluate({"extra": extra}) for extra in {"", *extras}):
                todo.append((name, inner))
    return needed


def problems_of_rooms(path: Iterable[str]) -> list[str]:
    """Rooms that cannot be imported, but for those that say which extra they need. The sandbox is an extra itself."""
    problems = []
    for room in pkgutil.walk_packages(path, "s3tasks."):
        if room.name.startswith("s3tasks.sandbox.") or room.name.endswith("__main__"):
            continue
        try:
            importlib.import_module(room.name)
        except ModuleNotFoundError as problem:
            if "pip install 's3tasks[" not in str(problem):
                problems.append(f"{room.name} cannot be imported: {problem}")
    return problems


def main() -> str:
    """What is wrong, or nothing."""
    needed, found = closure(), {canonicalize_name(one.metadata["Name"]) for one in distributions()} - GIVEN
    for name, by in sorted(needed.items()):
        sys.stdout.write(f"{name} {version(name)}, for {', '.join(sorted(by))}\n")
    import s3tasks

    problems = [f"{name} is needed by none of {', '.join(ROOTS)}" for name in sorted(found - needed.keys())]
    problems += [f"s3tasks.{name} is missing" for name in s3tasks.__all__ if not hasattr(s3tasks, name)]
    if not (Path(s3tasks.__file__).with_name("py.typed")).exists():
        problems.append("py.typed is missing")
    problems += problems_of_rooms(s3tasks.__path__)
    command = Path(sys.executable).with_name("s3tasks")
    demo = subprocess.run([command, "demo"], capture_output=True, text=True, check=False)
    if demo.returncode == 0 or "s3tasks[sandbox]" not in demo.stderr or "Traceback" in demo.stderr:
        problems.append(f"the demo without its extra does not say what is missing: {demo.stderr}")
    return "\n".join(problems)


if __name__ == "__main__":
    sys.exit(main() or None)
