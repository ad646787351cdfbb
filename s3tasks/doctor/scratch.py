"""The scratch objects of one examination: names that nobody else has, below a prefix of their own, and their removal.

It never touches an object that it has not named.
"""

from __future__ import annotations

import uuid

from s3tasks.errors import S3TasksError
from s3tasks.refs import ObjectRef
from s3tasks.store import Store
from s3tasks.trials import Scratch

FOLDER = ".s3tasks-doctor"
_MOST_FAILURES = 3


class Scratches:
    """Scratch objects below `<prefix>.s3tasks-doctor/<uuid>/` of the bucket."""

    def __init__(self, store: Store, bucket: str, prefix: str) -> None:
        self._store, self._bucket = store, bucket
        self._prefix = f"{prefix}{FOLDER}/{uuid.uuid4().hex}/"
        self._made: list[Scratch] = []
        self._named = 0

    @property
    def folder(self) -> str:
        """Where they are."""
        return f"s3://{self._bucket}/{self._prefix}"

    def name(self) -> ObjectRef:
        """The name of an object that nobody has written yet."""
        self._named += 1
        return ObjectRef(self._bucket, f"{self._prefix}{self._named}")

    def new(self) -> Scratch:
        """An object that nobody has written yet, to be removed by `remove_all`."""
        return self.at(self.name())

    def at(self, ref: ObjectRef) -> Scratch:
        """As `new`, under a name that has been given out."""
        self._made.append(Scratch(self._store, ref))
        return self._made[-1]

    @property
    def made(self) -> bool:
        """Whether there is one to be removed."""
        return bool(self._made)

    @property
    def landed(self) -> bool:
        """Whether one of them is known to have been written."""
        return any(scratch.landed for scratch in self._made)

    def remove_all(self) -> S3TasksError | None:
        """Removes all of them; the last error where one could not be. A store that fails again and again is given up."""
        made, self._made = self._made, []
        problems: list[S3TasksError] = []
        for scratch in made:
            problem = scratch.remove()
            if problem is not None:
                problems.append(problem)
            if len(problems) == _MOST_FAILURES:
                break
        return problems[-1] if problems else None
