"""Amazon Bedrock: its provider and the emulator's dialect keep the contracts, official boto3 drives
the same dialect, and no reply, line or job can raise past its own record.
"""

from __future__ import annotations

import asyncio
import dataclasses
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import apache_beam as beam
import boto3
import orjson
import pytest
from botocore.exceptions import ClientError

from beam_llm import LLMPredict, providers
from beam_llm.config import Settings, settings
from beam_llm.errors import Aborted, CallError, CannotTell, Rejected, Retryable, UsageError
from beam_llm.pricing import Prices
from beam_llm.protocols import BatchProvider, CompletionProvider, Recovery, RemoteJob
from beam_llm.providers.bedrock import batches as bedrock_batches
from beam_llm.testing import Emulator, Fault
from beam_llm.testing.contracts import BatchProviderContract, CompletionProviderContract
from beam_llm.testing.contracts.batches import Mishap, emulator_options
from beam_llm.testing.contracts.completions import Situation, emulator_fault
from beam_llm.values import Completion, JobState, Message, Request, Usage
from tests.collecting import Collect

MODEL = "bedrock:anthropic.claude-haiku-4-5-20251001-v1:0"
ROLE = "arn:aws:iam::123456789012:role/batches"


class TestBedrock(CompletionProviderContract):
    @pytest.fixture(autouse=True)
    def _server(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        with Emulator(keys=(self.key,)) as self.emulator:
            for name, value in self.emulator.environment_of("bedrock").items():
                monkeypatch.setenv(name, value)
            yield

    def provider(self) -> CompletionProvider:
        return providers.connect(settings(MODEL, max_reply_bytes=1_000_000))

    def arrange(self, situation: Situation) -> None:
        self.emulator.set_faults(*emulator_fault(situation))


class TestBedrockBatches(BatchProviderContract):
    """Against the emulator, whose clock can be moved on."""

    ahead = 0.0

    @pytest.fixture(autouse=True)
    def _emulators(self, s3_location: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        self.location, self.patch = s3_location, monkeypatch
        with ExitStack() as self.stack:
            yield

    def arrange(self, *mishaps: Mishap) -> None:
        options = emulator_options(*mishaps, key=self.key)
        self.emulator = self.stack.enter_context(
            Emulator(keys=(self.key,), clock=self.now, batch_seconds=0.2, **options)
        )
        for name, value in self.emulator.environment_of("bedrock").items():
            self.patch.setenv(name, value)

    def provider(self) -> BatchProvider:
        client = providers.connect_batch(batch_settings(self.location))
        self.stack.callback(client.close)
        return client

    def jobs_made(self) -> Sequence[str]:
        return [job["jobArn"] for job in self.emulator.jobs]

    def now(self) -> float:
        return time.time() + self.ahead

    def pass_time(self, seconds: float) -> None:
        self.ahead += seconds
        time.sleep(0.02)  # the emulator's work takes time of its own

    def test_its_rung_is_that_of_tokens(self) -> None:
        self.arrange()
        assert self.provider().traits.recovery is Recovery.TOKEN


# The official SDK


@pytest.fixture
def emulator(s3_location: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Emulator]:
    """A server that `AWS_…` leads to, and whose jobs' files are in the test's bucket."""
    with Emulator(keys=("AKIDTEST",), batch_seconds=0.2) as running:
        for name, value in running.environment_of("bedrock").items():
            monkeypatch.setenv(name, value)
        yield running


@pytest.fixture
def aws() -> Iterator[Callable[[str], Any]]:
    """Official clients by service, closed in the end."""
    # A session of its own: boto3's usual one keeps the credentials of the first test in the process.
    session = boto3.Session()
    with ExitStack() as stack:
        yield lambda service: stack.enter_context(closing(session.client(service)))


def ask(text: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": [{"text": text}]}]}


@pytest.mark.parametrize(
    "model",
    [
        "amazon.nova-lite-v1:0",
        "us.anthropic.claude-haiku-4-5-20251001-v1:0",
        "arn:aws:bedrock:us-east-1:123456789012:inference-profile/us.amazon.nova-lite-v1:0",
    ],
    ids=["id", "profile", "ARN"],
)
def test_boto3_converses_with_the_emulator_and_so_do_we(
    aws: Any, emulator: Emulator, model: str
) -> None:
    client = aws("bedrock-runtime")
    reply = client.converse(modelId=model, **ask("Is it positive or negative:\nI love it"))
    assert reply["output"]["message"]["content"] == [{"text": "positive"}]
    assert reply["stopReason"] == "end_turn"
    completion = completed(
        settings(f"bedrock:{model}"),
        Request(model, (Message("user", "Is it positive or negative:\nI love it"),)),
    )
    assert (completion.text, completion.model) == ("positive", model)
    assert completion.request_id
    assert emulator.billed == {"I love it": 2}
    assert emulator.requests[0] == emulator.requests[1]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"inferenceConfig": {"temperature": 1.5}}, "ValidationException", "temperature"),
        ({"messages": []}, "ValidationException", "user message"),
    ],
    ids=["temperature", "no message"],
)
def test_what_converse_refuses_the_emulator_refuses_by_name(
    aws: Any, emulator: Emulator, change: dict[str, Any], error: str, message: str
) -> None:
    client = aws("bedrock-runtime")
    with pytest.raises(Exception, match=message) as caught:
        client.converse(**{"modelId": "amazon.nova-lite-v1:0", **ask("hello"), **change})
    assert type(caught.value).__name__ == error


