"""The input file of a job, built from its manifest and parts (the same bytes in every process, at
any time), and staged with the provider, once for all attempts.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from beam_llm.errors import PromptError, guarded
from beam_llm.jobs.job import Job
from beam_llm.ledger.failpoints import failpoint
from beam_llm.ledger.journal import Closed, CloseReason, Uploaded
from beam_llm.ledger.manifest import LineManifest
from beam_llm.ledger.parts import by_part, records_of
from beam_llm.ledger.status import JobStatus
from beam_llm.protocols import BatchProvider, HasJsonTexts, Store, Task
from beam_llm.values import Record

_LOG = logging.getLogger(__name__)

_WRITE_BYTES = 1 << 20
MOST_LOST = 3
"""A provider that has lost the input this often in a row is taken to lose it again."""


class Staged(NamedTuple):
    """A job's lines: the provider's name for the staged input or, where it stages none, the local
    file that the create sends.
    """

    file_id: str | None
    path: Path | None


def stage(job: Job, status: JobStatus, path: Path) -> Staged | None:
    """Stages the job's lines with the provider; None where not one of them fits its limits.

    Args:
      path: a local file for the lines.
    """
    known = _newest_upload(job, status)
    if known is not None:
        return Staged(known.file_id, None)
    if not write_lines(job, path):
        return None
    job.store.put_file(f"{job.journal.folder}input.jsonl", str(path))
    failpoint("staged")
    # Renews the lease, as writing the lines may have taken most of it. Whether it is held is
    # checked before the create.
    job.context.leases.hold(job.name)
    file_id = guarded(job.provider.stage, path, job.create_name(status.attempt))
    if file_id is None:
        return Staged(None, path)
    # A kill before this line leaves a staged input that nothing refers to: no job was made of it,
    # and the next try stages another.
    job.journal.add(Uploaded(file_id), status.uploaded + 1)
    failpoint("uploaded")
    return Staged(file_id, None)


def _newest_upload(job: Job, status: JobStatus) -> Uploaded | None:
    """The input that was staged last, unless the previous attempt found it gone."""
    upload = job.journal.read(Uploaded, status.uploaded)
    closed = job.journal.read(Closed, status.attempt - 1)
    is_lost = closed and closed.reason is CloseReason.INPUT_GONE
    return None if upload and closed and is_lost and closed.file_id == upload.file_id else upload


def stage_anew(job: Job, attempt: int, file_id: str | None, job_id: str | None = None) -> bool:
    """Closes an attempt whose staged input the provider has lost, so that the next one stages it
    again. False where the provider keeps losing it."""
    before = [job.journal.read(Closed, attempt - back) for back in range(1, MOST_LOST + 1)]
    lost = [closed for closed in before if closed and closed.reason is CloseReason.INPUT_GONE]
    if file_id is None or len(lost) == MOST_LOST:
        return False
    _LOG.info("job %s: its staged input is gone at the provider, and is staged anew", job.name)
    job.close(attempt, CloseReason.INPUT_GONE, file_id=file_id, job_id=job_id)
    return True


def write_lines(job: Job, path: Path) -> int:
    """Writes the job's JSONL file; returns the number of lines in it.

    The planner's sizes are upper estimates. Should a file exceed the provider's limits all the
    same, it ends before the line that would: that line and those after it get no answer in this
    job, and become leftovers. So does a line that can't be rendered.
    """
    max_requests, max_bytes = job.provider.traits.max_requests, job.provider.traits.max_bytes
    manifest = LineManifest.read(job.store, job.intent.lines)
    written = count = 0
    with open(path, "wb", buffering=_WRITE_BYTES) as file:
        for line in input_lines(manifest, job.store, job.task, job.provider):
            size = len(line)
            # A first line that alone is too large is sent, for the provider to refuse.
            if count == max_requests or (count and written + size > max_bytes):
                break
            file.write(line)
            written += size
            count += 1
    return count


def input_lines(
    manifest: LineManifest, store: Store, task: Task, provider: BatchProvider
) -> Iterator[bytes]:
    """The job's lines, with their newlines."""
    frame = frame_of(task, provider) if manifest.lines == len(manifest) else None
    if frame is None:
        yield from _rendered(manifest, store, task, provider)
        return
    # `custom_ids` goes on through all parts, so it has to be the last argument: zip stops at the
    # end of the rows without taking an id.
    custom_ids, (head, middle, rest) = manifest.custom_ids(), frame
    for reader, here in by_part(store, manifest):
        rows = manifest.row[here]
        for row, text, custom_id in zip(
            rows.tolist(), reader.quoted(rows), custom_ids, strict=False
        ):
            if text is None:
                yield _line(task, provider, custom_id, [reader.record(row)])
            else:  # byte for byte what `_line` gives
                yield b"".join((head, custom_id.encode(), middle, text, text.join(rest)))


def _rendered(
    manifest: LineManifest, store: Store, task: Task, provider: BatchProvider
) -> Iterator[bytes]:
    starts = manifest.line_starts.tolist()
    records = records_of(store, manifest)
    for custom_id, start, end in zip(manifest.custom_ids(), starts, starts[1:], strict=False):
        members = list(islice(records, end - start))
        try:
            yield _line(task, provider, custom_id, members)
        # A batch template may fail on these records together, though on none of them alone.
        except PromptError:
            continue


def _line(task: Task, provider: BatchProvider, custom_id: str, records: Sequence[Record]) -> bytes:
    return provider.encode_line(custom_id, task.render(records)) + b"\n"


class Frame(NamedTuple):
    """The bytes that all lines of one record each have in common: `head`, then the id, `middle`,
    then the text; `rest` is what comes after the text, in pieces if the text is in the line more
    than once."""

    head: bytes
    middle: bytes
    rest: tuple[bytes, ...]


def frame_of(task: Task, provider: BatchProvider) -> Frame | None:
    """The frame, found by rendering a unique text; None where lines may differ in more than id and
    text."""
    has_json_texts = isinstance(provider, HasJsonTexts) and provider.texts_are_json_strings
    if not (has_json_texts and task.sends_one_text):
        return None
    custom_id, text = f"r-{uuid.uuid4().hex}", uuid.uuid4().hex
    line = _line(task, provider, custom_id, [Record((text,), 0)])
    head, _, rest = line.partition(custom_id.encode())
    middle, *pieces = rest.split(text.encode())
    return Frame(head, middle, tuple(pieces)) if pieces else None
