"""What lies in a staging location is read without running anything of it, and elements come back as
they were.
"""

from __future__ import annotations

import datetime
import os
import pickle
import sys
import typing
import uuid
from decimal import Decimal
from pathlib import Path
from typing import Any

import apache_beam as beam
import orjson
import pytest
from apache_beam import coders
from apache_beam.coders.row_coder import RowCoder
from apache_beam.internal import pickler
from apache_beam.transforms.window import FixedWindows, GlobalWindows, IntervalWindow, WindowedValue
from apache_beam.typehints import typehints
from apache_beam.typehints.row_type import RowTypeConstraint
from apache_beam.utils.timestamp import Timestamp
from hypothesis import given
from hypothesis import strategies as st

from beam_llm.errors import LedgerError
from beam_llm.stores.local import LocalStore
from beam_llm.transforms.coders import PredictionCoder
from beam_llm.transforms.envelopes import EnvelopeCoder, EnvelopeReader
from beam_llm.transforms.named_classes import fields_of, make_instance
from beam_llm.transforms.plain_coders import NeedsPickle, build_coder, describe_coder, plain
from beam_llm.values import Prediction
from tests.element_classes import Named, Plain, Typed

FIXED, GLOBAL = FixedWindows(30).get_window_coder(), GlobalWindows().get_window_coder()
ANY = coders.registry.get_coder(typing.Any)
SUMMER = datetime.timezone(datetime.timedelta(hours=2))


def arrived(element: Any) -> WindowedValue:
    return WindowedValue(element, Timestamp(25), (IntervalWindow(0, 30),))


def crossed(folder: Path, coder: coders.Coder, element: Any, **options: Any) -> Any:
    """The element after its way through a staging location into another pipeline."""
    store, envelopes = LocalStore(str(folder)), EnvelopeCoder(coder, FIXED)
    envelopes.save(store)
    envelope = envelopes.open(store).encode(arrived(element))
    return EnvelopeReader(store, **options).decode(envelope).value


PLAIN = {
    "text": (coders.registry.get_coder(str), "ä\u2028"),
    "bytes": (coders.registry.get_coder(bytes), b"\0\xff"),
    "number": (coders.registry.get_coder(int), -7),
    "float": (coders.registry.get_coder(float), 0.1),
    "pair": (
        coders.registry.get_coder(typehints.Tuple[str, typing.Any]),
        ("k", {"a": [1, (2, None)]}),
    ),
    "dict": (ANY, {"a": 1, "b": [True, None, 2.5, b"x"], "c": {"d": {1, 2}}}),
    "huge number": (ANY, {"n": -(2**200)}),
    "decimal": (ANY, {"price": Decimal("12.340")}),
    "moment": (ANY, datetime.datetime(2026, 3, 29, 2, 30, 1, 5)),
    "moment in UTC": (ANY, [datetime.datetime(2026, 3, 29, tzinfo=datetime.UTC)]),
    "later of two equal hours": (ANY, datetime.datetime(2026, 10, 25, 2, 30, fold=1)),
    "day, hour, span": (
        ANY,
        (datetime.date(2026, 1, 1), datetime.time(1, 2, 3), datetime.timedelta(-1, 5, 7)),
    ),
    "ids": (ANY, [uuid.UUID(int=7), Timestamp(micros=3)]),
    "row of any": (ANY, beam.Row(a=1, b={"c": Decimal(1)})),
    "nested row": (ANY, {"r": [beam.Row(x="y")]}),
}


@pytest.mark.parametrize(("coder", "element"), PLAIN.values(), ids=PLAIN.keys())
def test_plain_elements_cross_without_pickle_and_as_they_were(
    tmp_path: Path, coder: coders.Coder, element: Any
) -> None:
    found = crossed(tmp_path, coder, element)
    assert (found, type(found)) == (element, type(element))
    assert b"pickle" not in b"".join(file.read_bytes() for file in (tmp_path / "coders").iterdir())


HALF = "half \ud83d"


@pytest.mark.parametrize(
    ("declared", "element"),
    [
        (str, HALF),
        (typing.Any, {HALF: [HALF, ("x", {HALF}), beam.Row(t=HALF)], "n": 1}),
        (typing.Any, Named(1, HALF)),
        (typehints.Tuple[str, typing.Any], ("k", {"t": HALF})),
        (int, 2**70),
        (int, "no number"),
        (typing.Mapping[str, int], {"a": None}),
    ],
    ids=["text", "dict", "named", "pair", "huge number", "another type", "another value"],
)
def test_an_element_that_its_own_coder_can_not_write_crosses_as_well(
    tmp_path: Path, declared: Any, element: Any
) -> None:
    coder = coders.registry.get_coder(declared)
    for options in ({}, {"own": EnvelopeCoder(coder, FIXED)}):
        found = crossed(tmp_path, coder, element, **options)
        assert (found, type(found)) == (element, type(element))


