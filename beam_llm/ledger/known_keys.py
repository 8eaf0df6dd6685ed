"""Which job was planned for which record: an index of all keys in a ledger's log."""

from __future__ import annotations

import numpy as np

from beam_llm.ledger.columns import KEY, Array

# 16 bytes of key and 4 of number.
ENTRY = np.dtype("S20")
# How many keys are looked up at once: the temporary arrays take several times their memory.
_CHUNK = 1 << 16


class Known:
    """Every key that a job was planned for, with its job's number: 20 bytes a key, sorted, in a few
    levels (newest last).

    An entry is the key and the number in big-endian order, as one string of 20 bytes: numpy sorts
    those in place. Immutable.
    """

    def __init__(self, levels: tuple[Array, ...], last: int):
        self.levels, self.last = levels, last

    def __len__(self) -> int:
        return sum(len(level) for level in self.levels)

    def jobs_of(self, keys: Array) -> Array:
        """u32 per key: the number of the last job planned for it, 0 where there is none."""
        numbers = np.zeros(len(keys), dtype=np.uint32)
        for start in range(0, len(keys), _CHUNK):
            chunk = keys[start : start + _CHUNK]
            found = numbers[start : start + _CHUNK]
            # Newest first: a look-up fills in only what is still 0, so that a key's last job wins.
            for level in reversed(self.levels):
                _look_up(level, chunk, found)
        return numbers

    def merged_with(self, run: Array, last: int) -> Known:
        """The same with later entries. Levels of similar size are merged, so that there are few."""
        levels = [*self.levels]
        if len(run):
            run.sort()
            levels.append(run)
        # Each level is then at most half of the one before, so there are few of them.
        while len(levels) > 1 and len(levels[-1]) * 2 > len(levels[-2]):
            merged = np.concatenate(levels[-2:])
            del levels[-2:]
            # Two sorted runs, which numpy's stable sort (a timsort) merges.
            merged.sort(kind="stable")
            levels.append(merged)
        return Known(tuple(levels), last)


def entries_of(keys: Array, number: int, into: Array) -> None:
    """Fills `into` with entries for `keys`."""
    rows = into.view(np.uint8).reshape(-1, ENTRY.itemsize)
    rows[:, : KEY.itemsize] = np.ascontiguousarray(keys).view(np.uint8).reshape(-1, KEY.itemsize)
    rows[:, KEY.itemsize :] = np.frombuffer(number.to_bytes(4, "big"), dtype=np.uint8)


def _look_up(level: Array, keys: Array, numbers: Array) -> None:
    """Fills in numbers that are still 0."""
    open_keys = np.flatnonzero(numbers == 0)
    if not len(open_keys) or not len(level):
        return
    wanted = keys[open_keys]
    last_possible = np.empty(len(wanted), dtype=ENTRY)
    # The greatest entry that each key can have: the entry left of it is its newest job's.
    entries_of(wanted, 0xFFFFFFFF, last_possible)
    positions = np.maximum(np.searchsorted(level, last_possible, side="right") - 1, 0)
    candidates = level[positions].view(np.uint8).reshape(-1, ENTRY.itemsize)
    equal = np.ascontiguousarray(candidates[:, : KEY.itemsize]).view(KEY).reshape(-1) == wanted
    found = np.ascontiguousarray(candidates[:, KEY.itemsize :]).view(">u4").reshape(-1)
    numbers[open_keys[equal]] = found[equal]
