"""The primary: what changes there arrives at the replica later, in the order of each key, as with a real one.

It never changes what the primary answers, and never replicates tags, access rules, locks or browser form uploads.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections import deque
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from s3tasks.sandbox.lag import LagQueue
from s3tasks.sandbox.replica import ETAG_HEADER, VERSION_HEADER, ReplicaConnection
from s3tasks.sandbox.requests import Target, changed_objects, changes_bucket, deletes_bucket, split_path
from s3tasks.sandbox.wsgi import Answer, Environ, body_of, internal_request

if TYPE_CHECKING:
    from s3tasks.sandbox.moto_store import MotoStore

CONTROL_PATH = "/_sandbox/"
_REMEMBERED_CHANGES = 100_000
_BUCKET_DRAIN_SECONDS = 10.0
_COPIED_HEADERS = frozenset(
    {
        "cache-control",
        "content-disposition",
        "content-encoding",
        "content-language",
        "content-type",
        "expires",
        "x-amz-storage-class",
        "x-amz-website-redirect-location",
    }
)
_FORWARDED = ("HTTP_X_AMZ_BUCKET", "HTTP_X_AMZ_ACL", "HTTP_X_AMZ_OBJECT_OWNERSHIP", "HTTP_CONTENT_MD5", "CONTENT_TYPE")
_log = logging.getLogger(__name__)


@dataclass
class ObservedChange:
    """One change of one object; times in seconds since the epoch, `etag` None for a delete."""

    bucket: str
    key: str
    etag: str | None
    made_at: float
    applied_at: float | None = None


class Primary:
    """A store whose changes reach a replica late; without one (`attach` was never called) it is just the store."""

    def __init__(self, store: MotoStore, queue: LagQueue) -> None:
        self._store = store
        self._queue = queue
        self._changes: deque[ObservedChange] = deque(maxlen=_REMEMBERED_CHANGES)
        self._forwarding: ReplicaConnection | None = None
        self._applying: ReplicaConnection | None = None

    def attach(self, replica_port: int) -> None:
        """Send changes made from now on to the replica on that loopback port."""
        self._applying = ReplicaConnection(replica_port)
        self._forwarding = ReplicaConnection(replica_port)
        threading.Thread(target=self._apply_forever, name="replication", daemon=True).start()

    def __call__(self, environ: Environ) -> Answer:
        """Answer one request, and note what it changed before the next one is looked at."""
        if environ["RAW_URI"].startswith(CONTROL_PATH):
            return self._control(environ)
        if self._forwarding is None or environ["REQUEST_METHOD"] in ("GET", "HEAD"):
            return self._store(environ)
        with self._store.lock:
            answer = self._store(environ)
            if changes_bucket(environ):
                self._forward(self._forwarding, environ, answer)
            for target in changed_objects(environ, answer):
                self._note(environ, target)
        return answer

    def _forward(self, replica: ReplicaConnection, environ: Environ, answer: Answer) -> None:
        if not answer.succeeded:
            return
        if deletes_bucket(environ):
            # The replica has to be empty too before it can follow.
            bucket = split_path(environ)[0]
            self._queue.hurry(bucket)
            self._queue.wait_until_none(bucket, _BUCKET_DRAIN_SECONDS)
        headers = {
            name.removeprefix("HTTP_").replace("_", "-"): value
            for name, value in environ.items()
            if name.startswith(_FORWARDED) and value
        }
        replica.send(environ["REQUEST_METHOD"], environ["RAW_URI"], headers, body_of(environ))

    def _note(self, environ: Environ, target: Target) -> None:
        if target.removed_version_id is not None:
            path = f"{target.path}?versionId={target.removed_version_id}"
            self._schedule(target, None, "DELETE", path, {}, b"")
            return
        snapshot = self._store(internal_request(environ, "GET", target.path))
        if snapshot.code == 404:
            version_id = self._store.delete_marker(target.bucket, target.key)
            self._schedule(target, None, "DELETE", target.path, {VERSION_HEADER: version_id} if version_id else {}, b"")
        elif snapshot.code == 200:
            headers = _replicated_headers(snapshot)
            self._schedule(target, headers[ETAG_HEADER], "PUT", target.path, headers, snapshot.body)
        else:
            _log.error("cannot replicate %s: reading it back gave %s", target.path, snapshot.status)

    def _schedule(self, target: Target, etag: str | None, method: str, path: str, headers: dict[str, str], body: bytes) -> None:
        change = ObservedChange(target.bucket, target.key, etag, time.time())
        self._changes.append(change)

        def carry_out() -> None:
            if self._applying is not None:
                self._applying.send(method, path, headers, body)
                change.applied_at = time.time()

        self._queue.put(target.bucket, target.key, carry_out)

    def _apply_forever(self) -> None:
        while True:
            self._queue.take().carry_out()

    def _control(self, environ: Environ) -> Answer:
        route = environ["RAW_URI"].removeprefix(CONTROL_PATH).split("?", 1)[0]
        match environ["REQUEST_METHOD"], route:
            case "GET", "replication":
                return _json_answer("200 OK", self._state())
            case "PUT", "replication":
                return self._configure(body_of(environ))
            case "GET", "changes":
                return _json_answer("200 OK", [asdict(change) for change in self._changes.copy()])
        return _json_answer("404 NOT FOUND", {"error": "no such control"})

    def _state(self) -> object:
        queue = self._queue
        return {"paused": queue.paused, "pending": queue.pending(), "lag_seconds": list(queue.lag_seconds)}

    def _configure(self, body: bytes) -> Answer:
        try:
            self._change_settings(json.loads(body))
        except (ValueError, TypeError) as error:
            return _json_answer("400 BAD REQUEST", {"error": str(error)})
        return _json_answer("200 OK", self._state())

    def _change_settings(self, wanted: dict[str, Any]) -> None:
        if "lag_seconds" in wanted:
            self._queue.lag_seconds = checked_lag(*wanted["lag_seconds"])
        if "paused" in wanted:
            self._queue.pause(bool(wanted["paused"]))
        if "replica_port" in wanted:
            self.attach(int(wanted["replica_port"]))
        if wanted.get("flush"):
            self._queue.hurry()


def checked_lag(low_seconds: float, high_seconds: float) -> tuple[float, float]:
    """The lag as a pair of seconds; raises ValueError unless 0 <= low <= high."""
    if not 0 <= low_seconds <= high_seconds:
        raise ValueError(f"lag_seconds must be 0 <= low <= high, not {low_seconds!r}, {high_seconds!r}")
    return float(low_seconds), float(high_seconds)


def _replicated_headers(snapshot: Answer) -> dict[str, str]:
    headers = {
        name.lower(): value
        for name, value in snapshot.headers
        if name.lower() in _COPIED_HEADERS or name.lower().startswith("x-amz-meta-")
    }
    headers[ETAG_HEADER] = (snapshot.header("etag") or "").strip('"')
    version_id = snapshot.header("x-amz-version-id")
    return {**headers, VERSION_HEADER: version_id} if version_id else headers


def _json_answer(status: str, content: object) -> Answer:
    return Answer(status, [("Content-Type", "application/json")], json.dumps(content).encode())
