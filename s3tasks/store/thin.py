"""Small calls past botocore's machinery: spelled from what botocore made of the same call before, signed by its own signer.

It never decides what an answer other than the plain success means: that is handed to botocore as the answer to its own first
attempt, which then parses it, follows the redirect, tries again or raises, as if it had sent the request itself. So a write is
one request on either way, and a read is tried as often as the settings say.

Where anybody but botocore has a hand in the client's calls (a handler of events, as moto's mocks are one, or a wrapper around what
makes them), all of them are botocore's, so that whoever put it there sees every call once.

Before the first call of a kind to a bucket, botocore rehearses it: it makes the call, and is handed an empty answer in place of
sending anything. The request that it was about to sign shows where the bucket is, in which region, and what goes with such a call;
unless all of that is understood, calls of that kind stay with botocore.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO
from types import FunctionType
from typing import Any, TypeAlias
from urllib.parse import urlsplit

from botocore.auth import SIGNED_HEADERS_BLACKLIST, S3SigV4Auth
from botocore.awsrequest import AWSResponse
from botocore.client import BaseClient
from botocore.exceptions import BotoCoreError

from s3tasks.store.spelling import (
    CHECKSUM_HEADER,
    METHODS,
    Verified,
    can_spell,
    checksum_of,
    checksum_to_verify,
    headers_of,
    path_of,
    said_by,
)
from s3tasks.store.wire import Origin, Reply, Wire

_VERBS = {"GetObject": "get_object", "HeadObject": "head_object", "PutObject": "put_object", "DeleteObject": "delete_object"}
_SUCCESSES = {"GET": (200, 206), "HEAD": (200,), "PUT": (200,), "DELETE": (204,)}
_DEFAULT_PORTS = {"http": 80, "https": 443}
# What every attempt of botocore's has for itself; S3 makes no use of it. `Expect` costs a small PUT a whole round trip.
_OF_ONE_ATTEMPT = ("amz-sdk-invocation-id", "amz-sdk-request", "expect")
# How botocore sends the checksum over https, where it does not hash the body to sign it. As a header it is signed besides.
_TRAILING = ("x-amz-trailer", "transfer-encoding", "content-encoding", "x-amz-decoded-content-length")
_ALWAYS_THE_SAME = frozenset({"user-agent", "x-amz-checksum-mode", "x-amz-sdk-checksum-algorithm"})
_MOST_PATTERNS = 4096
# What botocore tells those who listen, from the beginning of a call to its end.
_EVENTS = (
    "provide-client-params", "before-parameter-build", "before-endpoint-resolution", "before-call", "request-created",
    "choose-signer", "before-sign", "before-send", "response-received", "before-parse", "needs-retry", "after-call",
    "after-call-error",
)
# Every call of every client; who watches or fakes botocore as a whole replaces it, some of them for the time of one test.
_MAKE_CALL = BaseClient._make_api_call  # noqa: SLF001 - what others put their own in the place of

_Kind = tuple[str, str, frozenset[str]]
_First: TypeAlias = "AWSResponse | Exception | None"


@dataclass(frozen=True)
class _Pattern:
    """What all calls of a kind to a bucket have in common."""

    url: str
    origin: Origin
    target: str
    host: str
    headers: Mapping[str, str]
    with_checksum: bool
    verifies: bool
    context: Mapping[str, Any]
    signer: Any
    signing_name: str
    region_name: str


class _Request:
    """A request, as far as botocore's signer looks at one."""

    __slots__ = ("body", "context", "headers", "host", "method", "params", "to_sign", "url")

    def __init__(
        self, method: str, url: str, host: str, headers: dict[str, str], body: bytes, context: dict[str, Any]
    ) -> None:
        self.method, self.url, self.host, self.headers, self.body, self.context = method, url, host, headers, body, context
        self.params: dict[str, str] = {}
        self.to_sign: _HeadersToSign | None = None


class _HeadersToSign(dict[str, str]):
    """Headers, each of them once, as botocore's signer asks for them."""

    def get_all(self, name: str) -> list[str]:
        return [self[name]]


class _Signer(S3SigV4Auth):  # type: ignore[misc]
    """botocore's signer, without what it does over again: half of what it costs.

    It gathers the headers to sign twice, in an e-mail message, and derives its key anew that is good for a day.
    """

    def headers_to_sign(self, request: _Request) -> _HeadersToSign:
        if request.to_sign is None:
            named = ((name.lower(), value) for name, value in request.headers.items())
            request.to_sign = _HeadersToSign((name, value) for name, value in named if name not in SIGNED_HEADERS_BLACKLIST)
            request.to_sign["host"] = request.host
        return request.to_sign

    def signature(self, string_to_sign: str, request: _Request) -> str:
        """The signature, with the key of the day."""
        key = _key_of_the_day(self.credentials.secret_key, request.context["timestamp"][:8], self._region_name, self._service_name)
        signature: str = self._sign(key, string_to_sign, hex=True)
        return signature


