"""`LLMEmbed` on a pipeline and on the wire, both modes: a vector for each element, each text paid
once.
"""

from __future__ import annotations

import asyncio
import base64
import random
import struct
import typing
from collections import Counter
from functools import partial
from typing import Any

import apache_beam as beam
import numpy as np
import openai
import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.testing import test_stream
from hypothesis import given
from hypothesis import strategies as st
from mistralai.client import Mistral
from mistralai.client.errors import SDKError

from beam_llm import CollectBatchJobs, LLMEmbed, LLMPredict, SubmitBatchJobs, UsageError
from beam_llm.config import settings
from beam_llm.errors import CallError
from beam_llm.planning import cutting
from beam_llm.providers import compile_task, connect, connect_batch, encode
from beam_llm.providers.openai.embed_wire import vectors_of
from beam_llm.providers.openai.lines import line_reply
from beam_llm.testing import Emulator, Fault
from beam_llm.testing.emulator.embedder import vector_of
from beam_llm.values import Request
from tests.collecting import Collect
from tests.element_classes import Named

SMALL = "azure:text-embedding-3-small"
PROMPT = "{{ title }}: {{ text }}"
KEY = "EMBEDDINGS_TESTS_KEY"


@pytest.fixture
def address(emulator, monkeypatch):
    """Where Azure, which has OpenAI's own limits, is at the emulator."""
    monkeypatch.setenv(KEY, emulator.api_key)
    return {"base_url": emulator.url, "api_key": f"env:{KEY}"}


@pytest.fixture(params=["online", "batch_api"])
def options(request, address, tmp_path):
    """Options of either mode; what is expected does not depend on which."""
    jobs = {"mode": "batch_api", "staging_location": str(tmp_path), "poll_seconds": 0.05}
    return {**address, "dimensions": 64, **(jobs if request.param == "batch_api" else {})}


def rows_of(count: int) -> list[dict[str, Any]]:
    return [
        {"id": n, "title": f"t{n}", "text": f"the kettle number {n} works"} for n in range(count)
    ]


def text_of(row: dict[str, Any]) -> str:
    return f"{row['title']}: {row['text']}"


def collected(transform: beam.PTransform, elements: list[Any], *flags: str) -> list[Any]:
    kept = Collect()
    made = PipelineOptions(["--runner=FnApiRunner", *flags], pickle_library="cloudpickle")
    with beam.Pipeline(options=made) as p:
        _ = p | beam.Create(elements, reshuffle=False) | transform | kept
    return kept.found


def expected(text: str, dimensions: int = 64) -> list[float]:
    return vector_of(text, dimensions).tolist()


def live(emulator: Emulator, request: Request, **options: Any) -> Any:
    """What a client makes of one call."""
    known = settings(SMALL, task="embed", base_url=emulator.url, api_key=f"env:{KEY}", **options)

    async def call() -> Any:
        client = connect(known)
        try:
            return await client.complete(request, 10.0)
        finally:
            await client.close()

    return asyncio.run(call())


# On a pipeline
# ─────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("batch_size", [1, 7, "auto"])
def test_every_element_comes_back_with_its_own_vector(emulator, options, batch_size):
    rows = rows_of(200)
    found = collected(LLMEmbed(SMALL, PROMPT, batch_size=batch_size, **options), rows)
    assert sorted(p.element["id"] for p in found) == list(range(200))
    assert all(p.value == expected(text_of(p.element)) for p in found)
    assert all(p.error is None and type(p.value) is list for p in found)
    book = emulator.totals["batch" if "mode" in options else "live"]
    assert sum(p.usage.input_tokens for p in found) == book["input_tokens"]
    price = 0.02e-6 * (0.5 if "mode" in options else 1.0)
    assert sum(p.cost_usd for p in found) == pytest.approx(price * book["input_tokens"])
    if batch_size == "auto":
        assert book["requests"] < 5
    assert {p.model for p in found} == {"text-embedding-3-small"}


def test_similar_texts_are_near_to_one_another(address):
    texts = ["the blue kettle is broken", "a broken kettle, blue", "rain fell on the mountains"]
    found = collected(LLMEmbed(SMALL, dimensions=256, **address), texts)
    one, near, far = (
        np.array(p.value) for p in sorted(found, key=lambda p: texts.index(p.element))
    )
    assert one @ near > 0.5 > 0.2 > abs(one @ far)


