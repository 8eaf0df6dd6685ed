"""A whole pipeline in a process of its own that kills or stops itself at a named point
(`beam_llm.ledger.failpoints`). For tests that kill.

    run = start(Run(base_url, staging, texts, kill="create.after#2"))    # kill -9 when that point
    is reached the second time assert run.ended() == -SIGKILL

Children are forked from one server that has Beam imported already, so that a kill costs a second
and not five. They are real processes: nothing of them is left after a kill but the staging folder.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import json
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

MODEL = "openai:gpt-4.1-mini"
PROMPT = "Classify the sentiment of this review:\n{{ text }}"
MOOD = "enum:positive|negative|neutral"
MOODS = {"great and lovely": "positive", "awful, I hate it": "negative", "it is blue": "neutral"}
THINGS = ("phone", "lamp", "chair", "book", "radio", "table", "clock", "shirt")
KEY = "BEAM_LLM_KILLED_TESTS_KEY"
os.environ[KEY] = "any-key"
QUICK = {"poll_seconds": 0.05, "lease_seconds": 1.0, "list_lag_seconds": 0.3}
PATIENT = {"list_lag_seconds": 10.0}
"""For jobs that are listed or made late: a doubt ends when the job is found, and on no machine
before."""
CHILD_SECONDS = 60


def reviews_of(tag: str, count: int = 24) -> list[str]:
    """Texts that no other tag has, whose sentiment is beyond doubt."""
    # A mark, as "killed" is a word with a sentiment.
    moods, mark = (
        list(MOODS),
        hashlib.sha256(tag.encode()).hexdigest()[:8],
    )
    return [f"{mark}: {THINGS[n % len(THINGS)]} {n}, {moods[n % 3]}" for n in range(count)]


def expected(text: str) -> str:
    return next(label for mood, label in MOODS.items() if mood in text)


def shuffled(texts: Sequence[str], seed: object = 0) -> list[str]:
    return random.Random(str(seed)).sample(list(texts), len(texts))


class Row(NamedTuple):
    """One prediction."""

    text: str
    value: Any
    kind: str | None
    message: str | None
    reused: bool
    cost_usd: float | None


@dataclass
class Run:
    """One run of the pipeline.

    Attributes:
      options: of LLMPredict, over `QUICK`; of LLMReduce, where there is an `instruction`.
      kill, stop: `point` or `point#n`: kill -9, or SIGSTOP, when it is reached (the n-th time).
      flags: of Beam.
      fields: further fields of each element.
      constants: of modules, `package.module.NAME`, as they are in the run.
    """

    base_url: str
    staging: str
    texts: Sequence[str]
    options: Mapping[str, Any] = field(default_factory=dict)
    kill: str | None = None
    stop: str | None = None
    flags: Sequence[str] = ("--runner=FnApiRunner",)
    mode: str = "batch_api"
    environment: Mapping[str, str] = field(default_factory=dict)
    fields: Sequence[Mapping[str, Any]] = ()
    constants: Mapping[str, Any] = field(default_factory=dict)

    def replaced(self, **changes: Any) -> Run:
        return dataclasses.replace(self, **changes)


@dataclass
class Command:
    """`beam-llm …`, killed as a `Run` is. Its rows are its exit code."""

    arguments: Sequence[str]
    kill: str | None = None
    stop: str | None = None
    environment: Mapping[str, str] = field(default_factory=dict)


def rows_of(run: Run) -> list[Row]:
    """Runs the pipeline in this process; one row per prediction."""
    import apache_beam as beam
    from apache_beam.options.pipeline_options import PipelineOptions

    from beam_llm import LLMPredict, LLMReduce
    from tests.collecting import Collect

    elements: list[Any] = [
        dict(extra, text=text)
        for text, extra in zip(run.texts, run.fields or [{}] * len(run.texts), strict=True)
    ]
    kept = Collect()
    batch = {"staging_location": run.staging, **QUICK} if run.mode == "batch_api" else {}
    options = {
        "output": MOOD,
        "base_url": run.base_url,
        "api_key": f"env:{KEY}",
        "batch_size": 3,
        "prompt": PROMPT,
    }
    options |= {**batch, **run.options}
    model = options.pop("model", MODEL)
    kind: Any = LLMPredict
    if "instruction" in options:  # one answer per key, which stands where a text would
        kind, elements = LLMReduce, [(element["key"], element) for element in elements]
    with beam.Pipeline(options=PipelineOptions(list(run.flags))) as p:
        _ = p | beam.Create(elements) | kind(model, mode=run.mode, **options) | kept
    return [
        Row(
            e.element["text"] if kind is LLMPredict else e.element.key,
            e.value,
            e.error and str(e.error.kind),
            e.error and e.error.message,
            e.reused,
            e.cost_usd,
        )
        for e in kept.found
    ]


def complaints(
    rows: Sequence[Row], texts: Sequence[str], *, may_fail: Sequence[str] = ()
) -> list[str]:
    """What a user would complain of: records lost, doubled, wrong, failed."""
    wanted, found = Counter(texts), Counter(row.text for row in rows)
    said = [
        f"{text!r}: {wanted[text]} in, {found[text]} out"
        for text in wanted | found
        if wanted[text] != found[text]
    ]
    said += [
        f"{row.text!r}: {row.kind}: {row.message}"
        for row in rows
        if row.kind is not None and row.text not in may_fail
    ]
    return said + [
        f"{row.text!r}: wrong: {row.value!r}"
        for row in rows
        if row.kind is None and row.value != expected(row.text)
    ]


# Processes


class Child:
    """A run in a process of its own."""

    def __init__(self, run: Run | Command) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="beam-llm-killed-")
        self._out = Path(self._folder.name)
        self._process = _children.Process(target=_child, args=(run, self._folder.name), daemon=True)
        self._process.start()

    def ended(self, seconds: float = CHILD_SECONDS) -> int | None:
        """Its exit code, minus the signal's number where one killed it."""
        self._process.join(seconds)
        return self._process.exitcode

    def rows(self) -> list[Row]:
        """What it put out, once it has ended well."""
        code = self.ended()
        if code != 0:
            raise AssertionError(f"the child ended with {code}: {self.said()}")
        found = [Row(*row) for row in json.loads((self._out / "rows.json").read_text())]
        self.close()
        return found

    def said(self) -> str:
        """The end of its stderr."""
        return "\n".join((self._out / "stderr").read_text().splitlines()[-20:])

    def wait_until_stopped(self) -> None:
        wait_until(lambda: (self._out / "stopped").exists() or self._process.exitcode is not None)
        assert self._process.exitcode is None, self.said()
        # It says so before it stops; a signal to go on that came in between would be lost.
        state = Path(f"/proc/{self._process.pid}/stat")
        if state.exists():
            wait_until(lambda: state.read_text().rpartition(")")[2].split()[0] == "T")
        else:
            time.sleep(0.05)

    def goes_on(self) -> None:
        self.send(signal.SIGCONT)

    def send(self, number: int) -> None:
        assert self._process.pid is not None
        os.kill(self._process.pid, number)

    def close(self) -> None:
        self._process.join(1)
        self._process.close()
        self._folder.cleanup()


