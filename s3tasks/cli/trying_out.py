"""`s3tasks demo` and `s3tasks dev`: the whole of it on this machine, to look at and to try things on.

It never touches a Redis or an S3 that it has not started itself.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from s3tasks.cli.terminal import DONE, FAILED, Surroundings, interrupt, put, put_json, say
from s3tasks.refs import ObjectRef

if TYPE_CHECKING:
    from s3tasks.demo import Report
    from s3tasks.sandbox import Sandbox

_BAR_WIDTH = 40
_LOOK_SECONDS = 0.5
_HISTOGRAM_ROWS = 8
_DEMO_BODY_BYTES = 4 * 1024 * 1024


def add_to(commands: Any) -> None:
    """Adds the commands."""
    demo = commands.add_parser("demo", help="run the main job on an embedded Redis and S3, next to the naive way")
    demo.set_defaults(run=_demo)
    demo.add_argument("--path", type=Path, help="directory whose files are written (default: the s3tasks sources)")
    demo.add_argument("--files", type=int, default=60, help="how many of them at most (default: 60)")
    demo.add_argument("--json", action="store_true", help="print the figures as JSON")
    dev = commands.add_parser("dev", help="keep an embedded Redis, S3, lagging replica and worker up until Ctrl-C")
    dev.set_defaults(run=_dev)
    dev.add_argument("--bucket", default="dev", help="bucket to create (default: dev)")
    dev.add_argument("--no-worker", action="store_true", help="start no worker: you run your own on the same queue")
    for command in (demo, dev):
        command.add_argument(
            "--lag", type=float, nargs=2, default=(0.1, 2.0), metavar=("LOW", "HIGH"),
            help="how many seconds the replica lags behind, drawn evenly (default: 0.1 2.0)",
        )
        command.add_argument("--seed", type=int, help="makes the lags drawn repeatable")
        command.add_argument("--concurrency", type=int, default=2, help="worker processes (default: 2)")


def _demo(options: argparse.Namespace, _: Surroundings) -> int:
    from s3tasks import demo
    from s3tasks.settings import Settings
    from s3tasks.store import Store
    from s3tasks.tasks import S3Tasks, enqueuing_app

    root = options.path or Path(__file__).parents[1]
    files, left_out = demo.files_in(root, options.files, _DEMO_BODY_BYTES)
    if not files:
        raise ValueError(f"{root} has no files to work on: give another --path, or a larger --files")
    say(f"{len(files)} files of {root}" + (f" ({left_out} more left out: see --files)" if left_out else ""))
    with _stack(options, {"S3TASKS_MAX_INLINE_BYTES": str(2 * _DEMO_BODY_BYTES)}) as sandbox:
        sandbox.create_bucket("demo")
        settings = Settings.from_env()
        toolkit = S3Tasks(enqueuing_app(sandbox.redis_url, sandbox.redis_url), settings)
        naive = Store(settings)
        try:
            run = demo.Run(sandbox, toolkit, naive, _progress)
            report = run.carry_out(demo.steps_for(files, root, "demo"))
        finally:
            naive.close()
            toolkit.client.close()
            toolkit.app.close()
    if options.json:
        put_json(report.figures())
    else:
        put(_table(report))
    return DONE if report.passed else FAILED


def _dev(options: argparse.Namespace, _: Surroundings) -> int:
    ObjectRef(options.bucket, "any")
    with _stack(options, {}, with_worker=not options.no_worker) as sandbox:
        sandbox.create_bucket(options.bucket)
        print("# In another shell, with s3tasks installed:")
        for name, value in sandbox.environment().items():
            print(f"export {name}={value}")
        print(
            "# Then, for one:\n"
            "#   from s3tasks import S3Tasks\n"
            "#   from s3tasks.tasks import enqueuing_app\n"
            f"#   s3 = S3Tasks(enqueuing_app({sandbox.redis_url!r}, {sandbox.redis_url!r}))\n"
            f"#   (s3.write.s('hello', 's3://{options.bucket}/greeting') | s3.read.s()).delay().get()\n"
            "# Its worker knows the s3 tasks only and takes all tasks of the queue: for tasks of your own, use --no-worker.\n"
            "# Ctrl-C ends all of it.",
            flush=True,
        )
        with contextlib.suppress(KeyboardInterrupt):
            while sandbox.redis.running:
                threading.Event().wait(_LOOK_SECONDS)
            raise RuntimeError("the Redis has ended, and with it the stack: start it again")
    return DONE


class _stack:  # noqa: N801 - used as a context manager
    """The sandbox with the deployable worker, and this process's environment pointing at it."""

    def __init__(self, options: argparse.Namespace, environment: dict[str, str], *, with_worker: bool = True) -> None:
        from s3tasks.sandbox import Sandbox

        low, high = options.lag
        self._sandbox = Sandbox(lag_seconds=(low, high), seed=options.seed)
        self._environment, self._concurrency = environment, options.concurrency
        self._with_worker = with_worker

    def __enter__(self) -> Sandbox:
        # Ends what was started also when this process is told to stop; Ctrl-C does so by itself.
        signal.signal(signal.SIGTERM, interrupt)
        say("starting Redis, S3, a lagging replica" + (" and a worker …" if self._with_worker else " …"))
        sandbox = self._sandbox.start()
        try:
            os.environ.update({**sandbox.environment(), **self._environment})
            if self._with_worker:
                sandbox.start_worker(
                    directory=_worker_directory(), concurrency=self._concurrency,
                    environment=self._environment, options=["--task-events"],
                )
        except BaseException:
            sandbox.close()
            raise
        return sandbox

    def __exit__(self, *_: object) -> None:
        self._sandbox.close()


