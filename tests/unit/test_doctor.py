"""What the doctor makes of an answer: one table for each question, without a server."""

from __future__ import annotations

import time
from typing import Any

import pytest
from celery import Celery

from s3tasks import S3Tasks, Settings, StoreUnavailable
from s3tasks.doctor import celery_questions, conclusions, redis_questions, store_questions
from s3tasks.doctor.findings import Examination, Finding, Grade, Said, ok
from s3tasks.doctor.lag_questions import NO_VERIFICATION, Lags, lag
from s3tasks.doctor.store_questions import StoreFacts
from s3tasks.trials import Heard, Honours
from s3tasks.version import __version__

HEALTHY = {
    "redis_version": "7.2.4", "role": "master", "maxmemory_policy": "noeviction", "maxmemory": 1000, "used_memory": 100,
    "aof_enabled": 1, "aof_last_write_status": "ok", "rdb_last_bgsave_status": "ok", "loading": 0,
}


def node(**changes: Any) -> dict[str, Any]:
    return {**HEALTHY, **changes}


# --- asking ---


def test_whatever_goes_wrong_with_one_question_is_its_answer_and_the_next_is_asked() -> None:
    examination = Examination(60)

    def fails(problem: Exception) -> Said:
        raise problem

    examination.ask("a", "?", lambda: fails(StoreUnavailable("GetObject", "b", "k", "timeout")))
    examination.ask("b", "?", lambda: fails(KeyError("odd")))
    examination.ask("c", "?", lambda: ok("fine"))
    assert [(finding.name, finding.verdict) for finding in examination.findings] == [
        ("a", Grade.UNKNOWN), ("b", Grade.UNKNOWN), ("c", Grade.OK),
    ]
    assert "timeout" in examination.findings[0].heard
    assert "KeyError" in examination.findings[1].heard


def test_no_question_is_begun_when_the_time_is_over() -> None:
    examination = Examination(10, began=time.monotonic() - 11)
    examination.ask("a", "?", lambda: ok("asked"))
    assert (examination.findings[0].verdict, "--seconds" in examination.findings[0].advice) == (Grade.UNKNOWN, True)


def test_credentials_in_whatever_a_library_says_are_masked() -> None:
    examination = Examination(60)
    examination.ask("a", "?", lambda: Said(Grade.BAD, "cannot reach redis://u:hush@h/0, nor s3://b/k@x", "try rediss://:hush@h"))
    (finding,) = examination.findings
    assert "hush" not in str(finding.to_dict())
    assert "redis://***@h/0" in finding.heard
    assert "s3://b/k@x" in finding.heard


# --- Redis ---


@pytest.mark.parametrize(
    ("question", "nodes", "grade", "words"),
    [
        (redis_questions.version, [node()], Grade.OK, "Redis 7.2.4"),
        (redis_questions.version, [node(valkey_version="9.1.0")], Grade.OK, "Valkey 9.1.0"),
        (redis_questions.version, [node(), node(redis_version="5.0.14")], Grade.BAD, "5.0.14"),
        (redis_questions.role, [node()], Grade.OK, "yes"),
        (redis_questions.role, [node(role="slave")], Grade.BAD, "replica"),
        (redis_questions.role, [node(), node(role="slave")], Grade.OK, "yes"),
        (redis_questions.role, [node(loading=1)], Grade.WARN, "loading"),
        (redis_questions.eviction, [node()], Grade.OK, "noeviction"),
        (redis_questions.eviction, [node(), node(maxmemory_policy="allkeys-lru")], Grade.BAD, "allkeys-lru"),
        (redis_questions.eviction, [node(maxmemory_policy="volatile-lru", maxmemory=0)], Grade.WARN, "volatile-lru"),
        (redis_questions.persistence, [node()], Grade.OK, "append-only"),
        (redis_questions.persistence, [node(), node(aof_enabled=0)], Grade.WARN, "restart forgets"),
        (redis_questions.persistence, [node(aof_last_write_status="err")], Grade.BAD, "disk"),
        (redis_questions.persistence, [node(aof_enabled=0, rdb_last_bgsave_status="err")], Grade.BAD, "disk"),
        (redis_questions.memory, [node(used_memory=699)], Grade.OK, "70%"),
        (redis_questions.memory, [node(used_memory=701)], Grade.WARN, "70%"),
        (redis_questions.memory, [node(), node(used_memory=900)], Grade.BAD, "90%"),
        (redis_questions.memory, [node(maxmemory=0)], Grade.WARN, "kernel"),
    ],
)
def test_what_redis_says_of_itself(question: Any, nodes: list[dict[str, Any]], grade: Grade, words: str) -> None:
    said = question(nodes)
    assert said.verdict is grade
    assert words in said.heard
    assert bool(said.advice) == (grade is not Grade.OK)


