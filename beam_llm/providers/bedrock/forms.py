"""How a reply's schema is requested, model by model, and how that is learned.

Source: Bedrock user guide, "Structured outputs", "Tool use" and "Prompt caching" (tables of
supported models), read 2026-11. An unknown name is taken for a new model's.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from beam_llm.errors import CallError
from beam_llm.providers.anthropic import models

SCHEMA, TOOL, WORDS = "outputConfig", "toolConfig", "words"

_IN_WORDS = re.compile(r"titan|meta\.llama|llama[23]|ai21|jamba|j2-|stability|claude-(instant|v2)")
"""Models that have no tools, or can't be made to use one."""

_BY_TOOL = re.compile(
    r"nova|cohere\.command-r|mistral-large-24|mistral\.mi[sx]tral|pixtral"
    r"|claude-3|claude-(opus|sonnet)-4-(2025|[01]\b)"
)
"""Models from before structured outputs, which came to Bedrock in February 2026."""

_CACHES: tuple[tuple[str, int], ...] = (
    (r"claude-(opus-4-[56]|haiku-4-5)", 4_096),
    (r"claude-(3-5-haiku|haiku-3)", 2_048),
    (r"claude-(3-5-sonnet-20241022|3-7|sonnet|opus|haiku|fable|mythos)", 1_024),
    (r"amazon\.nova-(micro|lite|pro|premier|2)", 1_024),
)
"""Models with a cache, and the fewest tokens of a prefix that is cached."""


@dataclass(slots=True)
class Form:
    """What one model accepts.

    Attributes:
      reply_format: `outputConfig`: replies are held to their schema; `toolConfig`: a tool that has
        to be used takes the reply as its input; `words`: the schema stands in the system prompt.
      takes_temperature: a temperature may be sent.
      cached_from_tokens: how long a prefix has to be to be kept in a cache; None: there is none.
      takes_tools: a tool may be sent; not in a job's lines. Source: Bedrock user guide, "Process
        multiple prompts with batch inference", read 2026-11.
    """

    reply_format: str = SCHEMA
    takes_temperature: bool = True
    cached_from_tokens: int | None = None
    takes_tools: bool = True

    @classmethod
    def of(cls, model: str, is_live: bool = True) -> Form:
        """The form that the model is known to accept."""
        form = WORDS if _IN_WORDS.search(model) else TOOL if _BY_TOOL.search(model) else SCHEMA
        tokens = next((least for name, least in _CACHES if re.search(name, model)), None)
        return cls(form, models.takes_temperature(model), tokens, is_live)

    @property
    def key(self) -> tuple[str, bool, int | None]:
        """What a request's bytes depend on."""
        return self.reply_format, self.takes_temperature, self.cached_from_tokens

    def learn(self, error: CallError, text: str) -> bool:
        """Switches to another form if the refusal was about this one. Returns whether it did.

        Args:
          text: the server's own words, where `error` holds them shortened.
        """
        if error.status != 400:
            return False
        if self.reply_format == SCHEMA and _ABOUT_SCHEMAS.search(text):
            self.reply_format = TOOL
        elif self.reply_format == TOOL and _ABOUT_TOOLS.search(text):
            self.reply_format = WORDS
        elif self.takes_temperature and _ABOUT_TEMPERATURE.search(text):
            self.takes_temperature = False
        elif self.cached_from_tokens is not None and _ABOUT_CACHES.search(text):
            self.cached_from_tokens = None
        else:
            return False
        return True


_ABOUT_SCHEMAS = re.compile(
    r"output_?config|text_?format|output.?format|structured.?output", re.IGNORECASE
)
_ABOUT_TOOLS = re.compile(r"tool_?choice|tool_?config|tool.?use|\btools?\b", re.IGNORECASE)
_ABOUT_TEMPERATURE = re.compile(r"temperature", re.IGNORECASE)
_ABOUT_CACHES = re.compile(r"cache_?point|prompt caching|cache_control", re.IGNORECASE)


def refuses_form(text: str) -> bool:
    """Whether a refusal is about how a request is written, and not about what is in it."""
    abouts = (_ABOUT_SCHEMAS, _ABOUT_TOOLS, _ABOUT_TEMPERATURE, _ABOUT_CACHES)
    return any(about.search(text) for about in abouts)


known_forms: dict[tuple[str, str], Form] = {}


def form_of(url: str, model: str) -> Form:
    """What this process knows of a model at an address; shared, so that a refusal is learned from
    once.
    """
    return known_forms.setdefault((url, model), Form.of(model))
