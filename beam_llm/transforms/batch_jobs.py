"""The two halves of `LLMPredict(mode="batch_api")`, for jobs that are collected another day."""

from collections.abc import Mapping
from typing import Any, ClassVar

import apache_beam as beam
from apache_beam import pvalue
from apache_beam.transforms.window import GlobalWindows

from beam_llm.transforms.delivering import deliver
from beam_llm.transforms.driving import DriveJobs, SubmitJobs
from beam_llm.transforms.envelopes import EnvelopeCoder
from beam_llm.transforms.front_door import WithSettings
from beam_llm.transforms.planning import PlanJobs
from beam_llm.transforms.spooling import SpoolParts


class SubmitBatchJobs(WithSettings):
    """Elements in, one `BatchJobRef` per batch job out, as soon as it is created or queued behind a
    limit. See `CollectBatchJobs`.

        asking = {"prompt": "Label: {{ text }}", "staging_location": "gs://bucket/llm"}
        refs = reviews | SubmitBatchJobs("openai:gpt-4.1-mini", **asking)
        refs | beam.Map(json.dumps) | WriteToText("jobs")
    """

    _FIXED: ClassVar[Mapping[str, Any]] = {"mode": "batch_api"}
    _takes_templates = False

    def expand(self, elements: pvalue.PCollection) -> pvalue.PCollection:
        return (
            elements
            | "Spool parts" >> SpoolParts(self._settings, EnvelopeCoder.of(elements))
            | "Plan jobs" >> PlanJobs(self._settings)
            | "Submit jobs" >> SubmitJobs(self._settings)
        )


class CollectBatchJobs(WithSettings):
    """`BatchJobRef`s, or provider job ids as `str`, in; the predictions of their elements out.
    Today, next week, in another pipeline.

        asking = {"prompt": "Label: {{ text }}", "staging_location": "gs://bucket/llm"}
        lines = another_pipeline | ReadFromText("jobs*")
        refs = lines | beam.Map(lambda line: BatchJobRef(*json.loads(line)))
        predictions = refs | CollectBatchJobs("openai:gpt-4.1-mini", **asking)

    Takes the arguments its `SubmitBatchJobs` had: `staging_location` finds the elements, `prompt`
    and `output` read the answers. Predictions have their elements' timestamps and are in the global
    window: the windows of another pipeline mean nothing here. A job that still queues has no id
    yet; `#3` is job number 3. An id stands for the elements of the run that created the job: a
    later run with the same records has refs of its own, and elements that failed before any call
    are in no job, only behind their ref.
    """

    _FIXED: ClassVar[Mapping[str, Any]] = {"mode": "batch_api"}
    _takes_templates = False
    _element_type: Any = Any

    def of_elements(self, element_type: Any) -> "CollectBatchJobs":
        """The same for elements of a known type: with `output_field` the rows have its fields, and
        so a schema.
        """
        self._element_type = element_type
        return self

    def expand(self, refs: pvalue.PCollection) -> pvalue.PCollection:
        predictions = (
            refs
            | "Out of windows" >> beam.WindowInto(GlobalWindows())
            | "Drive jobs" >> DriveJobs(self._settings)
        )
        return deliver(predictions, self._settings, self._element_type)
