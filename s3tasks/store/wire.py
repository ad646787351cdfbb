"""One signed request and its answer, over connections that are kept: what HTTP itself costs, and little more.

It never sends a request twice, never interprets an answer, and never reads one that is framed in any but the plainest way: that is
left to the standard library's own parser.

Connections are urllib3's, made with the time-outs, TLS settings and CA bundle that botocore would use; what
goes wrong is raised as the error that botocore's own session raises. A GET of 1 KiB costs 0.03 of boto3's in here, 0.10 through
http.client and 0.21 through urllib3's pool, most of it for reading heads of any kind.
"""

from __future__ import annotations

import http.client
import io
import re
import socket
import ssl
from collections import deque
from collections.abc import Callable
from importlib.metadata import version
from typing import IO, Any, NamedTuple, cast

import botocore.exceptions
import urllib3
import urllib3.exceptions
from botocore.awsrequest import AWSResponse
from botocore.endpoint import EndpointCreator
from botocore.httpsession import ProxyConfiguration, create_urllib3_context, get_cert_path
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.util.connection import is_connection_dropped
from urllib3.util.ssl_match_hostname import CertificateError

# A first read brings the head and a small body with it; 8 KiB, the default, would cost a body of 64 KiB eight more of them.
_BUFFER_BYTES = 64 * 1024
# Up to here one more copy is cheaper than a second call to send (and, over TLS, a second record).
_MOST_JOINED_BYTES = 64 * 1024
_MOST_ERROR_BYTES = 256 * 1024
_PLAIN_HEAD = re.compile(rb"HTTP/1\.1 ([2-5]\d\d)(?: [^\r\n\0]*)?((?:\r\n[!#$%&'*+.^_`|~0-9A-Za-z-]+:[^\r\n\0]*)*)")
_LENGTH = re.compile("[0-9]{1,18}")
_END_OF_ANY_HEAD = re.compile(rb"\n\r?\n")
_BODILESS_STATUSES = frozenset({204, 304})
_URLLIB3_IS_OLD = version("urllib3").startswith("1.")
_NOT_CONNECTED = (urllib3.exceptions.NewConnectionError, socket.gaierror)


class Origin(NamedTuple):
    """Where a connection leads."""

    scheme: str
    host: str
    port: int


class Reply(NamedTuple):
    """An answer. Header names are in lower case; `body` is still on the wire, or has been read where it is small or an error's."""

    status: int
    headers: dict[str, str]
    body: Arriving | io.BytesIO

    def for_botocore(self, url: str) -> AWSResponse:
        """The same, as botocore's own session would hand it over."""
        raw = urllib3.HTTPResponse(
            cast("IO[bytes]", self.body), self.headers, self.status,
            preload_content=False, decode_content=False, enforce_content_length=False,
        )
        return AWSResponse(url, self.status, self.headers, raw)


class _Received(io.RawIOBase):
    """The bytes that a connection brings, counted. To close it is to close the connection."""

    def __init__(self, connection: HTTPConnection) -> None:
        self._connection = connection
        self._socket = cast("socket.socket", connection.sock)
        self._ahead = b""
        self.count = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if self._ahead:
            count = min(len(buffer), len(self._ahead))
            buffer[:count], self._ahead = self._ahead[:count], self._ahead[count:]
            return count
        count = self._socket.recv_into(buffer)
        self.count += count
        return count

    def read_ahead(self, seen: bytes, until: re.Pattern[bytes]) -> None:
        """Receives until that has come, too, and gives back all of it, with what had been `seen` before."""
        while not until.search(seen) and len(seen) < _BUFFER_BYTES:
            came = self._socket.recv(_BUFFER_BYTES - len(seen))
            if not came:
                break
            self.count += len(came)
            seen += came
        self._ahead = seen

    def close(self) -> None:
        super().close()
        self._connection.close()


