"""Every use of Beam that Beam does not promise, each with its reason, its place upstream, and a
test in tests/test_beam_internals.py.

Beam's public API is stable from version to version; what stands here is not. A new Beam that breaks
one of these breaks one test, and is mended in this file alone. Places are files of Beam's Python
SDK (`sdks/python/apache_beam/…`), the same in 2.74 and in 2.77.
"""

from __future__ import annotations

import copyreg
import dataclasses
import pickle
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import apache_beam as beam
from apache_beam import coders, pvalue
from apache_beam.coders import coder_impl
from apache_beam.coders.coders import (
    DecimalCoder,
    FastCoder,
    GlobalWindowCoder,
    IntervalWindowCoder,
    ListCoder,
    MapCoder,
    NullableCoder,
)
from apache_beam.coders.row_coder import RowCoder
from apache_beam.internal import pickler
from apache_beam.metrics.execution import MetricsEnvironment
from apache_beam.portability.api import schema_pb2
from apache_beam.transforms import userstate
from apache_beam.transforms.timeutil import TimeDomain
from apache_beam.transforms.window import WindowedValue
from apache_beam.typehints import schemas
from apache_beam.typehints.row_type import RowTypeConstraint
from apache_beam.utils.timestamp import Timestamp
from apache_beam.utils.windowed_value import PANE_INFO_UNKNOWN

__all__ = [
    "DecimalCoder",
    "FastCoder",
    "GlobalWindowCoder",
    "IntervalWindowCoder",
    "LateWrites",
    "ListCoder",
    "MapCoder",
    "NullableCoder",
    "PrimitiveTag",
    "RowCoder",
    "applied_transforms",
    "coder_impl",
    "component_coders",
    "dumps_by_value",
    "has_real_time_timer",
    "in_one_window",
    "is_a_runner",
    "is_portable_type",
    "is_same_element",
    "keep_only",
    "loads",
    "missing_by_name",
    "new_row",
    "producers_of",
    "row_fields",
    "row_type",
    "runner_names",
    "schema_pb2",
    "set_and_hold",
    "set_windowing",
    "tuple_class_of",
    "underlying_runner",
    "update_all",
    "upstream_transforms",
    "without_pane",
]


# -- a pipeline's graph


def applied_transforms(pipeline: beam.Pipeline) -> Iterator[Any]:
    """All steps that were applied so far, composites before their parts: `full_label`, `transform`,
    `inputs`, `parts`.

    A visitor sees them too, but not in a pipeline that is still without a runner's replacements.

    Upstream: `pipeline.py`, Pipeline._root_transform and AppliedPTransform.parts.
    """
    waiting = [pipeline._root_transform()]
    while waiting:
        step = waiting.pop()
        yield step
        waiting += reversed(step.parts)


def producers_of(pcolls: Iterable[pvalue.PValue]) -> list[Any]:
    """The steps without parts that these PCollections come from, all the way up.

    Upstream: `pvalue.py`, PValue.producer; `pipeline.py`, AppliedPTransform.inputs, side_inputs.
    """
    found: dict[int, Any] = {}
    waiting = [pcoll.producer for pcoll in pcolls]
    while waiting:
        step = waiting.pop()
        if step is None or id(step) in found:
            continue
        found[id(step)] = step
        sides = [side.pvalue for side in step.side_inputs]
        waiting += [pcoll.producer for pcoll in (*step.inputs, *sides)]
    return list(found.values())


def upstream_transforms(pcoll: pvalue.PCollection) -> Iterator[Any]:
    """All transforms that `pcoll` comes from, composites included.

    Beam's own visitors start at a pipeline's root and see what is beside the way, too.

    Upstream: `pipeline.py`, AppliedPTransform.parent; see `producers_of`.
    """
    seen = set()
    for step in producers_of([pcoll]):
        while step is not None and id(step) not in seen:
            seen.add(id(step))
            yield step.transform
            step = step.parent


def keep_only(pipeline: beam.Pipeline, steps: Iterable[Any]) -> None:
    """Takes all other steps out of a pipeline: those that write, in a run that only looks.

    Upstream: `pipeline.py`, AppliedPTransform.parts, which to_runner_api writes down.
    """
    wanted = {id(step) for step in steps}

    def is_kept(step: Any) -> bool:
        if id(step) in wanted:
            return True
        step.parts[:] = [part for part in step.parts if is_kept(part)]
        return bool(step.parts)

    is_kept(pipeline._root_transform())


# -- windows


def set_windowing(pcoll: pvalue.PCollection, windowing: beam.Windowing) -> pvalue.PCollection:
    """Declares what windows the elements of `pcoll` are in, without a step that assigns them.

    A DoFn may yield WindowedValues in windows of its own choice, but nothing public tells the graph
    which.

    Upstream: `pvalue.py`, PCollection.windowing; Beam's own Reshuffle does the same
    (`transforms/util.py`, ReshufflePerKey; issue 19785).
    """
    pcoll._windowing = windowing
    return pcoll


