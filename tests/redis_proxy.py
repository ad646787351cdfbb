"""A TCP proxy before a real Redis, in which a test may hold, lose or cut any command or its answer.

It never fakes Redis: what it forwards is answered by the server behind it. One command at a time goes through each connection.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.resources import files
from typing import BinaryIO
from urllib.parse import urlsplit

from s3tasks.ledger import _script

MOVES = {
    _script(name)[1].encode(): name
    for name in (path.name.removesuffix(".lua") for path in (files("s3tasks") / "ledger_scripts").iterdir())
    if name != "record"
}
"""The ledger's scripts by the digest that names them on the wire."""


@dataclass(frozen=True)
class Command:
    """One command as the client sent it."""

    words: tuple[bytes, ...]

    @property
    def name(self) -> str:
        return self.words[0].decode().upper()

    @property
    def move(self) -> str | None:
        """The step of the ledger protocol that this is, by its script's name; None for what is no script of the ledger."""
        if self.name == "HGETALL":
            return "lookup"
        if self.name == "EVALSHA":
            return MOVES.get(self.words[1])
        return _move_of(self.words[1]) if self.name == "EVAL" else None

    @property
    def key(self) -> str:
        """The record that a step is about."""
        return self.words[1 if self.name == "HGETALL" else 3].decode()


def _move_of(source: bytes) -> str | None:
    return next((name for name in MOVES.values() if _script(name)[0].encode() == source), None)


class Lost(Exception):
    """Raised by a rule to close the connection without an answer."""


Forward = Callable[[Command], bytes]
Rule = Callable[[Command, Forward], bytes]


class RedisProxy:
    """Forwards to the Redis at `upstream` (its URL); `rule(command, forward)` decides what becomes of each command.

    `seen` lists (move, key) of the steps of the ledger that came by. While `refusing`, nobody gets a connection.
    """

    def __init__(self, upstream: str, rule: Rule | None = None) -> None:
        self.upstream = upstream
        self.rule = rule
        self.refusing = False
        self.seen: list[tuple[str, str]] = []
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._thread = threading.Thread(target=self._accept, daemon=True)

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self._listener.getsockname()[1]}/0"

    def __enter__(self) -> RedisProxy:  # noqa: PYI034 - Self is not in Python 3.10
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.refusing = True
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()
        self.drop_connections()

    def drop_connections(self) -> None:
        """Cuts every connection that is open now, whatever is on its way in it."""
        with self._lock:
            for connection in self._open:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def cut(self) -> None:
        """Cuts every connection, and refuses new ones until `mend`."""
        self.refusing = True
        self.drop_connections()

    def mend(self) -> None:
        """Lets connections through again."""
        self.refusing = False

    def move_to(self, upstream: str) -> None:
        """From now on it is another Redis, as after a failover behind one address."""
        self.upstream = upstream
        self.drop_connections()

    def count(self, move: str, key: str) -> int:
        return sum(seen == (move, key) for seen in self.seen)

    def _accept(self) -> None:
        while True:
            try:
                client = self._listener.accept()[0]
            except OSError:
                return
            if self.refusing:
                client.close()
            else:
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        place = urlsplit(self.upstream)
        with client, contextlib.suppress(OSError, EOFError, Lost):
            server = socket.create_connection((place.hostname or "", place.port or 0), timeout=60)
            with server, self._held(client, server), client.makefile("rb") as asked, server.makefile("rb") as answered:
                self._carry(client, server, asked, answered)

    @contextmanager
    def _held(self, *connections: socket.socket) -> Iterator[None]:
        with self._lock:
            self._open.update(connections)
        try:
            yield
        finally:
            with self._lock:
                self._open.difference_update(connections)

    def _carry(self, client: socket.socket, server: socket.socket, asked: BinaryIO, answered: BinaryIO) -> None:
        def forward(command: Command) -> bytes:
            server.sendall(_spelled(command))
            return _one_answer(answered)

        while True:
            command = _one_command(asked)
            if command.move is not None:
                self.seen.append((command.move, command.key))
            client.sendall(self.rule(command, forward) if self.rule else forward(command))


def _line(stream: BinaryIO) -> bytes:
    line = stream.readline()
    if not line.endswith(b"\r\n"):
        raise EOFError
    return line


def _bytes(stream: BinaryIO, length: int) -> bytes:
    read = stream.read(length)
    if len(read) < length:
        raise EOFError
    return read


def _one_command(stream: BinaryIO) -> Command:
    words = []
    for _ in range(int(_line(stream)[1:])):
        words.append(_bytes(stream, int(_line(stream)[1:])))
        _line(stream)
    return Command(tuple(words))


def _spelled(command: Command) -> bytes:
    return b"*%d\r\n" % len(command.words) + b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in command.words)


def _one_answer(stream: BinaryIO) -> bytes:
    """One whole answer of RESP2 or RESP3, as it came."""
    line = _line(stream)
    kind, rest = line[:1], line[1:-2]
    if kind in b"$=!":
        length = int(rest)
        return line if length < 0 else line + _bytes(stream, length + 2)
    parts = int(rest) * (2 if kind in b"%|" else 1) if kind in b"*~%|>" else 0
    return line + b"".join(_one_answer(stream) for _ in range(parts))


@contextmanager
def redis_proxied(upstream: str, rule: Rule | None = None) -> Iterator[RedisProxy]:
    """A started proxy before the Redis at `upstream`."""
    with RedisProxy(upstream, rule) as proxy:
        yield proxy
