"""What every provider of live calls promises (`protocols.CompletionProvider`), one test for each
promise.

    from beam_llm import config, providers
    from beam_llm.testing import Emulator
    from beam_llm.testing.contracts import CompletionProviderContract
    from beam_llm.testing.contracts.completions import emulator_fault

    class TestMyDialect(CompletionProviderContract):
        @pytest.fixture(autouse=True)
        def _server(self):
            with Emulator(keys=(self.key,)) as self.emulator:
                yield

        def provider(self):
            options = {"base_url": self.emulator.base_url, "api_key": self.key_reference}
            return providers.connect(config.settings("openai:m", **options, max_reply_bytes=10**6))

        def arrange(self, situation):
            self.emulator.set_faults(*emulator_fault(situation))

The emulator stands in for a server of OpenAI's dialect; tests of another dialect bring their own.
"""

from __future__ import annotations

import asyncio
import copy
import dataclasses
import enum
import time
import traceback
from collections.abc import Iterable
from dataclasses import replace
from typing import NamedTuple

import pytest

from beam_llm.errors import CallError, Kind, Remedy
from beam_llm.protocols import CompletionProvider
from beam_llm.testing.emulator.faults import Fault
from beam_llm.values import Completion, Finish, Media, Message, Pace, Request, Usage

# Much longer than a call on loopback takes: if it is reached, something hangs.
TIMEOUT_SECONDS = 60.0


class Does(enum.Enum):
    """What a provider's server may do with a call."""

    ANSWER = "answer"
    """The server answers, and the model has finished its reply."""
    CUT = "cut"
    """The reply ends at its token limit."""
    REFUSE = "refuse"
    """The model declines."""
    FILTER = "filter"
    """The provider's filter stops the reply."""
    SAY_NOTHING = "say nothing"
    """The reply has no text."""
    FAIL = "fail"
    """The server answers with an error that has `Situation.status` and `Situation.message`."""
    GARBLE = "garble"
    """The server answers 200 with a body that can't be read."""
    FLOOD = "flood"
    """The server answers 200 with a body that does not end."""
    HANG_UP = "hang up"
    """The connection breaks before there is an answer."""
    BE_SILENT = "be silent"
    """No answer comes."""


class Situation(NamedTuple):
    """What the server does with every call from now on.

    Attributes:
      status: the HTTP status of a failure; a provider without HTTP raises the closest error.
      message: the server's message.
      retry_after_seconds: how long the server asks the client to wait; None where it doesn't say.
    """

    does: Does
    status: int = 0
    message: str = ""
    retry_after_seconds: float | None = None


REMEDIES = {
    400: Remedy.SPLIT,
    413: Remedy.SPLIT,
    422: Remedy.SPLIT,
    401: Remedy.ABORT,
    403: Remedy.ABORT,
    404: Remedy.ABORT,
    408: Remedy.RETRY,
    409: Remedy.RETRY,
    429: Remedy.RETRY,
    500: Remedy.RETRY,
    502: Remedy.RETRY,
    503: Remedy.RETRY,
    504: Remedy.RETRY,
    529: Remedy.RETRY,
}
"""The remedy for each status, unless the message says something else. 404 is for a model or an
address."""


PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR4nGP4z8AAAAMBAQDJ/pLvAAAAAElFTkSuQmCC"
"""A red pixel, in base64."""


