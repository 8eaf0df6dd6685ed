"""What the command line shows: nothing of others that steers a terminal or forges a line; what went
wrong, in words and numbers.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from beam_llm.cli.files.target import write_side_file
from beam_llm.cli.main import main
from beam_llm.cli.predict_command import PredictCommand, Report
from beam_llm.cli.progress import LogLines, Meter, ProgressLine
from beam_llm.cli.stored import StoredAnswer
from beam_llm.cli.summary import summary
from beam_llm.cli.tally import Tally
from beam_llm.cli.words import table
from beam_llm.errors import Kind, printable
from beam_llm.events import ACTIVITY
from beam_llm.testing import Emulator, Fault, plugin

llm_emulator, start_emulator = plugin.llm_emulator, plugin.start_emulator
MODEL = "openai:gpt-4.1-mini"
TITLE = "\x1b]0;gotcha\x07"  # sets a terminal's title
FORGED = f"slow down{TITLE}\nERROR:root: everything was deleted\u2028\u202etxt.exe\x9b31m"
SHOWN = "slow down\\x1b]0;gotcha\\x07"


def is_harmless(text: str) -> bool:
    return not any(character in text for character in "\x1b\x07\x9b\r\u2028\u202e")


@pytest.fixture
def start(
    start_emulator: Callable[..., Emulator], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Callable[..., Callable[..., int]]:
    """Starts an emulator with faults; gives `predict` on three records against it."""
    (tmp_path / "in.jsonl").write_text(
        "".join(json.dumps({"text": f"fine phone {n}"}) + "\n" for n in range(3))
    )
    monkeypatch.chdir(tmp_path)

    def started(*faults: Fault) -> Callable[..., int]:
        for name, value in start_emulator(faults=faults).environment.items():
            monkeypatch.setenv(name, value)
        asked = [
            "in.jsonl",
            "--output",
            "out.jsonl",
            "--model",
            MODEL,
            "--prompt",
            "Mood of: {{ text }}",
        ]
        return lambda *more: main(["predict", *asked, *map(str, more)])

    return started


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        pytest.param("plain ~ text", "plain ~ text", id="as it is"),
        pytest.param(
            "Zürich 東京 👩‍🚀 a\u00a0b", "Zürich 東京 👩‍🚀 a\u00a0b", id="letters of all kinds"
        ),
        pytest.param("a\x1b[31mb\x7f\x85", "a\\x1b[31mb\\x7f\\x85", id="escapes"),
        pytest.param("a\r\n\tb\u2029", "a\\r\\n\\tb\\u2029", id="line breaks"),
        pytest.param(
            "\u202efdp.exe\u2066\u200f\ufeff",
            "\\u202efdp.exe\\u2066\\u200f\\ufeff",
            id="hidden marks",
        ),
        pytest.param("\ud83d and \U000e0041", "\\ud83d and \\U000e0041", id="half a pair, a tag"),
    ],
)
def test_what_steers_a_terminal_is_shown_and_not_obeyed(text: str, shown: str) -> None:
    assert printable(text) == shown
    assert printable(printable(text)) == shown


def test_a_server_s_escapes_are_in_no_message(
    start: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    predict = start(Fault("unauthorized", message=FORGED, code=f"c{TITLE}"))
    assert predict("--quiet") == 1
    text = capsys.readouterr().err
    assert text.count("\n") == 1
    assert SHOWN in text
    assert is_harmless(text)


def test_nor_in_a_traceback_nor_in_the_log(
    start: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    predict = start(Fault("unauthorized", message=FORGED))
    assert predict("--debug", "--quiet") == 1
    text = capsys.readouterr().err
    assert "Traceback" in text
    assert is_harmless(text)
    assert not any(line.startswith("ERROR:root") for line in text.splitlines())


def test_a_file_s_name_can_t_forge_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = tmp_path / f"x\nall good{TITLE}.jsonl"
    name.write_text("{\n")
    assert (
        main(
            [
                "predict",
                str(name),
                "--output",
                str(tmp_path / "o.jsonl"),
                "--model",
                MODEL,
                "--prompt",
                "{{ text }}",
            ]
        )
        == 1
    )
    text = capsys.readouterr().err
    assert text.count("\n") == 1
    assert is_harmless(text)


def test_a_job_s_words_are_harmless_in_tables_and_progress(
    capsys: pytest.CaptureFixture[str],
) -> None:
    meter = Meter(1)
    meter.hear(
        "waiting", {"states": {f"run{TITLE}\n": 1}, "done": 0, "total": 1, "next_seconds": 1.0}
    )
    assert "run\\x1b]0;gotcha\\x07\\n" in meter.line()
    assert is_harmless(table(["job"], [[f"batch{TITLE}"]]))


class Terminal:
    """A stream that is a terminal, and what it was sent."""

    def __init__(self) -> None:
        self.text = ""
        self.shown = threading.Event()

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> None:
        self.text += text
        if "working" in text:
            self.shown.set()

    def flush(self) -> None:
        pass


def test_a_warning_is_a_line_of_its_own_beside_the_live_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    log = logging.Logger("beam_llm.test")
    log.addHandler(LogLines())
    with ProgressLine(lambda: "working", every_seconds=0.01):
        assert terminal.shown.wait(5)
        log.warning("the list is %s", f"late{TITLE}")
    assert "\r\x1b[2Kbeam_llm.test: the list is late\\x1b]0;gotcha\\x07\n" in terminal.text
    assert terminal.text.endswith("\r\x1b[2K")


def test_the_progress_line_tells_of_calls_in_flight_retries_and_timeouts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ACTIVITY, "retries", 7)
    meter = Meter(10, clock=lambda: 0.0)
    assert meter.line() == "0 of 10 records, 0.0 s"
    for name, value in {
        "in_flight": 12,
        "retries": 11,
        "waits": ACTIVITY.waits + 3,
        "timeouts": ACTIVITY.timeouts + 2,
    }.items():
        monkeypatch.setattr(ACTIVITY, name, value)
    assert meter.line() == "0 of 10 records, 0.0 s, 12 in flight, 1 retry, 3 waits, 2 timeouts"


def test_calls_that_time_out_and_are_tried_again_are_counted(
    start: Callable[..., Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = ACTIVITY.snapshot()
    predict = start(Fault("hang", nth=2, seconds=30.0))
    assert predict("--request-timeout-ms", 2000, "--summary", "how.json") == 0
    after = ACTIVITY.snapshot()
    assert (after.timeouts - before.timeouts, after.retries - before.retries, after.in_flight) == (
        1,
        1,
        0,
    )
    assert "calls     4 (1 retry, 1 timeout)" in capsys.readouterr().err
    found = json.loads((tmp_path / "how.json").read_text())
    assert (found["requests"], found["retries"], found["timeouts"]) == (4, 1, 1)


@pytest.mark.parametrize(
    ("costs", "shown"),
    [
        ([5.0, 2.5], "$7.50"),
        ([5.0, None], "at least $5.00 (what 1 record cost is not known)"),
        ([None, None], "unknown (the model has no list price; give --prices)"),
    ],
    ids=["known", "a line that can't be read", "no list price"],
)
def test_a_cost_that_is_known_in_part_is_a_least_one(costs: list[float | None], shown: str) -> None:
    tally = Tally()
    for cost in costs:
        kind = Kind.UNREADABLE if cost is None else None
        tally.add(StoredAnswer(0, "a", kind, kind, cost_usd=cost))
    assert tally.cost() == shown


def tally_of(*errors: tuple[str, str]) -> Tally:
    tally = Tally()
    for ordinal, (kind, message) in enumerate(errors):
        tally.add(StoredAnswer(ordinal, None, kind, f"{kind}: {message}"))
    return tally


JOB = PredictCommand(["in.jsonl"], "out.jsonl", settings=None)  # type: ignore[arg-type]


def test_the_summary_shows_the_most_frequent_message_of_each_kind() -> None:
    tally = tally_of(
        ("missing", "answer 3 of 5 is missing"),
        ("missing", "the reply is empty"),
        ("missing", "answer 4 of 5 is missing (after 4 attempts)"),
        ("rejected", f"HTTP 400: no\n{TITLE}"),
    )
    lines = summary(JOB, Report(tally, 0)).splitlines()
    assert lines[:4] == [
        "records   4",
        "errors    4",
        "          3 missing, 2 of them: answer 3 of 5 is missing",
        "          1 rejected: HTTP 400: no \\x1b]0;gotcha\\x07",
    ]


def test_the_summary_shows_warnings_in_words() -> None:
    counters = {
        "warnings_zero_based": 1,
        "warnings_repaired": 1200,
        "warnings_of_tomorrow": 2,
        "jobs_twice": 1,
        "warnings_wrapped": 0,
    }
    text = summary(JOB, Report(Tally(), 0, counters))
    assert [line.strip() for line in text.splitlines()[1:5]] == [
        "warnings  1,200 replies not quite JSON, repaired",
        "2 warnings of the kind of_tomorrow",
        "1 reply with answers counted from 0",
        "1 job found twice at the provider: the younger was cancelled, and may have cost something",
    ]


def test_many_different_messages_take_no_more_than_a_bounded_place() -> None:
    # Of two thousand wordings the last comes most often, when there is no place left for it.
    late = [("rejected", f"{'x' * 2000}!")] * 9
    tally = tally_of(
        *(("rejected", f"{'x' * (n % 2000)}!") for n in range(4000)),
        *([("rejected", "x!")] * 5),
        *late,
    )
    assert tally.messages["rejected"].most_frequent() == (7, "x!")


def test_a_summary_file_says_how_the_run_ended(start: Callable[..., Any], tmp_path: Path) -> None:
    predict = start(Fault("poison", text="phone 1"))
    assert predict("--quiet", "--summary", "how.json") == 3
    found = json.loads((tmp_path / "how.json").read_text())
    assert (found["records"], found["answered"], found["failed"], found["jobs_twice"]) == (
        3,
        2,
        1,
        0,
    )
    assert found["errors"]["refused"]["records"] == 1
    assert found["errors"]["refused"]["most_frequent"]
    assert found["cost_usd"] > 0
    assert found["counters"]["records"] == 3
    assert sorted(os.listdir(tmp_path)) == ["how.json", "in.jsonl", "out.jsonl"]


@pytest.mark.parametrize("path", ["nosuch/how.json", ".", "gs://bucket/how.json", os.devnull])
def test_a_summary_that_can_t_be_written_is_wrong_usage_before_any_call(
    start: Callable[..., Any], capsys: pytest.CaptureFixture[str], path: str
) -> None:
    assert start()("--summary", path) == 2
    assert "--summary" in capsys.readouterr().err


def test_a_side_file_that_can_not_be_put_in_its_place_leaves_nothing_beside_it(
    tmp_path: Path,
) -> None:
    (tmp_path / "summary.json").mkdir()
    with pytest.raises(OSError, match="summary"):
        write_side_file(str(tmp_path / "summary.json"), b"{}")
    assert os.listdir(tmp_path) == ["summary.json"]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        pytest.param(["--summary", "in.jsonl"], "is not a summary of beam-llm", id="the input"),
        pytest.param(
            ["--summary", "out.jsonl"], "--output and --summary are both", id="the output"
        ),
        pytest.param(["--report", "./out.jsonl"], "--output and --report are both", id="a page"),
    ],
)
def test_neither_summary_nor_page_is_written_over_data(
    tmp_path: Path,
    start: Callable[..., Any],
    capsys: pytest.CaptureFixture[str],
    flags: list[str],
    words: str,
) -> None:
    predict = start()
    before = (tmp_path / "in.jsonl").read_bytes()
    assert predict(*flags) == 2
    assert words in capsys.readouterr().err
    assert (tmp_path / "in.jsonl").read_bytes() == before
    assert not (tmp_path / "out.jsonl").exists()


def test_an_unreadable_reply_says_how_to_see_it(
    start: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    predict = start(Fault("malformed_json"))
    assert predict("--output-type", "enum:a|b", "--max-retries", 0) == 3
    assert "unreadable" in (text := capsys.readouterr().err)
    assert "log_data=True, or --log-data, shows it" in text


# --- the first requests, without a call


def test_the_shown_requests_are_the_ones_that_a_run_sends(
    start: Callable[..., Any],
    start_emulator: Callable[..., Emulator],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    emulator = start_emulator()
    for name, value in emulator.environment.items():
        monkeypatch.setenv(name, value)
    Path("in.jsonl").write_text(
        "".join(json.dumps({"text": f"fine {n}\x9b \u202e"}) + "\n" for n in range(7))
    )
    question = [
        "--prompt",
        "Mood of: {{ text }}",
        "--output-type",
        "enum:good|bad",
        "--batch-size",
        "3",
    ]
    asked = ["predict", "in.jsonl", "--model", MODEL, *question]
    assert main([*asked, "--show", "2"]) == 0
    assert emulator.calls == 0
    text = capsys.readouterr().out
    assert is_harmless(text)
    shown = [json.loads(part) for part in text.replace("\n}\n{", "\n}\0{").split("\0")]
    assert [request["records"] for request in shown] == [3, 3]
    assert "good" in json.dumps(shown[0]["reply_schema"])
    assert main([*asked, "--output", "out.jsonl", "--quiet"]) == 0
    for request in shown:
        assert request["request"] in emulator.requests


def test_a_record_that_can_t_be_asked_is_shown_with_its_reason(
    start: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    predict = start()
    Path("in.jsonl").write_text('{"text": "fine"}\n{"txt": "odd"}\n')
    assert predict("--show", 5) == 3
    out = capsys.readouterr().out
    assert "does not have" in out
    assert not Path("out.jsonl").exists()


def test_without_an_output_there_is_advice(
    start: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    start()
    assert main(["predict", "in.jsonl", "--model", MODEL, "--prompt", "{{ text }}"]) == 2
    assert "add --output" in capsys.readouterr().err


# --- streams that nobody reads


class Gone:
    """A stderr whose reader has left."""

    def isatty(self) -> bool:
        return False

    def write(self, text: str) -> None:
        raise BrokenPipeError

    def flush(self) -> None:
        raise BrokenPipeError


@pytest.mark.parametrize("stderr", [None, Gone()], ids=["closed", "reader left"])
def test_a_run_that_nobody_watches_is_finished(
    start: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, stderr: object
) -> None:
    predict = start(Fault("poison", text="phone 1"))
    monkeypatch.setattr("sys.stderr", stderr)
    assert predict() == 3
    assert len(Path("out.jsonl").read_text().splitlines()) == 3


def test_a_full_disk_behind_stdout_is_one_line(start: Callable[..., Any]) -> None:
    start()
    with open("/dev/full", "wb") as full:
        command = [
            sys.executable,
            "-m",
            "beam_llm",
            "predict",
            "in.jsonl",
            "--model",
            MODEL,
            "--prompt",
            "{{ text }}",
        ]
        done = subprocess.run(
            [*command, "--output", "-", "--quiet"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=120,
        )
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1, done.stderr
    assert "No space left" in done.stderr


@pytest.mark.parametrize("number", ["0", "-1", "nan", "inf", "soon"])
def test_a_latency_is_a_number_above_0(
    start: Callable[..., Any], capsys: pytest.CaptureFixture[str], number: str
) -> None:
    start()
    assert main(["estimate", "in.jsonl", "--model", MODEL, "--latency-seconds", number]) == 2
    assert f"{number!r} is not a number above 0" in capsys.readouterr().err


def test_an_emulator_s_port_that_is_none_is_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["emulator", "--port", "70000"]) == 2
    assert "'70000' is not a whole number from 0 to 65535" in capsys.readouterr().err


def test_an_estimate_s_answers_take_the_tokens_that_a_run_takes(
    start: Callable[..., Any], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Labels are short: what stands around each is most of a reply, and is shorter in prompts of
    several.
    """
    predict = start()
    Path("in.jsonl").write_text(
        "".join(json.dumps({"text": f"fine phone {n}"}) + "\n" for n in range(40))
    )
    question = [
        "in.jsonl",
        "--model",
        MODEL,
        "--prompt",
        "Mood of: {{ text }}",
        "--output-type",
        "enum:positive|negative|neutral",
    ]
    assert main(["estimate", *question, "--json"]) == 0
    foreseen = {
        line["batch_size"]: line for line in json.loads(capsys.readouterr().out)["by_batch_size"]
    }
    for size in (1, 20):
        more = [
            "--batch-size",
            size,
            "--output-type",
            "enum:positive|negative|neutral",
            "--summary",
            "how.json",
        ]
        assert predict(*more, "--quiet", "--force") == 0
        found = json.loads((tmp_path / "how.json").read_text())
        assert found["requests"] == foreseen[size]["requests"]
        assert 0.6 < found["output_tokens"] / foreseen[size]["output_tokens"] <= 1.1
        assert 0.5 < found["input_tokens"] / foreseen[size]["input_tokens"] <= 1.1
