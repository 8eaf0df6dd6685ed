"""Parts for tests: rows in, one stored part out."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import closing
from typing import NamedTuple

from beam_llm.errors import Failure
from beam_llm.ledger import PartRef, PartWriter
from beam_llm.protocols import Store
from beam_llm.values import Record


class PartRow(NamedTuple):
    """One element: what it asks, or why it can't be asked, and what is needed to give it back."""

    key: bytes
    record: Record | None
    envelope: bytes
    failure: Failure | None


def write_part(
    store: Store, rows: Iterable[PartRow], min_timestamp: int, task: bytes = b""
) -> PartRef:
    """Writes `rows` as one part."""
    with closing(PartWriter(store, task)) as part:
        for row in rows:
            part.add(row.key, row.failure or row.record, row.envelope)
        return part.finish(min_timestamp)