def start(run: Run | Command) -> Child:
    return Child(run)


def killed(run: Run | Command) -> int | None:
    """Runs it to its end in a process of its own; its exit code, -9 after a kill."""
    child = start(run)
    code = child.ended()
    if code == 1:
        raise AssertionError(child.said())
    child.close()
    return code


def rerun(run: Run) -> list[Row]:
    """The rows of a run in a process of its own, that knows nothing of earlier ones."""
    return start(run).rows()


def jobs_made(emulator: Any) -> int:
    """How many jobs there are at the emulator, of all tests."""
    return int(emulator.totals["batch"]["jobs"])


def last_jobs(emulator: Any) -> list[dict[str, Any]]:
    """The youngest 100 jobs of an emulator in another process, as its API shows them, oldest first."""
    request = urllib.request.Request(
        f"{emulator.base_url}/batches?limit=100", headers={"Authorization": "Bearer any"}
    )
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(
        request, timeout=10
    ) as answer:
        return list(reversed(json.loads(answer.read())["data"]))


def billed(emulator: Any, texts: Sequence[str]) -> dict[str, int]:
    """How often each text was billed, by the emulator's book."""
    book = emulator.billed
    return {text: book.times(text) for text in texts}


def once(texts: Sequence[str]) -> dict[str, int]:
    return dict.fromkeys(texts, 1)


def wait_until(ready: Callable[[], bool], seconds: float = 30) -> None:
    until = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.02)


_children = multiprocessing.get_context("forkserver")
_children.set_forkserver_preload(["tests.killed_imports"])


def _child(run: Run | Command, folder: str) -> None:
    from beam_llm.ledger import failpoints as points

    os.environ.update(run.environment)
    os.dup2(os.open(f"{folder}/stderr", os.O_WRONLY | os.O_CREAT), 2)
    points.watch = _watch(run, folder)
    if isinstance(run, Command):
        from beam_llm.cli.main import main

        sys.exit(main(list(run.arguments)))
    for path, value in run.constants.items():
        module, _, name = path.rpartition(".")
        setattr(importlib.import_module(module), name, value)
    rows = rows_of(run)
    Path(folder, "rows.json").write_text(json.dumps(rows))


def _watch(run: Run | Command, folder: str) -> Callable[[str], None]:
    seen: Counter[str] = Counter()

    def watch(point: str) -> None:
        seen[point] += 1
        names = (
            {point, f"{point}#{seen[point]}"} if seen[point] == 1 else {f"{point}#{seen[point]}"}
        )
        if run.kill in names:
            os.kill(os.getpid(), signal.SIGKILL)
        if run.stop in names:
            Path(folder, "stopped").touch()
            os.kill(os.getpid(), signal.SIGSTOP)

    return watch
