"""`python -m tests.benchmarks [CASE…] [--rounds N]`: every figure of README, interleaved in one
run, as ratios.

Each measurement is a process of its own, measured whole, imports included; ours and what it is
compared with take turns, and medians are compared. The provider is the emulator, in its own
process, with a scripted latency.
"""

from __future__ import annotations

import argparse
import compileall
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import orjson

import beam_llm
from beam_llm.cli.demo import PROMPT, Opinion
from beam_llm.config import settings
from beam_llm.pricing import Prices
from beam_llm.prompting.tokens import count_tokens
from beam_llm.providers import compile_task
from beam_llm.providers.openai.dialect import Dialect
from beam_llm.providers.openai.wire import encode_body
from beam_llm.testing import EmulatorProcess, reviews
from beam_llm.testing.emulator.brain import Brain
from beam_llm.testing.emulator.reading import read_question
from beam_llm.values import Usage
from tests.benchmarks import peer
from tests.benchmarks.measured import make_input

Run = dict[str, float]


class Bench:
    """Inputs, and measured runs against one emulator."""

    def __init__(self, folder: Path, rounds: int):
        self.folder = folder
        self.rounds = rounds

    def source(self, records: int) -> Path:
        path = self.folder / f"reviews-{records}.txt"
        make_input(path, records)
        return path

    def run(self, case: str, emulator: EmulatorProcess, records: int, **values: object) -> Run:
        command = [sys.executable, "-m", "tests.benchmarks.measured", case]
        return self.run_command(command, emulator, records, **values)

    def run_command(
        self, command: list[str], emulator: EmulatorProcess, records: int, **values: object
    ) -> Run:
        """A process that takes `KEY=VALUE…` and prints its figures, measured whole."""
        case = command[-1]
        command = [*command, f"source={self.source(records)}"]
        command += [f"{name}={value}" for name, value in values.items()]
        environment = {**os.environ, **emulator.environment}
        started = time.perf_counter()
        printed = subprocess.run(
            command, env=environment, stdout=subprocess.PIPE, text=True, check=True
        ).stdout
        result: Run = {
            **json.loads(printed.splitlines()[-1]),
            "wall": time.perf_counter() - started,
        }
        if result["lines"] < records:
            raise SystemExit(f"{case}: {result['lines']} of {records} lines came out")
        return result

    def medians(
        self, emulator: EmulatorProcess, runs: dict[str, Callable[[], Run]]
    ) -> dict[str, Run]:
        """Every run once per round, in turn; the median of each figure."""
        return {
            name: {figure: statistics.median(r[figure] for r in rows) for figure in rows[0]}
            for name, rows in self.rows(runs).items()
        }

    def rows(self, runs: dict[str, Callable[[], Run]]) -> dict[str, list[Run]]:
        """The figures of every run, once per round, in turn."""
        seen: dict[str, list[Run]] = {name: [] for name in runs}
        for _ in range(self.rounds):
            for name, run in runs.items():
                seen[name].append(run())
        return seen


def _emulator(**options: object) -> EmulatorProcess:
    return EmulatorProcess(fast=True, billing="off", **options)


def _against_ideal(
    bench: Bench, name: str, latency_ms: int, batch: int, inflight: int, records: int = 10_000
) -> None:
    ideal = math.ceil(records / batch / inflight) * latency_ms / 1000
    with _emulator(latency_ms=latency_ms) as emulator:
        figures = bench.medians(
            emulator,
            {
                "floor": lambda: bench.run("floor", emulator, records),
                "ours": lambda: bench.run(
                    "predict", emulator, records, batch=batch, inflight=inflight
                ),
            },
        )
    ours, floor = figures["ours"]["wall"], figures["floor"]["wall"]
    _print(
        name,
        f"wall {ours:.2f} s / (ideal {ideal:.2f} s + floor {floor:.2f} s)",
        ours / (ideal + floor),
        1.20,
    )


def packed(bench: Bench) -> None:
    _against_ideal(bench, "300 ms, 20 per call, 64 in flight, 10,000 records", 300, 20, 64)


def singles(bench: Bench) -> None:
    _against_ideal(bench, "200 ms, 1 per call, 256 in flight, 10,000 records", 200, 1, 256)


