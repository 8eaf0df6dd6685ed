"""`pairs | LLMReduce(...)`: one answer over all records of a key, by a tree of prompts that fit."""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, ClassVar, Unpack

import apache_beam as beam
from apache_beam import coders, pvalue
from apache_beam.typehints import typehints

from beam_llm.config import Settings
from beam_llm.errors import Failure, UsageError
from beam_llm.prompting.reduce_task import final_settings, partial_settings, sort_key_of
from beam_llm.providers import compile_reduce
from beam_llm.transforms import runners
from beam_llm.transforms.beam_internals import row_type, set_windowing
from beam_llm.transforms.coders import STATE_CODER
from beam_llm.transforms.envelopes import one_window
from beam_llm.transforms.front_door import signature, warn_of_one_prompt_for_all
from beam_llm.transforms.groups import Group, KeyReader, key_coder
from beam_llm.transforms.options import Options
from beam_llm.transforms.predict import LLMPredict, predict
from beam_llm.transforms.preview import RequestPreview, preview
from beam_llm.transforms.reducing import (
    ENDED,
    PART,
    PROMPT_TYPE,
    WHOLE,
    AnswerOfPart,
    CombineAnswers,
    FinishGroups,
    FormFirstPrompts,
    RenderRecords,
    reader_of,
)
from beam_llm.values import Prediction, Record

__all__ = ["Group", "LLMReduce"]

LEVELS = 3
"""Levels of partial answers, for the graph is made before anybody knows how many a key needs. With
the last prompt that is four: 300 records of 100 tokens in a prompt, and 100 partial answers of 300
tokens, are 300 million records."""


class LLMReduce(LLMPredict):
    """Asks a language model one question about all records of a key; every key comes back, with one
    typed answer per window or a reason.

        reviews = pipeline | beam.Create([("kettle", "It leaks."), ("kettle", "Leaks, and slow.")])
        summaries = reviews | LLMReduce(
            "openai:gpt-4.1-mini", "Summarise what customers complain about."
        )
        summaries | beam.Map(lambda prediction: (prediction.element.key, prediction.value))

    The records of a key that fit one prompt cost one call. Of more, each promptful gets a partial
    answer, and these are put together, level by level, until one is left. Records are taken in an
    order that depends on nothing but their content, so the same records always make the same
    prompts: with `mode="batch_api"` a rerun finds every answer again and pays nothing twice.

    Args:
      model: as for `LLMPredict`, one for all keys.
      instruction: what the answer over all records is, in plain words.
      prompt: a Jinja2 template over the fields of a record's value that gives its text;
        `{{ element }}` (the default) is the whole of it.
      group_by: fields by whose values elements that are no pairs are grouped, such as
        `["product"]`; then rows of answers have these fields in place of `key`.
      output: type of the answer, as for `LLMPredict`.
      partial_output: type of the partial answers (default: text). A model with the counts and lists
        that the answer needs keeps them short and comparable.
      combine_instruction: how partial answers are put together, instead of our own words.
      on_bad_record: a record that can't be asked (a field is missing, it is too large): `fail`, the
        default, ends its key as an error that names it, before any call is made for the key;
        `leave_out` answers over the others, and `Group.left_out` says how many are missing.
      batch_size: most records in one prompt; `"auto"` (the default): as many as fit, up to 32,000
        tokens. `max_input_tokens` chooses another size, also of prompts over partial answers.
      options: every option of `beam_llm.config.Settings` that is about calls, jobs and one answer,
        such as `mode="batch_api"`; `max_output_tokens` is of each prompt, partial ones too.

    Input: `(key, value)` pairs; without `group_by` elements that are no pairs are all of one group,
    with the key None; without any element there is no group, and no answer. A key is whatever has a
    deterministic coder (a string, a number, a tuple of them; not a date); a record with another one
    can't be asked.
    Bounded or unbounded, the latter in windows or with a trigger, as for any GroupByKey.
    Returns: one `Prediction` per key and window (per pane, where a trigger fires several: an
    accumulating one is answered anew over all it holds), at its window's end and with its pane, as
    from Beam's own CombinePerKey: `beam.DoFn.PaneInfoParam` tells two of them apart. `element` is a
    `Group`: `key`, `records`, `left_out`. Usage and cost are those of all its prompts together,
    `reused` says that all of them were known; model and request id are the last one's. A key some
    of whose prompts fail ends as an error that says which, over how many records. With
    `output_field`, rows of `key`, `records`, `left_out` and the answer.

    Raises:
      UsageError: when built, for any option, template or type that can't work.

    The texts of one key and window are in the memory of one worker while they are cut into prompts,
    as in any GroupByKey; their calls are spread over all. A key of many millions of records is
    better divided, and its answers reduced again.
    """

    _FIXED: ClassVar[Mapping[str, Any]] = {"task": "reduce"}
    _USUAL: ClassVar[Mapping[str, Any]] = {"batch_size": "auto"}
    _takes_templates = False
    __signature__ = signature(_FIXED, _USUAL, asks="instruction")

    def __init__(
        self,
        model: str,
        instruction: str | None = None,
        *,
        prompt: str | None = None,
        output: Any = str,
        label: str | None = None,
        **options: Unpack[Options],
    ) -> None:
        given: dict[str, Any] = {**options, "instruction": instruction}
        super().__init__(model, prompt, output=output, label=label, **given)

    def _check(self, settings: Settings) -> None:
        super()._check(final_settings(settings))
        try:
            super()._check(partial_settings(settings))
        except UsageError as error:  # of their output, in which alone they differ
            if not str(error).startswith("output "):
                raise
            raise UsageError(f"partial_{error}") from None
        warn_of_one_prompt_for_all(settings)
        task = compile_reduce(settings)
        # With the user's own limits only, as for LLMPredict.
        if settings.max_input_tokens or settings.context_window:
            _ = task.caps

    def expand(self, elements: pvalue.PCollection) -> Any:
        runners.warn_of_lost_output(elements.pipeline)
        columns = KeyReader(self._settings).columns(elements.element_type)
        group_type = row_type([*columns, ("records", int), ("left_out", int)])
        return self._deliver(reduce(elements, self._settings), group_type)

    def preview(self, elements: Iterable[Any], n: int = 3) -> list[RequestPreview]:
        """The first `n` requests over records, exactly as they would be sent; no call is made. What
        puts partial answers together can't be seen before there are any.

        Args:
          elements: as a pipeline would bring them in one window; all are read.
          n: most requests.
        """
        return list(previews(self._settings, elements))[:n]


