"""Our columns against Arrow tables: `python -m tests.benchmarks.arrow RECORDS BYTES` writes records of
so many bytes as parts in both forms, and reads them back as the planner does (every key and size)
and as the driver does (every question and envelope, in order). Microseconds a record, and what the
peak grew by.

The other form is one Arrow IPC file a part, read by the quickest way there is for each use: keys as a
numpy view, rows as a list for each column.
"""

from __future__ import annotations

import gc
import hashlib
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing

import numpy as np
import orjson
import pyarrow as pa

from beam_llm.ledger.parts import PartReader, PartWriter
from beam_llm.protocols import Store
from beam_llm.stores import open_store
from beam_llm.values import Record
from tests.benchmarks.planning import PART_ROWS, peak_mb

_SCHEMA = pa.schema(
    {
        "key": pa.binary(16),
        "tokens": pa.uint32(),
        "size": pa.uint32(),
        "question": pa.binary(),
        "envelope": pa.binary(),
    }
)


def _records(start: int, end: int, size: int) -> Iterator[tuple[bytes, Record]]:
    for number in range(start, end):
        yield hashlib.md5(b"%d" % number).digest(), Record((f"{number:0{size}}",), 20)


def write_ours(store: Store, records: int, size: int) -> list[str]:
    names = []
    for start in range(0, records, PART_ROWS):
        with closing(PartWriter(store)) as part:
            for key, record in _records(start, min(start + PART_ROWS, records), size):
                part.add(key, record, record.inputs[0].encode())
            names.append(part.finish(0).name)
    return names


def plan_ours(store: Store, names: list[str]) -> int:
    readers = [PartReader(store, name) for name in names]
    keys = np.concatenate([reader.keys for reader in readers])
    return int(sum(int(reader.sizes.sum()) for reader in readers)) + len(keys)


def read_ours(store: Store, names: list[str]) -> Iterator[tuple[bytes | None, bytes]]:
    for name in names:
        with closing(PartReader(store, name)) as reader:
            rows = np.arange(len(reader))
            yield from zip(reader.quoted(rows), reader.envelopes(rows), strict=True)


def write_arrow(store: Store, records: int, size: int) -> list[str]:
    names = []
    for start in range(0, records, PART_ROWS):
        columns: list[list[object]] = [[] for _ in _SCHEMA]
        for key, record in _records(start, min(start + PART_ROWS, records), size):
            question = orjson.dumps(record.inputs)
            sizes = len(orjson.dumps(question.decode()))
            row = (key, record.tokens, sizes, question, record.inputs[0].encode())
            for column, value in zip(columns, row, strict=True):
                column.append(value)
        sink = pa.BufferOutputStream()
        arrays = [
            pa.array(column, kind) for column, kind in zip(columns, _SCHEMA.types, strict=True)
        ]
        with pa.ipc.new_file(sink, _SCHEMA) as file:
            file.write_batch(pa.record_batch(arrays, schema=_SCHEMA))
        names.append(f"arrow/{start}.arrow")
        store.put(names[-1], sink.getvalue().to_pybytes())
    return names


def _batch(store: Store, name: str) -> pa.RecordBatch:
    data = store.get(name)
    assert data is not None
    return pa.ipc.open_file(pa.py_buffer(data)).get_batch(0)


def plan_arrow(store: Store, names: list[str]) -> int:
    batches = [_batch(store, name) for name in names]
    keys = np.concatenate([np.frombuffer(one["key"].buffers()[1], "S16") for one in batches])
    return sum(int(one["size"].to_numpy().sum()) for one in batches) + len(keys)


def read_arrow(store: Store, names: list[str]) -> Iterator[tuple[bytes | None, bytes]]:
    for name in names:
        batch = _batch(store, name)
        columns = (batch[column].to_pylist() for column in ("question", "envelope"))
        for question, envelope in zip(*columns, strict=True):
            yield None if b'","' in question else question[2:-2], envelope


def _measured(what: str, records: int, act: Callable[[], object]) -> object:
    gc.collect()
    with open("/proc/self/clear_refs", "w") as peak:
        peak.write("5")  # the peak starts anew
    before, started = peak_mb(), time.perf_counter()
    found = act()
    seconds, grown = time.perf_counter() - started, peak_mb() - before
    print(f"{what:24} {seconds / records * 1e6:6.2f} µs a record, +{grown:.0f} MB", flush=True)
    return found


def main(records: int, size: int) -> None:
    forms = {
        "ours": (write_ours, plan_ours, read_ours),
        "arrow": (write_arrow, plan_arrow, read_arrow),
    }
    for _ in range(3):
        for form, (write, plan, read) in forms.items():
            with tempfile.TemporaryDirectory() as folder:
                store = open_store(folder)
                names = _measured(f"{form}: write", records, lambda: write(store, records, size))  # noqa: B023
                _measured(f"{form}: keys and sizes", records, lambda: plan(store, names))  # noqa: B023
                count = _measured(
                    f"{form}: rows in order",
                    records,
                    lambda: sum(1 for _ in read(store, names)),  # noqa: B023
                )
                assert count == records


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
