"""What one endpoint accepts of the chat-completions dialect, and how that is learned."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from beam_llm.errors import CallError
from beam_llm.providers.openai.servers import (
    JSON_OBJECT,
    JSON_SCHEMA,
    MAX_COMPLETION_TOKENS,
    MAX_TOKENS,
    WORDS,
    Server,
)
from beam_llm.values import Request


@dataclass(slots=True)
class Dialect:
    """What one endpoint accepts: how a reply's shape is requested, and how its length is limited.

    It starts from the server's row for the model and learns from refusals: an endpoint that refuses
    JSON schemas is asked for a JSON object, and then in words alone. One that accepts a schema and
    doesn't follow it gets it in words as well.

    Attributes:
      reply_format: the `type` of `response_format`, or `words` for none.
      tokens_field: the parameter that limits a reply's length.
      is_enforced: the endpoint is known to enforce schemas, so that nothing is learned from a reply
        that isn't JSON.
      also_in_words: the schema is sent and put into a system message, too. That costs some tokens
        and never an answer: one damaged reply may come from a server that does enforce schemas.
      works, failures: whether this form ever got anything but failures, and the number of failures.
      is_strict: the schema is sent in strict mode, where it can be.
      beside_a_schema: further fields of a request that has a schema.
      seed_field: the parameter for a seed.
      has_bare_urls: an image's address is a string, and not an object with a `url`.
      takes_temperature: a temperature may be sent.
    """

    reply_format: str = JSON_SCHEMA
    tokens_field: str = MAX_TOKENS
    is_enforced: bool = False
    also_in_words: bool = False
    works: bool = False
    failures: int = 0
    is_strict: bool = True
    beside_a_schema: Mapping[str, Any] = field(default_factory=dict)
    seed_field: str = "seed"
    has_bare_urls: bool = False
    takes_temperature: bool = True

    @classmethod
    def of(cls, model: str, server: Server, is_live: bool = False) -> Dialect:
        """The dialect by the server's row for the model.

        Args:
          is_live: for live calls; with some servers, bodies in a batch have fewer fields or another
            form.
        """
        form = server.form_of(model, is_live)
        return cls(
            form.reply_format,
            server.tokens_field,
            server.is_enforced,
            form.also_in_words,
            is_strict=form.is_strict,
            beside_a_schema=server.beside_a_schema if is_live else {},
            seed_field=server.seed_field,
            has_bare_urls=server.has_bare_urls,
        )

    @property
    def key(self) -> tuple[str, str, bool]:
        """What a request's form depends on, as far as refusals can change it."""
        return self.reply_format, self.tokens_field, self.takes_temperature

    def learn(self, error: CallError, text: str | None = None) -> bool:
        """Switches to the next form where the refusal was about this one. Returns whether there
        was another one left.

        Args:
          text: the server's own words, where `error` holds them shortened. They count more than the
            status: most servers refuse a schema with a 400 or 422, some with a 500 or 501.
        """
        if error.status is None or error.status < 400 or error.status in _NOT_ABOUT_THE_FORM:
            return False
        text = error.message if text is None else text
        may_be_the_schema = error.status in (400, 422) or error.status >= 500
        if _ABOUT_THE_SHAPE.search(text) or (may_be_the_schema and _ABOUT_A_GRAMMAR.search(text)):
            return self.step_down()
        if self.takes_temperature and _ABOUT_TEMPERATURE.search(text):
            self.takes_temperature = False
            return True
        if _ABOUT_TOKENS[self.tokens_field].search(text):
            self.tokens_field = (
                MAX_COMPLETION_TOKENS if self.tokens_field == MAX_TOKENS else MAX_TOKENS
            )
            return True
        return False

    def simpler(self, request: Request, error: CallError) -> Dialect | None:
        """A form to try where a server has only failed so far: after four bare 500s to a schema,
        and after twelve; otherwise None.
        """
        if (
            self.works
            or self.is_enforced
            or request.schema is None
            or error.status not in (500, 501)
            or self.reply_format == WORDS
        ):
            return None
        self.failures += 1
        # A bare 500 may be an outage, so a trial comes after several of them, and twice at most.
        if self.failures not in (4, 12):
            return None
        return replace(
            self, reply_format=JSON_OBJECT if self.reply_format == JSON_SCHEMA else WORDS
        )

    def step_down(self) -> bool:
        """Switches to a simpler form for good; returns False where there is none."""
        if self.reply_format == WORDS:
            return False
        self.reply_format = JSON_OBJECT if self.reply_format == JSON_SCHEMA else WORDS
        # The new form has to prove itself, and gets its own trials.
        self.works, self.failures = False, 0
        return True

    @property
    def enforces_schemas(self) -> bool:
        """Whether the server enforces the schema that is sent, as far as is known by now."""
        return self.reply_format == JSON_SCHEMA and not self.also_in_words

    def note_ignored_schema(self) -> bool:
        """Notes that a schema was sent and the reply is not JSON: from now on the schema is put
        into words, too. Returns whether that changes anything.
        """
        if self.is_enforced or not self.enforces_schemas:
            return False
        self.also_in_words = True
        return True


_NOT_ABOUT_THE_FORM = (401, 403, 408, 413, 429, 502, 503, 504)


_ABOUT_THE_SHAPE = re.compile(
    "response_format|json_schema|json_object|No endpoints found that (can handle|support)"
)
"""The last is OpenRouter's: none of the model's hosts supports all that was requested."""


_ABOUT_A_GRAMMAR = re.compile(
    r"schema|grammar|guided|structured.?output|constrained", re.IGNORECASE
)
"""Servers that people run themselves: vLLM ("Grammar error: Unknown format: uri", "The provided
JSON schema contains features not supported by xgrammar."), llama.cpp ("Failed to initialize
samplers: failed to parse grammar"), Ollama. Source: z-lab/paroquant#31, lidge-jun/opencodex#2135,
ollama/ollama#8126, read 2026-11.
"""


_ABOUT_TEMPERATURE = re.compile(r"'temperature' (does not support|is not supported)")
"""From OpenAI's reasoning models."""


_ABOUT_TOKENS = {
    field: re.compile(
        rf"(nsupported|nknown|nrecognized|xtra|not permitted).{{0,300}}{field}"
        rf"|{field}.{{0,300}}(not supported|xtra)"
    )
    for field in (MAX_TOKENS, MAX_COMPLETION_TOKENS)
}
"""By the parameter that is refused."""


def refuses_form(sentence: str) -> bool:
    """Whether a refusal is about the form of a request, as `Dialect.learn` learns from it."""
    abouts = _ABOUT_THE_SHAPE, _ABOUT_A_GRAMMAR, _ABOUT_TEMPERATURE, *_ABOUT_TOKENS.values()
    return any(about.search(sentence) for about in abouts)
