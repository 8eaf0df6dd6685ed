"""Options: one name in two spellings, checked once, whichever door they came through."""

from __future__ import annotations

import enum
import functools
import pickle
from typing import Literal

import pytest

from beam_llm.config import OPTIONS, key_of, replace_options, settings, settings_from_options
from beam_llm.errors import UsageError
from beam_llm.provider_table import PROVIDERS, ProviderSpec

MODEL = "openai:gpt-4.1-mini"
REDUCE = {"task": "reduce", "instruction": "Sum up."}


def test_the_defaults_are_those_of_the_proposal():
    known = settings(MODEL)
    assert (
        known.batch_size,
        known.batch_timeout_ms,
        known.max_retries,
        known.request_timeout_ms,
    ) == (1, 1000, 3, 30_000)
    assert (known.response_format, known.response_index_field, known.mode, known.api_key) == (
        "json",
        "index",
        "online",
        "env:OPENAI_API_KEY",
    )


def test_string_keys_and_python_names_give_the_same_settings():
    by_key = settings_from_options(
        {
            "provider": "openai",
            "model": "gpt-4.1-mini",
            "batch.size": "20",
            "max.retries": "5",
            "log.data": "true",
        }
    )
    assert by_key == settings(MODEL, batch_size=20, max_retries=5, log_data=True)


def test_overrides_win_over_a_models_defaults():
    known = settings_from_options(
        {"model": MODEL, "batch.size": "20", "system.prompt": "S"}, overrides={"batch.size": "50"}
    )
    assert (known.batch_size, known.system_prompt) == (50, "S")


@pytest.mark.parametrize(
    ("options", "overrides", "model"),
    [
        ({"provider": "openai", "model": "gpt-4"}, {"model": "gpt-4.1-mini"}, "openai:gpt-4.1-mini"),
        ({"provider": "openai", "model": "gpt-4"}, {"provider": "azure"}, "azure:gpt-4"),
        ({"provider": "openai", "model": "gpt-4"}, {"model": "azure:x"}, "azure:x"),
        ({"provider": "openai", "model": "gpt-4"}, {"provider": "azure", "model": "x"}, "azure:x"),
        ({"model": "openai:gpt-4"}, {"model": "gpt-4.1-mini"}, "openai:gpt-4.1-mini"),
        ({"model": "openai:gpt-4"}, {"provider": "azure"}, "azure:gpt-4"),
        ({"provider": "openai"}, {"model": "ft:gpt-4.1-mini:org::id"}, "openai:ft:gpt-4.1-mini:org::id"),
        ({"provider": "openai", "model": "openai:gpt-4"}, {}, "openai:gpt-4"),
        ({"Provider": "openai", "MODEL": "gpt-4"}, {"provider": None}, "openai:gpt-4"),
    ],
    ids=[
        "model", "provider", "provider within the model", "both", "model of a whole name", "provider of a whole name",
        "model alone below", "provider twice", "other case",
    ],
)  # fmt: skip
def test_provider_and_model_are_overridden_apart_or_together(options, overrides, model):
    assert settings_from_options(options, {**overrides, "base.url": "http://x"}).model == model


def test_a_typed_model_wins_over_provider_and_model():
    assert settings_from_options({"provider": "azure", "model": "x"}, model=MODEL).model == MODEL


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"provider": "openai"}, '"model" is missing'),
        ({}, "no model given"),
        ({"model": "gpt-4"}, "PROVIDER:MODEL"),
    ],
    ids=["provider only", "neither", "model only"],
)
def test_a_model_that_no_layer_completes_is_refused(options, message):
    with pytest.raises(UsageError, match=message):
        settings_from_options(options, {"batch.size": "2"})


