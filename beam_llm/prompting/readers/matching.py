"""Which answer belongs to which record, as far as that is certain, and how indices are written."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from beam_llm.prompting.readers import Items


def match(items: Items, count: int, warnings: set[str], cut: bool = False) -> dict[int, Any]:
    """Answers by record, 1…`count`, and only those that are certain. An index is used as it is
    written, or not at all.

    - An index written as a string or as `1.0` is that index.
    - Equal answers under one index are one answer; different ones are none.
    - 0, 1, … n-1, all n of them in this order and nothing else, are 1…n counted from zero. With any
      other zero, or an index beyond n where there is no index 1, it is not known which answer
      belongs to which record: none is used.
    - With more answers than records, or a truncated reply with an index that was not asked for, the
      model has lost count: none is used.
    - An answer without an index belongs to no record, unless it is the only answer to the only
      record.

    Args:
      items: (index as written, answer) pairs.
      count: how many records were asked about.
      warnings: filled with `index_type`, `duplicate_index`, `zero_based`, `shifted_index`,
        `unknown_index`, `no_index`.
      cut: the reply ended at its token limit.
    """
    found: dict[int, Any] = {}
    clashing: set[int] = set()
    unindexed = []
    for written, answer in items:
        index = written if type(written) is int else _index(written, warnings)
        if index is None:
            unindexed.append(answer)
        elif index not in found:
            found[index] = answer
        else:
            warnings.add("duplicate_index")
            if not is_same_json(found[index], answer):
                clashing.add(index)
    if unindexed:
        warnings.add("no_index")
        if count == 1 and len(items) == 1:
            return {1: unindexed[0]}
    if len(found) == count and not clashing and not unindexed and found.keys() == _indices(count):
        return found
    if len(items) == count and list(found) == list(range(count)) and not cut:
        warnings.add("zero_based")
        return {index + 1: answer for index, answer in found.items()}
    answers = len(found) + sum(not _is_empty(answer) for answer in unindexed)
    if _has_lost_count(found, answers, count, warnings, cut):
        return {}
    return {
        index: answer
        for index, answer in found.items()
        if index not in clashing and 1 <= index <= count
    }


def _indices(count: int) -> set[int]:
    return set(range(1, count + 1))


def _has_lost_count(
    found: Mapping[int, Any], answers: int, count: int, warnings: set[str], cut: bool
) -> bool:
    """Whether the indices show that the model does not number its answers as it was asked to."""
    is_surplus = answers > count
    if all(1 <= index <= count for index in found):
        return is_surplus
    if 0 in found or 1 not in found:
        warnings.add("shifted_index")
        return True
    warnings.add("unknown_index")
    return is_surplus or cut


def _is_empty(answer: Any) -> bool:
    return answer is None or (type(answer) in (str, list, dict) and not answer)


INDEX = re.compile(r"\s*(?:input\s*)?#?(\d{1,9})\.?\s*", re.IGNORECASE)


def _index(written: Any, warnings: set[str]) -> int | None:
    """The index that `"2"`, `2.0` or `"Input 2"` means; None for anything else."""
    if isinstance(written, float) and written.is_integer():
        warnings.add("index_type")
        return int(written)
    if isinstance(written, str) and (found := INDEX.fullmatch(written)):
        warnings.add("index_type")
        return int(found[1])
    return None


def written_number(written: str | None) -> int | None:
    """The index that a text spells; None where it is not one."""
    found = INDEX.fullmatch(written or "")
    return int(found[1]) if found else None


def is_same_json(one: Any, other: Any) -> bool:
    """Whether two answers are the same JSON."""
    # 1, 1.0 and True are equal in Python, and are different answers.
    return one == other and _canonical_json(one) == _canonical_json(other)


def _canonical_json(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)
