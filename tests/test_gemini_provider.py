"""Gemini: the contracts of live calls and of batches, Google's own client on the same wire, and what
this API has alone.
"""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import orjson
import pydantic
import pytest
from google.genai import errors as genai_errors
from google.genai import types
from hypothesis import given
from hypothesis import strategies as st

from beam_llm import LLMPredict, UsageError, providers
from beam_llm.config import settings
from beam_llm.errors import Aborted, CallError, CannotTell, Kind, Rejected, Retryable
from beam_llm.pricing import Prices
from beam_llm.protocols import BatchProvider, Recovery, RemoteJob
from beam_llm.providers import compile_task, encode
from beam_llm.providers.gemini.place import Place
from beam_llm.testing import Emulator, Fault
from beam_llm.testing.contracts.batches import Mishap
from beam_llm.values import Completion, JobState, Message, Request, Usage
from tests.google_world import ASK, REVIEWS, Mood, address, gemini_client, labelled, until_ended
from tests.test_contracts import EmulatedBatchesContract as _EmulatedBatches
from tests.test_contracts import EmulatedCompletionsContract as _EmulatedCompletions
from tests.test_contracts import SlowFiles as _SlowFiles

MODEL = "gemini:gemini-2.5-flash"
KEY = "GEMINI_KEY_OF_TESTS"


class TestGemini(_EmulatedCompletions):
    def model(self) -> str:
        return "gemini:m"

    def address(self) -> dict[str, Any]:
        return {"base_url": address(self.emulator, "gemini")}


class TestGeminiBatches(_EmulatedBatches):
    inline_bytes = 2_000_000
    impossible = frozenset({Mishap.EXPIRE})  # all of its answers are lost: see below

    @pytest.fixture(autouse=True)
    def _inline(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("beam_llm.providers.gemini.batches.INLINE_BYTES", self.inline_bytes)

    def model(self) -> str:
        return "gemini:m"

    def address(self) -> dict[str, Any]:
        return {"base_url": address(self.emulator, "gemini")}

    def jobs_made(self) -> Sequence[str]:
        return [job["name"] for job in self.emulator.jobs]

    def test_its_rung_is_that_of_labels(self) -> None:
        self.arrange()
        assert self.provider().traits.recovery is Recovery.LABEL


class TestGeminiBatchesByFile(_SlowFiles, TestGeminiBatches):
    inline_bytes = 0

    def test_label_without_names_it_is_found_by_its_input(self) -> None:
        """It is not: jobs are listed without their input, so what is left is a doubt."""
        self.arrange(Mishap.CREATE_LOST, Mishap.LISTED_WITHOUT_NAME)
        provider, since = self.provider(), self.now()
        made = self._stage(provider)
        self._lose_create(provider, made)
        with pytest.raises(CannotTell):
            provider.find("ours", made.staged, since)


# Google's own client
# ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_googles_client_asks_live_with_a_schema_and_thoughts():
    class Answer(pydantic.BaseModel):
        sentiment: Mood

    config = types.GenerateContentConfig(
        system_instruction="Be brief.",
        temperature=0.0,
        max_output_tokens=500,
        seed=1,
        response_mime_type="application/json",
        response_schema=Answer,
        thinking_config=types.ThinkingConfig(include_thoughts=True),
        service_tier="flex",
    )
    with Emulator() as emulator, gemini_client(emulator) as client:
        reply = client.models.generate_content(
            model="gemini-2.5-flash", contents=ASK, config=config
        )
        assert reply.parsed == Answer(sentiment="positive")
        assert [part.thought for part in reply.candidates[0].content.parts] == [True, None]
        assert reply.usage_metadata.prompt_token_count > 0
        assert reply.model_version == "gemini-2.5-flash"
        assert emulator.billed == {"I love it": 1}


@pytest.mark.parametrize("is_file", [False, True], ids=["inline", "by a file"])
def test_googles_client_makes_and_reads_batches(is_file: bool, tmp_path: Path):
    contents = [{"role": "user", "parts": [{"text": ASK}]}]
    with Emulator() as emulator, gemini_client(emulator) as client:
        source: Any = [{"contents": contents, "metadata": {"key": "r-1"}}]
        if is_file:
            lines = tmp_path / "lines.jsonl"
            lines.write_bytes(orjson.dumps({"key": "r-1", "request": {"contents": contents}}))
            upload = types.UploadFileConfig(display_name="lines", mime_type="jsonl")
            source = client.files.upload(file=lines, config=upload).name
        config = types.CreateBatchJobConfig(display_name="ours-0")
        made = client.batches.create(model="gemini-2.5-flash", src=source, config=config)
        ended = until_ended(client, made.name)
        assert ended.display_name == "ours-0"
        assert [job.name for job in client.batches.list()] == [made.name]
        if is_file:
            data = client.files.download(file=ended.dest.file_name)
            answer = orjson.loads(data)["response"]["candidates"][0]["content"]["parts"][0]["text"]
        else:
            answer = ended.dest.inlined_responses[0].response.text
        assert answer == "positive"
        client.batches.delete(name=made.name)
        assert list(client.batches.list()) == []


def test_googles_client_cancels_a_batch():
    contents = [{"role": "user", "parts": [{"text": ASK}]}]
    with Emulator(batch_seconds=600) as emulator, gemini_client(emulator) as client:
        made = client.batches.create(model="m", src=[{"contents": contents}])
        client.batches.cancel(name=made.name)
        assert until_ended(client, made.name).state.name == "JOB_STATE_CANCELLED"


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"temperature": 3.0}, "temperature"),
        ({"response_mime_type": "text/plain", "response_schema": str}, "response_mime_type"),
    ],
    ids=["temperature", "schema without JSON"],
)
def test_the_emulator_refuses_as_the_api_does(config: dict[str, Any], said: str):
    with (
        Emulator() as emulator,
        gemini_client(emulator) as client,
        pytest.raises(genai_errors.ClientError, match=said) as refused,
    ):
        client.models.generate_content(model="m", contents="x", config=config)
    assert refused.value.status == "INVALID_ARGUMENT"


