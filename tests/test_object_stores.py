"""Staging stores in buckets of S3 and Azure, by obstore: the contract, the probe, and what a user is
told.
"""

from __future__ import annotations

import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from beam_llm.errors import LedgerError, UsageError
from beam_llm.protocols import Store
from beam_llm.stores import open_store
from beam_llm.testing.contracts import StoreContract
from tests.conftest import component

if TYPE_CHECKING:
    from tests.components.s3 import S3Server


@pytest.fixture(scope="module")
def weak_s3() -> Iterator[S3Server]:
    from tests.components.s3 import S3Server

    with component("s3", lambda: S3Server(ignores_preconditions=True)) as server:
        yield server


class TestS3Store(StoreContract):
    @pytest.fixture(autouse=True)
    def _bucket(self, s3_location: str) -> None:
        self.location = s3_location

    def store(self) -> Store:
        return open_store(self.location, probe=False)

    def test_unfinished_uploads_are_swept_after_a_day_and_only_of_this_location(self) -> None:
        import boto3

        client = boto3.client("s3")
        with closing(client):
            self._begun_and_swept(client)

    def _begun_and_swept(self, client: Any) -> None:
        from datetime import timedelta

        from beam_llm.stores import s3

        store = self.store()
        bucket = self.location.split("/")[2]
        for key in ("staging/big", "other/big"):
            client.create_multipart_upload(Bucket=bucket, Key=key)
        with pytest.MonkeyPatch.context() as patch:  # moto's uploads are all of 2010
            patch.setattr(s3, "ABANDONED_AFTER", timedelta(days=36_500))
            assert list(store.sweep()) == []
        assert len(store.sweep(dry_run=True)) == 1
        (swept,) = store.sweep()
        assert swept.startswith(f"s3://{bucket}/staging/big ")
        assert list(store.sweep()) == []
        left = client.list_multipart_uploads(Bucket=bucket)["Uploads"]
        assert [upload["Key"] for upload in left] == ["other/big"]


class TestAzureStore(StoreContract):
    @pytest.fixture(autouse=True)
    def _container(self, azure_location: str) -> None:
        self.location = azure_location

    def store(self) -> Store:
        return open_store(self.location, probe=False)


@pytest.mark.parametrize("fixture", ["s3_location", "azure_location"])
def test_a_location_that_is_a_whole_bucket_works_as_well(
    request: pytest.FixtureRequest, fixture: str
) -> None:
    location = request.getfixturevalue(fixture).rpartition("/")[0]
    store = open_store(location)
    assert store.create("log/1", b"1")
    assert list(store.list("")) == ["log/1"]


def test_a_server_that_ignores_preconditions_is_found_out_when_the_store_is_opened(
    weak_s3: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in weak_s3.environment.items():
        monkeypatch.setenv(name, value)
    weak_s3.make_bucket("weak-bucket")
    with pytest.raises(LedgerError, match="no atomic create"):
        open_store("s3://weak-bucket/staging")


def test_a_create_whose_answer_is_lost_is_still_known_to_have_won(s3_location: str) -> None:
    """obstore repeats it, and the server answers the repeat with 412."""
    import obstore

    store = open_store(s3_location)
    put = obstore.put

    def put_and_repeat(*arguments: Any, **options: Any) -> None:
        put(*arguments, **options)
        put(*arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(obstore, "put", put_and_repeat)
        assert store.create("log/1", b"mine")
    assert not store.create("log/1", b"other")
    assert store.get("log/1") == b"mine"


def test_an_error_names_the_object_and_what_was_said_and_no_secret(
    s3_location: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from beam_llm.stores.objects import ObjectStoreError

    store = open_store(f"s3://no-such-bucket-{uuid.uuid4().hex[:8]}/staging", probe=False)
    (tmp_path / "file").write_bytes(b"1")
    for verb, call in (
        ("created", lambda: store.create("log/1", b"1")),
        ("written", lambda: store.put("log/1", b"1")),
        ("written", lambda: store.put_file("log/1", str(tmp_path / "file"))),
        ("read", lambda: store.get("log/1")),
        ("read", lambda: store.read("log/1", 0, 1)),
        ("listed", lambda: list(store.list("log/"))),
    ):
        with pytest.raises(ObjectStoreError) as caught:
            call()
        said = str(caught.value)
        assert said.startswith(f"{store.location}/log")
        assert verb in said
        assert "HTTP 404 NoSuchBucket" in said
        assert "key" not in said.lower()
        assert caught.value.__cause__ is None


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("status code: 403 Forbidden: <Error><Code>AccessDenied</Code>", "HTTP 403 AccessDenied"),
        ("Received redirect without LOCATION, an incorrectly configured region", "AWS_REGION"),
        ("status code: 400 <Code>AuthorizationHeaderMalformed</Code>", "AWS_REGION"),
        ("status code: 500 at https://a.blob/c?sig=secret", "HTTP 500"),
        ("error sending request for url (https://a.blob/c?sig=secret)", "no answer"),
    ],
)
def test_what_a_server_said_is_told_by_its_number_and_its_word(said: str, told: str) -> None:
    from beam_llm.stores.objects import reason_of

    assert told in reason_of(OSError(said))
    assert "secret" not in reason_of(OSError(said))


def test_a_server_that_is_gone_is_an_error_of_the_store(
    s3_location: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from datetime import timedelta

    from beam_llm.stores import objects, s3

    quick = {"max_retries": 1, "retry_timeout": timedelta(seconds=1)}
    monkeypatch.setattr(s3, "RETRIES", quick)
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")
    with pytest.raises(objects.ObjectStoreError, match=r"log/1 can't be read: no answer"):
        open_store(s3_location, probe=False).get("log/1")
    with pytest.raises(LedgerError, match="can't be used"):
        open_store(f"{s3_location}/elsewhere")


@pytest.mark.parametrize(
    ("location", "advice"),
    [
        ("s3://", "write s3://bucket/path"),
        ("az:///path", "write az://"),
        ("s3://bucket/a b", "segments of letters"),
        ("s3://bucket/../other", "segments of letters"),
    ],
)
def test_a_location_that_can_not_be_one_is_refused_with_the_fix(location: str, advice: str) -> None:
    with pytest.raises(UsageError, match=advice):
        open_store(location)


def test_an_azure_account_that_nobody_names_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AZURE_STORAGE_ACCOUNT_NAME", "AZURE_STORAGE_USE_EMULATOR"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(UsageError, match="export AZURE_STORAGE_ACCOUNT_NAME"):
        open_store("az://container/staging")


@pytest.mark.parametrize("location", ["s3://bucket/staging", "az://container/staging"])
def test_without_obstore_one_sentence_says_what_to_install(location: str) -> None:
    code = (
        "import sys; sys.modules['obstore'] = None\n"
        "from beam_llm.errors import UsageError\n"
        "from beam_llm.ledger.log import check_location\n"
        f"try: check_location({location!r})\n"
        "except UsageError as error: print(error)\n"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == (
        f"staging_location is {location!r}: it needs obstore; "
        "pip install 'beam-llm[objectstore]', or use a local folder or gs://bucket/path"
    )
