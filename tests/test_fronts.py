"""One set of options means the same through every door: Python, string options, the command line,
Beam YAML and SQL.
"""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from beam_llm import LLMPredict, config
from beam_llm.cli.flags import flag_of, settings_from_flags
from beam_llm.cli.main import build_parser
from beam_llm.config import OPTIONS, TASKS, Settings, key_of, settings_from_options
from beam_llm.errors import UsageError
from beam_llm.fronts.sql.script import Job, read_script
from beam_llm.fronts.sql.tables import Permissions

MODEL = "openai:gpt-4.1-mini"
PROMPT = "Label: {{ text }}"
ADDRESS = "http://127.0.0.1:9/v1"
TEXT = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\0\r"), min_size=1, max_size=20
).filter(lambda text: "{" not in text)
LEFT_OUT = {
    *("model", "prompt", "base_url", "output_field"),  # the same in all
    *("mode", "staging_location", "independent", "record_id"),  # need each other
    *("batch_prompt_template", "response_path"),  # have to be templates and paths
    *("provider_options", "prices", "api_version", "seed", "guard", "guard_floor"),
    *("context_window", "max_input_tokens"),  # have to hold the prompt
    "task",  # says which other options there are; SQL has chat models only
    *(name for name, option in OPTIONS.items() if "chat" not in option.metadata.get("only", TASKS)),
    *(name for name, option in OPTIONS.items() if option.metadata["kind"] == "names"),  # fields
}


def values_of(name: str) -> st.SearchStrategy[Any]:
    """Good values of an option, as Python has them."""
    rule = OPTIONS[name].metadata
    least, most = rule.get("least") or 0, rule.get("most")
    kinds: dict[str, st.SearchStrategy[Any]] = {
        "int": st.integers(int(least), int(most or least + 1_000)),
        "float": st.floats(float(least), float(most or least + 1_000)).map(lambda x: round(x, 4)),
        "bool": st.booleans(),
        "text": TEXT,
        "words": TEXT,
        "field": TEXT.filter(str.strip),
        "choice": st.sampled_from(rule.get("choices", ("",))),
        "secret": st.sampled_from(["env:A_KEY", "none", "gcp-secret:projects/p/secrets/s"]),
        "json": st.dictionaries(TEXT, st.integers(0, 9) | TEXT, min_size=1, max_size=2),
        "format": st.sampled_from(["json", "xml", "delimited"]),
        "output": st.sampled_from(["string", "integer", "number", "boolean", "enum:a|b"]),
    }
    return kinds[rule["kind"]]


NAMES = sorted(set(config.options_of(*config.EACH)) - LEFT_OUT)
SETS = st.lists(st.sampled_from(NAMES), unique=True, max_size=5).flatmap(
    lambda names: st.fixed_dictionaries({name: values_of(name) for name in names})
)


def as_text(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return json.dumps(value) if isinstance(value, dict) else str(value)


def by_python(options: dict[str, Any]) -> Settings:
    return config.settings(MODEL, prompt=PROMPT, base_url=ADDRESS, **options)


def by_strings(options: dict[str, Any]) -> Settings:
    keys = {key_of(name): as_text(value) for name, value in options.items()}
    provider, _, model = MODEL.partition(":")
    given = {"provider": provider, "model": model, "prompt": PROMPT, "base.url": ADDRESS}
    return settings_from_options(given, keys)


def by_command_line(options: dict[str, Any]) -> Settings:
    flags = [f"--model={MODEL}", f"--prompt={PROMPT}", f"--base-url={ADDRESS}"]
    for name, value in options.items():
        if isinstance(value, bool):
            flags.append(flag_of(name) if value else flag_of(name).replace("--", "--no-", 1))
        else:
            flags.append(f"{flag_of(name)}={as_text(value)}")
    return settings_from_flags(build_parser().parse_args(["predict", "in.jsonl", *flags]))


def by_yaml(options: dict[str, Any]) -> Settings:
    """The step's constructor with what a YAML file's config is read as; `test_yaml` has the file."""
    yaml = pytest.importorskip("yaml", reason="needs apache-beam[yaml]")
    from beam_llm.fronts.yaml import LLMPredict as Step

    text = yaml.safe_dump({"model": MODEL, "prompt": PROMPT, "base_url": ADDRESS, **options})
    found = Step(**yaml.safe_load(text)).settings
    return dataclasses.replace(found, output_field=None)


def by_sql(options: dict[str, Any]) -> Settings:
    def listed(pairs: dict[str, str], between: str) -> str:
        texts = [[part.replace("'", "''") for part in pair] for pair in pairs.items()]
        return ", ".join(f"'{key}'{between}'{value}'" for key, value in texts)

    keys = {key_of(name): as_text(value) for name, value in options.items()}
    provider, _, model = MODEL.partition(":")
    head = {"provider": provider, "model": model, "prompt": PROMPT, "base.url": ADDRESS}
    sql = (
        f"CREATE MODEL m INPUT (text STRING) WITH ({listed(head, '=')});"
        f"SELECT ML_PREDICT('m', 'a', MAP[{listed(keys, ', ')}]) AS x;"
    )
    (step,) = read_script(sql, "file.sql", Permissions()).steps
    assert isinstance(step, Job)
    return step.plans[0].asks[0].branches[0].settings


@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(SETS)
@pytest.mark.filterwarnings("ignore")
def test_a_set_of_options_means_the_same_through_every_door(options: dict[str, Any]):
    wanted = by_python(options)
    try:
        LLMPredict(MODEL, PROMPT, base_url=ADDRESS, **options)
    except UsageError:
        assume(False)
    for door in (by_strings, by_command_line, by_yaml, by_sql):
        assert door(options) == wanted, door.__name__


WRONG = {"batch_size": 0, "temperature": "warm", "on_abort": "rais", "output": "strin"}


@pytest.mark.parametrize("name", WRONG)
@pytest.mark.filterwarnings("ignore")
def test_a_wrong_value_is_the_same_mistake_at_every_door(name: str):
    options = {name: WRONG[name]}
    with pytest.raises(UsageError) as caught:
        by_python(options)
    rule = str(caught.value).partition(": ")[2]
    for door in (by_strings, by_command_line, by_yaml, by_sql):
        with pytest.raises(UsageError) as also:
            door(options)
        assert rule.split(";")[0].split(", ")[0] in str(also.value), door.__name__