class _Line:
    """A connection that is kept between requests."""

    def __init__(self, connection: HTTPConnection, read_timeout_seconds: float) -> None:
        connection.connect()
        self._connection = connection
        self.socket = cast("socket.socket", connection.sock)
        self.socket.settimeout(read_timeout_seconds)
        self._received = _Received(connection)
        self.reader = io.BufferedReader(self._received, _BUFFER_BYTES)
        self.taken = 0

    def usable(self) -> bool:
        """Whether the other side has neither closed it nor sent anything that nobody asked for."""
        return self._received.count == self.taken and not is_connection_dropped(self._connection)

    def close(self) -> None:
        """Closes the connection."""
        self.reader.close()

    def send(self, head: bytes, body: bytes) -> None:
        """Sends a request."""
        try:
            if len(body) <= _MOST_JOINED_BYTES:
                self.socket.sendall(head + body)
            else:
                self.socket.sendall(head)
                self.socket.sendall(body)
        except BrokenPipeError:
            # The other side may have said no before it had read all: its answer is still to be had.
            return

    def plain_head(self) -> tuple[int, dict[str, str]] | None:
        """Status and headers, taken off the line; None, and nothing taken, where they are not of the plainest kind."""
        seen = self.reader.peek()
        if not seen:
            raise ConnectionResetError("the connection was closed before an answer came")
        if b"\r\n\r\n" not in seen:
            self._received.read_ahead(self.reader.read(len(seen)), _END_OF_ANY_HEAD)
            seen = self.reader.peek()
        end = seen.find(b"\r\n\r\n")
        found = _PLAIN_HEAD.fullmatch(seen, 0, max(end, 0))
        if found is None:
            return None
        headers: dict[str, str] = {}
        for line in found[2].decode("latin-1").split("\r\n")[1:]:
            name, _, value = line.partition(":")
            name, value = name.lower(), value.strip(" \t")
            headers[name] = f"{headers[name]}, {value}" if name in headers else value
        status, length = int(found[1]), headers.get("content-length", "")
        if "transfer-encoding" in headers or not (_LENGTH.fullmatch(length) or status in _BODILESS_STATUSES):
            return None
        self.read(end + 4)
        return status, headers

    def read(self, size_bytes: int) -> bytes:
        """So many bytes; fewer where the connection ends."""
        came = self.reader.read(size_bytes)
        self.taken += len(came)
        return came


class Arriving:
    """A body on the wire, as urllib3 and botocore offer theirs. `release` is told when the connection is free again."""

    # Of one that was interrupted before it had anything to close.
    closed = True

    def __init__(self, line: _Line, size_bytes: int, url: str, release: Callable[[_Line], None]) -> None:
        self._line, self._left, self._url, self._release = line, size_bytes, url, release
        self.closed = False
        if not size_bytes:
            self._free()

    def read(self, size_bytes: int | None = None) -> bytes:
        """The next bytes, `size_bytes` at most, or all; fewer than there should be where the connection ends."""
        wanted = self._left if size_bytes is None or size_bytes < 0 else min(size_bytes, self._left)
        if not wanted or self.closed:
            return b""
        try:
            came = self._line.read(wanted)
            self._left -= len(came)
        except BaseException as problem:
            # Whatever it was, bytes may have gone with it: whoever reads on must not be given those that follow.
            self.close()
            if isinstance(problem, OSError):
                raise _read_error(self._url, problem) from problem
            raise
        if not self._left:
            self._free()
        elif len(came) < wanted:
            self.close()
        return came

    def close(self) -> None:
        """Gives up what has not been read, and the connection with it."""
        if not self.closed:
            self.closed = True
            self._line.close()

    def __del__(self) -> None:
        # An answer that an error has left behind.
        self.close()

    def _free(self) -> None:
        self.closed = True
        self._release(self._line)


