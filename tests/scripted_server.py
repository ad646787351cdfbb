"""A server on a real socket that answers with bytes that a test has written down, however broken.

It never understands what it is asked, beyond where a request ends.
"""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

GOOD = b'HTTP/1.1 200 OK\r\nETag: "e"\r\nContent-Length: 4\r\n\r\nbody'
"""An answer to a GET with nothing the matter."""


@contextmanager
def scripted(*answers: Iterable[bytes], tls: ssl.SSLContext | None = None) -> Iterator[tuple[str, list[bytes]]]:
    """A server that answers the n-th request of a connection with the n-th of `answers`, piece by piece, and then closes."""
    heads: list[bytes] = []
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                accepted, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=converse, args=(accepted,), daemon=True).start()

    def converse(accepted: socket.socket) -> None:
        try:
            with tls.wrap_socket(accepted, server_side=True) if tls else accepted as connection:
                reader = connection.makefile("rb")
                for answer in answers:
                    heads.append(read_request(reader))
                    for piece in answer:
                        connection.sendall(piece)
                reader.close()
        except OSError as problem:
            heads.append(repr(problem).encode())

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    yield f"{'https' if tls else 'http'}://127.0.0.1:{listener.getsockname()[1]}", heads
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    thread.join()


def read_request(reader: Any) -> bytes:
    head, length = b"", 0
    while not head.endswith(b"\r\n\r\n"):
        line = reader.readline()
        if not line:
            raise ConnectionError("nothing came")
        head += line
        if line.lower().startswith(b"content-length:"):
            length = int(line.split(b":")[1])
    reader.read(length)
    return head
