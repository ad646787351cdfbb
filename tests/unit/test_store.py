"""The store against a real S3, and against what other S3 servers make of the same requests.

The contract tests run on every personality below: nothing may rest on If-Match being honoured, on an error code, or on the spelling
of a header. `TEST_S3_ENDPOINT_URL` adds a server of your own to them.
"""

from __future__ import annotations

import contextlib
import inspect
import os
import uuid
from collections.abc import Callable, Iterator
from io import BytesIO
from typing import Any

import botocore.exceptions
import pytest

from s3tasks import ObjectRef, PayloadTooLarge, Settings, StoreError, StoreUnavailable, WriteConflict
from s3tasks.refs import Marker
from s3tasks.sandbox import Sandbox
from s3tasks.store import Condition, Content, Endpoint, Store, check_options
from s3tasks.store.door import TRANSIENT, door
from tests.s3_proxy import Dropped, Forward, Request, Response, Rule, proxied, refusal

FREE = Condition()
MARKER = Marker("write id/with odd;letters", 7)


def ignores_conditions(request: Request, forward: Forward) -> Response:
    """s3rver, rclone: conditions are carried out as if they were not there."""
    return forward(request.without("if-match", "if-none-match"))


def refuses_if_match(request: Request, forward: Forward) -> Response:
    """VAST: every request with If-Match is refused."""
    return refusal(501, "NotImplemented") if request.conditional else forward(request)


def answers_412_for_missing(request: Request, forward: Forward) -> Response:
    """SeaweedFS, some versions: a condition on a missing key fails as a condition."""
    response = forward(request)
    return refusal(412) if response.status == 404 and request.conditional else response


def spells_metadata_in_title_case(request: Request, forward: Forward) -> Response:
    """rclone: user metadata come back in title case, with one of its own."""
    response = forward(request)
    headers = {name.title() if name.startswith("x-amz-meta") else name: value for name, value in response.headers.items()}
    return Response(response.status, {**headers, "X-Amz-Meta-Mtime": "1"}, response.body)


def ignores_ranges(request: Request, forward: Forward) -> Response:
    """s3rver, for the first byte: a server may take no notice of Range, and says so by a 200."""
    return forward(request.without("range"))


def has_weak_etags(request: Request, forward: Forward) -> Response:
    """A CDN: etags are weak, and its conditions are the origin's no more."""
    response = forward(request.without("if-match"))
    etag = response.header("etag")
    return response.with_header("etag", f"W/{etag}") if etag else response


def speaks_no_codes(request: Request, forward: Forward) -> Response:
    """A server whose errors say nothing but their status."""
    response = forward(request)
    return Response(response.status, {}, b"") if response.status >= 400 else response


PERSONALITIES: dict[str, Rule | None] = {
    "moto": None,
    **{
        rule.__name__: rule
        for rule in (
            ignores_conditions, refuses_if_match, answers_412_for_missing, spells_metadata_in_title_case, has_weak_etags,
            speaks_no_codes, ignores_ranges,
        )
    },
}


@pytest.fixture(params=PERSONALITIES, scope="module")
def any_store(request: pytest.FixtureRequest, sandbox: Sandbox) -> Iterator[Store]:
    """One endpoint of each kind."""
    upstream = os.environ.get("TEST_S3_ENDPOINT_URL") or sandbox.endpoint_url
    with proxied(upstream, PERSONALITIES[request.param]) as proxy:
        store = Store(Settings(endpoint_url=upstream if request.param == "moto" else proxy.url, addressing_style="path"))
        yield store
        store.close()


@pytest.fixture(scope="module")
def any_bucket(any_store: Store) -> str:
    """A bucket on that endpoint."""
    name = f"contract-{uuid.uuid4().hex[:12]}"
    any_store._writer.create_bucket(Bucket=name)
    return name


@pytest.fixture
def place(any_bucket: str) -> ObjectRef:
    """An object in it that nobody has written yet."""
    return ObjectRef(any_bucket, f"key-{uuid.uuid4().hex}")


def put(store: Store, ref: ObjectRef, body: bytes = b"body", **content: Any) -> str:
    etag = store.put(ref, Content(body, **content), MARKER, FREE).etag
    assert etag
    return etag


