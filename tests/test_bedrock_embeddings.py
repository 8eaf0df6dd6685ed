"""`LLMEmbed` on Amazon Bedrock: Titan's and Cohere's own forms under InvokeModel, and Titan's in
batch inference jobs; one text a request.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.exceptions import ClientError
from hypothesis import given
from hypothesis import strategies as st

from beam_llm import LLMEmbed, UsageError, providers
from beam_llm.config import settings
from beam_llm.errors import CallError, Kind
from beam_llm.prompting.vectors import pack
from beam_llm.protocols import BatchProvider, CompletionProvider
from beam_llm.providers import check, compile_task, encode
from beam_llm.providers.bedrock.embed_wire import completion_of
from beam_llm.providers.bedrock.lines import line_reply
from beam_llm.providers.errors import NO_CONTEXT, ErrorContext
from beam_llm.testing import Emulator, Fault
from beam_llm.testing.contracts import (
    CompletionProviderContract,
    EmbeddingBatchContract,
    EmbeddingContract,
)
from beam_llm.testing.contracts.batches import Mishap
from beam_llm.testing.contracts.completions import Situation, emulator_fault
from beam_llm.testing.emulator.embedder import vector_of
from beam_llm.values import Usage, Vector
from tests.test_contracts import EmulatedBatchesContract as _EmulatedBatches
from tests.test_embeddings import collected
from tests.test_wire_properties import anything, ended, good, paths, put, written

TITAN, COHERE = "amazon.titan-embed-text-v2:0", "cohere.embed-english-v3"
NEW_COHERE, OLD_TITAN = "cohere.embed-v4:0", "amazon.titan-embed-text-v1"
JOBS = {
    "role_arn": "arn:aws:iam::123456789012:role/batches",
    "bucket": "s3://vectors/jobs",
    "min_records": 1,
}
PLACE = {"region": "us-east-1"}


def lead_to(emulator: Emulator, patch: pytest.MonkeyPatch) -> None:
    """Has AWS's variables name the emulator, and the buckets in it."""
    found = {**emulator.environment_of("bedrock"), **emulator.buckets_environment}
    for name, value in found.items():
        patch.setenv(name, value)


@pytest.fixture
def emulator(monkeypatch: pytest.MonkeyPatch) -> Iterator[Emulator]:
    with Emulator(keys=("AKIDTEST",), batch_seconds=0.2) as running_:
        lead_to(running_, monkeypatch)
        yield running_


# The contracts
# ──────────────────────────────────────────────────────────────────────────────────────────────────


