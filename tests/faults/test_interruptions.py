"""Verbs that are interrupted wherever they are, as by Celery's soft time limit: what comes next is never given what was left over.

Against a real Redis and a real S3 over real sockets; every line that a verb passes in the rooms that hold connections is tried.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Collection, Iterator
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import redis.client

import s3tasks
from s3tasks import ConsistentS3, ObjectRef, Settings
from s3tasks.evidence import Landed
from s3tasks.ledger import Ledger, Opened
from tests.benchmarks.fast_s3 import FastS3
from tests.redis_proxy import Command, Forward, redis_proxied

PACKAGE = Path(s3tasks.__file__).parent
ROOMS = {
    str(PACKAGE / f"{room}.py")
    for room in ("ledger", "ledger_connection", "streams", "writes", "store/bodies", "store/thin", "store/wire")
}


class Interrupted(BaseException):
    """Not even an Exception, as gevent's time-out and a KeyboardInterrupt are none."""


def is_finalizing(frame: FrameType) -> bool:
    return frame.f_back is not None and frame.f_back.f_code.co_name == "__del__"


def interrupted(verb: Callable[[], Any], at: int, rooms: Collection[str] = ROOMS) -> bool:
    """Carries out the verb and raises Interrupted at the `at`-th line of the rooms; False where it has fewer."""
    left = at

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal left
        # What is raised in a finalizer is reported by Python, and goes nowhere.
        if frame.f_code.co_filename not in rooms or frame.f_code.co_name == "__del__" or is_finalizing(frame):
            return None
        if event == "line":
            left -= 1
            if left < 0:
                # Once: clearing up is left alone.
                sys.settrace(None)
                raise Interrupted
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        verb()
    except Interrupted:
        return True
    finally:
        sys.settrace(before)
    return False


@pytest.fixture(scope="module")
def fast() -> Iterator[FastS3]:
    # What is left over has not come yet when the next request is sent.
    with FastS3(delay_seconds=0.003) as server:
        yield server


@pytest.fixture
def client(settings: Settings, connect: Callable[[Settings], ConsistentS3], fast: FastS3) -> ConsistentS3:
    return connect(settings.replace(endpoint_url=fast.url, addressing_style="path"))


# A socket whose owner was interrupted while it was closing it is closed by the garbage collector, which warns.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.mark.parametrize("verb", ["read", "write", "delete", "head"])
def test_a_verb_that_is_interrupted_anywhere_leaves_no_answer_to_the_next(client: ConsistentS3, ref: ObjectRef, verb: str) -> None:
    keys = [ObjectRef(ref.bucket, f"{verb} {number}") for number in range(2)]
    for key in keys:
        client.write(key.key, key)
    verbs: dict[str, Callable[[int], Any]] = {
        "read": lambda _: client.read(keys[0]), "head": lambda _: client.head(keys[0]),
        "write": lambda at: client.write(f"new {at}", ref), "delete": lambda _: client.delete(ref),
    }
    at = 0
    while interrupted(partial(verbs[verb], at), at):
        assert [client.read(key) for key in keys] == [key.key.encode() for key in keys]
        assert client.read(client.write(f"next {at}", ref)) == f"next {at}".encode()
        at += 1
    assert at > 100, "the package was hardly interrupted"


def test_a_write_that_is_interrupted_anywhere_leaves_its_key_readable(client: ConsistentS3, ref: ObjectRef) -> None:
    may_be = [client.write("first", ref) and b"first"]
    at = 0
    while interrupted(lambda: client.write(f"body {at}", ref), at):  # noqa: B023 - called at once
        found = client.read(ref)
        assert found in (may_be[-1], f"body {at}".encode())
        may_be.append(found)
        at += 1


def test_a_stream_that_is_interrupted_anywhere_goes_on_with_the_right_bytes(client: ConsistentS3, ref: ObjectRef) -> None:
    whole = b"".join(number.to_bytes(4, "big") for number in range(250_000))
    client.write(whole, ref)
    at, interruptions = 0, 0
    while at < 60:
        with client.open(ref) as stream:
            raw = stream.raw  # type: ignore[attr-defined]
            raw.read(300_000)
            interruptions += interrupted(lambda: raw.read(300_000), at)  # noqa: B023 - called at once
            begins = raw.tell()
            assert raw.read(1000) == whole[begins : begins + 1000]
        at += 1
    assert interruptions > 20


@pytest.mark.parametrize("verb", ["many moves", "many look-ups", "one command"])
def test_what_is_interrupted_inside_redis_py_leaves_no_answer_to_the_next(
    settings: Settings, closing: Callable[[Any], Any], ref: ObjectRef, verb: str
) -> None:
    def slowly(command: Command, forward: Forward) -> bytes:
        # What is left over has not come yet when the next command is sent.
        time.sleep(0.005)
        return forward(command)

    with redis_proxied(str(settings.ledger_url), slowly) as proxy:
        ledger = closing(Ledger(settings.replace(ledger_url=proxy.url)))
        refs = [ObjectRef(ref.bucket, f"{verb} {number}") for number in range(2)]
        for each in refs:
            begun = ledger.begin(each, "first")
            assert isinstance(begun, Opened)
            landed = Landed(etag=each.key, size=1, date=1)
            ledger.commit(each, "first", begun.ticket, landed, landed_ticket=begun.ticket)
        verbs: dict[str, Callable[[], Any]] = {
            "many moves": lambda: ledger.begin_many([(each, "again") for each in refs], deletes=True),
            "many look-ups": lambda: ledger.lookup_many(refs),
            "one command": lambda: ledger.found("http://store", ref.bucket),
        }
        at = 0
        while interrupted(verbs[verb], at, {str(redis.client.__file__)}):
            assert [[current.etag for current in record.currents] for record in ledger.lookup_many(refs)] == [
                [each.key] for each in refs
            ]
            at += 1
        assert at > 10
