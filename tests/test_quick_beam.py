"""What the tests have Beam remember is what Beam says."""

from __future__ import annotations

import apache_beam as beam
import pytest
from apache_beam.options.pipeline_options import (
    DebugOptions,
    PipelineOptions,
    SetupOptions,
    StandardOptions,
    StreamingOptions,
)

from tests import quick_beam

CLASSES = (DebugOptions, SetupOptions, StandardOptions, StreamingOptions)
FLAGS = ["--runner=FnApiRunner", "--experiments=a", "--experiments=b", "--own=1"]


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
@pytest.mark.parametrize("flags", [[], [*FLAGS, "--streaming"]], ids=["no flags", "flags"])
def test_a_view_has_the_options_of_beams_own(cls, flags):
    for _ in range(2):
        given, true = (PipelineOptions(flags, streaming=None) for _ in range(2))
        quick, own = quick_beam.view_as(given, cls), quick_beam.beams_view_as(true, cls)
        assert type(quick) is cls
        assert quick.__dict__ == own.__dict__
        assert given._all_options == true._all_options  # Beam's: a view shares what it adds
        assert quick.get_all_options() == own.get_all_options()


def test_an_option_that_is_set_or_added_to_is_so_in_every_view_of_its_options_alone():
    options, others = PipelineOptions(FLAGS), PipelineOptions(FLAGS)
    options.view_as(DebugOptions).experiments.append("c")
    options.view_as(StandardOptions).streaming = True
    assert options.view_as(DebugOptions).experiments == ["a", "b", "c"]
    assert options.view_as(StandardOptions).streaming
    assert others.view_as(DebugOptions).experiments == ["a", "b"]
    assert not others.view_as(StandardOptions).streaming


class Doubling(beam.DoFn):
    def process(self, element, window=beam.DoFn.WindowParam, *, times=2):
        yield element


@pytest.mark.parametrize(
    "function", [Doubling.process, Doubling().process, len, Doubling, lambda x, y=3: x],
    ids=["function", "method", "builtin", "class", "lambda"],
)  # fmt: skip
def test_arguments_are_those_that_beam_finds(function):
    for _ in range(2):
        assert quick_beam.arguments_of(function) == quick_beam.beams_arguments_of(function)
