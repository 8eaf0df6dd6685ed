"""Staging stores: the same expectations of a local folder and of GCS."""

from __future__ import annotations

import os
import pickle
import threading
from pathlib import Path
from typing import Any

import pytest

from beam_llm import stores
from beam_llm.errors import LedgerError, UsageError
from beam_llm.jobs import open_store
from beam_llm.stores import LocalStore, checked_name, local_copy


@pytest.fixture(params=["local", "gcs"])
def location(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "staging") if request.param == "local" else str(request.getfixturevalue("gcs_location"))


def test_an_object_is_created_once_and_keeps_its_first_content(location: str) -> None:
    store = open_store(location)
    assert store.create("log/1", b"first")
    assert not store.create("log/1", b"second")
    assert store.get("log/1") == b"first"


def test_of_many_racers_exactly_one_creates(location: str) -> None:
    won: list[int] = []
    for round_ in range(5):
        barrier = threading.Barrier(8)

        def race(racer: int, name: str = f"log/{round_}", barrier: threading.Barrier = barrier) -> None:
            store = open_store(location, probe=False)
            barrier.wait()
            if store.create(name, str(racer).encode()):
                won.append(racer)
                assert store.get(name) == str(racer).encode()

        threads = [threading.Thread(target=race, args=(racer,)) for racer in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(won) == 5


def test_what_is_missing_is_none_and_deleting_it_is_harmless(location: str, tmp_path: Path) -> None:
    store = open_store(location)
    assert store.get("nothing/here") is None
    assert not store.get_file("nothing/here", str(tmp_path / "copy"))
    store.delete("nothing/here")
    with pytest.raises(LedgerError, match="nothing/here"), local_copy(store, "nothing/here"):
        pass


def test_put_replaces_the_whole_object(location: str, tmp_path: Path) -> None:
    store = open_store(location)
    store.put("a", b"long content")
    (tmp_path / "file").write_bytes(b"short")
    store.put_file("a", str(tmp_path / "file"))
    assert store.get("a") == b"short"
    assert store.get_file("a", str(tmp_path / "copy"))
    assert (tmp_path / "copy").read_bytes() == b"short"


def test_names_are_listed_in_order_by_prefix_after_a_name(location: str) -> None:
    store = open_store(location)
    for name in ("log/2", "log/10", "log/1", "logs", "jobs/1/done", "jobs/1/ask/1"):
        store.put(name, b"x")
    assert list(store.list("log/")) == ["log/1", "log/10", "log/2"]
    assert list(store.list("log/", "log/10")) == ["log/2"]
    assert list(store.list("jobs/1/")) == ["jobs/1/ask/1", "jobs/1/done"]
    assert list(store.list("nothing/")) == []


def test_a_store_travels_by_its_location(location: str) -> None:
    store = pickle.loads(pickle.dumps(open_store(location)))
    store.put("a", b"1")
    assert open_store(location).get("a") == b"1"


@pytest.mark.parametrize("name", ["", "/a", "../a", "a/../b", "a//b", "a/", ".hidden", "a\\b", "a b", "ü"])
def test_names_that_could_leave_the_location_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="staging object"):
        checked_name(name)


@pytest.mark.parametrize(
    ("location", "advice"),
    [("s3://bucket/x", "objectstore"), ("az://c/x", "objectstore"), ("ftp://x", "no store for ftp"), ("gs://", "bucket is missing")],
)
def test_a_location_without_a_store_is_a_clear_error(location: str, advice: str) -> None:
    with pytest.raises(UsageError, match=advice):
        open_store(location)


def test_a_file_in_the_place_of_the_folder_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(LedgerError, match="can't be used"):
        open_store(str(tmp_path / "file"))


def test_a_file_system_that_lets_every_creator_win_is_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def pretend(self: LocalStore, name: str, data: bytes) -> bool:
        self.put(name, data)
        return True

    monkeypatch.setattr(LocalStore, "create", pretend)
    with pytest.raises(LedgerError, match="no atomic create"):
        open_store(str(tmp_path / "other"))


def test_a_file_system_without_hard_links_is_a_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(source: str, target: str) -> None:
        raise PermissionError("operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    with pytest.raises(LedgerError, match="hard link"):
        open_store(str(tmp_path / "another"))


def test_nothing_half_written_is_ever_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store(str(tmp_path / "staging"))

    def die(file: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(stores, "_sync", die)
    for write in (store.create, store.put):
        with pytest.raises(KeyboardInterrupt):
            write("log/1", b"x" * 1000)
    assert store.get("log/1") is None
    assert list(store.list("")) == []


def test_the_winner_whose_answer_was_lost_is_told_that_it_won(gcs_location: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from google.cloud.storage import Blob

    store, upload = open_store(gcs_location), Blob.upload_from_string

    def upload_twice(self: Any, data: bytes, **options: Any) -> None:
        """What the library does when the first answer is lost."""
        upload(self, data, **options)
        upload(self, data, **options)

    monkeypatch.setattr(Blob, "upload_from_string", upload_twice)
    assert store.create("log/1", b"mine")
    assert not store.create("log/1", b"another's")