def test_a_template_without_a_text_an_empty_one_and_one_too_long_are_their_own_errors(options):
    rows = [
        {"title": "a", "text": "x"},
        {"text": "x"},
        {"title": "b", "text": "word " * 9_000},
        {"title": "", "text": ""},
    ]
    found = collected(LLMEmbed(SMALL, "{{ title }}{{ text }}", **options), rows)
    kinds = {str(p.element)[:20]: p.error and p.error.kind for p in found}
    assert list(kinds.values()) == [kinds[str(row)[:20]] for row in [p.element for p in found]]
    assert Counter(kinds.values()) == {None: 1, "prompt": 2, "too_large": 1}


def test_rows_have_the_vector_as_a_sequence_of_floats(options):
    kept = Collect()
    made = PipelineOptions(["--runner=FnApiRunner"], pickle_library="cloudpickle")
    with beam.Pipeline(options=made) as p:
        elements = p | beam.Create([Named(1, "x")], reshuffle=False).with_output_types(Named)
        rows = elements | LLMEmbed(SMALL, "{{ text }}", output_field="vector", **options)
        hints = dict(rows.element_type._fields)
        _ = rows | kept
    [row] = kept.found
    assert (row.vector, row.vector_error) == (expected("x"), None)
    assert hints["vector"] == typing.Optional[typing.Sequence[float]]


def test_dicts_come_back_as_dicts_with_a_list(options):
    found = collected(LLMEmbed(SMALL, PROMPT, output_field="v", **options), rows_of(1))
    assert found == [
        {**rows_of(1)[0], "v": expected("t0: the kettle number 0 works"), "v_error": None}
    ]


def test_bad_ones_go_apart(options):
    kept, bad_kept = Collect(), Collect()
    made = PipelineOptions(["--runner=FnApiRunner"], pickle_library="cloudpickle")
    with beam.Pipeline(options=made) as p:
        embed = LLMEmbed(SMALL, "{{ element }}", **options).with_exception_handling()
        good, bad = p | beam.Create(["x", ""], reshuffle=False) | embed
        _ = good | kept, bad | bad_kept
    assert [p.value for p in kept.found] == [expected("x")]
    assert [(row.element, row.kind) for row in bad_kept.found] == [("", "prompt")]


def test_one_refused_text_among_good_ones_costs_no_other_its_vector(emulator, options):
    emulator.set_faults(Fault("poison", text="number 5 "))
    found = collected(LLMEmbed(SMALL, PROMPT, **options), rows_of(9))
    failed = {p.element["id"]: p.error.kind for p in found if p.error}
    assert failed == {5: "refused"}
    assert all(p.value == expected(text_of(p.element)) for p in found if not p.error)


@pytest.mark.parametrize("batch_size", [1, "auto"])
def test_options_by_their_keys_and_a_model_by_record(emulator, options, batch_size):
    by_key = {name.replace("_", "."): value for name, value in options.items()}
    made = LLMEmbed.from_options(
        {"provider": "azure", "model": "text-embedding-3-{{ size }}", **by_key},
        batch_size=batch_size,
        prompt="{{ size }}",
        models=("azure:text-embedding-3-small", "azure:text-embedding-3-large"),
    )
    found = collected(made, [{"size": "small"}, {"size": "large"}])
    assert {p.element["size"]: p.model.rpartition("-")[2] for p in found} == {
        "small": "small",
        "large": "large",
    }


@pytest.mark.parametrize("key", ["batch.size", "batch_size"])
def test_its_own_default_gives_way_to_any_spelling(key):
    options = {"provider": "openai", "model": "text-embedding-3-small"}
    assert LLMEmbed.from_options(options).settings.batch_size == "auto"
    assert LLMEmbed.from_options({**options, key: "5"}).settings.batch_size == 5
    assert LLMEmbed.from_options(options, {key: "5"}).settings.batch_size == 5


def test_a_preview_shows_the_bytes_that_are_sent(emulator, address):
    embed = LLMEmbed(SMALL, PROMPT, dimensions=64, **address)
    assert embed.settings.batch_size == "auto"
    [shown] = embed.preview(rows_of(3))
    collected(embed, rows_of(3))
    assert emulator.requests == [shown.body]
    assert shown.body["input"] == [text_of(row) for row in rows_of(3)]
    assert shown.schema is None


