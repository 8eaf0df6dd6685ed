"""`beam-llm demo`: the main job on the embedded emulator, live and by batch API, with every figure
it shows measured on the spot.

    sample reviews ─┬─ one by one (the first 64)  ─┐
                    ├─ live, 20 a call            ─┼─ predict ─► answers-*.jsonl ─► figures
                    └─ batch API, 20 a line       ─┘

With `commands/emulator` the only part of the package, its tests aside, that uses
`beam_llm.testing`.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import resources
from pathlib import Path
from statistics import StatisticsError, correlation
from typing import Any, Literal

import orjson
import pydantic

from beam_llm.cli.exit_codes import ALL_ANSWERED, FAILED, SOME_ERRORS
from beam_llm.cli.predict import predict
from beam_llm.cli.predict_command import PredictCommand, Report
from beam_llm.cli.progress import write_line
from beam_llm.cli.tally import Tally
from beam_llm.cli.words import TABLE_WIDTH, dollars, duration, shortened, table
from beam_llm.config import settings
from beam_llm.errors import UsageError, plural
from beam_llm.provider_table import PROVIDERS
from beam_llm.testing import Emulator, Fault
from beam_llm.testing.emulator.brain import knows_sentiment

MODELS = {
    "openai": "openai:gpt-4.1-mini",
    "anthropic": "anthropic:claude-haiku-4-5",
    "gemini": "gemini:gemini-2.5-flash-lite",
    "mistral": "mistral:mistral-small-latest",
    "openrouter": "openrouter:openai/gpt-4.1-mini",
    "together": "together:meta-llama/Llama-3.3-70B-Instruct-Turbo",
    "groq": "groq:openai/gpt-oss-20b",
    "xai": "xai:grok-4-fast",
    "fireworks": "fireworks:accounts/fireworks/models/gpt-oss-20b",
    "deepinfra": "deepinfra:deepseek-ai/DeepSeek-V3.2",
    "vertex": "vertex:gemini-2.5-flash-lite",
    "bedrock": "bedrock:amazon.nova-lite-v1:0",
}
"""The model that the demo asks, by provider."""
CLOUDS = ("vertex", "bedrock")
"""Providers whose jobs keep their files in a cloud's buckets, here the emulator's own."""
OPTIONS: dict[str, dict[str, Any]] = {
    "fireworks": {"provider_options": {"account_id": "demo"}},
    # The price table has no model of DeepInfra's: round figures, for the demo's sake.
    "deepinfra": {"prices": {"input": 0.25, "output": 0.5}},
    "vertex": {
        "provider_options": {
            "project": "emulator",
            "region": "global",
            "bucket": "gs://demo/jobs",
        },
    },
    "bedrock": {
        "provider_options": {
            "region": "us-east-1",
            "role_arn": "arn:aws:iam::123456789012:role/demo",
            "bucket": "s3://demo/jobs",
            # Bedrock's own jobs have at least a hundred requests; fewer would be sent live.
            "min_records": 1,
        },
        # Requests are signed with the cloud's own credentials.
        "api_key": None,
    },
}
"""Options without which a provider can't be asked, or its answers not priced."""
PROMPT = (
    "You read what customers and film-goers write. Judge the sentiment of this sentence from a "
    "review: is the writer's opinion positive, negative or neutral? Add a score from -1 (as "
    "negative as can be) over 0 (neutral) to 1 (as positive as can be). Judge the sentence by "
    "itself, as the writer meant it: {{ text }}"
)
LATENCY_MS = 300
JOB_SECONDS = 1.5
FAULT_PROBABILITY = 0.02
SEED = 3
ONE_BY_ONE_SAMPLE = 64
CLEAR_RATING = 1.0
SHOWN_ANSWERS = 8


class Opinion(pydantic.BaseModel):
    """The answer that the demo asks for."""

    sentiment: Literal["positive", "negative", "neutral"]
    score: float


@dataclass(frozen=True)
class DemoRun:
    """One way of asking, and how its run ended.

    Attributes:
      scale: records of the whole demo per record asked; 1 where all were asked.
      serial: whether it stands for calls made one after another.
    """

    title: str
    report: Report
    path: Path
    scale: float = 1.0
    serial: bool = False

    @property
    def tally(self) -> Tally:
        """The sums over its records."""
        return self.report.tally

    @property
    def cost_usd(self) -> float:
        """What the whole demo would cost this way."""
        return self.tally.cost_usd * self.scale

    @property
    def seconds(self) -> float:
        """How long the run took; where serial, the mean latency times the number of calls."""
        if self.serial:
            return (self.report.mean_latency_ms or 0.0) / 1000 * self.report.requests * self.scale
        return self.report.seconds

    def scaled(self, count: int) -> str:
        """A count as it would be for the whole demo."""
        return f"{round(count * self.scale):,}"

    def answers(self) -> list[dict[str, Any]]:
        """The rows of its output."""
        return [orjson.loads(line) for line in self.path.read_bytes().splitlines()]


