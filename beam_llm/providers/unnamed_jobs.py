"""Jobs of a provider that stores no name for them: each `custom_id` of a job carries a tag with the
job's name, and the results of ended jobs are searched for it.

See `protocols.FindsUnnamed`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import IO

from beam_llm.errors import CannotTell, Kind, Retryable, plural
from beam_llm.protocols import RemoteJob
from beam_llm.providers.job_search import jobs_since

MOST_CUSTOM_ID = 42
"""The API allows 64 characters; the tag needs the rest."""

BYTES_A_SECOND = 1_000_000
"""The slowest upload of a create's body that holds the lines, beside the time of a control call."""

_TAG = re.compile(r"-([0-9a-f]{16})-([0-9]{4})$")
_MOST_ATTEMPTS = 10_000


def tag_of(name: str) -> str:
    """The tag that is appended to each `custom_id` of a job of that name: a hash of the part that
    all attempts have in common, and the attempt.

        tag_of("ours-0")  # "-8c1d5d4a7e0f3b21-0000"
    """
    common, _, attempt = name.rpartition("-")
    if not (attempt.isdecimal() and attempt.isascii() and int(attempt) < _MOST_ATTEMPTS):
        common, attempt = name, "0"
    digest = hashlib.blake2b(common.encode("utf-8", "replace"), digest_size=8).hexdigest()
    return f"-{digest}-{int(attempt):04d}"


def untagged(custom_id: str) -> str:
    """A `custom_id` without its tag, as it was passed to `encode_line`."""
    return _TAG.sub("", custom_id)


def name_in(custom_id: str, common: str) -> str:
    """The name of the job that a line belongs to, where the name begins with `common`; empty where
    it doesn't.
    """
    found = _TAG.search(custom_id)
    # The first 18 characters are the hash between its hyphens; the attempt's number follows.
    if found is None or tag_of(f"{common}-0")[:18] != found[0][:18]:
        return ""
    return f"{common}-{int(found[2])}"


LINE_HEAD = b'{"custom_id":"'
"""The beginning of every line of a job, before its `custom_id`."""


def write_tagged_lines(body: IO[bytes], lines: Path, tag: bytes, head: bytes) -> int:
    """Writes a create's JSON, each line's `custom_id` with the job's tag; returns its size.

    Args:
      head: written before the first line; ends with an array's `[`.
    """
    start, before = len(LINE_HEAD), head
    with open(lines, "rb") as file:
        for line in file:
            # A `custom_id` of ours needs no escapes, so the next quotation mark is its end.
            end = line.index(b'"', start)
            body.write(before + line[:end] + tag + line[end:].rstrip(b"\n"))
            before = b","
    body.write(b"]}")
    size = body.tell()
    body.seek(0)
    return size


SLACK_SECONDS = 300.0
"""A job may be older than its marker by this much: two clocks of one provider may differ."""


class UnnamedSearch:
    """Searches jobs by the tags in their results, and remembers what it read of ended jobs.

    Args:
      pages: all jobs, page by page.
      first_custom_id: gives the first id in an ended job's results; empty where it has none; None
        where they can't be read any more.
      most_pages: the most pages that are read.
    """

    def __init__(
        self,
        pages: Callable[[], Iterable[Sequence[RemoteJob]]],
        first_custom_id: Callable[[str], str | None],
        most_pages: int,
    ):
        self._pages, self._first_custom_id, self._most_pages = pages, first_custom_id, most_pages
        self._first_ids: dict[str, str] = {}

    def find(
        self,
        name: str,
        lines: int,
        since: float,
        is_others: Callable[[str], bool],
        has_results: Callable[[RemoteJob], bool],
    ) -> list[RemoteJob]:
        """See `protocols.FindsUnnamed`."""
        found, unclear = [], []
        for job in jobs_since(self._pages(), since, SLACK_SECONDS, self._most_pages):
            # The requests of a running job may not have been counted yet.
            least = 1 if job.state.has_ended else 0
            if job.total is not None and not least <= job.total <= lines:
                continue
            named = self._name_of(job, name) if has_results(job) else None
            if named:
                found.append(dataclasses.replace(job, name=named))
            elif named is None and not is_others(job.job_id):
                unclear.append(job)
        # A job that was found is the answer; doubts matter only where there is none.
        if unclear and not found:
            raise_doubt(unclear)
        return found

    def _name_of(self, job: RemoteJob, common: str) -> str | None:
        """The name of an ended job where it begins with `common`, empty where it doesn't; None
        where the job's results can't be read any more, or not yet.
        """
        custom_id = self._first_ids.get(job.job_id)
        if custom_id is None:
            custom_id = self._first_custom_id(job.job_id)
        is_late = custom_id == "" and (job.completed or job.failed)
        if custom_id is None or is_late:
            return None
        # Results of an ended job don't change: each is read once, however many searches there are.
        self._first_ids[job.job_id] = custom_id
        return name_in(custom_id, common)


def raise_doubt(unclear: Sequence[RemoteJob]) -> None:
    """Raises CannotTell, or Retryable where the end of a job will resolve the doubt."""
    lost = [job for job in unclear if job.errors]
    if lost:
        raise CannotTell(
            f"{plural(len(lost), 'job')} that may be this one can't be told from it any more, "
            f"as results are gone: {lost[0].job_id}"
        )
    raise Retryable(
        Kind.DOUBTFUL,
        f"{plural(len(unclear), 'job')} under way may be this one, which shows when each has "
        f"ended: {', '.join(job.job_id for job in unclear[:3])}",
    )
