"""Who writes: where the ids of writes come from, by which a write that is tried or delivered twice is known again.

It never remembers what became of a write: the ledger does.
"""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Callable

from s3tasks.refs import ObjectRef

WriteIds = Callable[[ObjectRef], str]


def random_write_ids(_ref: ObjectRef) -> str:
    """A fresh id for every write: for callers whose calls are never delivered twice."""
    return str(uuid.uuid4())


class NumberedWriteIds:
    """Write ids for one delivery of one task: its id, and from the second write to an object on a number behind it.

    A redelivered task that makes the same writes in the same order to each object gets the same ids, so none is done twice.
    """

    def __init__(self, task_id: str) -> None:
        self._task_id = task_id
        self._writes: Counter[str] = Counter()

    def __call__(self, ref: ObjectRef) -> str:
        """The id for the next write to the object."""
        self._writes[ref.uri] += 1
        ordinal = self._writes[ref.uri]
        return self._task_id if ordinal == 1 else f"{self._task_id}.{ordinal}"