def test_an_unknown_field_or_a_call_without_a_signature_is_refused(emulator: Emulator) -> None:
    url = f"{emulator.url}/bedrock/model/m/converse"
    request = urllib.request.Request(url, b"{}", {"Content-Type": "application/json"})
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(request, timeout=10)
    with caught.value as answer:
        assert answer.headers["x-amzn-errortype"].startswith("MissingAuthenticationToken")
    with pytest.raises(Rejected, match=r"extraneous key \[topK\]"):
        completed(
            settings(MODEL, extra_body={"topK": 5}),
            Request("m", (Message("user", "hello"),), extra={"topK": 5}),
        )


def test_a_wrong_secret_is_found_out_and_ends_all_calls(
    emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "another-secret")
    with pytest.raises(Aborted, match="InvalidSignatureException"):
        completed(settings(MODEL), Request("m", (Message("user", "hello"),)))


def test_boto3_runs_a_job_over_s3_and_its_token_makes_one(
    aws: Any, emulator: Emulator, s3_location: str
) -> None:
    bucket, s3, client = s3_location.split("/")[2], aws("s3"), aws("bedrock")
    lines = [{"recordId": f"r{n}", "modelInput": ask(f"Is it good:\ntext {n}")} for n in range(3)]
    s3.put_object(Bucket=bucket, Key="in.jsonl", Body=b"\n".join(map(orjson.dumps, lines)))
    asked = {
        "jobName": "job-1.a",
        "roleArn": ROLE,
        "clientRequestToken": "token-1",
        "modelId": "amazon.nova-lite-v1:0",
        "inputDataConfig": {"s3InputDataConfig": {"s3Uri": f"s3://{bucket}/in.jsonl"}},
        "outputDataConfig": {"s3OutputDataConfig": {"s3Uri": f"s3://{bucket}/out/"}},
        "modelInvocationType": "Converse",
    }
    job_id = client.create_model_invocation_job(**asked)["jobArn"]
    assert client.create_model_invocation_job(**asked)["jobArn"] == job_id
    states: list[str] = []
    while (job := client.get_model_invocation_job(jobIdentifier=job_id))["status"] != "Completed":
        states += [job["status"]] if job["status"] not in states else []
        time.sleep(0.02)
    assert set(states) <= {"Validating", "InProgress"}
    assert (job["totalRecordCount"], job["successRecordCount"], job["errorRecordCount"]) == (
        3,
        3,
        0,
    )
    (listed,) = client.list_model_invocation_jobs(nameContains="job-1")["invocationJobSummaries"]
    assert listed["jobArn"] == job_id
    names = [entry["Key"] for entry in s3.list_objects_v2(Bucket=bucket, Prefix="out/")["Contents"]]
    short = job_id.rpartition("/")[2]
    assert names == [f"out/{short}/in.jsonl.out", f"out/{short}/manifest.json.out"]
    body = s3.get_object(Bucket=bucket, Key=names[0])["Body"].read()
    replies = [orjson.loads(line) for line in body.splitlines()]
    assert {line["recordId"] for line in replies} == {"r0", "r1", "r2"}
    assert all(line["modelOutput"]["usage"]["outputTokens"] for line in replies)
    assert set(emulator.billed.values()) == {1}


