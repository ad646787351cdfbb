"""What S3's operations take, by botocore's own model of them: options are checked before anything is sent.

It never connects to anything, and needs no credentials.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

import botocore.session
from botocore.validate import ParamValidator

_OURS = frozenset({
    "Bucket", "Key", "Body", "Metadata", "ContentType", "IfMatch", "IfNoneMatch", "CopySource", "CopySourceIfMatch",
    "MetadataDirective",
})
# A length that is not the body's keeps S3 waiting for the rest, which looks like an outage.
_OURS_ALONE = frozenset({"ContentLength", "WriteOffsetBytes"})
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_SECRETS = re.compile(r"(CopySource)?SSECustomer(Key|KeyMD5|Algorithm)")


@cache
def _service() -> Any:
    # One for all operations: it takes some 25 MB.
    return botocore.session.get_session().get_service_model("s3")


@cache
def _shape(operation: str) -> Any:
    return _service().operation_model(operation).input_shape


def known_to(operation: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the options that the operation takes."""
    members = _shape(operation).members
    return {name: value for name, value in options.items() if name in members}


def check_options(operations: Iterable[str], options: object) -> None:
    """Raises ValueError for options that one of the operations (`PutObject`, …) does not take, or not with this value.

    So it does for what has an argument of its own here, and for keys of one's own (SSE-C), which must not travel in messages.
    """
    if not isinstance(options, Mapping):
        raise ValueError(f"put_options is a mapping of S3's own option names to values, not {type(options).__name__}")  # noqa: TRY004
    for name, value in options.items():
        if isinstance(value, str) and _CONTROL.search(value):
            # It could not be sent as a header, which an HTTP client says like an outage.
            raise ValueError(f"put_options: the value of {name!s:.120} holds a control character")
    for operation in operations:
        for name in options:
            _check_name(operation, name)
        required = dict.fromkeys(_shape(operation).required_members, "given")
        report = ParamValidator().validate({**required, **options}, _shape(operation))
        if report.has_errors():
            # What botocore quotes may be long, or nobody's business.
            problem = re.sub(r"value: .*?, (type|valid)", r"\1", report.generate_report(), flags=re.DOTALL)
            raise ValueError(f"put_options: {problem}")


def _check_name(operation: str, name: object) -> None:
    if isinstance(name, str) and _SECRETS.fullmatch(name):
        raise ValueError(
            f"put_options: {name} does not belong in a message: set sse_customer_key (S3TASKS_SSE_CUSTOMER_KEY) where the objects "
            "are written and read"
        )
    if name in _OURS or name in _OURS_ALONE:
        raise ValueError(f"put_options: {name} is set by s3tasks itself: use the argument for it, where there is one")
    members = [member for member in _shape(operation).members if member not in _OURS]
    if name not in members:
        close = difflib.get_close_matches(str(name), members, n=1, cutoff=0.5)
        meant = f"did you mean {close[0]}?" if close else f"it has {', '.join(sorted(members))}"
        raise ValueError(f"put_options: S3's {operation} has no {name!r}: {meant}")
