"""What one endpoint of the Messages API accepts, and how that is learned: the form of a reply, and
whether there is a temperature.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from beam_llm.errors import CallError
from beam_llm.providers.anthropic import models

SCHEMA, TOOL, WORDS = "output_config", "tool", "words"

TOOL_NAME = "reply"
"""The name of the tool whose input is the reply, for models without structured outputs."""


@dataclass(slots=True)
class Dialect:
    """What one endpoint accepts for a model.

    It starts from the model's name and learns from refusals: without structured outputs, the reply
    is requested as the input of a tool that the model has to use; without tools, in words alone.

    Attributes:
      reply_format: how a reply's shape is requested.
      takes_temperature: a temperature may be sent.
    """

    reply_format: str = SCHEMA
    takes_temperature: bool = True

    @classmethod
    def of(cls, model: str) -> Dialect:
        """What is known of the model behind this address."""
        return cls(
            SCHEMA if models.enforces_schemas(model) else TOOL, models.takes_temperature(model)
        )

    @property
    def key(self) -> tuple[str, bool]:
        """What a request's form depends on."""
        return self.reply_format, self.takes_temperature

    def learn(self, error: CallError, text: str) -> bool:
        """Switches to the next form where the refusal was about this one. Returns whether there
        was another one left.

        Args:
          text: the server's own words, where `error` holds them shortened.
        """
        # Anthropic sends 400; servers that leave the check to FastAPI send 422.
        if error.status not in (400, 422):
            return False
        # From the strictest form to the loosest, one step for each refusal: each form is tried
        # before the one after it.
        if self.reply_format == SCHEMA and _ABOUT_SCHEMAS.search(text):
            self.reply_format = TOOL
            return True
        if self.reply_format == TOOL and _ABOUT_TOOLS.search(text):
            self.reply_format = WORDS
            return True
        if self.takes_temperature and _ABOUT_TEMPERATURE.search(text):
            self.takes_temperature = False
            return True
        return False


_ABOUT_SCHEMAS = re.compile(
    r"output_config\b(?!\.format\.schema)|output_format|structured.?output", re.IGNORECASE
)
"""A schema that is refused for its content doesn't mean that schemas aren't supported."""

_TOO_LARGE = re.compile(r"(compiled grammar is too large|schema is too complex)", re.IGNORECASE)
"""About a schema that is beyond the API's grammars. Source: anthropics/anthropic-sdk-python#1185,
TanStack/ai#682, read 2026-11.
"""

_ABOUT_TOOLS = re.compile(r"\btools?\b|tool_choice|tool use", re.IGNORECASE)
_ABOUT_TEMPERATURE = re.compile(r"temperature", re.IGNORECASE)


def is_beyond_grammars(error: CallError) -> bool:
    """Whether a schema is refused since its grammar would be too large. Only by how the message
    begins: further on it may be quoting a record.
    """
    return _BEYOND.match(error.message) is not None


_BEYOND = re.compile(
    rf"HTTP 400 \w+: (output_config[.\w]*: )?(invalid schema: )?(the )?{_TOO_LARGE.pattern}",
    re.IGNORECASE,
)


def refuses_form(sentence: str) -> bool:
    """Whether a refusal is about how a request is written, and not about what is in it."""
    abouts = (_ABOUT_SCHEMAS, _ABOUT_TOOLS, _ABOUT_TEMPERATURE, _TOO_LARGE)
    return any(about.search(sentence) for about in abouts)
