"""The states that an object's record may be in, each made by the moves that lead there.

`python -m tests.upgrade` keeps them for the version at hand; the tests make them again and hold them against what was kept.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

from s3tasks import ObjectRef, Settings
from s3tasks.evidence import Current, Landed, Record
from s3tasks.ledger import Ledger, Opened
from s3tasks.ledger_spelling import SCHEMA
from s3tasks.refs import Marker, finished_key, record_key

# All numbers of the samples come from a clock in the year 2100: for a Redis of today nothing of theirs is ever over, and the next
# number is one more than the last.
NOON_MICROSECONDS = 4_102_444_800_000_000
NOON_SECONDS = NOON_MICROSECONDS // 1_000_000
ODD_ETAG = 'odd *etag% é!"'
MD5_ETAG, AWS_VERSION_ID = "9e107d9d372bb6826bd81d3542a419d6", "PpKnZmSbzVMTVRGbWwhK_hQmz6k1V3W."
TASK_ID = "1b671a64-40d5-491e-99b0-da01ff1f3341"
UPLOAD_ID = "2~upload/id .*"


class Moves:
    """The ledger's moves on one object whose count begins at noon."""

    def __init__(self, ledger: Ledger, raw: Any, settings: Settings, ref: ObjectRef) -> None:
        self.ledger, self.ref = ledger, ref
        raw.hset(record_key(settings.ledger_prefix, ref), mapping={"v": SCHEMA, "seq": str(NOON_MICROSECONDS)})

    def begin(self, write_id: str, *, deletes: bool = False) -> int:
        begun = self.ledger.begin(self.ref, write_id, deletes=deletes)
        assert isinstance(begun, Opened)
        return begun.ticket

    def commit(self, write_id: str, ticket: int, landed: Landed) -> Current:
        return self.ledger.commit(self.ref, write_id, ticket, landed, landed_ticket=ticket)

    def write(self, write_id: str, etag: str) -> Current:
        return self.commit(write_id, self.begin(write_id), Landed(etag=etag, size=5, date=NOON_SECONDS))

    def observe(self, write_id: str, ticket: int, landed: Landed) -> None:
        (intent,) = (intent for intent in self.ledger.lookup(self.ref).intents if intent.write_id == write_id)
        assert self.ledger.observe(self.ref, intent, ticket, landed)


def written(moves: Moves) -> None:
    moves.write("a", "etag-a")


def written_by_a_task(moves: Moves) -> None:
    landed = Landed(etag=MD5_ETAG, version_id=AWS_VERSION_ID, size=2**20, date=NOON_SECONDS)
    moves.commit(TASK_ID, moves.begin(TASK_ID), landed)
    moves.begin(f"{TASK_ID}.2")


def written_in_parts(moves: Moves) -> None:
    moves.commit(TASK_ID, moves.begin(TASK_ID), Landed(etag=f"{MD5_ETAG}-10000", version_id=TASK_ID, date=NOON_SECONDS))


def written_oddly(moves: Moves) -> None:
    landed = Landed(etag=ODD_ETAG, version_id="v. 1*", size=0, date=NOON_SECONDS)
    moves.commit("odd id: é %.2", moves.begin("odd id: é %.2"), landed)


def written_without_an_etag(moves: Moves) -> None:
    moves.commit("a", moves.begin("a"), Landed())


def deleted(moves: Moves) -> None:
    moves.write("a", "etag-a")
    moves.commit("d", moves.begin("d", deletes=True), Landed(deleted=True, version_id="v2", date=NOON_SECONDS + 1))


def overlapped(moves: Moves) -> None:
    first, second = moves.begin("a"), moves.begin("b")
    moves.commit("b", second, Landed(etag="etag-b", size=5, date=NOON_SECONDS))
    moves.commit("a", first, Landed(etag="etag-a", size=5, date=NOON_SECONDS))


