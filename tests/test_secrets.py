"""The key is in nothing that is stored, shown or sent anywhere but to the provider."""

from __future__ import annotations

import contextlib
import logging
import zlib
from pathlib import Path

import apache_beam as beam
import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.transforms.display import DisplayData

from beam_llm import LLMPredict
from beam_llm.testing import Emulator
from tests.collecting import Collect

SENTINEL = "sk-sentinel-3f9a1c"


def _pickles(data: bytes) -> list[bytes]:
    """The bytes themselves and whatever is compressed inside them."""
    found, start = [data], 0
    while (start := data.find(b"x\x9c", start)) >= 0:
        with contextlib.suppress(zlib.error):
            found.append(zlib.decompressobj().decompress(data[start:]))
        start += 2
    return found


@pytest.mark.parametrize("mode", ["online", "batch_api"])
def test_the_key_is_in_no_graph_display_data_log_error_or_ledger(
    mode, tmp_path, monkeypatch, caplog
):
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("MY_KEY", SENTINEL)
    options = (
        {"staging_location": str(tmp_path / "staging"), "poll_seconds": 0.05}
        if mode == "batch_api"
        else {}
    )
    kept = Collect()
    with Emulator(keys=(SENTINEL,)) as emulator:
        predict = LLMPredict(
            "openai:gpt-4.1-mini",
            api_key="${MY_KEY}",
            base_url=emulator.base_url,
            mode=mode,
            batch_size=2,
            **options,
        )
        pipeline = beam.Pipeline(options=PipelineOptions(["--runner=FnApiRunner"]))
        _ = pipeline | beam.Create(["good", "bad", "ugly"], reshuffle=False) | predict | kept
        graph = pipeline.to_runner_api().SerializeToString()
        pipeline.run().wait_until_finish()
        assert len(kept.found) == 3
        assert all(p.error is None for p in kept.found)
    assert not any(SENTINEL.encode() in data for data in _pickles(graph))
    assert SENTINEL not in str([item.get_dict() for item in DisplayData.create_from(predict).items])
    assert "env:MY_KEY" in repr(predict.settings)
    assert SENTINEL not in caplog.text
    assert not any(
        SENTINEL.encode() in path.read_bytes()
        for path in Path(tmp_path).rglob("*")
        if path.is_file()
    )


def test_a_key_the_provider_refuses_is_not_repeated_in_the_error(monkeypatch, caplog):
    monkeypatch.setenv("OPENAI_API_KEY", SENTINEL)
    kept = Collect()
    with Emulator(keys=("another",)) as emulator:
        predict = LLMPredict("openai:gpt-4.1-mini", base_url=emulator.base_url, on_abort="record")
        with beam.Pipeline(options=PipelineOptions(["--runner=FnApiRunner"])) as p:
            _ = p | beam.Create(["a", "b"]) | predict | kept
    assert {p.error.kind for p in kept.found} == {"aborted"}
    assert not any(SENTINEL in str(p.error) for p in kept.found)
    assert SENTINEL not in caplog.text
