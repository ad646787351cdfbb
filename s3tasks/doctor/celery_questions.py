"""What is asked of a Celery app and its workers, and what the answers mean.

It never changes the app's configuration, and sends workers no more than two questions.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from s3tasks.doctor.findings import Examination, Grade, Said, bad, is_refusal, ok, unknown, warn
from s3tasks.errors import LedgerUnavailable
from s3tasks.ledger_server import LedgerServer
from s3tasks.settings import Settings, broker_ledger_url, without_credentials
from s3tasks.version import __version__

Workers = Mapping[str, Iterable[str]]

_DEFAULT_VISIBILITY_TIMEOUT_SECONDS = 3600.0
_WRITE_TASK = re.compile(r"s3tasks\.write(?: \[s3tasks_version=(\S+)\])?")

VISIBILITY = ("celery.visibility_timeout", "Is a message delivered again only when its worker is surely gone?")
ACKS = ("celery.acks", "Is the task of a killed worker run again?")
PREFETCH = ("celery.prefetch", "Do workers take no more messages than they work on?")
RESULTS = ("celery.results", "Are results kept?")
SERIALIZERS = ("celery.serializers", "JSON only?")
TIMEOUTS = ("celery.timeouts", "Does a producer notice a dead connection?")
EAGER = ("celery.eager", "Do tasks go through the broker?")
WORKERS = ("celery.workers", "Do workers answer?")
VERSIONS = ("celery.versions", "Have they this version's s3 tasks?")


def ask_celery(examination: Examination, app: Any, settings: Settings, answer_seconds: float) -> None:
    """Asks the configuration, then the workers, which get `answer_seconds` to answer."""
    conf = app.conf
    examination.ask(*VISIBILITY, lambda: visibility(conf, settings))
    examination.ask(*ACKS, lambda: acks(app.tasks))
    examination.ask(*PREFETCH, lambda: prefetch(conf))
    examination.ask(*RESULTS, lambda: results_kept(conf, settings))
    examination.ask(*SERIALIZERS, lambda: serializers(conf))
    examination.ask(*TIMEOUTS, lambda: timeouts(conf))
    examination.ask(*EAGER, lambda: eager(conf))
    answered: list[Workers] = []

    def ask_workers() -> Said:
        try:
            answered.append(registered(app, settings, answer_seconds))
        except Exception as problem:  # noqa: BLE001 - kombu passes on the errors of whatever carries the messages
            return unasked(f"{type(problem).__name__}: {problem}")
        return workers(answered[0], answer_seconds)

    examination.ask(*WORKERS, ask_workers)
    if answered and answered[0]:
        examination.ask(*VERSIONS, lambda: versions(answered[0]))
    else:
        examination.leave_out("no worker answers", VERSIONS)


def unasked(reason: str) -> Said:
    """What it means that workers could not be asked: users that only enqueue may not, and everybody else needs the broker."""
    if is_refusal(reason):
        return unknown(reason, "ask as a user that may ask workers (s3tasks-operator in worker_config/redis-acl.conf)")
    return bad(f"the broker does not answer: {reason}", "start the broker, or correct broker_url")


def registered(app: Any, settings: Settings, answer_seconds: float) -> Workers:
    """The tasks that each worker knows, with the version of the s3 tasks among them."""
    # kombu waits for ever for a Redis that is silent, unless told otherwise.
    bounds = {"socket_timeout": settings.ledger_timeout_seconds, "socket_connect_timeout": settings.ledger_timeout_seconds}
    on_redis = broker_ledger_url(app.conf.broker_url) is not None or str(app.conf.broker_url).startswith("sentinel")
    with app.connection_for_write(transport_options=bounds if on_redis else {}) as connection:
        said: Workers | None = app.control.inspect(timeout=answer_seconds, connection=connection).registered("s3tasks_version")
    return said or {}


def visibility(conf: Any, settings: Settings) -> Said:
    """A message that is delivered again while its task still runs is a task that runs twice at once."""
    if broker_ledger_url(conf.get("broker_url")) is None:
        return ok("the broker is no Redis: it notices a lost worker by itself")
    timeout = float((conf.get("broker_transport_options") or {}).get("visibility_timeout", _DEFAULT_VISIBILITY_TIMEOUT_SECONDS))
    limit, shutdown = conf.get("task_time_limit"), float(conf.get("worker_soft_shutdown_timeout") or 0)
    countdown = min(1.25 * settings.probe_gap_limit_seconds, timeout / 2)
    heard = (
        f"visibility timeout {timeout:g} s; task time limit {f'{limit:g} s' if limit else 'none'}; countdown of a retry up to "
        f"{countdown:g} s; a read gives up after {settings.consistency_deadline_seconds:g} s"
    )
    if limit and limit >= timeout:
        return bad(heard, "raise visibility_timeout (broker_transport_options) well above task_time_limit, or lower the latter")
    if shutdown >= timeout:
        return bad(f"{heard}; soft shutdown {shutdown:g} s", "lower worker_soft_shutdown_timeout below the visibility timeout")
    if not limit:
        advice = f"set task_time_limit well below {timeout:g} s: a task that hangs holds its process for ever, and is run twice"
        return warn(heard, advice)
    return ok(heard)


def acks(tasks: Mapping[str, Any]) -> Said:
    """The s3 tasks, and all that derive from S3Tasks.Task, are made to be run again."""
    ours = {name: task for name, task in tasks.items() if getattr(task, "s3tasks_version", None)}
    early = sorted(name for name, task in ours.items() if not task.acks_late)
    if any(name.startswith("s3tasks.") for name in early):
        return bad(f"{', '.join(early)}: acknowledged before they run", "take acks_late=False for these out of task_annotations")
    if early:
        return warn(
            f"{', '.join(early)}: acknowledged before they run, and lost with their worker",
            "set task_acks_late = True and task_retry_on_worker_lost = True, or acks_late=True on these tasks",
        )
    return ok(f"yes, all {len(ours)} tasks with base s3.Task are acknowledged when they are done")


def prefetch(conf: Any) -> Said:
    """Messages that wait in a busy worker wait longer than they need, and come back late when it is killed."""
    multiplier = conf.get("worker_prefetch_multiplier")
    if conf.get("worker_disable_prefetch") or multiplier == 1:
        return ok("yes" if conf.get("worker_disable_prefetch") else "worker_prefetch_multiplier 1")
    heard = f"worker_prefetch_multiplier {multiplier}" + (": without bound" if multiplier == 0 else "")
    return warn(heard, "set worker_prefetch_multiplier = 1")


def results(conf: Any) -> Said:
    """Without results, writes are done and chains go on; but nobody gets a ref or an error back."""
    backend = conf.get("result_backend")
    if not backend:
        return warn("no result backend", "set result_backend (the broker's Redis will do), unless nobody ever waits for a task")
    serializer = conf.get("result_serializer")
    if serializer != "json":
        return bad(f"kept as {serializer}", "set result_serializer = 'json'")
    return ok(f"yes, as JSON, in {str(backend).partition('://')[0]}")


def results_kept(conf: Any, settings: Settings) -> Said:
    """As `results`; and a Redis that is to keep them is asked whether it is there."""
    said, url = results(conf), broker_ledger_url(conf.get("result_backend"))
    if said.verdict is not Grade.OK or url is None:
        return said
    server = LedgerServer(settings.replace(ledger_url=url))
    try:
        server.ping()
    except LedgerUnavailable as problem:
        heard = f"no: {without_credentials(url)} does not answer: {problem.reason}"
        return bad(heard, "start it, or correct result_backend: until then nobody hears what became of a task")
    finally:
        server.close()
    return said


def serializers(conf: Any) -> Said:
    """A message from outside must never be unpickled; ours are JSON."""
    accepted = [str(content) for content in conf.get("accept_content") or ["json"]]
    heard = f"task_serializer {conf.get('task_serializer')}, accept_content {', '.join(accepted)}"
    if "pickle" in accepted or "application/x-python-serialize" in accepted:
        return bad(heard, "set accept_content = ['json']: who can write to the broker could run code in the workers")
    if not {"json", "application/json"} & set(accepted):
        return bad(heard, "add json to accept_content: the s3 tasks are sent as JSON")
    if conf.get("task_serializer") != "json":
        return warn(heard, "set task_serializer = 'json'")
    return ok(heard)


def timeouts(conf: Any) -> Said:
    """Without a socket_timeout, as is the default of kombu, a publish on a dead connection waits for ever."""
    if broker_ledger_url(conf.get("broker_url")) is None:
        return unknown("the broker is no Redis")
    options = conf.get("broker_transport_options") or {}
    missing = [name for name in ("socket_timeout", "socket_connect_timeout") if not options.get(name)]
    if missing:
        advice = f"set {' and '.join(missing)} in broker_transport_options (30 and 5 s in worker_config/celeryconfig.py)"
        return warn("no: sending a task on a dead connection waits for ever", advice)
    return ok(f"socket_timeout {options['socket_timeout']:g} s, socket_connect_timeout {options['socket_connect_timeout']:g} s")


def eager(conf: Any) -> Said:
    """Eager tasks run in the process that sends them."""
    if conf.get("task_always_eager"):
        return warn("no, task_always_eager is set: they run where they are sent", "unset task_always_eager outside of tests")
    return ok("yes")


def workers(answered: Workers, answer_seconds: float) -> Said:
    """Who answered in time."""
    if not answered:
        return bad(
            f"none within {answer_seconds:g} s",
            "start workers (celery -A APP worker), or look why they hang (worker_config/README.md, at three in the morning)",
        )
    return ok(f"{len(answered)}: {', '.join(sorted(answered))}")


def versions(answered: Workers) -> Said:
    """Each worker tells by a task that it knows. One without the s3 tasks throws their messages away."""
    told = {worker: version_told(tasks) for worker, tasks in answered.items()}
    without = sorted(worker for worker, version in told.items() if version is None)
    heard = ", ".join(f"{worker}: {version or 'no s3 tasks'}" for worker, version in sorted(told.items()))
    if without:
        return bad(heard, f"make S3Tasks(app) in the app of {', '.join(without)}: they drop messages of tasks unknown to them")
    if set(told.values()) != {__version__}:
        return warn(f"{heard}; here: {__version__}", "finish the roll-out: restart the workers that have another version")
    return ok(heard)


def version_told(tasks: Iterable[str]) -> str | None:
    """The version that a worker's list of tasks names; None where it has no s3 tasks."""
    for text in tasks:
        told = _WRITE_TASK.fullmatch(text)
        if told:
            return told[1] or "does not tell its version"
    return None
