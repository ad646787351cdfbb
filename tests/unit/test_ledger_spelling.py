"""How evidence is spelled in Redis: what is written is read again, in few bytes, and what schema 1 left is understood."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any

import pytest
import redis
from hypothesis import HealthCheck, example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from s3tasks import ObjectRef, Settings
from s3tasks.evidence import Current, Intent, Landed, Record
from s3tasks.ledger import Finished, Ledger, Opened, _script
from s3tasks.ledger_former_spelling import LARGEST_NUMBER
from s3tasks.ledger_spelling import current_of, record_of, rest_of, spelled_write_id
from s3tasks.refs import finished_key, record_key
from s3tasks.sandbox import Sandbox

REF = ObjectRef("bucket", "a key")
UUID = "1b671a64-40d5-491e-99b0-da01ff1f3341"
AWS_VERSION = "PpKnZmSbzVMTVRGbWwhK_hQmz6k1V3W."
MD5 = "9e107d9d372bb6826bd81d3542a419d6"

fuzzed = hypothesis_settings(deadline=None, max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
header_texts = st.text(st.characters(min_codepoint=0x21, max_codepoint=0xFF, exclude_characters="\x7f"), min_size=1, max_size=40)
etags = st.none() | header_texts | st.just(MD5) | st.integers(0, 20000).map(lambda parts: f"{MD5}-{parts}")
versions = st.none() | header_texts | st.uuids().map(str) | st.text("ABab09._", min_size=32, max_size=32)
write_ids = st.text(max_size=40) | st.uuids().map(str) | st.uuids().map(lambda task: f"{task}.2") | st.just("3a" + UUID[2:])


@pytest.fixture
def raw(sandbox: Sandbox, closing: Callable[[Any], Any]) -> redis.Redis:
    return closing(redis.Redis.from_url(sandbox.redis_url))  # type: ignore[no-any-return]


def spelled_current(begun: int, committed: int, landed: Landed) -> bytes:
    return begun.to_bytes(7, "big") + committed.to_bytes(7, "big") + rest_of(landed)


@fuzzed
@given(
    etag=etags, version_id=versions, size=st.none() | st.integers(0, LARGEST_NUMBER), date=st.integers(0, 2**32 - 1),
    deleted=st.booleans(),
)
def test_what_s3_said_is_read_as_it_was_written(
    etag: str | None, version_id: str | None, size: int | None, date: int, deleted: bool
) -> None:
    landed = Landed(etag=None if deleted else etag, version_id=version_id, size=size, date=date, deleted=deleted)

    expected = Current(write_id="w", begun=5, committed=2**52, **vars(landed))
    assert current_of("w", spelled_current(5, 2**52, landed)) == expected


@fuzzed
@given(write_id=write_ids)
@example("")
@example(UUID.upper())
def test_a_write_id_is_read_as_it_was_written_and_is_no_other_ones(write_id: str) -> None:
    spelled = spelled_write_id(write_id)

    (current,) = record_of({b"v": b"2", b"c" + spelled: spelled_current(1, 2, Landed())}, REF).currents
    assert current.write_id == write_id


def test_a_date_that_no_clock_shows_is_the_latest_that_can_be_spelled() -> None:
    assert current_of("w", spelled_current(1, 2, Landed(date=10**12))).date == 2**32 - 1


@pytest.mark.parametrize("version_id", [None, AWS_VERSION, UUID])
def test_an_object_written_once_is_one_compact_piece_of_memory(
    ledger: Ledger, raw: redis.Redis, settings: Settings, version_id: str | None
) -> None:
    write_id = str(uuid.uuid4())
    ledger.begin(REF, write_id)
    begun = ledger.begin(REF, write_id)
    assert isinstance(begun, Opened)
    landed = Landed(etag=MD5, version_id=version_id, size=5 * 2**30 - 1 if version_id is None else 2**20, date=1_800_000_000)
    ledger.commit(REF, write_id, begun.ticket, landed, landed_ticket=begun.ticket)

    assert raw.object("encoding", record_key(settings.ledger_prefix, REF)) in (b"listpack", b"ziplist")


FORMER: dict[Any, Any] = {
    "v": "1",
    "seq": "900",
    f"i:{UUID}.2": "w 500 700",
    "i:a delete": "d 650",
    "i:done elsewhere": "f 640",
    f"c:{UUID}": f"100 200 1800000000 {MD5} {AWS_VERSION} 1024",
    "c:odd": "300 400 0 odd%20%2Aetag%22 * *",
    "c:gone": "410 420 99999999999 ! v1 *",
    "c:": "430 440 1 * * 0",
    "u:upload%201": f"{UUID}.2",
}
UNDERSTOOD = Record(
    900,
    (Intent(f"{UUID}.2", (500, 700)), Intent("a delete", (650,), deletes=True), Intent("done elsewhere", (640,), finished=True)),
    (
        Current(write_id=UUID, begun=100, committed=200, date=1800000000, etag=MD5, version_id=AWS_VERSION, size=1024),
        Current(write_id="odd", begun=300, committed=400, etag='odd *etag"'),
        Current(write_id="gone", begun=410, committed=420, date=2**32 - 1, version_id="v1", deleted=True),
        Current(write_id="", begun=430, committed=440, date=1, size=0),
    ),
    (("upload 1", f"{UUID}.2"),),
)


def sorted_record(record: Record) -> tuple[int, list[Intent], list[Current], tuple[tuple[str, str], ...]]:
    """The record, whatever the order in which Redis keeps its fields."""
    intents = sorted(record.intents, key=lambda intent: intent.first)
    return record.seq, intents, sorted(record.currents, key=lambda current: current.begun), record.uploads


def test_a_record_of_schema_1_is_understood_before_and_after_a_move_has_spelled_it_anew(
    ledger: Ledger, raw: redis.Redis, settings: Settings
) -> None:
    key = record_key(settings.ledger_prefix, REF)
    raw.hset(key, mapping={**FORMER, "i:uncounted": "w 901", "c:uncounted": "1 901 1 x * *", "c:garbage": "1 2 3"})
    before = ledger.lookup(REF)
    ledger.abort(REF, "nobody", 1)
    after = ledger.lookup(REF)

    # A date that no clock shows is the latest that can be spelled; it is only ever compared.
    (gone,) = [current for current in before.currents if current.write_id == "gone"]
    assert gone.date == 99999999999
    assert raw.hget(key, "v") == b"2"
    assert sorted_record(after) == sorted_record(UNDERSTOOD)
    same = {current.write_id: current for current in after.currents} | {"gone": gone}
    assert {current.write_id: current for current in before.currents} == same
    assert (before.seq, set(before.intents), before.uploads) == (after.seq, set(after.intents), after.uploads)


@pytest.mark.parametrize("write_id", [UUID, "3a" + UUID[2:], f"{UUID}.2", "mine"])
def test_a_write_that_schema_1_saw_begin_goes_on(
    ledger: Ledger, raw: redis.Redis, settings: Settings, write_id: str
) -> None:
    seconds, microseconds = raw.time()
    now = seconds * 10**6 + microseconds
    raw.hset(record_key(settings.ledger_prefix, REF), mapping={"v": "1", "seq": str(now), f"i:{write_id}": f"w {now}"})

    again = ledger.begin(REF, write_id)

    assert isinstance(again, Opened)
    assert not again.sole
    assert ledger.lookup(REF).intents == (Intent(write_id, (now, again.ticket)),)


def test_a_write_that_schema_1_remembers_as_finished_is_not_done_again(
    ledger: Ledger, raw: redis.Redis, settings: Settings
) -> None:
    raw.set(finished_key(settings.ledger_prefix, REF, UUID), f"100 200 1800000000 {MD5}-12 {AWS_VERSION} 1024")

    told = ledger.begin(REF, UUID)

    facts = Landed(date=1800000000, etag=f"{MD5}-12", version_id=AWS_VERSION, size=1024)
    assert told == Finished(Current(write_id=UUID, begun=100, committed=200, **vars(facts)), superseded=False)


def test_a_record_shows_its_newest_number_once(ledger: Ledger, raw: redis.Redis, settings: Settings) -> None:
    key = record_key(settings.ledger_prefix, REF)
    kept = ledger.begin(REF, "kept")
    aborted = ledger.begin(REF, "aborted")
    assert isinstance(kept, Opened)
    assert isinstance(aborted, Opened)
    assert (ledger.lookup(REF).seq, raw.hexists(key, "seq")) == (aborted.ticket, False)

    ledger.abort(REF, "aborted", aborted.ticket)
    assert (ledger.lookup(REF).seq, raw.hexists(key, "seq")) == (aborted.ticket, True)

    current = ledger.commit(REF, "kept", kept.ticket, Landed(), landed_ticket=kept.ticket)
    assert (ledger.lookup(REF).seq, raw.hexists(key, "seq")) == (current.committed, False)
    assert current.committed > aborted.ticket


# --- two readers of one record ---

WHAT_LUA_READS = """
local record, problem = load_record(KEYS[1])
if not record then return problem end
local said = {whole(record.seq)}
for id, intent in pairs(record.intents) do
  local words = {'i', id, intent.does}
  for _, ticket in ipairs(intent.tickets) do table.insert(words, whole(ticket)) end
  table.insert(said, words)
