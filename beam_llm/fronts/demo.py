"""`beam-llm demo`: the main job on the embedded emulator, live and by batch API, with every figure it shows measured on the spot.

    sample reviews ─┬─ one by one (the first 64)  ─┐
                    ├─ live, 20 a call            ─┼─ predict ─► answers-*.jsonl ─► figures, comparison, agreement with people
                    └─ batch API, 20 a line       ─┘

The only part of the package, its tests aside, that uses `beam_llm.testing`.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from statistics import StatisticsError, correlation
from typing import Any, Literal

import orjson
import pydantic

from beam_llm.config import settings
from beam_llm.fronts.cli import ALL_ANSWERED, FAILED, SOME_ERRORS
from beam_llm.fronts.predict import Job, Report, predict
from beam_llm.fronts.progress import WIDTH, Tally, dollars, duration, shortened, table
from beam_llm.testing import Emulator, Fault, serve

MODEL = "openai:gpt-4.1-mini"
PROMPT = (
    "You read what customers and film-goers write. Judge the sentiment of this sentence from a review: is the writer's opinion positive, "
    "negative or neutral? Add a score from -1 (as negative as can be) over 0 (neutral) to 1 (as positive as can be). Judge the sentence by "
    "itself, as the writer meant it: {{ text }}"
)
LATENCY_MS = 300
JOB_SECONDS = 1.5
FAULT_PROBABILITY = 0.02
ONE_BY_ONE_SAMPLE = 64
CLEAR_RATING = 1.0
SHOWN_ANSWERS = 8


class Opinion(pydantic.BaseModel):
    """What the demo asks for."""

    sentiment: Literal["positive", "negative", "neutral"]
    score: float


@dataclass(frozen=True)
class Way:
    """One way of asking, as it went.

    Attributes:
      scale: records of the whole demo per record asked; 1 where all were.
    """

    title: str
    report: Report
    path: Path
    scale: float = 1.0

    @property
    def tally(self) -> Tally:
        return self.report.tally

    def answers(self) -> list[dict[str, Any]]:
        return [orjson.loads(line) for line in self.path.read_bytes().splitlines()]


def main(chosen: argparse.Namespace) -> int:
    """Runs the demo. Exit code 1 where the two ways' answers differ: they must not."""
    folder = Path(chosen.output or tempfile.mkdtemp(prefix="beam-llm-demo-"))
    folder.mkdir(parents=True, exist_ok=True)
    records = _write_sample(folder, chosen.records)
    print(_opening(records), flush=True)
    faults = [Fault(kind=kind, probability=FAULT_PROBABILITY, where="chat") for kind in ("rate_limit", "server_error")]
    with Emulator(keys=(), latency_ms=LATENCY_MS, batch_seconds=JOB_SECONDS, faults=faults, keep_requests=0) as emulator:
        ask = _Asking(folder, emulator.base_url, chosen.quiet)
        size = chosen.batch_size
        single = ask("one-by-one", "one by one*", "sample.jsonl", scale=records / min(records, ONE_BY_ONE_SAMPLE))
        live = ask("live", f"live, {size} a call", "reviews.jsonl", batch_size=size)
        staged = ask("batch-api", f"batch API, {size} a line", "reviews.jsonl", batch_size=size, mode="batch_api", staging_location=str(folder / "staging"), poll_seconds=0.2)
    answers, others = live.answers(), staged.answers()
    differing = sum(a["answer"] != b["answer"] for a, b in zip(answers, others, strict=True))
    print(_figures([single, live, staged]))
    print(_comparison(single, live, staged, differing))
    print(_table_of_answers(answers))
    print(_agreement(answers))
    print(_places(folder, live, staged))
    if live.tally.failed or staged.tally.failed:
        return SOME_ERRORS
    return FAILED if differing else ALL_ANSWERED


def emulator(arguments: Sequence[str]) -> int:
    """`beam-llm emulator …`: the provider emulator alone, until Ctrl-C."""
    return serve(arguments)


def _write_sample(folder: Path, most: int) -> int:
    """The shipped reviews, and the few of them that are asked one by one, as files; returns how many there are."""
    lines = (resources.files("beam_llm.testing") / "data" / "reviews.jsonl").read_bytes().splitlines(keepends=True)[:most]
    (folder / "reviews.jsonl").write_bytes(b"".join(lines))
    (folder / "sample.jsonl").write_bytes(b"".join(lines[:ONE_BY_ONE_SAMPLE]))
    return len(lines)


class _Asking:
    """Runs `predict` on files of the demo's folder."""

    def __init__(self, folder: Path, base_url: str, quiet: bool):
        self._folder = folder
        self._base_url = base_url
        self._quiet = quiet

    def __call__(self, name: str, title: str, file: str, *, scale: float = 1.0, **options: Any) -> Way:
        path = self._folder / f"answers-{name}.jsonl"
        asked = settings(MODEL, prompt=PROMPT, output=Opinion, base_url=self._base_url, api_key="none", max_retries=5, **options)
        if not self._quiet:
            print(f"… {title}", file=sys.stderr, flush=True)
        return Way(title, predict(Job([str(self._folder / file)], str(path), asked, quiet=self._quiet)), path, scale)


