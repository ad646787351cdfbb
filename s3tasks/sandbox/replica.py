"""The two ends of the way to the replica: the connection that carries changes, and what the replica does with them.

It never decides what changed, nor when the replica hears of it.
"""

from __future__ import annotations

import http.client
import logging
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

from s3tasks.sandbox.requests import split_path
from s3tasks.sandbox.wsgi import SIGNED, Answer, Environ

if TYPE_CHECKING:
    from s3tasks.sandbox.moto_store import MotoStore

ETAG_HEADER = "x-sandbox-etag"
VERSION_HEADER = "x-sandbox-version-id"
_RETRY_SECONDS = 0.2
_log = logging.getLogger(__name__)


class ReplicaConnection:
    """One kept connection to the replica, for one thread."""

    def __init__(self, port: int, timeout_seconds: float = 10.0) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout_seconds)

    def send(self, method: str, path: str, headers: Mapping[str, str], body: bytes = b"") -> None:
        """Carry one request out, repeating it while the replica cannot be reached; what it refuses is logged."""
        while True:
            try:
                status, said = self._request(method, path, headers, body)
                break
            except (OSError, http.client.HTTPException) as error:
                _log.warning("the replica cannot be reached: %r", error)
                self._connection.close()
                time.sleep(_RETRY_SECONDS)
        if status >= 300:
            _log.error("the replica refused %s %s: %d %s", method, path, status, said[:500])

    def _request(self, method: str, path: str, headers: Mapping[str, str], body: bytes) -> tuple[int, bytes]:
        self._connection.request(method, path, body, {**headers, "Authorization": SIGNED})
        response = self._connection.getresponse()
        return response.status, response.read()


class Replica:
    """A store that gives replicated objects the ETag and version id they have on the primary."""

    def __init__(self, store: MotoStore) -> None:
        self._store = store

    def __call__(self, environ: Environ) -> Answer:
        """Answer one request; nobody sees a replicated object before it has its identity."""
        etag = environ.pop("HTTP_X_SANDBOX_ETAG", None)
        version_id = environ.pop("HTTP_X_SANDBOX_VERSION_ID", None)
        with self._store.lock:
            answer = self._store(environ)
            if answer.succeeded and (etag or version_id):
                self._store.identify(*split_path(environ), etag, version_id)
        return answer
