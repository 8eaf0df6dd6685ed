"""A cloud's token that ends before its time, by the server's own count, is renewed and the call made
once more: live, among many at once, and for a job's control calls.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from beam_llm import providers
from beam_llm.config import settings
from beam_llm.errors import Aborted
from beam_llm.protocols import RemoteJob
from beam_llm.providers.vertex.credentials import Tokens
from beam_llm.testing import Emulator, Fault
from beam_llm.values import Completion, JobState, Message, Request
from tests.google_world import address, credentials_of

TOKEN_CALLS = 3
PLACE = {"project": "p-1", "region": "global", "bucket": "gs://bucket/jobs"}
SCRIPT = """
import json, uuid
session = {"SessionToken": uuid.uuid4().hex, "Expiration": "2040-01-01T00:00:00Z"}
print(json.dumps({"Version": 1, "AccessKeyId": "AKID", "SecretAccessKey": "AKID", **session}))
"""
Start = Callable[..., Emulator]


@pytest.fixture
def vertex(start_emulator: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """An emulator, and the settings that lead to it by Google's own credentials."""
    emulator = start_emulator(token_calls=TOKEN_CALLS, batch_seconds=0.05)
    for name, value in emulator.buckets_environment.items():
        monkeypatch.setenv(name, value)
    with credentials_of(emulator, tmp_path, monkeypatch):
        options = {"base_url": address(emulator, "vertex"), "provider_options": PLACE}
        yield emulator, lambda **more: settings("vertex:m", **options, **more)


@pytest.fixture
def bedrock(start_emulator: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The same with a program that gives new session tokens, which boto3 asks."""
    emulator = start_emulator(token_calls=TOKEN_CALLS, batch_seconds=0.05)
    (tmp_path / "script.py").write_text(SCRIPT)
    program = f"credential_process = {sys.executable} {tmp_path / 'script.py'}"
    (tmp_path / "config").write_text(f"[default]\n{program}\n")
    for name, value in (
        emulator.environment_of("bedrock")
        | emulator.buckets_environment
        | {"AWS_CONFIG_FILE": str(tmp_path / "config")}
    ).items():
        monkeypatch.setenv(name, value)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    place = {"role_arn": "arn:aws:iam::123456789012:role/x", "bucket": "s3://bucket/jobs"}
    options = {"provider_options": {"region": "us-east-1", "min_records": 1, **place}}
    return emulator, lambda **more: settings("bedrock:amazon.nova-lite-v1:0", **options, **more)


@pytest.fixture(params=["vertex", "bedrock"])
def cloud(request: pytest.FixtureRequest) -> Any:
    return request.getfixturevalue(request.param)


def asked(known: Any, count: int) -> list[Completion]:
    request = Request(known.model_name, (Message("user", "Is it good: I love it"),))

    async def main() -> list[Completion]:
        client = providers.connect(known)
        try:
            return [await client.complete(request, 20.0) for _ in range(count)]
        finally:
            await client.close()

    return asyncio.run(main())


def test_live_calls_outlast_their_tokens(cloud: Any) -> None:
    _, known = cloud
    assert len(asked(known(), 3 * TOKEN_CALLS)) == 3 * TOKEN_CALLS


def test_a_job_outlasts_its_tokens(cloud: Any, tmp_path: Path) -> None:
    emulator, known = cloud
    client = providers.connect_batch(known(mode="batch_api", staging_location=str(tmp_path)))
    request = Request(known().model_name, (Message("user", "Is it good: I love it"),))
    (tmp_path / "lines").write_bytes(client.encode_line("r-1", request) + b"\n")
    job = client.create("ours-0", client.stage(tmp_path / "lines", "ours-0"), None)
    job = until_ended(client, job.job_id)
    client.fetch(job, tmp_path / "results")
    (line,) = (tmp_path / "results").read_bytes().split(b"\n")[:-1]
    assert client.decode_line(line).custom_id == "r-1"
    assert len(client.pending()) == 0
    client.forget(job, job.staged)
    assert len(emulator.jobs) <= 1
    client.close()


def until_ended(client: Any, job_id: str) -> RemoteJob:
    for _ in range(500):
        job: RemoteJob = client.look(job_id)
        if job.state is JobState.COMPLETED:
            return job
        time.sleep(0.02)
    raise AssertionError(f"the job does not end: {job}")


def test_of_many_calls_with_one_token_the_first_has_it_renewed(vertex: Any) -> None:
    tokens = Tokens()
    first = tokens.fresh_blocking()
    assert tokens.forget(first)
    second = tokens.fresh_blocking()
    assert second.value != first.value
    assert tokens.forget(first)
    assert tokens.fresh_blocking() is second


def test_credentials_that_are_refused_again_are_an_error(cloud: Any) -> None:
    emulator, known = cloud
    refused = {"code": "ExpiredTokenException", "status": 403, "message": "expired"}
    is_bedrock = known().provider == "bedrock"
    kind = "poison" if is_bedrock else "unauthorized"
    emulator.set_faults(Fault(kind, **(refused if is_bedrock else {})))
    with pytest.raises(Aborted):
        asked(known(), 1)
    assert len(emulator.requests) == 2


def test_a_token_that_is_given_is_not_asked_for_again(
    vertex: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    emulator, known = vertex
    monkeypatch.setenv("GIVEN", "ya29.given")
    with pytest.raises(Aborted, match="HTTP 401"):
        asked(known(api_key="env:GIVEN"), TOKEN_CALLS + 1)
    assert len(emulator.requests) == TOKEN_CALLS
