"""Everything that may be chosen, with its default, its meaning and its bounds; the only reader of the environment.

It never connects to anything, and never shows a secret.
"""

from __future__ import annotations

import base64
import dataclasses
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

ENVIRONMENT_PREFIX = "S3TASKS_"
CONF_PREFIX = "s3tasks_"
LEDGER_SCHEMES = ("redis", "rediss", "unix")
CLUSTER_SCHEMES = ("redis+cluster", "rediss+cluster")
SENTINEL_SCHEMES = ("redis+sentinel", "rediss+sentinel")

# S3's own bounds for the parts of a multipart upload, and for what one CopyObject takes (AWS, "Amazon S3 multipart upload limits").
_LEAST_PART = 5 * 1024 * 1024
_MOST_PART = 5 * 1024 * 1024 * 1024

_SECRETS = frozenset({"sse_customer_key"})

_Check = Callable[[Any], "str | None"]


def _choice(*allowed: str) -> _Check:
    return lambda value: None if value in allowed else f"must be one of {', '.join(allowed)}"


def _number(least: float, most: float) -> _Check:
    def check(value: Any) -> str | None:
        is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        return None if is_number and least <= value <= most else f"must be a number from {least:.10g} to {most:.10g}"

    return check


def _url(*schemes: str) -> _Check:
    def check(value: Any) -> str | None:
        scheme, found, rest = value.partition("://") if isinstance(value, str) else ("", "", "")
        good = value is None or (scheme in schemes and found and _splits(value))
        # Redis by itself means the one on this machine; S3 has no such default.
        complete = good and (value is None or rest or scheme.startswith("redis"))
        return None if complete else f"must be a URL that begins with {', '.join(f'{known}://' for known in schemes)}"

    return check


def _splits(url: str) -> bool:
    try:
        urlsplit(url)
    except ValueError:
        return False
    return True


def _directory(value: Any) -> str | None:
    good = value is None or (isinstance(value, str) and os.path.isabs(value) and "\0" not in value)
    return None if good else "must be the absolute path of a directory"


def _host(value: Any) -> str | None:
    good = isinstance(value, str) and value and value.isascii() and value.isprintable() and not set(value) & set(" /@")
    return None if good else "must be an address of this machine, such as 127.0.0.1 or 0.0.0.0"


def _account(value: Any) -> str | None:
    good = value is None or (isinstance(value, str) and value.isascii() and value.isdigit() and len(value) == 12)
    return None if good else "must be an AWS account id, 12 digits"


def _sse_key(value: Any) -> str | None:
    try:
        good = value is None or len(base64.b64decode(value, validate=True)) == 32
    except (ValueError, TypeError):
        good = False
    return None if good else "must be 32 bytes in base64"


def _prefix(value: Any) -> str | None:
    good = isinstance(value, str) and value and not set(value) & set("{}") and value.isprintable()
    return None if good else "must be printable text without braces"


def _setting(default: Any, meaning: str, check: _Check | None = None) -> Any:
    return dataclasses.field(default=default, metadata={"meaning": meaning, "check": check})


