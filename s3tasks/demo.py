"""The main job on real input, next to the naive way: files are written, overwritten, deleted and read back, and each read counted.

It never prints, and never judges by anything but the bytes that were last written.

Every file goes through the steps in order, all files at once. A step is a chain (write, read) or (delete, read) of s3 tasks; the
moment its write is done, the object is also read the naive way: one plain GET at the replica, believed as it is.
"""

from __future__ import annotations

import contextlib
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from s3tasks.errors import ObjectDeleted
from s3tasks.refs import ObjectRef
from s3tasks.sandbox import Sandbox
from s3tasks.store import Endpoint, Store
from s3tasks.tasks import S3Tasks

_POLL_SECONDS = 0.01
_STEP_DEADLINE_SECONDS = 60.0

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Step:
    """One write (or, with `body` None, delete) of an object, and the read that follows it."""

    ref: ObjectRef
    body: bytes | None


@dataclass
class Report:
    """What a run has counted. Times are in seconds, one entry a read of written bytes.

    Of the `naive_stale` reads, `naive_missing` were 404s for what had been written. `lags`: from the primary's change to the
    replica's; `waits`: from the write's end to the read's; `overshoots`: from the moment the replica had the bytes to the read's
    end.
    """

    files: int = 0
    bytes_written: int = 0
    writes: int = 0
    deletes: int = 0
    reads: int = 0
    naive_stale: int = 0
    naive_missing: int = 0
    stale: int = 0
    failures: list[str] = field(default_factory=list)
    retries: int = 0
    lags: list[float] = field(default_factory=list)
    waits: list[float] = field(default_factory=list)
    overshoots: list[float] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def passed(self) -> bool:
        """No stale byte came through, and nothing failed."""
        return self.stale == 0 and not self.failures

    def figures(self) -> dict[str, Any]:
        """The report as JSON, with medians and 95th percentiles for the times."""
        reads = ("reads", "naive_stale", "naive_missing", "stale")
        counts = ("files", "bytes_written", "writes", "deletes", *reads, "retries", "failures")
        times = {name: spread(getattr(self, name)) for name in ("lags", "waits", "overshoots")}
        return {
            **{name: getattr(self, name) for name in counts},
            **{f"{name}_seconds": {"median": median, "p95": p95} for name, (median, p95) in times.items()},
            "seconds": round(self.seconds, 3),
            "passed": self.passed,
        }


def spread(times: Sequence[float]) -> tuple[float, float]:
    """Median and 95th percentile, to the millisecond; zeros for no times at all."""
    if len(times) < 2:
        return (round(times[0], 3),) * 2 if times else (0.0, 0.0)
    return round(statistics.median(times), 3), round(statistics.quantiles(times, n=20, method="inclusive")[-1], 3)


def steps_for(files: Sequence[Path], root: Path, bucket: str) -> list[list[Step]]:
    """For each file its steps: a first version, the file's own bytes over it, and a delete for every third file."""
    plans = []
    for number, path in enumerate(files):
        ref = ObjectRef(bucket, path.relative_to(root).as_posix())
        body = path.read_bytes()
        plan = [Step(ref, b"first version of " + ref.key.encode() + b"\n" + body), Step(ref, body)]
        plans.append([*plan, Step(ref, None)] if number % 3 == 2 else plan)
    return plans


