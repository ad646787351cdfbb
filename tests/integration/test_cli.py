"""`s3tasks show`, `forget`, `list`, `read`, `write` and `delete`, as a person or a script starts them."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from s3tasks import ConsistentS3, ObjectRef, Settings
from s3tasks.cli import main
from s3tasks.cli.terminal import Surroundings
from s3tasks.evidence import Landed
from s3tasks.ledger import Ledger
from s3tasks.refs import Marker, record_key
from s3tasks.sandbox import RedisServer, Sandbox
from s3tasks.store import Condition, Content, Store
from tests.conftest import REPOSITORY
from tests.s3_proxy import Dropped, Forward, Request, Response, proxied, refusal

COMMAND = [sys.executable, "-m", "s3tasks.cli"]
BINARY = bytes(range(256)) * 4096


@pytest.fixture
def environment(sandbox: Sandbox) -> dict[str, str]:
    """As a person has exported it, with a ledger of this test's own."""
    given = {name: value for name, value in sandbox.environment().items() if not name.startswith("CELERY_")}
    prefix = f"t{uuid.uuid4().hex[:8]}"
    return {**os.environ, **given, "S3TASKS_LEDGER_PREFIX": prefix, "PYTHONPATH": str(REPOSITORY)}


@pytest.fixture
def settings_of(environment: dict[str, str]) -> Settings:
    return Settings.from_env({name: value for name, value in environment.items() if name.startswith("S3TASKS_")})


@pytest.fixture
def run(environment: dict[str, str]) -> Callable[..., subprocess.CompletedProcess[bytes]]:
    """Runs a command in a process of its own."""

    def run_it(*arguments: str, stdin: bytes = b"", **more: str) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            [*COMMAND, *arguments], env={**environment, **more}, input=stdin, capture_output=True, timeout=60, check=False
        )

    return run_it


@pytest.fixture
def call(settings_of: Settings) -> Callable[..., int]:
    """Runs a command in this process, which is quicker; for what is not about processes."""
    return lambda *arguments, **changes: main(arguments, Surroundings(lambda: settings_of.replace(**changes)))


@pytest.fixture
def client(settings_of: Settings, connect: Callable[[Settings], ConsistentS3]) -> ConsistentS3:
    return connect(settings_of)


def one_line(ran: subprocess.CompletedProcess[bytes]) -> str:
    text = ran.stderr.decode()
    assert text.count("\n") == 1, text
    assert "Traceback" not in text
    return text


# --- read, write, delete ---


def test_bytes_go_in_and_out_as_they_are(run: Any, bucket: str, tmp_path: Path) -> None:
    written = run("write", "-", f"s3://{bucket}/k", stdin=BINARY)
    assert (written.returncode, written.stderr) == (0, b"")
    assert json.loads(written.stdout)["key"] == "k"

    read = run("read", f"s3://{bucket}/k", "--wait", "30")
    assert (read.returncode, read.stdout == BINARY, read.stderr) == (0, True, b"")
    exactly = run("read", written.stdout.decode().strip(), str(tmp_path / "copy"), "--wait", "30")
    assert (exactly.returncode, exactly.stdout) == (0, b"")
    assert (tmp_path / "copy").read_bytes() == BINARY


def test_a_file_is_written_and_a_stream_of_any_length(run: Any, bucket: str, tmp_path: Path, client: ConsistentS3) -> None:
    (tmp_path / "file").write_bytes(BINARY)
    assert run("write", str(tmp_path / "file"), f"s3://{bucket}/file", "--content-type", "image/x").returncode == 0
    assert client.head(f"s3://{bucket}/file", wait=30)["content_type"] == "image/x"
    assert run("write", "-", f"s3://{bucket}/large", stdin=BINARY * 10).returncode == 0
    assert client.read(f"s3://{bucket}/large", wait=30) == BINARY * 10


def test_a_missing_or_deleted_object_is_status_4(run: Any, bucket: str) -> None:
    missing = run("read", f"s3://{bucket}/nothing")
    assert (missing.returncode, missing.stdout) == (4, b"")
    assert f"s3://{bucket}/nothing" in one_line(missing)
    run("write", "-", f"s3://{bucket}/k", stdin=b"x")
    deleted = run("delete", f"s3://{bucket}/k")
    assert (deleted.returncode, json.loads(deleted.stdout)["deleted"]) == (0, True)
    assert run("read", f"s3://{bucket}/k").returncode == 4


