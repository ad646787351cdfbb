"""The ledger, and Celery around it, on Redis as it is deployed: a cluster, sentinels, TLS, users of few rights.

All on the server program that the sandbox found; S3TASKS_REDIS_SERVER names another.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import redis
from celery import Celery, chain, chord, group
from redis.backoff import NoBackoff
from redis.retry import Retry

from s3tasks import ConsistentS3, LedgerUnavailable, NoSuchKey, ObjectDeleted, ObjectRef, S3Tasks, Settings
from s3tasks.cli import main
from s3tasks.cli.terminal import Surroundings
from s3tasks.doctor import Grade, examine
from s3tasks.evidence import Record
from s3tasks.ledger import Ledger, Opened
from s3tasks.ledger_connection import door
from s3tasks.ledger_server import LedgerServer
from s3tasks.refs import finished_key, record_key
from s3tasks.sandbox import RedisServer, Sandbox
from s3tasks.sandbox.processes import Child, Guardian, environment_with_package, wait_until
from s3tasks.settings import broker_ledger_url
from tests.conftest import REPOSITORY
from tests.faults.redis_variants.servers import ADDRESS, SLOTS, Server, Site, Watched, site, start_cluster, start_watched
from tests.faults.redis_variants.tls import Authority, TlsProxy

Connect = Callable[[Settings], ConsistentS3]

PATIENCE_SECONDS = 60.0
WORKER_NAME = "acl@localhost"
PASSWORD = "p@ss/w:rd %#?"
HOSTILE_KEYS = [
    "{", "}", "{}", "}{", "a}b{c", "{{x}}", "{other}slot", "x}:write", "%7B", "space d", "ü/日本", "a//b", "*?[x]", "\n\t",
    "s3:key:{x}",
]


@pytest.fixture
def place() -> Iterator[Site]:
    with site() as cleared_at_the_end:
        yield cleared_at_the_end


def until_it_works(attempt: Callable[[], Any]) -> Any:
    """What the attempt returns once the ledger is back; it may fail with LedgerUnavailable only."""
    got: list[Any] = []

    def works() -> bool:
        with contextlib.suppress(LedgerUnavailable):
            got.append(attempt())
        return bool(got)

    assert wait_until(works, PATIENCE_SECONDS, 0.1)
    return got[0]


# --- Redis Cluster ---


@pytest.fixture
def nodes(place: Site) -> list[Server]:
    return start_cluster(place)


@pytest.fixture
def on_cluster(settings: Settings, nodes: list[Server]) -> Settings:
    return settings.replace(ledger_url=f"redis+cluster://{ADDRESS}:{nodes[0].port}", ledger_timeout_seconds=1.0)


def slot_of(node: Server, settings: Settings, ref: ObjectRef) -> int:
    return int(node.admin.execute_command("CLUSTER KEYSLOT", record_key(settings.ledger_prefix, ref)))


def test_the_records_of_every_node_are_listed_and_every_node_is_asked(
    nodes: list[Server], on_cluster: Settings, connect: Connect, bucket: str, closing: Callable[[Any], Any]
) -> None:
    client = connect(on_cluster)
    refs = [ObjectRef(bucket, f"key {number}") for number in range(30)]
    for ref in refs:
        client.write(b"x", ref)
    assert len({slot_of(nodes[0], on_cluster, ref) * len(nodes) // SLOTS for ref in refs}) == len(nodes), "they are on all nodes"
    server = closing(LedgerServer(on_cluster))

    assert sorted(server.objects(bucket), key=str) == sorted(refs, key=str)
    assert [ref.key for ref in server.objects(bucket, "key 17")] == ["key 17"]
    report = examine(on_cluster)
    heard = {finding.name: (finding.verdict, finding.heard) for finding in report.findings}
    assert f"{len(nodes)} nodes" in heard["redis.version"][1]
    assert {heard[name][0] for name in ("redis.reachable", "redis.rights", "redis.latency", "redis.eviction")} == {Grade.OK}
    assert client.ledger_may_be_evicted() is None
    for node in nodes:
        node.admin.config_set("maxmemory-policy", "allkeys-lru")
        assert client.ledger_may_be_evicted() == "allkeys-lru", "whichever of the nodes it is"
        assert "allkeys-lru" in next(finding.heard for finding in examine(on_cluster).findings if finding.name == "redis.eviction")
        node.admin.config_set("maxmemory-policy", "noeviction")


def test_a_cluster_keeps_the_ledger_of_all_keys_and_one_lost_node_takes_only_its_own_with_it(
    nodes: list[Server], on_cluster: Settings, connect: Connect, bucket: str
) -> None:
    client = connect(on_cluster)
    refs = [ObjectRef(bucket, key) for key in [*HOSTILE_KEYS, *(f"plain/{number}" for number in range(25))]]
    written = {ref: client.write(ref.key, ref) for ref in refs}
    for ref in refs:
        assert client.read(written[ref]) == client.read(ref) == ref.key.encode()
    gone = [ref for ref in refs[::4] if client.delete(ref).deleted]
    for ref in gone:
        with pytest.raises(ObjectDeleted):
            client.read(ref)
    assert all(node.admin.dbsize() > 0 for node in nodes), "all nodes have a share"
    for ref in refs:
        memory = finished_key(on_cluster.ledger_prefix, ref, "some write")
        assert slot_of(nodes[0], on_cluster, ref) == int(nodes[0].admin.execute_command("CLUSTER KEYSLOT", memory))

    lost = [ref for ref in refs if slot_of(nodes[0], on_cluster, ref) * len(nodes) // SLOTS == len(nodes) - 1]
    nodes[-1].kill()

    for using in (client, connect(on_cluster)):
        for ref in set(refs) - set(lost) - set(gone):
            assert using.read(using.write(b"after", ref)) == b"after"
        for ref in lost[:3]:
            for verb in (using.read, using.delete, partial(using.write, b"unrecorded")):
                with pytest.raises(LedgerUnavailable):
                    verb(ref)
    assert 0 < len(lost) < len(refs)


def test_lags_have_slots_of_their_own_on_a_cluster(on_cluster: Settings, connect: Connect) -> None:
    ledger = connect(on_cluster)._rooms().ledger
    for number in range(6):
        clock, _ = ledger.lags("http://replica", f"bucket-{number}")
        assert ledger.note_seen("http://replica", f"bucket-{number}", int(clock * 1_000_000) - 1_000_000, 0.0, 0.5)
        assert ledger.lags("http://replica", f"bucket-{number}")[1]


def test_a_cluster_gives_one_order_to_the_writes_of_many_keys_at_once(
    on_cluster: Settings, closing: Callable[[Any], Any]
) -> None:
    ledger = closing(Ledger(on_cluster))
    for number in range(200):
        ref = ObjectRef("bucket", f"{{{number}}}/{number}")
        first, second = ledger.begin(ref, "a"), ledger.begin(ref, "b")
        assert isinstance(first, Opened)
        assert isinstance(second, Opened)
        assert second.ticket > first.ticket
        assert ledger.abort(ref, "a", first.ticket)
        assert ledger.abort(ref, "b", second.ticket)
        assert ledger.lookup(ref).intents == ()


def test_a_move_that_is_interrupted_on_a_cluster_closes_what_may_still_owe_an_answer(
    on_cluster: Settings, nodes: list[Server], closing: Callable[[Any], Any]
) -> None:
    ledger = closing(Ledger(on_cluster))
    refs = [ObjectRef("bucket", f"key {number}") for number in range(12)]
    assert ledger.lookup_many(refs) == [Record()] * 12
    with closing(redis.Redis(host=ADDRESS, port=nodes[0].port)) as node:
        before = node.info("stats")["total_connections_received"]
        with pytest.raises(KeyboardInterrupt), door("lookup", ledger._redis):
            raise KeyboardInterrupt
        assert ledger.lookup_many(refs) == [Record()] * 12
        assert node.info("stats")["total_connections_received"] > before


def test_a_cluster_is_found_though_the_first_host_of_the_url_is_down(nodes: list[Server], closing: Callable[[Any], Any]) -> None:
    nodes[0].kill()
    hosts = ",".join(f"{ADDRESS}:{node.port}" for node in nodes)
    ledger = closing(Ledger(Settings(ledger_url=f"redis+cluster://{hosts}", ledger_timeout_seconds=1.0)))
    answered = 0
    for number in range(30):
        with contextlib.suppress(LedgerUnavailable):
            answered += ledger.lookup(ObjectRef("bucket", str(number))) == Record()
    assert answered > 10


# --- Sentinel ---


@pytest.mark.parametrize("password", [None, PASSWORD], ids=["open", "password"])
def test_sentinels_fail_over_and_writes_and_reads_go_on(
    place: Site, settings: Settings, connect: Connect, bucket: str, password: str | None
) -> None:
    watched: Watched = start_watched(place, password)
    credentials = f":{quote(password, safe='')}@" if password else ""
    url = f"redis+sentinel://{credentials}{ADDRESS}:{watched.sentinel.port}/mymaster/0"
    client = connect(settings.replace(ledger_url=url, ledger_timeout_seconds=1.0))
    before, across = ObjectRef(bucket, "before"), ObjectRef(bucket, "across")
    kept = client.write(b"kept", before)
    client.write(b"1", across)
    assert wait_until(watched.in_step, PATIENCE_SECONDS)

    watched.master.kill()

    assert until_it_works(lambda: client.write(b"2", across)).seq > kept.seq
    assert watched.replica.admin.info("replication")["role"] == "master"
    assert client.read(across) == b"2"
    assert client.read(kept) == client.read(before) == b"kept"
    assert client.delete(before).deleted
    with pytest.raises(ObjectDeleted):
        client.read(before)


def test_a_service_that_the_sentinels_do_not_know_is_an_unavailable_ledger(place: Site, closing: Callable[[Any], Any]) -> None:
    watched = start_watched(place)
    url = f"redis+sentinel://{ADDRESS}:{watched.sentinel.port}/other/0"
    ledger = closing(Ledger(Settings(ledger_url=url, ledger_timeout_seconds=1.0)))

    with pytest.raises(LedgerUnavailable, match="other"):
        ledger.lookup(ObjectRef("bucket", "key"))


@pytest.mark.parametrize(
    ("hosts", "expected"),
    [
        ("one:1,two", [("one", 1), ("two", 26379)]),
        ("[::1]:5000,[::2]:6000", [("::1", 5000), ("::2", 6000)]),
        ("[::1]", [("::1", 26379)]),
    ],
)
def test_a_url_of_sentinels_names_them_all_and_keeps_its_options(
    hosts: str, expected: list[tuple[str, int]], closing: Callable[[Any], Any]
) -> None:
    secret = quote(PASSWORD, safe="")
    url = f"rediss+sentinel://me:{secret}@{hosts}/service/2?ssl_ca_certs=/ca.pem&socket_timeout=1.5"
    pool = closing(Ledger(Settings(ledger_url=url)))._redis.connection_pool
    said, sentinels = pool.connection_kwargs, pool.sentinel_manager.sentinels

    asked = [sentinel.connection_pool.connection_kwargs for sentinel in sentinels]
    assert [(sentinel["host"], sentinel["port"]) for sentinel in asked] == expected
    assert (said["username"], said["password"], said["db"]) == ("me", PASSWORD, 2)
    assert (said["ssl_ca_certs"], said["socket_timeout"]) == ("/ca.pem", 1.5)
    assert pool.service_name == "service"


# --- TLS ---


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


def test_a_ledger_behind_tls_is_used_with_the_authority_that_the_url_names(
    sandbox: Sandbox, settings: Settings, connect: Connect, authority: Authority, bucket: str
) -> None:
    with TlsProxy(authority.server_context(), sandbox.redis.port) as proxy:
        trusted = quote(str(authority.ca_path))
        spellings = [
            f"rediss://{ADDRESS}:{proxy.port}/0?ssl_ca_certs={trusted}",
            # As kombu has it for a broker.
            broker_ledger_url(f"rediss://{ADDRESS}:{proxy.port}/0?ssl_cert_reqs=CERT_REQUIRED&ssl_ca_certs={trusted}"),
        ]
        for url in spellings:
            client = connect(settings.replace(ledger_url=url))
            assert client.read(client.write(b"secret", f"s3://{bucket}/k")) == b"secret"
            assert client.delete(f"s3://{bucket}/k").deleted
        assert proxy.handshakes >= 2


@pytest.mark.parametrize("host", [ADDRESS, "127.0.0.9"], ids=["an unknown authority", "a certificate for another host"])
def test_a_ledger_that_tls_does_not_vouch_for_is_not_spoken_to(
    sandbox: Sandbox, settings: Settings, connect: Connect, authority: Authority, ref: ObjectRef, host: str
) -> None:
    with TlsProxy(authority.server_context(host), sandbox.redis.port) as proxy:
        trust = "" if host == ADDRESS else f"?ssl_ca_certs={quote(str(authority.ca_path))}"
        client = connect(settings.replace(ledger_url=f"rediss://:{quote(PASSWORD, safe='')}@{ADDRESS}:{proxy.port}/0{trust}"))

        with pytest.raises(LedgerUnavailable, match="certificate verify failed") as caught:
            client.write(b"x", ref)

        assert "p@ss" not in str(caught.value)


# --- users of few rights ---

ACL_FILE = REPOSITORY / "worker_config" / "redis-acl.conf"
USERS = {
    "default": "ADMIN", "s3tasks-worker": "WORKER", "s3tasks-producer": "PRODUCER", "s3tasks-monitor": "MONITOR",
    "s3tasks-operator": "OPERATOR",
}
DENIED = [
    "KEYS *", "SCAN 0", "FLUSHALL", "FLUSHDB", "CONFIG GET *", "CONFIG SET maxmemory 1", "ACL LIST", "SHUTDOWN NOSAVE",
    "MONITOR", "CLIENT LIST", "CLIENT KILL TYPE normal", "REPLICAOF NO ONE", "SCRIPT FLUSH", "SAVE", "RANDOMKEY",
    "GET other", "SET other 1", "PUBLISH other x", "PSUBSCRIBE *", "MODULE LIST",
]


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[RedisServer]:
    """A Redis with the users of redis-acl.conf, filled in as its head says."""
    text = ACL_FILE.read_text()
    for name in USERS.values():
        text = text.replace(f"REPLACE_WITH_SHA256_OF_{name}_PASSWORD", hashlib.sha256(f"{name}{PASSWORD}".encode()).hexdigest())
    filled = tmp_path / "redis-acl.conf"
    filled.write_text(text)
    with RedisServer(("--include", str(filled))) as server:
        yield server


def url_for(server: RedisServer, user: str) -> str:
    return f"redis://{user}:{quote(USERS[user] + PASSWORD, safe='')}@{ADDRESS}:{server.port}/0"


def refusals(admin: Any) -> list[tuple[str, str, str]]:
    """User, kind and object of everything that was refused, but for the name that redis-py gives its connections."""
    seen = [(entry["username"], entry["reason"], entry["object"]) for entry in admin.acl_log(count=128)]
    return [refusal for refusal in seen if "client" not in refusal[2].lower() or refusal[1] != "command"]


def test_the_file_says_why_for_every_right_it_gives() -> None:
    rights: dict[str, set[str]] = {}
    told: set[str] = set()
    for line in ACL_FILE.read_text().splitlines():
        if line.startswith("user "):
            rights[line.split()[1]] = {word for word in line.split() if word[0] in "~&+"}
            if line.split()[1] != "default":
                assert rights[line.split()[1]] == told
            told = set()
        elif line.startswith("#   "):
            told |= set(re.findall(r"[~&+][^\s;]+", line))
    assert rights["default"] == {"~*", "&*", "+@all"}
    assert rights["s3tasks-producer"] < rights["s3tasks-worker"]
    assert not any("@" in right for user in USERS.keys() - {"default"} for right in rights[user])


def test_redis_does_not_start_before_the_passwords_are_chosen() -> None:
    from s3tasks.sandbox import SandboxUnavailable

    with pytest.raises(SandboxUnavailable, match="REPLACE_WITH_SHA256"):
        RedisServer(("--include", str(ACL_FILE)), ready_timeout_seconds=5).start()


@pytest.mark.parametrize("user", ["s3tasks-worker", "s3tasks-producer", "s3tasks-monitor", "s3tasks-operator"])
def test_what_a_user_has_no_need_of_is_denied(guarded: RedisServer, user: str, closing: Callable[[Any], Any]) -> None:
    client = closing(redis.Redis.from_url(url_for(guarded, user)))
    assert client.ping()
    more = {
        "s3tasks-producer": ["BRPOP celery 1", "LPUSH unacked x", "PUBLISH /0.celery.pidbox x", "INFO"],
        "s3tasks-monitor": ["GET celery-task-meta-1", "HGETALL unacked", "HGETALL s3:key:{b/k}", "LRANGE celery 0 -1", "INFO"],
        "s3tasks-operator": ["GET celery-task-meta-1", "HGETALL celery-task-meta-1", "LLEN celery", "LPUSH celery x"],
    }.get(user, [])
    needed = {"SCAN 0"} if user == "s3tasks-operator" else set()
    for command in [*(command for command in DENIED if command not in needed), *more]:
        with pytest.raises((redis.exceptions.NoPermissionError, redis.exceptions.ResponseError), match=r"(?i)permission|NOPERM"):
            client.execute_command(*command.split())
    with pytest.raises(redis.exceptions.ResponseError, match=r"(?i)can't access|permission|ACL"):
        client.eval("return redis.call('GET', KEYS[1])", 1, "other")
    with pytest.raises(redis.exceptions.AuthenticationError):
        closing(redis.Redis(port=guarded.port, retry=Retry(NoBackoff(), 0))).ping()


def test_a_real_worker_and_a_real_producer_need_no_more_rights_than_the_file_gives(
    sandbox: Sandbox, guarded: RedisServer, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    admin = redis.Redis.from_url(url_for(guarded, "default"))
    admin.acl_log_reset()
    with WholeWorker(sandbox, url_for(guarded, "s3tasks-worker"), tmp_path) as worker:
        toolkit = producer(sandbox, url_for(guarded, "s3tasks-producer"), monkeypatch)
        try:
            exercise(toolkit, bucket)
        except Exception as problem:
            raise AssertionError(f"{problem!r}; refused: {refusals(admin)}; the worker said:\n{worker.log_tail(40)}") from problem
        finally:
            toolkit.client.close()
            toolkit.app.close()
        for user in ("s3tasks-worker", "s3tasks-monitor", "s3tasks-operator", "default"):
            # Celery lets the environment win over what an app is given.
            monkeypatch.setenv("CELERY_BROKER_URL", url_for(guarded, user))
            operator = Celery("operator", set_as_current=False)
            assert list(operator.control.inspect(timeout=PATIENCE_SECONDS, limit=1).ping() or {}) == [WORKER_NAME]
            operator.close()
        # A message held for later goes back into the queue at a warm shutdown.
        worker.stop(20)
    assert refusals(admin) == []
    assert admin.llen("celery") == 1
    assert "NOPERM" not in worker.log()
    admin.close()


def test_an_operator_needs_no_more_rights_than_the_file_gives_for_any_command(
    sandbox: Sandbox, guarded: RedisServer, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    admin = redis.Redis.from_url(url_for(guarded, "default"))
    admin.acl_log_reset()
    (tmp_path / "body").write_bytes(b"x")
    with WholeWorker(sandbox, url_for(guarded, "s3tasks-worker"), tmp_path):
        toolkit = producer(sandbox, url_for(guarded, "s3tasks-operator"), monkeypatch)
        surroundings = Surroundings(lambda: toolkit.settings, toolkit.app)
        report = examine(toolkit.settings, app=toolkit.app, worker_seconds=PATIENCE_SECONDS / 10)
        uri = f"s3://{bucket}/k"
        statuses = [
            main(arguments, surroundings) for arguments in (
                ["write", str(tmp_path / "body"), uri], ["list"], ["list", "--stale", f"s3://{bucket}"], ["delete", uri],
                ["forget", uri, "--yes"],
            )
        ]
        toolkit.app.close()
    assert refusals(admin) == []
    grades = {finding.name: finding.verdict for finding in report.findings}
    asked = ("redis.rights", "redis.eviction", "redis.latency", "celery.workers", "celery.versions")
    assert {grades[name] for name in asked} == {Grade.OK}
    assert statuses[0:2] + statuses[3:] == [0, 0, 0, 0]
    admin.close()


class WholeWorker:
    """A worker as it is deployed, with gossip, mingling, heartbeats and events, which the sandbox's leaves out."""

    def __init__(self, sandbox: Sandbox, url: str, directory: Path) -> None:
        self._guardian = Guardian()
        environment = {name: url if value.startswith("redis://") else value for name, value in sandbox.environment().items()}
        options = ["--concurrency", "2", "--task-events", "--loglevel", "INFO", "-n", WORKER_NAME]
        command = [sys.executable, "-m", "celery", "-A", "tests.integration.app", "worker", *options]
        self._child = Child(
            self._guardian, command, directory / "worker.log", directory=REPOSITORY,
            environment=environment_with_package(environment),
        )

    def __enter__(self) -> Child:
        wait_until(lambda: not self._child.running or "ready." in self._child.log(), PATIENCE_SECONDS, 0.05)
        if not self._child.running or "ready." not in self._child.log():
            said = self._child.log_tail(60)
            self.__exit__()
            raise AssertionError(f"the worker is not ready; it said:\n{said}")
        return self._child

    def __exit__(self, *_: object) -> None:
        if self._child.running:
            self._child.kill()
        self._guardian.close()


