"""Staging stores: the same expectations of a local folder and of GCS."""

from __future__ import annotations

import errno
import fcntl
import os
import pickle
import signal
import stat
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from beam_llm.errors import LedgerError, UsageError
from beam_llm.stores import local_copy, open_store
from beam_llm.stores.local import LocalStore
from beam_llm.stores.names import valid_name


@pytest.fixture(params=["local", "gcs"])
def location(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return (
        str(tmp_path / "staging")
        if request.param == "local"
        else str(request.getfixturevalue("gcs_location"))
    )


def test_an_object_is_created_once_and_keeps_its_first_content(location: str) -> None:
    store = open_store(location)
    assert store.create("log/1", b"first")
    assert not store.create("log/1", b"second")
    assert store.get("log/1") == b"first"


def test_of_many_racers_exactly_one_creates(location: str) -> None:
    won: list[int] = []
    for round_ in range(5):
        barrier = threading.Barrier(8)

        def race(
            racer: int, name: str = f"log/{round_}", barrier: threading.Barrier = barrier
        ) -> None:
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


@pytest.mark.parametrize(
    "name", ["", "/a", "../a", "a/../b", "a//b", "a/", ".hidden", "a\\b", "a b", "ü"]
)
def test_names_that_could_leave_the_location_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="staging object"):
        valid_name(name)


@pytest.mark.parametrize(
    ("location", "advice"),
    [
        ("ftp://x", "no store for ftp"),
        ("gs://", "bucket is missing"),
    ],
)
def test_a_location_without_a_store_is_a_clear_error(location: str, advice: str) -> None:
    with pytest.raises(UsageError, match=advice):
        open_store(location)


def test_a_file_in_the_place_of_the_folder_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(LedgerError, match="can't be used"):
        open_store(str(tmp_path / "file"))


def test_a_file_system_that_lets_every_creator_win_is_found_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def pretend(self: LocalStore, name: str, data: bytes) -> bool:
        self.put(name, data)
        return True

    monkeypatch.setattr(LocalStore, "create", pretend)
    with pytest.raises(LedgerError, match="no atomic create"):
        open_store(str(tmp_path / "other"))


def test_a_file_system_without_hard_links_is_a_clear_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(source: str, target: str) -> None:
        raise PermissionError("operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    with pytest.raises(LedgerError, match="hard link"):
        open_store(str(tmp_path / "another"))


def test_nothing_half_written_is_ever_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store(str(tmp_path / "staging"))

    def die(file: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", die)
    for write in (store.create, store.put):
        with pytest.raises(KeyboardInterrupt):
            write("log/1", b"x" * 1000)
    assert store.get("log/1") is None
    assert list(store.list("")) == []


KILLED_AT_SYNC = """
import os, signal, sys
from beam_llm.stores import open_store
store = open_store(sys.argv[1], probe=False)
os.umask(0)
os.fsync = lambda file: os.kill(os.getpid(), signal.SIGKILL)
store.put_file("a", sys.argv[3]) if sys.argv[2] == "put_file" else getattr(store, sys.argv[2])("a", b"a prompt")
"""


@pytest.mark.parametrize("verb", ["create", "put", "put_file"])
def test_what_a_killed_writer_leaves_is_its_users_alone_and_is_swept(
    tmp_path: Path, verb: str
) -> None:
    folder, source = tmp_path / "staging", tmp_path / "source"
    source.write_bytes(b"a prompt")
    child = subprocess.run([sys.executable, "-c", KILLED_AT_SYNC, str(folder), verb, str(source)])
    assert child.returncode == -signal.SIGKILL
    (left,) = (folder / ".tmp").iterdir()
    assert stat.S_IMODE(left.stat().st_mode) == 0o600
    store = open_store(str(folder))
    assert store.sweep(dry_run=True) == [str(left)] == store.sweep()
    assert list((folder / ".tmp").iterdir()) == []
    assert store.sweep() == []


def test_a_file_swept_before_it_is_locked_does_not_come_into_being_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, flock, swept = open_store(str(tmp_path / "staging")), fcntl.flock, []

    def sweep_first(file: int, operation: int) -> None:
        if not swept:
            swept.append(True)  # before, or it would be called for ever
            swept[0] = open_store(str(tmp_path / "staging")).sweep()
        flock(file, operation)

    monkeypatch.setattr(fcntl, "flock", sweep_first)
    assert store.create("a", b"a prompt")
    assert len(swept[0]) == 1
    assert store.get("a") == b"a prompt"
    assert stat.S_IMODE((tmp_path / "staging" / "a").stat().st_mode) == 0o600
    assert list((tmp_path / "staging" / ".tmp").iterdir()) == []


def test_a_store_of_another_package_is_found_by_its_scheme(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "other_package-1.0.dist-info"
    package.mkdir()
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: other-package\nVersion: 1.0\n")
    (package / "entry_points.txt").write_text("[beam_llm.stores]\nother = other_store:open_other\n")
    (tmp_path / "other_store.py").write_text(
        "from beam_llm.stores.local import LocalStore\n\n"
        f"def open_other(location):\n    return LocalStore(location.replace('other:/', {str(tmp_path)!r}))\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    assert open_store("other://staging").create("a", b"1")
    assert (tmp_path / "staging" / "a").read_bytes() == b"1"


def test_the_winner_whose_answer_was_lost_is_told_that_it_won(
    gcs_location: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from google.cloud.storage import Blob

    store, upload = open_store(gcs_location), Blob.upload_from_string

    def upload_twice(self: Any, data: bytes, **options: Any) -> None:
        """What the library does when the first answer is lost."""
        upload(self, data, **options)
        upload(self, data, **options)

    monkeypatch.setattr(Blob, "upload_from_string", upload_twice)
    assert store.create("log/1", b"mine")
    assert not store.create("log/1", b"another's")


def test_a_folder_on_a_full_disk_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store(str(tmp_path / "staging"))

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    for write in (store.create, store.put):
        with pytest.raises(LedgerError, match="staging' can't be written: No space left on device"):
            write("a", b"a prompt")
