"""The steps of `LLMReduce`: groups of records → prompts, answers of a group's prompts → the next
ones, until one is left.

    (key, record) ─ RenderRecords ─► (key, text) ─ GroupByKey ─► FormFirstPrompts
        ├─ part ──► AskPrompts ─► AnswerOfPart ─► CombineAnswers ─┬─ part ──► … the next level
        ├─ whole ─────────────────────────────────────────────────┼─ whole ─► AskPrompts ─┐
        └─ ended ─────────────────────────────────────────────────┴─ ended ───────────────┤
                                                                      FinishGroups ◄──────┘

A group is the records of a key in one pane of one window. From the first prompt to its answer it
travels in the one global window, with its own window inside, and its partial answers meet again in
state, by the group's name, when the last of them is there. Not in a GroupByKey of the elements'
windows: an early or a late pane would fire it for a part of the answers. No timer holds the
watermark meanwhile, and none is needed: all prompts of a group have its timestamp, so that the one
that is still missing holds it, and with the last one the group goes on in the same bundle.
"""

import dataclasses
import hashlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import apache_beam as beam
from apache_beam import coders, pvalue
from apache_beam.transforms.userstate import BagStateSpec, ReadModifyWriteStateSpec
from apache_beam.transforms.window import GlobalWindow, WindowedValue

from beam_llm.config import Settings
from beam_llm.errors import Failure, Kind, plural
from beam_llm.prompting.reduce_task import PartialAnswer, TreePrompt, ordered
from beam_llm.prompting.templates import record_id_of
from beam_llm.prompting.text import one_line
from beam_llm.providers import compile_reduce, compile_task
from beam_llm.transforms.beam_internals import without_pane
from beam_llm.transforms.coders import STATE_CODER
from beam_llm.transforms.fields import is_keyed, readable_fields
from beam_llm.transforms.forming import RecordReader
from beam_llm.transforms.groups import Branch, Group, KeyReader
from beam_llm.transforms.metrics import Meter
from beam_llm.values import Outcome, Prediction, Record, Usage

PART, WHOLE, ENDED = "part", "whole", "ended"
"""Outputs: prompts that ask for a partial answer; for the answer itself; groups that can't be
asked."""

PROMPT_TYPE = tuple[bytes, str]
"""A Branch as bytes, and what the model is asked: as any `(key, value)` element it comes back with
its answer."""

MOST_NAMED = 5
"""Records that one error names."""


def reader_of(settings: Settings) -> RecordReader:
    """What makes records of elements."""
    # An answer's field is beside those of its group, and not of an element.
    reading = dataclasses.replace(settings, output_field=None)
    return RecordReader(reading, reduce=compile_reduce(reading))


class RenderRecords(beam.DoFn):
    """Elements → `(key, (text, tokens, kind, message, record id))`: the text, or why there is
    none.

    Args:
      coder: of the keys, deterministic.
    """

    def __init__(self, settings: Settings, coder: coders.Coder):
        self._settings = settings
        self._coder = coder

    def setup(self) -> None:
        self._reader = reader_of(self._settings)
        self._keys = KeyReader(self._settings, self._coder)

    def process(self, element: Any) -> tuple[tuple[Any, tuple[Any, ...]]]:
        key, misfit = self._keys.group_of(element)
        record = misfit or self._reader.record(element)
        rendered: tuple[Any, ...]
        if isinstance(record, Failure):
            rendered = ("", 0, record.kind, record.message, self._id_of(element))
        else:
            rendered = (record.inputs[0], record.tokens, None, None, record.record_id)
        return ((key, rendered),)

    def _id_of(self, element: Any) -> str | None:
        """What a record that can't be asked is called, where its id at least can be read."""
        fields = readable_fields(element[1] if is_keyed(element) else element)
        try:
            return record_id_of(
                self._settings.record_id, {} if isinstance(fields, Failure) else fields
            )
        except Exception:  # the field is missing, or its class raises whatever it likes
            return None


class _Former(beam.DoFn):
    """What both DoFns that form prompts have in common."""

    def __init__(self, settings: Settings):
        self._settings = settings

    def setup(self) -> None:
        self._task = compile_reduce(self._settings)
        self._meter = Meter()

    def _prompts(
        self, prompts: Sequence[TreePrompt], below: Sequence[Branch], group: Branch, timestamp: Any
    ) -> Iterator[Any]:
        """A group's prompts, each to its output.

        Args:
          below: the branches that the prompts are over, in their order; none over records.
        """
        tag = WHOLE if len(prompts) == 1 else PART
        for place, prompt in enumerate(prompts, 1):
            branch = group._replace(place=place, of=len(prompts), records=prompt.records)
            for each in below[prompt.start : prompt.end]:
                branch = branch.with_costs(Usage(*each.usage), each.cost_usd, each.reused)
            yield _tagged(tag, (branch.pack(), prompt.text), timestamp)

    def _ended(
        self, group: Branch, failure: Failure, timestamp: Any, *, is_counted: bool = False
    ) -> Any:
        """A group that ends here, without an answer; `is_counted` where its prompts were as
        errors."""
        outcome = Outcome(None, failure, cost_usd=0.0)
        if not is_counted:
            self._meter.outcomes([outcome])
        return _tagged(ENDED, Prediction.of((group.pack(), ""), None, outcome), timestamp)


