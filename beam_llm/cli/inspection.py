"""Compares records with their answers after a run: how many answers are right, where a field of the
input has the right ones, and which records the first errors of each kind were about.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from jinja2 import Environment, meta

from beam_llm.cli.files.records import Row, Source
from beam_llm.cli.files.sources import read_rows
from beam_llm.cli.stored import StoredAnswer
from beam_llm.cli.tally import Tally
from beam_llm.config import Settings
from beam_llm.errors import UsageError
from beam_llm.prompting.agreement import FLOAT_TOLERANCE, Share, same_answer
from beam_llm.prompting.output_types import Output
from beam_llm.prompting.templates import ELEMENT

# Not None, which may be an answer.
NO_ANSWER = object()


class Inspection(NamedTuple):
    """The result of `inspect_answers`.

    Attributes:
      truth: the share of right answers, among the records whose right answer can be read; None
        where no field has it.
      examples: by ordinal: the records' places in the input, and their fields.
    """

    truth: Share | None
    examples: Mapping[int, tuple[str, Mapping[str, Any]]]


def inspect_answers(
    sources: Sequence[Source],
    answers: Callable[[], Iterator[StoredAnswer]],
    tally: Tally,
    output: Output,
    truth: str | None,
) -> Inspection:
    """Compares the inputs with their answers; reads the inputs again only as far as needed.

    Args:
      answers: one per record, in the input's order.
      truth: field with the right answer.
    """
    wanted = {ordinal for examples in tally.examples.values() for ordinal, _ in examples}
    found: dict[int, tuple[str, Mapping[str, Any]]] = {}
    share = Share(0, 0)
    if truth is None and not wanted:
        return Inspection(None, found)
    last = max(wanted, default=-1)
    # Not strict: an input that has grown since then has records without an answer.
    for ordinal, ((source, row), answer) in enumerate(zip(_rows(sources), answers(), strict=False)):
        if ordinal in wanted:
            found[ordinal] = (f"{source}:{row.line:,}", row.fields)
        if truth is not None:
            share += _judge(truth_of(row.fields.get(truth), output), answer)
        elif ordinal >= last:
            break
    return Inspection(None if truth is None else share, found)


def _rows(sources: Sequence[Source]) -> Iterator[tuple[Source, Row]]:
    return ((source, row) for source in sources for row in read_rows(source))


def _judge(right: Any, answer: StoredAnswer) -> Share:
    if right is NO_ANSWER:
        return Share(0, 0)
    return Share(int(answer.error is None and same_answer(right, answer.value, FLOAT_TOLERANCE)), 1)


def truth_of(value: Any, output: Output) -> Any:
    """The right answer in JSON form; `NO_ANSWER` where the field doesn't have one."""
    try:
        typed = output.parse_text(value)[0] if isinstance(value, str) else output.validate(value)
        return output.dump(typed)
    except ValueError:
        return NO_ANSWER


def check_truth(
    field: str | None, settings: Settings, columns: Sequence[str], *, hidden: bool = False
) -> None:
    """Checks that the field with the right answers exists, and isn't in the prompt.

    Args:
      hidden: records go into prompts without it, so that `{{ element }}` doesn't show it.

    Raises:
      UsageError: no record has the field, or the prompt shows it.
    """
    if field is None:
        return
    if field not in columns:
        raise UsageError(
            f"--truth is {field!r}: no record has such a field; fields of the input: "
            f"{', '.join(columns) or 'none'}"
        )
    prompt = "{{ element }}" if settings.prompt is None else settings.prompt
    # By the template's own parser: a field's name may also be a plain word of the prompt.
    names = meta.find_undeclared_variables(Environment().parse(prompt))
    if field in names or (not hidden and ELEMENT in names):
        raise UsageError(
            f"--truth is {field!r}, and the prompt shows that field: it would give the answer away"
        )
