"""LLMPredict among other transforms: labels, types, coders, counters, errors apart, pickling,
several in one pipeline.
"""

from __future__ import annotations

import inspect
import os
import pickletools
import pydoc
import re
import subprocess
import sys
import typing
from pathlib import Path
from typing import Any, Literal, NamedTuple

import apache_beam as beam
import pydantic
import pytest
from apache_beam.coders import RowCoder, VarIntCoder, registry
from apache_beam.internal import pickler
from apache_beam.internal.cloudpickle import cloudpickle
from apache_beam.metrics import MetricsFilter
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.pipeline import PipelineVisitor
from apache_beam.transforms.display import DisplayData
from apache_beam.transforms.error_handling import CollectingErrorHandler, ErrorHandler
from apache_beam.transforms.userstate import ReadModifyWriteStateSpec
from apache_beam.typehints.row_type import RowTypeConstraint

import beam_llm
from beam_llm import (
    BatchJobRef,
    CollectBatchJobs,
    Failure,
    Kind,
    LLMPredict,
    LLMReduce,
    Prediction,
    SubmitBatchJobs,
    Usage,
    UsageError,
)
from beam_llm.config import EACH, OPTIONS, options_of
from beam_llm.testing import Emulator, Fault
from beam_llm.transforms.coders import AnyObjectCoder, PredictionCoder
from beam_llm.transforms.options import Options
from tests.collecting import Collect

ROOT = Path(__file__).parent.parent
PROMPT = "Classify the sentiment of this review:\n{{ text }}"
MODEL = "openai:gpt-4.1-mini"
Sentiment = Literal["positive", "negative", "neutral"]


class Named(NamedTuple):
    id: int
    text: str


class Opinion(pydantic.BaseModel):
    sentiment: Sentiment
    score: float


REVIEWS = [Named(0, "I love it, great"), Named(1, "this is poison"), Named(2, "awful, I hate it")]


@pytest.fixture
def emulator(monkeypatch):
    with Emulator(faults=[Fault("poison", text="poison")]) as running:
        monkeypatch.setenv("OPENAI_API_KEY", running.api_key)
        monkeypatch.setenv("OPENAI_BASE_URL", running.base_url)
        yield running


@pytest.fixture(params=["online", "batch_api"])
def options(request, emulator, tmp_path):
    """Of either mode; what is expected does not depend on which."""
    live = {"output": Sentiment, "batch_size": 2}
    return (
        live
        if request.param == "online"
        else {**live, **batch_options(tmp_path), "mode": "batch_api"}
    )


def batch_options(folder: Path) -> dict[str, Any]:
    return {"staging_location": str(folder / "staging"), "poll_seconds": 0.05}


def pipeline(*flags: str, runner: str = "FnApiRunner") -> beam.Pipeline:
    return beam.Pipeline(options=PipelineOptions([f"--runner={runner}", *flags]))


def source(p: beam.Pipeline, bounded: bool = True) -> Any:
    made = p | "Read" >> beam.Create(REVIEWS, reshuffle=False)
    made.is_bounded = bounded
    return made


# Labels, types, coders
# ------------------------------------------------------------------------------------------------


class Steps(PipelineVisitor):
    """All applied transforms of a pipeline by full label, with their outputs."""

    def __init__(self, p: beam.Pipeline):
        self.outputs: dict[str, list[Any]] = {}
        p.visit(self)

    def enter_composite_transform(self, node: Any) -> None:
        self.outputs[node.full_label] = list(node.outputs.values())

    def visit_transform(self, node: Any) -> None:
        self.outputs[node.full_label] = list(node.outputs.values())

    @property
    def own(self) -> dict[str, list[str]]:
        """The labels that this package chose: those of its steps, and of the steps in each."""
        labels = [label.split("/")[1:] for label in self.outputs if not label.startswith("Read")]
        below = {label[0]: [] for label in labels if len(label) == 1}
        for label in labels:
            if len(label) == 2:
                below[label[0]].append(label[1])
        return below


