"""The fast path through a job's results: most lines have the same form, and most of their parts
have been read before.

line ─► custom_id     ─► line of the job
        text          ─► its answer, as JSON          read once per text
        counts        ─► usage, cost, model, finish   read once per counts, by `decode_line`
        request id

Everything else is read line by line (`ResultReader.read_line`): lines of another form, with an
unknown or repeated custom_id, or with a text that is not a plain answer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import orjson

from beam_llm.protocols import HasLineForms
from beam_llm.results.line_pattern import LinePattern
from beam_llm.results.result_reader import ResultReader
from beam_llm.values import Finish, Usage

_MOST_FORMS = 20
"""The most forms learned in one file; a pattern is compiled for each."""
_MOST_TEXTS, _MOST_TEXT_CHARACTERS = 4096, 200
_MOST_COUNTS = 16_384


class AlikeLines:
    """Reads blocks of result lines for a ResultReader whose job has one record in each line."""

    def __init__(self, results: ResultReader, provider: HasLineForms):
        self._results, self._plain_answer = results, results.task.plain_answer
        self._form_of, self._decode = provider.line_form, results.provider.decode_line
        self._pattern: LinePattern | None = None
        self._forms_left = _MOST_FORMS
        self._answers: dict[str, str] = {}
        self._endings: dict[str, int] = {}
        self._paid: dict[int, tuple[Usage, float | None]] = {}

    @classmethod
    def of(cls, results: ResultReader) -> AlikeLines | None:
        """A reader of blocks; None where lines may differ in more than a few places."""
        provider = results.provider
        if not (results.has_plain_lines and isinstance(provider, HasLineForms)):
            return None
        return cls(results, provider)

    def read(self, block: bytes) -> bool:
        """Takes all lines of a block, each with its newline. Returns False if it took none.

        A line of 640 bytes takes 3.4 µs this way, and 7.0 µs one by one.
        """
        if not block.endswith(b"\n"):
            return False
        if self._pattern is None:
            self._learn(block[: block.find(b"\n") + 1])
        if self._pattern is None:
            return False
        found = self._pattern.find(block.decode("latin-1"))
        if not self._pattern.is_clean(" ".join([line[1] for line in found])):
            return False
        others = self._take(found, block)
        if len(others) > len(found) // 2:
            self._learn(others[-1])
        return True

    def _learn(self, line: bytes) -> None:
        """Expects lines of this line's form from now on, if the form can be used."""
        if self._forms_left <= 0:
            return
        self._forms_left -= 1
        form = self._form_of(line)
        try:
            pattern = None if form is None else LinePattern(form)
        except ValueError:
            return
        if pattern is not None:
            self._pattern = pattern
            # What these hold depends on the fixed parts of the form.
            self._endings.clear()
            self._answers.clear()

    def _take(self, found: Sequence[tuple[str, ...]], block: bytes) -> list[bytes]:
        """Takes the lines, and returns those that have another form."""
        lines: list[bytes] = []
        results, answers, endings = self._results, self._answers, self._endings
        line_of, answered = results.line_of, results.answered
        others: list[bytes] = []
        numbers: list[int] = []
        rows: list[str] = []
        ends: list[int] = []
        for at, (custom_id, request_id, text, counts, other) in enumerate(found):
            number, answer = line_of.get(custom_id), answers.get(text) or self._answer(text)
            ending = endings.get(counts)
            is_known = not (number is None or not answer or answered[number])
            if ending is None or not is_known:
                lines = lines or block.split(b"\n")
                line = lines[at] + b"\n"
                if is_known:
                    ending = self._learn_counts(counts, line, (custom_id, request_id, text))
                if ending is None or not is_known:
                    results.read_line(line)
                    if other:
                        others.append(line)
                    continue
            assert number is not None
            answered[number] = 1
            numbers.append(number)
            rows.append(f'[{answer},"{request_id}"]')
            ends.append(ending)
        if numbers:
            results.take_answers(numbers, rows, ends)
            for ending, count in Counter(ends).items():
                results.bill.add(*self._paid[ending], count)
        return others

    def _answer(self, text: str) -> str:
        """The answer in a text, as JSON; empty where the text is not a plain answer. The text is
        still escaped as in its line."""
        assert self._pattern is not None
        try:
            written = orjson.loads(f'"{text}"'.encode("latin-1"))
        except ValueError:  # not UTF-8
            return ""
        plain = self._plain_answer(written) if self._pattern.is_clean(text) else None
        if plain is None:
            return ""
        if len(text) <= _MOST_TEXT_CHARACTERS:
            if len(self._answers) >= _MOST_TEXTS:
                self._answers.clear()
            self._answers[text] = plain.decode("latin-1")
        return plain.decode("latin-1")

    def _learn_counts(self, counts: str, line: bytes, slots: tuple[str, str, str]) -> int | None:
        """Remembers what a line says beside its slots, for other lines with the same counts.
        Returns None, and remembers nothing, where `decode_line` disagrees with the slots or the
        reply did not end well."""
        if len(self._paid) >= _MOST_COUNTS:
            return None
        try:
            reply, text = self._decode(line), orjson.loads(f'"{slots[2]}"'.encode("latin-1"))
        except Exception:  # `read_line` reports what is wrong, as for any line
            return None
        found = reply.completion
        if found is None or found.finish is not Finish.STOP or found.refusal:
            return None
        if (reply.custom_id, found.request_id, found.text) != (*slots[:2], text):
            return None
        paid = self._results.bill.price(found.usage, found.billed_usd)
        number = self._results.outcomes.ending(found.usage, paid, found.model, found.finish_reason)
        self._endings[counts], self._paid[number] = number, (found.usage, paid)
        return number
