"""What earlier versions left in Redis and S3 is read, and continued by every move; what a newer one left is let alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import redis

from s3tasks import ConsistentS3, LedgerUnavailable, NotYetVisible, ObjectRef, Settings
from s3tasks.evidence import Current, Intent, Landed, Record
from s3tasks.ledger import Busy, Finished, Ledger, Opened
from s3tasks.ledger_spelling import SCHEMA
from s3tasks.refs import Marker, finished_key, record_key
from s3tasks.store import Endpoint, Store
from tests.upgrade.states import NOON_MICROSECONDS, NOON_SECONDS, STATES, UPLOAD_ID, as_bytes, meaning, sample_of

KEPT = {
    f"{folder.parent.name}:{state}": sample
    for folder in sorted(Path(__file__).parent.glob("*/records.json"))
    for state, sample in json.loads(folder.read_text()).items()
}
every_sample = pytest.mark.parametrize("sample", KEPT.values(), ids=KEPT)
LANDED = Landed(etag="etag-n", size=1, date=NOON_SECONDS + 60)


def of_state(*states: str) -> pytest.MarkDecorator:
    kept = {name: sample for name, sample in KEPT.items() if name.partition(":")[2] in states}
    assert kept
    return pytest.mark.parametrize("sample", kept.values(), ids=kept)


@pytest.fixture
def raw(settings: Settings, closing: Callable[[Any], Any]) -> redis.Redis:
    return closing(redis.Redis.from_url(settings.ledger_url))  # type: ignore[no-any-return,arg-type]


@dataclass
class Left:
    """An object as an earlier version left it."""

    ref: ObjectRef
    ledger: Ledger
    raw: redis.Redis
    settings: Settings

    def record(self) -> Record:
        return self.ledger.lookup(self.ref)

    def etags(self) -> set[str | None]:
        return {current.etag for current in self.record().currents}

    def begin(self, write_id: str, *, deletes: bool = False) -> Opened:
        begun = self.ledger.begin(self.ref, write_id, deletes=deletes)
        assert isinstance(begun, Opened)
        return begun

    def commit(self, write_id: str, ticket: int, landed: Landed = LANDED) -> Current:
        return self.ledger.commit(self.ref, write_id, ticket, landed, landed_ticket=ticket)


def kept_fields(sample: dict[str, Any]) -> dict[Any, Any]:
    return {as_bytes(name): as_bytes(value) for name, value in sample["fields"].items()}


@pytest.fixture
def left(sample: dict[str, Any], ledger: Ledger, raw: redis.Redis, settings: Settings) -> Left:
    """The sample in Redis, under the keys and fields that it was kept with."""

    def key(kept: str) -> str:
        return settings.ledger_prefix + kept.removeprefix("s3")

    raw.hset(key(sample["key"]), mapping=kept_fields(sample))
    for name, text in sample["finished"].values():
        raw.set(key(name), as_bytes(text))
    return Left(ObjectRef.parse(sample["ref"]), ledger, raw, settings)


@every_sample
def test_a_record_is_found_and_means_what_it_meant(left: Left, sample: dict[str, Any]) -> None:
    assert meaning(left.record()) == sample["means"]


@every_sample
def test_a_move_that_changes_nothing_leaves_the_record_meaning_what_it_meant(left: Left, sample: dict[str, Any]) -> None:
    left.ledger.abort(left.ref, "nobody", NOON_MICROSECONDS)
    assert meaning(left.record()) == sample["means"]


@every_sample
def test_the_next_write_replaces_what_was_finished_and_counts_on(left: Left, sample: dict[str, Any]) -> None:
    begun = left.begin("n")
    assert begun.ticket == sample["means"]["seq"] + 1
    assert begun.sole

    current = left.commit("n", begun.ticket)

    record = left.record()
    assert record.currents == (current,)
    assert current.committed == begun.ticket + 1
    still_open = [(intent.write_id, intent.tickets) for intent in record.intents]
    assert sorted(still_open) == [(intent["write_id"], tuple(intent["tickets"])) for intent in sample["means"]["intents"]]


@every_sample
def test_a_write_that_had_finished_is_not_done_again(left: Left, sample: dict[str, Any]) -> None:
    known = {current["write_id"]: current for current in sample["means"]["currents"]}
    for write_id in sample["finished"]:
        begun = left.ledger.begin(left.ref, write_id)
        assert isinstance(begun, Finished)
        if write_id in known:
            assert begun.current == Current(**known[write_id])


@of_state("begun_twice")
def test_a_write_that_was_under_way_goes_on(left: Left) -> None:
    (intent,) = left.record().intents
    begun = left.begin("b")
    assert not begun.sole
    assert left.record().intents[0].tickets == (*intent.tickets, begun.ticket)

    left.commit("b", intent.last)

    assert left.etags() == {"etag-n"}
    assert left.record().intents[0].tickets == (intent.first, begun.ticket)


@of_state("begun_twice")
def test_a_write_that_was_under_way_can_be_refused(left: Left) -> None:
    (intent,) = left.record().intents
    assert not left.ledger.abort(left.ref, "b", intent.first)
    assert left.ledger.abort(left.ref, "b", intent.last)
    assert left.record().intents == ()
    assert left.etags() == {"etag-a"}


@of_state("begun_twice")
def test_a_write_that_was_under_way_is_recorded_by_its_reader(left: Left) -> None:
    (intent,) = left.record().intents
    assert left.ledger.observe(left.ref, intent, intent.last, LANDED)
    assert left.etags() == {"etag-n"}


@of_state("begun_twice")
def test_a_write_that_was_under_way_and_is_replaced_is_superseded(left: Left) -> None:
    left.commit("n", left.begin("n").ticket)
    begun = left.ledger.begin(left.ref, "b")
    assert isinstance(begun, Finished)
    assert begun.superseded


@of_state("begun_twice", "delete_begun")
def test_a_write_that_was_under_way_is_waited_for(left: Left, closing: Callable[[Any], Any]) -> None:
    taking_turns = closing(Ledger(left.settings.replace(on_overlap="serialize")))
    assert isinstance(taking_turns.begin(left.ref, "n"), Busy)


@of_state("finished_while_an_attempt_is_slow")
def test_a_write_that_had_finished_is_not_waited_for(left: Left, closing: Callable[[Any], Any]) -> None:
    taking_turns = closing(Ledger(left.settings.replace(on_overlap="serialize")))
    assert isinstance(taking_turns.begin(left.ref, "n"), Opened)


@of_state("begun_twice")
def test_an_upload_that_was_under_way_can_be_cleared_up(left: Left) -> None:
    left.ledger.upload_is_over(left.ref, UPLOAD_ID)
    assert left.record().uploads == ()


@of_state("delete_begun", "delete_observed")
def test_a_delete_that_was_under_way_goes_on(left: Left) -> None:
    begun = left.begin("d", deletes=True)
    left.commit("d", begun.ticket, Landed(deleted=True, date=NOON_SECONDS + 60))
    (current,) = left.record().currents
    assert current.deleted
    assert left.record().intents == ()


@of_state("written", "deleted", "overlapped", "adopted")
def test_somebody_elses_write_is_adopted_over_it(left: Left) -> None:
    assert left.ledger.adopt(left.ref, left.record(), LANDED)
    assert left.etags() == {"etag-n"}


@of_state("written")
def test_a_read_is_held_against_it(
    left: Left, sample: dict[str, Any], connect: Callable[[Settings], ConsistentS3], bucket: str
) -> None:
    ref = ObjectRef(bucket, "k")
    left.raw.hset(record_key(left.settings.ledger_prefix, ref), mapping=kept_fields(sample))
    with pytest.raises(NotYetVisible):
        connect(left.settings).read(ref)


@every_sample
def test_a_marker_in_s3_is_known_again(sample: dict[str, Any]) -> None:
    marker = Marker.parse(sample["marker"], ObjectRef.parse(sample["ref"]))
    assert marker == Marker("odd id: é %.2", sample["means"]["seq"])


@every_sample
def test_a_record_of_the_same_schema_is_spelled_alike(
    sample: dict[str, Any], request: pytest.FixtureRequest, ledger: Ledger, raw: redis.Redis, settings: Settings
) -> None:
    """Another spelling must have a schema of its own: versions that know this one would misread it."""
    state = request.node.callspec.id.partition(":")[2]
    made = sample_of(state, ledger, raw, settings)
    assert made["means"] == sample["means"]
    if made["fields"]["v"] == sample["fields"]["v"]:
        assert made == sample


def test_every_state_was_kept_by_the_version_that_wrote_its_schema() -> None:
    assert set(STATES) <= {name.partition(":")[2] for name in KEPT}
    assert SCHEMA in {sample["fields"]["v"] for sample in KEPT.values()}, "python -m tests.upgrade keeps samples of a new schema"


# --- newer versions ---

MANY = {f"c:{number}": "whatever that means" for number in range(600)}
NEWER: dict[str, dict[str, str]] = {
    "told first": {"v": "99", "seq": "7", "c:a": "whatever that means", "i:a": "x", "new": "x"},
    "told last": {"c:a": "whatever that means", "i:a": "x", "seq": "7", "v": "99"},
    "told among many": {**MANY, "v": "99"},
    "told in other words": {"c:a": "whatever that means", "v": "99.1-beta\r\n+OK"},
}
MOVES: dict[str, Callable[[Ledger, ObjectRef], object]] = {
    "lookup": lambda ledger, ref: ledger.lookup(ref),
    "begin": lambda ledger, ref: ledger.begin(ref, "a"),
    "commit": lambda ledger, ref: ledger.commit(ref, "a", 1, LANDED, landed_ticket=1),
    "abort": lambda ledger, ref: ledger.abort(ref, "a", 1),
    "observe": lambda ledger, ref: ledger.observe(ref, Intent("a", (1,)), 1, LANDED),
    "adopt": lambda ledger, ref: ledger.adopt(ref, Record(), LANDED),
    "note": lambda ledger, ref: ledger.note_upload(ref, "a", "upload"),
}
every_newer = pytest.mark.parametrize("fields", NEWER.values(), ids=NEWER)


def planted(raw: redis.Redis, settings: Settings, ref: ObjectRef, fields: dict[str, str]) -> Callable[[], object]:
    """Puts a newer version's record there, and its memory of a finished write in a type of its own; what is in Redis then."""
    key, memory = record_key(settings.ledger_prefix, ref), finished_key(settings.ledger_prefix, ref, "a")
    for name, value in fields.items():
        raw.hset(key, name, value)
    raw.hset(memory, "in another way", "x")
    return lambda: (raw.hgetall(key), raw.ttl(key), raw.hgetall(memory))


