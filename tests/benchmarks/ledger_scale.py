"""What the ledger takes of its Redis: bytes, CPU and time for each move, also on a key that very many write at once.

It never extrapolates: it writes that many records through the Ledger class into a Redis of its own, and asks Redis.
"""

from __future__ import annotations

import statistics
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import redis
from celery import Celery

from s3tasks import ObjectRef, S3Tasks, Settings
from s3tasks.evidence import Landed
from s3tasks.ledger import Commit, Ledger, Opened
from s3tasks.refs import finished_key
from s3tasks.sandbox import RedisServer
from tests.benchmarks.figures import Figure

SUBJECT = "ledger scale"
BUCKET = "a-bucket-of-20-chars"
KEY_BYTES = 64
MOST_BYTES_PER_OBJECT = 250
OBJECTS = 100_000
MESSAGES = 5_000
# So many moves of a kind are charged to Redis's CPU together: the system counts it in hundredths of a second at worst.
MOVES = 3_000
BATCH = 500
READINGS_AT_REST, BETWEEN_READINGS_SECONDS = 5, 0.1
HOT = (1, 10, 100, 1_000)
HOT_REF = ObjectRef(BUCKET, "hot")


@dataclass(frozen=True)
class Memory:
    """Bytes of Redis per object, finished write, queued read and stored ref. Growth is of the whole server, its tables included."""

    record: float
    finished_write: float
    message: float
    result: float


def object_number(number: int) -> ObjectRef:
    """An object whose key has 64 bytes."""
    return ObjectRef(BUCKET, f"{number:0{KEY_BYTES}d}")


def landed() -> Landed:
    """What S3 says of an ordinary write: an MD5 for an ETag, no version id."""
    return Landed(etag=uuid.uuid4().hex, size=123456, date=1_800_000_000)


def write_all(ledger: Ledger, numbers: Sequence[int]) -> list[tuple[ObjectRef, str]]:
    """Records a finished write of each object, with a task's id as the write id, in two round trips; objects and write ids."""
    writes = [(object_number(number), str(uuid.uuid4())) for number in numbers]
    commits = []
    for (ref, write_id), begun in zip(writes, ledger.begin_many(writes), strict=True):
        if not isinstance(begun, Opened):
            raise TypeError(f"a new write id was answered with {begun}")
        commits.append(Commit(ref, write_id, begun.ticket, landed(), begun.ticket))
    ledger.commit_many(commits)
    return writes


def memory(objects: int = OBJECTS) -> Memory:
    """The bytes, after that many objects have been written once; finished writes are counted where they do not."""
    record = _growth(objects, forget_finished=True)
    return Memory(record, _growth(objects, forget_finished=False) - record, *_celery_growth())


def _growth(objects: int, *, forget_finished: bool) -> float:
    with RedisServer() as server:
        settings = Settings(ledger_url=server.url)
        ledger, admin = Ledger(settings), redis.Redis.from_url(server.url)
        # The scripts and the connections are there before anything is counted.
        write_all(ledger, [objects])
        admin.flushdb()
        before = memory_at_rest(admin)
        for start in range(0, objects, BATCH):
            writes = write_all(ledger, range(start, min(start + BATCH, objects)))
            if forget_finished:
                admin.delete(*(finished_key(settings.ledger_prefix, *write) for write in writes))
        ledger.close()
        grown = memory_at_rest(admin) - before
        admin.close()
    return grown / objects


def _celery_growth(number: int = MESSAGES) -> tuple[float, float]:
    """Bytes per message of s3.read that waits in the queue, and per result that is a ref."""
    with RedisServer() as server:
        app = Celery("benchmark", broker=server.url, backend=server.url, set_as_current=False)
        admin = redis.Redis.from_url(server.url)
        grown = _sent_and_stored(app, admin, number)
        admin.close()
        app.close()
    return grown


def _sent_and_stored(app: Celery, admin: Any, number: int) -> tuple[float, float]:
    s3 = S3Tasks(app)
    ref = ObjectRef(BUCKET, "0" * KEY_BYTES, etag=uuid.uuid4().hex, seq=1, size=123456).to_dict()
    s3.read.apply_async((ref,), ignore_result=True)
    empty = memory_at_rest(admin)
    for _ in range(number):
        s3.read.apply_async((ref,), ignore_result=True)
    queued = memory_at_rest(admin)
    for _ in range(number):
        app.backend.store_result(str(uuid.uuid4()), ref, "SUCCESS")
    return (queued - empty) / number, (memory_at_rest(admin) - queued) / number


def used_memory(admin: Any) -> int:
    """Bytes that Redis has allocated, tables and buffers included."""
    return int(admin.info("memory")["used_memory"])


def memory_at_rest(admin: Any) -> int:
    """The same, once Redis has moved its tables and has let buffers go, which it does in its spare time."""
    said: list[int] = []
    while len(said) < READINGS_AT_REST or len(set(said[-READINGS_AT_REST:])) > 1:
        time.sleep(BETWEEN_READINGS_SECONDS)
        said.append(used_memory(admin))
    return said[-1]


def _cpu_seconds(admin: Any) -> float:
    said = admin.info("cpu")
    return float(said["used_cpu_user"]) + float(said["used_cpu_sys"])


