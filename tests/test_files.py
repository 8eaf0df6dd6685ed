"""Files in, files out: formats, order, exactness, and what is never done to a file."""

from __future__ import annotations

import csv
import errno
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from beam_llm.cli.files.parquet_writer import arrow_type
from beam_llm.cli.files.records import Answer, DataError, digest_of
from beam_llm.cli.files.sources import find_sources, format_of, read_rows
from beam_llm.cli.files.survey import survey
from beam_llm.cli.files.target import Target, refuse_overwriting
from beam_llm.cli.files.writers import write_rows
from beam_llm.cli.retry import prior_answers
from beam_llm.cli.spool import Spool, SpoolFile, folder_for
from beam_llm.cli.spool_index import SpoolIndex
from beam_llm.cli.stored import StoredAnswer
from beam_llm.errors import LLMError, UsageError

OPINION = {
    "type": "object",
    "properties": {"mood": {"enum": ["good", "bad"]}, "score": {"type": "number"}},
    "required": ["mood", "score"],
    "additionalProperties": False,
}


def write(path: Path, text: str) -> str:
    path.write_text(text, encoding="utf-8")
    return str(path)


def through(
    inputs: list[str], output: Path, answers: list[Answer], schema: object = OPINION
) -> None:
    """Reads the inputs and writes them with the answers, as `predict` does."""
    sources = find_sources(inputs)
    found = survey(sources)
    target = Target(str(output), replaces=True)
    write_rows(
        target, sources, found.columns, found.digests, "answer", schema, lambda: iter(answers)
    )  # type: ignore[arg-type]


GOOD = Answer({"mood": "good", "score": 0.5}, None)
BAD = Answer(None, "refused: no")


def test_a_json_line_comes_back_byte_for_byte_with_its_answer_behind(tmp_path: Path) -> None:
    line = '{"id": 12345678901234567890123, "t" : "caf\\u00e9\u2028\\n", "x": 1.0e2, "n": null}'
    source = write(tmp_path / "in.jsonl", line + "\n")
    through([source], tmp_path / "out.jsonl", [GOOD])
    assert (tmp_path / "out.jsonl").read_text(encoding="utf-8") == line[
        :-1
    ] + ', "answer": {"mood":"good","score":0.5}, "answer_error": null}\n'


def test_json_lines_are_split_on_newlines_only_and_blank_ones_are_skipped(tmp_path: Path) -> None:
    source = write(tmp_path / "in.jsonl", '\ufeff{"a": "x\u2028y"}\r\n\n  \n{"a": 2}')
    rows = list(read_rows(find_sources([source])[0]))
    assert [(row.line, row.fields) for row in rows] == [(1, {"a": "x\u2028y"}), (4, {"a": 2})]


def test_an_empty_object_is_a_record_too(tmp_path: Path) -> None:
    through([write(tmp_path / "in.jsonl", "{}\n")], tmp_path / "out.jsonl", [BAD])
    assert orjson.loads((tmp_path / "out.jsonl").read_bytes()) == {
        "answer": None,
        "answer_error": "refused: no",
    }


def test_csv_in_and_out_keeps_quotes_newlines_and_commas(tmp_path: Path) -> None:
    source = write(tmp_path / "in.csv", 'id,text\n1,"a, ""b""\nc"\n2,\n')
    through([source], tmp_path / "out.csv", [GOOD, BAD])
    with open(tmp_path / "out.csv", newline="", encoding="utf-8") as file:
        assert list(csv.DictReader(file)) == [
            {
                "id": "1",
                "text": 'a, "b"\nc',
                "answer": '{"mood":"good","score":0.5}',
                "answer_error": "",
            },
            {"id": "2", "text": "", "answer": "", "answer_error": "refused: no"},
        ]


@pytest.mark.parametrize("end", ["\r", "\n", "\r\n"], ids=repr)
def test_a_cell_of_several_lines_comes_back_equal_whatever_ends_them(
    tmp_path: Path, end: str
) -> None:
    cell = f"line one{end}line two"
    (tmp_path / "in.csv").write_bytes(f'id,text\n1,"{cell}"\n'.encode())
    through(
        [str(tmp_path / "in.csv")], tmp_path / "out.csv", [Answer(cell, cell)], {"type": "string"}
    )
    with open(tmp_path / "out.csv", newline="", encoding="utf-8") as file:
        assert list(csv.reader(file)) == [
            ["id", "text", "answer", "answer_error"],
            ["1", cell, cell, cell],
        ]
    assert (tmp_path / "out.csv").read_bytes().startswith(b"id,text,answer,answer_error\n1,")