def test_the_transforms_signature_has_no_option_of_chat_models():
    import inspect

    parameters = inspect.signature(LLMEmbed).parameters
    assert {"dimensions", "batch_size", "mode", "output_field"} <= set(parameters)
    assert not {"task", "output", "temperature", "system_prompt", "guard"} & set(parameters)
    assert parameters["batch_size"].default == "auto"
    with pytest.raises(UsageError, match="temperature is 0.5"):
        LLMEmbed(SMALL, temperature=0.5, base_url="http://127.0.0.1:9")
    with pytest.raises(UsageError, match="task is 'chat': this transform has 'embed' alone"):
        LLMEmbed(SMALL, task="chat", base_url="http://127.0.0.1:9")
    with pytest.raises(UsageError, match="mode is 'online': this transform has 'batch_api' alone"):
        SubmitBatchJobs.from_options({"model": SMALL, "mode": "online", "staging.location": "x"})


def test_an_unbounded_stream_gives_each_text_its_vector(options):
    kept = Collect()
    made = PipelineOptions(["--runner=DirectRunner", "--streaming"], pickle_library="cloudpickle")
    with beam.Pipeline(options=made) as p:
        stream = test_stream.TestStream().add_elements([f"text {n}" for n in range(5)])
        source = p | stream.advance_watermark_to_infinity()
        embed = LLMEmbed(SMALL, batch_timeout_ms=10, **{**options, "dimensions": 8})
        _ = source | embed | kept
    assert {p.element: p.value for p in kept.found} == {
        f"text {n}": expected(f"text {n}", 8) for n in range(5)
    }


# Paid once
# ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_equal_texts_are_asked_once_in_jobs_and_a_rerun_in_another_order_pays_nothing(
    emulator, address, tmp_path
):
    options = {"mode": "batch_api", "staging_location": str(tmp_path), "poll_seconds": 0.05}
    rows = [{"id": n, "title": f"t{n % 50}", "text": "x"} for n in range(200)]
    embed = LLMEmbed(SMALL, PROMPT, dimensions=64, **address, **options)
    first = collected(embed, rows)
    assert Counter(p.reused for p in first) == {True: 150, False: 50}
    random.Random(1).shuffle(rows)
    other = LLMEmbed(
        SMALL, "{{ title ~ ': ' ~ text }}", batch_size=3, dimensions=64, **address, **options
    )
    again = collected(other, rows)
    assert sum(p.cost_usd for p in again) == 0.0
    assert len(emulator.jobs) == 1
    assert set(emulator.billed.values()) == {1}
    assert {p.element["id"]: p.value for p in again} == {p.element["id"]: p.value for p in first}


def test_a_job_holds_no_more_texts_than_its_provider_counts(address, tmp_path):
    known = settings(
        SMALL, task="embed", mode="batch_api", staging_location=str(tmp_path), **address
    )
    assert connect_batch(known).traits.max_records == 50_000
    lines = np.full(30, 2_048, dtype=np.uint32)
    cuts = cutting.cut_jobs(
        lines,
        lines,
        max_requests=50_000,
        max_bytes=10**9,
        max_tokens=None,
        counts=lines,
        max_records=50_000,
    )
    assert cuts == [0, 24, 30]


def test_submitting_and_collecting_take_the_task_as_an_option(emulator, address, tmp_path):
    options = {"task": "embed", "staging_location": str(tmp_path), "poll_seconds": 0.05, **address}
    refs = collected(SubmitBatchJobs(SMALL, PROMPT, dimensions=8, **options), rows_of(3))
    assert [ref.records for ref in refs] == [3]
    assert [job["endpoint"] for job in emulator.jobs] == ["/v1/embeddings"]
    found = collected(CollectBatchJobs(SMALL, PROMPT, dimensions=8, **options), refs)
    assert {p.element["id"]: p.value for p in found} == {
        row["id"]: expected(text_of(row), 8) for row in rows_of(3)
    }


# On the wire
# ─────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("model", "options", "fields"),
    [
        (SMALL, {"dimensions": 8}, {"dimensions": 8, "encoding_format": "base64"}),
        (SMALL, {}, {"encoding_format": "base64"}),
        ("openai:local", {"dimensions": 8}, {"dimensions": 8}),
        (
            "mistral:codestral-embed",
            {"dimensions": 8},
            {"output_dimension": 8, "encoding_format": "base64"},
        ),
        ("together:BAAI/bge-base-en-v1.5", {}, {}),
        ("fireworks:nomic-ai/nomic-embed-text-v1.5", {"dimensions": 8}, {"dimensions": 8}),
        ("deepinfra:Qwen/Qwen3-Embedding-8B", {"dimensions": 8}, {"dimensions": 8}),
    ],
)
def test_each_server_is_asked_in_its_own_words(model, options, fields):
    known = settings(
        model, task="embed", base_url="http://127.0.0.1:9", extra_body={"user": "me"}, **options
    )
    task = compile_task(known)
    request = task.render([task.record({}, "x"), task.record({}, "é")])
    body = openai_body(encode(known, request))
    assert body == {"model": known.model_name, "input": ["x", "é"], **fields, "user": "me"}


