"""Files on this machine: which may be used, that nothing leads out of the root, and that a new file is whole or not there."""

from __future__ import annotations

import errno
import itertools
import os
import resource
import signal
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from s3tasks import LocalFileError
from s3tasks.files import _LocalFile, arriving, outgoing

INSIDE, OUTSIDE, ARRIVED = b"inside", b"outside", b"arrived"
REPOSITORY = Path(__file__).resolve().parents[2]
TRIES = 2000

Opening = Callable[..., Any]


def read(path: Any, root: Any = None) -> bytes:
    with outgoing(path, root) as file:
        return file.read()


def arrive(path: Any, root: Any = None, body: bytes = ARRIVED, meanwhile: Callable[[], object] | None = None) -> None:
    with arriving(path, root) as file:
        file.write(body)
        if meanwhile is not None:
            meanwhile()


def raising(problem: BaseException) -> Callable[[], object]:
    def act() -> object:
        raise problem

    return act


def problem_of(act: Callable[..., object], *arguments: Any) -> LocalFileError:
    with pytest.raises(LocalFileError) as caught:
        act(*arguments)
    return caught.value


def tree(directory: Path) -> dict[str, Any]:
    """All that is below a directory: what kind each name is, and the bytes of regular files."""
    found = {}
    for path in sorted(directory.rglob("*")):
        mode = path.lstat().st_mode
        found[str(path.relative_to(directory))] = path.read_bytes() if stat.S_ISREG(mode) else stat.S_IFMT(mode)
    return found


def furnish(base: Path) -> tuple[Path, Path]:
    """A root with everything in it that may stand in the way, and a place outside of it that nothing may touch."""
    root, outside = base / "root", base / "outside"
    (root / "d" / "e").mkdir(parents=True)
    (outside / "e").mkdir(parents=True)
    for name in ("f", "d/f", "d/e/f"):
        (root / name).write_bytes(INSIDE)
    for name in ("f", "e/f"):
        (outside / name).write_bytes(OUTSIDE)
    (root / "link").symlink_to(outside / "f")
    (root / "link_inside").symlink_to(root / "f")
    (root / "dangling").symlink_to(outside / "new")
    (root / "dir_link").symlink_to(outside)
    (root / "dir_link_inside").symlink_to(root / "d")
    (root / "d" / "loop").symlink_to("loop")
    os.mkfifo(root / "fifo")
    # Device 0/0 stands for nothing and may be made by anybody; opening it fails.
    os.mknod(root / "device", stat.S_IFCHR | 0o600, os.makedev(0, 0))
    bind_socket(root)
    return root, outside


def bind_socket(root: Path) -> None:
    # The address of a socket is short; the temporary directory's path may not be.
    directory = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(f"/proc/self/fd/{directory}/socket")
    finally:
        os.close(directory)


@pytest.fixture
def places(tmp_path: Path) -> tuple[Path, Path]:
    return furnish(tmp_path)


@pytest.fixture
def root(places: tuple[Path, Path]) -> str:
    return str(places[0])


@pytest.fixture
def outside(places: tuple[Path, Path]) -> Path:
    return places[1]


