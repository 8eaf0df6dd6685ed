"""What is known of each provider before its module is imported: where it is, where its key is, what
its prices and models are like.

A new provider is a row in here and a module in `providers/`:

    PROVIDERS["acme"] = ProviderSpec("acme_llm.provider", "ACME_API_KEY", "ACME_BASE_URL",
    "https://api.acme.example/v1") LLMPredict("acme:large", …)
"""

from __future__ import annotations

from typing import NamedTuple


class ProviderSpec(NamedTuple):
    """A provider's row.

    Attributes:
      module: has `check`, `connect`, `encode` and, where there is a batch API, `connect_batch`.
      key_variable: of the environment, for the API key; None: its cloud has credentials of its own,
        and no key is looked up.
      base_url_variable: of the environment, for the address; None: its cloud's library knows where
        it is, and no address is needed.
      base_url: where it is if nobody says otherwise; None beside a variable: somebody has to.
    """

    module: str
    key_variable: str | None = None
    base_url_variable: str | None = None
    base_url: str | None = None


PROVIDERS = {
    "openai": ProviderSpec(
        "beam_llm.providers.openai",
        "OPENAI_API_KEY",
        "OPENAI_BASE_URL",
        "https://api.openai.com/v1",
    ),
    "azure": ProviderSpec(
        "beam_llm.providers.openai", "AZURE_OPENAI_API_KEY", "AZURE_OPENAI_ENDPOINT"
    ),
}

EXAMPLE_MODEL = "openai:gpt-4.1-mini"
"""For messages that show how a model is named."""

ANYTHING_ELSE = "anything OpenAI-compatible is 'openai:NAME' with base_url"
"""For whoever names a provider that has no row."""

HALVING_PRICES = ("openai", "azure", "groq")
"""Names in the price table of providers whose batch API is half of the live price, where the table
has no batch price of a model. Source: the providers' price pages, 2026-11. Elsewhere: the live
price.
"""

WINDOWS = {
    "openai:gpt-4.1": 1_000_000,
    "openai:gpt-4.1-mini": 1_000_000,
    "openai:gpt-4.1-nano": 1_000_000,
    "openai:gpt-4o": 128_000,
    "openai:gpt-4o-mini": 128_000,
    "openai:gpt-5": 400_000,
    "openai:gpt-5-mini": 400_000,
    "openai:gpt-5-nano": 400_000,
}
"""Windows of the most used models, as the price table has them: prompts can be formed before that
is read (a third of a second).
"""

OLDER_VOCABULARY = r"(ft:)?(gpt-4(?![o.\d])|gpt-3\.5|gpt-35|text-embedding-)"
"""Models that count tokens by cl100k_base, as those from before gpt-4o do. Source: the model table
of tiktoken 0.14, read 2026-11.
"""

LIMIT_PARAMETERS = frozenset({"max_tokens", "max_completion_tokens"})
"""Request parameters by which `extra_body` may limit a reply's length."""

THINKING_MODELS = r"(^|/)o\d|gpt-5|gpt-oss|reason|think|-r1|qwq|magistral|grok-[34]|gemini-[23]\.?5"
"""Names of models that think before they answer, and need room for that in the length of a reply.
"""
