"""What a worker may not do where it is deployed, and that it does not try: nothing is written but in its temporary directory."""

from __future__ import annotations

import re
import signal
from pathlib import Path

import pytest
from celery import Celery, chain

from s3tasks import S3Tasks, Settings
from s3tasks.sandbox import Sandbox
from s3tasks.sandbox.processes import wait_until
from tests.deploy.deployed import COMMANDS, PATIENCE_SECONDS, deployed
from tests.deploy.files import (
    DOCKERFILE,
    KUBERNETES,
    compose_services,
    dockerfile_instructions,
    manifest,
    of_stage,
    yaml_documents,
)

SERVICES = compose_services()


@pytest.mark.parametrize("kind", COMMANDS)
def test_a_worker_writes_no_file_outside_its_temporary_directory(
    kind: str, sandbox: Sandbox, tmp_path: Path, bucket: str
) -> None:
    places = {name: tmp_path / name for name in ("home", "tmp", "run")}
    for place in places.values():
        place.mkdir()
    variables = {
        **sandbox.environment(), "HOME": str(places["home"]), "TMPDIR": str(places["tmp"]),
        "CELERY_HEARTBEAT_FILE": str(places["run"] / "heartbeat"), "S3TASKS_READ_ENDPOINT_URL": "",
    }
    with deployed(kind, tmp_path, variables) as worker:
        app = Celery("producer", broker=sandbox.redis_url, backend=sandbox.redis_url, set_as_current=False)
        s3 = S3Tasks(app, Settings(ledger_url=sandbox.redis_url, endpoint_url=sandbox.endpoint_url))
        body = b"x" * 100_000
        assert chain(s3.write.s(body, f"s3://{bucket}/k"), s3.read.s()).delay().get(timeout=PATIENCE_SECONDS) == body
        s3.client.close()
        app.close()
        assert [path.name for path in places["run"].iterdir()] == ["heartbeat"]
        worker.signal(signal.SIGTERM)
        assert wait_until(lambda: not worker.running, PATIENCE_SECONDS)

    assert list((tmp_path / "work").iterdir()) == []
    assert list(places["home"].iterdir()) == []


@pytest.mark.parametrize("name", SERVICES)
def test_a_container_has_no_right_it_does_not_need(name: str) -> None:
    service = SERVICES[name]

    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert not {"privileged", "cap_add", "pid", "ipc", "devices", "network_mode"} & service.keys()
    assert "mem_limit" in service
    assert "healthcheck" in service


@pytest.mark.parametrize("name", SERVICES)
def test_an_image_is_named_by_an_exact_version(name: str) -> None:
    tag = SERVICES[name]["image"].partition(":")[2]

    assert re.search(r"\d+\.\d+\.\d+|RELEASE\.\d{4}-\d\d-\d\dT", tag)


def test_only_flower_can_be_reached_and_only_from_this_machine() -> None:
    published = {name: service["ports"] for name, service in SERVICES.items() if "ports" in service}

    assert published == {"flower": ["127.0.0.1:5555:5555"]}
    assert "FLOWER_BASIC_AUTH" in SERVICES["flower"]["environment"]


def test_no_secret_stands_in_a_file_of_the_deployment() -> None:
    for service in SERVICES.values():
        for key, value in service.get("environment", {}).items():
            if re.search("PASSWORD|SECRET|KEY|AUTH|USER", key):
                assert str(value).startswith("${"), key


def test_every_base_image_is_named_by_its_version_and_its_system() -> None:
    stages = dockerfile_instructions(DOCKERFILE.read_text())
    bases = {item.text.split(" AS ")[0] for item in stages if item.name == "FROM"} - {item.stage for item in stages}

    assert bases == {"python:3.13-slim-bookworm"}


@pytest.mark.parametrize("stage", ["worker", "flower"])
def test_an_image_runs_as_nobody_and_says_how_it_is(stage: str) -> None:
    said = [item.name for item in of_stage(dockerfile_instructions(DOCKERFILE.read_text()), stage)]

    assert {"USER", "HEALTHCHECK", "ENTRYPOINT", "CMD"} <= set(said)
    assert "RUN" not in said, "what is built stays in the stages before"


def test_a_pod_satisfies_the_restricted_standard_that_its_namespace_enforces() -> None:
    pod = manifest("Deployment")["spec"]["template"]["spec"]
    (container,) = pod["containers"]

    assert manifest("Namespace")["metadata"]["labels"] == {"pod-security.kubernetes.io/enforce": "restricted"}
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]},
    }
    assert pod["automountServiceAccountToken"] is False


def test_what_the_pod_refers_to_is_there() -> None:
    pod = manifest("Deployment")["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    named = [next(iter(source.values()))["name"] for source in container["envFrom"]]
    (kustomization,) = yaml_documents(KUBERNETES / "kustomization.yaml")

    assert named == [manifest("ConfigMap")["metadata"]["name"], manifest("Secret")["metadata"]["name"]]
    assert pod["serviceAccountName"] == manifest("ServiceAccount")["metadata"]["name"]
    assert manifest("ScaledObject")["spec"]["scaleTargetRef"]["name"] == manifest("Deployment")["metadata"]["name"]
    assert kustomization["images"][0]["name"] == container["image"]
    assert kustomization["namespace"] == manifest("Namespace")["metadata"]["name"]
    left_out = {"kustomization.yaml", "secret.example.yaml", "keda-scaledobject.yaml"}
    assert set(kustomization["resources"]) == {path.name for path in KUBERNETES.glob("*.yaml")} - left_out


def test_the_settings_of_the_cluster_are_variables_that_the_worker_has() -> None:
    known = (KUBERNETES.parent / "env.example").read_text()
    names = [name for name in manifest("ConfigMap")["data"] if not name.startswith("AWS_")]

    assert all(f"{name}=" in known for name in names)


def test_nobody_may_connect_to_a_worker_and_it_may_not_ask_for_the_machines_own_rights() -> None:
    policy = manifest("NetworkPolicy")["spec"]
    blocks = [to["ipBlock"] for rule in policy["egress"] for to in rule["to"] if "ipBlock" in to]

    assert (policy["policyTypes"], policy["ingress"]) == (["Ingress", "Egress"], [])
    assert all("169.254.0.0/16" in block.get("except", []) for block in blocks if block["cidr"] == "0.0.0.0/0")
    assert all(rule["ports"] for rule in policy["egress"])
