"""What a reply costs: yours before published, unknown is None and never 0, the batch API's discount
once.
"""

from __future__ import annotations

import subprocess
import sys

import pytest

from beam_llm.config import settings
from beam_llm.errors import UsageError
from beam_llm.pricing import LaterPrices, Prices, window_of
from beam_llm.provider_table import WINDOWS
from beam_llm.values import Usage

YOURS = {"input": 2.0, "output": 8.0, "cached": 0.5}
AZURE = {"base_url": "https://example.openai.azure.com"}


@pytest.mark.parametrize(
    ("usage", "batch", "dollars"),
    [
        (Usage(1_000_000, 0), False, 0.40),
        (Usage(0, 1_000_000), False, 1.60),
        (Usage(1_000, 1_000), False, 0.002),
        (Usage(1_000, 0, cached_tokens=1_000), False, 0.0001),
        (Usage(1_000, 1_000), True, 0.001),
        (Usage(1_000_000, 100_000), True, 0.28),
    ],
    ids=["input", "output", "both", "cached", "batch", "batch, many"],
)
def test_published_prices_of_a_known_model(usage, batch, dollars):
    assert Prices.of(settings("openai:gpt-4.1-mini")).cost_usd(usage, batch) == pytest.approx(
        dollars
    )


@pytest.mark.parametrize("base_url", ["http://127.0.0.1:9/v1", "https://proxy.example.com/v1"])
def test_a_proxy_or_emulator_has_the_prices_of_the_model_it_names(base_url):
    assert Prices.of(settings("openai:gpt-4.1-mini", base_url=base_url)).cost_usd(
        Usage(1_000_000, 0)
    ) == pytest.approx(0.40)


def test_a_known_address_has_its_own_prices():
    assert (
        Prices.of(
            settings("openai:llama-3.1-8b-instant", base_url="https://api.groq.com/openai/v1")
        ).cost_usd(Usage(1_000_000, 0))
        > 0
    )


@pytest.mark.parametrize("model", ["openai:no-such-model", "azure:my-deployment"])
def test_an_unknown_model_is_unpriced_and_not_free(model):
    prices = Prices.of(settings(model, base_url="https://example.openai.azure.com"))
    assert prices.cost_usd(Usage(1_000, 1_000)) is None
    assert prices.cost_usd(Usage()) is None
    assert prices.context_window is None


@pytest.mark.parametrize(
    "prices",
    [
        YOURS,
        {"gpt-4.1-mini": YOURS, "other": {"input": 9, "output": 9}},
        {"openai:gpt-4.1-mini": YOURS},
    ],
    ids=["one table", "by model", "by provider and model"],
)
def test_your_prices_win_over_published_ones(prices):
    known = Prices.of(settings("openai:gpt-4.1-mini", prices=prices))
    assert known.cost_usd(Usage(1_000_000, 1_000_000, cached_tokens=400_000)) == pytest.approx(
        0.6 * 2 + 0.4 * 0.5 + 8
    )


def test_your_prices_for_other_models_leave_this_one_as_published():
    assert Prices.of(settings("openai:gpt-4.1-mini", prices={"other": YOURS})).source == "published"


@pytest.mark.parametrize(
    ("model", "prices", "share"),
    [
        ("azure:mine", YOURS, 0.5),
        ("azure:mine", {**YOURS, "batch": 0.7}, 0.7),
        ("deepinfra:mine", YOURS, 0.8),
        ("openrouter:mine", YOURS, 0.5),
    ],
    ids=["half by default", "yours", "the provider's", "half where it has none for all models"],
)
def test_the_batch_discount_of_your_prices(model, prices, share):
    known = Prices.of(settings(model, prices=prices, **(AZURE if model[0] == "a" else {})))
    assert known.cost_usd(Usage(1_000, 1_000), batch=True) == pytest.approx(
        share * known.cost_usd(Usage(1_000, 1_000))
    )


def test_azure_halves_where_the_table_has_no_batch_price():
    known = Prices.of(settings("azure:gpt-4.1-mini", **AZURE))
    assert known.cost_usd(Usage(1_000, 0), batch=True) == pytest.approx(0.0002)


def test_long_prompts_pay_the_tier_they_are_in():
    known = Prices.of(settings("openai:gpt-5.4"))
    short, long = known.cost_usd(Usage(200_000, 0)), known.cost_usd(Usage(400_000, 0))
    assert long > 2.5 * short


@pytest.mark.parametrize(
    ("tier", "dollars"),
    [
        pytest.param(None, 0.25, id="none named"),
        pytest.param("default", 0.25, id="default"),
        pytest.param("a new word", 0.25, id="unknown"),
        pytest.param("flex", 0.125, id="flex"),
        pytest.param("priority", 0.5, id="priority"),
    ],
)
def test_the_tier_in_which_a_reply_was_served_decides_its_price(tier, dollars):
    known = Prices.of(settings("openai:gpt-5.4"))
    assert known.cost_usd(Usage(100_000, 0), service_tier=tier) == pytest.approx(dollars)
    few = Usage(1_000, 0)
    assert known.cost_usd(few, service_tier=tier) == pytest.approx(dollars / 100)


def test_your_own_prices_hold_in_every_tier():
    known = Prices.of(settings("openai:gpt-5.4", prices=YOURS))
    assert known.cost_usd(Usage(1_000, 0), service_tier="flex") == known.cost_usd(Usage(1_000, 0))


