"""What replies cost: each reply is priced as one, because long prompts may cost more per token, and
the price is then shared among its records.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import time
from collections.abc import Callable
from typing import Any

from beam_llm.errors import where_of
from beam_llm.pricing import TIERS
from beam_llm.values import Completion

_logger = logging.getLogger(__name__)

# How long after the first request preparation starts; its result is not needed before the first
# reply.
_PREPARE_AFTER_SECONDS = 0.05


class Billing:
    """The prices of one engine's replies. Lives on its event loop.

    Args:
      cost: price of a reply's usage in dollars, None where unknown; if it takes a `service_tier`,
        it gets the one that the reply names.
      prepare: loads what `cost` needs, if that takes long.
      takes_bills: a cost stated in the reply takes precedence over `cost`.
    """

    def __init__(
        self,
        cost: Callable[..., float | None],
        prepare: Callable[[], None] | None,
        takes_bills: bool = True,
    ):
        self._cost = cost
        self._takes_bills = takes_bills
        self._prices_tiers = "service_tier" in inspect.signature(cost).parameters
        self._prepare = prepare
        self._preparing: asyncio.Future[None] | None = None

    def begin(self) -> None:
        """Starts `prepare` in a thread, once, when the first request is on its way.

        It starts a moment later, so that it doesn't compete with sending the request for the
        interpreter.
        """
        if self._prepare is None:
            return
        prepare, self._prepare = self._prepare, None

        def later() -> None:
            time.sleep(_PREPARE_AFTER_SECONDS)
            prepare()

        self._preparing = asyncio.get_running_loop().run_in_executor(None, later)

    async def ready(self) -> None:
        """Waits until `prepare` has finished.

        Call it once the replies have come, so that no slot is held while waiting.
        """
        if self._preparing is None:
            return
        try:
            # Shielded: an ask that is cancelled here must not cancel what the others wait for.
            await asyncio.shield(self._preparing)
        except Exception as error:
            # No reason to fail: answers without a price are better than none.
            _logger.warning("not ready: %s", where_of(error))
        self._preparing = None

    def price_usd(self, completion: Completion) -> float | None:
        """The price of one reply; None where it is unknown."""
        if completion.billed_usd is not None and self._takes_bills:
            return completion.billed_usd
        tier = completion.service_tier
        named: dict[str, Any] = (
            {"service_tier": tier} if tier in TIERS and self._prices_tiers else {}
        )
        try:
            return self._cost(completion.usage, **named)
        except Exception as error:
            _logger.warning("the price of a reply is unknown: %s", where_of(error))
            return None