ODD_KEYS = ["plain", "with space", "ünïcode/日本", "{braces}", "per%cent%2F", "a//b", "q?x=1&y#z", "k" * 1024, "+"]


@pytest.mark.parametrize("key", ODD_KEYS)
def test_what_was_written_is_served_with_its_marker_and_etag(any_store: Store, any_bucket: str, key: str) -> None:
    place = ObjectRef(any_bucket, key)
    landed = any_store.put(place, Content(b"\0bytes\xff", "text/x", {"Mine": "kept"}), MARKER, FREE)

    answer = any_store.get(place, Endpoint.READ)

    served = answer.served
    assert served is not None
    assert answer.read() == b"\0bytes\xff"
    assert (served.etag, served.marker, served.content_type) == (landed.etag, MARKER, "text/x")
    assert served.metadata["mine"] == "kept"
    assert (served.size, landed.size) == (7, 7)
    assert abs(served.last_modified - landed.date) <= 2
    assert "W/" not in str(landed.etag)
    assert '"' not in str(landed.etag)


def test_an_empty_body_is_a_body(any_store: Store, place: ObjectRef) -> None:
    put(any_store, place, b"")
    answer = any_store.get(place, Endpoint.READ)
    assert answer.served is not None
    assert answer.read() == b""


def test_a_head_is_a_get_without_the_body(any_store: Store, place: ObjectRef) -> None:
    put(any_store, place)
    got = any_store.get(place, Endpoint.READ)
    head = any_store.head(place, Endpoint.READ)
    got.close()
    assert head.served == got.served
    assert not head.has_body


def test_a_missing_key_serves_nothing(any_store: Store, place: ObjectRef) -> None:
    assert any_store.get(place, Endpoint.READ).served is None
    assert any_store.head(place, Endpoint.READ).served is None


def test_a_missing_key_serves_nothing_to_a_conditional_read_either(any_store: Store, place: ObjectRef) -> None:
    answer = any_store.get(place, Endpoint.READ, if_match="abc")
    assert answer.served is None
    assert not answer.has_body


def test_a_read_of_another_etag_fails_its_condition_or_shows_the_other_etag(any_store: Store, place: ObjectRef) -> None:
    etag = put(any_store, place)
    answer = any_store.get(place, Endpoint.READ, if_match="0" * 32)
    answer.close()
    assert answer.condition_failed or (answer.served is not None and answer.served.etag == etag)


def test_a_read_of_the_right_etag_serves_it(any_store: Store, place: ObjectRef) -> None:
    etag = put(any_store, place)
    assert any_store.get(place, Endpoint.READ, if_match=etag).read() == b"body"


def test_a_deleted_object_is_gone_and_deleting_again_is_no_error(any_store: Store, place: ObjectRef) -> None:
    put(any_store, place)
    assert any_store.delete(place, FREE).deleted
    assert any_store.delete(place, FREE).deleted
    assert any_store.head(place, Endpoint.READ).served is None


@pytest.mark.parametrize(
    ("byte_range", "expected"), [((0, 0), b"0"), ((2, 4), b"234"), ((7, None), b"789"), ((5, 99), b"56789")]
)
def test_a_range_serves_its_bytes_and_the_whole_size(
    any_store: Store, place: ObjectRef, byte_range: tuple[int, int | None], expected: bytes
) -> None:
    put(any_store, place, b"0123456789")
    answer = any_store.get(place, Endpoint.READ, byte_range=byte_range)
    assert answer.served is not None
    assert answer.served.size == 10
    assert answer.read() == expected


def test_a_range_beyond_the_object_is_refused_or_empty(any_store: Store, place: ObjectRef) -> None:
    put(any_store, place)
    with contextlib.suppress(StoreError):
        assert any_store.get(place, Endpoint.READ, byte_range=(100, 200)).read() == b""


def test_a_range_beyond_the_object_is_refused(store: Store, ref: ObjectRef) -> None:
    put(store, ref)
    with pytest.raises(StoreError, match="416"):
        store.get(ref, Endpoint.READ, byte_range=(100, 200))


