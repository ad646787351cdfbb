"""Lines of the log about objects: a text for people, and the same facts as fields under stable names for machines.

It never writes a body, a secret or a line break, whatever a key or an answer holds.

A line is one record of Python's logging, with a text such as

    s3://bucket/key: an older object is served: wait (etag=a1 served_etag=b2 task_id=7d5f attempt=2)

Its fields are attributes of the record, as `extra` makes them, and so in the output of any JSON formatter: `s3tasks_event`,
`s3tasks_bucket`, `s3tasks_key`, and those of FIELDS that are known. The prefix keeps them from meeting an attribute that somebody
else's code gives to each record, which logging would refuse.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from itertools import count
from typing import TypeVar

from s3tasks.refs import ObjectRef

T = TypeVar("T")

FIELDS = ("etag", "served_etag", "version_id", "size", "write_id", "task_id", "attempt")
"""What a line may say besides its event and the object, in the order of its text. `etag` is what was written or promised,
`served_etag` what S3 served, `attempt` counts the calls for one verb, over all deliveries of its task."""


@dataclass(frozen=True)
class Acting:
    """For which task something is done, after how many attempts; for none, where `task_id` is None."""

    task_id: str | None = None
    attempts: int = 0

    def numbered(self, attempt: Callable[[], T]) -> Callable[[], T]:
        """The same attempt, whose lines say for which task and which time it is made."""
        numbers = count(self.attempts + 1)

        def made() -> T:
            token = _acting.set(Acting(self.task_id, next(numbers)))
            try:
                return attempt()
            finally:
                _acting.reset(token)

        return made


NOBODY = Acting()

_acting: ContextVar[Acting | None] = ContextVar("s3tasks_acting", default=None)


def line(
    logger: logging.Logger, event: str, ref: ObjectRef, text: str, *, level: int = logging.INFO, **fields: str | int | None
) -> None:
    """Logs what happened to the object: `text` for people, and `fields` (some of FIELDS) with whom and which time it was."""
    if not logger.isEnabledFor(level):
        return
    acting = _acting.get() or NOBODY
    known = {**fields, "task_id": acting.task_id, "attempt": acting.attempts or None}
    said = {name: known[name] for name in FIELDS if known.get(name) is not None}
    about = {"event": event, "bucket": ref.bucket, "key": ref.key, **said}
    words = " ".join(f"{name}={_word(value)}" for name, value in said.items())
    extra = {f"s3tasks_{name}": value for name, value in about.items()}
    logger.log(level, "%s: %s%s", ref, text, f" ({words})" if words else "", extra=extra)


def _word(value: object) -> str:
    """A value that ends where it seems to: quoted as in JSON where it has spaces, brackets or quotes, or breaks a line."""
    text = str(value)
    plain = text.isascii() and text.isprintable() and text and not set(text) & set(" \"'()=\\")
    return text if plain else json.dumps(text)