def test_a_csv_of_several_json_lines_has_every_field_as_a_column(tmp_path: Path) -> None:
    source = write(tmp_path / "in.jsonl", '{"a": true}\n{"b": {"c": [1]}}\n')
    through(
        [source], tmp_path / "out.csv", [Answer("x", None), Answer(1.5, None)], {"type": "string"}
    )
    assert (
        tmp_path / "out.csv"
    ).read_text() == 'a,b,answer,answer_error\ntrue,,x,\n,"{""c"":[1]}",1.5,\n'


def test_parquet_keeps_its_columns_types_and_the_answer_is_a_struct(tmp_path: Path) -> None:
    table = pa.table(
        {
            "id": pa.array([1, None], pa.int16()),
            "at": pa.array([0, 1], pa.timestamp("ms", "UTC")),
            "text": ["a", "b"],
        }
    )
    pq.write_table(table, tmp_path / "in.parquet")
    through([str(tmp_path / "in.parquet")], tmp_path / "out.parquet", [GOOD, BAD])
    written = pq.read_table(tmp_path / "out.parquet")
    assert written.select(["id", "at", "text"]).equals(table)
    assert written.schema.field("answer").type == pa.struct(
        [("mood", pa.string()), ("score", pa.float64())]
    )
    assert written["answer"].to_pylist() == [GOOD.value, None]
    assert written["answer_error"].to_pylist() == [None, "refused: no"]


def test_parquet_from_json_lines_finds_column_types_and_writes_the_rest_as_json(
    tmp_path: Path,
) -> None:
    source = write(
        tmp_path / "in.jsonl",
        '{"i": 1, "f": 1, "m": 1, "o": {"a": 1}}\n{"i": null, "f": 2.5, "m": "x"}\n',
    )
    through([source], tmp_path / "out.parquet", [GOOD, BAD])
    written = pq.read_table(tmp_path / "out.parquet")
    assert {name: str(written.schema.field(name).type) for name in "ifmo"} == {
        "i": "int64",
        "f": "double",
        "m": "string",
        "o": "string",
    }
    assert written["m"].to_pylist() == ["1", "x"]
    assert written["o"].to_pylist() == ['{"a":1}', None]


BIG, BEYOND_FLOAT = 2**64 - 1, 2**53 + 1


@pytest.mark.parametrize(
    ("values", "kind", "written"),
    [
        pytest.param([-(2**63), 2**63 - 1], "int64", None, id="64 bits"),
        pytest.param([BIG, 0, None], "uint64", None, id="unsigned 64 bits"),
        pytest.param([BIG, -1], "string", [str(BIG), "-1"], id="both"),
        pytest.param([2**53, 1.5], "double", None, id="exact as fractions"),
        pytest.param(
            [BEYOND_FLOAT, 1.5], "string", [str(BEYOND_FLOAT), "1.5"], id="inexact as fractions"
        ),
        pytest.param(
            [-BEYOND_FLOAT, 1.5], "string", [str(-BEYOND_FLOAT), "1.5"], id="negative and inexact"
        ),
        pytest.param([BIG, "x", True], "string", [str(BIG), "x", "true"], id="beside text"),
        pytest.param([[BIG], {"a": -1}], "string", [f"[{BIG}]", '{"a":-1}'], id="nested"),
    ],
)
def test_a_parquet_column_holds_every_value_of_its_field_exactly(
    tmp_path: Path, values: list[object], kind: str, written: list[str] | None
) -> None:
    source = write(
        tmp_path / "in.jsonl",
        "".join(f"{orjson.dumps({'v': value}).decode()}\n" for value in values),
    )
    through([source], tmp_path / "out.parquet", [GOOD] * len(values))
    column = pq.read_table(tmp_path / "out.parquet")["v"]
    assert (str(column.type), column.to_pylist()) == (kind, written or values)


def test_a_column_that_only_some_parquet_files_have_is_empty_in_the_others(tmp_path: Path) -> None:
    pq.write_table(
        pa.table([[1]], pa.schema([pa.field("id", pa.int64(), nullable=False)])),
        tmp_path / "a.parquet",
    )
    pq.write_table(pa.table({"text": ["b"]}), tmp_path / "b.parquet")
    through([str(tmp_path / "*.parquet")], tmp_path / "out.parquet", [GOOD, BAD])
    assert pq.read_table(tmp_path / "out.parquet", columns=["id", "text"]).to_pylist() == [
        {"id": 1, "text": None},
        {"id": None, "text": "b"},
    ]


