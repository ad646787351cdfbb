"""A small, fast S3 in memory, in a process of its own, so that a benchmark measures its clients: `with FastS3() as s3: ... s3.url`.

It never checks a signature, keeps versions, or listens anywhere but on 127.0.0.1. Buckets are there as soon as they are named
(path style). A request costs it 20 to 30 microseconds; moto takes milliseconds, which hides what a client costs.
"""

from __future__ import annotations

import hashlib
import heapq
import re
import selectors
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from email.utils import formatdate
from itertools import count
from pathlib import Path
from urllib.parse import parse_qs, unquote_to_bytes
from xml.sax.saxutils import unescape

Headers = dict[bytes, bytes]
Query = dict[str, list[str]]

_REPOSITORY = Path(__file__).resolve().parents[2]
_RECEIVE_BYTES = 1024 * 1024
_REASONS = {
    200: b"OK", 204: b"No Content", 206: b"Partial Content", 304: b"Not Modified", 400: b"Bad Request", 404: b"Not Found",
    412: b"Precondition Failed", 416: b"Range Not Satisfiable", 501: b"Not Implemented",
}


class FastS3:
    """The server's process: `url` is where it answers, each time `delay_seconds` after it was asked.

    Many requests may wait at once. The delay stands for the network as well, so a `100 Continue` comes no sooner than an answer.
    """

    def __init__(self, delay_seconds: float = 0.0) -> None:
        self._delay_seconds = delay_seconds
        self._process: subprocess.Popen[str] | None = None
        self.url = ""

    def __enter__(self) -> FastS3:  # noqa: PYI034 - Self is not in Python 3.10
        command = [sys.executable, "-m", "tests.benchmarks.fast_s3", str(self._delay_seconds)]
        # It ends with its standard input, so it does not outlive whoever started it.
        self._process = subprocess.Popen(
            command, cwd=_REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self._process.stdout is not None
        self.url = self._process.stdout.readline().strip()
        return self

    def __exit__(self, *_: object) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.communicate()


@dataclass(frozen=True)
class _Object:
    """A body, its ETag in quotes, and the header lines that go with every answer about it."""

    body: bytes
    etag: bytes
    lines: bytes
    checksums: bytes


@dataclass(frozen=True)
class _Answer:
    status: int
    lines: bytes = b""
    body: bytes | memoryview = b""
    length: int | None = None
    """What Content-Length says, where that is not the body's."""


@dataclass
class _Upload:
    headers: Headers
    parts: dict[int, bytes] = field(default_factory=dict)


def _refusal(status: int, code: bytes) -> _Answer:
    document = b"<?xml version='1.0'?><Error><Code>%b</Code><Message>%b</Message></Error>" % (code, code)
    return _Answer(status, b"Content-Type: application/xml\r\n", document)


def _document(text: str) -> _Answer:
    return _Answer(200, b"Content-Type: application/xml\r\n", f"<?xml version='1.0'?>{text}".encode())


class _Objects:
    """What is there, and what the operations of S3 make of it."""

    def __init__(self) -> None:
        self._objects: dict[bytes, _Object] = {}
        self._uploads: dict[str, _Upload] = {}
        self._upload_ids = count(1)

    def answer(self, method: bytes, target: bytes, headers: Headers, body: bytes) -> _Answer:
        path, _, asked = target.partition(b"?")
        if b"%" in path:
            path = unquote_to_bytes(path)
        query = parse_qs(asked.decode(), keep_blank_values=True) if asked else {}
        if method in (b"GET", b"HEAD"):
            return self._get(path, headers) if path.count(b"/") > 1 else _Answer(200)
        operations = {b"PUT": self._put, b"DELETE": self._delete, b"POST": self._post}
        operation = operations.get(method)
        return operation(path, headers, body, query) if operation else _refusal(501, b"NotImplemented")

    def _get(self, path: bytes, headers: Headers) -> _Answer:
        found = self._objects.get(path)
        if found is None:
            return _refusal(404, b"NoSuchKey")
        if not _matches(found, headers.get(b"if-match", found.etag)):
            return _refusal(412, b"PreconditionFailed")
        if b"if-none-match" in headers and _matches(found, headers[b"if-none-match"]):
            return _Answer(304, found.lines)
        if b"range" in headers:
            return _range(found, headers[b"range"])
        lines = found.lines + found.checksums if b"x-amz-checksum-mode" in headers else found.lines
        return _Answer(200, lines, found.body, len(found.body))

    def _put(self, path: bytes, headers: Headers, body: bytes, query: Query) -> _Answer:
        if path.rstrip(b"/").count(b"/") < 2:
            return _Answer(200)
        if "uploadId" in query:
            upload = self._uploads.get(query["uploadId"][0])
            if upload is None:
                return _refusal(404, b"NoSuchUpload")
            upload.parts[int(query["partNumber"][0])] = body
            return _Answer(200, b'ETag: "%b"\r\n' % hashlib.md5(body).hexdigest().encode())
        if query.keys() - {"x-id"} or b"x-amz-copy-source" in headers:
            return _refusal(501, b"NotImplemented")
        return self._stored(path, headers, body, hashlib.md5(body).hexdigest())

    def _stored(self, path: bytes, headers: Headers, body: bytes, etag: str) -> _Answer:
        refusal = self._condition_failed(path, headers)
        if refusal is not None:
            return refusal
        stored = _object(headers, body, etag)
        self._objects[path] = stored
        return _Answer(200, b"ETag: %b\r\n" % stored.etag)

    def _condition_failed(self, path: bytes, headers: Headers) -> _Answer | None:
        found = self._objects.get(path)
        if b"if-none-match" in headers and found is not None:
            return _refusal(412, b"PreconditionFailed")
        if b"if-match" in headers and found is None:
            return _refusal(404, b"NoSuchKey")
        if b"if-match" in headers and found is not None and not _matches(found, headers[b"if-match"]):
            return _refusal(412, b"PreconditionFailed")
        return None

    def _delete(self, path: bytes, headers: Headers, _body: bytes, query: Query) -> _Answer:
        if "uploadId" in query:
            return _Answer(204) if self._uploads.pop(query["uploadId"][0], None) else _refusal(404, b"NoSuchUpload")
        refusal = self._condition_failed(path, headers)
        if refusal is None:
            self._objects.pop(path, None)
        return refusal or _Answer(204)

    def _post(self, path: bytes, headers: Headers, body: bytes, query: Query) -> _Answer:
        if "delete" in query:
            return self._delete_many(path.rstrip(b"/"), body.decode())
        if "uploads" in query:
            upload_id = f"upload-{next(self._upload_ids)}"
            self._uploads[upload_id] = _Upload(headers)
            return _document(f"<InitiateMultipartUploadResult><UploadId>{upload_id}</UploadId></InitiateMultipartUploadResult>")
        return self._complete(path, headers, body, query)

    def _delete_many(self, bucket: bytes, body: str) -> _Answer:
        keys = re.findall("<Key>(.*?)</Key>", body, flags=re.DOTALL)
        for key in keys:
            self._objects.pop(bucket + b"/" + unescape(key).encode(), None)
        # As they came, so they are escaped already.
        deleted = "".join(f"<Deleted><Key>{key}</Key></Deleted>" for key in keys)
        return _document(f"<DeleteResult>{deleted}</DeleteResult>")

    def _complete(self, path: bytes, headers: Headers, body: bytes, query: Query) -> _Answer:
        upload = self._uploads.get(query.get("uploadId", [""])[0])
        if upload is None:
            return _refusal(404, b"NoSuchUpload")
        parts = [upload.parts.get(int(number), b"") for number in re.findall(b"<PartNumber>([0-9]+)<", body)]
        digest = hashlib.md5(b"".join(hashlib.md5(part).digest() for part in parts)).hexdigest()
        conditions = {name: value for name, value in headers.items() if name in (b"if-match", b"if-none-match")}
        answer = self._stored(path, {**upload.headers, **conditions}, b"".join(parts), f"{digest}-{len(parts)}")
        if answer.status != 200:
            return answer
        self._uploads.pop(query["uploadId"][0])
        etag = self._objects[path].etag.decode().replace('"', "&quot;")
        return _document(f"<CompleteMultipartUploadResult><ETag>{etag}</ETag></CompleteMultipartUploadResult>")


def _object(headers: Headers, body: bytes, etag: str) -> _Object:
    quoted = f'"{etag}"'.encode()
    kept = [
        b"ETag: %b" % quoted,
        b"Last-Modified: %b" % formatdate(usegmt=True).encode(),
        b"Content-Type: %b" % headers.get(b"content-type", b"binary/octet-stream"),
        b"Accept-Ranges: bytes",
    ]
    kept += [b"%b: %b" % pair for pair in headers.items() if pair[0].startswith(b"x-amz-meta-")]
    sums = [b"%b: %b" % pair for pair in headers.items() if re.match(b"x-amz-checksum-(?!algorithm|mode|type)", pair[0])]
    return _Object(body, quoted, b"\r\n".join([*kept, b""]), b"".join(line + b"\r\n" for line in sums))


def _matches(found: _Object, condition: bytes) -> bool:
    return condition == b"*" or condition.strip(b'"') == found.etag.strip(b'"')


def _range(found: _Object, asked: bytes) -> _Answer:
    size = len(found.body)
    first_text, _, last_text = asked.removeprefix(b"bytes=").partition(b"-")
    first = int(first_text) if first_text else max(size - int(last_text), 0)
    last = min(int(last_text), size - 1) if first_text and last_text else size - 1
    if first > last:
        return _refusal(416, b"InvalidRange")
    lines = found.lines + b"Content-Range: bytes %d-%d/%d\r\n" % (first, last, size)
    return _Answer(206, lines, memoryview(found.body)[first : last + 1])


class _Connection:
    """One client's connection: what has come, what is still to go, and the head of the request whose body is on its way."""

    __slots__ = ("arrived", "continued", "head", "outgoing", "socket")

    def __init__(self, accepted: socket.socket) -> None:
        self.socket = accepted
        self.arrived = bytearray()
        self.outgoing: list[memoryview] = []
        self.head: tuple[bytes, bytes, Headers] | None = None
        self.continued = False

    def take(self) -> tuple[bytes, bytes, Headers, bytes] | None:
        """The next request that has come whole: method, target, headers and body."""
        if self.head is None:
            end = self.arrived.find(b"\r\n\r\n")
            if end < 0:
                return None
            self.head = _head(bytes(self.arrived[:end]))
            del self.arrived[: end + 4]
        method, target, headers = self.head
        taken = _body(self.arrived, headers)
        if taken is None:
            return None
        body, length = taken
        del self.arrived[:length]
        self.head, self.continued = None, False
        return method, target, headers, body

    def awaits_continue(self) -> bool:
        """Whether the client holds the body back until it is told to go on."""
        if self.head is None or self.continued or b"expect" not in self.head[2]:
            return False
        self.continued = True
        return True


def _head(text: bytes) -> tuple[bytes, bytes, Headers]:
    request, *lines = text.split(b"\r\n")
    method, target, _ = request.split(b" ", 2)
    headers = {}
    for line in lines:
        name, _, value = line.partition(b":")
        headers[name.lower()] = value.strip()
    return method, target, headers


def _body(arrived: bytearray, headers: Headers) -> tuple[bytes, int] | None:
    """The body that has arrived, and how many bytes of the connection it took; None where it is not whole yet."""
    if headers.get(b"transfer-encoding", b"").lower() == b"chunked":
        taken = _unchunked(arrived, headers)
    else:
        length = int(headers.get(b"content-length", b"0"))
        taken = None if len(arrived) < length else (bytes(arrived[:length]), length)
    if taken is not None and b"aws-chunked" in headers.get(b"content-encoding", b""):
        inner = _unchunked(taken[0], headers)
        return None if inner is None else (inner[0], taken[1])
    return taken


def _unchunked(arrived: bytes | bytearray, headers: Headers) -> tuple[bytes, int] | None:
    """The body out of its chunks (RFC 9112, 7.1; AWS's own are spelled alike); what trails behind is added to the headers."""
    pieces, at = [], 0
    while True:
        end = arrived.find(b"\r\n", at)
        if end < 0:
            return None
        size = int(arrived[at:end].partition(b";")[0], 16)
        at = end + 2
        if size == 0:
            break
        pieces.append(bytes(arrived[at : at + size]))
        at += size + 2
    while True:
        end = arrived.find(b"\r\n", at)
        if end < 0:
            return None
        name, _, value = bytes(arrived[at:end]).partition(b":")
        at = end + 2
        if not name:
            return b"".join(pieces), at
        headers[name.lower()] = value.strip()


class _Server:
    """Takes connections and answers requests, one after another, in one thread."""

    def __init__(self, delay_seconds: float) -> None:
        self._delay_seconds = delay_seconds
        self._objects = _Objects()
        self._selector = selectors.DefaultSelector()
        self._due: list[tuple[float, int, _Connection, list[memoryview]]] = []
        self._numbers = count()
        self._second, self._date = 0, b""
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
        self._listener.setblocking(False)

    def serve(self) -> None:
        """Answers until standard input ends."""
        self._selector.register(self._listener, selectors.EVENT_READ, self._accept)
        self._selector.register(sys.stdin, selectors.EVENT_READ, None)
        sys.stdout.write(f"http://127.0.0.1:{self._listener.getsockname()[1]}\n")
        sys.stdout.flush()
        while True:
            timeout = max(self._due[0][0] - time.monotonic(), 0) if self._due else None
            for key, events in self._selector.select(timeout):
                if key.data is None:
                    return
                key.data(events)
            while self._due and self._due[0][0] <= time.monotonic():
                _, _, connection, pieces = heapq.heappop(self._due)
                self._send(connection, pieces)

    def _accept(self, _events: int) -> None:
        accepted, _ = self._listener.accept()
        accepted.setblocking(False)
        accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._selector.register(accepted, selectors.EVENT_READ, self._ready(_Connection(accepted)))

    def _ready(self, connection: _Connection) -> Callable[[int], None]:
        def ready(events: int) -> None:
            try:
                if events & selectors.EVENT_WRITE:
                    self._flush(connection)
                if events & selectors.EVENT_READ:
                    self._receive(connection)
            except ConnectionError:
                self._close(connection)

        return ready

    def _receive(self, connection: _Connection) -> None:
        came = connection.socket.recv(_RECEIVE_BYTES)
        if not came:
            self._close(connection)
            return
        connection.arrived += came
        while (request := connection.take()) is not None:
            method, target, headers, body = request
            pieces = self._spelled(self._objects.answer(method, target, headers, body), method == b"HEAD")
            self._later(connection, pieces)
        if connection.awaits_continue():
            self._later(connection, [memoryview(b"HTTP/1.1 100 Continue\r\n\r\n")])

    def _spelled(self, answer: _Answer, is_head: bool) -> list[memoryview]:
        now = int(time.time())
        if now != self._second:
            self._second, self._date = now, formatdate(now, usegmt=True).encode()
        length = len(answer.body) if answer.length is None else answer.length
        head = b"HTTP/1.1 %d %b\r\nServer: FastS3\r\nDate: %b\r\nx-amz-request-id: 1\r\n%bContent-Length: %d\r\n\r\n" % (
            answer.status, _REASONS[answer.status], self._date, answer.lines, length
        )
        if is_head or answer.status in (204, 304) or not answer.body:
            return [memoryview(head)]
        return [memoryview(head), memoryview(answer.body)]

    def _later(self, connection: _Connection, pieces: list[memoryview]) -> None:
        if self._delay_seconds:
            heapq.heappush(self._due, (time.monotonic() + self._delay_seconds, next(self._numbers), connection, pieces))
        else:
            self._send(connection, pieces)

    def _send(self, connection: _Connection, pieces: list[memoryview]) -> None:
        connection.outgoing += pieces
        try:
            self._flush(connection)
        except OSError:
            self._close(connection)

    def _flush(self, connection: _Connection) -> None:
        """Sends as much as the connection takes, and asks to be told when it takes more."""
        while connection.outgoing:
            try:
                sent = connection.socket.sendmsg(connection.outgoing)
            except BlockingIOError:
                break
            while connection.outgoing and sent >= len(connection.outgoing[0]):
                sent -= len(connection.outgoing.pop(0))
            if sent:
                connection.outgoing[0] = connection.outgoing[0][sent:]
        wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if connection.outgoing else 0)
        key = self._selector.get_key(connection.socket)
        if key.events != wanted:
            self._selector.modify(connection.socket, wanted, key.data)

    def _close(self, connection: _Connection) -> None:
        if connection.socket.fileno() >= 0:
            self._selector.unregister(connection.socket)
            connection.socket.close()


if __name__ == "__main__":
    _Server(float(sys.argv[1])).serve()
