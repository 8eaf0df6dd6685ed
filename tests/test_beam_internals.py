"""What beam_internals.py takes for granted of Beam, one test each: a Beam that breaks one of these
says so here first.
"""

from __future__ import annotations

import ast
import dataclasses
import pickle
import subprocess
import sys
import time
import typing
from pathlib import Path

import apache_beam as beam
import pytest
from apache_beam import coders
from apache_beam.metrics import Metrics, MetricsFilter
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.worker.bundle_processor import OutputTimer
from apache_beam.runners.worker.data_plane import ClosableOutputStream
from apache_beam.testing import test_stream
from apache_beam.transforms.periodicsequence import PeriodicImpulse
from apache_beam.transforms.timeutil import TimeDomain
from apache_beam.transforms.userstate import ReadModifyWriteStateSpec, TimerSpec, on_timer
from apache_beam.transforms.window import (
    GlobalWindow,
    IntervalWindow,
    SlidingWindows,
    TimestampedValue,
    WindowedValue,
)
from apache_beam.utils.timestamp import Timestamp
from apache_beam.utils.windowed_value import PANE_INFO_UNKNOWN, PaneInfo, PaneInfoTiming

from beam_llm.transforms import beam_internals as internals
from tests.collecting import Collect

FNAPI = PipelineOptions(["--runner=FnApiRunner"], pickle_library="cloudpickle")


class Starts(beam.DoFn):
    """Elements with the start of the window that they are in."""

    def process(self, element, window=beam.DoFn.WindowParam):
        yield element, int(window.start)


class IntoTwoWindows(beam.DoFn):
    def process(self, element):
        yield WindowedValue(element, 5, [IntervalWindow(0, 10), IntervalWindow(5, 15)])


def test_a_dataclass_of_the_main_program_is_an_output_on_a_worker():
    """In a process of its own: in this one the class would be found again by its name."""

    @dataclasses.dataclass
    class Trip:
        days: int
        place: str = "home"
        stops: list[str] = dataclasses.field(default_factory=list)

    script = """
import sys
from beam_llm.prompting.output_types import Output
from beam_llm.transforms.beam_internals import loads
print(Output(loads(sys.stdin.buffer.read())).validate({"days": 3}))
"""
    found = subprocess.run(
        [sys.executable, "-c", script],
        input=internals.dumps_by_value(Trip),
        capture_output=True,
        check=True,
        timeout=120,
    )
    assert b"Trip(days=3, place='home', stops=[])" in found.stdout


def test_windows_that_a_dofn_yields_are_those_that_are_declared():
    seen = Collect()
    with beam.Pipeline(options=FNAPI) as p:
        yielded = p | beam.Create(["a"]) | beam.ParDo(IntoTwoWindows())
        windowing = beam.Windowing(SlidingWindows(10, 5))
        assert internals.set_windowing(yielded, windowing) is yielded
        assert yielded.windowing is windowing
        _ = yielded | beam.WithKeys(0) | beam.GroupByKey() | beam.ParDo(Starts()) | seen
    assert sorted((list(found[1]), start) for found, start in seen.found) == [
        (["a"], 0),
        (["a"], 5),
    ]


class SeeWindows(beam.DoFn):
    """Whether each call shows the element of the call before it, in another window."""

    def start_bundle(self):
        self._last = None

    def process(self, element, arrived=beam.DoFn.WindowedValueParam, window=beam.DoFn.WindowParam):
        is_same = self._last is not None and internals.is_same_element(self._last, arrived)
        self._last = arrived
        yield element, is_same, len(arrived.windows)


def test_an_element_in_two_windows_is_shown_twice_and_equal_ones_are_not_taken_for_one():
    seen = Collect()
    with beam.Pipeline(options=FNAPI) as p:
        elements = (
            p
            | beam.Create(["one text", "one text"], reshuffle=False)
            | beam.Map(lambda text: TimestampedValue(text, 7))
        )
        _ = elements | beam.WindowInto(SlidingWindows(10, 5)) | beam.ParDo(SeeWindows()) | seen
    assert sorted(seen.found) == [("one text", False, 1)] * 2 + [("one text", True, 1)] * 2


class Parcels(beam.DoFn):
    def __init__(self, wrap):
        self._wrap = wrap

    def process(self, element, arrived=beam.DoFn.WindowedValueParam):
        yield self._wrap(element, arrived)


