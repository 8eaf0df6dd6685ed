"""Reads what the APIs of Google, Anthropic and OpenRouter add to an error: reasons, quotas, when to
come back. Pure, and nothing is raised, whatever a server sends.

    {"error": {"code": 429, "status": "RESOURCE_EXHAUSTED", "message": "…", "details": [
        {"@type": "type.googleapis.com/google.rpc.QuotaFailure", "violations": [{"quotaId": "…"}]},
        {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "20.04s"}]}}

    {"error": {"code": 404, "message": "…", "metadata": {"error_type": "image_not_found"},
        "availability": {"code": "constraint_filtered", "excluded_by": ["context_length"]}}}

Source: google/rpc/error_details.proto, and errors of the Gemini API in public issues;
openrouter.ai/docs (errors and debugging), its SDK 1.3.84; read 2026-11.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from beam_llm.providers.pace import duration_seconds
from beam_llm.providers.typed import field_of, word

PER_DAY = "quota_per_day"
"""This package's word for a quota that is not refilled before tomorrow."""

_ERROR_TYPES = frozenset(
    {
        *("context_length_exceeded", "string_too_long", "payload_too_large"),
        *("content_policy_violation", "refusal", "image_not_found"),
    }
)
"""OpenRouter's error types that say more than the status."""

_MOST_DETAILS = 50


class Details(NamedTuple):
    """What an error's details say.

    Attributes:
      words: reasons in lower case, and `PER_DAY`.
      retry_after_seconds: when to come back; None where the details don't say.
    """

    words: frozenset[str] = frozenset()
    retry_after_seconds: float | None = None


NONE = Details()


def details_of(error: Any) -> Details:
    """The details of an error object; `NONE` where it has none."""
    found, types = _details_of_list(field_of(error, "details")), _error_types(error)
    return found._replace(words=found.words | types) if types else found


def _error_types(error: Any) -> frozenset[str]:
    found = [field_of(error, *at, "error_type") for at in ((), ("metadata",))]
    types = frozenset(one for one in found if isinstance(one, str)) & _ERROR_TYPES
    excluded = field_of(error, "availability", "excluded_by")
    # The input is too long for every host of the model; OpenRouter reports that no host was found.
    is_too_long = isinstance(excluded, list) and "context_length" in excluded
    return types | {"context_length_exceeded"} if is_too_long else types


def _details_of_list(listed: Any) -> Details:
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
    """The name of each exceeded quota, in lower case without separators."""
    violations = detail.get("violations")
    for violation in violations[:_MOST_DETAILS] if isinstance(violations, list) else ():
        if isinstance(violation, dict):
            names = word(violation.get("quotaId"))[:400] + word(violation.get("quotaMetric"))[:400]
            yield names.lower().replace("_", "")
