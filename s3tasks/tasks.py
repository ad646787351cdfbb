"""S3Tasks(app): the verbs as Celery tasks, and the Task base for tasks of your own; the only room that knows celery.

It never talks to Redis or S3 itself, and never changes the app's own configuration.

Celery keeps its autoretry; only the countdown is ours, for Celery's own backoff knows whole seconds only (celery.app.autoretry)
and its full jitter can burn all retries at once. What waiting has cost so far travels in a message header, as a sum of spans: the
clocks of two workers are never compared.

What only work needs (boto3 above all) is loaded when work is first done, so that a producer never loads it; a worker loads it when
it starts, before it forks, so that its processes share it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from importlib import import_module
from typing import TYPE_CHECKING, Any, ClassVar

from celery import Celery, signals
from celery import Task as CeleryTask

from s3tasks import events, verbs
from s3tasks.counting import count_with_parent
from s3tasks.errors import (
    NoSuchKey,
    PreconditionFailed,
    RetryableError,
    S3TasksError,
    Superseded,
    WriteConflict,
)
from s3tasks.headers import awaited_in, retry_headers, waited_in
from s3tasks.logbook import Acting
from s3tasks.outcomes import Outcome, failed_before, outcomes_done
from s3tasks.pictures import args_picture, kwargs_picture
from s3tasks.settings import (
    Settings,
    broker_ledger_url,
    conf_choices,
    environment_choices,
    without_credentials,
)
from s3tasks.version import __version__
from s3tasks.write_ids import NumberedWriteIds

if TYPE_CHECKING:
    from s3tasks.client import ConsistentS3, Progress
    from s3tasks.metrics import Exporter
    from s3tasks.process import Process

logger = logging.getLogger(__name__)

DEFAULT_VISIBILITY_TIMEOUT_SECONDS = 3600.0
PROGRESS_STATE = "PROGRESS"
PROGRESS_SECONDS = 0.5


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
    # `celery inspect registered s3tasks_version` has every worker tell it.
    s3tasks_version = __version__
    toolkit: ClassVar[S3Tasks]
    verb: ClassVar[Callable[..., Any] | None] = None

    def apply_async(self, args: Any = None, kwargs: Any = None, *more: Any, **options: Any) -> Any:
        """Celery's apply_async. Events, logs and Flower are shown which objects a task is about, and no bodies."""
        verb = type(self).verb
        pictures = {"argsrepr": args_picture(args or (), verb), "kwargsrepr": kwargs_picture(kwargs or {}, verb)}
        return super().apply_async(args, kwargs, *more, **{**pictures, **options})

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
            attempts, _ = self._waited()
            wait = 0.0 if attempts else settings.brief_wait_seconds
            known = client.with_write_ids(
                NumberedWriteIds(request.id), settings.consistency_deadline_seconds if request.is_eager else wait,
                Acting(request.id, attempts), requeued=not request.is_eager, awaited=awaited_in(request.headers),
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
            if self.toolkit.broker_is_redis:
                # It has had its turn in the queue. In kombu's Redis transport 0 is the highest.
                options.setdefault("priority", 0)
            if events.listeners:
                events.tell(events.Retried(type(exc).__name__))
        return super().retry(args, kwargs, exc, throw, eta, countdown, max_retries, **options)

    def outcomes(
        self, run: Callable[[list[Outcome | None]], list[Outcome]], done: object, given: Sequence[Any]
    ) -> list[dict[str, Any]]:
        """The outcomes of many objects as JSON. Those that may yet succeed are tried again by Celery, and only those.

        `run` is told the outcomes of earlier deliveries, which travel in the message, and returns all of them. When the deadline
        is over, what is left keeps its error. `given` is what the task was given for each: what had failed before is not tried.
        """
        known = outcomes_done(done if isinstance(done, list) else None) or [None] * len(given)
        outcomes = run(known)
        late = [
            outcome.error is not None and outcome.error.retryable and not failed_before(item)
            for outcome, item in zip(outcomes, given, strict=True)
        ]
        if any(late) and not self.request.called_directly:
            kept = [None if is_late else outcome.to_dict() for outcome, is_late in zip(outcomes, late, strict=True)]
            first = outcomes[late.index(True)].error
            try:
                raise self.retry(exc=first, kwargs={**self.request.kwargs, "done": kept})
            except RetryableError as told:
                outcomes = [_after(outcome, told) if is_late else outcome for outcome, is_late in zip(outcomes, late, strict=True)]
        return [outcome.to_dict() for outcome in outcomes]

    def progress(self) -> Progress:
        """What tells how far a transfer is: as the task's state PROGRESS with `bytes_done` and `bytes_total`, twice a second at
        most."""
        request = self.request
        task_id, shown = request.id, not (request.called_directly or request.is_eager or request.ignore_result)
        told = -PROGRESS_SECONDS

        def tell(done_bytes: int, total_bytes: int | None) -> None:
            nonlocal told
            if shown and time.monotonic() - told >= PROGRESS_SECONDS:
                told = time.monotonic()
                self._show(task_id, {"bytes_done": done_bytes, "bytes_total": total_bytes})

        return tell

    def _show(self, task_id: str, meta: dict[str, Any]) -> None:
        try:
            self.update_state(task_id=task_id, state=PROGRESS_STATE, meta=meta)
        except Exception as problem:  # noqa: BLE001 - each result backend fails in its own way, and the transfer goes on without it
            logger.warning("the progress of %s could not be shown: %s", task_id, problem)

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
            if not self.request.is_eager and events.listeners:
                events.tell(events.DeadlineMissed(type(exc).__name__))
            raise told from exc
        most = min(deadline - waited, self.toolkit.visibility_timeout_seconds() / 2)
        gap, awaited = self.toolkit.client.next_probe(exc, attempts, waited)
        countdown = min(gap, most)
        return told, countdown, retry_headers(self.request.headers, attempts, waited + countdown, awaited)

    def _waited(self) -> tuple[int, float]:
        return waited_in(self.request.headers)


class _CheckedTask(ConsistentTask):
    """An s3 task whose arguments are checked where it is sent, too: what is wrong with them is said to whoever can mend it."""

    abstract = True
    verb: ClassVar[Callable[..., Any]]

    def signature(self, args: Any = None, *more: Any, **options: Any) -> Any:
        """Celery's signature. Of a chain only the first step passes `apply_async` where the chain is sent, so options are looked at
        here, too."""
        signed = super().signature(args, *more, **options)
        verbs.check_options_of(type(self).verb, signed.kwargs)
        return signed

    def apply_async(self, args: Any = None, kwargs: Any = None, *more: Any, **options: Any) -> Any:
        # A worker that sends on the result of a chain's step passes the parent's id; an error here would lose the chain there,
        # so what is wrong is then said by the task itself.
        if options.get("parent_id") is None:
            verb = type(self).verb
            verbs.CHECKS[verb](self.toolkit.settings, args or (), kwargs or {})
            verbs.check_options_of(verb, kwargs or {})
        return super().apply_async(args, kwargs, *more, **options)


class S3Tasks:
    """Gives a Celery app the s3 tasks, as attributes of this object: `write` is the task named `s3tasks.write`, and so on.

    For one object: `write`, `read`, `head`, `delete`, `copy`, `upload`, `download`, `wait_visible`; for many: `write_many`,
    `read_many`, `head_many`, `delete_many`. Arguments and results are told in `s3tasks.verbs`.

    `S3Tasks(app)` takes its settings from `app.conf.s3tasks_*` and `S3TASKS_*` variables (the former win) when they are first
    needed, so configuration set later is seen; `S3Tasks(app, Settings(...))` takes these. Without a `ledger_url` the app's broker
    is the ledger's Redis, and the log says so. A producer that runs no worker makes the same object.

    What a previous task of a chain returns comes first: `chain(render.s(), s3.write.s("s3://b/k"), s3.read.s())`.
    """

    def __init__(self, app: Celery, settings: Settings | None = None) -> None:
        self.app = app
        self._given = settings
        self._chosen: Settings | None = None
        self._process: Process | None = None
        self.Task = type("Task", (ConsistentTask,), {"toolkit": self, "abstract": True, "__module__": __name__})
        self.write = self._task(verbs.write)
        self.read = self._task(verbs.read)
        self.head = self._task(verbs.head)
        self.delete = self._task(verbs.delete)
        self.copy = self._task(verbs.copy)
        self.upload = self._task(verbs.upload)
        self.download = self._task(verbs.download)
        self.wait_visible = self._task(verbs.wait_visible)
        self.write_many = self._task(verbs.write_many)
        self.read_many = self._task(verbs.read_many)
        self.head_many = self._task(verbs.head_many)
        self.delete_many = self._task(verbs.delete_many)
        self._exporter: Exporter | None = None
        signals.worker_init.connect(self._prepare)
        signals.worker_process_init.connect(self._count_in_new_child)
        signals.worker_ready.connect(self._serve_metrics)
        signals.worker_ready.connect(self._warn_of_eviction)
        signals.worker_shutdown.connect(self._stop_metrics)

    @property
    def client(self) -> ConsistentS3:
        """The process's ConsistentS3, for web applications and scripts: the same verbs as methods. Nothing connects before use."""
        if self._process is None:
            self._process = import_module("s3tasks.process").Process(self.settings)
        client: ConsistentS3 = import_module("s3tasks.client").ConsistentS3(self._process)
        return client

    @property
    def settings(self) -> Settings:
        """The settings in force."""
        if self._chosen is None:
            self._chosen = self._settings()
        return self._chosen

    def visibility_timeout_seconds(self) -> float:
        """How long the broker waits before it delivers a message again that no worker has acknowledged."""
        options = self.app.conf.broker_transport_options or {}
        return float(options.get("visibility_timeout", DEFAULT_VISIBILITY_TIMEOUT_SECONDS))

    @cached_property
    def broker_is_redis(self) -> bool:
        """Whether messages go through kombu's Redis transport, also behind sentinels."""
        return bool(self.app.connection_for_write().transport.driver_type == "redis")

    def _prepare(self, sender: Any = None, **_: Any) -> None:
        """Ends a worker that starts with settings which would fail each of its tasks, and loads what the tasks need."""
        if getattr(sender, "app", None) is not self.app:
            return
        try:
            settings = self._settings()
            if settings.metrics_port:
                self._exporter = import_module("s3tasks.metrics").Exporter(settings)
        except (ValueError, ModuleNotFoundError) as problem:
            # Celery logs what a signal's handler raises and goes on, unless it is no Exception.
            raise SystemExit(f"s3tasks: this worker cannot start: {problem}") from problem
        except OSError as problem:
            logger.error("no metrics: there is no directory to count in: %s", problem)  # noqa: TRY400 - the worker goes on
        import_module("s3tasks.client")

    def _count_in_new_child(self, **_: Any) -> None:
        """In a worker's child that was started anew rather than forked, which has inherited nothing."""
        if self._settings().metrics_port:
            count_with_parent()

    def _serve_metrics(self, sender: Any = None, **_: Any) -> None:
        if getattr(sender, "app", None) is self.app and self._exporter is not None:
            self._exporter.serve()

    def _stop_metrics(self, sender: Any = None, **_: Any) -> None:
        if getattr(sender, "app", None) is self.app and self._exporter is not None:
            self._exporter.close()
            self._exporter = None

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

    def _task(self, run: Any) -> Any:
        base = self.Task
        if run in verbs.CHECKS:
            attributes = {"toolkit": self, "abstract": True, "__module__": __name__, "verb": staticmethod(run)}
            base = type("CheckedTask", (_CheckedTask,), attributes)
        # Bound to this app, lazily, and not shared with other apps of the process: see celery.Celery.task.
        return self.app.task(
            name=f"s3tasks.{run.__name__}", bind=True, base=base, shared=False, lazy=True,
            # Done once however often it is delivered, so a killed worker's task may come back.
            acks_late=True, retry_on_worker_lost=True, default_retry_delay=1.0,
            # What was read is nobody's business in events and logs.
            resultrepr_maxsize=0 if run in (verbs.read, verbs.read_many) else ConsistentTask.resultrepr_maxsize,
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


def _after(outcome: Outcome, told: RetryableError) -> Outcome:
    """The outcome, whose error says what waiting for it has cost."""
    error = outcome.error
    if not (isinstance(error, RetryableError) and error.retryable):
        return outcome
    return replace(outcome, error=error.after(told.attempts, told.waited_seconds))


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