def test_what_s3_does_not_serve_in_time_is_status_3_and_leaves_no_file(
    run: Any, bucket: str, sandbox: Sandbox, tmp_path: Path
) -> None:
    sandbox.pause_replication()
    try:
        assert run("write", "-", f"s3://{bucket}/k", stdin=b"late").returncode == 0
        late = run("read", f"s3://{bucket}/k", str(tmp_path / "late"), "--wait", "0.3")
        assert late.returncode == 3
        assert "not visible yet" in one_line(late)
        assert list(tmp_path.iterdir()) == []
    finally:
        sandbox.resume_replication()
    assert run("read", f"s3://{bucket}/k", "--wait", "30").stdout == b"late"


def test_a_write_on_condition_that_nothing_is_there_loses_to_what_is(
    call: Any, client: ConsistentS3, bucket: str, tmp_path: Path
) -> None:
    client.write(b"there", f"s3://{bucket}/k")
    (tmp_path / "f").write_bytes(b"x")
    assert call("write", str(tmp_path / "f"), f"s3://{bucket}/k", "--if-none-match") == 1
    assert client.read(f"s3://{bucket}/k", wait=30) == b"there"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("read", "not-a-uri"), "must begin with s3://"),
        (("read", "{broken"), "{broken is not a usable object ref: it begins like the JSON that `write` prints"),
        (("read", "s3://b/../k"), "resolved as a path"),
        (("write", "/no/such/file", "s3://b/k"), "/no/such/file"),
        (("read", "s3://b/k", "--wait", "-1"), "wait"),
        (("list", "b/k"), "s3://bucket"),
        (("list", "--limit", "-4"), "-4 must be a whole number from 1"),
        (("show", "s3://b/k", "--frob"), "--frob"),
        (("list", "s3://bad bucket"), "bucket"),
        (("forget", "s3://b/k"), "--yes"),
    ],
)
def test_nonsense_is_one_line_and_status_2(call: Any, arguments: tuple[str, ...], words: str, capfd: Any) -> None:
    assert status(call, *arguments) == 2
    said = capfd.readouterr()
    assert said.out == ""
    assert words in said.err.splitlines()[-1]
    assert "Traceback" not in said.err


def status(call: Any, *arguments: str) -> int:
    """What the process would end with: argparse leaves by itself."""
    try:
        return int(call(*arguments))
    except SystemExit as leaving:
        return int(str(leaving.code))


def test_settings_that_are_wrong_or_missing_are_status_2_and_name_the_way_out(run: Any) -> None:
    wrong = run("read", "s3://b/k", S3TASKS_ON_STALE="perhaps")
    assert (wrong.returncode, "on_stale" in one_line(wrong)) == (2, True)
    unknown = run("show", "s3://b/k", S3TASKS_NONSENSE="1")
    assert (unknown.returncode, "S3TASKS_NONSENSE" in one_line(unknown)) == (2, True)
    missing = run("list", S3TASKS_LEDGER_URL="")
    assert (missing.returncode, "S3TASKS_LEDGER_URL" in one_line(missing)) == (2, True)


@pytest.mark.parametrize("command", [("read", "s3://b/k"), ("show", "s3://b/k"), ("list",), ("delete", "s3://b/k")])
def test_a_redis_that_is_away_is_status_1_and_its_password_is_not_told(call: Any, command: tuple[str, ...], capfd: Any) -> None:
    assert call(*command, ledger_url="redis://someone:hush@127.0.0.1:1/0") == 1
    said = capfd.readouterr()
    assert "ledger (Redis) is unavailable" in said.err
    assert "hush" not in said.err + said.out


def test_a_store_that_refuses_is_status_1_in_one_line_without_control_characters(
    call: Any, bucket: str, sandbox: Sandbox, capfd: Any
) -> None:
    with proxied(sandbox.endpoint_url, lambda _request, _forward: refusal(403, "Access\x1b[31mDenied")) as proxy:
        assert call("read", f"s3://{bucket}/k\x1b[2J", endpoint_url=proxy.url, read_endpoint_url=None) == 1
    said = capfd.readouterr().err
    assert "403" in said
    assert "\x1b" not in said
    assert said.count("\n") == 1