def producer(sandbox: Sandbox, url: str, monkeypatch: pytest.MonkeyPatch) -> S3Tasks:
    for name, value in sandbox.environment().items():
        monkeypatch.setenv(name, url if value.startswith("redis://") else value)
    assert os.environ["CELERY_BROKER_URL"] == url
    from tests.integration.app import make_app

    return make_app()[1]


def exercise(s3: S3Tasks, bucket: str) -> None:
    """Everything that an application does: chains, groups, chords, retries, priorities, failures, forgetting, verbs in process."""
    patience = PATIENCE_SECONDS
    uri = f"s3://{bucket}/k"
    assert chain(s3.write.s(b"1", uri), s3.read.s()).delay().get(timeout=patience) == b"1"
    header = group(chain(s3.write.s(str(number), f"s3://{bucket}/{number}"), s3.read.s()) for number in range(4))
    assert chord(header)(s3.app.signature("tests.echo")).get(timeout=patience) == [b"0", b"1", b"2", b"3"]
    heads = group(s3.head.s(uri) for _ in range(3)).apply_async()
    assert len(heads.get(timeout=patience)) == 3
    assert s3.write.apply_async((b"x", f"s3://{bucket}/p"), priority=5).get(timeout=patience)["size"] == 1
    with pytest.raises(NoSuchKey):
        s3.read.delay(f"s3://{bucket}/missing").get(timeout=patience)
    result = s3.delete.delay(uri)
    assert result.get(timeout=patience)["deleted"]
    result.forget()
    written = s3.client.write(b"in process", uri)
    assert s3.client.read(written, wait=patience) == b"in process"
    assert s3.client.delete(uri).deleted
    assert s3.client.forget(uri)
    s3.read.apply_async((uri,), countdown=600)