@every_newer
@pytest.mark.parametrize("move", MOVES.values(), ids=MOVES)
def test_a_newer_record_is_neither_read_nor_written(
    move: Callable[[Ledger, ObjectRef], object], fields: dict[str, str], ledger: Ledger, raw: redis.Redis, settings: Settings,
    ref: ObjectRef,
) -> None:
    state = planted(raw, settings, ref, fields)
    before = state()

    with pytest.raises(LedgerUnavailable) as caught:
        move(ledger, ref)

    assert caught.value.retryable
    for told in (ref.uri, "schema '99", f"knows '{SCHEMA}'", "upgrade", "s3tasks forget"):
        assert told in str(caught.value)
    assert state() == before


@every_newer
def test_one_newer_record_among_many_is_the_trouble_of_its_object_alone(
    fields: dict[str, str], client: ConsistentS3, raw: redis.Redis, settings: Settings, bucket: str
) -> None:
    refs = [f"s3://{bucket}/{number}" for number in range(3)]
    assert all(outcome.ok for outcome in client.write_many([(b"x", ref) for ref in refs]))
    raw.delete(record_key(settings.ledger_prefix, ObjectRef.parse(refs[1])))
    state = planted(raw, settings, ObjectRef.parse(refs[1]), fields)
    before = state()

    for outcomes in (
        client.read_many(refs), client.head_many(refs), client.write_many([(b"y", ref) for ref in refs]), client.delete_many(refs),
    ):
        assert [outcome.ok for outcome in outcomes] == [True, False, True]
        assert isinstance(outcomes[1].error, LedgerUnavailable)
    assert state() == before


def test_a_write_over_a_newer_record_does_not_reach_s3(
    client: ConsistentS3, store: Store, raw: redis.Redis, settings: Settings, ref: ObjectRef
) -> None:
    planted(raw, settings, ref, NEWER["told last"])
    with pytest.raises(LedgerUnavailable):
        client.write(b"x", ref)
    assert store.head(ref, Endpoint.WRITE).served is None


def test_an_operator_may_drop_a_newer_record(
    client: ConsistentS3, ledger: Ledger, raw: redis.Redis, settings: Settings, ref: ObjectRef
) -> None:
    planted(raw, settings, ref, NEWER["told last"])
    assert ledger.forget(ref)
    assert client.read(client.write(b"x", ref)) == b"x"