# What a reader of `expand` sees, and below it the steps that a runner runs. A running job is
# updated by its labels: a change here breaks `--update` of every job that runs, and belongs into
# CHANGELOG.md.
LABELS = {
    ("online", "bounded", "FnApiRunner"): {
        "Form prompt batches": ["Form"],
        "Ask the model": ["Call"],
        "Deliver": [],
    },
    ("online", "bounded", "PrismRunner"): {
        "Form prompt batches": ["Spread records", "Form"],
        "Ask the model": ["Call", "Keep what is paid for"],
    },
    ("online", "unbounded", "PrismRunner"): {
        "Form prompt batches": [
            "Choose buffers",
            "Fill buffers",
            "Spread prompt batches",
            "Open prompt batches",
        ],
        "Ask the model": ["Call", "Keep what is paid for"],
    },
    ("batch_api", "bounded", "FnApiRunner"): {
        "Spool parts": ["Write"],
        "Plan jobs": ["To one planner", "Group parts", "Plan"],
        "Drive jobs": ["Gather jobs", "Drive"],
    },
    ("batch_api", "bounded", "PrismRunner"): {
        "Spool parts": ["Write"],
        "Plan jobs": ["To one planner", "Group parts", "Plan"],
        "Drive jobs": ["Spread jobs", "Drive"],
    },
    ("batch_api", "unbounded", "PrismRunner"): {
        "Spool parts": ["Write"],
        "Plan jobs": ["To one planner", "Plan"],
        "Drive jobs": ["Spread jobs", "Drive"],
    },
}


def predict(mode: str, folder: Path, **options: Any) -> LLMPredict:
    extra = batch_options(folder) if mode == "batch_api" else {}
    return LLMPredict(
        MODEL,
        **{"prompt": PROMPT, "mode": mode, "base_url": "http://127.0.0.1:9/v1", **extra, **options},
    )


@pytest.mark.parametrize(("mode", "bounded", "runner"), LABELS, ids=lambda word: word)
def test_steps_have_labels_written_by_hand(mode, bounded, runner, tmp_path):
    p = pipeline(runner=runner)
    _ = source(p, bounded == "bounded") | predict(mode, tmp_path)
    steps = Steps(p)
    assert steps.own == LABELS[mode, bounded, runner]
    assert "LLMPredict(gpt-4.1-mini)" in steps.outputs
    assert not [
        label for label in steps.outputs if "lambda" in label and not label.startswith("Read")
    ]


@pytest.mark.parametrize(
    ("make", "labels"),
    [
        (lambda t: t, ["Form prompt batches", "Ask the model", "Shape rows"]),
        (lambda t: t.with_exception_handling(), ["Form prompt batches", "Ask the model", "Divide"]),
        (lambda t: "Mine" >> t, ["Form prompt batches", "Ask the model", "Shape rows"]),
    ],
    ids=["rows", "good-and-bad", "a-label"],
)
def test_variants_have_labels_too(make, labels, tmp_path):
    p = pipeline()
    _ = source(p) | make(predict("online", tmp_path, output_field="mood"))
    assert list(Steps(p).own) == labels


def test_submitting_and_collecting_have_labels_too(tmp_path):
    p = pipeline()
    refs = source(p) | SubmitBatchJobs(
        MODEL, PROMPT, base_url="http://127.0.0.1:9/v1", **batch_options(tmp_path)
    )
    assert list(Steps(p).own) == ["Spool parts", "Plan jobs", "Submit jobs"]
    assert refs.element_type is BatchJobRef
    _ = refs | CollectBatchJobs(
        MODEL, PROMPT, base_url="http://127.0.0.1:9/v1", **batch_options(tmp_path)
    )
    assert list(Steps(p).own)[-1] == "Drive jobs"


@pytest.mark.parametrize("output_field", [None, "mood"])
@pytest.mark.parametrize(("mode", "bounded", "runner"), LABELS, ids=lambda word: word)
def test_every_output_has_a_type_and_a_coder(mode, bounded, runner, output_field, tmp_path):
    p = pipeline(runner=runner)
    out = source(p, bounded == "bounded") | predict(mode, tmp_path, output_field=output_field)
    untyped = [
        label
        for label, outputs in Steps(p).outputs.items()
        # Beam's own Reshuffle gives its inner steps Any.
        if label.startswith("LLM")
        and label.count("/") == 1
        and any(found.element_type in (Any, None, object) for found in outputs)
    ]
    assert untyped == []
    coder = registry.get_coder(out.element_type)
    assert isinstance(coder, PredictionCoder if output_field is None else RowCoder)


