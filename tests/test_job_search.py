"""Looking for a lost job in a provider's list: what is found, and when finding nothing means that
there is nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest

from beam_llm.errors import CannotTell
from beam_llm.protocols import RemoteJob
from beam_llm.providers.job_search import SLACK_SECONDS, find_jobs
from beam_llm.values import JobState

SINCE = 1_800_000_000.0
LONG_AGO = SINCE - SLACK_SECONDS - 1


def job(
    job_id: str, created_at: float = SINCE + 5, name: str | None = None, staged: str | None = None
) -> RemoteJob:
    return RemoteJob(job_id, JobState.RUNNING, "in_progress", created_at, name=name, staged=staged)


def find(
    *pages: Sequence[RemoteJob], keeps_names: bool = False, most_pages: int = 100
) -> list[str]:
    return [
        found.job_id
        for found in find_jobs(
            pages, "ours", "file-1", SINCE, keeps_names=keeps_names, most_pages=most_pages
        )
    ]


def test_jobs_of_the_name_and_of_the_input_are_found_oldest_first():
    listed = [
        job("c", SINCE + 9, staged="file-1"),
        job("other", name="ours2-0"),
        job("b", SINCE + 7, name="ours-1"),
        job("same input and name", SINCE + 1, name="ours-0", staged="file-1"),
    ]
    assert find(listed[:1], listed[1:]) == ["same input and name", "b", "c"]


@pytest.mark.parametrize("keeps_names", [True, False])
def test_a_job_is_found_on_the_page_on_which_those_begin_that_are_too_old(keeps_names: bool):
    assert find(
        [job("ours", name="ours-0"), job("old", LONG_AGO, "theirs")], keeps_names=keeps_names
    ) == ["ours"]
    assert find(
        [job("new", name="")],
        [job("ours", name="ours-0"), job("old", LONG_AGO, "")],
        keeps_names=keeps_names,
    ) == ["ours"]


NOTHING: dict[str, tuple[list[list[RemoteJob]], bool]] = {
    "an empty list": ([[]], True),
    "names of others": ([[job("a", name="")]], True),
    "names of ours": ([[job("a", name="ours2-0")]], True),
    "no names": ([[job("a"), job("b")]], False),
    "no names, other inputs": ([[job("a", staged="file-2")]], False),
    "no names, no times": ([[job("a", 0.0)]], False),
    "no names, all too old": ([[job("a", LONG_AGO), job("b", LONG_AGO - 9)]], True),
    "no names, one too young": ([[job("a", LONG_AGO)], [job("b", SINCE)]], False),
    "the same page for ever": ([[job("a", name="")]] * 3, False),
    "the same page for ever, of old jobs": ([[job("a", LONG_AGO, "")]] * 3, True),
    "a name on the second page": ([[job("a")], [job("b", name="")]], True),
}


@pytest.mark.parametrize(("pages", "is_certain"), NOTHING.values(), ids=NOTHING.keys())
def test_finding_nothing_is_a_no_only_where_the_list_would_have_shown_it(
    pages: list[list[RemoteJob]], is_certain: bool
):
    if is_certain:
        assert find(*pages) == []
    else:
        with pytest.raises(CannotTell):
            find(*pages)


def endless(step: float, first: float = SINCE + 50) -> Iterator[list[RemoteJob]]:
    page = 0
    while True:
        yield [job(f"job-{page}-{n}", first + step * (10 * page + n), name="") for n in range(10)]
        page += 1


def test_a_list_without_end_is_left_after_so_many_pages_and_proves_nothing():
    pages = endless(-1.0)
    with pytest.raises(CannotTell, match="no end within"):
        find_jobs(pages, "ours", None, SINCE, keeps_names=False, most_pages=5)
    assert len(list(zip(range(3), pages, strict=False))) == 3  # it was left, not read to nowhere


def test_a_list_without_end_is_a_no_once_all_newest_first_it_is_past_the_time():
    assert find_jobs(endless(-10_000.0), "ours", None, SINCE, keeps_names=False, most_pages=5) == []
    assert find_jobs(endless(-10_000.0), "ours", None, SINCE, keeps_names=True) == []


def test_an_empty_page_before_the_end_of_a_list_is_not_its_end():
    assert find([], [job("mine", name="ours-0")]) == ["mine"]
    assert find([job("other", name="")], [], [], [job("mine", name="ours-0")]) == ["mine"]
    with pytest.raises(CannotTell, match="no end within 6 pages"):
        find(*[[]] * 10, most_pages=5)


def test_a_list_that_is_oldest_first_is_read_on_past_old_jobs():
    old = [job(f"old-{n}", LONG_AGO + n / 1000, name="") for n in range(5)]
    assert find(old[:3], old[3:], [job("mine", name="ours-0")]) == ["mine"]
    assert find(old, [job("mine", name="ours-0")], keeps_names=True) == ["mine"]
