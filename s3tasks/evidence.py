"""What the ledger and the store each say about one object: the two kinds of evidence that a verdict weighs.

It holds facts and spells them; it never weighs them, and never asks for them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from s3tasks.refs import Marker


@dataclass(frozen=True)
class Intent:
    """A write of which one or more attempts have begun and may still land.

    `tickets` are theirs, oldest first; `deletes` says that it is a delete, `finished` that another attempt has done the write, so
    that only a request that was slow on its way is still looked out for. Tickets are microseconds of the ledger's clock, made
    unique and increasing per object.
    """

    write_id: str
    tickets: tuple[int, ...]
    deletes: bool = False
    finished: bool = False

    @property
    def first(self) -> int:
        """The ticket of the oldest attempt."""
        return self.tickets[0]

    @property
    def last(self) -> int:
        """The ticket of the newest attempt."""
        return self.tickets[-1]


@dataclass(frozen=True, kw_only=True)
class Landed:
    """What S3 said of a write that it took.

    `etag` is None where it is not known (or where the write `deleted`), `version_id` where the bucket keeps no versions. `date` is
    the write endpoint's own clock in whole seconds since 1970 when it answered, 0 where unknown; `size` is in bytes.
    """

    etag: str | None = None
    version_id: str | None = None
    size: int | None = None
    date: int = 0
    deleted: bool = False


@dataclass(frozen=True, kw_only=True)
class Current(Landed):
    """A committed write that no later write has replaced.

    It began with the ticket `begun` and was recorded as number `committed`. Somebody else's write, adopted, has an empty
    `write_id`.
    """

    write_id: str
    begun: int
    committed: int


@dataclass(frozen=True)
class Record:
    """All that the ledger holds about one object. An object that it knows nothing about has an empty record (`seq` 0).

    `uploads` are the multipart uploads that have begun and not been seen to end: upload id and write id of each.
    """

    seq: int = 0
    intents: tuple[Intent, ...] = ()
    currents: tuple[Current, ...] = ()
    uploads: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Served:
    """What an endpoint serves under the object's name.

    `marker` is None where the object carries none of ours for this name. `last_modified` is in whole seconds since 1970 by the
    endpoint's clock, 0 where it was not given. `metadata` is the user metadata without our marker, keys in lower case.
    """

    etag: str | None
    version_id: str | None = None
    size: int | None = None
    last_modified: int = 0
    marker: Marker | None = None
    content_type: str | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Awaited:
    """A write that a reader waits for: the object's URI, the number of its commit, how old it was (in seconds, by the ledger's
    clock) at the last probe that did not find it, and how many probes have been made."""

    uri: str
    committed: int
    not_visible_at_seconds: float
    probes: int
