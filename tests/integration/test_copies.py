"""Copies made by S3: pinned to what was verified, or verified before they are there."""

from __future__ import annotations

import io
import random
from collections.abc import Callable
from typing import Any

import pytest

from s3tasks import (
    ConsistentS3,
    NoSuchKey,
    ObjectDeleted,
    ObjectRef,
    Settings,
    StaleRead,
    StoreError,
    Superseded,
    WriteConflict,
    copies,
)
from s3tasks.ledger import Ledger
from s3tasks.refs import ObjectRef as Ref
from s3tasks.sandbox import Sandbox
from s3tasks.store import Store
from s3tasks.trials import Honours
from s3tasks.write_ids import NumberedWriteIds
from tests.s3_proxy import Forward, Request, Response, Rule, proxied, refusal

PART_BYTES = 5 * 1024 * 1024
BIG = random.Random(4).randbytes(2 * PART_BYTES + 3)

Connect = Callable[[Settings], ConsistentS3]


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.replace(multipart_threshold_bytes=PART_BYTES, part_bytes=PART_BYTES)


@pytest.fixture
def target(bucket: str) -> ObjectRef:
    return ObjectRef(bucket, "target")


def header(request: Request, wanted: str) -> str | None:
    return next((value for name, value in request.headers.items() if name.lower() == wanted), None)


def honours_pins(request: Request, forward: Forward) -> Response:
    """What moto does not: a copy whose source is not the one that was asked for is refused."""
    source, pin = header(request, "x-amz-copy-source"), header(request, "x-amz-copy-source-if-match")
    if source and pin:
        carried = {name: value for name, value in request.headers.items() if name.lower() == "authorization"}
        there = forward(Request("HEAD", f"/{source.lstrip('/')}", carried, b""))
        if there.status != 404 and there.header("etag") != pin:
            return refusal(412, "PreconditionFailed")
    return forward(request)


@pytest.fixture(params=["ignores pins", "honours pins"])
def either(request: pytest.FixtureRequest, settings: Settings, connect: Connect, ref: ObjectRef) -> Any:
    """A client of an endpoint of each kind; `proxy` notes what it was asked."""
    rule = honours_pins if request.param == "honours pins" else None
    with proxied(str(settings.endpoint_url), rule) as proxy:
        client = connect(settings.replace(endpoint_url=proxy.url))
        assert client._rooms().probes.honours(Honours.COPY_SOURCE_IF_MATCH, ref) is (rule is not None)
        proxy.seen.clear()
        client.proxy = proxy  # type: ignore[attr-defined]
        yield client


@pytest.mark.parametrize("body", [b"", b"small", BIG], ids=["empty", "small", "big"])
def test_a_copy_has_its_sources_bytes_type_metadata_and_tags(
    either: Any, ref: ObjectRef, target: ObjectRef, store: Store, body: bytes
) -> None:
    either.write(
        io.BytesIO(body),
        ref,
        content_type="text/x",
        metadata={"Mine": "kept"},
        put_options={"CacheControl": "no-store", "ContentLanguage": "de", "Tagging": "a=1&b=%C3%BC"},
    )
    copied = either.copy(ref, target)

    assert either.read(copied) == either.read(target) == body
    head = either.head(copied)
    assert (head["content_type"], head["metadata"], head["size"]) == ("text/x", {"mine": "kept"}, len(body))
    raw = store._writer.head_object(Bucket=target.bucket, Key=target.key)
    assert (raw["CacheControl"], raw["ContentLanguage"]) == ("no-store", "de")
    if body:
        tags = store._writer.get_object_tagging(Bucket=target.bucket, Key=target.key)["TagSet"]
        assert {tag["Key"]: tag["Value"] for tag in tags} == {"a": "1", "b": "ü"}


def test_what_is_named_replaces_what_the_source_had(either: Any, ref: ObjectRef, target: ObjectRef, store: Store) -> None:
    either.write(b"x", ref, content_type="text/x", metadata={"a": "1", "b": "2"})
    either.copy(ref, target, content_type="text/y", metadata={"b": "3"}, put_options={"CacheControl": "private"})
    head = either.head(target)
    assert (head["content_type"], head["metadata"]) == ("text/y", {"a": "1", "b": "3"})
    assert store._writer.head_object(Bucket=target.bucket, Key=target.key)["CacheControl"] == "private"


def test_tags_that_are_named_replace_those_of_the_source(either: Any, ref: ObjectRef, target: ObjectRef, store: Store) -> None:
    """AWS keeps the source's, and says nothing, unless the request says that they are replaced."""
    directives: list[str | None] = []
    inner: Rule = either.proxy.rule or (lambda request, forward: forward(request))

    def notes(request: Request, forward: Forward) -> Response:
        if header(request, "x-amz-copy-source") and request.method == "PUT" and "partNumber" not in request.path:
            directives.append(header(request, "x-amz-tagging-directive"))
        return inner(request, forward)

    either.write(b"x", ref, put_options={"Tagging": "a=1"})
    pins = either.proxy.rule is not None
    either.proxy.rule = notes
    either.copy(ref, target, put_options={"Tagging": "b=2"})
    assert store._writer.get_object_tagging(Bucket=target.bucket, Key=target.key)["TagSet"] == [{"Key": "b", "Value": "2"}]
    assert directives == (["REPLACE"] if pins else [])


def test_no_byte_passes_through_here(either: Any, ref: ObjectRef, target: ObjectRef) -> None:
    either.write(BIG, ref)
    either.proxy.seen.clear()
    either.copy(ref, target)
    assert either.proxy.count("GET") == 0