# --- Celery ---


def conf(**changes: Any) -> Any:
    """The configuration of a real app, as worker_config has it but for the changes."""
    app = Celery("judged", set_as_current=False)
    app.conf.update({
        "broker_url": "redis://h/0", "result_backend": "redis://h/0", "task_time_limit": 630, "worker_prefetch_multiplier": 1,
        "broker_transport_options": {"visibility_timeout": 3600, "socket_timeout": 30, "socket_connect_timeout": 5}, **changes,
    })
    return app.conf


@pytest.mark.parametrize(
    ("changes", "grade", "words"),
    [
        ({}, Grade.OK, "3600 s"),
        ({"task_time_limit": 3600}, Grade.BAD, "raise visibility_timeout"),
        ({"task_time_limit": None}, Grade.WARN, "task_time_limit"),
        ({"broker_transport_options": {"visibility_timeout": 600}}, Grade.BAD, "630"),
        ({"worker_soft_shutdown_timeout": 4000}, Grade.BAD, "worker_soft_shutdown_timeout"),
        ({"broker_url": "amqp://h", "task_time_limit": None}, Grade.OK, "no Redis"),
    ],
)
def test_the_visibility_timeout_against_what_must_be_shorter(changes: dict[str, Any], grade: Grade, words: str) -> None:
    said = celery_questions.visibility(conf(**changes), Settings())
    assert said.verdict is grade
    assert words in f"{said.heard} {said.advice}"


@pytest.mark.parametrize(
    ("question", "changes", "grade", "words"),
    [
        (celery_questions.prefetch, {}, Grade.OK, "1"),
        (celery_questions.prefetch, {"worker_prefetch_multiplier": 4}, Grade.WARN, "4"),
        (celery_questions.prefetch, {"worker_prefetch_multiplier": 0}, Grade.WARN, "without bound"),
        (celery_questions.prefetch, {"worker_prefetch_multiplier": 4, "worker_disable_prefetch": True}, Grade.OK, "yes"),
        (celery_questions.results, {}, Grade.OK, "as JSON, in redis"),
        (celery_questions.results, {"result_backend": None}, Grade.WARN, "no result backend"),
        (celery_questions.results, {"result_serializer": "pickle"}, Grade.BAD, "pickle"),
        (celery_questions.serializers, {}, Grade.OK, "json"),
        (celery_questions.serializers, {"accept_content": ["json", "pickle"]}, Grade.BAD, "pickle"),
        (celery_questions.serializers, {"accept_content": ["yaml"]}, Grade.BAD, "yaml"),
        (celery_questions.serializers, {"task_serializer": "yaml"}, Grade.WARN, "yaml"),
        (celery_questions.timeouts, {}, Grade.OK, "30 s"),
        (celery_questions.timeouts, {"broker_transport_options": {}}, Grade.WARN, "for ever"),
        (celery_questions.timeouts, {"broker_url": "amqp://h"}, Grade.UNKNOWN, "no Redis"),
        (celery_questions.eager, {}, Grade.OK, "yes"),
        (celery_questions.eager, {"task_always_eager": True}, Grade.WARN, "task_always_eager"),
    ],
)
def test_the_configuration_of_an_app(question: Any, changes: dict[str, Any], grade: Grade, words: str) -> None:
    said = question(conf(**changes))
    assert said.verdict is grade
    assert words in said.heard
    assert bool(said.advice) == (grade in (Grade.WARN, Grade.BAD))


def test_tasks_that_are_acknowledged_before_they_run_are_named() -> None:
    app = Celery("judged", set_as_current=False)
    s3 = S3Tasks(app, Settings(ledger_url="redis://h/0"))
    assert celery_questions.acks(app.tasks).verdict is Grade.OK

    @app.task(name="mine", base=s3.Task, shared=False)
    def mine() -> None:
        """A task of a user's own."""

    @app.task(name="unrelated", shared=False)
    def unrelated() -> None:
        """None of our business."""

    said = celery_questions.acks(app.tasks)
    assert (said.verdict, "mine" in said.heard, "unrelated" in said.heard) == (Grade.WARN, True, False)
    app.tasks["s3tasks.write"].acks_late = False
    assert celery_questions.acks(app.tasks).verdict is Grade.BAD


