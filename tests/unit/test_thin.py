"""The short path of small calls: the same requests as botocore's, the same answers, and the same conduct when things go wrong."""

from __future__ import annotations

import hashlib
import os
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, nullcontext, suppress
from datetime import datetime, timedelta, timezone
from io import BytesIO
from pathlib import Path
from typing import Any

import boto3
import botocore.session
import pytest
from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest, AWSResponse
from botocore.config import Config
from botocore.credentials import ReadOnlyCredentials
from botocore.handlers import BUILTIN_HANDLERS
from urllib3 import HTTPResponse
from urllib3.connection import HTTPConnection

from s3tasks import LocalFileError, ObjectRef, Settings, StoreError, StoreUnavailable
from s3tasks.refs import Marker
from s3tasks.store import Condition, Content, Endpoint, Store
from s3tasks.store.spelling import can_spell, checksum_of, said_by
from s3tasks.store.thin import ThinClient
from s3tasks.store.wire import Origin, Reply, Wire, _Line
from tests.benchmarks.fast_s3 import FastS3
from tests.s3_proxy import Dropped, Forward, Request, Response, proxied, refusal
from tests.scripted_server import GOOD, scripted

FREE = Condition()
MARKER = Marker("writer", 7)
KEYS = ReadOnlyCredentials("AKIDEXAMPLE", "secret", None)
ODD_KEYS = [
    "plain", "with space", "plus+plus", "per%cent%2F", "a//b", "ünïcode/日本", "~tilde._-", "q?x=1&y#z", "{b}[r]", "semi;colon:,@$",
    "'quotes\"", "back\\slash", "k" * 1024, "trailing/", "e\u0301", "\x7f\x01", "*!()", "=", "&amp;", "😀",
]
CALLS: list[tuple[str, dict[str, Any]]] = [
    ("GetObject", {}),
    ("GetObject", {"IfMatch": '"abc"'}),
    ("GetObject", {"IfNoneMatch": '"abc"', "Range": "bytes=0-9"}),
    ("GetObject", {"VersionId": "a+b/c=~d"}),
    ("GetObject", {"ExpectedBucketOwner": "123456789012", "RequestPayer": "requester"}),
    ("HeadObject", {}),
    ("HeadObject", {"ChecksumMode": "ENABLED", "VersionId": "v1"}),
    ("PutObject", {"Body": b"", "Metadata": {"s3tasks-write": "a;1;b"}}),
    ("PutObject", {"Body": b"body", "Metadata": {"A": "two  spaces", "b.c": "x"}, "ContentType": "text/plain; charset=utf-8"}),
    ("PutObject", {"Body": b"\0" * 70_000, "Metadata": {}, "IfMatch": '"abc"'}),
    ("PutObject", {"Body": b"x", "IfNoneMatch": "*"}),
    ("DeleteObject", {}),
    ("DeleteObject", {"IfMatch": '"abc"', "VersionId": "null"}),
]
PLACES: dict[str, dict[str, Any]] = {
    "path": {"endpoint_url": "http://127.0.0.1:9000", "config": {"s3": {"addressing_style": "path"}}},
    "path below a path": {"endpoint_url": "http://gateway.example/s3/", "config": {"s3": {"addressing_style": "path"}}},
    "virtual": {"endpoint_url": "http://store.example:8080", "config": {"s3": {"addressing_style": "virtual"}}},
    "IPv6": {"endpoint_url": "http://[::1]:9000"},
    "TLS": {"endpoint_url": "https://Store.Example:443"},
    "AWS": {"region_name": "us-east-1"},
    "AWS in Europe": {"region_name": "eu-central-1"},
    "AWS in China": {"region_name": "cn-north-1"},
    "dual stack": {"region_name": "eu-west-1", "config": {"s3": {"use_dualstack_endpoint": True}}},
    "FIPS": {"region_name": "us-west-2", "config": {"use_fips_endpoint": True}},
    "accelerated": {"region_name": "us-west-2", "config": {"s3": {"use_accelerate_endpoint": True}}},
    "no checksums": {
        "endpoint_url": "https://store.example",
        "config": {"request_checksum_calculation": "when_required", "response_checksum_validation": "when_required"},
    },
    "signed bodies": {"endpoint_url": "https://store.example", "config": {"s3": {"payload_signing_enabled": True}}},
}
OF_ONE_ATTEMPT = {"amz-sdk-invocation-id", "amz-sdk-request", "expect", "user-agent", "x-amz-date", "authorization"}
OF_TRAILERS = {"x-amz-trailer", "transfer-encoding", "content-encoding", "x-amz-decoded-content-length"}


def client_of(endpoint_url: str | None = None, region_name: str = "us-east-1", config: dict[str, Any] | None = None) -> Any:
    session = boto3.session.Session(KEYS.access_key, KEYS.secret_key, region_name=region_name)
    return session.client("s3", endpoint_url=endpoint_url, config=Config(**(config or {})))


class Recorder(Wire):
    """A wire that is not connected to anything."""

    def __init__(self, client: Any) -> None:
        super().__init__(client, None)
        self.sent: list[tuple[str, Origin, str, bytes, bytes]] = []

    def ask(self, url: str, origin: Origin, method: str, head: bytes, body: bytes) -> Reply:
        self.sent.append((url, origin, method, head, body))
        length = {"PUT": {"content-length": "0"}}.get(method, {"content-length": "4"})
        return Reply(204 if method == "DELETE" else 200, length, BytesIO())