@pytest.mark.parametrize(
    ("line", "state"),
    [
        ({"modelInput": ask("Is it good:\nyes")}, "Completed"),
        ({"recordId": "r0"}, "Failed"),
        (["r0"], "Failed"),
    ],
    ids=["without an id", "without an input", "no object"],
)
def test_a_job_that_a_list_shows_as_ended_has_its_results_or_says_what_is_wrong(
    aws: Any, emulator: Emulator, s3_location: str, line: Any, state: str
) -> None:
    bucket, s3, client = s3_location.split("/")[2], aws("s3"), aws("bedrock")
    s3.put_object(Bucket=bucket, Key="in.jsonl", Body=orjson.dumps(line))
    client.create_model_invocation_job(
        jobName="job",
        roleArn=ROLE,
        modelId="amazon.nova-lite-v1:0",
        inputDataConfig={"s3InputDataConfig": {"s3Uri": f"s3://{bucket}/in.jsonl"}},
        outputDataConfig={"s3OutputDataConfig": {"s3Uri": f"s3://{bucket}/listed/"}},
        modelInvocationType="Converse",
    )

    def listed() -> Any:
        (job,) = client.list_model_invocation_jobs()["invocationJobSummaries"]
        return job

    while (job := listed())["status"] not in ("Completed", "Failed"):
        time.sleep(0.02)
    assert job["status"] == state
    found = s3.list_objects_v2(Bucket=bucket, Prefix="listed/").get("Contents", [])
    assert len(found) == (2 if state == "Completed" else 0)
    if state == "Failed":
        assert "Line 1 of the input" in job["message"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"jobName": "a b"}, "jobName"),
        ({"clientRequestToken": "a.b"}, "clientRequestToken"),
        ({"roleArn": "arn:aws:iam::1:user/me"}, "roleArn"),
        ({"modelInvocationType": "InvokeModel"}, "only Claude's and Titan's"),
    ],
)
def test_a_job_that_bedrock_would_refuse_is_refused(
    aws: Any, emulator: Emulator, s3_location: str, change: dict[str, Any], message: str
) -> None:
    place = {"s3Uri": f"{s3_location}/x"}
    asked = {
        "jobName": "job",
        "roleArn": ROLE,
        "modelId": "m",
        "inputDataConfig": {"s3InputDataConfig": place},
        "outputDataConfig": {"s3OutputDataConfig": place},
        **change,
    }
    with pytest.raises(ClientError, match=message):
        aws("bedrock").create_model_invocation_job(**asked)


