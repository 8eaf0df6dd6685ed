"""Mistral and the providers of OpenAI's dialect on a pipeline: every record once, live and by batch,
with its usage and its price; and again at no cost.
"""

from __future__ import annotations

from typing import Literal

import apache_beam as beam
import pytest

from beam_llm import LLMPredict
from beam_llm.testing import Emulator, Fault
from tests.collecting import Collect
from tests.test_predict import PROMPT, SENTIMENTS, TEXTS

MODELS = {
    "mistral": "mistral-small-latest",
    "openrouter": "openai/gpt-4.1-mini",
    "together": "meta-llama/Llama-3.3-70B-Instruct-Turbo",
    "groq": "openai/gpt-oss-20b",
    "deepinfra": "meta-llama/Llama-3.3-70B-Instruct",
    "xai": "grok-4.3",
    "fireworks": "accounts/fireworks/models/deepseek-v3p2",
}


@pytest.fixture
def emulator(monkeypatch):
    with Emulator(batch_seconds=0.1) as emulator:
        for name in MODELS:
            for variable, value in emulator.environment_of(name).items():
                monkeypatch.setenv(variable, value)
        yield emulator


def run(model: str, **options):
    rows = Collect()
    with beam.Pipeline() as pipeline:
        elements = pipeline | beam.Create([{"text": text} for text in TEXTS])
        sentiment = Literal["positive", "negative", "neutral"]
        _ = elements | LLMPredict(model, PROMPT, output=sentiment, batch_size=2, **options) | rows
    assert len(rows.found) == len(TEXTS)
    return {each.element["text"]: each for each in rows.found}


def modes(tmp_path):
    jobs = {"mode": "batch_api", "staging_location": str(tmp_path), "poll_seconds": 0.05}
    return {"online": {}, "batch_api": jobs}


@pytest.mark.parametrize("mode", ["online", "batch_api"])
@pytest.mark.parametrize("name", MODELS)
def test_every_record_comes_back_once_with_its_usage_and_price(emulator, tmp_path, name, mode):
    found = run(f"{name}:{MODELS[name]}", **modes(tmp_path)[mode])
    assert [found[text].value for text in TEXTS] == SENTIMENTS
    assert all(each.usage.input_tokens and each.usage.output_tokens for each in found.values())
    is_priced = (name, mode) != ("deepinfra", "batch_api")  # neither by a table nor by its replies
    assert all((each.cost_usd is not None) is is_priced for each in found.values())
    assert emulator.billed == dict.fromkeys(TEXTS, 1)


@pytest.mark.parametrize("mode", ["online", "batch_api"])
def test_a_model_for_each_record_is_the_one_that_answers_it(emulator, tmp_path, mode):
    """A job has one model, which Mistral wants named with the job and not in its lines."""
    large, small = "mistral:mistral-large-2512", "mistral:mistral-small-2603"
    chosen = f"{{{{ '{large}' if 'the' in text or 'this' in text else '{small}' }}}}"
    found = run(chosen, **modes(tmp_path)[mode])
    for text, each in found.items():
        is_large = "the" in text or "this" in text
        assert each.model == (large if is_large else small).partition(":")[2]
    assert len({each.model for each in found.values()}) == 2


@pytest.mark.parametrize("mode", ["online", "batch_api"])
def test_what_the_provider_says_that_a_reply_cost_goes_before_the_table_and_after_yours(
    emulator, tmp_path, mode
):
    options = modes(tmp_path)[mode]
    found = run("openrouter:a-model/nobody-knows", **options)
    tokens = sum(sum(each.usage[:2]) for each in found.values())
    assert sum(each.cost_usd for each in found.values()) == pytest.approx(tokens * 1e-6)
    yours = {"input": 0.0, "output": 1_000.0, "batch": 1.0}
    again = run(
        "openrouter:a-model/nobody-knows",
        prices=yours,
        **{**options, **({"fresh": "2"} if options else {})},
    )
    outputs = sum(each.usage.output_tokens for each in again.values())
    assert sum(each.cost_usd for each in again.values()) == pytest.approx(outputs * 1e-3)


@pytest.mark.parametrize("name", ["mistral", "together", "groq", "openrouter", "xai"])
def test_a_second_run_with_another_batch_size_pays_nothing(emulator, tmp_path, name):
    options = modes(tmp_path)["batch_api"]
    run(f"{name}:{MODELS[name]}", **options)
    again = run(f"{name}:{MODELS[name]}", **{**options, "on_leftover": "fail"})
    assert [again[text].value for text in TEXTS] == SENTIMENTS
    assert all(each.reused for each in again.values())
    assert emulator.billed == dict.fromkeys(TEXTS, 1)


@pytest.mark.parametrize(
    "name", ["mistral", "together", "groq", "xai", "deepinfra", "openrouter", "fireworks"]
)
def test_a_lost_create_is_found_and_paid_once(emulator, tmp_path, name):
    emulator.set_faults(Fault("create_lost", nth=1))
    quick = {"list_lag_seconds": 0.0, "control_timeout_ms": 1_000}
    found = run(f"{name}:{MODELS[name]}", **modes(tmp_path)["batch_api"], **quick)
    assert [found[text].value for text in TEXTS] == SENTIMENTS
    assert emulator.billed == dict.fromkeys(TEXTS, 1)
    assert len(emulator.jobs) == 1


@pytest.mark.parametrize("name", ["mistral", "together", "groq", "openrouter", "xai"])
def test_what_a_job_left_is_asked_in_another(emulator, tmp_path, name):
    emulator.set_faults(Fault("line_error", nth=1))
    found = run(f"{name}:{MODELS[name]}", **modes(tmp_path)["batch_api"])
    assert [found[text].value for text in TEXTS] == SENTIMENTS
    assert set(emulator.billed.values()) == {1}


def test_a_model_that_xai_has_no_batch_of_ends_the_run(emulator, tmp_path):
    with pytest.raises(Exception, match=r"Model grok-4\.6 is not supported for batch processing"):
        run("xai:grok-4.6", **modes(tmp_path)["batch_api"])
    assert emulator.billed == {}