def _tagged(tag: str, value: Any, timestamp: Any) -> pvalue.TaggedOutput:
    return pvalue.TaggedOutput(tag, WindowedValue(value, timestamp, [GlobalWindow()]))


class FormFirstPrompts(_Former):
    """Groups of records → the prompts that they fit.

    Args:
      coder: of a group's key with its timestamp and window.
    """

    def __init__(self, settings: Settings, coder: coders.WindowedValueCoder):
        super().__init__(settings)
        self._coder = coder

    def setup(self) -> None:
        super().setup()
        self._encode = self._coder.get_impl().encode

    def process(
        self, grouped: tuple[Any, Iterable[Any]], arrived: Any = beam.DoFn.WindowedValueParam
    ) -> Iterator[Any]:
        rendered = list(grouped[1])
        if not rendered:  # a trigger may fire an empty pane
            return
        bad = [each for each in rendered if each[2] is not None]
        records = ordered(Record((each[0],), each[1]) for each in rendered if each[2] is None)
        group = self._group(arrived.with_value(grouped[0]), records, len(bad))
        if bad and (not records or self._settings.on_bad_record == "fail"):
            failure = _cannot_be_asked(bad, len(rendered), self._settings.record_id is not None)
            yield self._ended(group._replace(left_out=0), failure, arrived.timestamp)
        else:
            prompts = self._task.first_prompts(records)
            yield from self._prompts(prompts, (), group, arrived.timestamp)

    def _group(self, key: WindowedValue, records: Sequence[Record], bad: int) -> Branch:
        # The pane's number alone: two panes of a window may hold the same records, and what else a
        # pane says, a repeated bundle may say otherwise.
        data = self._encode(without_pane(key))
        digest = hashlib.sha256(b"%d:%b%d:" % (len(data), data, key.pane_info.index))
        for record in records:
            # Digests, all of one length: texts one after another may be those of other records as
            # well.
            digest.update(hashlib.sha256(record.inputs[0].encode()).digest())
        total = len(records) + bad
        return Branch(self._encode(key), digest.digest()[:16], 1, 1, len(records), total, bad)


def _cannot_be_asked(bad: Sequence[Any], total: int, has_ids: bool) -> Failure:
    """Why a key has no answer some of whose records have no text."""
    # A repeated bundle says the same of them, whatever order they came in.
    bad = sorted(bad, key=lambda each: (each[4] or "", each[3]))
    ids = [each[4] for each in bad if each[4] is not None]
    named = ", ".join(map(repr, ids[:MOST_NAMED])) + (", …" if len(ids) > MOST_NAMED else "")
    which = f" ({named})" if named else ""
    reasons = list(dict.fromkeys(each[3] for each in bad))
    more = f"; {plural(len(reasons) - 1, 'further reason')}" if len(reasons) > 1 else ""
    advice = ["on_bad_record='leave_out' answers over the others"] if len(bad) < total else []
    advice += [] if has_ids else ["name a record_id to have them named"]
    said = f" ({'; '.join(advice)})" if advice else ""
    return Failure(
        bad[0][2],
        f"{len(bad):,} of its {plural(total, 'record')} can't be asked{which}: {reasons[0]}{more}"
        f"{said}",
    )


class AnswerOfPart(beam.DoFn):
    """Predictions of prompts → `(group's name, branch and answer as bytes)`: to where the partial
    answers of a group meet.

    Args:
      settings: those that asked for partial answers.
    """

    def __init__(self, settings: Settings):
        self._settings = settings

    def setup(self) -> None:
        self._task = compile_task(self._settings)
        self._meter = Meter()

    def process(self, prediction: Prediction) -> tuple[tuple[bytes, bytes]]:
        branch = Branch.unpack(prediction.element[0]).with_costs(
            prediction.usage, prediction.cost_usd, prediction.reused
        )
        error, content = prediction.error, ""
        if error is None:
            try:
                content = one_line(self._task.dump(prediction.value))
            except ValueError as wrong:  # of a serializer of the user's class
                error = Failure(Kind.INVALID, f"a partial answer can't be put together: {wrong}", 1)
                self._meter.outcomes([Outcome(None, error)])
        data = STATE_CODER.encode((tuple(branch), content, error and tuple(error)))
        return ((branch.name, bytes(data)),)


