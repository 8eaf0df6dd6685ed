"""The input file of a job, built from manifest and parts: the same bytes for the same job, in every
process, whenever it is asked for."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import NamedTuple

from beam_llm.errors import PromptError
from beam_llm.jobs.job import JobContext
from beam_llm.jobs.manifest import Manifest
from beam_llm.jobs.parts import by_part, records_of
from beam_llm.protocols import BatchProvider, Store, Task
from beam_llm.values import Record

_WRITE_BYTES = 1 << 20


def write_lines(path: str, context: JobContext, lines: str) -> int:
    """Writes the JSONL file of the manifest called `lines`; returns the number of lines in it.

    The planner estimates sizes from above. Should a file pass the provider's limits all the same,
    it ends before the line that would: those lines get no answer in this job and go the way of its
    leftovers. So does a line that can't be rendered.
    """
    store, task, provider = context.store, context.task, context.provider
    max_requests, max_bytes = provider.traits.max_requests, provider.traits.max_bytes
    written = count = 0
    with open(path, "wb", buffering=_WRITE_BYTES) as file:
        for line in input_lines(Manifest.read(store, lines), store, task, provider):
            size = len(line)
            # A first line that is too large alone is left to the provider to refuse.
            if count == max_requests or (count and written + size > max_bytes):
                break
            file.write(line)
            written += size
            count += 1
    return count


def input_lines(
    manifest: Manifest, store: Store, task: Task, provider: BatchProvider
) -> Iterator[bytes]:
    """The job's lines, with their newlines."""
    frame = frame_of(task, provider) if manifest.lines == len(manifest) else None
    if frame is None:
        yield from _rendered(manifest, store, task, provider)
        return
    # `custom_ids` goes on through all parts, so it stands last: zip
    # ends at the rows before it takes an id.
    custom_ids, line_of = manifest.custom_ids(), frame.line
    for reader, here in by_part(store, manifest):
        rows = manifest.row[here]
        for row, text, custom_id in zip(
            rows.tolist(), reader.quoted(rows), custom_ids, strict=False
        ):
            yield (
                _line(task, provider, custom_id, [reader.record(row)])
                if text is None
                else line_of(custom_id, text)
            )


def _rendered(
    manifest: Manifest, store: Store, task: Task, provider: BatchProvider
) -> Iterator[bytes]:
    starts = [] if manifest.line_starts is None else manifest.line_starts.tolist()
    records = records_of(store, manifest)
    for custom_id, start, end in zip(manifest.custom_ids(), starts, starts[1:], strict=False):
        members = list(islice(records, end - start))
        try:
            yield _line(task, provider, custom_id, members)
        # A batch template may fail on these records together, though on none alone.
        except PromptError:
            continue


def _line(task: Task, provider: BatchProvider, custom_id: str, records: Sequence[Record]) -> bytes:
    return provider.encode_line(custom_id, task.render(records)) + b"\n"


class Frame(NamedTuple):
    """What the lines of records that are asked one by one have in common: head, id, middle, text,
    and what is around its repetitions."""

    head: bytes
    middle: bytes
    rest: tuple[bytes, ...]

    def line(self, custom_id: str, text: bytes) -> bytes:
        """Byte for byte what `encode_line(custom_id, render([record]))` gives, and the newline.

        Args:
          text: the record's, as a JSON string without its quotes; so it lies in its part.
        """
        return b"".join((self.head, custom_id.encode(), self.middle, text, text.join(self.rest)))


def frame_of(task: Task, provider: BatchProvider) -> Frame | None:
    """Found by rendering a text that stands nowhere else; None where lines may differ in more than
    id and text."""
    if not (getattr(provider, "texts_are_json_strings", False) and task.sends_one_text):
        return None
    custom_id, text = f"r-{uuid.uuid4().hex}", uuid.uuid4().hex
    line = _line(task, provider, custom_id, [Record((text,), 0)])
    head, _, rest = line.partition(custom_id.encode())
    middle, *pieces = rest.split(text.encode())
    return Frame(head, middle, tuple(pieces)) if pieces else None
