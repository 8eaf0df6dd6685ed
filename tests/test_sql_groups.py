"""GROUP BY with AI_AGG and AI_SUMMARIZE_AGG: one answer over all rows of a group, in both modes.

All forms run in one file, as one STATEMENT SET; a test looks at one form's rows.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from beam_llm.cli.files.records import Source
from beam_llm.cli.main import main
from beam_llm.cli.sql.survey import survey_source
from beam_llm.fronts.sql.plan import Plan
from beam_llm.testing import Emulator, Fault, plugin
from tests.sql_runs import run_in

start_emulator = plugin.start_emulator

MODES = {
    "online": "",
    "batch_api": ", 'mode'='batch_api', 'staging.location'='staging', 'poll.seconds'='0.05'",
}
ROWS = [
    ("kettle", 1, "It leaks."),
    ("kettle", 2, "Leaks from the first day."),
    ("kettle", 5, "It boils."),
    ("lamp", 4, "Warm light."),
    ("lamp", 3, None),
    ("pan", 3, None),
    (None, 2, "What is it?"),
]
HEAD = """
CREATE TABLE reviews (product STRING, stars INT, text STRING)
  WITH ('connector'='filesystem', 'path'='reviews/', 'format'='json');
CREATE TABLE none_yet (product STRING, text STRING)
  WITH ('connector'='filesystem', 'path'='empty.jsonl', 'format'='json');
CREATE MODEL m INPUT (text STRING) OUTPUT (found STRING)
  WITH ('provider'='openai', 'model'='gpt-4'<mode>);
CREATE MODEL typed OUTPUT (mood STRING, score DOUBLE)
  WITH ('provider'='openai', 'model'='gpt-4'<mode>);