def main(args: argparse.Namespace) -> int:
    """Runs the demo; exit code 1 where live calls and the batch API differ in an answer, which they
    must not.
    """
    folder = Path(args.output or tempfile.mkdtemp(prefix="beam-llm-demo-"))
    # Left where it is at the end: the answers and the staging location are there to be looked at.
    folder.mkdir(parents=True, exist_ok=True)
    records = _write_sample(folder, args.records)
    model = _model_of(args.provider)
    print(_opening(records, model), flush=True)
    # A proxy that the environment names can't reach the emulator on this machine.
    os.environ["NO_PROXY"] = os.environ["no_proxy"] = ",".join(
        filter(None, [os.environ.get("NO_PROXY") or os.environ.get("no_proxy"), "127.0.0.1"])
    )
    single, live, staged = _ask_in_all_ways(folder, args, records, model)
    # Both files keep the order of the input, so that equal places are the same review.
    answers = live.answers()
    pairs = zip(answers, staged.answers(), strict=True)
    # The emulator answers the same text alike, so that a difference is a fault of this package.
    differing = sum(one["answer"] != other["answer"] for one, other in pairs)
    print(_figures([single, live, staged]))
    print(_comparison(single, live, staged, differing))
    print(_table_of_answers(answers))
    print(_agreement(answers))
    print(_places(folder, live, staged))
    if live.tally.failed or staged.tally.failed:
        return SOME_ERRORS
    return FAILED if differing else ALL_ANSWERED


def _model_of(provider: str) -> str:
    if provider not in MODELS:
        raise UsageError(
            f"provider is {provider!r}: the demo has {', '.join(MODELS)}; try --provider anthropic"
        )
    return MODELS[provider]


def _ask_in_all_ways(
    folder: Path, args: argparse.Namespace, records: int, model: str
) -> tuple[DemoRun, DemoRun, DemoRun]:
    """Asks one by one (a few), live and by batch API; the emulator's calls fail at times."""
    with _emulator() as emulator:
        variables = emulator.environment_of(args.provider)
        if args.provider in CLOUDS:
            # A cloud's own library finds its credentials, and its buckets.
            os.environ.update({**variables, **emulator.buckets_environment})
            os.environ.pop("AWS_PROFILE", None)
        address = variables.get(PROVIDERS[args.provider].base_url_variable or "")
        own = {"api_key": "none", "base_url": address, **OPTIONS.get(args.provider, {})}
        question = {"model": model, "prompt": PROMPT, "output": Opinion, "max_retries": 5, **own}
        ask = partial(_ask, folder, {"quiet": args.quiet, "options": question})
        size = args.batch_size
        scale = records / min(records, ONE_BY_ONE_SAMPLE)
        single = ask("one-by-one", "one by one*", "sample.jsonl", scale=scale, serial=True)
        live = ask("live", f"live, {size} a call", batch_size=size)
        staged = ask(
            "batch-api",
            f"batch API, {size} a line",
            batch_size=size,
            mode="batch_api",
            staging_location=str(folder / "staging"),
            poll_seconds=0.2,
        )
    return single, live, staged


def _emulator() -> Emulator:
    faults = [
        Fault(kind=kind, probability=FAULT_PROBABILITY, where="chat")
        for kind in ("rate_limit", "server_error")
    ]
    return Emulator(
        keys=(),
        latency_ms=LATENCY_MS,
        batch_seconds=JOB_SECONDS,
        faults=faults,
        # Nobody looks at them here; they are for tests.
        keep_requests=0,
        seed=SEED,
    )


def _write_sample(folder: Path, most: int) -> int:
    """Writes the shipped reviews, and the few of them that are asked one by one, as files; returns
    the number of reviews.
    """
    lines = (
        (resources.files("beam_llm.testing") / "data" / "reviews.jsonl")
        .read_bytes()
        .splitlines(keepends=True)[:most]
    )
    (folder / "reviews.jsonl").write_bytes(b"".join(lines))
    (folder / "sample.jsonl").write_bytes(b"".join(lines[:ONE_BY_ONE_SAMPLE]))
    return len(lines)


def _ask(
    folder: Path,
    common: Mapping[str, Any],
    name: str,
    title: str,
    file: str = "reviews.jsonl",
    *,
    scale: float = 1.0,
    serial: bool = False,
    **options: Any,
) -> DemoRun:
    """Runs `predict` on a file of the demo's folder.

    Args:
      common: `quiet`, and the options that all ways share.
      options: those of this one alone.
    """
    path = folder / f"answers-{name}.jsonl"
    quiet, question = common["quiet"], {**common["options"], **options}
    if not quiet:
        write_line(f"… {title}")
    command = PredictCommand(
        [str(folder / file)], str(path), settings(**question), quiet=quiet, force=True
    )
    return DemoRun(title, predict(command), path, scale, serial)


def _scorer() -> str:
    if knows_sentiment():
        return "and a rule-based scorer (VADER)"
    return "and, as VADER is missing (pip install 'beam-llm[demo]'), a checksum"


