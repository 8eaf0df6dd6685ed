"""Finds the jobs of one name in a provider's list: with labels or without, newest first or not,
with an end or without.

A wrong "there is none" leads to a second paid job, so it is only given where the list shows what
distinguishes the job from others, and was read to its end, or beyond the earliest time at which the
job can have been created.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from itertools import islice
from typing import Any

from beam_llm.errors import CallError, CannotTell, Rejected, plural
from beam_llm.prompting.text import clean
from beam_llm.protocols import RemoteJob
from beam_llm.providers.control import ControlCalls
from beam_llm.providers.ids import identifier_of
from beam_llm.providers.typed import word

SLACK_SECONDS = 2 * 86_400.0
"""A job may be older than its marker by this much and still be the one: two clocks of one provider
may differ, and markers may be written by a wrong clock.
"""


def find_jobs(
    pages: Iterable[Sequence[RemoteJob]],
    name: str,
    staged: str | None,
    since: float,
    *,
    keeps_names: bool,
    keeps_inputs: bool = False,
    most_pages: int = 100,
) -> list[RemoteJob]:
    """Implements `BatchProvider.find` on the pages of a list.

    Args:
      keeps_names: the provider is known to list jobs with their names, newest first.
      keeps_inputs: the provider is known to list a job with the input that it was created from,
        by the id in `staged`.
      most_pages: the most pages that are read.

    Raises:
      CannotTell: none was found, and that proves nothing.
    """
    found: dict[str, RemoteJob] = {}
    seen = _Seen(since, most_pages)
    for page in pages:
        goes_on = seen.add(page)
        for job in page:  # also of the last page: ours may stand before those that are too old
            if (job.name or "").startswith(name + "-") or (
                staged is not None and job.staged == staged
            ):
                found[job.job_id] = job
        # Only a list known to be newest first may be left early: in others, ours may come after
        # old jobs.
        if not goes_on or (keeps_names and seen.is_past):
            break
    if not found:
        seen.prove_absence(keeps_names, keeps_inputs and staged is not None)
    return sorted(found.values(), key=lambda job: (job.created_at, job.job_id))


def jobs_since(
    pages: Iterable[Sequence[RemoteJob]], since: float, slack_seconds: float, most_pages: int = 100
) -> list[RemoteJob]:
    """The jobs of a list that were created since a time, for a provider that has to read each one.

    Args:
      slack_seconds: a job may be older by this much.

    Raises:
      CannotTell: the list was not read to its end, or beyond that time.
    """
    found: dict[str, RemoteJob] = {}
    seen = _Seen(since, most_pages, slack_seconds)
    for page in pages:
        goes_on = seen.add(page)
        found.update((job.job_id, job) for job in page if seen.is_recent_enough(job))
        if not goes_on or seen.is_past:
            break
    seen.prove_end()
    return sorted(found.values(), key=lambda job: (job.created_at, job.job_id))


def read_jobs(jobs: Any, read: Callable[[dict[str, Any]], RemoteJob]) -> list[RemoteJob]:
    """The jobs of a page; one that can't be read is skipped."""
    found = []
    for job in jobs if isinstance(jobs, list) else ():
        if isinstance(job, dict):
            with suppress(CallError):
                found.append(read(job))
    return found