class Wire:
    """The connections of one client of botocore's, shared by threads. They must not be forked."""

    def __init__(self, client: Any, ca_bundle: str | None, *, tcp_keepalive: bool = False) -> None:
        config = client.meta.config
        self._how = _how_botocore_connects(client, ca_bundle, tcp_keepalive)
        self._proxy_url = ProxyConfiguration(self._how["proxies"]).proxy_url_for(client.meta.endpoint_url)
        self._connect_timeout, self._read_timeout = config.connect_timeout, config.read_timeout
        self._most_idle = config.max_pool_connections
        self._tls = create_urllib3_context()
        self._idle: dict[Origin, deque[_Line]] = {}

    @property
    def leads_there(self) -> bool:
        """Whether requests can go straight to the endpoint, without a proxy, by the urllib3 that is installed."""
        return not self._proxy_url and not _URLLIB3_IS_OLD

    def ask(self, url: str, origin: Origin, method: str, head: bytes, body: bytes) -> Reply | AWSResponse:
        """Sends one request, and returns the answer to it: botocore's kind where it is not framed in the plainest way.

        Raises what botocore's session raises. Of a GET that succeeds the body is left on the wire.
        """
        try:
            line = self._line(origin)
        except (OSError, urllib3.exceptions.HTTPError, CertificateError) as problem:
            raise _connect_error(url, problem) from problem
        try:
            line.send(head, body)
            said = line.plain_head()
            if said is None:
                return _by_the_library(line, method, url)
            return self._reply(line, origin, method, url, *said)
        except BaseException as problem:
            line.close()
            if isinstance(problem, OSError | http.client.HTTPException):
                raise _send_error(url, problem) from problem
            raise

    def close(self) -> None:
        """Closes the connections that are not in use."""
        for idle in self._idle.values():
            while idle:
                idle.pop().close()

    def _reply(self, line: _Line, origin: Origin, method: str, url: str, status: int, headers: dict[str, str]) -> Reply:
        bodiless = method == "HEAD" or status in _BODILESS_STATUSES
        length = 0 if bodiless else int(headers["content-length"])
        keep = headers.get("connection", "").lower() != "close"
        arriving = Arriving(line, length, url, lambda freed: self._release(origin, freed) if keep else freed.close())
        if (method == "GET" and status < 300) or length > _MOST_ERROR_BYTES:
            return Reply(status, headers, arriving)
        return Reply(status, headers, io.BytesIO(arriving.read()))

    def _line(self, origin: Origin) -> _Line:
        idle = self._idle.setdefault(origin, deque())
        while idle:
            try:
                line = idle.pop()
            except IndexError:
                break
            if line.usable():
                return line
            line.close()
        return _Line(self._connection(origin), self._read_timeout)

    def _connection(self, origin: Origin) -> HTTPConnection:
        options = {"timeout": self._connect_timeout, "socket_options": self._how["socket_options"]}
        if origin.scheme == "http":
            return HTTPConnection(origin.host, origin.port, **options)
        verify = self._how["verify"]
        return HTTPSConnection(
            origin.host, origin.port, ssl_context=self._tls,
            cert_reqs="CERT_REQUIRED" if verify else "CERT_NONE", ca_certs=get_cert_path(verify) if verify else None, **options,
        )

    def _release(self, origin: Origin, line: _Line) -> None:
        idle = self._idle[origin]
        if len(idle) < self._most_idle:
            idle.append(line)
        else:
            line.close()


class _Reach:
    """Stands in for botocore's HTTP session, to learn what it would be made with."""

    def __init__(self, **how: Any) -> None:
        self.how = how


def _how_botocore_connects(client: Any, ca_bundle: str | None, tcp_keepalive: bool) -> dict[str, Any]:
    meta = client.meta
    options = [(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)]
    if tcp_keepalive:
        options.append((socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1))
    endpoint = EndpointCreator(meta.events).create_endpoint(
        meta.service_model, meta.region_name, meta.endpoint_url, verify=ca_bundle, http_session_cls=_Reach,
        proxies=meta.config.proxies, socket_options=options,
    )
    how: dict[str, Any] = endpoint.http_session.how
    return how


def _by_the_library(line: _Line, method: str, url: str) -> AWSResponse:
    """An answer of any other kind: chunked, without a length, interim, or spelled in an old way. The connection ends with it."""

    class Socket:
        def makefile(self, _mode: str) -> IO[bytes]:
            return line.reader

    said = http.client.HTTPResponse(cast("socket.socket", Socket()), method=method)
    try:
        said.begin()
        if said.status < http.client.OK:
            raise http.client.HTTPException(f"{said.status} is no final answer")
    except BaseException:
        # Before its reader: one that is left with a reader that is closed complains of it when it is collected.
        said.close()
        raise
    headers = urllib3.HTTPHeaderDict(said.getheaders())
    raw = urllib3.HTTPResponse(
        said, headers, said.status, said.version, reason=said.reason, preload_content=False, decode_content=False,
        original_response=said, enforce_content_length=False,
    )
    return AWSResponse(url, said.status, headers, raw)


def _connect_error(url: str, problem: Exception) -> Exception:
    if isinstance(problem, ssl.SSLError | urllib3.exceptions.SSLError | CertificateError):
        return cast("Exception", botocore.exceptions.SSLError(endpoint_url=url, error=problem))
    if isinstance(problem, _NOT_CONNECTED):
        return cast("Exception", botocore.exceptions.EndpointConnectionError(endpoint_url=url, error=problem))
    if isinstance(problem, urllib3.exceptions.ConnectTimeoutError | TimeoutError):
        return cast("Exception", botocore.exceptions.ConnectTimeoutError(endpoint_url=url, error=problem))
    return cast("Exception", botocore.exceptions.HTTPClientError(error=problem))


def _send_error(url: str, problem: Exception) -> Exception:
    if isinstance(problem, TimeoutError):
        return cast("Exception", botocore.exceptions.ReadTimeoutError(endpoint_url=url, error=problem))
    return cast("Exception", botocore.exceptions.ConnectionClosedError(endpoint_url=url, error=problem))


def _read_error(url: str, problem: Exception) -> Exception:
    if isinstance(problem, TimeoutError):
        return _send_error(url, problem)
    return cast("Exception", botocore.exceptions.ResponseStreamingError(error=problem))
