"""The command line as its user meets it: exit codes, one clear line for each mistake, files that
are whole or not there.
"""

from __future__ import annotations

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pyarrow.parquet as pq
import pytest
from apache_beam.options.pipeline_options import PipelineOptions, StandardOptions

import beam_llm
from beam_llm.cli.beam_run import pipeline_options, run_to_end
from beam_llm.cli.files.records import DataError
from beam_llm.cli.flags import output_type
from beam_llm.cli.main import main
from beam_llm.cli.progress import Meter, ProgressLine
from beam_llm.cli.running import RESUME_LIVE_CALLS, Interrupted, RunMetrics, reason_of, run_watched
from beam_llm.cli.stored import StoredAnswer, encode_answer
from beam_llm.cli.words import dollars, duration, shortened, table
from beam_llm.config import EACH, options_of, settings_from_options
from beam_llm.errors import UsageError
from beam_llm.stores.local import LocalStore
from beam_llm.testing import Emulator, Fault, plugin
from tests.beams_search import ask_nothing_of_google

# Also where the package is only on the path.
llm_emulator, start_emulator = (
    plugin.llm_emulator,
    plugin.start_emulator,
)
PROMPT = "Sentiment of this review: {{ text }}"
MODEL = "openai:gpt-4.1-mini"
MOODS = "enum:positive|negative|neutral"
TEXTS = ("what a wonderful, excellent phone", "terrible, awful, the worst", "it has a screen")


def reviews(folder: Path, count: int = 3, name: str = "in.jsonl") -> str:
    path = folder / name
    path.write_text(
        "".join(json.dumps({"id": i, "text": f"{TEXTS[i % 3]} {i}"}) + "\n" for i in range(count))
    )
    return str(path)


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def predict(*arguments: Any, prompt: str = PROMPT, model: str = MODEL) -> int:
    return main(["predict", *map(str, arguments), "--model", model, "--prompt", prompt, "--quiet"])


def run(
    *arguments: Any, emulator: Emulator | None = None, **kwargs: Any
) -> subprocess.CompletedProcess[str]:
    """The real command in its own process."""
    environment = {**os.environ, **(emulator.environment if emulator else {})}
    command = [sys.executable, "-m", "beam_llm", *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, env=environment, timeout=120, **kwargs
    )


def said(capsys: pytest.CaptureFixture[str]) -> str:
    """stderr, which has to be one line."""
    text = capsys.readouterr().err
    assert text.count("\n") == 1, text
    return text


# --- the main job


@pytest.mark.parametrize("mode", ["online", "batch_api"])
def test_every_record_comes_back_in_its_place_with_its_answer(
    tmp_path: Path, llm_emulator: Emulator, mode: str
) -> None:
    more = (
        ["--staging", tmp_path / "staging", "--poll-seconds", "0.05"] if mode == "batch_api" else []
    )
    code = predict(
        reviews(tmp_path, 50),
        "--output",
        tmp_path / "out.jsonl",
        "--output-type",
        MOODS,
        "--batch-size",
        7,
        "--mode",
        mode,
        *more,
    )
    found = rows(tmp_path / "out.jsonl")
    assert code == 0
    assert [row["id"] for row in found] == list(range(50))
    assert [row["answer"] for row in found[:3]] == ["positive", "negative", "neutral"]
    assert {row["answer_error"] for row in found} == {None}
    assert set(llm_emulator.billed.values()) == {1}
    assert sorted(os.listdir(tmp_path)) == sorted(
        ["in.jsonl", "out.jsonl", *(["staging"] if more else [])]
    )


def test_the_real_command_says_what_it_did_and_stdout_stays_clean(
    tmp_path: Path, llm_emulator: Emulator
) -> None:
    done = run(
        "predict",
        reviews(tmp_path),
        "--output",
        tmp_path / "out.jsonl",
        "--model",
        MODEL,
        "--prompt",
        PROMPT,
        "--batch-size",
        "3",
        emulator=llm_emulator,
    )
    assert (done.returncode, done.stdout) == (0, "")
    lines = dict(line.split(maxsplit=1) for line in done.stderr.splitlines())
    assert lines["records"] == "3"
    assert lines["calls"] == "1"
    assert lines["cost"].startswith("$0.0")
    assert lines["output"] == str(tmp_path / "out.jsonl")
    assert set(lines) == {"records", "calls", "tokens", "cost", "time", "output"}


