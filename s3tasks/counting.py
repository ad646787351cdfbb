"""What is worth counting of what happens, under which names and labels; and where the processes of one worker count together.

It never knows who looks at the sums, and never makes a label of a key, a bucket or anything else that a caller names.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from s3tasks import events
from s3tasks.disk import problem_with
from s3tasks.tallies import Tallies
from s3tasks.verdicts import Verdict

# Upper bounds in seconds. Calls take from less than a millisecond (Redis next door) to the timeouts; staleness goes to days.
_CALL_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0)
_STALENESS_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0, 86400.0)
_LONGEST_LABEL = 40
_DIVIDER, _SUM = "\t", "sum"
_ALIVE = "alive"


@dataclass(frozen=True)
class Metric:
    """One metric: a counter, or with `bounds` (upper bounds of buckets) a histogram. `known` are label values that start at 0."""

    name: str
    meaning: str
    labels: tuple[str, ...] = ()
    bounds: tuple[float, ...] = ()
    known: tuple[tuple[str, ...], ...] = ()


def _names(values: Iterable[str]) -> tuple[tuple[str, ...], ...]:
    return tuple((value,) for value in values)


_VERDICTS = _names(verdict.name.lower() for verdict in Verdict if verdict is not Verdict.ASK_ORIGIN)
_RETRYABLE = _names(("StaleRead", "NotYetVisible", "OverlappingWrite", "LedgerUnavailable", "StoreUnavailable"))

METRICS = (
    Metric("s3tasks_verdicts_total", "Looks at objects, by what they concluded", ("verdict",), known=_VERDICTS),
    Metric(
        "s3tasks_commits_total", "Objects written or deleted, and recorded", ("kind",), known=_names(("write", "delete"))
    ),
    Metric("s3tasks_adoptions_total", "Outside writes and deletes that readers have recorded", known=((),)),
    Metric("s3tasks_observed_intents_total", "Unfinished writes that readers have recorded", known=((),)),
    Metric("s3tasks_retries_total", "Tasks sent again, by the error that was the reason", ("error",), known=_RETRYABLE),
    Metric("s3tasks_deadline_misses_total", "Tasks that gave up waiting, by their last error", ("error",), known=_RETRYABLE),
    Metric(
        "s3tasks_staleness_seconds", "From a write's commit to its first fresh read, where reads had to wait for it", (),
        _STALENESS_SECONDS, ((),),
    ),
    Metric("s3tasks_verb_seconds", "How long verbs took, with all their calls and waiting", ("verb",), _CALL_SECONDS),
    Metric("s3tasks_verb_errors_total", "Verbs that ended in an error", ("verb", "error")),
    Metric("s3tasks_ledger_seconds", "How long Redis took for moves of the ledger", ("move",), _CALL_SECONDS),
    Metric("s3tasks_ledger_errors_total", "Moves of the ledger that Redis did not do, by the client's error", ("move", "error")),
    Metric("s3tasks_store_seconds", "How long S3 took to answer", ("operation",), _CALL_SECONDS),
    Metric("s3tasks_store_errors_total", "Calls that S3 failed or refused, by status or client's error", ("operation", "error")),
    Metric(
        "s3tasks_cache_lookups_total", "Bodies looked for in the cache", ("result",), known=_names(("hit", "miss"))
    ),
)
"""Everything there is to see; the rules and the dashboard in worker_config/prometheus/ are held against it."""

_BY_NAME = {metric.name: metric for metric in METRICS}
_SECONDS = {room: _BY_NAME[f"s3tasks_{room}_seconds"] for room in ("verb", "ledger", "store")}
_ERRORS = {room: _BY_NAME[f"s3tasks_{room}_errors_total"] for room in ("verb", "ledger", "store")}
_RECORDED = {"adopted": _BY_NAME["s3tasks_adoptions_total"], "observed": _BY_NAME["s3tasks_observed_intents_total"]}

Seen = tuple[Metric, tuple[str, ...], float]
_SEEN: dict[type, Callable[[Any], Seen]] = {
    events.Concluded: lambda event: (_BY_NAME["s3tasks_verdicts_total"], (event.verdict,), 1),
    events.Committed: lambda event: (_BY_NAME["s3tasks_commits_total"], (event.kind,), 1),
    events.Recorded: lambda event: (_RECORDED[event.what], (), 1),
    events.FirstFresh: lambda event: (_BY_NAME["s3tasks_staleness_seconds"], (), event.seconds),
    events.Retried: lambda event: (_BY_NAME["s3tasks_retries_total"], (event.error,), 1),
    events.DeadlineMissed: lambda event: (_BY_NAME["s3tasks_deadline_misses_total"], (event.error,), 1),
    events.Ended: lambda event: (_SECONDS[event.operation.room], (event.operation.name,), event.operation.seconds),
    events.Failed: lambda event: (_ERRORS[event.room], (event.operation, event.kind), 1),
    events.CacheAsked: lambda event: (_BY_NAME["s3tasks_cache_lookups_total"], ("hit" if event.hit else "miss",), 1),
}


_counting: list[Tallies] = []


def count_into(tallies: Tallies) -> Callable[[], None]:
    """Counts what happens in this process from now on, and in children that it forks; what is returned ends that."""

    def count(event: events.Event) -> None:
        seen = _SEEN.get(type(event))
        if seen is not None:
            metric, labels, amount = seen(event)
            name = _DIVIDER.join((metric.name, *(label[:_LONGEST_LABEL] for label in labels)))
            if metric.bounds:
                tallies.add(f"{name}{_DIVIDER}{bisect_left(metric.bounds, amount)}")
                name += f"{_DIVIDER}{_SUM}"
            tallies.add(name, amount)

    _counting.append(tallies)
    stop = events.listen(count)

    def stop_counting() -> None:
        stop()
        _counting.remove(tallies)

    return stop_counting


@dataclass(frozen=True)
class Sample:
    """One metric under some label values: a counter's `total`, or a histogram's with how many were in each bucket.

    `counts` has one more than the metric has bounds: those above the last.
    """

    metric: Metric
    labels: tuple[str, ...]
    total: float
    counts: tuple[float, ...] = ()


def samples(totals: Mapping[str, float]) -> list[Sample]:
    """What the sums of a Tallies say, and a zero for what is known to be possible and has not happened."""
    found: dict[tuple[str, tuple[str, ...]], dict[str, float]] = {
        (metric.name, labels): {"": 0.0} for metric in METRICS for labels in metric.known
    }
    for name, amount in totals.items():
        metric_name, *labels = name.split(_DIVIDER)
        part = labels.pop() if _BY_NAME[metric_name].bounds else ""
        found.setdefault((metric_name, tuple(labels)), {})[part] = amount
    return [_sample(_BY_NAME[name], labels, parts) for (name, labels), parts in sorted(found.items())]


def _sample(metric: Metric, labels: tuple[str, ...], parts: Mapping[str, float]) -> Sample:
    if not metric.bounds:
        return Sample(metric, labels, parts[""])
    counts = tuple(parts.get(str(number), 0.0) for number in range(len(metric.bounds) + 1))
    return Sample(metric, labels, parts.get(_SUM, 0.0), counts)


class ProcessDirectory:
    """A directory in which this process and its children count; what is left of one goes when the next is made.

    A child that is not forked but started anew finds it by this process's id. OSError where none can be made.
    """

    def __init__(self) -> None:
        _sweep()
        self.path = tempfile.mkdtemp(prefix=f"{_prefix()}{os.getpid()}-")
        self._alive = os.open(Path(self.path, _ALIVE), os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._alive, fcntl.LOCK_EX)

    def close(self) -> None:
        """Removes it, with all counts."""
        os.close(self._alive)
        shutil.rmtree(self.path, ignore_errors=True)


def count_with_parent() -> None:
    """Counts what happens in this process, unless it does so already, in the directory that its parent has made, if it has."""
    if _counting:
        return
    mine = f"{_prefix()}{os.getppid()}-"
    made = [str(path) for path in _all() if path.name.startswith(mine) and problem_with(str(path)) is None]
    if made:
        count_into(Tallies(max(made, key=os.path.getmtime)))


def _prefix() -> str:
    return f"s3tasks-metrics-{os.geteuid()}-"


def _all() -> list[Path]:
    return list(Path(tempfile.gettempdir()).glob(f"{_prefix()}*"))


def _sweep() -> None:
    """Removes what processes that are gone have left behind."""
    for path in _all():
        # In use, or just being made, or not ours after all.
        with suppress(OSError), (path / _ALIVE).open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(path, ignore_errors=True)
