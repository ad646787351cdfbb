"""What is asked of the ledger's Redis, and of a broker's own, and what the answers mean.

It never changes a setting there, and tries the ledger's moves only on names of its own, which expire within a minute.
"""

from __future__ import annotations

import re
import statistics
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from functools import cache
from typing import Any

from s3tasks.doctor.findings import Examination, Grade, Said, bad, is_refusal, ok, unknown, warn
from s3tasks.errors import LedgerUnavailable
from s3tasks.evidence import Intent, Landed
from s3tasks.ledger import SAFE_POLICY, Ledger, Opened
from s3tasks.ledger_server import LedgerServer
from s3tasks.refs import ObjectRef
from s3tasks.settings import Settings, broker_ledger_url, without_credentials

Node = Mapping[str, Any]

OLDEST_VERSION = (6, 0)
WARN_ABOVE, BAD_ABOVE = 0.70, 0.85
"""Shares of maxmemory, as worker_config/README.md has them."""
SLOW_SECONDS = 0.01
_ROUNDS = 20
_SCRATCH_SECONDS = 60
_AS_OPERATOR = "ask as a user that may use INFO (s3tasks-operator in worker_config/redis-acl.conf)"

REACHABLE = ("redis.reachable", "Does the ledger's Redis answer?")
VERSION = ("redis.version", "Is it recent enough?")
ROLE = ("redis.role", "Does it take writes?")
EVICTION = ("redis.eviction", "Does it keep every record until its time?")
PERSISTENCE = ("redis.persistence", "Does it keep its data over a restart?")
MEMORY = ("redis.memory", "Has it memory to spare?")
RIGHTS = ("redis.rights", "May this user do all that the ledger does?")
LATENCY = ("redis.latency", "How long does it take to answer?")
BROKER = ("redis.broker", "Does the broker keep every message until it is taken?")


def ask_redis(examination: Examination, settings: Settings) -> bool:
    """Asks; whether Redis answered at all."""
    servers: list[LedgerServer] = []

    def reach() -> Said:
        servers.append(LedgerServer(settings))
        return reached(servers[0], settings)

    try:
        if examination.ask(*REACHABLE, reach).verdict is not Grade.OK:
            examination.leave_out("Redis does not answer", VERSION, ROLE, EVICTION, PERSISTENCE, MEMORY, RIGHTS, LATENCY)
            return False
        _ask_about_itself(examination, servers[0])
        _ask_about_moves(examination, settings, servers[0])
        return True
    finally:
        for server in servers:
            server.close()


def ask_broker(examination: Examination, settings: Settings, broker_url: Any) -> None:
    """Asks the Redis that carries the messages, where it is not the ledger's."""
    url = broker_ledger_url(broker_url)
    if url is None:
        examination.keep(*BROKER, ok("the broker is not a single Redis: ask it by its own means"))
    else:
        examination.ask(*BROKER, lambda: broker(settings, url))


def broker(settings: Settings, url: str) -> Said:
    """The worst of what the broker's Redis says of itself; the ledger's, known by its run id, has been asked already."""
    place = without_credentials(url)
    try:
        nodes = _info(settings.replace(ledger_url=url))
    except LedgerUnavailable as problem:
        if is_refusal(problem.reason):
            return unknown(problem.reason, _AS_OPERATOR)
        return bad(f"{place}: {problem.reason}", "start the broker, or correct broker_url")
    if nodes[0]["run_id"] in _run_ids(settings):
        return ok("it is the ledger's Redis")
    said = [judge(nodes) for judge in (role, eviction, persistence, memory)]
    worst = next((one for grade in (Grade.BAD, Grade.WARN) for one in said if one.verdict is grade), None)
    if worst is None:
        return ok(f"yes, {place}, a Redis of its own: {'; '.join(one.heard for one in said[1:])}")
    return replace(worst, heard=f"{place}: {worst.heard}")


def _run_ids(settings: Settings) -> set[Any]:
    try:
        return {node["run_id"] for node in _info(settings)}
    except LedgerUnavailable:
        return set()


def _info(settings: Settings) -> Sequence[Node]:
    with closing(LedgerServer(settings)) as server:
        return server.info()


