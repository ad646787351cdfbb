"""A request to the embedded store and its answer as plain values, and the calls that carry one to the other.

It never knows what S3 is; only that bodies are small enough to be held in memory.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol
from urllib.parse import unquote

Environ = dict[str, Any]
Headers = list[tuple[str, str]]
Application = Callable[[Environ, Callable[..., Any]], Iterable[bytes]]

SIGNED = "AWS4-HMAC-SHA256 Credential=sandbox/20260101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=sandbox"
"""An Authorization header that the embedded store takes: it looks at who signs, never at the signature."""


@dataclass(frozen=True)
class Answer:
    """A whole response: the status line without the version, its headers, its body."""

    status: str
    headers: Headers
    body: bytes

    @property
    def code(self) -> int:
        """The status as a number."""
        return int(self.status.split(" ", 1)[0])

    @property
    def succeeded(self) -> bool:
        """Whether the status is 2xx."""
        return 200 <= self.code < 300

    def header(self, name: str) -> str | None:
        """The first header of that name, whatever its case."""
        return next((value for key, value in self.headers if key.lower() == name.lower()), None)


class Handler(Protocol):
    """Whatever answers requests: the store itself, or something before it."""

    def __call__(self, environ: Environ) -> Answer:
        """The whole answer to one whole request."""


def answering(application: Application) -> Handler:
    """A WSGI application as a function from a request to its whole answer."""

    def answer(environ: Environ) -> Answer:
        started: list[tuple[str, Headers]] = []

        def start_response(status: str, headers: Headers, _exc_info: object = None) -> None:
            started.append((status, headers))

        chunks = application(environ, start_response)
        try:
            body = b"".join(chunks)
        finally:
            getattr(chunks, "close", lambda: None)()
        status, headers = started[-1]
        return Answer(status, headers, body)

    return answer


def body_of(environ: Environ) -> bytes:
    """The body of a request, which can still be read by whoever comes next."""
    stream: io.BytesIO = environ["wsgi.input"]
    return stream.getvalue()


def with_body(environ: Environ, body: bytes) -> Environ:
    """The request with that body, complete and of known length."""
    return {**environ, "wsgi.input": io.BytesIO(body), "CONTENT_LENGTH": str(len(body))}


def internal_request(environ: Environ, method: str, path: str) -> Environ:
    """A signed request of our own beside a request that came in: `path` is percent-encoded and may carry a query."""
    route, _, query = path.partition("?")
    kept = {name: value for name, value in environ.items() if not name.startswith(("HTTP_", "CONTENT_", "moto."))}
    kept |= {
        "REQUEST_METHOD": method,
        "PATH_INFO": unquote(route).encode().decode("latin-1"),
        "QUERY_STRING": query,
        "REQUEST_URI": path,
        "RAW_URI": path,
        "HTTP_HOST": environ.get("HTTP_HOST", "127.0.0.1"),
        "HTTP_AUTHORIZATION": SIGNED,
    }
    for cached in [name for name in kept if name.startswith("werkzeug.")]:
        del kept[cached]
    return with_body(kept, b"")
