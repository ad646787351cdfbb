"""A real HTTP proxy before the sandbox's S3, in which a test may change or break any request or answer.

It never fakes S3: what it forwards is answered by the server behind it.
"""

from __future__ import annotations

import http.client
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit


@dataclass
class Request:
    """One request as the client sent it."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def conditional(self) -> bool:
        return any(name.lower() in ("if-match", "if-none-match") for name in self.headers)

    def without(self, *names: str) -> Request:
        kept = {name: value for name, value in self.headers.items() if name.lower() not in names}
        return Request(self.method, self.path, kept, self.body)


@dataclass
class Response:
    """One answer on its way to the client. `cut_at` sends only so many bytes of the body, then closes the connection."""

    status: int
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    cut_at: int | None = None

    def header(self, name: str) -> str | None:
        return next((value for given, value in self.headers.items() if given.lower() == name), None)

    def with_header(self, name: str, value: str | None) -> Response:
        kept = {given: old for given, old in self.headers.items() if given.lower() != name}
        return Response(self.status, kept if value is None else {**kept, name: value}, self.body, self.cut_at)


def refusal(status: int, code: str = "Injected") -> Response:
    body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>injected</Message><RequestId>rq-1</RequestId></Error>"
    return Response(status, {"Content-Type": "application/xml", "x-amz-request-id": "rq-1"}, body.encode())


class Dropped(Exception):
    """Raised by a rule to close the connection without an answer."""


Forward = Callable[[Request], Response]
Rule = Callable[[Request, Forward], Response]


class S3Proxy:
    """Forwards to `upstream`; `rule(request, forward)` decides what becomes of each request. `seen` lists (method, path)."""

    def __init__(self, upstream: str, rule: Rule | None = None) -> None:
        self._upstream = urlsplit(upstream).netloc
        self.rule = rule
        self.seen: list[tuple[str, str]] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"proxy": self}))
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def count(self, method: str) -> int:
        return sum(seen == method for seen, _ in self.seen)

    def __enter__(self) -> S3Proxy:  # noqa: PYI034 - Self is not in Python 3.10
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def forward(self, request: Request) -> Response:
        connection = http.client.HTTPConnection(self._upstream, timeout=30)
        try:
            hop = ("host", "connection", "expect", "transfer-encoding")
            headers = {name: value for name, value in request.headers.items() if name.lower() not in hop}
            connection.request(request.method, request.path, request.body or None, headers)
            answer = connection.getresponse()
            body = answer.read()
            headers = {k: v for k, v in answer.getheaders() if k.lower() not in ("connection", "transfer-encoding", "keep-alive")}
            return Response(answer.status, headers, body)
        finally:
            connection.close()

    def answer(self, request: Request) -> Response:
        self.seen.append((request.method, request.path))
        return self.rule(request, self.forward) if self.rule else self.forward(request)


class _Handler(BaseHTTPRequestHandler):
    """Hands each request of a keep-alive connection to the proxy, and sends what comes back."""

    protocol_version = "HTTP/1.1"
    proxy: S3Proxy

    def handle_any(self) -> None:
        request = Request(self.command, self.path, dict(self.headers.items()), self._body())
        try:
            self._send(self.proxy.answer(request))
        except (Dropped, ConnectionError):
            self.close_connection = True

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _send(self, response: Response) -> None:
        self.send_response_only(response.status)
        has_body = self.command != "HEAD" and response.status != 204
        for name, value in response.headers.items():
            if name.lower() != "content-length" or self.command == "HEAD":
                self.send_header(name, value)
        if has_body:
            self.send_header("Content-Length", str(len(response.body)))
        self.end_headers()
        if has_body:
            self.wfile.write(response.body[: response.cut_at])
        if response.cut_at is not None:
            self.close_connection = True

    def log_message(self, *_: object) -> None:
        return

    # The standard library calls a method by its verb.
    do_GET = do_HEAD = do_PUT = do_DELETE = do_POST = handle_any  # noqa: N815


@contextmanager
def proxied(upstream: str, rule: Rule | None = None) -> Iterator[S3Proxy]:
    """A started proxy before `upstream`."""
    with S3Proxy(upstream, rule) as proxy:
        yield proxy