class CompletionProviderContract:
    """Tests of a provider of live calls. Subclass it under a name that begins with `Test`, and
    override `provider` and `arrange`.

    Attributes:
      key: the key that the provider has to use; no error may show it.
      key_reference: a reference to it, for `api_key`.
      impossible: what the server can't or doesn't do; tests that need it are skipped.
      takes_images: whether requests may have images.
    """

    # Long, and not made of words: a shorter key might be in an error message by chance.
    key = "sk-contract-0123456789abcdefghij"
    key_reference = "env:CONTRACT_API_KEY"
    impossible: frozenset[Does] = frozenset()
    takes_images = True

    @pytest.fixture(autouse=True)
    def _key_in_the_environment(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("CONTRACT_API_KEY", self.key)

    def provider(self) -> CompletionProvider:
        """A new client with `key`, created inside its event loop; it reads at most 1 MB."""
        raise NotImplementedError(f"{type(self).__name__} must override provider()")

    def arrange(self, situation: Situation) -> None:
        """Makes the server treat every call like this from now on."""
        raise NotImplementedError(f"{type(self).__name__} must override arrange()")

    def request(self) -> Request:
        """A question that the server can answer."""
        return Request(
            "contract-model",
            (Message("system", "Be brief."), Message("user", "How are you?")),
            input_tokens=10,
        )

    def check_answer(self, completion: Completion) -> None:
        """Asserts that the completion is an answer to `request`."""
        assert type(completion.text) is str
        assert completion.text

    # Replies

    def test_a_question_about_an_image_is_answered(self) -> None:
        if not self.takes_images:
            pytest.skip("it takes no images")
        asked = self.request()
        *others, last = asked.messages
        image = Media("photo", "image/png", PNG)
        last = Message(last.role, last.content, media=((len(last.content), image),))
        request = replace(asked, messages=(*others, last))
        assert self._complete(Does.ANSWER, request).text

    def test_an_answer_came_to_its_end(self) -> None:
        completion = self._complete(Does.ANSWER)
        self.check_answer(completion)
        assert completion.finish is Finish.STOP
        assert completion.refusal is None

    def test_a_conversation_is_answered_its_earlier_replies_among_its_messages(self) -> None:
        exchange = (Message("user", "I am Ada."), Message("assistant", "Hello, Ada."))
        request = self.request()
        if not request.messages:
            pytest.skip("it is asked about texts, not in messages")
        *before, last = request.messages
        conversation = dataclasses.replace(request, messages=(*before, *exchange, *exchange, last))
        self._arrange(Situation(Does.ANSWER))
        completion = asyncio.run(self._ask(conversation))
        assert completion.text
        assert completion.finish is Finish.STOP

    def test_a_cut_reply_says_so(self) -> None:
        assert self._complete(Does.CUT).finish is Finish.LENGTH

    def test_a_filtered_reply_says_so(self) -> None:
        assert self._complete(Does.FILTER).finish is Finish.FILTERED

    def test_a_refusal_is_no_answer(self) -> None:
        # Some providers say so in the finish reason, others in a field beside the text; both have
        # to be read.
        completion = self._complete(Does.REFUSE)
        assert completion.finish is Finish.REFUSED or completion.refusal

    def test_a_reply_without_text_has_none(self) -> None:
        completion = self._complete(Does.SAY_NOTHING)
        assert completion.finish is Finish.EMPTY
        assert not completion.text

    @pytest.mark.parametrize(
        "does",
        [Does.ANSWER, Does.CUT, Does.FILTER, Does.REFUSE, Does.SAY_NOTHING],
        ids=lambda does: does.value,
    )
    def test_whatever_a_reply_says_it_is_of_the_right_types(self, does: Does) -> None:
        completion = self._complete(does)
        # Exact types: otherwise a bool would pass for an int, and an enum for a str.
        assert type(completion) is Completion
        assert type(completion.finish) is Finish
        assert type(completion.usage) is Usage
        assert all(type(tokens) is int and tokens >= 0 for tokens in completion.usage)
        assert completion.usage.cached_tokens <= completion.usage.input_tokens
        for text in (
            completion.text,
            completion.request_id,
            completion.refusal,
            completion.service_tier,
        ):
            assert text is None or type(text) is str
        assert type(completion.model) is type(completion.finish_reason) is str
        assert completion.billed_usd is None or type(completion.billed_usd) is float
        assert completion.pace is None or type(completion.pace) is Pace

    def test_an_answer_is_paid_for(self) -> None:
        completion = self._complete(Does.ANSWER)
        assert completion.usage.input_tokens > 0
        # A vector has no output tokens.
        assert completion.usage.output_tokens > 0 or completion.vectors

    def test_asking_leaves_the_request_as_it_was(self) -> None:
        self._arrange(Situation(Does.ANSWER))
        request = self.request()
        # The request is sent again after an error, and in other forms: a change would be sent, too.
        before = copy.deepcopy(request)
        asyncio.run(self._ask(request))
        assert request == before

    def test_one_client_has_many_calls_under_way(self) -> None:
        self._arrange(Situation(Does.ANSWER))

        async def ask_many() -> list[Completion]:
            provider = self.provider()
            try:
                return await asyncio.gather(
                    *(provider.complete(self.request(), TIMEOUT_SECONDS) for _ in range(20))
                )
            finally:
                await provider.close()

        assert [completion.finish for completion in asyncio.run(ask_many())] == [Finish.STOP] * 20

    # Errors

    @pytest.mark.parametrize(("status", "remedy"), REMEDIES.items())
    def test_an_error_names_its_remedy(self, status: int, remedy: Remedy) -> None:
        error = self._fail(Situation(Does.FAIL, status, "something is wrong"))
        assert error.remedy is remedy

    @pytest.mark.parametrize("status", REMEDIES)
    def test_no_error_shows_the_key_though_the_server_repeats_it(self, status: int) -> None:
        error = self._fail(
            Situation(
                Does.FAIL,
                status,
                f"{self.key} is not what I'd like; and once more: Bearer {self.key}.",
            )
        )
        assert not [text for text in all_texts(error) if self.key in text]

    def test_too_many_calls_are_a_throttle(self) -> None:
        error = self._fail(Situation(Does.FAIL, 429, "slow down"))
        # The engine slows down after a throttle, and counts it as a wait, not as a try.
        assert error.is_throttle
        assert error.kind == Kind.RATE_LIMITED

    @pytest.mark.parametrize("status", [429, 503])
    def test_an_overloaded_server_says_when_to_come_back(self, status: int) -> None:
        error = self._fail(Situation(Does.FAIL, status, "overloaded", 7.0))
        assert error.remedy is Remedy.RETRY
        assert error.retry_after_seconds == 7.0
        assert error.is_throttle
        assert self._fail(Situation(Does.FAIL, status, "overloaded")).retry_after_seconds is None

    def test_a_body_that_cant_be_read_is_tried_again(self) -> None:
        # A proxy's page with a 200 says nothing about the request; the next answer may be good.
        error = self._fail(Situation(Does.GARBLE))
        assert (error.remedy, error.kind) == (Remedy.RETRY, Kind.UNREADABLE)

    def test_a_broken_connection_is_tried_again(self) -> None:
        error = self._fail(Situation(Does.HANG_UP))
        assert (error.remedy, error.kind) == (Remedy.RETRY, Kind.UNAVAILABLE)
        # Unlike a 503, no server has said this: another server may be reachable meanwhile.
        assert error.is_ours

    def test_of_a_reply_without_end_only_so_much_is_read(self) -> None:
        # Which of the two depends on whether the bound is reached before or after decoding.
        assert self._fail(Situation(Does.FLOOD)).kind in (Kind.UNREADABLE, Kind.TOO_LARGE)

    def test_silence_ends_at_the_timeout(self) -> None:
        started = time.monotonic()
        error = self._fail(Situation(Does.BE_SILENT), 0.2)
        assert (error.remedy, error.kind) == (Remedy.RETRY, Kind.TIMED_OUT)
        assert error.is_ours
        # Not a measurement, but a check that it was this timeout and not another.
        assert time.monotonic() - started < TIMEOUT_SECONDS / 2

    @pytest.mark.parametrize(
        "does", [Does.GARBLE, Does.HANG_UP, Does.BE_SILENT], ids=lambda does: does.value
    )
    def test_after_an_error_the_client_goes_on(self, does: Does) -> None:
        self._arrange(Situation(does))

        async def ask_twice() -> Completion:
            provider = self.provider()
            try:
                with pytest.raises(CallError):
                    await provider.complete(
                        self.request(), 0.2 if does is Does.BE_SILENT else TIMEOUT_SECONDS
                    )
                self._arrange(Situation(Does.ANSWER))
                return await provider.complete(self.request(), TIMEOUT_SECONDS)
            finally:
                await provider.close()

        assert asyncio.run(ask_twice()).finish is Finish.STOP

    # Ends

    def test_a_cancelled_call_ends_at_once_and_the_client_goes_on(self) -> None:
        self._arrange(Situation(Does.BE_SILENT))

        async def cancel() -> Completion:
            provider = self.provider()
            try:
                # The call is under way when it is cancelled, so that a connection is left with half
                # an answer.
                call = asyncio.ensure_future(provider.complete(self.request(), TIMEOUT_SECONDS))
                await asyncio.wait([call], timeout=0.1)
                call.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await asyncio.wait_for(call, TIMEOUT_SECONDS / 2)
                self._arrange(Situation(Does.ANSWER))
                return await provider.complete(self.request(), TIMEOUT_SECONDS)
            finally:
                await provider.close()

        assert asyncio.run(cancel()).finish is Finish.STOP

    @pytest.mark.parametrize("used", [False, True], ids=["never used", "used"])
    def test_closing_twice_is_harmless(self, used: bool) -> None:
        self._arrange(Situation(Does.ANSWER))

        async def close_twice() -> None:
            provider = self.provider()
            if used:
                await provider.complete(self.request(), TIMEOUT_SECONDS)
            await provider.close()
            await provider.close()

        asyncio.run(close_twice())

    # Helpers

    def _arrange(self, situation: Situation) -> None:
        if situation.does in self.impossible:
            pytest.skip(f"this provider's server does not {situation.does.value}")
        self.arrange(situation)

    def _complete(self, does: Does, request: Request | None = None) -> Completion:
        self._arrange(Situation(does))
        return asyncio.run(self._ask(request or self.request()))

    def _fail(self, situation: Situation, timeout_seconds: float = TIMEOUT_SECONDS) -> CallError:
        self._arrange(situation)
        with pytest.raises(CallError) as caught:
            asyncio.run(self._ask(self.request(), timeout_seconds))
        assert caught.value.kind in Kind.ALL
        return caught.value

    async def _ask(self, request: Request, timeout_seconds: float = TIMEOUT_SECONDS) -> Completion:
        provider = self.provider()
        try:
            return await provider.complete(request, timeout_seconds)
        finally:
            await provider.close()


def emulator_fault(situation: Situation) -> Iterable[Fault]:
    """The situation as faults of `beam_llm.testing.Emulator`."""
    if situation.does is Does.ANSWER:
        return ()
    if situation.does is Does.FAIL:
        # One kind of fault for all statuses, since other kinds have messages of their own.
        status, message = situation.status, situation.message
        return (
            Fault(
                "server_error",
                status=status,
                message=message,
                retry_after=situation.retry_after_seconds,
            ),
        )
    return (Fault(_FAULTS[situation.does]),)


_FAULTS = {
    Does.CUT: "truncated",
    Does.REFUSE: "refusal",
    Does.FILTER: "content_filter",
    Does.SAY_NOTHING: "empty_choices",
    Does.GARBLE: "garbage_body",
    Does.FLOOD: "endless_body",
    Does.HANG_UP: "drop_before",
    Does.BE_SILENT: "hang",
}


def all_texts(error: BaseException | None) -> list[str]:
    """Every text that a log may show of an error and of its causes."""
    # Sentry and similar tools show arguments and attributes, also of causes.
    texts = traceback.format_exception(error) if error is not None else []
    seen: list[BaseException] = []
    while error is not None and error not in seen:
        seen.append(error)
        texts += [str(error), repr(error), *map(repr, error.args), *map(repr, vars(error).values())]
        error = error.__cause__ or error.__context__
    return texts