@pytest.mark.parametrize(
    ("wrap", "times"),
    [
        (lambda value, first: internals.in_one_window(value, first), 2),
        (lambda value, first: first.with_value(value), 4),
    ],
    ids=["in one window", "in both, which Beam multiplies"],
)
def test_what_a_dofn_yields_comes_as_often_as_its_input_has_windows(wrap, times):
    """`in_one_window` is for `finish_bundle`, where there is no input; the second case is why it
    exists.
    """
    seen = Collect()
    with beam.Pipeline(options=FNAPI) as p:
        elements = p | beam.Create(["a"]) | beam.Map(lambda text: TimestampedValue(text, 7))
        _ = (
            elements
            | beam.WindowInto(SlidingWindows(10, 5))
            | beam.ParDo(Parcels(wrap))
            | beam.ParDo(Starts())
            | seen
        )
    assert len(seen.found) == times


def test_a_pane_is_left_out_and_the_rest_stays():
    pane = PaneInfo(True, False, PaneInfoTiming.EARLY, 0, 0)
    arrived = WindowedValue("a", 3, [GlobalWindow()], pane)
    plain = internals.without_pane(arrived)
    assert (plain.value, plain.timestamp, plain.windows) == (
        "a",
        arrived.timestamp,
        arrived.windows,
    )
    assert internals.without_pane(plain) is plain
    assert plain.pane_info != pane


@pytest.mark.parametrize(
    "name",
    [
        "DirectRunner",
        "FnApiRunner",
        "BundleBasedDirectRunner",
        "PrismRunner",
        "FlinkRunner",
        "PortableRunner",
    ],
)
def test_a_runner_is_known_by_the_name_of_its_class(name):
    runner = beam.Pipeline(options=PipelineOptions([f"--runner={name}"])).runner
    known = {"DirectRunner": "SwitchingDirectRunner"}.get(name, name)
    assert internals.is_a_runner(runner, known)
    assert internals.runner_names(runner)[-1] == "object"


def test_the_runner_behind_an_interactive_one_is_found():
    class Wrapping:
        def __init__(self, runner):
            self._underlying_runner = runner

    class Piped:
        def __init__(self, runner):
            self.runner = runner

    assert internals.underlying_runner(Piped(Wrapping("behind"))) == "behind"
    assert internals.underlying_runner(Piped("alone")) == "alone"
    source = Path(beam.__file__).parent / "runners" / "interactive" / "interactive_runner.py"
    assert "self._underlying_runner = (" in source.read_text()


def test_all_that_a_pcollection_comes_from_is_seen_and_nothing_beside_it():
    p = beam.Pipeline()
    main = p | "Main" >> beam.Create([1]) | "Step" >> beam.Map(str)
    side = p | "Side" >> beam.Create([2])
    joined = (main, side) | beam.Flatten() | "Spread" >> beam.Reshuffle()
    _ = side | "Beside" >> beam.CombineGlobally(sum)
    names = [type(transform).__name__ for transform in internals.upstream_transforms(joined)]
    assert {"Flatten", "Reshuffle"} <= set(names)
    assert "CombineGlobally" not in names
    assert names.count("Create") == 2
    assert len(names) == len(set(map(id, internals.upstream_transforms(joined))))
    assert [type(t).__name__ for t in internals.upstream_transforms(side)].count("Create") == 1


class WaitsInRealTime(beam.DoFn):
    TIMER = TimerSpec("timer", TimeDomain.REAL_TIME)

    def process(self, keyed, timer=beam.DoFn.TimerParam(TIMER)):
        timer.set(1)

    @on_timer(TIMER)
    def fire(self):
        pass


class WaitsForTheWatermark(beam.DoFn):
    TIMER = TimerSpec("timer", TimeDomain.WATERMARK)

    def process(self, keyed, timer=beam.DoFn.TimerParam(TIMER)):
        timer.set(1)

    @on_timer(TIMER)
    def fire(self):
        pass


@pytest.mark.parametrize(
    ("dofn", "has_one"),
    [(WaitsInRealTime(), True), (WaitsForTheWatermark(), False), (Starts(), False), (None, False)],
    ids=["real time", "event time", "no timer", "no DoFn"],
)
def test_a_real_time_timer_is_seen(dofn, has_one):
    assert internals.has_real_time_timer(dofn) == has_one


