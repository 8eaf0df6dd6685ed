"""What a reply costs, and how long a model's window is: from your own prices first, then from the
published ones (genai-prices, offline); otherwise unknown.

An unknown price is None, "unpriced", and never 0. The price table is large, so it is read on first
use and not when imported.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from decimal import Decimal
from typing import Any, NamedTuple

from beam_llm.config import Settings
from beam_llm.errors import UsageError
from beam_llm.provider_table import (
    BATCH_SHARES,
    EMBED_BATCH_SHARES,
    PROVIDERS,
    TIER_SHARES,
    WINDOWS,
)
from beam_llm.values import Usage

BATCH_DISCOUNT = 0.5
"""Price of the batch API as a share of the live price, for your own prices where they don't name
one and the provider has no usual one.
"""

LINEAR_UP_TO_TOKENS = 30_000
"""No published tier starts below this prompt length (genai-prices 0.2.3: 32,000 at the earliest);
longer prompts are priced exactly.
"""


TIERS = ("flex", "priority", "fast")
"""Service tiers with prices of their own, as a reply names them; all others (`default`, `scale`, …)
pay the usual price.
"""


class Rates(NamedTuple):
    """Dollars per token."""

    input: float
    output: float
    cached: float
    cache_write: float

    def of(self, usage: Usage) -> float:
        """The price of these tokens in dollars."""
        # Input tokens include those of the cache, which have prices of their own.
        plain = usage.input_tokens - usage.cached_tokens - usage.cache_write_tokens
        return (
            plain * self.input
            + usage.cached_tokens * self.cached
            + usage.cache_write_tokens * self.cache_write
            + usage.output_tokens * self.output
        )


class Prices:
    """Prices and window of one model.

    Build it by `Prices.of(settings)`; cheap to ask, a microsecond a reply.

    Attributes:
      context_window: tokens of prompt and answer together; None where unknown.
      source: `yours`, `published` or `unknown`.
    """

    def __init__(
        self,
        live: Rates | None,
        batch: Rates | None,
        context_window: int | None,
        published: Published | None,
        source: str,
    ):
        self.context_window = context_window
        self.source = source
        self._live = live
        self._batch = batch
        self._published = published

    @classmethod
    def of(cls, settings: Settings) -> Prices:
        """Raises UsageError where `prices` has an unknown key or a value that is not a price."""
        yours = your_prices(settings)
        share = _embed_share(settings)
        published = _published(
            settings.model_name, settings.provider, settings.base_url or "", share
        )
        window = settings.context_window or (published.context_window if published else None)
        if yours is not None:
            return cls(*yours, window, None, "yours")
        if published is not None:
            return cls(published.live, published.batch, window, published, "published")
        return cls(None, None, window, None, "unknown")

    def cost_usd(
        self, usage: Usage, batch: bool = False, service_tier: str | None = None
    ) -> float | None:
        """The price of one reply in dollars; None where the model's price is unknown, or the reply
        doesn't report its tokens.

        Long prompts may have a higher price per token, so price a reply first and share the sum out
        afterwards.

        Args:
          batch: the reply came by the batch API.
          service_tier: what the reply says it was served as; your own prices are taken for all.
        """
        rates = self._batch if batch else self._live
        # A reply without any token is one whose tokens the server doesn't report.
        if rates is None or not (usage.input_tokens or usage.output_tokens):
            return None
        published = self._published
        if published is not None and (
            usage.input_tokens > LINEAR_UP_TO_TOKENS or service_tier in TIERS
        ):
            return published.exact_usd(usage, batch, service_tier)
        return rates.of(usage)

    def total_usd(self, usage: Usage, replies: int, batch: bool = False) -> float | None:
        """The price of many replies of about one size; None where the model's price is unknown.

        Their sum as one reply would be priced as a long prompt.

        Args:
          usage: of all of them together.
        """
        each = Usage(*(round(total / max(replies, 1)) for total in usage))
        if self._published is not None and each.input_tokens > LINEAR_UP_TO_TOKENS:
            one = self._published.exact_usd(each, batch)
            return None if one is None else replies * one
        rates = self._batch if batch else self._live
        return None if rates is None else rates.of(usage)


def window_of(settings: Settings) -> int | None:
    """The same as `Prices.of(settings).context_window`, but without reading the price table for the
    most used models.
    """
    usual = WINDOWS.get(settings.model)
    return settings.context_window or usual or Prices.of(settings).context_window


class LaterPrices:
    """`Prices.of(settings)`, made when first asked for: the table takes a third of a second to
    read, and the first reply is time enough.

    Reading it twice, from two threads at once, does no harm.
    """

    def __init__(self, settings: Settings):
        self._settings = settings

    @functools.cached_property
    def _prices(self) -> Prices:
        return Prices.of(self._settings)

    def load(self) -> None:
        """Loads the prices."""
        _ = self._prices

    def cost_usd(
        self, usage: Usage, batch: bool = False, service_tier: str | None = None
    ) -> float | None:
        """As `Prices.cost_usd`."""
        return self._prices.cost_usd(usage, batch, service_tier)


_YOUR_KEYS = ("input", "output", "cached", "cache_write", "batch")


def your_prices(settings: Settings) -> tuple[Rates, Rates] | None:
    """Live and batch rates from the option `prices`: one table, or one per model's name.

    Raises:
      UsageError: an unknown key, or a value that is not a price.
    """
    prices: Any = settings.prices
    if not prices:
        return None
    if any(isinstance(value, Mapping) for value in prices.values()):
        # A model that your table doesn't name keeps its published price.
        prices = prices.get(settings.model_name) or prices.get(settings.model)
        if prices is None:
            return None
    for key, value in prices.items():
        if (
            key not in _YOUR_KEYS
            or isinstance(value, bool)
            or not isinstance(value, int | float)
            or value < 0
        ):
            raise UsageError(
                f"prices has {key!r}: {value!r}: it has to be dollars per million tokens "
                "under 'input', 'output' and, perhaps, 'cached' and 'cache_write', and the batch "
                "API's share of them under 'batch'; "
                "write prices={'input': 0.4, 'output': 1.6, 'cached': 0.1, 'batch': 0.5}"
            )
    if "input" not in prices or "output" not in prices:
        raise UsageError(
            f"prices is {prices!r}: it needs both 'input' and 'output', in dollars per "
            "million tokens"
        )
    live = Rates(
        prices["input"] / 1e6,
        prices["output"] / 1e6,
        prices.get("cached", prices["input"]) / 1e6,
        prices.get("cache_write", prices["input"]) / 1e6,
    )
    usual = _embed_share(settings) or PROVIDERS[settings.provider].batch_share
    share = prices.get("batch", BATCH_DISCOUNT if usual is None else usual)
    return live, Rates(*(rate * share for rate in live))


def _embed_share(settings: Settings) -> float | None:
    """The batch API's share of the live price for vectors, where answers have another."""
    return EMBED_BATCH_SHARES.get(settings.provider) if settings.task == "embed" else None


