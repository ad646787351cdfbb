"""The files on this machine that uploads read and downloads write: regular files only and, where a root is given, only below it.

It never speaks to S3 or Redis, never creates a directory, and never shows a file under its name before it is whole.

Below a root the rules are for hostile input. The path is taken apart here and walked one name at a time, each relative to the
directory that is held open, with O_NOFOLLOW: no name is resolved twice, and nothing that others move or replace meanwhile is
followed. What lies below the root is taken as it is: a hard link to a file elsewhere, or a mount, is the operator's own choice.
"""

from __future__ import annotations

import errno
import io
import os
import secrets
import stat
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Any, BinaryIO

from s3tasks.errors import LocalFileError
from s3tasks.flushing import Flusher

_MOST_BYTES_OF_A_NAME = 255
_SHOWN_CHARACTERS = 120
_WAY_OUT = "give the path of a regular file relative to file_root, such as reports/17.csv"
_NOT_CREATED = " (missing directories are not created)"
_DIRECTORY_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
# O_NONBLOCK: a FIFO that takes the file's place after it was looked at must not hold up the worker.
_READING_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
_DRAFT_FLAGS = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
# What os.open says of a symbolic link when O_NOFOLLOW is set: it differs between systems and with O_DIRECTORY.
_NO_DIRECTORY_ERRNOS = frozenset({errno.ENOTDIR, errno.ELOOP, errno.EMLINK})
_KINDS = {
    stat.S_IFDIR: "a directory",
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


@contextmanager
def outgoing(path: str | os.PathLike[str], root: str | None = None) -> Iterator[BinaryIO]:
    """The file at `path`, open for reading from its start, seekable, closed at exit.

    `root`: a directory; `path` is then untrusted: a relative str without '.' or '..', and no symbolic link below the root is
    followed (the root's own path may hold some). Without it `path` is taken as open() takes it. What is no regular file is never
    opened. Raises LocalFileError where the file may not be used or cannot be, and from any read or seek of the file that fails.
    """
    shown = _shown(path)
    with ExitStack() as held:
        with _told(shown):
            descriptor = _open_for_reading(os.fsdecode(path), held) if root is None else _open_below(root, path, held)
        reader = io.BufferedReader(_LocalFile(descriptor, "rb", shown))
        # Closing waits for a thread that is in the middle of a read; the descriptor's number is free for others only after that.
        held.callback(reader.close)
        yield reader


@contextmanager
def arriving(path: str | os.PathLike[str], root: str | None = None) -> Iterator[BinaryIO]:
    """A new file, writable, readable and seekable, that is given the name `path` when the block ends without an exception.

    It replaces a regular file of that name in one step: others see the old bytes or all of the new, which are on the disk by then
    (fsync of the file before, of the directory after). On any exception nothing is left behind and an old file stays as it was.
    The permissions are those of a new file (0666 less the umask), also where an old one had others. Of two at once the later wins.

    The directory must exist and be readable: directories are not created, because a mistyped path would leave some behind.
    `root` as for `outgoing`; what is there but no regular file is refused, never replaced. Without `root`, a symbolic link at
    `path` is followed as open() does, and stays. Raises LocalFileError as `outgoing` does, and from any write that fails, once
    more at the end of the block if that was not let through.

    A process that is killed leaves nothing where the file system has O_TMPFILE (Linux: ext4, XFS, Btrfs, tmpfs, overlayfs), but
    for the moment between the last two steps; elsewhere a hidden file named .s3tasks-… stays.
    """
    shown = _shown(path)
    with ExitStack() as held:
        with _told(shown, if_missing=_NOT_CREATED):
            place = _trusted_place(os.fsdecode(path), held) if root is None else _place_below(root, path, held)
            _refuse_other_kinds(place)
            draft = held.enter_context(_draft(place.directory))
        raw = _LocalFile(draft.descriptor, "rb+", shown)
        writer = io.BufferedRandom(raw)
        held.callback(raw.flusher.wait)
        held.callback(_close_quietly, writer)
        yield writer
        with _told(shown, if_missing=_NOT_CREATED):
            _finish(writer, raw)
            place.must_still_be_there()
            _refuse_other_kinds(place)
            draft.take(place.name)
            _sync_directory(draft.directory)


# --- places ---


@dataclass(frozen=True)
class _Place:
    """A name in a directory that is held open.

    `root` is the descriptor of the root, None where paths are trusted; `parents` lead from there to the directory.
    """

    name: str
    directory: int
    root: int | None = None
    parents: tuple[str, ...] = ()

    def must_still_be_there(self) -> None:
        """Refuses a directory that no longer stands where the path says: it may have left the root while it was held open.

        One that leaves after this has left with the file in it, as far as anybody can tell.
        """
        if self.root is None:
            return
        now = _descend(self.root, self.parents)
        try:
            is_same = os.path.samestat(os.fstat(now), os.fstat(self.directory))
        finally:
            os.close(now)
        if not is_same:
            raise _Refused("its directory was moved or replaced meanwhile")


def _place_below(root: str, path: object, held: ExitStack) -> _Place:
    *parents, name = _names_in(path)
    try:
        top = os.open(root, _DIRECTORY_FLAGS)
    except OSError as problem:
        raise _Refused(f"file_root cannot be used: {_reason(problem)}") from problem
    held.callback(os.close, top)
    directory = _descend(top, parents)
    held.callback(os.close, directory)
    return _Place(name, directory, top, tuple(parents))


def _names_in(path: object) -> list[str]:
    if not isinstance(path, str):
        raise _Refused(f"a path is text here: {_WAY_OUT}")
    problem = _problem_with(path)
    if problem is not None:
        raise _Refused(f"{problem}: {_WAY_OUT}")
    return path.split("/")


def _problem_with(path: str) -> str | None:
    try:
        longest_bytes = max(len(name.encode()) for name in path.split("/"))
    except UnicodeEncodeError:
        return "the path is not valid Unicode"
    if "\0" in path:
        return "the path holds a NUL character"
    if path.startswith("/"):
        return "the path is absolute"
    if {"", ".", ".."} & set(path.split("/")):
        return "the path is empty, or has an empty part, a '.' or a '..' between its slashes"
    if longest_bytes > _MOST_BYTES_OF_A_NAME:
        return f"a name in the path has {longest_bytes} bytes, and file systems take {_MOST_BYTES_OF_A_NAME}"
    return None


def _descend(top: int, parents: Sequence[str]) -> int:
    """A descriptor of the directory that the names lead to from `top`; the caller closes it."""
    directory = os.dup(top)
    for name in parents:
        try:
            below = os.open(name, _DIRECTORY_FLAGS | os.O_NOFOLLOW, dir_fd=directory)
        except OSError as problem:
            if problem.errno not in _NO_DIRECTORY_ERRNOS:
                raise
            raise _Refused(f"{_shown(name)} is a symbolic link, which is not followed, or no directory: {_WAY_OUT}") from problem
        finally:
            os.close(directory)
        directory = below
    return directory


def _trusted_place(path: str, held: ExitStack) -> _Place:
    # Only the last name is followed here: the others are, by the kernel, when the directory is opened.
    directory, name = os.path.split(os.path.realpath(path) if os.path.islink(path) else path)
    if name in ("", ".", ".."):
        raise _Refused("the path names no file")
    descriptor = os.open(directory or ".", _DIRECTORY_FLAGS)
    held.callback(os.close, descriptor)
    return _Place(name, descriptor)


# --- reading ---


def _open_below(root: str, path: object, held: ExitStack) -> int:
    place = _place_below(root, path, held)
    descriptor = _open_for_reading(place.name, held, place.directory)
    place.must_still_be_there()
    return descriptor


def _open_for_reading(path: str, held: ExitStack, directory: int | None = None) -> int:
    """A descriptor of the regular file at `path`; in a directory that is held open, where it is a name, no link is followed."""
    follows_links = directory is None
    # Looked at before it is opened, since opening a device may do something; and after, since it may be another by then.
    _refuse_kind(os.stat(path, dir_fd=directory, follow_symlinks=follows_links))
    descriptor = os.open(path, _READING_FLAGS | (0 if follows_links else os.O_NOFOLLOW), dir_fd=directory)
    held.callback(os.close, descriptor)
    _refuse_kind(os.fstat(descriptor))
    os.set_blocking(descriptor, True)
    return descriptor


def _refuse_kind(found: os.stat_result) -> None:
    if not stat.S_ISREG(found.st_mode):
        kind = _KINDS.get(stat.S_IFMT(found.st_mode), "something else")
        raise _Refused(f"it is {kind}, and only regular files are read or replaced")


def _refuse_other_kinds(place: _Place) -> None:
    """Refuses a name that something other than a regular file has.

    What takes the name after this is safe to meet: rename replaces the name itself, follows no link and opens nothing, and
    fails on a directory.
    """
    try:
        found = os.stat(place.name, dir_fd=place.directory, follow_symlinks=place.root is None)
    except FileNotFoundError:
        return
    _refuse_kind(found)


# --- writing ---


@dataclass
class _Draft:
    """The new file before it has its name: with no name at all where the system can, else with a hidden one."""

    directory: int
    hidden_name: str
    descriptor: int = -1
    has_name: bool = False

    def open(self) -> None:
        """Opens it: O_TMPFILE first. A problem that has nothing to do with that is met, and told, by the second way as well."""
        try:
            self.descriptor = _open_unnamed(self.directory)
        except OSError:
            self.has_name = True
            self.descriptor = os.open(self.hidden_name, _DRAFT_FLAGS, 0o666, dir_fd=self.directory)

    def take(self, name: str) -> None:
        """Takes the name, from whatever file has it: link cannot replace one, so the draft first gets its hidden name."""
        if not self.has_name:
            self.has_name = True
            os.link(_link_to(self.descriptor), self.hidden_name, dst_dir_fd=self.directory, follow_symlinks=True)
        os.rename(self.hidden_name, name, src_dir_fd=self.directory, dst_dir_fd=self.directory)
        self.has_name = False

    def drop(self) -> None:
        """Leaves nothing of it but what has taken its name."""
        if self.has_name:
            # It may not have come to that name; and what went wrong before is what the caller must be told.
            with suppress(OSError):
                os.unlink(self.hidden_name, dir_fd=self.directory)
        if self.descriptor >= 0:
            os.close(self.descriptor)


@contextmanager
def _draft(directory: int) -> Iterator[_Draft]:
    draft = _Draft(directory, f".s3tasks-{secrets.token_hex(12)}")
    try:
        draft.open()
        yield draft
    finally:
        draft.drop()


def _open_unnamed(directory: int) -> int:
    """A file without a name; OSError where there can be none, or where it could not be given one later (no /proc)."""
    if not hasattr(os, "O_TMPFILE"):
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
    descriptor = os.open(".", os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o666, dir_fd=directory)
    try:
        os.stat(_link_to(descriptor))
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _link_to(descriptor: int) -> str:
    return f"/proc/self/fd/{descriptor}"


def _finish(writer: io.BufferedRandom, raw: _LocalFile) -> None:
    if not writer.closed:
        writer.flush()
    if raw.failed_change is not None:
        raise raw.failed_change
    raw.flusher.finish()


def _close_quietly(writer: io.BufferedRandom) -> None:
    # After a failed write the rest cannot be written either; that has been told, and the descriptor is let go all the same.
    with suppress(LocalFileError):
        writer.close()


def _sync_directory(directory: int) -> None:
    try:
        os.fsync(directory)
    except OSError as problem:
        # Some file systems have no fsync for directories, and say so this way.
        if problem.errno != errno.EINVAL:
            raise


class _LocalFile(io.FileIO):
    """A raw file whose failures cannot be taken for the network's, which are OSErrors too; it leaves its descriptor open.

    `failed_change` is the first write or truncate that failed: whoever passed it over must not get a file with a hole in it.
    """

    def __init__(self, descriptor: int, mode: str, shown: str) -> None:
        super().__init__(descriptor, mode, closefd=False)
        self.shown = shown
        self.flusher = Flusher(descriptor)
        self.failed_change: LocalFileError | None = None

    def readinto(self, buffer: Any) -> int:
        with _told(self.shown):
            return super().readinto(buffer)

    def readall(self) -> bytes:
        with _told(self.shown):
            return super().readall()

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        with _told(self.shown):
            return super().seek(offset, whence)

    def write(self, data: Any) -> int:
        with self._change():
            count = super().write(data)
        self.flusher.wrote(count)
        return count

    def truncate(self, size: int | None = None) -> int:
        with self._change():
            return super().truncate(size)

    @contextmanager
    def _change(self) -> Iterator[None]:
        try:
            with _told(self.shown):
                yield
        except LocalFileError as problem:
            self.failed_change = self.failed_change or problem
            raise


# --- errors ---


class _Refused(ValueError):
    """What may not be used, in words; `_told` adds which path was given."""


@contextmanager
def _told(shown: str, if_missing: str = "") -> Iterator[None]:
    """Whatever the system says no to leaves as LocalFileError, with the system's words."""
    try:
        yield
    except OSError as problem:
        hint = if_missing if problem.errno == errno.ENOENT else ""
        raise LocalFileError(shown, _reason(problem) + hint) from problem
    except ValueError as problem:
        raise LocalFileError(shown, str(problem)) from (problem.__cause__ or problem)


def _reason(problem: OSError) -> str:
    reason = problem.strerror or str(problem)
    return reason[:1].lower() + reason[1:]


def _shown(given: object) -> str:
    if not isinstance(given, (str, bytes, os.PathLike)):
        return f"a value of type {type(given).__name__}"
    text = os.fsdecode(given)[: _SHOWN_CHARACTERS + 1]
    printable = text if text.isprintable() else text.encode("unicode_escape").decode()
    if len(printable) > _SHOWN_CHARACTERS:
        return f"{printable[:_SHOWN_CHARACTERS]}…"
    return printable or "''"
