"""The IAM policies grant each call that the package makes, and nothing else."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import pytest

from tests.deploy import iam

RUN = "run python -m tests.deploy.iam --write"


def granted(path: Path) -> set[str]:
    return {action.removeprefix("s3:") for statement in statements(path) for action in statement["Action"]}


def statements(path: Path) -> list[dict[str, Any]]:
    return list(json.loads(path.read_text())["Statement"])


@pytest.mark.parametrize("path", iam.policies(), ids=lambda path: path.name)
def test_a_policy_is_what_the_source_needs(path: Path) -> None:
    assert path.read_text() == iam.policies()[path], RUN


def test_every_operation_that_the_package_calls_is_in_the_table() -> None:
    operations, versioned = iam.called()

    new = operations - iam.ACTIONS.keys()
    assert not new, (
        f"{sorted(new)}: a new call to S3. Name the actions that AWS asks for in tests/deploy/iam.py (READS or WRITES), then "
        "python -m tests.deploy.iam --write; operators who upgrade must widen their policies, so say it under Changes"
    )
    assert versioned <= operations


def test_every_granted_action_is_needed_by_some_call() -> None:
    operations, versioned = iam.called()
    for action in granted(iam.POLICY):
        plain = {name for name in operations if action in iam.ACTIONS[name]}
        of_version = {name for name in versioned if action in {iam.OF_VERSIONS.get(other) for other in iam.ACTIONS[name]}}
        assert plain | of_version, f"nothing calls for {action}; {RUN}"


def test_the_scan_sees_what_the_store_does_today() -> None:
    operations, versioned = iam.called()

    assert operations >= {"PutObject", "GetObject", "HeadObject", "DeleteObject"}
    assert versioned >= {"GetObject", "HeadObject"}
    assert {"GetObject", "GetObjectVersion", "PutObject", "DeleteObject", "ListBucket"} <= granted(iam.POLICY)


def test_no_room_but_those_that_are_scanned_speaks_to_s3() -> None:
    scanned = set(iam.store_files())
    for path in sorted(iam.PACKAGE.rglob("*.py")):
        if path in scanned or "sandbox" in path.parts:
            continue
        called = {node.func.attr for node in ast.walk(ast.parse(path.read_text()))
                  if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)}
        # The sandbox's own verb for a test's bucket.
        assert called & iam.OPERATION_OF_METHOD.keys() <= {"create_bucket"}, path


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("client.put_object(Bucket=b)", {"PutObject"}),
        ("getattr(client, 'head_object')(**p)", {"HeadObject"}),
        ("client.get_paginator('list_objects_v2').paginate()", {"ListObjectsV2"}),
        ("run(client.complete_multipart_upload, 3)", {"CompleteMultipartUpload"}),
        ("client.close(); x = 'put object'", set()),
    ],
)
def test_a_call_is_seen_in_every_form(source: str, expected: set[str]) -> None:
    assert iam.operations_of(source) == expected


def test_a_request_for_a_version_is_seen_in_every_form() -> None:
    said = "def f(c, v):\n  c.get_object(Bucket=1, VersionId=v)\ndef g(c, v):\n  p = {'VersionId': v}\n  c.delete_object(**p)\n"
    said += "def h(c, v):\n  p['VersionId'] = v\n  c.get_object_tagging(**p)\ndef n(c, v):\n  c.head_object(x='VersionId')\n"

    assert iam.versioned_operations(said) == {"GetObject", "DeleteObject", "GetObjectTagging"}
    assert iam.actions(set(), {"GetObject", "DeleteObject", "GetObjectTagging"}) == set(iam.OF_VERSIONS.values())


def test_what_is_coming_has_its_place_in_the_table() -> None:
    uploads = {"CreateMultipartUpload", "UploadPart", "CompleteMultipartUpload", "AbortMultipartUpload"}
    coming = {"CopyObject", "UploadPartCopy", *uploads}

    assert iam.actions(coming, set()) == {
        "GetObject", "GetObjectTagging", "PutObject", "PutObjectTagging", "AbortMultipartUpload",
    }
    assert iam.actions({"DeleteObjects"}, {"DeleteObjects"}) == {"DeleteObject", "DeleteObjectVersion"}


def test_a_reader_may_change_nothing() -> None:
    assert granted(iam.READER_POLICY) < granted(iam.POLICY)
    assert not [action for action in granted(iam.READER_POLICY) if action.startswith(("Put", "Delete", "Abort"))]


@pytest.mark.parametrize("path", [iam.POLICY, iam.READER_POLICY], ids=lambda path: path.name)
def test_a_policy_names_one_bucket_and_grants_no_wildcard(path: Path) -> None:
    for statement in statements(path):
        assert statement.keys() == {"Sid", "Effect", "Action", "Resource"}
        assert statement["Effect"] == "Allow"
        assert not any("*" in action for action in statement["Action"])
        of_bucket = {action.removeprefix("s3:") in iam.OF_BUCKETS for action in statement["Action"]}
        assert of_bucket == {statement["Resource"] == f"arn:aws:s3:::{iam.BUCKET}"}
        assert statement["Resource"] in (f"arn:aws:s3:::{iam.BUCKET}", f"arn:aws:s3:::{iam.BUCKET}/*")