class OneOfEach:
    """Every move on objects of their own, one by one, as tasks make them."""

    def __init__(self, ledger: Ledger, admin: Any) -> None:
        self._ledger, self._admin = ledger, admin
        self._first = 0

    def costs(self) -> dict[str, float]:
        """Microseconds of Redis's CPU for each move, the network's share included."""
        ledger, writes = self._ledger, [(object_number(self._first + n), str(uuid.uuid4())) for n in range(MOVES)]
        self._first += MOVES
        cost, tickets = {}, {}
        cost["begin"], tickets["begin"] = self._charged(writes, ledger.begin)
        opened = dict(zip(writes, tickets["begin"], strict=True))

        def commit(ref: ObjectRef, write_id: str) -> object:
            ticket = opened[ref, write_id].ticket
            return ledger.commit(ref, write_id, ticket, landed(), landed_ticket=ticket)

        cost["commit"], _ = self._charged(writes, commit)
        cost["lookup"], records = self._charged(writes, lambda ref, _: ledger.lookup(ref))
        judged = {write[0]: record for write, record in zip(writes, records, strict=True)}
        cost["adopt"], _ = self._charged(writes, lambda ref, _: ledger.adopt(ref, judged[ref], landed()))
        again = [(ref, str(uuid.uuid4())) for ref, _ in writes]
        for ref, write_id in again:
            ledger.begin(ref, write_id)
        looked = {ref: ledger.lookup(ref).intents[0] for ref, _ in writes}
        half = len(again) // 2
        cost["observe"], _ = self._charged(
            again[:half], lambda ref, _: ledger.observe(ref, looked[ref], looked[ref].last, landed())
        )
        cost["abort"], _ = self._charged(again[half:], lambda ref, write_id: ledger.abort(ref, write_id, looked[ref].last))
        return cost

    def _charged(
        self, writes: Sequence[tuple[ObjectRef, str]], move: Callable[[ObjectRef, str], Any]
    ) -> tuple[float, list[Any]]:
        before = _cpu_seconds(self._admin)
        answers = [move(ref, write_id) for ref, write_id in writes]
        return (_cpu_seconds(self._admin) - before) * 1e6 / len(writes), answers


def hot_key(ledger: Ledger, kind: str, count: int) -> None:
    """A key with so many open intents or so many current writes, and nothing else."""
    ledger.forget(HOT_REF)
    begun = [(write_id, ledger.begin(HOT_REF, write_id)) for write_id in (str(uuid.uuid4()) for _ in range(count))]
    for write_id, opened in begun if kind == "current writes" else []:
        assert isinstance(opened, Opened)
        ledger.commit(HOT_REF, write_id, opened.ticket, landed(), landed_ticket=opened.ticket)


def _hot_moves(ledger: Ledger, rounds: int) -> Iterator[tuple[str, float]]:
    """Milliseconds of each move on the hot key as it is: medians. An abort puts back what a begin has opened."""
    spent: dict[str, list[float]] = {"lookup": [], "begin": [], "abort": []}
    for _ in range(rounds):
        write_id = str(uuid.uuid4())
        times = [time.perf_counter()]
        ledger.lookup(HOT_REF)
        times.append(time.perf_counter())
        opened = ledger.begin(HOT_REF, write_id)
        times.append(time.perf_counter())
        assert isinstance(opened, Opened)
        ledger.abort(HOT_REF, write_id, opened.ticket)
        times.append(time.perf_counter())
        for move, before, after in zip(spent, times, times[1:], strict=False):
            spent[move].append((after - before) * 1000)
    yield from ((move, statistics.median(times)) for move, times in spent.items())


def measure(rounds: int) -> list[Figure]:
    """Bytes, moves a second of one core, and what a hot key costs."""
    bytes_ = memory()
    figures = [
        Figure(SUBJECT, "a tracked object with a 64-byte key, server's growth", bytes_.record, "bytes", MOST_BYTES_PER_OBJECT),
        Figure(SUBJECT, "a finished write id", bytes_.finished_write, "bytes"),
        Figure(SUBJECT, "a queued s3.read", bytes_.message, "bytes"),
        Figure(SUBJECT, "a result that is a ref", bytes_.result, "bytes"),
    ]
    with RedisServer() as server:
        ledger, admin = Ledger(Settings(ledger_url=server.url)), redis.Redis.from_url(server.url)
        figures += _moves(OneOfEach(ledger, admin), rounds)
        figures += _hot(ledger, rounds)
        ledger.close()
        admin.close()
    return figures


def _moves(moves: OneOfEach, rounds: int) -> list[Figure]:
    costs = [moves.costs() for _ in range(rounds)]
    medians = {move: statistics.median(cost[move] for cost in costs) for move in costs[0]}
    told = [Figure(SUBJECT, f"{move}: moves a second of one Redis core", 1e6 / cost, "/s") for move, cost in medians.items()]
    write = medians["begin"] + medians["commit"]
    return [
        *told,
        Figure(SUBJECT, "a write (begin and commit): writes a second of one Redis core", 1e6 / write, "/s"),
        Figure(SUBJECT, "a read (lookup): reads a second of one Redis core", 1e6 / medians["lookup"], "/s"),
    ]


def _hot(ledger: Ledger, rounds: int) -> list[Figure]:
    figures = []
    for kind in ("open intents", "current writes"):
        for count in HOT:
            hot_key(ledger, kind, count)
            for move, milliseconds in _hot_moves(ledger, max(rounds, 9)):
                figures.append(Figure(SUBJECT, f"{move} on a key with {count} {kind}", milliseconds, "ms"))
    return figures
