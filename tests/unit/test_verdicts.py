"""The verdict table of the README, row by row, and the cases between the rows."""

from __future__ import annotations

import pytest

from s3tasks.evidence import Current, Intent, Record, Served
from s3tasks.refs import Marker, ObjectRef
from s3tasks.verdicts import Judgement, Rules, Verdict, before_asking, expected_etag, judge, promised
from tests.unit.verdict_rows import ROWS, Row

PLAIN = ObjectRef("b", "k")
DATE = 1_000
A = Current(write_id="a", begun=10, committed=11, etag="EA", date=DATE)
B = Current(write_id="b", begun=9, committed=12, etag="EB", date=DATE)
GONE = Current(write_id="d", begun=20, committed=21, date=DATE, deleted=True)
REF_A = ObjectRef("b", "k", etag="EA", seq=11)
NOTHING = Record()
KNOWS_A = Record(seq=11, currents=(A,))
OVERLAPPING = Record(seq=12, currents=(A, B))
TOMBSTONE = Record(seq=21, currents=(GONE,))
SERVES_A = Served("EA", marker=Marker("a", 10), last_modified=DATE)
SERVES_B = Served("EB", marker=Marker("b", 9), last_modified=DATE)
REPLACED = Served("E0", marker=Marker("old", 2), last_modified=DATE - 50)
UNMARKED_OLD = Served("X", last_modified=DATE + 1)
UNMARKED_NEW = Served("X", last_modified=DATE + 2)
INTENT = Intent("i", (13, 14, 15))
SERVES_INTENT = Served("EI", marker=Marker("i", 14), last_modified=DATE)
DELETING = Intent("d", (13,), deletes=True)

DEFAULT, REJECT, STRONG = Rules(), Rules(reject_outside_writes=True), Rules(strong_store=True)


def verdict(
    record: Record,
    served: Served | None,
    wanted: ObjectRef = PLAIN,
    *,
    latest: bool = False,
    rules: Rules = DEFAULT,
    from_origin: bool = True,
) -> Verdict:
    """The verdict of a whole read, as a reader reaches it: first without asking, then with the answer."""
    early = before_asking(record, wanted, latest, rules)
    return early or judge(record, served, wanted, latest, rules, from_origin=from_origin).verdict


def with_intent(record: Record, *intents: Intent) -> Record:
    return Record(max(record.seq, 15), intents, record.currents)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.ledger}, serves {row.serves}")
def test_every_row_of_the_readmes_table_is_what_the_code_concludes(row: Row) -> None:
    assert verdict(row.record, row.served, row.wanted, latest=row.latest, rules=row.rules) is row.expected


def test_the_readmes_table_has_a_row_for_every_verdict_that_a_reader_meets() -> None:
    assert {row.expected for row in ROWS} == set(Verdict) - {Verdict.ASK_ORIGIN}