@pytest.mark.parametrize(
    ("element", "value"),
    [
        (Named(1, "a"), "positive"),
        ({"id": 1, "tags": ["a", {"b": None}]}, Opinion(sentiment="positive", score=0.5)),
        (("key", {"unhashable": {1, 2}}), [Opinion(sentiment="neutral", score=1)]),
        (beam.Row(id=1, text="a"), {"a": [1, 2.5, None, True]}),
        ("text", None),
    ],
    ids=["NamedTuple", "dict-model", "keyed-models", "Row-json", "text"],
)
def test_a_prediction_survives_every_kind_of_shuffle(element, value):
    prediction = Prediction(
        element,
        value,
        Failure("missing", "no answer", 2) if value is None else None,
        Usage(3, 2, 1),
        0.25,
        "gpt",
        "req_1",
        "stop",
        True,
    )
    coder = registry.get_coder(Prediction)
    assert isinstance(coder, PredictionCoder)
    assert coder.decode(coder.encode(prediction)) == prediction
    seen = Collect()
    with pipeline("--direct_num_workers=1") as p:
        predictions = p | beam.Create([prediction]).with_output_types(Prediction) | beam.Reshuffle()
        grouped = (
            predictions
            | beam.WithKeys(0)
            | beam.GroupByKey()
            | beam.FlatMapTuple(lambda _, found: found)
        )
        combined = predictions | beam.combiners.ToList() | beam.FlatMap(lambda found: found)
        _ = (grouped, combined) | beam.Flatten() | seen
    assert seen.found == [prediction, prediction]
    assert type(seen.found[0].value) is type(value)


def test_a_class_that_exists_nowhere_by_name_is_carried_by_value():
    homeless = type(
        "Homeless", (), {"__module__": "__main__", "__init__": lambda self: setattr(self, "x", 1)}
    )
    coder = AnyObjectCoder()
    assert coder.decode(coder.encode(homeless())).x == 1
    assert coder.decode(coder.encode({"plain"})) == {"plain"}


# Display, arguments, pickling
# -----------------------------------------------------------------------------------------


def test_the_runners_page_shows_model_and_sizes_and_no_whole_text(tmp_path):
    shown = {
        item.key: item.value
        for item in DisplayData.create_from(
            predict(
                "batch_api", tmp_path, batch_size=20, system_prompt="Secret sauce.", extra_body={"user": "someone"}, api_key="env:MY_KEY",
                output=Opinion,
            )
        ).items
    }  # fmt: skip
    assert (shown["model"], shown["batch.size"], shown["mode"], shown["output"]) == (
        MODEL,
        20,
        "batch_api",
        "Opinion",
    )
    assert shown["api.key"] == "env:MY_KEY"
    assert shown["prompt"] == f"{PROMPT[: len(PROMPT) // 2]}… ({len(PROMPT)} characters)"
    assert "someone" not in str(shown)
    assert "Secret sauce." not in str(shown)
    assert "max.retries" not in shown, "defaults are not shown"


def test_a_prompt_of_any_length_is_shown_shortened(tmp_path):
    made = LLMPredict(MODEL, "x" * 5000, base_url="https://host/v1")
    shown = {
        item.key: item.value
        for item in DisplayData.create_from(made.with_exception_handling()).items
    }
    assert len(shown["prompt"]) < 80
    assert shown["base.url"] == "https://host/v1"


def test_the_signature_names_every_option_with_its_type_and_default():
    parameters = inspect.signature(LLMPredict).parameters
    own = options_of(*EACH)
    assert set(parameters) == {*own, "label"}
    assert set(typing.get_type_hints(Options)) == OPTIONS.keys() - ARGUMENTS
    assert {name: parameters[name].default for name in own if name != "model"} == {
        name: option.default for name, option in own.items() if name != "model"
    }
    assert inspect.signature(SubmitBatchJobs) == inspect.signature(LLMPredict)


