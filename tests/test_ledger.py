"""The ledger as an object on disk: formats, golden files, snapshots, damage, secrets; and what
`beam-llm jobs` sees of it.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest

from beam_llm.errors import Failure, LedgerError, UsageError
from beam_llm.jobs import cancel, cleanup, list_jobs, show
from beam_llm.ledger import Ledger, find_ref
from beam_llm.ledger import log as ledger
from beam_llm.ledger.job_tree import JobTree
from beam_llm.ledger.manifest import Manifest
from beam_llm.ledger.outcomes import Outcomes, OutcomeWriter
from beam_llm.protocols import BatchTraits
from beam_llm.stores import open_store
from beam_llm.values import Outcome, Usage
from tests.batch_world import World, driven, wrong

TEXTS = [f"review number {number}" for number in range(20)]
THERE, ELSEWHERE = ("openai", "127.0.0.1:1"), ("openai", "127.0.0.2:1")
GOLDEN = Path(__file__).parent / "golden" / "ledger-v1"
GOLDEN_TEXTS = [f"golden {number}" for number in range(6)]


@pytest.fixture(params=["local", "gcs"])
def world(request: pytest.FixtureRequest, tmp_path: Path) -> World:
    return World(
        str(tmp_path / "staging")
        if request.param == "local"
        else request.getfixturevalue("gcs_location")
    )


@pytest.fixture
def local(tmp_path: Path) -> World:
    return World(str(tmp_path / "staging"))


# The same life on every store


def test_a_job_lives_through_on_every_store(world: World) -> None:
    world.fake.create_faults, world.fake.expire_after = ["lost"], 4
    found = world.run(TEXTS, batch_size=3)
    assert not wrong(found, TEXTS)
    assert max(world.fake.billed.values()) == 1
    calls = dict(world.fake.calls)
    world.restart()
    assert not wrong(world.run(TEXTS[::-1], per_part=3), TEXTS)
    assert dict(world.fake.calls) == calls


def test_two_planners_race_on_every_store(world: World) -> None:
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(3) as pool:
        plans = list(
            pool.map(
                lambda part: world.plan(TEXTS[part * 4 : part * 4 + 12], batch_size=1 + part),
                range(3),
            )
        )
    assert sum(ref.records for refs in plans for ref in refs) == 36
    known = Ledger(open_store(world.location))
    keys = [Manifest.read(known.store, intent.lines).keys for intent in known.intents()]
    assert len(np.unique(np.concatenate(keys))) == sum(len(some) for some in keys) == 20


# Formats


def test_todays_format_is_read_by_every_later_version(tmp_path: Path) -> None:
    """The golden folder was written by the first version. Once that is released, a change that
    can't read it is a new format.
    """
    shutil.copytree(GOLDEN, tmp_path / "staging")
    world = World(str(tmp_path / "staging"))
    world.fake.create = None  # type: ignore[method-assign, assignment]  # everything is answered: nothing may be asked
    found = world.run(GOLDEN_TEXTS)
    assert not wrong(found, GOLDEN_TEXTS)
    assert all(outcome.reused for outcomes in found.values() for outcome in outcomes)
    views = list_jobs(open_store(world.location))
    assert [(view.kind, view.state, view.ended, view.answered, view.left) for view in views] == [
        ("job", "done", "expired", 4, 2),
        ("follow_up", "done", "completed", 2, 0),
    ]


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("ledger.json", b'{"format": 2, "id": "x"}', "format 2.*reads up to 1: upgrade"),
        ("ledger.json", b'{"format": 1, "i', "ledger.json is damaged"),
        ("log/00000000000000000001", b'{"format": 3}', "format 3.*reads up to 1"),
        ("log/00000000000000000001", b"", "is damaged"),
    ],
    ids=["newer ledger", "half-written ledger", "newer entry", "half-written entry"],
)
def test_what_this_version_cannot_read_is_a_clear_error(
    local: World, name: str, content: bytes, complaint: str
) -> None:
    local.plan(TEXTS)
    local.restart()
    open_store(local.location).put(name, content)
    with pytest.raises(LedgerError, match=complaint):
        local.plan(TEXTS)


def _rerun(world: World) -> object:
    return world.run(TEXTS)


def _list(world: World) -> object:
    return list_jobs(open_store(world.location))


def _tidy(world: World) -> object:
    return cleanup(open_store(world.location), {THERE: world.fake})


@pytest.mark.parametrize("part", [0.0, 0.5], ids=["zero-length", "half"])
@pytest.mark.parametrize(
    ("word", "is_done", "use"),
    [
        ("created-0000", False, _rerun),
        ("created-0000", False, _list),
        ("created-0000", True, _list),
        ("created-0000", True, _tidy),
        ("done", True, _rerun),
        ("done", True, _list),
        ("done", True, _tidy),
    ],
)
def test_a_cut_document_of_a_job_is_an_error_that_names_it(
    local: World, word: str, is_done: bool, use: Any, part: float
) -> None:
    driver, refs = local.driver(), local.plan(TEXTS)
    driver.step(refs[0])
    if is_done:
        local.run(TEXTS)
    store, name = open_store(local.location), f"jobs/00000000000000000001/{word}"
    whole = store.get(name) or b""
    store.put(name, whole[: int(len(whole) * part)])
    local.restart()
    with pytest.raises(LedgerError, match=f"{name} is damaged or was cut"):
        use(local)


def test_log_numbers_are_never_used_again(local: World) -> None:
    for number in range(3):
        local.plan([f"text {number}"])
    assert [intent.number for intent in Ledger(open_store(local.location)).intents()] == [1, 2, 3]


@pytest.mark.parametrize("lost", [1, 2, 3], ids=["first", "one between", "last"])
def test_the_number_of_a_lost_entry_goes_to_no_other_job_and_its_records_are_not_paid_again(
    local: World, lost: int
) -> None:
    for number in range(3):
        local.run([f"text {number}"])
    store, name = open_store(local.location), f"log/{lost:020d}"
    store.delete(name)
    local.restart()
    for texts in (["text 0", "text 1", "text 2"], ["something new"]):
        with pytest.raises(LedgerError, match=f"{name} is missing .*restore it"):
            local.run(texts)
    assert store.get(name) is None
    assert local.fake.calls["create"] == 3


def test_a_copy_of_a_ledger_and_its_original_are_two_in_one_process_too(local: World) -> None:
    local.run(["text 0"])
    copy = World(f"{local.location} copy", local.clock)
    shutil.copytree(local.location, copy.location)
    copy.run(["something new"])
    local.run(["text 1"])
    found = copy.run(["text 1"])
    assert not wrong(found, ["text 1"])
    assert found["text 1"][0].failure is None


def test_an_entry_that_lies_under_another_number_is_damage(local: World) -> None:
    local.plan(["text 0"])
    local.plan(["text 1"])
    store = open_store(local.location)
    store.put("log/00000000000000000002", store.get("log/00000000000000000001") or b"")
    local.restart()
    with pytest.raises(LedgerError, match="log/00000000000000000002 is damaged: it is about job 1"):
        local.plan(["text 2"])


@pytest.mark.parametrize(
    "name",
    [
        "log/Thumbs.db",
        "snapshots/Thumbs.db",
        "jobs/Thumbs.db",
        "jobs/lost+found/created-0000",
        "jobs/00000000000000000001/closed-0000 (copy)",
        "jobs/00000000000000000001/created-0000.bak",
        "jobs/00000000000000000001/input.jsonl (copy)",
        "manifests/of another (copy).manifest",
    ],
)
def test_files_that_are_not_the_ledgers_are_left_alone(local: World, name: str) -> None:
    ref = local.plan(TEXTS)[0]
    assert local.driver().step(ref).status == "waiting"
    path = Path(local.location, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("not a ledger's")
    local.restart()
    store = open_store(local.location)
    assert find_ref(store, local.driver().job_id(1) or "").number == 1
    assert not wrong(local.run([*TEXTS, "new"]), [*TEXTS, "new"])
    assert set(local.fake.billed.values()) == {1}
    assert [view.state for view in list_jobs(store)] == ["done", "done"]
    cleanup(store, {THERE: local.fake}, dry_run=False)
    assert path.exists()


DOCUMENTS = {
    "uploaded-0000": "file_id",
    "created-0000": "job_id",
    "lease-0000": "expires_at",
    "done": "outcomes",
}


@pytest.mark.parametrize("word", DOCUMENTS)
@pytest.mark.parametrize(
    "damage", ["newer format", "no format", "format is text", "a member is missing", "a list"]
)
def test_a_document_of_a_job_is_read_only_where_its_format_is_known_and_it_is_whole(
    local: World, word: str, damage: str
) -> None:
    local.fake.uploads_fail = 1 if word == "lease-0000" else 0
    driver, refs = local.driver(), local.plan(TEXTS)
    local.fake.create_faults = ["429"] if word == "uploaded-0000" else []
    driver.step(refs[0])
    if word == "done":
        local.run(TEXTS)
    store, name = open_store(local.location), f"jobs/00000000000000000001/{word}"
    doc = orjson.loads(store.get(name) or b"")
    doc |= {"newer format": {"format": 7}, "format is text": {"format": "1"}}.get(damage, {})
    left_out = {"no format": "format", "a member is missing": DOCUMENTS[word]}.get(damage)
    doc.pop(left_out, None)
    store.put(name, orjson.dumps([doc] if damage == "a list" else doc))
    local.restart()
    local.clock.now += 20
    with pytest.raises(LedgerError, match=name):
        local.run(TEXTS)


# Snapshots


def test_a_snapshot_keeps_the_tail_short_and_knows_the_same(
    local: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger, "SNAPSHOT_AFTER", 3)
    for start in range(6):
        local.plan(TEXTS[start : start + 10])
    store = open_store(local.location)
    assert list(store.list("snapshots/"))
    local.restart()
    read: list[int] = []
    original = Ledger.intent
    monkeypatch.setattr(
        Ledger, "intent", lambda self, number: read.append(number) or original(self, number)
    )
    known = Ledger(store).known_keys()
    assert len(read) <= 3
    assert len(known) == 15


@pytest.mark.parametrize(
    "content", [b"", b"beam_llm\x01\0\0\0", None], ids=["empty", "cut", "cut in the middle"]
)
def test_a_damaged_snapshot_is_passed_over(
    local: World, monkeypatch: pytest.MonkeyPatch, content: bytes | None
) -> None:
    monkeypatch.setattr(ledger, "SNAPSHOT_AFTER", 1)
    local.plan(TEXTS[:5])
    local.plan(TEXTS[:10])
    local.plan(TEXTS[:15])
    store = open_store(local.location)
    name = list(store.list("snapshots/"))[-1]
    store.put(name, content if content is not None else (store.get(name) or b"")[:-40])
    local.restart()
    assert [(ref.number, ref.records) for ref in local.plan(TEXTS[:15])] == [(1, 5), (2, 5), (3, 5)]


# Secrets


def test_neither_key_nor_path_of_the_base_url_is_in_the_staging_location(
    local: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_KEY", "sk-very-secret")
    local.options |= {"api_key": "env:MY_KEY", "base_url": "http://127.0.0.1:1/tok-secret/v1"}
    local.fake.expire_after = 3
    local.run(TEXTS)
    files = [path for path in Path(local.location).rglob("*") if path.is_file()]
    assert files
    assert not [path for path in files if b"secret" in path.read_bytes()]
    assert Ledger(open_store(local.location)).intent(1).host == "127.0.0.1:1"


# Seen from outside


def test_jobs_are_listed_with_their_states(local: World) -> None:
    local.fake.traits, local.fake.most_jobs = BatchTraits(8, 10**9, create_seconds=0), 1
    refs = local.plan(TEXTS)
    driver, store = local.driver(), open_store(local.location)
    assert [view.state for view in list_jobs(store)] == ["planned"] * 3
    driver.step(refs[0])
    driver.step(refs[1])
    assert [(view.state, view.job_id) for view in list_jobs(store)] == [
        ("created", local.fake.jobs[0].job_id),
        ("queued", None),
        ("planned", None),
    ]
    local.clock.now += 20
    driver.step(refs[0])
    view = list_jobs(store)[0]
    assert (view.state, view.ended, view.answered, view.failed, view.records) == (
        "done",
        "completed",
        8,
        0,
        8,
    )
    assert view.cost_usd
    orjson.dumps(view.as_dict())


def test_show_takes_numbers_and_ids_and_follows_the_chain(local: World) -> None:
    local.fake.expire_after = 4
    local.run(TEXTS)
    store = open_store(local.location)
    view, following = show(store, "1")
    assert (view.left, view.follow_up, [other.job for other in following]) == (
        16,
        "1.f",
        ["1.f", "1.f.l"],
    )
    assert show(store, local.fake.jobs[0].job_id)[0] == view
    assert show(store, "1.f")[0] == show(store, local.fake.jobs[1].job_id)[0] == following[0]
    for unknown in ("77", "1.b", "batch_x"):
        with pytest.raises(UsageError, match=unknown):
            show(store, unknown)


def test_an_id_of_a_follow_up_leads_to_the_job_it_followed(local: World) -> None:
    local.fake.expire_after = 4
    local.run(TEXTS)
    ref = find_ref(open_store(local.location), local.fake.jobs[1].job_id)
    assert (ref.number, ref.records) == (1, 20)


def test_cancel_asks_the_provider_and_says_what_it_cannot(local: World) -> None:
    refs = local.plan(TEXTS)
    store = open_store(local.location)
    with pytest.raises(UsageError, match="planned"):
        cancel(store, local.fake, "1")
    driver = local.driver()
    driver.step(refs[0])
    assert cancel(store, local.fake, "1") == local.fake.jobs[0].job_id
    assert local.fake.jobs[0].cancel_at is not None
    local.clock.now += 5
    driver.step(refs[0])
    with pytest.raises(UsageError, match="has ended"):
        cancel(store, local.fake, "1")


def test_cancelling_what_has_ended_names_what_goes_on_of_it(local: World) -> None:
    local.fake.expire_after = 4
    (ref,), driver = local.plan(TEXTS), local.driver()
    driver.step(ref)
    local.clock.now += local.fake.answers_after
    driver.step(ref)
    driver.step(ref, 1)
    with pytest.raises(UsageError, match=r"has ended \(expired\); cancel .*: 1\.f$"):
        cancel(open_store(local.location), local.fake, "1")
    assert cancel(open_store(local.location), local.fake, "1.f") == local.fake.jobs[1].job_id


@pytest.mark.parametrize("ended", ["completed", "expired", "cancelled"])
def test_cancelling_what_has_ended_at_the_provider_says_how(local: World, ended: str) -> None:
    local.fake.expire_after, local.fake.cancel_after = {
        "expired": (4, None),
        "cancelled": (None, 4),
    }.get(ended, (None, None))
    (ref,) = local.plan(TEXTS)
    local.driver().step(ref)
    local.clock.now += local.fake.answers_after
    with pytest.raises(UsageError, match=f"{local.fake.jobs[0].job_id} had already ended: {ended}"):
        cancel(open_store(local.location), local.fake, "1")
    assert not local.fake.calls["cancel"]


def test_cleanup_takes_texts_of_finished_jobs_and_nothing_that_is_still_needed(
    local: World,
) -> None:
    local.run(TEXTS)
    unfinished = local.plan(["still to come", *TEXTS[:3]])
    local.driver().step(unfinished[-1])
    store = open_store(local.location)
    before = set(store.list(""))
    would = cleanup(store, {THERE: local.fake})
    assert set(store.list("")) == before
    assert would.jobs == [1]
    assert would.kept == [2]
    assert "20 records" in would.texts
    files = set(local.fake.files)
    done = cleanup(store, {THERE: local.fake}, dry_run=False)
    assert done.names == would.names
    assert set(done.provider_files) <= files - set(local.fake.files)
    assert len(done.provider_files) == 3
    left = b"".join(
        store.get(name) or b""
        for name in store.list("")
        if not name.startswith(("jobs/00000000000000000001/answers",))
    )
    assert b"review number 7" not in left
    with pytest.raises(LedgerError, match="jobs cleanup` removes the records of finished jobs"):
        find_ref(store, local.fake.jobs[0].job_id)
    local.restart()
    texts = ["still to come", *TEXTS]
    assert not wrong(local.run(texts), texts)
    assert max(local.fake.billed.values()) == 1


def test_cleanup_asks_a_provider_for_its_own_jobs_alone(local: World) -> None:
    local.run(TEXTS)
    local.run(TEXTS, base_url="http://127.0.0.2:1/v1")
    there = cleanup(open_store(local.location), {ELSEWHERE: local.fake})
    assert there.jobs == [1, 2]
    assert len(there.provider_files) == 3
    both = cleanup(open_store(local.location), {THERE: local.fake, ELSEWHERE: local.fake})
    assert len(both.provider_files) == 6


def test_cleanup_leaves_what_a_job_that_ended_in_doubt_may_have_answered_or_left_over(
    local: World,
) -> None:
    local.fake.downloads_fail, local.fake.garble = 10**9, frozenset(TEXTS[:1])
    local.run(TEXTS, job_deadline_hours=0.1)
    cleanup(open_store(local.location), {THERE: local.fake}, dry_run=False)
    local.fake.downloads_fail = 0
    local.restart()
    found = local.run(TEXTS[::-1], per_part=5, job_deadline_hours=0.1)
    assert not wrong(found, TEXTS)
    assert not [text for text, (outcome,) in found.items() if outcome.failure]


def test_cleanup_keeps_the_answers_of_live_calls_once(local: World) -> None:
    local.fake.expire_after = 0
    local.options |= {"on_leftover": "online", "max_concurrency": 8}
    texts = [f"review {number}" for number in range(30)]
    local.run(texts)
    store = open_store(local.location)
    cleanup(store, {THERE: local.fake}, dry_run=False)
    kept = [name for name in store.list("jobs/00000000000000000001.l/answers") if "rows" in name]
    assert len(kept) == 1
    local.restart()
    assert not wrong(local.run(texts), texts)
    assert len(local.asked) == 30


# Small things


def test_outcomes_are_found_by_key_whatever_their_order(local: World) -> None:
    local.run(TEXTS)
    end = JobTree(Ledger(open_store(local.location)), 1).nodes[0].done
    outcomes = Outcomes(open_store(local.location), str(end.outcomes))
    keys = Manifest.read(
        open_store(local.location), Ledger(open_store(local.location)).intent(1).lines
    ).keys
    assert sorted(outcomes.outcome(at).value for at in outcomes.positions(keys).tolist()) == sorted(
        f"re: {text}" for text in TEXTS
    )
    assert len(outcomes.of_kinds(frozenset({""}))) == 20


ANSWERED = Outcome({"a": 1}, None, Usage(80, 12, 5), 1.5e-05, "gpt-4.1-mini", "req-1", "stop")
OUTCOMES = {
    "answered": ANSWERED,
    "failed": Outcome(
        None,
        Failure("refused", "said „no“", 2),
        Usage(80, 0, 0),
        1e-05,
        "gpt-4.1-mini",
        "req-2",
        "content_filter",
    ),
    "never asked": Outcome(None, Failure("prompt", "no field 'text'"), cost_usd=0.0),
    "without a price": Outcome("text", None, Usage(1, 2, 0), None, "local", None, "length"),
    "a value that is null": Outcome(None, None, Usage(1, 1, 1), 0.0, "m", "", None),
    "as many tokens as nobody can have used": Outcome(
        1.5, None, Usage(2**40, -3, 7), None, "m", "i", "stop"
    ),
}


@pytest.mark.parametrize("what", OUTCOMES)
def test_an_outcome_comes_back_as_it_was(local: World, tmp_path: Path, what: str) -> None:
    store, known = open_store(local.location), OUTCOMES[what]
    keys = np.frombuffer(bytes(range(48)), dtype="S16")
    with open(tmp_path / "rows", "wb") as file:
        writer = OutcomeWriter(keys, file)
        # A later one replaces the earlier.
        for position, outcome in (
            (1, ANSWERED),
            (2, ANSWERED),
            (1, known),
        ):
            writer.put(position, outcome)
        writer.flush()
    index, counts = writer.index()
    store.put("x.index", index)
    store.put_file("x.rows", str(tmp_path / "rows"))
    outcomes = Outcomes(store, "x")
    assert outcomes.positions(keys).tolist() == [-1, 0, 1]
    expected = (
        known if known.usage.input_tokens < 2**32 else known._replace(usage=Usage(2**32 - 1, 0, 7))
    )
    assert list(outcomes.many([1, 0], [True, True])) == [ANSWERED, expected]
    assert list(outcomes.many([0], [False])) == [
        expected._replace(usage=Usage(), cost_usd=0.0, reused=True)
    ]
    kind = "" if known.failure is None else known.failure.kind
    assert counts == {"": 2} if not kind else counts == {"": 1, kind: 1}
    assert outcomes.of_kinds(frozenset({kind})).tolist() == [keys[1], keys[2]][: counts[kind]]


def write_golden() -> Any:
    """How the golden folder is made until the first release: `python -c "from tests.test_ledger
    import write_golden; write_golden()"`.
    """
    world = World(str(GOLDEN))
    world.fake.expire_after = 4
    for _, _, _ in _until_follow_up(world):
        world.fake.expire_after = None
    shutil.rmtree(GOLDEN / ".tmp")


def _until_follow_up(world: World) -> Any:
    return driven(world.driver(), world.plan(GOLDEN_TEXTS), world.clock.sleep, lambda waiting: None)
