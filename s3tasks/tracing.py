"""Spans of OpenTelemetry for verbs and the calls to Redis and S3 that they make, where the application has set OpenTelemetry up.

It never sets anything up, and never imports OpenTelemetry: an application that wants spans has done so. Attributes are those of
OpenTelemetry's semantic conventions for S3, Redis and errors. Keys are among them: traces are looked at one by one.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from s3tasks import events
from s3tasks.version import __version__

if TYPE_CHECKING:
    from opentelemetry.trace import Span

_SCRIPTS = frozenset({"abort", "adopt", "begin", "commit", "forget", "lags", "note", "observe", "seen"})

_following = False


def follow() -> None:
    """Makes spans of what happens from now on, in this process and those that it forks, if a tracer provider has been set.

    Asked before each verb, for an application may set it up whenever it likes.
    """
    global _following  # noqa: PLW0603 - once for each process
    api = sys.modules.get("opentelemetry.trace")
    if _following or api is None or isinstance(api.get_tracer_provider(), api.ProxyTracerProvider):
        return
    _following = True
    events.listen(_Spans(api, sys.modules["opentelemetry.context"]))


class _Spans:
    """One span for each operation, current while it goes on, so that what it calls is below it."""

    def __init__(self, api: Any, context: Any) -> None:
        self._api, self._context = api, context
        self._open: dict[events.Operation, tuple[Span, Any]] = {}

    def __call__(self, event: events.Event) -> None:
        if isinstance(event, events.Began):
            self._begin(event.operation)
        elif isinstance(event, events.Ended):
            self._end(event.operation)

    def _begin(self, operation: events.Operation) -> None:
        api = self._api
        if operation.room != "verb" and not api.get_current_span().get_span_context().is_valid:
            # Housekeeping that nobody has asked for would be a trace of its own.
            return
        kind = api.SpanKind.INTERNAL if operation.room == "verb" else api.SpanKind.CLIENT
        tracer = api.get_tracer("s3tasks", __version__)
        span = tracer.start_span(_name(operation), kind=kind, attributes=_attributes(operation))
        self._open[operation] = span, self._context.attach(api.set_span_in_context(span))

    def _end(self, operation: events.Operation) -> None:
        span, token = self._open.pop(operation, (None, None))
        if span is None:
            return
        self._context.detach(token)
        if operation.error is not None:
            span.set_attribute("error.type", operation.error)
            span.set_status(self._api.StatusCode.ERROR)
        span.end()


def _name(operation: events.Operation) -> str:
    if operation.room == "store":
        return f"S3.{operation.name}"
    if operation.room == "ledger":
        return f"{_command(operation)} {operation.name}"
    return f"s3tasks.{operation.name}"


def _attributes(operation: events.Operation) -> dict[str, str]:
    attributes: dict[str, str] = {}
    if operation.ref is not None:
        attributes = {"aws.s3.bucket": operation.ref.bucket, "aws.s3.key": operation.ref.key}
    if operation.room == "store":
        attributes.update({"rpc.system": "aws-api", "rpc.service": "S3", "rpc.method": operation.name})
    elif operation.room == "ledger":
        attributes.update({"db.system.name": "redis", "db.operation.name": _command(operation)})
        if operation.name in _SCRIPTS:
            attributes["db.stored_procedure.name"] = operation.name
    return attributes


def _command(operation: events.Operation) -> str:
    """Which kind of command a move of the ledger is to Redis."""
    return "EVALSHA" if operation.name in _SCRIPTS else operation.name.upper() if operation.name != "lookup" else "HGETALL"