@pytest.mark.parametrize(
    ("one", "other", "written"),
    [
        pytest.param(
            pa.array([{"a": 1}]),
            pa.array([{"a": 1, "b": b"x"}]),
            [{"a": 1, "b": None}, {"a": 1, "b": b"x"}],
            id="a struct with a field more",
        ),
        pytest.param(
            pa.array([[{"a": 1}]]),
            pa.array([[{"b": 2}]]),
            [[{"a": 1, "b": None}], [{"a": None, "b": 2}]],
            id="in lists",
        ),
        pytest.param(
            pa.array([{"a": 1}], pa.struct([pa.field("a", pa.int64(), nullable=False)])),
            pa.array([{"b": 2}]),
            ['{"a":1}', '{"b":2}'],
            id="a struct without a field that can't be NULL",
        ),
        pytest.param(
            pa.array([[1.0, 2.0]], pa.list_(pa.float32(), 2)),
            None,
            [[1.0, 2.0], None],
            id="a list of a fixed size, and none",
        ),
    ],
)
def test_parquet_files_of_nearly_one_schema_have_their_rows_in_one_which_a_retry_knows_again(
    tmp_path: Path, one: pa.Array, other: pa.Array | None, written: list[object]
) -> None:
    pq.write_table(pa.table({"id": [1], "x": one}), tmp_path / "a.parquet")
    columns = {} if other is None else {"x": other}
    pq.write_table(pa.table({"id": [2], **columns}), tmp_path / "b.parquet")
    inputs, output = [str(tmp_path / "*.parquet")], tmp_path / "out" / "out.parquet"
    output.parent.mkdir()
    through(inputs, output, [GOOD, BAD])
    assert pq.read_table(output)["x"].to_pylist() == written
    sources = find_sources(inputs)
    prior = prior_answers(
        Target(str(output)), "answer", sources, survey(sources), holds_doubtful=False
    )
    prior.close()
    assert (prior.gone, prior.new) == (0, 0)


@pytest.mark.parametrize(
    ("schema", "value", "text"),
    [
        pytest.param(
            {"type": "number"}, 2**60 + 1, str(2**60 + 1), id="number beyond a fraction's"
        ),
        pytest.param({"type": "integer"}, 1e19, "1e+19", id="whole number beyond 64 bits"),
        pytest.param(
            {"type": "object", "properties": {"u": {"enum": ["a", 1]}}},
            {"u": 1},
            '{"u":1}',
            id="field of several types",
        ),
        pytest.param({"type": "object", "properties": {}}, {}, "{}", id="object without fields"),
        pytest.param(
            {
                "$ref": "#/$defs/N",
                "$defs": {"N": {"type": "array", "items": {"$ref": "#/$defs/N"}}},
            },
            [[]],
            "[[]]",
            id="tree",
        ),
    ],
)
def test_an_answer_that_its_column_type_cannot_hold_makes_the_column_json_text(
    tmp_path: Path, schema: dict[str, object], value: object, text: str
) -> None:
    through(
        [write(tmp_path / "in.jsonl", "{}\n{}\n")],
        tmp_path / "out.parquet",
        [Answer(value, None), BAD],
        schema,
    )
    assert pq.read_table(tmp_path / "out.parquet")["answer"].to_pylist() == [text, None]


def test_a_csv_file_of_a_header_only_keeps_its_columns(tmp_path: Path) -> None:
    source = write(tmp_path / "in.csv", "id,text\n")
    through([source], tmp_path / "out.csv", [])
    through([source], tmp_path / "out.parquet", [])
    assert (tmp_path / "out.csv").read_text() == "id,text,answer,answer_error\n"
    assert pq.read_schema(tmp_path / "out.parquet").names == [
        "id",
        "text",
        "answer",
        "answer_error",
    ]


def test_a_parquet_file_without_rows_keeps_its_columns_and_their_types(tmp_path: Path) -> None:
    schema = pa.schema([("id", pa.int16()), ("at", pa.timestamp("ms", "UTC"))])
    pq.write_table(schema.empty_table(), tmp_path / "in.parquet")
    through([str(tmp_path / "in.parquet")], tmp_path / "out.parquet", [])
    through([str(tmp_path / "in.parquet")], tmp_path / "out.csv", [])
    written = pq.read_schema(tmp_path / "out.parquet")
    assert [written.field(name) for name in schema.names] == list(schema)
    assert written.names == ["id", "at", "answer", "answer_error"]
    assert (tmp_path / "out.csv").read_text() == "id,at,answer,answer_error\n"


