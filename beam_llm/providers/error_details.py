"""What an API of Google's or Anthropic's adds to an error: reasons, quotas, when to come back.
Pure, and nothing is raised, whatever stands there.

    {"error": {"code": 429, "status": "RESOURCE_EXHAUSTED", "message": "…", "details": [
        {"@type": "type.googleapis.com/google.rpc.QuotaFailure", "violations": [{"quotaId": "…"}]},
        {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "20.04s"}]}}

Source: google/rpc/error_details.proto, and errors of the Gemini API in public issues, read 2026-11.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from beam_llm.providers.pace import duration_seconds
from beam_llm.providers.typed import word

PER_DAY = "quota_per_day"
"""Our word for a quota that is filled again tomorrow only."""

_MOST_DETAILS = 50


class Details(NamedTuple):
    """What an error's details say.

    Attributes:
      words: reasons in lower case, and `PER_DAY`.
      retry_after_seconds: when to come back; None where it isn't said.
    """

    words: frozenset[str] = frozenset()
    retry_after_seconds: float | None = None


NONE = Details()


def details_of(error: Any) -> Details:
    """The details of an error object; `NONE` where it has none."""
    listed = error.get("details") if isinstance(error, dict) else None
    if isinstance(listed, dict):  # Anthropic's: {"error_code": "enforced_spend_limit_reached"}
        return Details(frozenset({word(listed.get("error_code"))[:80].lower()} - {""}))
    if not isinstance(listed, list):
        return NONE
    details = [detail for detail in listed[:_MOST_DETAILS] if isinstance(detail, dict)]
    delays = [duration_seconds(word(detail.get("retryDelay"))) for detail in details]
    words = {word(detail.get("reason"))[:80].lower() for detail in details}
    if any("perday" in quota for detail in details for quota in _quotas(detail)):
        words.add(PER_DAY)
    return Details(
        frozenset(words - {""}), next((delay for delay in delays if delay is not None), None)
    )


def _quotas(detail: dict[str, Any]) -> Iterator[str]:
    """The name of each quota that is full, in small letters without a break."""
    violations = detail.get("violations")
    for violation in violations[:_MOST_DETAILS] if isinstance(violations, list) else ():
        if isinstance(violation, dict):
            names = word(violation.get("quotaId"))[:400] + word(violation.get("quotaMetric"))[:400]
            yield names.lower().replace("_", "")