ARGUMENTS = {"model", "prompt", "output", "instruction"}
"""Options that are parameters of a constructor beside `**options`."""


@pytest.mark.parametrize("name", sorted(OPTIONS.keys() - ARGUMENTS))
def test_the_type_of_an_option_is_that_of_its_setting(name):
    declared, option = typing.get_type_hints(Options)[name], OPTIONS[name]
    choices = option.metadata.get("choices")
    if choices is not None:
        assert set(choices) <= set(typing.get_args(declared) or ()) | {
            member for inner in typing.get_args(declared) for member in typing.get_args(inner)
        }
    elif option.metadata["kind"] != "format":
        assert str(inspect.get_annotations(Options)[name].__forward_arg__) == option.type


def test_options_come_as_strings_with_overrides_and_typed_values(tmp_path):
    model = {
        "provider": "openai",
        "model": "gpt-4",
        "batch.size": "20",
        "output": "enum:a|b",
        "max.retries": "1",
    }
    made = LLMPredict.from_options(
        model, {"batch.size": "50", "api_key": "${MY_KEY}"}, output=Opinion
    )
    found = made.settings
    assert (found.model, found.batch_size, found.max_retries, found.api_key, found.output) == (
        "openai:gpt-4",
        50,
        1,
        "env:MY_KEY",
        Opinion,
    )
    assert made.label == "LLMPredict(gpt-4)"
    with pytest.raises(UsageError, match="batch.size"):
        LLMPredict.from_options({"model": "openai:gpt-4", "batch.sice": "2"})


@pytest.mark.parametrize("kind", [SubmitBatchJobs, CollectBatchJobs])
def test_the_halves_are_of_the_batch_api_whatever_door_they_came_through(kind, tmp_path):
    staging = str(tmp_path)
    assert kind(MODEL, staging_location=staging).settings.mode == "batch_api"
    assert (
        kind.from_options({"model": MODEL, "staging.location": staging}).settings.mode
        == "batch_api"
    )


def test_a_wrong_price_is_refused_before_there_is_a_pipeline():
    with pytest.raises(UsageError, match="prices has 'in': 1"):
        LLMPredict("openai:gpt-4.1-mini", prices={"in": 1})


@pytest.mark.parametrize(
    ("prompt", "options", "is_warned"),
    [
        ("Classify {text}", {}, True),
        ("Classify {{ text }}", {}, False),
        (None, {}, False),
        ("{% if long %}Shorten it{% endif %}", {}, False),
        ("Tell a joke", {"independent": True, "record_id": "id"}, False),
    ],
)
def test_a_prompt_without_a_field_is_warned_of(prompt, options, is_warned, caplog):
    LLMPredict("openai:gpt-4.1-mini", prompt, **options)
    assert ("names no field" in caplog.text) == is_warned


def test_a_template_in_a_text_that_is_none_is_warned_of(caplog):
    LLMPredict("openai:gpt-4.1-mini", "Classify {{ text }}", system_prompt="Know {topic}.")
    assert not caplog.messages
    LLMReduce("openai:gpt-4.1-mini", "Summarise {{ text }}", system_prompt="Know {{ topic }}.")
    assert [message.split()[0] for message in caplog.messages] == ["system_prompt", "instruction"]


def test_a_label_may_be_an_argument():
    assert LLMPredict(MODEL, label="Mine").label == "Mine"
    assert LLMPredict(MODEL, label="Mine").with_exception_handling().label == "Mine"


@pytest.mark.parametrize("mode", ["online", "batch_api"])
def test_the_transform_pickles_and_its_graph_holds_no_client(mode, tmp_path):
    made = predict(mode, tmp_path, output=Opinion)
    assert pickler.loads(pickler.dumps(made)).settings == made.settings
    p = pipeline()
    _ = source(p) | made
    _ = source_again(p) | "again" >> predict(
        mode, tmp_path, output_field="mood", prompt="{{ element }}"
    )
    named = {name for fn in Fns(p).found for name in _names_in(fn)}
    assert "beam_llm.config.table" in named, "the settings are"
    assert not [
        name
        for name in named
        if name.split(".")[0]
        in ("openai", "aiohttp", "httpx", "asyncio", "threading", "_thread", "socket")
    ]
    assert not [
        name
        for name in named
        if name.startswith(("beam_llm.calls", "beam_llm.providers", "google.cloud"))
    ]


