"""Arguments of tasks as they may be shown, in events, in logs and in Flower: refs whole, bodies as their size, all else cut.

It never shows a byte of a body, nor a value of a mapping that is no ref.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from s3tasks import verbs
from s3tasks.errors import one_line

_LONGEST_TEXT = 100
_MOST_ITEMS = 3

# Where bodies may be text: the argument's number and name.
_BODIES: dict[Callable[..., Any], tuple[int, str]] = {verbs.write: (0, "body"), verbs.write_many: (0, "items")}


def args_picture(args: Sequence[Any], verb: Callable[..., Any] | None = None) -> str:
    """Positional arguments of a task (of one that carries out `verb`), as Celery's `argsrepr`."""
    hidden = _BODIES[verb][0] if verb in _BODIES else None
    shown = [_size(value) if number == hidden else _picture(value) for number, value in enumerate(args)]
    return f"({', '.join(shown)}{',' if len(shown) == 1 else ''})"


def kwargs_picture(kwargs: Mapping[str, Any], verb: Callable[..., Any] | None = None) -> str:
    """Arguments of a task that are given by name, as Celery's `kwargsrepr`."""
    hidden = {"done", _BODIES[verb][1]} if verb in _BODIES else {"done"}
    shown = (f"{name!r}: {_size(value) if name in hidden else _picture(value)}" for name, value in kwargs.items())
    return f"{{{', '.join(shown)}}}"


def _picture(value: object) -> str:
    if isinstance(value, str):
        return repr(_cut(value))
    if isinstance(value, Mapping):
        return _mapping(value)
    if isinstance(value, list | tuple):
        shown = [_picture(item) for item in value[:_MOST_ITEMS]]
        more = [f"… {len(value) - _MOST_ITEMS} more"] if len(value) > _MOST_ITEMS else []
        return f"[{', '.join([*shown, *more])}]"
    if value is None or isinstance(value, bool | int | float):
        return _cut(repr(value))
    return _size(value)


def _mapping(value: Mapping[Any, Any]) -> str:
    """A ref (or the outcome of one) by its name, of anything else only which keys it has."""
    ref = value.get("ref", value)
    if isinstance(ref, Mapping) and {"bucket", "key"} <= ref.keys():
        return repr(_cut(one_line(f"s3://{ref['bucket']}/{ref['key']}")))
    return f"<{_cut(', '.join(str(name) for name in value))}>"


def _size(value: object) -> str:
    if isinstance(value, bytes):
        return f"<{len(value)} bytes>"
    if isinstance(value, str):
        return f"<{len(value)} characters>"
    return f"<{len(value)} items>" if isinstance(value, list | tuple) else f"<{type(value).__name__}>"


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST_TEXT else f"{text[:_LONGEST_TEXT]}…"
