"""Which steps batch jobs take, by what is known when a pipeline is built: bounded or not, and the runner."""

from __future__ import annotations

from typing import Any

import apache_beam as beam
from apache_beam import coders, pvalue
from apache_beam.transforms.window import GlobalWindows

from beam_llm.config import Settings
from beam_llm.jobs import BatchJobRef
from beam_llm.transforms import runners
from beam_llm.transforms.driving import DriveAsSdf, DriveInLoop, SpoolParts, SubmitOnce
from beam_llm.transforms.envelopes import EnvelopeCoder
from beam_llm.transforms.planning import PlanAcrossBundles, PlanJobs
from beam_llm.transforms.windowing import flushed, use_one_window
from beam_llm.values import Prediction

_MOST_PARTS = 1000
_PART = tuple[str, int, int, int, int]


def answered(pcoll: pvalue.PCollection, checked: Settings) -> pvalue.PCollection:
    """Elements → Predictions."""
    envelopes = _envelopes_of(pcoll)
    driven = _driven(_planned(pcoll, checked, envelopes), checked, envelopes)
    driven._windowing = pcoll.windowing
    return driven


def submitted(pcoll: pvalue.PCollection, checked: Settings) -> pvalue.PCollection:
    """Elements → BatchJobRefs of created, or queued, jobs."""
    return _planned(pcoll, checked, _envelopes_of(pcoll)) | "Submit jobs" >> beam.ParDo(SubmitOnce(checked)).with_output_types(BatchJobRef)


def collected(refs: pvalue.PCollection, checked: Settings) -> pvalue.PCollection:
    """BatchJobRefs, or ids → Predictions in the global window."""
    return _driven(refs | "Out of windows" >> beam.WindowInto(GlobalWindows()), checked)


def _envelopes_of(pcoll: pvalue.PCollection) -> EnvelopeCoder:
    return EnvelopeCoder(coders.registry.get_coder(pcoll.element_type), pcoll.windowing.windowfn.get_window_coder())


def _planned(pcoll: pvalue.PCollection, checked: Settings, envelopes: EnvelopeCoder) -> pvalue.PCollection:
    """Elements → BatchJobRefs. Records go to staging in their own bundle; only descriptors of a few bytes meet at the planner."""
    parts = pcoll | "Spool parts" >> beam.ParDo(SpoolParts(checked, envelopes)).with_output_types(_PART)
    use_one_window(parts)
    keyed = parts | "To one planner" >> beam.Map(_with_one_key).with_output_types(tuple[int, _PART])
    how = "groups" if pcoll.is_bounded else runners.buffers(pcoll)
    if how == "bundles":
        runners.warn_of_small_jobs()
    if how == "timers":
        return keyed | "Plan jobs" >> beam.ParDo(PlanAcrossBundles(checked)).with_output_types(BatchJobRef)
    if how == "triggers":
        keyed._windowing = flushed(GlobalWindows(), checked.job_max_records or _MOST_PARTS, checked.job_max_wait_seconds)
    grouped = keyed | "Each part" >> beam.Map(_alone) if how == "bundles" else keyed | "Group parts" >> beam.GroupByKey()
    return grouped | "Plan jobs" >> beam.ParDo(PlanJobs(checked)).with_output_types(BatchJobRef)


def _with_one_key(part: Any) -> tuple[int, Any]:
    return 0, part


def _alone(keyed: tuple[int, Any]) -> tuple[int, list[Any]]:
    return keyed[0], [keyed[1]]


def _driven(refs: pvalue.PCollection, checked: Settings, envelopes: EnvelopeCoder | None = None) -> pvalue.PCollection:
    how = DriveInLoop if runners.waiting_for(refs, checked.waiting) == "loop" else DriveAsSdf
    spread = refs if runners.is_local(refs.pipeline) else refs | "Spread jobs" >> beam.Reshuffle()
    return spread | "Drive jobs" >> beam.ParDo(how(checked, envelopes)).with_output_types(Prediction)
