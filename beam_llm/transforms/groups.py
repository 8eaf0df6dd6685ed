"""The groups that `LLMReduce` answers for: what they are grouped by, and where each of their
prompts belongs in the tree.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from apache_beam import coders
from apache_beam.typehints import typehints

from beam_llm.config import Settings
from beam_llm.errors import USER_CODE_ERRORS, Failure, Kind, lacks_field
from beam_llm.transforms.beam_internals import new_row
from beam_llm.transforms.coders import STATE_CODER
from beam_llm.transforms.fields import declared_fields, is_keyed, readable_fields, split_type
from beam_llm.values import Usage, sum_of_costs


class Group(NamedTuple):
    """What a prediction of `LLMReduce` is about.

    Attributes:
      key: of its `(key, value)` elements, or what `group_by` names; None where there is neither.
      records: how many there were of it, in this window (and pane, where a trigger fires several).
      left_out: how many of them the answer leaves out, with `on_bad_record="leave_out"`.
    """

    key: Any
    records: int
    left_out: int = 0


def key_coder(key_type: Any) -> coders.Coder:
    """The coder of keys of that type in a GroupByKey.

    It takes any key that has passed the GroupByKey, also one of a class of the main program, which
    pickle would look up by name.
    """
    return coders.registry.get_coder(key_type).as_deterministic_coder("LLMReduce")


class KeyReader:
    """Elements → what they are grouped by: the key of a pair, or the values of the fields that
    `group_by` names (of several a tuple), None for one that is missing.

    Args:
      coder: of the keys, deterministic.
    """

    def __init__(self, settings: Settings, coder: coders.Coder | None = None):
        self._names = tuple(settings.group_by or ())
        self._coder = key_coder(Any) if coder is None else coder

    def group_of(self, element: Any) -> tuple[Any, Failure | None]:
        """What an element is grouped by, and the failure where it belongs to no group, because it
        lacks a field, or because Beam can't group by its value. A field's value may be None.
        """
        key, misfit = self._key_of(element)
        try:
            self._coder.encode(key)
        except USER_CODE_ERRORS as error:
            kinds = [type(each).__name__ for each in (key if len(self._names) > 1 else [key])]
            return self._key_of(None)[0], Failure(
                Kind.PROMPT,
                f"its key is a {' and a '.join(kinds)}, which has no deterministic bytes "
                f"({type(error).__name__}): make it a text or a number before",
            )
        return key, misfit

    def _key_of(self, element: Any) -> tuple[Any, Failure | None]:
        if not self._names:
            return (element[0] if is_keyed(element) else None), None
        found = readable_fields(element[1] if is_keyed(element) else element)
        misfit = found if isinstance(found, Failure) else self._misfit(found)
        fields = {} if isinstance(found, Failure) else found
        values = tuple([fields.get(name) for name in self._names])
        return (values[0] if len(values) == 1 else values), misfit

    def _misfit(self, fields: Mapping[str, Any]) -> Failure | None:
        missing = next((name for name in self._names if name not in fields), None)
        if missing is None:
            return None
        return Failure(Kind.PROMPT, lacks_field("group_by", missing, fields))

    def key_type(self, element_type: Any) -> Any:
        """The type of the keys, as far as the elements' type declares it."""
        key_type, value_type = split_type(element_type)
        if not self._names:
            return Any if key_type is None else key_type
        kinds = [kind for _, kind in self.columns(value_type)]
        return kinds[0] if len(kinds) == 1 else typehints.Tuple[tuple(kinds)]

    def columns(self, element_type: Any) -> list[tuple[str, Any]]:
        """The columns of a group's key in rows of answers: `key`, or the fields it is made of."""
        if not self._names:
            return [("key", _or_none(self.key_type(element_type)))]
        known = dict(declared_fields(split_type(element_type)[1]) or ())
        return [(name, _or_none(known.get(name, Any))) for name in self._names]

    def row(self, group: Group) -> Any:
        """The group as a row of those columns."""
        if not self._names:
            return group
        values = (group.key,) if len(self._names) == 1 else group.key
        own = {"records": group.records, "left_out": group.left_out}
        return new_row({**dict(zip(self._names, values, strict=True)), **own})


def _or_none(kind: Any) -> Any:
    """The column's type; optional where Beam may be unable to encode a value of the field."""
    is_general = isinstance(coders.registry.get_coder(kind), coders.FastPrimitivesCoder)
    return typehints.Optional[kind] if is_general and kind is not Any else kind


class Branch(NamedTuple):
    """One prompt of a group: its place in the tree, and the totals of what is below it. All plain
    values.

    Attributes:
      group: its key with its timestamp and window, as bytes.
      name: 16 bytes that identify the group; each of its panes is another group.
      place, of: it is prompt number `place`, from 1, of the `of` prompts of its level.
      records: how many its answer stands for.
      total, left_out: of the whole group.
      usage, cost_usd, reused: of all prompts below; a cost of None is unknown.
    """

    group: bytes
    name: bytes
    place: int
    of: int
    records: int
    total: int
    left_out: int
    usage: tuple[int, ...] = tuple(Usage())
    cost_usd: float | None = 0.0
    reused: bool = True

    def pack(self) -> bytes:
        return bytes(STATE_CODER.encode(tuple(self)))

    @classmethod
    def unpack(cls, data: bytes) -> Branch:
        return cls(*STATE_CODER.decode(data))

    def with_costs(self, usage: Usage, cost_usd: float | None, reused: bool) -> Branch:
        """The same with a further prompt below it."""
        return self._replace(
            usage=tuple(Usage(*self.usage) + usage),
            cost_usd=sum_of_costs((self.cost_usd, cost_usd)),
            reused=self.reused and reused,
        )
