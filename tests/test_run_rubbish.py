"""Whatever stands in a file that `beam-llm run` is given: one clean line, with the place, and no
traceback.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from beam_llm.cli.main import main
from beam_llm.errors import UsageError

PIPELINES = Path(__file__).parent.parent / "pipelines"
BOMB = "\n".join(
    ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    + [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 9)]
    + ["pipeline: {type: chain, transforms: [*a8]}"]
)
FILES = {
    "SQL that isn't text": ("a.sql", b"\xff\xfe\0", "not text in UTF-8"),
    "SQL that never ends": ("a.sql", b"SELECT '" + b"x" * 500_000, r"a\.sql:1:8: a text without"),
    "too large SQL": ("a.sql", b"a" * 1_000_001, "more than 1,000,000 bytes"),
    "a character of nothing": ("a.sql", b"SELECT 1;\0", r"a\.sql:1:10: "),
    "deep SQL": ("a.sql", b"SELECT " + b"(" * 9_000, r"a\.sql:1:\d+: "),
    "a sum without end": ("a.sql", b"SELECT " + b"+".join([b"1"] * 3_000), "too many parts"),
    "YAML that isn't text": ("a.yaml", b"\xff\xfe\0", "not text in UTF-8"),
    "too large YAML": ("a.yaml", b"a" * 1_000_001, "more than 1,000,000 bytes"),
    "YAML of a pipeline that is nothing": ("a.yaml", b"pipeline:\n", "there is no pipeline"),
    "YAML with a character of nothing": ("a.yaml", b"# a\npipeline:\n  a: \0", r"a\.yaml:3: "),
    "aliases of aliases": ("a.yaml", BOMB.encode(), r"a\.yaml:6: .*more than 100,000 values"),
    "an alias of itself": ("a.yaml", b"a: &a [*a]\npipeline: *a", r"a\.yaml:1: .*for itself"),
    "deep YAML": ("a.yaml", b"pipeline: " + b"[" * 3_000 + b"]" * 3_000, "nested too deeply"),
    "a range without end": (
        "a.yaml",
        b"pipeline:\n{% for i in range(10**9) %}\n- a{% endfor %}",
        r"a\.yaml:2: its Jinja2 is not run: it gives a function the number 1,000,000,000; 100,000",
    ),
    "loops in loops": (
        "a.yaml",
        b"{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}pipeline:",
        "its loops and calls go round more than 1,000,000 times",
    ),
    "more text than fits": (
        "a.yaml",
        b"pipeline: {% for i in range(99999) %}{{ 'y' * 999 }}{% endfor %}",
        "a text of more than 10,000,000 characters",
    ),
    "a file that isn't there": ("b.sql", None, "'b.sql' can't be read"),
}


@pytest.mark.filterwarnings("ignore")  # Beam's YAML side has some of its own
@pytest.mark.parametrize(("name", "content", "message"), FILES.values(), ids=FILES)
def test_a_file_that_is_no_pipeline_is_said_in_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
    content: bytes | None,
    message: str,
):
    if name.endswith("yaml"):
        pytest.importorskip("quickjs", reason="needs apache-beam[yaml]")
    monkeypatch.chdir(tmp_path)
    if content is not None:
        Path(name).write_bytes(content)
    assert main(["run", name, "--quiet"]) == 2
    said = capsys.readouterr()
    assert said.err.count("\n") == 1
    assert len(said.err) < 1_500
    assert re.search(message, said.err), said.err
    assert said.out == ""


WORDS = st.sampled_from(
    (
        *("[", "]", "{", "}", ":", "- ", "\n", "\t", "&a ", "*a", "!!python/name:os.system", "'"),
        *('"', "{{ x }}", "{% raw %}", "{% endraw %}", "null", "1e400", "😀", "\u202e", "<<: *a"),
        *("? ", "type: composite", "input: []", "error_handling: {output: Label}", "{a: b}"),
    )
)


@settings(max_examples=10, deadline=None, suppress_health_check=list(HealthCheck))
@given(at=st.floats(0, 1), cut=st.integers(0, 12), word=WORDS)
@pytest.mark.filterwarnings("ignore")
def test_a_yaml_file_with_a_mistake_is_built_or_refused_in_one_line(
    tmp_path: Path, at: float, cut: int, word: str
):
    pytest.importorskip("quickjs", reason="needs apache-beam[yaml]")
    import apache_beam as beam

    from beam_llm.fronts.yaml_file import read_yaml

    reviews = tmp_path / "reviews.jsonl"  # Beam looks into it when it builds
    reviews.write_text('{"id": "1", "text": "good"}\n')
    text = (PIPELINES / "reviews.yaml").read_text(encoding="utf-8")
    text = text.replace("./reviews-*.jsonl", str(reviews))
    place = int(at * len(text))
    try:
        read_yaml("a.yaml", text[:place] + word + text[place + cut :]).expand(
            beam.Pipeline("FnApiRunner")
        )
    except UsageError as error:
        assert re.match(r"a\.yaml(:\d+)?: .*\Z", str(error))  # noqa: PT017
