"""How a provider's errors come out of a step."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from beam_llm.errors import CallError, Kind, LedgerError, Retryable, where_of

T = TypeVar("T")


def guarded(call: Callable[[], T]) -> T:
    """Calls a provider. Whatever else than CallError it raises is taken for a fault that may pass:
    a wait must end in outcomes."""
    try:
        return call()
    except (CallError, LedgerError):
        raise
    except Exception as error:
        # Without its words, which may hold a key or a record; the cause has them.
        raise Retryable(
            Kind.UNAVAILABLE, f"the provider's code failed ({where_of(error)})"
        ) from error
