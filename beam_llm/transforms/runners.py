"""Which kind of runner a pipeline is built for, as far as that is known when it is built. Facts
about runners are here and nowhere else.
"""

from __future__ import annotations

import enum
import logging
from typing import Any

import apache_beam as beam
from apache_beam.options.pipeline_options import PortableOptions

from beam_llm.errors import UsageError
from beam_llm.transforms.beam_internals import (
    applied_transforms,
    has_real_time_timer,
    is_a_runner,
    runner_names,
    underlying_runner,
    upstream_transforms,
)

_log = logging.getLogger("beam_llm")


class Gathering(enum.Enum):
    """How elements of a stream are gathered; `forming_streams.py` says which runner can do what,
    and why.
    """

    TIMERS = "timers"
    TRIGGERS = "triggers"
    BUNDLES = "bundles"


# By class name, so that no runner's module is imported for the question.
_KINDS = {
    "SwitchingDirectRunner": "local",
    "BundleBasedDirectRunner": "local",
    "DirectRunner": "local",
    "FnApiRunner": "local",
    "PrismRunner": "prism",
    "FlinkRunner": "flink",
    "DataflowRunner": "dataflow",
    "SparkRunner": "spark",
    "PortableRunner": "portable",
}

# A job server does not say what is behind it, but only Flink's understands these flags.
_FLINK_FLAGS = {
    "checkpointing_interval",
    "finish_bundle_before_checkpointing",
    "max_bundle_time_mills",
    "unaligned_checkpoint_enabled",
    "shutdown_sources_after_idle_ms",
    "number_of_execution_retries",
    "flink_master",
}


def runner_kind(pipeline: Any) -> str:
    """`local`, `prism`, `flink`, `dataflow`, `spark`, `portable` (some job server) or `unknown`."""
    names = runner_names(underlying_runner(pipeline))
    kind = next((_KINDS[name] for name in names if name in _KINDS), "unknown")
    if kind != "portable":
        return kind
    # Beam's own word for a job server inside this process, with an FnApiRunner behind it.
    if pipeline.options.view_as(PortableOptions).job_endpoint == "embed":
        return "local"
    return "flink" if _FLINK_FLAGS & _flags(pipeline).keys() else "portable"


def is_local(pipeline: Any) -> bool:
    """Whether the pipeline runs in this process. There a Reshuffle has a cost and no use, and a
    deferred remainder may be lost or resumed too early.
    """
    return runner_kind(pipeline) == "local"


def reshuffled(pcoll: Any, label: str) -> Any:
    """The PCollection after a Reshuffle; on a local runner, where that is of no use, the
    PCollection itself.

    Inputs of a Flatten may need one. Where one input's stages lead to another's, Flink's job server
    loses inputs of the Flatten ("consumed but never produced": Beam's Java GreedyPipelineFuser,
    2.70) unless there is a shuffle in between.
    """
    return pcoll if is_local(pcoll.pipeline) else pcoll | label >> beam.Reshuffle()


def gathering(pcoll: Any) -> Gathering:
    """How the runner of an unbounded PCollection can gather its elements.

    A plain DirectRunner picks its runner by the graph; a TestStream or Pub/Sub moves all of it to
    the BundleBasedDirectRunner.
    """
    if not is_local(pcoll.pipeline):
        return Gathering.TIMERS
    runner = underlying_runner(pcoll.pipeline)
    # A PortableRunner that is local is the embedded job server: an FnApiRunner as well.
    if is_a_runner(runner, "FnApiRunner") or is_a_runner(runner, "PortableRunner"):
        return Gathering.BUNDLES
    return Gathering.TRIGGERS if _is_bundle_based(pcoll) else Gathering.BUNDLES


def _is_bundle_based(pcoll: Any) -> bool:
    """Whether the BundleBasedDirectRunner will run this, as far as can be seen upstream."""
    runner = underlying_runner(pcoll.pipeline)
    if is_a_runner(runner, "BundleBasedDirectRunner"):
        return True
    return is_a_runner(runner, "SwitchingDirectRunner") and any(
        map(_moves_to_bundle_based, upstream_transforms(pcoll))
    )


def _moves_to_bundle_based(transform: Any) -> bool:
    """Whether a transform is one that `direct_runner.py` looks for: a TestStream, Pub/Sub, or one
    with a REAL_TIME timer, such as GroupIntoBatches.
    """
    return type(transform).__name__ in _BUNDLE_BASED_SOURCES or has_real_time_timer(
        getattr(transform, "dofn", None)
    )


_BUNDLE_BASED_SOURCES = {"TestStream", "ReadFromPubSub"}


