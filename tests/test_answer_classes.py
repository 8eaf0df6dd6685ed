"""Answers in files and their classes: aliases and computed fields whole in every format, answers of
a mended class checked anew.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import sys
import typing
from pathlib import Path
from types import ModuleType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pydantic
import pytest

from beam_llm.cli.definitions import definition_of, output_schema, rechecker
from beam_llm.cli.files.records import Answer, digest_of
from beam_llm.cli.files.sources import find_sources
from beam_llm.cli.files.survey import Survey, survey
from beam_llm.cli.files.target import Target
from beam_llm.cli.files.writers import write_rows
from beam_llm.cli.main import main
from beam_llm.cli.retry import prior_answers
from beam_llm.cli.spool import Spool, SpoolFile
from beam_llm.cli.stored import StoredAnswer
from beam_llm.prompting.output_types import Output
from beam_llm.testing import Emulator, plugin

llm_emulator = plugin.llm_emulator


class Part(pydantic.BaseModel):
    name: str = pydantic.Field(serialization_alias="partName")


class Order(pydantic.BaseModel):
    colour: typing.Literal["red", "blue"] = pydantic.Field(alias="color")
    count: int = pydantic.Field(validation_alias="n", serialization_alias="howMany")
    parts: list[Part]

    @pydantic.computed_field  # type: ignore[prop-decorator]
    @property
    def many(self) -> bool:
        return self.count > 10


class Priced(pydantic.BaseModel):
    amount: float

    @pydantic.field_serializer("amount")
    # Another shape than the schema of what the model is asked for.
    def in_cents(self, value: float) -> dict[str, int]:
        return {"cents": round(value * 100)}


class Loose(pydantic.BaseModel):
    a: int

    @pydantic.model_serializer
    def with_more(self) -> dict[str, Any]:
        return {"a": self.a, "twice": 2 * self.a}


@pytest.mark.parametrize(
    ("kind", "raw", "written"),
    [
        pytest.param(
            Order,
            {"color": "red", "n": 12, "parts": [{"name": "x"}]},
            {"color": "red", "howMany": 12, "parts": [{"partName": "x"}], "many": True},
            id="aliases and computed fields",
        ),
        pytest.param(Priced, {"amount": 1.5}, {"amount": {"cents": 150}}, id="a serializer"),
        pytest.param(Loose, {"a": 2}, {"a": 2, "twice": 4}, id="a serializer that says no type"),
    ],
)
def test_parquet_has_all_that_json_lines_have(
    tmp_path: Path, kind: type, raw: Any, written: Any
) -> None:
    (tmp_path / "in.jsonl").write_text('{"id": 1}\n{"id": 2}\n')
    sources = find_sources([str(tmp_path / "in.jsonl")])
    found: Survey = survey(sources)
    output = Output(kind)
    answers = [Answer(output.dump(output.validate(raw)), None), Answer(None, "missing: it")]
    for name in ("out.jsonl", "out.parquet"):
        target = Target(str(tmp_path / name))
        write_rows(
            target,
            sources,
            found.columns,
            found.digests,
            "answer",
            output_schema(output),
            lambda: iter(answers),
        )
    assert json.loads((tmp_path / "out.jsonl").read_text().splitlines()[0])["answer"] == written
    first, second = pq.read_table(tmp_path / "out.parquet")["answer"].to_pylist()
    assert (json.loads(first) if isinstance(first, str) else first) == written
    assert second is None


def test_a_model_with_aliases_is_a_struct_of_its_written_names(tmp_path: Path) -> None:
    schema = output_schema(Output(Order))
    assert set(schema["properties"]) == {"color", "howMany", "parts", "many"}
    assert isinstance(pa.array([{"color": "red"}]).type, pa.StructType)


# --- classes that were mended

SOURCE = """import pydantic
class Grade(pydantic.BaseModel):
    points: int
    @pydantic.field_serializer("points")
    def shown(self, value): return %s
    @pydantic.field_validator("points")
    @classmethod
    def checked(cls, value):
        if value > %s: raise ValueError("too many")
        return value
