"""Some of the records that stand for all: spread over their lengths, and the same ones again for
the same seed, whatever their order.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence


def stratified(
    lengths: Sequence[int], digests: Sequence[bytes], count: int, seed: int
) -> list[int]:
    """Which records are the sample: one out of each of `count` groups of records of like length.

    Within its group a record is chosen by its content, not by its place: the same file in another
    order gives the same texts.

    Args:
      lengths: of each record, in any unit.
      digests: of each record's content.
      seed: another one chooses others.

    Returns:
      Their places, ascending; all of them where there are no more than `count`.
    """
    total = len(lengths)
    if count >= total:
        return list(range(total))
    lots = [_lot(digest, seed) for digest in digests]
    by_length = sorted(range(total), key=lambda place: (lengths[place], lots[place]))
    groups = (
        by_length[total * number // count : total * (number + 1) // count]
        for number in range(count)
    )
    return sorted(min(group, key=lambda place: (lots[place], place)) for group in groups)


def _lot(digest: bytes, seed: int) -> bytes:
    # Not `random` with a seed, which would choose by place.
    return hashlib.blake2b(digest, digest_size=8, salt=str(seed).encode()[:16]).digest()
