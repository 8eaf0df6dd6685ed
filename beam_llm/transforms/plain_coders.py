"""Elements in a staging location: coders as JSON descriptions, values without pickle, as far as
JSON or a Beam schema can hold them.

A pickle runs what its author wants. Whoever may write to a staging location must not be able to run
code in the pipelines that read it, so a coder is rebuilt from a description of a few words, and
what it reads is built of plain values:

    ["tuple", "str", "primitives"]   describe_coder ⇄ build_coder, from the table below alone

Instances of classes of named fields (NamedTuples, dataclasses, pydantic models) are written as
these (named_classes.py). Pickle stays for all other classes of the user's own. It is read by the
run that wrote it, which knows its parts by their digests, and by others only with `allow_pickle`.
"""

from __future__ import annotations

import base64
import datetime
import uuid
from collections.abc import Callable
from decimal import Decimal
from functools import partial
from typing import Any

import apache_beam as beam
from apache_beam import coders
from apache_beam.utils.timestamp import Timestamp

from beam_llm.errors import LedgerError
from beam_llm.prompting.text import clean
from beam_llm.transforms.beam_internals import (
    DecimalCoder,
    FastCoder,
    GlobalWindowCoder,
    IntervalWindowCoder,
    ListCoder,
    MapCoder,
    NullableCoder,
    PrimitiveTag,
    RowCoder,
    coder_impl,
    component_coders,
    schema_pb2,
)
from beam_llm.transforms.coders import AnyObjectCoder
from beam_llm.transforms.named_classes import fields_of, make_instance

_LEAVES: dict[str, type[coders.Coder]] = {
    "str": coders.StrUtf8Coder,
    "bytes": coders.BytesCoder,
    "int": coders.VarIntCoder,
    "float": coders.FloatCoder,
    "bool": coders.BooleanCoder,
    "decimal": DecimalCoder,
    "timestamp": coders.TimestampCoder,
    "global window": GlobalWindowCoder,
    "interval window": IntervalWindowCoder,
}
_WORDS = {kind: word for word, kind in _LEAVES.items()}
_NESTED: dict[str, type[coders.Coder]] = {
    "tuple": coders.TupleCoder,
    "iterable": coders.IterableCoder,
    "list": ListCoder,
    "nullable": NullableCoder,
}
_NESTED_WORDS = {kind: word for word, kind in _NESTED.items()}

_LOGICAL = frozenset(
    f"beam:logical_type:{name}:v1"
    for name in (
        *("micros_instant", "millis_instant", "nanos_instant", "date", "fixed_decimal", "decimal"),
        *("fixed_bytes", "var_bytes", "fixed_char", "var_char"),
    )
)
"""Of Beam's own logical types those that are data. Others are code: a Python callable's is its
source, a Python object's its pickle.
"""


def plain(coder: coders.Coder) -> coders.Coder:
    """The same coder, which writes plain values where Beam's would pickle them: large integers,
    decimals, dates, rows.
    """
    # Exact classes, here and below: one that derives from Beam's may write other bytes.
    if type(coder) is coders.FastPrimitivesCoder:
        return coders.FastPrimitivesCoder(_PlainValueCoder())
    if type(coder) is coders.TupleCoder:
        return coders.TupleCoder([plain(component) for component in coder.coders()])
    if type(coder) is MapCoder:
        return MapCoder(*map(plain, component_coders(coder)))
    return coder


def describe_coder(coder: coders.Coder) -> Any:
    """What `build_coder` makes a coder from that reads the same bytes; JSON. None where only pickle
    can carry this one.
    """
    kind = type(coder)
    if kind in _WORDS:
        return _WORDS[kind]
    if kind is coders.FastPrimitivesCoder:
        return "primitives"
    if kind is RowCoder:
        return _described_row(coder)
    if kind not in _NESTED_WORDS and kind is not MapCoder:
        return None
    inner = [describe_coder(component) for component in component_coders(coder)]
    return None if None in inner else [_NESTED_WORDS.get(kind, "map"), *inner]


def _described_row(coder: Any) -> Any:
    if not all(_is_data(field.type) for field in coder.schema.fields):
        return None
    return ["row", base64.b64encode(coder.schema.SerializeToString(deterministic=True)).decode()]


_MOST_DEPTH = 30
"""Of a description. No element's type is as deep, and Beam's compiled coders read on behind the end
of their bytes.
"""


