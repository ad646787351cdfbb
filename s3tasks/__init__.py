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
from s3tasks.refs import ObjectRef
from s3tasks.settings import Settings

if TYPE_CHECKING:
    from s3tasks.client import ConsistentS3
    from s3tasks.tasks import S3Tasks

__version__ = "0.1.0"

_LAZY = {"ConsistentS3": "s3tasks.client", "S3Tasks": "s3tasks.tasks"}

__all__ = [
    "ConsistentS3",
    "InvalidRef",
    "LedgerUnavailable",
    "NoSuchKey",
    "NotYetVisible",
    "ObjectDeleted",
    "ObjectRef",
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
