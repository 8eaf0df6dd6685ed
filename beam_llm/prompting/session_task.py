"""One use of a chat model in sessions: each turn's prompt includes the turns before it. Pure: no
I/O, no clock.

turns before ─► exchanges ─ recent() ─► those for which there is room
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
    """An answered turn, as later prompts of its session show it. Part of the state format `v1`:
    fields are only ever appended.

    Attributes:
      message: the user's message.
      reply: the model's answer.
      tokens: estimated tokens of both messages and their framing.
    """

    message: str
    reply: str
    tokens: int


class SessionTask(ChatTask):
    """A `ChatTask` whose prompts can begin with earlier exchanges.

        task = providers.compile_task(settings("openai:gpt-4.1-mini", task="session"))
        first = task.record({}, "I am Ada.")
        history = [task.exchange(first, "Hello, Ada.")]
        request = task.after(history).render([task.record({}, "Who am I?")])
        [message.role for message in request.messages]      # ["user", "assistant", "user"]

    User messages and replies alternate: an exchange has one of each, and neither is blank.
    """

    _history: tuple[Exchange, ...] = ()

    def after(self, history: Sequence[Exchange]) -> SessionTask:
        """The same question, asked after these exchanges."""
        # Nothing is compiled again: only the history before its prompts differs.
        later = copy.copy(self)
        later._history = tuple(history)
        return later

    def exchange(self, record: Record, value: Any) -> Exchange | None:
        """The turn as later prompts show it; None where there is nothing to show.

        A reply is shown in the shape in which the reply to one record is requested. Providers
        refuse blank messages, and one of them would make every later turn fail, so such an exchange
        is left out.
        """
        message = self.message(record)
        try:
            reply = self._reply(value)
        except USER_CODE_ERRORS:  # raised by a user's class that gives no JSON
            return None
        if not message.strip() or not reply.strip():
            return None
        return Exchange(message, reply, self.tokens(message) + self.tokens(reply))

    def message(self, record: Record) -> str:
        """The user's message, without the words on how to reply."""
        return self._template.fill(record.inputs)

    @staticmethod
    def tokens(text: str) -> int:
        """Estimated tokens of a message."""
        return estimate_tokens(text) + MESSAGE_TOKENS

    def _reply(self, value: Any) -> str:
        if self.output.is_text:
            return str(value)
        answer = self.dump(value)
        reply = answer if self.output.is_object else {"value": answer}
        return orjson.dumps(reply).decode()

    def render(self, records: Sequence[Record], enforced: bool = True, note: str = "") -> Request:
        """The request for the next turns, after the exchanges before them."""
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
    """The newest exchanges within both bounds, oldest first."""
    kept: list[Exchange] = []
    for exchange in reversed(history[max(len(history) - most_turns, 0) :]):
        most_tokens -= exchange.tokens
        if most_tokens < 0:
            break
        kept.append(exchange)
    return kept[::-1]