def _opening(records: int) -> str:
    return (
        f"{records:,} sentences from real product and film reviews, each rated by about 20 people.\n"
        f"Asked of each: sentiment and score, as a typed answer, from {MODEL}\n"
        f"at an emulator on this machine: no key, no network, no cost. It speaks OpenAI's API, takes {LATENCY_MS} ms a call, fails {2 * FAULT_PROBABILITY:.0%} of\n"
        f"live calls on purpose, and answers with a rule-based scorer (VADER) in the model's place.\n"
    )


def _figures(ways: Sequence[Way]) -> str:
    rows = [
        ("records", [f"{round(way.tally.records * way.scale):,}" for way in ways]),
        ("answered", [f"{round((way.tally.records - way.tally.failed) * way.scale):,}" for way in ways]),
        ("calls", [_calls(way) for way in ways]),
        ("retries", [f"{round(way.report.counters.get('retries', 0) * way.scale):,}" for way in ways]),
        ("input tokens", [f"{round(way.tally.input_tokens * way.scale):,}" for way in ways]),
        ("output tokens", [f"{round(way.tally.output_tokens * way.scale):,}" for way in ways]),
        ("cost by list price", [dollars(way.tally.cost_usd * way.scale) for way in ways]),
        ("time", [duration(_seconds(way)) for way in ways]),
    ]
    note = f"* asked for the first {ways[0].tally.records:,} and scaled to all; its time is that of calls one after another."
    return "\n".join([table(["", *(way.title for way in ways)], [(name, *cells) for name, cells in rows]), "", note])


def _calls(way: Way) -> str:
    if way.report.jobs:
        return f"{way.report.requests:,} in {way.report.jobs} job{'s' * (way.report.jobs != 1)}"
    return f"{round(way.report.requests * way.scale):,}"


def _seconds(way: Way) -> float:
    """Of the run; where it stands for calls one after another, the mean latency times their number."""
    if way.scale == 1.0 and way.report.jobs == 0 and way.report.mean_latency_ms is None:
        return way.report.seconds
    if way.title.startswith("one by one") and way.report.mean_latency_ms is not None:
        return way.report.mean_latency_ms / 1000 * way.report.requests * way.scale
    return way.report.seconds


def _comparison(single: Way, live: Way, staged: Way, differing: int) -> str:
    calls = single.report.requests * single.scale / max(live.report.requests, 1)
    cost = single.tally.cost_usd * single.scale
    lines = [
        f"Live:      {calls:.0f}x fewer calls than one by one, {_seconds(single) / live.report.seconds:.0f}x faster, {_saved(live.tally.cost_usd, cost)} less to pay.",
        f"Batch API: {_saved(staged.tally.cost_usd, live.tally.cost_usd)} less again, {_saved(staged.tally.cost_usd, cost)} less than one by one. (A real job takes minutes to 24 h.)",
        "Answers:   the same in both ways, all of them." if not differing else f"Answers:   {differing:,} differ between the two ways, and should not.",
    ]
    return "\n" + "\n".join(lines) + "\n"


def _saved(now: float, before: float) -> str:
    return f"{1 - now / before:.0%}" if before else "nothing"


def _table_of_answers(answers: Sequence[dict[str, Any]]) -> str:
    chosen = answers[:: max(len(answers) // SHOWN_ANSWERS, 1)][:SHOWN_ANSWERS]
    header = ("review", "people", "sentiment", "score")
    tail_width = 36
    rows = [(shortened(row["text"], WIDTH - tail_width), f"{row['rating']:+.2f}", *_cells(row)) for row in chosen]
    return table(header, rows, left=(0, 2)) + "\n"


def _cells(row: dict[str, Any]) -> tuple[str, str]:
    answer = row["answer"]
    return (answer["sentiment"], f"{answer['score']:+.2f}") if answer else (row["answer_error"].partition(":")[0], "")


def _agreement(answers: Sequence[dict[str, Any]]) -> str:
    """How far the labels are from the people's, who rated from -4 to 4."""
    answered = [row for row in answers if row["answer"]]
    clear = [row for row in answered if abs(row["rating"]) >= CLEAR_RATING and row["answer"]["sentiment"] != "neutral"]
    undecided = sum(abs(row["rating"]) >= CLEAR_RATING and row["answer"]["sentiment"] == "neutral" for row in answered)
    agreeing = sum((row["answer"]["sentiment"] == "positive") == (row["rating"] > 0) for row in clear)
    try:
        linear = f"{correlation([row['answer']['score'] for row in answered], [row['rating'] for row in answered]):.2f}"
    except StatisticsError:
        linear = "undefined on so few"
    share = f"{agreeing / len(clear):.0%}" if clear else "–"
    return (
        f"People rated {len(clear) + undecided:,} sentences clearly (by {CLEAR_RATING:g} or more, of 4). Of the {len(clear):,} that were labelled positive or negative,\n"
        f"{share} have the people's sign; {undecided:,} were labelled neutral. Correlation of score and rating over all: {linear}.\n"
    )


def _places(folder: Path, live: Way, staged: Way) -> str:
    return f"answers   {live.path}\n          {staged.path}\nstaging   {folder / 'staging'}  (files and ledger; beam-llm jobs ls --staging {folder / 'staging'})"
