"""Parts: what goes in comes out, at random or in order; what is damaged or cut is never trusted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from beam_llm.errors import Failure, Kind, LedgerError
from beam_llm.ledger import PartReader
from beam_llm.protocols import Store
from beam_llm.stores import open_store
from beam_llm.values import Record
from tests.part_rows import PartRow, write_part


@pytest.fixture(params=["local", "gcs"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return open_store(
        str(tmp_path / "staging")
        if request.param == "local"
        else request.getfixturevalue("gcs_location")
    )


def row(text: str, envelope: bytes = b"", key: bytes | None = None, **details: Any) -> PartRow:
    return PartRow(
        key or text.encode()[:16].ljust(16, b"\0"),
        Record((text,), len(text), **details),
        envelope,
        None,
    )


ROWS = [
    row("plain", b"envelope 0"),
    row('quotes " and \\ and \n lines', b"\n\xff\x00 bytes"),
    row("日本語 😀 \u2028 separator", b""),
    row("key of NULs at its end", b"e" * 100_000, key=b"k" + b"\0" * 15),
    PartRow(b"", None, b"failed", Failure(Kind.PROMPT, "no field 'text'")),
    row("with an id", b"4", record_id="row 17"),
    row("with fields", b"5", fields={"title": "T", "stars": 4}),
]


def test_what_goes_in_comes_out(store: Store) -> None:
    part = write_part(store, ROWS, 1_234_567)
    reader = PartReader(store, part.name)
    assert (part.rows, part.min_timestamp, part.tokens) == (
        7,
        1_234_567,
        sum(row.record.tokens for row in ROWS if row.record),
    )
    assert [reader.failed[at] for at in range(7)] == [False] * 4 + [True] + [False] * 2
    for at in (5, 0, 6, 3, 1, 2):
        assert reader.record(at) == ROWS[at].record
        assert reader.keys[at : at + 1].tobytes() == ROWS[at].key
    assert reader.failure(4) == ROWS[4].failure
    assert reader.failure(0) is None
    assert list(reader.envelopes(np.arange(7))) == [row.envelope for row in ROWS]
    assert [reader.envelope(at) for at in (6, 0, 3)] == [ROWS[at].envelope for at in (6, 0, 3)]
    reader.close()


def test_a_retried_bundle_meets_its_own_part(store: Store) -> None:
    assert write_part(store, ROWS, 0) == write_part(store, iter(ROWS), 0)
    assert len(list(store.list("parts/"))) == 2


@pytest.mark.parametrize(
    "change", [{"min_timestamp": 1}, {"envelope": b"other"}], ids=["timestamp", "envelope"]
)
def test_a_part_that_differs_in_anything_is_another_part(
    tmp_path: Path, change: dict[str, Any]
) -> None:
    store = open_store(str(tmp_path))
    first = write_part(store, [row("a", b"x")], 0)
    assert (
        write_part(
            store, [row("a", change.get("envelope", b"x"))], change.get("min_timestamp", 0)
        ).name
        != first.name
    )


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.lists(
        st.tuples(st.text(st.characters(exclude_categories=["Cs"])), st.binary(max_size=50)),
        max_size=30,
    )
)
def test_any_text_and_any_envelope_survive(tmp_path: Path, rows: list[tuple[str, bytes]]) -> None:
    store = open_store(str(tmp_path / "staging"))
    part = write_part(store, [row(text, envelope, key=b"k" * 16) for text, envelope in rows], 0)
    reader = PartReader(store, part.name)
    assert [(reader.record(at).inputs[0], reader.envelope(at)) for at in range(len(rows))] == rows
    reader.close()


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (lambda data: data[:-5], "damaged or was cut"),
        (lambda data: data[:10], "was cut"),
        (lambda data: data[:60] + bytes([data[60] ^ 1]) + data[61:], "damaged"),
        (lambda data: data[:8] + b"\x09\0\0\0" + data[12:], "format 9.*reads up to 1"),
        (lambda data: b"<html>quota</html>" * 10, "not an object of this package"),
    ],
    ids=["cut", "cut to its head", "a bit flipped", "a newer format", "something else"],
)
def test_a_damaged_part_is_never_trusted(tmp_path: Path, damage: Any, complaint: str) -> None:
    store = open_store(str(tmp_path))
    name = f"parts/{write_part(store, ROWS, 0).name}.index"
    store.put(name, damage(store.get(name)))
    with pytest.raises(LedgerError, match=complaint):
        PartReader(store, name.removeprefix("parts/").removesuffix(".index"))


def test_rows_that_are_cut_are_noticed_when_read(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    name = write_part(store, ROWS, 0).name
    store.put(f"parts/{name}.rows", (store.get(f"parts/{name}.rows") or b"")[:50])
    with pytest.raises(LedgerError, match="damaged or was cut"):
        PartReader(store, name).envelope(6)


def test_a_missing_part_is_named(tmp_path: Path) -> None:
    with pytest.raises(LedgerError, match=r"parts/0123\.index is missing"):
        PartReader(open_store(str(tmp_path)), "0123")


def test_lone_surrogates_do_not_stop_a_bundle(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    part = write_part(store, [row("half \ud83d of a face", b"x", key=b"k" * 16)], 0)
    assert "half" in PartReader(store, part.name).record(0).inputs[0]
