"""The table of what each provider has is made from their traits."""

from __future__ import annotations

import pytest

from beam_llm.protocols import Recovery
from beam_llm.provider_table import PROVIDERS
from beam_llm.providers.overview import HEADER, RECOVERY_WORDS, markdown, row_of


def test_every_provider_has_a_line_and_every_line_every_column():
    lines = markdown().splitlines()
    assert len(lines) == 2 + len(PROVIDERS)
    assert {line.count(" | ") for line in lines} == {len(HEADER) - 1}


def test_every_rung_has_words():
    assert set(RECOVERY_WORDS) == set(Recovery)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("openai", ("50,000 requests", "schema", "by its name", "50 %")),
        ("together", ("95 MB", "by its label or input")),
        ("groq", ("schema or JSON object, by model",)),
        ("bedrock", ("exact", "at least 100", "| 1 |")),
        ("together", ("2,048, live only",)),
        ("mistral", ("| 256 |",)),
        ("anthropic", ("| – |",)),
        ("xai", ("20 %", "no end is promised")),
        ("deepinfra", ("20 %",)),
        ("together", ("50 %, some models none",)),
        ("openrouter", ("jobs can't be cancelled", "96 h", "by host")),
    ],
)
def test_a_line_says_what_the_providers_traits_say(name, words):
    text = " | ".join(row_of(name))
    for each in words:
        assert each in text
