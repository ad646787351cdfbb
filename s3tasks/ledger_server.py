"""The Redis that keeps the ledger, as an operator sees it: what it says of itself, its clock, and the names of the records.

It never changes a record, and never judges what it hears. Everything is asked of each node where there are several.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from s3tasks.errors import InvalidRef
from s3tasks.ledger_connection import connect, door
from s3tasks.refs import ObjectRef, record_pattern, ref_of_record
from s3tasks.settings import CLUSTER_SCHEMES, Settings

_KEYS_A_ROUND_TRIP = 1000


class LedgerServer:
    """One Redis, or all nodes of a cluster; `settings.ledger_url` must be set. Raises LedgerUnavailable as the ledger does."""

    def __init__(self, settings: Settings) -> None:
        if settings.ledger_url is None:
            raise ValueError("no ledger_url: set S3TASKS_LEDGER_URL (or use a Celery app whose broker is Redis)")
        self._prefix = settings.ledger_prefix
        # redis-py asks one node of a cluster unless told otherwise.
        self._of_all_nodes = {"target_nodes": "all"} if settings.ledger_url.startswith(CLUSTER_SCHEMES) else {}
        with door("connect"):
            self._redis = connect(settings.ledger_url, settings.ledger_timeout_seconds)

    def ping(self) -> None:
        """Returns once Redis has answered."""
        with door("ping", self._redis):
            self._redis.ping(**self._of_all_nodes)

    def info(self) -> list[Mapping[str, Any]]:
        """What each node says of itself (INFO)."""
        with door("info", self._redis):
            said = self._redis.info(**self._of_all_nodes)
        return [said] if "redis_version" in said else list(said.values())

    def now_seconds(self) -> float:
        """Redis's own clock, which all tickets of the ledger are taken from."""
        with door("time", self._redis):
            said = self._redis.time()
        clocks = list(said.values()) if isinstance(said, dict) else [said]
        return float(max(seconds + microseconds / 1e6 for seconds, microseconds in clocks))

    def objects(self, bucket: str | None = None, key_prefix: str = "") -> Iterator[ObjectRef]:
        """The objects that have a record, of one bucket and beginning of key or of all; in no order, and each at least once.

        Redis looks through all its keys for them, a thousand at a time, and serves others meanwhile.
        """
        names = self._redis.scan_iter(match=record_pattern(self._prefix, bucket, key_prefix), count=_KEYS_A_ROUND_TRIP)
        while True:
            with door("scan", self._redis):
                name = next(names, None)
            if name is None:
                return
            try:
                yield ref_of_record(self._prefix, name)
            except InvalidRef:
                continue  # somebody has put a key of that name there by hand

    def close(self) -> None:
        """Closes the connections."""
        self._redis.close()
