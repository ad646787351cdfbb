"""Every number that stands in two files is the same in both, and every time is shorter than what would cut it off."""

from __future__ import annotations

import re

import pytest
from celery import Celery

import s3tasks
from s3tasks import Settings
from s3tasks.sandbox import Sandbox
from tests.deploy.files import (
    COMPOSE,
    DOCKERFILE,
    KUBERNETES,
    REDIS_CONF,
    UNIT,
    WORKER_CONFIG,
    compose_services,
    dockerfile_instructions,
    manifest,
    of_stage,
    redis_settings,
    seconds,
    size_bytes,
    unit_environment,
    unit_settings,
    yaml_documents,
)
from worker_config import celeryconfig, heartbeat, probe

SOFT_SHUTDOWN = celeryconfig.worker_soft_shutdown_timeout
VISIBILITY = celeryconfig.visibility_timeout_seconds
# Giving the rest back: three times at most a socket to a silent Redis is waited for (celery.worker.worker.SHUTDOWN_SOCKET_TIMEOUT).
FAREWELL_SECONDS = 3 * 5.0

unit = unit_settings(UNIT.read_text())
services = compose_services()
deployment = manifest("Deployment")
pod = deployment["spec"]["template"]["spec"]
(container,) = pod["containers"]
image = of_stage(dockerfile_instructions(DOCKERFILE.read_text()), "worker")

STOPS = {
    "systemd": seconds(unit["TimeoutStopSec"][0]),
    "compose": seconds(services["worker"]["stop_grace_period"]),
    "kubernetes": seconds(pod["terminationGracePeriodSeconds"]),
}


@pytest.mark.parametrize("supervisor", STOPS)
def test_a_supervisor_waits_for_the_soft_shutdown_and_what_follows_but_not_until_messages_come_back(supervisor: str) -> None:
    assert SOFT_SHUTDOWN + FAREWELL_SECONDS <= STOPS[supervisor] < VISIBILITY


def test_the_supervisors_wait_equally_long() -> None:
    assert len(set(STOPS.values())) == 1


def test_a_task_is_over_before_its_message_comes_back() -> None:
    assert celeryconfig.task_soft_time_limit < celeryconfig.task_time_limit < VISIBILITY
    assert celeryconfig.broker_transport_options["visibility_timeout"] == VISIBILITY


def test_a_worker_that_is_killed_while_it_looks_for_messages_to_bring_back_keeps_nobody_long_from_it(sandbox: Sandbox) -> None:
    app = Celery(broker=sandbox.redis_url, set_as_current=False)
    app.conf.broker_transport_options = celeryconfig.broker_transport_options
    with app.connection_for_read() as connection:
        assert connection.default_channel.qos.unacked_mutex_expire <= 30


def test_a_retry_that_waits_its_longest_is_sent_before_its_message_comes_back() -> None:
    settings = Settings()

    assert settings.probe_gap_limit_seconds < VISIBILITY / 2
    assert settings.redelivery_horizon_seconds >= 2 * VISIBILITY


def test_silence_means_a_hang_only_after_everything_that_stops_a_healthy_event_loop() -> None:
    ordinary_stops = [
        SOFT_SHUTDOWN,
        celeryconfig.broker_transport_options["socket_timeout"] + celeryconfig.broker_transport_options["socket_connect_timeout"],
        celeryconfig.redis_socket_timeout,
    ]
    assert max(ordinary_stops) + 10 * heartbeat.BEAT_SECONDS < probe.STALE_AFTER_SECONDS


def test_the_probe_asks_the_broker_that_the_worker_asks_when_none_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    defaults = re.search(r'"CELERY_BROKER_URL", "(.*?)"', (WORKER_CONFIG / "celeryconfig.py").read_text())

    assert defaults is not None
    assert probe.redis_urls({}) == [defaults[1]]


def test_a_probe_is_over_within_its_timeout_though_two_redises_are_silent() -> None:
    (check,) = [instruction.text for instruction in image if instruction.name == "HEALTHCHECK"]
    timeouts = [
        seconds(services["worker"]["healthcheck"]["timeout"]),
        seconds(str(re.findall(r"--timeout=(\S+)", check)[0])),
        *(container[name]["timeoutSeconds"] for name in ("startupProbe", "livenessProbe", "readinessProbe")),
    ]
    assert set(timeouts) == {5}
    # One is asked after the other only if the first has answered.
    assert min(timeouts) >= 2 * probe.ANSWER_WITHIN_SECONDS + 1


def test_the_image_and_compose_check_alike() -> None:
    (check,) = [instruction.text for instruction in image if instruction.name == "HEALTHCHECK"]
    said = services["worker"]["healthcheck"]

    options = dict(re.findall(r"--(\S+?)=(\S+)", check))
    assert options == {
        "interval": said["interval"], "timeout": said["timeout"],
        "retries": str(said["retries"]), "start-period": said["start_period"],
    }


