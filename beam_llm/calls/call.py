"""One request, sent until it is answered or given up: with retries and waits, within a deadline."""

from __future__ import annotations

import asyncio

from beam_llm.calls.outage import Turn
from beam_llm.calls.policy import Again, next_try, retries_seconds
from beam_llm.calls.sender import Sender
from beam_llm.calls.state import AskState
from beam_llm.errors import CallError, Kind, Remedy
from beam_llm.events import ACTIVITY
from beam_llm.values import Completion


class Call:
    """One request with its retries.

    Attributes:
      tries: how often it was sent again after a failure.
      waits: how often because the server had asked to come back; these use up time, but no
        `max_retries`.
    """

    __slots__ = ("_context", "_sender", "_state", "tries", "waits")

    def __init__(self, sender: Sender, state: AskState):
        self._context = sender.context
        self._sender = sender
        self._state = state
        self.tries = 0
        self.waits = 0

    async def completion(self) -> Completion:
        """The reply.

        Raises:
          CallError: the last one, where `policy.next_try` gives up.
        """
        turn = Turn.ON
        while True:
            in_vain = False
            try:
                return await self._sender.send(self.tries + self.waits)
            except CallError as error:
                in_vain, again = error.kind == Kind.UNAVAILABLE, self._again(error)
                if again is None:
                    if in_vain:
                        self._context.endpoint.outage.note_given_up()
                    raise
                failed = error
            finally:
                if turn is Turn.ALONE:
                    self._context.endpoint.outage.end_turn(in_vain=in_vain)
            turn, seconds = Turn.ON, again.seconds
            # A call that was told when to come back waits for no other.
            if in_vain and not again.is_wait:
                turn, seconds = await self._wait_for_turn(failed, again)
            self._count_again(failed, again)
            await self._pause(seconds, turn)
            if again.is_wait:
                self.waits += 1
            else:
                self.tries += 1

    async def _wait_for_turn(self, error: CallError, again: Again) -> tuple[Turn, float]:
        """How it is sent again after an error of the server's, and after which pause; waits while
        another call is tried out.

        Raises:
          CallError: the same, where it is not sent again.
        """
        context, outage = self._context, self._context.endpoint.outage
        # Parts of a prompt that was waited for in vain: they are to show whether one record is why.
        if self._state.fallback.is_probe and outage.is_known():
            raise error
        failed_at, now = self._state.failed_at, asyncio.get_running_loop().time()
        self._state.failed_at = now if failed_at is None else failed_at
        own = again.seconds + retries_seconds(
            self.tries + 1, context.settings.max_retries, context.rng
        )
        turn = await outage.wait_for_turn(own, self._sender.deadline.seconds_left(), failed_at)
        if turn is Turn.OVER:
            error.message += "; not sent again, for the server answers nobody"
            raise error
        seconds = again.seconds
        if turn is Turn.ALONE:
            seconds = outage.pause_seconds(seconds, context.rng)
        if self._sender.deadline.seconds_left() <= seconds:
            if turn is Turn.ALONE:
                outage.end_turn(in_vain=False)
            raise error
        return turn, seconds

    async def _pause(self, seconds: float, turn: Turn) -> None:
        """Sleeps; where that is cancelled, the next in line gets the turn."""
        try:
            await asyncio.sleep(seconds)
        except asyncio.CancelledError:
            if turn is Turn.ALONE:
                self._context.endpoint.outage.end_turn(in_vain=False)
            raise

    def _again(self, error: CallError) -> Again | None:
        """How it is sent again; None where it is not, or where fewer records at once are what may
        help.
        """
        if (
            error.remedy is not Remedy.RETRY
            or error.kind == Kind.UNREADABLE
            or is_too_slow(error, len(self._sender.members), self.tries)
        ):
            return None
        context = self._context
        return next_try(
            error,
            tries=self.tries,
            waits=self.waits,
            max_retries=context.settings.max_retries,
            left_seconds=self._sender.deadline.seconds_left(),
            others_get_answers=context.endpoint.has_answered_lately(),
            rng=context.rng,
        )

    def _count_again(self, error: CallError, again: Again) -> None:
        tally = self._state.tally
        if error.kind == Kind.RATE_LIMITED or again.is_wait:
            tally.throttled_seconds += again.seconds
        if again.is_wait:
            tally.waits += 1
            ACTIVITY.waits += 1
        tally.retries += 1
        ACTIVITY.retries += 1


def is_of_server(error: CallError) -> bool:
    """Whether the server fails, or breaks the connection: at this prompt, or at all."""
    return error.kind == Kind.UNAVAILABLE and not error.is_throttle


def is_too_slow(error: CallError, members: int, tries: int) -> bool:
    """Whether smaller prompts may be what helps: a long answer to many records takes longer than
    one request may.

    Our own timeout shows it at once; a gateway's may be an outage of moments, and gets one more
    try.
    """
    return error.kind == Kind.TIMED_OUT and members > 1 and (error.is_ours or tries > 0)
