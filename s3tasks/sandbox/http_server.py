"""HTTP/1.1 with keep-alive for the embedded store, as clients meet it in the world.

It never looks into what it carries. moto's own server closes every connection, which hides how clients treat kept ones.
"""

from __future__ import annotations

import io
import logging
from typing import Any

from moto.moto_server.werkzeug_app import MotoRequestHandler
from werkzeug.serving import BaseWSGIServer, make_server

from s3tasks.sandbox.wsgi import Answer, Environ, Handler

_INTERNAL_ERROR = b"<Error><Code>InternalError</Code><Message>The sandbox failed; see its log.</Message></Error>"
_log = logging.getLogger(__name__)


def listening_server(handler: Handler) -> BaseWSGIServer:
    """A server on a free port of 127.0.0.1 that listens already and answers once it is told to serve."""

    class Connection(StoreConnection):
        answer = staticmethod(handler)

    return make_server("127.0.0.1", 0, _no_application, threaded=True, request_handler=Connection)


class StoreConnection(MotoRequestHandler):
    """One client's connection: whole requests in, whole answers of known length out, until the client closes it."""

    answer: Handler
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1

    def handle_expect_100(self) -> bool:
        """Invite the body at once: the answer is buffered otherwise, and the client would wait for it."""
        invited = super().handle_expect_100()
        self.wfile.flush()
        return invited

    def run_wsgi(self) -> None:
        """Answer one request; one that breaks off is left unanswered."""
        environ = self._whole_request()
        if environ is None:
            self.close_connection = True
            return
        try:
            answer = type(self).answer(environ)
        except Exception:  # noqa: BLE001 - whatever fails in moto is an answer to this client
            _log.exception("%s %s failed", self.command, self.path)
            answer = Answer("500 INTERNAL SERVER ERROR", [("Content-Type", "application/xml")], _INTERNAL_ERROR)
        self._send(answer)

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        """Keep no log of requests."""

    def _whole_request(self) -> Environ | None:
        environ: dict[str, Any] = self.make_environ()
        if environ.pop("wsgi.input_terminated", False):
            body = environ["wsgi.input"].read()
            environ.pop("HTTP_TRANSFER_ENCODING")
        else:
            length = int(environ.get("CONTENT_LENGTH") or 0)
            body = self.rfile.read(length)
            if len(body) < length:
                return None
        return {**environ, "wsgi.input": io.BytesIO(body), "CONTENT_LENGTH": str(len(body))}

    def _send(self, answer: Answer) -> None:
        bodiless = self.command == "HEAD" or answer.code in (204, 304)
        self.send_response(answer.code, answer.status.partition(" ")[2])
        for name, value in answer.headers:
            if name.lower() not in ("content-length", "connection", "date", "server"):
                self.send_header(name, value)
        length = (answer.header("content-length") or "0") if self.command == "HEAD" else str(len(answer.body))
        if answer.code not in (204, 304):
            self.send_header("Content-Length", length)
        self.end_headers()
        if not bodiless:
            self.wfile.write(answer.body)
        self.wfile.flush()


def _no_application(_environ: object, _start_response: object) -> list[bytes]:
    raise RuntimeError("requests are answered by the connection itself")
