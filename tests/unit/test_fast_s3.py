"""The benchmarks' own S3 answers boto3, over http with its default settings, as S3 does."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from typing import Any

import boto3
import pytest
from boto3.s3.transfer import TransferConfig
from botocore.config import Config
from botocore.exceptions import ClientError

from tests.benchmarks.fast_s3 import FastS3


def client_of(url: str) -> Any:
    keys = {"aws_access_key_id": "a", "aws_secret_access_key": "s", "region_name": "us-east-1"}
    return boto3.client("s3", endpoint_url=url, config=Config(max_pool_connections=32), **keys)


@pytest.fixture(scope="module")
def s3() -> Iterator[Any]:
    with FastS3() as server:
        client = client_of(server.url)
        client.create_bucket(Bucket="b")
        yield client
        client.close()


@pytest.mark.parametrize("size_bytes", [0, 1, 65_536, 3_000_000])
def test_what_is_put_is_got(s3: Any, size_bytes: int) -> None:
    body = os.urandom(size_bytes)
    put = s3.put_object(Bucket="b", Key="a key/ü+%", Body=body, Metadata={"mine": "kept"}, ContentType="text/x")
    got = s3.get_object(Bucket="b", Key="a key/ü+%")
    assert got["Body"].read() == body
    assert put["ETag"] == got["ETag"] == f'"{hashlib.md5(body).hexdigest()}"'
    assert (got["Metadata"], got["ContentType"], got["ContentLength"]) == ({"mine": "kept"}, "text/x", size_bytes)
    assert s3.head_object(Bucket="b", Key="a key/ü+%")["LastModified"] == got["LastModified"]
    assert got["ChecksumCRC32"]


def test_conditions_and_ranges_are_honoured(s3: Any) -> None:
    etag = s3.put_object(Bucket="b", Key="k", Body=b"0123456789")["ETag"]
    assert s3.get_object(Bucket="b", Key="k", IfMatch=etag, Range="bytes=2-4")["Body"].read() == b"234"
    refused = [
        (s3.get_object, {"IfMatch": '"other"'}, 412),
        (s3.get_object, {"IfNoneMatch": etag}, 304),
        (s3.get_object, {"Range": "bytes=10-"}, 416),
        (s3.put_object, {"IfNoneMatch": "*"}, 412),
        (s3.put_object, {"IfMatch": '"other"'}, 412),
        (s3.delete_object, {"IfMatch": '"other"'}, 412),
    ]
    for call, condition, status in refused:
        with pytest.raises(ClientError) as caught:
            call(Bucket="b", Key="k", **condition)
        assert caught.value.response["ResponseMetadata"]["HTTPStatusCode"] == status


def test_what_is_deleted_is_gone(s3: Any) -> None:
    for key in ("x", "<y>&", "z"):
        s3.put_object(Bucket="b", Key=key, Body=b"")
    s3.delete_object(Bucket="b", Key="x")
    said = s3.delete_objects(Bucket="b", Delete={"Objects": [{"Key": "<y>&"}, {"Key": "z"}]})
    assert [one["Key"] for one in said["Deleted"]] == ["<y>&", "z"]
    for key in ("x", "<y>&", "z"):
        with pytest.raises(s3.exceptions.NoSuchKey):
            s3.get_object(Bucket="b", Key=key)


def test_uploads_in_parts_and_streams_arrive_whole(s3: Any) -> None:
    body = os.urandom(11 * 1024 * 1024)
    s3.upload_fileobj(BytesIO(body), "b", "large", Config=TransferConfig(multipart_threshold=5 * 1024 * 1024))
    arrived = BytesIO()
    s3.download_fileobj("b", "large", arrived)
    assert arrived.getvalue() == body
    assert s3.head_object(Bucket="b", Key="large")["ETag"].endswith('-2"')
    given_up = s3.create_multipart_upload(Bucket="b", Key="up")["UploadId"]
    s3.abort_multipart_upload(Bucket="b", Key="up", UploadId=given_up)
    with pytest.raises(s3.exceptions.NoSuchUpload):
        s3.abort_multipart_upload(Bucket="b", Key="up", UploadId=given_up)


def test_a_delay_is_waited_by_many_at_once() -> None:
    with FastS3(delay_seconds=0.5) as server, ThreadPoolExecutor(16) as pool:
        client = client_of(server.url)
        began = time.monotonic()
        list(pool.map(lambda number: client.head_bucket(Bucket=f"b{number}"), range(16)))
        client.close()
    assert 0.5 <= time.monotonic() - began < 8
