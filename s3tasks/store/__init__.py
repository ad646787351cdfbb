"""What is there: S3, asked one question at a time; the only room that knows boto3, botocore and s3transfer.

It never judges what it is served, and never tries a write twice: an attempt is one request, counted by the ledger's tickets.

Answers are judged by HTTP status, for stores differ in their error codes; ETags are taken from answers, never computed. Every
failure leaves through one door, as StoreUnavailable (it may work later; a write may have landed) or StoreError (a definite no).
"""

from s3tasks.store.answers import NULL_VERSION, ByteRange, Condition, Content, Endpoint, Head
from s3tasks.store.bodies import Answer, Body, at_hand
from s3tasks.store.model import check_options
from s3tasks.store.objects import MOST_DELETED_AT_ONCE, Store
from s3tasks.store.parts import UploadNotes
from s3tasks.store.transfers import Progress, SourceError, read_fully

__all__ = [
    "MOST_DELETED_AT_ONCE",
    "NULL_VERSION",
    "Answer",
    "Body",
    "ByteRange",
    "Condition",
    "Content",
    "Endpoint",
    "Head",
    "Progress",
    "SourceError",
    "Store",
    "UploadNotes",
    "at_hand",
    "check_options",
    "read_fully",
]
