"""`LLMEmbed` on Gemini and Vertex AI: one text a request, whose vector can be no other's; the
contracts, Google's own client on the same wire, and what these APIs have alone.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import orjson
import pytest
from google import genai
from google.genai import errors as genai_errors
from google.genai import types
from google.oauth2 import credentials as oauth2
from hypothesis import given
from hypothesis import strategies as st

from beam_llm import LLMEmbed, UsageError, providers, stores
from beam_llm.cli.main import main
from beam_llm.config import settings
from beam_llm.errors import CallError, Kind, Rejected
from beam_llm.pricing import Prices
from beam_llm.prompting.vectors import pack
from beam_llm.protocols import BatchProvider, CompletionProvider
from beam_llm.providers import check, compile_task, encode
from beam_llm.providers.errors import NO_CONTEXT, ErrorContext
from beam_llm.providers.gemini.embed_wire import read_embedding
from beam_llm.providers.gemini.lines import line_reply
from beam_llm.providers.vertex.embed_wire import job_wire_of, read_prediction
from beam_llm.providers.vertex.forms import TEXTS
from beam_llm.providers.vertex.objects import fetch_results, put_input
from beam_llm.testing import Emulator, Fault
from beam_llm.testing.contracts import (
    CompletionProviderContract,
    EmbeddingBatchContract,
    EmbeddingContract,
)
from beam_llm.testing.contracts.batches import Mishap
from beam_llm.testing.contracts.completions import Situation, emulator_fault
from beam_llm.testing.emulator.embedder import vector_of
from beam_llm.values import Completion, Usage, Vector
from tests.google_world import FolderBuckets, address, gemini_client, until_ended
from tests.ids import shown
from tests.test_contracts import EmulatedBatchesContract as _EmulatedBatches
from tests.test_embeddings import collected
from tests.test_wire_properties import anything, ended, good, paths, put, written

OLD, NEW = "gemini-embedding-001", "gemini-embedding-2"
MODELS = [f"gemini:{OLD}", f"gemini:{NEW}", "vertex:text-embedding-005", f"vertex:{OLD}"]
LIVE_MODELS = [*MODELS, f"vertex:{NEW}"]
PLACE = {"project": "p-1", "region": "europe-west4"}
KEY = "GOOGLE_EMBEDDINGS_TESTS_KEY"


@pytest.fixture(autouse=True)
def buckets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FolderBuckets, "root", tmp_path / "buckets", raising=False)
    monkeypatch.setitem(stores.STORES, "gs", "tests.google_world:FolderBuckets")
    monkeypatch.setenv(KEY, "any-key")


def options_of(emulator: Emulator, model: str, **own: Any) -> dict[str, Any]:
    """Options that lead to the model at the emulator."""
    provider = model.partition(":")[0]
    place = {**PLACE, "bucket": "gs://a-bucket/jobs"} if provider == "vertex" else {}
    made = {"provider_options": {**place, **own}} if place or own else {}
    return {"base_url": address(emulator, provider), "api_key": f"env:{KEY}", **made}


def expected(text: str, dimensions: int = 64) -> list[float]:
    return vector_of(text, dimensions).tolist()


# The contracts
# ──────────────────────────────────────────────────────────────────────────────────────────────────


class LiveContract(EmbeddingContract, CompletionProviderContract):
    model: str

    @pytest.fixture(autouse=True)
    def _server(self) -> Iterator[None]:
        self.embedding_model = self.model.partition(":")[2]
        with Emulator(keys=(self.key,)) as self.emulator:
            yield

    def provider(self) -> CompletionProvider:
        options = options_of(self.emulator, self.model)
        if "provider_options" in options:
            del options["provider_options"]["bucket"]
        options |= {"api_key": self.key_reference, "max_reply_bytes": 1_000_000}
        return providers.connect(settings(self.model, task="embed", **options))

    def arrange(self, situation: Situation) -> None:
        self.emulator.set_faults(*emulator_fault(situation))


class TestGemini(LiveContract):
    model = f"gemini:{OLD}"


class TestVertexPredicts(LiveContract):
    model = "vertex:text-embedding-005"


class TestVertexEmbeds(LiveContract):
    model = f"vertex:{NEW}"


class BatchContract(EmbeddingBatchContract, _EmulatedBatches):
    embedding_model = OLD

    def provider(self) -> BatchProvider:
        options = {**self.address(), "api_key": self.key_reference, "dimensions": 8}
        return providers.connect_batch(settings(self.model(), task="embed", **options))

    def jobs_made(self) -> Sequence[str]:
        return [job["name"] for job in self.emulator.jobs]

    def test_its_results_fit_into_a_file_however_large_its_vectors_are(self) -> None:
        self.arrange()
        most = self.provider().traits.max_records
        assert most is not None
        assert most * 3_072 * 24 < 2_000_000_000  # `max_file_bytes`


class TestGeminiBatches(BatchContract):
    inline_bytes = 2_000_000
    impossible = frozenset({Mishap.EXPIRE})  # all of its answers are lost

    @pytest.fixture(autouse=True)
    def _inline(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("beam_llm.providers.gemini.batches.INLINE_BYTES", self.inline_bytes)

    def model(self) -> str:
        return f"gemini:{OLD}"

    def address(self) -> dict[str, Any]:
        return {"base_url": address(self.emulator, "gemini")}


class TestGeminiBatchesByFile(TestGeminiBatches):
    inline_bytes = 0

    def test_label_without_names_it_is_found_by_its_input(self) -> None:
        """It is not: jobs are listed without their input. See `test_gemini_provider.py`."""


class TestVertexBatches(BatchContract):
    def model(self) -> str:
        return f"vertex:{OLD}"

    def address(self) -> dict[str, Any]:
        options = {**PLACE, "bucket": "gs://a-bucket/jobs"}
        return {"base_url": address(self.emulator, "vertex"), "provider_options": options}


# On a pipeline
# ──────────────────────────────────────────────────────────────────────────────────────────────────


def embedded(
    emulator: Emulator, model: str, rows: list[Any], folder: Path | None = None, **options: Any
) -> list[Any]:
    """What `LLMEmbed` gives, by batch where there is a folder for it."""
    own = options.pop("own", {})
    jobs: dict[str, Any] = {}
    if folder is not None:
        jobs = {"mode": "batch_api", "staging_location": str(folder), "poll_seconds": 0.05}
    made = {"dimensions": 64, **options_of(emulator, model, **own), **jobs, **options}
    return collected(LLMEmbed(model, "{{ text }}", **made), rows)


@pytest.mark.parametrize("is_job", [False, True], ids=["live", "by batch"])
@pytest.mark.parametrize("model", LIVE_MODELS)
def test_every_element_comes_back_with_its_own_vector_and_its_price(tmp_path, model, is_job):
    if is_job and model not in MODELS:
        with pytest.raises(UsageError, match="has batch jobs only for gemini-embedding-001"):
            embedded(Emulator(), model, [], tmp_path, base_url="http://127.0.0.1:9")
        return
    rows = [{"id": n, "text": f"the kettle number {n} works"} for n in range(100)]
    with Emulator() as emulator:
        found = embedded(emulator, model, rows, tmp_path if is_job else None)
        book = emulator.totals["batch" if is_job else "live"]
        assert set(emulator.billed.values()) == {1}
    assert sorted(p.element["id"] for p in found) == list(range(100))
    assert all(p.value == expected(p.element["text"]) for p in found)
    assert {p.model for p in found} == {model.partition(":")[2]}
    # One text a request, live and in a job.
    assert (book["requests"], book["records"]) == (100, 100)
    assert sum(p.usage.input_tokens for p in found) == book["input_tokens"]
    prices = {OLD: 0.15e-6, NEW: 0.2e-6}.get(model.partition(":")[2])
    if prices is None:  # by characters, of which no table has the price
        assert {p.cost_usd for p in found} == {None}
        return
    share = (0.8 if model.startswith("vertex") else 0.5) if is_job else 1.0
    assert sum(p.cost_usd for p in found) == pytest.approx(prices * share * book["input_tokens"])


def test_a_large_job_of_gemini_goes_by_a_file(tmp_path, monkeypatch):
    monkeypatch.setattr("beam_llm.providers.gemini.batches.INLINE_BYTES", 100)
    with Emulator() as emulator:
        found = embedded(emulator, MODELS[0], [{"text": f"text {n}"} for n in range(20)], tmp_path)
        [job] = emulator.jobs
    assert "responsesFile" in job["metadata"]["output"]
    assert job["metadata"]["@type"].endswith("EmbedContentBatch")
    assert all(p.value == expected(p.element["text"]) for p in found)


@pytest.mark.parametrize(
    ("dimensions", "is_file"), [(64, False), (3_072, True)], ids=["small vectors", "large ones"]
)
def test_a_job_of_few_texts_goes_by_a_file_where_its_vectors_are_large(
    tmp_path, dimensions, is_file
):
    rows = [{"text": f"text {n}"} for n in range(40)]
    with Emulator() as emulator:
        found = embedded(emulator, MODELS[0], rows, tmp_path, dimensions=dimensions)
        [job] = emulator.jobs
    # Inline, every look at the job and every list would bring all of them along.
    assert ("responsesFile" in job["metadata"]["output"]) is is_file
    assert all(p.value == expected(p.element["text"], dimensions) for p in found)


@pytest.mark.parametrize("is_job", [False, True], ids=["live", "by batch"])
@pytest.mark.parametrize("model", MODELS[1:3])
def test_one_refused_text_among_good_ones_costs_no_other_its_vector(tmp_path, model, is_job):
    rows = [{"id": n, "text": f"this is number {n} of all"} for n in range(9)]
    with Emulator(faults=[Fault("poison", text="number 5 ")]) as emulator:
        found = embedded(emulator, model, rows, tmp_path if is_job else None)
    assert {p.element["id"]: p.error.kind for p in found if p.error} == {5: "refused"}
    assert all(p.value == expected(p.element["text"]) for p in found if not p.error)


@pytest.mark.parametrize("is_job", [False, True], ids=["live", "by batch"])
@pytest.mark.parametrize("model", MODELS)
def test_a_text_that_is_too_long_is_its_own_error_and_none_is_cut(tmp_path, model, is_job):
    rows = [{"text": "short"}, {"text": "word " * 9_000}]
    with Emulator() as emulator:
        folder = tmp_path if is_job else None
        found = embedded(emulator, model, rows, folder)
        assert set(emulator.billed) == {"short"}
    assert Counter(p.error and p.error.kind for p in found) == {None: 1, "too_large": 1}


@pytest.mark.parametrize("is_job", [False, True], ids=["live", "by batch"])
def test_what_vertex_finds_too_long_though_it_was_not_thought_so_is_refused_by_it(tmp_path, is_job):
    rows = [{"text": "short"}, {"text": "word " * 2_500}]
    with Emulator() as emulator:
        folder = tmp_path if is_job else None
        # So that the text is sent: the limit is what the user says.
        found = embedded(emulator, MODELS[2], rows, folder, context_window=100_000)
        assert set(emulator.billed) == {"short"}
    assert Counter(p.error and p.error.kind for p in found) == {None: 1, "too_large": 1}


def test_equal_texts_are_paid_once_by_batch_and_a_rerun_pays_nothing(tmp_path):
    rows = [{"id": n, "text": f"text {n % 10}"} for n in range(40)]
    with Emulator() as emulator:
        first = embedded(emulator, f"vertex:{OLD}", rows, tmp_path)
        again = embedded(emulator, f"vertex:{OLD}", rows[::-1], tmp_path)
        assert len(emulator.jobs) == 1
        assert set(emulator.billed.values()) == {1}
    assert Counter(p.reused for p in first) == {True: 30, False: 10}
    assert sum(p.cost_usd for p in again) == 0.0
    assert all(p.value == expected(p.element["text"]) for p in again)


def test_equal_texts_that_are_told_apart_each_have_a_vector_of_a_vertex_job(tmp_path):
    rows = [{"id": n, "text": f"text {n % 2}"} for n in range(6)]
    own = {"independent": True, "record_id": "id"}
    with Emulator() as emulator:
        found = embedded(emulator, f"vertex:{OLD}", rows, tmp_path, **own)
        assert emulator.billed == {"text 0": 3, "text 1": 3}
    assert all(p.value == expected(p.element["text"]) for p in found)
    assert len(found) == 6


def test_the_task_is_part_of_what_a_vector_is_known_by(tmp_path):
    rows = [{"text": "x"}]
    with Emulator() as emulator:
        for kind in ("CLUSTERING", "CLASSIFICATION", "CLUSTERING"):
            embedded(emulator, f"gemini:{OLD}", rows, tmp_path, own={"task_type": kind})
        assert len(emulator.jobs) == 2


SQL = """
CREATE TABLE reviews (id STRING, text STRING)
  WITH ('connector'='filesystem', 'path'='reviews.jsonl', 'format'='json');