class LiveContract(EmbeddingContract, CompletionProviderContract):
    dimensions = 256

    @pytest.fixture(autouse=True)
    def _server(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        with Emulator(keys=(self.key,)) as self.emulator:
            lead_to(self.emulator, monkeypatch)
            yield

    def provider(self) -> CompletionProvider:
        model = f"bedrock:{self.embedding_model}"
        return providers.connect(settings(model, task="embed", max_reply_bytes=1_000_000))

    def arrange(self, situation: Situation) -> None:
        self.emulator.set_faults(*emulator_fault(situation))


class TestTitan(LiveContract):
    embedding_model = TITAN


class TestCohere(LiveContract):
    embedding_model = NEW_COHERE


class TestTitanBatches(EmbeddingBatchContract, _EmulatedBatches):
    embedding_model = TITAN
    dimensions = 256

    @pytest.fixture(autouse=True)
    def _patched(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.patch = monkeypatch

    def arrange(self, *mishaps: Mishap) -> None:
        super().arrange(*mishaps)
        lead_to(self.emulator, self.patch)

    def provider(self) -> BatchProvider:
        asked = settings(f"bedrock:{TITAN}", task="embed", provider_options={**PLACE, **JOBS})
        client = providers.connect_batch(asked)
        self.stack.callback(client.close)
        return client

    def jobs_made(self) -> Sequence[str]:
        return [job["jobArn"] for job in self.emulator.jobs]


# On a pipeline
# ──────────────────────────────────────────────────────────────────────────────────────────────────


def expected(text: str, dimensions: int = 256) -> list[float]:
    return vector_of(text, dimensions).tolist()


def embedded(model: str, rows: list[Any], folder: Path | None = None, **options: Any) -> list[Any]:
    """What `LLMEmbed` gives, by batch where there is a folder for it."""
    own = {**PLACE, **options.pop("own", {})}
    jobs: dict[str, Any] = {}
    if folder is not None:
        own = {**JOBS, **own}
        jobs = {"mode": "batch_api", "staging_location": str(folder), "poll_seconds": 0.05}
    made = LLMEmbed(f"bedrock:{model}", "{{ text }}", provider_options=own, **jobs, **options)
    return collected(made, rows)


@pytest.mark.parametrize(
    ("model", "dimensions", "price"),
    [(TITAN, 256, 0.02e-6), (OLD_TITAN, None, 0.1e-6), (COHERE, None, None),
     (NEW_COHERE, 512, None)],
)  # fmt: skip
def test_every_element_comes_back_with_its_own_vector_live(emulator, model, dimensions, price):
    rows = [{"id": n, "text": f"the kettle number {n} works"} for n in range(50)]
    found = embedded(model, rows, dimensions=dimensions)
    sizes = {OLD_TITAN: 1_536, COHERE: 1_024}
    size = dimensions or sizes[model]
    assert sorted(p.element["id"] for p in found) == list(range(50))
    assert all(p.value == pytest.approx(expected(p.element["text"], size)) for p in found)
    book = emulator.totals["live"]
    assert (book["requests"], book["records"]) == (50, 50)
    assert sum(p.usage.input_tokens for p in found) == book["input_tokens"]
    if price is None:
        assert {p.cost_usd for p in found} == {None}
    else:
        assert sum(p.cost_usd for p in found) == pytest.approx(price * book["input_tokens"])
    assert all(p.request_id for p in found)


def test_by_batch_at_half_the_price_and_each_text_once(emulator, tmp_path):
    rows = [{"id": n, "text": f"the kettle number {n % 40} works"} for n in range(60)]
    found = embedded(TITAN, rows, tmp_path, dimensions=256)
    assert all(p.value == expected(p.element["text"]) for p in found)
    assert Counter(p.reused for p in found) == {False: 40, True: 20}
    book = emulator.totals["batch"]
    assert book["records"] == 40
    assert sum(p.cost_usd for p in found) == pytest.approx(0.01e-6 * book["input_tokens"])
    [job] = emulator.jobs
    assert job["modelInvocationType"] == "InvokeModel"
    again = embedded(TITAN, rows[::-1], tmp_path, dimensions=256)
    assert (len(emulator.jobs), sum(p.cost_usd for p in again)) == (1, 0.0)


def test_fewer_texts_than_a_job_must_have_are_embedded_live(emulator, tmp_path):
    rows = [{"text": f"text {n}"} for n in range(20)]
    found = embedded(TITAN, rows, tmp_path, dimensions=256, own={"min_records": 100})
    assert all(p.value == expected(p.element["text"]) for p in found)
    assert (len(emulator.jobs), emulator.totals["live"]["requests"]) == (0, 20)


@pytest.mark.parametrize("is_job", [False, True], ids=["live", "by batch"])
def test_one_refused_text_among_good_ones_costs_no_other_its_vector(emulator, tmp_path, is_job):
    emulator.set_faults(Fault("poison", text="number 5 "))
    rows = [{"id": n, "text": f"this is number {n} of all"} for n in range(9)]
    found = embedded(TITAN, rows, tmp_path if is_job else None, dimensions=256)
    assert {p.element["id"]: p.error.kind for p in found if p.error} == {5: "refused"}
    assert all(p.value == expected(p.element["text"]) for p in found if not p.error)


@pytest.mark.parametrize(
    ("model", "text"),
    [
        (TITAN, "word " * 9_000),  # tokens, by our own count
        (TITAN, "wo" * 26_000),  # characters
        (COHERE, "x" * 2_049),
    ],
    ids=["Titan, tokens", "Titan, characters", "Cohere, characters"],
)
def test_a_text_that_is_too_long_is_its_own_error(emulator, model, text):
    found = embedded(model, [{"text": "short"}, {"text": text}], context_window=10**6)
    assert Counter(p.error and p.error.kind for p in found) == {None: 1, "too_large": 1}


def test_what_the_vectors_are_for_is_part_of_what_they_are_known_by():
    def key(**own: Any) -> bytes:
        asked = settings(f"bedrock:{COHERE}", task="embed", provider_options={**PLACE, **own})
        task = compile_task(asked)
        return task.key(task.record({}, "x"))

    assert key(input_type="clustering") != key(input_type="search_query")
    assert key(region="us-east-1") == key(region="us-west-2")


# Settings
# ──────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("model", "own", "dimensions", "body"),
    [
        (TITAN, {}, None, {"inputText": "é"}),
        (TITAN, {"normalize": False}, 512, {"inputText": "é", "dimensions": 512,
                                            "normalize": False}),
        (OLD_TITAN, {}, None, {"inputText": "é"}),
        (COHERE, {}, None, {"texts": ["é"], "input_type": "search_document", "truncate": "NONE",
                            "embedding_types": ["float"]}),
        (NEW_COHERE, {"input_type": "clustering"}, 512,
         {"texts": ["é"], "input_type": "clustering", "truncate": "NONE",
          "embedding_types": ["float"], "output_dimension": 512}),
    ],
)  # fmt: skip
def test_each_model_is_asked_in_its_own_words(model, own, dimensions, body):
    asked = settings(
        f"bedrock:{model}",
        task="embed",
        dimensions=dimensions,
        provider_options={**PLACE, **own},
    )
    check(asked)
    task = compile_task(asked)
    assert json.loads(encode(asked, task.render([task.record({}, "é")]))) == body


@pytest.mark.parametrize(
    ("model", "own", "options", "words"),
    [
        (TITAN, {}, {"batch_size": 5}, "one text a request, since a reply to several"),
        (TITAN, {}, {"dimensions": 300}, "has 256, 512, 1024; try dimensions=256"),
        (COHERE, {}, {"dimensions": 300}, "has no choice of them; leave it out"),
        (TITAN, {"input_type": "clustering"}, {}, "has no such option; leave it out"),
        (COHERE, {"normalize": True}, {}, "has no such option; leave it out"),
        (COHERE, {"input_type": "x"}, {}, "search_document, search_query, classification"),
        (TITAN, {"normalize": "yes"}, {}, "has to be True or False"),
        (TITAN, {"normalise": True}, {}, "did you mean 'normalize'"),
        (TITAN, {"invocation_type": "Converse"}, {}, "knows region"),
        (TITAN, {"prompt_cache": "off"}, {}, "knows region"),
        (COHERE, JOBS, {"mode": "batch_api", "staging_location": "s"}, "use mode='online'"),
        (TITAN, {}, {"mode": "batch_api", "staging_location": "s"}, "service role is missing"),
        ("anthropic.claude-haiku-4-5-20251001-v1:0", {}, {}, "embeds with amazon.titan-embed-text"),
        (TITAN, {}, {"extra_body": {"inputText": "x"}}, "this package decides itself"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_they_do_not_have_is_refused_with_the_way_out(model, own, options, words):
    with pytest.raises(UsageError) as caught:
        LLMEmbed(f"bedrock:{model}", provider_options={**PLACE, **own}, **options)
    assert words in str(caught.value)


# The official SDK
# ──────────────────────────────────────────────────────────────────────────────────────────────────


def invoked(model: str, body: dict[str, Any]) -> tuple[Any, Any]:
    """The body and the headers that boto3 gets of InvokeModel."""
    with closing(boto3.Session(region_name="us-east-1").client("bedrock-runtime")) as client:
        reply = client.invoke_model(modelId=model, body=json.dumps(body))
        headers = reply["ResponseMetadata"]["HTTPHeaders"]
        return json.loads(reply["body"].read()), headers


def test_boto3_gets_the_vectors_that_we_get(emulator):
    found, _ = invoked(TITAN, {"inputText": "a b", "dimensions": 256, "normalize": True})
    assert found["embedding"] == found["embeddingsByType"]["float"]
    assert found["embedding"] == pytest.approx(expected("a b"))
    assert found["inputTextTokenCount"] == 1
    asked = {"texts": ["a b", "c"], "input_type": "search_query"}
    plain, headers = invoked(COHERE, asked)
    typed, _ = invoked(COHERE, {**asked, "embedding_types": ["float"]})
    assert plain["embeddings"] == typed["embeddings"]["float"]
    assert plain["embeddings"][1] == pytest.approx(expected("c", 1_024))
    assert headers["x-amzn-bedrock-input-token-count"] == "2"


@pytest.mark.parametrize(
    ("model", "body", "words"),
    [
        (TITAN, {"inputText": ""}, "#/inputText"),
        (TITAN, {"inputText": "x", "dimensions": 300}, "#/dimensions: 300 is not a valid"),
        (TITAN, {"inputText": "x", "size": 3}, "extraneous key \\[size\\] is not permitted"),
        (OLD_TITAN, {"inputText": "x", "dimensions": 256}, "extraneous key \\[dimensions\\]"),
        (TITAN, {"inputText": "word " * 9_000}, "Too many input tokens. Max input tokens: 8192"),
        (TITAN, {"inputText": "x" * 50_001}, "expected maxLength: 50000, actual: 50001"),
        (COHERE, {"texts": ["x"]}, "input_type"),
        (COHERE, {"texts": [], "input_type": "clustering"}, "#/texts"),
        (COHERE, {"texts": ["x"] * 97, "input_type": "clustering"}, "#/texts"),
        ("amazon.nova-lite-v1:0", {"inputText": "x"}, "model identifier is invalid"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_the_emulator_refuses_what_bedrock_refuses(emulator, model, body, words):
    with pytest.raises(ClientError, match=words) as caught:
        invoked(model, body)
    assert caught.value.response["Error"]["Code"] == "ValidationException"


# Replies
# ──────────────────────────────────────────────────────────────────────────────────────────────────


def titan() -> dict[str, Any]:
    return {"embedding": [0.5, -1], "inputTextTokenCount": 3, "embeddingsByType": {"float": [1.0]}}


def cohere() -> dict[str, Any]:
    return {"id": "c", "embeddings": {"float": [[0.5, -1]]}, "response_type": "embeddings_by_type"}


@pytest.mark.parametrize(
    ("body", "tokens"),
    [(titan(), 3), (cohere(), 7), ({"embeddings": [[0.5, -1]]}, 7)],
    ids=["Titan", "Cohere by type", "Cohere"],
)
def test_a_reply_is_the_vector_of_the_one_text(body, tokens):
    found = completion_of(body, "m", NO_CONTEXT, "id-1", "7")
    assert found.vectors == (Vector(0, pack([0.5, -1])),)
    assert (found.usage, found.model, found.request_id) == (Usage(tokens), "m", "id-1")


@pytest.mark.parametrize(
    "body",
    [{}, None, [], {"embedding": None}, {"embeddings": [[1.0], [2.0]]}, {"embeddings": []},
     {"embeddings": {"int8": [[1]]}}, {"embeddings": {"float": [[1.0], [2.0]]}}],
    ids=repr,
)  # fmt: skip
def test_what_holds_not_one_vector_is_asked_again(body):
    with pytest.raises(CallError) as caught:
        completion_of(body, "m", NO_CONTEXT)
    assert caught.value.kind == Kind.UNREADABLE


@pytest.mark.parametrize("made", [titan, cohere])
@given(data=st.data(), value=anything)
def test_any_value_in_any_field_of_a_reply(made, data, value):
    body = put(made(), data.draw(st.sampled_from(paths(made()))), value)
    context = ErrorContext("AKID0123456789abcdefghij")
    found = ended(lambda: completion_of(body, "m", context))
    assert found.kind in Kind.ALL if isinstance(found, CallError) else good(found)


@pytest.mark.parametrize("made", [titan, cohere])
@given(data=st.data(), value=anything)
def test_any_value_in_any_field_of_a_line(made, data, value):
    whole = {"recordId": "c-1", "modelInput": {}, "modelOutput": made()}
    path = data.draw(st.sampled_from(paths(whole)))
    try:
        found = line_reply(written(put(whole, path, value)), "m", NO_CONTEXT, completion_of)
    except ValueError:
        assert path in ((), ("recordId",))
        return
    assert (found.completion is None) is (found.error is not None)
    assert found.completion is None or good(found.completion)