@pytest.mark.parametrize(
    ("row", "record", "served", "expected"),
    [
        ("nothing known, anything served", NOTHING, SERVES_A, Verdict.UNKNOWN),
        ("nothing known, an object of nobody's", NOTHING, UNMARKED_OLD, Verdict.UNKNOWN),
        ("nothing known, 404", NOTHING, None, Verdict.MISSING),
        ("E current, E served", KNOWS_A, SERVES_A, Verdict.FRESH),
        ("E current, E by etag without a marker", KNOWS_A, Served("EA"), Verdict.FRESH),
        ("E current, E by marker under another etag", KNOWS_A, Served("re-encrypted", marker=Marker("a", 10)), Verdict.FRESH),
        ("E current, an older object of ours", KNOWS_A, REPLACED, Verdict.STALE),
        ("E current, an older object of nobody's", KNOWS_A, Served("X", last_modified=DATE - 9), Verdict.STALE),
        ("E current, 404", KNOWS_A, None, Verdict.NOT_YET_VISIBLE),
        ("deleted, 404", TOMBSTONE, None, Verdict.DELETED),
        ("deleted, an older object of ours", TOMBSTONE, REPLACED, Verdict.DELETED),
        ("deleted, an older object of nobody's", TOMBSTONE, UNMARKED_OLD, Verdict.DELETED),
        ("deleted, an outside write since", TOMBSTONE, UNMARKED_NEW, Verdict.OUTSIDE),
        ("an intent is open, its object served", with_intent(KNOWS_A, INTENT), SERVES_INTENT, Verdict.UNFINISHED),
        ("only an intent is known, its object served", with_intent(NOTHING, INTENT), SERVES_INTENT, Verdict.UNFINISHED),
        ("only an intent is known, another object", with_intent(NOTHING, INTENT), SERVES_A, Verdict.UNKNOWN),
        ("only an intent is known, 404", with_intent(NOTHING, INTENT), None, Verdict.MISSING),
        ("an intent is open, E served still", with_intent(KNOWS_A, INTENT), SERVES_A, Verdict.FRESH),
        ("an outside write, proven newer", KNOWS_A, UNMARKED_NEW, Verdict.OUTSIDE),
        ("an outside write within the second", KNOWS_A, UNMARKED_OLD, Verdict.STALE),
        ("overlapping writes, the one served", OVERLAPPING, SERVES_A, Verdict.FRESH),
        ("overlapping writes, the other served", OVERLAPPING, SERVES_B, Verdict.FRESH),
        ("overlapping write and delete, 404", Record(21, (), (A, GONE)), None, Verdict.DELETED),
        ("overlapping write and delete, the write", Record(21, (), (A, GONE)), SERVES_A, Verdict.FRESH),
        ("overlapping write and delete, an older object", Record(21, (), (A, GONE)), REPLACED, Verdict.STALE),
        ("a marker of ours beats any date", KNOWS_A, Served("X", marker=Marker("old", 2), last_modified=DATE + 99), Verdict.STALE),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_plain_read_concludes(row: str, record: Record, served: Served | None, expected: Verdict) -> None:
    assert verdict(record, served) is expected


@pytest.mark.parametrize(
    ("row", "record", "served", "wanted", "expected"),
    [
        ("C allowed and served", KNOWS_A, SERVES_A, REF_A, Verdict.FRESH),
        ("C is not what the ledger allows", Record(99, (), (B,)), None, REF_A, Verdict.SUPERSEDED),
        ("C was deleted", TOMBSTONE, None, REF_A, Verdict.SUPERSEDED),
        ("C asked, ledger knows nothing, C served", NOTHING, SERVES_A, REF_A, Verdict.UNKNOWN),
        ("C asked, ledger knows nothing, not C", NOTHING, REPLACED, REF_A, Verdict.STALE),
        ("C asked, ledger knows nothing, 404", NOTHING, None, REF_A, Verdict.NOT_YET_VISIBLE),
        ("C asked, the ledger has lost its last writes", Record(5, (), (B,)), REPLACED, REF_A, Verdict.STALE),
        ("C allowed, its rival served within the second", OVERLAPPING, SERVES_B, REF_A, Verdict.STALE),
        ("C allowed, its rival proven to have won", OVERLAPPING,
         Served("EB", marker=Marker("b", 9), last_modified=DATE + 2), REF_A, Verdict.SUPERSEDED),
        ("a write of unknown etag, by its number", KNOWS_A, SERVES_A, ObjectRef("b", "k", seq=11), Verdict.FRESH),
        ("a write of unknown etag, replaced", Record(99, (), (B,)), SERVES_B, ObjectRef("b", "k", seq=11), Verdict.SUPERSEDED),
        ("a delete, still the last word", TOMBSTONE, None, ObjectRef("b", "k", seq=21, deleted=True), Verdict.DELETED),
        ("a delete, replaced", Record(99, (), (B,)), SERVES_B, ObjectRef("b", "k", seq=21, deleted=True), Verdict.SUPERSEDED),
        ("a delete, ledger knows nothing", NOTHING, SERVES_A, ObjectRef("b", "k", seq=21, deleted=True), Verdict.DELETED),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_read_of_one_exact_write_concludes(
    row: str, record: Record, served: Served | None, wanted: ObjectRef, expected: Verdict
) -> None:
    assert verdict(record, served, wanted) is expected


@pytest.mark.parametrize(
    ("row", "record", "served", "expected"),
    [
        ("what replaced it is current", Record(99, (), (B,)), SERVES_B, Verdict.FRESH),
        ("it was deleted since", Record(99, (), (GONE,)), None, Verdict.DELETED),
        ("nothing known, a write that began after it", NOTHING, Served("EC", marker=Marker("c", 12)), Verdict.UNKNOWN),
        ("nothing known, a write that began before it ended", NOTHING, Served("EC", marker=Marker("c", 10)), Verdict.STALE),
        ("nothing known, an object of nobody's", NOTHING, UNMARKED_NEW, Verdict.STALE),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_latest_takes_whatever_replaced_the_write(row: str, record: Record, served: Served | None, expected: Verdict) -> None:
    assert verdict(record, served, REF_A, latest=True) is expected


@pytest.mark.parametrize(
    ("row", "record", "served", "expected"),
    [
        ("an outside write however new", KNOWS_A, UNMARKED_NEW, Verdict.STALE),
        ("a tombstone answers without asking", TOMBSTONE, UNMARKED_NEW, Verdict.DELETED),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_outside_writes_may_be_rejected(row: str, record: Record, served: Served | None, expected: Verdict) -> None:
    assert verdict(record, served, rules=REJECT) is expected


def test_a_rejecting_tombstone_does_not_ask_s3() -> None:
    assert before_asking(TOMBSTONE, PLAIN, latest=False, rules=REJECT) is Verdict.DELETED
    assert before_asking(TOMBSTONE, PLAIN, latest=False, rules=Rules()) is None


@pytest.mark.parametrize(
    ("row", "record", "served", "expected"),
    [
        ("an unmarked object within the second", KNOWS_A, UNMARKED_OLD, Verdict.OUTSIDE),
        ("a 404 for what was written", KNOWS_A, None, Verdict.OUTSIDE),
        ("an old write of ours, put back by somebody", KNOWS_A, REPLACED, Verdict.OUTSIDE),
        ("a 404 for what was deleted", TOMBSTONE, None, Verdict.DELETED),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_strong_store_proves_the_record_wrong(row: str, record: Record, served: Served | None, expected: Verdict) -> None:
    assert verdict(record, served, rules=STRONG) is expected


@pytest.mark.parametrize(
    ("row", "record", "served", "wanted"),
    [
        ("an object that may be an outside write", KNOWS_A, UNMARKED_NEW, PLAIN),
        ("an unfinished write", with_intent(KNOWS_A, INTENT), SERVES_INTENT, PLAIN),
        ("an unfinished write, nothing else known", with_intent(NOTHING, INTENT), SERVES_INTENT, PLAIN),
        ("a 404 while a delete is under way", with_intent(KNOWS_A, DELETING), None, PLAIN),
        ("a rival of the write asked for", OVERLAPPING, SERVES_B, REF_A),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_replicas_clock_settles_nothing(row: str, record: Record, served: Served | None, wanted: ObjectRef) -> None:
    assert verdict(record, served, wanted, from_origin=False) is Verdict.ASK_ORIGIN


def test_a_404_at_the_origin_while_a_delete_is_under_way_is_that_delete() -> None:
    record = with_intent(KNOWS_A, DELETING)

    assert judge(record, None, PLAIN, False, Rules(), from_origin=True) == Judgement(Verdict.UNFINISHED, intent=DELETING)


def test_an_unfinished_delete_explains_a_404_even_after_a_later_write() -> None:
    late = Current(write_id="b", begun=30, committed=31, etag="EB", date=DATE)

    assert verdict(Record(31, (DELETING,), (late,)), None) is Verdict.UNFINISHED


SEEN_DELETE = Current(write_id="d", begun=13, committed=16, deleted=True)
BEING_DELETED = Record(16, (DELETING,), (A, SEEN_DELETE))


@pytest.mark.parametrize(("from_origin", "expected"), [(True, Verdict.FRESH), (False, Verdict.ASK_ORIGIN)])
def test_what_a_delete_under_way_was_seen_to_delete_is_served_only_if_the_origin_still_has_it(
    from_origin: bool, expected: Verdict
) -> None:
    assert verdict(BEING_DELETED, SERVES_A, from_origin=from_origin) is expected


def test_a_delete_under_way_that_readers_have_seen_is_deleted_and_supersedes_what_it_deletes() -> None:
    assert verdict(BEING_DELETED, None) is Verdict.DELETED
    assert verdict(BEING_DELETED, None, REF_A) is Verdict.SUPERSEDED


def test_a_write_of_unknown_date_does_not_hide_an_outside_write() -> None:
    unknown = Current(write_id="s", begun=8, committed=12)

    assert verdict(Record(12, (), (A, unknown)), UNMARKED_NEW) is Verdict.OUTSIDE
    assert verdict(Record(12, (), (unknown,)), UNMARKED_NEW) is Verdict.STALE


@pytest.mark.parametrize(("age_seconds", "expected"), [(-1, Verdict.STALE), (0, Verdict.UNFINISHED), (1, Verdict.UNFINISHED)])
def test_a_replaced_intents_object_counts_only_if_it_is_not_older_than_what_replaced_it(
    age_seconds: int, expected: Verdict
) -> None:
    late = Current(write_id="b", begun=30, committed=31, etag="EB", date=DATE)
    served = Served("EI", marker=Marker("i", 14), last_modified=DATE + age_seconds)

    assert verdict(Record(31, (INTENT,), (late,)), served) is expected


def test_a_write_that_redis_has_lost_in_a_failover_is_taken_over_from_s3() -> None:
    lost = Served("L", marker=Marker("lost", 12), last_modified=DATE)

    assert verdict(KNOWS_A, lost) is Verdict.OUTSIDE
    assert verdict(KNOWS_A, lost, from_origin=False) is Verdict.ASK_ORIGIN
    assert verdict(Record(12, (), (A,)), lost) is Verdict.STALE


def test_an_attempt_that_is_over_is_not_the_open_intents() -> None:
    first_attempt_committed = Intent("i", (13, 15))

    assert verdict(with_intent(KNOWS_A, first_attempt_committed), SERVES_INTENT) is Verdict.STALE


@pytest.mark.parametrize(
    ("record", "wanted", "latest", "expected"),
    [
        (KNOWS_A, PLAIN, False, "EA"),
        (KNOWS_A, REF_A, False, "EA"),
        (OVERLAPPING, PLAIN, False, None),
        (OVERLAPPING, REF_A, False, "EA"),
        (with_intent(KNOWS_A, INTENT), PLAIN, False, None),
        (with_intent(KNOWS_A, Intent("i", (13,), finished=True)), PLAIN, False, "EA"),
        (NOTHING, PLAIN, False, None),
        (NOTHING, REF_A, False, "EA"),
        (NOTHING, REF_A, True, None),
        (TOMBSTONE, PLAIN, False, None),
    ],
)
def test_if_match_is_sent_when_exactly_one_etag_will_do(
    record: Record, wanted: ObjectRef, latest: bool, expected: str | None
) -> None:
    assert expected_etag(record, wanted, latest) == expected


def test_nothing_is_promised_by_a_record_older_than_the_ref() -> None:
    assert promised(Record(5, (), (B,)), REF_A, latest=True) == ()
