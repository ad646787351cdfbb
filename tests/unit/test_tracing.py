"""Spans, where the application has set OpenTelemetry up: which there are, what they are below of, and what they say."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

from s3tasks import tracing
from s3tasks.sandbox import Sandbox
from tests.conftest import REPOSITORY

# A process can be given one provider only, so each program has a process of its own.
SET_UP = """
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
exporter = InMemorySpanExporter()
provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(exporter))
trace.set_tracer_provider(provider)
"""
CLIENT = """
import json, sys
from s3tasks import ConsistentS3, Settings, errors, events
client = ConsistentS3.from_settings(Settings.from_env().replace(read_endpoint_url=None, ledger_prefix="traced"))
"""
TELL = """
client.close()
names = {span.context.span_id: span.name for span in exporter.get_finished_spans()}
print(json.dumps([
    {"name": span.name, "kind": span.kind.name, "below": names.get(span.parent.span_id) if span.parent else None,
     "status": span.status.status_code.name, **span.attributes}
    for span in exporter.get_finished_spans()
]))
"""


def said_by(program: str, sandbox: Sandbox) -> str:
    environment = {**os.environ, **sandbox.environment(), "PYTHONPATH": str(REPOSITORY)}
    ran = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def spans_of(program: str, sandbox: Sandbox) -> list[dict[str, Any]]:
    return list(json.loads(said_by(SET_UP + CLIENT + program + TELL, sandbox)))


def below(spans: list[dict[str, Any]], parent: str) -> set[str]:
    return {span["name"] for span in spans if span["below"] == parent}


def test_each_script_of_the_ledger_is_called_one() -> None:
    scripts = {path.name.removesuffix(".lua") for path in (files("s3tasks") / "ledger_scripts").iterdir()}
    assert scripts - {"record"} == tracing._SCRIPTS


def test_a_verb_is_a_span_with_its_calls_below_it(sandbox: Sandbox, bucket: str) -> None:
    spans = spans_of(f"""
with trace.get_tracer("shop").start_as_current_span("request"):
    client.read(client.write(b"body", "s3://{bucket}/key"))
""", sandbox)

    assert below(spans, "request") == {"s3tasks.write", "s3tasks.read"}
    assert below(spans, "s3tasks.write") - {"CONNECT connect"} == {"EVALSHA begin", "S3.PutObject", "EVALSHA commit"}
    assert below(spans, "s3tasks.read") == {"HGETALL lookup", "S3.GetObject"}
    (put,) = [span for span in spans if span["name"] == "S3.PutObject"]
    assert put == {
        "name": "S3.PutObject", "kind": "CLIENT", "below": "s3tasks.write", "status": "UNSET", "rpc.system": "aws-api",
        "rpc.service": "S3", "rpc.method": "PutObject", "aws.s3.bucket": bucket, "aws.s3.key": "key",
    }
    (commit,) = [span for span in spans if span["name"] == "EVALSHA commit"]
    assert commit == {
        "name": "EVALSHA commit", "kind": "CLIENT", "below": "s3tasks.write", "status": "UNSET", "db.system.name": "redis",
        "db.operation.name": "EVALSHA", "db.stored_procedure.name": "commit",
    }
    (verb,) = [span for span in spans if span["name"] == "s3tasks.write"]
    assert (verb["kind"], verb["aws.s3.key"]) == ("INTERNAL", "key")


def test_an_error_is_told_and_a_missing_object_is_no_error_of_s3(sandbox: Sandbox, bucket: str) -> None:
    spans = spans_of(f"""
try:
    client.read("s3://{bucket}/missing")
except errors.NoSuchKey:
    print(end="")
""", sandbox)

    told = {span["name"]: (span["status"], span.get("error.type")) for span in spans}
    assert told["s3tasks.read"] == ("ERROR", "NoSuchKey")
    assert told["S3.GetObject"] == ("UNSET", None)


def test_calls_of_other_threads_are_below_the_verb_that_they_are_made_for(
    sandbox: Sandbox, bucket: str, tmp_path: Path
) -> None:
    spans = spans_of(f"""
import io
client.write_many([(b"1", "s3://{bucket}/1"), (b"2", "s3://{bucket}/2"), (b"3", "s3://{bucket}/3")])
client.write(io.BytesIO(b"x" * 9_000_000), "s3://{bucket}/large")
client.download("s3://{bucket}/large", {str(tmp_path / "large")!r})
""", sandbox)

    assert {span["below"] for span in spans if span["name"] == "S3.PutObject"} == {"s3tasks.write_many"}
    assert {span["below"] for span in spans if span["name"] == "S3.UploadPart"} == {"s3tasks.write"}
    assert {span["below"] for span in spans if span["name"] == "S3.GetObject"} == {"s3tasks.download"}
    assert [span["name"] for span in spans if span["below"] is None] == [
        "s3tasks.write_many", "s3tasks.write", "s3tasks.download",
    ]


@pytest.mark.parametrize("before", ["", "import opentelemetry.trace\n"], ids=["not imported", "no provider"])
def test_without_a_provider_there_is_nothing(sandbox: Sandbox, bucket: str, before: str) -> None:
    said = said_by(before + CLIENT + f"""
client.write(b"body", "s3://{bucket}/key")
client.close()
print(len(events.listeners))
""", sandbox)

    assert said.split() == ["0"]


def test_it_can_be_set_up_later(sandbox: Sandbox, bucket: str) -> None:
    said = said_by(CLIENT + f"""
client.write(b"body", "s3://{bucket}/key")
""" + SET_UP + f"""
client.read("s3://{bucket}/key")
""" + TELL, sandbox)

    assert [span["name"] for span in json.loads(said)] == ["HGETALL lookup", "S3.GetObject", "s3tasks.read"]
