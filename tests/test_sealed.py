"""What is damaged, replaced or lost in a staging location is an error that names it, or is written
anew; never a wrong answer.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import orjson
import pytest

from beam_llm.errors import LedgerError
from beam_llm.jobs import tidy
from beam_llm.ledger.journal import Done, parse
from beam_llm.stores import open_store
from tests.batch_world import World, wrong

TEXTS = [f"question {number}" for number in range(9)]


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(str(tmp_path / "staging"))


def the_object(world: World, folder: str, ending: str) -> Path:
    (found,) = sorted(Path(world.location).glob(f"{folder}/*{ending}"))[:1]
    return found


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "a bit": lambda data: data[:40] + bytes([data[40] ^ 1]) + data[41:],
    "another answer of the same length": lambda data: data.replace(b"question 1", b"question 7"),
    "cut": lambda data: data[:-7],
    "emptied": lambda data: b"",
}


@pytest.mark.parametrize("ending", [".rows", ".index"])
@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_answers_are_never_given(world: World, ending: str, damage: str) -> None:
    world.run(TEXTS)
    answers = the_object(world, "jobs/*", ending)
    whole = answers.read_bytes()
    answers.write_bytes(DAMAGE[damage](whole))
    world.restart()
    if answers.read_bytes() == whole:
        return
    with pytest.raises(LedgerError, match=answers.stem):
        world.run(TEXTS)
    answers.write_bytes(whole)
    assert not wrong(world.run(TEXTS), TEXTS)


@pytest.mark.parametrize("what", ["rows gone", "rows damaged", "index gone", "index damaged"])
def test_parts_that_were_lost_are_written_anew_by_a_run_that_has_the_records(
    world: World, what: str
) -> None:
    world.run(TEXTS)
    for part in Path(world.location).glob(f"parts/*.{what.split()[0]}"):
        if what.endswith("gone"):
            part.unlink()
        else:
            part.write_bytes(part.read_bytes().replace(b"question", b"QUESTION")[:-1])
    world.restart()
    assert not wrong(world.run(TEXTS), TEXTS)
    assert world.fake.calls["create"] == 1


def test_another_part_under_a_parts_name_is_noticed(world: World) -> None:
    """Its own seals are all right; but it is not what its name says."""
    refs = world.plan(TEXTS)
    other = World(world.location + "-other")
    other.plan([text.upper() for text in TEXTS])
    for folder in ("parts", "manifests"):
        mine = sorted(Path(world.location, folder).iterdir())
        for target, source in zip(
            mine, sorted(Path(other.location, folder).iterdir()), strict=False
        ):
            if target.suffix == source.suffix:
                target.write_bytes(source.read_bytes())
    with pytest.raises(LedgerError, match="not match"):
        world.driver().step(refs[0])


def test_the_end_of_another_job_is_not_taken_for_ones_own(world: World) -> None:
    world.run(TEXTS)
    done = Path(world.location) / "jobs" / f"{1:020d}" / "done"
    written = parse("done", done.read_bytes(), Done)
    done.write_bytes(replace(written, intent="0123456789ab-1-0123456789ab").dumps())
    world.restart()
    with pytest.raises(LedgerError, match="of another job"):
        world.run(TEXTS)


@pytest.mark.parametrize("missing", ["intent", "outcomes", "counts", "format"])
def test_an_end_without_one_of_its_members_is_named(world: World, missing: str) -> None:
    world.run(TEXTS)
    done = Path(world.location) / "jobs" / f"{1:020d}" / "done"
    facts = orjson.loads(done.read_bytes())
    done.write_bytes(orjson.dumps({name: fact for name, fact in facts.items() if name != missing}))
    world.restart()
    with pytest.raises(LedgerError, match=f"jobs/{1:020d}/done"):
        world.run(TEXTS)


def test_an_end_of_a_newer_format_is_not_read(world: World) -> None:
    world.run(TEXTS)
    done = Path(world.location) / "jobs" / f"{1:020d}" / "done"
    done.write_bytes(orjson.dumps({**orjson.loads(done.read_bytes()), "format": 42}))
    world.restart()
    with pytest.raises(LedgerError, match="format 42"):
        world.run(TEXTS)


# Whose it is


def test_all_that_lies_in_a_local_location_is_its_users_alone(world: World) -> None:
    before = os.umask(0)
    try:
        world.run(TEXTS)
    finally:
        os.umask(before)
    found = [path.stat() for path in Path(world.location).rglob("*")]
    assert {stat.S_IMODE(each.st_mode) for each in found} == {0o700, 0o600}


def test_a_location_of_somebody_else_or_open_to_all_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "open"
    folder.mkdir()
    for mode in (0o777, 0o1777):
        folder.chmod(mode)
        with pytest.raises(LedgerError, match="by anybody"):
            open_store(str(folder))
    folder.chmod(0o755)
    open_store(str(folder))
    monkeypatch.setattr(os, "geteuid", lambda: 4321)
    os.chown(folder, 1234, -1) if os.getuid() == 0 else None
    if os.getuid() == 0:
        with pytest.raises(LedgerError, match="another user"):
            open_store(str(folder))


# What killed processes leave


def test_cleanup_removes_what_killed_processes_were_writing_and_nothing_else(world: World) -> None:
    world.run(TEXTS)
    store = open_store(world.location)
    left = Path(world.location) / ".tmp" / "123-abc"
    left.write_bytes(b"a prompt")
    assert tidy.cleanup(store, {}, dry_run=True).leftovers == [str(left)]
    assert left.exists()
    assert tidy.cleanup(store, {}, dry_run=False).leftovers == [str(left)]
    assert not left.exists()


def test_cleanup_leaves_alone_what_is_being_written(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.run(TEXTS)
    store, sync, swept = open_store(world.location), os.fsync, []

    def tidy_meanwhile(file: int) -> None:
        swept.append(tidy.cleanup(open_store(world.location), {}, dry_run=False).leftovers)
        sync(file)

    monkeypatch.setattr(os, "fsync", tidy_meanwhile)
    store.put("a/note", b"of a process that is alive")
    assert swept
    assert not any(swept)
    assert store.get("a/note") == b"of a process that is alive"
