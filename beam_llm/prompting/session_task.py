"""One use of a chat model in sessions: a turn is asked after the turns before it. Pure: no I/O, no
clock.

turns before it ─► exchanges ─ recent() ─► those there is room for
                                  └ SessionTask.after() ─► a task whose prompts begin with them
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import orjson

from beam_llm.errors import USER_CODE_ERRORS
from beam_llm.prompting.chat_task import ChatTask
from beam_llm.prompting.reply_format import MESSAGE_TOKENS
from beam_llm.prompting.tokens import estimate_tokens
from beam_llm.values import Message, Record, Request


class Exchange(NamedTuple):
    """A turn that was answered, as later prompts of its session show it. Part of the state format
    `v1`: fields are only ever appended.

    Attributes:
      message: what the user said.
      reply: what the model answered.
      tokens: estimated, of both and their borders.
    """

    message: str
    reply: str
    tokens: int


class SessionTask(ChatTask):
    """A `ChatTask` that can be asked after an exchange of messages.

        task = providers.compile_task(settings("openai:gpt-4.1-mini", task="session"))
        first = task.record({}, "I am Ada.")
        history = [task.exchange(first, "Hello, Ada.")]
        request = task.after(history).render([task.record({}, "Who am I?")])
        [message.role for message in request.messages]      # ["user", "assistant", "user"]

    Messages of users and replies take turns: an exchange has one of each, and neither is blank.
    """

    _history: tuple[Exchange, ...] = ()

    def after(self, history: Sequence[Exchange]) -> SessionTask:
        """The same question, asked after these exchanges."""
        # Compiled once and for all: nothing but what comes before its prompts differs.
        later = copy.copy(self)
        later._history = tuple(history)
        return later

    def exchange(self, record: Record, value: Any) -> Exchange | None:
        """What later prompts show of a turn; None where there is nothing to show.

        A reply is shown in the shape in which one record's reply is asked for. Providers refuse
        blank messages, and would refuse every later turn for one: such an exchange is left out.
        """
        message = self.message(record)
        try:
            reply = self._reply(value)
        except USER_CODE_ERRORS:  # of a class of the user's, which gives no JSON
            return None
        if not message.strip() or not reply.strip():
            return None
        return Exchange(message, reply, self.tokens(message) + self.tokens(reply))

    def message(self, record: Record) -> str:
        """What the user said, without words on how to reply."""
        return self._template.fill(record.inputs)

    @staticmethod
    def tokens(text: str) -> int:
        """Estimated tokens of a message."""
        return estimate_tokens(text) + MESSAGE_TOKENS

    def _reply(self, value: Any) -> str:
        if self.output.is_text:
            return str(value)
        answer = self.dump(value)
        whole = answer if self.output.is_object else {"value": answer}
        return orjson.dumps(whole).decode()

    def render(self, records: Sequence[Record], enforced: bool = True, note: str = "") -> Request:
        """The request for the next turns, behind the exchanges before them."""
        request = super().render(records, enforced, note)
        if not self._history:
            return request
        *before, last = request.messages
        earlier = [
            message
            for exchange in self._history
            for message in (Message("user", exchange.message), Message("assistant", exchange.reply))
        ]
        return dataclasses.replace(
            request,
            messages=(*before, *earlier, last),
            input_tokens=request.input_tokens + sum(each.tokens for each in self._history),
        )


def recent(history: Sequence[Exchange], most_turns: int, most_tokens: int) -> list[Exchange]:
    """The newest exchanges within both bounds, in their order: the oldest are left out first."""
    kept: list[Exchange] = []
    for exchange in reversed(history[max(len(history) - most_turns, 0) :]):
        most_tokens -= exchange.tokens
        if most_tokens < 0:
            break
        kept.append(exchange)
    return kept[::-1]