def test_the_emulator_names_a_field_that_it_does_not_know(start_emulator):
    emulator = start_emulator()
    error = failure(emulator, extra_body={"generationConfig": {"topp": 1}})
    assert "Unknown name \"topp\" at 'generation_config'" in error.message
    assert error.kind == Kind.REJECTED


# Live
# ──────────────────────────────────────────────────────────────────────────────────────────────────


def complete(emulator: Emulator, request: Request, **options: Any) -> Completion:
    known = settings(MODEL, base_url=address(emulator, "gemini"), api_key=f"env:{KEY}", **options)

    async def ask() -> Completion:
        provider = providers.connect(known)
        try:
            return await provider.complete(request, 30.0)
        finally:
            await provider.close()

    return asyncio.run(ask())


def question(**options: Any) -> Request:
    known = settings(MODEL, prompt="Label this review:\n{{ text }}", output=Mood, **options)
    task = compile_task(known)
    return task.render([task.record({"text": "I love it"}, None)])


def failure(emulator: Emulator, **options: Any) -> CallError:
    with pytest.raises(CallError) as caught:
        complete(emulator, question(**options), **options)
    return caught.value


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY, "AIza-a-key-of-tests-0123456789")


def test_a_schema_that_is_too_large_for_it_is_asked_for_in_words_and_remembered(start_emulator):
    refused = "The specified schema produces a constraint that has too many states for serving."
    emulator = start_emulator(faults=[Fault("poison", message=refused, nth=1)])
    assert complete(emulator, question()).text == '{"value":"positive"}'
    first, second = emulator.requests
    assert "responseJsonSchema" in first["generationConfig"]
    assert "responseJsonSchema" not in second["generationConfig"]
    assert "JSON schema" in second["systemInstruction"]["parts"][0]["text"]


@pytest.mark.parametrize(
    ("fault", "kind", "wait"),
    [
        (Fault("rate_limit", retry_after=20.5), Kind.RATE_LIMITED, 20.5),
        (Fault("insufficient_quota"), Kind.ABORTED, None),
        (Fault("server_error", status=503), Kind.UNAVAILABLE, None),
        (Fault("model_not_found"), Kind.ABORTED, None),
    ],
    ids=["a minute's quota is a wait", "a day's quota ends all", "overloaded", "no such model"],
)
def test_faults_in_googles_words_name_their_remedy(start_emulator, fault, kind, wait):
    error = failure(start_emulator(faults=[fault]))
    assert (error.kind, error.retry_after_seconds) == (kind, wait)


def test_a_wrong_key_ends_all_and_names_its_reference(start_emulator):
    error = failure(start_emulator(keys=("AIza-another",)))
    assert isinstance(error, Aborted)
    assert error.status == 400
    assert f"api_key is 'env:{KEY}'" in error.message


def test_a_service_tier_is_asked_for_and_told(start_emulator):
    emulator = start_emulator()
    completion = complete(emulator, question(), service_tier="flex")
    assert emulator.requests[0]["serviceTier"] == "flex"
    assert completion.service_tier == "flex"