@dataclass(frozen=True)
class Settings:
    """All choices in one frozen object; refuses nonsense at construction with a ValueError that names the setting.

    Times are in seconds, sizes in bytes. `repr` masks credentials in URLs.
    """

    ledger_url: str | None = _setting(
        None,
        "Redis that keeps the ledger: redis://, rediss://, unix://, redis+cluster://, redis+sentinel://hosts/service/db; "
        "unset: the Celery broker's Redis",
        _url(*LEDGER_SCHEMES, *CLUSTER_SCHEMES, *SENTINEL_SCHEMES),
    )
    ledger_prefix: str = _setting("s3", "first part of every ledger key in Redis", _prefix)
    ledger_timeout_seconds: float = _setting(
        5.0, "how long Redis may take to connect or to answer", _number(0.01, 300)
    )
    endpoint_url: str | None = _setting(
        None, "S3 endpoint for writes, and for reads unless read_endpoint_url is set; unset: AWS", _url("http", "https")
    )
    read_endpoint_url: str | None = _setting(
        None, "S3 endpoint for reads, where it differs: a replica, a nearby region, a CDN", _url("http", "https")
    )
    region_name: str | None = _setting(None, "AWS region; unset: as boto3 finds it")
    addressing_style: str = _setting(
        "auto", "how a bucket is put into URLs: auto, path or virtual", _choice("auto", "path", "virtual")
    )
    connect_timeout_seconds: float = _setting(5.0, "how long connecting to S3 may take", _number(0.01, 300))
    read_timeout_seconds: float = _setting(60.0, "how long S3 may stay silent", _number(0.01, 3600))
    store_attempts: int = _setting(3, "how often a call to S3 is tried in all, before the error surfaces", _number(1, 10))
    pool_connections: int = _setting(
        64, "connections to S3 kept per process; at least the worker's concurrency in threads", _number(1, 10000)
    )
    send_if_match: bool = _setting(True, "send If-Match with reads; false for stores that refuse it (VAST)")
    on_stale: str = _setting(
        "retry", "retry: wait for the read endpoint; origin: ask the write endpoint at once", _choice("retry", "origin")
    )
    on_overlap: str = _setting(
        "allow", "allow: writes to a key may overlap, as in S3; serialize: they take turns", _choice("allow", "serialize")
    )
    overlap_lease_seconds: float = _setting(
        120.0, "how long a write that takes turns is waited for at most", _number(1, 86400)
    )
    outside_writes: str = _setting(
        "adopt", "adopt: another program's newer write is taken over; reject: it is stale", _choice("adopt", "reject")
    )
    store_consistency: str = _setting(
        "eventual", "strong: one endpoint that is strongly consistent, so S3 is right", _choice("eventual", "strong")
    )
    retention_seconds: int = _setting(86400, "how long a write or delete is remembered", _number(1, 31622400))
    redelivery_horizon_seconds: int = _setting(
        7200, "how long a finished write is not done again; twice the visibility timeout or more", _number(1, 31622400)
    )
    consistency_deadline_seconds: float = _setting(
        300.0, "how long a read waits for S3 to serve what was promised", _number(0, 86400)
    )
    outage_deadline_seconds: float = _setting(
        300.0, "how long a task waits for Redis or S3 to come back, or for its turn", _number(0, 86400)
    )
    brief_wait_seconds: float = _setting(
        0.03, "how much of that is waited in the worker, if the next probe is so near, rather than requeued", _number(0, 60)
    )
    probe_schedule: str = _setting(
        "learn",
        "learn: probes come where the lags that were seen before make them worth while; square: always at t = c * n * n",
        _choice("learn", "square"),
    )
    probe_spacing_seconds: float = _setting(
        0.0625, "c in probes at t = c * n * n after the first, until enough lags have been seen", _number(0.001, 60)
    )
    probe_gap_limit_seconds: float = _setting(30.0, "longest gap between two probes", _number(0.001, 3600))
    max_inline_bytes: int = _setting(262144, "largest body in a message or result", _number(0, 536870912))
    max_batch_inline_bytes: int = _setting(
        4194304, "largest sum of bodies in one message or result of write_many and read_many", _number(0, 536870912)
    )
    allowed_buckets: tuple[str, ...] = _setting((), "buckets that may be used; none named: all")
    file_root: str | None = _setting(
        None, "directory that the upload and download tasks may use, with all below it; unset: they are off", _directory
    )
    multipart_threshold_bytes: int = _setting(
        8388608, "from which size files and streams are written, read and copied in parts", _number(_LEAST_PART, _MOST_PART)
    )
    part_bytes: int = _setting(8388608, "size of a part, 5 MiB or more as S3 demands", _number(_LEAST_PART, _MOST_PART))
    concurrent_requests: int = _setting(
        10, "requests at once of one call that moves a large object or many objects", _number(1, 1000)
    )
    conditional_writes: str = _setting(
        "probe",
        "probe: whether an endpoint honours if_match and if_none_match is tried out once; trust: it does; refuse: it does not",
        _choice("probe", "trust", "refuse"),
    )
    expected_bucket_owner: str | None = _setting(None, "AWS account that every bucket must belong to", _account)
    requester_pays: bool = _setting(False, "pay for requests to buckets whose owner does not (requester pays)")
    sse_customer_key: str | None = _setting(
        None, "key of your own (SSE-C), 32 bytes in base64, for every object written and read; never in a message", _sse_key
    )
    cache_dir: str | None = _setting(
        None, "directory of this user's where workers of one machine keep bodies they have read; unset: no cache", _directory
    )
    metrics_port: int = _setting(
        0, "port of each worker's metrics for Prometheus, one of its own for each worker of a machine; 0: none", _number(0, 65535)
    )
    metrics_address: str = _setting(
        "127.0.0.1", "address that the metrics are served on; 0.0.0.0: all of this machine's, for scrapes from elsewhere", _host
    )
    cache_max_bytes: int = _setting(1073741824, "most that the cache may hold", _number(1048576, 2**50))

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            kind_problem = _problem_with_kind(field, value)
            check = field.metadata["check"]
            problem = kind_problem or (check(value) if check else None)
            if problem:
                raise ValueError(f"{field.name}={_shown(field.name, value)!r}: {problem}")
        self._check_together()

    def _check_together(self) -> None:
        if self.store_consistency == "strong" and self.separate_read_endpoint:
            raise ValueError(
                "store_consistency='strong' means that reads and writes go to one endpoint, but read_endpoint_url "
                "names another: unset one of the two"
            )
        if self.cache_dir is not None and self.sse_customer_key is not None:
            raise ValueError("cache_dir would keep in clear what sse_customer_key encrypts: unset one of the two")
        if self.redelivery_horizon_seconds > self.retention_seconds:
            raise ValueError(
                f"redelivery_horizon_seconds={self.redelivery_horizon_seconds} is longer than "
                f"retention_seconds={self.retention_seconds}: raise the latter"
            )
        if self.brief_wait_seconds > self.consistency_deadline_seconds:
            raise ValueError(
                f"brief_wait_seconds={self.brief_wait_seconds} is longer than "
                f"consistency_deadline_seconds={self.consistency_deadline_seconds}: lower the former"
            )

    @property
    def separate_read_endpoint(self) -> bool:
        """Whether reads go to another endpoint than writes."""
        return self.read_endpoint_url is not None and self.read_endpoint_url != self.endpoint_url

    def replace(self, **changes: Any) -> Settings:
        """The same settings with some changed, checked again."""
        return dataclasses.replace(self, **changes)

    @classmethod
    def from_env(cls, environment: Mapping[str, str] | None = None) -> Settings:
        """Settings from `S3TASKS_*` variables (of the process, unless a mapping is given).

        An empty variable counts as unset; a name that is no setting, or a value that does not fit, is a ValueError.
        """
        return cls(**environment_choices(os.environ if environment is None else environment))

    def __repr__(self) -> str:
        shown = (f"{f.name}={_shown(f.name, getattr(self, f.name))!r}" for f in dataclasses.fields(self))
        return f"Settings({', '.join(shown)})"