OURS, OLDER = f"s3tasks.write [s3tasks_version={__version__}]", "s3tasks.write [s3tasks_version=0.0.9]"


@pytest.mark.parametrize(
    ("answered", "grade", "words"),
    [
        ({"w1": [OURS, "mine"]}, Grade.OK, f"w1: {__version__}"),
        ({"w1": [OURS], "w2": [OLDER]}, Grade.WARN, "w2: 0.0.9"),
        ({"w1": ["s3tasks.write"]}, Grade.WARN, "does not tell its version"),
        ({"w1": ["mine"], "w2": [OURS]}, Grade.BAD, "w1: no s3 tasks"),
        ({"w1": []}, Grade.BAD, "no s3 tasks"),
    ],
)
def test_the_versions_that_workers_tell(answered: dict[str, list[str]], grade: Grade, words: str) -> None:
    said = celery_questions.versions(answered)
    assert said.verdict is grade
    assert words in said.heard


def test_no_worker_is_something_to_change() -> None:
    assert celery_questions.workers({}, 2).verdict is Grade.BAD
    assert celery_questions.workers({"w": []}, 2).verdict is Grade.OK


@pytest.mark.parametrize(
    ("reason", "grade", "words"),
    [
        ("OperationalError: Error 111 connecting to h:6379. Connection refused.", Grade.BAD, "does not answer"),
        ("NoPermissionError: User s3tasks-producer has no permissions", Grade.UNKNOWN, "s3tasks-operator"),
    ],
)
def test_a_broker_that_cannot_be_asked_is_a_fault_unless_this_user_may_not(reason: str, grade: Grade, words: str) -> None:
    said = celery_questions.unasked(reason)
    assert (said.verdict, words in f"{said.heard} {said.advice}") == (grade, True)


# --- S3 ---


@pytest.mark.parametrize(
    ("honoured", "choice", "grade", "settings"),
    [
        (True, "probe", Grade.OK, {}),
        (True, "trust", Grade.OK, {}),
        (False, "probe", Grade.OK, {}),
        (False, "refuse", Grade.OK, {}),
        (False, "trust", Grade.BAD, {"conditional_writes": "probe"}),
    ],
)
def test_a_condition_that_is_ignored_is_a_fault_only_where_it_is_trusted(
    honoured: bool, choice: str, grade: Grade, settings: dict[str, str]
) -> None:
    said = store_questions.condition(Honours.PUT_IF_MATCH, Heard(honoured, "412"), Settings(conditional_writes=choice))
    assert (said.verdict, said.settings, said.heard.startswith("yes" if honoured else "no")) == (grade, settings, True)


ONE, TWO = True, False
AWS, OTHER = "https://s3.eu-central-1.amazonaws.com", "https://s3.example.com"


