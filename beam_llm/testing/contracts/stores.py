"""What every staging store promises (`protocols.Store`), one test for each promise.

    from beam_llm.stores import open_store
    from beam_llm.testing.contracts import StoreContract

    class TestAFolder(StoreContract):
        def store(self):
            return open_store(str(self.tmp_path / "staging"))

Some tests start other processes: the store is pickled for them, so its class has to be importable
there.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

from beam_llm.errors import LedgerError
from beam_llm.protocols import Store
from beam_llm.stores import probe_create

# Not "fork": client libraries have threads, and a fork would copy locks that they hold.
_SPAWN = multiprocessing.get_context("spawn")
_CHILD_SECONDS = 120.0
_BIG_BYTES = 9 * 2**20
"""Larger than the size from which client libraries send an object in several requests."""

# Repetitions of a short text: so many that a writer is killed while it writes.
_REPEATS = 2**20

GOOD_NAMES = (
    "a",
    "log/00000000000000000001",
    "jobs/7/creating-0001",
    "-x_/a=b.c",
    "0" * 200,
    "/".join("abcdefgh"),
    "part.rows",
)
# Names that some store would take for another name, a folder, a query or a pattern.
BAD_NAMES = (
    "",
    "/a",
    "../a",
    "a/../b",
    "a/./b",
    "a//b",
    "a/",
    ".hidden",
    "a/.hidden",
    "a\\b",
    "a b",
    "a\nb",
    "a\0",
    "ü",
    "a?b",
    "a#b",
)
CONTENTS = {
    "nothing": b"",
    "every byte": bytes(range(256)),
    # Text modes, and clients that decompress by content, would change the next two.
    "line ends": b"a\r\nb\nc\r\xe2\x80\xa8",
    "what looks compressed": b"\x1f\x8b\x08\x00not gzip",
    "much": bytes(range(251)) * (_BIG_BYTES // 251),
}


class StoreContract:
    """Tests of a staging store. Subclass it under a name that begins with `Test`, and override
    `store`.

    Attributes:
      tmp_path: a local folder that belongs to the running test.
      racing_processes: how many processes race for one name.
      long_list: a number of names that is larger than what the store lists in one request.
    """

    tmp_path: Path
    racing_processes = 2
    long_list = 1_003

    def store(self) -> Store:
        """A store at a new, empty location; called once in each test."""
        raise NotImplementedError(f"{type(self).__name__} must override store()")

    @pytest.fixture(autouse=True)
    def _folder_of_the_test(self, tmp_path: Path) -> None:
        self.tmp_path = tmp_path

    # Create

    def test_an_object_is_created_once_and_keeps_its_first_content(self) -> None:
        store = self.store()
        assert store.create("log/1", b"first") is True
        assert store.create("log/1", b"second") is False
        assert store.get("log/1") == b"first"

    def test_what_was_put_or_deleted_counts_for_create(self) -> None:
        store = self.store()
        store.put("a", b"put")
        assert not store.create("a", b"created")
        store.delete("a")
        assert store.create("a", b"created")
        assert store.get("a") == b"created"

    @pytest.mark.parametrize("shared", [True, False], ids=["one client", "a client each"])
    def test_of_many_racing_threads_exactly_one_creates(self, shared: bool) -> None:
        store = self.store()
        racers = [store if shared else _reopen(store) for _ in range(8)]
        # Several races, since one may succeed by luck.
        for race in range(5):
            barrier, name = threading.Barrier(len(racers)), f"log/{race}"

            def run(number: int, barrier: threading.Barrier = barrier, name: str = name) -> bool:
                barrier.wait(_CHILD_SECONDS)
                return racers[number].create(name, _content_of(number, race))  # noqa: B023

            with ThreadPoolExecutor(len(racers)) as pool:
                won = [
                    number
                    for number, first in enumerate(pool.map(run, range(len(racers))))
                    if first
                ]
            assert len(won) == 1, f"{len(won)} of {len(racers)} threads created {name}"
            # The winner's content, too: a loser must not have written before it lost.
            assert store.get(name) == _content_of(won[0], race)

    def test_of_racing_processes_exactly_one_creates(self) -> None:
        store, races = self.store(), 10
        with _processes(_race, self.racing_processes, store, races) as children:
            for child in children:
                assert child.recv() == "ready"
            for child in children:
                child.send("go")
            won = [_receive(child) for child in children]
        for race in range(races):
            winners = [number for number, wins in enumerate(won) if race in wins]
            assert len(winners) == 1, f"race {race} was won by {len(winners)} processes"
            assert store.get(f"log/{race}") == _content_of(winners[0], race)

    def test_a_created_object_is_seen_complete_or_not_at_all(self) -> None:
        store, data = self.store(), CONTENTS["much"]
        with _running(lambda: store.create("jobs/1/done", data)) as is_over:
            seen = {store.get("jobs/1/done")}
            while not is_over():
                seen.add(store.get("jobs/1/done"))
        assert seen <= {None, data}
        assert store.get("jobs/1/done") == data

    def test_the_probe_passes(self) -> None:
        store = self.store()
        probe_create(store)
        assert list(store.list("")) == []

    # gcp-storage-emulator 2026.7.19 is one: it accepts `if_generation_match=0` and overwrites.
    def test_a_store_that_pretends_to_create_is_found_out(self) -> None:
        with pytest.raises(LedgerError, match="no atomic create"):
            probe_create(_Pretender(self.store()))

    # Put, get, read

    @pytest.mark.parametrize("data", CONTENTS.values(), ids=CONTENTS)
    def test_bytes_are_kept_as_they_are_whichever_way_they_go(self, data: bytes) -> None:
        store, source, copy = self.store(), self.tmp_path / "source", self.tmp_path / "copy"
        source.write_bytes(data)
        store.create("created", data)
        store.put("put", data)
        store.put_file("file", str(source))
        for name in ("created", "put", "file"):
            # Longer than most contents, to detect a copy that does not truncate.
            copy.write_bytes(b"what was there before" * 100)
            assert store.get(name) == data
            assert store.get_file(name, str(copy)) is True
            assert copy.read_bytes() == data
            assert store.read(name, 0, len(data)) == data

    def test_put_replaces_the_object_as_a_whole(self) -> None:
        store, source = self.store(), self.tmp_path / "source"
        source.write_bytes(b"short")
        store.put("a", b"long content")
        store.put_file("a", str(source))
        assert store.get("a") == b"short"
        store.put("a", b"x")
        assert store.get("a") == b"x"

    def test_a_reader_sees_one_content_or_the_next_and_no_mixture(self) -> None:
        store = self.store()
        # Different lengths and bytes, so that neither a mixture nor a truncated version passes.
        versions = [bytes([number]) * (300_000 + 50_000 * number) for number in range(8)]
        store.put("a", versions[0])

        def replace() -> None:
            for version in versions[1:]:
                store.put("a", version)

        with _running(replace) as is_over:
            while not is_over():
                assert store.get("a") in versions
        assert store.get("a") == versions[-1]

    def test_a_put_that_fails_leaves_what_was_there(self) -> None:
        store = self.store()
        store.put("a", b"before")
        for name in ("a", "b"):
            with pytest.raises(OSError):  # noqa: PT011 - any subclass
                store.put_file(name, str(self.tmp_path / "no such file"))
        assert store.get("a") == b"before"
        assert list(store.list("")) == ["a"]

    @pytest.mark.parametrize(
        ("start", "end", "expected"),
        [
            (0, 3, b"012"),
            (3, 7, b"3456"),
            (9, 10, b"9"),
            (8, 99, b"89"),
            (10, 12, b""),
            (99, 100, b""),
            (4, 4, b""),
            (0, 0, b""),
        ],
    )
    def test_a_range_is_read_as_far_as_the_object_goes(
        self, start: int, end: int, expected: bytes
    ) -> None:
        store = self.store()
        store.put("a", b"0123456789")
        assert store.read("a", start, end) == expected

    def test_what_is_missing_is_none_or_false_and_leaves_no_file(self) -> None:
        store, copy = self.store(), self.tmp_path / "copy"
        store.put("here/too", b"1")
        # In a file system "here" is a folder, and "here/too" would be a folder for "here/too/deep".
        for name in ("nothing", "here", "here/to", "here/too/deep"):
            assert store.get(name) is None
            assert store.read(name, 0, 5) is None
            assert store.read(name, 0, 0) is None
            assert store.get_file(name, str(copy)) is False
            assert not copy.exists()

    # List, delete

    def test_names_are_listed_in_order_by_prefix_after_a_name(self) -> None:
        store = self.store()
        # In the order of bytes, which is not that of folders: "log-old" comes before "log/1".
        for name in (
            "log/2",
            "log/10",
            "log/1",
            "logs",
            "jobs/1/done",
            "jobs/1/ask/1",
            "jobs/10/done",
            "log-old",
        ):
            store.put(name, b"x")
        assert list(store.list("log/")) == ["log/1", "log/10", "log/2"]
        assert list(store.list("log/", "log/10")) == ["log/2"]
        assert list(store.list("log/", "log/11")) == ["log/2"]
        assert list(store.list("log/", "log/2")) == []
        assert list(store.list("log/1")) == ["log/1", "log/10"]
        assert list(store.list("jobs/1/")) == ["jobs/1/ask/1", "jobs/1/done"]
        assert list(store.list("lo")) == ["log-old", "log/1", "log/10", "log/2", "logs"]
        assert list(store.list("nothing/")) == []
        assert list(store.list("../")) == []
        assert len(list(store.list(""))) == 8

    def test_a_list_longer_than_a_page_is_complete_and_in_order(self) -> None:
        store, names = self.store(), [f"log/{number:020d}" for number in range(self.long_list)]
        with ThreadPoolExecutor(8) as pool:
            assert all(pool.map(lambda name: store.create(name, b"x"), reversed(names)))
        assert list(store.list("log/")) == names
        assert list(store.list("log/", names[9])) == names[10:]

    def test_what_was_written_is_listed_at_once_and_what_was_deleted_no_more(self) -> None:
        store = self.store()
        # By another client: workers find each other's intents only by the list.
        other = _reopen(store)
        for number in range(20):
            store.create(f"jobs/1/creating-{number:04d}", b"x")
            assert len(list(other.list("jobs/1/"))) == number + 1
        for number in range(20):
            other.delete(f"jobs/1/creating-{number:04d}")
            assert len(list(store.list("jobs/1/"))) == 19 - number

    def test_deleting_is_harmless_where_there_is_nothing(self) -> None:
        store = self.store()
        store.put("here", b"1")
        for name in ("nothing", "not/here", "here/too", "here", "here"):
            store.delete(name)
        assert list(store.list("")) == []

    # Names

    @pytest.mark.parametrize("name", GOOD_NAMES, ids=lambda name: name[:20])
    def test_names_of_plain_segments_are_taken(self, name: str) -> None:
        store = self.store()
        assert store.create(name, b"1")
        assert not store.create(name, b"2")
        assert store.get(name) == b"1"
        assert list(store.list("")) == [name]
        assert list(store.list(name)) == [name]

    @pytest.mark.parametrize("name", BAD_NAMES, ids=repr)
    def test_other_names_are_refused_by_every_verb(self, name: str) -> None:
        store, path = self.store(), self.tmp_path / "file"
        path.write_bytes(b"1")
        verbs: list[Callable[[], Any]] = [
            lambda: store.create(name, b"1"),
            lambda: store.put(name, b"1"),
            lambda: store.put_file(name, str(path)),
            lambda: store.get(name),
            lambda: store.get_file(name, str(path)),
            lambda: store.read(name, 0, 1),
            lambda: store.delete(name),
        ]
        for verb in verbs:
            with pytest.raises(ValueError):  # noqa: PT011 - the message is the store's own
                verb()
        assert list(store.list("")) == []

    # Location

    def test_it_travels_by_its_location(self) -> None:
        store = self.store()
        store.put("a", b"1")
        other = _reopen(store)
        assert type(other) is type(store)
        assert isinstance(store.location, str)
        assert other.location == store.location != ""
        other.put("b", b"2")
        assert (other.get("a"), store.get("b")) == (b"1", b"2")

    def test_a_local_path_has_the_objects_bytes(self) -> None:
        store = self.store()
        store.put("a/b", b"content")
        path, other = store.path_of("a/b"), store.path_of("not/there")
        assert (path is None) == (other is None)
        if path is not None and other is not None:
            assert path.read_bytes() == b"content"
            assert not other.exists()

    # Killed writers

    def test_a_writer_that_is_killed_leaves_one_content_or_the_other(self) -> None:
        store = self.store()
        store.put("here", b"1")
        with _processes(_write_for_ever, 1, store) as (child,):
            assert child.recv() == "ready"
            while store.get("big") is None:
                # A process that has died closes its end, which makes the pipe readable.
                assert not child.poll(), "the writer has ended by itself"
        contents = (_content_of(0, _REPEATS), _content_of(1, _REPEATS))
        assert store.get("big") in contents
        assert list(store.list("")) == ["big", "here"]
        expected = list(store.sweep(dry_run=True))
        assert list(store.sweep()) == expected
        assert list(store.sweep()) == []
        assert store.get("big") in contents  # a server may already have received the next version
        assert store.get("here") == b"1"


class _Pretender:
    """A store whose every create succeeds, as with some imitations of S3 and GCS."""

    def __init__(self, store: Store):
        self._store = store

    def create(self, name: str, data: bytes) -> bool:
        self._store.put(name, data)
        return True

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)


def _reopen(store: Store) -> Store:
    """The same location through another client, as on a worker."""
    other: Store = pickle.loads(pickle.dumps(store))
    return other


def _content_of(number: int, repeats: int) -> bytes:
    """Bytes that show who wrote them, and whether two writers' bytes are mixed."""
    return f"{number}:".encode() * (repeats + 1)


