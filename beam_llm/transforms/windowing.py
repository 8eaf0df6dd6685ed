"""Windowing of what carries its elements' own windows inside: when it is grouped, and that none of it is ever late."""

from __future__ import annotations

import math
from typing import Any

import apache_beam as beam
from apache_beam import pvalue
from apache_beam.transforms.trigger import AccumulationMode, AfterAny, AfterCount, AfterProcessingTime, AfterWatermark, Always
from apache_beam.transforms.window import GlobalWindows, TimestampCombiner

NEVER_TOO_LATE_SECONDS = 10**9


def flushed(windowfn: Any, count: int, seconds: float) -> beam.Windowing:
    """Groups that go on when `count` are there, `seconds` after the first, and at the window's end; late ones at once, never dropped.

    Whole seconds, rounded up: Beam's AfterProcessingTime can't be written down otherwise (`trigger.py`, Beam 2.77).
    """
    return beam.Windowing(
        windowfn,
        triggerfn=AfterWatermark(early=AfterAny(AfterCount(count), AfterProcessingTime(math.ceil(seconds))), late=AfterCount(1)),
        accumulation_mode=AccumulationMode.DISCARDING,
        timestamp_combiner=TimestampCombiner.OUTPUT_AT_EARLIEST,
        allowed_lateness=NEVER_TOO_LATE_SECONDS,
    )


def use_one_window(pcoll: pvalue.PCollection) -> None:
    """For what carries its elements' windows inside: what groups it is one global window, as in Beam's own Reshuffle.

    Nothing is ever late in it: on the BundleBasedDirectRunner, what a timer sends at the end of time is behind the watermark.
    """
    pcoll._windowing = beam.Windowing(
        GlobalWindows(),
        triggerfn=Always(),
        accumulation_mode=AccumulationMode.DISCARDING,
        timestamp_combiner=TimestampCombiner.OUTPUT_AT_EARLIEST,
        allowed_lateness=NEVER_TOO_LATE_SECONDS,
    )
