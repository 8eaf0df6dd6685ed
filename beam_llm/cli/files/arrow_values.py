"""Converts Arrow's values to Python's.

Binary columns come as text where they are UTF-8 (Spark and Impala write text so). Times of
nanoseconds come as `datetime`s where those hold them, else as ISO text with nine digits: Arrow
itself refuses them, or gives pandas' types where pandas is installed.
"""

from __future__ import annotations

import datetime
from typing import Any

from beam_llm.cli.files.records import text_of


def python_values(column: Any) -> list[Any]:
    """The column's values; `to_pylist`, except for nanoseconds and binary text at any depth."""
    import pyarrow.types as kinds

    kind = column.type
    if not _needs_care(kind):
        return list(column.to_pylist())
    # A table's column is in chunks; a batch's, and what is inside of one, is not.
    if hasattr(column, "combine_chunks"):
        column = column.combine_chunks()
    # An extension type: its values are those that it stores.
    if hasattr(column, "storage"):
        return python_values(column.storage)
    if kinds.is_dictionary(kind):
        return python_values(column.dictionary_decode())
    if kinds.is_struct(kind):
        return _structs(column)
    if kinds.is_map(kind):
        return [_text_within(value) for value in column.to_pylist()]
    if hasattr(kind, "value_type"):  # a list of any kind
        return _cut_into_lists(column, python_values(column.flatten()))
    if _is_binary(kind):
        return [None if value is None else text_of(value) for value in column.to_pylist()]
    return _times(column)


def _needs_care(kind: Any) -> bool:
    import pyarrow.types as kinds

    if hasattr(kind, "storage_type"):
        return _needs_care(kind.storage_type)
    if kinds.is_dictionary(kind):
        return _needs_care(kind.value_type)
    if kinds.is_nested(kind):
        return any(_needs_care(kind.field(i).type) for i in range(kind.num_fields))
    return _is_binary(kind) or (kinds.is_temporal(kind) and getattr(kind, "unit", "") == "ns")


def _is_binary(kind: Any) -> bool:
    import pyarrow.types as kinds

    return bool(
        kinds.is_binary(kind)
        or kinds.is_large_binary(kind)
        or kinds.is_fixed_size_binary(kind)
        or kinds.is_binary_view(kind)
    )


def _text_within(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _text_within(member) for key, member in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(map(_text_within, value))
    return text_of(value) if isinstance(value, bytes) else value


def _structs(column: Any) -> list[Any]:
    names = [column.type.field(i).name for i in range(column.type.num_fields)]
    # Refused, as `to_pylist` does: a dict would lose a value.
    if len(set(names)) < len(names):
        raise ValueError("two fields of a struct have one name")
    members = zip(*(python_values(child) for child in column.flatten()), strict=True)
    valid = column.is_valid().to_pylist()
    return [
        dict(zip(names, values, strict=True)) if one else None
        for one, values in zip(valid, members, strict=True)
    ]


def _cut_into_lists(column: Any, flat: list[Any]) -> list[Any]:
    """The lists of a list column, cut from the row of all their members; a null list has none."""
    valid = column.is_valid().to_pylist()
    lists: list[Any] = []
    at = 0
    for index, one in enumerate(valid):
        if not one:
            lists.append(None)
            continue
        size = len(column[index])
        lists.append(flat[at : at + size])
        at += size
    return lists


def _times(column: Any) -> list[Any]:
    """Times made of nanoseconds: since the epoch, since midnight, or of a duration."""
    import pyarrow as pa
    import pyarrow.types as kinds

    kind = column.type
    if kinds.is_timestamp(kind):
        coarser = pa.timestamp("us", kind.tz)
    else:
        coarser = pa.time64("us") if kinds.is_time(kind) else pa.duration("us")
    counts = column.cast(pa.int64()).to_pylist()
    # Rounded down here: Arrow would round times before 1970 up.
    microseconds = [None if count is None else count // 1000 for count in counts]
    times = pa.array(microseconds, pa.int64()).cast(coarser).to_pylist()
    return [
        time if not count or count % 1000 == 0 else _with_nanoseconds(time, count)
        for time, count in zip(times, counts, strict=True)
    ]


def _with_nanoseconds(time: Any, count: int) -> str:
    if isinstance(time, datetime.timedelta):
        seconds, rest = divmod(count, 10**9)
        return f"{datetime.timedelta(seconds=seconds)}.{rest:09d}"
    text = time.isoformat(timespec="microseconds")
    end = text.rindex(".") + 7
    return f"{text[:end]}{count % 1000:03d}{text[end:]}"
