"""The providers' own clients find their provider in the emulator: its dialects are the true ones, as
far as these clients know them.
"""

from __future__ import annotations

import io
import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import groq
import openai
import pytest
from mistralai.client import Mistral
from mistralai.client.errors import HTTPValidationError, SDKError

from beam_llm.testing import Emulator, Fault

ASK: Any = [{"role": "user", "content": "Is it positive or negative:\nI love it"}]


@pytest.fixture
def emulator() -> Iterator[Emulator]:
    with Emulator(batch_seconds=0.1) as emulator:
        yield emulator


def until(look: Callable[[], Any], has_ended: Callable[[Any], bool]) -> Any:
    for _ in range(400):
        job = look()
        if has_ended(job):
            return job
        time.sleep(0.02)
    raise AssertionError("the job does not end")


def lines_of(*bodies: dict[str, Any], **fields: Any) -> bytes:
    lines = [{"custom_id": f"r-{n}", **fields, "body": body} for n, body in enumerate(bodies)]
    return b"\n".join(json.dumps(line).encode() for line in lines)


# Mistral
# --------------------------------------------------------------------------------------------------


@pytest.fixture
def mistral(emulator: Emulator) -> Iterator[Mistral]:
    found = emulator.environment_of("mistral")
    server_url, key = found["MISTRAL_BASE_URL"], found["MISTRAL_API_KEY"]
    with Mistral(api_key=key, server_url=server_url) as client:
        yield client


def test_mistrals_client_is_answered(mistral: Mistral) -> None:
    reply = mistral.chat.complete(
        model="mistral-small-latest", messages=ASK, random_seed=7, safe_prompt=True
    )
    assert reply.choices[0].message.content == "positive"
    assert reply.usage.total_tokens == reply.usage.prompt_tokens + reply.usage.completion_tokens


def test_mistrals_client_is_told_what_is_wrong_and_where(
    mistral: Mistral, emulator: Emulator
) -> None:
    with pytest.raises(HTTPValidationError, match="less than or equal to"):
        mistral.chat.complete(model="m", messages=ASK, temperature=1.9)
    emulator.set_faults(Fault("unauthorized"))
    with pytest.raises(SDKError, match="Invalid API Key"):
        mistral.chat.complete(model="m", messages=ASK)


def test_mistrals_client_runs_a_job(mistral: Mistral, emulator: Emulator) -> None:
    good, bad = {"messages": ASK}, {"messages": ASK, "temperature": 9}
    file: Any = {"file_name": "in.jsonl", "content": lines_of(good, bad)}
    uploaded = mistral.files.upload(file=file, purpose="batch")
    job = mistral.batch.jobs.create(
        input_files=[uploaded.id],
        model="mistral-small-latest",
        endpoint="/v1/chat/completions",
        metadata={"ours": "1"},
    )
    assert (job.status, job.total_requests) == ("QUEUED", 0)
    job = until(lambda: mistral.batch.jobs.get(job_id=job.id), lambda job: job.output_file)
    assert (job.status, job.total_requests, job.completed_requests) == ("SUCCESS", 2, 2)
    assert (job.succeeded_requests, job.failed_requests) == (1, 1)
    assert [one.id for one in mistral.batch.jobs.list().data or ()] == [job.id]
    answered = json.loads(mistral.files.download(file_id=job.output_file).read())
    assert answered["response"]["body"]["choices"][0]["message"]["content"] == "positive"
    failed = json.loads(mistral.files.download(file_id=job.error_file).read())
    assert failed["response"]["status_code"] == 422
    assert json.loads(failed["response"]["body"])["object"] == "error"
    assert failed["error"] is None


# Groq
# --------------------------------------------------------------------------------------------------


@pytest.fixture
def groq_client(emulator: Emulator) -> Iterator[groq.Groq]:
    found = emulator.environment_of("groq")
    base_url = found["GROQ_BASE_URL"].removesuffix("/openai/v1")  # which this client adds itself
    with groq.Groq(base_url=base_url, api_key=found["GROQ_API_KEY"], max_retries=0) as client:
        yield client


def test_groqs_client_is_answered(groq_client: groq.Groq) -> None:
    reply = groq_client.chat.completions.create(
        model="openai/gpt-oss-20b", messages=ASK, service_tier="flex"
    )
    assert reply.choices[0].message.content == "positive"
    assert reply.service_tier == "flex"


