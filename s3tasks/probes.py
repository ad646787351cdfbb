"""What the write endpoint really honours, found by trying it and kept in the ledger for all.

It never trusts a table of stores, nor an endpoint that has not said no to a condition which did not hold. AWS alone is believed
unasked: its conditions are documented (Amazon S3 User Guide, "Prevent object overwrites with conditional writes").
"""

from __future__ import annotations

import logging
import threading
import uuid
from urllib.parse import urlsplit

from s3tasks.errors import StoreError
from s3tasks.ledger import Ledger
from s3tasks.refs import ObjectRef
from s3tasks.settings import Settings
from s3tasks.store import Store
from s3tasks.trials import Honours, tried

logger = logging.getLogger(__name__)


class Probes:
    """What is known of the write endpoint, tried out when first needed and shared through the ledger; safe between threads."""

    def __init__(self, ledger: Ledger, store: Store, settings: Settings) -> None:
        self._ledger, self._store, self._settings = ledger, store, settings
        self._found: dict[tuple[str, Honours], bool] = {}
        self._lock = threading.Lock()

    def require(self, what: Honours, ref: ObjectRef) -> None:
        """Returns if the endpoint honours it for the object's bucket; StoreError, before anything is written, if not.

        Raises LedgerUnavailable or StoreUnavailable where it could not be found out.
        """
        if not self.honours(what, ref):
            way_out = (
                "conditional_writes is 'refuse'" if self._settings.conditional_writes == "refuse"
                else "found by trying; set conditional_writes to 'trust' if you know better"
            )
            raise StoreError(
                "condition", ref.bucket, ref.key, "NotHonoured", message=f"the endpoint ignores {what.value} ({way_out})"
            )

    def honours(self, what: Honours, ref: ObjectRef) -> bool:
        """Whether the endpoint honours it for the object's bucket."""
        choice = self._settings.conditional_writes
        if choice != "probe" and what is not Honours.COPY_SOURCE_IF_MATCH:
            return choice == "trust"
        if is_aws(self._store.write_endpoint_url):
            return True
        with self._lock:
            if (ref.bucket, what) not in self._found:
                self._found[ref.bucket, what] = self._asked(what, ref)
            return self._found[ref.bucket, what]

    def _asked(self, what: Honours, ref: ObjectRef) -> bool:
        endpoint_url = self._store.write_endpoint_url
        known = self._ledger.found(endpoint_url, ref.bucket).get(what.name)
        if known is not None:
            return known == "yes"
        honoured = self.tried(what, ref)
        logger.info("%s: the write endpoint %s %s", ref.bucket, "honours" if honoured else "ignores", what.value)
        self._ledger.note_found(endpoint_url, ref.bucket, what.name, "yes" if honoured else "no")
        return honoured

    def tried(self, what: Honours, beside: ObjectRef) -> bool:
        """Tries it on scratch objects beside the given one (users' rights may end at a prefix), and removes them."""
        folder = beside.key.rpartition("/")[0]
        prefix = f"{folder}/" if folder and len(folder.encode()) < 900 else ""
        scratch = ObjectRef(beside.bucket, f"{prefix}.s3tasks-probe-{uuid.uuid4().hex}")
        return tried(what, self._store, scratch).honoured


def is_aws(endpoint_url: str) -> bool:
    """Whether the endpoint is Amazon's own."""
    return (urlsplit(endpoint_url).hostname or "").endswith((".amazonaws.com", ".amazonaws.com.cn"))
