"""`(session, message)` → Predictions: sessions of turns, each answered after the turns before it.

    (session, message) ─ KeyTurns ─► (session and window as bytes, envelope)
        bounded     ─ GroupByKey ─ AnswerGroups ─► Predictions
        unbounded   ─ AnswerTurns, with the session's history in state ─► Predictions

Calls are made inside of bundles, and none outlives its bundle. In a bundle each session has one
call under way at most, and all sessions have theirs at the same time, on the engine of the process:
a session's next turn is asked as soon as the reply before it is there, while the others go on. What
was said is written into state when the bundle ends (`LateWrites`), so answers and histories are
committed together: a bundle that is repeated asks again, begins with the same histories, and its
output counts once.

Why so, and not

by timers     a REAL_TIME timer that polls calls which outlive bundles (Beam's `AsyncWrapper` does
              it) is fired at once by FnApiRunner, dropped by the BundleBasedDirectRunner and keeps
              a Flink job from ending; a timer has no watermark hold of its element's in Python, so
              that answers would be late; and a reply that is lost with its process is paid for.
in `process`  a call that `process` or a timer waits for would have one session at a time per
              bundle: all others would starve beside it.

The price is that a bundle lasts as long as the calls of its busiest session, one after another:
each of them `call_deadline_ms` at most. Streams of conversations have few turns of a session in one
bundle; where they have many, because a backlog is read, `batch_size` has the waiting ones share
prompts, and Flink's `--max_bundle_size` makes bundles smaller.

A stream's elements live in the one global window, their own window in the key: runners drop late
elements of a stateful DoFn in a window, and here none is. Only ReadModifyWrite state is used, which
all runners have, and only event-time timers, which forget sessions that have ended; whether a
session has ended when a turn comes is told by timestamps alone. On local runners there are no such
timers, since FnApiRunner fires them at the end of every bundle (issue 35168): there, histories are
kept until the pipeline ends.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, cast

import apache_beam as beam
from apache_beam import coders, pvalue
from apache_beam.transforms.timeutil import TimeDomain
from apache_beam.transforms.trigger import AccumulationMode
from apache_beam.transforms.userstate import ReadModifyWriteStateSpec, TimerSpec, on_timer
from apache_beam.transforms.window import GlobalWindow, WindowedValue
from apache_beam.utils.timestamp import Timestamp

from beam_llm.calls import AskResult, Tally
from beam_llm.config import Settings
from beam_llm.errors import USER_CODE_ERRORS, Failure, Kind
from beam_llm.prompting.session_task import SessionTask
from beam_llm.prompting.text import is_missing
from beam_llm.transforms import runners
from beam_llm.transforms.beam_internals import LateWrites, set_windowing
from beam_llm.transforms.coders import STATE_CODER
from beam_llm.transforms.envelopes import NEVER_TOO_LATE_SECONDS, one_window
from beam_llm.transforms.fields import is_keyed, split_type
from beam_llm.transforms.forming import RecordReader
from beam_llm.transforms.live import WithEngine
from beam_llm.transforms.sessions import (
    MICROS,
    Bounds,
    Session,
    Turn,
    field_of,
    in_order,
    message_of,
)
from beam_llm.values import Outcome, Prediction, Record


class AnswerSessions(beam.PTransform):
    """`(session, message)` → Predictions."""

    def __init__(self, settings: Settings):
        super().__init__()
        self._settings = settings

    def expand(self, elements: pvalue.PCollection) -> pvalue.PCollection:
        windowfn, settings = elements.windowing.windowfn, self._settings
        key_type = None if settings.session else split_type(elements.element_type)[0]
        key_coder = coders.registry.get_coder(Any if key_type is None else key_type)
        coder = coders.WindowedValueCoder(
            coders.registry.get_coder(elements.element_type), windowfn.get_window_coder()
        )
        keying = KeyTurns(
            settings.session,
            key_coder.as_deterministic_coder(self.label),
            coder,
            by_window=not elements.is_bounded,
        )
        keyed = elements | "Key turns" >> beam.ParDo(keying).with_output_types(tuple[bytes, bytes])
        if elements.is_bounded:
            groups = set_windowing(keyed, _whole(windowfn)) | beam.GroupByKey()
            answering: beam.DoFn = AnswerGroups(settings, keying)
        else:
            groups = set_windowing(keyed, one_window())
            is_local = runners.is_local(elements.pipeline)
            answering = (AnswerTurns if is_local else AnswerTurnsAndForget)(settings, keying)
        answer = beam.ParDo(answering).with_output_types(Prediction)
        predictions = set_windowing(groups | "Answer turns" >> answer, elements.windowing)
        return runners.reshuffled(predictions, "Keep what is paid for")


def _whole(windowfn: Any) -> beam.Windowing:
    """Groups that go on when all is there: not by triggers of the user's, which would part a
    session. What is late all the same goes on by itself.
    """
    return beam.Windowing(
        windowfn,
        accumulation_mode=AccumulationMode.DISCARDING,
        allowed_lateness=NEVER_TOO_LATE_SECONDS,
    )


class KeyTurns(beam.DoFn):
    """Elements → `(session as bytes, envelope)`, once for each of their windows.

    Args:
      field: that names the session; None where elements are pairs.
      key_coder: of sessions, deterministic.
      coder: of the elements with their timestamps and windows.
      by_window: the window is part of the key, and the pair is in the global one.
    """

    def __init__(
        self,
        field: str | None,
        key_coder: coders.Coder,
        coder: coders.WindowedValueCoder,
        *,
        by_window: bool,
    ):
        self._field = field
        self._key_coder = key_coder
        self._coder = coder
        self._by_window = by_window

    def setup(self) -> None:
        self._encode_key = self._key_coder.get_impl().encode
        self._encode_window = self._coder.window_coder.get_impl().encode
        self._encode, self.decode = self._coder.get_impl().encode, self._coder.get_impl().decode

    def process(
        self,
        element: Any,
        timestamp: Any = beam.DoFn.TimestampParam,
        window: Any = beam.DoFn.WindowParam,
    ) -> Iterator[Any]:
        data = self._encode(WindowedValue(element, timestamp, (window,)))
        session = self.session(element)
        # One that can't be told is asked about nothing: its element comes back with the reason.
        key = hashlib.sha256(data).digest() if isinstance(session, Failure) else session
        if self._by_window:
            # Its length stands before it: two sessions in two windows must not read the same.
            key = b"%d:%b%b" % (len(key), key, self._encode_window(window))
            yield WindowedValue((key, data), timestamp, (GlobalWindow(),))
        else:
            yield key, data

    def session(self, element: Any) -> bytes | Failure:
        """An element's session as bytes, or why it has none."""
        session = self._named(element)
        if isinstance(session, Failure):
            return session
        try:
            return bytes(self._encode_key(session))
        except USER_CODE_ERRORS as error:
            return Failure(
                Kind.PROMPT,
                f"the session is a {type(session).__name__} that has no deterministic bytes: "
                f"{type(error).__name__}",
            )

    def _named(self, element: Any) -> Any | Failure:
        if self._field is not None:
            session = field_of(message_of(element), self._field, "session")
            named = f"session names the field {self._field!r}, which"
        elif is_keyed(element):
            session, named = element[0], "the session"
        else:
            return Failure(
                Kind.PROMPT,
                f"the element is a {type(element).__name__}, and has to be a pair of a session and "
                "a message",
            )
        if not is_missing(session):
            return session
        # Not one session of all who have none: they would read what others said.
        return Failure(
            Kind.PROMPT,
            f"{named} is {session}: leave such messages out, or give each a session of its own",
        )


