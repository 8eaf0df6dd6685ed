"""LLMPredict on a pipeline, both modes: what a user sees. The same expectations for both."""

from __future__ import annotations

import enum
import logging
import sys
import types
from typing import Literal

import apache_beam as beam
import pydantic
import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.testing import test_stream
from apache_beam.transforms.display import DisplayData
from apache_beam.transforms.window import (
    FixedWindows,
    GlobalWindows,
    SlidingWindows,
    TimestampedValue,
)
from apache_beam.typehints.row_type import RowTypeConstraint

from beam_llm import (
    CollectBatchJobs,
    LedgerError,
    LLMChat,
    LLMEmbed,
    LLMPredict,
    LLMReduce,
    Prediction,
    SubmitBatchJobs,
    UsageError,
)
from beam_llm.provider_table import PROVIDERS, ProviderSpec
from beam_llm.testing import Emulator, Fault
from tests.collecting import Collect
from tests.element_classes import Named, Plain, Typed

PROMPT = "Classify the sentiment of this review:\n{{ text }}"
Sentiment = Literal["positive", "negative", "neutral"]
TEXTS = [
    "I love this phone, it is great",
    "terrible, awful, I hate it",
    "the box is blue",
    "wonderful and happy",
    "worst purchase, so bad",
]
SENTIMENTS = ["positive", "negative", "neutral", "positive", "negative"]


class Mood(enum.Enum):
    POSITIVE = "positive"
    NEGATIVE = "negative"
    NEUTRAL = "neutral"


class Opinion(pydantic.BaseModel):
    sentiment: Sentiment
    score: float


@pytest.fixture(params=["online", "batch_api"])
def mode(request, tmp_path):
    """Options of either mode; what is expected does not depend on which."""
    return (
        {"mode": "online"}
        if request.param == "online"
        else {"mode": "batch_api", "staging_location": str(tmp_path), "poll_seconds": 0.05}
    )