"""


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Writes a version of the user's module and imports it as a new process would."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def load(shown: str, most: int = 100) -> ModuleType:
        (tmp_path / "grades.py").write_text(SOURCE % (shown, most))
        sys.modules.pop("grades", None)
        sys.path_importer_cache.clear()
        importlib.invalidate_caches()
        for cached in tmp_path.glob("__pycache__/*"):
            cached.unlink()
        return importlib.import_module("grades")

    yield load
    sys.modules.pop("grades", None)


def test_a_definition_changes_with_its_code_and_with_that_of_its_parts(load: Any) -> None:
    names = {}
    for shown in ("value", "value * 10"):
        grade = load(shown).Grade
        names[shown] = [
            definition_of(kind)
            for kind in (grade, list[grade], dict[str, grade], typing.Optional[grade])
        ]
    assert all(old != new for old, new in zip(*names.values(), strict=True))
    grade = load("value").Grade
    assert definition_of(list[grade]) == names["value"][1]
    assert definition_of(int) == definition_of("enum:a|b")


@pytest.mark.parametrize(
    ("shown", "most", "kept", "now"),
    [
        pytest.param("value", 100, {"points": 7}, {"points": 7}, id="still right"),
        pytest.param("value", 5, {"points": 7}, None, id="refused by the mended validator"),
        pytest.param(
            "value * 10", 100, {"points": 7}, None, id="would be multiplied at each reading"
        ),
        pytest.param("{1: 2}[value]", 100, {"points": 7}, None, id="a serializer that fails"),
        pytest.param(
            "min(value, 5)", 100, {"points": 7}, {"points": 5}, id="comes out the same from then on"
        ),
    ],
)
def test_an_answer_of_an_earlier_class_is_checked_anew(
    tmp_path: Path, load: Any, shown: str, most: int, kept: Any, now: Any
) -> None:
    digest = digest_of({})
    spool = Spool(str(tmp_path / "spool"))
    file = SpoolFile(spool.folder, "earlier")
    file.add(StoredAnswer(0, kept, None, None, digest=digest.hex()))
    file.close()
    check = rechecker(Output(load(shown, most).Grade))
    with spool.answers(digest, "present", check) as index:
        assert index.done() == bytes([now is not None])
        assert index.unfit == (now is None)
        if now is not None:
            assert next(index.answers()).value == now
    # The class it was made with is not asked.
    with spool.answers(digest, "earlier", check) as index:
        assert next(index.answers()).value == kept
    spool.close()


# --- doubt


def test_records_in_doubt_are_not_asked_again_by_a_retry(tmp_path: Path) -> None:
    rows = [
        {"id": 1, "answer": 1, "answer_error": None},
        {"id": 2, "answer": None, "answer_error": "doubtful: a job may exist"},
    ]
    rows.append({"id": 3, "answer": None, "answer_error": "expired: it"})
    (tmp_path / "in.jsonl").write_text(
        "".join(json.dumps({"id": row["id"]}) + "\n" for row in rows)
    )
    (tmp_path / "out.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    sources = find_sources([str(tmp_path / "in.jsonl")])
    target = Target(str(tmp_path / "out.jsonl"))
    for holds, held in ((True, [1]), (False, [])):
        with contextlib.closing(
            prior_answers(target, "answer", sources, survey(sources), holds_doubtful=holds)
        ) as earlier:
            assert earlier.held == held
            assert earlier.changes() == ""


def test_an_attached_output_is_not_overwritten_unless_told_to(
    tmp_path: Path, llm_emulator: Emulator, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in.jsonl").write_text('{"text": "good excellent"}\n')
    question = [
        "--model",
        "openai:gpt-4.1-mini",
        "--prompt",
        "{{ text }}",
        "--staging",
        str(tmp_path / "staging"),
        "--poll-seconds",
        "0.05",
    ]
    out = ["--output", str(tmp_path / "out.jsonl"), "--quiet"]
    assert (
        main(["predict", str(tmp_path / "in.jsonl"), *out, "--mode", "batch_api", *question]) == 0
    )
    assert main(["jobs", "attach", *out, *question]) == 2
    assert "exists already: --force" in capsys.readouterr().err
    assert main(["jobs", "attach", *out, *question, "--force"]) == 0


PROGRAM = """
from __future__ import annotations
import dataclasses, typing, pydantic
import typing_extensions

@dataclasses.dataclass
class Part:
    name: str

@dataclasses.dataclass
class Data:
    parts: list[Part]

class Tuple(typing.NamedTuple):
    parts: list[Part]

class Dict(typing_extensions.TypedDict):
    parts: list[Part]
    note: typing_extensions.NotRequired[str]

class Model(pydantic.BaseModel):
    parts: list[Later]

class Holder(pydantic.BaseModel):
    model: Model

class Later(Part):
    pass
"""


@pytest.mark.parametrize("name", ["Data", "Tuple", "Dict", "Model", "Holder"])
def test_a_class_of_the_main_program_is_whole_on_workers_that_know_no_other_name_of_it(
    name: str, monkeypatch: pytest.MonkeyPatch
):
    with monkeypatch.context() as patch:
        program = ModuleType("__main__")
        patch.setitem(sys.modules, "__main__", program)
        exec(PROGRAM, program.__dict__)
        built = Output(program.__dict__[name])
    assert Output(built.declared).schema == built.schema