def test_thoughts_are_no_part_of_the_text(start_emulator):
    options = {"extra_body": {"generationConfig": {"thinkingConfig": {"includeThoughts": True}}}}
    assert complete(start_emulator(), question(**options)).text == '{"value":"positive"}'


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"temperature": 2.5}, "between 0 and 2"),
        ({"api_version": "v1"}, "only azure:"),
        ({"seed": 2**31}, "takes 32 bits"),
        ({"provider_options": {"region": "x"}}, "has no options of its own"),
        ({"extra_body": {"contents": []}}, "which this package decides itself"),
        ({"extra_body": {"generationConfig": {"maxOutputTokens": 5}}}, "option max_output_tokens"),
        ({"extra_body": {"generationConfig": 5}}, "it has to be a mapping"),
    ],
    ids=lambda value: str(value)[:50],
)
def test_what_gemini_does_not_have_is_told_when_the_pipeline_is_built(options, said):
    with pytest.raises(UsageError, match=said):
        LLMPredict(MODEL, "{{ text }}", **options)


def test_a_further_field_goes_beside_ours_in_the_generation_config():
    known = settings(
        MODEL, prompt="x", temperature=1.5, extra_body={"generationConfig": {"topP": 0.5}}
    )
    task = compile_task(known)
    sent = orjson.loads(encode(known, task.render([task.record({}, "x")])))
    assert sent["generationConfig"] == {"temperature": 1.5, "topP": 0.5}


# Batches
# ──────────────────────────────────────────────────────────────────────────────────────────────────


def batches(emulator: Emulator) -> BatchProvider:
    return providers.connect_batch(
        settings(MODEL, base_url=address(emulator, "gemini"), api_key=f"env:{KEY}")
    )


def lines(provider: BatchProvider, folder: Path, count: int = 3, more: str = "") -> Path:
    path = folder / "lines"
    requests = [Request(MODEL, (Message("user", f"Question {n} {more}"),)) for n in range(count)]
    encoded = [provider.encode_line(f"r-{n}", each) for n, each in enumerate(requests)]
    path.write_bytes(b"\n".join([*encoded, b""]))
    return path


def ended(provider: BatchProvider, job: RemoteJob) -> RemoteJob:
    for _ in range(600):
        if (seen := provider.look(job.job_id)).state.has_ended:
            return seen
        time.sleep(0.02)
    raise AssertionError(f"the job does not end: {seen}")


def test_an_expired_job_has_lost_all_of_its_answers(start_emulator, tmp_path):
    provider = batches(start_emulator(faults=[Fault("expire", done=2)], batch_seconds=0.05))
    job = ended(provider, provider.create("ours-0", None, lines(provider, tmp_path)))
    assert (job.state, job.word) == (JobState.EXPIRED, "BATCH_STATE_EXPIRED")
    provider.fetch(job, tmp_path / "results")
    assert (tmp_path / "results").read_bytes() == b""


def test_a_job_that_is_done_before_its_output_is_there_is_looked_at_again(start_emulator, tmp_path):
    provider = batches(start_emulator(batch_seconds=60.0))
    made = provider.create("ours-0", None, lines(provider, tmp_path))
    done = dataclasses.replace(made, state=JobState.COMPLETED, completed=None)
    with pytest.raises(Retryable, match="not there"):
        provider.fetch(done, tmp_path / "results")


def test_few_lines_go_along_with_the_create_and_many_by_a_file(start_emulator, tmp_path):
    emulator = start_emulator(batch_seconds=0.05)
    provider = batches(emulator)
    few = lines(provider, tmp_path)
    assert provider.stage(few, "ours-0") is None
    many = lines(provider, tmp_path, 6_000, "and so on " * 40)
    staged = provider.stage(many, "ours-0")
    assert staged is not None
    assert staged.startswith("files/")
    job = ended(provider, provider.create("ours-0", staged, None))
    assert (job.total, job.completed, job.failed) == (6_000, 6_000, 0)
    provider.fetch(job, tmp_path / "results")
    found = (tmp_path / "results").read_bytes().split(b"\n")[:-1]
    replies = [provider.decode_line(line) for line in found]
    assert {reply.custom_id for reply in replies} == {f"r-{n}" for n in range(6_000)}


def test_results_that_are_gone_end_no_pipeline(start_emulator, tmp_path):
    """The API calls a file that is gone forbidden, which is no fault of the key."""
    provider = batches(start_emulator(batch_seconds=0.05))
    gone = RemoteJob("batches/1", JobState.COMPLETED, result_files=("files/batch-gone",))
    with pytest.raises(Rejected, match="may not exist"):
        provider.fetch(gone, tmp_path / "results")


