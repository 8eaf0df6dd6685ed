"""How long a reply can be at most, where the type of an answer says so: a model that runs on is
cut, and not paid for and waited for.
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
"""What a model may write more than its longest answer: line breaks, spaces, another spelling of the
same JSON.
"""

_THINKS = re.compile(THINKING_MODELS, re.IGNORECASE)
"""Models whose limit counts their thoughts as well.

Others that think are found out by their first reply.
"""


class ReplyLimits:
    """Whether requests get a limit of ours, and what replies have shown about it. One per engine.

    Attributes:
      is_given: requests get one. Ends where a reply without it was longer and good: the model
        thinks before it answers.
      is_right: replies without it ran on all the same; one that is cut is cut for good reason.
    """

    def __init__(self, settings: Settings):
        self.is_given = gives_limits(settings)
        self.is_right = False
        self._known: dict[tuple[int, str], int | None] = {}

    def limit(self, schema: Any, records: int, model: str) -> int | None:
        """What `default_limit` says; `schema` is one and the same for all prompts of an engine."""
        key = records, model
        if key not in self._known:
            self._known[key] = default_limit(schema, records, model)
        return self._known[key]

    def may_be_wrong(self) -> bool:
        """Whether a reply that was cut by our limit should be asked for once without it."""
        # One that was under way when limits ended is wrong for sure.
        return not (self.is_given and self.is_right)

    def learn_without(self, limit: int, *, was_cut: bool, output_tokens: int) -> None:
        """A reply to a request without our `limit`, after one with it had been cut."""
        if was_cut:
            self.is_right = True
        elif output_tokens > limit or not output_tokens:  # not every server tells
            self.is_given = False


def gives_limits(settings: Settings) -> bool:
    """Whether live calls may send a limit of ours: nobody has given one."""
    return settings.max_output_tokens is None and not LIMIT_PARAMETERS & set(
        settings.extra_body or {}
    )


def as_first_sent(request: Request, settings: Settings, schema: Any, records: int) -> Request:
    """The request as a live call sends it first: with the default limit, where there is one to
    give. `schema`: of one answer.
    """
    if not gives_limits(settings) or request.schema is None:
        return request
    limit = default_limit(schema, records, request.model)
    return request if limit is None else dataclasses.replace(request, max_output_tokens=limit)


def default_limit(schema: Any, records: int, model: str) -> int | None:
    """Most output tokens of a reply to so many records where nobody gave a limit, or None where
    there is none to give.

    Args:
      schema: of one answer.
    """
    longest = longest_answer(schema) if isinstance(schema, Mapping) else None
    if longest is None or _THINKS.search(model):
        return None
    return BASE_TOKENS + records * (PER_RECORD_TOKENS + GENEROSITY * longest)


def longest_answer(schema: Mapping[str, Any], root: Mapping[str, Any] | None = None) -> int | None:
    """Tokens of the longest value: of words to choose from, booleans, numbers; None for everything
    that may be of any length.

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
            longest_answer(part, root) if isinstance(part, Mapping) else None for part in either
        ]
        return (
            max(length for length in lengths if length is not None) if None not in lengths else None
        )
    return None
