"""Which steps live calls take, by what is known when a pipeline is built: bounded or not, and the runner."""

from __future__ import annotations

import apache_beam as beam
from apache_beam import coders, pvalue

from beam_llm.config import Settings
from beam_llm.prompting.batching import AUTO_RECORDS
from beam_llm.transforms import runners
from beam_llm.transforms.live import AskTheModel, form_in_bundles
from beam_llm.transforms.streaming import ChooseBuffers, FormAcrossBundles, FormFromGroups
from beam_llm.transforms.windowing import flushed, use_one_window
from beam_llm.values import Prediction, PromptBatch


def asked(pcoll: pvalue.PCollection, checked: Settings) -> pvalue.PCollection:
    """Elements → Predictions.

    The shuffles spread work and protect paid answers from a failing sink; on local runners they would only cost.
    """
    local = runners.is_local(pcoll.pipeline)
    formed = _formed(pcoll, checked, local)
    asked = formed | "Ask the model" >> beam.ParDo(AskTheModel(checked)).with_output_types(Prediction)
    asked._windowing = pcoll.windowing
    return asked if local else asked | "Keep what is paid for" >> beam.Reshuffle()


def _formed(pcoll: pvalue.PCollection, checked: Settings, local: bool) -> pvalue.PCollection:
    if pcoll.is_bounded:
        return _formed_in_bundles(pcoll if local else pcoll | "Spread records" >> beam.Reshuffle(), checked)
    how = runners.buffers(pcoll)
    if how == "bundles":
        return _formed_in_bundles(pcoll, checked)
    coder = coders.WindowedValueCoder(coders.registry.get_coder(pcoll.element_type), pcoll.windowing.windowfn.get_window_coder())
    choosing = beam.ParDo(ChooseBuffers(checked.batch_shards, coder, by_window=how == "triggers"))
    keyed = pcoll | "Choose buffers" >> choosing.with_output_types(tuple[int, bytes])
    if how == "triggers":
        most = AUTO_RECORDS if checked.batch_size == "auto" else int(checked.batch_size)
        keyed._windowing = flushed(pcoll.windowing.windowfn, most, checked.batch_timeout_ms / 1000)
        grouped = keyed | "Fill buffers" >> beam.GroupByKey()
        formed = grouped | "Form prompt batches" >> beam.ParDo(FormFromGroups(checked, coder)).with_output_types(bytes)
        use_one_window(formed)
        return formed
    use_one_window(keyed)
    formed = keyed | "Form prompt batches" >> beam.ParDo(FormAcrossBundles(checked, coder)).with_output_types(bytes)
    return formed if local else formed | "Spread prompt batches" >> beam.Reshuffle()


def _formed_in_bundles(pcoll: pvalue.PCollection, checked: Settings) -> pvalue.PCollection:
    forming = beam.ParDo(form_in_bundles(checked, pcoll.windowing.windowfn))
    return pcoll | "Form prompt batches" >> forming.with_output_types(PromptBatch)