class Fns(PipelineVisitor):
    """The DoFns of LLMPredict."""

    def __init__(self, p: beam.Pipeline):
        self.found: list[Any] = []
        p.visit(self)

    def visit_transform(self, node: Any) -> None:
        if node.full_label.startswith(("LLM", "again")) and hasattr(node.transform, "fn"):
            self.found.append(node.transform.fn)


def _names_in(fn: Any) -> set[str]:
    """All strings of the DoFn's pickle: names of modules and classes among them."""
    return {
        argument
        for _, argument, _ in pickletools.genops(cloudpickle.dumps(fn))
        if isinstance(argument, str)
    }


# Errors apart
# ---------------------------------------------------------------------------------------------------------


def test_errors_come_apart_as_rows_with_a_schema(options):
    good, bad = Collect(), Collect()
    with pipeline() as p:
        answered, failed = (
            source(p) | LLMPredict(MODEL, PROMPT, **options).with_exception_handling()
        )
        assert answered.element_type is Prediction
        assert isinstance(failed.element_type, RowTypeConstraint)
        _ = answered | good
        _ = failed | beam.Reshuffle() | bad
    assert {p.element: p.value for p in good.found} == {
        REVIEWS[0]: "positive",
        REVIEWS[2]: "negative",
    }
    (row,) = bad.found
    assert (tuple(row.element), row.kind) == (REVIEWS[1], "refused")
    assert row.message


def test_errors_come_apart_under_the_users_tags_with_rows_that_have_the_answer(options):
    good, bad = Collect(), Collect()
    with pipeline() as p:
        divide = LLMPredict(MODEL, PROMPT, output_field="mood", **options).with_exception_handling(
            "fine", dead_letter_tag="dead"
        )
        outputs = source(p) | divide
        _ = outputs["fine"] | beam.Reshuffle() | good
        _ = outputs.dead | bad
    assert sorted(tuple(row) for row in good.found) == [
        (0, "I love it, great", "positive", None),
        (2, "awful, I hate it", "negative", None),
    ]
    assert [row.kind for row in bad.found] == ["refused"]


def test_errors_go_to_an_error_handler(options):
    good, bad = Collect(), Collect()
    with pipeline() as p, ErrorHandler(bad) as handler:
        _ = source(p) | LLMPredict(MODEL, PROMPT, **options).with_error_handler(handler) | good
    assert len(good.found) == 2
    assert [row.kind for row in bad.found] == ["refused"]


def test_a_collecting_error_handler_has_rows_with_a_schema(tmp_path):
    p = pipeline()
    with CollectingErrorHandler() as handler:
        good = source(p) | predict("online", tmp_path, output_field="mood").with_error_handler(
            handler
        )
    assert isinstance(good.element_type, RowTypeConstraint)
    assert [name for name, _ in handler.output().element_type._fields] == [
        "element",
        "message",
        "kind",
    ]


def source_again(p: beam.Pipeline) -> Any:
    return p | "Read again" >> beam.Create(REVIEWS, reshuffle=False)


# Counters
# -------------------------------------------------------------------------------------------------------------


def counted(result: Any) -> tuple[dict[str, int], dict[str, Any]]:
    found = result.metrics().query(MetricsFilter().with_namespace("beam_llm"))
    counters: dict[str, int] = {}
    for metric in found["counters"]:
        counters[metric.key.metric.name] = (
            counters.get(metric.key.metric.name, 0) + metric.committed
        )
    return counters, {metric.key.metric.name: metric.committed for metric in found["distributions"]}


ELEMENTS = [
    {"id": 0, "text": "I love it"},
    {"id": 1},
    {"id": 2, "text": "awful"},
    {"id": 3, "text": "a poison"},
    {"id": 4, "text": "great"},
]


