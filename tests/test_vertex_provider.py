"""Vertex AI: the contracts of live calls and of batches, Google's own client on the same wire, its
credentials, and the results in a bucket.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import apache_beam as beam
import hypothesis
import orjson
import pytest
from google import genai
from google.api_core import exceptions as api_errors
from google.auth import exceptions as google_errors
from google.genai import types
from google.oauth2 import credentials as oauth2
from hypothesis import strategies as st

from beam_llm import LLMPredict, SubmitBatchJobs, UsageError, providers, stores
from beam_llm.cli.main import main
from beam_llm.config import settings
from beam_llm.errors import Aborted, CallError, Kind, Rejected
from beam_llm.protocols import Recovery, Store
from beam_llm.providers.gemini.lines import encode_line, line_reply
from beam_llm.providers.vertex import bucket_of
from beam_llm.providers.vertex.credentials import LEAST_SECONDS, RENEW_SECONDS, Tokens
from beam_llm.providers.vertex.objects import fetch_results, forget_input, job_name_in, put_input
from beam_llm.providers.vertex.place import Place
from beam_llm.testing import Emulator
from beam_llm.testing.contracts.completions import all_texts
from beam_llm.testing.fake_batches import FakeClock
from beam_llm.values import Completion, Message, Request
from tests.google_world import (
    ASK,
    REVIEWS,
    FolderBuckets,
    address,
    credentials_of,
    labelled,
    until_ended,
)
from tests.test_contracts import EmulatedBatchesContract as _EmulatedBatches
from tests.test_contracts import EmulatedCompletionsContract as _EmulatedCompletions
from tests.test_wire_properties import anything, paths, written
from tests.test_wire_properties import put as put_in

PLACE = {"project": "p-1", "region": "europe-west4"}


@pytest.fixture(autouse=True)
def buckets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FolderBuckets, "root", tmp_path / "buckets", raising=False)
    monkeypatch.setitem(stores.STORES, "gs", "tests.google_world:FolderBuckets")


class TestVertex(_EmulatedCompletions):
    def model(self) -> str:
        return "vertex:m"

    def address(self) -> dict[str, Any]:
        return {"base_url": address(self.emulator, "vertex"), "provider_options": PLACE}


class TestVertexBatches(_EmulatedBatches):
    def model(self) -> str:
        return "vertex:m"

    def address(self) -> dict[str, Any]:
        options = {**PLACE, "bucket": "gs://a-bucket/jobs"}
        return {"base_url": address(self.emulator, "vertex"), "provider_options": options}

    def jobs_made(self) -> Sequence[str]:
        return [job["name"] for job in self.emulator.jobs]

    def test_its_rung_is_that_of_labels(self) -> None:
        self.arrange()
        assert self.provider().traits.recovery is Recovery.LABEL


# Where it is, and what it needs
# ──────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("region", "url"),
    [
        (None, "https://aiplatform.googleapis.com/v1/projects/p-1/locations/global/"),
        ("global", "https://aiplatform.googleapis.com/v1/projects/p-1/locations/global/"),
        (
            "us-east5",
            "https://us-east5-aiplatform.googleapis.com/v1/projects/p-1/locations/us-east5/",
        ),
        ("eu", "https://aiplatform.eu.rep.googleapis.com/v1/projects/p-1/locations/eu/"),
    ],
)
def test_a_region_has_its_own_address(monkeypatch, region, url):
    monkeypatch.delenv("GOOGLE_CLOUD_LOCATION", raising=False)
    options = {"project": "p-1"} | ({"region": region} if region else {})
    place = Place.of(settings("vertex:gemini-2.5-flash", provider_options=options))
    assert place.live_url("gemini-2.5-flash", "generateContent") == (
        f"{url}publishers/google/models/gemini-2.5-flash:generateContent"
    )
    assert place.jobs_url() == f"{url}batchPredictionJobs"


def test_project_and_region_are_those_of_the_environment_unless_given(monkeypatch):
    monkeypatch.setenv("GOOGLE_CLOUD_PROJECT", "from-the-environment")
    monkeypatch.setenv("GOOGLE_CLOUD_LOCATION", "us-east5")
    known = settings("vertex:m", provider_options={"region": "eu"})
    assert known.provider_options == {"project": "from-the-environment", "region": "eu"}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "set GOOGLE_CLOUD_PROJECT"),
        ({"provider_options": {"project": "p", "regoin": "x"}}, "did you mean 'region'"),
        ({"provider_options": {"project": "p/../x"}}, "a name of letters"),
        (
            {"provider_options": PLACE, "base_url": "http://example.com"},
            "credentials over plain http",
        ),
        (
            {"provider_options": PLACE, "mode": "batch_api", "staging_location": "/tmp/x"},
            "write provider_options={'bucket': 'gs://bucket/path'}",
        ),
        (
            {
                "provider_options": {**PLACE, "bucket": "s3://x"},
                "mode": "batch_api",
                "staging_location": "gs://b/x",
            },
            "has 'bucket': 's3://x'",
        ),
        ({"provider_options": PLACE, "temperature": 2.1}, "between 0 and 2"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_what_vertex_ai_does_not_have_is_told_when_the_pipeline_is_built(
    monkeypatch, options, said
):
    monkeypatch.delenv("GOOGLE_CLOUD_PROJECT", raising=False)
    with pytest.raises(UsageError, match=re.escape(said)):
        LLMPredict("vertex:gemini-2.5-flash", "{{ text }}", **options)


@pytest.mark.parametrize("connect", [providers.connect, providers.connect_batch])
def test_no_client_is_made_that_would_send_credentials_in_the_clear(connect):
    known = settings(
        "vertex:m",
        provider_options={**PLACE, "bucket": "gs://b1/x"},
        base_url="http://127.0.0.1.example.com",
    )
    with pytest.raises(UsageError, match="plain http"):
        connect(known)


def test_a_staging_location_in_gs_is_bucket_enough():
    known = settings(
        "vertex:m", provider_options=PLACE, mode="batch_api", staging_location="gs://b1/x/"
    )
    providers.check(known)
    assert bucket_of(known) == "gs://b1/x"


# Credentials
# ──────────────────────────────────────────────────────────────────────────────────────────────────


class Credentials:
    """As google-auth's, whose tokens are numbered."""

    quota_project_id = "billed"

    def __init__(
        self, clock: FakeClock, fails: Exception | None = None, lasts_seconds: float = 3600
    ):
        self.clock, self.fails, self.lasts_seconds = clock, fails, lasts_seconds
        self.token, self.expiry, self.refreshed = "", None, 0
        self.threads: set[int] = set()

    def refresh(self, request: Any) -> None:
        self.threads.add(threading.get_ident())
        if self.fails is not None:
            raise self.fails
        self.refreshed += 1
        self.token = f"ya29.token-number-{self.refreshed}"
        ends_at = self.clock.time() + self.lasts_seconds
        self.expiry = datetime.fromtimestamp(ends_at, UTC).replace(tzinfo=None)


