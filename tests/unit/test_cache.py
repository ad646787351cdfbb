"""What is kept under an ETag comes back as it was put there, or not at all."""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from s3tasks import ObjectRef
from s3tasks.cache import _BLOCK_BYTES, _FIRST_READ_BYTES, Cache, Cached, _Entry
from s3tasks.evidence import Served
from s3tasks.refs import Marker
from tests.unit.disk_processes import body_of

REPOSITORY = Path(__file__).resolve().parents[2]
BOUND = 16 * 1024 * 1024
REF = ObjectRef("bucket", "key")
LARGE = body_of("large", 2 * _BLOCK_BYTES + 1000)
ACCESS_POINT = "arn:aws:s3:eu-west-1:123456789012:accesspoint/reports"

keys = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=40).filter(
    lambda key: not {".", ".."} & set(key.split("/"))
)
texts = st.text(max_size=40)
versions = st.none() | st.from_regex(r"[!-~]{1,40}", fullmatch=True)
descriptions = st.builds(
    Served,
    etag=st.from_regex(r"[!#-~\x80-\xff]{1,64}", fullmatch=True),
    version_id=versions,
    last_modified=st.integers(0, 2**40),
    marker=st.none() | st.builds(Marker, st.text(min_size=1, max_size=40), st.integers(0, 10**18 - 1)),
    content_type=st.none() | texts,
    metadata=st.dictionaries(texts, texts, max_size=5),
)
sizes = st.sampled_from(
    [0, 1, _FIRST_READ_BYTES - 300, _FIRST_READ_BYTES, _BLOCK_BYTES - 1, _BLOCK_BYTES, _BLOCK_BYTES + 1, 3 * _BLOCK_BYTES]
)
numbers = itertools.count()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def cache(path: Path) -> Cache:
    return Cache(str(path), BOUND)