@pytest.mark.parametrize(
    ("said", "url"),
    [
        ("https://evil.example/upload?upload_id=1", "http://127.0.0.1:1/upload?upload_id=1"),
        ("http://key@127.0.0.1:1/upload#x", "http://127.0.0.1:1/upload"),
        ("/upload", "http://127.0.0.1:1/upload"),
        ("", None),
        ("upload", None),
        ("http://[", None),
        ("http://x/a b", None),
        ("http://x/é", None),
    ],
)
def test_an_upload_goes_to_the_same_origin_whatever_the_server_says(said, url):
    assert Place("http://127.0.0.1:1/gemini").same_origin(said) == url


@given(st.text())
def test_any_address_of_an_upload(said):
    found = Place("http://127.0.0.1:1").same_origin(said)
    assert found is None or found.startswith("http://127.0.0.1:1/")


def test_a_lost_upload_is_begun_anew(start_emulator, tmp_path, monkeypatch):
    monkeypatch.setattr("beam_llm.providers.gemini.batches.INLINE_BYTES", 0)
    provider = batches(start_emulator(faults=[Fault("upload_cut", nth=1)], batch_seconds=0.05))
    given = lines(provider, tmp_path)
    staged = provider.stage(given, "ours-0")
    assert ended(provider, provider.create("ours-0", staged, None)).completed == 3


# End to end
# ──────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("model", ["gemini:gemini-2.0-flash", "gemini:gemma-3-27b-it"])
def test_other_families_of_models_are_asked_in_their_own_way(start_emulator, model):
    labelled(start_emulator(), model, api_key=f"env:{KEY}", batch_size=2, system_prompt="Be kind.")


@pytest.mark.parametrize("mode", ["online", "batch_api"])
@pytest.mark.parametrize("batch_size", [1, 2])
def test_a_pipeline_answers_every_record_once_with_usage_and_cost(
    start_emulator, tmp_path, mode, batch_size
):
    emulator = start_emulator(batch_seconds=0.05)
    options = {"mode": mode, "staging_location": str(tmp_path), "batch_size": batch_size}
    found = labelled(emulator, MODEL, api_key=f"env:{KEY}", **options)
    assert emulator.billed == dict.fromkeys(REVIEWS, 1)
    for each in found:
        assert (each.error, each.model) == (None, "gemini-2.5-flash")
        assert each.finish_reason == "STOP"
        assert each.usage.input_tokens > 0
    whole = Usage(*map(sum, zip(*(each.usage for each in found), strict=True)))
    price = Prices.of(settings(MODEL)).cost_usd(whole, mode == "batch_api")
    assert sum(each.cost_usd for each in found) == pytest.approx(price)


@pytest.mark.parametrize(
    "fault",
    [
        Fault("expire", nth=1, done=2),
        Fault("validation", nth=1, lines=(1,), code="INTERNAL", message="Internal error"),
    ],
    ids=["expired", "failed by itself"],
)
def test_what_a_job_lost_as_a_whole_is_asked_again(start_emulator, tmp_path, fault):
    emulator = start_emulator(faults=[fault], batch_seconds=0.05)
    options = {"mode": "batch_api", "staging_location": str(tmp_path)}
    labelled(emulator, MODEL, api_key=f"env:{KEY}", **options)
    assert len(emulator.jobs) == 2


@pytest.mark.parametrize("place", ["create", "validation"])
def test_jobs_wait_for_room_in_the_queue_of_tokens(start_emulator, tmp_path, place, caplog):
    caplog.set_level("INFO", "beam_llm.jobs")
    emulator = start_emulator(enqueued_token_limit=150, enqueued_limit_at=place, batch_seconds=0.6)
    options = {"mode": "batch_api", "staging_location": str(tmp_path), "job_max_records": 1}
    labelled(emulator, MODEL, api_key=f"env:{KEY}", **options)
    assert emulator.billed == dict.fromkeys(REVIEWS, 1)
    assert "Enqueued token limit reached" in caplog.text


def test_no_more_jobs_are_under_way_than_gemini_takes(tmp_path, monkeypatch):
    monkeypatch.setattr("beam_llm.testing.emulator.gemini.MOST_JOBS", 1)
    monkeypatch.setenv("GEMINI_API_KEY", "k")
    with Emulator(batch_seconds=0.2) as emulator:
        jobs = {"mode": "batch_api", "staging_location": str(tmp_path), "job_max_records": 1}
        labelled(emulator, MODEL, **jobs)
        assert len(emulator.jobs) == len(REVIEWS)