def headers_in(head: bytes) -> tuple[str, dict[str, str]]:
    first, *lines = head.decode().removesuffix("\r\n\r\n").split("\r\n")
    pairs = [line.split(": ", 1) for line in lines]
    assert len({name.lower() for name, _ in pairs}) == len(pairs)
    return first, {name.lower(): value for name, value in pairs}


def made_by_botocore(client: Any, operation: str, parameters: dict[str, Any]) -> Any:
    """The request that botocore would send for the call."""
    made: list[Any] = []

    def record(request: Any, **_: Any) -> AWSResponse:
        made.append(request)
        return AWSResponse(request.url, 200, {}, HTTPResponse(BytesIO(), preload_content=False))

    client.meta.events.register("before-send.s3", record)
    client._make_api_call(operation, parameters)
    client.meta.events.unregister("before-send.s3", record)
    return made[0]


def text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


@pytest.fixture(params=PLACES, scope="module")
def pair(request: pytest.FixtureRequest) -> Iterator[tuple[ThinClient, Recorder, Any]]:
    """Our client with what it sends, and botocore's, set up alike."""
    ours, theirs = client_of(**PLACES[request.param]), client_of(**PLACES[request.param])
    wire = Recorder(ours)
    yield ThinClient(ours, wire), wire, theirs
    ours.close()
    theirs.close()


@pytest.mark.parametrize(("operation", "more"), CALLS, ids=[f"{name}-{','.join(more)}" for name, more in CALLS])
def test_a_call_is_spelled_as_botocore_spells_it(
    pair: tuple[ThinClient, Recorder, Any], operation: str, more: dict[str, Any]
) -> None:
    thin, wire, theirs = pair
    wire.sent.clear()
    for key in ODD_KEYS:
        parameters = {"Bucket": "some-bucket", "Key": key, **more}
        thin.call(operation, dict(parameters))
        expected = made_by_botocore(theirs, operation, dict(parameters))

        url, _, method, head, body = wire.sent[-1]
        first, headers = headers_in(head)
        assert (method, url) == (expected.method, expected.url)
        assert first == f"{method} {url.split('/', 3)[3].join(['/', ''])} HTTP/1.1"
        assert (body, headers.pop("host")) == (more.get("Body", b""), expected_host(url))
        assert headers.pop("accept-encoding") == "identity"
        same = {name.lower(): text(value) for name, value in expected.headers.items() if name.lower() not in OF_ONE_ATTEMPT}
        if same.get("x-amz-trailer"):
            assert same.pop("x-amz-content-sha256") == "STREAMING-UNSIGNED-PAYLOAD-TRAILER"
            # Where botocore is told to sign bodies it does not, for its trailer; here it can be done.
            assert headers.pop("x-amz-content-sha256") in ("UNSIGNED-PAYLOAD", hashlib.sha256(body).hexdigest())
            assert headers.pop("x-amz-checksum-crc32") == checksum_of(body)
            assert headers.pop("content-length") == str(len(body))
            same = {name: value for name, value in same.items() if name not in OF_TRAILERS}
        assert {name: value for name, value in headers.items() if name not in OF_ONE_ATTEMPT} == same
        assert headers["authorization"] == signed_again(method, url, headers_in(head)[1], body, headers["authorization"])
        assert scope_of(headers["authorization"]) == scope_of(text(expected.headers["Authorization"]))
    assert len(wire.sent) == len(ODD_KEYS)


def expected_host(url: str) -> str:
    return url.split("/")[2].lower().removesuffix(":443")


def scope_of(authorization: str) -> list[str]:
    """Key, region and service: all of the scope but the day, which may have changed between two calls."""
    parts = authorization.split("Credential=")[1].split(",", maxsplit=1)[0].split("/")
    return [*parts[:1], *parts[2:]]


def signed_again(method: str, url: str, headers: dict[str, str], body: bytes, authorization: str) -> str:
    """The signature that the receiver of the request makes of it, by botocore."""
    signed = authorization.split("SignedHeaders=")[1].split(",", maxsplit=1)[0].split(";")
    region = authorization.split("Credential=")[1].split("/")[2]
    request = AWSRequest(method, url, {name: headers[name] for name in signed}, body)
    request.context["timestamp"] = headers["x-amz-date"]
    auth = S3SigV4Auth(KEYS, "s3", region)
    signature = auth.signature(auth.string_to_sign(request, auth.canonical_request(request)), request)
    return authorization.split("Signature=", maxsplit=1)[0] + f"Signature={signature}"


def test_every_header_that_s3_acts_on_is_signed() -> None:
    client = client_of(endpoint_url="https://store.example")
    wire = Recorder(client)
    parameters = {"Bucket": "b-b-b", "Key": "k", "Body": b"x", "Metadata": {"m": "v"}, "ContentType": "a/b", "IfMatch": '"e"'}
    ThinClient(client, wire).call("PutObject", parameters)
    _, headers = headers_in(wire.sent[0][3])
    signed = set(headers["authorization"].split("SignedHeaders=")[1].split(",")[0].split(";"))
    assert headers.keys() - signed == {"authorization", "accept-encoding", "user-agent", "content-length"}