@pytest.fixture
def options(emulator, mode, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", emulator.api_key)
    monkeypatch.setenv("OPENAI_BASE_URL", emulator.base_url)
    return {"output": Sentiment, **mode}


class Lenient:
    class Rated(pydantic.BaseModel):
        score: float


class Strict:
    class Rated(pydantic.BaseModel):
        score: float

        @pydantic.field_validator("score")
        @classmethod
        def is_allowed(cls, score: float) -> float:
            if score < 0:
                raise ValueError("too low")
            return score


def test_an_answer_that_a_stricter_class_no_longer_takes_is_one_records_error(emulator, tmp_path):
    """The schema is the same, so it is the same question, and paid for."""
    ask = {
        "mode": "batch_api",
        "staging_location": str(tmp_path),
        "poll_seconds": 0.05,
        "base_url": emulator.base_url,
    }
    first, again = (
        collected(
            LLMPredict("openai:gpt-4.1-mini", "Rate: {{ element }}", output=output, **ask), TEXTS
        )
        for output in (Lenient.Rated, Strict.Rated)
    )
    assert [p.error for p in first] == [None] * 5
    assert {p.element: p.error and p.error.kind for p in again} == {
        p.element: "invalid" if p.value.score < 0 else None for p in first
    }
    assert {p.error.kind for p in again if p.error} == {"invalid"}
    assert len(emulator.jobs) == 1


def pipeline(*flags: str) -> beam.Pipeline:
    return beam.Pipeline(
        options=PipelineOptions(["--runner=FnApiRunner", *flags], pickle_library="cloudpickle")
    )


def collected(transform, elements=None, *flags: str, before=None) -> list:
    """What a transform makes of the elements."""
    rows = Collect()
    elements = (
        [{"id": number, "text": text} for number, text in enumerate(TEXTS)]
        if elements is None
        else elements
    )
    with pipeline(*flags) as p:
        source = p | beam.Create(elements, reshuffle=False)
        source = source if before is None else source | before
        _ = source | transform | rows
    return rows.found


@pytest.mark.parametrize("batch_size", [1, 2, 20])
def test_every_record_comes_back_with_its_own_answer(options, batch_size):
    predictions = collected(
        LLMPredict("openai:gpt-4.1-mini", PROMPT, batch_size=batch_size, **options)
    )
    assert {p.element["id"]: p.value for p in predictions} == dict(enumerate(SENTIMENTS))
    assert len(predictions) == len(TEXTS)
    assert all(
        p.error is None and p.usage.input_tokens > 0 and p.cost_usd > 0 and p.model
        for p in predictions
    )


@pytest.mark.parametrize(
    "make",
    [
        lambda i, t: beam.Row(id=i, text=t),
        Named,
        lambda i, t: Plain(i, t),
        lambda i, t: Typed(id=i, text=t),
        lambda i, t: {"id": i, "text": t},
        lambda i, t: (f"key{i}", {"id": i, "text": t}),
    ],
    ids=["Row", "NamedTuple", "dataclass", "pydantic", "dict", "keyed"],
)
def test_every_kind_of_element_is_taken_and_comes_back_untouched(options, make):
    elements = [make(number, text) for number, text in enumerate(TEXTS)]
    predictions = collected(
        LLMPredict("openai:gpt-4.1-mini", PROMPT, batch_size=3, **options), elements
    )
    for element, sentiment in zip(elements, SENTIMENTS, strict=True):
        (found,) = [
            p for p in predictions if p.element == element or _fields(p.element) == _fields(element)
        ]
        assert found.value == sentiment


def _fields(element):
    return element._asdict() if hasattr(element, "_asdict") else element


def test_a_string_is_its_own_prompt(options):
    predictions = collected(LLMPredict("openai:gpt-4.1-mini", **options), TEXTS)
    assert {p.element: p.value for p in predictions} == dict(zip(TEXTS, SENTIMENTS, strict=True))


@pytest.mark.parametrize(
    "output", [str, float, Mood, Opinion, list[str]], ids=["str", "float", "enum", "model", "list"]
)
def test_answers_have_the_type_asked_for(options, output):
    predictions = collected(
        LLMPredict("openai:gpt-4.1-mini", PROMPT, batch_size=3, **{**options, "output": output})
    )
    kind = list if output == list[str] else output
    assert all(isinstance(p.value, kind) for p in predictions), predictions


def test_a_field_missing_in_one_element_is_that_elements_error(options):
    elements = [{"id": 0, "text": TEXTS[0]}, {"id": 1}, {"id": 2, "text": TEXTS[1]}]
    predictions = {
        p.element["id"]: p
        for p in collected(
            LLMPredict("openai:gpt-4.1-mini", PROMPT, batch_size=3, **options), elements
        )
    }
    assert (predictions[0].value, predictions[2].value) == ("positive", "negative")
    assert predictions[1].value is None
    assert predictions[1].error.kind == "prompt"
    assert "text" in predictions[1].error.message


def test_rows_have_the_elements_fields_the_answer_and_its_error(options):
    rows = collected(
        LLMPredict("openai:gpt-4.1-mini", PROMPT, batch_size=3, output_field="mood", **options),
        [Named(*pair) for pair in enumerate(TEXTS)],
    )
    assert sorted((row.id, row.text, row.mood, row.mood_error) for row in rows) == [
        (number, text, mood, None)
        for number, (text, mood) in enumerate(zip(TEXTS, SENTIMENTS, strict=True))
    ]


def test_good_and_bad_come_apart(options):
    good, bad = Collect(), Collect()
    with pipeline() as p:
        elements = p | beam.Create([{"id": 0, "text": TEXTS[0]}, {"id": 1}])
        answered, failed = (
            elements
            | LLMPredict("openai:gpt-4.1-mini", PROMPT, **options).with_exception_handling()
        )
        _ = answered | good, failed | bad
    assert [p.value for p in good.found] == ["positive"]
    assert [(row.element, row.kind) for row in bad.found] == [({"id": 1}, "prompt")]


@pytest.mark.parametrize(
    ("windows", "per_element"),
    [(FixedWindows(10), 1), (SlidingWindows(30, 10), 3), (GlobalWindows(), 1)],
    ids=["fixed", "sliding", "global"],
)
def test_windows_and_timestamps_survive(options, emulator, windows, per_element):
    class Stamp(beam.DoFn):
        def process(
            self, prediction, timestamp=beam.DoFn.TimestampParam, window=beam.DoFn.WindowParam
        ):
            yield prediction.element["id"], int(timestamp), str(window)

    def stamped(elements):
        return (
            elements
            | beam.Map(lambda e: TimestampedValue(e, e["id"] * 7))
            | beam.WindowInto(windows)
        )

    expected, seen = Collect(), Collect()
    with pipeline() as p:
        source = stamped(
            p | beam.Create([{"id": number, "text": text} for number, text in enumerate(TEXTS)])
        )
        _ = source | beam.Map(Prediction) | "before" >> beam.ParDo(Stamp()) | expected
        asked = source | LLMPredict("openai:gpt-4.1-mini", PROMPT, batch_size=2, **options)
        _ = asked | "after" >> beam.ParDo(Stamp()) | seen
    assert sorted(seen.found) == sorted(expected.found)
    assert len(seen.found) == per_element * len(TEXTS)
    assert all(emulator.billed[text] == 1 for text in TEXTS), (
        "a record in several windows is asked once"
    )


def test_it_works_after_a_group_by_key_and_twice_in_one_pipeline(options):
    seen = Collect()
    with pipeline() as p:
        grouped = (
            p | beam.Create([("a", "love"), ("a", "great"), ("b", "hate")]) | beam.GroupByKey()
        )
        rows = grouped | beam.MapTuple(
            lambda key, values: beam.Row(id=key, text=" ".join(sorted(values)))
        ).with_output_types(RowTypeConstraint.from_fields([("id", str), ("text", str)]))
        first = rows | LLMPredict("openai:gpt-4.1-mini", PROMPT, output_field="mood", **options)
        second = first | "again" >> LLMPredict(
            "openai:gpt-4.1",
            "Is this good?\n{{ text }} {{ mood }}",
            batch_size=2,
            output_field="again",
            **options,
        )
        _ = second | seen
    assert sorted((row.id, row.mood) for row in seen.found) == [
        ("a", "positive"),
        ("b", "negative"),
    ]
    assert all(row.again_error is None for row in seen.found)


def test_a_bundle_that_runs_twice_gives_one_prediction_per_element(options, emulator, mode):
    committed = (
        LLMPredict("openai:gpt-4.1-mini", PROMPT, batch_size=2, **options) | beam.combiners.ToList()
    )
    predictions = collected(committed, None, "--direct_runner_bundle_repeat=2")[-1]
    assert sorted(p.element["id"] for p in predictions) == [0, 1, 2, 3, 4]
    if mode["mode"] == "batch_api":  # live calls promise less: a repeated bundle is asked again
        assert all(emulator.billed[text] == 1 for text in TEXTS)


def test_a_poisoned_record_costs_no_other_its_answer(options, monkeypatch, tmp_path):
    with Emulator(faults=[Fault("poison", text="poison")]) as emulator:
        monkeypatch.setenv("OPENAI_BASE_URL", emulator.base_url)
        elements = [
            {"id": number, "text": text} for number, text in enumerate([*TEXTS, "this is poison"])
        ]
        predictions = collected(
            LLMPredict("openai:gpt-4.1-mini", PROMPT, batch_size=6, **options), elements
        )
    values = {p.element["id"]: p.value for p in predictions}
    assert values == {**dict(enumerate(SENTIMENTS)), 5: None}
    assert next(p.error.kind for p in predictions if p.error) == "refused"


def test_nothing_in_gives_nothing_out(options):
    assert collected(LLMPredict("openai:gpt-4.1-mini", PROMPT, **options), []) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompt": "{{ text"}, "prompt"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"api_key": "sk-literal"}, "env:NAME"),
        ({"output": object()}, "output"),
        ({"response_path": "$[", "batch_size": 2}, "response_path"),
        ({"mode": "batch_api", "staging_location": "ftp://bucket/x"}, "staging_location"),
    ],
    ids=["template", "size", "key", "output", "path", "staging"],
)
def test_what_can_not_work_is_refused_before_there_is_a_pipeline(changes, message):
    with pytest.raises(UsageError, match=message):
        LLMPredict("openai:gpt-4.1-mini", **{"prompt": PROMPT, **changes})


@pytest.mark.parametrize("transform", [LLMPredict, LLMChat, LLMReduce, LLMEmbed])
@pytest.mark.parametrize("inputs", ["none", "several"])
def test_what_is_not_one_pcollection_is_refused_when_applied(transform, inputs):
    pipeline = beam.Pipeline()
    made = pipeline | beam.Create(["good"])
    model = "openai:text-embedding-3-small" if transform is LLMEmbed else "openai:gpt-4.1-mini"
    with pytest.raises(UsageError, match=f"{transform.__name__} takes a PCollection of elements"):
        _ = (pipeline if inputs == "none" else (made, made)) | transform(model, "Sum up")


@pytest.mark.parametrize(
    "build", [LLMPredict, SubmitBatchJobs, CollectBatchJobs], ids=lambda build: build.__name__
)
@pytest.mark.parametrize(
    ("ledger", "complaint"),
    [
        (b'{"format": 99, "id": "x"}', "format 99.*reads up to 1: upgrade"),
        (b'{"format": 1, "i', "ledger.json is damaged"),
    ],
    ids=["newer", "half-written"],
)
def test_a_ledger_that_can_not_be_read_is_refused_before_there_is_a_pipeline(
    tmp_path, build, ledger, complaint
):
    (tmp_path / "ledger.json").write_bytes(ledger)
    with pytest.raises(LedgerError, match=complaint):
        build("openai:gpt-4.1-mini", PROMPT, mode="batch_api", staging_location=str(tmp_path))


@pytest.mark.parametrize(
    "build", [LLMPredict, SubmitBatchJobs, CollectBatchJobs], ids=lambda build: build.__name__
)
@pytest.mark.parametrize("is_there", [True, False], ids=["there", "absent"])
def test_building_writes_nothing_to_a_staging_location(tmp_path, build, is_there):
    folder = tmp_path / "staging"
    if is_there:
        folder.mkdir()
    build("openai:gpt-4.1-mini", PROMPT, mode="batch_api", staging_location=str(folder))
    assert list(tmp_path.rglob("*")) == ([folder] if is_there else [])


@pytest.mark.parametrize(
    ("location", "becomes"),
    [
        ("staging", "{here}/staging"),
        ("file://staging", "file://{here}/staging"),
        ("~/staging", "{home}/staging"),
        ("~nobody-of-that-name/x", "{here}/~nobody-of-that-name/x"),
        ("/mnt/shared", "/mnt/shared"),
        ("gs://bucket/staging", "gs://bucket/staging"),
    ],
)
def test_workers_elsewhere_find_the_folder_that_the_pipeline_was_built_with(
    tmp_path, monkeypatch, location, becomes
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    predict = LLMPredict("openai:gpt-4.1-mini", mode="batch_api", staging_location=location)
    assert predict.settings.staging_location == becomes.format(
        here=tmp_path, home=tmp_path / "home"
    )


def test_building_needs_no_credentials_for_a_bucket(monkeypatch):
    from google.cloud import storage

    def refuse(*_, **__):
        raise AssertionError("a client was made")

    monkeypatch.setattr(storage, "Client", refuse)
    LLMPredict("openai:gpt-4.1-mini", PROMPT, mode="batch_api", staging_location="gs://bucket/path")


def test_a_file_in_the_place_of_the_staging_folder_is_refused_before_there_is_a_pipeline(tmp_path):
    (tmp_path / "file").write_text("x")
    for location in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(LedgerError, match="is not a folder"):
            LLMPredict(
                "openai:gpt-4.1-mini", PROMPT, mode="batch_api", staging_location=str(location)
            )


def test_a_provider_without_a_batch_api_is_refused_before_there_is_a_pipeline(
    monkeypatch, tmp_path
):
    live_only = types.ModuleType("live_only")
    live_only.check = lambda settings: None
    monkeypatch.setitem(sys.modules, "live_only", live_only)
    monkeypatch.setitem(
        PROVIDERS,
        "small",
        ProviderSpec("live_only", "SMALL_KEY", "SMALL_URL", "http://127.0.0.1:9/v1"),
    )
    LLMPredict("small:model", PROMPT)
    with pytest.raises(UsageError, match=r"small: has no batch API here; use mode='online'"):
        LLMPredict(
            "small:model", PROMPT, mode="batch_api", staging_location=str(tmp_path / "staging")
        )


def applied(pipeline: beam.Pipeline, form: str, staging: str) -> None:
    """One form of the transforms, put into a pipeline that is not run."""
    batch = {"mode": "batch_api", "staging_location": staging}
    common = {"base_url": "http://localhost/v1", "batch_size": 5}
    texts = pipeline | beam.Create(["good"], reshuffle=False)
    stream = (
        pipeline | test_stream.TestStream().add_elements(["good"]).advance_watermark_to_infinity()
    )
    predict = LLMPredict("openai:gpt-4.1-mini", **common)
    by_batch = LLMPredict("openai:gpt-4.1-mini", **common, **batch)
    submit = SubmitBatchJobs("openai:gpt-4.1-mini", **common, staging_location=staging)
    collect = CollectBatchJobs("openai:gpt-4.1-mini", **common, staging_location=staging)
    forms = {
        "live": lambda: texts | predict,
        "live, good and bad": lambda: texts | predict.with_exception_handling(),
        "live, a stream": lambda: stream | predict,
        "live, by model": lambda: (
            texts | LLMPredict("openai:{{ 'gpt-4.1' if element else 'gpt-4.1-mini' }}", **common)
        ),
        "batch API": lambda: texts | by_batch,
        "batch API, a stream": lambda: stream | by_batch,
        "submit, collect": lambda: texts | submit | collect,
        "chat": lambda: texts | beam.WithKeys("ada") | LLMChat("openai:gpt-4.1-mini"),
        "chat, a stream": lambda: stream | beam.WithKeys("ada") | LLMChat("openai:gpt-4.1-mini"),
        "reduce": lambda: (
            texts | beam.WithKeys("tea") | LLMReduce("openai:gpt-4.1-mini", "Sum up.")
        ),
        "vectors": lambda: texts | LLMEmbed("openai:text-embedding-3-small"),
    }
    forms[form]()


@pytest.mark.parametrize(
    "form",
    [
        "live",
        "live, good and bad",
        "live, a stream",
        "live, by model",
        "batch API",
        "batch API, a stream",
        "submit, collect",
        "chat",
        "chat, a stream",
        "reduce",
        "vectors",
    ],
)
def test_building_a_pipeline_logs_nothing_about_type_hints(form, tmp_path, caplog):
    """Beam reads annotations that are strings as Any, and logs a line for each."""
    caplog.set_level(logging.INFO, logger="apache_beam.typehints")
    applied(beam.Pipeline(options=PipelineOptions(["--streaming"])), form, str(tmp_path))
    assert [record.getMessage() for record in caplog.records if "literal" in record.message] == []


@pytest.mark.parametrize(
    ("output", "shown"),
    [
        (Literal["a", "b"], "Literal['a', 'b']"),
        ("enum:a|b", "Literal['a', 'b']"),
        (Mood, "Mood"),
        (list[int], "list[int]"),
    ],
    ids=["Literal", "by name", "a class", "a list"],
)
def test_display_data_says_what_may_be_answered(output, shown):
    predict = LLMPredict("openai:gpt-4.1-mini", output=output)
    items = {item.key: item.value for item in DisplayData.create_from(predict).items}
    assert items["output"] == shown