def test_a_token_is_fetched_once_and_renewed_before_it_ends_and_never_on_the_loop():
    clock = FakeClock()
    credentials = Credentials(clock)
    tokens = Tokens(lambda: credentials, clock.time)

    async def many() -> set[str | None]:
        return {token.value for token in await asyncio.gather(*(tokens.fresh() for _ in range(20)))}

    assert asyncio.run(many()) == {"ya29.token-number-1"}
    assert threading.get_ident() not in credentials.threads
    clock.sleep(3600 - RENEW_SECONDS - 1)
    assert asyncio.run(many()) == {"ya29.token-number-1"}
    clock.sleep(2)
    assert asyncio.run(many()) == {"ya29.token-number-2"}
    headers = tokens.fresh_blocking().headers
    assert headers["Authorization"] == "Bearer ya29.token-number-2"
    assert headers["x-goog-user-project"] == "billed"


def test_a_token_near_its_end_is_not_fetched_anew_for_each_call():
    clock = FakeClock()
    credentials = Credentials(clock, lasts_seconds=RENEW_SECONDS - 30)
    tokens = Tokens(lambda: credentials, clock.time)
    assert [tokens.fresh_blocking().value for _ in range(3)] == ["ya29.token-number-1"] * 3
    clock.sleep(LEAST_SECONDS)
    assert tokens.fresh_blocking().value == "ya29.token-number-2"


