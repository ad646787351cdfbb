"""Reads through the cache: only what the ledger calls current, or what S3 itself says has not changed."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from s3tasks import ConsistentS3, NotYetVisible, ObjectDeleted, ObjectRef, Settings, StaleRead, Superseded
from s3tasks.ledger import Ledger
from s3tasks.sandbox import Sandbox
from s3tasks.store import Store
from tests.s3_proxy import S3Proxy, proxied, refusal

Connect = Callable[[Settings], ConsistentS3]


@pytest.fixture
def proxy(settings: Settings) -> Iterator[S3Proxy]:
    with proxied(str(settings.endpoint_url)) as started:
        yield started


@pytest.fixture
def cached(settings: Settings, connect: Connect, proxy: S3Proxy, tmp_path: Path) -> ConsistentS3:
    return connect(settings.replace(endpoint_url=proxy.url, cache_dir=str(tmp_path / "cache")))


def counts(client: ConsistentS3) -> tuple[int, int]:
    said = client.cache_counts()
    return said["hits"], said["misses"]


def test_a_body_that_the_ledger_calls_current_is_served_without_asking_s3(
    cached: ConsistentS3, ref: ObjectRef, proxy: S3Proxy
) -> None:
    written = cached.write(b"0123456789", ref)
    assert cached.read(ref) == b"0123456789"
    assert (proxy.count("GET"), counts(cached)) == (1, (0, 1))

    assert cached.read(ref) == cached.read(written) == cached.read(written, latest=True) == b"0123456789"
    assert cached.read(ref, byte_range=(2, 4)) == b"234"
    assert cached.read(ref, byte_range=(7, None)) == b"789"

    assert (proxy.count("GET"), counts(cached)) == (1, (5, 1))


def test_processes_of_one_machine_share_it(
    settings: Settings, connect: Connect, proxy: S3Proxy, tmp_path: Path, ref: ObjectRef
) -> None:
    mine = settings.replace(endpoint_url=proxy.url, cache_dir=str(tmp_path / "cache"))
    one, other = connect(mine), connect(mine)
    one.write(b"x", ref)
    one.read(ref)
    assert other.read(ref) == b"x"
    assert proxy.count("GET") == 1


def test_a_newer_write_is_read_from_s3_and_the_older_is_superseded(
    cached: ConsistentS3, client: ConsistentS3, ref: ObjectRef
) -> None:
    old = cached.write(b"old", ref)
    cached.read(ref)
    client.write(b"new", ref)
    assert cached.read(ref) == b"new"
    with pytest.raises(Superseded):
        cached.read(old)
    client.delete(ref)
    with pytest.raises(ObjectDeleted):
        cached.read(ref)


def test_what_the_ledger_promises_is_not_served_from_an_older_body(
    settings: Settings, connect: Connect, sandbox: Sandbox, tmp_path: Path, ref: ObjectRef
) -> None:
    client = connect(settings.replace(read_endpoint_url=sandbox.read_endpoint_url, cache_dir=str(tmp_path / "cache")))
    client.write(b"old", ref)
    assert client.read(ref, wait=20) == b"old"
    sandbox.pause_replication()
    try:
        client.write(b"new", ref)
        with pytest.raises(StaleRead):
            client.read(ref)
    finally:
        sandbox.resume_replication()
    assert client.read(ref, wait=20) == b"new"
    assert client.read(ref) == b"new"


def test_of_what_the_ledger_does_not_know_s3_is_asked_whether_it_changed(
    cached: ConsistentS3, client: ConsistentS3, ref: ObjectRef, proxy: S3Proxy, store: Store
) -> None:
    asked: list[str | None] = []
    answered: list[int] = []

    def notes(request: Any, forward: Any) -> Any:
        asked.append(next((value for name, value in request.headers.items() if name.lower() == "if-none-match"), None))
        response = forward(request)
        answered.append(response.status)
        return response

    store._writer.put_object(Bucket=ref.bucket, Key=ref.key, Body=b"theirs")
    proxy.rule = notes
    assert cached.read(ref) == cached.read(ref) == b"theirs"
    assert (answered, asked[0], bool(asked[1])) == ([200, 304], None, True)
    assert counts(cached) == (1, 1)
    store._writer.put_object(Bucket=ref.bucket, Key=ref.key, Body=b"changed")
    assert cached.read(ref) == b"changed"
    assert answered[2:] == [200]
    assert counts(cached) == (1, 2)
    store._writer.delete_object(Bucket=ref.bucket, Key=ref.key)
    with pytest.raises(Exception, match="no such key"):
        cached.read(ref)


def test_a_server_that_answers_304_with_checksums_is_understood(
    cached: ConsistentS3, ref: ObjectRef, proxy: S3Proxy, store: Store
) -> None:
    """botocore stumbles over the checksum of a body that is not there."""
    store._writer.put_object(Bucket=ref.bucket, Key=ref.key, Body=b"theirs")
    cached.read(ref)
    proxy.rule = lambda request, forward: (
        response.with_header("x-amz-checksum-crc32", "AAAAAA==") if (response := forward(request)).status == 304 else response
    )
    assert cached.read(ref) == b"theirs"


def test_an_open_intent_means_that_s3_is_asked(cached: ConsistentS3, ref: ObjectRef, proxy: S3Proxy, ledger: Ledger) -> None:
    cached.write(b"x", ref)
    cached.read(ref)
    ledger.begin(ref, "under way")
    assert cached.read(ref) == b"x"
    assert proxy.count("GET") == 2


def test_a_body_that_broke_off_is_not_kept(cached: ConsistentS3, ref: ObjectRef, proxy: S3Proxy) -> None:
    cached.write(b"x" * 100_000, ref)

    def breaks_off(request: Any, forward: Any) -> Any:
        response = forward(request)
        response.cut_at = 1000 if request.method == "GET" else None
        return response

    proxy.rule = breaks_off
    with pytest.raises(Exception, match="unavailable"):
        cached.read(ref)
    proxy.rule = None
    assert cached.read(ref) == b"x" * 100_000
    assert cached.cache_counts()["stored"] == 1


def test_in_a_versioned_bucket_each_version_is_kept_and_a_removed_one_is_not_served(
    cached: ConsistentS3, sandbox: Sandbox, proxy: S3Proxy
) -> None:
    sandbox.create_bucket("cached-versions", versioned=True)
    place = ObjectRef("cached-versions", "key")
    first, second = cached.write(b"first", place), cached.write(b"second", place)
    for _ in range(2):
        assert (cached.read(first), cached.read(second), cached.read(place)) == (b"first", b"second", b"second")
    assert proxy.count("GET") == 3
    cached.delete(first, this_version=True)
    with pytest.raises(ObjectDeleted):
        cached.read(first)


def test_many_are_read_through_it_too(cached: ConsistentS3, bucket: str, proxy: S3Proxy) -> None:
    uris = [f"s3://{bucket}/{number}" for number in range(20)]
    cached.write_many([(uri, uri) for uri in uris])
    for _ in range(2):
        assert [outcome.value for outcome in cached.read_many(uris)] == [uri.encode() for uri in uris]
    assert proxy.count("GET") == 20


def test_a_cache_that_cannot_be_used_does_not_fail_the_read(
    settings: Settings, connect: Connect, ref: ObjectRef, tmp_path: Path
) -> None:
    directory = tmp_path / "cache"
    client = connect(settings.replace(cache_dir=str(directory)))
    client.write(b"x", ref)
    client.read(ref)
    for path in sorted(directory.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    directory.rmdir()
    directory.write_text("no directory any more")
    assert client.read(ref) == b"x"


def test_a_cache_in_a_wrong_place_is_refused_with_a_way_out(
    settings: Settings, connect: Connect, ref: ObjectRef, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(ValueError, match="cache"):
        connect(settings.replace(cache_dir=str(tmp_path / "file"))).read(ref)


def test_readers_and_writers_at_once_never_get_a_replaced_body(cached: ConsistentS3, client: ConsistentS3, ref: ObjectRef) -> None:
    """Each reader must get a version at least as new as the newest that was committed when it began."""
    committed = [0]
    wrong: list[tuple[int, int]] = []
    client.write("0", ref)
    over = threading.Event()

    def reads() -> None:
        while not over.is_set():
            least = committed[0]
            got = int(cached.read(ref, wait=10))
            if got < least:
                wrong.append((least, got))

    readers = [threading.Thread(target=reads) for _ in range(3)]
    for reader in readers:
        reader.start()
    for number in range(1, 60):
        client.write(str(number), ref)
        committed[0] = number
    over.set()
    for reader in readers:
        reader.join(30)
    assert wrong == []


def test_what_s3_does_not_serve_is_not_found_in_the_cache_either(cached: ConsistentS3, ref: ObjectRef, proxy: S3Proxy) -> None:
    proxy.rule = lambda request, forward: refusal(404, "NoSuchKey") if request.method in ("GET", "HEAD") else forward(request)
    written = cached.write(b"x", ref)
    with pytest.raises(NotYetVisible):
        cached.read(written)