def against_openaivec(bench: Bench, records: int = 10_000, batch: int = 20) -> None:
    """Ours, openaivec's and the floor in turn; ratios are of the runs of one round."""
    try:
        command = [peer.python_with_openaivec(), str(peer.SCRIPT)]
        os.environ.update(peer.tiktoken_cache())
    except peer.NotToBeHad as why:
        print(f"against openaivec: not measured, for {why}", flush=True)
        return
    ideal, options = math.ceil(records / batch / 64) * 0.3, {"batch": batch, "inflight": 64}
    with _emulator(latency_ms=300) as emulator:
        rows = bench.rows(
            {
                "floor": lambda: bench.run("floor", emulator, records),
                "ours": lambda: bench.run("predict", emulator, records, **options),
                "theirs": lambda: bench.run_command(command, emulator, records, **options),
            }
        )
    rounds = list(zip(rows["ours"], rows["theirs"], rows["floor"], strict=True))
    for figure, goal in (("wall", 0.70), ("cpu", 0.55)):
        ours, theirs = (statistics.median(r[figure] for r in rows[n]) for n in ("ours", "theirs"))
        ratio = statistics.median(own[figure] / other[figure] for own, other, _ in rounds)
        name = f"300 ms, {batch} per call, 64 in flight, {records:,} records: {figure}"
        _print(name, f"{ours:.2f} s / openaivec {peer.VERSION} {theirs:.2f} s", ratio, goal)
    floor = statistics.median(r["wall"] for r in rows["floor"])
    _print(
        "the same runs: wall",
        f"(ideal {ideal:.2f} s + floor {floor:.2f} s)",
        statistics.median(own["wall"] / (ideal + least["wall"]) for own, _, least in rounds),
        1.20,
    )


def cpu_packed(bench: Bench) -> None:
    records = 100_000
    with _emulator() as emulator:
        figures = bench.medians(
            emulator,
            {
                "floor": lambda: bench.run("floor", emulator, records),
                "ours": lambda: bench.run("predict", emulator, records, batch=20, inflight=64),
            },
        )
    ours, floor = figures["ours"]["cpu"], figures["floor"]["cpu"]
    _print(
        "0 ms, 20 per call, 100,000 records: CPU",
        f"{ours:.2f} s / floor {floor:.2f} s",
        ours / floor,
        2.5,
    )


def cpu_singles(bench: Bench) -> None:
    records = 5_000
    with _emulator() as emulator:
        figures = bench.medians(
            emulator,
            {
                "by hand": lambda: bench.run("openai_by_hand", emulator, records, inflight=64),
                "aiohttp": lambda: bench.run("aiohttp_by_hand", emulator, records, inflight=64),
                "ours": lambda: bench.run("predict", emulator, records, batch=1, inflight=64),
            },
        )
    ours, by_hand, aiohttp = (figures[name]["cpu"] for name in ("ours", "by hand", "aiohttp"))
    _print(
        "0 ms, 1 per call, 5,000 records: CPU",
        f"{ours:.2f} s / openai by hand {by_hand:.2f} s (aiohttp by hand {aiohttp:.2f} s)",
        ours / by_hand,
        0.30,
    )


def memory(bench: Bench) -> None:
    with _emulator() as emulator:
        small = bench.run("predict", emulator, 100_000, batch=20, inflight=64)["rss"]
        large = bench.run("predict", emulator, 1_000_000, batch=20, inflight=64)["rss"]
    print(
        f"memory: 1,000,000 records {large:.0f} MB, 100,000 records {small:.0f} MB: +{large - small:.0f} MB (goal: at most +50 MB)",
        flush=True,
    )


def batch_api(bench: Bench, records: int = 1_000_000) -> None:
    """Jobs are looked at in the default pace: every 0.2 s, 20 of them were looked at 2,600 times
    while the emulator worked on its million answers, for 5 µs a record that nobody else pays.
    """
    with _emulator(batch_seconds=0.5) as emulator:
        figures = bench.medians(
            emulator,
            {
                "floor": lambda: bench.run("floor", emulator, records),
                "ours": lambda: bench.run(
                    "predict", emulator, records, batch=1, inflight=64, mode="batch_api"
                ),
            },
        )
    ours, floor = figures["ours"], figures["floor"]
    beyond, least = ((cpu / records * 1e6) for cpu in (ours["cpu"] - floor["cpu"], floor["cpu"]))
    _print(
        f"batch API, {records:,} records, 1 per line: CPU per record",
        f"{beyond:.1f} µs beyond Beam's read and write / {least:.1f} µs of these",
        beyond / least,
        2.0,
    )
    print(
        f"the same run: peak {ours['rss']:.0f} MB (goal: at most 400 MB), wall {ours['wall']:.0f} s",
        flush=True,
    )


def planning(bench: Bench, records: int = 2_000_000) -> None:
    subprocess.run([sys.executable, "-m", "tests.benchmarks.planning", str(records)], check=True)