def test_conditional_writes_lose_with_a_conflict(store: Store, ref: ObjectRef) -> None:
    etag = put(store, ref)
    with pytest.raises(WriteConflict, match="If-None-Match"):
        store.put(ref, Content(b"x"), MARKER, Condition(if_none_match=True))
    with pytest.raises(WriteConflict, match="If-Match"):
        store.put(ref, Content(b"x"), MARKER, Condition(if_match="0" * 32))
    with pytest.raises(WriteConflict):
        store.delete(ref, Condition(if_match="0" * 32))
    assert store.put(ref, Content(b"y"), MARKER, Condition(if_match=etag)).etag != etag
    with pytest.raises(WriteConflict):
        store.put(ObjectRef(ref.bucket, "missing"), Content(b"x"), MARKER, Condition(if_match=etag))


def test_put_options_go_through_by_their_s3_names(store: Store, ref: ObjectRef) -> None:
    put(store, ref, options={"CacheControl": "no-store", "Tagging": "a=b"})
    said = store._reader.get_object(Bucket=ref.bucket, Key=ref.key)
    said["Body"].close()
    assert said["CacheControl"] == "no-store"


@pytest.mark.parametrize(
    ("name", "hint"), [("CacheContrl", "CacheControl"), ("Body", "argument for it"), ("IfMatch", "argument")]
)
def test_a_misspelt_or_reserved_put_option_is_refused_by_name(name: str, hint: str) -> None:
    with pytest.raises(ValueError, match=hint):
        check_options(("PutObject",), {name: "x"})


def test_a_body_over_the_limit_is_not_fetched(store: Store, ref: ObjectRef) -> None:
    put(store, ref, b"x" * 100)
    with pytest.raises(PayloadTooLarge, match="100"):
        store.get(ref, Endpoint.READ).read(limit_bytes=99)
    assert len(store.get(ref, Endpoint.READ).read(limit_bytes=100)) == 100


@pytest.mark.parametrize(("status", "error"), [
    (400, StoreError), (401, StoreError), (403, StoreError), (405, StoreError), (501, StoreError),
    (408, StoreUnavailable), (409, StoreUnavailable), (429, StoreUnavailable),
    (500, StoreUnavailable), (502, StoreUnavailable), (503, StoreUnavailable), (504, StoreUnavailable),
])
@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "HEAD"])
def test_statuses_tell_a_no_from_a_not_now(
    settings: Settings, ref: ObjectRef, closing: Callable[[Any], Any], status: int, error: type[Exception], method: str
) -> None:
    with proxied(str(settings.endpoint_url), lambda _request, _forward: refusal(status)) as proxy:
        store = closing(Store(settings.replace(endpoint_url=proxy.url, store_attempts=1)))
        calls: dict[str, Callable[[], object]] = {
            "GET": lambda: store.get(ref, Endpoint.READ),
            "HEAD": lambda: store.head(ref, Endpoint.READ),
            "PUT": lambda: store.put(ref, Content(b"x"), MARKER, FREE),
            "DELETE": lambda: store.delete(ref, FREE),
        }
        with pytest.raises(error) as caught:
            calls[method]()
        assert getattr(caught.value, "status") == status  # noqa: B009 - the class is a parameter
        assert f"s3://{ref.bucket}/{ref.key}" in str(caught.value)
        # botocore asks a HEAD that was answered 400 again, in case the region was wrong.
        assert proxy.count(method) == (2 if (method, status) == ("HEAD", 400) else 1)


def test_a_refusal_says_operation_code_status_and_request_id(
    settings: Settings, ref: ObjectRef, closing: Callable[[Any], Any]
) -> None:
    with proxied(str(settings.endpoint_url), lambda _request, _forward: refusal(403, "InvalidAccessKeyId")) as proxy:
        store = closing(Store(settings.replace(endpoint_url=proxy.url)))
        with pytest.raises(StoreError) as caught:
            store.get(ref, Endpoint.READ)
    assert (caught.value.operation, caught.value.code, caught.value.status) == ("GetObject", "InvalidAccessKeyId", 403)
    assert caught.value.request_id == "rq-1"