@lru_cache(maxsize=64)
def _key_of_the_day(secret_key: str, day: str, region_name: str, signing_name: str) -> bytes:
    """The signing key as botocore derives it (its SigV4Auth.signature)."""
    signer = S3SigV4Auth(None, signing_name, region_name)
    key = f"AWS4{secret_key}".encode()
    for scope in (day, region_name, signing_name, "aws4_request"):
        key = signer._sign(key, scope)  # noqa: SLF001 - botocore's own step
    return key


class _Now(threading.local):
    """What this thread's call of botocore's is about: the kind of call to learn, and the answer to its first attempt."""

    learning: tuple[_Kind, Mapping[str, Any]] | None = None
    first: _First = None


class ThinClient:
    """Calls of S3's operations through a client of boto3's, or past it where that is the same but for its cost.

    `wire` is None where every call is to be botocore's.
    """

    def __init__(self, client: Any, wire: Wire | None) -> None:
        if not _by_itself(client):
            wire = None
        self._client, self._wire = client, wire
        self._patterns: dict[_Kind, _Pattern | None] = {}
        self._now = _Now()
        if wire is not None:
            # botocore calls those who registered for the most special event first: this sees what all others have made of it.
            client.meta.events.register_last("before-sign", self._learn)
            for operation in METHODS:
                client.meta.events.register_first(f"before-send.s3.{operation}", self._hand_over)

    def call(self, operation: str, parameters: dict[str, Any]) -> dict[str, Any]:
        """What S3 says, under botocore's names. Raises what the client raises."""
        if self._wire is None or BaseClient._make_api_call is not _MAKE_CALL or not can_spell(operation, parameters):  # noqa: SLF001
            return self._by_botocore(operation, parameters)
        kind = operation, parameters["Bucket"], frozenset(parameters)
        if kind not in self._patterns:
            self._by_botocore(operation, parameters, kind, _rehearsed())
        pattern = self._patterns.get(kind)
        return self._thinly(self._wire, pattern, kind, parameters) if pattern else self._by_botocore(operation, parameters)

    def close(self) -> None:
        """Closes the connections, botocore's own as well."""
        if self._wire is not None:
            self._wire.close()
        self._client.close()

    def _thinly(self, wire: Wire, pattern: _Pattern, kind: _Kind, parameters: dict[str, Any]) -> dict[str, Any]:
        operation, method = kind[0], METHODS[kind[0]]
        url, head, body = _spelled(pattern, method, parameters)
        try:
            answer = wire.ask(url, pattern.origin, method, head, body)
        except BotoCoreError as problem:
            return self._by_botocore(operation, parameters, kind, problem)
        if isinstance(answer, AWSResponse):
            return self._by_botocore(operation, parameters, kind, answer)
        checksum = checksum_to_verify(answer.headers) if method == "GET" and pattern.verifies else None
        if answer.status not in _SUCCESSES[method] or checksum is False or not _is_plain(method, answer.headers):
            return self._by_botocore(operation, parameters, kind, answer.for_botocore(url))
        return _said(answer, Verified(answer.body, checksum) if method == "GET" else None)

    def _by_botocore(
        self, operation: str, parameters: dict[str, Any], learning: _Kind | None = None, first: _First = None
    ) -> dict[str, Any]:
        now = self._now
        try:
            now.learning, now.first = (learning, parameters) if learning else None, first
            said: dict[str, Any] = getattr(self._client, _VERBS[operation])(**parameters)
            return said
        finally:
            now.learning = now.first = None

    def _hand_over(self, **_: Any) -> AWSResponse | None:
        """The answer that has come already. botocore takes an error that is raised here for one of its own session's."""
        first, self._now.first = self._now.first, None
        if isinstance(first, Exception):
            raise first
        return first

    def _learn(self, *, request: Any, **signing: Any) -> None:
        """Sees what botocore is about to sign; of an attempt that follows a redirect, too."""
        if self._now.learning is None:
            return
        kind, parameters = self._now.learning
        if signing["operation_name"] != kind[0]:
            # botocore asks where a bucket is, on its way through a redirect.
            return
        if len(self._patterns) >= _MOST_PATTERNS:
            self._patterns.clear()
        self._patterns[kind] = _pattern_of(request, signing, parameters)


def _by_itself(client: Any) -> bool:
    """Whether nobody but botocore has a hand in the client's calls, and in those of all clients."""
    handlers = client.meta.events._emitter._handlers  # noqa: SLF001 - botocore names them to nobody
    listening = [it for event in _EVENTS for operation in METHODS for it in handlers.prefix_search(f"{event}.s3.{operation}")]
    return (
        type(_MAKE_CALL) is FunctionType and str(_MAKE_CALL.__globals__["__name__"]).startswith("botocore.")
        and all(str(getattr(it, "__module__", "")).partition(".")[0] in ("boto3", "botocore") for it in listening)
    )