@pytest.mark.parametrize(
    ("fails", "kind"),
    [
        (google_errors.RefreshError("ya29.secret"), Kind.ABORTED),
        (google_errors.RefreshError("ya29.secret", retryable=True), Kind.UNAVAILABLE),
        (google_errors.TransportError("ya29.secret"), Kind.UNAVAILABLE),
        (google_errors.MutualTLSChannelError("ya29.secret"), Kind.ABORTED),
        (ValueError("ya29.secret"), Kind.ABORTED),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else value,
)
def test_credentials_that_fail_are_an_error_without_their_words(fails, kind):
    tokens = Tokens(lambda: Credentials(FakeClock(), fails))
    with pytest.raises(CallError) as caught:
        tokens.fresh_blocking()
    assert caught.value.kind == kind
    assert "secret" not in caught.value.message


def test_without_credentials_it_is_said_how_to_get_some(monkeypatch):
    def none(**_: Any) -> Any:
        raise google_errors.DefaultCredentialsError("none")

    monkeypatch.setattr("google.auth.default", none)
    with pytest.raises(Aborted, match="gcloud auth application-default login"):
        Tokens().fresh_blocking()


@pytest.mark.parametrize("content", [None, "", "[]", "{}"], ids=["a folder", "empty", "list", "{}"])
def test_a_file_without_credentials_is_named(tmp_path, monkeypatch, content):
    path = tmp_path / "account.json"
    path.mkdir() if content is None else path.write_text(content)
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(path))
    with pytest.raises(Aborted, match=r"account\.json"):
        Tokens().fresh_blocking()


def test_a_service_account_gets_its_token_and_the_call_goes_with_it(
    start_emulator, tmp_path, monkeypatch
):
    emulator = start_emulator(keys=("ya29.given-by-the-emulator",))
    with credentials_of(emulator, tmp_path, monkeypatch):
        assert answered(emulator).text == "positive"


def answered(emulator: Emulator, **options: Any) -> Completion:
    known = settings(
        "vertex:gemini-2.5-flash",
        base_url=address(emulator, "vertex"),
        provider_options=PLACE,
        **options,
    )

    async def ask() -> Completion:
        provider = providers.connect(known)
        try:
            return await provider.complete(Request("m", (Message("user", ASK),)), 30.0)
        finally:
            await provider.close()

    return asyncio.run(ask())


def test_a_service_tier_is_a_header_here(start_emulator):
    emulator = start_emulator()
    assert answered(emulator, api_key="env:HOME", service_tier="priority").text == "positive"
    assert "serviceTier" not in emulator.requests[0]


# Google's own client
# ──────────────────────────────────────────────────────────────────────────────────────────────────


@contextmanager
def client_of(emulator: Emulator) -> Iterator[genai.Client]:
    client = genai.Client(
        vertexai=True,
        project="p-1",
        location="europe-west4",
        credentials=oauth2.Credentials(token=emulator.api_key),
        http_options=types.HttpOptions(base_url=address(emulator, "vertex")),
    )
    yield client
    client.close()


def test_googles_client_asks_live():
    with Emulator() as emulator, client_of(emulator) as client:
        reply = client.models.generate_content(model="gemini-2.5-flash", contents=ASK)
        assert reply.text == "positive"
        assert reply.usage_metadata.traffic_type == types.TrafficType.ON_DEMAND


