"""The documents of a job: each is a type, one reader knows what is wrong with one, and names lead
from a job to its children.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import pytest

from beam_llm.errors import LedgerError
from beam_llm.ledger import journal as journals
from beam_llm.ledger.intent import Intent
from beam_llm.ledger.journal import (
    Child,
    Closed,
    CloseReason,
    Created,
    Creating,
    Document,
    Done,
    Journal,
    Lease,
    Refusal,
    Slice,
    Twice,
    Uploaded,
    folder,
    job_of,
    parse,
)
from beam_llm.ledger.status import Phase
from beam_llm.stores import open_store

INTENT = Intent(7, "lines", "rows", 40, 20, 900, "task", "m", "host", 5.0, "ledger-7-mark")
DOCUMENTS: list[Document] = [
    Lease("me", 12.5, 77, 30.0, True, "here"),
    Uploaded("file-1"),
    Creating(3.0, True, None, "batch-0"),
    Created("batch-1", 3.5),
    Closed(CloseReason.QUEUE, 4.0, 9.0, None, None, Refusal(900, None)),
    Twice(None, ("batch-2", "batch-3")),
    Done(
        "f",
        "answers",
        "expired",
        {"": 3, "invalid": 1},
        8.0,
        (Child("f", "lines", 2, 1, 40),),
        "left",
        cost_usd=None,
    ),
    Done(
        "f",
        None,
        "completed",
        {},
        children=(Child("l", "lines", 41, 3, 900),),
        ends_all=("cancelled", "by hand"),
        usage=(1, 2, 3),
    ),
    Slice("answers", 20, 0.25),
    INTENT,
]


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(open_store(str(tmp_path)), "7.a")


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda each: type(each).__name__)
def test_a_document_is_read_as_it_was_written(document: Document) -> None:
    assert parse("x", document.dumps(), type(document)) == document


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"created_at": None}, "'created_at'"),
        ({"created_at": "3"}, "'created_at'"),
        ({"job_id": 7}, "'job_id'"),
        ({"format": 1.5}, "was cut"),
        ({"format": 2}, "format 2.*upgrade"),
    ],
    ids=["null", "a number as text", "another type", "an odd format", "a newer format"],
)
def test_what_is_wrong_with_a_document_is_said_without_what_it_holds(
    changes: dict[str, Any], complaint: str
) -> None:
    data = orjson.dumps({**orjson.loads(Created("batch-secret", 3.5).dumps()), **changes})
    with pytest.raises(LedgerError, match=complaint) as caught:
        parse("jobs/x/created-0000", data, Created)
    assert "jobs/x/created-0000" in str(caught.value)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda each: type(each).__name__)
def test_no_flipped_bit_makes_another_document_of_it(document: Document) -> None:
    whole = document.dumps()
    for bit in range(8 * len(whole)):
        flipped = bytearray(whole)
        flipped[bit // 8] ^= 1 << bit % 8
        try:
            found = parse("jobs/7/x", bytes(flipped), type(document))
        except LedgerError:
            continue
        assert found == document  # the bit was one of the seal's name


def test_a_document_without_a_seal_is_read() -> None:
    assert parse("x", b'{"format":1,"file_id":"file-1"}', Uploaded) == Uploaded("file-1")


def test_members_that_a_later_version_added_are_passed_over() -> None:
    assert parse(
        "x", b'{"format":1,"job_id":"b","created_at":2,"mood":"good"}', Created
    ) == Created("b", 2.0)


def test_the_first_to_add_a_document_decides(journal: Journal) -> None:
    assert journal.add(Created("first", 1.0), 3)
    assert not journal.add(Created("second", 2.0), 3)
    assert journal.read(Created, 3) == journal.newest(Created) == Created("first", 1.0)
    assert journal.read(Created, 2) is journal.read(Created, -1) is None


def test_where_a_job_stands_follows_from_the_names_of_its_own_documents(journal: Journal) -> None:
    child = Journal(journal.store, "7.a.f")
    seen = [journal.status().phase]
    for document in (
        Creating(1.0),
        Closed(CloseReason.QUEUE),
        Created("b", 2.0),
        Done("f", None, "split", {}),
    ):
        child.add(Created("another job", 2.0))
        journal.add(document, 1 if isinstance(document, Created) else 0)
        seen.append(journal.status().phase)
    assert seen == [Phase.FRESH, Phase.DOUBT, Phase.FRESH, Phase.ACKED, Phase.DONE]


@pytest.mark.parametrize("job", ["7", "7.f", "7.f.l", "7.a.b.f", "12345"])
def test_a_jobs_folder_leads_back_to_it(job: str) -> None:
    assert job_of(folder(job) + "created-0000") == job


def test_folders_sort_as_the_log_does_a_child_behind_its_root() -> None:
    jobs = ["2", "2.a", "2.a.f", "2.b", "10", "10.f", "11"]
    assert sorted(map(folder, jobs), key=lambda name: name.rstrip("/")) == [
        folder(job) for job in jobs
    ]


def test_children_are_named_by_their_parents_and_claim_no_number() -> None:
    half = INTENT.child(Child("b", "half", 20, 10, 450), 6.0)
    follow_up = half.child(Child("f", "left", 3, 3, 60), 0.0)
    assert (half.job, half.kind, half.parent, half.undivided, half.is_second_try) == (
        "7.b",
        "half",
        "7",
        "7",
        False,
    )
    assert (follow_up.job, follow_up.kind, follow_up.parent, follow_up.is_second_try) == (
        "7.b.f",
        "follow_up",
        "7.b",
        True,
    )
    assert follow_up.child(Child("a", "left", 2, 2, 40), 0.0).undivided == "7.b.f"
    assert [each.number for each in (half, follow_up)] == [7, 7]
    assert (half.fingerprint, half.created_at, follow_up.created_at) == (
        "ledger-7.b-mark",
        6.0,
        6.0,
    )


def test_no_job_at_a_provider_is_named_so_that_a_relatives_would_be_taken_for_it() -> None:
    """A provider finds the jobs whose names begin with a fingerprint and a `-`."""
    family = [
        INTENT,
        INTENT.child(Child("f", "", 1, 1, 1), 0.0),
        INTENT.child(Child("a", "", 1, 1, 1), 0.0),
    ]
    family.append(family[2].child(Child("f", "", 1, 1, 1), 0.0))
    for one in family:
        assert [
            other.job
            for other in family
            if f"{other.fingerprint}-0".startswith(f"{one.fingerprint}-")
        ] == [one.job]


def test_every_document_that_a_job_may_have_has_a_name_of_its_own() -> None:
    kinds = [
        kind
        for kind in vars(journals).values()
        if isinstance(kind, type) and issubclass(kind, Document) and kind.word
    ]
    assert len({kind.word for kind in kinds}) == len(kinds) > 8