def environment_choices(environment: Mapping[str, str] | None = None) -> dict[str, Any]:
    """What `S3TASKS_*` variables choose, by setting name, in the setting's own type."""
    environment = os.environ if environment is None else environment
    fields = {field.name: field for field in dataclasses.fields(Settings)}
    chosen: dict[str, Any] = {}
    for variable, text in environment.items():
        name = variable.removeprefix(ENVIRONMENT_PREFIX).lower()
        if not variable.startswith(ENVIRONMENT_PREFIX) or variable in OTHER_VARIABLES:
            continue
        if name not in fields:
            raise ValueError(f"{variable} is set, but there is no setting {name}: see 'Settings' in the README")
        if text.strip():
            chosen[name] = _from_text(variable, fields[name], text.strip())
    return chosen


def conf_choices(conf: Mapping[str, Any]) -> dict[str, Any]:
    """What `s3tasks_*` keys of a Celery app's configuration choose, by setting name. Lists become tuples."""
    names = {field.name for field in dataclasses.fields(Settings)}
    for key in conf:
        if key.startswith(CONF_PREFIX) and key.removeprefix(CONF_PREFIX) not in names:
            raise ValueError(f"app.conf.{key} is set, but there is no such setting: see 'Settings' in the README")
    chosen = {name: conf.get(CONF_PREFIX + name) for name in names}
    return {name: tuple(value) if isinstance(value, list) else value for name, value in chosen.items() if value is not None}


