"""What lies in a running pipeline's state and checkpoints, as it was first released: every later
version has to read it.

tests/golden/state-v1 is never edited. A new format gets new state names (`…_v2`), a folder of its
own, and reads this one.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from apache_beam import coders
from apache_beam.transforms.userstate import get_dofn_specs
from apache_beam.transforms.window import IntervalWindow, SlidingWindows, WindowedValue
from apache_beam.utils.timestamp import Timestamp

from beam_llm.config import settings
from beam_llm.ledger import BatchJobRef, PartRef
from beam_llm.prompting.session_task import Exchange
from beam_llm.transforms.answering_sessions import AnswerTurnsAndForget, KeyTurns
from beam_llm.transforms.coders import STATE_CODER
from beam_llm.transforms.forming_streams import Buffered, BufferedRecord, FormAcrossBundles
from beam_llm.transforms.planning import Gathered, PlanAcrossBundles
from beam_llm.transforms.waiting import JobPositions, Position

GOLDEN = json.loads((Path(__file__).parent / "golden" / "state-v1" / "state.json").read_text())
ENVELOPES = coders.WindowedValueCoder(
    coders.StrUtf8Coder(), SlidingWindows(30, 10).get_window_coder()
)
ELEMENT = WindowedValue(
    "größer", Timestamp(25), [IntervalWindow(start, start + 30) for start in (20, 10, 0)]
)

STATE = {
    "buffered element": (
        STATE_CODER,
        tuple(
            BufferedRecord(
                ENVELOPES.encode(ELEMENT),
                25_000_000,
                ("größer",),
                3,
                {"text": "größer", "n": 1.5},
                "r-1",
            )
        )[:6],
    ),
    "buffer's figures": (
        STATE_CODER,
        tuple(Buffered(3, 120, 0, 1_700_000_000.5, 25_000_000, 29_999_999)),
    ),
    "part": (STATE_CODER, tuple(PartRef("0123456789abcdef", 40, 12_345, 678, -1_000_000))),
    "parts' figures": (STATE_CODER, tuple(Gathered(40, 12_345, 678, 1_700_000_300.25, -1_000_000))),
    "session": (STATE_CODER, (25_000_000, (tuple(Exchange("größer", "I see", 14)),))),
    "job's position": (JobPositions().restriction_coder(), (1, 1_700_000_000.5)),
}
REF = BatchJobRef(
    "batch_1", 40, "/staging", 7, "fedcba98", "openai:gpt-4.1-mini", "created", 25_000_000, 1
)


@pytest.mark.parametrize("what", STATE)
def test_todays_state_is_written_as_ever_and_read_as_ever(what):
    coder, value = STATE[what]
    assert coder.encode(value).hex() == GOLDEN[what]
    assert coder.decode(bytes.fromhex(GOLDEN[what])) == value


def test_an_element_comes_out_of_old_state_with_its_windows():
    buffered = BufferedRecord(*STATE_CODER.decode(bytes.fromhex(GOLDEN["buffered element"])))
    element = ENVELOPES.decode(buffered.envelope)
    assert (element.value, element.timestamp) == ("größer", Timestamp(25))
    assert sorted(element.windows) == sorted(ELEMENT.windows)


@pytest.mark.parametrize(
    ("kind", "what", "known"),
    [
        (BufferedRecord, "buffered element", 6),
        (Buffered, "buffer's figures", 6),
        (Gathered, "parts' figures", 5),
        (PartRef, "part", 5),
        (Position, "job's position", 2),
    ],
    ids=["record", "buffer", "parts", "part", "position"],
)
def test_new_fields_come_last_and_have_defaults(kind, what, known):
    """What was written with `known` fields is still enough to make the value of today."""
    old = STATE[what][0].decode(bytes.fromhex(GOLDEN[what]))
    assert len(old) == known
    assert tuple(kind(*old))[:known] == tuple(old)


def test_a_session_goes_on_from_old_state():
    last, history = STATE_CODER.decode(bytes.fromhex(GOLDEN["session"]))
    assert last == 25_000_000
    assert [Exchange(*exchange) for exchange in history] == [Exchange("größer", "I see", 14)]


def test_a_job_that_waits_is_read_from_an_old_checkpoint():
    """The waiting DoFn's element, as the runner keeps it: it names its class, which therefore can't
    move.
    """
    coder = coders.registry.get_coder(BatchJobRef)
    assert BatchJobRef(*coder.decode(bytes.fromhex(GOLDEN["waiting job"]))) == REF


def test_state_and_timers_keep_their_names():
    made = settings(
        "openai:gpt-4.1-mini",
        base_url="http://127.0.0.1:1/v1",
        mode="batch_api",
        staging_location="/tmp/none",
    )
    names = {}
    keying = KeyTurns(None, coders.StrUtf8Coder(), ENVELOPES, by_window=True)
    for dofn in (
        FormAcrossBundles(made, ENVELOPES),
        PlanAcrossBundles(made),
        AnswerTurnsAndForget(made, keying),
    ):
        states, timers = get_dofn_specs(dofn)
        names[type(dofn).__name__] = [
            sorted(spec.name for spec in states),
            sorted(spec.name for spec in timers),
        ]
    assert names == GOLDEN["names"]