def reached(server: LedgerServer, settings: Settings) -> Said:
    """Whether it answers; how to reach it is said without credentials."""
    place = without_credentials(settings.ledger_url or "")
    try:
        server.ping()
    except LedgerUnavailable as problem:
        return bad(f"{place}: {problem.reason}", "start Redis, or correct ledger_url (unset, it is the Celery broker's)")
    return ok(f"yes, {place}, prefix {settings.ledger_prefix}")


def _ask_about_itself(examination: Examination, server: LedgerServer) -> None:
    info = cache(server.info)

    def told(judge: Callable[[Sequence[Node]], Said]) -> Callable[[], Said]:
        def answer() -> Said:
            try:
                return judge(info())
            except LedgerUnavailable as problem:
                return unknown(problem.reason, _AS_OPERATOR if is_refusal(problem.reason) else "")

        return answer

    questions = ((VERSION, version), (ROLE, role), (EVICTION, eviction), (PERSISTENCE, persistence), (MEMORY, memory))
    for question, judge in questions:
        examination.ask(*question, told(judge))


def version(nodes: Sequence[Node]) -> Said:
    """The oldest of the nodes counts."""
    names = sorted({
        f"Valkey {node['valkey_version']}" if "valkey_version" in node else f"Redis {node['redis_version']}" for node in nodes
    })
    oldest = min(tuple(map(int, re.findall(r"\d+", str(node["redis_version"]))[:2])) for node in nodes)
    heard = f"{' and '.join(names)}{f', {len(nodes)} nodes' if len(nodes) > 1 else ''}"
    return ok(heard) if oldest >= OLDEST_VERSION else bad(heard, "use Redis 6 or later, or Valkey")


def role(nodes: Sequence[Node]) -> Said:
    """A single server must be no replica; one that still loads its data cannot answer yet."""
    if any(node.get("loading") for node in nodes):
        return warn("it is still loading its data", "wait until it has")
    if len(nodes) == 1 and nodes[0].get("role") == "slave":
        return bad("no, it is a replica", "point ledger_url at the primary (or at the sentinels: redis+sentinel://)")
    return ok("yes")


def eviction(nodes: Sequence[Node]) -> Said:
    """Evicted records are reads that go unchecked, and writes that are done twice."""
    unsafe = sorted({str(node["maxmemory_policy"]) for node in nodes} - {SAFE_POLICY})
    if not unsafe:
        return ok(f"maxmemory-policy {SAFE_POLICY}")
    heard, advice = f"maxmemory-policy {', '.join(unsafe)}", f"set maxmemory-policy {SAFE_POLICY} (worker_config/redis.conf)"
    if any(int(node["maxmemory"]) for node in nodes):
        return bad(f"{heard}: when memory is short it drops records, or queued tasks", advice)
    return warn(f"{heard}, which does nothing as long as maxmemory is 0", advice)


def persistence(nodes: Sequence[Node]) -> Said:
    """Without an append-only file, what was written since the last snapshot is forgotten by a restart."""
    for node in nodes:
        failing = [name for name in ("aof_last_write_status", "rdb_last_bgsave_status") if node.get(name, "ok") != "ok"]
        if failing:
            return bad(f"it cannot write to its disk ({', '.join(failing)})", "look at Redis's log, and at the space on its disk")
    if all(int(node.get("aof_enabled", 0)) for node in nodes):
        return ok("append-only file")
    return warn(
        "no append-only file: a restart forgets what came after the last snapshot, and with it records and queued tasks",
        "set appendonly yes (worker_config/redis.conf)",
    )


def memory(nodes: Sequence[Node]) -> Said:
    """The fullest node counts."""
    if any(not int(node["maxmemory"]) for node in nodes):
        used = max(int(node["used_memory"]) for node in nodes)
        return warn(
            f"{_mib(used)} used, and maxmemory is 0: it grows until the kernel ends it",
            "set maxmemory to two thirds of the machine's memory, and alert on used_memory (worker_config/redis.conf)",
        )
    fullest = max(nodes, key=lambda node: int(node["used_memory"]) / int(node["maxmemory"]))
    share = int(fullest["used_memory"]) / int(fullest["maxmemory"])
    heard = f"{share:.0%} of {_mib(int(fullest['maxmemory']))} used"
    advice = "find what grows (LLEN of the queue first), raise maxmemory, or give the ledger a Redis of its own"
    return ok(heard) if share < WARN_ABOVE else warn(heard, advice) if share < BAD_ABOVE else bad(heard, advice)


