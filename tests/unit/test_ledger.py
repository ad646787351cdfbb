"""The moves of the protocol, one by one, on a real Redis."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import redis
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

import s3tasks
from s3tasks import LedgerUnavailable, ObjectRef, Settings
from s3tasks.evidence import Current, Intent, Landed, Record
from s3tasks.lags import LAST_BIN, bin_end, weights_of
from s3tasks.ledger import Busy, Finished, Ledger, Opened
from s3tasks.refs import finished_key, lags_key, record_key
from s3tasks.sandbox import RedisServer, Sandbox
from s3tasks.verdicts import CLOCK_DOUBT_SECONDS
from tests.redis_proxy import redis_proxied

REF = ObjectRef("bucket", "key {with} braces")


@pytest.fixture
def raw(sandbox: Sandbox, closing: Callable[[Any], Any]) -> redis.Redis:
    return closing(redis.Redis.from_url(sandbox.redis_url))  # type: ignore[no-any-return]


def spelled_intent(does: str, *tickets: int) -> bytes:
    return does.encode() + b"".join(ticket.to_bytes(7, "big") for ticket in tickets)


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


def test_a_delete_that_is_done_stays_done_though_its_second_delivery_is_refused(ledger: Ledger) -> None:
    first, second = opened(ledger, "d", deletes=True), opened(ledger, "d", deletes=True)
    ledger.commit(REF, "d", first.ticket, Landed(deleted=True), landed_ticket=first.ticket)

    assert ledger.abort(REF, "d", second.ticket)

    assert [current.deleted for current in ledger.lookup(REF).currents] == [True]


def test_a_write_that_a_reader_has_recorded_is_as_old_as_the_delivery_that_put_it_there(ledger: Ledger) -> None:
    opened(ledger, "b")
    opened(ledger, "a")
    again = opened(ledger, "b")
    intent = next(intent for intent in ledger.lookup(REF).intents if intent.write_id == "b")
    observed = ledger.observe(REF, intent, again.ticket, Landed(etag="seen", date=100))

    assert observed is not None
    assert observed.begun == again.ticket
    superseded = ledger.begin(REF, "a")
    assert isinstance(superseded, Finished)
    assert superseded.superseded


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


@pytest.mark.parametrize("deletes", [False, True])
@pytest.mark.parametrize(
    ("theirs", "ours", "kept"), [(100, 100 + CLOCK_DOUBT_SECONDS, True), (100, 101 + CLOCK_DOUBT_SECONDS, False), (0, 500, True)]
)
def test_what_was_adopted_while_a_write_was_under_way_is_replaced_by_it_if_s3s_dates_say_so(
    ledger: Ledger, theirs: int, ours: int, kept: bool, deletes: bool
) -> None:
    write(ledger, "a", date=50)
    ticket = opened(ledger, "b", deletes=deletes).ticket
    assert ledger.adopt(REF, ledger.lookup(REF), Landed(etag="theirs", date=theirs)) is not None

    landed = Landed(deleted=True, date=ours) if deletes else Landed(etag="ours", date=ours)
    ledger.commit(REF, "b", ticket, landed, landed_ticket=ticket)

    assert etags(ledger) == {landed.etag} | ({"theirs"} if kept else set())


def test_dates_tell_as_much_to_the_ledger_as_to_a_reader() -> None:
    script = (Path(s3tasks.__file__).parent / "ledger_scripts" / "record.lua").read_text()
    assert f"local SOMEBODY, CLOCK_DOUBT_SECONDS = ':', {CLOCK_DOUBT_SECONDS}\n" in script


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
    raw.hset(record_key(settings.ledger_prefix, REF), "i:dead", spelled_intent("w", 5, 6))

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
    raw.hset(key, mapping={
        "i:old": spelled_intent("f", beyond), "i:late": spelled_intent("f", within), "i:unfinished": spelled_intent("w", beyond),
    })

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
    raw.hset(record_key(settings.ledger_prefix, REF), "i:dead", spelled_intent("w", long_ago))

    assert isinstance(ledger.begin(REF, "b"), Opened)


def test_garbage_in_a_record_is_reported_and_passed_over(
    ledger: Ledger, raw: redis.Redis, settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    write(ledger, "a")
    key = record_key(settings.ledger_prefix, REF)
    raw.hset(key, mapping={"c:x": "no numbers", b"i:\xff": b"\xfe", "c:y": "1 2 3 4", "unknown": "kept"})

    with caplog.at_level(logging.WARNING):
        assert etags(ledger) == {"etag-a"}
        assert caplog.text.count("garbage") == 3
        # And each time, also where nothing has changed since it was last understood.
        assert etags(ledger) == {"etag-a"}
    assert caplog.text.count("garbage") == 6

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
    from s3tasks.ledger_connection import door

    problem = kind.__new__(kind)
    problem.args = ("words",)
    with pytest.raises(LedgerUnavailable) as caught, door("begin"):
        raise problem
    assert caught.value.__cause__ is problem


# --- the connection that is kept ---


def test_connections_that_died_meanwhile_fail_no_move(ledger: Ledger, raw: redis.Redis) -> None:
    for name in ("a", "b", "c"):
        current = write(ledger, name)
        raw.client_kill_filter(_type="normal", skipme=True)
        assert ledger.lookup(REF).currents == (current,)


def test_an_answer_that_came_too_late_is_not_taken_for_the_next(settings: Settings, closing: Callable[[Any], Any]) -> None:
    with RedisServer() as server, redis.Redis.from_url(server.url) as admin:
        ledger = closing(Ledger(settings.replace(ledger_url=server.url, ledger_timeout_seconds=0.3)))
        current, other = write(ledger, "a"), ObjectRef("bucket", "other")
        admin.client_pause(1000)
        with pytest.raises(LedgerUnavailable, match="Timeout"):
            ledger.lookup(REF)
        admin.client_unpause()
        assert ledger.lookup(other) == Record()
        assert ledger.lookup(REF).currents == (current,)


def test_a_refusal_leaves_the_connection_in_order(settings: Settings, closing: Callable[[Any], Any]) -> None:
    with RedisServer() as server, redis.Redis.from_url(server.url) as admin:
        ledger = closing(Ledger(settings.replace(ledger_url=server.url)))
        write(ledger, "a")
        other = ObjectRef("bucket", "no hash")
        admin.set(record_key(settings.ledger_prefix, other), "x")
        connections = admin.info("stats")["total_connections_received"]
        for _ in range(3):
            assert ledger.lookup(other) == Record()
            assert etags(ledger) == {"etag-a"}
        assert admin.info("stats")["total_connections_received"] == connections


@pytest.mark.parametrize("protocol", [2, 3])
def test_both_protocols_of_redis_are_understood(settings: Settings, closing: Callable[[Any], Any], protocol: int) -> None:
    ledger = closing(Ledger(settings.replace(ledger_url=f"{settings.ledger_url}?protocol={protocol}")))
    current = write(ledger, "a")
    assert ledger.lookup(REF).currents == (current,)


@pytest.mark.parametrize(
    "option", ["decode_responses=True", "decode_responses=False", "encoding=utf-16", "health_check_interval=1"]
)
def test_what_a_url_says_of_texts_changes_nothing(settings: Settings, closing: Callable[[Any], Any], option: str) -> None:
    ledger = closing(Ledger(settings.replace(ledger_url=f"{settings.ledger_url}?{option}")))
    current = write(ledger, "a")
    assert ledger.lookup(REF).currents == (current,)
    assert [record.currents for record in ledger.lookup_many([REF]) if isinstance(record, Record)] == [(current,)]


@pytest.mark.parametrize("option", ["nonsense=1", "connection_class=x", "parser_class=x", "socket_timeout=soon"])
def test_an_option_of_the_url_that_redis_py_does_not_take_is_one_clear_error_at_once(settings: Settings, option: str) -> None:
    with pytest.raises(ValueError, match="ledger_url") as caught:
        Ledger(settings.replace(ledger_url=f"redis://user:hush@127.0.0.1:1/0?{option}"))
    assert option.partition("=")[0] in str(caught.value)
    assert "hush" not in str(caught.value)


@pytest.mark.parametrize("password", ["hu/sh", "hu#sh", "hu?sh"])
def test_a_password_that_is_not_spelled_as_urls_want_it_is_not_shown(settings: Settings, password: str) -> None:
    with pytest.raises(ValueError, match=r"ledger_url.*%2F") as caught:
        Ledger(settings.replace(ledger_url=f"redis://user:{password}@127.0.0.1:1/0"))
    assert "hu" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


def test_a_url_that_bounds_the_connections_leaves_enough_for_every_move(settings: Settings, closing: Callable[[Any], Any]) -> None:
    ledger = closing(Ledger(settings.replace(ledger_url=f"{settings.ledger_url}?max_connections=1")))
    current = write(ledger, "a")
    assert ledger.lookup(REF).currents == (current,)
    assert ledger.lookup_many([REF]) == [ledger.lookup(REF)]


def test_a_server_that_has_become_a_replica_is_left_for_the_one_behind_the_address_now(
    settings: Settings, closing: Callable[[Any], Any]
) -> None:
    with RedisServer() as before, RedisServer() as after, redis_proxied(before.url) as proxy:
        ledger = closing(Ledger(settings.replace(ledger_url=proxy.url)))
        write(ledger, "a")
        assert ledger.lookup_many([REF]) == [ledger.lookup(REF)]
        with redis.Redis.from_url(before.url) as admin:
            # As a managed Redis does it: the address names another server, and the connections stay.
            proxy.upstream = after.url
            admin.slaveof("127.0.0.1", after.port)
            write(ledger, "b")
            assert etags(ledger) == {"etag-b"}
            assert all(isinstance(begun, Opened) for begun in ledger.begin_many([(REF, "c"), (REF, "d"), (REF, "e")]))


# --- lags ---

ENDPOINT = "http://replica:9000"


def redis_now(raw: redis.Redis) -> int:
    seconds, microseconds = raw.time()
    return int(seconds) * 1_000_000 + int(microseconds)


def lags_name(settings: Settings, bucket: str = "bucket") -> str:
    return lags_key(settings.ledger_prefix, ENDPOINT, bucket)


def weights(ledger: Ledger) -> dict[int, float]:
    return weights_of(ledger.lags(ENDPOINT, "bucket")[1])


def test_the_clock_of_the_ledger_comes_with_the_lags(ledger: Ledger, raw: redis.Redis) -> None:
    before = redis_now(raw)
    clock, text = ledger.lags(ENDPOINT, "bucket")
    assert before - 1 <= clock * 1_000_000 <= redis_now(raw) + 1
    assert text == ""


def test_a_lag_lies_between_two_probes_and_is_known_to_the_ledgers_own_clock(ledger: Ledger, raw: redis.Redis) -> None:
    committed = redis_now(raw) - 10_000_000

    age = ledger.note_seen(ENDPOINT, "bucket", committed, 2.0, 6.0)

    assert age is not None
    assert 8.0 <= age < 9.0 + 5.0
    told = weights(ledger)
    assert all(bin_end(number - 1) >= 5.9 and bin_end(number) <= age * 1.06 for number in told)
    assert sum(told.values()) == pytest.approx(1.0, abs=0.01)


def test_the_first_reader_of_a_write_tells_of_it_and_the_others_change_nothing(ledger: Ledger, raw: redis.Redis) -> None:
    committed = redis_now(raw) - 1_000_000
    assert ledger.note_seen(ENDPOINT, "bucket", committed, 0.0, 0.5) is not None
    before = weights(ledger)

    assert [ledger.note_seen(ENDPOINT, "bucket", committed, 0.0, 0.1) for _ in range(5)] == [None] * 5
    assert weights(ledger) == before


@pytest.mark.parametrize("committed", [2**62, 10**16, None])
def test_a_number_that_is_no_time_before_now_teaches_nothing(ledger: Ledger, raw: redis.Redis, committed: int | None) -> None:
    an_hour_ahead = redis_now(raw) + 3_600_000_000
    assert ledger.note_seen(ENDPOINT, "bucket", committed or an_hour_ahead, 0.0, 0.0) is None
    assert weights(ledger) == {}


def test_a_lag_of_half_a_century_is_believed_once(ledger: Ledger) -> None:
    for _ in range(3):
        ledger.note_seen(ENDPOINT, "bucket", 0, 0.0, 0.0)
    assert sum(weights(ledger).values()) <= 1.01


def test_older_lags_fade_and_never_add_up_to_more_than_twenty(
    ledger: Ledger, raw: redis.Redis, settings: Settings
) -> None:
    for number in range(120):
        ledger.note_seen(ENDPOINT, "bucket", redis_now(raw) - 60_000_000 - number, 0.0, 50.0)
    assert sum(weights(ledger).values()) == pytest.approx(20, rel=0.1)
    for number in range(120):
        ledger.note_seen(ENDPOINT, "bucket", redis_now(raw) - 200_000 - number, 0.0, 0.15)

    told = weights(ledger)
    assert sum(told.values()) <= 20.1
    assert sum(weight for number, weight in told.items() if bin_end(number) > 10) < 0.2, "what was is forgotten"
    assert raw.strlen(lags_name(settings)) < 4096
    assert 0 < raw.ttl(lags_name(settings)) <= settings.retention_seconds


def test_every_endpoint_and_bucket_has_lags_of_its_own(ledger: Ledger, raw: redis.Redis) -> None:
    ledger.note_seen(ENDPOINT, "bucket", redis_now(raw) - 1_000_000, 0.0, 0.5)
    assert ledger.lags(ENDPOINT, "other")[1] == ""
    assert ledger.lags("http://elsewhere", "bucket")[1] == ""


@pytest.mark.parametrize(
    "garbage",
    [
        b"", b"\xff\xfe", b"2;3:1.0000;", b"1;3:99999999999.0;1", b"1;;", b"1;3:1.0.0;x", b"1;" + b"3:0.5000," * 100_000 + b";",
        b"1;" + b",".join(b"%d:19.0000" % number for number in range(300)) + b";",
    ],
    ids=range(8),
)
def test_garbage_in_the_lags_counts_for_nothing_and_is_put_right(
    ledger: Ledger, raw: redis.Redis, settings: Settings, garbage: bytes
) -> None:
    raw.set(lags_name(settings), garbage)
    assert weights(ledger) in ({}, {3: 1.0})

    assert ledger.note_seen(ENDPOINT, "bucket", redis_now(raw) - 1_000_000, 0.0, 0.9) is not None

    assert 0.9 < sum(weights(ledger).values()) <= 20
    assert raw.strlen(lags_name(settings)) < 4096


def test_lags_of_another_type_are_put_right(ledger: Ledger, raw: redis.Redis, settings: Settings) -> None:
    raw.hset(lags_name(settings), "a", "b")
    assert weights(ledger) == {}
    assert ledger.note_seen(ENDPOINT, "bucket", redis_now(raw) - 1_000_000, 0.0, 0.9) is not None
    assert weights(ledger)


@hypothesis_settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.tuples(st.floats(0.001, 80_000), st.floats(0, 1)),
        min_size=1, max_size=12,
    )
)
def test_each_lag_adds_its_whole_weight_and_fades_like_all_others(
    ledger: Ledger, raw: redis.Redis, settings: Settings, lags: list[tuple[float, float]]
) -> None:
    raw.delete(lags_name(settings))
    expected = 0.0
    for number, (lag, part) in enumerate(lags):
        committed = redis_now(raw) - int(lag * 1_000_000) - number
        told = ledger.note_seen(ENDPOINT, "bucket", committed, 0.0, lag * part)
        if told is not None:
            expected = expected * 0.95 + 1

    # Bins that have faded to nothing are dropped.
    assert sum(weights(ledger).values()) == pytest.approx(expected, rel=0.2)
    assert all(0 <= number <= LAST_BIN for number in weights(ledger))
