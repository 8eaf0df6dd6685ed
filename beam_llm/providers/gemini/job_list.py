"""Lists of jobs as Google's APIs give them, page by page."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from beam_llm.protocols import RemoteJob
from beam_llm.providers.control import ControlCalls
from beam_llm.providers.job_search import list_page, next_token, read_jobs

USUAL_PAGE_JOBS = 100


def job_pages(
    control: ControlCalls,
    url_of: Callable[..., str],
    field: str,
    read: Callable[[Mapping[str, Any]], RemoteJob],
    page_jobs: int,
) -> Iterator[Sequence[RemoteJob]]:
    """All jobs that are listed, page by page; one that can't be read is skipped.

    Args:
      url_of: gives the list's address with a query.
      field: the field of a page that holds its jobs.
      page_jobs: the most jobs on a page.

    Raises:
      CannotTell: jobs can't be listed here.
    """
    token = ""
    while True:
        query = {"pageSize": str(page_jobs)} | ({"pageToken": token} if token else {})
        # A job created with inline requests is listed with all of its answers.
        page = list_page(control, url_of(**query), is_large=True)
        yield read_jobs(page.get(field), read)
        # A list that never moves on is left to the caller to notice: it must not look like the end.
        token = next_token(page, "nextPageToken")
        if not token:
            return
