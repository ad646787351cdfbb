"""Sums of several processes: exact whatever becomes of those who count."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

import pytest

from s3tasks.tallies import Tallies
from tests.conftest import REPOSITORY

# Counts as it is told by lines on its standard input, and answers when it has.
COUNTER = """
import sys
from s3tasks.tallies import Tallies
tallies = Tallies(sys.argv[1])
for line in sys.stdin:
    name, amount = line.split()
    tallies.add(name, float(amount))
    print("counted", flush=True)
"""


@pytest.fixture
def directory(tmp_path: Path) -> str:
    (tmp_path / "counts").mkdir(mode=0o700)
    return str(tmp_path / "counts")


@pytest.fixture
def start(directory: str) -> Iterator[Callable[[], subprocess.Popen[str]]]:
    """Starts processes that count, and ends them."""
    started: list[subprocess.Popen[str]] = []

    def one() -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", COUNTER, directory], cwd=REPOSITORY, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        started.append(process)
        return process

    yield one
    for process in started:
        process.kill()
        process.communicate()


def pipe(stream: IO[str] | None) -> IO[str]:
    assert stream is not None
    return stream


def count(process: subprocess.Popen[str], name: str, amount: float = 1) -> None:
    pipe(process.stdin).write(f"{name} {amount}\n")
    pipe(process.stdin).flush()
    assert pipe(process.stdout).readline() == "counted\n"


def files(directory: str) -> list[str]:
    return sorted(path.name for path in Path(directory).glob("*.tally"))


def test_sums_start_at_nothing(directory: str) -> None:
    assert Tallies(directory).totals() == {}


def test_what_one_process_counts_is_added_up(directory: str) -> None:
    tallies = Tallies(directory)
    tallies.add("writes")
    tallies.add("writes", 2)
    tallies.add("seconds", 0.25)

    assert tallies.totals() == {"writes": 3.0, "seconds": 0.25}


def test_threads_lose_no_count(directory: str) -> None:
    tallies = Tallies(directory)

    def count_up() -> None:
        for _ in range(5000):
            tallies.add("n")

    threads = [threading.Thread(target=count_up) for _ in range(4)]
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(before)

    assert tallies.totals() == {"n": 20000.0}


def test_processes_are_added_up_by_any_of_them(directory: str, start: Callable[[], subprocess.Popen[str]]) -> None:
    first, second, here = start(), start(), Tallies(directory)
    count(first, "writes", 2)
    count(second, "writes", 3)
    count(second, "reads", 1)
    here.add("writes", 4)

    assert here.totals() == Tallies(directory).totals() == {"writes": 9.0, "reads": 1.0}
    assert len(files(directory)) == 3


def test_a_killed_process_loses_no_count_and_leaves_no_file(directory: str, start: Callable[[], subprocess.Popen[str]]) -> None:
    living, killed, reader = start(), start(), Tallies(directory)
    count(living, "writes", 1)
    count(killed, "writes", 10)
    killed.send_signal(signal.SIGKILL)
    killed.wait()

    assert reader.totals() == {"writes": 11.0}
    assert len(files(directory)) == 1
    count(living, "writes", 1)
    assert reader.totals() == {"writes": 12.0}


def test_a_file_that_was_added_up_and_not_removed_is_not_added_up_again(
    directory: str, start: Callable[[], subprocess.Popen[str]]
) -> None:
    """Whoever adds up the dead may be killed between its two steps."""
    killed, reader = start(), Tallies(directory)
    count(killed, "writes", 10)
    killed.kill()
    killed.wait()
    (name,) = files(directory)
    kept = (Path(directory) / name).read_bytes()
    reader.totals()
    (Path(directory) / name).write_bytes(kept)

    assert reader.totals() == {"writes": 10.0}
    assert files(directory) == []
    assert reader.totals() == {"writes": 10.0}


def test_a_forked_child_counts_for_itself_and_does_not_keep_its_parent_alive(directory: str) -> None:
    program = f"""
import os, signal
from s3tasks.tallies import Tallies
tallies = Tallies({directory!r})
tallies.add("n", 1)
child = os.fork()
if child == 0:
    tallies.add("n", 2)
    print(os.getpid(), flush=True)
    signal.pause()
os.kill(os.getpid(), signal.SIGKILL)
"""
    parent = subprocess.Popen([sys.executable, "-c", program], cwd=REPOSITORY, text=True, stdout=subprocess.PIPE)
    child = int(pipe(parent.stdout).readline())
    try:
        parent.wait()
        assert Tallies(directory).totals() == {"n": 3.0}
        assert [name.partition("-")[0] for name in files(directory)] == [str(child)]
    finally:
        os.kill(child, signal.SIGKILL)
        pipe(parent.stdout).close()


def test_many_who_add_up_at_once_agree(directory: str, start: Callable[[], subprocess.Popen[str]]) -> None:
    processes = [start() for _ in range(3)]
    for process in processes:
        count(process, "n", 1)
        process.kill()
        process.wait()
    heard: list[dict[str, float]] = []
    threads = [threading.Thread(target=lambda: heard.append(Tallies(directory).totals())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert heard == [{"n": 3.0}] * 8


@pytest.mark.parametrize("name", ["", "x" * 120])
def test_a_name_that_does_not_fit_is_refused(directory: str, name: str) -> None:
    with pytest.raises(ValueError, match="no room"):
        Tallies(directory).add(name)


def test_the_number_of_names_is_bounded(directory: str) -> None:
    tallies = Tallies(directory)
    for number in range(1024):
        tallies.add(f"name {number}")
    with pytest.raises(ValueError, match="no room"):
        tallies.add("one more")
    tallies.add("name 7")

    totals = tallies.totals()
    assert len(totals) == 1024
    assert totals["name 7"] == 2.0


def test_a_directory_that_is_missing_or_others_can_write_to_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is missing"):
        Tallies(str(tmp_path / "nowhere"))
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    with pytest.raises(ValueError, match="writable by others"):
        Tallies(str(tmp_path / "open"))


def test_the_sums_of_the_dead_are_one_small_file(directory: str, start: Callable[[], subprocess.Popen[str]]) -> None:
    reader = Tallies(directory)
    for _ in range(2):
        process = start()
        count(process, "n", 1)
        process.kill()
        process.wait()
        reader.totals()

    assert json.loads((Path(directory) / "dead.json").read_text())["sums"] == {"n": 2.0}
