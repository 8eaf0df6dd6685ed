"""The files of the repository, `reviews.sql` and `reviews.yaml`, on runners whose workers are
elsewhere.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from beam_llm.cli.main import main
from beam_llm.testing import Emulator, plugin

start_emulator = plugin.start_emulator
PIPELINES = Path(__file__).parent.parent / "pipelines"
TEXTS = {
    "1": "what a wonderful, excellent phone",
    "2": "terrible, awful, the worst",
    "3": "bad",
}
MOODS = {"1": "positive", "2": "negative", "3": "negative"}
FILES = ["reviews.sql", "reviews.yaml"]


def run(folder: Path, name: str, options: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs a file of the repository in a folder with reviews, and looks at what it wrote."""
    monkeypatch.chdir(folder)
    if name.endswith(".yaml"):
        pytest.importorskip("quickjs", reason="needs apache-beam[yaml]")
    rows = [json.dumps({"id": key, "text": text}) + "\n" for key, text in TEXTS.items()]
    (folder / "reviews-1.jsonl").write_text("".join(rows))
    text = (PIPELINES / name).read_text(encoding="utf-8")
    if name.endswith(".yaml"):  # Beam's own steps look for paths where the worker stands
        for path in ("./reviews-*.jsonl", "labelled.jsonl", "failed.jsonl"):
            text = text.replace(f"path: {path}", f"path: {folder}/{path.removeprefix('./')}")
    (folder / name).write_text(text)
    assert main(["run", name, "--quiet", "--summary", "summary.json", "--", *options]) == 0
    found = [
        json.loads(line)
        for path in [*folder.glob("labelled/*.jsonl"), *folder.glob("labelled.jsonl*")]
        for line in path.read_text().splitlines()
    ]
    assert {row["id"]: row["sentiment"] for row in found} == MOODS
    assert len(found) == len(MOODS)
    assert {type(row["score"]) for row in found} == {float}
    check_summary(json.loads((folder / "summary.json").read_text()))


def check_summary(summary: dict[str, Any]) -> None:
    counters = (
        summary["counters"] if "counters" in summary else summary["statements"][0]["counters"]
    )
    assert counters["records"] == len(MOODS)
    assert counters["input_tokens"] > 0


@pytest.mark.prism
@pytest.mark.filterwarnings("ignore")  # Beam's YAML side has some of its own
@pytest.mark.parametrize("name", FILES)
def test_the_file_runs_on_prism(
    tmp_path: Path,
    emulator_with: Callable[..., Emulator],
    prism_options: list[str],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    emulator_with()
    run(tmp_path, name, prism_options, monkeypatch)


@pytest.mark.flink
@pytest.mark.timeout(300)
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", FILES)
def test_the_file_runs_on_flink(
    tmp_path: Path,
    emulator_with: Callable[..., Emulator],
    flink_cluster: Any,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    options = flink_cluster.batch_options(env=emulator_with().environment)
    run(tmp_path, name, options, monkeypatch)
