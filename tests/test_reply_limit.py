"""A limit on replies where the type of an answer gives one: generous, never a user's, and gone
where a model needs more.
"""

from __future__ import annotations

import asyncio
import enum
import re
from typing import Any, Literal

import pydantic
import pytest

from beam_llm.calls.reply_limit import default_limit, longest_answer_tokens
from beam_llm.config import settings
from beam_llm.errors import Kind
from beam_llm.prompting.output_types import Output
from beam_llm.provider_table import THINKING_MODELS
from beam_llm.providers import compile_task
from beam_llm.testing.fakes import FakeProvider
from beam_llm.values import Completion, Finish, Usage
from tests.test_engine import ask, ask_all, kinds, values

MODEL = "gpt-4.1-mini"


class Mood(enum.Enum):
    GLAD = "glad"
    SAD = "sad"


class Review(pydantic.BaseModel):
    mood: Mood
    words: str


@pytest.mark.parametrize(
    ("output", "is_bounded"),
    [
        pytest.param(Literal["yes", "no"], True, id="Literal"),
        pytest.param(Literal[1, 2, 3], True, id="Literal of numbers"),
        pytest.param(Mood, True, id="Enum"),
        pytest.param(bool, True, id="bool"),
        pytest.param(int, True, id="int"),
        pytest.param(str, False, id="str"),
        pytest.param(list[int], False, id="list"),
        pytest.param(Review, False, id="with a text in it"),
    ],
)
def test_types_of_bounded_length_have_a_limit(output, is_bounded):
    assert (default_limit(Output(output).schema, 5, MODEL) is not None) is is_bounded


def test_the_limit_is_generous_and_grows_with_records_and_words():
    short, long = (
        Output(Literal["a", "b"]).schema,
        Output(Literal["a", "a label of many words, like those of insurance codes"]).schema,
    )
    assert longest_answer_tokens(long) > longest_answer_tokens(short)
    for records in (1, 20):
        # Twice what an indexed, spaced-out answer takes.
        assert default_limit(short, records, MODEL) >= 100 + 25 * records
        assert default_limit(long, records, MODEL) > default_limit(short, records, MODEL)


@pytest.mark.parametrize(
    "model",
    [
        "o3-mini",
        "gpt-5.4",
        "deepseek/deepseek-r1",
        "qwq-32b",
        "openai/o1",
        "grok-4",
        "Qwen3-Thinking",
    ],
)
def test_models_that_think_have_none(model):
    assert default_limit(Output(bool).schema, 5, model) is None


# In the engine
# ------------------------------------------------------------------------------------------------------------


def asked(provider: FakeProvider, count: int = 3, **options: Any):
    known = settings(
        "openai:fake", output=Literal["yes", "no"], base_url="http://localhost/v1", **options
    )
    return ask(provider, ["a"] * count, task=compile_task(known), **options)


def reply(count: int, tokens: int, finish: Finish = Finish.STOP) -> Completion:
    text = "{" + ",".join(f'"{i}":"yes"' for i in range(1, count + 1)) + "}"
    return Completion(text if finish is Finish.STOP else text[:5], finish, Usage(10, tokens))


class Replies(FakeProvider):
    """Gives these replies, the last of them for ever."""

    def __init__(self, *replies: Any):
        super().__init__()
        self._left = list(replies)

    async def complete(self, request, timeout_seconds):
        self.sent.append(request)
        given = self._left.pop(0) if len(self._left) > 1 else self._left[0]
        return given(request) if callable(given) else given

    @property
    def limits(self) -> list[int | None]:
        return [request.max_output_tokens for request in self.sent]


def test_a_reply_gets_a_limit_where_the_user_gave_none():
    provider = Replies(reply(3, 15))
    assert values(asked(provider)) == ["yes"] * 3
    (limit,) = provider.limits
    assert limit is not None


@pytest.mark.parametrize(
    "options", [{"max_output_tokens": 7}, {"extra_body": {"max_tokens": 900}}], ids=str
)
def test_a_users_limit_is_his(options):
    provider = Replies(reply(3, 15))
    asked(provider, **options)
    ours = default_limit(Output(Literal["yes", "no"]).schema, 3, "fake")
    assert ours not in provider.limits


def thinking(request, tokens: int = 4_000):
    return (
        reply(1, tokens)
        if request.max_output_tokens is None
        else reply(1, request.max_output_tokens if tokens else 0, Finish.LENGTH)
    )


@pytest.mark.parametrize("tokens", [4_000, 0], ids=["counted", "not counted"])
def test_a_model_that_thinks_is_asked_again_without_the_limit_and_later_never_with_it(tokens):
    provider = Replies(lambda request: thinking(request, tokens))
    known = settings("openai:fake", output=Literal["yes", "no"], base_url="http://localhost/v1")
    ended = ask_all(provider, [["a"], ["b"], ["c"]], together=False, task=compile_task(known))
    assert [values(one) for one in ended] == [["yes"]] * 3
    assert [limit is None for limit in provider.limits] == [False, True, True, True]


class OneAfterTheOther(Replies):
    """Each call takes a second more than the one before, as those without a limit do not."""

    begun = 0

    async def complete(self, request, timeout_seconds):
        self.begun += 1
        await asyncio.sleep(0.5 if request.max_output_tokens is None else self.begun)
        return await super().complete(request, timeout_seconds)


def test_replies_under_way_when_it_shows_that_the_model_thinks_are_asked_for_again_too():
    provider = OneAfterTheOther(thinking)
    known = settings("openai:fake", output=Literal["yes", "no"], base_url="http://localhost/v1")
    ended = ask_all(provider, [["a"], ["b"], ["c"], ["d"]], task=compile_task(known))
    assert [values(one) for one in ended] == [["yes"]] * 4


def test_a_model_that_runs_on_without_end_is_let_run_once():
    provider = Replies(
        lambda request: reply(1, request.max_output_tokens or 100_000, Finish.LENGTH)
    )
    known = settings("openai:fake", output=Literal["yes", "no"], base_url="http://localhost/v1")
    ended = ask_all(provider, [["a"], ["b"], ["c"]], together=False, task=compile_task(known))
    assert [kinds(one) for one in ended] == [[Kind.TRUNCATED]] * 3
    assert provider.limits.count(None) == 1


@pytest.mark.parametrize(
    ("model", "thinks"),
    [
        ("gpt-5-mini", True),
        ("gpt-6-luna", True),
        ("openai.gpt-6.1-sol", True),
        ("gemini-flash-latest", True),
        ("kimi-k2.6", True),
        ("openai/o4-mini", True),
        ("openai/gpt-oss-20b", True),
        ("magistral-small-latest", True),
        ("grok-4.3", True),
        ("Qwen/Qwen3-235B-A22B", True),
        ("Qwen/Qwen3-235B-A22B-Instruct-2507", False),
        ("zai-org/GLM-4.6", True),
        ("accounts/fireworks/models/deepseek-v3p2", True),
        ("deepseek/deepseek-r1", True),
        ("moonshotai/kimi-k2-thinking", True),
        ("moonshotai/kimi-k2-instruct", False),
        ("MiniMaxAI/MiniMax-M3", True),
        ("meta-llama/Llama-3.3-70B-Instruct-Turbo", False),
        ("mistral-small-latest", False),
        ("gpt-4.1-mini", False),
        ("claude-haiku-4-5", False),
    ],
)
def test_a_model_that_thinks_first_is_known_by_its_name(model, thinks):
    assert bool(re.search(THINKING_MODELS, model, re.IGNORECASE)) is thinks
