"""Which kind of runner a pipeline is built for, as far as a graph can know: facts about runners live here and nowhere else."""

from __future__ import annotations

import logging
from typing import Any

from apache_beam.options.pipeline_options import StandardOptions

from beam_llm.errors import UsageError

_LOCAL = {"DirectRunner", "SwitchingDirectRunner", "FnApiRunner", "BundleBasedDirectRunner", "InteractiveRunner"}
_log = logging.getLogger("beam_llm")


def runner_name(pipeline: Any) -> str:
    """The class name of the pipeline's runner, such as `FnApiRunner` or `DataflowRunner`."""
    name = type(pipeline.runner).__name__ if pipeline.runner is not None else ""
    asked = pipeline.options.view_as(StandardOptions).runner
    return name or str(asked or "DirectRunner").rpartition(".")[2]


def is_local(pipeline: Any) -> bool:
    """Whether the pipeline runs in this process: where a Reshuffle only costs, and a deferred remainder may be lost or hurried."""
    return runner_name(pipeline) in _LOCAL


def waiting_for(pipeline: Any, waiting: str | None) -> str:
    """How jobs are waited for: `loop` on the local runners, `sdf` on all others, unless the user says otherwise.

    Raises:
      UsageError: `sdf` on a local runner with several workers, which loses remainders without a word (FnApiRunner, Beam 2.77).
    """
    if waiting == "sdf" and is_local(pipeline) and _workers(pipeline) > 1:
        raise UsageError(
            f"waiting is 'sdf' and direct_num_workers is {_workers(pipeline)}: {runner_name(pipeline)} loses the remainders of a splittable "
            "DoFn with several workers; leave waiting unset (it is 'loop' here) or set direct_num_workers=1"
        )
    return waiting or ("loop" if is_local(pipeline) else "sdf")


def _workers(pipeline: Any) -> int:
    return int(pipeline.options.get_all_options().get("direct_num_workers") or 1)


def warn_of_lost_output(pipeline: Any) -> None:
    """Flink with checkpoints needs --finish_bundle_before_checkpointing: else a bundle's output is held back or lost (Beam 2.77, Flink 1.19)."""
    if is_local(pipeline) or "Flink" not in runner_name(pipeline) + str(pipeline.options.view_as(StandardOptions).runner):
        return
    options = {**pipeline.options.get_all_options(), **_unparsed(pipeline)}
    interval = options.get("checkpointing_interval")
    if interval not in (None, "-1", -1) and not options.get("finish_bundle_before_checkpointing"):
        _log.warning(
            "checkpointing_interval is %s without --finish_bundle_before_checkpointing: Flink then releases a bundle's output only when "
            "the next bundle starts, or never; add the flag",
            interval,
        )


def _unparsed(pipeline: Any) -> dict[str, Any]:
    """Flags that Beam's Python does not know (a job server's own), as given."""
    flags = [flag for flag in getattr(pipeline.options, "_flags", None) or [] if flag.startswith("--")]
    pairs = (flag[2:].partition("=") for flag in flags)
    return {name: value or True for name, _, value in pairs}
