"""What tests of Gemini and of Vertex AI have in common: Google's own client on the emulator, and
gs:// as folders of this machine, for provider and emulator alike.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

from google import genai
from google.genai import types

from beam_llm.stores.local import LocalStore
from beam_llm.testing import Emulator

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


class FolderBuckets(LocalStore):
    """A store at `gs://bucket/path` whose objects are files below `root`.

    What a real bucket does otherwise is tested against a GCS server (`gcs` tests).
    """

    root: ClassVar[Path]

    def __init__(self, location: str):
        self.folder = re.sub(r"[^\w/.-]", "_", location.removeprefix("gs://"))
        super().__init__(str(self.root / self.folder))
        self.location = location
