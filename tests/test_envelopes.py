"""Elements in several windows: one record, asked once, and back in each of its windows once."""

from __future__ import annotations

import apache_beam as beam
import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.transforms.window import GlobalWindow, IntervalWindow, SlidingWindows, TimestampedValue
from apache_beam.utils.timestamp import Timestamp

from beam_llm import LLMPredict
from beam_llm.config import settings
from beam_llm.testing import Emulator
from beam_llm.transforms.calls import FormInBundles, packed
from beam_llm.transforms.envelopes import Envelope, Envelopes
from tests.collecting import Collect

WINDOWS = [IntervalWindow(start, start + 30) for start in (0, 10, 20)]


def arrived(calls) -> list[tuple]:
    arrivals = Envelopes()
    envelopes = [arrivals.put(*call) for call in calls] + [arrivals.last()]
    return [(e.element, int(e.timestamp), e.windows) for e in envelopes if e is not None]


@pytest.mark.parametrize(
    ("calls", "expected"),
    [
        ([("a", w) for w in WINDOWS], [("a", WINDOWS)]),
        ([("a", WINDOWS[0]), ("b", WINDOWS[0])], [("a", WINDOWS[:1]), ("b", WINDOWS[:1])]),
        ([("a", w) for w in WINDOWS] * 2, [("a", WINDOWS), ("a", WINDOWS)]),
        ([("a", WINDOWS[0])] * 3, [("a", WINDOWS[:1])] * 3),
    ],
    ids=["one in three windows", "two in one window", "the same object twice, in three windows", "the same object three times"],
)
def test_calls_for_one_element_are_joined_and_equal_elements_are_not(calls, expected):
    assert arrived((element, Timestamp(25), window) for element, window in calls) == [(e, 25, windows) for e, windows in expected]


def test_a_parcel_of_elements_is_in_one_window_whatever_its_elements_are_in():
    former = FormInBundles(settings("openai:fake-model", prompt="{{ element }}", base_url="http://127.0.0.1:1/v1", batch_size=5))
    former.setup()
    former.start_bundle()
    assert [list(former.process("a", Timestamp(25), window)) for window in WINDOWS] == [[], [], []]
    (parcel,) = former.finish_bundle()
    assert parcel.windows == WINDOWS[:1]
    assert parcel.value.envelopes[0].windows == WINDOWS
    assert packed(parcel.value).windows == [GlobalWindow()]
    assert Envelope("a", Timestamp(25), WINDOWS).around("x").windows == WINDOWS


def test_answers_that_come_while_the_last_prompt_is_sent_are_not_multiplied_by_its_windows(monkeypatch):
    """Seen once in fifty runs as three answers per window: the last prompt of a bundle was in as many windows as its elements."""
    seen = Collect()
    with Emulator() as emulator:
        for name, value in emulator.environment.items():
            monkeypatch.setenv(name, value)
        # Two prompts in flight at most: the third, formed at the end of the bundle, has to wait for an answer and brings it out.
        predict = LLMPredict("openai:gpt-4.1-mini", batch_size=2, max_concurrency=1)
        with beam.Pipeline(options=PipelineOptions(["--runner=FnApiRunner"], pickle_library="cloudpickle")) as p:
            elements = p | beam.Create([f"text {n}" for n in range(5)]) | beam.Map(lambda text: TimestampedValue(text, 25))
            _ = elements | beam.WindowInto(SlidingWindows(30, 10)) | predict | beam.ParDo(_Windows()) | seen
    assert sorted(seen.found) == sorted((f"text {n}", start) for n in range(5) for start in (0, 10, 20))


class _Windows(beam.DoFn):
    def process(self, prediction, window=beam.DoFn.WindowParam):
        yield prediction.element, int(window.start)