def begun_twice(moves: Moves) -> None:
    moves.write("a", "etag-a")
    moves.begin("b")
    moves.begin("b")
    moves.ledger.note_upload(moves.ref, "b", UPLOAD_ID)


def delete_begun(moves: Moves) -> None:
    moves.write("a", "etag-a")
    moves.begin("d", deletes=True)


def delete_observed(moves: Moves) -> None:
    delete_begun(moves)
    moves.observe("d", NOON_MICROSECONDS, Landed(deleted=True, date=NOON_SECONDS + 1))


def finished_while_an_attempt_is_slow(moves: Moves) -> None:
    moves.begin("a")
    moves.commit("a", moves.begin("a"), Landed(etag="etag-a", size=5, date=NOON_SECONDS))


def superseded_when_it_came_again(moves: Moves) -> None:
    moves.begin("a")
    moves.write("b", "etag-b")
    moves.ledger.begin(moves.ref, "a")


def adopted(moves: Moves) -> None:
    moves.write("a", "etag-a")
    assert moves.ledger.adopt(moves.ref, moves.ledger.lookup(moves.ref), Landed(etag="theirs", date=NOON_SECONDS + 2))


STATES: dict[str, Callable[[Moves], None]] = {
    state.__name__: state
    for state in (
        written, written_by_a_task, written_in_parts, written_oddly, written_without_an_etag, deleted,
        overlapped, begun_twice, delete_begun, delete_observed,
        finished_while_an_attempt_is_slow, superseded_when_it_came_again, adopted,
    )
}
_FINISHED_ASKED = ("a", "b", "d", "odd id: é %.2", TASK_ID)


def ref_of(state: str) -> ObjectRef:
    return ObjectRef("upgrade", f"{state} {{1}} é.txt")


def sample_of(state: str, ledger: Ledger, raw: Any, settings: Settings) -> dict[str, Any]:
    """The state, made in Redis, as it is kept: keys and fields as they are spelled, and what they mean."""
    ref, prefix = ref_of(state), settings.ledger_prefix
    moves = Moves(ledger, raw, settings, ref)
    STATES[state](moves)
    key = record_key(prefix, ref)
    finished = {write_id: finished_key(prefix, ref, write_id) for write_id in _FINISHED_ASKED}
    record = ledger.lookup(ref)
    ticket = record.seq
    return {
        "ref": ref.to_dict(),
        "key": _with_default_prefix(key, prefix),
        "fields": {as_text(name): as_text(value) for name, value in sorted(raw.hgetall(key).items())},
        "finished": {
            write_id: [_with_default_prefix(name, prefix), as_text(raw.get(name))]
            for write_id, name in finished.items() if raw.exists(name)
        },
        "means": meaning(record),
        "marker": Marker("odd id: é %.2", ticket).text(ref),
    }


def as_text(spelled: bytes) -> str:
    """Bytes as JSON can keep them; `as_bytes` gives them back."""
    return spelled.decode(errors="surrogateescape")


def as_bytes(kept: str) -> bytes:
    return kept.encode(errors="surrogateescape")


def _with_default_prefix(key: str, prefix: str) -> str:
    return f"{Settings().ledger_prefix}{key.removeprefix(prefix)}"


def meaning(record: Record) -> dict[str, Any]:
    """The record in JSON, in an order of its own."""
    said = dataclasses.asdict(record)
    return {
        "seq": said["seq"],
        "intents": sorted(({**intent, "tickets": list(intent["tickets"])} for intent in said["intents"]), key=_by_write),
        "currents": sorted(said["currents"], key=_by_write),
        "uploads": sorted(map(list, said["uploads"])),
    }


def _by_write(entry: dict[str, Any]) -> str:
    return str(entry["write_id"])


def samples(ledger: Ledger, raw: Any, settings: Settings) -> Iterator[tuple[str, dict[str, Any]]]:
    for state in STATES:
        yield state, sample_of(state, ledger, raw, settings)
