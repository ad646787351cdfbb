"""S3 writes, reads and deletes as Celery tasks that never hand out stale data.

The names below are the whole public API. Those that need boto3, redis or celery are imported when first used; the errors are
always loaded, for Celery's JSON result backend rebuilds only classes of modules that already are.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from s3tasks.errors import (
    InvalidRef,
    LedgerUnavailable,
    LocalFileError,
    NoSuchKey,
    NotYetVisible,
    ObjectDeleted,
    OverlappingWrite,
    PayloadTooLarge,
    PreconditionFailed,
    S3TasksError,
    StaleRead,
    StoreError,
    StoreUnavailable,
    Superseded,
    WriteConflict,
)
from s3tasks.outcomes import Outcome
from s3tasks.refs import ObjectRef
from s3tasks.settings import Settings
from s3tasks.version import __version__ as __version__

if TYPE_CHECKING:
    from s3tasks.client import ConsistentS3
    from s3tasks.tasks import S3Tasks

_LAZY = {"ConsistentS3": "s3tasks.client", "S3Tasks": "s3tasks.tasks"}

__all__ = [
    "ConsistentS3",
    "InvalidRef",
    "LedgerUnavailable",
    "LocalFileError",
    "NoSuchKey",
    "NotYetVisible",
    "ObjectDeleted",
    "ObjectRef",
    "Outcome",
    "OverlappingWrite",
    "PayloadTooLarge",
    "PreconditionFailed",
    "S3Tasks",
    "S3TasksError",
    "Settings",
    "StaleRead",
    "StoreError",
    "StoreUnavailable",
    "Superseded",
    "WriteConflict",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 's3tasks' has no attribute {name!r}")
    return getattr(import_module(_LAZY[name]), name)
