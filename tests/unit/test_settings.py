"""What may be chosen: nonsense is refused by name, and no secret is ever shown."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import redis

from s3tasks import Settings
from s3tasks.settings import broker_ledger_url, conf_choices, environment_choices, without_credentials

FIELDS = {field.name: field for field in dataclasses.fields(Settings)}
DEFAULTS = Settings()

SECRET = "hunter2"


def kind_of(field: dataclasses.Field[Any]) -> str:
    if field.name.endswith("_url"):
        return "url"
    if isinstance(field.default, bool):
        return "switch"
    if isinstance(field.default, int | float):
        return "number"
    if isinstance(field.default, tuple):
        return "names"
    if field.default is None:
        return "text"
    return "choice" if field.metadata["check"] and field.metadata["check"]("no such choice") else "text"


NONSENSE: dict[str, list[Any]] = {
    "url": [
        "", " ", "localhost:6379", "//host", "gopher://host", "redis", "redis:", "redis:6379", "http://", "https:", "http:host",
        "http://[", "http://]", "redis://[", 3, True, b"redis://host", ["redis://host"], object(),
    ],
    "switch": [None, 0, 1, "true", "", [], object()],
    "number": [None, True, False, "5", "", -1, -0.5, 10**16, float("nan"), float("inf"), float("-inf"), [5], object()],
    "names": [None, "bucket", ["bucket"], ("",), (3,), ("bucket", None), {"bucket"}, object()],
    "choice": [None, "", "no such choice", True, 3, ("auto",), object()],
    "text": ["", 3, True, b"text", ["text"], object()],
}
MORE_NONSENSE: list[tuple[str, Any]] = [
    ("ledger_prefix", None),
    ("file_root", "relative/path"),
    ("file_root", "/nul\0"),
    ("cache_dir", "relative"),
    ("expected_bucket_owner", "12345678901"),
    ("expected_bucket_owner", "12345678901x"),
    ("sse_customer_key", "not base64!"),
    ("sse_customer_key", "c2hvcnQ="),
    ("multipart_threshold_bytes", 5 * 1024**2 - 1),
    ("part_bytes", 5 * 1024**3 + 1),
    ("cache_max_bytes", 2**50 + 1),
    ("ledger_prefix", "a{b"),
    ("ledger_prefix", "a}b"),
    ("ledger_prefix", "a\nb"),
    ("store_attempts", 0),
    ("store_attempts", 1.5),
    ("pool_connections", 0),
    ("max_inline_bytes", 1.0),
    ("retention_seconds", 0),
    ("retention_seconds", 86400.0),
    ("ledger_timeout_seconds", 0),
    ("read_timeout_seconds", 0.0),
    ("probe_spacing_seconds", 0.0),
    ("ledger_url", "http://host"),
    ("endpoint_url", "redis://host"),
]
REFUSED = [(name, value) for name, field in FIELDS.items() for value in NONSENSE[kind_of(field)]] + MORE_NONSENSE

# For each setting, a variable's text and what it chooses.
CHOSEN: dict[str, tuple[str, Any]] = {
    "ledger_url": ("redis://h/1", "redis://h/1"),
    "ledger_prefix": ("shop", "shop"),
    "endpoint_url": ("http://h:9000", "http://h:9000"),
    "read_endpoint_url": ("https://r", "https://r"),
    "region_name": ("eu-west-1", "eu-west-1"),
    "addressing_style": ("path", "path"),
    "on_stale": ("origin", "origin"),
    "on_overlap": ("serialize", "serialize"),
    "outside_writes": ("reject", "reject"),
    "store_consistency": ("strong", "strong"),
    "send_if_match": ("no", False),
    "allowed_buckets": ("a, b,,c ", ("a", "b", "c")),
    "retention_seconds": ("90000", 90000),
    "redelivery_horizon_seconds": ("7201", 7201),
    "store_attempts": ("5", 5),
    "pool_connections": ("65", 65),
    "max_inline_bytes": ("0", 0),
    "probe_schedule": ("square", "square"),
    "brief_wait_seconds": ("0", 0.0),
    "max_batch_inline_bytes": ("1000000", 1000000),
    "file_root": ("/srv/files", "/srv/files"),
    "multipart_threshold_bytes": ("16777216", 16777216),
    "part_bytes": ("5242880", 5242880),
    "concurrent_requests": ("32", 32),
    "conditional_writes": ("trust", "trust"),
    "expected_bucket_owner": ("111122223333", "111122223333"),
    "requester_pays": ("yes", True),
    "sse_customer_key": ("A" * 43 + "=", "A" * 43 + "="),
    "cache_dir": ("/var/cache/s3tasks", "/var/cache/s3tasks"),
    "cache_max_bytes": ("2097152", 2097152),
    "metrics_port": ("9464", 9464),
    "metrics_address": ("0.0.0.0", "0.0.0.0"),
}


def chosen(name: str) -> tuple[str, Any]:
    """As in the table; a setting in seconds may be anything with a fraction."""
    return CHOSEN.get(name, ("2.25", 2.25))


def test_the_defaults_are_valid_and_need_nothing_from_outside() -> None:
    assert Settings() == DEFAULTS == Settings.from_env({})


def test_the_promised_defaults_are_kept() -> None:
    assert DEFAULTS.retention_seconds == 24 * 3600
    assert DEFAULTS.redelivery_horizon_seconds == 2 * 3600
    assert DEFAULTS.max_inline_bytes == 262144
    assert DEFAULTS.ledger_prefix == "s3"
    assert DEFAULTS.outside_writes == "adopt"
    assert DEFAULTS.on_overlap == "allow"
    assert DEFAULTS.on_stale == "retry"


@pytest.mark.parametrize("name", FIELDS)
def test_every_setting_says_in_one_line_what_it_means(name: str) -> None:
    meaning = FIELDS[name].metadata["meaning"]

    assert meaning
    assert meaning.isprintable()
    assert "|" not in meaning


@pytest.mark.parametrize(("name", "value"), REFUSED, ids=lambda value: ascii(value)[:30].split(" at 0x")[0])
def test_nonsense_is_refused_and_the_setting_named(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"^{name}="):
        Settings(**{name: value})


@pytest.mark.parametrize("name", [name for name, field in FIELDS.items() if isinstance(field.default, float)])
def test_seconds_may_be_whole_numbers(name: str) -> None:
    settings = DEFAULTS.replace(**{name: 1})

    assert getattr(settings, name) == 1


@pytest.mark.parametrize(
    "url", ["redis+cluster://h:7000", "rediss+cluster://:pw@h:7000", "redis+sentinel://one:26379,two:26379/mymaster/0"]
)
def test_the_ledger_may_be_on_a_cluster_or_behind_sentinels(url: str) -> None:
    assert Settings(ledger_url=url).ledger_url == url


@pytest.mark.parametrize("url", ["redis://h", "redis://:pw@h:1/0", "rediss://h/0?ssl_cert_reqs=none", "unix:///tmp/redis.sock?db=1"])
def test_a_ledger_url_that_is_taken_is_one_that_redis_takes(url: str) -> None:
    settings = Settings(ledger_url=url)

    with redis.Redis.from_url(settings.ledger_url or "") as client:
        assert client.connection_pool is not None


def test_settings_cannot_be_changed_in_place() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        DEFAULTS.retention_seconds = 1  # type: ignore[misc]


def test_replace_changes_a_copy() -> None:
    changed = DEFAULTS.replace(retention_seconds=90000)

    assert changed.retention_seconds == 90000
    assert DEFAULTS.retention_seconds == 86400


def test_replace_checks_again() -> None:
    with pytest.raises(ValueError, match=r"^on_stale="):
        DEFAULTS.replace(on_stale="nonsense")


def test_a_setting_that_does_not_exist_is_refused() -> None:
    with pytest.raises(TypeError, match="retention_hours"):
        DEFAULTS.replace(retention_hours=24)


@pytest.mark.parametrize(
    ("together", "names"),
    [
        ({"store_consistency": "strong", "read_endpoint_url": "http://r"}, ["store_consistency", "read_endpoint_url"]),
        (
            {"store_consistency": "strong", "read_endpoint_url": "http://r", "endpoint_url": "http://w"},
            ["store_consistency", "read_endpoint_url"],
        ),
        ({"redelivery_horizon_seconds": 86401}, ["redelivery_horizon_seconds=86401", "retention_seconds=86400"]),
        ({"retention_seconds": 7199}, ["redelivery_horizon_seconds=7200", "retention_seconds=7199"]),
        ({"brief_wait_seconds": 10.0, "consistency_deadline_seconds": 9.0}, ["brief_wait_seconds", "consistency_deadline_seconds"]),
    ],
)
def test_settings_that_contradict_each_other_are_refused_by_both_names(together: dict[str, Any], names: list[str]) -> None:
    with pytest.raises(ValueError) as refusal:
        Settings(**together)

    assert [name for name in names if name not in str(refusal.value)] == []


def test_a_strong_store_may_name_its_one_endpoint_twice() -> None:
    settings = Settings(store_consistency="strong", endpoint_url="http://w", read_endpoint_url="http://w")

    assert not settings.separate_read_endpoint


@pytest.mark.parametrize(
    ("write", "read", "separate"),
    [
        (None, None, False),
        ("http://w", None, False),
        ("http://w", "http://w", False),
        ("http://w", "http://r", True),
        (None, "http://r", True),
    ],
)
def test_reads_are_separate_when_they_go_elsewhere(write: str | None, read: str | None, separate: bool) -> None:
    assert Settings(endpoint_url=write, read_endpoint_url=read).separate_read_endpoint is separate


@pytest.mark.parametrize("name", FIELDS)
def test_every_setting_can_be_chosen_by_its_variable(name: str) -> None:
    text, value = chosen(name)

    settings = Settings.from_env({f"S3TASKS_{name.upper()}": f" {text} "})

    assert getattr(settings, name) == value
    assert type(getattr(settings, name)) is type(value)
    assert value != FIELDS[name].default
    assert settings.replace(**{name: FIELDS[name].default}) == DEFAULTS


@pytest.mark.parametrize("name", FIELDS)
@pytest.mark.parametrize("empty", ["", " ", "\t"])
def test_an_empty_variable_counts_as_unset(name: str, empty: str) -> None:
    assert Settings.from_env({f"S3TASKS_{name.upper()}": empty}) == DEFAULTS


@pytest.mark.parametrize(
    ("text", "value"),
    [("1", True), ("true", True), ("YES", True), ("On", True), ("0", False), ("False", False), ("no", False), ("off", False)],
)
def test_a_switch_is_chosen_in_the_usual_words(text: str, value: bool) -> None:
    assert Settings.from_env({"S3TASKS_SEND_IF_MATCH": text}).send_if_match is value


@pytest.mark.parametrize(
    ("variable", "text"),
    [
        ("S3TASKS_SEND_IF_MATCH", "maybe"),
        ("S3TASKS_SEND_IF_MATCH", "2"),
        ("S3TASKS_RETENTION_SECONDS", "one day"),
        ("S3TASKS_RETENTION_SECONDS", "24h"),
        ("S3TASKS_RETENTION_SECONDS", "86400.0"),
        ("S3TASKS_READ_TIMEOUT_SECONDS", "soon"),
        ("S3TASKS_READ_TIMEOUT_SECONDS", "1,5"),
    ],
)
def test_a_variable_of_the_wrong_kind_is_refused_by_name(variable: str, text: str) -> None:
    with pytest.raises(ValueError, match=rf"^{variable}="):
        Settings.from_env({variable: text})


@pytest.mark.parametrize(
    ("name", "text"),
    [("READ_TIMEOUT_SECONDS", "nan"), ("READ_TIMEOUT_SECONDS", "inf"), ("ON_STALE", "Origin"), ("ENDPOINT_URL", "host:80")],
)
def test_a_variable_out_of_bounds_is_refused_by_its_setting(name: str, text: str) -> None:
    with pytest.raises(ValueError, match=rf"^{name.lower()}="):
        Settings.from_env({f"S3TASKS_{name}": text})


@pytest.mark.parametrize("variable", ["S3TASKS_RETENTION", "S3TASKS_", "S3TASKS_RETENTION_SECOND"])
def test_a_variable_that_is_no_setting_is_refused_by_name(variable: str) -> None:
    with pytest.raises(ValueError, match=rf"^{variable} is set"):
        Settings.from_env({variable: ""})


def test_other_programs_variables_and_the_sandboxs_own_are_passed_over() -> None:
    environment = {"PATH": "/bin", "CELERY_BROKER_URL": "redis://h", "s3tasks_on_stale": "x", "S3TASKS_REDIS_SERVER": "/bin/redis"}

    assert environment_choices(environment) == {}


def test_without_a_mapping_the_process_environment_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("S3TASKS_ON_STALE", "origin")

    assert Settings.from_env().on_stale == "origin"


def test_only_what_is_set_is_chosen_so_that_other_sources_can_fill_in() -> None:
    assert environment_choices({"S3TASKS_ON_STALE": "origin", "S3TASKS_REGION_NAME": ""}) == {"on_stale": "origin"}


@pytest.mark.parametrize("name", FIELDS)
def test_every_setting_can_be_chosen_by_the_celery_configuration(name: str) -> None:
    value = chosen(name)[1]

    assert conf_choices({f"s3tasks_{name}": value, "broker_url": "redis://h"}) == {name: value}


def test_a_celery_configuration_may_name_buckets_in_a_list_and_leave_settings_unset() -> None:
    conf = {"s3tasks_allowed_buckets": ["a", "b"], "s3tasks_endpoint_url": None, "task_acks_late": True}

    assert conf_choices(conf) == {"allowed_buckets": ("a", "b")}


@pytest.mark.parametrize(
    ("broker_url", "ledger_url"),
    [
        (None, None),
        ("", None),
        ([], None),
        ("redis://h", "redis://h"),
        ("redis://u:p%40w@h:6380/2", "redis://u:p%40w@h:6380/2"),
        ("redis://h/0?socket_timeout=5", "redis://h/0?socket_timeout=5"),
        ("rediss://h/0?ssl_cert_reqs=CERT_NONE", "rediss://h/0?ssl_cert_reqs=none"),
        ("rediss://h/0?ssl_cert_reqs=CERT_REQUIRED", "rediss://h/0?ssl_cert_reqs=required"),
        ("rediss://h/0?ssl_cert_reqs=optional", "rediss://h/0?ssl_cert_reqs=optional"),
        ("rediss://h/0?ssl_ca_certs=%2Fca.pem&ssl_cert_reqs=CERT_NONE", "rediss://h/0?ssl_ca_certs=%2Fca.pem&ssl_cert_reqs=none"),
        ("redis+socket:///run/redis.sock", "unix:///run/redis.sock"),
        ("redis+socket:///run/redis.sock?virtual_host=3", "unix:///run/redis.sock?db=3"),
        ("unix:///run/redis.sock?db=3", "unix:///run/redis.sock?db=3"),
        ("redis://a;redis://b", "redis://a"),
        ("amqp://a; redis://b/1", "redis://b/1"),
        (["amqp://a", "redis://b"], "redis://b"),
        (("redis://a", "redis://b"), "redis://a"),
        ("amqp://u:p@h//", None),
        ("amqp://a;sqs://", None),
        ("sentinel://a:26379;sentinel://b:26379", None),
        ("memory://", None),
        ("filesystem://", None),
        ("not a url", None),
    ],
)
def test_a_broker_that_is_one_redis_keeps_the_ledger(broker_url: Any, ledger_url: str | None) -> None:
    assert broker_ledger_url(broker_url) == ledger_url


@pytest.mark.parametrize(
    "broker_url",
    [
        "redis://", "redis:///1", "redis://:pw@h:6380/2", "rediss://h/0?ssl_cert_reqs=CERT_NONE", "redis://a;redis://b",
        "redis+socket:///run/redis.sock", "redis+socket:///run/redis.sock?virtual_host=3", "unix:///run/redis.sock",
    ],
)
def test_the_ledger_url_of_a_broker_is_one_that_redis_takes(broker_url: str) -> None:
    settings = Settings(ledger_url=broker_ledger_url(broker_url))

    with redis.Redis.from_url(settings.ledger_url or "") as client:
        assert client.connection_pool is not None


SECRET_URLS = [
    f"redis://:{SECRET}@host:6379/0",
    f"redis://user:{SECRET}@host/0",
    f"redis://{SECRET}@host/0",
    f"redis://a@b:{SECRET}@host/0",
    f"redis://host/0?password={SECRET}",
    f"redis://host/0?db=1&password={SECRET}",
    f"unix://user:{SECRET}@/run/redis.sock",
    f"unix:///run/redis.sock?password={SECRET}",
    f"rediss+cluster://:{SECRET}@host:7000",
    f"redis+sentinel://user:{SECRET}@one:26379,two:26379/mymaster/0",
    # Passwords that nobody percent-encoded.
    f"redis://:a#{SECRET}@host/0",
    f"redis://:a/{SECRET}@host/0",
    f"redis://:a?{SECRET}@host/0",
    f"redis://:[{SECRET}@host/0",
    # URLs that are none.
    f":{SECRET}@host:6379",
    f"user:{SECRET}@host:6379",
    f"redis:/:{SECRET}@host",
    f"redis:user:{SECRET}@host",
    f"amqp://user:{SECRET}@host//",
    f"http://user:{SECRET}@[host",
]


def all_that_is_said_about(**given: Any) -> str:
    try:
        settings = Settings(**given)
    except ValueError as refusal:
        return f"{refusal}{refusal!r}{refusal.__cause__}"
    return f"{settings}{settings!r}"


@pytest.mark.parametrize("name", [name for name in FIELDS if name.endswith("_url")])
@pytest.mark.parametrize("url", SECRET_URLS)
def test_no_password_in_a_url_is_ever_shown(name: str, url: str) -> None:
    said = all_that_is_said_about(**{name: url})

    assert name in said
    assert SECRET not in said


@pytest.mark.parametrize("given", [[f"redis://:{SECRET}@host"], f"redis://:{SECRET}@host".encode(), {"url": f"redis://:{SECRET}@host"}])
def test_no_password_is_shown_of_a_value_that_is_not_even_text(given: Any) -> None:
    assert SECRET not in all_that_is_said_about(ledger_url=given)


@pytest.mark.parametrize("url", SECRET_URLS)
def test_no_password_is_shown_where_a_broker_url_is_logged(url: str) -> None:
    assert SECRET not in without_credentials(url)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://:pw@host:6379/0", "redis://***@host:6379/0"),
        ("redis://host:6379/0", "redis://host:6379/0"),
        ("redis://host/0?db=1", "redis://host/0?***"),
        ("https://s3.example.org", "https://s3.example.org"),
    ],
)
def test_a_url_is_shown_as_far_as_it_holds_no_secret(url: str, shown: str) -> None:
    assert without_credentials(url) == shown


def test_repr_shows_every_setting() -> None:
    assert [name for name in FIELDS if f"{name}=" not in repr(DEFAULTS)] == []


def test_a_cache_would_keep_in_clear_what_a_key_of_ones_own_encrypts() -> None:
    with pytest.raises(ValueError, match="sse_customer_key"):
        Settings(cache_dir="/var/cache/s3tasks", sse_customer_key="A" * 43 + "=")


def test_a_key_of_ones_own_is_never_shown() -> None:
    with pytest.raises(ValueError, match="32 bytes") as caught:
        Settings(sse_customer_key="c2hvcnQgc2VjcmV0")
    assert "c2hvcnQgc2VjcmV0" not in repr(Settings(sse_customer_key="A" * 43 + "=")) + str(caught.value)
    assert "A" * 43 not in repr(Settings(sse_customer_key="A" * 43 + "="))