def test_stdin_goes_to_stdout(tmp_path: Path, llm_emulator: Emulator) -> None:
    text = Path(reviews(tmp_path)).read_text()
    done = run(
        "predict",
        "-",
        "--output",
        "-",
        "--model",
        MODEL,
        "--prompt",
        PROMPT,
        "--output-type",
        MOODS,
        "--quiet",
        emulator=llm_emulator,
        input=text,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert [json.loads(line)["answer"] for line in done.stdout.splitlines()] == [
        "positive",
        "negative",
        "neutral",
    ]


def test_csv_parquet_and_globs_go_together(tmp_path: Path, llm_emulator: Emulator) -> None:
    (tmp_path / "a.csv").write_text("text,n\nwonderful excellent,1\n")
    assert (
        predict(
            tmp_path / "a.csv",
            "--output",
            tmp_path / "b.parquet",
            "--output-type",
            MOODS,
            "--output-field",
            "mood",
        )
        == 0
    )
    assert pq.read_table(tmp_path / "b.parquet").to_pylist() == [
        {"text": "wonderful excellent", "n": "1", "mood": "positive", "mood_error": None}
    ]
    assert (
        predict(
            tmp_path / "b.par*",
            tmp_path / "a.csv",
            "--output",
            tmp_path / "c.csv",
            "--output-type",
            MOODS,
        )
        == 0
    )
    with open(tmp_path / "c.csv", newline="") as file:
        assert [(row["text"], row["answer"]) for row in csv.DictReader(file)] == [
            ("wonderful excellent", "positive")
        ] * 2


def test_a_pydantic_model_beside_the_data_gives_json_objects(
    tmp_path: Path, llm_emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = """
import typing, pydantic
class Mood(pydantic.BaseModel):
    sentiment: typing.Literal["positive", "negative", "neutral"]
    score: float
"""
    (tmp_path / "my_types.py").write_text(source)
    monkeypatch.chdir(tmp_path)
    assert (
        predict(
            reviews(tmp_path),
            "--output",
            "out.jsonl",
            "--output-type",
            "my_types.Mood",
            "--batch-size",
            3,
        )
        == 0
    )
    answer = rows(tmp_path / "out.jsonl")[0]["answer"]
    assert answer["sentiment"] == "positive"
    assert answer["score"] > 0


def test_the_console_script_finds_a_parser_beside_the_data(
    tmp_path: Path, llm_emulator: Emulator
) -> None:
    (tmp_path / "my_parsers.py").write_text("def first(text, count):\n    return {1: 'parsed'}\n")
    # Python puts its folder on the path, not the current one.
    script = tmp_path / "bin" / "beam-llm"
    script.parent.mkdir()
    script.write_text("import sys\nfrom beam_llm.cli.main import main\nsys.exit(main())\n")
    command = [
        "predict",
        reviews(tmp_path),
        "--output",
        "out.jsonl",
        "--model",
        MODEL,
        "--prompt",
        PROMPT,
        "--quiet",
    ]
    done = subprocess.run(
        [
            sys.executable,
            str(script),
            *command,
            "--response-format",
            "my_parsers.first",
            "--allow-code",
        ],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={
            **os.environ,
            "PYTHONPATH": str(Path(beam_llm.__file__).parent.parent),
            **llm_emulator.environment,
        },
        timeout=120,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert [row["answer"] for row in rows(tmp_path / "out.jsonl")] == ["parsed"] * 3


def test_an_empty_file_gives_an_empty_file_without_a_call(
    tmp_path: Path, llm_emulator: Emulator
) -> None:
    (tmp_path / "in.jsonl").write_text("")
    assert predict(tmp_path / "in.jsonl", "--output", tmp_path / "out.jsonl") == 0
    assert (tmp_path / "out.jsonl").read_text() == ""
    assert llm_emulator.calls == 0


@pytest.mark.parametrize("mode", ["online", "batch_api"])
def test_a_bucket_is_as_good_as_a_folder(
    tmp_path: Path,
    llm_emulator: Emulator,
    gcs_location: str,
    monkeypatch: pytest.MonkeyPatch,
    mode: str,
) -> None:
    from apache_beam.io.filesystems import FileSystems

    ask_nothing_of_google(monkeypatch)
    with FileSystems.create(f"{gcs_location}/in-1.jsonl") as file:
        file.write(Path(reviews(tmp_path)).read_bytes())
    more = (
        ["--staging", f"{gcs_location}/llm", "--poll-seconds", "0.05"]
        if mode == "batch_api"
        else []
    )
    assert (
        predict(
            f"{gcs_location}/in-*.jsonl",
            "--output",
            f"{gcs_location}/out.jsonl",
            "--output-type",
            MOODS,
            "--mode",
            mode,
            *more,
        )
        == 0
    )
    with FileSystems.open(f"{gcs_location}/out.jsonl") as file:
        assert [json.loads(line)["answer"] for line in file] == ["positive", "negative", "neutral"]


# --- records that fail


def test_records_that_fail_are_in_the_output_and_the_code_is_3(
    tmp_path: Path,
    start_emulator: Callable[..., Emulator],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    emulator = start_emulator(faults=[Fault(kind="poison", text="worst 1")])
    for name, value in emulator.environment.items():
        monkeypatch.setenv(name, value)
    assert predict(reviews(tmp_path), "--output", tmp_path / "out.jsonl", "--batch-size", 3) == 3
    assert "1 of 3 records ended as errors" in said(capsys)
    found = rows(tmp_path / "out.jsonl")
    assert [row["answer"] is None for row in found] == [False, True, False]
    assert found[1]["answer_error"].startswith("refused: ")


LACKS, HAS = {"txt": "typo"}, {"text": "fine"}


@pytest.mark.parametrize("records", [[HAS, LACKS], [LACKS, HAS]], ids=["second", "first"])
def test_a_field_that_one_record_lacks_is_that_records_error(
    tmp_path: Path,
    llm_emulator: Emulator,
    capsys: pytest.CaptureFixture[str],
    records: list[dict[str, str]],
) -> None:
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    assert predict(tmp_path / "in.jsonl", "--output", tmp_path / "out.jsonl") == 3
    found = {next(iter(row)): row for row in rows(tmp_path / "out.jsonl")}
    assert found["txt"] == {**LACKS, "answer": None, "answer_error": found["txt"]["answer_error"]}
    assert found["txt"]["answer_error"].startswith("prompt: ")
    assert found["text"]["answer_error"] is None
    assert llm_emulator.calls == 1
    capsys.readouterr()


def test_a_prompt_of_fields_that_no_record_has_all_of_gives_records_errors(
    tmp_path: Path, llm_emulator: Emulator, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in.jsonl").write_text('{"text": "fine"}\n{"title": "Phone"}\n')
    arguments = (tmp_path / "in.jsonl", "--output", tmp_path / "out.jsonl")
    assert predict(*arguments, prompt="{{ title }}: {{ text }}") == 3
    assert predict(*arguments, "--force", prompt="{{ title }}: {{ txet }}") == 2
    assert "'txet'" in capsys.readouterr().err
    assert llm_emulator.calls == 0


# --- mistakes: one line, a code, no call


@pytest.mark.parametrize(
    ("arguments", "code", "line"),
    [
        pytest.param(["nosuch.jsonl"], 2, "there is no file 'nosuch.jsonl'", id="missing file"),
        pytest.param(["*.nosuch"], 2, "no file matches '*.nosuch'", id="empty glob"),
        pytest.param(["in.jsonl", "--batch-size", "0"], 2, "--batch-size is '0'", id="bad value"),
        pytest.param(
            ["in.jsonl", "--batchsize", "3"],
            2,
            "unknown option '--batchsize': did you mean '--batch-size'?",
            id="unknown option",
        ),
        pytest.param(
            ["in.jsonl", "--max-tokens=3"],
            2,
            "unknown option '--max-tokens=3': did you mean '--max-output-tokens'?",
            id="an option as others call it",
        ),
        pytest.param(
            ["in.jsonl", "--prompt", "Sentiment", "of", "{{", "text", "}}"],
            2,
            "unexpected 'of': a value with spaces has to be in quotes",
            id="a prompt without quotes",
        ),
        pytest.param(
            ["in.jsonl", "--api-key", "sk-secret"],
            2,
            "--api-key holds a literal value",
            id="literal key",
        ),
        pytest.param(
            ["in.jsonl", "--mode", "batch_api"],
            2,
            "--staging-location is missing",
            id="batch without staging",
        ),
        pytest.param(
            ["in.jsonl", "--output-type", "enum:"], 2, "an enum needs members", id="bad output type"
        ),
        pytest.param(
            ["in.jsonl", "--output-type", "nosuch.Model"], 2, "can't be imported", id="unknown type"
        ),
        pytest.param(
            ["in.jsonl", "--output-type", "this_fails.Model"],
            2,
            "--output-type is 'this_fails.Model': it can't be imported (ZeroDivisionError",
            id="a type's module that fails",
        ),
        pytest.param(
            ["in.jsonl", "--output", "in.jsonl"], 2, "is one of the inputs", id="overwriting"
        ),
        pytest.param(
            ["in.jsonl", "--output", "nosuch/out.jsonl"],
            2,
            "there is no folder 'nosuch'",
            id="no folder",
        ),
        pytest.param(
            ["in.jsonl", "--output", "out.txt"],
            2,
            "can't tell the format of 'out.txt'",
            id="unknown format",
        ),
        pytest.param(
            ["in.jsonl", "--prompt", "{{ txet }}"],
            2,
            "fields of the input: id, text",
            id="unknown field",
        ),
        pytest.param(
            ["in.jsonl", "--output-field", "id"],
            1,
            "in.jsonl:1: the record has a field 'id' already",
            id="taken field",
        ),
        pytest.param(["in.jsonl", "broken.jsonl"], 1, "broken.jsonl:2: not JSON", id="broken line"),
        pytest.param(
            ["in.jsonl", "--model", "gpt-4.1-mini"],
            2,
            "openai:gpt-4.1-mini",
            id="model without provider",
        ),
        pytest.param(
            ["in.jsonl", "--api-key", "env:NO_SUCH_KEY"],
            1,
            "NO_SUCH_KEY",
            id="key that isn't there",
        ),
    ],
)
def test_a_mistake_is_one_line_and_costs_nothing(
    tmp_path: Path,
    llm_emulator: Emulator,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    code: int,
    line: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    reviews(tmp_path)
    (tmp_path / "broken.jsonl").write_text('{"text": "a"}\n{"text": \n')
    (tmp_path / "this_fails.py").write_text("1 / 0\n")
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    defaults = {"--output": "out.jsonl", "--model": MODEL, "--prompt": PROMPT}
    given = [
        part for name, value in defaults.items() if name not in arguments for part in (name, value)
    ]
    assert main(["predict", *arguments, *given]) == code
    text = said(capsys)
    assert line in text
    assert "sk-secret" not in text
    assert llm_emulator.calls == 0
    assert sorted(os.listdir(tmp_path)) == ["broken.jsonl", "in.jsonl", "this_fails.py"]


@pytest.mark.parametrize(
    ("options", "line"),
    [
        pytest.param({"keys": ("other",)}, "key", id="bad key"),
        pytest.param({"models": ("gpt-4.1",)}, "gpt-4.1-mini", id="unknown model"),
    ],
)
def test_what_no_call_can_mend_ends_the_command_with_one_line(
    tmp_path: Path, start_emulator: Callable[..., Emulator], options: dict[str, Any], line: str
) -> None:
    emulator = start_emulator(**options)
    environment = {
        **os.environ,
        "OPENAI_BASE_URL": emulator.base_url,
        "OPENAI_API_KEY": "sk-not-this-one" if "keys" in options else emulator.api_key,
    }
    command = [
        sys.executable,
        "-m",
        "beam_llm",
        "predict",
        reviews(tmp_path),
        "--output",
        str(tmp_path / "out.jsonl"),
        "--model",
        MODEL,
        "--prompt",
        PROMPT,
        "--quiet",  # no progress line, however slow the machine
    ]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1, done.stderr
    assert line in done.stderr
    assert "sk-not-this-one" not in done.stderr
    assert os.listdir(tmp_path) == ["in.jsonl"]


@pytest.mark.parametrize(
    ("stream", "arguments", "line"),
    [
        pytest.param(
            "stdin",
            ["-", "--output", "out.jsonl"],
            "stdin is closed: pipe records into the command, or name a file",
            id="stdin",
        ),
        pytest.param(
            "stdout", ["in.jsonl", "--output", "-"], "stdout is closed: name a file", id="stdout"
        ),
    ],
)
def test_a_closed_stream_is_wrong_usage_in_plain_words(
    tmp_path: Path,
    llm_emulator: Emulator,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    stream: str,
    arguments: list[str],
    line: str,
) -> None:
    reviews(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, stream, None)  # what `<&-` and `>&-` make of it
    assert predict(*arguments) == 2
    assert line in said(capsys)
    assert llm_emulator.calls == 0


def test_debug_shows_where_it_happened(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        main(["predict", "nosuch.jsonl", "--output", "x.jsonl", "--model", MODEL, "--debug"]) == 2
    )
    assert "Traceback" in capsys.readouterr().err


# --- stopping and going on


def stopped_when(
    true: Callable[[], bool],
    *arguments: Any,
    emulator: Emulator,
    by: signal.Signals = signal.SIGINT,
) -> tuple[int, str]:
    """Starts the real command, sends it a signal when `true`; returns its exit code and stderr."""
    command = [sys.executable, "-m", "beam_llm", *map(str, arguments)]
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, env={**os.environ, **emulator.environment}
    ) as process:
        try:
            wait_until(lambda: true() or process.poll() is not None)
            process.send_signal(by)
            return process.wait(timeout=60), process.communicate()[1]
        finally:
            process.kill()


def wait_until(true: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not come to this"
        time.sleep(0.02)


def test_ctrl_c_while_the_command_is_being_loaded_shows_no_traceback(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import os, signal, sys\n"
        "class Interrupting:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name == 'beam_llm.cli.flags':\n"
        "            os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.meta_path.insert(0, Interrupting())\n"
    )
    package = Path(beam_llm.__file__).parent.parent
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{package}"}
    command = [sys.executable, "-m", "beam_llm", "predict", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "beam-llm: stopped\n")


@pytest.mark.parametrize(
    ("by", "exit_code", "again"),
    [(signal.SIGINT, 130, "Ctrl-C again"), (signal.SIGTERM, 143, "another signal")],
    ids=["Ctrl-C", "SIGTERM"],
)
def test_a_live_run_that_is_stopped_goes_on_and_pays_nothing_twice(
    tmp_path: Path,
    start_emulator: Callable[..., Emulator],
    by: signal.Signals,
    exit_code: int,
    again: str,
) -> None:
    emulator = start_emulator(latency_ms=100)
    command = (
        "predict",
        reviews(tmp_path, 200),
        "--output",
        tmp_path / "out.jsonl",
        "--model",
        MODEL,
        "--prompt",
        PROMPT,
        "--max-concurrency",
        4,
    )
    code, text = stopped_when(lambda: emulator.calls >= 20, *command, emulator=emulator, by=by)
    assert code == exit_code
    assert f"{again} ends at once" in text
    assert "the same command again goes on" in text
    assert "Traceback" not in text
    assert not (tmp_path / "out.jsonl").exists()
    answered = sum(emulator.billed.values())
    assert 20 <= answered < 200
    done = run(*command, emulator=emulator)
    assert done.returncode == 0, done.stderr
    assert f"going on: {answered} of 200 records" in done.stderr
    assert [row["id"] for row in rows(tmp_path / "out.jsonl")] == list(range(200))
    assert set(emulator.billed.values()) == {1}
    assert sorted(os.listdir(tmp_path)) == ["in.jsonl", "out.jsonl"]


def test_ctrl_c_cancels_a_pipeline_on_a_cluster_and_says_that_it_may_go_on_there() -> None:
    """Its workers don't hear the signal: "stopped", it said, while they went on asking."""

    class FlinkRunner:
        options, asked = PipelineOptions([]), list[str]()

        @property
        def runner(self) -> FlinkRunner:
            return self

        def run(self) -> FlinkRunner:
            return self

        def wait_until_finish(self) -> None:
            raise KeyboardInterrupt

        def cancel(self) -> None:
            self.asked.append("cancel")
            raise RuntimeError("the job server is gone")

    with pytest.raises(Interrupted, match="goes on asking until that is done"):
        run_watched(
            lambda: run_to_end(cast(Any, FlinkRunner())),
            Meter(1),
            resume_hint=RESUME_LIVE_CALLS,
            quiet=True,
            at_once=False,
        )
    assert FlinkRunner.asked == ["cancel"]


def test_a_waiting_batch_job_stopped_by_ctrl_c_is_collected_by_the_same_command(
    tmp_path: Path, start_emulator: Callable[..., Emulator]
) -> None:
    emulator = start_emulator(batch_seconds=3)
    staging = tmp_path / "staging"
    command = (
        "predict",
        reviews(tmp_path, 10),
        "--output",
        tmp_path / "out.jsonl",
        "--model",
        MODEL,
        "--prompt",
        PROMPT,
    )
    command += ("--mode", "batch_api", "--staging", staging, "--poll-seconds", 0.1)
    code, text = stopped_when(
        lambda: any(staging.glob("jobs/*/created-*")), *command, emulator=emulator
    )
    assert code == 130
    assert "the same command again goes on" in text
    assert run(*command, emulator=emulator).returncode == 0
    assert len(rows(tmp_path / "out.jsonl")) == 10
    assert set(emulator.billed.values()) == {1}


# --- jobs


@pytest.fixture
def submitted(tmp_path: Path, llm_emulator: Emulator) -> list[str]:
    """A finished batch job of 10 records in a staging location; the arguments that name its
    question.
    """
    question = [
        "--model",
        MODEL,
        "--prompt",
        PROMPT,
        "--output-type",
        MOODS,
        "--staging",
        str(tmp_path / "staging"),
        "--poll-seconds",
        "0.05",
    ]
    assert (
        main(
            [
                "predict",
                reviews(tmp_path, 10),
                "--output",
                str(tmp_path / "out.jsonl"),
                "--mode",
                "batch_api",
                "--quiet",
                *question,
            ]
        )
        == 0
    )
    return question


@pytest.mark.parametrize(
    ("named", "flags"),
    [
        ([], []),
        (["1"], []),
        ([], ["--", "--runner=FnApiRunner", "--direct_runner_bundle_repeat=2"]),
    ],
    ids=["all", "by number", "by a runner that repeats each bundle"],
)
def test_attach_writes_the_records_of_jobs_submitted_before(
    tmp_path: Path,
    llm_emulator: Emulator,
    submitted: list[str],
    named: list[str],
    flags: list[str],
) -> None:
    output = ["--output", str(tmp_path / "again.jsonl"), "--quiet"]
    assert main(["jobs", "attach", *named, *output, *submitted, *flags]) == 0
    assert rows(tmp_path / "again.jsonl") == rows(tmp_path / "out.jsonl")
    assert set(llm_emulator.billed.values()) == {1}


def test_attach_has_workers_elsewhere_write_where_it_can_read(
    tmp_path: Path, submitted: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folders: list[str] = []

    def collect(settings: Any, ids: list[str], folder: str, options: list[str]) -> RunMetrics:
        folders.append(folder)
        assert Path(folder).stat().st_mode & 0o077 == 0
        return RunMetrics({}, None)

    monkeypatch.setattr("beam_llm.cli.pipeline.collect", collect)
    elsewhere = ["--quiet", *submitted, "--", "--runner=FlinkRunner"]
    for output in (str(tmp_path / "again.jsonl"), "-"):
        assert main(["jobs", "attach", "--output", output, *elsewhere]) == 0
    beside_output, beside_ledger = (folder.partition(".partial-")[0] for folder in folders)
    assert beside_output == str(tmp_path / "again.jsonl")
    assert beside_ledger == str(tmp_path / "staging" / "attached")
    assert not any(map(os.path.exists, folders))


def test_attach_counts_what_workers_elsewhere_stored(
    tmp_path: Path,
    submitted: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Their events are not heard here; their files are."""

    def collect(settings: Any, ids: list[str], folder: str, options: list[str]) -> RunMetrics:
        ended = {"a": ("positive", None), "b": (None, "missing")}
        for number, (text, (value, kind)) in enumerate(ended.items()):
            answer = StoredAnswer(number, value, kind, kind)
            Path(folder, f"{number}.jsonl").write_bytes(encode_answer(answer, {"text": text}))
        return RunMetrics({}, None)

    monkeypatch.setattr("beam_llm.cli.pipeline.collect", collect)
    output = tmp_path / "again.jsonl"
    assert main(["jobs", "attach", "--output", str(output), *submitted]) == 3
    assert len(rows(output)) == 2
    said = capsys.readouterr().err
    assert "2 records of 1 job" in said
    assert "1 of 2 records ended as errors" in said


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        pytest.param(["99"], "there is no job 99", id="unknown number"),
        pytest.param(["batch_nosuch"], "batch_nosuch", id="unknown id"),
    ],
)
def test_attach_to_a_job_that_is_not_there_is_one_line(
    tmp_path: Path,
    submitted: list[str],
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    line: str,
) -> None:
    assert main(
        ["jobs", "attach", *arguments, "--output", str(tmp_path / "again.jsonl"), *submitted]
    ) in (1, 2)
    assert line in said(capsys)
    assert not (tmp_path / "again.jsonl").exists()


def test_attach_with_another_question_is_refused(
    tmp_path: Path, submitted: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    other = [part if part != PROMPT else "Topic: {{ text }}" for part in submitted]
    assert main(["jobs", "attach", "--output", str(tmp_path / "again.jsonl"), *other]) == 2
    assert "1 job found, but none made with this model, prompt" in said(capsys)


OTHER = "Topic: {{ text }}"


@pytest.fixture
def two_prompts(tmp_path: Path, submitted: list[str]) -> list[str]:
    """Two more jobs in the same staging location, of another prompt; the arguments that name the
    first job's question.
    """
    other = [OTHER if part == PROMPT else part for part in submitted]
    for number in (1, 2):
        name = reviews(tmp_path, 4 * number, f"other-{number}.jsonl")
        assert (
            main(
                [
                    "predict",
                    name,
                    "--output",
                    str(tmp_path / f"topics-{number}.jsonl"),
                    "--mode",
                    "batch_api",
                    "--quiet",
                    *other,
                ]
            )
            == 0
        )
    return submitted


def test_attach_collects_the_jobs_of_its_own_question_and_says_how_many_it_left(
    tmp_path: Path,
    llm_emulator: Emulator,
    two_prompts: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert (
        main(["jobs", "attach", "--output", str(tmp_path / "again.jsonl"), "--quiet", *two_prompts])
        == 0
    )
    assert "left 2 jobs of other prompts" in said(capsys)
    assert rows(tmp_path / "again.jsonl") == rows(tmp_path / "out.jsonl")


def test_attach_to_a_named_job_of_another_question_is_refused(
    tmp_path: Path, two_prompts: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        main(
            [
                "jobs",
                "attach",
                "2",
                "--output",
                str(tmp_path / "again.jsonl"),
                "--quiet",
                *two_prompts,
            ]
        )
        == 2
    )
    assert "job 2" in said(capsys)
    assert not (tmp_path / "again.jsonl").exists()


def test_live_calls_for_leftovers_are_listed_with_their_jobs(
    tmp_path: Path, emulator_with: Callable[..., Emulator], capsys: pytest.CaptureFixture[str]
) -> None:
    emulator_with(faults=[Fault("line_missing", times=3)])
    staging = ["--staging", str(tmp_path / "staging")]
    question = ["--model", MODEL, "--prompt", PROMPT, "--output-type", MOODS, *staging]
    batch = ["--mode", "batch_api", "--poll-seconds", "0.05", "--on-leftover", "online"]
    summary = tmp_path / "summary.json"
    files = [reviews(tmp_path, 10), "--output", str(tmp_path / "out.jsonl")]
    told = ["--quiet", "--summary", str(summary)]
    assert main(["predict", *files, *question, *batch, *told]) == 0
    assert main(["jobs", "ls", "--json", *staging]) == 0
    views = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(view["job"], view["kind"], view["records"], view["answered"]) for view in views] == [
        ("1", "job", 10, 7),
        ("1.l", "live", 3, 3),
    ]
    cost = json.loads(summary.read_text())["cost_usd"]
    assert sum(view["cost_usd"] for view in views) == pytest.approx(cost)
    assert main(["jobs", "ls", *staging]) == 0
    assert "1.l  live calls" in capsys.readouterr().out
    assert main(["jobs", "show", "1", *staging]) == 0
    assert "job       live calls\nstate     live (follows 1)\n" in capsys.readouterr().out
    assert main(["jobs", "cancel", "1.l", *staging]) == 2
    assert "1.l is of live calls, which can't be cancelled" in said(capsys)
    attach = ["jobs", "attach", "1.l", "--output", str(tmp_path / "again.jsonl"), *question]
    assert main(attach) == 2
    assert "1.l is of live calls: name the job they are for, 1" in said(capsys)
    page = tmp_path / "page.html"
    assert main(["report", *staging, "--report", str(page)]) == 0
    assert "3 records asked by live calls" in page.read_text()


def test_ls_and_show_say_what_the_ledger_knows_to_those_who_may_only_read_it(
    tmp_path: Path,
    submitted: list[str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for write in ("create", "put", "put_file", "delete"):
        monkeypatch.delattr(LocalStore, write)
    # Under another name than the run had for it, so that this process has not tried it yet.
    staging = ["--staging", f"{tmp_path}/staging/"]
    assert main(["jobs", "ls", "--json", *staging]) == 0
    (job,) = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert (job["state"], job["ended"], job["records"], job["answered"], job["lines"]) == (
        "done",
        "completed",
        10,
        10,
        10,
    )
    assert main(["jobs", "ls", *staging]) == 0
    header, _, line = capsys.readouterr().out.splitlines()
    assert header.split()[:3] == ["no.", "job", "state"]
    assert line.split()[:5] == ["1", job["job_id"], "completed", "10", "10"]
    for name in ("1", job["job_id"]):
        assert main(["jobs", "show", name, *staging]) == 0
        assert f"job       {job['job_id']}" in capsys.readouterr().out


def test_a_cancelled_job_gives_what_it_had_finished_and_errors_for_the_rest(
    tmp_path: Path, start_emulator: Callable[..., Emulator]
) -> None:
    emulator = start_emulator(batch_seconds=60)
    staging = tmp_path / "staging"
    command = (
        "predict",
        reviews(tmp_path, 10),
        "--output",
        tmp_path / "out.jsonl",
        "--model",
        MODEL,
        "--prompt",
        PROMPT,
    )
    command += ("--mode", "batch_api", "--staging", staging, "--poll-seconds", 0.1, "--quiet")
    code, _ = stopped_when(
        lambda: any(staging.glob("jobs/*/created-*")), *command, emulator=emulator
    )
    assert code == 130
    cancelled = run("jobs", "cancel", "1", "--staging", staging, emulator=emulator)
    assert cancelled.returncode == 0, cancelled.stderr
    assert "what it has finished is kept" in cancelled.stdout
    assert run(*command, emulator=emulator).returncode == 3
    errors = [row["answer_error"] for row in rows(tmp_path / "out.jsonl")]
    assert len(errors) == 10
    assert {error.partition(":")[0] for error in errors if error} == {"cancelled"}


def test_cancelling_a_job_that_has_ended_is_wrong_usage(
    tmp_path: Path, submitted: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["jobs", "cancel", "1", "--staging", str(tmp_path / "staging")]) == 2
    assert "has ended (completed)" in said(capsys)


def test_cleanup_asks_first_says_what_it_removes_and_keeps_the_answers(
    tmp_path: Path,
    llm_emulator: Emulator,
    submitted: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    staging = tmp_path / "staging"
    assert main(["jobs", "cleanup", "--staging", str(staging)]) == 2  # nobody to ask
    with monkeypatch.context() as closed:
        closed.setattr(sys, "stdin", None)
        assert main(["jobs", "cleanup", "--staging", str(staging)]) == 2
    assert any(staging.glob("parts/*"))
    capsys.readouterr()
    assert main(["jobs", "cleanup", "--staging", str(staging), "--yes"]) == 0
    assert "the texts and elements of 10 records" in capsys.readouterr().out
    assert not any(staging.glob("parts/*"))
    again = [
        "predict",
        str(tmp_path / "in.jsonl"),
        "--output",
        str(tmp_path / "again.jsonl"),
        "--mode",
        "batch_api",
        "--quiet",
    ]
    assert main([*again, *submitted]) == 0
    assert rows(tmp_path / "again.jsonl") == rows(tmp_path / "out.jsonl")
    assert set(llm_emulator.billed.values()) == {1}
    # The newest job is elsewhere now: what is kept where the flags don't lead is told, and left.
    elsewhere = str(os.environ["OPENAI_BASE_URL"]).replace("127.0.0.1", "localhost")
    assert main([*again, "--force", "--base-url", elsewhere, *submitted]) == 0
    capsys.readouterr()
    assert main(["jobs", "cleanup", "--staging", str(staging), "--yes"]) == 0
    told = capsys.readouterr()
    assert "what is kept by openai at localhost" in told.err
    assert "2 provider files" in told.out


@pytest.mark.parametrize(
    "action", [["ls"], ["show", "1"], ["cancel", "1"], ["cleanup"]], ids=lambda action: action[0]
)
def test_a_place_without_a_ledger_is_wrong_usage_and_stays_as_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], action: list[str]
) -> None:
    for place in (str(tmp_path / "nosuch"), f"file://{tmp_path}/nosuch"):
        assert main(["jobs", *action, "--staging", place]) == 2
        assert "there is no ledger in" in said(capsys)
    assert os.listdir(tmp_path) == []


def test_a_place_is_named_to_look_at_its_jobs_as_it_was_named_to_make_them(
    tmp_path: Path, submitted: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for place in ("~/staging", f"file://{tmp_path}/staging/"):
        assert main(["jobs", "show", "1", "--staging", place]) == 0


def test_a_job_that_is_named_beside_its_follow_up_is_collected_once(
    tmp_path: Path, emulator_with: Callable[..., Emulator]
) -> None:
    emulator_with(faults=[Fault("line_missing", times=3)], batch_seconds=0.05)
    question = ["--model", MODEL, "--prompt", PROMPT, "--staging", str(tmp_path / "staging")]
    batch = ["--mode", "batch_api", "--poll-seconds", "0.05", "--quiet"]
    files = [reviews(tmp_path, 10), "--output", str(tmp_path / "out.jsonl")]
    assert main(["predict", *files, *question, *batch]) == 0
    again = tmp_path / "again.jsonl"
    assert main(["jobs", "attach", "1", "1.f", "--output", str(again), "--quiet", *question]) == 0
    assert rows(again) == rows(tmp_path / "out.jsonl")


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        pytest.param(
            ["--direct_num_worker=2"],
            "no option --direct_num_worker",
            id="unknown, with a near one",
        ),
        pytest.param(
            ["--runner=PrismRunner", "--paralelism", "2"],
            "did you mean --parallelism?",
            id="of another runner",
        ),
        pytest.param(
            ["--direct_num_workers=many"], "invalid int value: 'many'", id="a value that isn't one"
        ),
        pytest.param(["--runner=Nobody"], "Unexpected pipeline runner: Nobody", id="no runner"),
        pytest.param(["--runner=os.path"], "'module' object is not callable", id="no class"),
    ],
)
def test_what_beam_would_ignore_or_answer_with_all_its_options_is_wrong_usage_in_one_line(
    options: list[str], reason: str
) -> None:
    with pytest.raises(UsageError, match=re.escape(reason)) as refused:
        pipeline_options(options)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("options", "runner"),
    [
        pytest.param([], "FnApiRunner", id="none"),
        pytest.param(["--runner=PrismRunner", "--job_name=a"], "PrismRunner", id="known"),
        pytest.param(
            ["--runner=FlinkRunner", "--only_its_job_server_knows"],
            "FlinkRunner",
            id="a job server's own",
        ),
    ],
)
def test_options_that_beam_or_a_job_server_may_know_are_passed_on(
    options: list[str], runner: str
) -> None:
    assert pipeline_options(options).view_as(StandardOptions).runner == runner


@pytest.mark.parametrize("allow_code", [False, True], ids=["as it is", "with leave for code"])
def test_a_type_by_its_dotted_name_is_the_command_line_s_own_and_no_option_of_a_model(
    allow_code: bool,
) -> None:
    assert output_type("collections.OrderedDict") is OrderedDict
    with pytest.raises(UsageError, match="output is 'collections.OrderedDict'"):
        settings_from_options(
            {"model": MODEL, "output": "collections.OrderedDict"}, allow_code=allow_code
        )


# --- help, version, names


def test_help_answers_at_once_and_without_beam() -> None:
    heavy = "{'apache_beam', 'openai', 'pydantic', 'aiohttp'} & set(sys.modules)"
    code = f"import sys; from beam_llm.cli.main import main; main(['predict', '--help']); sys.exit(bool({heavy}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0  # 0.1 s on a quiet machine; importing Beam alone takes 4


@pytest.mark.parametrize(
    "command",
    [
        *("demo", "predict", "run", "estimate", "compare", "report", "emulator", "jobs"),
        *("jobs ls", "jobs show", "jobs attach", "jobs cancel", "jobs cleanup"),
    ],
)
def test_help_begins_with_a_usage_that_can_be_read(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not with a screenful of every option, which stands below."""
    assert main([*command.split(), "--help"]) == 0
    usage, description = capsys.readouterr().out.split("\n\n")[:2]
    assert usage.startswith(f"usage: beam-llm {command} ")
    assert len(usage.splitlines()) <= 3
    assert not description.startswith(("options:", "positional arguments:"))


def test_no_command_shows_help_and_is_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "predict" in capsys.readouterr().err


@pytest.mark.parametrize("flag", ["--output", "--summary", "--report"])
def test_the_name_of_an_unset_variable_is_not_the_name_of_a_file(
    flag: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["predict", "in.jsonl", "--model", MODEL, "--output", "out.jsonl", flag, ""]) == 2
    assert f"argument {flag}: '' is not the name of a file" in capsys.readouterr().err


def test_version_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("beam-llm ")


def test_every_option_about_each_record_is_a_flag(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", "--help"]) == 0
    text = capsys.readouterr().out
    flags = {"output": "--output-type", "staging_location": "--staging"}
    assert [
        name
        for name in options_of(*EACH)
        if flags.get(name, f"--{name.replace('_', '-')}") not in text
    ] == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("integer", "integer", id="a word is config's business"),
        pytest.param("enum:a.b|c", "enum:a.b|c", id="dots in an enum"),
        pytest.param("builtins:int", int, id="a type"),
    ],
)
def test_output_types_by_name(text: str, expected: object) -> None:
    assert output_type(text) == expected


def test_an_output_type_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "s.json").write_text('{"type": "integer"}')
    assert output_type(str(tmp_path / "s.json")) == {"type": "integer"}


# --- the estimate


def test_an_estimate_makes_no_call_and_is_cheaper_by_batches(
    tmp_path: Path, llm_emulator: Emulator, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        main(
            [
                "estimate",
                reviews(tmp_path, 100),
                "--model",
                MODEL,
                "--prompt",
                PROMPT,
                "--output-type",
                MOODS,
            ]
        )
        == 0
    )
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    by_size = {
        line[0]: line
        for line in lines
        if line and line[0] in {"1", "5", "10", "20", "50"} and "$" in "".join(line)
    }
    assert list(by_size) == ["1", "5", "10", "20", "50"]
    assert [line[-6 if "s" in line else -5] for line in by_size.values()]
    assert float(by_size["20"][-1].strip("$")) == pytest.approx(
        float(by_size["20"][-2].strip("$")) / 2, rel=0.02
    )
    assert llm_emulator.calls == 0


MEASURED = """
import sys, tracemalloc
from beam_llm.cli.main import main
input_of_few, *command = sys.argv[1:]
assert main([command[0], input_of_few, *command[2:]]) == 0  # what is imported stays
tracemalloc.start()
assert main(command) == 0
print("peak", tracemalloc.get_traced_memory()[1])
"""


@pytest.mark.parametrize("command", ["estimate", "compare"])
def test_a_command_of_predict_becomes_another_by_its_first_word(
    tmp_path: Path, llm_emulator: Emulator, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.chdir(tmp_path)
    reviews(tmp_path)
    files = ["--output", "out.jsonl", "--report", "page.html", "--summary", "summary.json"]
    switches = ["--quiet", "--force", "--redact", "--csv-safe", "--truth", "id"]
    given = ["in.jsonl", "--model", MODEL, "--prompt", PROMPT, *files, *switches]
    before = set(tmp_path.iterdir())
    assert main([command, *given, "--", "--runner=FnApiRunner"]) == 0
    assert set(tmp_path.iterdir()) == before


def test_an_estimate_keeps_no_record_in_memory(tmp_path: Path) -> None:
    """In a process of its own: what other tests have left running takes memory as well."""
    rows, size = 1_000, 8_000
    path = tmp_path / "long.jsonl"
    path.write_text("".join(json.dumps({"text": f"{n} {'x' * size}"}) + "\n" for n in range(rows)))
    command = ["estimate", str(path), "--model", MODEL, "--prompt", "Mood: {{ text }}"]
    python = [sys.executable, "-c", MEASURED, reviews(tmp_path, 10), *command]
    printed = subprocess.run(python, stdout=subprocess.PIPE, text=True, check=True).stdout
    assert "1,000 records" in printed
    # Room for the largest prompts; the texts alone are twice as much.
    assert int(printed.split()[-1]) < rows * size / 2


def test_an_estimate_says_how_long_batch_jobs_take(
    tmp_path: Path, llm_emulator: Emulator, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["estimate", reviews(tmp_path), "--model", MODEL, "--prompt", PROMPT]
    assert main(command) == 0
    assert "half of all jobs within 7 minutes, 90 % within an hour" in capsys.readouterr().out
    assert main([*command, "--json"]) == 0
    turnaround = json.loads(capsys.readouterr().out)["batch_turnaround"]
    assert turnaround["median_minutes"] < 60 < turnaround["window_hours"] * 60
    assert turnaround["source"]


def test_an_estimate_is_made_of_answers_that_hold_answers_of_their_kind(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    node = {"type": "object", "required": ["name", "children"], "additionalProperties": False}
    children = {"type": "array", "items": {"$ref": "#/$defs/Node"}}
    node["properties"] = {"name": {"type": "string"}, "children": children}
    schema = {"$defs": {"Node": node}, "$ref": "#/$defs/Node"}
    (tmp_path / "tree.json").write_text(json.dumps(schema))
    command = ["estimate", reviews(tmp_path), "--model", MODEL, "--prompt", PROMPT]
    assert main([*command, "--output-type", str(tmp_path / "tree.json")]) == 0
    assert "tokens an answer" in capsys.readouterr().out


def test_an_estimate_counts_what_the_guard_asks_alone(
    tmp_path: Path, llm_emulator: Emulator, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["estimate", reviews(tmp_path, 100), "--model", MODEL, "--prompt", PROMPT, "--json"]

    def foreseen(*more: str) -> dict[int, dict[str, Any]]:
        assert main([*command, *more]) == 0
        lines = json.loads(capsys.readouterr().out)["by_batch_size"]
        return {line["batch_size"]: line for line in lines}

    usual, guarded = foreseen(), foreseen("--guard", "0.1")
    assert guarded[1] == usual[1]
    assert guarded[20]["requests"] == usual[20]["requests"] + 10
    for way in ("online", "batch"):
        extra = guarded[20][f"cost_{way}_usd"] - usual[20][f"cost_{way}_usd"]
        assert extra == pytest.approx(usual[1]["cost_online_usd"] / 10)


# --- small parts


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        pytest.param(
            RuntimeError(
                "Traceback …\nbeam_llm.errors.Aborted: no such key [while running 'Ask']\n"
            ),
            "no such key",
            id="ours inside Beam's",
        ),
        pytest.param(
            RuntimeError("Traceback …\n  File x\nKeyError: 'a' [while running 'Ask']"),
            "KeyError: 'a'",
            id="a foreign one",
        ),
        pytest.param(DataError("in.jsonl:3: not JSON"), "in.jsonl:3: not JSON", id="ours itself"),
        pytest.param(ValueError(""), "ValueError", id="one without words"),
    ],
)
def test_the_reason_is_found_inside_beams_wrapping(error: Exception, reason: str) -> None:
    assert reason_of(error) == reason


def test_a_meter_counts_and_foresees() -> None:
    now = [0.0]
    meter = Meter(100, answered_before=20, clock=lambda: now[0])
    assert meter.line() == "20 of 100 records, 0.0 s"
    now[0] = 10.0
    for ordinal in range(40):
        meter.hear(
            "stored",
            {
                "answer": StoredAnswer(
                    ordinal, None, "missing" if ordinal == 0 else None, None, 10, 5, 0, 0.001
                )
            },
        )
    meter.hear(
        "waiting",
        {
            "jobs": 2,
            "states": {"in_progress": 1, "queued": 1},
            "done": 3,
            "total": 9,
            "next_seconds": 30.0,
        },
    )
    assert meter.line() == (
        "60 of 100 records, 1 error, 10 s, about 10 s to go, "
        "jobs: 1 in_progress, 1 queued, 3 of 9 done, next look in 30 s, $0.0400, 600 tokens"
    )


class _Stream:
    def __init__(self, terminal: bool):
        self.text = ""
        self.terminal = terminal

    def isatty(self) -> bool:
        return self.terminal

    def write(self, text: str) -> None:
        self.text += text

    def flush(self) -> None:
        pass


@pytest.mark.parametrize(
    ("terminal", "quiet", "expected"),
    [
        pytest.param(True, False, "\r\x1b[2Kworking", id="live"),
        pytest.param(False, False, "working\n", id="lines"),
        pytest.param(True, True, "", id="quiet"),
    ],
)
def test_progress_is_live_on_a_terminal_and_lines_elsewhere(
    terminal: bool, quiet: bool, expected: str
) -> None:
    stream = _Stream(terminal)
    with ProgressLine(lambda: "working", quiet=quiet, stream=stream, every_seconds=0.01):  # type: ignore[arg-type]
        if not quiet:
            wait_until(lambda: expected in stream.text, 5)
    assert stream.text == "" if quiet else expected in stream.text


def test_words_for_numbers() -> None:
    assert [dollars(0.000123), dollars(0.0123), dollars(1234.5), dollars(0)] == [
        "$0.000123",
        "$0.0123",
        "$1,234.50",
        "$0.00",
    ]
    assert [duration(0.44), duration(45), duration(185), duration(7800)] == [
        "0.4 s",
        "45 s",
        "3 min 05 s",
        "2 h 10 min",
    ]
    assert shortened("a\n b  c", 4) == "a b…"
    assert table(["n", "v"], [("a", 1), ("bc", 10)]) == "n    v\n──  ──\na    1\nbc  10"
