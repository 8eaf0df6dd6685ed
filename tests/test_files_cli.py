"""The command line and its files: inputs that change, outputs that exist, broken lines, folders
that are somebody else's.
"""

from __future__ import annotations

import csv
import json
import os
import random
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from beam_llm import leftovers
from beam_llm.cli import pipeline
from beam_llm.cli.files.records import digest_of
from beam_llm.cli.main import main
from beam_llm.cli.spool import Spool, SpoolFile
from beam_llm.cli.stored import StoredAnswer
from beam_llm.errors import LLMError
from beam_llm.testing import Emulator, Fault, plugin
from tests.killed import wait_until

llm_emulator, start_emulator = plugin.llm_emulator, plugin.start_emulator
PROMPT = "Repeat: {{ text }}"
MODEL = "openai:gpt-4.1-mini"
Start = Callable[..., Emulator]


def records(count: int = 12) -> list[dict[str, Any]]:
    return [
        {"id": number, "text": f"{'good excellent' if number % 3 else 'awful'} thing {number}"}
        for number in range(count)
    ]


def mood(record: dict[str, Any]) -> str:
    return "negative" if record["text"].startswith("awful") else "positive"


def put(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def rows_in(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def predict(
    folder: Path,
    *more: str,
    inputs: str = "in.jsonl",
    output: str = "out.jsonl",
    quiet: bool = True,
) -> int:
    files = [
        inputs if inputs == "-" else str(folder / inputs),
        "--output",
        output if output == "-" else str(folder / output),
    ]
    question = [
        "--model",
        MODEL,
        "--prompt",
        PROMPT,
        "--output-type",
        "enum:positive|negative|neutral",
        "--batch-size",
        "3",
    ]
    return main(["predict", *files, *question, *(["--quiet"] if quiet else []), *more])


def by_mode(folder: Path, mode: str) -> list[str]:
    return (
        ["--mode", "batch_api", "--staging", str(folder / "staging"), "--poll-seconds", "0.05"]
        if mode == "batch_api"
        else []
    )


def assert_right(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    assert [row["text"] for row in found] == [record["text"] for record in expected]
    assert [row["answer"] for row in found] == [mood(record) for record in expected]


@pytest.fixture
def meanwhile(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Has something happen once a run has looked at its inputs: before they are read to be asked,
    or after all is answered.
    """
    real = pipeline.run

    def arrange(
        *, before: Callable[[], None] = lambda: None, after: Callable[[], None] = lambda: None
    ) -> None:
        def run(*arguments: Any) -> Any:
            monkeypatch.setattr(pipeline, "run", real)
            before()
            measured = real(*arguments)
            after()
            return measured

        monkeypatch.setattr(pipeline, "run", run)

    return arrange


# --- inputs that change


@pytest.mark.parametrize("mode", ["online", "batch_api"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_answers_follow_their_records_when_the_input_is_sorted_while_they_are_asked(
    tmp_path: Path,
    llm_emulator: Emulator,
    meanwhile: Callable[..., None],
    capsys: pytest.CaptureFixture[str],
    mode: str,
    when: str,
) -> None:
    put(tmp_path / "in.jsonl", records())
    other = sorted(records(), key=lambda record: str(record["text"]))
    meanwhile(**{when: lambda: put(tmp_path / "in.jsonl", other)})
    assert predict(tmp_path, *by_mode(tmp_path, mode)) == 0
    assert_right(rows_in(tmp_path / "out.jsonl"), other)
    assert "the same records in another order" in capsys.readouterr().err
    assert set(llm_emulator.billed.values()) == {1}


CHANGES = {
    "inserted": (
        lambda rows: [*rows[:2], {"id": 99, "text": "awful new thing"}, *rows[2:]],
        "1 record new",
    ),
    "removed": (lambda rows: rows[3:], "3 records gone"),
    "edited": (
        lambda rows: [rows[0], {**rows[1], "text": "awful at last"}, *rows[2:]],
        "1 record new, 1 record gone",
    ),
}


@pytest.mark.parametrize("mode", ["online", "batch_api"])
@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_input_costs_its_new_records_alone_and_gives_no_row_another_rows_answer(
    tmp_path: Path,
    llm_emulator: Emulator,
    meanwhile: Callable[..., None],
    capsys: pytest.CaptureFixture[str],
    mode: str,
    change: str,
) -> None:
    make, words = CHANGES[change]
    put(tmp_path / "in.jsonl", records())
    new = make(records())
    meanwhile(after=lambda: put(tmp_path / "in.jsonl", new))
    code = predict(tmp_path, *by_mode(tmp_path, mode))
    assert words in capsys.readouterr().err
    if change != "removed":
        assert code == 1
        assert not (tmp_path / "out.jsonl").exists()
        assert predict(tmp_path, *by_mode(tmp_path, mode)) == 0
    assert_right(rows_in(tmp_path / "out.jsonl"), new)
    assert max(llm_emulator.billed.values()) == 1
    assert len(llm_emulator.billed) == len({record["text"] for record in [*records(), *new]})


def test_a_run_that_failed_and_a_file_of_the_same_size_and_time_in_another_order(
    tmp_path: Path,
    llm_emulator: Emulator,
    meanwhile: Callable[..., None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail() -> None:
        raise LLMError("the machine went down")

    put(tmp_path / "in.jsonl", records())
    os.utime(tmp_path / "in.jsonl", (1_600_000_000, 1_600_000_000))
    meanwhile(after=fail)
    assert predict(tmp_path) == 1
    shuffled = records()
    random.Random(5).shuffle(shuffled)
    put(tmp_path / "in.jsonl", shuffled)
    os.utime(tmp_path / "in.jsonl", (1_600_000_000, 1_600_000_000))
    assert predict(tmp_path) == 0
    assert (
        "the input has changed since an earlier run: the same records in another order"
        in capsys.readouterr().err
    )
    assert_right(rows_in(tmp_path / "out.jsonl"), shuffled)
    assert set(llm_emulator.billed.values()) == {1}


def test_equal_records_each_keep_an_answer_when_others_come_between(tmp_path: Path) -> None:
    twin, other = {"text": "same"}, {"text": "other"}

    def line(ordinal: int, record: dict[str, str], value: str) -> bytes:
        return (
            json.dumps(
                [*StoredAnswer(ordinal, value, None, None, digest=digest_of(record).hex())]
            ).encode()
            + b"\n"
        )

    spool = Spool(str(tmp_path / "spool"))
    lines = [line(0, twin, "a"), line(1, twin, "b"), line(2, other, "c")]
    with spool.answers(
        b"".join(map(digest_of, [other, twin, {"text": "new"}, twin, twin]))
    ) as index:
        index.add_lines(lines)
        assert index.done() == bytes([1, 1, 0, 1, 0])
        assert index.missing() == 2
    spool.close()


def test_a_pipe_is_an_input_and_an_output(tmp_path: Path, llm_emulator: Emulator) -> None:
    put(tmp_path / "in.jsonl", records(4))
    for name in ("in", "out"):
        os.mkfifo(tmp_path / name)
    read: list[bytes] = []
    threads = [
        threading.Thread(
            target=lambda: (tmp_path / "in").write_bytes((tmp_path / "in.jsonl").read_bytes()),
            daemon=True,
        ),
        threading.Thread(target=lambda: read.append((tmp_path / "out").read_bytes()), daemon=True),
    ]
    for thread in threads:
        thread.start()
    formats = ["--input-format", "jsonl", "--output-format", "jsonl"]
    assert predict(tmp_path, *formats, inputs="in", output="out") == 0
    for thread in threads:
        thread.join(60)
    assert_right([json.loads(line) for line in read[0].splitlines()], records(4))


# --- outputs that exist


def test_a_finished_output_is_said_to_be_so_and_stays(
    tmp_path: Path, llm_emulator: Emulator, capsys: pytest.CaptureFixture[str]
) -> None:
    put(tmp_path / "in.jsonl", records())
    assert predict(tmp_path) == 0
    before = (tmp_path / "out.jsonl").read_bytes()
    calls = llm_emulator.calls
    assert predict(tmp_path) == 2
    message = capsys.readouterr().err
    assert "is finished: 12 records, none of them errors" in message
    assert "--force" in message
    assert "--retry-errors" in message
    assert (tmp_path / "out.jsonl").read_bytes() == before
    assert llm_emulator.calls == calls
    os.chmod(tmp_path / "out.jsonl", 0o640)
    assert predict(tmp_path, "--force") == 0
    assert llm_emulator.calls == 2 * calls
    assert stat.S_IMODE((tmp_path / "out.jsonl").stat().st_mode) == 0o640


def test_a_file_that_is_no_output_of_ours_is_not_overwritten_either(
    tmp_path: Path, llm_emulator: Emulator, capsys: pytest.CaptureFixture[str]
) -> None:
    put(tmp_path / "in.jsonl", records())
    (tmp_path / "out.jsonl").write_text("my notes\n")
    assert predict(tmp_path) == 2
    assert "exists already" in capsys.readouterr().err
    assert predict(tmp_path, "--retry-errors") == 1
    assert "out.jsonl:1: not JSON" in capsys.readouterr().err
    assert (tmp_path / "out.jsonl").read_text() == "my notes\n"
    assert llm_emulator.calls == 0


def test_an_output_that_appears_during_the_run_stays_and_the_answers_are_kept(
    tmp_path: Path,
    llm_emulator: Emulator,
    meanwhile: Callable[..., None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    put(tmp_path / "in.jsonl", records())
    meanwhile(after=lambda: put(tmp_path / "out.jsonl", [{"somebody": "else's"}]))
    assert predict(tmp_path) == 1
    assert "has appeared since the run began" in capsys.readouterr().err
    assert rows_in(tmp_path / "out.jsonl") == [{"somebody": "else's"}]
    assert predict(tmp_path, "--force") == 0
    assert_right(rows_in(tmp_path / "out.jsonl"), records())
    assert set(llm_emulator.billed.values()) == {1}


@pytest.mark.parametrize("mode", ["online", "batch_api"])
@pytest.mark.parametrize("output", ["out.jsonl", "out.csv", "out.parquet", "out.jsonl.gz"])
def test_retrying_errors_asks_these_alone(
    tmp_path: Path,
    start_emulator: Start,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    mode: str,
    output: str,
) -> None:
    emulator = start_emulator(
        faults=[Fault("poison", text="thing 4", times=1), Fault("poison", text="thing 7", times=1)]
    )
    for name, value in emulator.environment.items():
        monkeypatch.setenv(name, value)
    put(tmp_path / "in.jsonl", records())
    single = ["--batch-size", "1", *by_mode(tmp_path, mode)]
    assert predict(tmp_path, *single, output=output) == 3
    billed = dict(emulator.billed)
    assert predict(tmp_path, *single, "--retry-errors", output=output) == 0
    asked = {text for text, times in emulator.billed.items() if times > billed.get(text, 0)}
    assert {text.removeprefix("Repeat: ") for text in asked} == {
        "good excellent thing 4",
        "good excellent thing 7",
    }
    assert predict(tmp_path, inputs=output, output="again.jsonl") == 1  # it has an answer already
    capsys.readouterr()
    assert predict(tmp_path, *single, "--retry-errors", output=output) == 0  # nothing left to ask
    assert {text for text, times in emulator.billed.items() if times > billed.get(text, 0)} == asked
    read = _read(tmp_path / output)
    assert [row["answer"] for row in read] == [mood(record) for record in records()]
    assert [str(row["id"]) for row in read] == [str(record["id"]) for record in records()]


def test_answers_of_a_csv_file_are_numbers_again_for_a_retry_s_figures(
    tmp_path: Path, start_emulator: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in start_emulator(
        faults=[Fault("poison", text="4", times=1)]
    ).environment.items():
        monkeypatch.setenv(name, value)
    command = ["--model", MODEL, "--prompt", "{{ text }}", "--output-type", "integer", "--quiet"]
    source, output = str(tmp_path / "in.jsonl"), str(tmp_path / "out.csv")
    put(tmp_path / "in.jsonl", [{"text": str(number)} for number in range(6)])
    assert main(["predict", source, "--output", str(tmp_path / "first.jsonl"), *command]) == 3
    rows = rows_in(tmp_path / "first.jsonl")
    put(tmp_path / "in.jsonl", [{"text": row["text"], "label": row["answer"]} for row in rows])
    (tmp_path / "out.csv").write_text(
        "text,label,answer,answer_error\n"
        + "".join(
            f"{row['text']},{row['answer'] or ''},{row['answer'] or ''},{row['answer_error'] or ''}\n"
            for row in rows
        )
    )
    told = ["--retry-errors", "--truth", "label", "--summary", str(tmp_path / "s.json")]
    assert main(["predict", source, "--output", output, *command, *told]) == 0
    found = json.loads((tmp_path / "s.json").read_text())
    assert found["truth"]["same"] == 5


def _read(path: Path) -> list[dict[str, Any]]:
    from beam_llm.cli.files.sources import find_sources, read_rows

    (source,) = find_sources([str(path)])
    return [row.fields for row in read_rows(source)]


def test_retrying_errors_of_a_changed_input_joins_by_content_and_says_so(
    tmp_path: Path,
    start_emulator: Start,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    emulator = start_emulator(faults=[Fault("poison", text="thing 5", times=1)])
    for name, value in emulator.environment.items():
        monkeypatch.setenv(name, value)
    put(tmp_path / "in.jsonl", records())
    assert predict(tmp_path, "--batch-size", "1") == 3
    changed = [{"id": 50, "text": "awful late thing"}, *reversed(records()[2:])]
    put(tmp_path / "in.jsonl", changed)
    capsys.readouterr()
    assert predict(tmp_path, "--retry-errors") == 0
    assert "1 record new, to be asked too, 2 records gone" in capsys.readouterr().err
    assert_right(rows_in(tmp_path / "out.jsonl"), changed)
    assert emulator.billed["awful late thing"] == 1


@pytest.mark.parametrize(
    ("more", "line"),
    [
        pytest.param(["--retry-errors"], "there is none at", id="nothing there"),
        pytest.param(["--retry-errors", "--force"], "not allowed with", id="both"),
    ],
)
def test_retrying_without_an_output_is_wrong_usage(
    tmp_path: Path,
    llm_emulator: Emulator,
    capsys: pytest.CaptureFixture[str],
    more: list[str],
    line: str,
) -> None:
    put(tmp_path / "in.jsonl", records())
    assert predict(tmp_path, *more) == 2
    assert line in capsys.readouterr().err
    assert llm_emulator.calls == 0


def test_the_output_of_another_input_is_not_taken_for_this_ones(
    tmp_path: Path, llm_emulator: Emulator, capsys: pytest.CaptureFixture[str]
) -> None:
    put(tmp_path / "in.jsonl", records())
    put(
        tmp_path / "out.jsonl", [{"id": 0, "text": "x", "answer": "positive", "answer_error": None}]
    )
    assert predict(tmp_path, "--retry-errors") == 2
    assert "none of the records" in capsys.readouterr().err
    assert llm_emulator.calls == 0


# --- broken lines


def test_broken_lines_are_skipped_where_told_to_and_counted(
    tmp_path: Path, llm_emulator: Emulator, capsys: pytest.CaptureFixture[str]
) -> None:
    good = [json.dumps(record) for record in records(5)]
    (tmp_path / "in.jsonl").write_text(
        "\n".join([good[0], '{"id": 8, "te', *good[1:4], "[]", good[4]]) + "\n"
    )
    assert predict(tmp_path) == 1
    assert "in.jsonl:2: not JSON" in capsys.readouterr().err
    assert llm_emulator.calls == 0
    assert predict(tmp_path, "--on-bad-line", "skip", quiet=False) == 0
    (skipped,) = [
        line for line in capsys.readouterr().err.splitlines() if line.startswith("skipped")
    ]
    assert skipped.split(maxsplit=1)[1].startswith("2 lines that can't be read, the first: ")
    assert "in.jsonl:2: not JSON" in skipped
    assert_right(rows_in(tmp_path / "out.jsonl"), records(5))


@pytest.mark.parametrize("mode", ["online", "batch_api"])
def test_half_characters_and_large_integers_go_all_the_way(
    tmp_path: Path, llm_emulator: Emulator, mode: str
) -> None:
    line = '{"id": 98765432109876543210, "text": "good excellent \\ud83d thing"}'
    (tmp_path / "in.jsonl").write_text(line + "\n")
    assert predict(tmp_path, *by_mode(tmp_path, mode)) == 0
    assert (tmp_path / "out.jsonl").read_text() == line[
        :-1
    ] + ', "answer": "positive", "answer_error": null}\n'


@pytest.mark.parametrize("flag", ["--csv-safe", "--csv-unsafe", None])
def test_formulas_in_csv_by_flag(tmp_path: Path, llm_emulator: Emulator, flag: str | None) -> None:
    put(tmp_path / "in.jsonl", [{"text": "@good excellent"}])
    assert predict(tmp_path, *([flag] if flag else []), output="out.csv") == 0
    with open(tmp_path / "out.csv", newline="") as file:
        assert next(csv.DictReader(file))["text"] == (
            "'@good excellent" if flag == "--csv-safe" else "@good excellent"
        )


# --- spools and leftovers


def test_a_spool_is_its_users_alone(tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        spool = Spool(str(tmp_path / "spool"))
        spool.note_inputs(digest_of({}))
        SpoolFile(spool.folder).close()
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "spool").stat().st_mode) == 0o700
    modes = {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "spool").iterdir()}
    assert modes == {0o600}
    spool.close()


def test_an_open_spool_of_an_earlier_version_is_closed_to_others(tmp_path: Path) -> None:
    (tmp_path / "spool").mkdir()
    os.chmod(tmp_path / "spool", 0o777)
    Spool(str(tmp_path / "spool")).close()
    (tmp_path / "other").mkdir(mode=0o755)
    spool = Spool(str(tmp_path / "other"))
    assert stat.S_IMODE((tmp_path / "other").stat().st_mode) == 0o700
    spool.close()


def test_a_spool_that_can_t_be_made_says_where_it_could_be(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    said = "which keeps answers until .*Not a directory: name an output, or a temporary folder"
    with pytest.raises(LLMError, match=said):
        Spool(str(tmp_path / "file" / "out.partial-1"))


@pytest.mark.skipif(os.geteuid() != 0, reason="only the superuser can make folders of other users")
@pytest.mark.parametrize("what", ["folder", "file", "link"])
def test_answers_of_another_user_are_never_believed(tmp_path: Path, what: str) -> None:
    folder = tmp_path / "spool"
    place = tmp_path / "theirs" if what == "link" else folder
    place.mkdir()
    forged = StoredAnswer(0, "forged", None, None, digest=digest_of({}).hex())
    (place / "answers--x.jsonl").write_text(json.dumps([*forged]) + "\n")
    os.chown(place / "answers--x.jsonl", 65534, 65534)
    if what == "folder":
        os.chown(folder, 65534, 65534)
    if what == "link":
        folder.symlink_to(place)
    if what == "file":
        spool = Spool(str(folder))
        with spool.answers(digest_of({})) as index:
            assert index.missing() == 1
        spool.close()
        return
    with pytest.raises(LLMError, match="is not a folder of yours"):
        Spool(str(folder))


WAITING = """
import sys, time
from beam_llm.leftovers import scratch_folder
with open(scratch_folder() + "/prompts", "w") as file:
    file.write("secret")
print(scratch_folder(), flush=True)
time.sleep(600)
"""


def test_what_a_killed_process_left_goes_with_the_next_run_and_what_a_live_one_has_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", WAITING], stdout=subprocess.PIPE, text=True, env=environment
        )
        for _ in range(2)
    ]
    try:
        folders = [
            Path(process.stdout.readline().strip())
            for process in started
            if process.stdout is not None
        ]
        assert all((folder / "prompts").exists() for folder in folders)
        assert {stat.S_IMODE(folder.stat().st_mode) for folder in folders} == {0o700}
        os.kill(started[0].pid, signal.SIGKILL)
        started[0].wait()
        monkeypatch.setattr(leftovers.tempfile, "tempdir", str(tmp_path))
        assert leftovers.remove_leftovers() == 1
        assert not folders[0].exists()
        assert folders[1].exists()
    finally:
        for process in started:
            process.kill()
            process.communicate()


def test_an_unfinished_output_of_a_killed_run_goes_with_the_next_one(
    tmp_path: Path, llm_emulator: Emulator
) -> None:
    put(tmp_path / "in.jsonl", records())
    left = tmp_path / ".out.jsonl.0123abcd.tmp"
    left.write_text('{"text": "secret"}\n')
    other = tmp_path / ".out.jsonl.notours.tmp"
    other.write_text("mine")
    assert predict(tmp_path) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == [other.name, "in.jsonl", "out.jsonl"]


def test_a_killed_command_leaves_nothing_in_the_temporary_folder_after_the_next(
    tmp_path: Path, start_emulator: Start
) -> None:
    emulator = start_emulator(latency_ms=200)
    (tmp_path / "tmp").mkdir()
    environment = {**os.environ, **emulator.environment, "TMPDIR": str(tmp_path / "tmp")}
    command = [
        sys.executable,
        "-m",
        "beam_llm",
        "predict",
        "-",
        "--output",
        str(tmp_path / "out.jsonl"),
        "--model",
        MODEL,
    ]
    command += ["--prompt", PROMPT, "--input-format", "csv", "--quiet", "--max-concurrency", "1"]
    text = "text\n" + "".join(f"secret {number}\n" for number in range(20))

    def start() -> subprocess.Popen[str]:
        process = subprocess.Popen(command, stdin=subprocess.PIPE, env=environment, text=True)
        assert process.stdin is not None
        process.stdin.write(text)
        process.stdin.close()
        return process

    process = start()
    try:
        wait_until(lambda: emulator.calls >= 2)
    finally:
        process.kill()
        process.wait()
    assert any(path.is_file() for path in (tmp_path / "tmp").rglob("*"))
    again = start()
    assert again.wait(timeout=120) == 0
    assert [path for path in (tmp_path / "tmp").rglob("*") if path.is_file()] == []
    assert [row["text"] for row in rows_in(tmp_path / "out.jsonl")] == text.split("\n")[1:-1]
    assert sum(emulator.billed.values()) <= 22
