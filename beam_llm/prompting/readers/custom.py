"""Replies that only a user's own parser can read."""

from __future__ import annotations

from collections.abc import Mapping

from beam_llm.errors import USER_CODE_ERRORS
from beam_llm.prompting.readers import Found, Parser
from beam_llm.prompting.readers.depth import replace_deep_answers


class CustomReader:
    """A user's `parser(text, count)`, which gives a mapping or pairs of index and answer."""

    def __init__(self, parser: Parser):
        self._parser = parser

    def find(self, text: str, count: int, cut: bool) -> Found:
        try:
            parsed = self._parser(text, count)
            pairs = parsed.items() if isinstance(parsed, Mapping) else parsed
            return Found(replace_deep_answers([(index, answer) for index, answer in pairs]), set())
        except USER_CODE_ERRORS as error:
            # A user's function may fail on anything: then the reply can't be read.
            raise ValueError(f"its parser raised {type(error).__name__}") from error