def build_coder(description: Any, allow_pickle: bool = False, depth: int = 0) -> coders.Coder:
    """The coder that a description names. It runs nothing, whatever it reads, unless
    `allow_pickle`.

    Raises:
      ValueError: the description names something else than the coders of plain data.
    """
    if isinstance(description, str) and description in _LEAVES:
        return _LEAVES[description]()
    if description == "primitives":
        return (
            coders.FastPrimitivesCoder(_PlainValueCoder())
            if allow_pickle
            else _PlainPrimitivesCoder()
        )
    if not isinstance(description, list) or not description:
        raise ValueError("it is not a description of a coder")
    if depth > _MOST_DEPTH:
        raise ValueError(f"it is more than {_MOST_DEPTH} coders deep")
    build = partial(build_coder, allow_pickle=allow_pickle, depth=depth + 1)
    word, *rest = description
    if word == "row" and len(rest) == 1:
        return _built_row(rest[0])
    if word == "tuple":
        return coders.TupleCoder([build(inner) for inner in rest])
    if word == "map" and len(rest) == 2:
        return MapCoder(*(build(inner) for inner in rest))
    if word in _NESTED and len(rest) == 1:
        return _NESTED[word](build(rest[0]))
    raise ValueError("it names a coder that is not of plain data")


def _built_row(encoded: Any) -> coders.Coder:
    schema = schema_pb2.Schema()
    try:
        schema.ParseFromString(base64.b64decode(encoded))
    except Exception as error:
        raise ValueError("its schema can't be read") from error
    if not all(_is_data(field.type) for field in schema.fields):
        raise ValueError("its schema has fields that are not plain data")
    # Options hold values of any type, which Beam decodes when it makes the row's type; rows are
    # read without them.
    schema.ClearField("options")
    for field in schema.fields:
        field.ClearField("options")
    return RowCoder(schema)


def _is_data(kind: Any) -> bool:
    """Whether values of a schema's field are data alone, at every depth."""
    word = kind.WhichOneof("type_info")
    if word == "atomic_type":
        return True
    if word in ("array_type", "iterable_type"):
        return _is_data(getattr(kind, word).element_type)
    if word == "map_type":
        return _is_data(kind.map_type.key_type) and _is_data(kind.map_type.value_type)
    if word == "row_type":
        return all(_is_data(field.type) for field in kind.row_type.schema.fields)
    return word == "logical_type" and kind.logical_type.urn in _LOGICAL


class _PlainValueCoder(coders.Coder):
    """What FastPrimitivesCoder does not know: a tag and text for plain values, pickle for all else.

    A pickle begins with its protocol mark, or with a letter or digit (Beam's pickler writes
    base64), so tags are control characters.
    """

    def encode(self, value: Any) -> bytes:
        if type(value) is beam.Row:
            return _ROW + _plain_bytes(value.as_dict())
        write = _WRITERS.get(type(value))
        tagged = write(value) if write is not None else _named(value)
        return bytes(_PICKLES.encode(value)) if tagged is None else tagged

    def decode(self, encoded: bytes) -> Any:
        if encoded[:1] == _ROW:
            return beam.Row(**_PRIMITIVES.decode(encoded[1:]))
        if encoded[:1] == _NAMED:
            # What this coder reads its own run has written, so the class's module may be imported.
            return make_instance(*_PRIMITIVES.decode(encoded[1:]), load=True)
        read = _READERS.get(encoded[:1])
        return _PICKLES.decode(encoded) if read is None else read(encoded[1:])


class _PlainPrimitives(coder_impl.StreamCoderImpl):
    """Reads what FastPrimitivesCoder and `_PlainValueCoder` write, but for pickles. Beam's own
    decoder takes some in any case.
    """

    def decode_from_stream(self, stream: Any, nested: bool) -> Any:
        tag = stream.read_byte()
        if tag in (PrimitiveTag.LIST, PrimitiveTag.TUPLE, PrimitiveTag.SET):
            items = [self.decode_from_stream(stream, True) for _ in range(_count(stream))]
            return (
                items
                if tag == PrimitiveTag.LIST
                else tuple(items)
                if tag == PrimitiveTag.TUPLE
                else set(items)
            )
        if tag == PrimitiveTag.DICT:
            pairs = range(_count(stream))
            return {
                self.decode_from_stream(stream, True): self.decode_from_stream(stream, True)
                for _ in pairs
            }
        if tag == PrimitiveTag.OTHER:
            return self._decode_tagged(_read_bytes(stream, nested))
        return self._decode_scalar(tag, stream, nested)

    def _decode_scalar(self, tag: int, stream: Any, nested: bool) -> Any:
        if tag == PrimitiveTag.NONE:
            return None
        if tag == PrimitiveTag.INT:
            return stream.read_var_int64()
        if tag == PrimitiveTag.FLOAT:
            return stream.read_bigendian_double()
        if tag == PrimitiveTag.BOOL:
            return bool(stream.read_byte())
        if tag == PrimitiveTag.BYTES:
            return _read_bytes(stream, nested)
        if tag == PrimitiveTag.TEXT:
            return _read_bytes(stream, nested).decode()
        raise NeedsPickle()

    def _decode_tagged(self, data: bytes) -> Any:
        if data[:1] == _ROW:
            return beam.Row(
                **self.decode_from_stream(coder_impl.create_InputStream(data[1:]), False)
            )
        if data[:1] == _NAMED:
            return make_instance(
                *self.decode_from_stream(coder_impl.create_InputStream(data[1:]), False)
            )
        if data[:1] not in _READERS:
            raise NeedsPickle()
        return _READERS[data[:1]](data[1:])

    def encode_to_stream(self, value: Any, stream: Any, nested: bool) -> None:
        raise NotImplementedError("this one only reads")