def is_same_element(held: WindowedValue, arrived: WindowedValue) -> bool:
    """Whether two calls of a DoFn that asks for the window show one element in two of its windows.

    Such a DoFn is called once per window, one call after the other, with the very same object: so
    identity, and a window not seen yet, tell one element in two windows from two equal elements.

    Upstream: `runners/common.py`, PerWindowInvoker.invoke_process (`for w in
    windowed_value.windows`).
    """
    is_same = held.value is arrived.value and held.timestamp_micros == arrived.timestamp_micros
    return is_same and arrived.windows[0] not in held.windows


def in_one_window(value: Any, first: WindowedValue) -> WindowedValue:
    """`value` at the timestamp of `first`, in one of its windows: what a DoFn may yield for another
    to open.

    One, because Beam multiplies the windows of every WindowedValue that a DoFn yields by the number
    of windows its *input* is in, if the DoFn does not ask for the window: in three windows,
    whatever is inside would come three times.

    Upstream: `runners/common.py`, _OutputHandler (`windowed_value.windows *=
    len(windowed_input_element.windows)`).
    """
    return WindowedValue(value, first.timestamp, first.windows[:1])


def without_pane(arrived: WindowedValue) -> WindowedValue:
    """The element without its pane: that says how it came here, and must not make it another
    element.

    Upstream: `utils/windowed_value.py`, PANE_INFO_UNKNOWN, which only that module exports.
    """
    if arrived.pane_info is PANE_INFO_UNKNOWN:
        return arrived
    return WindowedValue(arrived.value, arrived.timestamp, arrived.windows)


# -- runners


def underlying_runner(pipeline: Any) -> Any:
    """The runner that does the work, where the pipeline's own only wraps it.

    Upstream: `runners/interactive/interactive_runner.py`, InteractiveRunner.__init__
    (`self._underlying_runner`).
    """
    return getattr(pipeline.runner, "_underlying_runner", pipeline.runner)


def runner_names(runner: Any) -> list[str]:
    """The names of a runner's class and of those it derives from, so that no runner's module is
    imported for the question.

    Upstream: `runners/runner.py`, `_RUNNER_MAP`; the class names are not part of Beam's API,
    `--runner=` accepts them.
    """
    return [kind.__name__ for kind in type(runner).__mro__]


def is_a_runner(runner: Any, name: str) -> bool:
    """Whether a runner is of the class `name`, or of one that derives from it."""
    return name in runner_names(runner)


def has_real_time_timer(dofn: Any) -> bool:
    """Whether a DoFn has a processing-time timer, which moves a plain DirectRunner's pipeline to
    the BundleBasedDirectRunner.

    Upstream: `runners/direct/direct_runner.py`, _FnApiRunnerSupportVisitor and
    SwitchingDirectRunner; `transforms/userstate.py`.
    """
    if not isinstance(dofn, beam.DoFn) or not userstate.is_stateful_dofn(dofn):
        return False
    return any(
        timer.time_domain == TimeDomain.REAL_TIME for timer in userstate.get_dofn_specs(dofn)[1]
    )


# -- state


class LateWrites:
    """State cells of one bundle, written at its end: by `finish_bundle`, when what is to be written
    is known of all keys.

    Beam shows a key's cells to `process` and timers alone, and promises nothing of a cell that is
    kept beyond them. The SDK itself keeps each until its bundle has ended: writes are collected,
    and sent to the runner, key by key, after `finish_bundle`. So to the runner these writes look
    like any others, and they belong to the same bundle: either its output and its state are
    committed, or neither.

    Upstream: `runners/worker/operations.py`, DoOperation.finish (`self.dofn_runner.finish()`, then
    `self.user_state_context.commit()`); `runners/worker/bundle_processor.py`,
    FnApiUserStateContext.get_state (`self._all_states`); `runners/direct/transform_evaluator.py`,
    _ParDoEvaluator.finish_bundle.
    """

    def __init__(self) -> None:
        self._cells: dict[Any, Any] = {}

    def keep(self, key: Any, cell: Any) -> None:
        """The cell that `write` is to write for a key: a ReadModifyWrite state."""
        self._cells[key] = cell

    def write(self, key: Any, value: Any) -> None:
        """Writes a kept cell; None clears it."""
        if value is None:
            self._cells[key].clear()
        else:
            self._cells[key].write(value)


def set_and_hold(timer: Any, moment: float, oldest_micros: int) -> None:
    """Sets a REAL_TIME timer that holds the output watermark at a timestamp until it fires.

    `timer.set` alone holds it at the timestamp of the element that the DoFn is called with. Where a
    timer sets itself anew, that is the time at which it fired: on Flink the processing time, so
    that what still waits for it would come late. The timers of the BundleBasedDirectRunner hold
    nothing.

    Upstream: `runners/worker/bundle_processor.py`, OutputTimer.set (`hold_timestamp=…
    self._input_timestamp`); Beam's Python has no output timestamp for timers up to 2.77.
    """
    if hasattr(timer, "_input_timestamp"):
        timer._input_timestamp = Timestamp(micros=oldest_micros)
    timer.set(moment)


