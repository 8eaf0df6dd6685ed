"""What the review pipelines share: the answer's type, the prompt, and rows as they lie in the
input.
"""

from __future__ import annotations

import json
from typing import Literal, NamedTuple

import pydantic

PROMPT = (
    "Classify the sentiment of this review and score it from -1 (most negative) to 1 "
    "(most positive):\n{{ text }}"
)


class Review(NamedTuple):
    """One line of the input."""

    id: str
    text: str
    rating: float


class Opinion(pydantic.BaseModel):
    """What is asked about each review."""

    sentiment: Literal["positive", "negative", "neutral"]
    score: float


def parse(line: str) -> Review:
    """A line of `.jsonl` as a Review."""
    fields = json.loads(line)
    return Review(str(fields["id"]), str(fields["text"]), float(fields["rating"]))