@pytest.fixture(params=["unnamed draft", "named draft"])
def either_draft(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """With O_TMPFILE, and as on a system that has none."""
    if request.param == "named draft":
        monkeypatch.delattr(os, "O_TMPFILE")
    return str(request.param)


@pytest.fixture(autouse=True)
def no_descriptor_is_left() -> Iterator[None]:
    before = descriptors()
    yield
    # What an earlier test left to the garbage collector may go meanwhile.
    assert descriptors().items() <= before.items()


def descriptors() -> dict[str, str]:
    found = {}
    for number in os.listdir("/proc/self/fd"):
        # The one that lists them is gone by now.
        with suppress(FileNotFoundError):
            found[number] = os.readlink(f"/proc/self/fd/{number}")
    return found


# --- what may be used ---


@pytest.mark.parametrize("path", ["f", "d/f", "d/e/f"])
def test_a_file_below_the_root_is_read(root: str, path: str) -> None:
    with outgoing(path, root) as file:
        assert (file.readable(), file.seekable(), file.writable()) == (True, True, False)
        assert os.get_blocking(file.fileno())
        assert file.read() == INSIDE
        assert (file.seek(2), file.read(2)) == (2, INSIDE[2:4])

    assert file.closed


@pytest.mark.parametrize("path", ["f", "new", "d/e/new", "d/e/f", "...", "a b", "ключ", "a\\b", "-", "~", "x" * 255])
def test_a_file_below_the_root_is_written(root: str, either_draft: str, path: str) -> None:
    with arriving(path, root) as file:
        assert (file.readable(), file.seekable(), file.writable()) == (True, True, True)
        assert (file.seek(3), file.write(b"def"), file.seek(0), file.write(b"abc")) == (3, 3, 0, 3)
        assert (file.seek(1), file.read()) == (1, b"bcdef")

    assert (Path(root) / path).read_bytes() == b"abcdef"
    assert file.closed


def test_the_root_itself_may_be_a_symbolic_link(root: str, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path)

    assert read("f", str(tmp_path / "link" / "root")) == INSIDE
    arrive("new", str(tmp_path / "link" / "root"))
    assert read("new", root) == ARRIVED


REFUSED = {
    "": "empty",
    ".": "'.'",
    "..": "'..'",
    "../outside/f": "'..'",
    "d/../f": "'..'",
    "./f": "'.'",
    "d//f": "empty part",
    "f/": "empty part",
    "d/": "empty part",
    "/": "absolute",
    "//f": "absolute",
    "/etc/passwd": "absolute",
    "f\0": "NUL",
    "d\0/f": "NUL",
    "d/\udcff": "not valid Unicode",
    "x" * 256: "256 bytes",
    "d/" + "é" * 128 + "/f": "256 bytes",
    "link": "a symbolic link",
    "link_inside": "a symbolic link",
    "dangling": "a symbolic link",
    "d/loop": "a symbolic link",
    "dir_link": "a symbolic link",
    "dir_link/f": "dir_link is a symbolic link",
    "dir_link/e/f": "dir_link is a symbolic link",
    "dir_link_inside/f": "dir_link_inside is a symbolic link",
    "d/loop/f": "loop is a symbolic link",
    "f/f": "no directory",
    "fifo/f": "no directory",
    "device/f": "no directory",
    "d": "a directory",
    "d/e": "a directory",
    "fifo": "a FIFO",
    "socket": "a socket",
    "device": "a device",
    "missing/f": "no such file or directory",
    "d/missing/f": "no such file or directory",
}


@pytest.mark.parametrize("act", [read, arrive])
@pytest.mark.parametrize(("path", "problem"), REFUSED.items(), ids=lambda text: ascii(text)[:40])
def test_what_is_no_regular_file_below_the_root_is_refused(
    tmp_path: Path, root: str, act: Opening, path: str, problem: str
) -> None:
    before = tree(tmp_path)

    error = problem_of(act, path, root)

    assert problem in error.problem
    assert tree(tmp_path) == before


@pytest.mark.parametrize("act", [read, arrive])
@pytest.mark.parametrize("path", [None, 1.5, True, b"f", ["f"], {"f": 1}, 10**6000, Path("f")], ids=type)
def test_a_path_below_a_root_is_text(root: str, act: Opening, path: Any) -> None:
    assert "text" in problem_of(act, path, root).problem


def test_a_missing_file_is_missing(root: str) -> None:
    assert problem_of(read, "missing", root).problem == "no such file or directory"


def test_missing_directories_are_not_created_and_the_error_says_so(tmp_path: Path, root: str) -> None:
    assert "directories are not created" in problem_of(arrive, "missing/f", root).problem
    assert "directories are not created" in problem_of(arrive, tmp_path / "missing" / "f").problem


@pytest.mark.parametrize("act", [read, arrive])
@pytest.mark.parametrize(("name", "problem"), [("missing", "no such file or directory"), ("f", "not a directory")])
def test_a_root_that_is_no_directory_is_told_as_such(root: str, act: Opening, name: str, problem: str) -> None:
    error = problem_of(act, "f", os.path.join(root, name))

    assert (error.path, error.problem) == ("f", f"file_root cannot be used: {problem}")
    assert isinstance(error.__cause__, OSError)


def test_the_error_shows_the_path_short_and_printable_and_the_way_out(root: str) -> None:
    assert str(problem_of(read, "", root)).startswith("'': ")
    assert problem_of(read, "\x1b[31m\n\u202e\ud800/..", root).path == "\\x1b[31m\\n\\u202e\\ud800/.."
    assert len(problem_of(read, "\0" * 10_000_000, root).path) == 121
    assert "relative to file_root, such as" in problem_of(read, "/etc/passwd", root).problem


@pytest.mark.parametrize("act", [read, arrive])
@pytest.mark.parametrize("name", ["fifo", "device", "socket", "d"])
@pytest.mark.parametrize("rooted", [True, False])
def test_what_is_no_regular_file_is_never_opened(
    root: str, act: Opening, name: str, rooted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    really_open = os.open

    def noting(path: Any, *arguments: Any, **named: Any) -> int:
        opened.append(os.path.basename(path))
        return really_open(path, *arguments, **named)

    monkeypatch.setattr(os, "open", noting)
    problem_of(act, *([name, root] if rooted else [os.path.join(root, name)]))

    assert name not in opened


# --- callers that are trusted ---


def test_without_a_root_a_path_is_taken_as_open_takes_it(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    inside = Path(root)
    monkeypatch.chdir(inside / "d")

    assert read("f") == read("../f") == read(inside / "link_inside") == read(str(inside / "dir_link_inside" / "f")) == INSIDE
    assert read(inside / "link") == OUTSIDE


@pytest.mark.parametrize("link", ["link", "dangling"])
def test_without_a_root_a_link_at_the_path_is_followed_and_stays(root: str, outside: Path, either_draft: str, link: str) -> None:
    arrive(Path(root) / link)

    assert (Path(root) / link).is_symlink()
    assert (outside / {"link": "f", "dangling": "new"}[link]).read_bytes() == ARRIVED


def test_without_a_root_a_file_arrives_where_open_would_create_it(
    root: str, either_draft: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(root)
    paths: list[str | Path] = ["new", "./new2", "d/../new3", Path(root) / "dir_link_inside" / "new4"]
    for path in paths:
        arrive(path)

    assert [Path(path).read_bytes() for path in paths] == [ARRIVED] * 4


@pytest.mark.parametrize("act", [read, arrive])
@pytest.mark.parametrize(
    "name", ["", "d", "d/", "f/", "d/.", "missing/f", "f/f", "fifo", "socket", "device", "d/loop", "nul\0", "\ud800", "x" * 256]
)
def test_without_a_root_regular_files_only_and_local_file_errors_only(
    tmp_path: Path, root: str, act: Opening, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = tree(tmp_path)
    monkeypatch.chdir(root)

    error = problem_of(act, name)

    assert error.problem
    assert tree(tmp_path) == before


def test_without_a_root_what_is_no_path_is_a_mistake_of_the_program() -> None:
    nothing: Any = None
    for act in (read, arrive):
        with pytest.raises(TypeError):
            act(nothing)


# --- hostile input ---

hostile_names = st.sampled_from([
    "f", "d", "e", "new", "link", "link_inside", "dangling", "dir_link", "dir_link_inside", "loop", "fifo", "device", "socket",
    "", ".", "..", "...", "\0", "\ud800", "\\", " ", "~", "x" * 255, "x" * 256, "é" * 128, "root", "outside", "proc", "self", "fd",
])
hostile_paths = st.lists(hostile_names | st.text(max_size=5), max_size=6).map("/".join) | st.text(max_size=20)


@pytest.fixture(scope="module")
def hostile_places(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return furnish(tmp_path_factory.mktemp("hostile"))


@given(hostile_paths)
@example("../outside/f")
@example("dir_link/f")
@example("dir_link/new")
@example("dangling")
@example("d/e/f")
def test_no_path_leads_out_of_the_root(hostile_places: tuple[Path, Path], path: str) -> None:
    inside, outside = hostile_places
    before = tree(outside)

    for act in (read, arrive):
        with suppress(LocalFileError):
            assert act(path, str(inside)) in (INSIDE, ARRIVED, None)
    if not path.startswith("/"):
        with suppress(LocalFileError):
            read("/" + path, str(inside))

    assert tree(outside) == before
    assert [name for name in tree(inside) if ".s3tasks-" in name] == []
    assert sorted(os.listdir(inside.parent)) == ["outside", "root"]


# --- races ---


@contextmanager
def swapped_over_and_over(directory: Path, other: Path) -> Iterator[list[int]]:
    """A thread puts a link to `other` in the directory's place and takes it away again, until the block ends."""
    aside, link = directory.with_name("aside"), directory.with_name("swap_link")
    over = threading.Event()
    swaps: list[int] = []

    def swap() -> None:
        while not over.is_set():
            link.symlink_to(other)
            directory.rename(aside)
            link.rename(directory)
            directory.unlink()
            aside.rename(directory)
            swaps.append(1)

    thread = threading.Thread(target=swap)
    thread.start()
    try:
        yield swaps
    finally:
        over.set()
        thread.join()


def outcomes(attempt: Callable[[], object]) -> set[object]:
    return {outcome(attempt) for _ in range(TRIES)}


def outcome(attempt: Callable[[], object]) -> object:
    try:
        return attempt()
    except LocalFileError:
        return LocalFileError


def test_a_directory_swapped_for_a_link_never_has_bytes_read_from_outside(root: str, outside: Path) -> None:
    with swapped_over_and_over(Path(root, "d"), outside) as swaps:
        found = outcomes(lambda: read("d/e/f", root))

    assert swaps
    assert found <= {INSIDE, LocalFileError}


def test_a_directory_swapped_for_a_link_never_has_bytes_written_outside(
    root: str, outside: Path, either_draft: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What is on the disk after a power failure is not asked here, and 4000 times fsync would take minutes.
    monkeypatch.setattr(os, "fsync", lambda _: None)
    before = tree(outside)
    numbers = itertools.count()

    with swapped_over_and_over(Path(root, "d"), outside) as swaps:
        found = outcomes(lambda: arrive(f"d/e/new-{next(numbers) % 5}", root))

    assert swaps
    assert found <= {None, LocalFileError}
    assert tree(outside) == before
    assert not [name for name in tree(Path(root)) if ".s3tasks-" in name]


def acting_before(monkeypatch: pytest.MonkeyPatch, call: str, name: str, act: Callable[[], object]) -> None:
    """Right before the system is asked to `call` for this name, somebody else acts, once."""
    real = getattr(os, call)
    left = [act]

    def late(path: Any, *arguments: Any, **named: Any) -> Any:
        if left and name in (path, *arguments):
            left.pop()()
        return real(path, *arguments, **named)

    monkeypatch.setattr(os, call, late)


def replaced_by_link(path: Path, target: Path) -> None:
    path.rename(path.with_name("replaced"))
    path.symlink_to(target)


def replaced_by_fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def moved_out(directory: Path, outside: Path) -> None:
    directory.rename(outside / "moved")
    directory.mkdir()
    (outside / "moved" / "f").write_bytes(OUTSIDE)


@pytest.mark.parametrize("act", [read, arrive])
@pytest.mark.parametrize("name", ["d", "e"])
def test_a_directory_that_becomes_a_link_right_before_it_is_opened_is_not_followed(
    root: str, outside: Path, act: Opening, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = tree(outside)
    replaced, target = {"d": (Path(root, "d"), outside), "e": (Path(root, "d", "e"), outside / "e")}[name]
    acting_before(monkeypatch, "open", name, lambda: replaced_by_link(replaced, target))

    assert f"{name} is a symbolic link" in problem_of(act, "d/e/f", root).problem
    assert tree(outside) == before


def test_a_file_that_becomes_a_link_after_it_was_looked_at_is_not_followed(
    root: str, outside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    acting_before(monkeypatch, "open", "f", lambda: replaced_by_link(Path(root, "f"), outside / "f"))

    assert "symbolic links" in problem_of(read, "f", root).problem


@pytest.mark.parametrize("rooted", [True, False])
def test_a_file_that_becomes_a_fifo_after_it_was_looked_at_neither_blocks_nor_is_read(
    root: str, rooted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = Path(root, "f")
    acting_before(monkeypatch, "open", "f" if rooted else str(path), lambda: replaced_by_fifo(path))

    assert "a FIFO" in problem_of(read, *(["f", root] if rooted else [path])).problem


def test_nothing_is_read_from_a_directory_that_was_moved_out_of_the_root(
    root: str, outside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    acting_before(monkeypatch, "open", "f", lambda: moved_out(Path(root, "d"), outside))

    assert "moved or replaced" in problem_of(read, "d/f", root).problem


def moved_away(root: Path, outside: Path) -> None:
    (root / "d").rename(outside / "moved")


def moved_and_replaced(root: Path, outside: Path) -> None:
    moved_away(root, outside)
    (root / "d").mkdir()


def moved_and_linked(root: Path, outside: Path) -> None:
    moved_away(root, outside)
    (root / "d").symlink_to(outside / "moved")


@pytest.mark.parametrize("move", [moved_away, moved_and_replaced, moved_and_linked])
def test_nothing_is_written_into_a_directory_that_was_moved_out_of_the_root(
    root: str, outside: Path, either_draft: str, move: Callable[[Path, Path], None]
) -> None:
    problem_of(lambda: arrive("d/new", root, meanwhile=lambda: move(Path(root), outside)))

    assert sorted(os.listdir(outside / "moved")) == ["e", "f", "loop"]
    assert "new" not in tree(Path(root))


@pytest.mark.parametrize("name", ["link", "dangling", "fifo", "device", "socket", "d"])
def test_what_takes_the_name_while_the_file_is_written_is_refused(root: str, either_draft: str, name: str) -> None:
    expected = tree(Path(root))
    expected = {found.replace(name, "new") if found.split("/")[0] == name else found: kind for found, kind in expected.items()}

    error = problem_of(lambda: arrive("new", root, meanwhile=lambda: Path(root, name).rename(Path(root, "new"))))

    assert "only regular files" in error.problem
    assert tree(Path(root)) == expected


def test_a_link_that_takes_the_name_at_the_last_moment_is_replaced_and_not_followed(
    root: str, outside: Path, either_draft: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = tree(outside)
    acting_before(monkeypatch, "rename", "new", lambda: os.symlink(outside / "f", Path(root, "new")))

    arrive("new", root)

    assert (tree(Path(root))["new"], tree(outside)) == (ARRIVED, before)


def test_a_directory_that_takes_the_name_at_the_last_moment_stays_and_nothing_else_is_left(
    root: str, either_draft: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = tree(Path(root))
    acting_before(monkeypatch, "rename", "new", lambda: os.mkdir(Path(root, "new")))

    assert "is a directory" in problem_of(arrive, "new", root).problem
    assert tree(Path(root)) == before | {"new": stat.S_IFDIR}


# --- whole or not there ---


class Interrupted(BaseException):
    """Like KeyboardInterrupt and the end of a greenlet: no Exception."""


@pytest.mark.parametrize(
    "problem", [ValueError("x"), ConnectionResetError(104, "x"), KeyboardInterrupt(), Interrupted(), GeneratorExit()]
)
def test_a_failure_in_the_block_leaves_nothing_and_is_passed_on_as_it_is(
    root: str, either_draft: str, problem: BaseException
) -> None:
    before = tree(Path(root))

    for path in ("f", "new"):
        with pytest.raises(type(problem)) as caught:
            arrive(path, root, ARRIVED * 100_000, meanwhile=raising(problem))
        assert caught.value is problem

    assert tree(Path(root)) == before


def test_a_failure_in_the_block_that_reads_is_passed_on_as_it_is(root: str) -> None:
    problem = ConnectionResetError(104, "x")

    with pytest.raises(ConnectionResetError) as caught, outgoing("f", root):
        raise problem

    assert caught.value is problem


def test_what_will_be_refused_is_refused_before_the_block_begins(
    root: str, either_draft: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[str] = []
    monkeypatch.chdir(root)

    for path in REFUSED:
        problem_of(arrive, path, root, ARRIVED, lambda: begun.append("below the root"))
    for path in ("", "d", "d/", "fifo", "d/loop", "missing/f"):
        problem_of(arrive, path, None, ARRIVED, lambda: begun.append("anywhere"))

    assert begun == []


def test_nothing_has_the_name_before_the_block_ends(root: str, either_draft: str) -> None:
    with arriving("f", root) as file:
        file.write(ARRIVED)
        file.flush()
        assert read("f", root) == INSIDE

    assert read("f", root) == ARRIVED


def test_where_the_system_can_the_unfinished_file_has_no_name_at_all(root: str) -> None:
    before = tree(Path(root))

    with arriving("new", root) as file:
        file.write(ARRIVED)
        assert tree(Path(root)) == before


@pytest.mark.parametrize("trouble", [errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL, errno.ENOENT])
def test_a_file_system_without_unnamed_files_gets_a_hidden_one(root: str, trouble: int, monkeypatch: pytest.MonkeyPatch) -> None:
    really_open = os.open

    def without_unnamed(path: Any, flags: int, *arguments: Any, **named: Any) -> int:
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(trouble, os.strerror(trouble))
        return really_open(path, flags, *arguments, **named)

    monkeypatch.setattr(os, "open", without_unnamed)
    with arriving("new", root) as file:
        assert [name for name in os.listdir(root) if name.startswith(".s3tasks-")]
        file.write(ARRIVED)

    assert tree(Path(root))["new"] == ARRIVED
    assert not [name for name in os.listdir(root) if name.startswith(".s3tasks-")]


def test_without_proc_where_an_unnamed_file_could_get_no_name_a_hidden_one_is_taken(
    root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    really_stat = os.stat

    def without_proc(path: Any, *arguments: Any, **named: Any) -> os.stat_result:
        return really_stat(f"/missing{path}" if str(path).startswith("/proc/self/fd") else path, *arguments, **named)

    monkeypatch.setattr(os, "stat", without_proc)
    with arriving("new", root) as file:
        assert [name for name in os.listdir(root) if name.startswith(".s3tasks-")]
        file.write(ARRIVED)

    assert tree(Path(root))["new"] == ARRIVED


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_a_new_file_has_the_permissions_that_open_gives(root: str, either_draft: str, umask: int) -> None:
    before = os.umask(umask)
    try:
        arrive("new", root)
        Path(root, "ordinary").write_bytes(b"")
    finally:
        os.umask(before)

    assert stat.S_IMODE(Path(root, "new").stat().st_mode) == stat.S_IMODE(Path(root, "ordinary").stat().st_mode) == 0o666 & ~umask


def test_an_empty_file_arrives_too(root: str, either_draft: str) -> None:
    arrive("f", root, b"")

    assert read("f", root) == b""


def test_two_files_on_their_way_to_one_path_are_each_whole_and_the_later_wins(root: str, either_draft: str) -> None:
    first_body, second_body = b"1" * 100_000, b"2" * 50_000
    with arriving("f", root) as first:
        first.write(first_body[:30_000])
        with arriving("f", root) as second:
            second.write(second_body)
            first.write(first_body[30_000:])
        assert read("f", root) == second_body

    assert read("f", root) == first_body


def test_a_reader_sees_all_of_the_old_or_all_of_the_new(root: str, either_draft: str) -> None:
    bodies = [bytes([number]) * 300_000 for number in range(20)]
    arrive("f", root, bodies[0])
    over = threading.Event()
    seen: set[bytes] = set()

    def watch() -> None:
        while not over.is_set():
            seen.add(read("f", root))

    watcher = threading.Thread(target=watch)
    watcher.start()
    for body in bodies:
        arrive("f", root, body)
    over.set()
    watcher.join()

    assert seen
    assert seen <= set(bodies)


def test_the_file_is_on_the_disk_before_its_name_is_and_the_name_before_the_block_ends(
    root: str, either_draft: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    really_sync, really_rename = os.fsync, os.rename

    def noting_sync(descriptor: int) -> None:
        found = os.fstat(descriptor)
        steps.append("directory" if stat.S_ISDIR(found.st_mode) else f"{found.st_size} bytes")
        really_sync(descriptor)

    def noting_rename(*arguments: Any, **named: Any) -> None:
        steps.append("rename")
        really_rename(*arguments, **named)

    monkeypatch.setattr(os, "fsync", noting_sync)
    monkeypatch.setattr(os, "rename", noting_rename)
    arrive("f", root)

    assert steps == [f"{len(ARRIVED)} bytes", "rename", "directory"]


def test_a_file_that_the_block_has_closed_arrives(root: str, either_draft: str) -> None:
    with arriving("f", root) as file:
        file.write(ARRIVED)
        file.close()

    assert read("f", root) == ARRIVED


def test_a_process_that_is_killed_leaves_nothing(root: str) -> None:
    before = tree(Path(root))
    program = (
        "import sys\nfrom s3tasks.files import arriving\n"
        "with arriving('new', sys.argv[1]) as file:\n"
        "    file.write(b'x' * 1_000_000); file.flush(); print('half way', flush=True); sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, root], cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "half way\n"
        child.kill()
        assert child.wait() == -signal.SIGKILL

    assert tree(Path(root)) == before


# --- failures of the disk ---

FULL_DISK = """
import os, resource, sys
from s3tasks import LocalFileError
from s3tasks.files import arriving
if sys.argv[2] == 'named draft':
    del os.O_TMPFILE
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
def fill(file, swallow):
    try:
        {body}
    except LocalFileError:
        if not swallow:
            raise
for swallow in (False, True):
    try:
        with arriving('new', sys.argv[1]) as file:
            fill(file, swallow)
        print('arrived')
    except LocalFileError as problem:
        print(problem.path, problem.problem, type(problem.__cause__).__name__)
"""


@pytest.mark.parametrize(
    "body",
    ["file.write(b'x' * 200_000)", "file.seek(99_999); file.write(b'xy'); file.flush()", "file.seek(99_999); file.write(b'xy')",
     "file.seek(99_999); file.write(b'xy'); file.close()", "file.truncate(200_000); file.write(b'x'); file.truncate(200_000)"],
)
def test_a_full_disk_is_told_as_such_even_where_the_block_passes_it_over(root: str, either_draft: str, body: str) -> None:
    before = tree(Path(root))

    said = subprocess.run(
        [sys.executable, "-c", FULL_DISK.format(body=body), root, either_draft],
        cwd=REPOSITORY, capture_output=True, text=True, check=True,
    )

    assert said.stdout.splitlines() == ["new file too large OSError"] * 2
    assert tree(Path(root)) == before


def test_a_write_that_the_disk_refuses_is_no_os_error() -> None:
    descriptor = os.open("/dev/full", os.O_RDWR)
    try:
        file = _LocalFile(descriptor, "rb+", "f")
        assert problem_of(file.write, b"x").args == ("f", "no space left on device")
        file.close()
    finally:
        os.close(descriptor)


def test_a_failure_in_the_block_is_passed_on_even_where_the_disk_is_full_too(root: str, either_draft: str) -> None:
    problem, limits = ConnectionResetError(104, "x"), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1, limits[1]))
    try:
        with pytest.raises(ConnectionResetError) as caught:
            arrive("f", root, meanwhile=raising(problem))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    assert caught.value is problem
    assert read("f", root) == INSIDE


@pytest.mark.parametrize("act", [_LocalFile.readall, lambda file: file.readinto(bytearray(1)), lambda file: file.seek(-1)])
def test_a_read_or_seek_that_fails_is_no_os_error(root: str, act: Callable[[_LocalFile], object]) -> None:
    with open(os.path.join(root, "f"), "rb") as regular, _LocalFile(regular.fileno(), "rb", "f") as file:
        directory = os.open(root, os.O_RDONLY)
        # From now on the file's number stands for a directory, which cannot be read.
        os.dup2(directory, regular.fileno())
        os.close(directory)
        assert isinstance(problem_of(act, file).__cause__, OSError)


@pytest.mark.parametrize("trouble", [errno.EIO, errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("call", ["fsync", "rename"])
def test_a_last_step_that_fails_is_told_and_leaves_nothing(
    root: str, either_draft: str, call: str, trouble: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = tree(Path(root))

    def failing(*_: Any, **__: Any) -> None:
        raise OSError(trouble, os.strerror(trouble))

    monkeypatch.setattr(os, call, failing)
    error = problem_of(arrive, "f", root)

    assert error.problem.lower() == os.strerror(trouble).lower()
    assert tree(Path(root)) == before


def test_a_file_system_whose_directories_know_no_fsync_will_do(
    root: str, either_draft: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    really_sync = os.fsync

    def files_only(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        really_sync(descriptor)

    monkeypatch.setattr(os, "fsync", files_only)
    arrive("f", root)

    assert read("f", root) == ARRIVED


def test_a_directory_that_is_removed_meanwhile_is_told_as_missing(tmp_path: Path, either_draft: str) -> None:
    (tmp_path / "gone").mkdir()

    def remove() -> None:
        for left in (tmp_path / "gone").iterdir():
            left.unlink()
        (tmp_path / "gone").rmdir()

    for path, root in [("gone/new", str(tmp_path)), (str(tmp_path / "gone" / "new"), None)]:
        (tmp_path / "gone").mkdir(exist_ok=True)
        assert "no such file or directory" in problem_of(arrive, path, root, ARRIVED, remove).problem


# --- descriptors ---


def test_every_refusal_closes_what_it_has_opened(root: str) -> None:
    before = descriptors()

    for path, act in itertools.product(REFUSED, (read, arrive)):
        problem_of(act, path, root)

    assert descriptors().items() <= before.items()


@pytest.mark.parametrize("act", [read, arrive])
@pytest.mark.parametrize("allowed", range(8))
def test_when_descriptors_run_out_at_any_step_none_is_kept(
    root: str, act: Opening, allowed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, files_before = descriptors(), tree(Path(root))

    with monkeypatch.context() as patch:
        calls = itertools.count()
        patch.setattr(os, "open", scarce(os.open, calls, allowed))
        patch.setattr(os, "dup", scarce(os.dup, calls, allowed))
        error = problem_of(act, "d/e/f", root)

    assert "too many open files" in error.problem
    assert (descriptors(), tree(Path(root))) == (before, files_before)


def scarce(real: Callable[..., int], calls: Iterator[int], allowed: int) -> Callable[..., int]:
    """As the system is when only so many more descriptors may be made."""

    def make(*arguments: Any, **named: Any) -> int:
        if next(calls) >= allowed:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return real(*arguments, **named)

    return make


def test_a_file_is_not_inherited_by_other_programs(root: str) -> None:
    with ExitStack() as held:
        files: list[BinaryIO] = [held.enter_context(outgoing("f", root)), held.enter_context(arriving("new", root))]
        inheritable = [number for number in os.listdir("/proc/self/fd") if is_inheritable(int(number))]

        assert all(not file.closed for file in files)
        assert not [number for number in inheritable if root in os.readlink(f"/proc/self/fd/{number}")]


def is_inheritable(descriptor: int) -> bool:
    with suppress(OSError):
        return os.get_inheritable(descriptor)
    return False