def reduce(elements: pvalue.PCollection, settings: Settings) -> pvalue.PCollection:
    """Elements → one Prediction per key and window."""
    key_type = KeyReader(settings).key_type(elements.element_type)
    keys = key_coder(key_type)
    rendering = beam.ParDo(RenderRecords(settings, keys))
    pairs = elements | "Render records" >> rendering.with_output_types(
        typehints.Tuple[key_type, Any]
    )
    groups = pairs | "Group" >> beam.GroupByKey()
    coder = coders.WindowedValueCoder(keys, groups.windowing.windowfn.get_window_coder())
    ended = _ask_in_levels(
        groups | "Form prompts" >> _forming(FormFirstPrompts(settings, coder)), settings
    )
    finished = ended | "Finish groups" >> beam.ParDo(
        FinishGroups(settings, coder)
    ).with_output_types(Prediction)
    return set_windowing(finished, groups.windowing)


def _ask_in_levels(formed: Any, settings: Settings) -> pvalue.PCollection:
    """First prompts → the prediction of each group's last one."""
    final, partial = final_settings(settings), partial_settings(settings)
    outputs = [_in_one_window(formed)]
    # A pipeline's graph has no loops, so that each level is a step of its own; most stay empty.
    for level in range(1, LEVELS + 1):
        answers = (
            outputs[-1][PART]
            | f"Ask level {level}" >> AskPrompts(partial)
            | f"Sort answers {level}"
            >> beam.ParDo(AnswerOfPart(partial)).with_output_types(tuple[bytes, bytes])
        )
        combining = CombineAnswers(settings, level, is_last=level == LEVELS)
        outputs.append(_in_one_window(answers | f"Combine {level}" >> _forming(combining)))
    whole = [each[WHOLE] for each in outputs] | "All groups" >> beam.Flatten()
    answered = whole | "Ask for the answer" >> AskPrompts(final)
    ended = [each[ENDED] for each in outputs] | "All that ended before" >> beam.Flatten()
    answered = runners.reshuffled(answered, "Apart from what asked")
    ended = runners.reshuffled(ended, "Apart from what formed")
    return (answered, ended) | "All ended" >> beam.Flatten()


def _forming(dofn: beam.DoFn) -> Any:
    """The DoFn with an output for each kind of prompt, and one for groups that end there."""
    types = {PART: PROMPT_TYPE, WHOLE: PROMPT_TYPE, ENDED: Prediction}
    return beam.ParDo(dofn).with_output_types(Any, **types).with_outputs(*types)


def _in_one_window(formed: Any) -> dict[str, pvalue.PCollection]:
    return {tag: set_windowing(formed[tag], one_window()) for tag in (PART, WHOLE, ENDED)}


class AskPrompts(beam.PTransform):
    """Prompts of trees → their Predictions, live or by jobs: as `LLMPredict` asks about any
    element."""

    def __init__(self, settings: Settings):
        super().__init__()
        self._settings = settings

    def expand(self, prompts: pvalue.PCollection) -> pvalue.PCollection:
        return predict(prompts, self._settings)


def previews(settings: Settings, elements: Iterable[Any]) -> Iterator[RequestPreview]:
    """The first requests of each key, in the order in which keys come."""
    reader, keys = reader_of(settings), KeyReader(settings)
    groups: dict[bytes, list[tuple[Record, Any]]] = {}
    for element in elements:
        key, misfit = keys.group_of(element)
        record = misfit or reader.record(element)
        if isinstance(record, Failure):
            yield RequestPreview({}, None, (element,), record)
        else:
            groups.setdefault(STATE_CODER.encode(key), []).append((record, element))
    task = compile_reduce(settings)
    for members in groups.values():
        # As a run orders them, whatever order they came in.
        members.sort(key=lambda member: sort_key_of(member[0]))
        prompts = task.first_prompts([record for record, _ in members])
        asking = final_settings(settings) if len(prompts) == 1 else partial_settings(settings)
        for prompt in prompts:
            [shown] = preview(asking, [prompt.text], 1)
            about = tuple(element for _, element in members[prompt.start : prompt.end])
            yield dataclasses.replace(shown, elements=about)