def pending_in(pages: Iterable[Sequence[RemoteJob]], page_jobs: int = 100) -> list[RemoteJob]:
    """Jobs under way among the first thousand, each once; where the newest come first, those
    further on have ended long ago.

    Args:
      page_jobs: the most jobs on a page.
    """
    first = islice(pages, _MOST_PENDING_JOBS // page_jobs)
    found = {job.job_id: job for page in first for job in page if not job.state.has_ended}
    return list(found.values())


def no_list(refused: CallError) -> CannotTell:
    """The error of a list of jobs that is refused."""
    return CannotTell(f"jobs can't be listed here: {refused.message}", status=refused.status)


def list_page(control: ControlCalls, url: str, *, is_large: bool = False) -> dict[str, Any]:
    """A page of jobs, or of results, which may be as large as a file of them.

    Raises:
      CannotTell: there is no such list.
    """
    try:
        return control.harmless(
            lambda seconds: control.object(
                "GET", url, seconds, missing=Rejected, is_list=True, is_large=is_large
            )
        )
    except Rejected as error:
        raise no_list(error) from error


_MOST_PENDING_JOBS = 1_000
_MOST_TOKEN = 4_000


def next_token(page: Mapping[str, Any], name: str) -> str:
    """The token of the next page, from the field `name`; empty after the last page. A page without
    a job may have others behind it.
    """
    return clean(word(page.get(name))[:_MOST_TOKEN])


def last_id(page: Mapping[str, Any], jobs: Sequence[RemoteJob], before: str | None) -> str:
    """The id after which the next page begins, in a list that is paged by ids: the page's last
    readable job, else the one that the page names as its last.

    Args:
      before: the id after which this page began.

    Raises:
      CannotTell: neither leads on, and the job may be further on.
    """
    named = identifier_of(page.get("last_id"), None)
    if not jobs and (named is None or named == before):
        raise CannotTell("the list of jobs goes on behind what can't be read of it")
    return jobs[-1].job_id if jobs else str(named)


class _Seen:
    """What is known of a list so far."""

    def __init__(self, since: float, most_pages: int, slack_seconds: float = SLACK_SECONDS):
        self._most_pages = most_pages
        self._oldest_possible = since - slack_seconds
        self._ids: set[str] = set()
        self._last = math.inf
        self._is_newest_first = True
        self._shows_names = False
        self._shows_inputs = True
        self._candidates = self._pages = 0
        self._is_cut = False

    def add(self, page: Sequence[RemoteJob]) -> bool:
        """Adds a page. Returns whether to go on: some servers send the first page for ever, or a
        new one without end. An empty page may have others behind it (Google's AIP-158, AWS's
        lists).
        """
        fresh = [job for job in page if job.job_id not in self._ids]
        self._pages += 1
        # A page without a new job repeats an earlier one, and is not the end of the list.
        self._is_cut = self._pages > self._most_pages or (bool(page) and not fresh)
        for job in fresh:
            self._ids.add(job.job_id)
            # A job without a time (0.0) says nothing about the order, which then can't be relied
            # on.
            self._is_newest_first &= 0.0 < job.created_at <= self._last
            self._last = job.created_at
            self._shows_names |= job.name is not None
            is_candidate = self.is_recent_enough(job)
            self._candidates += is_candidate
            self._shows_inputs &= job.staged is not None or not is_candidate
        return not self._is_cut

    def is_recent_enough(self, job: RemoteJob) -> bool:
        """Whether the job is young enough to be ours; one without a time may be."""
        return not 0.0 < job.created_at < self._oldest_possible

    @property
    def is_past(self) -> bool:
        """Whether all further jobs are too old to be ours."""
        return self._is_newest_first and self._last < self._oldest_possible

    def prove_absence(self, keeps_names: bool, keeps_inputs: bool) -> None:
        """Raises CannotTell where our job may be in the list unrecognized, or further on."""
        self.prove_end()
        # A server that drops all names would hide ours, too; one listed name proves that it keeps
        # them.
        would_be_known = keeps_names or self._shows_names or (keeps_inputs and self._shows_inputs)
        if self._candidates and not would_be_known:
            raise CannotTell(
                f"none of the {plural(self._candidates, 'job')} in the provider's list shows "
                "what it was created as"
            )

    def prove_end(self) -> None:
        """Raises CannotTell where our job may be further on."""
        if self._is_cut and not self.is_past:
            raise CannotTell(
                f"the provider's list of jobs has no end within {plural(self._pages, 'page')}"
            )
