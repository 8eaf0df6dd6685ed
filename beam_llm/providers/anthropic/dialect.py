"""What one endpoint of the Messages API takes, and how that is learned: the form of a reply, and
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
    """What one endpoint takes of a model.

    It starts from what the model's name tells and learns from refusals: an endpoint without
    structured outputs is asked for the input of a tool that it has to use, then in words alone.

    Attributes:
      reply_format: how a reply's shape is asked for.
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
        """What a request's form hangs on."""
        return self.reply_format, self.takes_temperature

    def learn(self, error: CallError, text: str) -> bool:
        """Whether the refusal was about the request's form and another form is left to try.

        Args:
          text: the server's own words, where `error` holds them shortened.
        """
        # Anthropic says 400; servers that check bodies by FastAPI's own means say 422.
        if error.status not in (400, 422):
            return False
        # From the strictest form to the loosest, one step for each refusal: the next one is sent
        # before anything is concluded from this sentence about the form after it.
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
"""A schema that is refused for what is in it is no sign that there are none."""

_TOO_LARGE = re.compile(r"(compiled grammar is too large|schema is too complex)", re.IGNORECASE)
"""Of a schema that is beyond the API's grammars. Source: anthropics/anthropic-sdk-python#1185,
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