def test_counters_of_live_calls_tell_what_happened(emulator):
    kept = Collect()
    p = pipeline()
    _ = (
        p
        | beam.Create(ELEMENTS, reshuffle=False)
        | LLMPredict(MODEL, PROMPT, output=Sentiment, batch_size=4)
        | kept
    )
    result = p.run()
    result.wait_until_finish()
    counters, distributions = counted(result)
    assert (
        counters["records"],
        counters["errors"],
        counters["errors_prompt"],
        counters["errors_refused"],
    ) == (5, 2, 1, 1)
    assert counters["requests"] == len(emulator.requests)
    assert counters["splits"] >= 1
    assert (counters["input_tokens"], counters["output_tokens"]) == (
        emulator.input_tokens,
        emulator.output_tokens,
    )
    assert counters["cost_micro_usd"] == pytest.approx(
        sum(p.cost_usd for p in kept.found if p.cost_usd) * 1e6, abs=2
    )
    assert distributions["latency_ms"].count == len(
        {p.request_id for p in kept.found if p.request_id}
    ), "one per reply"
    assert distributions["records_per_request"].max == 4
    assert sum(p.usage.input_tokens for p in kept.found) == emulator.input_tokens


def test_counters_of_jobs_tell_what_happened(emulator, tmp_path):
    kept = Collect()
    emulator.set_faults()
    predict = LLMPredict(
        MODEL, PROMPT, output=Sentiment, batch_size=2, mode="batch_api", **batch_options(tmp_path)
    )
    p = pipeline()
    _ = p | beam.Create(ELEMENTS, reshuffle=False) | predict | kept
    result = p.run()
    result.wait_until_finish()
    counters, distributions = counted(result)
    assert (counters["records"], counters["errors"], counters["errors_prompt"]) == (5, 1, 1)
    assert (counters["job_requests"], distributions["records_per_request"].max) == (2, 2)
    assert counters["input_tokens"] == sum(p.usage.input_tokens for p in kept.found) > 0
    assert counters["output_tokens"] == sum(p.usage.output_tokens for p in kept.found) > 0
    assert counters["cost_micro_usd"] == pytest.approx(
        sum(p.cost_usd for p in kept.found if p.cost_usd) * 1e6, abs=2
    )
    again = pipeline()
    _ = again | beam.Create(ELEMENTS, reshuffle=False) | predict
    result = again.run()
    result.wait_until_finish()
    counters, _ = counted(result)
    assert (counters["records"], counters["reused"]) == (5, 4)
    assert counters.get("cost_micro_usd", 0) == 0


def test_calls_that_cost_a_fraction_of_a_micro_dollar_are_not_counted_as_nothing(emulator):
    kept = Collect()
    p = pipeline()
    prices = {"input": 0.01, "output": 0.01}
    _ = (
        p
        | beam.Create([f"text {number}" for number in range(40)], reshuffle=False)
        | LLMPredict(MODEL, prices=prices)
        | kept
    )
    result = p.run()
    result.wait_until_finish()
    micro_usd = sum(p.cost_usd for p in kept.found) * 1e6
    assert 0 < max(p.cost_usd for p in kept.found) * 1e6 < 0.5
    assert micro_usd - 1 < counted(result)[0]["cost_micro_usd"] <= micro_usd


@pytest.mark.parametrize(("batch_size", "requests"), [(1, 6), (2, 3)])
def test_what_a_job_left_over_is_asked_live_in_prompts_of_the_usual_size_and_counted_once(
    emulator, tmp_path, batch_size, requests
):
    emulator.set_faults(Fault("expire", times=1, done=1))
    kept = Collect()
    p = pipeline()
    reviews = p | beam.Create([f"good text {number}" for number in range(7)], reshuffle=False)
    _ = (
        reviews
        | LLMPredict(
            MODEL,
            mode="batch_api",
            batch_size=batch_size,
            on_leftover="online",
            **batch_options(tmp_path),
        )
        | kept
    )
    result = p.run()
    result.wait_until_finish()
    counters, _ = counted(result)
    assert (
        counters["records"],
        counters["requests"],
        emulator.calls,
        counters["job_requests"],
    ) == (7, requests, requests, 1)
    assert counters["input_tokens"] == sum(p.usage.input_tokens for p in kept.found)
    assert counters["output_tokens"] == sum(p.usage.output_tokens for p in kept.found)