_MANY = 10_000
"""Tokens: a Decimal divides exactly, and no tier starts that low."""

_BATCH = {"processing": "batch"}


class Published:
    """A model as genai-prices knows it.

    Args:
      batch_share: what it costs by the batch API as a share of the live price, where the table has
        no batch price; None: as the provider's models do.
    """

    def __init__(
        self,
        model_id: str,
        provider_id: str,
        context_window: int | None,
        batch_share: float | None = None,
    ):
        self.model_id = model_id
        self.provider_id = provider_id
        self._batch_share = BATCH_SHARES.get(provider_id) if batch_share is None else batch_share
        self.context_window = context_window
        # Compared by plain input and output tokens: some batch prices may equal the live ones
        # (Google's for cached tokens), so those alone wouldn't show it.
        usual = Usage(input_tokens=_MANY, output_tokens=_MANY)
        self._lists_batches = self._usd(usual, None) != self._usd(usual, _BATCH)
        self.live = self._rates(batch=False)
        self.batch = self._rates(batch=True)

    def exact_usd(self, usage: Usage, batch: bool, service_tier: str | None = None) -> float | None:
        """The price, including the tiers for long prompts and the service tier; None where the
        price of that service tier is not known.
        """
        if not batch:
            return self._live_usd(usage, service_tier)
        # A job's lines may be hours apart, so cache writes are priced as one-hour writes.
        listed = self._usd(usage, _BATCH, kept_an_hour=True)
        share = self._batch_share
        # genai-prices answers with the live price where it lists none for batches.
        if self._lists_batches or share is None:
            return float(listed)
        return float(listed * Decimal(str(share)))

    def _live_usd(self, usage: Usage, service_tier: str | None) -> float | None:
        live = self._usd(usage, None)
        if not service_tier or service_tier not in TIERS:
            return float(live)
        tiered = self._usd(usage, {"service_tier": service_tier})
        share = TIER_SHARES.get((self.provider_id, service_tier), 1.0)
        # As for batches: an unchanged price may mean that the table doesn't know the tier.
        if tiered != live or share == 1.0:
            return float(tiered)
        return None if share is None else float(live * Decimal(str(share)))

    def _rates(self, batch: bool) -> Rates:
        asked = (
            Usage(input_tokens=_MANY),
            Usage(output_tokens=_MANY),
            Usage(input_tokens=_MANY, cached_tokens=_MANY),
            Usage(input_tokens=_MANY, cache_write_tokens=_MANY),
        )
        return Rates(*((self.exact_usd(usage, batch) or 0.0) / _MANY for usage in asked))

    def _usd(
        self, usage: Usage, context: Mapping[str, str] | None, *, kept_an_hour: bool = False
    ) -> Decimal:
        import genai_prices

        tokens = {
            "input_tokens": usage.input_tokens,
            "output_tokens": usage.output_tokens,
            "cache_read_tokens": usage.cached_tokens,
        }
        if usage.cache_write_tokens:
            tokens["cache_write_tokens"] = usage.cache_write_tokens
            if kept_an_hour:
                tokens["cache_write_1h_tokens"] = usage.cache_write_tokens
        calculation = genai_prices.calc_price(
            genai_prices.Usage(**tokens),
            self.model_id,
            provider_id=self.provider_id,
            price_context=context,
        )
        return calculation.total_price


@functools.lru_cache(maxsize=64)
def _published(
    model: str, provider: str, base_url: str, batch_share: float | None
) -> Published | None:
    """The model in the price table: looked up by the address where that names a provider, otherwise
    as the provider's own model.
    """
    try:
        from genai_prices.data_snapshot import get_snapshot
    except ImportError:
        return None
    # The address is more reliable than the name: `openai:` with a base_url may lead anywhere.
    for place in ((None, base_url), (provider, None)):
        try:
            found_provider, found = get_snapshot().find_provider_model(model, None, *place)
        except LookupError:
            continue
        return Published(model, found_provider.id, found.context_window, batch_share)
    return None