def _rehearsed() -> AWSResponse:
    return Reply(200, {}, BytesIO()).for_botocore("")


def _pattern_of(request: Any, signing: Mapping[str, Any], parameters: Mapping[str, Any]) -> _Pattern | None:
    """What can be learnt from a request of botocore's; None where there is anything in it that is not understood."""
    end, url, context = path_of(parameters), str(request.url), dict(request.context)
    at = context.get("signing", {})
    headers = {name.lower(): value for name, value in request.headers.items()}
    verifies = "x-amz-checksum-mode" in headers
    with_checksum = _without_checksum(headers, parameters)
    for name in _OF_ONE_ATTEMPT:
        headers.pop(name, None)
    understood = all(headers.pop(name.lower(), None) == value for name, value in headers_of(parameters).items())
    parts = urlsplit(url)
    if (
        not understood or with_checksum is None or headers.keys() - _ALWAYS_THE_SAME or not url.endswith(f"/{end}")
        or signing["signature_version"] != "s3v4" or {"request_credentials", "identity_cache"} & at.keys() or parts.username
    ):
        return None
    start, port = url[: -len(end)], parts.port or _DEFAULT_PORTS[parts.scheme]
    host = f"[{parts.hostname}]" if ":" in str(parts.hostname) else str(parts.hostname)
    return _Pattern(
        url=start,
        origin=Origin(parts.scheme, str(parts.hostname), port),
        target=start[len(f"{parts.scheme}://{parts.netloc}") :],
        host=host if port == _DEFAULT_PORTS[parts.scheme] else f"{host}:{port}",
        headers=headers,
        with_checksum=with_checksum,
        verifies=verifies,
        context=context,
        signer=signing["request_signer"],
        signing_name=at.get("signing_name") or signing["signing_name"],
        region_name=at.get("region") or signing["region_name"],
    )


def _without_checksum(headers: dict[str, str], parameters: Mapping[str, Any]) -> bool | None:
    """Whether the body's CRC-32 goes with the request, and takes that out of the headers; None where it is not the body's."""
    if headers.get("x-amz-trailer") == CHECKSUM_HEADER and headers.get("content-encoding") == "aws-chunked":
        for name in _TRAILING:
            headers.pop(name, None)
        return True
    if CHECKSUM_HEADER not in headers:
        return False
    return True if headers.pop(CHECKSUM_HEADER) == checksum_of(parameters.get("Body", b"")) else None


def _spelled(pattern: _Pattern, method: str, parameters: Mapping[str, Any]) -> tuple[str, bytes, bytes]:
    """URL, head and body of a call like those before. Raises what signing raises where there are no credentials."""
    end, body = path_of(parameters), parameters.get("Body", b"")
    headers, context = {**pattern.headers, **headers_of(parameters)}, {**pattern.context}
    context["checksum"] = {}
    if pattern.with_checksum:
        headers[CHECKSUM_HEADER] = checksum_of(body)
        # Says to the signer where the checksum is: over https, the body is not hashed besides.
        context["checksum"] = {"request_algorithm": {"algorithm": "crc32", "in": "header", "name": CHECKSUM_HEADER}}
    request = _Request(method, pattern.url + end, pattern.host, headers, body, context)
    # By botocore's own signer every time, for it is this that has credentials renewed before they expire.
    auth = pattern.signer.get_auth_instance(pattern.signing_name, pattern.region_name, "s3v4")
    _Signer(auth.credentials, pattern.signing_name, pattern.region_name).add_auth(request)
    if method in ("PUT", "DELETE"):
        headers["Content-Length"] = str(len(body))
    lines = [f"{method} {pattern.target}{end} HTTP/1.1", f"Host: {pattern.host}", "Accept-Encoding: identity"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    head = "\r\n".join(lines)
    if head.count("\n") != len(lines) - 1 or head.count("\r") != len(lines) - 1:
        raise ValueError("a header (of the credentials?) holds a line break")
    return request.url, f"{head}\r\n\r\n".encode("ascii"), body


def _is_plain(method: str, headers: Mapping[str, str]) -> bool:
    """Whether there is nothing in a success that botocore would look at and this room does not."""
    if method in ("GET", "HEAD"):
        return "expires" not in headers
    # A success that carries a document may be an error in disguise.
    return headers.get("content-length", "0") == "0"


def _said(answer: Reply, body: Verified | None) -> dict[str, Any]:
    try:
        said = said_by(answer.headers)
    except BaseException:
        answer.body.close()
        raise
    if body is not None:
        said["Body"] = body
    return said