def test_a_reader_that_has_seen_enough_ends_it_quietly(environment: dict[str, str], bucket: str, client: ConsistentS3) -> None:
    client.write(BINARY * 4, f"s3://{bucket}/k")
    with subprocess.Popen(
        [*COMMAND, "read", f"s3://{bucket}/k", "--wait", "30"], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.read(10) == BINARY[:10]
        process.stdout.close()
        assert process.wait(timeout=60) == 141
        assert process.stderr.read() == b""


def test_ctrl_c_ends_it_quietly(environment: dict[str, str], bucket: str, sandbox: Sandbox, client: ConsistentS3) -> None:
    asked = []

    def notes(request: Request, forward: Forward) -> Response:
        asked.append(request)
        return refusal(404, "NoSuchKey")

    client.write(b"x", f"s3://{bucket}/k")
    with proxied(sandbox.endpoint_url, notes) as proxy, subprocess.Popen(
        [*COMMAND, "read", f"s3://{bucket}/k", "--wait", "600"], env={**environment, "S3TASKS_READ_ENDPOINT_URL": proxy.url},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as process:
        while not asked:
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (130, b"", b"")


# --- show ---


def shown(call: Any, capfd: Any, *arguments: str, **changes: Any) -> tuple[int, dict[str, Any]]:
    capfd.readouterr()
    status = call("show", *arguments, "--json", **changes)
    return status, json.loads(capfd.readouterr().out)


def test_show_tells_who_wrote_what_and_what_each_endpoint_serves(
    call: Any, capfd: Any, bucket: str, sandbox: Sandbox, client: ConsistentS3
) -> None:
    uri = f"s3://{bucket}/k"
    first = client.with_write_ids(lambda _: "task-1", 0).write(b"1", uri)
    client.wait_visible(first, wait=30)
    sandbox.pause_replication()
    try:
        second = client.with_write_ids(lambda _: "task-2", 0).write(b"22", uri)
        status, said = shown(call, capfd, uri)
        assert (status, said["verdict"], said["ref"], said["schema"]) == (3, "stale", uri, 1)
        (current,) = said["ledger"]["current"]
        assert (current["written_by"], current["etag"], current["size"], current["deleted"]) == ("task-2", second.etag, 2, False)
        assert 0 <= current["age_seconds"] < 60
        assert said["served"]["write_endpoint"]["written_by"] == "task-2"
        assert (said["served"]["read_endpoint"]["written_by"], said["served"]["read_endpoint"]["etag"]) == ("task-1", first.etag)
        assert call("show", uri) == 3
        text = capfd.readouterr().out
        for word in (uri, "task-1", "task-2", str(second.etag), "an older object is served: wait", "s ago"):
            assert word in text
        assert shown(call, capfd, uri, on_stale="origin")[1]["verdict"] == "fresh"
    finally:
        sandbox.resume_replication()
    client.wait_visible(second, wait=30)
    assert shown(call, capfd, uri)[0] == 0


def test_show_tells_of_writes_that_are_under_way_and_changes_nothing(
    call: Any, capfd: Any, bucket: str, settings_of: Settings, closing: Any
) -> None:
    ledger, store = closing(Ledger(settings_of)), closing(Store(settings_of))
    ref = ObjectRef(bucket, "k")
    begun = ledger.begin(ref, "crashed-task")
    ledger.begin(ref, "crashed-task")
    store.put(ref, Content(b"x"), Marker("crashed-task", begun.ticket), Condition())
    before = ledger.lookup(ref)

    status, said = shown(call, capfd, ref.uri, read_endpoint_url=None)

    assert (status, said["verdict"]) == (0, "unfinished")
    (intent,) = said["ledger"]["open"]
    assert (intent["written_by"], intent["attempts"], intent["deletes"]) == ("crashed-task", 2, False)
    assert intent["age_seconds"] >= intent["last_attempt_seconds"] >= 0
    assert ledger.lookup(ref) == before
    assert call("show", ref.uri) in (0, 4)
    assert "under way       a write by crashed-task" in capfd.readouterr().out


def test_show_asks_the_write_endpoint_where_a_read_would(
    call: Any, capfd: Any, bucket: str, settings_of: Settings, closing: Any, sandbox: Sandbox
) -> None:
    ledger, store = closing(Ledger(settings_of)), closing(Store(settings_of))
    ref = ObjectRef(bucket, "k")
    begun = ledger.begin(ref, "crashed-task")
    store.put(ref, Content(b"x"), Marker("crashed-task", begun.ticket), Condition())
    sandbox.drain()
    assert shown(call, capfd, ref.uri)[1]["verdict"] == "unfinished"
    sandbox.pause_replication()
    try:
        store.delete(ref, Condition())
        status, said = shown(call, capfd, ref.uri)
    finally:
        sandbox.resume_replication()
    assert (status, said["verdict"]) == (4, "missing"), "the replica serves it still, but only the write endpoint can tell"
    assert said["served"]["read_endpoint"]["written_by"] == "crashed-task"


def test_show_has_the_status_of_a_read(call: Any, capfd: Any, bucket: str, client: ConsistentS3, sandbox: Sandbox) -> None:
    assert shown(call, capfd, f"s3://{bucket}/nothing")[0] == 4
    client.write(b"x", f"s3://{bucket}/gone")
    client.delete(f"s3://{bucket}/gone")
    status, said = shown(call, capfd, f"s3://{bucket}/gone")
    assert (status, said["verdict"]) == (4, "deleted")
    assert said["ledger"]["current"][0]["deleted"] is True

    def away(_request: Request, _forward: Forward) -> Response:
        raise Dropped

    client.write(b"x", f"s3://{bucket}/there")
    with proxied(sandbox.endpoint_url, away) as proxy:
        status, said = shown(call, capfd, f"s3://{bucket}/there", read_endpoint_url=proxy.url, store_attempts=1)
    assert (status, said["verdict"]) == (1, None)
    assert "unavailable" in said["served"]["read_endpoint"]["error"]
    assert said["served"]["write_endpoint"]["size"] == 1


# --- forget ---


def test_forget_says_what_it_means_and_asks(
    environment: dict[str, str], bucket: str, client: ConsistentS3, settings_of: Settings, closing: Any
) -> None:
    ref = client.write(b"x", f"s3://{bucket}/k")
    ledger = closing(Ledger(settings_of))
    for answer, status in ((b"n\n", 1), (b"y\n", 0)):
        controller, terminal = pty.openpty()
        with subprocess.Popen(
            [*COMMAND, "forget", ref.uri], env=environment, stdin=terminal, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        ) as process:
            os.write(controller, answer)
            _, err = process.communicate(timeout=60)
        os.close(controller)
        os.close(terminal)
        assert process.returncode == status, err
        assert b"stale or not, until it is written again" in err
        assert bool(ledger.lookup(ref).currents) == (status == 1)


def test_forget_without_a_record_is_status_4(call: Any, bucket: str, client: ConsistentS3) -> None:
    client.write(b"x", f"s3://{bucket}/k")
    assert call("forget", f"s3://{bucket}/k", "--yes") == 0
    assert call("forget", f"s3://{bucket}/k", "--yes") == 4


# --- list ---


def listed(call: Any, capfd: Any, *arguments: str, **changes: Any) -> tuple[int, dict[str, Any]]:
    capfd.readouterr()
    status = call("list", *arguments, "--json", **changes)
    return status, json.loads(capfd.readouterr().out)


ODD = ("plain", "a*b", "a?b", "a[b]c", "{braces}", "back\\slash", "ünï/日本", "a^b-c")


def test_list_finds_every_record_of_a_prefix_and_no_other(
    call: Any, capfd: Any, buckets: Iterator[str], client: ConsistentS3
) -> None:
    ours, other = next(buckets), next(buckets)
    for key in ODD:
        client.write(b"x", f"s3://{ours}/{key}")
    client.write(b"x", f"s3://{other}/plain")
    client.delete(f"s3://{ours}/plain")

    assert {one["ref"] for one in listed(call, capfd)[1]["objects"]} == {
        *(f"s3://{ours}/{key}" for key in ODD), f"s3://{other}/plain",
    }
    assert {one["ref"] for one in listed(call, capfd, f"s3://{ours}")[1]["objects"]} == {f"s3://{ours}/{key}" for key in ODD}
    for key in ODD:
        assert [one["ref"] for one in listed(call, capfd, f"s3://{ours}/{key}")[1]["objects"]] == [f"s3://{ours}/{key}"]
    status, said = listed(call, capfd, "--limit", "3")
    assert (status, said["looked_at"], said["complete"], len(said["objects"])) == (0, 3, False, 3)


def test_list_stale_shows_what_a_read_would_wait_for_and_nothing_else(
    call: Any, capfd: Any, bucket: str, client: ConsistentS3, sandbox: Sandbox
) -> None:
    fresh = client.write(b"x", f"s3://{bucket}/fresh")
    old = client.write(b"1", f"s3://{bucket}/old")
    for ref in (fresh, old):
        client.wait_visible(ref, wait=30)
    assert call("list", "--stale", f"s3://{bucket}") == 0
    assert capfd.readouterr().err == "2 objects looked at, each is served as promised\n"
    assert listed(call, capfd, "--stale", f"s3://{bucket}") == (0, {"schema": 1, "looked_at": 2, "complete": True, "objects": []})
    sandbox.pause_replication()
    try:
        client.write(b"2", f"s3://{bucket}/old")
        client.write(b"3", f"s3://{bucket}/new")
        client.delete(f"s3://{bucket}/fresh")
        status, said = listed(call, capfd, "--stale", f"s3://{bucket}")
        assert status == 3
        assert {one["ref"].rpartition("/")[2]: one["verdict"] for one in said["objects"]} == {
            "old": "stale", "new": "not_yet_visible",
        }
        assert call("list", "--stale", f"s3://{bucket}") == 3
        text = capfd.readouterr()
        assert text.out.count("\n") == 2
        assert f"s3://{bucket}/new  not_yet_visible: " in text.out
        assert "3 objects looked at" in text.err
        status, said = listed(call, capfd, "--stale", f"s3://{bucket}", read_endpoint_url="http://127.0.0.1:1")
        assert (status, [one["verdict"] for one in said["objects"]]) == (1, [None] * 3), "nobody knows whether they are stale"
    finally:
        sandbox.resume_replication()


def test_a_key_that_somebody_put_among_the_records_is_passed_over(
    call: Any, capfd: Any, bucket: str, client: ConsistentS3, settings_of: Settings, closing: Any
) -> None:
    client.write(b"x", f"s3://{bucket}/k")
    ledger = closing(Ledger(settings_of))
    ledger._redis.set(f"{settings_of.ledger_prefix}:key:{{no ref}}", "x")
    ledger._redis.set(record_key(settings_of.ledger_prefix, ObjectRef(bucket, "odd")), "not a hash")
    assert {one["ref"] for one in listed(call, capfd)[1]["objects"]} == {f"s3://{bucket}/k", f"s3://{bucket}/odd"}


def test_a_record_that_a_newer_version_keeps_is_named_and_can_be_dropped(
    call: Any, capfd: Any, bucket: str, client: ConsistentS3, settings_of: Settings, closing: Any
) -> None:
    client.write(b"x", f"s3://{bucket}/k")
    newer = f"s3://{bucket}/newer"
    ledger = closing(Ledger(settings_of))
    ledger._redis.hset(record_key(settings_of.ledger_prefix, ObjectRef.parse(newer)), mapping={"v": "99", "c:a": "x"})

    for options in ((), ("--stale",)):
        said = {one["ref"]: one["served"]["read_endpoint"] for one in listed(call, capfd, f"s3://{bucket}", *options)[1]["objects"]}
        assert "schema '99'" in said[newer]["error"]
    assert call("show", newer) == 1
    assert "upgrade" in capfd.readouterr().err
    assert call("forget", newer, "--yes") == 0
    assert "a newer version keeps it" in capfd.readouterr().err
    assert call("forget", newer, "--yes", ledger_url="redis://127.0.0.1:1/0") == 1
    assert capfd.readouterr().err.startswith("s3tasks forget: the ledger (Redis) is unavailable"), "before anything else"
    assert newer not in {one["ref"] for one in listed(call, capfd)[1]["objects"]}


def test_what_a_record_holds_cannot_speak_to_the_terminal(call: Any, capfd: Any, client: ConsistentS3, bucket: str) -> None:
    client.with_write_ids(lambda _: "evil\x1b]0;\x07\n", 0).write(b"x", f"s3://{bucket}/k\x1b[31m")
    for command in (("list",), ("show", f"s3://{bucket}/k\x1b[31m")):
        call(*command)
        said = capfd.readouterr()
        assert "\x1b" not in said.out + said.err
        assert "evil\\x1b" in said.out


def test_a_ledger_that_is_full_of_other_things_is_looked_through(
    call: Any, capfd: Any, bucket: str, settings_of: Settings, closing: Any
) -> None:
    with RedisServer() as redis:
        ledger = closing(Ledger(settings_of.replace(ledger_url=redis.url)))
        pipeline = ledger._redis.pipeline()
        for number in range(20_000):
            pipeline.set(f"celery-task-meta-{number}", "x")
        pipeline.execute()
        ledger.commit(ObjectRef(bucket, "k"), "w", 1, Landed(etag="e"), landed_ticket=1)
        assert [one["ref"] for one in listed(call, capfd, ledger_url=redis.url)[1]["objects"]] == [f"s3://{bucket}/k"]


# --- help ---


def test_help_tells_the_exit_statuses_and_loads_nothing_heavy() -> None:
    program = (
        "import sys\nfrom s3tasks.cli import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit as end:\n    assert end.code == 0\n"
        "print(*sys.modules, file=sys.stderr)"
    )
    ran = subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert "exit status: 0 done" in " ".join(ran.stdout.split())
    loaded = set(ran.stderr.split())
    assert loaded & {"boto3", "botocore", "redis", "celery", "kombu", "moto", "tenacity", "click", "http.client"} == set()
