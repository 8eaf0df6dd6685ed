"""What the batch clients of the Gemini API and Vertex AI have in common: jobs are found by the name
that this package gave them, and looked up and cancelled by the name that Google gave them.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

from beam_llm.errors import UnknownJob
from beam_llm.protocols import BatchTraits, LineReply, RemoteJob
from beam_llm.providers.control import ControlCalls
from beam_llm.providers.gemini.job_list import USUAL_PAGE_JOBS, job_pages
from beam_llm.providers.gemini.lines import COMPLETIONS, JobWire, encode_line, line_reply
from beam_llm.providers.http import Bounds
from beam_llm.providers.job_search import find_jobs, pending_in
from beam_llm.values import Request


class GoogleBatches(ABC):
    """The base of both batch clients, blocking. Harmless verbs are tried four times; a create is
    tried once.

    Attributes:
      listed_as: the field of a list's page that holds the jobs.
      page_jobs: the most jobs on a page.
    """

    texts_are_json_strings = True
    listed_as: ClassVar[str]
    page_jobs: ClassVar[int] = USUAL_PAGE_JOBS

    def __init__(
        self,
        control: ControlCalls,
        bounds: Bounds,
        traits: BatchTraits,
        wire: JobWire = COMPLETIONS,
    ):
        self.traits = dataclasses.replace(
            traits, create_seconds=2 * bounds.control_seconds, max_records=wire.most_records
        )
        self._control, self._bounds, self._wire = control, bounds, wire

    @abstractmethod
    def _jobs_url(self, **query: str) -> str:
        """The address of the list of jobs."""

    @abstractmethod
    def _job_url(self, job_id: str) -> str:
        """The address of a job. Raises UnknownJob for what can't be a job's name."""

    @abstractmethod
    def _job(self, found: Mapping[str, Any]) -> RemoteJob:
        """Translates a job from the form in which the API shows it."""

    def close(self) -> None:  # noqa: B027  # meant for all: not abstract
        """Does nothing: nothing is held between calls."""

    def encode_line(self, custom_id: str, request: Request) -> bytes:
        """A request as a line of a job's input. Raises ValueError if `custom_id` is not 1–64
        characters of A–Z, a–z, 0–9, `_` and `-`.
        """
        return encode_line(custom_id, request, self._wire.encode)

    def decode_line(self, line: bytes) -> LineReply:
        """The reply in a line as `fetch` writes it, with the key that it echoes.

        Raises:
          ValueError: the line is cut, or has no key.
        """
        return line_reply(line, self._control.context, self._wire.read)

    def look(self, job_id: str) -> RemoteJob:
        """The job as it is now. Raises UnknownJob if the API does not know it."""
        return self._job(self._get_job(job_id))

    def _get_job(self, job_id: str) -> dict[str, Any]:
        url = self._job_url(job_id)
        return self._control.harmless(
            lambda seconds: self._control.object(
                "GET", url, seconds, missing=UnknownJob, id_field="name", is_large=True
            )
        )

    def find(self, name: str, staged: str | None, since: float) -> list[RemoteJob]:
        """Jobs with that name before the last `-` of their displayName, or with that input.

        Raises:
          CannotTell: jobs can't be listed, or the list doesn't show what is looked for.
        """
        return find_jobs(
            self._pages(),
            name,
            staged,
            since,
            # Names are shown, but the list's order is not known: only its end proves absence.
            keeps_names=False,
            # The bound counts pages of the usual size; there may be more of smaller ones.
            most_pages=self._bounds.list_pages * USUAL_PAGE_JOBS // self.page_jobs,
        )

    def pending(self) -> list[RemoteJob]:
        """Jobs that have not ended, among the first thousand of the list."""
        return pending_in(self._pages(), self.page_jobs)

    def _pages(self) -> Iterator[Sequence[RemoteJob]]:
        return job_pages(self._control, self._jobs_url, self.listed_as, self._job, self.page_jobs)

    def cancel(self, job_id: str) -> None:
        """Asks for cancellation; harmless where the job has ended or is not known."""
        url = f"{self._job_url(job_id)}:cancel"
        self._control.ensure("POST", url, 400, 404, 409)

    def now(self) -> float | None:
        """The server's own time, from its answers; see `ControlCalls.now`."""
        return self._control.now(self._jobs_url(pageSize="1"))
