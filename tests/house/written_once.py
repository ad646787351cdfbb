"""What stands in files but is known to the code: rendered from it, never written twice.

`python -m tests.house.written_once` prints worker_config/env.example, with `--write` it brings that file and the tables of
README.md up to date. In the README a table stands between `<!-- name -->` and `<!-- /name -->`.
"""

from __future__ import annotations

import ast
import dataclasses
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import s3tasks
from s3tasks.errors import S3TasksError
from s3tasks.settings import ENVIRONMENT_PREFIX, Settings
from tests.unit.verdict_rows import ROWS

REPOSITORY = Path(__file__).resolve().parents[2]
README = REPOSITORY / "README.md"
ENV_EXAMPLE = REPOSITORY / "worker_config" / "env.example"
CELERYCONFIG = REPOSITORY / "worker_config" / "celeryconfig.py"

CELERY_MEANINGS = {
    "CELERY_BROKER_URL": "Redis that carries the messages, and the ledger unless S3TASKS_LEDGER_URL names another",
    "CELERY_RESULT_BACKEND": "where results are kept; unset: in the broker's Redis",
    "CELERY_IMPORTS": "modules with your own tasks, divided by commas",
    "CELERY_VISIBILITY_TIMEOUT_SECONDS": "after how long an unacknowledged message is delivered again",
    "CELERY_TASK_SOFT_TIME_LIMIT_SECONDS": "how long a task may run; well below the visibility timeout",
    "CELERY_SOFT_SHUTDOWN_TIMEOUT_SECONDS": "how long running tasks may go on at a shutdown; below the supervisor's own timeout",
    "CELERY_HEARTBEAT_FILE": "where the worker says that it is alive, for probe.py; unset: nowhere",
}
"""What the variables that celeryconfig.py reads mean: Celery has no place of its own for that."""

_HEAD = """\
# The environment of the deployable worker (celery -A worker_config worker). Copy this file and fill in what you need; what is
# commented out shows the default. Rendered from the code by `python -m tests.house.written_once --write`: edit the meanings there.
"""


def env_example() -> str:
    """The whole of worker_config/env.example."""
    celery = [_variable(name, CELERY_MEANINGS[name], default) for name, default in celery_variables().items()]
    own = [
        _variable(ENVIRONMENT_PREFIX + field.name.upper(), field.metadata["meaning"], as_text(field.default))
        for field in dataclasses.fields(Settings)
    ]
    return "\n".join([_HEAD, "# --- Celery ---", "", *celery, "# --- s3tasks ---", "", *own])


def _variable(name: str, meaning: str, default: str) -> str:
    # An empty S3TASKS_ variable counts as unset; Celery's own have no such rule, so those stay commented out.
    comment = "# " if default or not name.startswith(ENVIRONMENT_PREFIX) else ""
    return f"# {meaning}\n{comment}{name}={default}\n"


def as_text(default: Any) -> str:
    """A setting's default as its variable would spell it; empty where it is unset."""
    if default is None:
        return ""
    if isinstance(default, bool):
        return str(default).lower()
    if isinstance(default, tuple):
        return ",".join(default)
    return f"{default:g}" if isinstance(default, float) else str(default)


def celery_variables() -> dict[str, str]:
    """The variables that celeryconfig.py reads, in order, with their defaults; one that defaults to another has none."""
    calls = [node for node in ast.walk(ast.parse(CELERYCONFIG.read_text())) if isinstance(node, ast.Call)]
    reads = [call for call in calls if ast.unparse(call.func) in ("os.environ.get", "os.getenv")]
    reads.sort(key=lambda call: call.lineno)
    return {_constant(call.args[0]): _constant(call.args[1]) if len(call.args) > 1 else "" for call in reads}


def _constant(node: ast.expr) -> str:
    return str(node.value) if isinstance(node, ast.Constant) else ""


def settings_table() -> str:
    """One row per setting: its name, default and meaning."""
    rows = [
        (f"`{field.name}`", f"`{text}`" if (text := as_text(field.default)) else "", field.metadata["meaning"])
        for field in dataclasses.fields(Settings)
    ]
    return _table(("setting", "default", "meaning"), rows)


def errors_table() -> str:
    """One row per public error, families before their members."""
    rows = [
        (f"{'&nbsp;&nbsp;' * depth}`{error.__name__}`", _retried(error), first_sentence(error))
        for depth, error in _public_tree(S3TasksError, 0)
    ]
    return _table(("error", "retried", "meaning"), rows)


def _public_tree(error: type[S3TasksError], depth: int) -> list[tuple[int, type[S3TasksError]]]:
    is_public = error.__name__ in s3tasks.__all__
    below = [found for child in _own(error) for found in _public_tree(child, depth + is_public)]
    return [(depth, error), *below] if is_public else below


def _own(error: type[S3TasksError]) -> list[type[S3TasksError]]:
    """Its subclasses in the package: tests make some of their own."""
    return [child for child in error.__subclasses__() if child.__module__.startswith("s3tasks.")]


def _retried(error: type[S3TasksError]) -> str:
    members = _own(error)
    if members and len({member.retryable for member in members}) > 1:
        return "some"
    return "yes" if error.retryable else "no"


def first_sentence(thing: type) -> str:
    """The first sentence of a docstring, on one line."""
    paragraph = " ".join((thing.__doc__ or "").split("\n\n")[0].split())
    return re.split(r"(?<=\.)\s", paragraph)[0].removesuffix(".")


def verdict_table() -> str:
    """One row for each case of the table: what the ledger says, what S3 serves, what the read does."""
    return _table(("the ledger says", "S3 serves", "the read"), [(row.ledger, row.serves, row.read) for row in ROWS])


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |\n" for line in lines)


TABLES: dict[str, Callable[[], str]] = {"settings": settings_table, "errors": errors_table, "verdicts": verdict_table}


def section(text: str, name: str) -> str:
    """What stands between the markers `<!-- name -->` and `<!-- /name -->`; ValueError unless they stand there once."""
    before, between, _ = _parted(text, name)
    return between if before else ""


def with_section(text: str, name: str, content: str) -> str:
    """The text with other content between the markers."""
    before, _, after = _parted(text, name)
    return f"{before}{content}{after}"


def _parted(text: str, name: str) -> tuple[str, str, str]:
    opening, closing = f"<!-- {name} -->\n", f"<!-- /{name} -->"
    if text.count(opening) != 1 or text.count(closing) != 1 or text.index(opening) > text.index(closing):
        raise ValueError(f"README.md has no section between {opening.strip()} and {closing}, each on a line of its own")
    before, _, rest = text.partition(opening)
    between, _, after = rest.partition(closing)
    return before + opening, between, closing + after


def write() -> None:
    """Brings env.example and the README's tables up to date."""
    ENV_EXAMPLE.write_text(env_example())
    text = README.read_text()
    for name, render in TABLES.items():
        text = with_section(text, name, render())
    README.write_text(text)


if __name__ == "__main__":
    if sys.argv[1:] == ["--write"]:
        write()
    else:
        sys.stdout.write(env_example())