def test_every_option_has_a_key_and_a_meaning():
    assert all(
        option.metadata["meaning"] and key_of(name).replace(".", "_") == name
        for name, option in OPTIONS.items()
    )


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"batch_size": 0}, "batch_size is 0: it has to be at least 1; try batch_size=1"),
        ({"batch_size": "many"}, "a whole number or 'auto'"),
        ({"batch_size": True}, "a whole number"),
        ({"batch_size": 2.5}, "a whole number"),
        ({"seed": "x"}, "a whole number; try seed=1"),
        ({"output_field": ""}, "output_field is '': it has to be the name of a field"),
        ({"record_id": " "}, "the name of a field; leave record_id out"),
        ({"max_retries": 99}, "between 0 and 20"),
        ({"temperature": "nan"}, "a number"),
        ({"mode": "batch"}, "one of online, batch_api; try 'batch_api'"),
        ({"on_unparseable": "ignore"}, "one of split, retry, single, fail"),
        ({"log_data": "maybe"}, "true or false"),
        ({"response_format": "yaml"}, "json, xml, delimited or the dotted name"),
        ({"response_format": "no.such.parser"}, "can't be imported"),
        ({"response_format": "math.pi"}, "not a function"),
        ({"response_format": functools.partial(int, base=10)}, "has to have a name"),
        ({"response_format": dict}, "it is a type, not a parser of replies; write output=…"),
        ({"response_format": list[str]}, "it is a type, not a parser of replies; write output=…"),
        ({"response_format": "json.loads"}, "it can't be called with a reply's text and its num"),
        ({"extra_body": "[1]"}, "a mapping"),
        ({"extra_body": "{"}, "a JSON object"),
        ({"output": "int"}, "a JSON schema; did you mean 'integer'"),
        ({"output": "Float"}, "did you mean 'number'"),
        ({"output": "strng"}, "did you mean 'string'"),
        ({"output": "a|b"}, "did you mean 'enum:a|b'"),
        ({"output": "list[str]"}, 'write {"type": "array", "items"'),
        ({"output": "sentiment"}, "try 'enum:positive|negative|neutral'"),
        ({"output": ["a", "b"]}, "words are not a type; write output=Literal['a', 'b']"),
        ({"output": "enum:"}, "an enum needs members"),
        ({"output": "enum: | "}, "an enum needs members"),
        (
            {"output": "enum:a| |b"},
            "member 2 of the enum is empty; write enum:positive|negative|neutral",
        ),
        ({"output": "enum:a|b|"}, "member 3 of the enum is empty"),
        ({"output": "enum:a|b| a"}, "the enum has the member 'a' twice"),
        ({"output": "text"}, "string, integer, number, boolean"),
        ({"poll_seconds": 0.01}, "at least 0.05"),
        ({"batch_sise": 2}, "did you mean 'batch_size'"),
        ({"max_tokens": 2}, "did you mean 'max_output_tokens'"),
        ({"response_model": dict}, "did you mean 'output'"),
        ({"reasoning_effort": "low"}, "did you mean 'extra_body'"),
        ({"base_url": "localhost:80"}, "http:// or https://"),
        ({"base_url": "https://user:pass@host/v1"}, "user name or password"),
        ({"mode": "batch_api"}, "staging_location is missing"),
        ({"independent": True}, "record_id is missing"),
        ({"prompt": 3}, "a string, not int"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_wrong_value_is_refused_with_the_rule_and_the_fix(values, expected):
    with pytest.raises(UsageError) as caught:
        settings(MODEL, **values)
    assert expected in str(caught.value)


@pytest.mark.parametrize("model", ["gpt-4", "openai:", "cohere:command", ""])
def test_a_model_is_provider_and_name(model):
    with pytest.raises(UsageError, match="PROVIDER:MODEL"):
        settings(model)


def test_a_misspelt_provider_names_the_nearest():
    with pytest.raises(UsageError, match="did you mean 'openai:gpt-4'"):
        settings("opnai:gpt-4")


def test_an_unknown_key_names_the_nearest_known_one():
    with pytest.raises(UsageError, match="unknown option 'batch.sice': did you mean 'batch.size'"):
        settings_from_options({"model": MODEL, "batch.sice": "2"})


@pytest.mark.parametrize("key", ["sk-proj-abcdef0123456789", "Bearer x", "${NOT-A-NAME}"])
def test_a_literal_key_is_refused_and_not_repeated(key):
    with pytest.raises(UsageError) as caught:
        settings(MODEL, api_key=key)
    assert "env:NAME" in str(caught.value)
    assert key not in str(caught.value)


@pytest.mark.parametrize(
    "values",
    [
        {"base_url": "me:s3cr3t-word@host/v1"},
        {"base_url": "https:/me:s3cr3t-word@host/v1"},
        {"base_url": "https://me:s3cr3t-word/@host/v1"},
        {"extra_body": '{"headers": {"x-key": "s3cr3t-word"},}'},
        {"provider_options": ["s3cr3t-word"]},
    ],
    ids=str,
)
def test_a_value_that_may_hold_a_secret_is_refused_and_not_repeated(values):
    with pytest.raises(UsageError) as caught:
        settings(MODEL, **values)
    assert "s3cr3t-word" not in str(caught.value)


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("${MY_KEY}", "env:MY_KEY"),
        ("env:MY_KEY", "env:MY_KEY"),
        ("file:/run/secrets/k", "file:/run/secrets/k"),
        ("none", "none"),
    ],
)
def test_a_key_is_kept_as_a_reference(given, kept):
    assert settings(MODEL, api_key=given).api_key == kept
    assert settings_from_options({"model": MODEL, "api_key": given}).api_key == kept


