"""`beam-llm predict --mode batch_api`, killed and started again; and what `beam-llm jobs` says and
does in between.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from beam_llm.cli.main import main
from beam_llm.testing import Emulator
from tests.killed import (
    MODEL,
    MOOD,
    PROMPT,
    Command,
    billed,
    expected,
    killed,
    once,
    reviews_of,
    wait_until,
)

Start = Callable[..., Emulator]
TEXTS = reviews_of("command line")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "in.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    return tmp_path


def arguments(folder: Path, *more: str, output: str = "out.jsonl") -> list[str]:
    """The same command each time."""
    quick = ["--poll-seconds", "0.05", "--list-lag-seconds", "0.3", "--quiet"]
    files = [
        str(folder / "in.jsonl"),
        "--output",
        str(folder / output),
        "--staging",
        str(folder / "staging"),
    ]
    question = ["--model", MODEL, "--prompt", PROMPT, "--output-type", MOOD, "--batch-size", "3"]
    return ["predict", *files, *question, "--mode", "batch_api", *quick, *more]


def command(
    folder: Path, emulator: Emulator, *more: str, kill: str | None = None, output: str = "out.jsonl"
) -> int | None:
    return killed(
        Command(
            arguments(folder, *more, output=output), kill=kill, environment=emulator.environment
        )
    )


def answers(folder: Path, output: str = "out.jsonl") -> list[tuple[str, Any]]:
    rows = [json.loads(line) for line in (folder / output).read_text().splitlines()]
    return [(row["text"], row["answer"]) for row in rows]


RIGHT = [(text, expected(text)) for text in TEXTS]


@pytest.mark.parametrize("point", ["intent.after", "create.after", "waiting", "output.half"])
def test_killed_and_started_again_it_goes_on(
    start_emulator: Start, folder: Path, point: str
) -> None:
    emulator = start_emulator(batch_seconds=0.1)
    assert command(folder, emulator, kill=point) == -signal.SIGKILL
    assert not (folder / "out.jsonl").exists()
    assert command(folder, emulator) == 0
    assert answers(folder) == RIGHT
    assert billed(emulator, TEXTS) == once(TEXTS)
    assert sorted(os.listdir(folder)) == ["in.jsonl", "out.jsonl", "staging"]


def test_the_real_command_is_killed_while_it_waits(
    start_emulator: Start, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    emulator = start_emulator(batch_seconds=(0, 3, 0))
    environment = {**os.environ, **emulator.environment}
    with subprocess.Popen(
        [sys.executable, "-m", "beam_llm", *arguments(folder)], env=environment
    ) as running:
        try:
            wait_until(lambda: bool(list(folder.glob("staging/jobs/*/created-*"))))
        finally:
            running.kill()
    assert jobs("ls", "--json", folder=folder) == 0
    (job,) = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert (job["state"], job["records"], job["lines"]) == ("created", 24, 8)
    assert jobs("show", job["job_id"], folder=folder) == 0
    assert job["job_id"] in capsys.readouterr().out
    assert command(folder, emulator) == 0
    assert answers(folder) == RIGHT
    assert billed(emulator, TEXTS) == once(TEXTS)


def jobs(verb: str, *more: str, folder: Path) -> int:
    return main(["jobs", verb, *more, "--staging", str(folder / "staging")])


@pytest.fixture
def led(monkeypatch: pytest.MonkeyPatch) -> Callable[[Emulator], None]:
    """Leads the commands of this process to an emulator."""

    def lead(emulator: Emulator) -> None:
        for name, value in emulator.environment.items():
            monkeypatch.setenv(name, value)

    return lead


def test_a_job_in_doubt_says_so_and_can_not_be_cancelled_before_it_is_found(
    start_emulator: Start,
    folder: Path,
    led: Callable[[Emulator], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    emulator = start_emulator(batch_seconds=0.1)
    led(emulator)
    assert command(folder, emulator, kill="create.after") == -signal.SIGKILL
    assert jobs("ls", folder=folder) == 0
    assert "doubt" in capsys.readouterr().out
    assert jobs("cancel", "1", folder=folder) == 2
    assert "doubt" in capsys.readouterr().err
    assert jobs("cleanup", "--yes", folder=folder) == 0
    assert "1 job still open" in capsys.readouterr().out
    assert command(folder, emulator) == 0
    assert answers(folder) == RIGHT


def test_killed_then_cancelled_the_finished_part_is_kept_and_the_rest_asked_only_if_told_to(
    start_emulator: Start, folder: Path, led: Callable[[Emulator], None]
) -> None:
    emulator = start_emulator(batch_seconds=(0, 2, 0))
    led(emulator)
    assert command(folder, emulator, kill="waiting#3") == -signal.SIGKILL
    wait_until(lambda: emulator.jobs[0]["request_counts"]["completed"] >= 2)
    assert jobs("cancel", "1", folder=folder) == 0
    assert command(folder, emulator) == 3
    done = [text for text, answer in answers(folder) if answer is not None]
    assert 6 <= len(done) < 24
    assert billed(emulator, TEXTS) == {text: int(text in done) for text in TEXTS}
    assert command(folder, emulator, "--retry-cancelled", output="again.jsonl") == 0
    assert answers(folder, "again.jsonl") == RIGHT
    assert billed(emulator, TEXTS) == once(TEXTS)


def test_cancelling_a_job_that_the_provider_has_completed_says_so_and_it_is_collected(
    start_emulator: Start,
    folder: Path,
    led: Callable[[Emulator], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    emulator = start_emulator(batch_seconds=0.1)
    led(emulator)
    assert command(folder, emulator, kill="waiting") == -signal.SIGKILL
    wait_until(lambda: emulator.jobs[0]["status"] == "completed")
    assert jobs("cancel", "1", folder=folder) == 2
    captured = capsys.readouterr()
    assert f"{emulator.jobs[0]['id']} had already ended: completed" in captured.err
    assert "asked the provider" not in captured.out
    assert command(folder, emulator) == 0
    assert answers(folder) == RIGHT


def test_after_a_cleanup_the_next_run_still_pays_nothing(
    start_emulator: Start,
    folder: Path,
    led: Callable[[Emulator], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    emulator = start_emulator(batch_seconds=0.1)
    led(emulator)
    assert command(folder, emulator, kill="done.after") == -signal.SIGKILL
    assert jobs("cleanup", "--yes", folder=folder) == 0
    assert "removed" in capsys.readouterr().out
    assert command(folder, emulator) == 0
    assert answers(folder) == RIGHT
    assert billed(emulator, TEXTS) == once(TEXTS)
