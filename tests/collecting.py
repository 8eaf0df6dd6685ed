"""What a PCollection holds, for tests on runners of this process. In a module of its own: what is
pickled by value is copied.
"""

from __future__ import annotations

import itertools
from typing import Any

import apache_beam as beam

_found: dict[str, list[Any]] = {}
_names = itertools.count()


class Collect(beam.PTransform):
    """Keeps all elements: `rows = Collect(); pcoll | rows; …run…; rows.found`."""

    def __init__(self) -> None:
        super().__init__(f"Collect{next(_names)}")
        _found[self.label] = []

    def expand(self, pcoll: Any) -> Any:
        return pcoll | beam.Map(_keep, self.label)

    @property
    def found(self) -> list[Any]:
        return _found[self.label]


def _keep(element: Any, name: str) -> Any:
    _found[name].append(element)
    return element