def test_a_prediction_of_an_element_with_half_a_character_crosses_a_shuffle() -> None:
    prediction = Prediction({"t": HALF}, "fine")
    assert PredictionCoder().decode(PredictionCoder().encode(prediction)) == prediction


def test_the_later_of_two_equal_hours_stays_the_later(tmp_path: Path) -> None:
    assert crossed(tmp_path, ANY, datetime.datetime(2026, 10, 25, 2, 30, fold=1)).fold == 1


def test_rows_with_a_schema_cross_by_their_schema(tmp_path: Path) -> None:
    fields = [
        ("name", str),
        ("at", Timestamp),
        ("tags", typing.Sequence[str]),
        ("by", typing.Mapping[str, int]),
        ("no", typing.Optional[int]),
    ]
    coder = RowCoder.from_type_hint(RowTypeConstraint.from_fields(fields), None)
    row = beam.Row(name="a", at=Timestamp(3), tags=["x"], by={"k": 1}, no=None)
    assert crossed(tmp_path, coder, row)._asdict() == row.as_dict()


SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary()
    | st.decimals(allow_nan=False)
)
VALUES = st.recursive(
    SCALARS | st.dates() | st.datetimes() | st.timedeltas() | st.uuids(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=5), inner, max_size=3)
        | st.tuples(inner, inner)
    ),
    max_leaves=8,
)


@given(VALUES)
def test_whatever_is_plain_is_read_back_the_same_by_its_own_run_and_by_others(value: Any) -> None:
    data = plain(ANY).encode(value)
    assert build_coder("primitives").decode(data) == value
    assert plain(ANY).decode(data) == value


class Boom:
    """Runs code where it is unpickled."""

    def __init__(self, proof: Path):
        self.proof = str(proof)

    def __reduce__(self) -> Any:
        return os.mkdir, (self.proof,)


def hostile_documents(proof: Path) -> dict[str, bytes]:
    boom = pickler.dumps(Boom(proof))
    row_of_callable = RowCoder.from_type_hint(
        RowTypeConstraint.from_fields([("f", typing.Any)]), None
    )
    import base64

    schema = base64.b64encode(row_of_callable.schema.SerializeToString()).decode()
    return {
        "a bare pickle": boom,
        "a pickle that says so": orjson.dumps(
            {"format": 1, "pickled": base64.b64encode(boom).decode()}
        ),
        "a row with a field of anything": orjson.dumps(
            {"format": 1, "element": ["row", schema], "window": "global window"}
        ),
        "a coder by name": orjson.dumps(
            {"format": 1, "element": ["apache_beam.coders.PickleCoder"], "window": "global window"}
        ),
        "no object": b"[]",
        "no window": orjson.dumps({"format": 1, "element": "str"}),
        "deep": b'{"format":1,"window":"global window","element":'
        + b'["list",' * 200
        + b'"str"'
        + b"]" * 200
        + b"}",
    }


@pytest.mark.parametrize("kind", hostile_documents(Path("x")))
def test_a_coder_in_staging_is_a_description_or_an_error_and_runs_nothing(
    tmp_path: Path, kind: str
) -> None:
    import hashlib

    proof = tmp_path / "proof"
    document = hostile_documents(proof)[kind]
    store, name = LocalStore(str(tmp_path / "staging")), hashlib.sha256(document).digest()[:8]
    store.put(f"coders/{name.hex()}", document)
    with pytest.raises(LedgerError):
        EnvelopeReader(store).decode(name + b"\x80")
    assert not proof.exists()


@pytest.mark.parametrize(
    "dumps", [lambda boom: pickle.dumps(boom), pickler.dumps], ids=["pickle", "beam's"]
)
def test_a_pickle_among_plain_elements_is_refused_with_the_way_on(
    tmp_path: Path, dumps: Any
) -> None:
    proof = tmp_path / "proof"
    store, envelopes = LocalStore(str(tmp_path / "staging")), EnvelopeCoder(ANY, FIXED)
    envelopes.save(store)
    whole = envelopes.open().encode(arrived({"a": 1}))
    data = coders.FastPrimitivesCoder(_Raw()).encode({"a": _Payload(dumps(Boom(proof)))})
    evil = whole[: -len(ANY.encode({"a": 1}))] + data
    with pytest.raises(NeedsPickle, match="allow_pickle=True"):
        EnvelopeReader(store).decode(evil)
    assert not proof.exists()