def test_containers_are_stopped_by_the_signal_that_means_a_soft_shutdown() -> None:
    environment = " ".join(instruction.text for instruction in image if instruction.name == "ENV")

    assert unit_environment(UNIT.read_text())["REMAP_SIGTERM"] == "SIGQUIT"
    assert "REMAP_SIGTERM=SIGQUIT" in environment
    # Whatever else says how to stop would be a second opinion.
    assert not [instruction for instruction in image if instruction.name == "STOPSIGNAL"]
    assert "stop_signal" not in services["worker"]
    assert "lifecycle" not in container
    assert (unit["KillSignal"], unit["KillMode"]) == (["SIGTERM"], ["mixed"])


def test_a_worker_has_as_many_processes_everywhere() -> None:
    (command,) = [instruction.text for instruction in image if instruction.name == "CMD"][-1:]
    (trigger,) = manifest("ScaledObject")["spec"]["triggers"]

    assert re.findall(r"--concurrency=(\d+)", command) == [unit_environment(UNIT.read_text())["WORKER_CONCURRENCY"]] == ["2"]
    assert int(trigger["metadata"]["listLength"]) == 10 * 2
    assert "args" not in container


def test_a_worker_has_as_much_memory_everywhere() -> None:
    limits = [unit["MemoryMax"][0], services["worker"]["mem_limit"], container["resources"]["limits"]["memory"]]

    assert {size_bytes(limit) for limit in limits} == {2**30}
    assert size_bytes(container["resources"]["requests"]["memory"]) < size_bytes(unit["MemoryHigh"][0]) < 2**30


def test_redis_has_half_as_much_memory_again_as_its_data_may_take() -> None:
    most = size_bytes(redis_settings(REDIS_CONF.read_text())["maxmemory"])

    assert size_bytes(services["redis"]["mem_limit"]) >= 1.5 * most


def test_the_user_is_the_same_number_everywhere() -> None:
    (user,) = [instruction.text for instruction in image if instruction.name == "USER"]
    context = pod["securityContext"]

    assert user == f"{context['runAsUser']}:{context['runAsGroup']}" == f"{context['fsGroup']}:{context['fsGroup']}"
    assert context["runAsUser"] >= 10000


@pytest.mark.parametrize("path", [DOCKERFILE, COMPOSE, KUBERNETES / "kustomization.yaml"], ids=lambda path: path.name)
def test_the_image_is_called_by_the_version_of_the_package(path: str) -> None:
    text = DOCKERFILE.parent.joinpath(path).read_text()
    named = re.findall(r"s3tasks-(?:worker|flower):(\d[\w.]*)|newTag: (\S+)", text)

    assert {tag or new for tag, new in named} == {s3tasks.__version__}


def test_both_redis_ports_are_the_one_that_the_policy_and_the_scaler_know() -> None:
    port = redis_settings(REDIS_CONF.read_text())["port"]
    (trigger,) = manifest("ScaledObject")["spec"]["triggers"]
    ports = [entry["port"] for rule in manifest("NetworkPolicy")["spec"]["egress"] for entry in rule["ports"]]

    assert int(port) in ports
    assert trigger["metadata"]["address"].endswith(f":{port}")
    assert f":{port}/" in (WORKER_CONFIG / "kubernetes" / "secret.example.yaml").read_text()


def test_the_autoscaler_looks_at_the_queue_that_the_workers_take_from() -> None:
    (trigger,) = manifest("ScaledObject")["spec"]["triggers"]

    assert trigger["metadata"]["listName"] == unit_environment(UNIT.read_text())["WORKER_QUEUES"] == "celery"


def test_an_outage_of_the_scaler_leaves_as_many_workers_as_are_deployed() -> None:
    scaled = manifest("ScaledObject")["spec"]

    replicas = deployment["spec"]["replicas"]

    assert scaled["minReplicaCount"] <= scaled["fallback"]["replicas"] == replicas <= scaled["maxReplicaCount"]
    assert services["worker"]["scale"] == deployment["spec"]["replicas"]


def test_a_rollout_has_time_for_a_worker_to_start_and_another_to_end() -> None:
    startup = container["startupProbe"]
    needed = startup["periodSeconds"] * startup["failureThreshold"] + deployment["spec"]["minReadySeconds"] + STOPS["kubernetes"]

    assert needed <= deployment["spec"]["progressDeadlineSeconds"]


def test_every_manifest_is_in_one_namespace_and_goes_by_one_name() -> None:
    labelled = [document for path in sorted(KUBERNETES.glob("*.yaml")) for document in yaml_documents(path)]
    selectors = [
        deployment["spec"]["selector"], manifest("PodDisruptionBudget")["spec"]["selector"],
        manifest("NetworkPolicy")["spec"]["podSelector"], pod["topologySpreadConstraints"][0]["labelSelector"],
    ]
    assert {selector["matchLabels"]["app.kubernetes.io/name"] for selector in selectors} == {"s3tasks-worker"}
    assert deployment["spec"]["template"]["metadata"]["labels"] == selectors[0]["matchLabels"]
    assert not [document["metadata"]["name"] for document in labelled if "namespace" in document.get("metadata", {})]
