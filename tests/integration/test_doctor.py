"""The doctor before real servers, healthy and odd: each is told for what it is, and nothing is left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
import redis
from celery import Celery

from s3tasks import InvalidRef, ObjectRef, Settings
from s3tasks.doctor import Grade, Report, Trial, examine
from s3tasks.doctor.redis_questions import moves
from s3tasks.ledger import Ledger
from s3tasks.sandbox import RedisServer, Sandbox, WorkerProcess
from tests.conftest import REPOSITORY
from tests.s3_proxy import Dropped, Forward, Request, Response, Rule, proxied, refusal
from tests.unit.test_store import PERSONALITIES

COMMAND = [sys.executable, "-m", "s3tasks.cli"]


@pytest.fixture(scope="module")
def sound_redis() -> Iterator[RedisServer]:
    """As worker_config/redis.conf has it, in short."""
    with RedisServer(["--maxmemory", "64mb"], persistent=True) as server:
        yield server


@pytest.fixture
def sound(settings: Settings, sound_redis: RedisServer) -> Settings:
    return settings.replace(ledger_url=sound_redis.url)


@pytest.fixture
def versioned(sandbox: Sandbox) -> str:
    name = f"doctored-{uuid.uuid4().hex[:8]}"
    sandbox.create_bucket(name, versioned=True)
    return name


def left_in(sandbox: Sandbox, bucket: str) -> list[str]:
    """Every version, delete marker and unfinished upload that is in the bucket."""
    client = boto3.client("s3", endpoint_url=sandbox.endpoint_url)
    said = client.list_object_versions(Bucket=bucket)
    found = [one["Key"] for kind in ("Versions", "DeleteMarkers") for one in said.get(kind, [])]
    found += [one["Key"] for one in client.list_multipart_uploads(Bucket=bucket).get("Uploads", [])]
    client.close()
    return found


def heard(report: Report, name: str) -> str:
    return next(finding.heard for finding in report.findings if finding.name == name)


def grade(report: Report, name: str) -> Grade:
    return next(finding.verdict for finding in report.findings if finding.name == name)


def holds(report: Report) -> dict[str, bool | None]:
    return {guarantee.name: guarantee.holds for guarantee in report.guarantees}


# --- a healthy place ---


def test_where_all_is_well_it_says_so_and_leaves_nothing_behind(sound: Settings, sandbox: Sandbox, versioned: str) -> None:
    report = examine(sound, trial=Trial(versioned, "some/prefix/", tries=4))

    assert [finding for finding in report.findings if finding.verdict is not Grade.OK] == []
    assert report.verdict is Grade.OK
    assert report.verification == "not needed if promised"
    assert set(holds(report).values()) == {True}
    assert left_in(sandbox, versioned) == []


NAMES = [
    "redis.reachable", "redis.version", "redis.role", "redis.eviction", "redis.persistence", "redis.memory", "redis.rights",
    "redis.latency",
    "s3.access", "s3.metadata", "s3.etag", "s3.read_if_match", "s3.multipart", "s3.versions", "s3.checksums", "s3.dates",
    "s3.put_if_none_match", "s3.put_if_match", "s3.delete_if_match", "s3.copy_if_none_match", "s3.copy_if_match",
    "s3.parts_if_none_match", "s3.parts_if_match", "s3.copy_source_if_match", "s3.lag", "s3.cleanup",
]


def test_the_names_of_the_findings_are_these_whatever_could_be_asked(sound: Settings, bucket: str) -> None:
    for trial in (Trial(bucket, tries=2), Trial("no-such-bucket"), None):
        assert sorted(finding.name for finding in examine(sound, trial=trial).findings) == sorted(NAMES)
    away = sound.replace(ledger_url="redis://127.0.0.1:1/0")
    assert sorted(finding.name for finding in examine(away, trial=Trial(bucket, tries=2)).findings) == sorted(NAMES)


def test_without_a_bucket_s3_is_left_alone(sound: Settings) -> None:
    with proxied("http://127.0.0.1:1") as proxy:
        report = examine(sound.replace(endpoint_url=proxy.url))
        assert proxy.seen == []
    assert "--bucket" in heard(report, "s3.access")
    assert report.verdict is Grade.OK


def test_a_bucket_that_may_not_be_used_is_not(sound: Settings, bucket: str) -> None:
    with pytest.raises(InvalidRef, match="allowed_buckets"):
        examine(sound.replace(allowed_buckets=("another",)), trial=Trial(bucket))


# --- odd servers ---


@pytest.fixture
def diagnosed(sound: Settings, sandbox: Sandbox, bucket: str) -> Callable[..., Report]:
    """The report on a server that follows a rule; the bucket is empty again afterwards."""

    def of(rule: Rule | None, **changes: Any) -> Report:
        with proxied(sandbox.endpoint_url, rule) as proxy:
            settings = sound.replace(endpoint_url=proxy.url, addressing_style="path", **changes)
            report = examine(settings, trial=Trial(bucket, tries=2))
        assert left_in(sandbox, bucket) == []
        return report

    return of


EXPECTED: dict[str, dict[str, str]] = {
    "ignores_conditions": {
        "s3.read_if_match": "takes no notice of If-Match",
        "s3.put_if_none_match": "no (8 of 8 at once got through",
        "s3.put_if_match": "no (wrong ETag: carried out",
        "s3.delete_if_match": "no (wrong ETag: carried out",
    },
    "refuses_if_match": {
        "s3.read_if_match": "right ETag: 501, wrong ETag: 501, missing key: 501: it refuses If-Match",
        "s3.put_if_match": "no (wrong ETag: 501",
    },
    "answers_412_for_missing": {"s3.read_if_match": "missing key: 412", "s3.put_if_match": "yes"},
    "spells_metadata_in_title_case": {"s3.metadata": "yes", "s3.put_if_match": "yes"},
    "has_weak_etags": {"s3.etag": "yes", "s3.read_if_match": "takes no notice", "s3.put_if_match": "no"},
    "speaks_no_codes": {"s3.read_if_match": "wrong ETag: 412, missing key: 404", "s3.put_if_none_match": "yes (1 of 8"},
    "ignores_ranges": {"s3.access": "yes", "s3.put_if_match": "yes"},
    "moto": {"s3.read_if_match": "wrong ETag: 412", "s3.copy_source_if_match": "copies are made in parts"},
}


@pytest.mark.parametrize("name", PERSONALITIES)
def test_each_odd_server_is_told_for_what_it_is(diagnosed: Callable[..., Report], name: str) -> None:
    report = diagnosed(PERSONALITIES[name])

    for question, words in EXPECTED[name].items():
        assert words in heard(report, question), question
    assert report.settings == ({"send_if_match": "false"} if name == "refuses_if_match" else {})
    assert [finding.name for finding in report.to_change] == (["s3.read_if_match"] if name == "refuses_if_match" else [])


def test_a_setting_that_was_taken_over_is_content(diagnosed: Callable[..., Report]) -> None:
    report = diagnosed(PERSONALITIES["refuses_if_match"], send_if_match=False)
    assert report.to_change == ()
    trusted = diagnosed(PERSONALITIES["ignores_conditions"], conditional_writes="trust")
    assert trusted.settings == {"conditional_writes": "probe"}
    assert {finding.verdict for finding in trusted.to_change} == {Grade.BAD}


def drops_user_metadata(request: Request, forward: Forward) -> Response:
    response = forward(request)
    headers = {name: value for name, value in response.headers.items() if not name.lower().startswith("x-amz-meta")}
    return Response(response.status, headers, response.body)


def names_no_etag_of_parts(request: Request, forward: Forward) -> Response:
    response = forward(request)
    if request.method == "POST" and "uploadId" in request.path:
        start, _, rest = response.body.partition(b"<ETag>")
        return Response(response.status, response.headers, start + b"<ETag>" + b"</ETag>" + rest.partition(b"</ETag>")[2])
    return response


def refuses_checksums(request: Request, forward: Forward) -> Response:
    if any(name.lower().startswith(("x-amz-checksum", "x-amz-sdk-checksum", "x-amz-trailer")) for name in request.headers):
        return refusal(400, "InvalidArgument")
    return forward(request)


def has_a_clock_of_its_own(request: Request, forward: Forward) -> Response:
    response = forward(request)
    return response.with_header("date", "Wed, 21 Oct 2015 07:28:00 GMT") if response.header("date") else response


def wants_etags_without_quotes(request: Request, forward: Forward) -> Response:
    """Ceph RGW 16, on writes: a quoted ETag never matches, a bare one does."""
    if request.method != "PUT" or not request.conditional:
        return forward(request)
    given = next((value for name, value in request.headers.items() if name.lower() == "if-match"), '"')
    return refusal(412) if '"' in given else forward(request.without("if-match"))


@pytest.mark.parametrize(
    ("rule", "question", "verdict", "words"),
    [
        (drops_user_metadata, "s3.metadata", Grade.WARN, "known again by its ETag only"),
        (names_no_etag_of_parts, "s3.multipart", Grade.OK, "it says none"),
        (refuses_checksums, "s3.access", Grade.BAD, "without botocore's default checksums it works"),
        (has_a_clock_of_its_own, "s3.dates", Grade.WARN, "answers are dated 1445412480"),
        (wants_etags_without_quotes, "s3.put_if_match", Grade.OK, "right ETag without its quotes: carried out"),
        (lambda _request, _forward: refusal(403, "AccessDenied"), "s3.access", Grade.BAD, "403"),
        (lambda _request, _forward: refusal(503, "SlowDown"), "s3.access", Grade.BAD, "503"),
    ],
    ids=["metadata", "parts", "checksums", "clock", "quotes", "denied", "busy"],
)
def test_each_fault_of_a_server_is_named(
    diagnosed: Callable[..., Report], rule: Rule, question: str, verdict: Grade, words: str
) -> None:
    report = diagnosed(rule)
    assert (grade(report, question), words in heard(report, question)) == (verdict, True), heard(report, question)


def test_what_may_not_be_removed_is_named_with_its_place(sound: Settings, sandbox: Sandbox, bucket: str) -> None:
    def keeps_all(request: Request, forward: Forward) -> Response:
        return refusal(403, "AccessDenied") if request.method == "DELETE" else forward(request)

    with proxied(sandbox.endpoint_url, keeps_all) as proxy:
        report = examine(sound.replace(endpoint_url=proxy.url), trial=Trial(bucket, tries=2))
    assert grade(report, "s3.access") is grade(report, "s3.cleanup") is Grade.BAD
    (left,) = left_in(sandbox, bucket)
    assert left.rpartition("/")[0] in heard(report, "s3.cleanup")


# --- lag ---


def test_a_replica_that_lags_is_measured(sound: Settings, sandbox: Sandbox, bucket: str) -> None:
    report = examine(sound.replace(read_endpoint_url=sandbox.read_endpoint_url), trial=Trial(bucket, tries=4))

    assert "stale after 4 of 4 writes: verification is needed" in heard(report, "s3.lag")
    assert (report.verification, grade(report, "s3.lag")) == ("needed", Grade.OK)
    assert left_in(sandbox, bucket) == []


def test_a_replica_that_never_gets_it_ends_the_measuring(sound: Settings, sandbox: Sandbox, bucket: str) -> None:
    sandbox.pause_replication()
    try:
        report = examine(
            sound.replace(read_endpoint_url=sandbox.read_endpoint_url), trial=Trial(bucket, tries=50, wait_seconds=0.3)
        )
    finally:
        sandbox.resume_replication()
    assert "stale after 1 of 1 writes" in heard(report, "s3.lag")
    assert report.settings == {"on_stale": "origin"}
    assert grade(report, "s3.lag") is Grade.BAD


def test_a_cdn_that_changes_etags_and_drops_metadata_is_a_fault(sound: Settings, sandbox: Sandbox, bucket: str) -> None:
    def cdn(request: Request, forward: Forward) -> Response:
        response = drops_user_metadata(request, forward)
        return response.with_header("etag", '"of-its-own"') if response.header("etag") else response

    with proxied(sandbox.endpoint_url, cdn) as proxy:
        report = examine(sound.replace(read_endpoint_url=proxy.url), trial=Trial(bucket, tries=2))
    assert "no read can be told to be fresh" in heard(report, "s3.lag")
    assert grade(report, "s3.lag") is Grade.BAD


# --- what is away or silent ---


def test_each_side_is_asked_though_the_other_is_away(sound: Settings, sandbox: Sandbox, bucket: str) -> None:
    no_redis = examine(sound.replace(ledger_url="redis://someone:hush@127.0.0.1:1/0"), trial=Trial(bucket, tries=2))
    assert grade(no_redis, "redis.reachable") is Grade.BAD
    assert grade(no_redis, "s3.put_if_match") is Grade.OK
    assert no_redis.reached
    assert "hush" not in json.dumps(no_redis.to_dict())
    no_s3 = examine(sound.replace(endpoint_url="http://127.0.0.1:1"), trial=Trial(bucket))
    assert (grade(no_s3, "redis.rights"), grade(no_s3, "s3.access"), no_s3.reached) == (Grade.OK, Grade.BAD, True)
    assert (grade(no_s3, "s3.cleanup"), heard(no_s3, "s3.cleanup").startswith("S3 does not answer")) == (Grade.UNKNOWN, True)
    neither = examine(sound.replace(ledger_url="redis://127.0.0.1:1/0", endpoint_url="http://127.0.0.1:1"), trial=Trial(bucket))
    assert not neither.reached


def test_a_read_endpoint_that_is_away_is_a_fault(sound: Settings, sandbox: Sandbox, bucket: str) -> None:
    report = examine(sound.replace(read_endpoint_url="http://127.0.0.1:1"), trial=Trial(bucket, tries=2))
    (finding,) = report.to_change
    assert (finding.name, finding.verdict, "read_endpoint_url" in finding.advice) == ("s3.lag", Grade.BAD, True)
    assert report.verification == "unknown"
    assert left_in(sandbox, bucket) == []


def test_where_nothing_could_be_asked_nothing_is_said_to_be_well(sound: Settings, bucket: str) -> None:
    report = examine(sound, trial=Trial(bucket), seconds=0)
    assert (report.verdict, report.reached) == (Grade.UNKNOWN, False)


def test_a_redis_that_is_silent_does_not_hold_it_up(settings: Settings) -> None:
    with RedisServer() as server:
        server.pause()
        try:
            began = time.monotonic()
            report = examine(settings.replace(ledger_url=server.url, ledger_timeout_seconds=0.3))
            assert grade(report, "redis.reachable") is Grade.BAD
            assert time.monotonic() - began < 30
        finally:
            server.resume()


def test_an_s3_that_falls_silent_half_way_does_not_hold_it_up(sound: Settings, sandbox: Sandbox, bucket: str) -> None:
    over = threading.Event()

    def falls_silent(request: Request, forward: Forward) -> Response:
        if len(proxy.seen) > 12:
            over.wait(120)
            raise Dropped
        return forward(request)

    with proxied(sandbox.endpoint_url, falls_silent) as proxy:
        began = time.monotonic()
        try:
            report = examine(
                sound.replace(endpoint_url=proxy.url, read_timeout_seconds=1.0), trial=Trial(bucket, tries=4), seconds=20.0
            )
        finally:
            over.set()
        assert time.monotonic() - began < 120
    assert (grade(report, "s3.access"), grade(report, "s3.cleanup")) == (Grade.OK, Grade.BAD)
    assert grade(report, "s3.put_if_match") is grade(report, "s3.lag") is Grade.UNKNOWN


# --- Redis ---


def test_an_evicting_forgetful_redis_is_told_with_what_to_set(settings: Settings, bucket: str) -> None:
    with RedisServer(["--maxmemory", "4mb", "--maxmemory-policy", "allkeys-lru"]) as server:
        report = examine(settings.replace(ledger_url=server.url))
    assert {finding.name: finding.verdict for finding in report.to_change} == {
        "redis.eviction": Grade.BAD, "redis.persistence": Grade.WARN, **_if_full(report),
    }
    assert (holds(report)["never_stale"], holds(report)["survives_restart"]) == (False, False)


@pytest.mark.parametrize(
    ("options", "expected", "words"),
    [
        (["--maxmemory", "64mb", "--appendonly", "yes"], Grade.OK, "noeviction"),
        (["--maxmemory", "64mb", "--maxmemory-policy", "allkeys-lru"], Grade.BAD, "allkeys-lru"),
        (["--maxmemory", "64mb"], Grade.WARN, "append-only"),
    ],
    ids=["sound", "evicting", "forgetful"],
)
def test_a_broker_with_a_redis_of_its_own_is_asked_as_well(
    sound: Settings, options: list[str], expected: Grade, words: str
) -> None:
    with RedisServer(options) as server, Celery("apart", broker=server.url, set_as_current=False) as app:
        report = examine(sound, app=app, worker_seconds=0.1)
    assert (grade(report, "redis.broker"), words in heard(report, "redis.broker")) == (expected, True)
    assert grade(report, "redis.eviction") is Grade.OK


def test_a_broker_that_is_the_ledgers_redis_is_asked_once(sound: Settings, sound_redis: RedisServer) -> None:
    elsewhere = sound_redis.url.replace("127.0.0.1", "localhost").replace("/0", "/3")
    with Celery("together", broker=elsewhere, set_as_current=False) as app:
        report = examine(sound, app=app, worker_seconds=0.1)
    assert (grade(report, "redis.broker"), "the ledger's" in heard(report, "redis.broker")) == (Grade.OK, True)


def test_of_a_broker_that_does_not_answer_it_says_so(sound: Settings) -> None:
    with Celery("away", broker="redis://:hush@127.0.0.1:1/0", set_as_current=False) as app:
        report = examine(sound, app=app, worker_seconds=0.1)
    assert grade(report, "redis.broker") is Grade.BAD
    assert "hush" not in json.dumps(report.to_dict())


def _if_full(report: Report) -> dict[str, Grade]:
    """How full a Redis of 4 MiB is at its start differs between servers."""
    full = grade(report, "redis.memory")
    return {} if full is Grade.OK else {"redis.memory": full}


def test_rights_that_are_missing_are_named(settings: Settings) -> None:
    with RedisServer() as server, redis.Redis.from_url(server.url) as admin:
        admin.execute_command(
            "ACL", "SETUSER", "few", "on", ">hush", "~*", "&*", "+ping", "+hgetall", "+evalsha", "+eval", "+get", "+time", "+select"
        )
        url = server.url.replace("//", "//few:hush@")
        report = examine(settings.replace(ledger_url=url))
        assert not [key for key in admin.keys("*") if admin.ttl(key) < 0], "what was tried expires"
    told = heard(report, "redis.rights")
    assert grade(report, "redis.rights") is Grade.BAD
    assert "begin: " in told
    assert "lookup" not in told
    assert (grade(report, "redis.eviction"), grade(report, "redis.latency")) == (Grade.UNKNOWN, Grade.UNKNOWN)
    assert "hush" not in json.dumps(report.to_dict())


def test_each_move_of_the_ledger_is_tried(ledger: Ledger) -> None:
    kinds_of_others = {"begin_many", "commit_many", "lookup_many"}
    housekeeping = {"close", "eviction_policy"}
    all_moves = {name for name, one in vars(Ledger).items() if callable(one) and not name.startswith("_")}
    assert set(moves(ledger, ObjectRef("b", "k"))) == all_moves - kinds_of_others - housekeeping


def test_what_was_tried_in_redis_is_gone_within_a_minute(sound: Settings, sound_redis: RedisServer) -> None:
    with redis.Redis.from_url(sound_redis.url) as admin:
        admin.flushall()
        examine(sound)
        left = {key: admin.ttl(key) for key in admin.keys("*")}
    assert all(0 < seconds <= 60 for seconds in left.values()), left
    assert all(key.startswith(sound.ledger_prefix.encode()) for key in left)


# --- the command ---


def command(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*arguments], cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=120, check=False
    )


@pytest.fixture
def environment(sandbox: Sandbox, sound_redis: RedisServer) -> dict[str, str]:
    given = {name: value for name, value in sandbox.environment().items() if not name.startswith("CELERY_")}
    return {**os.environ, **given, "S3TASKS_LEDGER_URL": sound_redis.url, "PYTHONPATH": str(REPOSITORY)}


def test_the_command_tells_a_person_and_a_script(environment: dict[str, str], versioned: str, sandbox: Sandbox) -> None:
    # However far the replica lags on a busy machine: there is nothing to change.
    environment["S3TASKS_ON_STALE"] = "origin"
    told = command(environment, *COMMAND, "doctor", "--bucket", f"{versioned}/x/", "--tries", "2")
    assert told.returncode == 0, told.stdout + told.stderr
    for words in ("What holds here", "checking reads against the ledger: needed", "Nothing to change."):
        assert words in told.stdout
    assert left_in(sandbox, versioned) == []
    assert "sandbox" not in told.stdout + told.stderr, "that is the secret key"

    changed = {**environment, "S3TASKS_CONDITIONAL_WRITES": "trust"}
    said = command(changed, *COMMAND, "doctor", "--bucket", versioned, "--tries", "2", "--json")
    report = json.loads(said.stdout)
    assert (said.returncode, report["verdict"], report["schema"]) == (1, "bad", 1)
    assert report["settings"] == {"conditional_writes": "probe"}
    assert [finding["name"] for finding in report["findings"]] == NAMES
    assert {"name", "question", "heard", "verdict", "advice", "settings"} == set(report["findings"][0])


def test_what_was_not_asked_for_one_reason_is_one_line(environment: dict[str, str]) -> None:
    told = command(environment, *COMMAND, "doctor")
    assert (told.returncode, told.stdout.count("--bucket")) == (0, 1), told.stdout
    assert told.stdout.endswith("Nothing to change. 18 questions without an answer.\n")


@pytest.mark.parametrize(
    "nonsense",
    [("--tries", "0"), ("--tries", "x"), ("--wait", "-1"), ("--wait", "inf"), ("--seconds", "nan"), ("--bucket", ""), ("--frob",)],
    ids=" ".join,
)
def test_nonsense_is_refused_before_anything_is_asked(environment: dict[str, str], nonsense: tuple[str, ...]) -> None:
    refused = command(environment, *COMMAND, "doctor", "--bucket", "b", "--json", *nonsense)
    assert (refused.returncode, refused.stdout, "Traceback" in refused.stderr) == (2, "", False)
    assert refused.stderr.splitlines()[-1].startswith("s3tasks")


def test_the_command_ends_with_2_where_nothing_answers_or_nothing_was_said(environment: dict[str, str]) -> None:
    away = command({**environment, "S3TASKS_LEDGER_URL": "redis://u:hush@127.0.0.1:1/0"}, *COMMAND, "doctor")
    assert (away.returncode, "hush" in away.stdout + away.stderr) == (2, False)
    unset = command({**environment, "S3TASKS_LEDGER_URL": ""}, *COMMAND, "doctor")
    assert (unset.returncode, "celery -A APP s3tasks doctor" in unset.stderr) == (2, True)


@pytest.mark.parametrize(("ending", "at_write"), [(signal.SIGINT, 1), (signal.SIGTERM, 12)])
def test_told_to_stop_it_removes_its_scratch_objects_first(
    environment: dict[str, str], sandbox: Sandbox, versioned: str, ending: signal.Signals, at_write: int
) -> None:
    process: subprocess.Popen[bytes]

    told: list[Request] = []

    def stops_it(request: Request, forward: Forward) -> Response:
        response = forward(request)
        if proxy.count("PUT") >= at_write and not told:
            # Before the answer comes, though the object is there.
            told.append(request)
            process.send_signal(ending)
            threading.Event().wait(0.5)
        return response

    with proxied(sandbox.endpoint_url) as proxy, subprocess.Popen(
        [*COMMAND, "doctor", "--bucket", versioned, "--tries", "1000"], env={**environment, "S3TASKS_ENDPOINT_URL": proxy.url},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as process:
        proxy.rule = stops_it
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out, b"Traceback" in err) == (130, b"", False)
    assert left_in(sandbox, versioned) == []


# --- through Celery ---


@pytest.fixture
def celery(sandbox: Sandbox) -> Callable[..., subprocess.CompletedProcess[str]]:
    """`celery -A app s3tasks …`, as installed."""
    environment = {**os.environ, **sandbox.environment(), "PYTHONPATH": str(REPOSITORY)}

    def run(app: str, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
        program = str(Path(sys.executable).parent / "celery")
        return command({**environment, **more}, program, "-A", app, "s3tasks", *arguments)

    return run


def told_by(said: subprocess.CompletedProcess[str]) -> dict[str, dict[str, Any]]:
    return {finding["name"]: finding for finding in json.loads(said.stdout)["findings"]}


def test_celery_finds_the_command_and_asks_the_apps_workers(celery: Any, worker: WorkerProcess, bucket: str) -> None:
    said = celery("tests.integration.app", "doctor", "--json")
    told = told_by(said)
    assert said.returncode == 1, said.stderr
    assert (told["celery.workers"]["verdict"], told["celery.versions"]["verdict"]) == ("ok", "ok")
    assert told["celery.results"]["heard"] == "yes, as JSON, in redis"
    assert told["celery.timeouts"]["verdict"] == "warn", "the tests' app sets none"
    assert told["redis.reachable"]["verdict"] == "ok", "the ledger is where the app's settings say"


def test_the_deployable_workers_configuration_passes(celery: Any, worker: WorkerProcess) -> None:
    told = told_by(celery("worker_config", "doctor", "--json"))
    asked = (
        "visibility_timeout", "acks", "prefetch", "results", "serializers", "timeouts", "eager", "workers", "versions",
    )
    assert {name: finding["verdict"] for name, finding in told.items() if name.startswith("celery.")} == {
        f"celery.{name}": "ok" for name in asked
    }


def test_results_that_nobody_can_keep_are_a_fault(celery: Any, worker: WorkerProcess) -> None:
    told = told_by(celery("worker_config", "doctor", "--json", CELERY_RESULT_BACKEND="redis://someone:hush@127.0.0.1:1/0"))
    assert (told["celery.results"]["verdict"], told["celery.workers"]["verdict"]) == ("bad", "ok")
    assert "redis://***@127.0.0.1:1/0 does not answer" in told["celery.results"]["heard"]
    assert "hush" not in str(told)


def test_no_worker_and_a_silent_broker_are_told_in_time(celery: Any) -> None:
    with RedisServer() as server:
        urls = {"CELERY_BROKER_URL": server.url, "CELERY_RESULT_BACKEND": server.url, "S3TASKS_LEDGER_URL": server.url}
        told = told_by(celery("worker_config", "doctor", "--json", **urls))
        assert (told["celery.workers"]["verdict"], told["celery.versions"]["verdict"]) == ("bad", "unknown")
        server.pause()
        try:
            # An app that sets no timeouts: kombu would wait for ever.
            said = celery("tests.integration.app", "doctor", "--json", **urls, S3TASKS_LEDGER_TIMEOUT_SECONDS="0.5")
        finally:
            server.resume()
    assert said.returncode == 2
    told = told_by(said)
    assert (told["redis.reachable"]["verdict"], told["celery.workers"]["verdict"]) == ("bad", "bad")


def test_an_app_without_s3_tasks_is_told_so(celery: Any, tmp_path: Path) -> None:
    (tmp_path / "bare.py").write_text("from celery import Celery\napp = Celery('bare', broker='redis://127.0.0.1:1/0')\n")
    path = f"{tmp_path}{os.pathsep}{REPOSITORY}"
    said = celery("bare", "doctor", PYTHONPATH=path)
    assert (said.returncode, "S3Tasks(app)" in said.stderr, "Traceback" in said.stderr) == (2, True, False)


def test_celery_offers_the_other_commands_and_their_help(celery: Any, bucket: str, sandbox: Sandbox) -> None:
    assert celery("worker_config", "show", f"s3://{bucket}/nothing").returncode == 4
    helped = celery("worker_config", "--help")
    assert helped.returncode == 0
    assert "celery -A APP s3tasks" in helped.stdout
    assert "doctor" in helped.stdout
    assert "demo" not in helped.stdout
