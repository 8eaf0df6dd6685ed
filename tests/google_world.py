"""What tests of Gemini and of Vertex AI have in common: Google's own client on the emulator, and
gs:// as folders of this machine, for provider and emulator alike.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Literal

import apache_beam as beam
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from google import genai
from google.genai import types

from beam_llm import LLMPredict, Prediction
from beam_llm.providers import vertex
from beam_llm.stores.local import LocalStore
from beam_llm.testing import Emulator
from tests.collecting import Collect

ENDED = ("SUCCEEDED", "FAILED", "CANCELLED", "EXPIRED", "PARTIALLY_SUCCEEDED")


def address(emulator: Emulator, provider: str) -> str:
    """The base URL of a provider's dialect."""
    return emulator.environment_of(provider)[f"{provider.upper()}_BASE_URL"]


@contextmanager
def gemini_client(emulator: Emulator) -> Iterator[genai.Client]:
    """Google's own client, which tries once."""
    options = types.HttpOptions(base_url=address(emulator, "gemini"))
    client = genai.Client(api_key=emulator.api_key, vertexai=False, http_options=options)
    yield client
    client.close()


def until_ended(client: genai.Client, name: str) -> Any:
    """The job once it has ended."""
    for _ in range(600):
        job = client.batches.get(name=name)
        if job.state.name.removeprefix("JOB_STATE_") in ENDED:
            return job
        time.sleep(0.02)
    raise AssertionError(f"the job does not end: {job}")


@contextmanager
def credentials_of(
    emulator: Emulator, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    """Application-default credentials: a service account whose tokens the emulator gives."""
    account = folder / "account.json"
    account.write_text(json.dumps(service_account(f"{address(emulator, 'vertex')}/token")))
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(account))
    vertex.default_tokens.cache_clear()
    try:
        yield
    finally:
        vertex.default_tokens.cache_clear()


def service_account(token_uri: str) -> dict[str, str]:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    pem = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    return {
        "type": "service_account",
        "project_id": "p-1",
        "private_key": pem.decode(),
        "private_key_id": "1",
        "client_email": "a@p-1.iam.gserviceaccount.com",
        "token_uri": token_uri,
    }


ASK = "Is it positive or negative:\nI love it"
REVIEWS = {"I love it": "positive", "awful, I hate it": "negative", "it is blue": "neutral"}
Mood = Literal["positive", "negative", "neutral"]


def labelled(emulator: Emulator, model: str, **options: Any) -> list[Prediction]:
    """What a pipeline says of `REVIEWS`, each once."""
    batch = {"poll_seconds": 0.05} if options.get("mode") == "batch_api" else {}
    provider = model.partition(":")[0]
    ask = LLMPredict(
        model,
        "Classify the sentiment of this review:\n{{ text }}",
        output=Mood,
        base_url=address(emulator, provider),
        **batch,
        **options,
    )
    kept = Collect()
    with beam.Pipeline() as p:
        _ = p | beam.Create([{"text": text} for text in REVIEWS]) | ask | kept
    assert {each.element["text"]: each.value for each in kept.found} == REVIEWS
    assert len(kept.found) == len(REVIEWS)
    return kept.found


class FolderBuckets(LocalStore):
    """A store at `gs://bucket/path` whose objects are files below `root`.

    What a real bucket does otherwise is tested against a GCS server (`gcs` tests).
    """

    root: ClassVar[Path]

    def __init__(self, location: str):
        self.folder = re.sub(r"[^\w/.-]", "_", location.removeprefix("gs://"))
        super().__init__(str(self.root / self.folder))
        self.location = location
