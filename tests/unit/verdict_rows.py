"""The verdict table as the README shows it, each row with the case that the code must decide so. It never decides anything."""

from __future__ import annotations

from dataclasses import dataclass

from s3tasks.evidence import Current, Intent, Record, Served
from s3tasks.refs import Marker, ObjectRef
from s3tasks.verdicts import Rules, Verdict

_DATE = 1_000
_PLAIN = ObjectRef("b", "k")
_E = Current(write_id="e", begun=10, committed=11, etag="E", date=_DATE)
_F = Current(write_id="f", begun=9, committed=12, etag="F", date=_DATE)
_TOMBSTONE = Current(write_id="d", begun=20, committed=21, date=_DATE, deleted=True)
_C = ObjectRef("b", "k", etag="C", seq=5)
_INTENT = Intent("i", (13,))
_DEFAULT, _REJECT, _STRONG = Rules(), Rules(reject_outside_writes=True), Rules(strong_store=True)

NOTHING = Record()
KNOWS_E = Record(11, (), (_E,))
SERVES_E = Served("E", marker=Marker("e", 10), last_modified=_DATE)
OLDER = Served("O", marker=Marker("o", 1), last_modified=_DATE - 9)


@dataclass(frozen=True)
class Row:
    """What the reader of the README sees, and the case behind it."""

    ledger: str
    serves: str
    read: str
    expected: Verdict
    record: Record
    served: Served | None
    wanted: ObjectRef = _PLAIN
    latest: bool = False
    rules: Rules = _DEFAULT


ROWS = [
    Row("nothing (never written here, or longer ago than the retention)", "anything",
        "returns it: assumed consistent", Verdict.UNKNOWN, NOTHING, OLDER),
    Row("nothing", "404", "`NoSuchKey` at once: missing, not late", Verdict.MISSING, NOTHING, None),
    Row("E is current", "E", "returns it", Verdict.FRESH, KNOWS_E, SERVES_E),
    Row("E is current", "an older object", "`StaleRead`: waits", Verdict.STALE, KNOWS_E, OLDER),
    Row("E is current", "404", "`NotYetVisible`: waits", Verdict.NOT_YET_VISIBLE, KNOWS_E, None),
    Row("E and F are current (their writes overlapped)", "either of them",
        "returns it", Verdict.FRESH, Record(12, (), (_E, _F)), SERVES_E),
    Row("deleted", "404, or an older object",
        "`ObjectDeleted`, a `NoSuchKey`", Verdict.DELETED, Record(21, (), (_TOMBSTONE,)), OLDER),
    Row("E is current, C is asked for", "(is not asked)",
        "`Superseded`: waiting cannot help; `latest=True` takes E", Verdict.SUPERSEDED, KNOWS_E, None, _C),
    Row("E is current, C is asked for with `latest=True`", "E", "returns it", Verdict.FRESH, KNOWS_E, SERVES_E, _C, latest=True),
    Row("nothing, C is asked for", "not C", "`StaleRead`: waits", Verdict.STALE, NOTHING, OLDER, _C),
    Row("a write has begun and not committed", "what that write put there",
        "returns it, and records it as current", Verdict.UNFINISHED, Record(13, (_INTENT,), (_E,)),
        Served("I", marker=Marker("i", 13), last_modified=_DATE)),
    Row("E is current", "somebody else's object, proven newer than E",
        "returns it, and the ledger adopts it", Verdict.OUTSIDE, KNOWS_E, Served("X", last_modified=_DATE + 2)),
    Row('E is current, `outside_writes="reject"`', "somebody else's object",
        "`StaleRead`: waits", Verdict.STALE, KNOWS_E, Served("X", last_modified=_DATE + 2), rules=_REJECT),
    Row('E is current, `store_consistency="strong"`', "anything but E",
        "returns it: the record is wrong, and is corrected", Verdict.OUTSIDE, KNOWS_E, OLDER, rules=_STRONG),
]