CREATE MODEL vectors INPUT (text STRING) OUTPUT (embedding ARRAY<FLOAT>)
  WITH ('provider'='gemini', 'model'='gemini-embedding-001',
    'provider.options'='{"task_type": "CLUSTERING"}'<mode>);
CREATE TABLE out (id STRING, embedding ARRAY<DOUBLE>)
  WITH ('connector'='filesystem', 'path'='out/', 'format'='json');
INSERT INTO out SELECT id, AI_EMBED('vectors', text, MAP['dimension', '8']) FROM reviews;
"""
BY_BATCH = ", 'mode'='batch_api', 'staging.location'='staging', 'poll.seconds'='0.05'"
YAML = """
pipeline:
  type: chain
  transforms:
    - type: Create
      config: {elements: [{id: "1", text: "a b"}, {id: "2", text: c}]}
    - type: LLMEmbed
      config:
        model: gemini:gemini-embedding-001
        prompt: "{% raw %}{{ text }}{% endraw %}"
        dimensions: 8
        provider_options: {task_type: CLUSTERING}
        output_field: embedding
    - type: MapToFields
      config: {language: python, fields: {id: id, embedding: {callable: "lambda r: list(r.embedding)"}}}
    - type: WriteToJson
      config: {path: out/vectors}
"""


@pytest.mark.parametrize(
    ("file", "text"),
    [("f.sql", SQL.replace("<mode>", "")), ("f.sql", SQL.replace("<mode>", BY_BATCH)),
     ("f.yaml", YAML)],
    ids=["SQL", "SQL by batch", "YAML"],
)  # fmt: skip
def test_a_file_embeds_with_a_task(tmp_path, monkeypatch, file, text):
    monkeypatch.chdir(tmp_path)
    rows = [{"id": "1", "text": "a b"}, {"id": "2", "text": "c"}]
    (tmp_path / "reviews.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / file).write_text(text)
    with Emulator() as emulator:
        for name, value in emulator.environment_of("gemini").items():
            monkeypatch.setenv(name, value)
        assert main(["run", file, "--quiet"]) == 0
        assert all(body["taskType"] == "CLUSTERING" for body in emulator.requests)
    files = [path for path in (tmp_path / "out").iterdir() if path.is_file()]
    lines = [line for path in files for line in path.read_text().splitlines()]
    found = {row["id"]: row["embedding"] for row in map(json.loads, lines)}
    assert found == {row["id"]: pytest.approx(expected(row["text"], 8)) for row in rows}


# Settings
# ──────────────────────────────────────────────────────────────────────────────────────────────────


def placed(model: str, own: dict[str, Any]) -> dict[str, Any] | None:
    """Options of the provider, with the project that Vertex AI needs."""
    return {**({"project": "p"} if model.startswith("vertex") else {}), **own} or None


def known(model: str, own: dict[str, Any] | None = None, **options: Any) -> Any:
    return settings(model, task="embed", provider_options=placed(model, own or {}), **options)


TASK = {"task_type": "RETRIEVAL_DOCUMENT", "title": "A book"}


@pytest.mark.parametrize(
    ("model", "own", "body"),
    [
        (f"gemini:{OLD}", {}, {"content": {"parts": [{"text": "é"}]}}),
        (
            f"gemini:{OLD}",
            TASK,
            {
                "content": {"parts": [{"text": "é"}]},
                "taskType": "RETRIEVAL_DOCUMENT",
                "title": "A book",
                "outputDimensionality": 8,
            },
        ),
        (
            f"vertex:{OLD}",
            TASK,
            {
                "instances": [{"content": "é", **TASK}],
                "parameters": {"autoTruncate": False, "outputDimensionality": 8},
            },
        ),
        (
            f"vertex:{NEW}",
            {"region": "us"},
            {
                "content": {"role": "user", "parts": [{"text": "é"}]},
                "embedContentConfig": {"autoTruncate": False, "outputDimensionality": 8},
            },
        ),
    ],
    ids=["gemini", "gemini, all options", "vertex predicts", "vertex embeds"],
)
def test_each_api_is_asked_in_its_own_words(model, own, body):
    asked = known(model, own, **({"dimensions": 8} if own else {}))
    check(asked)
    task = compile_task(asked)
    assert json.loads(encode(asked, task.render([task.record({}, "é")]))) == body


@pytest.mark.parametrize(
    ("model", "own", "options", "words"),
    [
        (f"gemini:{OLD}", {}, {"batch_size": 5}, "one text a request, since a reply to several"),
        (f"vertex:{OLD}", {}, {"batch_size": 5}, "one text a request, since a reply to several"),
        (f"gemini:{OLD}", {"task_type": "clustering"}, {}, "did you mean 'CLUSTERING'"),
        (f"gemini:{OLD}", {"task_typ": "CLUSTERING"}, {}, "did you mean 'task_type'"),
        (f"gemini:{NEW}", {"task_type": "CLUSTERING"}, {}, "write it into the prompt, such as"),
        (f"vertex:{NEW}", {"task_type": "CLUSTERING"}, {}, "write it into the prompt, such as"),
        (f"gemini:{OLD}", {"title": "A book"}, {}, "beside {'task_type': 'RETRIEVAL_DOCUMENT'}"),
        (f"vertex:{OLD}", {"regoin": "us"}, {}, "did you mean 'region'"),
        (f"gemini:{NEW}", {}, {"dimensions": 4_096}, "has 3,072 at most; try dimensions=3072"),
        ("vertex:text-embedding-005", {}, {"dimensions": 1_024}, "try dimensions=768"),
        (f"gemini:{OLD}", {}, {"extra_body": {"taskType": "x"}}, "this package decides itself"),
        (f"gemini:{OLD}", {}, {"api_version": "v1"}, "only azure: has versions"),
    ],
)
def test_what_they_do_not_have_is_refused_with_the_way_out(model, own, options, words):
    with pytest.raises(UsageError) as caught:
        LLMEmbed(model, provider_options=placed(model, own), **options)
    assert words in str(caught.value)


def test_options_of_embeddings_are_none_of_a_chat_models():
    with pytest.raises(UsageError, match="has no options of its own"):
        check(settings("gemini:gemini-2.5-flash", provider_options={"task_type": "CLUSTERING"}))


def test_batch_size_auto_is_one():
    assert compile_task(known(f"gemini:{OLD}", batch_size="auto")).caps(None).records == 1


def test_a_reply_that_tells_no_tokens_has_no_price():
    prices = Prices.of(known(f"gemini:{OLD}"))
    assert prices.cost_usd(Usage()) is None
    assert prices.cost_usd(Usage(10**6)) == pytest.approx(0.15)
    assert prices.cost_usd(Usage(10**6), batch=True) == pytest.approx(0.075)
    assert Prices.of(known(f"vertex:{OLD}")).cost_usd(Usage(10**6), batch=True) == pytest.approx(
        0.12
    )


# Google's own client
# ──────────────────────────────────────────────────────────────────────────────────────────────────


def vertex_client(emulator: Emulator) -> genai.Client:
    options = types.HttpOptions(base_url=address(emulator, "vertex"), api_version="v1")
    token = oauth2.Credentials(token="any-token")
    return genai.Client(
        vertexai=True, project="p-1", location="us", credentials=token, http_options=options
    )


def test_googles_client_gets_the_vectors_that_we_get():
    config = types.EmbedContentConfig(task_type="CLUSTERING", output_dimensionality=16)
    with Emulator() as emulator, gemini_client(emulator) as client:
        reply = client.models.embed_content(model=OLD, contents=["a b", "c"], config=config)
        assert [each.values for each in reply.embeddings] == [
            pytest.approx(expected(text, 16)) for text in ("a b", "c")
        ]
        whole = client.models.embed_content(model=NEW, contents="x")
        assert len(whole.embeddings[0].values) == 3_072


@pytest.mark.parametrize("model", ["text-embedding-005", OLD, NEW])
def test_googles_client_gets_vertex_vectors_and_their_tokens(model):
    config = types.EmbedContentConfig(output_dimensionality=16, auto_truncate=False)
    with Emulator() as emulator:
        client = vertex_client(emulator)
        reply = client.models.embed_content(model=model, contents="a b", config=config)
        [found] = reply.embeddings
        assert found.values == pytest.approx(expected("a b", 16))
        assert found.statistics.token_count == 1
        with pytest.raises(genai_errors.ClientError, match="input token count is"):
            client.models.embed_content(model=model, contents="word " * 9_000, config=config)
        client.close()


@pytest.mark.parametrize("is_file", [False, True], ids=["inline", "by a file"])
@pytest.mark.filterwarnings("ignore:batches.create_embeddings")
def test_googles_client_makes_and_reads_jobs_of_vectors(is_file: bool, tmp_path: Path):
    with Emulator() as emulator, gemini_client(emulator) as client:
        config = types.EmbedContentConfig(output_dimensionality=16)
        batch = types.EmbedContentBatch(contents=["a b", "c"], config=config)
        source = types.EmbeddingsBatchJobSource(inlined_requests=batch)
        if is_file:
            lines = tmp_path / "lines.jsonl"
            request = {"content": {"parts": [{"text": "a b"}]}, "output_dimensionality": 16}
            lines.write_bytes(orjson.dumps({"key": "r-1", "request": request}))
            upload = types.UploadFileConfig(display_name="lines", mime_type="jsonl")
            file = client.files.upload(file=lines, config=upload)
            source = types.EmbeddingsBatchJobSource(file_name=file.name)
        made = client.batches.create_embeddings(model=OLD, src=source)
        ended = until_ended(client, made.name)
        if is_file:
            line = orjson.loads(client.files.download(file=ended.dest.file_name))
            assert line["key"] == "r-1"
            found = [line["response"]["embedding"]["values"]]
        else:
            inline = ended.dest.inlined_embed_content_responses
            found = [each.response.embedding.values for each in inline]
            assert {each.response.token_count for each in inline} == {1}
    texts = ["a b"] if is_file else ["a b", "c"]
    wanted = sorted(expected(text, 16) for text in texts)
    assert sorted(found) == [pytest.approx(vector) for vector in wanted]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"taskType": "SORTING"}, "Invalid value at 'task_type'"),
        ({"outputDimensionality": 5_000}, "must be in the range \\[1, 3072\\]"),
        ({"outputDimensionality": 0}, "output_dimensionality: must be"),
        ({"title": "A book"}, "title can only be set"),
        ({"dimensions": 5}, 'Unknown name "dimensions"'),
        ({"content": {"parts": [{"text": ""}]}}, "must have one initialized field"),
        ({"content": None}, "must be a message"),
        ({"embedContentConfig": {"x": 1}}, 'Unknown name "x" at .*embed_content_config'),
        ({"model": "models/other"}, "must be models/gemini-embedding-001"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_the_emulator_refuses_what_google_refuses(change, words):
    body = {"content": {"parts": [{"text": "x"}]}, **change}
    with Emulator() as emulator, gemini_client(emulator) as client:
        asking = client._api_client  # whose callers send no such body
        with pytest.raises(genai_errors.ClientError, match=words):
            asking.request("post", f"models/{OLD}:embedContent", body)


@pytest.mark.parametrize(
    ("model", "body", "words"),
    [
        (OLD, {"instances": [{"content": "a"}, {"content": "b"}]}, "is over the limit"),
        (OLD, {"instances": [{"content": "a", "x": 1}]}, "Unknown name 'x'"),
        (OLD, {"instances": [{"content": 5}]}, "Invalid value at 'instances\\[0\\].content'"),
        (OLD, {"instances": []}, "must not be empty"),
        (OLD, {"instances": [{"content": "a"}], "parameters": {"size": 5}}, "'size'"),
        (NEW, {"instances": [{"content": "a"}]}, "Precondition check failed"),
        ("text-embedding-005", {"instances": [{"content": ""}]}, "is empty"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_the_emulator_refuses_what_vertex_refuses(model, body, words):
    with Emulator() as emulator:
        client = vertex_client(emulator)
        path = f"publishers/google/models/{model}:predict"
        asking = client._api_client  # whose callers send no such body
        with pytest.raises(genai_errors.ClientError, match=words):
            asking.request("post", path, body)
        client.close()


# Replies
# ──────────────────────────────────────────────────────────────────────────────────────────────────


def embedding() -> dict[str, Any]:
    return {"embedding": {"values": [0.5, -1]}, "usageMetadata": {"promptTokenCount": 3}}


def prediction() -> dict[str, Any]:
    told = {"token_count": 3, "truncated": False}
    return {"predictions": [{"embeddings": {"values": [0.5, -1], "statistics": told}}]}


READERS = {"embedContent": (read_embedding, embedding), "predict": (read_prediction, prediction)}


@pytest.mark.parametrize(("read", "made"), READERS.values(), ids=READERS)
def test_a_reply_is_the_vector_of_the_one_text(read, made):
    found = read(made(), "m", NO_CONTEXT)
    assert found.vectors == (Vector(0, pack([0.5, -1])),)
    assert (found.usage, found.model) == (Usage(3), "m")


@pytest.mark.parametrize(
    ("read", "body", "kind"),
    [
        (read_embedding, {"embedding": {}}, Kind.UNREADABLE),
        (read_embedding, {"embeddings": [{"values": [1.0]}, {"values": [2.0]}]}, Kind.UNREADABLE),
        (read_embedding, {**embedding(), "truncated": True}, Kind.TOO_LARGE),
        (read_embedding, {"error": {"code": 429, "message": "m"}}, Kind.RATE_LIMITED),
        (read_prediction, {"predictions": []}, Kind.UNREADABLE),
        (read_prediction, {"predictions": 2 * prediction()["predictions"]}, Kind.UNREADABLE),
        (
            read_prediction,
            put(prediction(), ("predictions", 0, "embeddings", "statistics", "truncated"), True),
            Kind.TOO_LARGE,
        ),
        (read_prediction, {"error": {"code": 503, "message": "m"}}, Kind.UNAVAILABLE),
    ],
    ids=lambda value: shown(value)[:60],
)
def test_what_is_no_vector_or_that_of_half_a_text_is_an_error(read, body, kind):
    with pytest.raises(CallError) as caught:
        read(body, "m", NO_CONTEXT)
    assert caught.value.kind == kind


def sound(found: Completion) -> bool:
    assert good(found)
    assert found.vectors is not None
    [(place, numbers)] = found.vectors
    return place == 0 and (numbers is None or len(numbers) % 4 == 0)


@pytest.mark.parametrize(("read", "made"), READERS.values(), ids=READERS)
@given(data=st.data(), value=anything)
def test_any_value_in_any_field_of_a_reply(read, made, data, value):
    body = put(made(), data.draw(st.sampled_from(paths(made()))), value)
    context = ErrorContext("AIza-0123456789-abcdefghij")
    found = ended(lambda: read(body, "m", context))
    assert found.kind in Kind.ALL if isinstance(found, CallError) else sound(found)


@pytest.mark.parametrize(("read", "made"), READERS.values(), ids=READERS)
@given(data=st.data(), value=anything)
def test_any_value_in_any_field_of_a_line(read, made, data, value):
    whole = {"key": "c-1", "response": made(), "status": ""}
    path = data.draw(st.sampled_from(paths(whole)))
    try:
        found = line_reply(
            written(put(whole, path, value)),
            read=lambda payload, context: read(payload, "m", context),
        )
    except ValueError:
        assert path in ((), ("key",))
        return
    assert (found.completion is None) is (found.error is not None)
    assert found.completion is None or sound(found.completion)


# Results of Vertex AI in a bucket
# ──────────────────────────────────────────────────────────────────────────────────────────────────


def staged(texts: Sequence[str]) -> tuple[Any, Path]:
    """A job's input in a bucket, and a path for its results."""
    store, root = stores.store_at("gs://bucket/ours"), FolderBuckets.root
    root.mkdir(parents=True, exist_ok=True)
    asked = known(f"vertex:{OLD}", {"task_type": "CLUSTERING"})
    task, wire = compile_task(asked), job_wire_of(asked)
    lines = [
        b'{"key":"r-%d","request":%b}\n' % (n, wire.encode(task.render([task.record({}, text)])))
        for n, text in enumerate(texts)
    ]
    (root / "lines").write_bytes(b"".join(lines))
    put_input(store, "job-0", root / "lines", TEXTS)
    return store, root / "results"


