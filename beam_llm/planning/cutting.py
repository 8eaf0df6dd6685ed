"""Where prompts end, and where jobs end: pure functions of columns."""

from __future__ import annotations

import numpy as np

from beam_llm.caps import RECORD_OVERHEAD_TOKENS, Caps
from beam_llm.ledger.columns import Array
from beam_llm.prompting.batching import prompt_ends


def cut_lines(tokens: Array, sizes: Array, caps: Caps) -> Array:
    """Fills prompts greedily. Returns the first record of each line, and the end. A record that
    alone exceeds a cap has a line of its own."""
    starts = [0]
    # In chunks, as Python's numbers take 40 bytes each; of at least two full lines, as the last
    # line of a chunk is dropped.
    step = max(_CHUNK, 2 * caps.records)
    while starts[-1] < len(tokens):
        begin = starts[-1]
        chunk = slice(begin, begin + step)
        ends = _line_ends(tokens[chunk], sizes[chunk] if caps.bytes is not None else None, caps)
        if begin + step < len(tokens):
            ends.pop()  # the chunk's end is arbitrary: its last line is filled anew
        starts.extend(begin + end for end in ends)
    return np.array(starts, dtype=np.int64)


_CHUNK = 1 << 16


def _line_ends(tokens: Array, sizes: Array | None, caps: Caps) -> list[int]:
    token_sums = np.cumsum(tokens, dtype=np.int64) + RECORD_OVERHEAD_TOKENS * np.arange(
        1, len(tokens) + 1
    )
    byte_sums = np.cumsum(sizes, dtype=np.int64).tolist() if sizes is not None else None
    return prompt_ends(token_sums.tolist(), byte_sums, caps)


def cut_jobs(
    sizes: Array,
    tokens: Array,
    *,
    max_requests: int,
    max_bytes: int,
    max_tokens: int | None = None,
    min_requests: int = 1,
    counts: Array | None = None,
    max_records: int | None = None,
) -> list[int]:
    """Fills jobs with lines, greedily. Returns the first line of each job, and the end. A line that
    alone exceeds a limit has a job of its own; a last job of fewer than `min_requests` lines takes
    some from the one before.

    Args:
      sizes, tokens: of each line.
      counts: records of each line; needed only with `max_records`.
    """
    cuts, at = [0], 0
    limits = [(sizes, max_bytes)]
    if max_tokens is not None:
        limits.append((tokens, max_tokens))
    if max_records is not None and counts is not None:
        limits.append((counts, max_records))
    while at < len(sizes):
        taken = slice(at, at + max_requests)
        at += max(min(_fitting(column[taken], most) for column, most in limits), 1)
        cuts.append(at)
    border = cuts[-1] - min_requests
    # Only where the job before keeps enough lines, and the last one still fits with those that it
    # takes.
    if len(cuts) > 2 and cuts[-2] > border >= cuts[-3] + min_requests:
        fits = all(int(column[border:].sum(dtype=np.int64)) <= most for column, most in limits)
        cuts[-2] = border if fits and min_requests <= max_requests else cuts[-2]
    return cuts


def _fitting(weights: Array, most: int) -> int:
    """How many items, from the first on, have a sum of no more than `most`."""
    return int(np.searchsorted(np.cumsum(weights, dtype=np.int64), most, side="right"))
