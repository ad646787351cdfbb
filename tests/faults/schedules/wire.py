"""The least that speaks to Redis: one socket, one request, one answer.

It never interprets an answer: the package's own Ledger does, for this stands where its redis-py client would.
"""

from __future__ import annotations

import socket

import redis.exceptions

Reply = bytes | int | None | list["Reply"]


class Wire:
    """A connection over a unix socket that is asked as the ledger asks redis-py, and answers as it does."""

    def __init__(self, path: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(path)
        self._answers = self._socket.makefile("rb")

    def __call__(self, *words: str | int | bytes) -> Reply | dict[Reply, Reply]:
        """The answer as the ledger is given it: a hash is a dict."""
        said = self.ask(*words)
        return dict(zip(said[::2], said[1::2], strict=True)) if words[0] == "HGETALL" and isinstance(said, list) else said

    def close(self) -> None:
        self._answers.close()
        self._socket.close()

    def ask(self, *words: str | int | bytes) -> Reply:
        """The answer to any command; redis-py's errors for errors."""
        parts = [b"*%d\r\n" % len(words)]
        for word in words:
            data = word if isinstance(word, bytes) else str(word).encode()
            parts.append(b"$%d\r\n%b\r\n" % (len(data), data))
        self._socket.sendall(b"".join(parts))
        return self._answer()

    def _answer(self) -> Reply:
        line = self._answers.readline()
        kind, rest = line[:1], line[1:-2]
        if kind == b"$":
            size = int(rest)
            return None if size < 0 else self._answers.read(size + 2)[:-2]
        if kind == b"*":
            return [self._answer() for _ in range(int(rest))]
        if kind == b":":
            return int(rest)
        if kind == b"+":
            return rest
        if kind == b"-":
            error = redis.exceptions.NoScriptError if rest.startswith(b"NOSCRIPT") else redis.exceptions.ResponseError
            raise error(rest.decode())
        raise redis.exceptions.ConnectionError(f"not an answer: {line!r}")