def test_googles_client_makes_a_batch_and_its_results_are_in_the_bucket():
    store = stores.store_at("gs://bucket/hers")
    request = {"contents": [{"role": "user", "parts": [{"text": ASK}]}]}
    store.put("in.jsonl", orjson.dumps({"request": request}) + b"\n")
    config = types.CreateBatchJobConfig(display_name="hers", dest="gs://bucket/hers/out")
    with Emulator() as emulator, client_of(emulator) as client:
        made = client.batches.create(
            model="gemini-2.5-flash", src="gs://bucket/hers/in.jsonl", config=config
        )
        ended = until_ended(client, made.name)
        assert ended.state == types.JobState.JOB_STATE_SUCCEEDED
        assert ended.completion_stats.successful_count == 1
        folder = stores.store_at(ended.output_info.gcs_output_directory)
        (name,) = folder.list("")
        found = orjson.loads(folder.get(name) or b"")
        assert found["request"] == request
        assert found["response"]["candidates"][0]["content"]["parts"] == [{"text": "positive"}]
        assert [job.name for job in client.batches.list()] == [made.name]


# Results in a bucket
# ──────────────────────────────────────────────────────────────────────────────────────────────────


def staged(count: int = 3, texts: Sequence[str] = ()) -> tuple[Store, Path]:
    """A job's input in a bucket, and a path for its results."""
    store = stores.store_at("gs://bucket/ours")
    root = FolderBuckets.root
    root.mkdir(parents=True, exist_ok=True)
    texts = texts or [f"Question {n}" for n in range(count)]
    lines = [
        encode_line(f"r-{n}", Request("m", (Message("user", text),)))
        for n, text in enumerate(texts)
    ]
    (root / "lines").write_bytes(b"\n".join([*lines, b""]))
    assert put_input(store, "job-0", root / "lines") == "gs://bucket/ours/job-0/input.jsonl"
    return store, root / "results"


def predicted(store: Store, *, labels: bool = True, keep: slice = slice(None)) -> list[bytes]:
    """What Vertex AI would write of the staged input, backwards."""
    found = []
    for line in (store.get("job-0/input.jsonl") or b"").split(b"\n")[:-1]:
        request = orjson.loads(line)["request"]
        if not labels:
            del request["labels"]
        text = request["contents"][0]["parts"][0]["text"]
        candidate = {"content": {"parts": [{"text": f"to {text}"}]}, "finishReason": "STOP"}
        found.append(orjson.dumps({"request": request, "response": {"candidates": [candidate]}}))
    return found[::-1][keep]


def put(
    store: Store, lines: Sequence[bytes], number: int = 1, below: str = "", end: bytes = b"\n"
) -> None:
    folder = stores.store_at(
        f"{store.location}/job-0/output/prediction-model-2026-11-29T15:00:00Z{below}"
    )
    folder.put(f"predictions_{number:05}.jsonl", b"\n".join(lines) + end)


def read(store: Store, path: Path, most: int = 10**6) -> dict[str, str | None]:
    fetch_results(store, "job-0", "job-0", path, most)
    replies = [line_reply(line) for line in path.read_bytes().split(b"\n")[:-1]]
    assert len({reply.custom_id for reply in replies}) == len(replies)
    return {reply.custom_id: reply.completion and reply.completion.text for reply in replies}


ALL = {f"r-{n}": f"to Question {n}" for n in range(3)}


@pytest.mark.parametrize("labels", [True, False], ids=["with labels", "labels dropped"])
def test_results_in_several_files_and_any_order_belong_to_their_requests(labels):
    store, path = staged()
    lines = predicted(store, labels=labels)
    put(store, lines[:2], 1)
    put(store, lines[2:], 2)
    assert read(store, path) == ALL


@pytest.mark.parametrize("end", [b"", b'\n{"request'], ids=["no newline", "a cut line"])
def test_the_last_line_of_one_file_does_not_run_into_the_first_of_the_next(end):
    store, path = staged()
    lines = predicted(store)
    put(store, lines[:1], 1, end=end)
    put(store, lines[1:], 2, end=end)
    assert told(store, path) == ["r-0", "r-1", "r-2"]


def test_what_was_written_on_the_way_is_read_only_where_the_whole_is_missing():
    store, path = staged()
    lines = predicted(store)
    put(store, lines[:1], below="/incremental_predictions")
    assert read(store, path) == {"r-2": "to Question 2"}
    put(store, lines)
    assert read(store, path) == ALL