end
for id, current in pairs(record.currents) do
  table.insert(said, {'c', id, whole(current.begun), whole(current.committed), whole(current.date)})
end
return said
"""
NUMBERS = [0, 7, 1_700_000_000_000_000, LARGEST_NUMBER - 1, LARGEST_NUMBER, LARGEST_NUMBER + 1, 2**56 - 1]
ETAG = bytes.fromhex(MD5)
numbers = st.sampled_from(NUMBERS).map(lambda number: number.to_bytes(7, "big"))
names = st.sampled_from([b"", b":", b":text", b":\xff\xfe", b"short", ETAG, ETAG + b".2", b":" + ETAG[1:], ETAG[:15]])
tails = st.sampled_from([
    b"", b" ", b" * * *", b" ! * *", b" a b c", b" %41 v1 12", b" a%00b * 1", b" \xff * 1", b"  ", b"\n", b"!", b"\x00" + ETAG,
    b"\x01\x05" + ETAG, b"\x11\x05" + ETAG + b"\x00\x02", b"\x11\x05" + ETAG, b"\x0f" + ETAG, b"\x21\x05" + ETAG,
    b"\x01\x05" + ETAG + ETAG, b"\x01\x05" + ETAG + ETAG + ETAG[:8], b"\x01\x05" + ETAG + b"12345",
])
cuts = st.none() | st.integers(0, 20)
texts_of_currents = st.tuples(numbers, numbers, st.binary(min_size=4, max_size=4), tails, cuts).map(
    lambda parts: b"".join(parts[:4])[: parts[4]]
)
texts_of_intents = st.tuples(st.sampled_from([b"w", b"d", b"f", b"x", b"W", b""]), st.lists(numbers, max_size=3), cuts).map(
    lambda parts: (parts[0] + b"".join(parts[1]))[: parts[2]]
)
seqs = st.sampled_from([b"5", b"007", b"9000000000000001", b"-1", b"1e3", b"", b"0x10", b" 5", b"5\n", b"9" * 17])


@hypothesis_settings(deadline=None, max_examples=400, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    currents=st.dictionaries(names, texts_of_currents, max_size=3), intents=st.dictionaries(names, texts_of_intents, max_size=3),
    seq=st.none() | seqs,
)
def test_python_reads_of_a_record_what_the_scripts_read_of_it_whatever_stands_there(
    raw: redis.Redis, settings: Settings, currents: dict[bytes, bytes], intents: dict[bytes, bytes], seq: bytes | None
) -> None:
    fields = {b"v": b"2", **({} if seq is None else {b"seq": seq})}
    fields |= {b"i" + name: text for name, text in intents.items()} | {b"c" + name: text for name, text in currents.items()}
    key = record_key(settings.ledger_prefix, REF)
    raw.delete(key)
    raw.hset(key, mapping=fields)  # type: ignore[arg-type]
    ours = record_of(fields, REF)

    newest, *entries = raw.eval(_script("forget")[0].rpartition("-- forget:")[0] + WHAT_LUA_READS, 1, key)

    theirs = {tuple(entry) for entry in entries}
    assert ours.seq == int(newest)
    assert {intent for intent in theirs if intent[0] == b"i"} == {
        (b"i", spelled_write_id(intent.write_id), *words_of(intent)) for intent in ours.intents
    }
    # What only Python looks at may be garbage: it then passes over what the scripts keep.
    assert theirs >= {
        (b"c", spelled_write_id(it.write_id), *(b"%d" % number for number in (it.begun, it.committed, it.date)))
        for it in ours.currents
    }
    readable = {b"c" + name for name, text in currents.items() if text[18:] == b"\x01\x05" + ETAG}
    assert {b"c" + entry[1] for entry in theirs if entry[0] == b"c"} & readable <= {
        b"c" + spelled_write_id(it.write_id) for it in ours.currents
    }


def words_of(intent: Intent) -> list[bytes]:
    does = b"f" if intent.finished else b"d" if intent.deletes else b"w"
    return [does, *(b"%d" % ticket for ticket in intent.tickets)]