def _count(stream: Any) -> int:
    """A number of items or bytes to come. Beam's compiled stream does not look where its bytes
    end.
    """
    count = int(stream.read_var_int64())
    if not 0 <= count <= stream.size():
        raise ValueError("it is cut")
    return count


def _read_bytes(stream: Any, nested: bool) -> bytes:
    return bytes(stream.read(_count(stream) if nested else stream.size()))


class _PlainPrimitivesCoder(FastCoder):
    def _create_impl(self) -> Any:
        return _PlainPrimitives()


class NeedsPickle(LedgerError):
    """An element in the staging location is of a class that only pickle can carry."""

    def __init__(self) -> None:
        super().__init__(
            "the elements in the staging location are of a class that only pickle can carry, and "
            "whoever can write there could run code here through it: set allow_pickle=True if you "
            "trust all who can, or use dicts, rows, NamedTuples or dataclasses"
        )


_PICKLES = AnyObjectCoder()
_PRIMITIVES = coders.FastPrimitivesCoder(_PlainValueCoder())
_ROW, _NAMED = b"\x0b", b"\x0c"


def _named(value: Any) -> bytes | None:
    """An instance of a class of named fields; None for all else."""
    fields = fields_of(value)
    if fields is None:
        return None
    return _NAMED + _plain_bytes((type(value).__module__, type(value).__qualname__, fields))


class _Halves:
    """A text with half a character (a lone surrogate), which UTF-8 has no bytes for."""

    __slots__ = ("text",)

    def __init__(self, text: str):
        self.text = text


def with_halves_marked(value: Any) -> Any:
    """The value as a coder made by `plain` can write it, with whatever halves of characters are in
    its texts; it reads it back as it was."""
    kind = type(value)
    if kind is str:
        return value if value.isascii() or clean(value) == value else _Halves(value)
    if kind in (list, tuple, set):
        return kind(map(with_halves_marked, value))
    if kind is dict:
        return {with_halves_marked(key): with_halves_marked(one) for key, one in value.items()}
    return value


def _plain_bytes(value: Any) -> bytes:
    try:
        return bytes(_PRIMITIVES.encode(value))
    except UnicodeEncodeError:
        return bytes(_PRIMITIVES.encode(with_halves_marked(value)))


def _instant(value: datetime.datetime) -> bytes | None:
    """The moment as text; None where its zone is one that the text doesn't name exactly."""
    if value.tzinfo is not None and value.tzinfo is not datetime.UTC:
        return None
    return b"\x03" + bytes([value.fold]) + value.replace(fold=0).isoformat().encode()


_WRITERS: dict[type, Callable[[Any], bytes | None]] = {
    # In hexadecimal: Python limits the decimal digits it reads.
    int: lambda value: b"\x01" + format(value, "x").encode(),
    Decimal: lambda value: b"\x02" + str(value).encode(),
    datetime.datetime: _instant,
    datetime.date: lambda value: b"\x04" + value.isoformat().encode(),
    datetime.time: lambda value: (
        None if value.tzinfo or value.fold else b"\x05" + value.isoformat().encode()
    ),
    datetime.timedelta: lambda value: (
        b"\x06" + f"{value.days} {value.seconds} {value.microseconds}".encode()
    ),
    uuid.UUID: lambda value: b"\x07" + value.bytes,
    Timestamp: lambda value: b"\x08" + str(value.micros).encode(),
    _Halves: lambda value: b"\x0e" + value.text.encode("utf-8", "surrogatepass"),
}

_READERS: dict[bytes, Callable[[bytes], Any]] = {
    b"\x01": lambda data: int(data, 16),
    b"\x02": lambda data: Decimal(data.decode()),
    b"\x03": lambda data: datetime.datetime.fromisoformat(data[1:].decode()).replace(fold=data[0]),
    b"\x04": lambda data: datetime.date.fromisoformat(data.decode()),
    b"\x05": lambda data: datetime.time.fromisoformat(data.decode()),
    b"\x06": lambda data: datetime.timedelta(*map(int, data.split())),
    b"\x07": lambda data: uuid.UUID(bytes=data),
    b"\x08": lambda data: Timestamp(micros=int(data)),
    b"\x0e": lambda data: data.decode("utf-8", "surrogatepass"),
}
