"""`LLMPredict` as a step of Beam YAML, by `beam-llm run` and by Beam's own command."""

from __future__ import annotations

import json
import pickle
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from beam_llm.cli.main import main
from beam_llm.errors import UsageError
from beam_llm.testing import Emulator, Fault, plugin

pytest.importorskip("quickjs", reason="needs apache-beam[yaml]")
yaml_main = pytest.importorskip("apache_beam.yaml.main", reason="needs apache-beam[yaml]")

from beam_llm.fronts.nested_rows import as_nested, nested_type  # noqa: E402
from beam_llm.fronts.yaml import PROVIDERS_FILE, LLMEmbed, LLMPredict, LLMReduce  # noqa: E402
from beam_llm.fronts.yaml_file import read_yaml  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")  # Beam's YAML side has some of its own
llm_emulator, start_emulator = plugin.llm_emulator, plugin.start_emulator
PIPELINES = Path(__file__).parent.parent / "pipelines"
TEXTS = ["I love it, it is great", "It broke, I hate it"]
STEP = """pipeline:
  type: chain
  transforms:
    - type: ReadFromJson
      config: {path: "./reviews-*.jsonl"}
    - type: LLMPredict
      name: Label
      config:
        model: openai:gpt-4.1-mini
        prompt: "{% raw %}Sentiment of this review: {{ text }}{% endraw %}"
        output: enum:positive|negative
        CONFIG
    - type: WriteToJson
      config: {path: labelled.jsonl}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    rows = [{"id": str(n), "text": text} for n, text in enumerate(TEXTS)]
    (tmp_path / "reviews-1.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def run(folder: Path, text: str, *flags: str) -> int:
    (folder / "file.yaml").write_text(text)
    return main(["run", "file.yaml", "--quiet", *flags])


def rows_in(folder: Path, name: str = "labelled.jsonl") -> list[dict[str, Any]]:
    return [
        json.loads(line)
        for path in folder.glob(f"{name}*")
        for line in path.read_text().splitlines()
    ]


MODES = {
    "online": "batch_size: 20",
    "batch_api": "mode: batch_api\n        staging_location: staging\n        poll_seconds: 0.05",
}


@pytest.mark.parametrize("config", MODES.values(), ids=MODES)
def test_a_step_labels_rows_in_both_modes(folder: Path, llm_emulator: Emulator, config: str):
    assert run(folder, STEP.replace("CONFIG", config)) == 0
    rows = rows_in(folder)
    assert {row["id"]: row["answer"] for row in rows} == {"0": "positive", "1": "negative"}
    assert {row["answer_error"] for row in rows} == {None}


EMBED = STEP.replace("LLMPredict", "LLMEmbed").replace(
    "output: enum:positive|negative", "CONFIG", 1
)
EMBED = EMBED.replace("gpt-4.1-mini", "text-embedding-3-small").replace(
    "CONFIG", "dimensions: 8", 1
)


@pytest.mark.parametrize(
    "config", ["max_retries: 1", MODES["batch_api"]], ids=["online", "batch_api"]
)
def test_a_step_embeds_rows_in_both_modes(folder: Path, llm_emulator: Emulator, config: str):
    assert run(folder, EMBED.replace("CONFIG", config)) == 0
    rows = {row["id"]: row for row in rows_in(folder)}
    assert {name: len(row["vector"]) for name, row in rows.items()} == {"0": 8, "1": 8}
    assert rows["0"]["vector"] != rows["1"]["vector"]
    assert {row["vector_error"] for row in rows.values()} == {None}
    assert llm_emulator.billed.total() == 2


CHAT = STEP.replace("LLMPredict", "LLMChat").replace("CONFIG", "session: who")
CHAT = CHAT.replace("output: enum:positive|negative", "turn_order: id")
CHAT = CHAT.replace("Sentiment of this review: ", "")


def test_a_step_answers_rows_of_a_session_one_after_another(folder: Path, llm_emulator: Emulator):
    rows = [{"id": n, "who": n % 2, "text": f"text {n}"} for n in range(4)]
    (folder / "reviews-1.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert run(folder, CHAT) == 0
    assert {row["answer"] for row in rows_in(folder)} == {row["text"] for row in rows}
    assert sorted(len(llm_emulator.requests[n]["messages"]) for n in range(4)) == [1, 1, 3, 3]


REDUCE = STEP.replace("LLMPredict", "LLMReduce").replace(
    "output: enum:positive|negative",
    "instruction: What do they complain about?\n        group_by: product",
)
REDUCE = REDUCE.replace("Sentiment of this review: ", "")


@pytest.mark.parametrize("config", MODES.values(), ids=MODES)
def test_a_step_answers_about_all_rows_of_a_group(
    folder: Path, llm_emulator: Emulator, config: str, capsys: pytest.CaptureFixture[str]
):
    rows = [{"id": n, "product": f"p{n % 2}", "text": f"text {n}"} for n in range(50)]
    (folder / "reviews-1.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert run(folder, REDUCE.replace("CONFIG", config), "--dry-run") == 0
    assert "What do they complain about?" in capsys.readouterr().out
    assert run(folder, REDUCE.replace("CONFIG", config)) == 0
    assert sorted(
        (row["product"], row["records"], row["left_out"], row["answer"][:10], row["answer_error"])
        for row in rows_in(folder)
    ) == [(f"p{n}", 25, 0, "25 records", None) for n in range(2)]
    assert {llm_emulator.billed[row["text"]] for row in rows} == {1}


@pytest.mark.parametrize("option", ["system_prompt: Be brief", "task: chat"])
def test_a_chat_model_s_option_of_an_embedding_step_is_refused_with_its_line(
    folder: Path, option: str, capsys: pytest.CaptureFixture[str]
):
    assert run(folder, EMBED.replace("CONFIG", option)) == 2
    name = option.partition(":")[0]
    assert re.search(rf"file\.yaml:\d+: .*\b{name} is", capsys.readouterr().err)


def test_options_may_be_spelled_as_keys(folder: Path, llm_emulator: Emulator):
    assert run(folder, STEP.replace("CONFIG", "batch.size: 2\n        output.field: mood")) == 0
    assert {row["mood"] for row in rows_in(folder)} == {"positive", "negative"}
    assert len(llm_emulator.requests) == 1


def test_the_pipeline_of_the_repository_runs(folder: Path, llm_emulator: Emulator):
    shutil.copy(PIPELINES / "reviews.yaml", folder)
    assert main(["run", "reviews.yaml", "--quiet"]) == 0
    assert {row["id"]: row["sentiment"] for row in rows_in(folder)} == {
        "0": "positive",
        "1": "negative",
    }
    assert all(isinstance(row["score"], float) for row in rows_in(folder))
    assert rows_in(folder, "failed.jsonl") == []


def test_beam_s_own_command_runs_it_with_the_file_of_providers(
    folder: Path, llm_emulator: Emulator
):
    shutil.copy(PIPELINES / "reviews.yaml", folder)
    yaml_main.run(
        [
            "--yaml_pipeline_file=reviews.yaml",
            "--runner=FnApiRunner",
            f"--jinja_variables={json.dumps({'beam_llm': PROVIDERS_FILE})}",
        ]
    )
    assert sorted(row["sentiment"] for row in rows_in(folder)) == ["negative", "positive"]


def test_the_module_prints_where_the_file_of_providers_is():
    command = [sys.executable, "-m", "beam_llm.fronts.yaml"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    assert printed == PROVIDERS_FILE
    assert Path(printed).is_file()


def test_errors_go_to_their_own_output_with_the_columns_that_beam_s_have(
    folder: Path, start_emulator: Callable[..., Emulator], monkeypatch: pytest.MonkeyPatch
):
    emulator = start_emulator(faults=[Fault("refusal", text="broke")])
    for name, value in emulator.environment.items():
        monkeypatch.setenv(name, value)
    shutil.copy(PIPELINES / "reviews.yaml", folder)
    assert main(["run", "reviews.yaml", "--quiet"]) == 3
    assert [row["id"] for row in rows_in(folder)] == ["0"]
    (failed,) = rows_in(folder, "failed.jsonl")
    assert failed["element"]["id"] == "1"
    assert failed["kind"] == "refused"
    assert failed["msg"].startswith("refused: ")
    assert failed["stack"] == ""


def test_failed_rows_do_not_take_the_place_of_the_good_ones():
    with pytest.raises(UsageError, match="'good' is where the other rows go"):
        LLMPredict(model="openai:m", error_handling={"output": "good"})


def test_without_error_handling_an_error_stands_beside_the_answer(
    folder: Path, start_emulator: Callable[..., Emulator], monkeypatch: pytest.MonkeyPatch
):
    emulator = start_emulator(faults=[Fault("refusal", text="broke")])
    for name, value in emulator.environment.items():
        monkeypatch.setenv(name, value)
    assert run(folder, STEP.replace("CONFIG", "batch_size: 2")) == 3
    found = {row["id"]: (row["answer"], row["answer_error"]) for row in rows_in(folder)}
    assert found["0"] == ("positive", None)
    assert found["1"][0] is None
    assert found["1"][1].startswith("refused")


def test_fields_of_an_answer_may_have_the_names_of_a_dict_s_methods():
    from apache_beam import coders

    value = {"items": 3.5, "values": [{"get": "it"}]}
    inner = {"type": "object", "properties": {"get": {"type": "string"}}}
    listed = {"type": "array", "items": inner}
    properties = {"items": {"type": "number"}, "values": listed}
    kind = nested_type({"type": "object", "properties": properties, "required": list(value)})
    row = as_nested(kind, value)
    coder = coders.registry.get_coder(kind)
    decoded = coder.decode(coder.encode(pickle.loads(pickle.dumps(row))))
    assert (decoded.items, decoded.values[0].get) == (3.5, "it")


def test_fields_of_an_answer_may_be_null():
    from apache_beam import coders

    none = {"type": "null"}
    properties = {
        "score": {"type": ["number", "null"]},
        "why": {"anyOf": [{"type": "string"}, none]},
        "tags": {"anyOf": [{"type": "array", "items": {"type": ["string"]}}, none]},
    }
    kind = nested_type({"type": "object", "properties": properties, "required": list(properties)})
    coder = coders.registry.get_coder(kind)
    for values in ((1, "so", ["a"]), (None, None, None)):
        row = as_nested(kind, dict(zip(properties, values, strict=True)))
        assert tuple(coder.decode(coder.encode(row))) == values
    either = {"anyOf": [{"type": "string"}, {"type": "number"}]}
    assert nested_type({"type": "object", "properties": {"a": either}}) is None


@pytest.mark.parametrize("name", ["class", "a score", "_a", ""])
def test_an_answer_is_json_text_where_a_row_has_no_field_of_the_name(name: str):
    assert nested_type({"type": "object", "properties": {name: {"type": "string"}}}) is None


# What is wrong names its line
# ─────────────────────────────────────────────────────────────────────────────────────────────────

WRONG = {
    "a misspelt option": ("batch_sise: 2", r'file.yaml:6: "Label": unknown option .*batch.size'),
    "a value out of its range": ("batch_size: 0", r'file.yaml:6: "Label": .*at least 1'),
    "a literal key": ("api_key: sk-123", r'file.yaml:6: "Label": .*literal value'),
    "error_handling without an output": ("error_handling: {}", None),
    "error_handling with more": ("error_handling: {output: a, b: c}", r"file.yaml:6"),
    "words that YAML reads as others": (
        "partial_output: [yes, no]",
        r'file.yaml:6: "Label": partial_output is \[True, False\]: .*in quotes',
    ),
}


@pytest.mark.parametrize(("config", "message"), WRONG.values(), ids=WRONG)
def test_what_is_wrong_with_a_step_names_its_line(
    folder: Path,
    llm_emulator: Emulator,
    capsys: pytest.CaptureFixture[str],
    config: str,
    message: str | None,
):
    assert run(folder, STEP.replace("CONFIG", config)) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "sk-123" not in said
    if message is not None:
        assert re.search(message, said), said


def test_comments_at_the_top_don_t_shift_the_line(
    folder: Path, llm_emulator: Emulator, capsys: pytest.CaptureFixture[str]
):
    assert run(folder, "# one\n\n# two\n" + STEP.replace("CONFIG", "batch_sise: 2")) == 2
    assert "file.yaml:9: " in capsys.readouterr().err


FILES = {
    "an unknown step": (STEP.replace("LLMPredict", "LLMPredikt"), r"file\.yaml:6: .*LLMPredikt"),
    "braces without raw": (
        STEP.replace("{% raw %}", "").replace("{% endraw %}", ""),
        r"file\.yaml:10: 'text' is undefined.*raw",
    ),
    "not Jinja2": ("a: 1\nb: {% if %}", r"file\.yaml:2: "),
    "a sum that can't be": ("# one\n# two\na: 1\nb: {{ 1 // 0 }}", r"file\.yaml:4: ZeroDivision"),
    "not YAML": ("pipeline:\n  - a: [", r"file\.yaml:\d: not YAML"),
    "no pipeline": ("steps: []", r"there is no pipeline"),
    "an unknown input": (
        STEP.replace("type: chain", "").replace("name: Label", "input: Nobody"),
        r"file\.yaml:\d+: .*Nobody",
    ),
    "an option beside the config": (
        STEP.replace("name: Label", "model: it"),
        r"file\.yaml:6: Additional .*'model' was unexpected\) \(at \['pipeline'.*\['transforms'\]\[1\]\)$",
    ),
    "a misspelt option of Beam's": (
        STEP + "options: {runer: FlinkRunner}",
        r"no option --runer \(options of file\.yaml\): did you mean --runner",
    ),
    "a value that one of Beam's can't have": (
        STEP + "options: {direct_num_workers: many}",
        r"\(options of file\.yaml\): .*invalid int value: 'many'",
    ),
}


@pytest.mark.parametrize(("text", "message"), FILES.values(), ids=FILES)
def test_what_is_wrong_with_a_file_is_one_line(
    folder: Path,
    llm_emulator: Emulator,
    capsys: pytest.CaptureFixture[str],
    text: str,
    message: str,
):
    assert run(folder, text.replace("CONFIG", "batch_size: 2")) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert re.search(message, said), said


@given(st.text(max_size=200) | st.binary(max_size=100).map(lambda data: data.decode("latin-1")))
def test_any_text_is_a_pipeline_or_a_usage_error(text: str):
    try:
        read_yaml("any.yaml", text)
    except UsageError as error:
        assert str(error).startswith("any.yaml")  # noqa: PT017


def test_a_file_includes_others_and_changes_its_own_lists(tmp_path: Path):
    (tmp_path / "step.yaml").write_text("# a step\n{type: Create, config: {elements: {{ found }}}}")
    (tmp_path / "all.yaml").write_text(
        "{% set found = [] %}{% for n in range(3) %}{% set _ = found.append(n) %}{% endfor %}"
        "pipeline: {type: chain, transforms: [{% include 'step.yaml' %}]}\n"
        "options: {day: '{{ datetime.date(2026, 1, 2).isoformat() }}'}"
    )
    path = tmp_path / "all.yaml"
    found = read_yaml(str(path), path.read_text())
    assert found.options == {"day": "2026-01-02"}
    [step] = found.spec["pipeline"]["transforms"]
    assert list(step["config"]["elements"]) == [0, 1, 2]
    path.write_text("{% include 'nowhere.yaml' %}")
    with pytest.raises(UsageError, match=r"all\.yaml:1: nowhere\.yaml; Beam runs the file through"):
        read_yaml(str(path), path.read_text())


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=6,
)


@settings(max_examples=30, suppress_health_check=list(HealthCheck))
@given(name=st.sampled_from(sorted(LLMPredict.__signature__.parameters)), value=JSON)
def test_any_value_of_an_option_is_taken_or_refused_with_its_line(name: str, value: Any):
    import apache_beam as beam

    config = {"model": "openai:m", "base_url": "http://127.0.0.1:9/v1", name: value}
    step = {"type": "LLMPredict", "config": config}
    create = {"type": "Create", "config": {"elements": [{"text": "a"}]}}
    spec = {"pipeline": {"type": "chain", "transforms": [create, step]}}
    text = json.dumps(spec).replace("{%", "").replace("{{", "{ {").replace("{#", "{ #")
    try:
        read_yaml("any.yaml", text).expand(beam.Pipeline("FnApiRunner"))
    except UsageError as error:
        assert str(error).startswith("any.yaml")  # noqa: PT017


# Documentation
# ─────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("step", "words", "left_out"),
    [
        (LLMPredict, ("Asks a language model about every row", "most records in one prompt"), ()),
        (
            LLMEmbed,
            ("a vector, or the reason", "most texts in one request"),
            ("system_prompt", "task"),
        ),
        (
            LLMReduce,
            ("one question about all rows of a group", "fields by whose values"),
            ("guard", "batch_timeout_ms"),
        ),
    ],
    ids=["LLMPredict", "LLMEmbed", "LLMReduce"],
)
def test_beam_makes_a_step_s_documentation_of_our_table_of_options(
    step: Any, words: tuple[str, ...], left_out: tuple[str, ...]
):
    generate = pytest.importorskip("apache_beam.yaml.generate_yaml_docs")
    from apache_beam.yaml import yaml_provider

    provider = yaml_provider.InlineProvider({step.__name__: step})
    documentation = generate.transform_docs(
        step.__name__, [step.__name__], {step.__name__: [provider]}
    )
    for word in (*words, "error_handling"):
        assert word in documentation
    for name in step.__signature__.parameters:
        assert f"**{name}**" in documentation
    for name in left_out:
        assert f"**{name}**" not in documentation


def test_a_step_that_predicts_has_every_option():
    from beam_llm.config import EACH, options_of

    assert set(options_of(*EACH)) <= set(LLMPredict.__signature__.parameters)