def openai_body(data: bytes) -> Any:
    import json

    return json.loads(data)


def test_openais_own_client_gets_the_vectors_that_we_get(emulator, address):
    client = openai.OpenAI(base_url=emulator.base_url, api_key=emulator.api_key, max_retries=0)
    for form in ("float", "base64", openai.omit):
        reply = client.embeddings.create(
            model="text-embedding-3-small",
            input=["a b", "c"],
            dimensions=16,
            encoding_format=form,  # type: ignore[arg-type]
        )
        found = [entry.embedding for entry in reply.data]
        if form == "base64":
            found = [np.frombuffer(base64.b64decode(data), "<f4").tolist() for data in found]
        assert found == [pytest.approx(expected(text, 16)) for text in ("a b", "c")]
    assert reply.usage.prompt_tokens == reply.usage.total_tokens == 2
    whole = client.embeddings.create(model="text-embedding-3-large", input="x")
    assert len(whole.data[0].embedding) == 3_072


@pytest.mark.parametrize("mode", ["online", "batch_api"])
@pytest.mark.parametrize("provider", ["mistral", "deepinfra", "together", "fireworks"])
def test_each_provider_embeds_in_its_dialect(emulator, monkeypatch, tmp_path, provider, mode):
    for name, value in emulator.environment_of(provider).items():
        monkeypatch.setenv(name, value)
    jobs = {"mode": mode, "staging_location": str(tmp_path), "poll_seconds": 0.05}
    options = {} if provider == "together" else {"dimensions": 16}
    make = partial(LLMEmbed, f"{provider}:any", **options, **(jobs if mode == "batch_api" else {}))
    if mode == "batch_api" and provider in ("together", "fireworks"):
        with pytest.raises(UsageError, match=f"{provider}: has no embeddings by batch here"):
            make()
        return
    found = collected(make(), [f"text {n}" for n in range(5)])
    size = options.get("dimensions", 1_536)
    assert all(p.value == pytest.approx(expected(p.element, size)) for p in found)
    assert len(found) == 5
    assert sum(p.usage.input_tokens for p in found) == 10


def test_mistrals_own_client_gets_the_vectors_that_we_get(emulator):
    environment = emulator.environment_of("mistral")
    with Mistral(
        api_key=environment["MISTRAL_API_KEY"], server_url=environment["MISTRAL_BASE_URL"]
    ) as client:
        reply = client.embeddings.create(model="m", inputs=["a", "b c"], output_dimension=8)
        assert [entry.embedding for entry in reply.data] == [
            pytest.approx(expected(text, 8)) for text in ("a", "b c")
        ]
        with pytest.raises(SDKError, match="Too many inputs in request"):
            client.embeddings.create(model="m", inputs=["a"] * 257)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"input": ""}, "cannot be an empty string"),
        ({"input": ["x", ""]}, "cannot be an empty string"),
        ({"input": []}, "'\\$.input' is invalid"),
        ({"input": ["x"] * 2_049}, "array too long"),
        ({"input": "word " * 9_000}, "maximum context length is 8192"),
        ({"input": ["word " * 6_000] * 41}, "max 300000 tokens per request"),
        ({"dimensions": 2_000}, "Invalid value for 'dimensions'"),
        ({"model": "text-embedding-ada-002", "dimensions": 5}, "does not support specifying"),
        ({"encoding_format": "hex"}, "encoding_format"),
        ({"extra_body": {"temperature": 0}}, "Unrecognized request argument supplied: temperature"),
    ],
)
def test_the_emulator_refuses_what_openai_refuses(emulator, change, words):
    client = openai.OpenAI(base_url=emulator.base_url, api_key=emulator.api_key, max_retries=0)
    with pytest.raises(openai.BadRequestError, match=words):
        client.embeddings.create(**{"model": "text-embedding-3-small", "input": "x", **change})


