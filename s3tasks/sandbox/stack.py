"""The whole sandbox: Redis, S3 and its lagging replica started together, and workers that use them.

It never leaves anything running or lying about: all of it ends with the process that started it.
"""

from __future__ import annotations

import atexit
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from s3tasks.sandbox.processes import Guardian, environment_with_package, wait_until
from s3tasks.sandbox.redis_server import RedisServer
from s3tasks.sandbox.s3_process import S3Process, require_moto
from s3tasks.sandbox.worker import WorkerProcess, start_worker_process


@dataclass(frozen=True)
class Change:
    """One change of one object on the primary, in seconds since the epoch.

    `etag` is None for a delete, `applied_at` is None while the replica has not got it.
    """

    bucket: str
    key: str
    etag: str | None
    made_at: float
    applied_at: float | None


class Sandbox:
    """Redis, an S3 endpoint and a replica of it that lags, on loopback ports of this machine.

    `lag_seconds` (low, high) is how long a change takes to reach the replica, drawn evenly; `seed` makes the draws
    repeatable. `replica=False` leaves the replica out. `redis_options` are further arguments of the Redis server, whose
    data survive its restart with `redis_persistent`. A context manager; `start` and `close` do the same by hand, and
    `close` also runs at exit. Raises ValueError unless 0 <= low <= high.
    """

    def __init__(
        self,
        *,
        lag_seconds: tuple[float, float] = (0.1, 2.0),
        seed: int | None = None,
        replica: bool = True,
        redis_options: Sequence[str] = (),
        redis_persistent: bool = False,
    ) -> None:
        _check_lag(*lag_seconds)
        self._lag_seconds = lag_seconds
        self._seed = seed
        self._with_replica = replica
        self._guardian = Guardian()
        self.redis = RedisServer(redis_options, persistent=redis_persistent, guardian=self._guardian)
        self._directory: Path | None = None
        self._primary: S3Process | None = None
        self._replica: S3Process | None = None
        self._workers: list[WorkerProcess] = []

    @property
    def redis_url(self) -> str:
        """The Redis, database 0."""
        return self.redis.url

    @property
    def endpoint_url(self) -> str:
        """The S3 endpoint for writes (and for reads that must not be late)."""
        return self._started().endpoint_url

    @property
    def read_endpoint_url(self) -> str | None:
        """The replica's S3 endpoint; None without a replica."""
        return self._replica.endpoint_url if self._replica else None

    def start(self) -> Sandbox:
        """Start everything and wait until it answers; on a started sandbox this does nothing.

        Raises `SandboxUnavailable` when something is not installed or does not start; then nothing is left running.
        """
        if self._primary is None:
            try:
                self._start()
            except BaseException:
                self.close()
                raise
        return self

    def close(self) -> None:
        """End the workers, then the servers, and remove their files. Calling it again, or in a fork, does nothing."""
        if not self._guardian.owned:
            return
        atexit.unregister(self.close)
        workers, self._workers = self._workers, []
        stores = [store for store in (self._primary, self._replica) if store is not None]
        self._primary = self._replica = None
        directory, self._directory = self._directory, None
        try:
            for worker in workers:
                worker.stop()
            for store in stores:
                store.stop()
            self.redis.close()
        finally:
            # Whatever an interrupted close has left is ended by the guardian.
            self._guardian.close()
            if directory is not None:
                shutil.rmtree(directory, ignore_errors=True)

    def __enter__(self) -> Sandbox:  # noqa: PYI034 - typing.Self is younger than Python 3.10
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()

    def create_bucket(self, name: str, versioned: bool = False) -> None:
        """Create a bucket on the primary and at once on the replica; raises RuntimeError when S3 refuses it."""
        self._started().create_bucket(name, versioned)

    def pause_replication(self) -> None:
        """Let no change reach the replica until `resume_replication` or `drain`."""
        self._started().control("PUT", "replication", {"paused": True})

    def resume_replication(self) -> None:
        """Let changes reach the replica again; those whose time has come meanwhile go at once."""
        self._started().control("PUT", "replication", {"paused": False})

    def set_lag(self, low_seconds: float, high_seconds: float) -> None:
        """How long changes made from now on take to reach the replica; raises ValueError unless 0 <= low <= high."""
        _check_lag(low_seconds, high_seconds)
        self._started().control("PUT", "replication", {"lag_seconds": [low_seconds, high_seconds]})

    def drain(self, timeout_seconds: float = 30.0) -> None:
        """Let everything that is pending reach the replica now, a paused one too, and wait until it has.

        Raises TimeoutError when something is still pending after the time.
        """
        self._started().control("PUT", "replication", {"flush": True})
        if not wait_until(lambda: self.pending_changes() == 0, timeout_seconds):
            raise TimeoutError(f"{self.pending_changes()} changes have not reached the replica in {timeout_seconds} s")

    def pending_changes(self) -> int:
        """How many changes have not reached the replica yet."""
        return int(self._started().control("GET", "replication")["pending"])

    def changes(self) -> list[Change]:
        """The object changes made so far, oldest first (the last 100,000 of them); empty without a replica."""
        return [Change(**change) for change in self._started().control("GET", "changes")]

    def environment(self) -> dict[str, str]:
        """The environment variables with which s3tasks, Celery and boto3 use this sandbox."""
        replica = {"S3TASKS_READ_ENDPOINT_URL": self.read_endpoint_url} if self.read_endpoint_url else {}
        return {
            "S3TASKS_LEDGER_URL": self.redis_url,
            "S3TASKS_ENDPOINT_URL": self.endpoint_url,
            **replica,
            "CELERY_BROKER_URL": self.redis_url,
            "CELERY_RESULT_BACKEND": self.redis_url,
            "AWS_ACCESS_KEY_ID": "sandbox",
            "AWS_SECRET_ACCESS_KEY": "sandbox",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def start_worker(
        self,
        app: str = "worker_config",
        *,
        directory: str | os.PathLike[str],
        concurrency: int = 2,
        pool: str = "prefork",
        environment: Mapping[str, str] | None = None,
        options: Sequence[str] = (),
        log_path: str | os.PathLike[str] | None = None,
        ready_timeout_seconds: float = 30.0,
    ) -> WorkerProcess:
        """Start `celery -A app worker` in `directory` and wait until it is ready.

        It gets the sandbox's environment and then the given one; `options` are further arguments of `celery worker`.
        The log goes to `log_path`, else to a file that goes with the sandbox. Raises RuntimeError with the end of the
        log when the worker is not ready within the time.
        """
        self._started()
        if self._directory is None:
            raise RuntimeError("this sandbox has not been started")
        arguments = ["-A", app, "worker", "--pool", pool, "--concurrency", str(concurrency), "--loglevel", "INFO"]
        worker = start_worker_process(
            self._guardian,
            [*arguments, *options],
            directory=Path(directory),
            environment=environment_with_package(self.environment(), environment or {}),
            log_path=Path(log_path or self._directory / f"worker-{len(self._workers) + 1}.log").absolute(),
            ready_timeout_seconds=ready_timeout_seconds,
        )
        self._workers.append(worker)
        return worker

    def _start(self) -> None:
        if not self._guardian.owned:
            raise RuntimeError("this sandbox belongs to the process that forked this one")
        require_moto()
        atexit.register(self.close)
        directory = self._directory = self._guardian.private_directory()
        lag = ["--lag-seconds", *map(str, self._lag_seconds)]
        seed = [] if self._seed is None else ["--seed", str(self._seed)]
        # All at once: most of the time goes into importing moto.
        self._primary = S3Process(self._guardian, directory, "primary", [*lag, *seed])
        if self._with_replica:
            self._replica = S3Process(self._guardian, directory, "replica")
        self.redis.start()
        self._primary.wait_until_ready()
        if self._replica is not None:
            self._replica.wait_until_ready()
            self._primary.control("PUT", "replication", {"replica_port": self._replica.port})

    def _started(self) -> S3Process:
        if self._primary is None:
            raise RuntimeError("this sandbox has not been started")
        return self._primary


def _check_lag(low_seconds: float, high_seconds: float) -> None:
    if not 0 <= low_seconds <= high_seconds:
        raise ValueError(f"lag_seconds must be 0 <= low <= high, not {low_seconds!r}, {high_seconds!r}")