def test_prices_that_are_loaded_later_are_the_same():
    known, usage = settings("openai:gpt-4.1-mini"), Usage(1_000, 100)
    assert LaterPrices(known).cost_usd(usage) == Prices.of(known).cost_usd(usage)
    assert LaterPrices(known).cost_usd(usage, True) == Prices.of(known).cost_usd(usage, True)


@pytest.mark.parametrize(
    ("prices", "word"),
    [
        ({"input": 1}, "'output'"),
        ({"inptu": 1, "output": 1}, "'inptu'"),
        ({"input": -1, "output": 1}, "-1"),
        ({"input": "1", "output": 1}, "'1'"),
    ],
    ids=["output missing", "unknown key", "negative", "text"],
)
def test_wrong_prices_are_named_with_the_way_to_write_them(prices, word):
    with pytest.raises(UsageError, match="dollars per million tokens") as caught:
        Prices.of(settings("openai:gpt-4.1-mini", prices=prices))
    assert word in str(caught.value)


def test_windows_are_published_and_yours_wins():
    assert Prices.of(settings("openai:gpt-4o-mini")).context_window == 128_000
    assert Prices.of(settings("openai:gpt-4o-mini", context_window=9_000)).context_window == 9_000


@pytest.mark.parametrize("model", WINDOWS)
def test_windows_known_without_the_price_table_are_those_in_it(model):
    known = settings(model)
    assert window_of(known) == Prices.of(known).context_window


def test_a_window_of_your_own_goes_before_a_known_one():
    assert window_of(settings("openai:gpt-4o-mini", context_window=9_000)) == 9_000


def test_windows_of_other_models_are_looked_up():
    assert (
        window_of(settings("openai:gpt-5.4"))
        == Prices.of(settings("openai:gpt-5.4")).context_window
    )
    assert window_of(settings("openai:no-such-model")) is None


def test_prompts_of_a_usual_model_are_formed_before_the_price_table_is_read():
    code = """
import sys
from beam_llm.config import settings
from beam_llm.transforms.forming import PromptBatcher
from beam_llm.transforms.live import CallModel
known = settings("openai:gpt-4.1-mini", batch_size=5, api_key="none", base_url="http://127.0.0.1:9/v1")
PromptBatcher(known)
step = CallModel(known)
step.setup()
print("genai_prices" in sys.modules)
step.teardown()
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout.split() == ["False"]


def test_the_price_table_is_not_read_by_an_import():
    modules = "beam_llm.pricing, beam_llm.prompting.batching, beam_llm.prompting.tokens, beam_llm.providers"
    code = f"import {modules}, sys; print('genai_prices' in sys.modules, 'openai' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.split() == ["False", "False"]


@pytest.mark.parametrize(
    ("model", "tier", "share"),
    [
        ("gemini:gemini-2.5-flash", "flex", 0.5),
        ("gemini:gemini-2.5-flash", "standard", 1.0),
        ("gemini:gemini-2.5-flash", "priority", None),
        ("bedrock:amazon.nova-pro-v1:0", "default", 1.0),
        ("bedrock:amazon.nova-pro-v1:0", "flex", None),
        ("bedrock:amazon.nova-pro-v1:0", "priority", None),
        ("fireworks:accounts/fireworks/models/gpt-oss-120b", "priority", None),
    ],
)
def test_a_tier_that_the_table_does_not_list_has_its_share_or_is_unpriced(model, tier, share):
    prices, usage = Prices.of(settings(model)), Usage(1_000, 1_000)
    expected = None if share is None else pytest.approx(share * prices.cost_usd(usage))
    assert prices.cost_usd(usage, service_tier=tier) == expected


def test_a_batch_of_googles_is_half_the_price_also_where_the_table_lists_none():
    prices, usage = Prices.of(settings("gemini:gemini-3.5-flash")), Usage(1_000, 1_000)
    assert prices.cost_usd(usage, batch=True) == pytest.approx(prices.cost_usd(usage) / 2)


@pytest.mark.parametrize(
    ("model", "share"),
    [("gemini:gemini-2.5-flash", 1.0), ("openai:gpt-5-mini", 0.5)],
    ids=["as live", "halved"],
)
def test_cached_tokens_of_a_batch_cost_what_the_table_says(model: str, share: float) -> None:
    """Google's discounts of caches and of batches don't add up."""
    prices = Prices.of(settings(model))
    cached, fresh = Usage(1_000, 0, 1_000), Usage(1_000, 10)
    assert prices.cost_usd(cached, batch=True) == pytest.approx(share * prices.cost_usd(cached))
    assert prices.cost_usd(fresh, batch=True) == pytest.approx(prices.cost_usd(fresh) / 2)


@pytest.mark.parametrize("batch", [False, True], ids=["live", "batch"])
def test_many_small_replies_are_not_priced_as_a_long_one(batch: bool) -> None:
    prices = Prices.of(settings("gemini:gemini-2.5-pro"))
    one = Usage(1_000, 100, 200)
    many = Usage(1_000_000, 100_000, 200_000)
    assert prices.total_usd(many, 1_000, batch) == pytest.approx(
        1_000 * prices.cost_usd(one, batch)
    )
    long = Usage(300_000, 100)
    assert prices.total_usd(Usage(600_000, 200), 2, batch) == pytest.approx(
        2 * prices.cost_usd(long, batch)
    )
    assert prices.cost_usd(long, batch) > 300 * prices.cost_usd(Usage(1_000, 0), batch)