@contextlib.contextmanager
def _running(work: Callable[[], Any]) -> Iterator[Callable[[], bool]]:
    """Runs `work` in a thread; yields a function that says whether it has ended, and raises its
    error at the end."""
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(work)
        yield running.done
        running.result(_CHILD_SECONDS)


# What runs in other processes


@contextlib.contextmanager
def _processes(
    work: Callable[..., None], count: int, *arguments: Any
) -> Iterator[list[Connection[Any, Any]]]:
    """Yields connections to processes that run `work(number, connection, *arguments)`; kills them
    at the end.
    """
    ends: list[Connection[Any, Any]] = []
    children = []
    try:
        for number in range(count):
            ours, theirs = _SPAWN.Pipe()
            ends.append(ours)
            child = _SPAWN.Process(target=work, args=(number, theirs, *arguments), daemon=True)
            child.start()
            children.append(child)
            # Otherwise the pipe stays open on this side, and hides a child's death.
            theirs.close()
        yield ends
    finally:
        for child in children:
            if child.pid is not None and child.is_alive():
                os.kill(child.pid, signal.SIGKILL)
            child.join()
            child.close()
        # Only now: a child that writes into a closed pipe would end by itself, and not by a kill.
        for end in ends:
            end.close()


def _receive(child: Connection[Any, Any]) -> Any:
    assert child.poll(_CHILD_SECONDS), "a process did not answer"
    return child.recv()


def _race(number: int, parent: Connection[Any, Any], store: Store, races: int) -> None:
    parent.send("ready")
    parent.recv()
    parent.send(
        [race for race in range(races) if store.create(f"log/{race}", _content_of(number, race))]
    )


def _write_for_ever(number: int, parent: Connection[Any, Any], store: Store) -> None:
    parent.send("ready")
    while True:
        for turn in (0, 1):
            store.put("big", _content_of(turn, _REPEATS))