def _opening(records: int, model: str) -> str:
    api = "OpenAI's" if model.startswith("openai:") else "its provider's"
    return (
        f"{records:,} sentences from real product and film reviews, each rated by about 20 "
        "people.\n"
        f"Asked of each: its sentiment and a score, as a typed answer, from {model}\n"
        f"at an emulator of {api} API on this machine: no key, no network, no cost. A call "
        f"takes {LATENCY_MS} ms,\n"
        f"{2 * FAULT_PROBABILITY:.0%} of live calls fail on purpose, {_scorer()} answers in the "
        "model's place.\n"
    )


def _figures(runs: Sequence[DemoRun]) -> str:
    def row(name: str, cell: Callable[[DemoRun], str]) -> tuple[str, ...]:
        return (name, *(cell(run) for run in runs))

    rows = [
        row("records", lambda run: run.scaled(run.tally.records)),
        row("answered", lambda run: run.scaled(run.tally.records - run.tally.failed)),
        row("calls", _calls),
        row("retries", lambda run: run.scaled(run.report.counters.get("retries", 0))),
        row("input tokens", lambda run: run.scaled(run.tally.input_tokens)),
        row("output tokens", lambda run: run.scaled(run.tally.output_tokens)),
        row("cost by list price", lambda run: dollars(run.cost_usd)),
        row("time", lambda run: duration(run.seconds)),
    ]
    note = (
        f"* asked for the first {runs[0].tally.records:,} and scaled to all; its time is that "
        "of calls one after another."
    )
    return "\n".join([table(["", *(run.title for run in runs)], rows), "", note])


def _calls(run: DemoRun) -> str:
    jobs = f" in {plural(run.report.jobs, 'job')}" if run.report.jobs else ""
    return run.scaled(run.report.requests) + jobs


def _comparison(single: DemoRun, live: DemoRun, staged: DemoRun, differing: int) -> str:
    fewer = single.report.requests * single.scale / max(live.report.requests, 1)
    faster = single.seconds / live.seconds
    same = (
        "the same in both ways, all of them."
        if not differing
        else f"{differing:,} differ between the two ways, and should not."
    )
    is_cheaper = staged.cost_usd < live.cost_usd
    again = f"{_savings(staged, live)} less again" if is_cheaper else "no cheaper than live here"
    return (
        f"\nLive:      {fewer:.0f}x fewer calls than one by one, {faster:.0f}x faster, "
        f"{_savings(live, single)} less to pay.\n"
        f"Batch API: {again}, {_savings(staged, single)} less than one by one. (A real job takes "
        "minutes to a day.)\n"
        f"Answers:   {same}\n"
    )


def _savings(run: DemoRun, before: DemoRun) -> str:
    return f"{1 - run.cost_usd / before.cost_usd:.0%}" if before.cost_usd else "nothing"


def _table_of_answers(answers: Sequence[dict[str, Any]]) -> str:
    shown = answers[:: max(len(answers) // SHOWN_ANSWERS, 1)][:SHOWN_ANSWERS]
    header = ("review", "people", "sentiment", "score")
    tail_width = 36
    rows = [
        (shortened(row["text"], TABLE_WIDTH - tail_width), f"{row['rating']:+.2f}", *_cells(row))
        for row in shown
    ]
    return table(header, rows, left=(0, 2)) + "\n"


def _cells(row: dict[str, Any]) -> tuple[str, str]:
    answer = row["answer"]
    if not answer:
        return row["answer_error"].partition(":")[0], ""
    return answer["sentiment"], f"{answer['score']:+.2f}"


def _agreement(answers: Sequence[dict[str, Any]]) -> str:
    """How well the labels agree with people's ratings, which go from -4 to 4."""
    answered = [row for row in answers if row["answer"]]
    clear = [row for row in answered if abs(row["rating"]) >= CLEAR_RATING]
    decided = [row for row in clear if row["answer"]["sentiment"] != "neutral"]
    agreeing = sum(
        (row["answer"]["sentiment"] == "positive") == (row["rating"] > 0) for row in decided
    )
    share = f"{agreeing / len(decided):.0%}" if decided else "none"
    return (
        f"People rated {len(clear):,} sentences clearly (by {CLEAR_RATING:g} or more, of 4). "
        f"{len(decided):,} of them were labelled\n"
        f"positive or negative, {share} of these with the people's sign; the other "
        f"{len(clear) - len(decided):,} neutral.\n"
        f"Correlation of score and rating over all: {_linear(answered)}.\n"
    )


def _linear(answered: Sequence[dict[str, Any]]) -> str:
    scores = [row["answer"]["score"] for row in answered]
    try:
        return f"{correlation(scores, [row['rating'] for row in answered]):.2f}"
    # Of one answer, or where all have the same score.
    except StatisticsError:
        return "undefined on so few"


def _places(folder: Path, live: DemoRun, staged: DemoRun) -> str:
    staging = folder / "staging"
    return (
        f"answers   {live.path}\n          {staged.path}\n"
        f"staging   {staging}  (beam-llm jobs ls --staging {staging})"
    )