def waiting_for(pcoll: Any, waiting: str | None) -> str:
    """How jobs are waited for: `loop` on the local runners and with a TestStream, `sdf` on all
    others, unless the user says otherwise.

    Raises:
      UsageError: `sdf` on a local runner with several workers, which loses remainders without a
        word.
    """
    pipeline = pcoll.pipeline
    if waiting == "sdf" and _is_bundle_based(pcoll):
        raise UsageError(
            "waiting is 'sdf' and the runner is the BundleBasedDirectRunner (where a TestStream "
            "or a REAL_TIME timer, such as GroupIntoBatches has, moves a DirectRunner pipeline), "
            "which can't run a splittable DoFn that defers itself; leave waiting unset (it is "
            "'loop' here)"
        )
    workers = int(_flags(pipeline).get("direct_num_workers") or 1)
    if waiting == "sdf" and is_local(pipeline) and workers > 1:
        raise UsageError(
            f"waiting is 'sdf' and direct_num_workers is {workers}: the local runner loses the "
            "remainders of a splittable DoFn with several workers; leave waiting unset (it is "
            "'loop' here) or set direct_num_workers=1"
        )
    return waiting or ("loop" if is_local(pipeline) or _has_no_clock(pipeline) else "sdf")


def _has_no_clock(pipeline: Any) -> bool:
    """Whether processing time stands still, so that what defers itself is never resumed: on Prism
    with a TestStream (among the steps built so far).
    """
    return runner_kind(pipeline) == "prism" and any(
        type(step.transform).__name__ == "TestStream" for step in applied_transforms(pipeline)
    )


def adds_up_watermarks(pcoll: Any) -> bool:
    """Whether the runner holds its watermark at the least of what the remainders of a splittable
    DoFn report, and at the beginning of time where one reports nothing: Flink, Dataflow, and
    whatever isn't known.

    Prism takes the last report for all remainders of a step, even above the step's input watermark:
    answers of a job would be late as soon as one of younger elements waits. Where none is reported,
    it takes the input's, which stands at the oldest element that waits. Of an unknown job server a
    bounded pipeline asks for nothing better: it may be Prism, and others only wait till the end.

    Source: Beam 2.77: Prism's `elementmanager.go`, PersistBundle (`stage.estimatedOutput =
    estimate`) and updateWatermarks (`newOut = ss.estimatedOutput`); `BundleCheckpointHandlers.java`
    of the portable runners, onCheckpoint; read 2026-11.
    """
    kind = runner_kind(pcoll.pipeline)
    return kind not in ("local", "prism") and not (kind == "portable" and pcoll.is_bounded)


def emits_in_finish_bundle(predictions: Any, mode: str) -> bool:
    """Whether the step that asked is the last one and ends its bundle with output: elsewhere a
    shuffle does not, and jobs are driven element by element.
    """
    return mode == "online" and is_local(predictions.pipeline)


def warn_of_lost_output(pipeline: Any) -> None:
    """Warns where a Flink job has checkpoints without --finish_bundle_before_checkpointing.

    Flink 1.19 then holds a bundle's output back, or loses it. A transform can't set the flag.
    """
    if runner_kind(pipeline) not in ("flink", "portable"):
        return
    flags = _flags(pipeline)
    interval = _number(flags.get("checkpointing_interval"))
    finishes = str(flags.get("finish_bundle_before_checkpointing")).lower() in ("true", "1")
    if interval > 0 and not finishes:
        _log.warning(
            "checkpointing_interval is %d without --finish_bundle_before_checkpointing: Flink then "
            "releases a bundle's output only when the next bundle starts, or never; add the flag",
            interval,
        )


def warn_of_prism_unnamed(pcoll: Any) -> None:
    """Warns of a stream by jobs on a job server that may be Prism (see `adds_up_watermarks`)."""
    if runner_kind(pcoll.pipeline) == "portable" and not pcoll.is_bounded:
        _log.warning(
            "jobs of a stream on a job server that does not say what it is: if it is Prism, use "
            "--runner=PrismRunner with the same --job_endpoint, or windows that group answers may "
            "drop some as late"
        )


def warn_of_small_jobs() -> None:
    """Warns of a job for every bundle of a stream: FnApiRunner, also behind a plain DirectRunner,
    can't let parts wait for one another.
    """
    _log.warning(
        "unbounded input on a local runner: each of its bundles, often one element, becomes a "
        "batch job of its own and is waited for; Prism, Flink and Dataflow gather "
        "job_max_wait_seconds' worth: use --runner=PrismRunner"
    )


def _flags(pipeline: Any) -> dict[str, Any]:
    """All flags that were given, those of a job server included, which Beam's Python does not
    declare.
    """
    found: dict[str, Any] = pipeline.options.get_all_options(
        drop_default=True, retain_unknown_options=True
    )
    return found


def _number(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        return 0.0
