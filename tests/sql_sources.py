"""A Beam source and a sink that a SQL file of the tests names."""

from __future__ import annotations

from typing import Any

import apache_beam as beam
from apache_beam.transforms.periodicsequence import PeriodicImpulse
from apache_beam.transforms.window import FixedWindows, TimestampedValue


class MakeReviews(beam.PTransform):
    def __init__(self, count: int):
        super().__init__()
        self._count = count

    def expand(self, begin: Any) -> Any:
        rows = [{"id": str(n), "text": f"good thing {n}"} for n in range(self._count)]
        return begin | beam.Create(rows)


class MakeReviewsInWindows(MakeReviews):
    """The same, each in a window of its own."""

    def expand(self, begin: Any) -> Any:
        timed = beam.Map(lambda row: TimestampedValue(row, int(row["id"])))
        return super().expand(begin) | timed | beam.WindowInto(FixedWindows(1))


class WriteLines(beam.PTransform):
    def __init__(self, path: str):
        super().__init__()
        self._path = path

    def expand(self, rows: Any) -> Any:
        return rows | beam.Map(str) | beam.io.WriteToText(self._path)


def not_a_transform() -> dict[str, int]:
    return {}


class EndlessReviews(beam.PTransform):
    """A stream of rows, which nobody may wait for."""

    def expand(self, begin: Any) -> Any:
        ticks = begin | PeriodicImpulse(fire_interval=3600)
        return ticks | beam.Map(lambda tick: beam.Row(text=f"good thing at {tick}"))