def proposal(bench: Bench, records: int = 10_000, sample: int = 500) -> None:
    """The proposal's table: 10,000 real reviews, one by one at 200 ms a call (a sample, scaled)
    against 20 per call at 300 ms.
    """
    source = bench.folder / f"reviews-{records}.txt"
    texts = [" ".join(review["text"].split()) for review in reviews()]
    source.write_text(
        "".join(f"{texts[n % len(texts)]} ({n // len(texts) + 1})\n" for n in range(records))
    )
    first = bench.folder / f"reviews-{sample}.txt"
    first.write_text("".join(line + "\n" for line in source.read_text().splitlines()[:sample]))
    with _emulator(latency_ms=200) as emulator:
        bench.run("predict", emulator, sample, batch=1, inflight=64)
        single = _spent(emulator, records / sample)
    with _emulator(latency_ms=300) as emulator:
        run = bench.run("predict", emulator, records, batch=20, inflight=64)
        packed = _spent(emulator, 1.0)
    serial = single["calls"] * 0.2
    print(
        f"{records:,} reviews one by one: {single['calls']:,.0f} calls, {serial:,.0f} s, ${single['usd']:.3f}; "
        f"20 per call: {packed['calls']:,.0f} calls ({single['calls'] / packed['calls']:.0f} times fewer), {run['run']:.1f} s "
        f"({serial / run['run']:.0f} times faster; goal: 400; with the process's start {run['wall']:.1f} s), "
        f"${packed['usd']:.3f} ({1 - packed['usd'] / single['usd']:.0%} less; "
        f"batch API ${packed['usd'] / 2:.3f}, {1 - packed['usd'] / 2 / single['usd']:.0%} less)",
        flush=True,
    )


def output_tokens(bench: Bench, records: int = 200, batch: int = 20) -> None:
    """What answers cost in output tokens (o200k), keyed and as an array, for a label and for the
    demo's type.
    """
    texts = [review["text"] for review in reviews()[:records]]
    goals: dict[str, tuple[Any, float]] = {
        "a label": (Literal["positive", "negative", "neutral"], 0.55),
        "the demo's type": (Opinion, 0.9),
    }
    for name, (output, goal) in goals.items():
        task = compile_task(
            settings(
                "openai:gpt-4.1-mini",
                prompt=PROMPT,
                output=output,
                batch_size=batch,
                api_key="none",
            )
        )
        asked = [task.record({"text": text}, None) for text in texts]
        spent = {}
        for shape, enforced in (("keyed", True), ("array", False)):
            requests = [
                task.render(asked[start : start + batch], enforced)
                for start in range(0, records, batch)
            ]
            bodies = [orjson.loads(encode_body(request, Dialect())) for request in requests]
            spent[shape] = (
                sum(
                    count_tokens(Brain().reply(read_question(body)), "gpt-4.1-mini")
                    for body in bodies
                )
                / records
            )
        figures = f"{spent['keyed']:.2f} per record / as an array {spent['array']:.2f}"
        _print(
            f"output tokens of {name}, {batch} per call",
            figures,
            spent["keyed"] / spent["array"],
            goal,
        )


def _spent(emulator: EmulatorProcess, scale: float) -> dict[str, float]:
    """Calls and list price of what the emulator has answered."""
    totals = emulator.totals
    prices = Prices.of(settings("openai:gpt-4.1-mini"))
    usage = Usage(totals["live"]["input_tokens"], totals["live"]["output_tokens"])
    return {"calls": totals["calls"] * scale, "usd": (prices.cost_usd(usage) or 0.0) * scale}


def _print(name: str, figures: str, ratio: float, goal: float) -> None:
    print(f"{name}: {figures} = {ratio:.2f} (goal: at most {goal:.2f})", flush=True)


CASES = {
    "output_tokens": output_tokens,
    "proposal": proposal,
    "packed": packed,
    "singles": singles,
    "cpu_packed": cpu_packed,
    "cpu_singles": cpu_singles,
    "memory": memory,
    "batch_api": batch_api,
    "planning": planning,
    "openaivec": against_openaivec,
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument(
        "cases",
        nargs="*",
        help=f"out of {', '.join(CASES)}; default: all but memory, batch_api, planning and openaivec, which take minutes or install something",
    )
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    # As an installer does: compiling a checkout anew in every process takes a fifth of a second,
    # and the others' are compiled.
    compileall.compile_dir(Path(beam_llm.__file__).parent, quiet=1)
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), arguments.rounds)
        for case in arguments.cases or list(CASES)[:6]:
            CASES[case](bench)


if __name__ == "__main__":
    main()
