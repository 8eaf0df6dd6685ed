"""Elements in several windows: one record, asked once, and back in each of its windows once."""

from __future__ import annotations

import apache_beam as beam
import pytest
from apache_beam.coders import FastPrimitivesCoder, StrUtf8Coder, WindowedValueCoder
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.transforms.window import (
    FixedWindows,
    GlobalWindow,
    GlobalWindows,
    IntervalWindow,
    Sessions,
    SlidingWindows,
    TimestampedValue,
    WindowedValue,
)
from apache_beam.utils.timestamp import Timestamp

from beam_llm import LLMPredict
from beam_llm.config import Settings, settings
from beam_llm.errors import Failure, LedgerError
from beam_llm.providers import compile_task
from beam_llm.stores.local import LocalStore
from beam_llm.testing import Emulator
from beam_llm.transforms.envelopes import Arrivals, EnvelopeCoder, EnvelopeReader
from beam_llm.transforms.forming import form_in_bundles
from beam_llm.transforms.forming_streams import (
    BufferedRecord,
    FormFromGroups,
    OpenPromptBatches,
    pack,
)
from beam_llm.values import Record
from tests.collecting import Collect

WINDOWS = tuple(IntervalWindow(start, start + 30) for start in (0, 10, 20))
TEXT = settings(
    "openai:fake-model", prompt="{{ element }}", base_url="http://127.0.0.1:1/v1", batch_size=5
)


def in_windows(element, *windows) -> WindowedValue:
    return WindowedValue(element, Timestamp(25), windows)


@pytest.mark.parametrize(
    ("calls", "expected"),
    [
        ([("a", w) for w in WINDOWS], [("a", WINDOWS)]),
        ([("a", WINDOWS[0]), ("b", WINDOWS[0])], [("a", WINDOWS[:1]), ("b", WINDOWS[:1])]),
        ([("a", w) for w in WINDOWS] * 2, [("a", WINDOWS), ("a", WINDOWS)]),
        ([("a", WINDOWS[0])] * 3, [("a", WINDOWS[:1])] * 3),
    ],
    ids=[
        "one in three windows",
        "two in one window",
        "the same object twice, in three windows",
        "the same object three times",
    ],
)
def test_calls_for_one_element_are_joined_and_equal_elements_are_not(calls, expected):
    arrivals = Arrivals()
    joined = [arrivals.put(in_windows(element, window)) for element, window in calls] + [
        arrivals.last()
    ]
    assert [(e.value, int(e.timestamp), tuple(e.windows)) for e in joined if e is not None] == [
        (e, 25, w) for e, w in expected
    ]


@pytest.mark.parametrize("part", [0.0, 0.5, 1.0], ids=["zero-length", "half", "whole"])
def test_a_coder_that_was_cut_is_an_error_that_names_it(tmp_path, part):
    store, coder = (
        LocalStore(str(tmp_path)),
        EnvelopeCoder(StrUtf8Coder(), FixedWindows(30).get_window_coder()),
    )
    coder.save(store)
    (name,) = store.list("coders/")
    whole = store.get(name)
    store.put(name, whole[: int(len(whole) * part)])
    reader, envelope = EnvelopeReader(store), coder.open().encode(in_windows("a", *WINDOWS))
    if part == 1.0:
        assert reader.decode(envelope) == in_windows("a", *WINDOWS)
        return
    with pytest.raises(LedgerError, match=f"{name} is damaged or was cut"):
        reader.decode(envelope)


def test_a_parcel_of_elements_is_in_one_window_whatever_its_elements_are_in():
    former = form_in_bundles(TEXT, SlidingWindows(30, 10))
    former.setup()
    former.start_bundle()
    assert [list(former.process("a", in_windows("a", window), window)) for window in WINDOWS] == [
        [],
        [],
        [],
    ]
    (parcel,) = former.finish_bundle()
    assert tuple(parcel.windows) == WINDOWS[:1]
    assert parcel.value.elements[0].windows == WINDOWS


@pytest.mark.parametrize(
    ("record", "failure"),
    [
        (Record(("a",), 7), None),
        (Record(("a", "ß"), 7, {"n": 1.5, "of": ["x"]}, "r-1"), None),
        (None, Failure("prompt", "why", 2)),
    ],
    ids=["a text", "fields and an id", "a failure"],
)
def test_a_packed_prompt_batch_is_in_one_window_and_its_elements_are_in_their_own(record, failure):
    coder = WindowedValueCoder(StrUtf8Coder(), SlidingWindows(30, 10).get_window_coder())
    members = [
        BufferedRecord.of(
            coder.encode(WindowedValue(text, Timestamp(at), WINDOWS)),
            at * 1_000_000,
            record or failure,
            compile_task(TEXT).fingerprint[:8],
        )
        for text, at in (("a", 27), ("b", 25))[: 1 if failure else 2]
    ]
    packed = pack(members, failure)
    assert (packed.windows, packed.timestamp) == (
        [GlobalWindow()],
        Timestamp(27 if failure else 25),
    )
    opening = OpenPromptBatches(TEXT, coder)
    opening.setup()
    (batch,) = opening.process(packed.value)
    assert batch[::2] == (((), (failure,)) if failure else ((record,) * 2, ()))
    assert [(e.value, e.timestamp, sorted(e.windows)) for e in batch.elements] == [
        (text, Timestamp(at), sorted(WINDOWS))
        for text, at in (("a", 27), ("b", 25))[: len(members)]
    ]