@pytest.mark.parametrize(
    ("kind", "failed"),
    [
        ("shuffled", {}),
        ("duplicate", {}),
        ("missing", {1: "missing"}),
        ("conflicting", {0: "missing"}),
        ("unknown_index", dict.fromkeys(range(3), "unreadable")),
        ("string_index", dict.fromkeys(range(3), "missing")),
        ("invalid_value", {0: "invalid"}),
        ("truncated", {0: "invalid"}),
        ("null_content", {0: "invalid"}),
        ("empty_choices", dict.fromkeys(range(3), "missing")),
    ],
)
@pytest.mark.parametrize("form", ["base64", "float"])
def test_what_is_odd_about_a_reply_fails_its_own_texts_and_no_other(
    emulator, address, kind, failed, form, monkeypatch
):
    emulator.set_faults(Fault(kind))
    model = SMALL if form == "base64" else "openai:text-embedding-3-small"
    base_url = emulator.url if form == "base64" else emulator.base_url
    embed = LLMEmbed(
        model,
        "{{ text }}",
        dimensions=8,
        max_retries=0,
        on_unparseable="fail",
        **{**address, "base_url": base_url},
    )
    found = collected(embed, rows_of(3))
    # What is left over is asked once more by itself, and goes wrong by itself.
    assert {p.element["id"]: p.error.kind for p in found if p.error} == failed
    good = [p for p in found if not p.error]
    assert all(p.value == pytest.approx(expected(p.element["text"], 8)) for p in good)


def test_a_text_that_is_left_over_is_asked_again(emulator, options):
    emulator.set_faults(Fault("missing", times=1), Fault("invalid_value", times=1))
    found = collected(LLMEmbed(SMALL, PROMPT, **options), rows_of(6))
    assert all(p.value == expected(text_of(p.element)) for p in found)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)
ENTRY = st.fixed_dictionaries({}, optional={"index": JSON, "embedding": JSON, "object": JSON})
REPLY = st.fixed_dictionaries(
    {}, optional={"data": st.lists(ENTRY) | JSON, "usage": JSON, "model": JSON, "error": JSON}
)


@given(REPLY | JSON)
def test_any_json_in_a_reply_is_vectors_or_an_error_of_the_protocol(payload):
    try:
        found = vectors_of(payload)
    except CallError:
        return
    assert found.vectors is not None
    for place, numbers in found.vectors:
        assert place is None or type(place) is int
        assert numbers is None or len(numbers) % 4 == 0


@given(st.dictionaries(st.sampled_from(["response", "error"]), JSON), REPLY | JSON)
def test_any_json_in_a_result_line_is_a_reply_of_its_custom_id(line, body):
    import json

    line = {"custom_id": "a", "response": {"status_code": 200, "body": body}, **line}
    found = line_reply(json.dumps(line).encode(), read=vectors_of)
    assert found.custom_id == "a"
    assert (found.completion is None) != (found.error is None)


@pytest.mark.parametrize("text", ["!", "AAA", base64.b64encode(b"12345").decode(), "é"])
def test_base64_of_something_else_is_no_vector(text):
    found = vectors_of({"data": [{"index": 0, "embedding": text}]})
    assert found.vectors == ((0, None),)


def test_numbers_come_alike_in_base64_and_written_out():
    data = struct.pack("<3f", 0.1, -2.5, 3e-8)
    written = {"index": 0, "embedding": list(struct.unpack("<3f", data))}
    packed = {"index": 1, "embedding": base64.b64encode(data).decode()}
    assert vectors_of({"data": [written, packed]}).vectors == ((0, data), (1, data))


def test_a_server_that_breaks_or_refuses_is_told_by_its_remedy(emulator, address):
    request = Request("text-embedding-3-small", (), inputs=("x",))
    for kind, name in (
        ("rate_limit", "Retryable"),
        ("server_error", "Retryable"),
        ("poison", "Rejected"),
        ("unauthorized", "Aborted"),
        ("garbage_body", "Retryable"),
        ("drop_before", "Retryable"),
    ):
        emulator.set_faults(Fault(kind))
        with pytest.raises(CallError) as caught:
            live(emulator, request)
        assert type(caught.value).__name__ == name
        assert emulator.api_key not in str(caught.value)


def test_a_chat_model_and_an_embedding_model_of_one_name_share_no_client(emulator, address):
    asked = LLMPredict("azure:one", "Say: {{ element }}", **address)
    embedded = LLMEmbed("azure:one", dimensions=4, **address)
    kept, other = Collect(), Collect()
    made = PipelineOptions(["--runner=FnApiRunner"], pickle_library="cloudpickle")
    with beam.Pipeline(options=made) as p:
        source = p | beam.Create(["x"], reshuffle=False)
        _ = source | "Ask" >> asked | kept, source | "Embed" >> embedded | other
    assert type(kept.found[0].value) is str
    assert other.found[0].value == expected("x", 4)
