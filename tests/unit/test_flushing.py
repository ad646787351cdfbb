"""A file's bytes on their way to the disk, with a system that is slow or says no."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from s3tasks import LocalFileError
from s3tasks.files import arriving
from s3tasks.flushing import FLUSHED_AT_ONCE_BYTES, Flusher

HALF = FLUSHED_AT_ONCE_BYTES // 2
PATIENCE_SECONDS = 30


@pytest.fixture
def descriptor(tmp_path: Path) -> Iterator[int]:
    opened = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    yield opened
    os.close(opened)


def no_space(_: int) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_the_disk_gets_them_while_more_come(descriptor: int, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, may_end = threading.Event(), threading.Event()

    def slow(_: int) -> None:
        begun.set()
        assert may_end.wait(PATIENCE_SECONDS)

    flusher = Flusher(descriptor)
    monkeypatch.setattr(os, "fsync", slow)
    flusher.wrote(HALF)
    assert not begun.is_set()
    flusher.wrote(HALF)
    assert begun.wait(PATIENCE_SECONDS), "it has begun, and whoever writes goes on"
    flusher.wrote(3 * FLUSHED_AT_ONCE_BYTES)
    may_end.set()
    flusher.finish()


def test_only_one_flush_is_under_way_and_the_last_is_of_all(descriptor: int, monkeypatch: pytest.MonkeyPatch) -> None:
    at_once, most, count = 0, 0, 0
    lock = threading.Lock()

    def noted(_: int) -> None:
        nonlocal at_once, most, count
        with lock:
            at_once, count = at_once + 1, count + 1
            most = max(most, at_once)
        with lock:
            at_once -= 1

    monkeypatch.setattr(os, "fsync", noted)
    flusher = Flusher(descriptor)
    for _ in range(50):
        flusher.wrote(FLUSHED_AT_ONCE_BYTES)
    before = count
    flusher.finish()
    assert (most, count > before) == (1, True)


@pytest.mark.parametrize("later", [0, 2])
def test_a_flush_that_fails_is_told_at_the_end_though_later_ones_succeed(
    descriptor: int, later: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Linux tells of a page that it could not write once for each descriptor: the last flush alone would not know of it.
    flusher = Flusher(descriptor)
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", no_space)
        flusher.wrote(FLUSHED_AT_ONCE_BYTES)
        flusher.wait()
    for _ in range(later):
        flusher.wrote(FLUSHED_AT_ONCE_BYTES)
        flusher.wait()
    with pytest.raises(OSError, match="No space left") as caught:
        flusher.finish()
    assert caught.value.errno == errno.ENOSPC


def test_a_file_whose_bytes_did_not_reach_the_disk_on_the_way_does_not_arrive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, here = os.fsync, threading.get_ident()

    def fails_on_the_way(descriptor: int) -> None:
        (real if threading.get_ident() == here else no_space)(descriptor)

    monkeypatch.setattr(os, "fsync", fails_on_the_way)
    with pytest.raises(LocalFileError, match="no space left"), arriving(tmp_path / "file") as file:
        file.write(bytes(FLUSHED_AT_ONCE_BYTES))
    assert list(tmp_path.iterdir()) == []


def test_a_block_that_fails_waits_for_the_flush_before_it_lets_the_file_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Its descriptor's number may be another file's by then.
    real, begun = os.fsync, threading.Event()
    open_then: list[int] = []

    def slow(descriptor: int) -> None:
        begun.set()
        given_up.wait(0.2)
        open_then.append(os.fstat(descriptor).st_size)
        real(descriptor)

    def fails() -> None:
        with arriving(tmp_path / "file") as file:
            file.write(bytes(FLUSHED_AT_ONCE_BYTES))
            assert begun.wait(PATIENCE_SECONDS)
            raise ZeroDivisionError

    given_up = threading.Event()
    monkeypatch.setattr(os, "fsync", slow)
    with pytest.raises(ZeroDivisionError):
        fails()
    assert open_then == [FLUSHED_AT_ONCE_BYTES]
    assert list(tmp_path.iterdir()) == []