def test_retries_are_counted_and_told_from_splits(emulator):
    emulator.set_faults(Fault("server_error", nth=1))
    p = pipeline()
    _ = p | beam.Create(["a", "b"], reshuffle=False) | LLMPredict(MODEL, batch_size=2)
    result = p.run()
    result.wait_until_finish()
    counters, _ = counted(result)
    assert (
        counters["requests"],
        counters["retries"],
        counters.get("splits", 0),
        counters.get("errors", 0),
    ) == (2, 1, 0, 0)


# Company
# --------------------------------------------------------------------------------------------------------------


class Numbered(beam.DoFn):
    """A user's own stateful transform."""

    SEEN = ReadModifyWriteStateSpec("seen", VarIntCoder())

    def process(self, keyed: tuple[str, Named], seen: Any = beam.DoFn.StateParam(SEEN)) -> Any:
        number = (seen.read() or 0) + 1
        seen.write(number)
        yield keyed[1]


def test_it_works_twice_in_a_pipeline_beside_stateful_transforms(options):
    moods, scores = Collect(), Collect()
    with pipeline() as p:
        reviews = (
            source(p)
            | beam.Map(lambda e: ("k", e)).with_output_types(tuple[str, Named])
            | beam.ParDo(Numbered()).with_output_types(Named)
        )
        _ = (
            reviews
            | "Moods" >> LLMPredict(MODEL, PROMPT, **options)
            | beam.WithKeys("k")
            | beam.GroupByKey()
            | moods
        )
        _ = (
            reviews
            | "Scores"
            >> LLMPredict("openai:gpt-4.1", PROMPT, **{**options, "output": float, "batch_size": 1})
            | scores
        )
    ((_, found),) = moods.found
    assert {p.element.id: p.value for p in found} == {0: "positive", 1: None, 2: "negative"}
    assert {p.element.id for p in scores.found if isinstance(p.value, float)} == {0, 2}
    assert {p.model for p in scores.found if p.error is None} != {
        p.model for p in found if p.error is None
    }


MAIN = """
import sys
from typing import Literal
import apache_beam as beam
from apache_beam.internal.cloudpickle import cloudpickle
import pydantic
from apache_beam.options.pipeline_options import PipelineOptions
from beam_llm import LLMPredict

class Review(pydantic.BaseModel):
    sentiment: Literal["positive", "negative", "neutral"]
    score: float

def line(prediction):
    assert isinstance(prediction.value, Review), prediction
    return f"{prediction.element['id']} {prediction.value.sentiment}"

if __name__ == "__main__":
    with beam.Pipeline(options=PipelineOptions(sys.argv[2:])) as p:
        predictions = p | beam.Create([{"id": 0, "text": "I love it"}, {"id": 1, "text": "I hate it"}]) | LLMPredict(
            "openai:gpt-4.1-mini", "Classify the sentiment of this review:\\n{{ text }}", output=Review, batch_size=2)
        _ = predictions | beam.Reshuffle() | beam.Map(line) | beam.io.WriteToText(sys.argv[1], shard_name_template="")
"""


@pytest.mark.parametrize(
    "flags",
    [
        [],
        ["--save_main_session"],
        ["--direct_running_mode=multi_processing"],
        ["--direct_running_mode=multi_processing", "--save_main_session"],
    ],
    ids=["plain", "session", "processes", "processes-session"],
)
def test_classes_of_a_main_program_reach_the_workers_and_come_back(flags, emulator, tmp_path):
    script, out = tmp_path / "main.py", tmp_path / "out.txt"
    script.write_text(MAIN)
    command = [sys.executable, str(script), str(out), "--runner=FnApiRunner", *flags]
    done = subprocess.run(
        command,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert sorted(out.read_text().split()) == ["0", "1", "negative", "positive"]


def test_help_is_a_map_of_the_package_and_names_every_kind_of_error():
    words = pydoc.render_doc(beam_llm, renderer=pydoc.plaintext)
    assert [name for name in beam_llm.__all__ if name not in words] == []
    assert "class LLMPredict(" in words
    listed = [
        line.strip().partition(":")[0]
        for line in (Kind.__doc__ or "").split("\n")
        if re.match(" {6}[a-z]", line)
    ]
    assert listed == list(Kind.ALL)