class Run:
    """One run of the demo on a started sandbox with a worker."""

    def __init__(self, sandbox: Sandbox, toolkit: S3Tasks, naive: Store, progress: Progress) -> None:
        self._sandbox, self._toolkit, self._naive, self._progress = sandbox, toolkit, naive, progress
        self.report = Report()
        self._done = 0

    def carry_out(self, plans: list[list[Step]]) -> Report:
        """Works through all plans at once and returns what was counted."""
        started = time.monotonic()
        total = sum(len(plan) for plan in plans)
        with _counted_retries(self._toolkit) as retries:
            running = [self._work_through(plan) for plan in plans]
            told = -1
            while running:
                running = [work for work in running if next(work, "over") != "over"]
                if self._done != told:
                    told = self._done
                    self._progress(told, total)
                time.sleep(_POLL_SECONDS)  # noqa: TID251 - polls results for a person to watch, waits for no object
            self.report.retries = retries()
        self.report.files = len(plans)
        self.report.seconds = time.monotonic() - started
        return self.report

    def _work_through(self, plan: list[Step]) -> Iterator[None]:
        for step in plan:
            yield from self._take(step)
            self._done += 1

    def _take(self, step: Step) -> Iterator[None]:
        s3, report = self._toolkit, self.report
        first = s3.delete.s(step.ref.uri) if step.body is None else s3.write.s(step.body, step.ref.uri)
        second = s3.read.si(step.ref.uri) if step.body is None else s3.read.s()
        read = (first | second).apply_async()
        deadline = time.monotonic() + _STEP_DEADLINE_SECONDS
        yield from _until_ready(read.parent, deadline)
        if read.parent.ready():
            self._read_naively(step)
        yield from _until_ready(read, deadline)
        report.writes += step.body is not None
        report.deletes += step.body is None
        report.bytes_written += len(step.body or b"")
        report.reads += 1
        self._check(step, read)

    def _read_naively(self, step: Step) -> None:
        answer = self._naive.get(step.ref, Endpoint.READ)
        found = answer.read() if answer.has_body else None
        self.report.naive_stale += found != step.body
        self.report.naive_missing += found is None and step.body is not None

    def _check(self, step: Step, read: Any) -> None:
        """Holds what the read task came back with against what was last written."""
        outcome = read.result if read.ready() else f"not done after {_STEP_DEADLINE_SECONDS:.0f} s"
        if isinstance(outcome, bytes):
            self.report.stale += outcome != step.body
        elif not (step.body is None and isinstance(outcome, ObjectDeleted)):
            self.report.failures.append(f"{step.ref.uri}: {outcome}")
        if step.body is not None and isinstance(outcome, bytes):
            self._time(step, read)

    def _time(self, step: Step, read: Any) -> None:
        written, done = read.parent.date_done.timestamp(), read.date_done.timestamp()
        self.report.waits.append(done - written)
        etag = read.parent.result["etag"]
        for change in self._sandbox.changes():
            if change.key == step.ref.key and change.etag == etag and change.applied_at is not None:
                self.report.lags.append(change.applied_at - change.made_at)
                self.report.overshoots.append(max(done - change.applied_at, 0.0))


def _until_ready(result: Any, deadline: float) -> Iterator[None]:
    while not result.ready() and time.monotonic() < deadline:
        yield


class _counted_retries:  # noqa: N801 - used as a context manager
    """Counts the retries that the workers report as Celery events meanwhile."""

    def __init__(self, toolkit: S3Tasks) -> None:
        self._app = toolkit.app
        self._count = 0
        self._over = threading.Event()
        self._listener = threading.Thread(target=self._listen, daemon=True)

    def __enter__(self) -> Callable[[], int]:
        self._listener.start()
        return lambda: self._count

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._listener.join()

    def _listen(self) -> None:
        with self._app.connection_for_read() as connection:
            receiver = self._app.events.Receiver(connection, handlers={"task-retried": self._add})
            while not self._over.is_set():
                with contextlib.suppress(TimeoutError):
                    receiver.capture(limit=None, timeout=0.2, wakeup=False)

    def _add(self, _event: dict[str, Any]) -> None:
        self._count += 1


def files_in(directory: Path, most_files: int, most_bytes: int) -> tuple[list[Path], int]:
    """The first `most_files` readable files below a directory, by name, and how many were left out (too many, or too large)."""
    if not directory.is_dir():
        raise NotADirectoryError(f"{directory} is not a directory: name one whose files can be read")
    found = sorted(path for path in directory.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    fitting = [path for path in found if path.stat().st_size <= most_bytes]
    chosen = fitting[:most_files]
    return chosen, len(found) - len(chosen)
