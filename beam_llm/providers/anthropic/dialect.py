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

_ABOUT_TOOLS = re.compile(r"\btools?\b|tool_choice|tool use", re.IGNORECASE)
_ABOUT_TEMPERATURE = re.compile(r"temperature", re.IGNORECASE)
