"""Reply text in, answers by index out. Nothing here knows the question; `reply_reader` validates.

    text ─► reader (JSON, XML, delimited, or a user's parser)
         ─► [(index as written, answer as written), …]
         ─► match ─► {index: answer}, only where it is certain which record an answer belongs to

    json_reader, json_path              JSON, in the built-in shape or at a path
    json_text, lenient                  JSON values among prose, and with the slips that models make
    xml, xml_values                     XML, and its elements as values of a schema
    delimited, custom                   lines; a user's parser
    thoughts                            what a reasoning model writes in front of its answer
    matching                            which record an answer belongs to
    doubles, depth                      fields that are written twice; nesting that is too deep

Models break every format they are given. A reader goes down a ladder (strict, then without the
noise around the answers, then the complete answers of a damaged reply, then repair), and its
warnings say how far it went. It never invents an answer: where a reply is damaged, text that a
record smuggled into it behind the damage is not read.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

LONG_REPLY_CHARACTERS = 100_000
"""A longer reply is read in a thread. It may take longer (a good one 1 ms, a damaged one up to
0.2 s, per 100,000 characters) than an event loop that others wait for should be blocked."""

MOST_VALUES = 20_000
"""More answers in a damaged reply than any prompt asks for: a model that repeats itself until it is
stopped."""

ANSWERS = "answers"
"""Name of the array in a reply's root object, and of the root element in XML."""

NOT_FROM_ONE = "it is damaged, and the first index in it is not 1"
"""The reason for reading nothing of such a reply. It is not known what a damaged reply lacks: one
that counts from zero and has lost its first answer looks like one that lacks its last. So a reader
uses what is left of a reply only where the reply began with answer 1."""

Items = list[tuple[Any, Any]]
"""Indices and answers, both as they are written; None for an answer without an index."""

Parser = Callable[[str, int], Any]
"""A user's own parser: the reply's text and the number of records → a mapping, or pairs, of index
and answer.

    def parser(text: str, count: int) -> dict[int, str]:
        return dict(enumerate(text.split(";"), 1))
"""


class Shape(NamedTuple):
    """Where the answer to one record is in a reply.

    Attributes:
      index_field: field that holds the record's number.
      value_field: field that holds the answer, where it isn't flat.
      fields: names of the fields of a flat answer, which are beside the index; empty where there
        is a value field.
      is_object: an answer is an object, or may be one, so that under a key of its own it has
        nothing around it.
    """

    index_field: str = "index"
    value_field: str = "value"
    fields: tuple[str, ...] = ()
    is_object: bool = False


class Found(NamedTuple):
    """What a reader found: (index, answer) pairs as written, with None for a missing index, and a
    word for each thing that was wrong with the reply."""

    items: Items
    warnings: set[str]


class Reader(Protocol):
    """One reply format. A reader finds what is written, and judges only whether it is complete;
    `match` decides which record an answer belongs to.

        reader = JsonReader(Shape())
        reader.find('Sure! [{"index": 1, "value": "spam"}]', 1, cut=False)
        # Found([(1, "spam")], {"wrapped"})
    """

    def find(self, text: str, count: int, cut: bool) -> Found:
        """The answers in `text`.

        Args:
          count: how many answers were asked for.
          cut: the reply ended at its token limit.

        Raises:
          ValueError: where nothing in the text can be read.
        """
