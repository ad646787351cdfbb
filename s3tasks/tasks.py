"""S3Tasks(app): the verbs as Celery tasks, and the Task base for tasks of your own; the only room that knows celery.

It never talks to Redis or S3 itself, and never changes the app's own configuration.

Celery keeps its autoretry; only the countdown is ours, for Celery's own backoff knows whole seconds only (celery.app.autoretry)
and its full jitter can burn all retries at once. What waiting has cost so far travels in a message header, as a sum of spans: the
clocks of two workers are never compared.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from typing import Any, ClassVar

from celery import Celery, signals
from celery import Task as CeleryTask

from s3tasks.client import ConsistentS3, NumberedWriteIds, Process
from s3tasks.errors import (
    NoSuchKey,
    PayloadTooLarge,
    PreconditionFailed,
    RetryableError,
    S3TasksError,
    Superseded,
    WriteConflict,
)
from s3tasks.settings import (
    Settings,
    broker_ledger_url,
    conf_choices,
    environment_choices,
    without_credentials,
)
from s3tasks.waiting import gap_seconds

logger = logging.getLogger(__name__)

WAITED_HEADER = "s3tasks_waited"
DEFAULT_VISIBILITY_TIMEOUT_SECONDS = 3600.0
# What a header may claim; more is a forgery, and an int can be too large for a float.
MOST_WAITED_SECONDS = 10**9


class ConsistentTask(CeleryTask):
    """Base of the s3 tasks, and through `S3Tasks.Task` of your own.

    A retryable error of this library that is raised anywhere in `run` is retried by Celery: soon, then with growing gaps, until
    `consistency_deadline_seconds` (for PreconditionFailed) or `outage_deadline_seconds` (for the others) are over; then it
    surfaces, with how often and how long was tried. A decorator's own `autoretry_for` replaces this one's, as always in Celery.
    """

    abstract = True
    autoretry_for = (RetryableError,)
    dont_autoretry_for = (Superseded,)
    throws: ClassVar[tuple[type[S3TasksError], ...]] = (NoSuchKey, WriteConflict)
    # Deadlines bound the waiting; this only bounds how often a task that kills its process can come back.
    max_retries = 5000
    toolkit: ClassVar[S3Tasks]

    @property
    def s3(self) -> ConsistentS3:
        """The process's client for this delivery of the task: its writes take their ids from the task's id.

        Asked for anew it is the same client, so that the writes of one delivery are numbered through. On its first delivery a task
        waits `brief_wait_seconds` for S3 in the worker; where Celery cannot requeue (eager or direct calls) it waits until the
        deadline.
        """
        request = self.request
        known: ConsistentS3 | None = getattr(request, "s3tasks_client", None)
        if known is None:
            client, settings = self.toolkit.client, self.toolkit.settings
            if request.called_directly:
                return client.with_write_ids(client.write_ids, settings.consistency_deadline_seconds)
            first = not self._waited()[0]
            wait = settings.brief_wait_seconds if first else 0.0
            known = client.with_write_ids(
                NumberedWriteIds(request.id), settings.consistency_deadline_seconds if request.is_eager else wait
            )
            request.s3tasks_client, request.s3tasks_started = known, time.monotonic()
        return known

    def retry(
        self,
        args: Any = None,
        kwargs: Any = None,
        exc: BaseException | None = None,
        throw: bool = True,
        eta: Any = None,
        countdown: float | None = None,
        max_retries: int | None = None,
        **options: Any,
    ) -> Any:
        """Celery's retry, which for this library's own errors supplies the countdown and the deadline.

        Raises the error itself, with attempts and seconds waited, when the deadline is over.
        """
        if isinstance(exc, RetryableError) and eta is None and countdown is None and not self.request.called_directly:
            exc, countdown, options["headers"] = self._next_probe(exc)
        return super().retry(args, kwargs, exc, throw, eta, countdown, max_retries, **options)

    def _next_probe(self, exc: RetryableError) -> tuple[RetryableError, float, dict[str, Any]]:
        """The error with what waiting has cost in all, the countdown to the next delivery, and its headers."""
        settings = self.toolkit.settings
        attempts, waited = self._waited()
        attempts += exc.attempts
        waited += time.monotonic() - getattr(self.request, "s3tasks_started", time.monotonic())
        is_lag = isinstance(exc, PreconditionFailed)
        deadline = settings.consistency_deadline_seconds if is_lag else settings.outage_deadline_seconds
        told = exc.after(attempts, waited)
        if waited >= deadline or self.request.is_eager:
            raise told from exc
        most = min(deadline - waited, self.toolkit.visibility_timeout_seconds() / 2)
        countdown = gap_seconds(settings, waited, most)
        return told, countdown, {**(self.request.headers or {}), WAITED_HEADER: [attempts, round(waited + countdown, 4)]}

    def _waited(self) -> tuple[int, float]:
        """Attempts and seconds that earlier deliveries of this task have spent on waiting."""
        header = (self.request.headers or {}).get(WAITED_HEADER)
        if not isinstance(header, list) or len(header) != 2:
            return 0, 0.0
        attempts, waited = header
        good = type(attempts) is int and attempts >= 0 and type(waited) in (int, float) and 0 <= waited <= MOST_WAITED_SECONDS
        return (attempts, float(waited)) if good else (0, 0.0)


class _WriteTask(ConsistentTask):
    """The write task: a body that does not belong in a message is refused where it is sent."""

    abstract = True

    def apply_async(self, args: Any = None, kwargs: Any = None, *more: Any, **options: Any) -> Any:
        # A worker that sends on the result of a chain's step passes the parent's id; an error here would lose the chain there,
        # so that body is refused by the task itself.
        if options.get("parent_id") is None:
            self.check_body(args[0] if args else (kwargs or {}).get("body", b""))
        return super().apply_async(args, kwargs, *more, **options)

    def check_body(self, body: Any) -> None:
        """Raises PayloadTooLarge for a body over `max_inline_bytes`."""
        size = len(body.encode() if isinstance(body, str) else body) if isinstance(body, str | bytes) else 0
        limit = self.toolkit.settings.max_inline_bytes
        if size > limit:
            raise PayloadTooLarge("write", size, limit)


class S3Tasks:
    """Gives a Celery app the tasks `s3tasks.write`, `.read`, `.delete`, `.head` and `.wait_visible`, as attributes of this object.

    `S3Tasks(app)` takes its settings from `app.conf.s3tasks_*` and `S3TASKS_*` variables (the former win) when they are first
    needed, so configuration set later is seen; `S3Tasks(app, Settings(...))` takes these. Without a `ledger_url` the app's broker
    is the ledger's Redis, and the log says so. A producer that runs no worker makes the same object.

    What a previous task of a chain returns comes first: `chain(render.s(), s3.write.s("s3://b/k"), s3.read.s())`.
    """

    def __init__(self, app: Celery, settings: Settings | None = None) -> None:
        self.app = app
        self._given = settings
        self._process: Process | None = None
        self.Task = type("Task", (ConsistentTask,), {"toolkit": self, "abstract": True, "__module__": __name__})
        self._write_base = type("WriteTask", (_WriteTask,), {"toolkit": self, "abstract": True, "__module__": __name__})
        self.write = self._task(write, self._write_base)
        self.read = self._task(read, self.Task)
        self.delete = self._task(delete, self.Task)
        self.head = self._task(head, self.Task)
        self.wait_visible = self._task(wait_visible, self.Task)
        signals.worker_init.connect(self._refuse_nonsense)
        signals.worker_ready.connect(self._warn_of_eviction)

    @property
    def client(self) -> ConsistentS3:
        """The process's ConsistentS3, for web applications and scripts: the same verbs as methods. Nothing connects before use."""
        if self._process is None:
            self._process = Process(self._settings())
        return ConsistentS3(self._process)

    @property
    def settings(self) -> Settings:
        """The settings in force."""
        return self.client.settings

    def visibility_timeout_seconds(self) -> float:
        """How long the broker waits before it delivers a message again that no worker has acknowledged."""
        options = self.app.conf.broker_transport_options or {}
        return float(options.get("visibility_timeout", DEFAULT_VISIBILITY_TIMEOUT_SECONDS))

    def _refuse_nonsense(self, sender: Any = None, **_: Any) -> None:
        """Ends a worker that starts with settings which would fail each of its tasks."""
        if getattr(sender, "app", None) is not self.app:
            return
        try:
            self._settings()
        except ValueError as problem:
            # Celery logs what a signal's handler raises and goes on, unless it is no Exception.
            raise SystemExit(f"s3tasks: this worker cannot start: {problem}") from problem

    def _warn_of_eviction(self, sender: Any = None, **_: Any) -> None:
        """Says at a worker's start that its Redis may forget what was promised. A Redis that is away is noticed by the tasks."""
        if getattr(sender, "app", None) is not self.app:
            return
        try:
            policy = self.client.ledger_may_be_evicted()
        except S3TasksError as problem:
            logger.warning("could not ask the ledger for its eviction policy: %s", problem)
            return
        if policy is not None:
            logger.error(
                "the ledger's Redis has maxmemory-policy %s: when memory is short it drops records, and reads go unchecked, or "
                "queued tasks; set 'maxmemory-policy noeviction' and alert on used_memory", policy,
            )

    def _task(self, run: Any, base: type[ConsistentTask]) -> Any:
        # Bound to this app, lazily, and not shared with other apps of the process: see celery.Celery.task.
        return self.app.task(
            name=f"s3tasks.{run.__name__}", bind=True, base=base, shared=False, lazy=True,
            # Done once however often it is delivered, so a killed worker's task may come back.
            acks_late=True, retry_on_worker_lost=True, default_retry_delay=1.0,
        )(run)

    def _settings(self) -> Settings:
        settings = self._given or Settings(**{**environment_choices(), **conf_choices(self.app.conf)})
        if settings.ledger_url is None:
            settings = self._with_broker_as_ledger(settings)
        horizon = int(2 * self.visibility_timeout_seconds())
        if settings.redelivery_horizon_seconds < horizon:
            logger.warning(
                "redelivery_horizon_seconds raised from %s to %s, twice the broker's visibility timeout",
                settings.redelivery_horizon_seconds, horizon,
            )
            settings = settings.replace(
                redelivery_horizon_seconds=horizon, retention_seconds=max(horizon, settings.retention_seconds)
            )
        return settings

    def _with_broker_as_ledger(self, settings: Settings) -> Settings:
        url = broker_ledger_url(self.app.conf.broker_url)
        if url is None:
            raise ValueError(
                "no ledger_url, and the Celery broker is not Redis: set S3TASKS_LEDGER_URL or app.conf.s3tasks_ledger_url "
                "to the redis:// URL that keeps the ledger"
            )
        logger.info("the ledger is kept in the Celery broker's Redis, %s", without_credentials(url))
        return settings.replace(ledger_url=url)


