"""`s3tasks show`, `forget` and `list`: what the ledger knows, next to what S3 serves.

It never changes anything but with `forget`, which asks first.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from s3tasks.cli.terminal import (
    DONE,
    FAILED,
    GONE,
    NOT_YET,
    Surroundings,
    confirmed,
    count,
    named,
    plain,
    put,
    put_json,
    say,
)
from s3tasks.errors import LedgerUnavailable, S3TasksError
from s3tasks.refs import ObjectRef

if TYPE_CHECKING:
    from s3tasks.evidence import Current, Intent
    from s3tasks.inspection import Inspector, Look, Picture
    from s3tasks.process import Rooms

SCHEMA = 1
"""The schema of the JSON; fields may be added to it, none is taken away."""

_SHOW = "What the ledger says of an object, what each endpoint serves, and what a read would conclude. Status as that of a read."
_FORGET = (
    "Removes the ledger's record of an object. Reads of it are answered with whatever S3 serves, stale or not, until it is written "
    "again; a write that is under way is not protected against being done twice."
)
_LIST = (
    "The objects that the ledger knows; with --stale those that a read would have to wait for. Status 3 if there are such, 1 if "
    "some could not be asked for."
)


_TO_SHOW = (NOT_YET, FAILED)
"""With --stale: the status of what is late, and of what could not be asked for; the former counts for more."""


def add_to(commands: Any) -> None:
    """Adds the commands."""
    show = commands.add_parser("show", help="what the ledger and S3 say of an object", description=_SHOW)
    show.set_defaults(run=_show)
    show.add_argument("ref", metavar="OBJECT", help="s3://bucket/key")
    forget = commands.add_parser("forget", help="remove the ledger's record of an object", description=_FORGET)
    forget.set_defaults(run=_forget)
    forget.add_argument("ref", metavar="OBJECT", help="s3://bucket/key")
    forget.add_argument("--yes", action="store_true", help="do not ask")
    listing = commands.add_parser("list", help="objects that the ledger knows, or that S3 serves stale", description=_LIST)
    listing.set_defaults(run=_list)
    listing.add_argument("prefix", metavar="PREFIX", nargs="?", default="s3://", help="s3://bucket or s3://bucket/beginning")
    listing.add_argument("--stale", action="store_true", help="ask S3 for each, and show those that it does not serve as promised")
    listing.add_argument("--limit", type=count, default=10_000, help="how many objects to look at at most (default: 10000)")
    for command in (show, listing):
        command.add_argument("--json", action="store_true", help="print JSON")


@contextmanager
def _inspector(surroundings: Surroundings) -> Iterator[tuple[Rooms, Inspector]]:
    from s3tasks.inspection import Inspector
    from s3tasks.ledger_server import LedgerServer
    from s3tasks.process import Process

    settings = surroundings.settings()
    server, process = LedgerServer(settings), Process(settings)
    try:
        yield process.rooms(), Inspector(process.rooms(), server, settings)
    finally:
        process.close()
        server.close()


def _show(options: argparse.Namespace, surroundings: Surroundings) -> int:
    ref = named(options.ref).plain()
    with _inspector(surroundings) as (_, inspector):
        picture = inspector.look(ref)
    if options.json:
        put_json({"schema": SCHEMA, **described(picture)})
    else:
        for line in lines_of(picture):
            put(plain(line))
    return _status(picture)


def _status(picture: Picture) -> int:
    from s3tasks import inspection

    if picture.verdict is None:
        return FAILED
    if picture.verdict in inspection.WAITING:
        return NOT_YET
    return GONE if picture.verdict in inspection.GONE else DONE


def _forget(options: argparse.Namespace, surroundings: Surroundings) -> int:
    ref = named(options.ref).plain()
    with _inspector(surroundings) as (rooms, _):
        say(f"{_FORGET}{_under_way(rooms, ref)}")
        if not confirmed(f"Forget what is known of {plain(ref.uri)}?", yes=options.yes):
            say("nothing was forgotten")
            return FAILED
        known = rooms.ledger.forget(ref)
    say("forgotten" if known else "there was no record of it")
    return DONE if known else GONE


def _under_way(rooms: Rooms, ref: ObjectRef) -> str:
    """What is known to be under way; of a record that a newer version keeps, that it is one."""
    (record,) = rooms.ledger.lookup_many([ref])
    if isinstance(record, LedgerUnavailable):
        return f" {record}"
    return f" {len(record.intents)} are under way now." if record.intents else ""


def _list(options: argparse.Namespace, surroundings: Surroundings) -> int:
    bucket, key_prefix = _place(options.prefix)
    found: list[dict[str, Any]] = []
    looked_at, status = 0, DONE
    with _inspector(surroundings) as (_, inspector):
        look = inspector.look_through if options.stale else inspector.records
        for picture in look(bucket, key_prefix, options.limit):
            looked_at += 1
            if options.stale and _status(picture) not in _TO_SHOW:
                continue
            status = max(status, _status(picture)) if options.stale else DONE
            found.append(described(picture))
            if not options.json:
                put(plain(_line_of(picture)))
    complete = looked_at < options.limit
    if options.json:
        put_json({"schema": SCHEMA, "looked_at": looked_at, "complete": complete, "objects": found})
    served = ", each is served as promised" if options.stale and looked_at and not found else ""
    say(f"{looked_at} objects looked at{served}{'' if complete else ' (--limit: there may be more)'}")
    return status


def _place(prefix: str) -> tuple[str | None, str]:
    """The bucket and the beginning of the keys that are meant; no bucket: all."""
    bucket, _, key_prefix = prefix.removeprefix("s3://").partition("/")
    if not prefix.startswith("s3://") or (key_prefix and not bucket):
        raise ValueError(f"{plain(prefix)} must be s3://bucket or s3://bucket/beginning")
    return (ObjectRef(bucket, "any").bucket if bucket else None), key_prefix


def described(picture: Picture) -> dict[str, Any]:
    """The picture as JSON."""
    record = picture.record
    return {
        "ref": picture.ref.uri,
        "verdict": picture.verdict.name.lower() if picture.verdict else None,
        "ledger": {
            "current": [_current(picture, current) for current in record.currents],
            "open": [_intent(picture, intent) for intent in record.intents],
            "uploads": len(record.uploads),
        },
        "served": {"write_endpoint": _look(picture.at_write), "read_endpoint": _look(picture.at_read)},
    }


def _current(picture: Picture, current: Current) -> dict[str, Any]:
    return {
        "written_by": current.write_id or None,
        "deleted": current.deleted,
        "etag": current.etag,
        "version_id": current.version_id,
        "size": current.size,
        "age_seconds": round(picture.age_seconds(current.committed), 3),
    }


def _intent(picture: Picture, intent: Intent) -> dict[str, Any]:
    return {
        "written_by": intent.write_id,
        "deletes": intent.deletes,
        "done_by_another_attempt": intent.finished,
        "attempts": len(intent.tickets),
        "age_seconds": round(picture.age_seconds(intent.first), 3),
        "last_attempt_seconds": round(picture.age_seconds(intent.last), 3),
    }


def _look(look: Look) -> dict[str, Any] | None:
    if isinstance(look, S3TasksError):
        return {"error": str(look)}
    if look is None:
        return None
    return {
        "etag": look.etag,
        "version_id": look.version_id,
        "size": look.size,
        "last_modified": look.last_modified,
        "written_by": look.marker.write_id if look.marker else None,
    }


def lines_of(picture: Picture) -> Iterator[str]:
    """The picture in words."""
    said = described(picture)
    yield picture.ref.uri
    for current in said["ledger"]["current"]:
        what = "deleted" if current["deleted"] else f"etag {current['etag']}, {current['size']} bytes{_version(current)}"
        yield f"  the ledger      {what}; {_by(current)}, {_ago(current['age_seconds'])}"
    for intent in said["ledger"]["open"]:
        what = "a delete" if intent["deletes"] else "a write"
        done = ", done by another attempt" if intent["done_by_another_attempt"] else ""
        times = f"{intent['attempts']} attempt{'s' * (intent['attempts'] > 1)}, last {_ago(intent['last_attempt_seconds'])}"
        yield f"  under way       {what} {_by(intent)}; began {_ago(intent['age_seconds'])} ({times}){done}"
    if not (said["ledger"]["current"] or said["ledger"]["open"]):
        yield "  the ledger      knows nothing (never written here, or longer ago than the retention)"
    for name, served in said["served"].items():
        yield f"  {name.replace('_', ' '):<15} {_served(served)}"
    yield f"  a read          {picture.verdict.value if picture.verdict else 'cannot be answered: an endpoint does not answer'}"


def _line_of(picture: Picture) -> str:
    said = described(picture)
    known = ", ".join(_known(current) for current in said["ledger"]["current"]) or "nothing current"
    under_way = f"; {len(said['ledger']['open'])} under way" if said["ledger"]["open"] else ""
    if picture.verdict is None and picture.at_read is None:
        return f"{picture.ref.uri}  {known}{under_way}"
    verdict = picture.verdict.name.lower() if picture.verdict else "unknown"
    return f"{picture.ref.uri}  {verdict}: {known}{under_way}; served: {_served(said['served']['read_endpoint'])}"


def _known(current: dict[str, Any]) -> str:
    return f"{'deleted' if current['deleted'] else current['etag']} {_ago(current['age_seconds'])} {_by(current)}"


def _served(served: dict[str, Any] | None) -> str:
    if served is None:
        return "404, nothing"
    if "error" in served:
        return f"no answer: {served['error']}"
    return f"etag {served['etag']}, {served['size']} bytes{_version(served)}; {_by(served)}"


def _version(said: dict[str, Any]) -> str:
    return f", version {said['version_id']}" if said["version_id"] else ""


def _by(said: dict[str, Any]) -> str:
    return f"by {said['written_by']}" if said["written_by"] else "by somebody else"


def _ago(seconds: float) -> str:
    """A span in the largest unit that it fills."""
    for unit, size in (("d", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit} ago"
    return f"{seconds:.1f} s ago"
