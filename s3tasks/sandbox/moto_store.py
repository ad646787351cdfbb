"""The embedded S3: moto as one function from request to answer, and what S3 lets nobody set: ETags and version ids.

It never listens on a port and never replicates. It is the only module that knows moto's insides, and runs only in the
store's own process.
"""

from __future__ import annotations

import threading

from moto.core.models import DEFAULT_ACCOUNT_ID
from moto.moto_server.werkzeug_app import create_backend_app
from moto.s3.models import FakeDeleteMarker, FakeKey, s3_backends

from s3tasks.sandbox.wsgi import Answer, Environ, answering


class MotoStore:
    """moto's S3. Hold `lock` around a request and what belongs to it: the store does one thing at a time."""

    def __init__(self) -> None:
        self._answer = answering(create_backend_app("s3"))
        self.lock = threading.RLock()

    def __call__(self, environ: Environ) -> Answer:
        """Answer one request, with no other one in between."""
        # moto reads the key from the raw path, but flask finds no route for one that holds a line break.
        routed = {**environ, "PATH_INFO": environ["RAW_URI"].split("?", 1)[0]}
        with self.lock:
            return self._answer(routed)

    def latest(self, bucket: str, key: str) -> FakeKey | FakeDeleteMarker | None:
        """What a key holds now, as moto's own object; a delete marker is one too."""
        versions = s3_backends[DEFAULT_ACCOUNT_ID]["aws"].get_bucket(bucket).keys.getlist(key, [])
        return versions[-1] if versions else None

    def delete_marker(self, bucket: str, key: str) -> str | None:
        """The version id of the delete marker that hides a key; None when there is none."""
        latest = self.latest(bucket, key)
        return latest.version_id if isinstance(latest, FakeDeleteMarker) else None

    def identify(self, bucket: str, key: str, etag: str | None, version_id: str | None) -> None:
        """Give what a key holds now the ETag (without quotes) and the version id that it has elsewhere."""
        latest = self.latest(bucket, key)
        if latest is None:
            return
        if etag is not None and isinstance(latest, FakeKey):
            latest._etag = etag  # noqa: SLF001 - moto has no way to say it
        if version_id is not None:
            latest._version_id = version_id  # noqa: SLF001 - nor this
