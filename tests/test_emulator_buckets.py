"""The emulator's own buckets, driven by the official clients of Cloud Storage and of S3."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.exceptions import ClientError
from google.auth.credentials import AnonymousCredentials
from google.cloud import storage

from beam_llm.stores import open_store, store_at
from beam_llm.testing import Emulator

ODD = "é x/+&%2F/../a.b"


@pytest.fixture
def emulator(monkeypatch: pytest.MonkeyPatch) -> Iterator[Emulator]:
    with Emulator() as running:
        environment = running.environment_of("bedrock") | running.buckets_environment
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        yield running


@pytest.fixture
def s3(emulator: Emulator) -> Iterator[Any]:
    with closing(boto3.client("s3")) as client:
        yield client


def test_cloud_storages_client_reads_what_it_wrote_and_creates_once(emulator: Emulator) -> None:
    store = open_store("gs://bucket/a path")
    assert store.create("x/1", b"first")
    assert not store.create("x/1", b"second")
    assert store.get("x/1") == b"first"
    assert (store.read("x/1", 1, 3), store.read("x/1", 9, 10)) == (b"ir", b"")
    store.put("x", b"beside the folder of its name")
    assert list(store.list("")) == ["x", "x/1"]
    assert list(store.list("x", "x")) == ["x/1"]
    store.delete("x")
    store.delete("x")
    assert store.get("x") is None
    assert list(store_at("gs://another").list("")) == []


def test_an_object_says_when_it_was_written_as_beams_file_system_wants_it(
    emulator: Emulator,
) -> None:
    open_store("gs://bucket/in").put("reviews.jsonl", b"a line")
    with closing(storage.Client("any", AnonymousCredentials())) as client:
        [found] = client.list_blobs("bucket", prefix="in/")
    assert abs(found.updated.timestamp() - time.time()) < 600


def test_cloud_storages_client_uploads_in_pieces(emulator: Emulator, tmp_path: Path) -> None:
    data = os.urandom(9_000_000)
    (tmp_path / "large").write_bytes(data)
    store = store_at("gs://bucket/path")
    store.put_file("large", str(tmp_path / "large"))
    assert store.get("large") == data


def test_cloud_storages_client_asks_for_objects_alone(
    emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = pytest.importorskip("google.cloud.storage._bucket_metadata_cache")
    asked: list[str] = []
    note = lambda self, bucket: asked.append(bucket)  # noqa: E731
    monkeypatch.setattr(module.BucketMetadataCache, "get_or_queue_fetch", note)
    open_store("gs://bucket/path").put("x", b"1")
    assert asked == []


def test_boto3_reads_what_it_wrote_whatever_the_key(s3: Any) -> None:
    s3.put_object(Bucket="bucket", Key=ODD, Body=b"12345")
    assert s3.get_object(Bucket="bucket", Key=ODD)["Body"].read() == b"12345"
    assert s3.get_object(Bucket="bucket", Key=ODD, Range="bytes=1-2")["Body"].read() == b"23"
    (entry,) = s3.list_objects_v2(Bucket="bucket", Prefix="é")["Contents"]
    assert (entry["Key"], entry["Size"]) == (ODD, 5)
    s3.delete_object(Bucket="bucket", Key=ODD)
    with pytest.raises(ClientError, match="NoSuchKey"):
        s3.get_object(Bucket="bucket", Key=ODD)


def test_boto3_creates_once_and_lists_page_by_page(s3: Any) -> None:
    for key in ("a", "b", "c"):
        s3.put_object(Bucket="bucket", Key=key, Body=b"", IfNoneMatch="*")
    with pytest.raises(ClientError, match="PreconditionFailed"):
        s3.put_object(Bucket="bucket", Key="a", Body=b"", IfNoneMatch="*")
    pages = s3.get_paginator("list_objects_v2").paginate(Bucket="bucket", MaxKeys=2)
    found = [[entry["Key"] for entry in page["Contents"]] for page in pages]
    assert found == [["a", "b"], ["c"]]


@pytest.mark.parametrize("size", [0, 5, 12_000_000], ids=["empty", "small", "in parts"])
def test_a_staging_store_in_s3_keeps_files_of_any_size(
    emulator: Emulator, tmp_path: Path, size: int
) -> None:
    data, copy = os.urandom(size), tmp_path / "copy"
    (tmp_path / "file").write_bytes(data)
    store = open_store("s3://bucket/a-path")
    store.put_file("x/1", str(tmp_path / "file"))
    assert store.get_file("x/1", str(copy))
    assert copy.read_bytes() == data
    assert not store.create("x/1", b"")
    store.delete("x/1")
    assert list(store.list("")) == []
    assert store.create("x/1", b"again")


def test_nothing_is_read_or_written_outside_of_the_folder(emulator: Emulator) -> None:
    objects = emulator.service.buckets.objects
    root = objects.path("bucket", "x").parents[1]
    for bucket, name in (("..", "x"), (".", ".."), ("b", "../../x"), ("/etc", "/passwd")):
        assert root in objects.path(bucket, name).resolve().parents