def _worker_directory() -> Path:
    """Where `celery -A worker_config` runs: the folder of the repository, or the copy that an installed package carries."""
    package = Path(__file__).resolve().parents[1]
    for directory in (package / "_deploy", package.parent):
        if (directory / "worker_config").is_dir():
            return directory
    raise RuntimeError(f"there is no worker_config beside {package}: run this from a clone, or reinstall s3tasks")


def _progress(done: int, total: int) -> None:
    filled = _BAR_WIDTH * done // total
    if sys.stderr.isatty():
        end = "\n" if done == total else ""
        print(f"\r{'█' * filled}{'░' * (_BAR_WIDTH - filled)} {done}/{total} steps", end=end, file=sys.stderr, flush=True)
    elif done == total:
        say(f"{done}/{total} steps")


def _table(report: Report) -> str:
    from s3tasks.demo import spread

    def times(values: list[float]) -> str:
        median, p95 = spread(values)
        return f"median {median:.2f} s, p95 {p95:.2f} s"

    rows = [
        ("operations", f"{report.writes} writes, {report.deletes} deletes, {report.reads} reads of {report.files} files"),
        ("stale reads, naive", f"{report.naive_stale} of {report.reads} ({report.naive_missing} of them a 404)"),
        ("stale reads, s3tasks", f"{report.stale} of {report.reads}"),
        ("failures", str(len(report.failures))),
        ("retries by Celery", str(report.retries)),
        ("lag of the replica", times(report.lags)),
        ("write to fresh read", times(report.waits)),
        ("of that after the lag", times(report.overshoots)),
        ("took", f"{report.seconds:.1f} s"),
    ]
    lines = [f"{name:<22} {value}" for name, value in rows]
    lines += ["", "write to fresh read, seconds", *_histogram(report.waits)]
    lines += [f"failed: {failure}" for failure in report.failures[:10]]
    verdict = "passed: every byte read was the byte last written" if report.passed else "FAILED"
    return "\n".join([*lines, "", verdict])


def _histogram(values: list[float]) -> list[str]:
    if not values:
        return ["(none)"]
    width = max(values) / _HISTOGRAM_ROWS or 1.0
    counts = [0] * _HISTOGRAM_ROWS
    for value in values:
        counts[min(int(value / width), _HISTOGRAM_ROWS - 1)] += 1
    scale = _BAR_WIDTH / max(counts)
    return [
        f"{row * width:5.2f} to {(row + 1) * width:5.2f} {'█' * round(count * scale)} {count}"
        for row, count in enumerate(counts)
    ]
