"""The input file of a job, built from manifest and parts: the same bytes for the same job, in every process, whenever it is asked for."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from itertools import islice

from beam_llm.errors import PromptError
from beam_llm.jobs.manifest import Manifest
from beam_llm.jobs.parts import PartReader
from beam_llm.protocols import BatchProvider, Store
from beam_llm.task import Task
from beam_llm.values import Record

OPEN_PARTS = 8


class Parts:
    """Open part readers, a few at a time."""

    def __init__(self, store: Store, most: int = OPEN_PARTS):
        self._store, self._most = store, most
        self._open: OrderedDict[str, PartReader] = OrderedDict()

    def reader(self, name: str) -> PartReader:
        found = self._open.get(name)
        if found is None:
            found = self._open[name] = PartReader(self._store, name)
            if len(self._open) > self._most:
                self._open.popitem(last=False)[1].close()
        self._open.move_to_end(name)
        return found

    def records(self, manifest: Manifest) -> Iterator[Record]:
        """The manifest's records, in its order."""
        name, reader = "", None
        for part, row in manifest.places():
            if reader is None or part != name:
                name, reader = part, self.reader(part)
            yield reader.record(row)

    def close(self) -> None:
        for reader in self._open.values():
            reader.close()
        self._open.clear()


def write_input(path: str, manifest: Manifest, parts: Parts, task: Task, provider: BatchProvider) -> int:
    """Writes the JSONL file of a job; returns the number of lines in it.

    The planner estimates sizes from above. Should a file pass the provider's limits all the same, it ends before the line that
    would: those lines get no answer in this job and go the way of its leftovers. So does a line that can't be rendered.
    """
    starts = [] if manifest.line_starts is None else manifest.line_starts.tolist()
    records = parts.records(manifest)
    limits = provider.limits
    written = lines = 0
    with open(path, "wb") as file:
        for custom_id, start, end in zip(manifest.custom_ids(), starts, starts[1:], strict=False):
            members = list(islice(records, end - start))
            try:
                line = provider.encode_line(custom_id, task.render(members))
            except PromptError:  # a batch template that fails on these records together, though on none alone
                continue
            if lines == limits.max_requests or (lines and written + len(line) + 1 > limits.max_bytes):
                break
            file.write(line)
            file.write(b"\n")
            written += len(line) + 1
            lines += 1
    return lines
