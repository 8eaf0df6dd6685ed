"""`beam-llm run FILE.yaml --dry-run`: the steps, the options of each one that asks, and its first
request. No call is made and nothing is written.

Beam itself makes the rows that a step would ask about, in this process, from the pipeline without
all that doesn't lead to them.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from textwrap import indent
from typing import Any

import apache_beam as beam

from beam_llm.cli.running import reason_of
from beam_llm.cli.show import SAMPLE_ROWS, first_request
from beam_llm.cli.words import options_in_words
from beam_llm.config import Settings
from beam_llm.errors import printable
from beam_llm.fronts.yaml import Predict
from beam_llm.transforms.beam_internals import applied_transforms, keep_only, producers_of
from beam_llm.transforms.fields import fields_of

_ROWS_BY_STEP: dict[str, list[dict[str, Any]]] = {}
"""Rows by step; a global, since Beam's workers are threads of this process."""


def llm_steps(pipeline: beam.Pipeline) -> dict[str, Settings]:
    """The settings of each step that asks a model, by the step's label."""
    return {
        str(step.full_label): step.transform.settings
        for step in applied_transforms(pipeline)
        if isinstance(step.transform, Predict)
    }


def dry_run(pipeline: beam.Pipeline) -> None:
    """Prints what a file would do, step by step.

    Args:
      pipeline: built for a runner in this process; it can't be run afterwards.
    """
    steps = [step for step in applied_transforms(pipeline) if _is_shown(step)]
    labels = [str(step.full_label) for step in steps]
    asking = {label: step for label, step in zip(labels, steps, strict=True)
              if isinstance(step.transform, Predict)}  # fmt: skip
    rows = _rows_of(pipeline, asking)
    for label, step in zip(labels, steps, strict=True):
        print(printable(label))
        if label in asking:
            for text in _describe_settings(step.transform.settings, rows[label]):
                print(indent(text, "  "))


def _is_shown(step: Any) -> bool:
    """The file's own steps, and those that ask wherever they stand."""
    is_own = step.parent is not None and step.parent.parent is None
    return is_own or isinstance(step.transform, Predict)


def _describe_settings(settings: Settings, rows: list[dict[str, Any]] | str) -> Iterator[str]:
    yield printable(", ".join(options_in_words(settings)))
    if isinstance(rows, str):
        yield printable(rows)
    else:
        yield from first_request(settings, rows)


class _RememberRows(beam.DoFn):
    """Remembers the first rows."""

    def __init__(self, name: str):
        self._name = name

    def process(self, element: Any) -> None:
        rows = _ROWS_BY_STEP.get(self._name)
        if rows is not None and len(rows) < SAMPLE_ROWS:
            rows.append(dict(fields_of(element)) or {"element": element})


def _rows_of(pipeline: beam.Pipeline, asking: dict[str, Any]) -> dict[str, Any]:
    """The first rows of each step that asks, or why they are not known."""
    found: dict[str, Any] = {}
    looks = {}
    for label, step in asking.items():
        (rows,) = step.inputs
        sources = producers_of([rows])
        if any(_is_part_of(source, other) for source in sources for other in asking.values()):
            found[label] = "(its first request and its cost depend on the answers before)"
        elif not rows.is_bounded:
            found[label] = "(its rows are a stream, which is not read here)"
        else:
            looks[label] = rows
    # Names this dry run: another one in the same process has rows of its own.
    name = uuid.uuid4().hex
    kept = [
        *producers_of(looks.values()),
        *(_remembering_step(f"{name} {label}", rows) for label, rows in looks.items()),
    ]
    if not kept:
        return found
    # Sinks are left out, and all that asks: no call is made and nothing is written.
    keep_only(pipeline, kept)
    try:
        pipeline.run().wait_until_finish()
        why = ""
    except Exception as error:  # whatever Beam and its sources raise
        why = f"(its rows can't be read here: {reason_of(error)})"
    for label in looks:
        first_rows = _ROWS_BY_STEP.pop(f"{name} {label}")
        found[label] = why if why and not first_rows else first_rows
    return found


def _remembering_step(name: str, rows: Any) -> Any:
    """A step that remembers rows."""
    _ROWS_BY_STEP[name] = []
    look = rows | f"Look at {name}" >> beam.ParDo(_RememberRows(name)).with_output_types(None)
    return look.producer


def _is_part_of(step: Any, composite: Any) -> bool:
    while step is not None:
        if step is composite:
            return True
        step = step.parent
    return False
