"""What an HTTP error means, by its status, its codes and its message. Pure.

There is one table for all providers, since proxies pass on the errors of others.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Callable
from typing import NamedTuple

from beam_llm.providers.error_details import PER_DAY


class Refusal(NamedTuple):
    """What a server sent instead of an answer: everything that its meaning depends on.

    Attributes:
      words: codes and reasons, in lower case.
      sentence: the message for people; it may quote a record.
      is_page: the body was a web page.
    """

    status: int
    words: frozenset[str]
    sentence: str
    is_page: bool

    @property
    def is_redirect(self) -> bool:
        """Whether it redirects the call."""
        return 300 <= self.status < 400


def is_hopeless(sentence: str) -> bool:
    """Whether a message alone, without a status or a code, says that no request will succeed."""
    return _ABORTING_WORDS.match(sentence) is not None


class Meaning(enum.Enum):
    """What is wrong."""

    FILTERED = "a filter stops this input"
    BLOCKED = "a firewall stops this input"
    WRONG_KEY = "the key is no good"
    HOPELESS = "no request will succeed"
    NO_IMAGE = "an image of this input isn't there, or not yet"
    NOT_THERE = "the address, the model or the job isn't there"
    TOO_LONG = "this input is too long"
    MISSHAPEN = "the model's reply did not fit its schema"


def meaning_of(refusal: Refusal) -> Meaning | None:
    """The meaning by the first rule that applies; None where only the status counts."""
    return next((meaning for meaning, applies in _RULES if applies(refusal)), None)


_NOT_THERE = (404, 405, 410)
"""405: a web server at an address that is not an API's. 410: a model that is no longer served."""

_WRONG_KEY = {"api_key_invalid", "api_key_expired", "api_key_service_blocked"}
"""Gemini's words for a bad key, which come with a 400."""

_SPENT = {
    "insufficient_quota",
    "billing_hard_limit_reached",
    "billing_not_active",
    "account_deactivated",
    "access_terminated",
    "blocked_api_access",
    "budget_exceeded",
    "organization_restricted",
    "billing_disabled",
    "service_disabled",
    "consumer_suspended",
    "failed_precondition",
    "exceeded_current_quota_error",
    "arrearage",
    PER_DAY,
    *("billing_error", "enforced_spend_limit_reached", "contract_spend_limit_reached"),
    *("linked_organization_spend_limit_reached", "linked_organization_billing_unavailable"),
    *("organization_on_hold", "workspace_human_review_disabled", "cmek_key_disabled"),
    "cmek_key_network_blocked",
}
"""Codes of errors that another try can't cure. Google's `FAILED_PRECONDITION` is a country or a
project without billing; `blocked_api_access` is Groq's, `budget_exceeded` LiteLLM's, the two before
`PER_DAY` are Moonshot's (with a 429) and DashScope's; the last four rows are Anthropic's (SDK
2.14, `types/shared`, read 2026-11).
"""

_ABORTING_WORDS = re.compile(
    r"your credit balance is too low|you have reached your specified (workspace )?api usage limits"
    r"|this organization has been disabled|your prepayment credits are depleted"
    r"|your project has exceeded its (monthly )?spending cap|too many tokens per day"
    r"|your team \S{1,80} has either used all available credits|account \S{1,80} is suspended"
    r"|insufficient balance|rate limit exceeded: free-models-per-day"
    r"|\S{1,200} is not a valid model id|invalid model id|model not found: |model not exist"
    r"|/\S{1,40}: invalid model name passed in model=|api version not supported"
    r"|model \S{1,200} (is enabled only for api versions|does not have a :batch endpoint"
    r"|is not supported for batch processing)|you ran out of credits"
    r"|the quota for files without expiry is reached|you have exceeded your file storage quota",
    re.IGNORECASE,
)
"""Beginnings of messages which mean that no request will succeed, while neither status nor code
says so: a spent account with Anthropic (400), Gemini, xAI, Bedrock, z.ai, OpenRouter (429) and
Fireworks (412); a model that OpenRouter, OpenAI, xAI, DeepSeek or a LiteLLM proxy doesn't have, or
not by batch; an API version that Azure, or its model there, doesn't have (400); a full storage of
files with Azure and OpenAI (400). Only beginnings count, since the rest may quote a record. Source:
errors in public issues
(anthropics/claude-code#66314, continuedev/continue#10373, #10758, hotovo/aider-desk#460,
egoist/chatwise-releases#258, Azure/azure-sdk-for-java#47401, bespokelabsai/curator#189,
Ivy-Interactive/Ivy-Tendril#1756, xai-org/xai-sdk-python#176) and code, read 2026-11.
"""

_NO_MODEL = {
    *("model_not_found", "deploymentnotfound", "invalid_model", "model_not_available"),
    *("model_not_supported", "unknown_model", "operationnotsupported"),
    *("model_decommissioned", "model_terms_required"),
}
"""The last row but one: Hugging Face's, GitHub's, and Azure's for a model that has no chat; the
last is Groq's, for a model that is no longer served, or whose terms nobody has accepted (400).
Source: errors in public code, read 2026-11.
"""

_FILTERED = {
    "content_filter",
    "content_policy_violation",
    "responsibleaipolicyviolation",
    "invalid_prompt",
    "moderation_blocked",
    "refusal",
}