def _mib(size_bytes: int) -> str:
    return f"{size_bytes / 2**20:.0f} MiB"


def _ask_about_moves(examination: Examination, settings: Settings, server: LedgerServer) -> None:
    ledger = Ledger(settings.replace(
        retention_seconds=_SCRATCH_SECONDS, redelivery_horizon_seconds=_SCRATCH_SECONDS, on_overlap="allow"
    ))
    try:
        examination.ask(*RIGHTS, lambda: rights(ledger))
        examination.ask(*LATENCY, lambda: latency(ledger, server))
    finally:
        ledger.close()


def rights(ledger: Ledger) -> Said:
    """Every move of the ledger, tried on an object of which nobody else has a record."""
    refused = [f"{name}: {problem.reason}" for name, problem in _refused_moves(ledger, _scratch())]
    if not refused:
        return ok("yes, each move was tried")
    return bad(
        "; ".join(refused), "give it the rights of s3tasks-worker in worker_config/redis-acl.conf; ACL LOG names what was refused"
    )


def _refused_moves(ledger: Ledger, ref: ObjectRef) -> Iterator[tuple[str, LedgerUnavailable]]:
    for name, move in moves(ledger, ref).items():
        problem = _problem_with(move)
        if problem is not None:
            yield name, problem


def moves(ledger: Ledger, ref: ObjectRef) -> dict[str, Callable[[], object]]:
    """Each move of the ledger by its name, to be made in this order; `forget` leaves nothing of the record."""
    landed, intent = Landed(etag="e"), Intent("doctor", (1,))
    return {
        "lookup": lambda: ledger.lookup(ref),
        "begin": lambda: ledger.begin(ref, "doctor"),
        "commit": lambda: ledger.commit(ref, "doctor", 1, landed, landed_ticket=1),
        "observe": lambda: ledger.observe(ref, intent, 1, landed),
        "adopt": lambda: ledger.adopt(ref, ledger.lookup(ref), landed),
        "abort": lambda: ledger.abort(ref, "doctor", 1),
        "note_upload": lambda: ledger.note_upload(ref, "doctor", "upload"),
        "upload_is_over": lambda: ledger.upload_is_over(ref, "upload"),
        "note_gone": lambda: ledger.note_gone(ref, "version"),
        "version_is_gone": lambda: ledger.version_is_gone(ref, "version"),
        "note_found": lambda: ledger.note_found("doctor", ref.key, "doctor", "yes"),
        "found": lambda: ledger.found("doctor", ref.key),
        "lags": lambda: ledger.lags("doctor", ref.key),
        "note_seen": lambda: ledger.note_seen("doctor", ref.key, 1, 0, 0),
        "forget": lambda: ledger.forget(ref),
    }


def _problem_with(move: Callable[[], object]) -> LedgerUnavailable | None:
    try:
        move()
    except LedgerUnavailable as problem:
        return problem
    return None


def latency(ledger: Ledger, server: LedgerServer) -> Said:
    """The median round trip of a plain command, and of a move."""
    ref = _scratch()

    def move() -> None:
        begun = ledger.begin(ref, "doctor")
        if isinstance(begun, Opened):
            ledger.abort(ref, "doctor", begun.ticket)

    ping_seconds, move_seconds = _median_seconds(server.ping), _median_seconds(move) / 2
    heard = f"{ping_seconds * 1000:.2f} ms a command, {move_seconds * 1000:.2f} ms a move of the ledger (median of {_ROUNDS})"
    if max(ping_seconds, move_seconds) <= SLOW_SECONDS:
        return ok(heard)
    return warn(
        f"{heard}: a read waits for one of these, a write for two",
        "bring workers and Redis closer together, or find what keeps Redis busy (SLOWLOG GET, INFO commandstats)",
    )


def _median_seconds(call: Callable[[], object]) -> float:
    spans = []
    for _ in range(_ROUNDS):
        began = time.perf_counter()
        call()
        spans.append(time.perf_counter() - began)
    return statistics.median(spans)


def _scratch() -> ObjectRef:
    return ObjectRef("s3tasks-doctor", uuid.uuid4().hex)
