"""Live calls of the Converse API."""

from __future__ import annotations

import logging
from functools import partial

import yarl

from beam_llm.errors import CallError
from beam_llm.providers.asking import ask_in_form
from beam_llm.providers.bedrock.calls import BedrockCalls
from beam_llm.providers.bedrock.forms import SCHEMA, Form, form_of
from beam_llm.providers.bedrock.place import Place
from beam_llm.providers.bedrock.wire import decode_reply, encode_body
from beam_llm.providers.http import Answer
from beam_llm.values import Completion, Request

_log = logging.getLogger(__name__)


class BedrockChat:
    """Live calls (a CompletionProvider). Created anywhere, used and closed on one event loop."""

    def __init__(
        self,
        place: Place,
        calls: BedrockCalls,
        *,
        service_tier: str | None = None,
        is_cached: bool = True,
    ):
        self._place, self._calls = place, calls
        self._service_tier, self._is_cached = service_tier, is_cached
        self._forms: dict[str, tuple[yarl.URL, Form]] = {}

    async def complete(self, request: Request, timeout_seconds: float) -> Completion:
        """Makes one call within `timeout_seconds`, including connecting and reading. The same
        question is repeated at once only in another form, where the model refuses the form (see
        `Form`).

        Raises:
          CallError: Retryable, Rejected or Aborted.
        """
        url, form = self._model(request.model)

        async def send(form: Form) -> Answer:
            body = encode_body(request, form, self._service_tier, is_cached=self._is_cached)
            return await self._calls.post(url, body, timeout_seconds)

        _, headers, reply = await ask_in_form(
            form, request, send, self._calls.error_of, partial(self._announce, form)
        )
        request_id = headers.get("x-amzn-requestid")
        return decode_reply(reply, request.model, request_id, self._calls.context)

    def _model(self, model: str) -> tuple[yarl.URL, Form]:
        found = self._forms.get(model)
        if found is None:
            url = self._place.converse_url(model)
            # As it is signed: a colon in the model's name stays `%3A`.
            found = self._forms[model] = yarl.URL(url, encoded=True), form_of(url, model)
        return found

    def _announce(self, form: Form, error: CallError) -> None:
        _log.warning(
            "%s: from now on replies of %s are asked for by %s, with %s temperature",
            error.message,
            self._place.model,
            form.reply_format,
            "a" if form.takes_temperature else "no",
        )

    @property
    def enforces_schemas(self) -> bool:
        """Whether the server enforces the schema that is sent; for a tool's input it doesn't."""
        return self._model(self._place.model)[1].reply_format == SCHEMA

    def note_ignored_schema(self, request: Request) -> None:
        """Does nothing: models that take schemas enforce them, and others are already sent it in
        the only other way.
        """

    async def close(self) -> None:
        """Closes the connections; harmless to repeat."""
        await self._calls.close()