_FLAGGED_WORDS = re.compile(
    r"requires moderation|was flagged|usage guidelines|blocked by content filtering"
    r"|failed check: safety_check"
    r"|\Arequest blocked:|\Arequest failed content safety check",
    re.IGNORECASE,
)
"""Messages about an input that a filter stops with the status of a bad key, or of a bad request:
OpenRouter, xAI, Anthropic; the last two are OpenRouter's guardrails and Azure's API Management.
Source: openrouter.ai/docs (errors), docs.x.ai (debugging), learn.microsoft.com (llm-content-safety
policy), 2026-11.
"""

FILE_NOT_ACTIVE = r"the file \S{1,200} is not in an active state"
"""Gemini's words for a file that it has not processed yet, as a pattern."""

_NO_FILE_WORDS = re.compile(
    r"you do not have permission to access the file \S{1,200} or it may not exist"
    rf"|{FILE_NOT_ACTIVE}",
    re.IGNORECASE,
)
"""What Gemini says of an uploaded file that isn't there any more, or not yet, with the status of a
bad key or of a country without the API. Source: googleapis' answers in
google-gemini/deprecated-generative-ai-python#692, expectedparrot/edsl#1907, read 2026-11.
"""

_BAD_KEY_WORDS = re.compile(r"(incorrect|invalid) api key|bad credentials", re.IGNORECASE)
"""Beginning of the message with which xAI refuses a key, with a 400; the rest may quote a record.
Source: recorded traffic, 2026-08; errors in public code, read 2026-11.
"""

_MISSHAPEN = {"json_validate_failed"}
"""Groq's code where the model's reply did not fit the schema, and is not sent. Source:
console.groq.com/docs (structured outputs), 2026-11.
"""

_TOO_LONG = {
    "context_length_exceeded",
    "string_above_max_length",
    "request_too_large",
    "string_too_long",
    "tokens_limit_reached",
    "exceed_context_size_error",
}

_TOO_LONG_WORDS = re.compile(
    r"maximum context length|context.{0,20}(exceed|too long|too large)|request too large"
    r"|prompt is too long|input is too long|input token count.{0,40}exceeds|payload size exceeds"
    r"|input token count is \d+ but|too many input tokens|expected maxlength: \d+"
    r"|exceeds? (the )?(available )?context|maximum (model|prompt) length|input tokens exceeded"
    r"|context length (is|of) only|(longer|greater) than (the )?(model's )?context length"
    r"|exceeded max context|`inputs` (tokens \+|must have less than)"
    r"|reduce the length of the (input|messages|prompt)|exceeded model token limit"
    r"|maximum allowed input length|token count of \d+ exceeds the limit",
    re.IGNORECASE,
)
"""The last four rows: vLLM and LM Studio, SGLang and Together; Ollama, Text Generation Inference;
Groq, Moonshot; Poolside, GitHub. Source: errors in public code, read 2026-11.
"""

_MAY_BE_TOO_LONG = frozenset({400, 422, 429, 500, 502})
"""500: servers that people run themselves. 502: also an error in place of a reply."""

_RULES: tuple[tuple[Meaning, Callable[[Refusal], object]], ...] = (
    # These come before the rules about keys: they are about one input, and must not end the run.
    (
        Meaning.FILTERED,
        lambda refusal: (
            refusal.status in (400, 403)
            and (refusal.words & _FILTERED or _FLAGGED_WORDS.search(refusal.sentence))
        ),
    ),
    (Meaning.NO_IMAGE, lambda refusal: _NO_FILE_WORDS.match(refusal.sentence)),
    (Meaning.BLOCKED, lambda refusal: refusal.status == 403 and refusal.is_page),
    (Meaning.WRONG_KEY, lambda refusal: refusal.status in (401, 403) or refusal.words & _WRONG_KEY),
    (
        Meaning.WRONG_KEY,
        lambda refusal: refusal.status == 400 and _BAD_KEY_WORDS.match(refusal.sentence),
    ),
    # Words come before the status: a spent quota is a 429 like a rate limit, but waiting doesn't
    # help.
    (
        Meaning.HOPELESS,
        lambda refusal: refusal.words & _SPENT or refusal.status == 402 or refusal.is_redirect,
    ),
    (
        Meaning.HOPELESS,
        lambda refusal: (
            refusal.status < 500
            and (refusal.words & _NO_MODEL or _ABORTING_WORDS.match(refusal.sentence))
        ),
    ),
    # These are about one input, too, though OpenRouter's may come with a 404.
    (Meaning.TOO_LONG, lambda refusal: refusal.words & _TOO_LONG or refusal.status == 413),
    (Meaning.NO_IMAGE, lambda refusal: "image_not_found" in refusal.words),
    (Meaning.NOT_THERE, lambda refusal: refusal.status in _NOT_THERE),
    (
        Meaning.TOO_LONG,
        lambda refusal: (
            refusal.status in _MAY_BE_TOO_LONG and _TOO_LONG_WORDS.search(refusal.sentence)
        ),
    ),
    (Meaning.FILTERED, lambda refusal: refusal.words & _FILTERED),
    (Meaning.MISSHAPEN, lambda refusal: refusal.words & _MISSHAPEN),
)
