"""Keys of one's own (SSE-C) kept out of the log: botocore and s3transfer write whole requests there at level DEBUG.

It never changes what is sent, and never silences anybody.
"""

from __future__ import annotations

import base64
import logging

_LIBRARIES = ("boto3", "botocore", "s3transfer", "urllib3")


class _Redaction(logging.Filter):
    """Masks the secrets in every record of the libraries' loggers: a filter of a parent's would not see its children's."""

    def __init__(self) -> None:
        super().__init__()
        self._secrets: frozenset[str] = frozenset()

    def hide(self, *secrets: str) -> None:
        self._secrets |= set(secrets)
        for name in list(logging.root.manager.loggerDict):
            if name.partition(".")[0] in _LIBRARIES:
                logging.getLogger(name).addFilter(self)

    def filter(self, record: logging.LogRecord) -> bool:
        message = record.getMessage()
        hidden = message
        for secret in self._secrets:
            hidden = hidden.replace(secret, "***")
        if hidden != message:
            record.msg, record.args = hidden, None
        return True


_redaction = _Redaction()


def hide_key(key: bytes) -> None:
    """From now on no record of the libraries' loggers shows the key, as it is sent or as Python prints it."""
    _redaction.hide(base64.b64encode(key).decode(), repr(key)[2:-1])