CREATE VIEW shouted AS SELECT UPPER(product) AS product, text FROM reviews WHERE stars < 5;
"""
# name: columns of the table that takes it, SELECT, rows; `(3)` is an answer over three records
FORMS: dict[str, tuple[str, str, list[list[Any]]]] = {
    "by a column": (
        "product STRING, found STRING",
        "SELECT product, AI_AGG('m', text, 'What is wrong?') FROM reviews GROUP BY product",
        [["kettle", "(3)"], ["lamp", "(1)"], ["pan", None], [None, "(1)"]],
    ),
    "over all rows, beside aggregates": (
        "n BIGINT, texts BIGINT, stars DOUBLE, whole INT, best INT, found STRING, error STRING",
        (
            "SELECT COUNT(*) AS n, COUNT(text) AS texts, AVG(CAST(stars AS DOUBLE)) AS stars, "
            "AVG(stars) AS whole, MAX(stars) AS best, AI_SUMMARIZE_AGG('m', text) AS found "
            "FROM reviews WHERE stars < 5"
        ),
        [[6, 4, 2.5, 2, 4, "(4)", None]],
    ),
    "over no rows": (
        "n BIGINT, found STRING, error STRING",
        "SELECT COUNT(*) AS n, AI_AGG('m', text, 'Any?') AS found FROM none_yet",
        [[0, None, None]],
    ),
    "by a column, over no rows": (
        "product STRING, found STRING",
        "SELECT product, AI_AGG('m', text, 'Any?') FROM none_yet GROUP BY product",
        [],
    ),
    "HAVING without an answer": (
        "product STRING, found STRING",
        (
            "SELECT product, AI_AGG('m', text, 'Which?') FROM reviews GROUP BY product "
            "HAVING COUNT(text) > 1"
        ),
        [["kettle", "(3)"]],
    ),
    "HAVING on an answer": (
        "product STRING",
        (
            "SELECT product FROM reviews GROUP BY product "
            "HAVING AI_AGG('m', text, 'Where?') LIKE '3 records%'"
        ),
        [["kettle"]],
    ),
    "an expression of a view's columns, two answers, one in an expression": (
        "product STRING, bad STRING, good STRING",
        (
            "SELECT LEFT(product, 3), AI_AGG('m', text, 'Bad?'), UPPER(AI_AGG('m', text, 'Good?')) "
            "FROM shouted GROUP BY LEFT(product, 3)"
        ),
        [["KET", "(2)", "(2)"], ["LAM", "(1)", "(1)"], ["PAN", None, None], [None, "(1)", "(1)"]],
    ),
    "a tree of prompts": (
        "found STRING",
        "SELECT AI_AGG('m', text, 'In parts?', MAP['batch.size', '2']) FROM reviews",
        [["(5)"]],
    ),
    "typed": (
        "product STRING, answer ROW<mood STRING, score DOUBLE>",
        (
            "SELECT product, AI_AGG('typed', text, 'How?') FROM reviews WHERE stars < 3 "
            "GROUP BY product"
        ),
        [["kettle", dict], [None, dict]],
    ),
    "asked about once more": (
        "product STRING, found STRING",
        (
            "SELECT product, ML_PREDICT('m', a) FROM (SELECT product, AI_AGG('m', text, 'First?') AS a "
            "FROM reviews GROUP BY product) WHERE product = 'kettle'"
        ),
        [["kettle", str]],
    ),
    "without a model": (
        "product STRING, n BIGINT",
        "SELECT product, COUNT(DISTINCT text) FROM reviews GROUP BY product",
        [["kettle", 3], ["lamp", 1], ["pan", 0], [None, 1]],
    ),
    "a number of groups": (
        "product STRING, found STRING",
        "SELECT product, AI_AGG('m', text, 'Some?') FROM reviews GROUP BY product LIMIT 1",
        [["kettle", "(3)"]],
    ),
}


def write_reviews(folder: Path, rows: list[tuple[str | None, int, str | None]]) -> None:
    (folder / "reviews").mkdir(exist_ok=True)
    lines = [
        json.dumps(dict(zip(("product", "stars", "text"), row, strict=True))) + "\n" for row in rows
    ]
    (folder / "reviews" / "a.jsonl").write_text("".join(lines[:2]))
    (folder / "reviews" / "b.jsonl").write_text("".join(lines[2:]))


def rows_of(folder: Path, name: str) -> list[list[Any]]:
    paths = sorted((folder / name).glob("*.jsonl"))
    return [
        list(json.loads(line).values()) for path in paths for line in path.read_text().splitlines()
    ]


def table(name: str, columns: str) -> str:
    return (
        f"CREATE TABLE {name} ({columns}) "
        f"WITH ('connector'='filesystem', 'path'='{name}/', 'format'='json');\n"
    )


class Ran:
    """What one run of all forms gave."""

    def __init__(self, folder: Path, emulator: Emulator, code: int):
        self.folder = folder
        self.code = code
        self.asked = [text for text in emulator.billed if "HAVING" not in text]
        self.summary = json.loads((folder / "summary.json").read_text())


@pytest.fixture(scope="module", params=MODES.values(), ids=MODES)
def ran(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ran]:
    folder = tmp_path_factory.mktemp("groups")
    write_reviews(folder, ROWS)
    (folder / "empty.jsonl").write_text("")
    sql = [HEAD]
    sql += [table(f"t{number}", columns) for number, (columns, _, _) in enumerate(FORMS.values())]
    sql += ["EXECUTE STATEMENT SET BEGIN\n"]
    sql += [f"INSERT INTO t{n} {select};\n" for n, (_, select, _) in enumerate(FORMS.values())]
    with run_in(folder, "".join([*sql, "END;"]).replace("<mode>", request.param)) as (
        emulator,
        code,
    ):
        yield Ran(folder, emulator, code)


def test_groups_are_counted_priced_and_none_of_them_fails(ran: Ran):
    assert ran.code == 0
    (summary,) = ran.summary["statements"]
    assert summary["failed"] == 0
    # A group that a condition on its answer left out is not in the output.
    assert summary["answered"] == sum(len(rows) for _, _, rows in FORMS.values())
    assert summary["cost_usd"] > 0


@pytest.mark.parametrize("name", FORMS)
def test_a_group_has_one_answer_over_all_its_texts(ran: Ran, name: str):
    expected = FORMS[name][2]
    found = rows_of(ran.folder, f"t{list(FORMS).index(name)}")
    assert len(found) == len(expected)
    for row, wanted in zip(found, expected, strict=True):
        for value, want in zip(row, wanted, strict=True):
            if isinstance(want, type):
                assert isinstance(value, want)
            elif isinstance(want, str) and want.startswith("("):
                assert value.upper().startswith(f"{want[1:-1]} RECORDS")
            else:
                assert value == want


# How a run ends, and goes on
# ─────────────────────────────────────────────────────────────────────────────────────────────────

BY_PRODUCT = (
    HEAD.replace("<mode>", "")
    + table("out", "product STRING, n BIGINT, found STRING, error STRING")
    + "INSERT INTO out SELECT product, COUNT(*) AS n, AI_AGG('m', text, 'What?'<more>) AS found "
    "FROM reviews GROUP BY product;"
)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_reviews(tmp_path, ROWS)
    return tmp_path


def run(folder: Path, sql: str, *flags: str) -> int:
    (folder / "file.sql").write_text(sql.replace("<more>", ""))
    return main(["run", "file.sql", "--quiet", *flags])


def test_a_group_that_fails_is_null_with_its_error_and_is_asked_alone_again(
    folder: Path, emulator_with: Callable[..., Emulator]
):
    emulator = emulator_with(faults=[Fault("refusal", text="It boils", times=1)])
    assert run(folder, BY_PRODUCT, "--report", "page.html") == 3
    assert "{&#34;product&#34;:&#34;kettle&#34;}" in (folder / "page.html").read_text()
    rows = {row[0]: row[1:] for row in rows_of(folder, "out")}
    assert rows["kettle"][:2] == [3, None]
    assert rows["lamp"][0] == 2
    assert rows["lamp"][2] is None
    calls = emulator.calls
    assert run(folder, BY_PRODUCT, "--retry-errors") == 0
    assert emulator.calls == calls + 1
    assert len(rows_of(folder, "out")) == 4
    assert all(row[3] is None for row in rows_of(folder, "out"))


def test_what_is_finished_is_not_asked_again(
    folder: Path, emulator_with: Callable[..., Emulator], capsys: pytest.CaptureFixture[str]
):
    emulator = emulator_with()
    assert run(folder, BY_PRODUCT) == 0
    calls = emulator.calls
    assert run(folder, BY_PRODUCT) == 2
    assert "all of it is finished" in capsys.readouterr().err
    assert emulator.calls == calls


def test_a_group_that_changes_under_a_run_is_noticed_and_asked_alone_by_the_next(
    folder: Path,
    emulator_with: Callable[..., Emulator],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    emulator = emulator_with()

    def look_and_change(plan: Plan, sources: Sequence[Source]) -> Any:
        found = survey_source(plan, sources)
        write_reviews(folder, [*ROWS[:-1], (None, 2, "What was it?")])
        return found

    with monkeypatch.context() as patch:
        patch.setattr("beam_llm.cli.sql.run.survey_source", look_and_change)
        assert run(folder, BY_PRODUCT) == 1
    assert "has changed while the run was on: 1 record of 4" in capsys.readouterr().err
    assert run(folder, BY_PRODUCT) == 0
    assert len(rows_of(folder, "out")) == 4
    assert emulator.billed["It leaks."] == emulator.billed["Warm light."] == 1


def test_by_jobs_only_a_group_that_has_changed_is_asked_anew(
    folder: Path, emulator_with: Callable[..., Emulator]
):
    emulator = emulator_with()
    sql = BY_PRODUCT.replace("'model'='gpt-4'", "'model'='gpt-4'" + MODES["batch_api"])
    assert run(folder, sql) == 0
    write_reviews(folder, [*reversed(ROWS), ("lamp", 1, "Too dark.")])
    assert run(folder, sql, "--force") == 0
    found = {product: n for product, n, _, _ in rows_of(folder, "out")}
    assert found == {"kettle": 3, "lamp": 3, "pan": 1, None: 1}
    asked = {text: emulator.billed[text] for _, _, text in ROWS if text is not None}
    assert asked == {text: 2 if text == "Warm light." else 1 for text in asked}


def test_a_dry_run_shows_the_groups_and_the_first_request_over_all_of_one(
    folder: Path, emulator_with: Callable[..., Emulator], capsys: pytest.CaptureFixture[str]
):
    emulator = emulator_with()
    sql = BY_PRODUCT + "SELECT AI_SUMMARIZE_AGG('m', text) FROM reviews WHERE stars > 4;"
    assert run(folder, sql, "--dry-run") == 0
    shown = capsys.readouterr().out
    assert "Group by c.product, 4 groups" in shown
    assert "Compute g0 BIGINT = count(*)" in shown
    assert "first request, of 3 records:" in shown
    assert "All rows are one group" in shown
    assert r"Summarize these texts.\n\nGive one answer over all 1 record below." in shown
    assert emulator.calls == 0


def test_an_aggregate_that_fails_is_its_group_s_error_and_nothing_is_asked_about_it(
    folder: Path, emulator_with: Callable[..., Emulator]
):
    emulator = emulator_with()
    largest = "MAX(stars) + 2147483643"  # beyond INT where there are five stars
    assert run(folder, BY_PRODUCT.replace("COUNT(*)", largest)) == 3
    rows = {row[0]: row[1:] for row in rows_of(folder, "out")}
    assert "Overflow" in rows["kettle"][2]
    assert rows["kettle"][:2] == [None, None]
    assert rows["lamp"][2] is None
    assert emulator.calls == 2


def test_groups_of_a_beam_source_that_ends_are_answered_and_of_a_stream_refused(
    folder: Path, emulator_with: Callable[..., Emulator], capsys: pytest.CaptureFixture[str]
):
    emulator_with()
    beam = "'connector'='beam', 'transform'='tests.sql_sources"
    sql = HEAD.replace("<mode>", "") + (
        f"CREATE TABLE made (id STRING, text STRING) WITH ({beam}.MakeReviewsInWindows', "
        """'arguments'='{"count": 4}');"""
        f"CREATE TABLE endless (text STRING) WITH ({beam}.EndlessReviews');"
    )
    made = "SELECT id = '0' AS is_first, COUNT(*) AS n, AI_AGG('m', text, 'What?') AS a FROM made "
    assert run(folder, sql + made + "GROUP BY id = '0';", "--allow-code") == 0
    shown = capsys.readouterr().out
    assert "3 records, most often" in shown
    assert "1 records, most often" in shown
    assert run(folder, sql + "SELECT AI_AGG('m', text, 'All?') FROM made;", "--allow-code") == 0
    assert "4 records, most often" in capsys.readouterr().out
    assert run(folder, sql + "SELECT AI_AGG('m', text, 'x') FROM endless;", "--allow-code") == 2
    assert "a source that doesn't end" in capsys.readouterr().err


def by_product_on(options: list[str], folder: Path) -> None:
    (folder / "file.sql").write_text(BY_PRODUCT.replace("<more>", ", MAP['batch.size', '2']"))
    assert main(["run", "file.sql", "--quiet", "--", *options]) == 0
    found = {row[0]: row[1:] for row in rows_of(folder, "out")}
    assert {product: n for product, (n, _, _) in found.items()} == {
        "kettle": 3, "lamp": 2, "pan": 1, None: 1,
    }  # fmt: skip
    assert found["kettle"][1].startswith("3 records")
    assert found["pan"] == [1, None, None]


@pytest.mark.prism
def test_groups_are_answered_on_prism(
    folder: Path, emulator_with: Callable[..., Emulator], prism_options: list[str]
):
    emulator_with()
    by_product_on(prism_options, folder)


@pytest.mark.flink
@pytest.mark.timeout(300)
def test_groups_are_answered_on_flink(
    folder: Path, emulator_with: Callable[..., Emulator], flink_cluster: Any
):
    by_product_on(flink_cluster.batch_options(env=emulator_with().environment), folder)