class _Payload:
    def __init__(self, data: bytes):
        self.data = data


class _Raw(coders.Coder):
    def encode(self, value: Any) -> bytes:
        return bytes(value.data)


@pytest.mark.parametrize("tag", range(100, 106))
def test_beams_own_pickled_types_are_refused(tag: int) -> None:
    with pytest.raises(NeedsPickle):
        build_coder("primitives").decode(bytes([tag]) + b"\x03abc\x00")


def test_elements_of_a_users_class_are_read_by_their_own_run_and_by_others_only_where_allowed(
    tmp_path: Path,
) -> None:
    ticket = Ticket(1)
    with pytest.raises(NeedsPickle):
        crossed(tmp_path, ANY, ticket)
    assert crossed(tmp_path, ANY, ticket, allow_pickle=True) == ticket
    assert crossed(tmp_path, ANY, ticket, own=EnvelopeCoder(ANY, FIXED)) == ticket


class Ticket:
    """What only pickle can carry: nothing says which attributes make it up."""

    def __init__(self, number: int):
        self.number = number

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Ticket) and self.number == other.number

    __hash__ = None  # type: ignore[assignment]


@pytest.mark.parametrize(
    "element", [Named(1, "a"), Plain(2, "b"), Typed(id=3, text="c"), ("k", {"x": [Named(4, "d")]})]
)
def test_instances_of_named_fields_cross_without_pickle(tmp_path: Path, element: Any) -> None:
    for reader in ({}, {"own": EnvelopeCoder(ANY, FIXED)}, {"allow_pickle": True}):
        found = crossed(tmp_path, ANY, element, **reader)
        assert (found, type(found)) == (element, type(element))


def test_an_instance_of_a_class_that_is_not_loaded_comes_back_as_a_row_and_loads_nothing() -> None:
    row = make_instance("antigravity", "Anything", {"id": 1, "text": "a"})
    assert row == beam.Row(id=1, text="a")
    assert "antigravity" not in sys.modules


@pytest.mark.parametrize(
    "name",
    [
        ("os", "system"),
        ("subprocess", "Popen"),
        ("builtins", "int"),
        ("tests.element_classes", "Named"),
    ],
)
def test_a_name_of_anything_but_a_class_of_just_these_fields_makes_a_row(
    name: tuple[str, str],
) -> None:
    assert make_instance(*name, {"args": "x"}) == beam.Row(args="x")


def test_an_instance_with_more_than_its_fields_is_not_taken_apart() -> None:
    odd = Plain(1, "a")
    object.__setattr__(odd, "more", 2)
    assert fields_of(odd) is None
    assert fields_of(Ticket(1)) is None


class OddWindows(coders.Coder):
    """A user's own window coder."""

    def encode(self, value: Any) -> bytes:
        return FIXED.encode(value)

    def decode(self, encoded: bytes) -> Any:
        return FIXED.decode(encoded)

    def is_deterministic(self) -> bool:
        return True


def test_a_users_own_coder_needs_pickle_for_others_alone(tmp_path: Path) -> None:
    store, envelopes = LocalStore(str(tmp_path)), EnvelopeCoder(ANY, OddWindows())
    envelopes.save(store)
    data = envelopes.open().encode(arrived("a"))
    with pytest.raises(NeedsPickle):
        EnvelopeReader(store).decode(data)
    for reader in (
        EnvelopeReader(store, pickle.loads(pickle.dumps(envelopes))),
        EnvelopeReader(store, allow_pickle=True),
    ):
        assert reader.decode(data) == arrived("a")


def test_a_description_is_the_same_in_every_process() -> None:
    assert describe_coder(coders.registry.get_coder(typehints.Tuple[str, typing.Any])) == [
        "tuple",
        "str",
        "primitives",
    ]
    assert (
        EnvelopeCoder(ANY, GLOBAL).name == EnvelopeCoder(coders.FastPrimitivesCoder(), GLOBAL).name
    )


def test_dicts_of_a_declared_type_need_no_pickle():
    coder = plain(coders.registry.get_coder(typehints.Tuple[str, typehints.Dict[str, typing.Any]]))
    description = describe_coder(coder)
    assert description == ["tuple", "str", ["map", "str", "primitives"]]
    element = ("7", {"text": "a", "n": 2**70, "day": datetime.date(2026, 1, 2)})
    assert build_coder(description).decode(coder.encode(element)) == element