def test_the_base_url_is_read_when_the_pipeline_is_built(monkeypatch):
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:1/v1/")
    known = settings(MODEL)
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:2/v1")
    assert known.base_url == "http://127.0.0.1:1/v1"
    assert settings(MODEL, base_url="http://host/v1").base_url == "http://host/v1"
    monkeypatch.setenv("OPENAI_BASE_URL", "localhost:8000/v1")
    with pytest.raises(
        UsageError, match=r"^base_url \(of OPENAI_BASE_URL\) is 'localhost:8000/v1'"
    ):
        settings("openai:gpt-4.1-mini")


def test_azure_needs_its_endpoint(monkeypatch):
    monkeypatch.delenv("AZURE_OPENAI_ENDPOINT", raising=False)
    with pytest.raises(UsageError, match="AZURE_OPENAI_ENDPOINT"):
        settings("azure:deployment")


@pytest.mark.parametrize(
    ("text", "output"),
    [
        ("string", str),
        ("integer", int),
        ("number", float),
        ("boolean", bool),
        ("enum:a|b", Literal["a", "b"]),
        ("enum: a | not b ", Literal["a", "not b"]),
        ('{"type": "object"}', {"type": "object"}),
    ],
    ids=["string", "integer", "number", "boolean", "enum", "blanks", "schema"],
)
def test_output_as_a_string_key(text, output):
    assert settings(MODEL, output=text).output == output


class Mood(enum.Enum):
    UP = "up"


def test_settings_ride_in_a_pickle_and_are_replaced_whole():
    known = settings(MODEL, output=Mood, batch_size=4)
    assert pickle.loads(pickle.dumps(known)) == known
    assert replace_options(known, batch_size=8).batch_size == 8
    assert replace_options(known, batch_size=8).output is Mood
    with pytest.raises(UsageError):
        replace_options(known, batch_size=-1)


def test_a_provider_of_another_package_is_known_to_workers_that_have_not_imported_it(monkeypatch):
    spec = ProviderSpec("acme_llm", base_url="https://api.acme.example")
    monkeypatch.setitem(PROVIDERS, "acme", spec)
    known = settings("acme:large", api_key="none")
    pickled = pickle.dumps(known)
    monkeypatch.delitem(PROVIDERS, "acme")
    assert pickle.loads(pickled) == known
    assert PROVIDERS["acme"] == spec


