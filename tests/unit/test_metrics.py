"""What Prometheus is shown: names, labels and sums, of this process and of those that it forks."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from s3tasks import ConsistentS3, ObjectRef, Settings, counting, errors, events, metrics
from s3tasks.counting import METRICS
from s3tasks.verdicts import Verdict
from tests.conftest import REPOSITORY
from tests.scraping import Scraped, parsed, total


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[CollectorRegistry]:
    """A registry of an application's own that shows what s3tasks does."""
    before, counting_before = events.listeners, list(counting._counting)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    made = CollectorRegistry()
    metrics.register(made)
    yield made
    events.listeners, counting._counting[:] = before, counting_before


def shown(registry: CollectorRegistry) -> Scraped:
    return parsed(generate_latest(registry).decode())


def operation(room: str, name: str, seconds: float) -> events.Operation:
    made = events.Operation(room, name, ObjectRef("bucket", "key"))
    made.seconds = seconds
    return made


def test_every_event_is_counted_under_its_labels(registry: CollectorRegistry) -> None:
    for event in (
        events.Concluded("stale"), events.Committed("write"), events.Committed("delete"), events.Recorded("adopted"),
        events.Recorded("observed"), events.Retried("StaleRead"), events.DeadlineMissed("NotYetVisible"),
        events.CacheAsked(True), events.CacheAsked(False), events.Failed("ledger", "commit", "TimeoutError"),
        events.Failed("store", "PutObject", "503"), events.Failed("verb", "read", "NoSuchKey"),
    ):
        events.tell(event)

    said = shown(registry)
    happened = {key: value for key, value in said.items() if value and key[0] != "s3tasks_info"}
    assert happened == {
        ("s3tasks_verdicts_total", ("stale",)): 1, ("s3tasks_commits_total", ("write",)): 1,
        ("s3tasks_commits_total", ("delete",)): 1, ("s3tasks_adoptions_total", ()): 1, ("s3tasks_observed_intents_total", ()): 1,
        ("s3tasks_retries_total", ("StaleRead",)): 1, ("s3tasks_deadline_misses_total", ("NotYetVisible",)): 1,
        ("s3tasks_cache_lookups_total", ("hit",)): 1, ("s3tasks_cache_lookups_total", ("miss",)): 1,
        ("s3tasks_ledger_errors_total", ("TimeoutError", "commit")): 1, ("s3tasks_store_errors_total", ("503", "PutObject")): 1,
        ("s3tasks_verb_errors_total", ("NoSuchKey", "read")): 1,
    }


def test_spans_of_time_fall_into_buckets_and_are_summed(registry: CollectorRegistry) -> None:
    for seconds in (0.0005, 0.0006, 5.0, 61.0):
        events.tell(events.Ended(operation("store", "GetObject", seconds)))
    events.tell(events.FirstFresh(0.3))

    said = shown(registry)
    buckets = [said["s3tasks_store_seconds_bucket", (bound, "GetObject")] for bound in ("0.0005", "0.001", "5.0", "60.0", "+Inf")]
    assert buckets == [1, 2, 3, 3, 4]
    assert said["s3tasks_store_seconds_sum", ("GetObject",)] == pytest.approx(66.0011)
    assert said["s3tasks_store_seconds_count", ("GetObject",)] == 4
    assert said["s3tasks_staleness_seconds_sum", ()] == pytest.approx(0.3)


def test_what_has_not_happened_is_shown_as_nothing(registry: CollectorRegistry) -> None:
    """So that the first of its kind is an increase."""
    said = shown(registry)

    verdicts = {labels[0] for name, labels in said if name == "s3tasks_verdicts_total"}
    assert verdicts == {verdict.name.lower() for verdict in Verdict if verdict is not Verdict.ASK_ORIGIN}
    retried = {labels[0] for name, labels in said if name == "s3tasks_retries_total"}
    assert retried == {
        name for name, kind in vars(errors).items()
        if isinstance(kind, type) and issubclass(kind, errors.RetryableError) and kind.retryable
    } - {"RetryableError", "PreconditionFailed"}
    assert said["s3tasks_staleness_seconds_count", ()] == 0