class SumAtTheEnd(beam.DoFn):
    """Sums per key over bundles, written when the bundle ends, all keys at once."""

    TOTAL = ReadModifyWriteStateSpec("total", coders.FastPrimitivesCoder())

    def start_bundle(self):
        self._sums, self._cells = {}, internals.LateWrites()

    def process(self, keyed, total=beam.DoFn.StateParam(TOTAL)):
        key, number = keyed
        if key not in self._sums:
            self._cells.keep(key, total)
            self._sums[key] = total.read() or 0
        self._sums[key] += number
        yield key, self._sums[key]

    def finish_bundle(self):
        for key, total in self._sums.items():
            self._cells.write(key, None if total > 100 else total)


@pytest.mark.parametrize("runner", ["FnApiRunner", "BundleBasedDirectRunner", "DirectRunner"])
def test_a_state_that_is_written_when_its_bundle_ends_is_read_by_the_next(runner):
    seen = Collect()
    events = [[("a", 1), ("b", 10)], [("a", 2)], [("b", 100), ("a", 4)], [("b", 5), ("a", 8)]]
    flags = [f"--runner={runner}", "--streaming"]
    with beam.Pipeline(options=PipelineOptions(flags, pickle_library="cloudpickle")) as p:
        if runner == "FnApiRunner":  # it has no TestStream
            start = time.time()
            ticks = p | PeriodicImpulse(start, start + 0.35, 0.1)
            source = ticks | beam.FlatMap(lambda tick: events[round((tick - start) / 0.1)])
        else:
            made = test_stream.TestStream()
            for together in events:
                made = made.add_elements(together)
            source = p | made.advance_watermark_to_infinity()
        keyed = source | beam.Map(tuple).with_output_types(tuple[str, int])
        _ = keyed | beam.ParDo(SumAtTheEnd()) | seen
    assert [total for key, total in seen.found if key == "a"] == [1, 3, 7, 15]
    if runner != "FnApiRunner":  # there, late ticks come in one bundle
        assert [total for key, total in seen.found if key == "b"] == [10, 110, 5]


@pytest.mark.parametrize("domain", [TimeDomain.REAL_TIME, TimeDomain.WATERMARK])
def test_a_timer_holds_the_watermark_where_it_is_told_to(domain):
    coder_of = coders.coders._TimerCoder  # Beam's, of which there is no public name
    timer_coder = coder_of(coders.StrUtf8Coder(), coders.coders.GlobalWindowCoder())
    stream = ClosableOutputStream()
    timer = OutputTimer(
        "key", GlobalWindow(), Timestamp(90), PANE_INFO_UNKNOWN, domain, "wait",
        timer_coder.get_impl(), stream,
    )  # fmt: skip
    internals.set_and_hold(timer, 100.0, 5_000_000)
    set_ = timer_coder.decode(stream.get())
    assert set_.fire_timestamp == 100
    assert set_.hold_timestamp == (5 if domain == TimeDomain.REAL_TIME else 100)


def test_a_row_type_gives_back_its_fields_and_a_tuple_class():
    row = internals.row_type([("id", int), ("text", typing.Optional[str])])
    assert internals.row_fields(row) == [("id", int), ("text", typing.Optional[str])]
    assert internals.row_fields(str) is None
    made = internals.tuple_class_of(row)(7, None)
    assert (made.id, made.text, tuple(made)) == (7, None, (7, None))


class Plain:
    pass


@pytest.mark.parametrize(
    ("kind", "portable"),
    [
        (str, True),
        (typing.Optional[int], True),
        (typing.Sequence[float], True),
        (Plain, False),
        (typing.Any, False),
        (dict, False),
    ],
    ids=["str", "nullable", "sequence", "a class", "anything", "a bare dict"],
)
def test_types_that_every_sdk_has_are_told_from_pythons_own(kind, portable):
    assert internals.is_portable_type(kind) == portable


def test_a_row_may_have_a_field_called_self():
    row = internals.new_row({"self": 1, "text": "a"})
    assert row.as_dict() == {"self": 1, "text": "a"}
    assert internals.new_row({"text": "a"}) == beam.Row(text="a")


def test_a_class_of_the_main_program_travels_by_value_and_both_pickles_are_read():
    made = type("OfMain", (), {"__module__": "__main__", "n": 3})()
    data = internals.dumps_by_value(made)
    assert data[:1] != pickle.PROTO
    assert internals.loads(data).n == 3
    assert internals.loads(pickle.dumps(["a", 1])) == ["a", 1]