@pytest.mark.parametrize(
    ("lags", "settings", "url", "grade", "words", "fitting"),
    [
        (Lags(ONE, tries=20), {}, AWS, Grade.OK, NO_VERIFICATION, {"store_consistency": "strong"}),
        (Lags(ONE, tries=20), {"store_consistency": "strong"}, AWS, Grade.OK, "declared strong", {}),
        (Lags(ONE, tries=20), {}, OTHER, Grade.OK, "prove nothing in general", {}),
        (Lags(TWO, tries=20), {}, AWS, Grade.OK, "keep verification on", {}),
        (Lags(TWO, tries=20, stale=3, seconds=[0.1, 2.0]), {}, OTHER, Grade.OK, "verification is needed", {}),
        (Lags(ONE, tries=20, stale=1, seconds=[0.1]), {}, OTHER, Grade.OK, "verification is needed", {}),
        (Lags(ONE, tries=20, flaps=1, seconds=[0.1]), {}, OTHER, Grade.OK, "stale again after a fresh read 1 times", {}),
        (Lags(TWO, tries=9, stale=3, seconds=[9.0]), {}, OTHER, Grade.WARN, "longest 9.00 s", {"on_stale": "origin"}),
        (Lags(TWO, tries=9, stale=3, seconds=[9.0]), {"on_stale": "origin"}, OTHER, Grade.OK, "9.00 s", {}),
        (
            Lags(TWO, tries=9, stale=3, seconds=[9.0]), {"consistency_deadline_seconds": 10.0}, OTHER, Grade.BAD, "9.00 s",
            {"consistency_deadline_seconds": "36"},
        ),
        (
            Lags(TWO, tries=1, stale=1, never=True, seconds=[30.0]), {}, OTHER, Grade.BAD, "still not served",
            {"on_stale": "origin"},
        ),
        (
            Lags(ONE, tries=20, stale=1, seconds=[0.1]), {"store_consistency": "strong"}, OTHER, Grade.BAD, "stale after 1",
            {"store_consistency": "eventual"},
        ),
        (Lags(TWO, tries=9, markers_lost=9, other_etags=9, seconds=[0.1]), {}, OTHER, Grade.BAD, "drops user metadata", {}),
        (Lags(TWO, problem="HTTP 503"), {}, OTHER, Grade.BAD, "not measured: HTTP 503", {}),
        (Lags(TWO, tries=9, problem="HTTP 503"), {}, OTHER, Grade.BAD, "of 9 writes, 0 were read stale): HTTP 503", {}),
        (Lags(ONE, tries=9, stale=2, seconds=[0.1], problem="HTTP 503"), {}, AWS, Grade.BAD, "2 were read stale", {}),
        (Lags(TWO), {}, OTHER, Grade.UNKNOWN, "not measured", {}),
        (None, {}, OTHER, Grade.UNKNOWN, "not measured", {}),
    ],
)
def test_what_the_lag_means(
    lags: Lags | None, settings: dict[str, Any], url: str, grade: Grade, words: str, fitting: dict[str, str]
) -> None:
    said = lag(lags, Settings(**settings), url)
    assert (said.verdict, said.settings) == (grade, fitting)
    assert words in said.heard


# --- conclusions ---


def finding(name: str, grade: Grade, **settings: str) -> Finding:
    return Finding(name, "?", "!", grade, settings=settings)


def test_what_was_not_found_out_is_not_concluded() -> None:
    held = {one.name: one.holds for one in conclusions.guarantees([], None)}
    assert set(held.values()) == {None}
    assert conclusions.verification(None) == conclusions.verification(StoreFacts()) == "unknown"


def test_a_redis_that_evicts_keeps_no_promise() -> None:
    sound = [finding(name, Grade.OK) for name in ("redis.reachable", "redis.rights", "redis.persistence")]
    for grade, holds in ((Grade.OK, True), (Grade.BAD, False), (Grade.UNKNOWN, None)):
        held = {one.name: one.holds for one in conclusions.guarantees([*sound, finding("redis.eviction", grade)], None)}
        assert (held["never_stale"], held["done_once"], held["survives_restart"]) == (holds, holds, True)


def test_what_s3_does_becomes_what_holds_here() -> None:
    facts = StoreFacts(honours={Honours.PUT_IF_NONE_MATCH: False, Honours.PUT_IF_MATCH: True}, marker_kept=True, versions=False)
    held = {one.name: one.holds for one in conclusions.guarantees([], facts)}
    assert (held["if_none_match"], held["if_match"], held["delete_if_match"]) == (False, True, None)
    assert (held["dead_writers"], held["versions"], held["outside_writes"]) == (True, False, None)


@pytest.mark.parametrize(
    ("lags", "url", "concluded"),
    [
        (Lags(ONE, tries=5), AWS, "not needed"),
        (Lags(ONE, tries=5), OTHER, "not needed if promised"),
        (Lags(TWO, tries=5), AWS, "not disproved"),
        (Lags(TWO, tries=5, stale=1), AWS, "needed"),
        (Lags(ONE, tries=5, flaps=1), AWS, "needed"),
        (Lags(ONE), AWS, "unknown"),
        (Lags(ONE, tries=5, problem="HTTP 503"), AWS, "unknown"),
        (Lags(ONE, tries=5, stale=1, problem="HTTP 503"), AWS, "needed"),
    ],
)
def test_whether_reads_must_be_checked(lags: Lags, url: str, concluded: str) -> None:
    assert conclusions.verification(StoreFacts(url, lags=lags)) == concluded


def test_the_settings_that_fit_are_gathered() -> None:
    findings = [finding("a", Grade.WARN, send_if_match="false"), finding("b", Grade.OK), finding("c", Grade.BAD, on_stale="origin")]
    assert conclusions.settings_to_use(findings) == {"send_if_match": "false", "on_stale": "origin"}