class AskSessions(WithEngine[tuple[Session, list[Turn]]]):
    """What both ways of answering share: turns in, Predictions out."""

    def __init__(self, settings: Settings, keying: KeyTurns):
        super().__init__(settings)
        self._keying = keying

    def setup(self) -> None:
        super().setup()
        self._keying.setup()
        settings = self._settings
        self._reader = RecordReader(settings)
        self._bounds = Bounds(
            self._reader.caps,
            settings.history_turns,
            settings.history_tokens,
            round(settings.session_ttl_seconds * MICROS),
        )

    def session(self, known: Any = None) -> Session:
        """A session of this bundle, as an earlier one has left it."""
        return Session(cast(SessionTask, self._reader.task), self._bounds, known)

    def _turn(self, envelope: bytes) -> Turn:
        arrived = self._keying.decode(envelope)
        session = self._keying.session(arrived.value)
        if isinstance(session, Failure):
            return Turn(arrived, session)
        return Turn(arrived, self._reader.record(arrived.value))

    def _take(self, session: Session, turns: Sequence[Turn]) -> Iterator[Any]:
        """Puts turns into their session; gives what has been answered meanwhile."""
        for turn in turns:
            if isinstance(turn.record, Failure):
                outcome = Outcome(failure=turn.record, cost_usd=0.0)
                self._meter.outcomes([outcome])
                yield _prediction(turn, outcome)
            else:
                session.add(turn)
        self._ask_next(session)
        yield from self._emit(self._take_done())

    def _take_done(self) -> Iterator[list[tuple[tuple[Session, list[Turn]], AskResult]]]:
        """What has landed, even where there is room for more: sessions wait for it."""
        yield self._in_flight.take_done_now()
        yield from self._in_flight.take_done()

    def _ask_next(self, session: Session) -> None:
        turns = [] if session.is_asking else session.next_turns()
        if turns:
            session.is_asking = True
            records = [turn.record for turn in turns if isinstance(turn.record, Record)]
            asked = self._engine.submit(records, session.task(turns))
            self._in_flight.add(asked, (session, turns))

    def _predictions(
        self, group: list[tuple[tuple[Session, list[Turn]], AskResult]]
    ) -> Iterable[WindowedValue]:
        if not group:
            return ()
        ended, tally = list[tuple[Turn, Outcome]](), Tally()
        for (session, turns), asked in group:
            tally.merge(asked.tally)
            settled = session.settle(turns, asked.outcomes, may_be_one=asked.tally.may_be_one)
            ended += settled
            left = len(turns) - len(settled)  # asked again by us, as several are asked once
            tally.retries += left == 1
            tally.splits += left > 1
            # Its next turn is on its way before anybody reads the answer to this one.
            self._ask_next(session)
        packed = [len(turns) for (_, turns), asked in group if asked.tally.requests]
        self._meter.calls(packed, tally)
        self._meter.outcomes([outcome for _, outcome in ended], tally)
        return [_prediction(turn, outcome) for turn, outcome in ended]