def test_an_id_that_can_not_be_a_label_is_found_by_what_was_asked(tmp_path):
    store = stores.store_at("gs://bucket/ours")
    line = encode_line("A_z-9", Request("m", (Message("user", "Question 0"),)))
    FolderBuckets.root.mkdir(parents=True, exist_ok=True)
    (tmp_path / "lines").write_bytes(line + b"\n")
    put_input(store, "job-0", tmp_path / "lines")
    assert b"labels" not in (store.get("job-0/input.jsonl") or b"")
    (result,) = predicted_without_labels(store)
    put(store, [result])
    assert read(store, tmp_path / "results") == {"A_z-9": "to Question 0"}


def predicted_without_labels(store: Store) -> list[bytes]:
    line = orjson.loads((store.get("job-0/input.jsonl") or b"").split(b"\n")[0])
    candidate = {"content": {"parts": [{"text": "to Question 0"}]}, "finishReason": "STOP"}
    return [orjson.dumps({**line, "response": {"candidates": [candidate]}})]


def test_equal_questions_take_turns_where_labels_are_dropped():
    store, path = staged(texts=["the same", "the same", "another"])
    put(store, predicted(store, labels=False))
    assert read(store, path) == {"r-0": "to the same", "r-1": "to the same", "r-2": "to another"}


def test_a_line_of_nobodys_is_no_reply_and_a_label_of_nobodys_is_not_believed():
    store, path = staged()
    lines = predicted(store)
    foreign = orjson.loads(lines[0])
    foreign["request"] = {"labels": {"beam_llm": "r-99"}, "contents": []}
    put(store, [orjson.dumps(foreign), b"[]", b"{broken", *lines[1:]])
    assert told(store, path) == ["r-0", "r-1"]


def told(store: Store, path: Path) -> list[str]:
    """Whose results were told."""
    fetch_results(store, "job-0", "job-0", path, 10**6)
    found = []
    for line in path.read_bytes().split(b"\n")[:-1]:
        with contextlib.suppress(ValueError):
            found.append(line_reply(line).custom_id)
    return sorted(found)


def test_a_label_that_stands_beside_another_question_is_not_believed():
    store, path = staged()
    lines = [orjson.loads(line) for line in predicted(store)]
    lines[0]["request"]["labels"], lines[1]["request"]["labels"] = (
        lines[1]["request"]["labels"],
        lines[0]["request"]["labels"],
    )
    lines[2]["request"]["contents"] = [{"parts": [{"text": "as the server writes it"}]}]
    put(store, [orjson.dumps(line) for line in lines])
    assert told(store, path) == ["r-0"]


def test_results_have_a_bound_and_what_was_forgotten_is_gone():
    store, path = staged()
    put(store, predicted(store))
    with pytest.raises(Rejected, match="max_file_bytes"):
        read(store, path, 100)
    forget_input(store, "job-0")
    with pytest.raises(Rejected, match="index"):
        read(store, path)


@pytest.mark.parametrize(
    "uri",
    [
        "gs://another/ours/job-0/output",
        "gs://bucket/ours/../x/output",
        "gs://bucket/ours/a/b/output",
        "gs://bucket/ours/job-0/else",
        "gs://bucket/ours//output",
        None,
    ],
)
def test_results_are_read_from_our_own_part_of_the_bucket_only(uri):
    assert job_name_in(stores.store_at("gs://bucket/ours"), uri, "output") is None


