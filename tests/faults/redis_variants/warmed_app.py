"""The tests' Celery app in a worker whose main process has used its S3 client before it makes its pool."""

from __future__ import annotations

import os
from typing import Any

from celery.signals import worker_init

from tests.integration.app import app, s3

__all__ = ["app"]

app.conf.worker_pool_start_method = os.environ.get("TEST_START_METHOD", "fork")
# kombu's own pool ends at ten connections: with more green threads than that an acknowledgement fails and its message comes back.
app.conf.broker_transport_options = {**app.conf.broker_transport_options, "max_connections": 1000}
app.conf.redis_max_connections = 1000


@worker_init.connect(weak=False)
def use_the_client(**_: Any) -> None:
    """Leaves kept connections to Redis and S3 in this process, for its children to inherit."""
    uri = os.environ["TEST_WARM_URI"]
    written = s3.client.write(b"warm", uri)
    if s3.client.read(written) != b"warm":
        raise RuntimeError("the client does not work before the fork either")