def enqueuing_app(broker_url: str, result_backend: str) -> Celery:
    """A Celery app for a process that only enqueues, such as a web application: `S3Tasks(enqueuing_app(...))` has the tasks.

    It gives a Redis that is down or silent up after some seconds, where Celery's defaults try for ever.
    """
    app = Celery("s3tasks-producer", broker=broker_url, backend=result_backend)
    timeouts = {"socket_timeout": 5, "socket_connect_timeout": 5}
    once_more = {"max_retries": 1, "interval_start": 0, "interval_step": 0.2, "interval_max": 0.2}
    app.conf.update(
        broker_transport_options={**timeouts, "socket_keepalive": True},
        broker_connection_timeout=5,
        task_publish_retry_policy=once_more,
        redis_socket_timeout=5,
        redis_socket_connect_timeout=5,
        result_backend_transport_options={"retry_policy": once_more},
    )
    return app


def write(
    self: _WriteTask,
    body: bytes | str,
    ref: str | Mapping[str, Any],
    *,
    if_match: str | None = None,
    if_none_match: bool = False,
    content_type: str | None = None,
    metadata: Mapping[str, str] | None = None,
    put_options: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Writes `body` and returns the ref of exactly this write, as a JSON dict; arguments as of ConsistentS3.write.

    Delivered twice, it is done once; replaced meanwhile, it is not done again. PayloadTooLarge over `max_inline_bytes`.
    """
    self.check_body(body)
    written = self.s3.write(
        body, ref,
        if_match=if_match, if_none_match=if_none_match,
        content_type=content_type, metadata=metadata, put_options=put_options,
    )
    return written.to_dict()


def read(
    self: ConsistentTask,
    ref: str | Mapping[str, Any],
    *,
    byte_range: tuple[int, int | None] | None = None,
    latest: bool = False,
) -> bytes:
    """The object's bytes, never stale; arguments as of ConsistentS3.read. PayloadTooLarge over `max_inline_bytes`."""
    limit = self.toolkit.settings.max_inline_bytes
    return self.s3.read(ref, byte_range=byte_range, latest=latest, limit_bytes=limit)


def delete(self: ConsistentTask, ref: str | Mapping[str, Any], *, if_match: str | None = None) -> dict[str, Any]:
    """Deletes the object and returns a ref with `deleted`; arguments as of ConsistentS3.delete. Done once, as `write`."""
    return self.s3.delete(ref, if_match=if_match).to_dict()


def head(self: ConsistentTask, ref: str | Mapping[str, Any], *, latest: bool = False) -> dict[str, Any]:
    """etag, version_id, size, last_modified, content_type and metadata of the object, held against the ledger like a read."""
    return self.s3.head(ref, latest=latest)


def wait_visible(self: ConsistentTask, ref: str | Mapping[str, Any]) -> dict[str, Any]:
    """The ref, once the read endpoint serves it: a barrier before readers that know nothing of the ledger."""
    return self.s3.wait_visible(ref).to_dict()