PRIMITIVES = {
    "NONE": None, "INT": 7, "FLOAT": 1.5, "BYTES": b"a", "TEXT": "a", "BOOL": True,
    "LIST": [1], "TUPLE": (1,), "DICT": {1: 2}, "SET": {1}, "OTHER": 1 << 70,
}  # fmt: skip


@pytest.mark.parametrize("name", PRIMITIVES)
def test_each_plain_value_is_written_with_its_tag(name):
    encoded = coders.FastPrimitivesCoder().encode(PRIMITIVES[name])
    assert encoded[0] == getattr(internals.PrimitiveTag, name)


@pytest.mark.parametrize(
    "coder",
    [
        coders.TupleCoder([coders.StrUtf8Coder(), coders.VarIntCoder()]),
        internals.MapCoder(coders.StrUtf8Coder(), coders.VarIntCoder()),
        internals.ListCoder(coders.VarIntCoder()),
        coders.IterableCoder(coders.VarIntCoder()),
        internals.NullableCoder(coders.VarIntCoder()),
    ],
    ids=["tuple", "map", "list", "iterable", "nullable"],
)
def test_the_coders_inside_a_coder_are_found(coder):
    found = internals.component_coders(coder)
    assert found[-1] == coders.VarIntCoder()
    assert len(found) == (2 if "Tuple" in str(coder) or "Map" in str(coder) else 1)


class CountSizes(beam.DoFn):
    def process(self, sizes):
        internals.update_all(Metrics.distribution("test", "sizes"), sizes)


def test_a_distribution_takes_many_values_at_once():
    p = beam.Pipeline(options=FNAPI)
    _ = p | beam.Create([[1, 5, 3], [9]]) | beam.ParDo(CountSizes())
    result = p.run()
    result.wait_until_finish()
    (found,) = result.metrics().query(MetricsFilter().with_name("sizes"))["distributions"]
    assert (found.result.count, found.result.sum, found.result.min, found.result.max) == (
        4,
        18,
        1,
        9,
    )


def test_outside_of_a_bundle_nothing_is_counted():
    internals.update_all(Metrics.distribution("test", "sizes"), [1])


INTERNAL_MODULES = (
    "apache_beam.internal",
    "apache_beam.coders.coder_impl",
    "apache_beam.metrics.execution",
    "apache_beam.portability",
)
INTERNAL_NAMES = {
    "coder_impl", "named_tuple_from_schema", "schema_from_element_type", "typing_to_runner_api",
    "get_dofn_specs", "MetricsEnvironment", "RowTypeConstraint", "ThrottlingSignaler",
    "PANE_INFO_UNKNOWN", "_windowing", "_underlying_runner", "producer", "pickler",
}  # fmt: skip
TRANSFORMS = Path(internals.__file__).parent


@pytest.mark.parametrize("path", sorted(TRANSFORMS.glob("*.py")), ids=lambda path: path.name)
def test_what_beam_does_not_promise_is_used_in_one_file(path):
    if path.name == "beam_internals.py":
        return
    tree = ast.parse(path.read_text())
    modules = {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert not [module for module in modules if module.startswith(INTERNAL_MODULES)]
    attributes = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and not (isinstance(node.value, ast.Name) and node.value.id == "self")
    }
    imported = {
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("apache_beam")
        for alias in node.names
    }
    assert not (attributes | imported) & INTERNAL_NAMES


def test_every_use_names_its_place_upstream():
    tree = ast.parse((TRANSFORMS / "beam_internals.py").read_text())
    made = [node for node in tree.body if isinstance(node, (ast.FunctionDef, ast.ClassDef))]
    without = [node.name for node in made if "Upstream: `" not in (ast.get_docstring(node) or "")]
    assert without == ["is_a_runner"]


def test_a_pipeline_without_the_steps_beside_the_way_runs_what_is_left():
    seen, beside = Collect(), Collect()
    p = beam.Pipeline(options=FNAPI)
    numbers = p | beam.Create([1, 2]) | beam.Map(lambda number: number + 1)
    looked_at = numbers | seen
    _ = numbers | beside
    labels = [step.full_label for step in internals.applied_transforms(p)]
    assert labels.index("Create") < labels.index(seen.label) < labels.index(beside.label)
    internals.keep_only(p, internals.producers_of([looked_at]))
    p.run().wait_until_finish()
    assert sorted(seen.found) == [2, 3]
    assert beside.found == []