OTHER_VARIABLES = frozenset({"S3TASKS_REDIS_SERVER"})
"""Variables that share the prefix and are read elsewhere: the sandbox's choice of Redis binary."""


def broker_ledger_url(broker_url: str | list[str] | tuple[str, ...] | None) -> str | None:
    """The ledger URL that a Celery broker URL stands for, or None where the broker is not a single Redis.

    Of several (a list, or parts divided by `;`) the first Redis counts. kombu's spellings become redis-py's:
    `redis+socket://` is `unix://`, `ssl_cert_reqs=CERT_NONE` is `none`.
    """
    if not broker_url:
        return None
    candidates = broker_url.split(";") if isinstance(broker_url, str) else list(broker_url)
    for candidate in candidates:
        url = candidate.strip().replace("redis+socket://", "unix://", 1)
        if url.partition("://")[0] in LEDGER_SCHEMES:
            place, mark, query = url.partition("?")
            return place + mark + urlencode([_as_redis_py(*option) for option in parse_qsl(query)])
    return None


def _as_redis_py(name: str, value: str) -> tuple[str, str]:
    """An option of kombu's Redis URLs as redis-py spells it; virtual_host is the database of a socket."""
    if name == "ssl_cert_reqs":
        return name, value.removeprefix("CERT_").lower()
    return ("db" if name == "virtual_host" else name), value


def without_credentials(url: str) -> str:
    """The URL with everything before its last `@`, and any query, masked: for logs and messages, whatever shape it is in."""
    scheme, found, rest = url.partition("://")
    if not found:
        return "***" if "@" in url else url
    _, at, place = rest.rpartition("@")
    place, mark, _ = place.partition("?")
    return f"{scheme}://{'***@' if at else ''}{place}{'?***' if mark else ''}"


def _shown(name: str, value: Any) -> Any:
    if name in _SECRETS and value is not None:
        return "***"
    if not name.endswith("_url") or value is None:
        return value
    return without_credentials(value) if isinstance(value, str) else f"a {type(value).__name__}"


def _problem_with_kind(field: dataclasses.Field[Any], value: Any) -> str | None:
    if field.name == "allowed_buckets":
        good = isinstance(value, tuple) and all(isinstance(name, str) and name for name in value)
        return None if good else "must be a tuple of bucket names"
    if isinstance(field.default, bool):
        return None if isinstance(value, bool) else "must be true or false"
    if isinstance(field.default, int):
        return None if type(value) is int else "must be a whole number"
    if field.name == "region_name":
        return None if value is None or (isinstance(value, str) and value) else "must be a region's name"
    return None


def _from_text(variable: str, field: dataclasses.Field[Any], text: str) -> Any:
    if field.name == "allowed_buckets":
        return tuple(name.strip() for name in text.split(",") if name.strip())
    if isinstance(field.default, bool):
        truth = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}
        if text.lower() not in truth:
            raise ValueError(f"{variable}={text!r}: must be true or false")
        return truth[text.lower()]
    if isinstance(field.default, int | float):
        try:
            return type(field.default)(text)
        except ValueError:
            kind = "whole number" if isinstance(field.default, int) else "number"
            raise ValueError(f"{variable}={text!r}: must be a {kind}") from None
    return text
