"""`beam-llm demo`, as a person meets it: two ways, the same answers, half the price, figures that
were measured.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from beam_llm.cli.main import main


def figures(text: str) -> dict[str, list[str]]:
    """The rows of the demo's table: name → its three cells."""
    rows = (re.split(r"\s{2,}", line.strip()) for line in text.splitlines())
    return {row[0]: row[1:] for row in rows if len(row) == 4}


def number(cell: str) -> float:
    return float(cell.strip("$").replace(",", "").split()[0])


def test_the_demo_labels_all_reviews_both_ways(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "beam_llm", "demo", "--output", str(tmp_path / "demo")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    cells = figures(done.stdout)
    assert cells["records"] == cells["answered"] == ["2,000", "2,000", "2,000"]
    assert number(cells["calls"][1]) == 100 + number(cells["retries"][1])
    assert cells["calls"][2] == "100 in 1 job"
    single, live, batch = (number(cell) for cell in cells["cost by list price"])
    # A little less than half: some prompts are long enough for the cache, and the live run was
    # there before.
    assert batch == pytest.approx(live / 2, rel=0.03)
    assert batch <= live / 2
    assert live < single / 2
    assert "the same in both ways, all of them" in done.stdout
    ways = [
        [
            json.loads(line)
            for line in (tmp_path / "demo" / f"answers-{way}.jsonl").read_text().splitlines()
        ]
        for way in ("live", "batch-api")
    ]
    assert [row["answer"] for row in ways[0]] == [row["answer"] for row in ways[1]]
    assert len(ways[0]) == 2000
    assert (tmp_path / "demo" / "staging").is_dir()
    assert "Traceback" not in done.stderr
    assert max(map(len, done.stdout.splitlines()[:30])) <= 100


def test_a_smaller_and_quiet_demo_says_nothing_on_stderr(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        main(
            ["demo", "--records", "30", "--batch-size", "10", "--output", str(tmp_path), "--quiet"]
        )
        == 0
    )
    said = capsys.readouterr()
    assert said.err == ""
    assert figures(said.out)["calls"][2] == "3 in 1 job"


@pytest.mark.parametrize(
    "provider",
    [
        "anthropic",
        "gemini",
        "mistral",
        "fireworks",
        "deepinfra",
        "xai",
        "openrouter",
        "vertex",
        "bedrock",
    ],
)
def test_the_demo_runs_on_another_dialect(
    provider: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Jobs whose files are in a cloud's buckets have the emulator's, and no further extra."""
    monkeypatch.setattr(os, "environ", dict(os.environ))
    monkeypatch.setitem(sys.modules, "obstore", None)
    options = ["--records", "30", "--batch-size", "10", "--output", str(tmp_path), "--quiet"]
    assert main(["demo", "--provider", provider, *options]) == 0
    said = capsys.readouterr().out
    assert f"from {provider}:" in said
    assert figures(said)["answered"] == ["30", "30", "30"]
    assert "the same in both ways, all of them" in said
    costs = figures(said)["cost by list price"]
    assert all(cell.startswith("$") for cell in costs)
    # OpenRouter's emulated host has no discount: that is said in words, not as "0%".
    again = "no cheaper than live" if provider == "openrouter" else "% less again"
    assert again in said
    assert float(costs[2][1:]) <= float(costs[1][1:])


def test_the_demo_names_the_providers_that_it_has(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--provider", "acme"]) == 2
    assert "provider is 'acme': the demo has openai, anthropic" in capsys.readouterr().err


def test_the_emulator_command_prints_what_to_export() -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "beam_llm", "emulator"], stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            assert re.match(
                r"export OPENAI_BASE_URL=http://127\.0\.0\.1:\d+/v1 OPENAI_API_KEY=\S+\n",
                process.stdout.readline(),
            )
        finally:
            process.terminate()