def read_back(store: Any, path: Path, *results: Any) -> dict[str, Any]:
    """Vectors by the ids that a job's results are found to be of."""
    folder = stores.store_at(f"{store.location}/job-0/output/prediction-model-1")
    lines = [each if isinstance(each, bytes) else written(each) for each in results]
    folder.put("predictions_00001.jsonl", b"\n".join([*lines, b""]))
    fetch_results(store, "job-0", "job-0", path, 10**6, TEXTS)
    found: dict[str, Any] = {}
    for line in path.read_bytes().split(b"\n")[:-1]:
        try:
            reply = line_reply(line, read=lambda body, context: read_prediction(body, "m", context))
        except ValueError:
            continue
        found[reply.custom_id] = reply.completion.vectors if reply.completion else reply.error
    return found


def result(text: Any, *values: float, **more: Any) -> dict[str, Any]:
    predictions = [{"embeddings": {"values": list(values), "statistics": {"token_count": 1}}}]
    return {"instance": {"content": text}, "predictions": predictions, "status": "", **more}


def test_a_line_of_the_input_is_the_text_and_its_task():
    store, _ = staged(["a\u2028\n😀"])
    [line] = store.get("job-0/input.jsonl").split(b"\n")[:-1]
    assert orjson.loads(line) == {"content": "a\u2028\n😀", "task_type": "CLUSTERING"}


