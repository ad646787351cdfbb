"""The IAM policies, rendered from the S3 operations that the package calls: `python -m tests.deploy.iam --write`.

It never grants what no call in the source needs. Which action an operation needs is in the table here; which operations there
are is read from the source.
"""

from __future__ import annotations

import ast
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import botocore.session
from botocore import xform_name

from tests.conftest import REPOSITORY

POLICY = REPOSITORY / "worker_config" / "iam-policy.json"
READER_POLICY = REPOSITORY / "worker_config" / "iam-policy-reader.json"
PACKAGE = REPOSITORY / "s3tasks"

BUCKET = "BUCKET"
"""What the policies call the bucket: to be replaced by its name."""

READS: dict[str, set[str]] = {
    # GetObject and HeadObject want GetObjectVersion only where a version is named; ListBucket makes a missing key a 404 instead of
    # a 403, which would read as "access denied" where the truth is "not there".
    "GetObject": {"GetObject", "ListBucket"},
    "HeadObject": {"GetObject", "ListBucket"},
    "GetObjectTagging": {"GetObjectTagging"},
    "ListObjectsV2": {"ListBucket"},
    "ListObjectVersions": {"ListBucketVersions"},
    "HeadBucket": {"ListBucket"},
}
WRITES: dict[str, set[str]] = {
    "PutObject": {"PutObject"},
    "DeleteObject": {"DeleteObject"},
    "DeleteObjects": {"DeleteObject"},
    # A copy reads its source, and its tags, and writes them with the target.
    "CopyObject": {"GetObject", "GetObjectTagging", "PutObject", "PutObjectTagging"},
    "UploadPartCopy": {"GetObject", "PutObject"},
    "CreateMultipartUpload": {"PutObject"},
    "UploadPart": {"PutObject"},
    "CompleteMultipartUpload": {"PutObject"},
    "AbortMultipartUpload": {"AbortMultipartUpload"},
    "ListParts": {"ListMultipartUploadParts"},
    "ListMultipartUploads": {"ListBucketMultipartUploads"},
    "PutObjectTagging": {"PutObjectTagging"},
}
ACTIONS = {**READS, **WRITES}
"""Operation of S3's API to actions of IAM. Source: AWS, Service Authorization Reference, "Actions, resources, and condition keys
for Amazon S3", and S3 User Guide, "Required permissions for Amazon S3 API operations" (for GetObject's and HeadObject's ListBucket,
and for CopyObject and multipart uploads)."""

OF_VERSIONS = {
    "GetObject": "GetObjectVersion", "GetObjectTagging": "GetObjectVersionTagging", "DeleteObject": "DeleteObjectVersion",
}
"""The action that S3 checks instead where a request names a version."""

OF_BUCKETS = {"ListBucket", "ListBucketVersions", "ListBucketMultipartUploads"}
"""Actions whose resource is the bucket; the others' are objects."""

OPERATION_OF_METHOD = {
    xform_name(operation): operation for operation in botocore.session.get_session().get_service_model("s3").operation_names
}


def store_files() -> list[Path]:
    """The rooms that speak to S3: those that import botocore or boto3, and all that are called store."""
    rooms = [path for path in sorted(PACKAGE.rglob("*.py")) if "sandbox" not in path.parts]
    return [path for path in rooms if _imports_boto(path) or path.relative_to(PACKAGE).parts[0].startswith("store")]


def _imports_boto(path: Path) -> bool:
    tree = ast.parse(path.read_text())
    imported = [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    imported += [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    return any(name.split(".")[0] in ("boto3", "botocore") for name in imported)


def operations_of(source: str) -> set[str]:
    """The operations that the source calls: methods of a client, their names as strings (for getattr), or named themselves."""
    names = set(_names(ast.parse(source)))
    return {OPERATION_OF_METHOD[name] for name in names & OPERATION_OF_METHOD.keys()} | names & set(OPERATION_OF_METHOD.values())


def _names(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            yield node.attr
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def versioned_operations(source: str) -> set[str]:
    """Of those, the ones that may name a version: all in the source of a room that sends VersionId anywhere with them.

    A function that puts VersionId into a request and calls an operation, or names one, counts.
    """
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef) and _sends_version(node):
            found |= operations_of(ast.unparse(node))
    return found


def _sends_version(function: ast.FunctionDef) -> bool:
    for node in ast.walk(function):
        if isinstance(node, ast.Dict) and any(isinstance(key, ast.Constant) and key.value == "VersionId" for key in node.keys):
            return True
        if isinstance(node, ast.keyword) and node.arg == "VersionId":
            return True
        if isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Store) and ast.unparse(node.slice) == "'VersionId'":
            return True
    return False


def called() -> tuple[set[str], set[str]]:
    """All operations that the package calls, and those of them that it calls for a version."""
    sources = [path.read_text() for path in store_files()]
    return (
        {operation for source in sources for operation in operations_of(source)},
        {operation for source in sources for operation in versioned_operations(source)},
    )


def actions(operations: set[str], versioned: set[str]) -> set[str]:
    """The IAM actions for these operations; KeyError for one that is not in the table."""
    plain = {action for operation in operations for action in ACTIONS[operation]}
    wanted = {action for operation in versioned for action in ACTIONS[operation]}
    return plain | {OF_VERSIONS[action] for action in wanted & OF_VERSIONS.keys()}


def policy(granted: set[str]) -> dict[str, Any]:
    """A policy that grants the actions on one bucket: one statement for objects, one for the bucket."""
    bucket = f"arn:aws:s3:::{BUCKET}"
    statements = [("Objects", granted - OF_BUCKETS, f"{bucket}/*"), ("MissingIsNotDenied", granted & OF_BUCKETS, bucket)]
    return {
        "Version": "2012-10-17",
        "Statement": [
            {"Sid": name, "Effect": "Allow", "Action": sorted(f"s3:{action}" for action in some), "Resource": resource}
            for name, some, resource in statements
        ],
    }


def policies() -> dict[Path, str]:
    """The two files: all that workers call, and what only reads."""
    operations, versioned = called()
    every, reading = actions(operations, versioned), actions(operations & READS.keys(), versioned & READS.keys())
    return {path: json.dumps(policy(some), indent=2) + "\n" for path, some in ((POLICY, every), (READER_POLICY, reading))}


if __name__ == "__main__":
    for path, text in policies().items():
        if sys.argv[1:] == ["--write"]:
            path.write_text(text)
        else:
            sys.stdout.write(text)