def test_a_missing_bucket_is_a_no(store: Store) -> None:
    nowhere = ObjectRef("no-such-bucket", "k")
    for call in (lambda: store.get(nowhere, Endpoint.READ), lambda: store.put(nowhere, Content(b""), MARKER, FREE)):
        with pytest.raises(StoreError, match="NoSuchBucket"):
            call()


def test_a_write_is_one_request_however_it_ends(settings: Settings, ref: ObjectRef, closing: Callable[[Any], Any]) -> None:
    def applies_it_and_says_nothing(request: Request, forward: Forward) -> Response:
        forward(request)
        raise Dropped

    with proxied(str(settings.endpoint_url), applies_it_and_says_nothing) as proxy:
        store = closing(Store(settings.replace(endpoint_url=proxy.url)))
        with pytest.raises(StoreUnavailable):
            store.put(ref, Content(b"x"), MARKER, FREE)
        assert proxy.count("PUT") == 1
    assert closing(Store(settings)).head(ref, Endpoint.WRITE).served is not None


def test_a_read_is_tried_again_by_the_client(
    settings: Settings, ref: ObjectRef, store: Store, closing: Callable[[Any], Any]
) -> None:
    put(store, ref)
    failures = iter([503, 500])

    def recovers(request: Request, forward: Forward) -> Response:
        status = next(failures, None)
        return refusal(status) if status else forward(request)

    with proxied(str(settings.endpoint_url), recovers) as proxy:
        assert closing(Store(settings.replace(endpoint_url=proxy.url))).get(ref, Endpoint.READ).read() == b"body"


def test_a_body_that_breaks_off_is_unavailable(
    settings: Settings, ref: ObjectRef, store: Store, closing: Callable[[Any], Any]
) -> None:
    put(store, ref, b"x" * 5000)

    def cut(request: Request, forward: Forward) -> Response:
        response = forward(request)
        response.cut_at = 100
        return response

    with proxied(str(settings.endpoint_url), cut) as proxy:
        answer = closing(Store(settings.replace(endpoint_url=proxy.url))).get(ref, Endpoint.READ)
        with pytest.raises(StoreUnavailable):
            answer.read()


def test_bytes_that_are_not_those_of_their_checksum_are_unavailable(
    settings: Settings, ref: ObjectRef, store: Store, closing: Callable[[Any], Any]
) -> None:
    put(store, ref, b"right")

    def corrupt(request: Request, forward: Forward) -> Response:
        response = forward(request)
        return Response(response.status, {**response.headers, "x-amz-checksum-crc32": "AAAAAA=="}, b"wrong")

    with proxied(str(settings.endpoint_url), corrupt) as proxy:
        answer = closing(Store(settings.replace(endpoint_url=proxy.url))).get(ref, Endpoint.READ)
        with pytest.raises(StoreUnavailable, match="Checksum"):
            answer.read()


def test_silence_is_unavailable(settings: Settings, ref: ObjectRef, closing: Callable[[Any], Any]) -> None:
    import threading

    over = threading.Event()

    def silent(request: Request, forward: Forward) -> Response:
        over.wait(5)
        raise Dropped

    with proxied(str(settings.endpoint_url), silent) as proxy:
        store = closing(Store(settings.replace(endpoint_url=proxy.url, read_timeout_seconds=0.2, store_attempts=1)))
        with pytest.raises(StoreUnavailable, match="ReadTimeout"):
            store.get(ref, Endpoint.READ)
        over.set()


def test_nobody_listening_is_unavailable(settings: Settings, ref: ObjectRef, closing: Callable[[Any], Any]) -> None:
    store = closing(Store(settings.replace(endpoint_url="http://127.0.0.1:1", store_attempts=1)))
    with pytest.raises(StoreUnavailable, match="EndpointConnectionError"):
        store.head(ref, Endpoint.READ)


def test_missing_credentials_are_a_no(settings: Settings, ref: ObjectRef, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, "/nonexistent")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    store = Store(settings)
    with pytest.raises(StoreError, match="NoCredentialsError"):
        store.head(ref, Endpoint.READ)
    store.close()