# -- types and rows


def row_fields(element_type: Any) -> list[tuple[str, Any]] | None:
    """The names and types of a Row type's fields; None where the type is none.

    Upstream: `typehints/row_type.py`, RowTypeConstraint._fields (`inner_types` is public but
    nameless).
    """
    return list(element_type._fields) if isinstance(element_type, RowTypeConstraint) else None


def row_type(fields: Iterable[tuple[str, Any]]) -> Any:
    """The type of `beam.Row`s with these fields.

    Upstream: `typehints/row_type.py`, RowTypeConstraint.from_fields.
    """
    return RowTypeConstraint.from_fields(list(fields))


def tuple_class_of(row: Any) -> Any:
    """The NamedTuple class that values of a Row type are after a shuffle: what writes Parquet takes
    no `beam.Row` inside a row.

    Upstream: `typehints/schemas.py`, schema_from_element_type and named_tuple_from_schema.
    """
    return schemas.named_tuple_from_schema(schemas.schema_from_element_type(row))


def is_portable_type(kind: Any) -> bool:
    """Whether every SDK has a type for this one; what only Python knows gets a `pythonsdk` URN and
    is pickled.

    Upstream: `typehints/schemas.py`, SchemaTranslation.typing_to_runner_api (`python_any`,
    `PYTHON_ANY_URN`).
    """
    try:
        return "pythonsdk" not in str(schemas.typing_to_runner_api(kind))
    except Exception:
        return False  # whatever Beam's conversion makes of it: a bare `dict`, say, is a ValueError


def new_row(values: Mapping[str, Any]) -> beam.Row:
    """`beam.Row(**values)`, also of a field called `self`.

    Upstream: `pvalue.py`, Row.__init__, whose instances keep their fields in `__dict__`.
    """
    row = beam.Row()
    row.__dict__.update(values)
    return row


# -- bytes


def dumps_by_value(value: Any) -> bytes:
    """A pickle that carries classes of the user's main program with it; begins with a letter or
    digit, as it is base64.

    Plain pickle refers to classes by module and name, and a remote worker has another `__main__`.

    Upstream: `internal/pickler.py`, dumps.
    """
    return bytes(pickler.dumps(value))


def missing_by_name(_: Any) -> str:
    """A pickle of `dataclasses.MISSING` that leads to the one there is.

    A dataclass that is pickled by value takes a copy of it along, which on the worker is another
    one: pydantic takes that for a default.

    Upstream: `internal/cloudpickle/cloudpickle.py`, _DATACLASSE_FIELD_TYPE_SENTINELS, which are the
    sentinels of dataclasses that it knows.
    """
    return "MISSING"


copyreg.pickle(type(dataclasses.MISSING), missing_by_name)


def loads(data: bytes) -> Any:
    """What `dumps_by_value` or `pickle.dumps` wrote: base64 never begins with pickle's protocol
    mark.

    Upstream: `internal/cloudpickle_pickler.py` and `internal/dill_pickler.py`, dumps
    (`base64.b64encode`).
    """
    return pickle.loads(data) if data[:1] == pickle.PROTO else pickler.loads(data)


class PrimitiveTag:
    """The first byte of a value as FastPrimitivesCoder writes it: a stable format, whose tags the
    compiled module keeps to itself.

    Upstream: `coders/coder_impl.py`, FastPrimitivesCoderImpl (`cdef enum` in the `.pxd`; the same
    from Beam 2.50 on).
    """

    NONE, INT, FLOAT, BYTES, TEXT, LIST, TUPLE, DICT, SET, BOOL = range(10)
    OTHER = 255
    """What the coder that FastPrimitivesCoder falls back to has written, pickle by default."""


def component_coders(coder: Any) -> list[coders.Coder]:
    """The coders of what is inside a tuple, map, list, iterable or nullable.

    Upstream: `coders/coders.py`: only TupleCoder has an accessor; the others keep theirs in
    attributes.
    """
    if type(coder) is coders.TupleCoder:
        return list(coder.coders())
    if type(coder) is MapCoder:
        return [coder._key_coder, coder._value_coder]
    return [coder._value_coder if type(coder) is NullableCoder else coder._elem_coder]


# -- metrics


def update_all(distribution: Any, values: Sequence[int]) -> None:
    """What `distribution.update` does for each of `values`, but finds its cell once: that takes
    five times as long as the rest.

    Upstream: `metrics/execution.py`, MetricsEnvironment.current_container and
    MetricsContainer.get_distribution.
    """
    container = MetricsEnvironment.current_container()
    if container is None:
        return  # outside of a bundle nothing is counted
    cell = container.get_distribution(distribution.metric_name)
    for value in values:
        cell.update(value)