def test_a_copy_is_one_request_where_pins_are_honoured_and_is_completed_after_a_look_where_they_are_not(
    either: Any, ref: ObjectRef, target: ObjectRef
) -> None:
    either.write(b"x", ref)
    either.proxy.seen.clear()
    either.copy(ref, target)
    methods = [method for method, _ in either.proxy.seen]
    honoured = either.proxy.rule is not None
    assert methods == (["HEAD", "PUT"] if honoured else ["HEAD", "POST", "PUT", "HEAD", "POST"])


def test_above_what_one_copy_takes_parts_are_copied(
    either: Any, ref: ObjectRef, target: ObjectRef, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copies, "MOST_COPIED_AT_ONCE_BYTES", PART_BYTES)
    either.write(BIG, ref)
    either.proxy.seen.clear()
    copied = either.copy(ref, target)
    assert either.read(copied) == BIG
    assert sum(method == "PUT" and "partNumber" in path for method, path in either.proxy.seen) == 3


def test_the_limit_of_one_copy_is_s3s() -> None:
    assert copies.MOST_COPIED_AT_ONCE_BYTES == 5 * 1024**3


def test_an_exact_source_is_copied_or_the_copy_is_refused(
    client: ConsistentS3, ref: ObjectRef, target: ObjectRef, ledger: Ledger
) -> None:
    first = client.write(b"first", ref)
    client.write(b"second", ref)
    with pytest.raises(Superseded):
        client.copy(first, target)
    assert ledger.lookup(target).intents == ()
    assert client.read(client.copy(first, target, latest=True)) == b"second"
    client.delete(ref)
    with pytest.raises(ObjectDeleted):
        client.copy(ref, target)
    with pytest.raises(NoSuchKey):
        client.copy(ObjectRef(ref.bucket, "never"), target)
    assert client.read(target) == b"second"


def test_a_source_replaced_under_the_copy_never_becomes_the_target(
    settings: Settings, connect: Connect, client: ConsistentS3, ref: ObjectRef, target: ObjectRef, ledger: Ledger, store: Store
) -> None:
    """The endpoint ignores CopySourceIfMatch, and somebody overwrites the source between the look and the copy."""
    wanted = client.write(b"wanted", ref)
    client.write(b"what was there", target)
    seen: list[bytes] = []

    def replaces_the_source(request: Request, forward: Forward) -> Response:
        copies_now = header(request, "x-amz-copy-source") is not None and ".s3tasks-probe" not in request.path
        if copies_now:
            client.write(b"another", ref)
        response = forward(request)
        if copies_now:
            seen.append(client.read(target))
        return response

    with proxied(str(settings.endpoint_url), replaces_the_source) as proxy:
        with pytest.raises(StaleRead):
            connect(settings.replace(endpoint_url=proxy.url)).copy(wanted, target)
        with pytest.raises(Superseded):
            connect(settings.replace(endpoint_url=proxy.url)).copy(wanted, target, wait=5)
    assert seen == [b"what was there"]
    assert client.read(target) == b"what was there"
    assert ledger.lookup(target).intents == ()
    assert "Uploads" not in store._writer.list_multipart_uploads(Bucket=target.bucket)


def test_a_source_that_changes_once_is_copied_as_it_is_then(
    settings: Settings, connect: Connect, client: ConsistentS3, ref: ObjectRef, target: ObjectRef
) -> None:
    client.write(b"first", ref)
    changing = iter([True])

    def replaces_once(request: Request, forward: Forward) -> Response:
        mine = ".s3tasks-probe" not in request.path
        if header(request, "x-amz-copy-source") is not None and mine and next(changing, False):
            client.write(b"second", ref)
        return honours_pins(request, forward)

    with proxied(str(settings.endpoint_url), replaces_once) as proxy:
        copied = connect(settings.replace(endpoint_url=proxy.url)).copy(ref, target, wait=10)
    assert client.read(copied) == b"second"


def test_a_copy_delivered_again_is_not_made_again_though_its_source_is_gone(
    client: ConsistentS3, ref: ObjectRef, target: ObjectRef
) -> None:
    client.write(b"x", ref)
    first = client.with_write_ids(NumberedWriteIds("task"), 0).copy(ref, target)
    client.delete(ref)
    assert client.with_write_ids(NumberedWriteIds("task"), 0).copy(ref, target) == first


def test_a_conditional_copy_has_one_winner(either: Any, ref: ObjectRef, target: ObjectRef) -> None:
    either.write(b"x", ref)
    if either.proxy.rule is not None:
        with pytest.raises(StoreError, match="ignores if_none_match of a copy"):
            either.copy(ref, target, if_none_match=True)
        return
    either.copy(ref, target, if_none_match=True)
    with pytest.raises(WriteConflict):
        either.copy(ref, target, if_none_match=True)


def test_of_a_versioned_source_the_very_version_is_copied(client: ConsistentS3, sandbox: Sandbox, target: ObjectRef) -> None:
    sandbox.create_bucket("versioned-copies", versioned=True)
    place = Ref("versioned-copies", "key")
    first = client.write(b"first", place)
    client.write(b"second", place)
    assert client.read(client.copy(first, target)) == b"first"
    assert client.read(client.copy(place, target)) == b"second"


def test_an_object_may_be_copied_onto_itself_to_change_its_metadata(either: Any, ref: ObjectRef) -> None:
    either.write(b"x", ref, content_type="text/x")
    either.copy(ref, ref, content_type="text/y")
    assert either.read(ref) == b"x"
    assert either.head(ref)["content_type"] == "text/y"
