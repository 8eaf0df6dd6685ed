"""The shipped sample of real reviews. Source and licence: `data/README.md`,
`data/LICENSE.reviews.txt`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def reviews_path() -> Path:
    """The path of 2,000 reviews as JSON lines: `id`, `text`, `rating` (the mean of about 20
    people's ratings, -4 … 4).
    """
    return Path(__file__).with_name("data") / "reviews.jsonl"


def reviews() -> list[dict[str, Any]]:
    """The sample in memory, in the file's order."""
    return [json.loads(line) for line in reviews_path().read_bytes().split(b"\n") if line]