def test_a_provider_of_another_package_is_found_by_its_entry_point(tmp_path, monkeypatch):
    package = tmp_path / "acme-1.dist-info"
    package.mkdir()
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: acme\nVersion: 1\n")
    points = "[beam_llm.providers]\nacme = acme_entry\nbroken = no_such_module\n"
    (package / "entry_points.txt").write_text(points)
    (tmp_path / "acme_entry.py").write_text(
        "from beam_llm.provider_table import PROVIDERS, ProviderSpec\n"
        "PROVIDERS['acme'] = ProviderSpec('acme_entry', base_url='https://api.acme.example')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(PROVIDERS, "acme", None)  # what is put in is taken away again
    monkeypatch.delitem(PROVIDERS, "acme")
    assert settings("acme:large", api_key="none").base_url == "https://api.acme.example"
    with pytest.raises(UsageError, match="'no_such_module', which can't be imported"):
        settings("broken:large", api_key="none")


# What options given as text can't do
# ────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("parser", ["os.system", "my_parsers.first", "subprocess.call"])
@pytest.mark.parametrize("door", ["options", "overrides"])
def test_text_options_can_not_name_code_and_nothing_is_imported(
    parser, door, tmp_path, monkeypatch
):
    (tmp_path / "my_parsers.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(str(tmp_path))
    options = {"options": {"model": MODEL}, "overrides": {}}
    options[door] = {**options[door], "response.format": parser}
    with pytest.raises(UsageError, match="allow_code"):
        settings_from_options(**options)


def test_a_parser_is_called_as_its_decorator_takes_it():
    def of_text_alone(text):
        return [text]

    @functools.wraps(of_text_alone)
    def parse(text, count):
        return of_text_alone(text)

    assert settings(MODEL, response_format=parse).response_format is parse


def test_python_may_name_a_parser_and_so_may_text_with_permission():
    assert settings(MODEL, response_format="operator.getitem").response_format == "operator.getitem"
    assert (
        settings_from_options({"model": MODEL}, response_format="operator.getitem").response_format
        == "operator.getitem"
    )
    allowed = settings_from_options(
        {"model": MODEL, "response.format": "operator.getitem"}, allow_code=True
    )
    assert allowed.response_format == "operator.getitem"


@pytest.mark.parametrize("key", ["allow.code", "allow_code"])
def test_the_permission_itself_is_no_option(key):
    with pytest.raises(UsageError, match="unknown option"):
        settings_from_options({"model": MODEL, key: "true", "response.format": "json.loads"})


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"model": "openai/gpt-4.1-mini"}, "write 'openai:gpt-4.1-mini'"),
        ({"model": "claude-haiku-4-5"}, "write 'anthropic:claude-haiku-4-5'"),
        ({"model": "google:gemini-2.5-flash"}, "write 'gemini:gemini-2.5-flash'"),
        ({"model": "azure:"}, "write it as 'azure:MODEL'"),
        ({"model": "OpenAI:gpt-4.1"}, "did you mean 'openai:gpt-4.1'?"),
        ({"model": "openai: gpt-4.1"}, "did you mean 'openai:gpt-4.1'?"),
        ({"prompt": "half \ud83d {{ text }}"}, "character 6 is half of one"),
        ({"temperature": 10**400}, "a number"),
        ({"extra_body": "[" * 100_000}, "JSON object"),
        ({"base_url": "http://[::1/v1"}, "an address"),
        ({"base_url": ""}, "base_url is '': it has to be an address"),
        ({"model": "bedrock:amazon.nova-lite-v1:0", "base_url": ""}, "an address"),
        ({"mode": "batch_api", "staging_location": " "}, "staging_location is missing"),
        ({"batch_size": 2**63}, "between 1 and 9,223,372,036,854,775,807"),
        ({"batch_size": -1}, "at least 1; try batch_size=1"),
        ({"base_url": "http://host:99999/v1"}, "an address"),
        ({"base_url": "http://host/v1\nX-Evil: 1"}, "an address"),
        ({"base_url": "http://host/v1?key=1"}, "an address"),
        ({"prompt": "x" * 100_000 + "\ud800"}, "half of one"),
        ({"seed": 2**64}, "between -9,223,372,036,854,775,808 and 9,223,372,036,854,775,807"),
        ({"max_output_tokens": 2**70}, "between 1 and 10,000,000"),
        ({"media": [""]}, r"media is \[''\]: name 1 of 1 is blank; write a name there, or leave"),
        ({"media": "photo, ,back"}, "name 2 of 3 is blank"),
        ({"media": [None]}, r"media is \[None\]: it has to be a list of names"),
        ({"models": ["  "]}, "name 1 of 1 is blank"),
        ({"prompt": " \n"}, "it has to say what each record is asked; leave it out to ask"),
        ({**REDUCE, "group_by": ["a", "a"]}, r"group_by is \['a', 'a'\]: it has to name each"),
        ({**REDUCE, "group_by": "left_out", "output_field": "x"}, "another name before"),
    ],
    ids=[
        "slash",
        "a model alone",
        "a provider as others call it",
        "no model",
        "capitals",
        "a blank behind the colon",
        "half a character",
        "huge number",
        "deep JSON",
        "half an address",
        "an empty address, which must not send data to the provider's own",
        "an empty address of a cloud",
        "a blank folder",
        "a number that Beam's display data can't hold",
        "a number that is too small",
        "port",
        "line",
        "query",
        "long",
        "a seed of 65 bits",
        "tokens beyond JSON",
        "blank name",
        "blank between commas",
        "no name",
        "blank model",
        "blank prompt",
        "a group by one field twice",
        "a key in a group's own column",
    ],
)
def test_mistakes_are_usage_errors_with_advice_that_fits(values, words):
    with pytest.raises(UsageError, match=words) as caught:
        settings(**{"model": MODEL, **values})
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize("blank", ["", " \n"])
def test_a_blank_system_prompt_is_none_for_some_providers_refuse_it(blank):
    assert settings(MODEL, system_prompt=blank) == settings(MODEL)


