"""The bound that no process breaks, however many fill at once and wherever they are stopped or killed."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import stat
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from s3tasks.cache import Cache
from s3tasks.disk import LARGEST_SHARE, BoundedDirectory, NoRoom, problem_with
from tests.unit.disk_processes import check_all, taken_bytes

REPOSITORY = Path(__file__).resolve().parents[2]
BLOCK = 4096
BOUND = 100 * BLOCK
TOTALS_OWN_BYTES = BLOCK

Start = Callable[..., "subprocess.Popen[str]"]


def named(number: int) -> str:
    return f"{number:064x}"


def spread(number: int) -> str:
    """Names in folders of their own."""
    return f"{number:02x}" + "0" * 62


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def bounded(path: Path) -> BoundedDirectory:
    return BoundedDirectory(str(path), BOUND)


@pytest.fixture
def start(path: Path) -> Iterator[Start]:
    """Starts a program of disk_processes on the directory; whatever still runs at the end is killed."""
    started: list[subprocess.Popen[str]] = []

    def run(program: str, *numbers: int) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "tests.unit.disk_processes", program, str(path), *map(str, numbers)]
        process = subprocess.Popen(command, cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        started.append(process)
        return process

    yield run
    for process in started:
        process.kill()
        process.communicate()


def files_in(path: Path) -> set[str]:
    return {found.name for found in path.glob("??/*")}


def used_at(bounded: BoundedDirectory, name: str, seconds_ago: float) -> None:
    then = time.time() - seconds_ago
    os.utime(bounded.place(name), (then, then))


# --- one process ---


def test_nothing_is_made_before_the_first_fill(bounded: BoundedDirectory, path: Path) -> None:
    assert bounded.total_bytes() == TOTALS_OWN_BYTES
    assert not path.exists()


def test_a_fill_puts_a_whole_file_in_its_place_for_this_user_only(bounded: BoundedDirectory, path: Path) -> None:
    old_mask = os.umask(0)
    try:
        bounded.fill(named(1), [b"head", b"", b"body" * 1000])
    finally:
        os.umask(old_mask)

    assert Path(bounded.place(named(1))).read_bytes() == b"head" + b"body" * 1000
    assert {stat.S_IMODE(made.stat().st_mode) for made in [path, *path.rglob("*")] if made.is_dir()} == {0o700}
    assert {stat.S_IMODE(made.stat().st_mode) for made in path.rglob("*") if made.is_file()} == {0o600}
    assert os.listdir(path / "filling") == []


def test_the_total_counts_blocks_and_gives_back_those_of_a_file_that_is_replaced(bounded: BoundedDirectory) -> None:
    bounded.fill(named(1), [b"x" * (3 * BLOCK + 1)])
    bounded.fill(named(2), [b"x"])
    assert bounded.total_bytes() == TOTALS_OWN_BYTES + 5 * BLOCK

    bounded.fill(named(1), [b"x" * BLOCK])

    assert bounded.total_bytes() == TOTALS_OWN_BYTES + 2 * BLOCK


@pytest.mark.parametrize(("blocks", "kept"), [(100 // LARGEST_SHARE, True), (100 // LARGEST_SHARE + 1, False)])
def test_a_file_of_more_than_a_quarter_of_the_bound_is_refused(
    bounded: BoundedDirectory, path: Path, blocks: int, kept: bool
) -> None:
    with contextlib.nullcontext() if kept else pytest.raises(NoRoom):
        bounded.fill(named(1), [b"x" * (blocks * BLOCK)])

    assert files_in(path) == ({named(1)} if kept else set())


def test_those_least_recently_used_make_room_down_to_nine_tenths(bounded: BoundedDirectory, path: Path) -> None:
    order = random.Random(1).sample(range(99), 99)
    for number in range(99):
        bounded.fill(spread(number), [b"x"])
    for age, number in enumerate(order):
        used_at(bounded, spread(number), 1000 - age)

    evicted = bounded.fill(spread(200), [b"x"])

    # 100 blocks are full with the total's own; of 90, one is the total's and one the new file's.
    assert evicted == 11
    assert files_in(path) == {spread(number) for number in order[11:]} | {spread(200)}
    assert bounded.total_bytes() == taken_bytes(path) == 90 * BLOCK


def test_a_file_dated_in_the_future_is_not_kept_for_ever(bounded: BoundedDirectory, path: Path) -> None:
    for number in range(99):
        bounded.fill(spread(number), [b"x"])
    used_at(bounded, spread(50), -1e8)

    bounded.fill(spread(200), [b"x"])

    assert spread(50) not in files_in(path)


@pytest.mark.parametrize("spoilt", [b"", b"nonsense\n", b"0" * 5000, None, "flipped", "rebooted"])
def test_a_total_that_cannot_be_relied_on_is_counted_anew(
    bounded: BoundedDirectory, path: Path, spoilt: bytes | str | None
) -> None:
    for number in range(99):
        bounded.fill(spread(number), [b"x"])
    total = path / "total"
    said = total.read_bytes()
    if spoilt is None:
        total.unlink()
    elif spoilt == "flipped":
        total.write_bytes(said.replace(b"%020d" % BOUND, b"%020d" % 0))
    elif spoilt == "rebooted":
        older = b"00000000 %020d" % BLOCK
        total.write_bytes(b"%b %08x\n" % (older, zlib.crc32(older)))
    elif isinstance(spoilt, bytes):
        total.write_bytes(spoilt)

    assert bounded.total_bytes() == BOUND
    bounded.fill(spread(200), [b"x"])

    assert bounded.total_bytes() == taken_bytes(path) == 90 * BLOCK


def test_files_that_are_not_ours_are_neither_counted_nor_removed(bounded: BoundedDirectory, path: Path) -> None:
    strangers = [path / "notes.txt", path / "00" / "notes.txt", path / "filling" / "notes.txt", path / "photos" / named(1)]
    for stranger in strangers:
        stranger.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        stranger.write_bytes(b"x" * 20 * BLOCK)

    for number in range(120):
        bounded.fill(spread(number), [b"x"])

    assert all(stranger.exists() for stranger in strangers)
    assert taken_bytes(path) - 80 * BLOCK > 80 * BLOCK


def test_an_orphan_is_removed_by_the_next_scan_and_a_fill_under_way_is_not(bounded: BoundedDirectory, path: Path) -> None:
    with bounded._locked():
        bounded._reserve(20 * BLOCK)
        under_way = bounded._begin(str(path / "filling" / ("fill-" + "a" * 16)), 20 * BLOCK)
    (path / "filling" / ("fill-" + "b" * 16)).write_bytes(b"x" * 70 * BLOCK)
    try:
        for number in range(100):
            bounded.fill(spread(number), [b"x"])

        assert os.listdir(path / "filling") == ["fill-" + "a" * 16]
        assert taken_bytes(path) <= BOUND
    finally:
        os.close(under_way)


def test_fills_under_way_are_never_evicted_for_another(bounded: BoundedDirectory, path: Path) -> None:
    under_way = []
    for number in range(4):
        with bounded._locked():
            bounded._reserve(24 * BLOCK)
            under_way.append(bounded._begin(str(path / "filling" / f"fill-{number:016x}"), 24 * BLOCK))

    with pytest.raises(NoRoom):
        bounded.fill(named(1), [b"x" * 4 * BLOCK])

    assert taken_bytes(path) == 97 * BLOCK
    for descriptor in under_way:
        os.close(descriptor)


def test_each_process_keeps_to_its_own_bound(bounded: BoundedDirectory, path: Path) -> None:
    for number in range(99):
        bounded.fill(spread(number), [b"x"])

    BoundedDirectory(str(path), 20 * BLOCK).fill(spread(200), [b"x"])

    assert taken_bytes(path) == 18 * BLOCK


def test_a_fill_that_fails_leaves_nothing_behind(bounded: BoundedDirectory, path: Path) -> None:
    Path(bounded.place(named(1))).mkdir(parents=True)
    path.chmod(0o700)

    with pytest.raises(OSError):
        bounded.fill(named(1), [b"x"])

    assert os.listdir(path / "filling") == []


def test_a_directory_that_was_handed_to_others_is_not_filled(bounded: BoundedDirectory, path: Path) -> None:
    bounded.fill(named(1), [b"x"])
    path.chmod(0o777)

    with pytest.raises(PermissionError, match="writable by others"):
        bounded.fill(named(2), [b"x"])

    assert files_in(path) == {named(1)}


def test_threads_wait_for_each_other(bounded: BoundedDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    # However slow this machine is.
    monkeypatch.setattr("s3tasks.disk._THREAD_LOCK_SECONDS", 60)
    outcomes: list[int] = []

    def fill(number: int) -> None:
        outcomes.append(bounded.fill(named(number), [b"x"]))

    threads = [threading.Thread(target=fill, args=(number,)) for number in range(8)]

    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert outcomes == [0] * 8


# --- many processes ---


def test_a_stopped_process_that_holds_the_lock_stops_no_other(bounded: BoundedDirectory, start: Start, path: Path) -> None:
    holder = start("holds_lock", BOUND)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "locked\n"

    with pytest.raises(NoRoom, match="holds the lock"):
        bounded.fill(named(1), [b"x"])
    holder.communicate()
    bounded.fill(named(1), [b"x"])

    assert files_in(path) == {named(1)}


def test_a_fork_does_not_hold_on_to_the_locks_of_a_process_that_was_killed(
    bounded: BoundedDirectory, start: Start, path: Path
) -> None:
    killed = start("dies_locked", BOUND)
    assert killed.stdout is not None
    assert killed.stdout.readline() == "forked\n"
    assert killed.wait() == -signal.SIGKILL

    for number in range(100):
        bounded.fill(spread(number), [b"x"])

    assert os.listdir(path / "filling") == []


def test_a_fill_killed_at_any_step_keeps_to_the_bound_and_leaves_the_total_too_high_at_most(start: Start) -> None:
    bound = 45 * BLOCK
    said = start("steps", bound).communicate()[0]

    after = [json.loads(line) for line in said.splitlines()]
    assert len(after) > 30
    assert [step["killed"] for step in after] == [True] * (len(after) - 1) + [False]
    assert [step for step in after if step["taken"] > bound or step["total"] < step["taken"]] == []
    assert max(step["fills"] for step in after) > 1
    # The last one scanned.
    assert after[-1]["fills"] == 0


class Fillers:
    """Processes that fill one cache; they can all be stopped where they are, to be counted."""

    def __init__(self, processes: list[subprocess.Popen[str]]) -> None:
        self.processes = processes
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "started\n"

    def running(self) -> list[subprocess.Popen[str]]:
        return [process for process in self.processes if process.poll() is None]

    def taken_bytes(self, path: Path) -> int:
        running = self.running()
        for process in running:
            os.kill(process.pid, signal.SIGSTOP)
        for process in running:
            status = os.waitpid(process.pid, os.WUNTRACED)[1]
            if not os.WIFSTOPPED(status):
                process.returncode = os.waitstatus_to_exitcode(status)
        taken = taken_bytes(path)
        for process in self.running():
            os.kill(process.pid, signal.SIGCONT)
        return taken


def test_many_processes_that_fill_at_once_never_exceed_the_bound(start: Start, path: Path) -> None:
    fillers = Fillers([start("fills", BOUND, seed, 100) for seed in range(4)])

    taken = []
    while fillers.running():
        time.sleep(0.01)
        taken.append(fillers.taken_bytes(path))

    assert max(taken) <= BOUND
    assert len(taken) > 5
    assert max(taken) > BOUND // 2
    outcomes = [json.loads(process.communicate()[0]) for process in fillers.processes]
    assert [process.returncode for process in fillers.processes] == [0] * 4
    assert sum(said["evicted"] for said in outcomes) > 20
    assert sum(said["stored"] for said in outcomes) > sum(said["refused"] for said in outcomes)
    assert {said["failed"] + said["damaged"] for said in outcomes} == {0}
    assert Cache(str(path), BOUND).stored_bytes() >= taken_bytes(path)


def test_processes_killed_while_they_fill_leave_nothing_but_whole_bodies_within_the_bound(start: Start, path: Path) -> None:
    chance, taken = random.Random(), []
    fillers = Fillers([start("fills", BOUND, seed, 0) for seed in range(3)])
    for seed in range(10, 30):
        # Killed wherever it happens to be; counted while the others stand still.
        taken.append(fillers.taken_bytes(path))
        victim = fillers.processes.pop(chance.randrange(3))
        victim.kill()
        victim.communicate()
        taken.append(fillers.taken_bytes(path))
        fillers.processes.append(Fillers([start("fills", BOUND, seed, 0)]).processes[0])
    for process in fillers.processes:
        process.kill()
        process.communicate()

    assert max(taken) <= BOUND
    cache = Cache(str(path), BOUND)
    assert check_all(cache) > 0
    bounded = BoundedDirectory(str(path), BOUND)
    with bounded._locked():
        total, _ = bounded._swept(BOUND // LARGEST_SHARE)
    assert os.listdir(path / "filling") == []
    assert total == taken_bytes(path)
    assert cache.counts()["damaged"] == 0


# --- which directories ---


def test_a_directory_of_another_user_is_refused(tmp_path: Path) -> None:
    strange = tmp_path if os.geteuid() == 0 else Path("/")
    if os.geteuid() == 0:
        os.chown(tmp_path, 12345, 12345)

    assert f"{strange} belongs to user" in str(problem_with(str(strange)))


@pytest.mark.parametrize("mode", [0o720, 0o702, 0o777, 0o1777])
def test_a_directory_that_others_can_write_to_is_refused(tmp_path: Path, mode: int) -> None:
    tmp_path.chmod(mode)

    assert str(problem_with(str(tmp_path))) == f"{tmp_path} is writable by others, who could put anything there: chmod go-w it"


def test_a_file_is_no_directory_and_neither_is_what_lies_in_one(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    assert "is not a directory: name one" in str(problem_with(str(tmp_path / "file")))
    assert "Not a directory: name a directory" in str(problem_with(str(tmp_path / "file" / "in it")))


@pytest.mark.parametrize("mode", [0o700, 0o750, 0o755])
def test_a_directory_of_this_user_or_a_symlink_to_it_or_a_missing_one_will_do(tmp_path: Path, mode: int) -> None:
    (tmp_path / "real").mkdir(mode=mode)
    (tmp_path / "link").symlink_to(tmp_path / "real")

    assert [problem_with(str(tmp_path / name)) for name in ("real", "link", "missing")] == [None, None, None]
    BoundedDirectory(str(tmp_path / "link"), BOUND).fill(named(1), [b"x"])
    assert files_in(tmp_path / "real") == {named(1)}
