"""A last look at the records beside their answers: how many are right, and which ones the first
errors of each kind were about.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from beam_llm.cli.files.records import Row, Source
from beam_llm.cli.files.sources import read_rows
from beam_llm.cli.stored import StoredAnswer
from beam_llm.cli.tally import Tally
from beam_llm.prompting.agreement import FLOAT_TOLERANCE, Share, same_answer
from beam_llm.prompting.output_types import Output

# Not None, which is an answer where the output type takes it.
NO_ANSWER = object()


class Seen(NamedTuple):
    """What the look found.

    Attributes:
      truth: answers that are right, of the records whose truth can be read; None where no field
        says it.
      examples: by their place in the input: where records stand, and their fields.
    """

    truth: Share | None
    examples: Mapping[int, tuple[str, Mapping[str, Any]]]


def look_again(
    sources: Sequence[Source],
    answers: Callable[[], Iterator[StoredAnswer]],
    tally: Tally,
    output: Output,
    truth: str | None,
) -> Seen:
    """Reads the inputs once more where there is a reason to, and no further than that.

    Args:
      answers: one per record, in the input's order.
      truth: field that holds the right answer.
    """
    wanted = {ordinal for examples in tally.examples.values() for ordinal, _ in examples}
    found: dict[int, tuple[str, Mapping[str, Any]]] = {}
    share = Share(0, 0)
    if truth is None and not wanted:
        return Seen(None, found)
    last = max(wanted, default=-1)
    # Not strict: an input that has grown since then has records without an answer.
    for ordinal, ((source, row), answer) in enumerate(zip(_rows(sources), answers(), strict=False)):
        if ordinal in wanted:
            found[ordinal] = (f"{source}:{row.line:,}", row.fields)
        if truth is not None:
            share += _judged(truth_of(row.fields.get(truth), output), answer)
        elif ordinal >= last:
            break
    return Seen(None if truth is None else share, found)


def _rows(sources: Sequence[Source]) -> Iterator[tuple[Source, Row]]:
    return ((source, row) for source in sources for row in read_rows(source))


def _judged(right: Any, answer: StoredAnswer) -> Share:
    if right is NO_ANSWER:
        return Share(0, 0)
    return Share(int(answer.error is None and same_answer(right, answer.value, FLOAT_TOLERANCE)), 1)


def truth_of(value: Any, output: Output) -> Any:
    """The right answer in JSON form; `NO_ANSWER` where the field doesn't hold one."""
    try:
        typed = output.parse_text(value)[0] if isinstance(value, str) else output.validate(value)
        return output.dump(typed)
    except ValueError:
        return NO_ANSWER
