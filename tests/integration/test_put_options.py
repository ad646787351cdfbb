"""What may be said of a write besides its bytes: options, conditions, owners, keys of one's own, versions."""

from __future__ import annotations

import base64
import io
import logging
from collections.abc import Callable
from typing import Any

import botocore.session
import pytest

from s3tasks import (
    ConsistentS3,
    InvalidRef,
    NoSuchKey,
    NotYetVisible,
    ObjectDeleted,
    ObjectRef,
    Settings,
    StoreError,
    WriteConflict,
)
from s3tasks.ledger import Ledger
from s3tasks.sandbox import Sandbox
from s3tasks.store import Store, check_options
from s3tasks.trials import Honours
from s3tasks.write_ids import NumberedWriteIds
from tests.s3_proxy import Forward, Request, Response, proxied, refusal

Connect = Callable[[Settings], ConsistentS3]
SSE_KEY = base64.b64encode(bytes(range(32))).decode()


def headers_of(request: Request) -> dict[str, str]:
    return {name.lower(): value for name, value in request.headers.items()}


def is_probe(request: Request) -> bool:
    return ".s3tasks-probe" in request.path


# --- options ---


OPTIONS: dict[str, tuple[Any, str, str]] = {
    "CacheControl": ("no-store", "cache-control", "no-store"),
    "ContentDisposition": ("attachment", "content-disposition", "attachment"),
    "Tagging": ("a=1", "x-amz-tagging", "a=1"),
    "StorageClass": ("STANDARD_IA", "x-amz-storage-class", "STANDARD_IA"),
    "ServerSideEncryption": ("aws:kms", "x-amz-server-side-encryption", "aws:kms"),
    "SSEKMSKeyId": ("key-1", "x-amz-server-side-encryption-aws-kms-key-id", "key-1"),
    "ACL": ("public-read", "x-amz-acl", "public-read"),
    "ExpectedBucketOwner": ("111122223333", "x-amz-expected-bucket-owner", "111122223333"),
    "RequestPayer": ("requester", "x-amz-request-payer", "requester"),
    "ObjectLockMode": ("GOVERNANCE", "x-amz-object-lock-mode", "GOVERNANCE"),
    "ObjectLockRetainUntilDate": ("2030-01-01T00:00:00Z", "x-amz-object-lock-retain-until-date", "2030-01-01T00:00:00Z"),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_every_option_reaches_s3_by_its_own_name(settings: Settings, connect: Connect, ref: ObjectRef, name: str) -> None:
    value, header, sent = OPTIONS[name]
    seen: list[str | None] = []

    def notes(request: Request, forward: Forward) -> Response:
        seen.append(headers_of(request).get(header))
        # What moto makes of it is not the question here.
        return forward(request.without(header)) if request.method == "PUT" else forward(request)

    with proxied(str(settings.endpoint_url), notes) as proxy:
        connect(settings.replace(endpoint_url=proxy.url)).write(b"x", ref, put_options={name: value})
    assert seen == [sent]


@pytest.mark.parametrize(
    ("options", "hint"),
    [
        ({"StorageClas": "x"}, "did you mean StorageClass"),
        ({"Nonsense": "x"}, "it has ACL, "),
        ({"StorageClass": 5}, "StorageClass"),
        ({"Body": b"x"}, "argument"),
        ({"Key": "other"}, "argument"),
        ({"IfMatch": "x"}, "argument"),
        ({"ContentLength": 5}, "argument"),
        (["StorageClass"], "mapping"),
        ({5: "x"}, "has no 5"),
        ({"CacheControl": "no-store\r\nx-amz-acl: public-read"}, "control character"),
    ],
)
@pytest.mark.parametrize("verb", ["write", "copy", "upload"])
def test_a_wrong_option_is_one_clear_error_before_anything_is_begun(
    client: ConsistentS3, ref: ObjectRef, ledger: Ledger, options: Any, hint: str, verb: str, tmp_path: Any
) -> None:
    (tmp_path / "f").write_bytes(b"x")
    verbs: dict[str, Callable[[], Any]] = {
        "write": lambda: client.write(b"x", ref, put_options=options),
        "copy": lambda: client.copy(ref, ref, put_options=options),
        "upload": lambda: client.upload(tmp_path / "f", ref, put_options=options),
    }
    if verb != "write" and isinstance(options, dict) and "ContentLength" in options:
        hint = "argument|has no"
    with pytest.raises(ValueError, match=hint) as caught:
        verbs[verb]()
    assert "put_options" in str(caught.value)
    assert ledger.lookup(ref).seq == 0


@pytest.mark.parametrize(
    ("given", "hint"),
    [
        ({"metadata": {"a": "x\r\ny"}}, "printable ASCII"),
        ({"metadata": {"name": "x", "Name": "y"}}, "differ in case"),
        ({"metadata": {"a": "ü"}}, "urllib.parse.quote"),
        ({"metadata": {"a b:": "x"}}, "header"),
        ({"metadata": {"": "x"}}, "header"),
        ({"content_type": "text/plain\r\nx: y"}, "media type"),
    ],
)
@pytest.mark.parametrize("verb", ["write", "write_many", "a stream"])
def test_what_no_header_can_carry_is_one_clear_error_and_no_outage(
    client: ConsistentS3, ref: ObjectRef, ledger: Ledger, given: Any, hint: str, verb: str
) -> None:
    verbs: dict[str, Callable[[], Any]] = {
        "write": lambda: client.write(b"x", ref, **given),
        "write_many": lambda: client.write_many([{"body": b"x", "ref": ref, **given}]),
        "a stream": lambda: client.write(io.BytesIO(b"x"), ref, **given),
    }
    with pytest.raises(ValueError, match=hint):
        verbs[verb]()
    assert ledger.lookup(ref).seq == 0


NOT_BY_OPTION = {
    # Arguments of their own.
    "Bucket", "Key", "Body", "Metadata", "ContentType", "IfMatch", "IfNoneMatch",
    # What would keep S3 waiting, and secrets.
    "ContentLength", "WriteOffsetBytes", "SSECustomerAlgorithm", "SSECustomerKey", "SSECustomerKeyMD5",
}


def test_every_option_of_put_object_passes_and_each_other_is_set_otherwise() -> None:
    """By botocore's own model, whatever it comes to hold."""
    shape = botocore.session.get_session().get_service_model("s3").operation_model("PutObject").input_shape
    assert set(shape.members) >= NOT_BY_OPTION
    values = {"string": "x", "boolean": True, "timestamp": "2030-01-01T00:00:00Z", "long": 1, "integer": 1}
    for name, member in shape.members.items():
        if name in NOT_BY_OPTION:
            with pytest.raises(ValueError, match=name):
                check_options(("PutObject",), {name: values.get(member.type_name, "x")})
        else:
            check_options(("PutObject",), {name: values[member.type_name]})


@pytest.mark.parametrize("name", ["SSECustomerKey", "SSECustomerKeyMD5", "SSECustomerAlgorithm", "CopySourceSSECustomerKey"])
def test_keys_of_ones_own_are_refused_in_options_and_not_shown(client: ConsistentS3, ref: ObjectRef, name: str) -> None:
    with pytest.raises(ValueError, match="sse_customer_key") as caught:
        client.write(b"x", ref, put_options={name: "secret-secret"})
    assert "secret-secret" not in str(caught.value)


@pytest.mark.parametrize("key", ["SSEKMSEncryptionContext", "SSEKMSKeyId", "Tagging"])
def test_the_value_of_a_wrong_option_is_not_quoted(client: ConsistentS3, ref: ObjectRef, key: str) -> None:
    with pytest.raises(ValueError, match=key) as caught:
        client.write(b"x", ref, put_options={key: ["secret-secret"]})
    assert "secret-secret" not in str(caught.value)


def test_every_call_carries_the_owner_and_who_pays(settings: Settings, connect: Connect, ref: ObjectRef, tmp_path: Any) -> None:
    seen: list[tuple[str, str | None, str | None]] = []

    def notes(request: Request, forward: Forward) -> Response:
        headers = headers_of(request)
        seen.append((request.method, headers.get("x-amz-expected-bucket-owner"), headers.get("x-amz-request-payer")))
        return forward(request.without("x-amz-expected-bucket-owner", "x-amz-source-expected-bucket-owner", "x-amz-request-payer"))

    with proxied(str(settings.endpoint_url), notes) as proxy:
        client = connect(settings.replace(endpoint_url=proxy.url, expected_bucket_owner="1" * 12, requester_pays=True))
        client.write(b"x", ref)
        client.read(ref)
        client.head(ref)
        client.copy(ref, ObjectRef(ref.bucket, "copy"))
        client.download(ref, tmp_path / "f")
        client.delete_many([ref])
        client.delete(ref)
    assert {owner for _, owner, _ in seen} == {"1" * 12}
    assert {payer for _, _, payer in seen} == {"requester"}


def test_a_key_of_ones_own_is_sent_with_writes_and_reads_and_shown_nowhere(
    settings: Settings, connect: Connect, ref: ObjectRef, caplog: pytest.LogCaptureFixture
) -> None:
    seen: list[tuple[str, str | None]] = []

    def notes(request: Request, forward: Forward) -> Response:
        headers = headers_of(request)
        seen.append((request.method, headers.get("x-amz-server-side-encryption-customer-key")))
        return refusal(400, "InvalidRequest") if request.method == "HEAD" else forward(request)

    caplog.set_level(logging.DEBUG, logger="s3tasks")
    with proxied(str(settings.endpoint_url), notes) as proxy:
        own = settings.replace(endpoint_url=proxy.url, sse_customer_key=SSE_KEY)
        client = connect(own)
        client.write(b"x", ref)
        assert client.read(ref) == b"x"
        with pytest.raises(StoreError) as caught:
            client.head(ref)
    # On a 400 botocore asks for the bucket, too: it may be of another region.
    assert seen[:3] == [("PUT", SSE_KEY), ("GET", SSE_KEY), ("HEAD", SSE_KEY)]
    assert SSE_KEY not in caplog.text + repr(own) + str(caught.value) + repr(caught.value)


# --- conditions ---


def test_of_writers_that_come_at_once_one_wins(client: ConsistentS3, ref: ObjectRef) -> None:
    first = client.write(b"1", ref, if_none_match=True)
    with pytest.raises(WriteConflict):
        client.write(b"2", ref, if_none_match=True)
    second = client.write(b"3", ref, if_match=first.etag)
    with pytest.raises(WriteConflict):
        client.write(b"4", ref, if_match=first.etag)
    with pytest.raises(WriteConflict):
        client.delete(ref, if_match=first.etag)
    client.delete(ref, if_match=second.etag)


def ignores_conditions(request: Request, forward: Forward) -> Response:
    return forward(request.without("if-match", "if-none-match"))


def refuses_conditions(request: Request, forward: Forward) -> Response:
    conditional = request.conditional and request.method != "GET"
    return refusal(501, "NotImplemented") if conditional else forward(request)


@pytest.mark.parametrize("rule", [ignores_conditions, refuses_conditions])
@pytest.mark.parametrize("verb", ["if_none_match", "if_match", "delete"])
def test_an_endpoint_that_does_not_honour_a_condition_is_refused_rather_than_trusted(
    settings: Settings, connect: Connect, client: ConsistentS3, ref: ObjectRef, store: Store, rule: Any, verb: str
) -> None:
    written = client.write(b"there", ref)
    with proxied(str(settings.endpoint_url), rule) as proxy:
        asking = connect(settings.replace(endpoint_url=proxy.url))
        verbs: dict[str, Callable[[], Any]] = {
            "if_none_match": lambda: asking.write(b"x", ref, if_none_match=True),
            "if_match": lambda: asking.write(b"x", ref, if_match=written.etag),
            "delete": lambda: asking.delete(ref, if_match=written.etag),
        }
        with pytest.raises(StoreError, match="ignores if_"):
            verbs[verb]()
        # Found once, and known to the next process.
        again = connect(settings.replace(endpoint_url=proxy.url))
        asked = len(proxy.seen)
        assert not again._rooms().probes.honours(
            {"if_none_match": Honours.PUT_IF_NONE_MATCH, "if_match": Honours.PUT_IF_MATCH, "delete": Honours.DELETE_IF_MATCH}[verb],
            ref,
        )
        assert len(proxy.seen) == asked
    assert client.read(ref) == b"there"
    assert [item["Key"] for item in store._writer.list_objects_v2(Bucket=ref.bucket)["Contents"]] == [ref.key]


def test_a_store_that_lets_several_writers_win_is_found_out(settings: Settings, connect: Connect, ref: ObjectRef) -> None:
    """Swift: one after another the condition holds, at once it does not."""
    early = iter([True] * 3)

    def lets_three_win(request: Request, forward: Forward) -> Response:
        if headers_of(request).get("if-none-match") and next(early, False):
            return forward(request.without("if-none-match"))
        return forward(request)

    with proxied(str(settings.endpoint_url), lets_three_win) as proxy:
        probes = connect(settings.replace(endpoint_url=proxy.url))._rooms().probes
        assert probes.honours(Honours.PUT_IF_NONE_MATCH, ref) is False


@pytest.mark.parametrize("choice", ["trust", "refuse"])
def test_what_the_operator_says_of_conditions_is_not_tried_out(
    settings: Settings, connect: Connect, ref: ObjectRef, choice: str
) -> None:
    with proxied(str(settings.endpoint_url)) as proxy:
        client = connect(settings.replace(endpoint_url=proxy.url, conditional_writes=choice))
        if choice == "trust":
            client.write(b"x", ref, if_none_match=True)
        else:
            with pytest.raises(StoreError, match="conditional_writes is 'refuse'"):
                client.write(b"x", ref, if_none_match=True)
        assert not any(".s3tasks-probe" in path for _, path in proxy.seen)


def test_aws_is_believed_unasked(settings: Settings, connect: Connect, ref: ObjectRef) -> None:
    client = connect(settings.replace(endpoint_url="https://s3.eu-west-1.amazonaws.com"))
    assert all(client._rooms().probes.honours(what, ref) for what in Honours)


def test_an_endpoint_that_only_looks_like_aws_is_not(settings: Settings, connect: Connect, ref: ObjectRef) -> None:
    client = connect(settings.replace(endpoint_url="http://amazonaws.com.invalid:9", connect_timeout_seconds=0.1))
    with pytest.raises(Exception, match="unavailable"):
        client._rooms().probes.honours(Honours.PUT_IF_MATCH, ref)


def test_a_conflict_of_conditional_requests_is_tried_again(settings: Settings, connect: Connect, ref: ObjectRef) -> None:
    busy = iter([True, True])

    def is_busy(request: Request, forward: Forward) -> Response:
        mine = request.method == "PUT" and not is_probe(request)
        return refusal(409, "ConditionalRequestConflict") if mine and next(busy, False) else forward(request)

    with proxied(str(settings.endpoint_url), is_busy) as proxy:
        client = connect(settings.replace(endpoint_url=proxy.url))
        assert client.read(client.write(b"x", ref, if_none_match=True)) == b"x"


@pytest.mark.parametrize("given", ["*", 1, None, "yes"])
def test_a_condition_that_is_neither_true_nor_false_is_refused(client: ConsistentS3, ref: ObjectRef, given: Any) -> None:
    with pytest.raises(ValueError, match="if_none_match"):
        client.write(b"x", ref, if_none_match=given)
    with pytest.raises(ValueError, match="latest"):
        client.read(ref, latest=given)


# --- versions ---


@pytest.fixture(scope="module")
def versioned(sandbox: Sandbox) -> str:
    sandbox.create_bucket("keeps-versions", versioned=True)
    return "keeps-versions"


@pytest.fixture
def place(versioned: str, request: pytest.FixtureRequest) -> ObjectRef:
    return ObjectRef(versioned, request.node.name)


def test_a_written_ref_gives_that_very_version_after_it_was_overwritten_and_deleted(client: ConsistentS3, place: ObjectRef) -> None:
    first, second = client.write(b"first", place), client.write(b"second", place)
    assert first.version_id
    assert second.version_id not in (None, first.version_id)
    gone = client.delete(place)
    assert gone.deleted
    assert gone.version_id
    assert (client.read(first), client.read(second)) == (b"first", b"second")
    assert client.head(first)["size"] == 5
    for deleted in (place, gone, gone.to_dict()):
        with pytest.raises(ObjectDeleted):
            client.read(deleted)
    with pytest.raises(NoSuchKey):
        client.read(ObjectRef(place.bucket, place.key, version_id=gone.version_id))


def test_a_version_is_removed_for_good_and_what_was_before_it_is_current_again(client: ConsistentS3, place: ObjectRef) -> None:
    first, second = client.write(b"first", place), client.write(b"second", place)
    now = client.delete(second, this_version=True)
    assert (now.etag, now.version_id) == (first.etag, first.version_id)
    assert client.read(place) == client.read(now) == b"first"
    with pytest.raises(ObjectDeleted):
        client.read(second, wait=30)
    assert client.delete(first, this_version=True).deleted
    with pytest.raises(ObjectDeleted):
        client.read(place)


def test_an_old_version_is_removed_and_the_current_one_stays(client: ConsistentS3, place: ObjectRef) -> None:
    first, second = client.write(b"first", place), client.write(b"second", place)
    client.delete(first, this_version=True)
    assert client.read(place) == client.read(second) == b"second"
    with pytest.raises(ObjectDeleted):
        client.read(first)


def test_removing_the_delete_marker_brings_the_object_back(client: ConsistentS3, place: ObjectRef) -> None:
    client.write(b"x", place)
    gone = client.delete(place)
    back = client.delete(gone, this_version=True)
    assert not back.deleted
    assert client.read(place) == client.read(back) == b"x"


def test_what_was_written_before_the_bucket_kept_versions_is_read_by_its_id(
    client: ConsistentS3, sandbox: Sandbox, store: Store, tmp_path: Any
) -> None:
    sandbox.create_bucket("versions-later")
    place, null = ObjectRef("versions-later", "key"), ObjectRef("versions-later", "key", version_id="null")
    old = client.write(b"old", place)
    # A later write may take that id over, so no ref of a write names it.
    assert old.version_id is None
    store._writer.put_bucket_versioning(Bucket=place.bucket, VersioningConfiguration={"Status": "Enabled"})
    new = client.write(b"new", place)

    assert (client.read(null), client.head(null)["version_id"], client.read(place)) == (b"old", "null", b"new")
    client.download(null, tmp_path / "old")
    assert (tmp_path / "old").read_bytes() == b"old"
    assert client.read(client.copy(null, ObjectRef(place.bucket, "copy"))) == b"old"
    with client.open(null) as stream:
        assert stream.read() == b"old"
    assert client.delete(null, this_version=True).version_id == new.version_id
    with pytest.raises(NoSuchKey):
        client.read(null)
    # Turned off again, writes and deletes have no version ids, but go through the ledger like any other.
    store._writer.put_bucket_versioning(Bucket=place.bucket, VersioningConfiguration={"Status": "Suspended"})
    assert client.delete(place).version_id is None
    with pytest.raises(ObjectDeleted):
        client.read(place)
    latest = client.write(b"latest", place)
    assert latest.version_id is None
    assert client.read(latest) == client.read(place) == b"latest"


def test_removing_a_version_needs_one_and_takes_no_condition(client: ConsistentS3, place: ObjectRef) -> None:
    written = client.write(b"x", place)
    with pytest.raises(ValueError, match="version id"):
        client.delete(place, this_version=True)
    with pytest.raises((ValueError, StoreError), match=r"if_match|version"):
        client.delete(written, this_version=True, if_match=written.etag)
    with pytest.raises(ValueError, match="this_version"):
        client.delete(written, this_version="yes")  # type: ignore[arg-type]
    assert client.read(written) == b"x"


def test_a_removal_delivered_again_is_done_once(client: ConsistentS3, place: ObjectRef, ledger: Ledger) -> None:
    client.write(b"first", place)
    second = client.write(b"second", place)
    results = [client.with_write_ids(NumberedWriteIds("task"), 0).delete(second, this_version=True) for _ in range(2)]
    assert results[0] == results[1]
    assert ledger.lookup(place).intents == ()


def test_a_version_that_a_replica_has_not_got_yet_is_waited_for(
    client: ConsistentS3, connect: Connect, replicated: Settings, sandbox: Sandbox, place: ObjectRef
) -> None:
    lagging = connect(replicated)
    sandbox.pause_replication()
    try:
        written = client.write(b"x", place)
        with pytest.raises(NotYetVisible):
            lagging.read(written)
    finally:
        sandbox.resume_replication()
    assert lagging.read(written, wait=20) == b"x"


def test_a_ref_of_another_bucket_is_refused_by_every_verb(
    settings: Settings, connect: Connect, ref: ObjectRef, tmp_path: Any
) -> None:
    client = connect(settings.replace(allowed_buckets=("allowed",)))
    (tmp_path / "f").write_bytes(b"x")
    calls: list[Callable[[], Any]] = [
        lambda: client.write(b"x", ref),
        lambda: client.copy("s3://allowed/k", ref),
        lambda: client.copy(ref, "s3://allowed/k"),
        lambda: client.open(ref),
        lambda: client.upload(tmp_path / "f", ref),
        lambda: client.download(ref, tmp_path / "g"),
        lambda: client.write_many([(b"x", ref)]),
        lambda: client.read_many([ref]),
        lambda: client.head_many([ref]),
        lambda: client.delete_many([ref]),
        lambda: client.delete(ref),
        lambda: client.read(ref),
        lambda: client.wait_visible(ref),
    ]
    for call in calls:
        with pytest.raises(InvalidRef, match="allowed_buckets"):
            call()
