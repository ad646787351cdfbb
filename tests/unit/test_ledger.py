"""The moves of the protocol, one by one, on a real Redis."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
import redis

from s3tasks import LedgerUnavailable, ObjectRef, Settings
from s3tasks.evidence import Current, Intent, Landed, Record
from s3tasks.ledger import Busy, Finished, Ledger, Opened
from s3tasks.refs import finished_key, record_key
from s3tasks.sandbox import Sandbox

REF = ObjectRef("bucket", "key {with} braces")


@pytest.fixture
def raw(sandbox: Sandbox, closing: Callable[[Any], Any]) -> redis.Redis:
    return closing(redis.Redis.from_url(sandbox.redis_url))  # type: ignore[no-any-return]


def opened(ledger: Ledger, write_id: str, *, deletes: bool = False) -> Opened:
    begun = ledger.begin(REF, write_id, deletes=deletes)
    assert isinstance(begun, Opened)
    return begun


def commit(ledger: Ledger, write_id: str, ticket: int, etag: str | None = None, date: int = 100) -> Current:
    landed = Landed(etag=etag or f"etag-{write_id}", size=3, date=date)
    return ledger.commit(REF, write_id, ticket, landed, landed_ticket=ticket)


def write(ledger: Ledger, write_id: str, date: int = 100) -> Current:
    return commit(ledger, write_id, opened(ledger, write_id).ticket, date=date)


def etags(ledger: Ledger) -> set[str | None]:
    return {current.etag for current in ledger.lookup(REF).currents}


def test_an_object_never_written_has_an_empty_record(ledger: Ledger) -> None:
    assert ledger.lookup(REF) == Record()


def test_a_committed_write_is_current_with_all_that_s3_said(ledger: Ledger) -> None:
    ticket = opened(ledger, "w").ticket
    landed = Landed(etag='odd *etag" !', version_id="v 1", size=0, date=1234)

    current = ledger.commit(REF, "w", ticket, landed, landed_ticket=ticket)

    record = ledger.lookup(REF)
    assert record == Record(current.committed, (), (current,))
    assert (current.etag, current.version_id, current.size, current.date, current.begun) == ('odd *etag" !', "v 1", 0, 1234, ticket)
    assert current.committed > ticket


def test_a_later_write_replaces_an_earlier_one(ledger: Ledger) -> None:
    write(ledger, "a")
    write(ledger, "b")
    assert etags(ledger) == {"etag-b"}


def test_overlapping_writes_are_both_current_until_the_next_write(ledger: Ledger) -> None:
    a, b = opened(ledger, "a"), opened(ledger, "b")
    commit(ledger, "b", b.ticket)
    commit(ledger, "a", a.ticket)
    assert etags(ledger) == {"etag-a", "etag-b"}

    write(ledger, "c")
    assert etags(ledger) == {"etag-c"}


def test_a_delete_leaves_a_tombstone(ledger: Ledger) -> None:
    write(ledger, "a")
    ticket = opened(ledger, "d", deletes=True).ticket
    ledger.commit(REF, "d", ticket, Landed(deleted=True, date=5), landed_ticket=ticket)

    (current,) = ledger.lookup(REF).currents
    assert (current.deleted, current.etag, current.write_id) == (True, None, "d")


def test_a_finished_write_is_not_begun_again(ledger: Ledger) -> None:
    committed = write(ledger, "a")
    write(ledger, "b")

    assert ledger.begin(REF, "a") == Finished(committed, superseded=False)
    assert etags(ledger) == {"etag-b"}


def test_a_redelivery_gets_a_new_ticket_on_the_same_intent(ledger: Ledger) -> None:
    first = opened(ledger, "a")
    again = opened(ledger, "a")

    assert first.sole
    assert not again.sole
    assert again.ticket > first.ticket
    assert ledger.lookup(REF).intents == (Intent("a", (first.ticket, again.ticket)),)


def test_a_redelivered_write_that_was_replaced_is_superseded_and_stays_so(ledger: Ledger) -> None:
    first = opened(ledger, "a")
    write(ledger, "b")

    begun = ledger.begin(REF, "a")
    assert isinstance(begun, Finished)
    assert begun.superseded
    assert (begun.current.begun, begun.current.etag) == (first.ticket, None)
    record = ledger.lookup(REF)
    assert record.intents == (Intent("a", (first.ticket,), finished=True),), "it may be slow rather than dead"
    assert {current.write_id for current in record.currents} == {"a", "b"}
    assert ledger.begin(REF, "a") == Finished(begun.current, superseded=False)


def test_a_write_that_overlapped_the_replacing_one_is_not_superseded(ledger: Ledger) -> None:
    b = opened(ledger, "b")
    opened(ledger, "a")
    commit(ledger, "b", b.ticket)
    assert isinstance(ledger.begin(REF, "a"), Opened)


@pytest.mark.parametrize("ends", [0, 1, 2])
def test_a_commit_ends_its_own_attempt_only(ledger: Ledger, ends: int) -> None:
    tickets = [opened(ledger, "a").ticket for _ in range(3)]

    commit(ledger, "a", tickets[ends])

    (intent,) = ledger.lookup(REF).intents
    assert intent.tickets == tuple(ticket for ticket in tickets if ticket != tickets[ends])


def test_a_deletes_commit_ends_its_earlier_attempts_too(ledger: Ledger) -> None:
    first, second, third = (opened(ledger, "d", deletes=True).ticket for _ in range(3))

    ledger.commit(REF, "d", second, Landed(deleted=True), landed_ticket=second)
    assert [intent.tickets for intent in ledger.lookup(REF).intents] == [(first, third)]
    ledger.commit(REF, "d", third, Landed(deleted=True), landed_ticket=third)
    assert ledger.lookup(REF).intents == ()


def test_a_commit_that_reports_an_earlier_attempts_bytes_ends_both(ledger: Ledger) -> None:
    first, second = (opened(ledger, "a").ticket for _ in range(2))

    current = ledger.commit(REF, "a", second, Landed(etag="e", date=1), landed_ticket=first)

    assert ledger.lookup(REF) == Record(current.committed, (), (current,))
    assert current.begun == first


def test_bytes_that_were_reported_already_are_not_reported_again_over_a_later_write(ledger: Ledger) -> None:
    first, second = (opened(ledger, "a").ticket for _ in range(2))
    reported = commit(ledger, "a", first)
    write(ledger, "b")

    again = ledger.commit(REF, "a", second, Landed(etag="etag-a", date=100), landed_ticket=first)

    assert again == reported
    assert etags(ledger) == {"etag-b"}


def test_a_late_commit_of_an_older_attempt_does_not_make_the_write_older(ledger: Ledger) -> None:
    first = opened(ledger, "a").ticket
    other = opened(ledger, "b")
    second = opened(ledger, "a").ticket
    commit(ledger, "a", second, etag="newer")
    commit(ledger, "a", first, etag="older")

    (current,) = ledger.lookup(REF).currents
    assert (current.begun, current.etag) == (second, "newer")
    assert isinstance(ledger.begin(REF, "b"), Finished), "it began before the attempt that replaced it"
    assert other.ticket < second


def test_abort_closes_the_only_attempts_intent_and_leaves_no_trace(ledger: Ledger, raw: redis.Redis, settings: Settings) -> None:
    ticket = opened(ledger, "a").ticket

    assert ledger.abort(REF, "a", ticket)
    assert not raw.exists(record_key(settings.ledger_prefix, REF))


def test_abort_keeps_what_else_is_known(ledger: Ledger) -> None:
    write(ledger, "a")
    assert ledger.abort(REF, "b", opened(ledger, "b").ticket)
    assert etags(ledger) == {"etag-a"}


def test_abort_leaves_other_attempts_open(ledger: Ledger) -> None:
    first = opened(ledger, "a")
    again = opened(ledger, "a")

    assert not ledger.abort(REF, "a", again.ticket)
    assert ledger.lookup(REF).intents == (Intent("a", (first.ticket,)),)


def test_a_reader_finishes_a_dead_writers_write(ledger: Ledger) -> None:
    write(ledger, "a")
    ticket = opened(ledger, "b").ticket
    (intent,) = ledger.lookup(REF).intents

    observed = ledger.observe(REF, intent, ticket, Landed(etag="seen", size=1, date=100))

    assert observed is not None
    assert etags(ledger) == {"seen"}
    assert ledger.lookup(REF).intents == ()
    assert ledger.begin(REF, "b") == Finished(observed, superseded=False)


def test_a_write_may_commit_after_a_reader_has_recorded_it(ledger: Ledger) -> None:
    ticket = opened(ledger, "a").ticket
    (intent,) = ledger.lookup(REF).intents
    ledger.observe(REF, intent, ticket, Landed(etag="etag-a", date=100))

    commit(ledger, "a", ticket)

    assert etags(ledger) == {"etag-a"}


@pytest.mark.parametrize(("date", "recorded"), [(99, False), (100, True)])
def test_a_replaced_write_is_recorded_only_if_what_was_served_is_not_older(ledger: Ledger, date: int, recorded: bool) -> None:
    ticket = opened(ledger, "a").ticket
    (intent,) = ledger.lookup(REF).intents
    write(ledger, "b", date=100)

    assert (ledger.observe(REF, intent, ticket, Landed(etag="etag-a", date=date)) is not None) is recorded
    assert etags(ledger) == ({"etag-a", "etag-b"} if recorded else {"etag-b"})


def test_an_attempt_outside_the_intent_is_not_recorded(ledger: Ledger) -> None:
    ticket = opened(ledger, "a").ticket
    (intent,) = ledger.lookup(REF).intents
    assert ledger.observe(REF, intent, ticket + 1, Landed(etag="x")) is None
    assert ledger.observe(REF, Intent("unknown", (5,)), 5, Landed(etag="x")) is None


def test_an_observed_delete_is_a_tombstone_but_its_task_still_asks_s3(ledger: Ledger) -> None:
    write(ledger, "a")
    opened(ledger, "d", deletes=True)
    (intent,) = ledger.lookup(REF).intents

    ledger.observe(REF, intent, intent.first, Landed(deleted=True))

    assert {current.deleted for current in ledger.lookup(REF).currents} == {False, True}, "what it deletes may be there yet"
    again = opened(ledger, "d", deletes=True)
    ledger.commit(REF, "d", again.ticket, Landed(deleted=True), landed_ticket=again.ticket)
    assert [current.deleted for current in ledger.lookup(REF).currents] == [True]


def test_an_observed_delete_that_s3_then_refuses_is_none(ledger: Ledger) -> None:
    write(ledger, "a")
    ticket = opened(ledger, "d", deletes=True).ticket
    (intent,) = ledger.lookup(REF).intents
    ledger.observe(REF, intent, intent.first, Landed(deleted=True))

    ledger.abort(REF, "d", ticket)

    assert etags(ledger) == {"etag-a"}
    assert ledger.lookup(REF).intents == ()


def test_an_outside_write_is_adopted_as_the_only_current_one(ledger: Ledger) -> None:
    write(ledger, "a")
    judged = ledger.lookup(REF)

    adopted = ledger.adopt(REF, judged, Landed(etag="theirs", date=500))

    assert adopted is not None
    assert ledger.lookup(REF).currents == (adopted,)
    assert adopted.write_id == ""


def test_nothing_is_adopted_once_the_record_has_changed(ledger: Ledger) -> None:
    write(ledger, "a")
    judged = ledger.lookup(REF)
    opened(ledger, "b")

    assert ledger.adopt(REF, judged, Landed(etag="theirs")) is None
    assert etags(ledger) == {"etag-a"}


def test_forget_removes_the_record_and_says_whether_there_was_one(ledger: Ledger) -> None:
    write(ledger, "a")
    assert ledger.forget(REF)
    assert ledger.lookup(REF) == Record()
    assert not ledger.forget(REF)


def test_numbers_go_on_growing_after_the_ledger_was_lost(ledger: Ledger) -> None:
    before = write(ledger, "a")
    ledger.forget(REF)
    assert opened(ledger, "b").ticket > before.committed


def test_a_commit_from_a_lost_history_drops_nothing(ledger: Ledger, raw: redis.Redis, settings: Settings) -> None:
    ticket = opened(ledger, "a").ticket
    ledger.forget(REF)
    write(ledger, "b")

    commit(ledger, "a", ticket + 10**9)

    assert etags(ledger) == {"etag-a", "etag-b"}


def test_records_and_finished_writes_are_remembered_as_long_as_set(
    settings: Settings, raw: redis.Redis, closing: Callable[[Any], Any]
) -> None:
    chosen = settings.replace(retention_seconds=500, redelivery_horizon_seconds=50)
    write(closing(Ledger(chosen)), "a")

    assert 490 <= int(raw.ttl(record_key(chosen.ledger_prefix, REF))) <= 500
    assert 40 <= int(raw.ttl(finished_key(chosen.ledger_prefix, REF, "a"))) <= 50


def test_an_intent_older_than_the_retention_is_dropped_by_the_next_write(
    ledger: Ledger, raw: redis.Redis, settings: Settings
) -> None:
    write(ledger, "a")
    raw.hset(record_key(settings.ledger_prefix, REF), "i:dead", "w 5 6")

    opened(ledger, "b")

    assert [intent.write_id for intent in ledger.lookup(REF).intents] == ["b"]


def test_writes_that_take_turns_wait_for_an_open_intent_until_its_lease_is_over(
    settings: Settings, closing: Callable[[Any], Any]
) -> None:
    ledger = closing(Ledger(settings.replace(on_overlap="serialize", overlap_lease_seconds=1)))
    first = opened(ledger, "a")

    busy = ledger.begin(REF, "b")
    assert isinstance(busy, Busy)
    assert 0 < busy.lease_seconds_left <= 1
    commit(ledger, "a", first.ticket)
    assert isinstance(ledger.begin(REF, "b"), Opened)


def test_a_writes_own_redelivery_does_not_wait_for_it_and_nobody_waits_for_a_finished_one(
    settings: Settings, closing: Callable[[Any], Any]
) -> None:
    ledger = closing(Ledger(settings.replace(on_overlap="serialize", overlap_lease_seconds=100)))
    first, again = opened(ledger, "a"), opened(ledger, "a")
    assert isinstance(ledger.begin(REF, "b"), Busy)
    commit(ledger, "a", again.ticket)
    assert ledger.lookup(REF).intents == (Intent("a", (first.ticket,), finished=True),)
    assert isinstance(ledger.begin(REF, "b"), Opened)


def test_a_finished_writes_slow_attempts_are_looked_out_for_no_longer_than_the_redelivery_horizon(
    ledger: Ledger, raw: redis.Redis, settings: Settings
) -> None:
    now = write(ledger, "a").committed
    beyond, within = now - 7201 * 10**6, now - 7000 * 10**6
    key = record_key(settings.ledger_prefix, REF)
    raw.hset(key, mapping={"i:old": f"f {beyond}", "i:late": f"f {within}", "i:unfinished": f"w {beyond}"})

    opened(ledger, "b")

    assert {intent.write_id for intent in ledger.lookup(REF).intents} == {"late", "unfinished", "b"}


@pytest.mark.parametrize("deletes", [False, True])
def test_a_commit_whose_answer_was_lost_may_arrive_again_after_a_later_write(ledger: Ledger, deletes: bool) -> None:
    ticket = opened(ledger, "a", deletes=deletes).ticket
    landed = Landed(deleted=True, date=1) if deletes else Landed(etag="etag-a", date=1)
    first = ledger.commit(REF, "a", ticket, landed, landed_ticket=ticket)
    write(ledger, "b")

    assert ledger.commit(REF, "a", ticket, landed, landed_ticket=ticket) == first
    assert etags(ledger) == {"etag-b"}


def test_a_dead_writers_lease_ends(settings: Settings, closing: Callable[[Any], Any], raw: redis.Redis) -> None:
    ledger = closing(Ledger(settings.replace(on_overlap="serialize", overlap_lease_seconds=100)))
    opened(ledger, "dead")
    long_ago = ledger.lookup(REF).intents[0].last - 101 * 1_000_000
    raw.hset(record_key(settings.ledger_prefix, REF), "i:dead", f"w {long_ago}")

    assert isinstance(ledger.begin(REF, "b"), Opened)


@pytest.mark.parametrize(
    "move",
    [
        lambda ledger: ledger.begin(REF, "x"),
        lambda ledger: commit(ledger, "x", 1),
        lambda ledger: ledger.abort(REF, "x", 1),
        lambda ledger: ledger.observe(REF, Intent("x", (1,)), 1, Landed()),
        lambda ledger: ledger.adopt(REF, Record(), Landed()),
    ],
)
def test_a_record_of_a_newer_schema_is_left_alone(
    move: Callable[[Ledger], object], ledger: Ledger, raw: redis.Redis, settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    key = record_key(settings.ledger_prefix, REF)
    raw.hset(key, mapping={"v": "2", "seq": "7", "c:a": "whatever that means"})
    before = raw.hgetall(key)

    with pytest.raises(LedgerUnavailable, match="schema 2"):
        move(ledger)
    with caplog.at_level(logging.WARNING):
        assert ledger.lookup(REF) == Record()
    assert raw.hgetall(key) == before
    assert "schema 2" in caplog.text


def test_garbage_in_a_record_is_reported_and_passed_over(
    ledger: Ledger, raw: redis.Redis, settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    write(ledger, "a")
    key = record_key(settings.ledger_prefix, REF)
    raw.hset(key, mapping={"c:x": "no numbers", b"i:\xff": b"\xfe", "c:y": "1 2 3 4", "unknown": "kept"})

    with caplog.at_level(logging.WARNING):
        assert etags(ledger) == {"etag-a"}
    assert caplog.text.count("garbage") == 3

    write(ledger, "b")
    caplog.clear()
    assert etags(ledger) == {"etag-b"}
    assert "garbage" not in caplog.text


def test_a_key_that_holds_no_record_is_reported_and_taken_over_by_the_next_write(
    ledger: Ledger, raw: redis.Redis, settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    raw.set(record_key(settings.ledger_prefix, REF), "a string")

    with caplog.at_level(logging.WARNING):
        assert ledger.lookup(REF) == Record()
    assert "not a hash" in caplog.text
    write(ledger, "a")
    assert etags(ledger) == {"etag-a"}


def test_scripts_are_loaded_again_when_redis_has_lost_them(ledger: Ledger, raw: redis.Redis) -> None:
    write(ledger, "a")
    raw.script_flush()
    write(ledger, "b")
    assert etags(ledger) == {"etag-b"}


def test_a_ledger_that_cannot_be_reached_is_unavailable_and_keeps_its_password() -> None:
    ledger = Ledger(Settings(ledger_url="redis://user:hush@127.0.0.1:1/0", ledger_timeout_seconds=0.5))

    with pytest.raises(LedgerUnavailable, match="lookup") as caught:
        ledger.lookup(REF)
    assert caught.value.retryable
    assert "hush" not in str(caught.value)
    ledger.close()


def every_redis_error() -> list[type[Exception]]:
    found = [getattr(redis.exceptions, name) for name in dir(redis.exceptions)]
    return [thing for thing in found if isinstance(thing, type) and issubclass(thing, Exception)]


@pytest.mark.parametrize("kind", every_redis_error(), ids=lambda kind: kind.__name__)
def test_no_error_of_redis_py_leaves_the_room(kind: type[Exception]) -> None:
    from s3tasks.ledger import _door

    problem = kind.__new__(kind)
    problem.args = ("words",)
    with pytest.raises(LedgerUnavailable) as caught, _door("begin"):
        raise problem
    assert caught.value.__cause__ is problem
