"""Jobs without a name: when nothing was found, and there may be one all the same."""

from __future__ import annotations

import pytest

from beam_llm.errors import Kind, Retryable
from beam_llm.protocols import RemoteJob
from beam_llm.providers.unnamed_jobs import UnnamedSearch, tag_of
from beam_llm.values import JobState

SINCE = 1_800_000_000.0


def find(job: RemoteJob, first_custom_id: str | None = "") -> list[str | None]:
    search = UnnamedSearch(lambda: [[job]], lambda job_id: first_custom_id, 5)
    found = search.find(
        "ours", 3, SINCE, lambda job_id: False, lambda listed: listed.state.has_ended
    )
    return [job.name for job in found]


def ended(**counts: int) -> RemoteJob:
    return RemoteJob("j", JobState.COMPLETED, "ended", SINCE + 1, **counts)


UNCLEAR = {
    "its requests are not counted yet": RemoteJob(
        "j", JobState.RUNNING, "in_progress", SINCE + 1, total=0
    ),
    "its results are late": ended(completed=3, total=3),
    "all of it failed, and its results are late": ended(completed=0, failed=3, total=3),
}


@pytest.mark.parametrize("job", UNCLEAR.values(), ids=UNCLEAR)
def test_a_job_that_may_be_ours_is_a_doubt_and_not_a_no(job: RemoteJob):
    with pytest.raises(Retryable) as caught:
        find(job)
    assert caught.value.kind == Kind.DOUBTFUL


def test_results_that_come_later_are_read_then():
    custom_ids = iter(["", f"r-1{tag_of('ours-2')}"])
    job = ended(completed=1, total=1)
    search = UnnamedSearch(lambda: [[job]], lambda job_id: next(custom_ids), 5)
    asked = ("ours", 3, SINCE, lambda job_id: False, lambda listed: True)
    with pytest.raises(Retryable):
        search.find(*asked)
    assert [found.name for found in search.find(*asked)] == ["ours-2"]


NOT_OURS = {
    "it ended without having done anything": ended(completed=0, failed=0, total=3),
    "it ended without a request": ended(total=0),
    "it has more requests": ended(completed=4, total=4),
}


@pytest.mark.parametrize("job", NOT_OURS.values(), ids=NOT_OURS)
def test_a_job_that_cant_be_ours_is_none(job: RemoteJob):
    assert find(job) == []
