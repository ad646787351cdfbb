"""The Celery app of the examples: two lines for the s3 tasks, and one task of one's own, which compresses an upload.

It never meets a web framework: the worker runs it as `celery -A tests.examples.shop worker`.
"""

from __future__ import annotations

import gzip
import os
import tempfile
from typing import Any

from celery import Celery

from s3tasks import ObjectRef, S3Tasks

PIECE_BYTES = 1024 * 1024

app = Celery("shop", broker=os.environ["CELERY_BROKER_URL"], backend=os.environ["CELERY_RESULT_BACKEND"])
app.conf.task_track_started = True  # so that somebody who polls sees STARTED
s3 = S3Tasks(app)  # settings from app.conf.s3tasks_* and S3TASKS_* variables


@app.task(name="shop.compress", base=s3.Task, bind=True)
def compress(self: Any, uploaded: dict[str, Any]) -> dict[str, Any]:
    """Gzips the very bytes that were uploaded, and returns the ref of the result. What is late is retried by Celery."""
    upload = ObjectRef.parse(uploaded)
    tell = self.progress()  # the state PROGRESS, with bytes_done and bytes_total
    with self.s3.open(upload) as unpacked, tempfile.TemporaryFile() as packed:
        with gzip.GzipFile(fileobj=packed, mode="wb", mtime=0) as packer:
            while piece := unpacked.read(PIECE_BYTES):
                packer.write(piece)
                tell(unpacked.tell(), upload.size)
        packed.seek(0)
        written: ObjectRef = self.s3.write(packed, f"{upload.uri}.gz", content_type="application/gzip")
    return written.to_dict()