def _prediction(turn: Turn, outcome: Outcome) -> WindowedValue:
    element = turn.arrived.value
    return turn.arrived.with_value(Prediction.of(element, outcome.value, outcome))


class AnswerGroups(AskSessions):
    """Sessions of bounded input, each whole: no state is needed."""

    def process(
        self, grouped: tuple[bytes, Iterable[bytes]], window: Any = beam.DoFn.WindowParam
    ) -> Iterator[Any]:
        turns = [self._turn(envelope) for envelope in grouped[1]]
        for turn in turns:
            # Windows that merge are others than before.
            arrived = turn.arrived
            turn.arrived = WindowedValue(arrived.value, arrived.timestamp, (window,))
        yield from self._take(self.session(), in_order(turns, self._settings.turn_order))

    def finish_bundle(self) -> Iterator[Any]:
        yield from self._emit(self._in_flight.take_done(all_of_them=True))


class AnswerTurns(AskSessions):
    """Turns of unbounded input, in the order of their arrival; what was said is kept in state."""

    SESSION = ReadModifyWriteStateSpec("session_v1", STATE_CODER)

    def start_bundle(self) -> None:
        super().start_bundle()
        self._sessions: dict[bytes, Session] = {}
        self._cells = LateWrites()

    def process(
        self, keyed: tuple[bytes, bytes], known: Any = beam.DoFn.StateParam(SESSION)
    ) -> Iterator[Any]:
        turn = self._turn(keyed[1])
        yield from self._take(self._open(keyed[0], known), [turn])

    def _open(self, key: bytes, known: Any) -> Session:
        if key not in self._sessions:
            self._sessions[key] = self.session(known.read())
            self._cells.keep(key, known)
        return self._sessions[key]

    def finish_bundle(self) -> Iterator[Any]:
        yield from self._emit(self._in_flight.take_done(all_of_them=True))
        for key, session in self._sessions.items():
            self._cells.write(key, session.state)


class AnswerTurnsAndForget(AnswerTurns):
    """The same, forgetting sessions that have ended: by a timer at the end of their window, or as
    long after the last turn as a session lasts.

    A late turn's session is forgotten with its bundle: by then it has ended.
    """

    ENDS = TimerSpec("ends_v1", TimeDomain.WATERMARK)

    def process(
        self,
        keyed: tuple[bytes, bytes],
        known: Any = beam.DoFn.StateParam(AnswerTurns.SESSION),
        ends: Any = beam.DoFn.TimerParam(ENDS),
    ) -> Iterator[Any]:
        turn = self._turn(keyed[1])
        session = self._open(keyed[0], known)
        yield from self._take(session, [turn])
        ends.set(_end_of(session, turn))

    @on_timer(ENDS)
    def forget(
        self,
        key: Any = beam.DoFn.KeyParam,
        known: Any = beam.DoFn.StateParam(AnswerTurns.SESSION),
    ) -> None:
        # One with turns in this very bundle has set its timer anew.
        if key not in self._sessions:
            known.clear()


def _end_of(session: Session, turn: Turn) -> Timestamp:
    """When a session is forgotten at the latest: a millisecond after the last moment at which a
    turn would still belong to it, for timers of some runners have whole milliseconds.
    """
    window_end = min(turn.arrived.windows[0].max_timestamp(), GlobalWindow().max_timestamp())
    idle = turn.micros if session.ends is None else session.ends
    return min(Timestamp(micros=idle + 1000), window_end)