def asking(prompt: str) -> Settings:
    return settings("openai:fake-model", prompt=prompt, base_url=TEXT.base_url, batch_size=5)


@pytest.mark.parametrize(
    ("before", "now", "asked"),
    [
        ("Spam? {{ text }}", "Rude? {{ title }}", ("A title",)),
        ("Spam? {{ text }}", "Rude? {{ title }}: {{ text }}", ("A title", "a text")),
        ("Spam? {{ title }}: {{ text }}", "Rude? {{ text }}", ("a text",)),
        ("Spam? {{ missing }}", "Rude? {{ text }}", ("a text",)),
        ("Spam? {{ text }}", "Rude? {{ missing }}", None),
    ],
    ids=["another field", "a field more", "a field less", "what failed", "what fails now"],
)
def test_what_waits_in_a_stream_that_is_updated_is_asked_what_its_prompt_says_now(
    before, now, asked
):
    coder = WindowedValueCoder(FastPrimitivesCoder(), GlobalWindows().get_window_coder())
    element = {"title": "A title", "text": "a text"}
    forming = FormFromGroups(asking(before), coder)
    forming.setup()
    (packed,) = forming.process((0, [coder.encode(in_windows(element, GlobalWindow()))]))
    opening = OpenPromptBatches(asking(now), coder)
    opening.setup()
    (batch,) = opening.process(packed.value)
    assert [arrived.value for arrived in batch.elements] == [element]
    assert [record.inputs for record in batch.records] == ([] if asked is None else [asked])
    assert [failure.kind for failure in batch.failures] == (["prompt"] if asked is None else [])


@pytest.mark.parametrize(
    "windowfn",
    [GlobalWindows(), FixedWindows(30), Sessions(30)],
    ids=["global", "fixed", "sessions"],
)
def test_an_element_that_is_put_in_several_windows_by_hand_waits_for_the_end_of_the_bundle(
    windowfn,
):
    """Such windows' functions put none there, so their elements take the quick way: full prompts
    leave at once, but for these.
    """
    former = form_in_bundles(TEXT, windowfn)
    former.setup()
    former.start_bundle()
    assert [len(former.process("a", in_windows("a", WINDOWS[0]))) for _ in range(5)] == [
        0,
        0,
        0,
        0,
        1,
    ]
    assert [len(former.process("b", in_windows("b", *WINDOWS))) for _ in range(6)] == [0] * 6
    parcels = list(former.finish_bundle())
    assert [len(parcel.value.elements) for parcel in parcels] == [5, 1]
    assert all(tuple(parcel.windows) == WINDOWS[:1] for parcel in parcels)
    assert all(
        element.windows == WINDOWS for parcel in parcels for element in parcel.value.elements
    )


def test_answers_that_come_while_the_last_prompt_is_sent_are_not_multiplied_by_its_windows(
    monkeypatch,
):
    """Seen once in fifty runs as three answers per window: the last prompt of a bundle was in as
    many windows as its elements.
    """
    seen = Collect()
    with Emulator() as emulator:
        for name, value in emulator.environment.items():
            monkeypatch.setenv(name, value)
        # Two prompts in flight at most: the third, formed at the end of the bundle, has to wait for
        # an answer and brings it out.
        predict = LLMPredict("openai:gpt-4.1-mini", batch_size=2, max_concurrency=1)
        with beam.Pipeline(
            options=PipelineOptions(["--runner=FnApiRunner"], pickle_library="cloudpickle")
        ) as p:
            elements = (
                p
                | beam.Create([f"text {n}" for n in range(5)])
                | beam.Map(lambda text: TimestampedValue(text, 25))
            )
            _ = (
                elements
                | beam.WindowInto(SlidingWindows(30, 10))
                | predict
                | beam.ParDo(_Windows())
                | seen
            )
    assert sorted(seen.found) == sorted(
        (f"text {n}", start) for n in range(5) for start in (0, 10, 20)
    )


class _Windows(beam.DoFn):
    def process(self, prediction, window=beam.DoFn.WindowParam):
        yield prediction.element, int(window.start)