def test_a_vector_belongs_to_the_text_that_is_echoed_with_it_in_any_order():
    store, path = staged(["a", "b", "é\n"])
    found = read_back(store, path, result("é\n", 3), result("a", 1), result("b", 2))
    assert found == {f"r-{n}": (Vector(0, pack([n + 1.0])),) for n in range(3)}


@pytest.mark.parametrize(
    "echo",
    ["A", "a ", "", None, 5, ["a"], {"content": "a"}],
    ids=repr,
)
def test_a_vector_whose_text_is_not_the_very_one_is_nobodys(echo):
    store, path = staged(["a", "b"])
    assert set(read_back(store, path, result(echo, 1), result("b", 2))) == {"r-1"}


def test_a_vector_that_is_written_twice_in_a_line_of_vertex_is_nobodys():
    store, path = staged(["a", "b"])
    line = orjson.dumps(result("a", 1))
    twice = line.replace(b'"values":[1]', b'"values":[1],"values":[2]')
    assert twice != line
    assert set(read_back(store, path, twice, result("b", 2))) == {"r-1"}


def test_equal_texts_take_turns_and_an_error_is_its_own_texts():
    store, path = staged(["a", "a", "b"])
    told = 'Bad Request: {"error": {"code": 400, "message": "m"}}'
    failed = {"instance": {"content": "b"}, "predictions": [], "status": told}
    found = read_back(store, path, result("a", 1), failed, result("a", 1))
    assert found["r-0"] == found["r-1"] == (Vector(0, pack([1.0])),)
    assert isinstance(found["r-2"], Rejected)


@given(path=st.sampled_from(paths(result("a", 1.0))), value=anything)
def test_any_value_in_any_field_of_a_result_harms_no_other(tmp_path_factory, path, value):
    FolderBuckets.root = tmp_path_factory.mktemp("buckets")
    store, results = staged(["a", "b"])
    found = read_back(store, results, put(result("a", 1.0), path, value), result("b", 2.0))
    assert found["r-1"] == (Vector(0, pack([2.0])),)
