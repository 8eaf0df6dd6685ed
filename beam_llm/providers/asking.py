"""Sends requests in a form that the endpoint accepts: when it refuses one form, another is tried,
and what is learned from that applies to all further calls.

    answer = await ask_in_form(form, request, send, error_of_answer, announce)

    refused ─┬─ for something else ────────────────────────────────────────► raised
             └─ for its form ─► asked in another ─┬─ refused for something else ─► raised
                                                  └─ answered ─► learned, unless the record has the
                                                     words that were read: it may have been quoted

A refusal may quote the prompt. So its words alone teach nothing: nothing is learned where the other
form fails, too, or where the words may come from a record.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Awaitable, Callable, Hashable
from typing import TYPE_CHECKING, Protocol, TypeVar

from beam_llm.errors import CallError
from beam_llm.providers.http import Answer
from beam_llm.values import Request

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    class Form(DataclassInstance, Protocol):
        """What an endpoint accepts, as far as it is known by now; a dataclass."""

        @property
        def key(self) -> Hashable:
            """What a request's bytes depend on."""

        def learn(self, error: CallError, text: str) -> bool:
            """Switches to another form where the refusal was about this one. Returns whether there
            was another one left.

            Args:
              text: the server's own words, where `error` holds them shortened. Read in time that
                grows with its length.
            """


F = TypeVar("F", bound="Form")

MOST_READ_BYTES = 4_000
"""Of a refusal's body that is read."""


async def ask_in_form(
    known: F,
    request: Request,
    send: Callable[[F], Awaitable[Answer]],
    error_of_answer: Callable[[Answer], CallError],
    announce: Callable[[CallError], None],
) -> Answer:
    """The good answer to a request, sent in the form that is known, or in another.

    Args:
      known: what all calls to the endpoint share; changed where something is learned.
      send: makes one call in a form.
      announce: receives the refusal that something was learned from.

    Raises:
      CallError: of the last call.
    """
    while True:
        sent = known.key
        answer = await send(known)
        if answer.status < 300:
            return answer
        error = error_of_answer(answer)
        if known.key == sent:
            return await _ask_in_another(
                known, answer, error, request, send, error_of_answer, announce
            )
        # Meanwhile another call has learned it.


async def _ask_in_another(
    known: F,
    answer: Answer,
    error: CallError,
    request: Request,
    send: Callable[[F], Awaitable[Answer]],
    error_of_answer: Callable[[Answer], CallError],
    announce: Callable[[CallError], None],
) -> Answer:
    before, form, first, is_certain = _copied(known), _copied(known), error, True
    while answer.status >= 300:
        tried = _copied(form)
        if not form.learn(error, answer.body[:MOST_READ_BYTES].decode("utf-8", "replace")):
            raise error
        is_certain &= not _may_quote(tried, form, error, request)
        answer = await send(form)
        if answer.status >= 300:
            error = error_of_answer(answer)
    if is_certain and known.key == before.key:  # else another call has learned something
        for field in dataclasses.fields(before):
            if getattr(form, field.name) != getattr(before, field.name):
                setattr(known, field.name, getattr(form, field.name))
        announce(first)
    return answer


def _copied(form: F) -> F:
    return dataclasses.replace(form)


def _may_quote(tried: F, form: F, error: CallError, request: Request) -> bool:
    """Whether the record's own text would have taught the same. The part that all prompts share is
    the user's, and may be trusted.
    """
    texts = (m.content[m.shared :] for m in request.messages if m.role != "system")
    return tried.learn(error, "\n".join(texts)) and tried.key == form.key
