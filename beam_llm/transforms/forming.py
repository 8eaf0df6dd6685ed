"""Elements → prompt batches, inside each bundle: no shuffle, no timer. (Across bundles:
`forming_streams.py`.)
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import apache_beam as beam
from apache_beam import pvalue
from apache_beam.transforms.window import FixedWindows, GlobalWindows, Sessions, WindowedValue

from beam_llm.caps import RECORD_OVERHEAD_TOKENS, Caps
from beam_llm.config import Settings
from beam_llm.errors import USER_CODE_ERRORS, Failure, Kind, PromptError
from beam_llm.prompting.batching import Batcher, prompt_caps
from beam_llm.prompting.reduce_task import ReduceTask
from beam_llm.prompting.tokens import SampledTokens, estimate_tokens, rough_tokens
from beam_llm.protocols import Task
from beam_llm.providers import compile_task
from beam_llm.transforms import runners
from beam_llm.transforms.beam_internals import in_one_window
from beam_llm.transforms.envelopes import Arrivals
from beam_llm.transforms.fields import NO_FIELDS, is_keyed, name_clash, readable_fields, taken_names
from beam_llm.values import PromptBatch, Record


class FormPromptBatches(beam.PTransform):
    """Elements of a bounded PCollection → PromptBatches.

    Their elements are first spread over the workers, if there are several: a file that is read in
    one piece would keep only one of them busy.
    """

    def __init__(self, settings: Settings):
        super().__init__()
        self._settings = settings

    def expand(self, elements: pvalue.PCollection) -> pvalue.PCollection:
        elements = runners.reshuffled(elements, "Spread records")
        forming = beam.ParDo(form_in_bundles(self._settings, elements.windowing.windowfn))
        return elements | "Form" >> forming.with_output_types(PromptBatch)


def form_in_bundles(settings: Settings, windowfn: Any) -> "FormInBundles":
    """The DoFn that forms prompt batches within a bundle: a faster one where each element is in
    exactly one window.
    """
    return (FormInBundles if isinstance(windowfn, _ONE_WINDOW) else FormInBundlesByWindow)(settings)


# Beam's own functions that give an element one window; a user's function may give several.
_ONE_WINDOW = (GlobalWindows, FixedWindows, Sessions)


def task_and_caps(settings: Settings) -> tuple[Task, Caps]:
    """What is asked, and how much one prompt of it may hold."""
    task = compile_task(settings)
    return task, prompt_caps(settings, task)


class RecordReader:
    """Elements → Records, in plain Python; for every step that is the first to see elements.

    Args:
      for_jobs: the records' tokens are needed for the size of a job. Live calls need them only with
        `tokens_per_minute`, or where a prompt comes near its limit, and there the batcher counts
        again.
      reduce: makes the records in place of the settings' task, which asks about them one by one.
    """

    task: Task
    caps: Caps

    def __init__(
        self, settings: Settings, *, for_jobs: bool = False, reduce: ReduceTask | None = None
    ):
        if reduce is None:
            self.task, self.caps = task_and_caps(settings)
            self._make_record, texts = self.task.record, self.task.texts
        else:
            self.caps = reduce.caps
            self._make_record, texts = reduce.record, reduce.texts
        self._limits: Batcher[None] = Batcher(self.caps, settings.model_name)
        # With no more bytes than this each, even the most records of a prompt can't exceed its
        # limit in tokens.
        share = self.caps.tokens // self.caps.records // max(texts, 1) - 4 * RECORD_OVERHEAD_TOKENS
        self._output_field = settings.output_field
        self._taken = taken_names(settings.output_field)
        self._sampled = SampledTokens(share)
        self._count: Callable[[str], int] = (
            self._sampled if for_jobs else partial(rough_tokens, up_to_bytes=share)
        )
        # The limiter needs the tokens of every request, also of prompts far below their limit; and
        # with images, a text's bytes would be added to an estimate of tokens.
        if settings.tokens_per_minute is not None or settings.media:
            self._count = estimate_tokens

    def restart(self) -> None:
        """Forgets all records seen, so that a repeated bundle counts as its first try did."""
        self._sampled.restart()

    def record(self, element: Any) -> Record | Failure:
        """The element's record, or why it can't be one."""
        value, fields = element, NO_FIELDS
        # Most elements are texts: this saves three calls for each.
        if type(element) is not str:
            value = element[1] if is_keyed(element) else element
            found = readable_fields(value)
            if isinstance(found, Failure):
                return found
            fields = found
        if self._taken and not self._taken.isdisjoint(fields or _ELEMENT_ALONE):
            return name_clash(str(self._output_field), fields or _ELEMENT_ALONE)  # type: ignore[return-value]
        try:
            record = self._make_record(fields, value, self._count)
            if self._limits.is_too_large(record):
                return self._limits.too_large_failure(record)
        except PromptError as error:
            return Failure(Kind.PROMPT, str(error))
        except USER_CODE_ERRORS as error:  # as above: of a Mapping of the user's own, say
            return Failure(
                Kind.PROMPT,
                f"this {type(value).__name__} can't be put into the prompt: {type(error).__name__}",
            )
        return record


_ELEMENT_ALONE = ("element",)
"""The field name of an element without fields, in rows."""


class PromptBatcher:
    """Elements → PromptBatches, in plain Python. At most one batch is open at a time."""

    def __init__(self, settings: Settings):
        self._reader = RecordReader(settings)
        self._batcher: Batcher[WindowedValue] = Batcher(self._reader.caps, settings.model_name)

    def restart(self) -> None:
        """Forgets all elements seen."""
        self._reader.restart()
        # Records left by a bundle that failed belong to that bundle's retry.
        self._batcher.flush()

    def add(self, arrived: WindowedValue) -> Sequence[PromptBatch]:
        """The batches that this element closes, or its failure."""
        record = self._reader.record(arrived.value)
        if isinstance(record, Failure):
            return (PromptBatch((), (arrived,), (record,)),)
        closed = self._batcher.add(record, arrived)
        return [_to_prompt_batch(batch) for batch in closed] if closed else ()

    def flush(self) -> list[PromptBatch]:
        """The batch that is still open, if any."""
        return [_to_prompt_batch(batch) for batch in self._batcher.flush()]


def _to_prompt_batch(batch: list[tuple[Record, WindowedValue]]) -> PromptBatch:
    records, elements = zip(*batch, strict=True)
    return PromptBatch(records, elements)


class FormInBundles(beam.DoFn):
    """Forms prompt batches within a bundle, for elements that are in one window each."""

    def __init__(self, settings: Settings):
        self._settings = settings

    def setup(self) -> None:
        self._batcher = PromptBatcher(self._settings)

    def start_bundle(self) -> None:
        self._batcher.restart()
        self._for_the_end: list[PromptBatch] = []

    def process(
        self, element: Any, arrived: Any = beam.DoFn.WindowedValueParam
    ) -> Iterable[PromptBatch]:
        batches = self._batcher.add(arrived)
        # An element that was put into several windows by hand: Beam multiplies what is yielded here
        # by their number, but not what `finish_bundle` yields (see `in_one_window`).
        if batches and len(arrived.windows) != 1:
            self._for_the_end.extend(batches)
            return ()
        return batches

    def finish_bundle(self) -> Iterator[Any]:
        for batch in [*self._for_the_end, *self._batcher.flush()]:
            yield in_one_window(batch, batch.elements[0])


class FormInBundlesByWindow(FormInBundles):
    """The same for windows that may overlap: Beam shows an element once per window, and joining
    these calls costs a microsecond.
    """

    def start_bundle(self) -> None:
        super().start_bundle()
        self._arrivals = Arrivals()

    def process(
        self,
        element: Any,
        arrived: Any = beam.DoFn.WindowedValueParam,
        window: Any = beam.DoFn.WindowParam,
    ) -> Iterable[PromptBatch]:
        joined = self._arrivals.put(arrived)
        return self._batcher.add(joined) if joined is not None else ()

    def finish_bundle(self) -> Iterator[Any]:
        last = self._arrivals.last()
        if last is not None:
            self._for_the_end.extend(self._batcher.add(last))
        yield from super().finish_bundle()
