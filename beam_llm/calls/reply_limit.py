"""How long a reply can be at most, where the answer's type bounds it: a model that runs on is cut
off, so that nobody pays and waits for the rest.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from beam_llm.config import Settings
from beam_llm.prompting.tokens import estimate_tokens
from beam_llm.provider_table import LIMIT_PARAMETERS, THINKING_MODELS
from beam_llm.values import Request

NUMBER_TOKENS = 16
BASE_TOKENS = 128
PER_RECORD_TOKENS = 24
GENEROSITY = 3
"""Factor by which a reply may exceed its longest answer: line breaks, spaces, another spelling of
the same JSON.
"""

_THINKS = re.compile(THINKING_MODELS, re.IGNORECASE)
"""Models whose limit counts their thoughts as well.

Other models that think are recognised by their first reply.
"""


class ReplyLimits:
    """Whether requests get a default limit, and what replies have shown about it. One per engine.

    Attributes:
      is_given: requests get the limit. No longer after a reply without it was longer and good: the
        model thinks before it answers.
      is_right: replies without the limit ran on all the same, so a reply that it cuts is cut for
        good reason.
    """

    def __init__(self, settings: Settings):
        self.is_given = may_set_limit(settings)
        self.is_right = False
        self._known: dict[tuple[int, str], int | None] = {}

    def limit(self, schema: Any, records: int, model: str) -> int | None:
        """The result of `default_limit`, remembered; `schema` is the same for all prompts of an
        engine.
        """
        key = records, model
        if key not in self._known:
            self._known[key] = default_limit(schema, records, model)
        return self._known[key]

    def may_be_wrong(self) -> bool:
        """Whether to ask once more without our limit after it has cut a reply."""
        # A limit sent before they were dropped is wrong for sure.
        return not (self.is_given and self.is_right)

    def learn_without(self, limit: int, *, was_cut: bool, output_tokens: int) -> None:
        """Learns from a reply without our `limit`, after one with it was cut."""
        if was_cut:
            self.is_right = True
        elif output_tokens > limit or not output_tokens:  # not every server reports its tokens
            self.is_given = False


def may_set_limit(settings: Settings) -> bool:
    """Whether live calls may set the default limit: the user has given none."""
    return settings.max_output_tokens is None and not LIMIT_PARAMETERS & set(
        settings.extra_body or {}
    )


def with_default_limit(request: Request, settings: Settings, schema: Any, records: int) -> Request:
    """The request as a live call first sends it: with the default limit, if there is one. `schema`
    is that of one answer.
    """
    if not may_set_limit(settings) or request.schema is None:
        return request
    limit = default_limit(schema, records, request.model)
    return request if limit is None else dataclasses.replace(request, max_output_tokens=limit)


def default_limit(schema: Any, records: int, model: str) -> int | None:
    """Most output tokens of a reply to this many records where the user gave no limit; None where
    the type gives no bound.

    Args:
      schema: of one answer.
    """
    longest = longest_answer_tokens(schema) if isinstance(schema, Mapping) else None
    if longest is None or _THINKS.search(model):
        return None
    return BASE_TOKENS + records * (PER_RECORD_TOKENS + GENEROSITY * longest)


def longest_answer_tokens(
    schema: Mapping[str, Any], root: Mapping[str, Any] | None = None
) -> int | None:
    """Tokens of the longest value of an enum, a boolean or a number; None for types of unbounded
    length.

    Args:
      root: where `$defs` are; by default the schema itself.
    """
    root = schema if root is None else root
    reference = schema.get("$ref")
    if isinstance(reference, str):
        schema = root.get("$defs", {}).get(reference.rpartition("/")[2], {})
    choices = schema.get("enum") or ([schema["const"]] if "const" in schema else None)
    if choices:
        return max(estimate_tokens(str(choice)) for choice in choices) + 2
    if schema.get("type") in ("boolean", "null"):
        return 2
    if schema.get("type") in ("integer", "number"):
        return NUMBER_TOKENS
    either = schema.get("anyOf", schema.get("oneOf"))
    if isinstance(either, list) and either:
        lengths = [
            longest_answer_tokens(part, root) if isinstance(part, Mapping) else None
            for part in either
        ]
        return (
            max(length for length in lengths if length is not None) if None not in lengths else None
        )
    return None
