"""Lines built from a frame are the lines that the provider encodes, byte for byte."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import pydantic
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from beam_llm.config import settings
from beam_llm.jobs.input_file import frame_of, input_lines
from beam_llm.ledger.manifest import LineManifest
from beam_llm.ledger.parts import PartReader
from beam_llm.providers import compile_task, connect_batch
from beam_llm.stores import open_store
from tests.part_rows import PartRow, write_part


class Opinion(pydantic.BaseModel):
    sentiment: Literal["good", "bad"]
    score: float


PROMPTS = {
    "text at the end": "Classify “this” \\ review:\n{{ element }}",
    "twice": '{{ element }} or "{{ element }}"?',
    "an expression": "{{ element | upper }}!",
    "statements": "{% if element %}Say {{ element }}{% endif %}",
    "no text at all": "Say something.",
}
texts = st.text(st.characters(codec=None), max_size=30) | st.sampled_from(
    ['","', '\\","', "\\", '["a","b"]', "\ud83d", "\u2028\x00\x7f"]
)


@pytest.mark.parametrize("prompt", PROMPTS.values(), ids=PROMPTS)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"output": Opinion, "system_prompt": "Be “brief”.", "max_output_tokens": 9},
        {"output": int, "batch_size": 3},
        {"record_id": "id"},
    ],
    ids=["text", "a model", "a scalar, batches allowed", "ids"],
)
@hypothesis_settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
@given(found=st.lists(texts, min_size=1, max_size=5))
def test_lines_are_those_that_the_provider_encodes(
    tmp_path_factory, prompt: str, options: dict, found: list[str]
) -> None:
    task, provider, store, manifest = staged(
        tmp_path_factory.mktemp("staging"), prompt, options, found
    )
    reader = PartReader(store, manifest.parts[0])
    expected = [
        provider.encode_line(custom_id, task.render([reader.record(row)]))
        for row, custom_id in zip(manifest.row.tolist(), manifest.custom_ids(), strict=True)
    ]
    assert list(input_lines(manifest, store, task, provider)) == [line + b"\n" for line in expected]


@pytest.mark.parametrize(
    ("options", "is_framed"),
    [
        ({"prompt": "Say {{ element }}"}, True),
        ({"prompt": "Say {{ a }} and {{ b }}"}, False),
        ({"prompt": "Say {{ a }}", "output": int, "response_format": "xml"}, False),
        (
            {
                "prompt": "Say {{ a }}",
                "batch_size": 2,
                "batch_prompt_template": "{% for r in records %}{{ r.text }}{% endfor %}",
            },
            False,
        ),
    ],
    ids=["one text", "two texts", "one in an envelope", "one in a user's template"],
)
def test_only_what_is_one_bare_text_has_a_frame(options: dict, is_framed: bool) -> None:
    checked = settings(
        "openai:gpt-4.1-mini", base_url="http://127.0.0.1:1/v1", api_key="none", **options
    )
    assert (frame_of(compile_task(checked), connect_batch(checked)) is not None) == is_framed


def staged(folder: Path, prompt: str, options: dict, found: list[str]) -> tuple:
    checked = settings(
        "openai:gpt-4.1-mini",
        prompt=prompt,
        base_url="http://127.0.0.1:1/v1",
        api_key="none",
        **options,
    )
    task, store = compile_task(checked), open_store(str(folder))
    records = [task.record({"id": "7"}, text) for text in found]
    part = write_part(
        store, [PartRow(task.key(record), record, b"", None) for record in records], 0
    )
    keys = PartReader(store, part.name).keys
    rows = np.arange(len(found), dtype=np.uint32)
    return (
        task,
        connect_batch(checked),
        store,
        LineManifest(
            keys, rows * 0, rows, (part.name,), np.arange(len(found) + 1, dtype=np.uint32)
        ),
    )
