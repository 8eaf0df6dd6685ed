"""Reply text in, answers by index out. Nothing here knows what was asked; `task` validates.

    text ─► reader (JSON, XML, delimited, or a user's parser)
         ─► [(index as written, answer as written), …]
         ─► match ─► {index: answer}, only where it is certain which record an answer belongs to

    json_reader, json_path              JSON, in the built-in shape or at a path
    json_text, lenient                  JSON values among prose, and with the slips that models make
    xml, xml_values                     XML, and its elements as the values that a schema says
    delimited, custom                   lines; a user's parser
    thoughts                            what a reasoning model writes in front of its answer
    matching, doubles, depth            whose an answer is; what stands twice, or too deep

Models break every format they are given. A reader climbs down a ladder (strict, then with the noise
around it cut off, then what is whole in a damaged reply, then repair) and says by a warning how far
it went. What it never does is to invent an answer: text that a record smuggled into a reply is not
looked at once a reply is found to be damaged in front of it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

LONG_REPLY_CHARACTERS = 100_000
"""A longer reply may take longer to read (a good one 1 ms, damage up to 0.2 s, per 100,000
characters) than an event loop that others wait for should stand still: it is read in a thread."""

MOST_VALUES = 20_000
"""More answers in a damaged reply than any prompt asks for: a model that repeats itself until it is
stopped."""

ANSWERS = "answers"
"""Name of the array in a reply's root object, and of the root element in XML."""

NOT_FROM_ONE = "it is damaged, and the first index in it is not 1"
"""Of a damaged reply it is not known what it lacks: one that counts from zero and has lost its
first answer looks like one that lacks its last. So a reader believes what is left of a reply only
where the reply began with answer 1."""

Items = list[tuple[Any, Any]]
"""Indices and answers, both as they are written; None for an answer without an index."""

Parser = Callable[[str, int], Any]
"""A user's own: the reply's text and the number of records → a mapping, or pairs, of index and
answer.

    def parser(text: str, count: int) -> dict[int, str]:
        return dict(enumerate(text.split(";"), 1))
"""


class Shape(NamedTuple):
    """How one record's answer stands in a reply.

    Attributes:
      index_field: field that holds the record's number.
      value_field: field that holds the answer, where it isn't flat.
      fields: names of the fields of a flat answer, which stand beside the index; empty where there
        is a value field.
      is_object: an answer is an object, or may be one, so that under a key of its own it has
        nothing around it.
    """

    index_field: str = "index"
    value_field: str = "value"
    fields: tuple[str, ...] = ()
    is_object: bool = False


class Found(NamedTuple):
    """What a reader saw: (index, answer) pairs as written, None for no index; and words for what
    was wrong with the reply."""

    items: Items
    warnings: set[str]


class Reader(Protocol):
    """One reply format. A reader finds what is written, and judges only whether it is whole; whose
    an answer is, `match` decides.

        reader = JsonReader(Shape())
        reader.find('Sure! [{"index": 1, "value": "spam"}]', 1, cut=False)
        # Found([(1, "spam")], {"wrapped"})
    """

    def find(self, text: str, count: int, cut: bool) -> Found:
        """The answers in `text`, which were to be `count`; `cut`: the reply ended at its token
        limit.

        Raises:
          ValueError: where nothing in the text can be read.
        """