def test_there_is_a_metric_for_each_kind_of_event_but_beginnings() -> None:
    assert set(get_args(events.Event)) - counting._SEEN.keys() == {events.Began}


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.name)
def test_names_follow_the_conventions_and_labels_are_few(metric: counting.Metric) -> None:
    assert metric.name.startswith("s3tasks_")
    assert metric.name.endswith("_seconds" if metric.bounds else "_total")
    assert not {"key", "bucket", "etag", "ref", "id"} & set(metric.labels)
    assert list(metric.bounds) == sorted(metric.bounds)


def test_what_a_client_does_is_shown(registry: CollectorRegistry, client: ConsistentS3, ref: ObjectRef) -> None:
    client.read(client.write(b"body", ref))
    client.write_many([(b"1", f"s3://{ref.bucket}/1"), (b"2", f"s3://{ref.bucket}/2")])

    said = shown(registry)
    assert said["s3tasks_commits_total", ("write",)] == 3
    assert said["s3tasks_verdicts_total", ("fresh",)] == 1
    verbs = {labels[0]: value for (name, labels), value in said.items() if name == "s3tasks_verb_seconds_count"}
    assert verbs == {"write": 1, "read": 1, "write_many": 1}
    assert total(said, "s3tasks_ledger_seconds_count", "commit") == 3


def test_keys_buckets_and_secrets_are_in_no_metric(
    registry: CollectorRegistry, settings: Settings, connect: object, bucket: str
) -> None:
    secret = settings.replace(ledger_url="redis://user:sesame@127.0.0.1:1/0")
    client = ConsistentS3.from_settings(secret)
    with pytest.raises(errors.LedgerUnavailable):
        client.read(f"s3://{bucket}/private-key")

    page = generate_latest(registry).decode()
    assert "s3tasks_ledger_errors_total" in page
    assert not [word for word in ("sesame", bucket, "private-key") if word in page]


def test_a_label_that_is_too_long_is_cut(registry: CollectorRegistry) -> None:
    events.tell(events.Retried("E" * 1000))

    assert shown(registry)["s3tasks_retries_total", ("E" * 40,)] == 1


def test_a_forked_child_is_added_to_the_sum(registry: CollectorRegistry) -> None:
    events.tell(events.Committed("write"))
    child = os.fork()
    if child == 0:
        events.tell(events.Committed("write"))
        os._exit(0)
    os.waitpid(child, 0)

    assert shown(registry)["s3tasks_commits_total", ("write",)] == 2


def test_processes_that_name_one_directory_show_the_sum_of_all(tmp_path: Path) -> None:
    (tmp_path / "shared").mkdir(mode=0o700)
    program = f"""
import prometheus_client
from s3tasks import events, metrics
metrics.register(prometheus_client.REGISTRY, {str(tmp_path / "shared")!r})
events.tell(events.Committed("write"))
print(prometheus_client.generate_latest().decode())
"""
    pages = [
        subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout
        for _ in range(2)
    ]

    assert [parsed(page)["s3tasks_commits_total", ("write",)] for page in pages] == [1, 2]


def test_of_applications_that_are_gone_no_counts_are_left(tmp_path: Path) -> None:
    program = "import prometheus_client, s3tasks.metrics\ns3tasks.metrics.register(prometheus_client.REGISTRY)"
    for _ in range(3):
        environment = {**os.environ, "TMPDIR": str(tmp_path)}
        subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, env=environment, check=True)

    assert len(list(tmp_path.iterdir())) == 1


def test_without_the_library_it_is_said_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "prometheus_client.py").write_text("raise ModuleNotFoundError('No module named prometheus_client')")
    said = subprocess.run(
        [sys.executable, "-c", "from s3tasks import metrics"], cwd=REPOSITORY, capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{REPOSITORY}"},
    )

    assert "metrics need prometheus-client: pip install 's3tasks[prometheus]'" in said.stderr.splitlines()[-1]


@pytest.mark.parametrize("address", ["", "user:secret@host", "http://127.0.0.1", "127.0.0.1 "])
def test_an_address_that_is_none_is_refused(address: str) -> None:
    with pytest.raises(ValueError, match="metrics_address"):
        Settings(metrics_address=address)