@pytest.fixture(scope="module")
def lasting(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    """One cache for all that hypothesis draws."""
    return Cache(str(tmp_path_factory.mktemp("lasting")), BOUND)


def described(body: bytes, version_id: str | None = None) -> Served:
    etag = hashlib.sha256(body).hexdigest()
    return Served(etag, version_id, len(body), 1_700_000_000, Marker("write", 17), "text/plain", {"a": "b"})


def kept(cache: Cache, body: bytes, ref: ObjectRef = REF, version_id: str | None = None) -> str:
    """Puts the body; its ETag."""
    served = described(body, version_id or ref.version_id)
    cache.put(ref, served, body)
    assert served.etag is not None
    return served.etag


def file_of(cache: Cache, ref: ObjectRef = REF) -> Path:
    return Path(cache._places(ref)[0])


def bodies(cached: Cached | None) -> bytes | None:
    return None if cached is None else cached.body


# --- what was put comes back ---


@given(
    bucket=st.sampled_from(["b", "my.bucket-1", ACCESS_POINT]), key=keys, served=descriptions, size=sizes, seed=st.integers(0, 9)
)
@example(bucket="b", key="é" * 512, served=Served("e", metadata={"x" * 2000: "ключ" * 500}), size=17_000, seed=0)
def test_a_body_comes_back_with_all_that_s3_said_of_it(
    lasting: Cache, bucket: str, key: str, served: Served, size: int, seed: int
) -> None:
    ref, body = ObjectRef(bucket, key), body_of(str(seed), size)

    lasting.put(ref, served, body)

    assert served.etag is not None
    assert lasting.get(ref, served.etag) == Cached(served, body)
    assert lasting.etag_of(ref) == served.etag


def test_it_is_there_for_another_process_and_after_a_restart(cache: Cache, path: Path) -> None:
    etag = kept(cache, LARGE)

    assert bodies(Cache(str(path), BOUND).get(REF, etag)) == LARGE


@given(first=st.integers(0, len(LARGE) + 5), length=st.none() | st.integers(1, len(LARGE) + 5))
@example(first=_BLOCK_BYTES, length=_BLOCK_BYTES)
@example(first=_BLOCK_BYTES - 1, length=2)
@example(first=len(LARGE) - 1, length=None)
@example(first=len(LARGE), length=None)
def test_a_range_is_that_slice_and_one_behind_the_end_is_a_miss(lasting: Cache, first: int, length: int | None) -> None:
    for body in (LARGE, LARGE[:1000]):
        etag = kept(lasting, body)
        last = None if length is None else first + length - 1

        cached = lasting.get(REF, etag, (first, last))

        wanted = body[first:] if last is None else body[first : last + 1]
        assert bodies(cached) == (wanted or None)
        assert cached is None or cached.served == described(body)


@pytest.mark.parametrize("byte_range", [(-1, 5), (5, 4), (-5, None), (3, -1)])
def test_a_range_that_is_none_is_a_miss(cache: Cache, byte_range: tuple[int, int | None]) -> None:
    assert cache.get(REF, kept(cache, LARGE), byte_range) is None


def test_every_range_of_an_empty_body_is_a_miss(cache: Cache) -> None:
    etag = kept(cache, b"")

    assert bodies(cache.get(REF, etag)) == b""
    assert cache.get(REF, etag, (0, None)) is None


# --- under its name only ---


def test_another_etag_is_a_miss_and_leaves_what_is_there(cache: Cache) -> None:
    etag = kept(cache, b"body")

    assert cache.get(REF, "another") is None
    assert bodies(cache.get(REF, etag)) == b"body"


def test_a_newer_body_takes_the_place_of_the_old_one(cache: Cache) -> None:
    old, new = kept(cache, b"old" * 9000), kept(cache, b"new")

    assert cache.get(REF, old) is None
    assert bodies(cache.get(REF, new)) == b"new"
    assert cache.etag_of(REF) == new
    assert cache.stored_bytes() == 2 * 4096


@pytest.mark.parametrize(
    "other", [ObjectRef("bucket", "kez"), ObjectRef("bucket2", "key"), ObjectRef("bucket", "key", version_id="1")]
)
def test_another_object_of_the_same_etag_is_a_miss(cache: Cache, other: ObjectRef) -> None:
    assert cache.get(other, kept(cache, b"body")) is None


def test_versions_are_kept_beside_each_other_and_beside_the_plain_key(cache: Cache) -> None:
    refs = [REF, ObjectRef("bucket", "key", version_id="1"), ObjectRef("bucket", "key", version_id="2")]
    etags = [kept(cache, body, ref) for body, ref in zip([b"plain", b"one", b"two"], refs, strict=True)]

    assert [bodies(cache.get(ref, etag)) for ref, etag in zip(refs, etags, strict=True)] == [b"plain", b"one", b"two"]
    assert [cache.etag_of(ref) for ref in refs] == [etags[0]] * 3


def test_what_the_plain_key_keeps_serves_the_ref_of_that_very_version(cache: Cache) -> None:
    etag = kept(cache, b"body", version_id="7")

    assert bodies(cache.get(ObjectRef("bucket", "key", version_id="7"), etag)) == b"body"
    assert cache.get(ObjectRef("bucket", "key", version_id="8"), etag) is None
    assert cache.counts()["misses"] == 1


# --- what is not kept ---


@pytest.mark.parametrize(
    ("ref", "served", "body"),
    [
        (REF, Served(None), b"body"),
        (REF, Served("etag", size=5), b"body"),
        (ObjectRef("bucket", "key", version_id="1"), Served("etag", "2"), b"body"),
        (ObjectRef("bucket", "key", version_id="null"), Served("etag"), b"body"),
        (REF, Served("etag", metadata={"long": "x" * 70_000}), b"body"),
        (REF, Served("etag"), bytes(BOUND // 4)),
    ],
)
def test_what_has_no_etag_or_does_not_fit_is_not_kept(cache: Cache, ref: ObjectRef, served: Served, body: bytes) -> None:
    cache.put(ref, served, body)

    assert cache.get(ref, "etag") is None
    assert (cache.counts()["refused"], cache.counts()["stored"]) == (1, 0)


# --- damage ---


def damaged_by_a_flip(file: bytearray, at: int) -> None:
    file[at % len(file)] ^= 1 << at % 8


def damaged_by_a_cut(file: bytearray, at: int) -> None:
    del file[at % len(file) :]


def damaged_by_a_hole(file: bytearray, at: int) -> None:
    at %= len(file)
    file[at:] = bytes(len(file) - at)


def damaged_by_more(file: bytearray, at: int) -> None:
    file.extend(bytes(at % 10_000 + 1))


def damaged_by_two_blocks_changing_places(file: bytearray, at: int) -> None:
    at = len(file) - len(LARGE) if len(file) > len(LARGE) else 0
    file[at:] = file[at + _BLOCK_BYTES :] + file[at : at + _BLOCK_BYTES]


DAMAGES = [damaged_by_a_flip, damaged_by_a_cut, damaged_by_a_hole, damaged_by_more, damaged_by_two_blocks_changing_places]


@given(
    damage=st.sampled_from(DAMAGES),
    at=st.integers(0, 400) | st.integers(0, len(LARGE) + 400),
    large=st.booleans(),
    part=st.booleans(),
)
def test_damage_anywhere_is_never_handed_out_and_a_whole_read_removes_it(
    lasting: Cache, damage: Callable[[bytearray, int], None], at: int, large: bool, part: bool
) -> None:
    body = LARGE if large else LARGE[:700]
    ref = ObjectRef("bucket", f"damaged-{next(numbers)}")
    etag = kept(lasting, body, ref)
    file = file_of(lasting, ref)
    whole = file.read_bytes()
    broken = bytearray(whole)
    damage(broken, at)
    file.write_bytes(broken)

    if part:
        assert bodies(lasting.get(ref, etag, (100, 199))) in (None, body[100:200])
    cached = lasting.get(ref, etag)

    if broken == whole:
        assert bodies(cached) == body
    else:
        assert cached is None
        assert not file.exists()


@pytest.mark.parametrize("body", [b"small" * 10, LARGE])
def test_every_byte_of_the_head_and_around_is_guarded(cache: Cache, body: bytes) -> None:
    etag = kept(cache, body)
    file = file_of(cache)
    whole = file.read_bytes()

    for at in range(len(whole) - len(body) + 20):
        file.write_bytes(whole[:at] + bytes([whole[at] ^ 0x10]) + whole[at + 1 :])
        assert cache.get(REF, etag) is None, at
        assert not file.exists()


def test_a_file_in_the_place_of_another_is_removed(cache: Cache) -> None:
    etag = kept(cache, b"body")
    other = ObjectRef("bucket", "other")
    file_of(cache, other).parent.mkdir(mode=0o700, exist_ok=True)
    file_of(cache).rename(file_of(cache, other))

    assert cache.get(other, etag) is None
    assert not file_of(cache, other).exists()
    assert cache.counts()["damaged"] == 1


def test_a_symlink_in_the_place_of_a_file_is_not_followed_and_removed(cache: Cache, tmp_path: Path) -> None:
    etag = kept(cache, b"body")
    moved = tmp_path / "moved"
    file_of(cache).rename(moved)
    file_of(cache).symlink_to(moved)

    assert cache.get(REF, etag) is None
    assert not file_of(cache).is_symlink()
    assert moved.exists()


def test_a_file_of_another_user_is_not_handed_out_and_removed(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    etag, us = kept(cache, b"body"), os.geteuid()
    # Only root may give a file away; to be somebody else is the same.
    monkeypatch.setattr(os, "geteuid", lambda: us + 1)
    assert cache.get(REF, etag) is None
    assert not file_of(cache).exists()


def test_a_pipe_in_the_place_of_a_file_holds_nobody_up(cache: Cache) -> None:
    etag = kept(cache, b"body")
    file_of(cache).unlink()
    os.mkfifo(file_of(cache))

    assert cache.get(REF, etag) is None
    assert not file_of(cache).exists()


@pytest.mark.parametrize("body", [b"small", LARGE])
def test_a_reader_is_not_disturbed_by_replacement_and_eviction(cache: Cache, body: bytes) -> None:
    etag = kept(cache, body)
    descriptor = os.open(file_of(cache), os.O_RDONLY)
    entry = _Entry(descriptor)

    kept(cache, b"another")
    file_of(cache).unlink()

    assert bodies(entry.cached(REF, etag, None)) == body
    os.close(descriptor)


def test_readers_in_threads_see_whole_bodies_only_while_it_is_replaced_without_end(
    cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    # However slow this machine is.
    monkeypatch.setattr("s3tasks.disk._THREAD_LOCK_SECONDS", 60)
    versions_of_it = [body_of(str(number), 300_000 + number) for number in range(4)]
    wrong: list[int] = []
    done = threading.Event()

    def write() -> None:
        for turn in range(80):
            kept(cache, versions_of_it[turn % 4])

    def read() -> None:
        while not done.is_set():
            etag = cache.etag_of(REF)
            cached = None if etag is None else cache.get(REF, etag)
            if cached is not None and cached.body not in versions_of_it:
                wrong.append(len(cached.body))

    with ThreadPoolExecutor(5) as threads:
        readers = [threads.submit(read) for _ in range(2)]
        wait([threads.submit(write) for _ in range(3)])
        done.set()
    assert [reader.result() for reader in readers] == [None, None]

    assert wrong == []
    assert cache.counts()["damaged"] == cache.counts()["failed"] == 0
    assert cache.counts()["refused"] == 0
    assert cache.counts()["hits"] > 0


# --- last used ---


def test_a_hit_says_that_the_file_is_in_use_once_a_minute_at_most(cache: Cache) -> None:
    etag = kept(cache, b"body")
    now = time.time()

    dates = {}
    for age in (30, 90, -90):
        os.utime(file_of(cache), (now - age, now - age))
        cache.get(REF, etag)
        dates[age] = round(file_of(cache).stat().st_mtime - now)

    assert dates[30] == -30
    assert abs(dates[90]) < 60
    assert abs(dates[-90]) < 60


def test_what_is_read_outlives_what_is_not(path: Path) -> None:
    cache = Cache(str(path), 40 * 4096)
    refs = [ObjectRef("bucket", f"key-{number}") for number in range(39)]
    etags = [kept(cache, f"body {ref.key}".encode(), ref) for ref in refs]
    for age, ref in enumerate(refs):
        os.utime(file_of(cache, ref), (time.time() - 1000 + age,) * 2)

    cache.get(refs[0], etags[0])
    kept(cache, b"one more")

    assert bodies(cache.get(refs[0], etags[0])) == b"body key-0"
    assert cache.get(refs[1], etags[1]) is None
    assert cache.counts()["evicted"] == 5


# --- trouble with the disk ---


def warnings_in(caplog: pytest.LogCaptureFixture) -> list[str]:
    ours = [record for record in caplog.records if record.name == "s3tasks.cache"]
    return [record.getMessage() for record in ours if record.levelno == logging.WARNING]


def test_a_directory_that_is_gone_is_made_again(cache: Cache, path: Path) -> None:
    etag = kept(cache, b"body")
    subprocess.run(["rm", "-r", str(path)], check=True)

    assert cache.get(REF, etag) is None
    assert (cache.etag_of(REF), cache.stored_bytes()) == (None, 4096)
    kept(cache, b"body")

    assert bodies(cache.get(REF, etag)) == b"body"
    assert cache.counts()["failed"] == 0


@pytest.mark.parametrize("where", ["", "filling", "folder", "total"])
def test_trouble_with_the_disk_is_logged_once_and_never_raised(
    cache: Cache, path: Path, where: str, caplog: pytest.LogCaptureFixture
) -> None:
    kept(cache, b"body")
    place = {"": path, "folder": file_of(cache).parent}.get(where, path / where)
    subprocess.run(["rm", "-r", str(place)], check=True)
    if where == "total":
        place.mkdir()
    else:
        place.write_bytes(b"a file where a directory should be")

    for _ in range(3):
        etag = kept(cache, b"new")

    found = cache.get(REF, etag)
    assert found is None or (where == "total" and found.body == b"new")
    assert cache.stored_bytes() >= 0
    assert cache.counts()["failed"] >= 3
    (warning,) = warnings_in(caplog)
    assert f"the cache in {path} cannot be used as it should: " in warning


def test_a_disk_that_takes_no_more_leaves_no_fill_and_the_small_ones_go_on(path: Path) -> None:
    command = [sys.executable, "-m", "tests.unit.disk_processes", "fills_under_limit", str(path), str(BOUND)]

    said = json.loads(subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout)

    assert (said["failed"], said["stored"], said["kept"]) == (1, 1, 1)
    assert os.listdir(path / "filling") == []


def test_a_directory_that_will_not_do_is_refused_with_its_name_and_the_way_out(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)

    with pytest.raises(ValueError, match=f"the cache directory {tmp_path} is writable by others, .*: chmod go-w it"):
        Cache(str(tmp_path), BOUND)


# --- what it has met ---


def test_it_counts_what_it_has_met(cache: Cache) -> None:
    etag = kept(cache, b"body")
    cache.get(REF, etag)
    cache.get(REF, etag)
    cache.get(REF, "another")

    assert cache.counts() == {"hits": 2, "misses": 1, "stored": 1, "refused": 0, "failed": 0, "damaged": 0, "evicted": 0}
    assert cache.stored_bytes() == 2 * 4096


def test_a_fork_reads_and_fills_the_same_cache_and_counts_for_itself(path: Path) -> None:
    program = f"""
import os, hashlib
from tests.unit.test_cache import Cache, REF, bodies, kept
cache = Cache({str(path)!r}, 1 << 20)
etag = kept(cache, b"parent")
child = os.fork()
if child == 0:
    right = bodies(cache.get(REF, etag)) == b"parent" and cache.counts()["stored"] == 0
    kept(cache, b"child")
    os._exit(0 if right and cache.counts()["stored"] == 1 else 1)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
assert bodies(cache.get(REF, hashlib.sha256(b"child").hexdigest())) == b"child"
assert cache.counts()["stored"] == 1
"""
    subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, check=True)


def test_a_hit_takes_no_lock(cache: Cache, path: Path) -> None:
    etag = kept(cache, b"body")

    with cache._files._locked():
        assert bodies(cache.get(REF, etag)) == b"body"
        assert cache.get(REF, "another") is None
        assert cache.stored_bytes() == 2 * 4096
