"""Traps: what is done once, when a step of one object's write or read comes by on the wire.

It never knows what is done, only where. The steps of the ledger are those of tests.redis_proxy, S3's are its HTTP methods.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from urllib.parse import urlsplit

from s3tasks import ObjectRef
from tests import redis_proxy, s3_proxy
from tests.redis_proxy import Command, Lost
from tests.s3_proxy import Dropped, Request, Response, S3Proxy


class When(Enum):
    """Before the server has seen the step, in the middle of its answer's body, or between its answer and the client."""

    BEFORE = "before"
    DURING = "during"
    AFTER = "after"


@dataclass
class Trap:
    """Runs `act` when the step comes by, the first `times` times. `answers` says that the step goes on all the same afterwards."""

    ref: ObjectRef
    step: str
    when: When
    act: Callable[[], object]
    answers: bool = False
    times: int = 1
    sprung: threading.Event = field(default_factory=threading.Event)

    def spring(self) -> bool:
        """Acts; whether the step is to be lost."""
        try:
            self.act()
        finally:
            self.sprung.set()
        return not self.answers


@dataclass
class Interrupted(Response):
    """An answer of which half the body is sent, before `then` is called and the connection closed."""

    then: Callable[[], object] = bool


class _Handler(s3_proxy._Handler):
    def _send(self, response: Response) -> None:
        super()._send(response)
        if isinstance(response, Interrupted):
            response.then()


class TrapS3Proxy(S3Proxy):
    """An S3 proxy that can stop in the middle of a body."""

    def __init__(self, upstream: str, rule: s3_proxy.Rule) -> None:
        super().__init__(upstream, rule)
        self._server.RequestHandlerClass = type("Handler", (_Handler,), {"proxy": self})

    def count_of(self, method: str, ref: ObjectRef) -> int:
        return sum(seen == method and _is_about(path, ref) for seen, path in self.seen)


class Traps:
    """The traps that are set, for both proxies. `request_rule` may stand between S3 and everybody while a test needs that."""

    def __init__(self) -> None:
        self._set: list[Trap] = []
        self._lock = threading.Lock()
        self.request_rule: s3_proxy.Rule | None = None

    def set(self, trap: Trap) -> Trap:
        with self._lock:
            self._set.append(trap)
        return trap

    def clear(self) -> None:
        with self._lock:
            self._set.clear()
        self.request_rule = None

    def redis_rule(self, command: Command, forward: redis_proxy.Forward) -> bytes:
        if command.move is None:
            return forward(command)
        record = command.key.encode()

        def about(ref: ObjectRef) -> bool:
            return record.endswith(b":{%s/%s}" % (ref.bucket.encode(), ref.key.encode()))

        self._spring_redis(command.move, When.BEFORE, about)
        answer = forward(command)
        if not answer.startswith(b"-NOSCRIPT"):
            self._spring_redis(command.move, When.AFTER, about)
        return answer

    def s3_rule(self, request: Request, forward: s3_proxy.Forward) -> Response:
        def about(ref: ObjectRef) -> bool:
            return _is_about(request.path, ref)

        self._spring_s3(request.method, When.BEFORE, about)
        response = self.request_rule(request, forward) if self.request_rule else forward(request)
        trap = self._taken(request.method, When.DURING, about)
        if trap is not None:
            half = len(response.body) // 2
            return Interrupted(response.status, response.headers, response.body, half, then=trap.spring)
        self._spring_s3(request.method, When.AFTER, about)
        return response

    def _spring_redis(self, step: str, when: When, about: Callable[[ObjectRef], bool]) -> None:
        trap = self._taken(step, when, about)
        if trap is not None and trap.spring():
            raise Lost

    def _spring_s3(self, step: str, when: When, about: Callable[[ObjectRef], bool]) -> None:
        trap = self._taken(step, when, about)
        if trap is not None and trap.spring():
            raise Dropped

    def _taken(self, step: str, when: When, about: Callable[[ObjectRef], bool]) -> Trap | None:
        with self._lock:
            for trap in self._set:
                if trap.times and (trap.step, trap.when) == (step, when) and about(trap.ref):
                    trap.times -= 1
                    return trap
        return None


def _is_about(path: str, ref: ObjectRef) -> bool:
    return urlsplit(path).path == f"/{ref.bucket}/{ref.key}"