def test_an_empty_file_beside_a_full_one_adds_its_columns(tmp_path: Path) -> None:
    full, empty = write(tmp_path / "a.jsonl", '{"id": 1}\n'), write(tmp_path / "b.csv", "text,id\n")
    through([full, empty], tmp_path / "out.csv", [BAD])
    assert (tmp_path / "out.csv").read_text() == "id,text,answer,answer_error\n1,,,refused: no\n"


def test_an_answer_without_a_column_type_is_json_text_in_parquet(tmp_path: Path) -> None:
    schema = {
        "type": "object",
        "properties": {"u": {"anyOf": [{"type": "string"}, {"type": "integer"}]}},
    }
    through(
        [write(tmp_path / "in.jsonl", "{}\n")],
        tmp_path / "out.parquet",
        [Answer({"u": 3}, None)],
        schema,
    )
    assert pq.read_table(tmp_path / "out.parquet")["answer"].to_pylist() == ['{"u":3}']


@pytest.mark.parametrize(
    ("schema", "expected"),
    [
        pytest.param({"type": "integer"}, pa.int64(), id="integer"),
        pytest.param({"enum": ["a", "b"]}, pa.string(), id="enum"),
        pytest.param(
            {"type": "array", "items": {"type": "number"}}, pa.list_(pa.float64()), id="list"
        ),
        pytest.param({"anyOf": [{"type": "integer"}, {"type": "null"}]}, pa.int64(), id="optional"),
        pytest.param(
            {"$ref": "#/$defs/A", "$defs": {"A": {"type": "boolean"}}}, pa.bool_(), id="reference"
        ),
        pytest.param({"type": "object"}, pa.string(), id="free object"),
        pytest.param({}, pa.string(), id="anything"),
    ],
)
def test_a_json_schema_has_a_column_type(schema: dict[str, object], expected: pa.DataType) -> None:
    assert arrow_type(schema) == expected


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        pytest.param("in.jsonl", '{"a": 1}\n{"a": \n', "in.jsonl:2: not JSON", id="cut line"),
        pytest.param("in.jsonl", '{"a": 1}\n\n[1]\n', "in.jsonl:3: not a JSON object", id="array"),
        pytest.param(
            "in.csv",
            "a,b\n1,2\n3\n",
            "in.csv:3: 1 value, but the header names 2 columns",
            id="short csv row",
        ),
        pytest.param(
            "in.csv", "a,a\n1,2\n", "in.csv:1: the header names a column twice", id="column twice"
        ),
        pytest.param("in.parquet", "PAR", "in.parquet: not a parquet file", id="no parquet"),
        pytest.param(
            "in.jsonl",
            '{"a": 1}\n{"answer": 1}\n',
            "in.jsonl:2: the record has a field 'answer' already",
            id="taken name",
        ),
        pytest.param(
            "in.csv",
            "a,answer\n",
            "in.csv: the file has a field 'answer' already",
            id="taken name in a header",
        ),
    ],
)
def test_a_file_that_cannot_be_read_says_where(
    tmp_path: Path, name: str, content: str, message: str
) -> None:
    source = write(tmp_path / name, content)
    with pytest.raises(DataError) as caught:
        survey(find_sources([source]), ["answer", "answer_error"])
    assert message in str(caught.value)