class CombineAnswers(_Former):
    """Partial answers of a group → the prompts that put them together, once all are there; or why
    the group ends here.

    Args:
      level: of the prompts that gave the answers, from 1.
      is_last: no further level of partial answers can be asked.
    """

    ANSWERS = BagStateSpec("answers_v1", STATE_CODER)
    COUNT = ReadModifyWriteStateSpec("count_v1", STATE_CODER)

    def __init__(self, settings: Settings, level: int, *, is_last: bool):
        super().__init__(settings)
        self._level = level
        self._is_last = is_last

    def process(
        self,
        keyed: tuple[bytes, bytes],
        timestamp: Any = beam.DoFn.TimestampParam,
        answers: Any = beam.DoFn.StateParam(ANSWERS),
        count: Any = beam.DoFn.StateParam(COUNT),
    ) -> Iterator[Any]:
        answers.add(keyed[1])
        # The count lies beside the bag: to read all answers for each new one would be quadratic.
        held = (count.read() or 0) + 1
        of = Branch(*STATE_CODER.decode(keyed[1])[0]).of
        parts, others = _one_of_each(answers.read()) if held >= of else ([], [])
        if len(parts) < of:
            count.write(held)
            return
        answers.clear()
        # Of an equal pane, on a runner that doesn't number them.
        for data in others:
            answers.add(data)
        count.write(len(others))
        yield from self._go_on(parts, timestamp)

    def _go_on(self, parts: Sequence[Any], timestamp: Any) -> Iterator[Any]:
        """What follows on all answers of a level."""
        branches = [Branch(*branch) for branch, _, _ in parts]
        group = branches[0]._replace(usage=tuple(Usage()), cost_usd=0.0, reused=True)
        prompts = self._next(branches, parts, group)
        if isinstance(prompts, Failure):
            for each in branches:
                group = group.with_costs(Usage(*each.usage), each.cost_usd, each.reused)
            is_counted = any(error for _, _, error in parts)
            yield self._ended(group, prompts, timestamp, is_counted=is_counted)
        else:
            yield from self._prompts(prompts, branches, group, timestamp)

    def _next(
        self, branches: Sequence[Branch], parts: Sequence[Any], group: Branch
    ) -> list[TreePrompt] | Failure:
        both = list(zip(branches, parts, strict=True))
        failures = [(branch, Failure(*error)) for branch, (_, _, error) in both if error]
        if failures:
            return self._without(failures, group)
        answers = [PartialAnswer(content, branch.records) for branch, (_, content, _) in both]
        prompts = self._task.next_prompts(answers)
        if self._is_last and not isinstance(prompts, Failure) and len(prompts) > 1:
            return Failure(
                Kind.TOO_LARGE,
                f"its {plural(group.total, 'record')} need more than {self._level + 1} levels of "
                f"prompts: {plural(len(answers), 'partial answer')} are left, which need "
                f"{len(prompts):,} more; ask for shorter ones (max_output_tokens, partial_output), "
                "raise max_input_tokens or batch_size, or divide the key",
            )
        return prompts

    def _without(self, failures: Sequence[tuple[Branch, Failure]], group: Branch) -> Failure:
        branch, failure = failures[0]
        which = f"prompt {branch.place:,} of {branch.of:,}, over {plural(branch.records, 'record')}"
        if self._level > 1:
            which = f"on level {self._level}, {which}"
        lost = sum(branch.records for branch, _ in failures)
        return Failure(
            failure.kind,
            f"{plural(len(failures), 'partial answer')} of {branch.of:,} failed, over {lost:,} of "
            f"its {plural(group.total, 'record')}; {which}: {_with_advice(failure, branch)}",
            failure.attempts,
        )


def _with_advice(failure: Failure, branch: Branch) -> str:
    """What a prompt failed with, and what would help where it was too long: unlike a prompt of
    `LLMPredict` it isn't halved, for its answer is one."""
    if failure.kind != Kind.TOO_LARGE or branch.records == 1:
        return failure.message
    advice = "a smaller batch_size or max_input_tokens makes shorter prompts"
    return f"{failure.message.rstrip('.')}; {advice}"


def _one_of_each(answers: Iterable[bytes]) -> tuple[list[Any], list[bytes]]:
    """The answers in the order of their places, each place once, and those that are over."""
    by_place: dict[int, Any] = {}
    others: list[bytes] = []
    for data in answers:
        part = STATE_CODER.decode(data)
        if by_place.setdefault(Branch(*part[0]).place, part) is not part:
            others.append(data)
    return [by_place[place] for place in sorted(by_place)], others


class FinishGroups(beam.DoFn):
    """Predictions of prompts → those of their groups, in their windows."""

    def __init__(self, settings: Settings, coder: coders.WindowedValueCoder):
        self._settings = settings
        self._coder = coder

    def setup(self) -> None:
        self._keys = KeyReader(self._settings)
        self._decode = self._coder.get_impl().decode

    def process(self, prediction: Prediction) -> tuple[WindowedValue]:
        branch = Branch.unpack(prediction.element[0])
        spent = branch.with_costs(prediction.usage, prediction.cost_usd, prediction.reused)
        arrived = self._decode(branch.group)
        group = Group(arrived.value, branch.total, branch.left_out)
        error = prediction.error
        if error is not None and prediction.element[1]:  # not of a group that ended before
            error = error._replace(message=_with_advice(error, branch))
        finished = prediction._replace(
            error=error,
            element=group if self._settings.output_field is None else self._keys.row(group),
            usage=Usage(*spent.usage),
            cost_usd=spent.cost_usd,
            reused=prediction.error is None and spent.reused,
        )
        return (arrived.with_value(finished),)