def test_an_answer_without_an_etag_says_so(settings: Settings, ref: ObjectRef, closing: Callable[[Any], Any]) -> None:
    def nameless(request: Request, forward: Forward) -> Response:
        return forward(request).with_header("etag", '""')

    with proxied(str(settings.endpoint_url), nameless) as proxy:
        assert closing(Store(settings.replace(endpoint_url=proxy.url))).put(ref, Content(b"x"), MARKER, FREE).etag is None


def test_versions_are_named_and_read_by_id(settings: Settings, store: Store, sandbox: Sandbox) -> None:
    sandbox.create_bucket("versioned-store", versioned=True)
    ref = ObjectRef("versioned-store", "k")
    first = store.put(ref, Content(b"1"), MARKER, FREE).version_id
    store.put(ref, Content(b"2"), MARKER, FREE)

    answer = store.get(ref, Endpoint.READ, version_id=first)
    assert answer.read() == b"1"
    assert answer.served is not None
    assert answer.served.version_id == first


def every_botocore_error() -> list[type[Exception]]:
    kinds = [kind for _, kind in inspect.getmembers(botocore.exceptions, inspect.isclass)]
    return [kind for kind in kinds if issubclass(kind, Exception) and not issubclass(kind, Warning)]


TRANSIENT_NAMES = {
    "AwsChunkedWrapperError", "CapacityNotAvailableError", "ChecksumError", "ConnectTimeoutError", "ConnectionClosedError",
    "ConnectionError", "CredentialRetrievalError", "EndpointConnectionError", "FlexibleChecksumError", "HTTPClientError",
    "IncompleteReadError", "MetadataRetrievalError", "ProxyConnectionError", "ReadTimeoutError", "ResponseStreamingError",
    "SSLError", "TokenRetrievalError",
}


@pytest.mark.parametrize("kind", every_botocore_error(), ids=lambda kind: kind.__name__)
def test_every_error_of_botocore_leaves_as_one_of_ours(kind: type[Exception], ref: ObjectRef) -> None:
    problem: Exception = kind.__new__(kind)
    problem.args = ("words",)
    if isinstance(problem, botocore.exceptions.ClientError):
        problem.response = {"Error": {"Code": "X"}, "ResponseMetadata": {"HTTPStatusCode": 400}}
    expected = StoreUnavailable if kind.__name__ in TRANSIENT_NAMES else StoreError

    with pytest.raises(expected) as caught, door("GetObject", ref):
        raise problem
    assert caught.value.__cause__ is problem


def test_the_list_of_transient_errors_is_complete() -> None:
    assert {kind.__name__ for kind in every_botocore_error() if issubclass(kind, TRANSIENT)} == TRANSIENT_NAMES


@pytest.mark.parametrize(
    ("options", "code"),
    [({"SSEKMSKeyId": ["hush"]}, "ParamValidationError"), ({"SSECustomerKey": ["hush"], "SSECustomerAlgorithm": "A"}, "TypeError")],
)
def test_an_option_of_the_wrong_type_is_a_no_that_keeps_the_value_to_itself(
    store: Store, ref: ObjectRef, options: dict[str, Any], code: str
) -> None:
    with pytest.raises(StoreError) as caught:
        store.put(ref, Content(b"x", options=options), MARKER, FREE)
    assert caught.value.code == code
    assert "hush" not in str(caught.value)


# --- parts, copies, many ---

PART_BYTES = 5 * 1024 * 1024


class Notes:
    """Remembers which uploads began and ended."""

    def __init__(self) -> None:
        self.open: list[str] = []

    def begun(self, upload_id: str) -> None:
        self.open.append(upload_id)

    def over(self, upload_id: str) -> None:
        self.open.remove(upload_id)


def test_an_upload_in_parts_is_served_whole_with_its_marker(any_store: Store, place: ObjectRef) -> None:
    body, notes = os.urandom(8 * 1024 * 1024 + 3), Notes()

    landed = any_store.upload(place, BytesIO(body), Content(content_type="text/x", metadata={"Mine": "kept"}), MARKER, FREE, notes)

    answer = any_store.get(place, Endpoint.READ)
    assert answer.read() == body
    assert answer.served is not None
    assert answer.served.marker == MARKER
    assert (landed.size, landed.etag) == (len(body), answer.served.etag)
    assert answer.served.metadata["mine"] == "kept"
    assert notes.open == []


