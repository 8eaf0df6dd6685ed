"""Stores how records ended in the spool: the DoFn that all commands use, the place that leads an
answer back to its record, and a writer for answers without such a place.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import apache_beam as beam
from apache_beam import coders, pvalue

from beam_llm import events
from beam_llm.cli.files.records import DIGEST_BYTES, absolute
from beam_llm.cli.spool import SpoolFile
from beam_llm.cli.stored import StoredAnswer

NO_PLACE = 2**62
"""The ordinal of records without a place in an input: they come last, in order of arrival."""


def place_of(key: Any) -> tuple[int, str]:
    """Ordinal and digest of a record of `predict`; `NO_PLACE` and no digest for any other."""
    if type(key) is str:
        ordinal, _, digest = key.partition(" ")
        if len(digest) == 2 * DIGEST_BYTES and ordinal.isdecimal():
            return int(ordinal), digest
    # Jobs that earlier versions submitted have the ordinal alone.
    return (key if type(key) is int else NO_PLACE), ""


class StoreInSpool(beam.DoFn, ABC):
    """Writes how elements ended into the spool, one file per bundle. Emits nothing.

    Subclasses define what is stored of an element (`to_stored_answer`), and which version of the
    output type wrote it (`definition`).

    Args:
      folder: of the spool.
    """

    definition = ""

    def __init__(self, folder: str):
        self._folder = absolute(folder)  # a worker may have another current folder

    @abstractmethod
    def to_stored_answer(self, element: Any) -> StoredAnswer:
        """How the element ended."""

    def is_final(self, answer: StoredAnswer) -> bool:
        """Whether the answer counts as a record that was answered, or ended as an error."""
        return True

    def setup(self) -> None:
        self._file: SpoolFile | None = None

    def start_bundle(self) -> None:
        self._close()  # left open by a bundle that failed

    def process(self, element: Any) -> None:
        # At the first element, so that an empty bundle leaves no empty file behind.
        if self._file is None:
            self._file = SpoolFile(self._folder, self.definition)
        answer = self.to_stored_answer(element)
        self._file.add(answer)
        if self.is_final(answer):
            events.tell("stored", answer=answer)

    def finish_bundle(self) -> None:
        self._close()

    def teardown(self) -> None:
        self._close()

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


def write_once(lines: pvalue.PCollection, folder: str, label: str = "Write lines") -> None:
    """Writes stored lines into files of a folder, each line once, however often a runner repeats a
    bundle: Beam's own sink gives files their names when all of them are complete. Answers with a
    place in an input don't need this, since their lines may occur twice.
    """
    _ = lines | label >> beam.io.WriteToText(
        f"{absolute(folder)}/lines",
        file_name_suffix=".jsonl",
        append_trailing_newlines=False,
        coder=coders.BytesCoder(),
    )