def test_globs_are_sorted_and_a_file_named_twice_is_read_once(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a.jsonl", "c.csv"):
        write(tmp_path / name, "")
    found = find_sources(
        [str(tmp_path / "c.csv"), str(tmp_path / "*.jsonl"), str(tmp_path / "a.jsonl")]
    )
    assert [Path(source.path).name for source in found] == ["c.csv", "a.jsonl", "b.jsonl"]


@pytest.mark.parametrize("pattern", ["nosuch.jsonl", "*.nosuch", "."])
def test_a_pattern_without_files_is_an_error(pattern: str) -> None:
    with pytest.raises(UsageError, match="no file|folder"):
        find_sources([pattern])


def test_a_format_is_told_by_name_or_given() -> None:
    assert (format_of("x.NDJSON"), format_of("-"), format_of("x.txt", "csv")) == (
        "jsonl",
        "jsonl",
        "csv",
    )
    with pytest.raises(UsageError, match="can't tell the format"):
        format_of("x.txt")


def test_an_input_is_never_overwritten_not_even_by_another_name(tmp_path: Path) -> None:
    source = write(tmp_path / "in.jsonl", "{}\n")
    os.symlink(source, tmp_path / "link.jsonl")
    with pytest.raises(UsageError, match="one of the inputs"):
        refuse_overwriting(
            Target(str(tmp_path / "link.jsonl"), replaces=True), find_sources([source])
        )


@pytest.mark.parametrize(
    ("fault", "raised", "words"),
    [
        pytest.param(RuntimeError("a fault"), RuntimeError, "a fault", id="any fault"),
        pytest.param(
            OSError(errno.ENOSPC, "No space left on device"),
            LLMError,
            r"out.jsonl' can't be written: No space left on device; all answers are kept",
            id="a full disk",
        ),
    ],
)
def test_a_write_that_fails_leaves_the_old_file_and_nothing_beside_it(
    tmp_path: Path, fault: Exception, raised: type[Exception], words: str
) -> None:
    source, output = write(tmp_path / "in.jsonl", "{}\n{}\n"), tmp_path / "out.jsonl"
    output.write_text("old")

    def failing() -> Iterator[Answer]:
        yield GOOD
        raise fault

    sources = find_sources([source])
    with pytest.raises(raised, match=words):
        write_rows(
            Target(str(output), replaces=True),
            sources,
            {},
            survey(sources).digests,
            "answer",
            OPINION,
            failing,
        )
    assert output.read_text() == "old"
    assert sorted(os.listdir(tmp_path)) == ["in.jsonl", "out.jsonl"]


# --- the spool

RECORDS = [{"id": number} for number in range(3)]


def digests(records: Sequence[dict[str, object]]) -> bytes:
    return b"".join(map(digest_of, records))


def kept(
    ordinal: int, value: object, error: str | None = None, record: dict[str, object] | None = None
) -> StoredAnswer:
    kind = error and error.partition(":")[0]
    return StoredAnswer(
        ordinal, value, kind, error, digest=digest_of(record or RECORDS[ordinal]).hex()
    )


def spooled(folder: str, *answers: StoredAnswer, definition: str = "") -> None:
    os.makedirs(folder, exist_ok=True)
    file = SpoolFile(folder, definition)
    for one in answers:
        file.add(one)
    file.close()


@contextmanager
def opened(folder: str, records: Sequence[dict[str, object]], **how: Any) -> Iterator[SpoolIndex]:
    spool = Spool(folder)
    with spool.answers(digests(records), **how) as index:
        yield index
    spool.close()


def test_answers_come_back_by_record_whatever_their_order(tmp_path: Path) -> None:
    folder = str(tmp_path / "spool")
    whole = StoredAnswer(0, {"a": 1}, None, None, 5, 6, 1, 0.5, True, digest_of(RECORDS[0]).hex())
    spooled(folder, kept(2, "c"), whole)
    spooled(folder, kept(1, None, "missing: x"))
    with opened(folder, RECORDS) as index:
        assert index.missing() == 0
        found = list(index.answers())
    assert found[0] == whole
    assert [(one.value, one.kind) for one in found] == [
        ({"a": 1}, None),
        (None, "missing"),
        ("c", None),
    ]


def test_an_error_never_replaces_an_answer_and_is_asked_again(tmp_path: Path) -> None:
    folder = str(tmp_path / "spool")
    spooled(folder, kept(0, "good"), kept(0, None, "missing: x"), kept(1, None, "missing: x"))
    with opened(folder, RECORDS[:2]) as index:
        assert index.done() == b"\1\0"
        assert [one.value for one in index.answers()] == ["good", None]


def test_a_line_cut_by_a_kill_is_no_answer(tmp_path: Path) -> None:
    folder = str(tmp_path / "spool")
    spooled(folder, kept(0, "a"), kept(1, "b"))
    path = next(Path(folder).glob("answers-*"))
    path.write_bytes(path.read_bytes()[:-4])
    with opened(folder, RECORDS[:2]) as index:
        assert (index.done(), index.missing()) == (b"\1\0", 1)


def test_two_of_the_same_command_at_once_are_refused(tmp_path: Path) -> None:
    first = Spool(str(tmp_path / "spool"))
    with pytest.raises(LLMError, match="running already"):
        Spool(str(tmp_path / "spool"))
    first.close()
    Spool(str(tmp_path / "spool")).remove()
    assert not (tmp_path / "spool").exists()


def test_another_question_or_input_has_another_folder() -> None:
    folders = {
        folder_for("out.jsonl", question, inputs)
        for question, inputs in [(b"q", ["a"]), (b"q", ["b"]), (b"r", ["a"]), (b"q", ["a", "b"])]
    }
    assert len(folders) == 4
    assert folder_for("out.jsonl", b"q", ["a"]) == folder_for("out.jsonl", b"q", ["a"])