def test_an_upload_that_cannot_be_completed_is_aborted_and_noted_as_over(any_store: Store, place: ObjectRef) -> None:
    notes = Notes()
    missing = ObjectRef("no-such-bucket-here", place.key)
    with pytest.raises(StoreError):
        any_store.upload(missing, BytesIO(b"x" * (8 * 1024 * 1024)), Content(), MARKER, FREE, notes)
    assert notes.open == []


def test_aborting_an_upload_that_is_gone_is_no_error(any_store: Store, place: ObjectRef) -> None:
    landed = any_store.put_in_parts(place, Content(b"x"), MARKER, FREE, Notes())
    assert any_store.get(place, Endpoint.READ).read() == b"x"
    assert landed.size == 1
    any_store.abort_upload(place, "bm8tc3VjaC11cGxvYWQ")


def copied(store: Store, source: ObjectRef, target: ObjectRef, in_parts: bool) -> None:
    head = store.head(source, Endpoint.WRITE).head
    assert head is not None
    marker = Marker("copy", 8)
    if in_parts:
        assert store.copy_in_parts(source, head, target, Content(), marker, FREE, Notes()) is not None
    else:
        store.copy(source, head, target, Content(), marker, FREE)


@pytest.mark.parametrize("in_parts", [False, True], ids=["at_once", "in_parts"])
def test_a_copy_has_the_bytes_and_metadata_of_its_source_and_a_marker_of_its_own(
    any_store: Store, place: ObjectRef, in_parts: bool
) -> None:
    put(any_store, place, b"body", content_type="text/x", metadata={"Mine": "kept"})
    target = ObjectRef(place.bucket, place.key + "-copy")

    copied(any_store, place, target, in_parts)

    answer = any_store.get(target, Endpoint.READ)
    assert answer.read() == b"body"
    assert answer.served is not None
    assert answer.served.marker == Marker("copy", 8)
    assert (answer.served.content_type, answer.served.metadata["mine"]) == ("text/x", "kept")


def test_a_copy_in_parts_of_what_has_changed_is_not_made(any_store: Store, place: ObjectRef) -> None:
    put(any_store, place, b"first")
    head = any_store.head(place, Endpoint.WRITE).head
    assert head is not None
    put(any_store, place, b"second body")
    target, notes = ObjectRef(place.bucket, place.key + "-copy"), Notes()
    with contextlib.suppress(StoreError):  # 412, where the pin is honoured
        assert any_store.copy_in_parts(place, head, target, Content(), MARKER, FREE, notes) is None
    assert any_store.head(target, Endpoint.READ).served is None
    assert notes.open == []


def test_many_are_deleted_at_once_and_each_is_answered_for(any_store: Store, any_bucket: str) -> None:
    refs = [ObjectRef(any_bucket, f"many-{uuid.uuid4().hex}-{odd}") for odd in ("plain", "ü <&>'", "missing")]
    for ref in refs[:2]:
        put(any_store, ref)
    outcomes = any_store.delete_many(refs)
    assert [getattr(outcome, "deleted", outcome) for outcome in outcomes] == [True] * 3
    assert [any_store.head(ref, Endpoint.READ).served for ref in refs] == [None] * 3


def test_an_object_that_has_not_changed_is_not_sent_again(any_store: Store, place: ObjectRef) -> None:
    etag = put(any_store, place)
    answer = any_store.get(place, Endpoint.READ, if_none_match=etag)
    # A server may take no notice of If-None-Match, and a CDN has ETags of its own.
    assert answer.unchanged or answer.read() == b"body"
    assert any_store.get(place, Endpoint.READ, if_none_match="another").read() == b"body"


def test_a_body_is_taken_piece_by_piece(any_store: Store, place: ObjectRef) -> None:
    put(any_store, place, b"0123456789")
    answer = any_store.get(place, Endpoint.READ, byte_range=(2, 7))
    assert answer.body is not None
    pieces = [answer.body.take(4), answer.body.take(4), answer.body.take(4)]
    assert b"".join(pieces) == b"234567"
    answer.close()
