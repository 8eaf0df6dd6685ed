"""What is known of each provider before its module is imported: where it is, where its key is, what
its prices and models are like.

A new provider is a row in here and a module in `providers/`:

    PROVIDERS["acme"] = ProviderSpec(
        "acme_llm.provider", "ACME_API_KEY", "ACME_BASE_URL", "https://api.acme.example/v1"
    )
    LLMPredict("acme:large", "Is it spam? {{ text }}")

Only the process that builds a pipeline has to put it in: the row goes to workers with the settings.
Where nobody imports the module that does so, as on the command line, an entry point of the group
`beam_llm.providers` names it: `acme = "acme_llm"`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple


class ProviderSpec(NamedTuple):
    """A provider's row.

    Attributes:
      module: a `protocols.ProviderModule`.
      key_variable: of the environment, for the API key; None: its cloud has credentials of its own,
        and no key is looked up.
      base_url_variable: of the environment, for the address; None: its cloud's library knows where
        it is, and no address is needed.
      base_url: where it is if nobody says otherwise; None beside a variable: somebody has to, but
        for a cloud with credentials of its own, whose library knows.
      option_variables: of the environment, for keys of `provider_options` that nobody gives.
      batch_share: what its batch API costs as a share of the live price, where the price table has
        no batch price of a model; None: each model its own.
      priced_as: its name in the price table, where that is another.
    """

    module: str
    key_variable: str | None = None
    base_url_variable: str | None = None
    base_url: str | None = None
    option_variables: Mapping[str, str] = {}
    batch_share: float | None = 0.5
    priced_as: str | None = None


_DIALECT = "beam_llm.providers.openai"
"""The module of everybody who speaks OpenAI's dialect; what each takes otherwise is in its
`servers.py`.
"""

PROVIDERS = {
    "openai": ProviderSpec(
        _DIALECT,
        "OPENAI_API_KEY",
        "OPENAI_BASE_URL",
        "https://api.openai.com/v1",
    ),
    "azure": ProviderSpec(_DIALECT, "AZURE_OPENAI_API_KEY", "AZURE_OPENAI_ENDPOINT"),
    "anthropic": ProviderSpec(
        "beam_llm.providers.anthropic",
        "ANTHROPIC_API_KEY",
        "ANTHROPIC_BASE_URL",
        "https://api.anthropic.com",
    ),
    "gemini": ProviderSpec(
        "beam_llm.providers.gemini",
        "GEMINI_API_KEY",
        "GEMINI_BASE_URL",
        "https://generativelanguage.googleapis.com",
        priced_as="google",
    ),
    "vertex": ProviderSpec(
        "beam_llm.providers.vertex",
        None,
        "VERTEX_BASE_URL",
        option_variables={"project": "GOOGLE_CLOUD_PROJECT", "region": "GOOGLE_CLOUD_LOCATION"},
        priced_as="google",
    ),
    "bedrock": ProviderSpec(
        "beam_llm.providers.bedrock",
        option_variables={"region": "AWS_REGION"},
        priced_as="aws",
    ),
    "mistral": ProviderSpec(
        _DIALECT, "MISTRAL_API_KEY", "MISTRAL_BASE_URL", "https://api.mistral.ai"
    ),
    "openrouter": ProviderSpec(
        _DIALECT,
        "OPENROUTER_API_KEY",
        "OPENROUTER_BASE_URL",
        "https://openrouter.ai/api/v1",
        batch_share=None,
    ),
    "together": ProviderSpec(
        _DIALECT, "TOGETHER_API_KEY", "TOGETHER_BASE_URL", "https://api.together.xyz/v1"
    ),
    "groq": ProviderSpec(
        _DIALECT, "GROQ_API_KEY", "GROQ_BASE_URL", "https://api.groq.com/openai/v1"
    ),
    "fireworks": ProviderSpec(
        _DIALECT,
        "FIREWORKS_API_KEY",
        "FIREWORKS_BASE_URL",
        "https://api.fireworks.ai/inference/v1",
        option_variables={"account_id": "FIREWORKS_ACCOUNT_ID"},
    ),
    "deepinfra": ProviderSpec(
        _DIALECT,
        "DEEPINFRA_API_KEY",
        "DEEPINFRA_BASE_URL",
        "https://api.deepinfra.com/v1/openai",
        batch_share=0.8,
    ),
    "xai": ProviderSpec(
        _DIALECT,
        "XAI_API_KEY",
        "XAI_BASE_URL",
        "https://api.x.ai/v1",
        batch_share=0.8,
        priced_as="x-ai",
    ),
}
"""In the order in which they are shown: by how many people use them. Shares are of the providers'
price pages, 2026-11; DeepInfra's of deepinfra.com/blog/batch-api, xAI's of `cost_in_usd_ticks` of
recorded batch traffic, 2026-08.
"""

_OWN = frozenset(PROVIDERS)


def added_providers() -> dict[str, ProviderSpec]:
    """The rows that other packages have put in: `Settings` take them along to workers."""
    return {name: spec for name, spec in PROVIDERS.items() if name not in _OWN}


EXAMPLE_MODEL = "openai:gpt-4.1-mini"
"""For messages that show how a model is named."""

FAMILIES = {"claude": "anthropic", "gemini": "gemini", "mistral": "mistral", "grok": "xai"}
"""How the models of one provider are called → the provider, for whoever names a model alone."""

ANYTHING_ELSE = "anything OpenAI-compatible is 'openai:NAME' with base_url"
"""For whoever names a provider that has no row."""

BATCH_SHARES = {
    spec.priced_as or name: spec.batch_share
    for name, spec in PROVIDERS.items()
    if spec.batch_share is not None
}
"""Name in the price table → `ProviderSpec.batch_share`. Elsewhere: the live price."""

EMBED_BATCH_SHARES = {"vertex": 0.8}
"""Provider → what a vector by its batch API costs as a share of the live price, where that is
another share than an answer's. Source: what others quote of Vertex AI's prices (text embeddings:
$0.000025 and $0.00002 by 1,000 characters), 2026-11; taken for Gemini's embeddings, too.
"""

TIER_SHARES: Mapping[tuple[str, str], float | None] = {
    ("google", "flex"): 0.5,
    ("google", "priority"): None,
    ("aws", "flex"): None,
    ("aws", "priority"): None,
    ("fireworks", "priority"): None,
}
"""Name in the price table and service tier → what the tier costs as a share of the live price,
where the table has no price of it; None: more or less than that, and it isn't known how much.
Elsewhere: the live price. Source: Gemini API, "Optimization" (flex: 50 %; priority: 75 % to 100 %
more); aws.amazon.com/bedrock/service-tiers (a discount, a premium); docs.fireworks.ai/serverless
(priority: a higher price), read 2026-11.
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
    "gemini:gemini-2.5-flash": 1_048_576,
    "gemini:gemini-2.5-flash-lite": 1_000_000,
    "anthropic:claude-haiku-4-5": 200_000,
    "anthropic:claude-sonnet-4-5": 200_000,
    "vertex:gemini-2.5-flash": 1_048_576,
    "vertex:gemini-2.5-flash-lite": 1_000_000,
    "mistral:mistral-small-2603": 262_144,
    "mistral:mistral-large-2512": 262_144,
    "groq:openai/gpt-oss-20b": 131_072,
    "groq:openai/gpt-oss-120b": 131_072,
    "together:openai/gpt-oss-120b": 131_072,
    "openrouter:openai/gpt-4.1-mini": 1_047_576,
    "xai:grok-4.3": 1_000_000,
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

THINKING_MODELS = (
    r"(^|/)o\d|gpt-[5-9]|gpt-oss|reason|think|-r1|qwq|magistral|grok-[3-9]|grok-code"
    r"|gemini-(2\.5|[3-9]|.*latest)|claude-(opus|sonnet|haiku|fable|mythos)-[5-9]"
    r"|qwen-?3(?!.*instruct)|glm-(4\.[5-9]|[5-9])|minimax-m\d|deepseek-v(3[.p][1-9]|[4-9])"
    r"|kimi-k(2[.p][5-9]|[3-9])|nemotron-3|seed-oss"
)
"""Names of models that think before they answer, and need room for that in the length of a reply.
Source: the models' cards, 2026-11. One too many only makes a limit larger.
"""