@pytest.mark.parametrize(
    "parameters",
    [
        {"Bucket": "arn:aws:s3:eu-west-1:123456789012:accesspoint/mine"}, {"Bucket": "express--use1-az4--x-s3"}, {"Key": "/lead"},
        {"SSECustomerKey": "k"}, {"CacheControl": "no-store"}, {"Body": b"x" * 1_048_577}, {"Body": bytearray(b"x")},
        {"Metadata": {"a": "ü"}}, {"Metadata": {"a": " padded"}}, {"Metadata": {"a": ""}}, {"Metadata": {"a b": "x"}},
        {"Metadata": {"a": "x\r\nInjected: y"}}, {"Metadata": {"a": "x", "b": "y", "A": "z"}},
        {"ContentType": "a/b\r\nInjected: y"}, {"IfMatch": "ü"}, {"VersionId": 5},
    ],
    ids=lambda parameters: str(parameters)[:40],
)
def test_what_needs_a_thought_is_left_to_botocore(parameters: dict[str, Any]) -> None:
    assert can_spell("PutObject", {"Bucket": "b-b-b", "Key": "k"})
    assert not can_spell("PutObject", {"Bucket": "b-b-b", "Key": "k", **parameters})


@pytest.mark.parametrize("how", ["a header besides", "unsigned", "another signature"])
def test_a_request_that_is_not_understood_is_left_to_botocore(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = {"unsigned": {"signature_version": botocore.UNSIGNED}, "another signature": {"signature_version": "s3"}}.get(how, {})
    client = client_of(endpoint_url="http://127.0.0.1:9", config={**config, "retries": {"total_max_attempts": 1}})
    if how == "a header besides":
        # botocore hands on how a function of AWS Lambda's was called.
        monkeypatch.setenv("AWS_LAMBDA_FUNCTION_NAME", "function")
        monkeypatch.setenv("_X_AMZN_TRACE_ID", "Root=1-2-3")
    made: list[Any] = []

    def record(request: Any, **_: Any) -> AWSResponse:
        made.append(request)
        return AWSResponse(request.url, 200, {}, HTTPResponse(BytesIO(), preload_content=False))

    wire = Recorder(client)
    thin = ThinClient(client, wire)
    client.meta.events.register_last("before-send.s3", record)
    for _ in range(3):
        thin.call("GetObject", {"Bucket": "b", "Key": "k"})
    assert wire.sent == []
    assert len(made) >= 3


EVENTS_OF_A_CALL = [
    "provide-client-params.s3", "before-parameter-build.s3.GetObject", "choose-signer.s3", "before-call.s3.GetObject",
    "request-created", "before-sign.s3", "before-send", "response-received.s3", "before-parse.s3", "needs-retry.s3",
    "after-call.s3",
]


@pytest.mark.parametrize("event", EVENTS_OF_A_CALL)
def test_whoever_listens_to_botocores_events_hears_of_every_call_once(event: str, monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[str] = []

    def listens(event_name: str, **_: Any) -> None:
        heard.append(event_name)

    def answers(request: Any, **_: Any) -> AWSResponse:
        return AWSResponse(request.url, 200, {}, HTTPResponse(BytesIO(), preload_content=False))

    # As a library puts itself between, moto for one: every client that is made from now on has it.
    between: list[Any] = [(event, listens), ("before-send", answers)]
    monkeypatch.setattr("botocore.session.handlers.BUILTIN_HANDLERS", [*BUILTIN_HANDLERS, *between])
    client = client_of(endpoint_url="http://127.0.0.1:9")
    wire = Recorder(client)
    thin = ThinClient(client, wire)
    for _ in range(3):
        thin.call("GetObject", {"Bucket": "b-b-b", "Key": "k"})
    assert len(heard) == 3
    assert wire.sent == []


def test_whoever_stands_in_for_botocore_is_asked_once_for_every_call(monkeypatch: pytest.MonkeyPatch) -> None:
    client = client_of(endpoint_url="http://127.0.0.1:9")
    wire = Recorder(client)
    thin = ThinClient(client, wire)
    thin.call("GetObject", {"Bucket": "b-b-b", "Key": "k"})
    asked: list[str] = []

    def fake(_self: Any, operation: str, _parameters: dict[str, Any]) -> dict[str, Any]:
        asked.append(operation)
        return {"ETag": "fake"}

    monkeypatch.setattr("botocore.client.BaseClient._make_api_call", fake)
    for operation in ("GetObject", "HeadObject"):
        assert thin.call(operation, {"Bucket": "b-b-b", "Key": "k"}) == {"ETag": "fake"}
    assert asked == ["GetObject", "HeadObject"]
    assert len(wire.sent) == 1


IN_MOTOS_HANDS = """
import socket
import boto3
from moto import mock_aws
from s3tasks import ObjectRef, Settings
from s3tasks.refs import Marker
from s3tasks.store import Condition, Content, Endpoint, Store

def unreachable(*_, **__):
    raise socket.gaierror("nothing is to be sent")

socket.getaddrinfo = unreachable
with mock_aws():
    boto3.client("s3").create_bucket(Bucket="bucket")
    store, ref = Store(Settings(connect_timeout_seconds=1)), ObjectRef("bucket", "key")
    for body in (b"first", b"second"):
        store.put(ref, Content(body), Marker("w", 1), Condition())
        assert store.get(ref, Endpoint.READ).read() == body
"""


def test_in_a_test_of_a_users_that_mocks_aws_nothing_is_sent() -> None:
    ran = subprocess.run([sys.executable, "-c", IN_MOTOS_HANDS], capture_output=True, text=True, timeout=120, check=False)
    assert (ran.returncode, ran.stderr) == (0, "")


# --- over real sockets ---


@pytest.fixture(scope="module")
def fast() -> Iterator[FastS3]:
    with FastS3() as server:
        yield server


@pytest.fixture(autouse=True)
def keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"ACCESS_KEY_ID": "AKIDEXAMPLE", "SECRET_ACCESS_KEY": "secret", "DEFAULT_REGION": "us-east-1"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    for name in ("AWS_SESSION_TOKEN", "AWS_PROFILE", "HTTP_PROXY", "http_proxy", "NO_PROXY", "AWS_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def ref() -> ObjectRef:
    return ObjectRef("bucket", "key")


@pytest.fixture
def open_store(closing: Callable[[Any], Any]) -> Callable[..., Store]:
    return lambda url, **more: closing(Store(Settings(endpoint_url=url, addressing_style="path", **more)))


def put(store: Store, ref: ObjectRef, body: bytes = b"body") -> str:
    etag = store.put(ref, Content(body), MARKER, FREE).etag
    assert etag
    return etag


def test_the_short_path_is_taken_from_the_first_call_on(fast: FastS3, ref: ObjectRef, open_store: Callable[..., Store]) -> None:
    seen: list[dict[str, str]] = []

    def watch(request: Request, forward: Forward) -> Response:
        seen.append({name.lower(): value for name, value in request.headers.items()})
        return forward(request)

    with proxied(fast.url, watch) as proxy:
        store = open_store(proxy.url)
        put(store, ref)
        assert store.get(ref, Endpoint.READ).read() == b"body"
        assert store.head(ref, Endpoint.WRITE).served is not None
        assert store.delete(ref, FREE).deleted
    assert [headers.get("amz-sdk-invocation-id") for headers in seen] == [None] * 4
    assert "expect" not in seen[0]


def test_answers_are_told_as_botocore_tells_them(fast: FastS3, ref: ObjectRef, open_store: Callable[..., Store]) -> None:
    store = open_store(fast.url)
    store.put(ref, Content(b"body", "text/x", {"Mine": "kept"}), MARKER, FREE)
    for operation in ("GetObject", "HeadObject"):
        ours = store._clients.ask(Endpoint.READ, operation, ref)
        theirs = store._reader._make_api_call(operation, {"Bucket": ref.bucket, "Key": ref.key})
        if operation == "GetObject":
            assert ours.pop("Body").read() == theirs.pop("Body").read()
        meta, theirs_meta = ours.pop("ResponseMetadata"), theirs.pop("ResponseMetadata")
        assert meta["HTTPHeaders"].keys() == theirs_meta["HTTPHeaders"].keys()
        assert ours == {name: value for name, value in theirs.items() if name != "AcceptRanges"}


@pytest.mark.parametrize(
    "written", ["Wed, 25 Nov 2026 03:34:16 GMT", "Wed, 25 Nov 2026 03:34:16 -0000", "2026-11-25T03:34:16.000Z"]
)
def test_dates_are_read_in_every_way_that_stores_spell_them(written: str) -> None:
    assert said_by({"last-modified": written})["LastModified"].timestamp() == 1795577656


@pytest.mark.parametrize("says_where", [True, False])
def test_a_region_that_is_wrong_is_found_out_once(
    fast: FastS3, ref: ObjectRef, open_store: Callable[..., Store], says_where: bool
) -> None:
    regions: list[str] = []

    def in_europe(request: Request, forward: Forward) -> Response:
        if request.path == f"/{ref.bucket}":
            # Whoever asks where the bucket is.
            return Response(200, {"x-amz-bucket-region": "eu-west-1"})
        regions.append(request.headers["Authorization"].split("/")[2])
        if regions[-1] == "eu-west-1":
            return forward(request)
        wrong = refusal(301, "PermanentRedirect")
        return Response(301, {**wrong.headers, **({"x-amz-bucket-region": "eu-west-1"} if says_where else {})}, wrong.body)

    with proxied(fast.url, in_europe) as proxy:
        store = open_store(proxy.url)
        put(store, ref, b"in Europe")
        put(store, ref, b"in Europe")
        assert store.get(ref, Endpoint.READ).read() == b"in Europe"
        assert store.get(ref, Endpoint.READ).read() == b"in Europe"
    writes, reads = regions[:3], regions[3:]
    assert writes == ["us-east-1", "eu-west-1", "eu-west-1"]
    assert reads == ["us-east-1", "eu-west-1", "eu-west-1"]


@pytest.mark.parametrize("status", [500, 503, 429])
def test_a_read_is_tried_as_often_as_the_settings_say(
    fast: FastS3, ref: ObjectRef, open_store: Callable[..., Store], status: int
) -> None:
    with proxied(fast.url, lambda _request, _forward: refusal(status, "SlowDown")) as proxy:
        with pytest.raises(StoreUnavailable):
            open_store(proxy.url, store_attempts=3).get(ref, Endpoint.READ)
        assert proxy.count("GET") == 3


def test_a_read_whose_connection_breaks_is_tried_again(fast: FastS3, ref: ObjectRef, open_store: Callable[..., Store]) -> None:
    broken = iter([True, True])

    def breaks(request: Request, forward: Forward) -> Response:
        if request.method == "GET" and next(broken, False):
            raise Dropped
        return forward(request)

    with proxied(fast.url, breaks) as proxy:
        store = open_store(proxy.url)
        put(store, ref)
        assert store.get(ref, Endpoint.READ).read() == b"body"
        assert proxy.count("GET") == 3


def test_a_connection_that_was_closed_meanwhile_fails_no_call_and_doubles_no_write(
    fast: FastS3, ref: ObjectRef, open_store: Callable[..., Store]
) -> None:
    def closes(request: Request, forward: Forward) -> Response:
        response = forward(request)
        response.cut_at = len(response.body)
        return response

    with proxied(fast.url, closes) as proxy:
        store = open_store(proxy.url)
        for _ in range(5):
            put(store, ref)
            assert store.get(ref, Endpoint.READ).read() == b"body"
        assert (proxy.count("PUT"), proxy.count("GET")) == (5, 5)


def test_a_write_that_gets_no_answer_is_one_request(fast: FastS3, ref: ObjectRef, open_store: Callable[..., Store]) -> None:
    silent = iter([False, True])

    def drops(request: Request, forward: Forward) -> Response:
        forward(request)
        if next(silent, False):
            raise Dropped
        return Response(200, {"ETag": '"e"'})

    with proxied(fast.url, drops) as proxy:
        store = open_store(proxy.url)
        put(store, ref)
        with pytest.raises(StoreUnavailable, match="ConnectionClosed"):
            put(store, ref)
        assert proxy.count("PUT") == 2


def test_a_success_that_carries_an_error_is_none(fast: FastS3, ref: ObjectRef, open_store: Callable[..., Store]) -> None:
    with proxied(fast.url, lambda _request, _forward: Response(200, {}, refusal(500, "InternalError").body)) as proxy:
        with pytest.raises(StoreUnavailable, match="InternalError"):
            put(open_store(proxy.url), ref)
        assert proxy.count("PUT") == 1


def test_a_refusal_is_told_in_the_words_of_s3(fast: FastS3, ref: ObjectRef, open_store: Callable[..., Store]) -> None:
    with proxied(fast.url, lambda _request, _forward: refusal(403, "ExpiredToken")) as proxy:
        store = open_store(proxy.url)
        with pytest.raises(StoreError) as caught:
            put(store, ref)
        assert (caught.value.code, caught.value.status, caught.value.request_id) == ("ExpiredToken", 403, "rq-1")
        assert proxy.count("PUT") == 1


def test_credentials_that_expire_are_renewed_before_they_do(
    fast: FastS3, ref: ObjectRef, open_store: Callable[..., Store], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    # Credentials that have less than ten minutes left are renewed for every request.
    soon = (datetime.now(timezone.utc) + timedelta(minutes=5)).isoformat()
    vending = tmp_path / "vending.py"
    vending.write_text(
        "import json, uuid\n"
        "name = uuid.uuid4().hex\n"
        f"print(json.dumps(dict(Version=1, AccessKeyId=name, SecretAccessKey='s', SessionToken='t' + name, Expiration={soon!r})))\n"
    )
    config = tmp_path / "config"
    config.write_text(f"[default]\ncredential_process = {sys.executable} {vending}\n")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(config))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    seen: list[tuple[str, str]] = []

    def watch(request: Request, forward: Forward) -> Response:
        name = request.headers["Authorization"].split("Credential=")[1].split("/")[0]
        seen.append((name, request.headers["X-Amz-Security-Token"]))
        return forward(request)

    with proxied(fast.url, watch) as proxy:
        store = open_store(proxy.url)
        for _ in range(3):
            put(store, ref)
    assert len(set(seen)) == 3
    assert all(token == f"t{name}" for name, token in seen)


def test_an_environment_that_names_no_proxy_but_whom_to_reach_without_one_leaves_the_short_path_open(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("NO_PROXY", "elsewhere.example")
    client = client_of(endpoint_url="http://store.example")
    assert Wire(client, None).leads_there
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    assert not Wire(client, None).leads_there


@pytest.mark.parametrize("alive", [True, False])
def test_connections_are_kept_alive_where_botocore_is_told_to(
    fast: FastS3, ref: ObjectRef, open_store: Callable[..., Store], monkeypatch: pytest.MonkeyPatch, alive: bool
) -> None:
    monkeypatch.setenv("BOTOCORE_TCP_KEEPALIVE", str(alive).lower())
    store = open_store(fast.url)
    put(store, ref)
    wire = store._clients._thin_writer._wire
    assert wire is not None
    (idle,) = wire._idle.values()
    assert bool(idle[0].socket.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)) is alive


@pytest.mark.parametrize("validates", ["when_supported", "when_required"])
def test_a_checksum_is_looked_at_where_botocore_would_look_at_it(
    ref: ObjectRef, open_store: Callable[..., Store], monkeypatch: pytest.MonkeyPatch, validates: str
) -> None:
    # Some stores name the checksum of the whole object with a range of it: to look at none is the way out.
    monkeypatch.setenv("AWS_RESPONSE_CHECKSUM_VALIDATION", validates)
    wrong = GOOD.replace(b"ETag", b"x-amz-checksum-crc32: AAAAAA==\r\nETag")
    with scripted([wrong], [wrong]) as (url, _):
        store = open_store(url, store_attempts=1)
        for _ in range(2):
            with pytest.raises(StoreUnavailable, match="checksum") if validates == "when_supported" else nullcontext():
                assert store.get(ref, Endpoint.READ).read() == b"body"


def test_a_checksum_of_the_parts_checksums_says_nothing_of_the_bytes(ref: ObjectRef, open_store: Callable[..., Store]) -> None:
    with scripted([GOOD.replace(b"ETag", b"x-amz-checksum-crc32: AAAAAA==-2\r\nETag")]) as (url, _):
        assert open_store(url, store_attempts=1).get(ref, Endpoint.READ).read() == b"body"


def test_a_proxy_of_the_environment_is_used(
    fast: FastS3, ref: ObjectRef, open_store: Callable[..., Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    def forwards(request: Request, forward: Forward) -> Response:
        assert request.path.startswith("http://nowhere.invalid/")
        return forward(Request(request.method, request.path.removeprefix("http://nowhere.invalid"), request.headers, request.body))

    with proxied(fast.url, forwards) as proxy:
        monkeypatch.setenv("HTTP_PROXY", proxy.url)
        store = open_store("http://nowhere.invalid")
        put(store, ref)
        assert store.get(ref, Endpoint.READ).read() == b"body"
        assert proxy.count("PUT") == 1


# --- what answers look like on the wire ---


FRAMINGS: dict[str, list[bytes]] = {
    "plain": [GOOD],
    "byte by byte": [GOOD[at : at + 1] for at in range(len(GOOD))],
    "head and body apart": [GOOD[:-4], GOOD[-4:]],
    "interim answer": [b"HTTP/1.1 100 Continue\r\n\r\n" + GOOD],
    "early hints": [b"HTTP/1.1 100 Continue\r\nServer: x\r\n\r\n", GOOD],
    "bare newlines": [b'HTTP/1.1 200 OK\nETag: "e"\nContent-Length: 4\n\nbody'],
    "no reason": [GOOD.replace(b" OK", b"")],
    "HTTP/1.0": [GOOD.replace(b"HTTP/1.1", b"HTTP/1.0")],
    "folded header": [GOOD.replace(b'ETag: "e"', b'X: 1\r\n  2\r\nETag: "e"')],
    "odd spaces": [GOOD.replace(b'ETag: "e"', b'eTAG:"e"  ')],
}


@pytest.mark.parametrize("framing", FRAMINGS)
def test_answers_are_read_however_they_are_framed(framing: str, ref: ObjectRef, open_store: Callable[..., Store]) -> None:
    with scripted(FRAMINGS[framing], FRAMINGS[framing]) as (url, heads):
        # The server closes behind the second answer: a third request that crosses with that is tried again.
        store = open_store(url)
        for _ in range(3):
            answer = store.get(ref, Endpoint.READ)
            assert answer.read() == b"body"
            assert answer.served is not None
            assert answer.served.etag == "e"
        assert len(heads) >= 3


def test_chunks_are_no_part_of_a_body_whatever_length_is_named_besides(ref: ObjectRef, open_store: Callable[..., Store]) -> None:
    both = GOOD.replace(b"ETag", b"Transfer-Encoding: chunked\r\nETag").replace(b"\r\n\r\nbody", b"\r\n\r\n4\r\nbody\r\n0\r\n\r\n")
    with scripted([both], [both]) as (url, _):
        store = open_store(url, store_attempts=1)
        assert [store.get(ref, Endpoint.READ).read() for _ in range(3)] == [b"body"] * 3


CHUNKS = b'HTTP/1.1 200 OK\r\nETag: "e"\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nbo\r\n2\r\ndy\r\n'
TO_THE_CLOSE = b'HTTP/1.1 200 OK\r\nETag: "e"\r\nConnection: close\r\n\r\nbody'


@pytest.mark.parametrize("framed", [CHUNKS + b"0\r\n\r\n", TO_THE_CLOSE], ids=["in chunks", "to the close"])
def test_a_body_of_a_length_that_the_store_does_not_tell_is_read_and_measured(
    framed: bytes, ref: ObjectRef, open_store: Callable[..., Store]
) -> None:
    # A CDN that has yet to fetch the object itself may send it so.
    with scripted([framed]) as (url, _):
        answer = open_store(url, store_attempts=1).get(ref, Endpoint.READ)
        assert answer.served is not None
        assert answer.served.size == 4
        assert answer.read() == b"body"


def test_of_a_range_of_unknown_length_the_object_keeps_its_own_size(ref: ObjectRef, open_store: Callable[..., Store]) -> None:
    part = (CHUNKS + b"0\r\n\r\n").replace(b"200 OK", b"206 Partial Content\r\nContent-Range: bytes 3-6/90")
    with scripted([part]) as (url, _):
        answer = open_store(url, store_attempts=1).get(ref, Endpoint.READ, byte_range=(4, 5))
        assert answer.served is not None
        assert answer.served.size == 90
        assert answer.read() == b"od"


def test_chunks_that_break_off_are_no_body(ref: ObjectRef, open_store: Callable[..., Store]) -> None:
    with scripted([CHUNKS]) as (url, _), pytest.raises(StoreUnavailable):
        open_store(url, store_attempts=1).get(ref, Endpoint.READ)


def test_what_the_store_says_before_it_has_read_all_is_heard() -> None:
    ours, theirs = socket.socketpair()
    connection = HTTPConnection("127.0.0.1")
    connection.sock, connection.connect = ours, lambda: None  # type: ignore[method-assign]
    theirs.sendall(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")
    theirs.close()
    with closing(_Line(connection, 5.0)) as line:
        line.send(b"PUT / HTTP/1.1\r\n\r\n", b"x" * 1_000_000)
        assert line.plain_head() == (403, {"content-length": "0"})


def test_a_body_of_unknown_length_that_this_machine_cannot_keep_is_not_blamed_on_the_store(
    ref: ObjectRef, open_store: Callable[..., Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", "/proc/self/fdinfo")  # where nobody can make a file
    large = TO_THE_CLOSE.replace(b"body", b"x" * 9_000_000)
    with scripted([large]) as (url, _), pytest.raises(LocalFileError, match=r"s3://.* came without its length: No such file"):
        open_store(url, store_attempts=1).get(ref, Endpoint.READ)


def test_no_more_connections_are_kept_than_the_settings_say(fast: FastS3, ref: ObjectRef, open_store: Callable[..., Store]) -> None:
    store = open_store(fast.url, pool_connections=2, concurrent_requests=2)
    put(store, ref)
    answers = [store.get(ref, Endpoint.READ) for _ in range(6)]
    assert [answer.read() for answer in answers] == [b"body"] * 6
    wire = store._clients._thin_reader._wire
    assert wire is not None
    assert [len(idle) for idle in wire._idle.values()] == [2]


def test_a_write_is_done_however_its_answer_is_framed(ref: ObjectRef, open_store: Callable[..., Store]) -> None:
    head = b'HTTP/1.1 200 OK\r\nETag: "e"\r\n'
    chunked, closing_at_once = head + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n", head + b"\r\n"
    for answer in (chunked, closing_at_once, b"HTTP/1.1 100 Continue\r\n\r\n" + chunked):
        with scripted([answer]) as (url, heads):
            assert put(open_store(url), ref) == "e"
            assert len(heads) == 1


def test_bytes_that_nobody_asked_for_are_no_answer(ref: ObjectRef, open_store: Callable[..., Store]) -> None:
    stray = b'HTTP/1.1 200 OK\r\nETag: "stray"\r\nContent-Length: 5\r\n\r\nstray'
    with scripted([GOOD + stray], [GOOD + stray]) as (url, _):
        store = open_store(url, store_attempts=1)
        assert [store.get(ref, Endpoint.READ).read() for _ in range(4)] == [b"body"] * 4


def test_an_answer_that_has_no_body_is_not_waited_for_whatever_length_it_names(
    ref: ObjectRef, open_store: Callable[..., Store]
) -> None:
    # RFC 9110, 8.6: with a 304 and for a HEAD, it is the length of what is not sent.
    unchanged = b'HTTP/1.1 304 Not Modified\r\nETag: "e"\r\nContent-Length: 4\r\n\r\n'
    gone = b"HTTP/1.1 204 No Content\r\nContent-Length: 4\r\n\r\n"
    with scripted([unchanged], [GOOD[:-4]], [gone], [GOOD]) as (url, heads):
        store = open_store(url, store_attempts=1)
        assert store.get(ref, Endpoint.WRITE, if_none_match="e").unchanged
        assert store.head(ref, Endpoint.WRITE).served is not None
        assert store.delete(ref, FREE).deleted
        assert store.get(ref, Endpoint.WRITE).read() == b"body"
        assert len(heads) == 4


@pytest.mark.parametrize("close", ["close", "Close"])
def test_a_connection_that_the_store_says_is_over_is_not_used_again(
    close: str, ref: ObjectRef, open_store: Callable[..., Store]
) -> None:
    # Its other end stays open for a while; who asks there may wait for ever.
    over = GOOD.replace(b"ETag", f"Connection: {close}\r\nETag".encode())
    with scripted([over], [GOOD.replace(b"body", b"late")]) as (url, _):
        store = open_store(url, store_attempts=1)
        assert [store.get(ref, Endpoint.READ).read() for _ in range(3)] == [b"body"] * 3


def test_a_body_that_is_given_up_takes_its_connection_with_it(ref: ObjectRef, open_store: Callable[..., Store]) -> None:
    with scripted([GOOD], [GOOD]) as (url, heads):
        store = open_store(url, store_attempts=1)
        store.get(ref, Endpoint.READ).close()
        assert store.get(ref, Endpoint.READ).read() == b"body"
        assert [head[:3] for head in heads].count(b"GET") == 2


WRITTEN = b'HTTP/1.1 200 OK\r\nETag: "e"\r\nContent-Length: 0\r\n\r\n'
NO_NUMBER = WRITTEN.replace(b"Length: 0", b"Length: " + b"0" * 5000)
INTERIM = [b"HTTP/1.1 102 Processing\r\n\r\n", b"HTTP/1.1 103 Early Hints\r\nLink: <x>\r\n\r\n", b"HTTP/1.1 101 Switching\r\n\r\n"]


@pytest.mark.parametrize("interim", INTERIM)
def test_an_answer_before_the_answer_is_none(interim: bytes, ref: ObjectRef, open_store: Callable[..., Store]) -> None:
    # What follows may be a refusal: only the final answer tells whether a write has landed.
    with scripted([interim + WRITTEN.replace(b"200 OK", b"403 Forbidden")]) as (url, heads):
        with pytest.raises(StoreUnavailable):
            put(open_store(url), ref)
        with pytest.raises(StoreUnavailable):
            open_store(url, store_attempts=1).get(ref, Endpoint.READ)
        assert len(heads) == 2


STRANGE_TIMES = [
    "Wed, 25 Nov 2026 03:34:16 +9999999999999999999", "Wed, 25 Nov 99999999999999999999 03:34:16 GMT", "1 Jan 1 00:00:00", "inf",
    "Wed, 25 Nov 2026 03:34:16 +9999", "9" * 400, "", ",", "no time", "25 Nov 9999 23:59:59 -2359",
]


@pytest.mark.parametrize("text", STRANGE_TIMES)
def test_no_time_is_so_strange_that_it_leaves_as_anything_but_an_error_of_the_store(
    text: str, ref: ObjectRef, open_store: Callable[..., Store]
) -> None:
    dated, modified = (GOOD.replace(b"ETag", f"{name}: {text}\r\nETag".encode()) for name in ("Date", "Last-Modified"))
    with scripted([dated], [dated]) as (url, _):
        store = open_store(url, store_attempts=1)
        assert store.get(ref, Endpoint.READ).read() == b"body"
    with scripted([dated.replace(b"Length: 4", b"Length: 0")[:-4]]) as (url, _):
        # The write has landed, whatever else the store says.
        assert put(open_store(url), ref) == "e"
    with scripted([modified]) as (url, _), suppress(StoreUnavailable):
        open_store(url, store_attempts=1).get(ref, Endpoint.READ)


def test_an_answer_may_take_longer_than_a_connection(ref: ObjectRef, open_store: Callable[..., Store]) -> None:
    def slowly() -> Iterator[bytes]:
        for piece in (GOOD[:20], GOOD[20:-2], GOOD[-2:]):
            time.sleep(0.7)
            yield piece

    with scripted(slowly()) as (url, _):
        store = open_store(url, store_attempts=1, connect_timeout_seconds=0.5, read_timeout_seconds=60)
        assert store.get(ref, Endpoint.READ).read() == b"body"


def test_a_length_that_is_no_number_refuses_no_write_that_has_landed(ref: ObjectRef, open_store: Callable[..., Store]) -> None:
    with scripted([NO_NUMBER]) as (url, heads):
        assert put(open_store(url), ref) == "e"
        assert len(heads) == 1


class Interrupted(Exception):
    """What Celery raises in a task that takes too long, in its way: wherever the main thread happens to be."""


@pytest.fixture
def interrupt() -> Iterator[Callable[[], None]]:
    """Has Interrupted raised in the main thread, once."""

    def interrupted(*_: object) -> None:
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        raise Interrupted

    before = signal.signal(signal.SIGUSR1, interrupted)
    yield lambda: os.kill(os.getpid(), signal.SIGUSR1)
    signal.signal(signal.SIGUSR1, before)


def test_whoever_reads_on_after_an_interruption_gets_the_right_bytes_or_none(
    ref: ObjectRef, open_store: Callable[..., Store], interrupt: Callable[[], None]
) -> None:
    whole = bytes(range(251)) * 4000
    head = f'HTTP/1.1 200 OK\r\nETag: "e"\r\nContent-Length: {len(whole)}\r\n\r\n'.encode()
    asked_for_more, noticed = threading.Event(), threading.Event()

    def in_two_parts() -> Iterator[bytes]:
        yield head + whole[:300_000]
        assert asked_for_more.wait(60)
        while not noticed.wait(0.1):
            interrupt()
        yield whole[300_000:]

    with scripted(in_two_parts()) as (url, _):
        body = open_store(url).get(ref, Endpoint.READ).body
        assert body is not None
        came = body.take(1000)
        try:
            asked_for_more.set()
            came += body.take(600_000)
        except Interrupted:
            noticed.set()
        assert noticed.is_set()
        with suppress(StoreUnavailable):
            while len(came) < len(whole):
                came += body.take(600_000)
        assert whole.startswith(came)


@pytest.mark.parametrize("cut", [0, 10, -2])
def test_an_answer_that_breaks_off_is_unavailable(cut: int, ref: ObjectRef, open_store: Callable[..., Store]) -> None:
    with scripted([GOOD[:cut]]) as (url, _), pytest.raises(StoreUnavailable):
        open_store(url, store_attempts=1).get(ref, Endpoint.READ).read()


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ssl.SSLContext]:
    """A certificate for 127.0.0.1 that vouches for itself, and a server's context with it."""
    from ipaddress import ip_address

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(timezone.utc)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    made = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key()).serial_number(1)
        .not_valid_before(now - timedelta(days=1)).not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    folder = tmp_path_factory.mktemp("tls")
    pem, private = folder / "cert.pem", folder / "key.pem"
    pem.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    private.write_bytes(key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem, private)
    return pem, context


def test_over_tls_the_store_is_verified_and_the_body_has_its_signed_checksum(
    certificate: tuple[Path, ssl.SSLContext], ref: ObjectRef, open_store: Callable[..., Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    pem, context = certificate
    written = b'HTTP/1.1 200 OK\r\nETag: "e"\r\nContent-Length: 0\r\n\r\n'
    with scripted([written], [GOOD], [GOOD], tls=context) as (url, heads):
        monkeypatch.setenv("AWS_CA_BUNDLE", str(pem))
        trusting = open_store(url, store_attempts=1)
        assert put(trusting, ref) == "e"
        _, headers = headers_in(heads[0])
        assert headers["x-amz-content-sha256"] == "UNSIGNED-PAYLOAD"
        assert "x-amz-checksum-crc32" in headers["authorization"]
    with scripted([GOOD], [GOOD], [GOOD], tls=context) as (url, _):
        trusting = open_store(url)
        assert [trusting.get(ref, Endpoint.READ).read() for _ in range(4)] == [b"body"] * 4
        monkeypatch.delenv("AWS_CA_BUNDLE")
        with pytest.raises(StoreUnavailable, match="SSLError"):
            open_store(url, store_attempts=1).get(ref, Endpoint.READ)


def test_over_tls_a_certificate_for_another_name_is_none(
    certificate: tuple[Path, ssl.SSLContext], ref: ObjectRef, open_store: Callable[..., Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    pem, context = certificate
    monkeypatch.setenv("AWS_CA_BUNDLE", str(pem))
    with scripted([GOOD], [GOOD], tls=context) as (url, heads):
        with pytest.raises(StoreUnavailable, match="SSLError"):
            open_store(url.replace("127.0.0.1", "localhost"), store_attempts=1).get(ref, Endpoint.READ)
        assert not any(head.startswith(b"GET") for head in heads)


@pytest.mark.parametrize("name", ["AWS_ACCESS_KEY_ID", "AWS_SESSION_TOKEN"])
def test_credentials_that_hold_a_line_break_add_no_header_and_are_not_shown(
    fast: FastS3, ref: ObjectRef, open_store: Callable[..., Store], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(name, "hush\r\nx-injected: 1")
    with proxied(fast.url) as proxy:
        store = open_store(proxy.url, store_attempts=1)
        for _ in range(2):
            with pytest.raises(StoreError, match="line break") as caught:
                put(store, ref)
            assert "hush" not in str(caught.value)
        assert proxy.seen == []
