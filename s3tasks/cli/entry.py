"""The command line: which commands there are, and how each ends.

It never does a command's work, and never imports what only a command needs before that command runs.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from s3tasks.cli import doctor, objects, records, trying_out
from s3tasks.cli.terminal import INTERRUPTED, STATUSES, Surroundings, plain, say, status_of, stdout_is_gone
from s3tasks.errors import S3TasksError
from s3tasks.settings import Settings
from s3tasks.version import __version__

_DESCRIPTION = "S3 as Celery tasks that never hand out stale data."
_WHERE_SETTINGS_COME_FROM = (
    "Objects are s3://bucket/key. Settings come from S3TASKS_* variables;\n`celery -A APP s3tasks COMMAND` takes those of the app."
)


def main(arguments: Sequence[str] | None = None, surroundings: Surroundings | None = None) -> int:
    """Runs one command and returns its exit status (see terminal.STATUSES)."""
    surroundings = surroundings or Surroundings(Settings.from_env)
    options = _parser(surroundings).parse_args(arguments)
    try:
        status: int = options.run(options, surroundings)
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        return stdout_is_gone()
    except (S3TasksError, RuntimeError, ValueError, TypeError, OSError) as problem:
        say(f"s3tasks {options.command}: {plain(problem)}")
        return status_of(problem)
    return status


def _parser(surroundings: Surroundings) -> argparse.ArgumentParser:
    statuses = "\n".join(f"  {status:<4} {meaning}" for status, meaning in STATUSES.items())
    parser = argparse.ArgumentParser(
        prog="s3tasks" if surroundings.app is None else "celery -A APP s3tasks",
        description=_DESCRIPTION,
        epilog=f"{_WHERE_SETTINGS_COME_FROM}\n\nexit status:\n{statuses}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"s3tasks {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    if surroundings.app is None:
        trying_out.add_to(commands)
    doctor.add_to(commands)
    records.add_to(commands)
    objects.add_to(commands)
    return parser