class Refusing(FolderBuckets):
    error: Exception

    def get(self, name: str) -> bytes | None:
        raise self.error


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (api_errors.Forbidden("ya29.secret"), Kind.ABORTED),
        (api_errors.NotFound("ya29.secret"), Kind.ABORTED),
        (google_errors.DefaultCredentialsError("ya29.secret"), Kind.ABORTED),
        (google_errors.TransportError("ya29.secret"), Kind.UNAVAILABLE),
        (api_errors.ServiceUnavailable("ya29.secret"), Kind.UNAVAILABLE),
        (OSError("ya29.secret"), Kind.UNAVAILABLE),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else value,
)
def test_a_bucket_that_can_not_be_reached_is_an_error_without_its_words(error, kind, tmp_path):
    store = Refusing("gs://bucket/ours")
    store.error = error
    with pytest.raises(CallError) as caught:
        fetch_results(store, "job-0", "job-0", tmp_path / "results", 10**6)
    assert caught.value.kind == kind
    assert not [text for text in all_texts(caught.value) if "secret" in text]


# End to end
# ──────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("mode", ["online", "batch_api"])
@pytest.mark.parametrize("batch_size", [1, 2])
def test_a_pipeline_answers_every_record_once_with_usage_and_cost(start_emulator, mode, batch_size):
    emulator = start_emulator(batch_seconds=0.05)
    options = {"mode": mode, "staging_location": "gs://bucket/staging", "batch_size": batch_size}
    found = labelled(
        emulator, "vertex:gemini-2.5-flash", api_key="env:HOME", provider_options=PLACE, **options
    )
    assert emulator.billed == dict.fromkeys(REVIEWS, 1)
    for each in found:
        assert each.error is None
        assert each.usage.input_tokens > 0
        assert each.cost_usd > 0


def test_a_job_of_more_requests_than_vertex_takes_is_refused(start_emulator, monkeypatch):
    monkeypatch.setattr("beam_llm.testing.emulator.vertex.MOST_REQUESTS", len(REVIEWS) - 1)
    jobs = {"mode": "batch_api", "staging_location": "gs://bucket/staging"}
    options = {"api_key": "env:HOME", "provider_options": PLACE, **jobs}
    emulator = start_emulator(batch_seconds=0.05)
    with pytest.raises(AssertionError):
        labelled(emulator, "vertex:gemini-2.5-flash", on_abort="record", **options)
    assert not emulator.jobs
    labelled(emulator, "vertex:gemini-2.5-flash", job_max_records=1, fresh="2", **options)


def test_a_job_is_cancelled_from_the_command_line(start_emulator, monkeypatch, capsys):
    emulator = start_emulator(batch_seconds=600)
    monkeypatch.setenv("VERTEX_BASE_URL", address(emulator, "vertex"))
    submit = SubmitBatchJobs(
        "vertex:gemini-2.5-flash",
        "{{ text }}",
        api_key="env:HOME",
        provider_options=PLACE,
        staging_location="gs://bucket/staging",
    )
    with beam.Pipeline() as p:
        _ = p | beam.Create([{"text": "x"}]) | submit
    command = ["jobs", "cancel", "1", "--staging", "gs://bucket/staging", "--api-key", "env:HOME"]
    assert main(command) == 2
    assert "provider_options has no 'project'" in capsys.readouterr().err.replace("-", "_")
    assert main([*command, "--provider-options", json.dumps(PLACE)]) == 0
    assert emulator.jobs[0]["state"] in ("JOB_STATE_CANCELLING", "JOB_STATE_CANCELLED")


def prediction() -> dict[str, Any]:
    request = {"labels": {"beam_llm": "r-0"}, "contents": [{"parts": [{"text": "Question 0"}]}]}
    candidate = {"content": {"parts": [{"text": "to Question 0"}]}, "finishReason": "STOP"}
    return {"status": "", "request": request, "response": {"candidates": [candidate]}}


@hypothesis.settings(suppress_health_check=list(hypothesis.HealthCheck), max_examples=60)
@hypothesis.given(st.sampled_from(paths(prediction())), anything)
def test_any_value_in_any_field_of_a_result_line(path, value):
    store, results = staged(1)
    put(store, [written(put_in(prediction(), path, value))])
    fetch_results(store, "job-0", "job-0", results, 10**6)
    for line in results.read_bytes().split(b"\n")[:-1]:
        with contextlib.suppress(ValueError):
            reply = line_reply(line)
            assert reply.custom_id == "r-0"
            assert (reply.completion is None) is (reply.error is not None)
