"""botocore's clients for the one or two endpoints, and what every call through them carries.

It never interprets an answer. Credentials are found by boto3 itself.
"""

from __future__ import annotations

import base64
from typing import Any

import boto3
import botocore.session
from botocore.config import Config

from s3tasks.refs import ObjectRef
from s3tasks.settings import Settings
from s3tasks.store.answers import Endpoint
from s3tasks.store.door import door
from s3tasks.store.model import known_to
from s3tasks.store.redaction import hide_key
from s3tasks.store.thin import ThinClient
from s3tasks.store.wire import Wire


class Clients:
    """Three clients of one process (they must not be forked), shared by its threads.

    `writer` makes one attempt per call, for the ledger counts attempts; `mover` speaks to the same endpoint and tries again by
    itself: for calls that change no object under its name. `reader` speaks to the endpoint that is read from.
    """

    def __init__(self, settings: Settings, *, required_checksums_only: bool = False) -> None:
        self._settings = settings
        # Unless told otherwise, botocore finds in the environment which checksums it is to send and to look at.
        names = ("request_checksum_calculation", "response_checksum_validation") if required_checksums_only else ()
        self._checksums = dict.fromkeys(names, "when_required")
        self._carried = _carried(settings)
        read_url = settings.read_endpoint_url or settings.endpoint_url
        with door("connect", None):
            core = botocore.session.get_session()
            session = boto3.session.Session(region_name=settings.region_name, botocore_session=core)
            self.writer = self._client(session, settings.endpoint_url, attempts=1)
            self.mover = self._client(session, settings.endpoint_url, attempts=settings.store_attempts)
            self.reader = self._client(session, read_url, attempts=settings.store_attempts)
            self._thin_writer, self._thin_reader = _thin(self.writer, core), _thin(self.reader, core)
        if settings.sse_customer_key:
            # By now the libraries have made their loggers.
            hide_key(base64.b64decode(settings.sse_customer_key))

    def ask(self, endpoint: Endpoint, operation: str, ref: ObjectRef, **more: Any) -> dict[str, Any]:
        """What S3 says to a call about the object, one attempt of it where the endpoint is the one written to.

        `more` are botocore's parameters besides those that every call has. Raises what botocore raises.
        """
        client = self._thin_writer if endpoint is Endpoint.WRITE else self._thin_reader
        return client.call(operation, self.parameters(operation, ref, **more))

    def _client(self, session: Any, endpoint_url: str | None, attempts: int) -> Any:
        settings = self._settings
        config = Config(
            connect_timeout=settings.connect_timeout_seconds,
            read_timeout=settings.read_timeout_seconds,
            max_pool_connections=max(settings.pool_connections, settings.concurrent_requests),
            retries={"total_max_attempts": attempts, "mode": "standard"},
            s3={"addressing_style": settings.addressing_style},
            user_agent_extra="s3tasks",
            **self._checksums,
        )
        return session.client("s3", endpoint_url=endpoint_url, config=config)

    def parameters(self, operation: str, ref: ObjectRef, **more: Any) -> dict[str, Any]:
        """Parameters of a call about the object: its name, what the settings have every call carry, and `more`."""
        return {"Bucket": ref.bucket, "Key": ref.key, **self.carried(operation), **more}

    def carried(self, operation: str) -> dict[str, Any]:
        """What the settings have every call of the operation carry: owner, payer, and the key that objects are encrypted with."""
        return known_to(operation, self._carried) if self._carried else {}

    def close(self) -> None:
        """Closes the connections."""
        for client in (self._thin_writer, self.mover, self._thin_reader):
            client.close()


def _thin(client: Any, core: Any) -> ThinClient:
    # What botocore reads from the environment and the configuration for itself, and does not tell its clients.
    ca_bundle, tcp_keepalive = core.get_config_variable("ca_bundle"), core.get_config_variable("tcp_keepalive")
    wire = Wire(client, ca_bundle, tcp_keepalive=bool(tcp_keepalive))
    return ThinClient(client, wire if wire.leads_there else None)


def _carried(settings: Settings) -> dict[str, Any]:
    carried: dict[str, Any] = {}
    if settings.expected_bucket_owner:
        carried["ExpectedBucketOwner"] = carried["ExpectedSourceBucketOwner"] = settings.expected_bucket_owner
    if settings.requester_pays:
        carried["RequestPayer"] = "requester"
    if settings.sse_customer_key:
        for prefix in ("", "CopySource"):
            carried[f"{prefix}SSECustomerAlgorithm"] = "AES256"
            carried[f"{prefix}SSECustomerKey"] = base64.b64decode(settings.sse_customer_key)
    return carried
