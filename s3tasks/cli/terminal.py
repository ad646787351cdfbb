"""How the commands speak: what goes to which stream, in one line where it is an error, and the exit statuses that scripts rely on.

It never lets a control character from a key or a server's answer reach a terminal, and never shows a traceback.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from s3tasks.errors import InvalidRef, LocalFileError, NoSuchKey, PreconditionFailed, one_line
from s3tasks.refs import ObjectRef
from s3tasks.settings import Settings

DONE, FAILED, USAGE, NOT_YET, GONE, INTERRUPTED, PIPE_CLOSED = 0, 1, 2, 3, 4, 130, 141

STATUSES: Mapping[int, str] = {
    DONE: "done; the doctor: nothing to change",
    FAILED: "Redis or S3 failed or refused; the doctor: something to change",
    USAGE: "wrong arguments or settings; the doctor: nothing could be asked",
    NOT_YET: "S3 does not serve what was promised (in time)",
    GONE: "there is no such object, or no record of it",
    INTERRUPTED: "interrupted",
}
"""The exit statuses, for people."""

_OF_THE_CALLER = (
    InvalidRef, LocalFileError, ValueError, TypeError, RuntimeError,
    FileNotFoundError, NotADirectoryError, IsADirectoryError, PermissionError,
)


@dataclass(frozen=True)
class Surroundings:
    """Where a command runs: where its settings come from, and the Celery app that it was called through, if any."""

    settings: Callable[[], Settings]
    app: Any = None


def say(text: str) -> None:
    """A line for the person, on stderr."""
    print(text, file=sys.stderr, flush=True)


def put(text: str) -> None:
    """A line of the result, on stdout."""
    print(text)


def put_json(value: object, *, indent: int | None = 2) -> None:
    """The result as JSON, on stdout; on one line where `indent` is None."""
    print(json.dumps(value, indent=indent, ensure_ascii=True))


def plain(text: object) -> str:
    """The text in one line, with what a terminal would obey made visible."""
    return one_line(str(text))


def status_of(problem: Exception) -> int:
    """The exit status that an error ends a command with."""
    if isinstance(problem, _OF_THE_CALLER):
        return USAGE
    if isinstance(problem, PreconditionFailed):
        return NOT_YET
    return GONE if isinstance(problem, NoSuchKey) else FAILED


def interrupt(*_: object) -> None:
    """What a signal's handler does to end a command as Ctrl-C would."""
    raise KeyboardInterrupt


def stdout_is_gone() -> int:
    """Whoever read our output has seen enough (`| head`): nothing more is to be said, not even by Python at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return PIPE_CLOSED


def seconds(text: str) -> float:
    """An argument that is a span; ArgumentTypeError (status 2) for anything else."""
    try:
        span = float(text)
    except ValueError:
        span = math.nan
    if not 0 <= span < math.inf:
        raise argparse.ArgumentTypeError(f"{plain(text)} must be a number of seconds from 0")
    return span


def count(text: str) -> int:
    """An argument that is a number of things; ArgumentTypeError for anything else."""
    if not (text.isascii() and text.isdigit() and int(text) > 0):
        raise argparse.ArgumentTypeError(f"{plain(text)} must be a whole number from 1")
    return int(text)


def named(text: str) -> ObjectRef:
    """The object that a person names: by URI, or by the JSON that `write` printed. InvalidRef for anything else."""
    if not text.startswith("{"):
        return ObjectRef.parse(text)
    try:
        said = json.loads(text)
    except ValueError as problem:
        raise InvalidRef(text, f"it begins like the JSON that `write` prints, and is none ({problem})") from problem
    return ObjectRef.parse(said)


def confirmed(question: str, *, yes: bool) -> bool:
    """Whether the person agrees; ValueError where there is nobody to ask."""
    if yes:
        return True
    if not sys.stdin.isatty():
        raise ValueError("nobody is there to confirm: give --yes")
    print(f"{question} [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")