@pytest.mark.parametrize("url", ["ftp://me:pass77@host/v1", "https://me:pass77@host/v1"])
def test_a_password_in_an_address_is_not_shown(url):
    with pytest.raises(UsageError) as caught:
        settings(MODEL, base_url=url)
    assert "pass77" not in str(caught.value)


@pytest.mark.parametrize(
    "options",
    [{"batch.size": "20", "batch_size": "50"}, {"batch-size": 20, "BATCH.SIZE": 20}],
    ids=["other values", "one value"],
)
def test_one_option_in_two_spellings_is_refused_and_not_guessed_at(options):
    first, second = options
    with pytest.raises(UsageError, match=f"{second!r} is the same option as {first!r}"):
        settings_from_options({"model": MODEL, **options})


def test_a_whole_number_may_have_underscores_between_its_digits_alone():
    assert settings(MODEL, batch_size="1_000").batch_size == 1_000
    for odd in ("_1", "1_", "1__0"):
        with pytest.raises(UsageError, match="a whole number"):
            settings(MODEL, batch_size=odd)


@pytest.mark.parametrize("options", [None, [("model", MODEL)], {7: "x"}])
def test_options_of_another_kind_are_refused(options):
    with pytest.raises(UsageError):
        settings_from_options(options)


def test_a_provider_whose_cloud_has_its_own_needs_no_address_and_no_key(monkeypatch):
    monkeypatch.setitem(PROVIDERS, "cloud", ProviderSpec("cloud_llm"))
    known = settings("cloud:large", provider_options={"region": "eu-west-1", "role_arn": "arn:x"})
    assert (known.base_url, known.api_key) == (None, None)
    assert known.provider_options == {"region": "eu-west-1", "role_arn": "arn:x"}
    assert (
        settings("cloud:large", base_url="http://127.0.0.1:9/v1").base_url
        == "http://127.0.0.1:9/v1"
    )


def test_a_provider_with_a_place_but_no_usual_one_has_to_be_given_it(monkeypatch):
    monkeypatch.delenv("AZURE_OPENAI_ENDPOINT", raising=False)
    with pytest.raises(UsageError, match="AZURE_OPENAI_ENDPOINT"):
        settings("azure:mine")


def test_options_of_a_provider_come_as_json_from_text():
    known = settings_from_options(
        {"model": MODEL, "provider.options": '{"region": "eu"}', "service.tier": "flex"}
    )
    assert (known.provider_options, known.service_tier) == ({"region": "eu"}, "flex")
    with pytest.raises(
        UsageError,
        match="service_tier is 'slow': it has to be one of auto, default, flex, priority",
    ):
        settings(MODEL, service_tier="slow")