def test_a_job_of_too_few_records_fails_as_at_bedrock(
    s3_location: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with ExitStack() as stack:
        running = Emulator(keys=("AKIDTEST",), batch_seconds=0.0, min_batch_requests=100)
        stack.enter_context(running)
        for name, value in running.environment_of("bedrock").items():
            monkeypatch.setenv(name, value)
        provider = stack.enter_context(
            closing(providers.connect_batch(batch_settings(s3_location)))
        )
        (tmp_path / "lines").write_bytes(
            provider.encode_line("r-1", Request(MODEL, (Message("user", "hello"),))) + b"\n"
        )
        job = provider.create("few-0", provider.stage(tmp_path / "lines", "few-0"), None)
        while not (job := provider.look(job.job_id)).state.has_ended:
            time.sleep(0.02)
    assert job.state is JobState.FAILED
    assert "less records (1) than the required minimum of: 100" in job.errors[0][1]
    assert job.cause is None


@pytest.fixture
def batches(emulator: Emulator, s3_location: str, tmp_path: Path) -> Iterator[Any]:
    """A client, and a function that creates a job of one line under a name."""
    client = providers.connect_batch(batch_settings(s3_location))

    def made(name: str) -> RemoteJob:
        line = client.encode_line("r-1", Request(MODEL, (Message("user", "hello"),)))
        (tmp_path / "lines").write_bytes(line + b"\n")
        return client.create(name, client.stage(tmp_path / "lines", name), None)

    yield client, made
    client.close()


LONG = f"0123456789ab-7.{'.'.join('ab' * 20)}-0123456789ab"


def test_jobs_are_found_by_the_beginning_of_their_name_however_long(batches: Any) -> None:
    client, made = batches
    jobs = {name: made(name).job_id for name in ("a-0", "a-1", "b-0", f"{LONG}-0", f"{LONG}-1")}
    for begin in ("a", "b", LONG):
        wanted = [job_id for name, job_id in jobs.items() if name.startswith(f"{begin}-")]
        found = client.find(begin, None, time.time())
        assert sorted(job.job_id for job in found) == sorted(wanted)
    assert client.find("nobody", None, time.time()) == []
    assert len(client.pending()) <= len(jobs)


def test_jobs_that_can_not_be_listed_are_a_doubt(batches: Any, emulator: Emulator) -> None:
    client, made = batches
    made("a-0")
    emulator.set_faults(Fault("poison", where="list", status=403))
    with pytest.raises(CannotTell, match="jobs can't be listed here"):
        client.find("a", None, time.time())


@pytest.mark.parametrize("exists", [True, False], ids=["it is there", "it is not"])
def test_a_conflict_of_a_create_is_about_the_job_that_there_is(
    batches: Any, emulator: Emulator, monkeypatch: pytest.MonkeyPatch, exists: bool
) -> None:
    made = batches[1]
    job = made("a-0" if exists else "b-0")
    monkeypatch.setattr(bedrock_batches, "token_of", lambda name: "forgotten")
    fault = Fault("poison", where="create", status=400, code="ConflictException", message="in use")
    emulator.set_faults(fault)
    if exists:
        assert made("a-0").job_id == job.job_id
    else:
        with pytest.raises(Retryable, match="in use"):
            made("a-0")


def test_the_last_line_of_a_result_file_ends_though_bedrock_leaves_it_open(
    aws: Any, batches: Any, s3_location: str, tmp_path: Path
) -> None:
    client, _ = batches
    bucket = s3_location.split("/")[2]
    for name, body in (("a.jsonl.out", b'{"a":1}\n{"b":2}'), ("b.jsonl.out", b'{"c":3}\n')):
        aws("s3").put_object(Bucket=bucket, Key=f"out/{name}", Body=body)
    aws("s3").put_object(Bucket=bucket, Key="out/manifest.json.out", Body=b"{}")
    job = RemoteJob("x", JobState.COMPLETED, result_files=(f"s3://{bucket}/out/",))
    client.fetch(job, tmp_path / "results")
    assert (tmp_path / "results").read_bytes() == b'{"a":1}\n{"b":2}\n{"c":3}\n'


def test_no_job_gets_objects_of_others_removed(aws: Any, batches: Any, s3_location: str) -> None:
    """It says itself where its results are."""
    client, _ = batches
    bucket, prefix = s3_location.removeprefix("s3://").split("/")
    ours = [f"{prefix}/bedrock/a-0/1/in.jsonl.out", f"{prefix}/bedrock/a-0/input.jsonl"]
    others = ["theirs/1/in.jsonl.out", "theirs/input.jsonl"]
    for key in ours + others:
        aws("s3").put_object(Bucket=bucket, Key=key, Body=b"{}\n")
    for key in (f"{prefix}/bedrock/a-0", "theirs"):
        folder = f"s3://{bucket}/{key}"
        job = RemoteJob("1", JobState.COMPLETED, result_files=(f"{folder}/1/",))
        client.forget(job, f"{folder}/input.jsonl")
    left = aws("s3").list_objects_v2(Bucket=bucket)["Contents"]
    assert [entry["Key"] for entry in left] == others


def test_a_list_of_result_files_without_an_end_is_not_a_shorter_one(
    batches: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    client, _ = batches
    page = {"Contents": [{"Key": "out/a"}, {"Size": 1}], "NextContinuationToken": "again"}
    s3 = SimpleNamespace(list_objects_v2=lambda **query: page, close=lambda: None)
    monkeypatch.setattr(boto3.Session, "client", lambda session, service, **options: s3)
    job = RemoteJob("1", JobState.COMPLETED, result_files=("s3://bucket/out/",))
    with pytest.raises(CallError, match="has no end"):
        client.fetch(job, tmp_path / "results")


def test_a_result_file_that_is_larger_than_its_bound_is_refused(
    aws: Any, emulator: Emulator, s3_location: str, tmp_path: Path
) -> None:
    bucket = s3_location.split("/")[2]
    aws("s3").put_object(Bucket=bucket, Key="out/a.jsonl.out", Body=b"x" * 20_000)
    known = dataclasses.replace(batch_settings(s3_location), max_file_bytes=10_000)
    client = providers.connect_batch(known)
    job = RemoteJob("x", JobState.COMPLETED, result_files=(f"s3://{bucket}/out/",))
    with pytest.raises(Rejected, match="max_file_bytes"):
        client.fetch(job, tmp_path / "results")
    client.close()


def test_a_bucket_that_is_not_there_ends_all_jobs(
    emulator: Emulator, s3_location: str, tmp_path: Path
) -> None:
    lines = tmp_path / "lines"
    lines.write_bytes(b"{}\n")
    client = providers.connect_batch(batch_settings("s3://there-is-none/x"))
    with closing(client), pytest.raises(Aborted, match="NoSuchBucket"):
        client.stage(lines, "job-0")


@pytest.mark.parametrize(("hours", "asked"), [(None, 24), (2.5, 24), (30.2, 31), (1_000, 168)])
def test_a_job_may_take_as_long_as_it_is_waited_for_within_bedrocks_bounds(
    hours: float | None, asked: int
) -> None:
    known = settings(
        MODEL,
        mode="batch_api",
        staging_location="s3://bucket/x",
        job_deadline_hours=hours,
        provider_options={"region": "us-east-1", "role_arn": ROLE},
    )
    traits = providers.connect_batch(known).traits
    assert traits.window_seconds == asked * 3_600
    assert traits.min_requests == 100
    assert "go as live calls" in traits.caveats[0]


# A pipeline, both ways

REVIEWS = [
    {"text": f"lamp {number}, {mood}"}
    for number, mood in enumerate(["great and lovely", "awful, I hate it", "it is blue"] * 8)
]
MOODS = ["positive", "negative", "neutral"] * 8


NOVA = "bedrock:amazon.nova-lite-v1:0"


@pytest.mark.parametrize("batch_size", [1, 5])
@pytest.mark.parametrize(
    ("model", "mode", "kind"),
    [
        (MODEL, "online", "Converse"),
        (MODEL, "batch_api", "Converse"),
        (MODEL, "batch_api", "InvokeModel"),
        (NOVA, "online", "Converse"),
        (NOVA, "batch_api", "Converse"),
    ],
    ids=["claude", "claude by Converse", "claude by InvokeModel", "nova", "nova by Converse"],
)
def test_a_pipeline_gets_every_record_once_with_its_usage_and_cost(
    emulator: Emulator, s3_location: str, mode: str, batch_size: int, model: str, kind: str
) -> None:
    batch = {
        "mode": "batch_api",
        "staging_location": s3_location,
        "poll_seconds": 0.05,
        "provider_options": {"role_arn": ROLE, "min_records": 1, "invocation_type": kind},
    }
    found = Collect()
    with beam.Pipeline() as p:
        _ = (
            p
            | beam.Create(REVIEWS)
            | LLMPredict(
                model,
                "Classify the sentiment of this review:\n{{ text }}",
                output=Literal["positive", "negative", "neutral"],
                batch_size=batch_size,
                **(batch if mode == "batch_api" else {}),
            )
            | found
        )
    answers = {each.element["text"]: each for each in found.found}
    assert [answers[review["text"]].value for review in REVIEWS] == MOODS
    assert len(found.found) == len(REVIEWS)
    assert all(each.error is None and each.cost_usd for each in found.found)
    assert sum(each.usage.output_tokens for each in found.found) > 0
    assert emulator.billed == dict.fromkeys([review["text"] for review in REVIEWS], 1)
    kinds = [job["modelInvocationType"] for job in emulator.jobs]
    assert kinds == ([kind] if mode == "batch_api" else [])


def test_lines_that_are_refused_for_their_form_are_answered_in_another_by_live_calls(
    emulator: Emulator, s3_location: str
) -> None:
    """A model whose name tells nothing, and that has no structured outputs."""
    found = Collect()
    with beam.Pipeline() as p:
        _ = (
            p
            | beam.Create(REVIEWS)
            | LLMPredict(
                "bedrock:tuned.llama-of-ours-v1:0",
                "Classify the sentiment of this review:\n{{ text }}",
                output=Literal["positive", "negative", "neutral"],
                batch_size=4,
                mode="batch_api",
                staging_location=s3_location,
                poll_seconds=0.05,
                provider_options={"role_arn": ROLE, "min_records": 1},
            )
            | found
        )
    answers = {each.element["text"]: each for each in found.found}
    assert [answers[review["text"]].value for review in REVIEWS] == MOODS
    assert emulator.billed == dict.fromkeys([review["text"] for review in REVIEWS], 1)


def test_by_batch_api_it_costs_half(emulator: Emulator, s3_location: str) -> None:
    prices = Prices.of(settings(MODEL))
    usage = Usage(1_000, 100)
    live, batch = prices.cost_usd(usage), prices.cost_usd(usage, True)
    assert live
    assert batch == pytest.approx(live / 2)


def test_less_than_a_hundred_records_go_live_though_a_job_was_asked_for(
    emulator: Emulator, s3_location: str, caplog: pytest.LogCaptureFixture
) -> None:
    found = Collect()
    with beam.Pipeline() as p:
        _ = (
            p
            | beam.Create(REVIEWS)
            | LLMPredict(
                MODEL,
                "Classify the sentiment of this review:\n{{ text }}",
                output=Literal["positive", "negative", "neutral"],
                mode="batch_api",
                staging_location=s3_location,
                poll_seconds=0.05,
                provider_options={"role_arn": ROLE},
            )
            | found
        )
    assert all(each.error is None for each in found.found)
    assert emulator.jobs == []
    assert emulator.calls == len(REVIEWS)
    assert "takes no job of less than 100" in caplog.text


def batch_settings(location: str, **options: Any) -> Settings:
    return settings(
        MODEL,
        mode="batch_api",
        staging_location=location,
        provider_options={"role_arn": ROLE, **options},
    )


def completed(known: Settings, request: Request) -> Completion:
    async def call() -> Completion:
        provider = providers.connect(known)
        try:
            return await provider.complete(request, 30.0)
        finally:
            await provider.close()

    return asyncio.run(call())


def test_no_credentials_are_sent_over_plain_http() -> None:
    with pytest.raises(UsageError, match="credentials over plain http"):
        providers.check(
            settings("bedrock:amazon.nova-lite-v1:0", base_url="http://proxy.example:8080")
        )