def test_groqs_client_is_told_of_full_capacity_and_of_schemas_that_a_model_has_not(
    groq_client: groq.Groq, emulator: Emulator
) -> None:
    schema: Any = {"type": "json_schema", "json_schema": {"name": "a", "schema": {}}}
    with pytest.raises(groq.BadRequestError, match="does not support response format"):
        groq_client.chat.completions.create(
            model="llama-3.1-8b-instant", messages=ASK, response_format=schema
        )
    emulator.set_faults(Fault("server_error", status=498))
    with pytest.raises(groq.APIStatusError) as refused:
        groq_client.chat.completions.create(model="m", messages=ASK)
    assert refused.value.status_code == 498


def test_groqs_client_runs_a_job(groq_client: groq.Groq) -> None:
    data = lines_of({"model": "m", "messages": ASK}, method="POST", url="/v1/chat/completions")
    uploaded = groq_client.files.create(file=("in.jsonl", io.BytesIO(data)), purpose="batch")
    asked: Any = {"endpoint": "/v1/chat/completions", "input_file_id": uploaded.id}
    with pytest.raises(groq.BadRequestError, match="between 24h and 7d"):
        groq_client.batches.create(completion_window="8d", **asked)
    job = groq_client.batches.create(completion_window="7d", metadata={"ours": "1"}, **asked)
    job = until(lambda: groq_client.batches.retrieve(job.id), lambda job: job.status == "completed")
    assert [one.metadata for one in groq_client.batches.list().data] == [{"ours": "1"}]
    assert b"positive" in groq_client.files.content(str(job.output_file_id)).read()


# OpenAI's client at the others' addresses
# --------------------------------------------------------------------------------------------------


def openai_at(emulator: Emulator, name: str) -> openai.OpenAI:
    found = emulator.environment_of(name)
    base_url, key = found[f"{name.upper()}_BASE_URL"], found[f"{name.upper()}_API_KEY"]
    return openai.OpenAI(base_url=base_url, api_key=key, max_retries=0)


@pytest.mark.parametrize("name", ["together", "openrouter", "fireworks", "deepinfra", "xai"])
def test_openais_client_is_answered_at_the_others_addresses(emulator: Emulator, name: str) -> None:
    with openai_at(emulator, name) as client:
        reply = client.chat.completions.create(model="a/model:free", messages=ASK)
    assert reply.choices[0].message.content == "positive"
    assert reply.model == "a/model:free"


@pytest.mark.parametrize("name", ["deepinfra"])
def test_openais_client_runs_a_job_at_the_others_addresses(emulator: Emulator, name: str) -> None:
    data = lines_of({"model": "m", "messages": ASK}, method="POST", url="/v1/chat/completions")
    with openai_at(emulator, name) as client:
        uploaded = client.files.create(file=("in.jsonl", io.BytesIO(data)), purpose="batch")
        job = client.batches.create(
            input_file_id=uploaded.id, endpoint="/v1/chat/completions", completion_window="24h"
        )
        job = until(lambda: client.batches.retrieve(job.id), lambda job: job.status == "completed")
        assert b"positive" in client.files.content(str(job.output_file_id)).read()


def test_a_wrong_key_is_refused_in_each_providers_own_way() -> None:
    ways: dict[str, tuple[int, str]] = {
        "together": (401, "Incorrect API key"),
        "openrouter": (401, "Incorrect API key"),
        "xai": (400, "Incorrect API key provided"),
    }
    with Emulator(keys=("the-key",)) as emulator:
        for name, (status, words) in ways.items():
            with openai_at(emulator, name) as client:
                wrong = client.with_options(api_key="another")
                with pytest.raises(openai.APIStatusError) as refused:
                    wrong.chat.completions.create(model="m", messages=ASK)
            assert refused.value.status_code == status
            assert words in refused.value.response.text


def test_a_field_that_groq_has_not_is_refused_by_name(groq_client: groq.Groq) -> None:
    with pytest.raises(groq.BadRequestError, match="property 'top_k' is unsupported"):
        groq_client.chat.completions.create(model="m", messages=ASK, extra_body={"top_k": 5})
