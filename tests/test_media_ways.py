"""Images on every way into a pipeline and through it: streams, rows, files, YAML, SQL; addresses; what
official SDKs make of the same; what the emulator refuses; and what no log shows.
"""

from __future__ import annotations

import base64
import json
import logging
import urllib.error
import urllib.request
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import anthropic
import apache_beam as beam
import boto3
import openai
import pyarrow as pa
import pyarrow.parquet as pq
import pydantic
import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.testing import test_stream
from google.genai import types
from mistralai.client import Mistral
from openai.types.chat import ChatCompletionUserMessageParam

from beam_llm import LLMPredict
from beam_llm.cli.main import main
from beam_llm.config import settings
from beam_llm.providers import compile_task, connect_batch, encode
from beam_llm.providers.errors import ErrorContext, error_of
from beam_llm.testing import Emulator, Fault, plugin
from beam_llm.transforms import forming_streams, runners
from beam_llm.transforms.runners import Gathering
from tests.collecting import Collect
from tests.google_world import gemini_client
from tests.pictures import PDF, colour_of, png, things

llm_emulator, start_emulator = plugin.llm_emulator, plugin.start_emulator
MODEL = "openai:gpt-4.1-mini"
PROMPT = "Name the colour of this thing: {{ text }}"
BATCH = {"mode": "batch_api", "poll_seconds": 0.05}


def data_url(data: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(data).decode()}"


# Through a pipeline


@pytest.mark.parametrize("gathering", ["triggers", "timers"])
def test_a_stream_keeps_each_image_with_its_record(monkeypatch, llm_emulator, gathering):
    monkeypatch.setattr(runners, "gathering", lambda pcoll: Gathering(gathering))
    monkeypatch.setattr(forming_streams, "time", SimpleNamespace(time=lambda: 0.0))
    elements, rows = things(7), Collect()
    options = PipelineOptions(["--streaming"], pickle_library="cloudpickle")
    with beam.Pipeline(options=options) as pipeline:
        source = test_stream.TestStream().add_elements(elements).advance_watermark_to_infinity()
        predict = LLMPredict(MODEL, PROMPT, media=["photo"], batch_size=4)
        _ = pipeline | source | predict | rows
    assert sorted(each.element["n"] for each in rows.found) == list(range(7))
    assert all(each.value == colour_of(each.element) for each in rows.found)


@pytest.mark.parametrize("mode", ["online", "batch_api"])
def test_rows_keep_their_images_beside_the_answer(tmp_path, llm_emulator, mode):
    batch = {**BATCH, "staging_location": str(tmp_path)} if mode == "batch_api" else {}
    rows = Collect()
    predict = LLMPredict(
        MODEL, PROMPT, media=["photo"], output_field="colour", batch_size=3, **batch
    )
    with beam.Pipeline() as pipeline:
        elements = [beam.Row(**each) for each in things(5)]
        _ = pipeline | beam.Create(elements) | predict | rows
    found = sorted(rows.found, key=lambda row: row.n)
    assert [row.photo for row in found] == [each["photo"] for each in things(5)]
    assert [row.colour for row in found] == list(map(colour_of, things(5)))


@pytest.mark.parametrize("mode", ["online", "batch_api"])
def test_what_is_not_an_image_is_its_records_own_error(tmp_path, llm_emulator, mode):
    batch = {**BATCH, "staging_location": str(tmp_path)} if mode == "batch_api" else {}
    elements, rows = things(6), Collect()
    elements[2]["photo"], elements[4]["photo"] = PDF, None
    with beam.Pipeline() as pipeline:
        predict = LLMPredict(MODEL, PROMPT, media=["photo"], batch_size=3, **batch)
        _ = pipeline | beam.Create(elements) | predict | rows
    found = sorted(rows.found, key=lambda each: each.element["n"])
    assert [each.element for each in found] == elements
    assert [each.error and each.error.kind for each in found] == [None, None, "prompt", *[None] * 3]
    assert "a PDF file" in found[2].error.message
    others = [n for n in range(6) if n not in (2, 4)]
    assert [found[n].value for n in others] == [colour_of(elements[n]) for n in others]
    assert found[4].value  # asked without an image


@pytest.mark.parametrize("mode", ["online", "batch_api"])
@pytest.mark.parametrize("model", [MODEL, "anthropic:claude-haiku-4-5", "gemini:gemini-2.5-flash"])
def test_an_image_that_the_provider_refuses_costs_no_other_record_its_answer(
    tmp_path, llm_emulator, monkeypatch, model, mode
):
    for variable, value in llm_emulator.environment_of(model.partition(":")[0]).items():
        monkeypatch.setenv(variable, value)
    batch = {**BATCH, "staging_location": str(tmp_path)} if mode == "batch_api" else {}
    elements, rows = things(10), Collect()
    elements[3]["photo"] = elements[3]["photo"][:-9]  # begins like a PNG, and is cut
    with beam.Pipeline() as pipeline:
        predict = LLMPredict(model, PROMPT, media=["photo"], batch_size=10, **batch)
        _ = pipeline | beam.Create(elements) | predict | rows
    found = sorted(rows.found, key=lambda each: each.element["n"])
    errors = [each.error.kind if each.error else None for each in found]
    assert errors == [None] * 3 + ["rejected"] + [None] * 6
    others = [n for n in range(10) if n != 3]
    assert [found[n].value for n in others] == [colour_of(elements[n]) for n in others]


def test_a_jobs_file_is_never_larger_than_its_limit(tmp_path, llm_emulator):
    elements, rows = things(12), Collect()
    for each in elements:
        each["photo"] = png((int(each["n"]), 255 - int(each["n"]), 7), 60, 60) + b"\0" * 3_000
    predict = LLMPredict(
        *(MODEL, PROMPT),
        media=["photo"],
        batch_size=2,
        staging_location=str(tmp_path),
        job_max_bytes=20_000,
        **BATCH,
    )
    with beam.Pipeline() as pipeline:
        _ = pipeline | beam.Create(elements) | predict | rows
    assert sorted(each.value for each in rows.found) == sorted(map(colour_of, elements))
    address, key = llm_emulator.base_url, llm_emulator.api_key
    with openai.OpenAI(base_url=address, api_key=key) as client:
        sizes = [file.bytes for file in client.files.list() if file.purpose == "batch"]
    assert len(sizes) == len(llm_emulator.jobs) >= 3
    assert max(sizes) <= 20_000


def test_no_log_shows_an_image(caplog, llm_emulator):
    llm_emulator.set_faults(Fault("server_error", times=2), Fault("malformed_json", nth=3))
    caplog.set_level(logging.DEBUG)
    elements, rows = things(4), Collect()
    elements[1]["photo"] = PDF + elements[2]["photo"]
    with beam.Pipeline() as pipeline:
        predict = LLMPredict(MODEL, PROMPT, media=["photo"], log_data=True)
        _ = pipeline | beam.Create(elements) | predict | rows
    data = base64.b64encode(elements[3]["photo"]).decode()[40:80]
    shown = caplog.text + "".join(str(each.error) for each in rows.found)
    assert data not in shown
    assert repr(elements[3]["photo"])[2:60] not in shown


def test_an_image_that_a_server_quotes_is_not_in_its_error():
    quoted = {"error": {"message": f"Invalid input: {data_url(png((9, 9, 9), 40, 40) * 3)}"}}
    for log_data in (False, True):
        error = error_of(400, {}, quoted, ErrorContext(log_data=log_data))
        assert "data:image/png;base64,…" in error.message


@pytest.mark.parametrize("log_data", [False, True])
@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("https://me:letmein@host/a.png", "https://…@host/a.png"),
        ("https://host/a.png?X-Amz-Signature=0ddba11&x=1", "https://host/a.png?…"),
        ("gs://bucket/a.png", "gs://bucket/a.png"),
        (
            "https://console.host/overview?project=my-1",
            "https://console.host/overview?project=my-1",
        ),
        (
            "https://api.telegram.org/file/bot123456789:AAHdqTcvCH1vGWJxfSeofSAs0K5PALDsaw/a.png",
            "https://api.telegram.org/file/bot123456789:…/a.png",
        ),
        (
            "https://host/openai/deployments/gpt-4.1-mini-2025-04-14/0a1b2c3d4e5f60718293a4b5c6/a",
            "https://host/openai/deployments/gpt-4.1-mini-2025-04-14/0a1b2c3d4e5f60718293a4b5c6/a",
        ),
    ],
    ids=["login", "signed", "plain", "a provider's own", "token in the path", "names in it"],
)
def test_what_gives_access_in_an_address_that_a_server_quotes_is_not_in_its_error(
    address, shown, log_data
):
    quoted = {"error": {"message": f"Error while downloading {address}."}}
    error = error_of(400, {}, quoted, ErrorContext(log_data=log_data))
    assert f"Error while downloading {shown}" in error.message


# Addresses


def test_an_address_is_left_to_the_provider(llm_emulator):
    elements = [{"n": n, "text": "a", "photo": f"https://host/{n}.png"} for n in range(3)]
    rows = Collect()
    with beam.Pipeline() as pipeline:
        predict = LLMPredict(MODEL, PROMPT, media=["photo"], batch_size=3)
        _ = pipeline | beam.Create(elements) | predict | rows
    assert all(each.value == each.element["photo"] for each in rows.found)


def body_of(model: str, value: Any) -> Any:
    task = compile_task(
        settings(model, prompt="{{ text }}", media=["photo"], api_key="none", **PLACES)
        if model.startswith("vertex")
        else settings(model, prompt="{{ text }}", media=["photo"], api_key="none")
    )
    request = task.render([task.record({"text": "a", "photo": value}, None)])
    return json.loads(encode(task.settings, request))


PLACES = {"provider_options": {"project": "p-1"}}
ADDRESS = "https://host/cat.png"
TEXT = {"type": "text", "text": "a"}


@pytest.mark.parametrize(
    ("model", "value", "part"),
    [
        (MODEL, ADDRESS, {"type": "image_url", "image_url": {"url": ADDRESS}}),
        ("mistral:m", ADDRESS, {"type": "image_url", "image_url": ADDRESS}),
        ("anthropic:m", ADDRESS, {"type": "image", "source": {"type": "url", "url": ADDRESS}}),
        ("gemini:m", ADDRESS, {"fileData": {"mimeType": "image/png", "fileUri": ADDRESS}}),
        (
            "vertex:m",
            "gs://b/cat.jpg",
            {"fileData": {"mimeType": "image/jpeg", "fileUri": "gs://b/cat.jpg"}},
        ),
    ],
    ids=["openai", "mistral", "anthropic", "gemini", "vertex"],
)
def test_each_provider_has_addresses_in_its_own_form(model, value, part):
    body = body_of(model, value)
    contents = (
        body["messages"][-1]["content"] if "messages" in body else body["contents"][0]["parts"]
    )
    assert contents[1] == part


# Official SDKs: their types take our bodies, and the emulator takes theirs


def test_official_types_take_our_messages():
    ours = {model: body_of(model, png()) for model in (MODEL, "anthropic:m", "gemini:m")}
    chat = pydantic.TypeAdapter(ChatCompletionUserMessageParam)
    assert list(chat.validate_python(ours[MODEL]["messages"][0])["content"])
    messages = pydantic.TypeAdapter(anthropic.types.MessageParam)
    assert messages.validate_python(ours["anthropic:m"]["messages"][0])["role"] == "user"
    content = types.Content.model_validate(ours["gemini:m"]["contents"][0])
    assert content.parts[1].inline_data.data == png()


def test_official_clients_ask_about_images(llm_emulator, monkeypatch):
    for name in ("openai", "anthropic"):
        for variable, value in llm_emulator.environment_of(name).items():
            monkeypatch.setenv(variable, value)
    data = base64.b64encode(png((0, 0, 254))).decode()
    ask = "Which colour is it?"
    with openai.OpenAI(max_retries=0) as client:
        part = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}}
        message = {"role": "user", "content": [{"type": "text", "text": ask}, part]}
        reply = client.chat.completions.create(model="gpt-4.1-mini", messages=[message])
        assert reply.choices[0].message.content == "#0000fe"
    with anthropic.Anthropic(max_retries=0) as other:
        source = {"type": "base64", "media_type": "image/png", "data": data}
        block = {"type": "image", "source": source}
        message = {"role": "user", "content": [{"type": "text", "text": ask}, block]}
        made = other.messages.create(model="claude-haiku-4-5", messages=[message], max_tokens=50)
        assert made.content[0].text == "#0000fe"


def test_googles_and_amazons_and_mistrals_clients_do(llm_emulator, monkeypatch):
    for variable, value in llm_emulator.environment_of("bedrock").items():
        monkeypatch.setenv(variable, value)
    ask, picture = "Which colour is it?", png((0, 0, 254))
    with gemini_client(llm_emulator) as client:
        part = types.Part.from_bytes(data=picture, mime_type="image/png")
        made = client.models.generate_content(model="gemini-2.5-flash", contents=[ask, part])
        assert made.text == "#0000fe"
    aws = boto3.Session(region_name="us-east-1").client("bedrock-runtime")
    with closing(aws):
        image = {"image": {"format": "png", "source": {"bytes": picture}}}
        message: Any = {"role": "user", "content": [{"text": ask}, image]}
        reply = aws.converse(modelId="anthropic.claude-haiku-4-5", messages=[message])
        assert reply["output"]["message"]["content"] == [{"text": "#0000fe"}]
    address = llm_emulator.environment_of("mistral")["MISTRAL_BASE_URL"]
    with Mistral(api_key=llm_emulator.api_key, server_url=address) as mistral:
        message = {
            "role": "user",
            "content": [
                {"type": "text", "text": ask},
                {"type": "image_url", "image_url": data_url(picture)},
            ],
        }
        answer = mistral.chat.complete(model="mistral-small-latest", messages=[message])
        assert answer.choices[0].message.content == "#0000fe"


def test_a_job_of_claudes_own_form_has_its_images_in_it(monkeypatch):
    """Bedrock's jobs of the type InvokeModel."""
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    known = settings(
        "bedrock:anthropic.claude-haiku-4-5",
        prompt="{{ text }}",
        media=["photo"],
        mode="batch_api",
        staging_location="s3://bucket/staging",
        provider_options={
            "role_arn": "arn:aws:iam::123456789012:role/batches",
            "invocation_type": "InvokeModel",
        },
    )
    task = compile_task(known)
    request = task.render([task.record({"text": "a", "photo": png()}, None)])
    with closing(connect_batch(known)) as batches:
        line = json.loads(batches.encode_line("r-1", request))
    source = {"type": "base64", "media_type": "image/png", "data": DATA}
    content = line["modelInput"]["messages"][0]["content"]
    assert content == [TEXT, {"type": "image", "source": source}]


# The emulator


DATA = base64.b64encode(png()).decode()


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("data:image/png;base64,!!!", "Invalid base64"),
        ("file:///etc/passwd", "Expected a valid URL"),
        (f"data:image/jpeg;base64,{DATA}", "unsupported image"),
        (f"data:image/png;base64,{base64.b64encode(png()[:-8]).decode()}", "unsupported image"),
        (5, "expected a string, but got an integer"),
    ],
    ids=["base64", "address", "another kind", "cut", "type"],
)
def test_the_emulator_refuses_images_in_openais_words(llm_emulator, url, said):
    part = {"type": "image_url", "image_url": {"url": url}}
    message: Any = {"role": "user", "content": [{"type": "text", "text": "What is it?"}, part]}
    address = f"{llm_emulator.base_url}"
    with (
        openai.OpenAI(base_url=address, api_key=llm_emulator.api_key, max_retries=0) as client,
        pytest.raises(openai.BadRequestError, match=said),
    ):
        client.chat.completions.create(model="gpt-4.1-mini", messages=[message])


@pytest.mark.parametrize(
    ("block", "said"),
    [
        ({"type": "image"}, "source: Field required"),
        ({"type": "image", "source": {"type": "file", "url": "x"}}, "'file'"),
        ({"type": "image", "source": {"type": "url", "url": "http://h/a.png"}}, "Only HTTPS"),
        (
            {
                "type": "image",
                "source": {"type": "base64", "media_type": "image/bmp", "data": DATA},
            },
            "media_type: Input should be",
        ),
        (
            {
                "type": "image",
                "source": {"type": "base64", "media_type": "image/gif", "data": DATA},
            },
            "does not match the provided media type image/gif",
        ),
        (
            {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "?"}},
            "Invalid base64 data",
        ),
    ],
    ids=["no source", "source", "http", "kind", "another kind", "base64"],
)
def test_the_emulator_refuses_images_in_anthropics_words(llm_emulator, block, said):
    address = llm_emulator.environment_of("anthropic")["ANTHROPIC_BASE_URL"]
    message: Any = {"role": "user", "content": [{"type": "text", "text": "What is it?"}, block]}
    with (
        anthropic.Anthropic(
            base_url=address, api_key=llm_emulator.api_key, max_retries=0
        ) as client,
        pytest.raises(anthropic.BadRequestError, match=said),
    ):
        client.messages.create(model="claude-haiku-4-5", messages=[message], max_tokens=50)


# Files


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, llm_emulator: Emulator) -> Path:
    monkeypatch.chdir(tmp_path)
    rows = [{**each, "photo": data_url(each["photo"])} for each in things(6)]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    table = pa.Table.from_pylist(things(6))
    pq.write_table(table, tmp_path / "in.parquet")
    return tmp_path


def rows_of(path: Path) -> list[dict[str, Any]]:
    if path.suffix == ".parquet":
        rows: list[dict[str, Any]] = pq.read_table(path).to_pylist()
    else:
        rows = [json.loads(line) for line in path.read_text().splitlines()]
    return sorted(rows, key=lambda row: row["n"])


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
@pytest.mark.parametrize("mode", ["online", "batch_api"])
def test_files_hold_images_as_data_urls_or_as_bytes(folder, ending, mode):
    batch = ["--mode", "batch_api", "--staging", "staging", "--poll-seconds", "0.05"]
    name = f"in.{ending}"
    flags = [*("--model", MODEL, "--prompt", PROMPT, "--media", "photo", "--batch-size", "3")]
    more = batch if mode == "batch_api" else []
    assert main(["predict", name, "--output", f"out.{ending}", "--quiet", *flags, *more]) == 0
    found = rows_of(folder / f"out.{ending}")
    assert [row["answer"] for row in found] == list(map(colour_of, things(6)))
    assert [row["photo"] for row in found] == [row["photo"] for row in rows_of(folder / name)]


def test_a_request_is_shown_with_its_image_shortened_and_exact_in_python(folder, capsys):
    large = png((1, 2, 3), 90, 70)
    (folder / "one.jsonl").write_text(json.dumps({"text": "a", "photo": data_url(large)}))
    flags = ["--model", MODEL, "--prompt", PROMPT, "--media", "photo", "--show", "1"]
    assert main(["predict", "one.jsonl", *flags]) == 0
    shown = json.loads(capsys.readouterr().out)
    url = shown["request"]["messages"][0]["content"][1]["image_url"]["url"]
    assert url.startswith("data:image/png;base64,iVBORw0KGgo")
    assert url.endswith(" characters)")
    (preview,) = LLMPredict(MODEL, PROMPT, media=["photo"]).preview([{"text": "a", "photo": large}])
    part = preview.body["messages"][0]["content"][1]
    assert part["image_url"]["url"] == data_url(large)


def test_an_estimate_counts_images_and_knows_how_many_a_request_takes(folder, capsys):
    flags = ["--prompt", PROMPT, "--json", "--api-key", "none"]
    tokens = {}
    for media in ([], ["--media", "photo"]):
        assert main(["estimate", "in.parquet", "--model", "mistral:m", *media, *flags]) == 0
        lines = json.loads(capsys.readouterr().out)["by_batch_size"]
        tokens[len(media)] = {line["batch_size"]: line["input_tokens"] for line in lines}
    assert list(tokens[2]) == [1, 5]
    assert tokens[2][1] > tokens[0][1] + 6


def test_a_yaml_step_has_the_option(folder):
    pytest.importorskip("quickjs", reason="needs apache-beam[yaml]")
    (folder / "file.yaml").write_text(
        f"""pipeline:
  type: chain
  transforms:
    - type: ReadFromJson
      config: {{path: "./in.jsonl"}}
    - type: LLMPredict
      config:
        model: {MODEL}
        prompt: "{{% raw %}}Name the colour of this thing: {{{{ text }}}}{{% endraw %}}"
        media: [photo]
        batch_size: 3
        output_field: colour
    - type: WriteToJson
      config: {{path: out.jsonl}}
"""
    )
    assert main(["run", "file.yaml", "--quiet"]) == 0
    found = [
        json.loads(line)
        for path in folder.glob("out.jsonl*")
        for line in path.read_text().splitlines()
    ]
    assert {row["n"]: row["colour"] for row in found} == {
        each["n"]: colour_of(each) for each in things(6)
    }


def test_a_sql_model_has_the_option(folder):
    (folder / "file.sql").write_text(
        f"""
CREATE TABLE things (n BIGINT, text STRING, photo STRING)
  WITH ('connector'='filesystem', 'path'='in.jsonl', 'format'='json');
CREATE TABLE seen (n BIGINT, colour STRING)
  WITH ('connector'='filesystem', 'path'='out/', 'format'='json');
CREATE MODEL eyes INPUT (text STRING, photo STRING) OUTPUT (colour STRING)
  WITH ('provider'='openai', 'model'='gpt-4.1-mini', 'media'='photo', 'batch.size'='3',
    'prompt'='{PROMPT}');
INSERT INTO seen SELECT n, colour FROM ML_PREDICT(
  TABLE things, MODEL eyes, DESCRIPTOR(text, photo));
"""
    )
    assert main(["run", "file.sql", "--quiet"]) == 0
    found = [
        json.loads(line)
        for path in (folder / "out").glob("*")
        for line in path.read_text().splitlines()
    ]
    assert {row["n"]: row["colour"] for row in found} == {
        each["n"]: colour_of(each) for each in things(6)
    }


# More words of refusal: by plain HTTP, for official clients send no such bodies.


def refused(emulator: Emulator, name: str, path: str, body: Any) -> str:
    """What the emulator says of a body; it has to be a 400 or 422."""
    environment = emulator.environment_of(name)
    address = next(value for key, value in environment.items() if key.endswith("_BASE_URL"))
    headers = {"x-goog-api-key": emulator.api_key, "authorization": f"Bearer {emulator.api_key}"}
    request = urllib.request.Request(
        f"{address}{path}",
        json.dumps(body).encode(),
        {"content-type": "application/json", **headers},
    )
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(request)
    with caught.value as answer:
        assert answer.code in (400, 422)
        return answer.read().decode()


@pytest.mark.parametrize(
    ("part", "said"),
    [
        ({"inlineData": {"mimeType": "image/gif", "data": DATA}}, "Unsupported MIME type"),
        ({"inlineData": {"mimeType": "image/png", "data": "?"}}, "Base64 decoding failed"),
        ({"inlineData": {"mimeType": "image/jpeg", "data": DATA}}, "Unable to process input image"),
        ({"inlineData": {"mimeType": "image/png"}}, "data"),
        (
            {"fileData": {"fileUri": "gs://b/a.png", "mimeType": "image/png"}},
            "unsupported file uri",
        ),
        ({"fileData": {"fileUri": "https://h/a.png"}}, "Unsupported MIME type"),
    ],
    ids=["kind", "base64", "another kind", "no data", "gs", "no kind"],
)
def test_the_emulator_refuses_images_in_googles_words(llm_emulator, part, said):
    body = {"contents": [{"parts": [{"text": "What is it?"}, part]}]}
    path = "/v1beta/models/gemini-2.5-flash:generateContent"
    assert said in refused(llm_emulator, "gemini", path, body)


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ([{"type": "image", "image_url": data_url(png())}], "messages"),
        ([{"type": "image_url"}], "image_url"),
        ([{"type": "image_url", "image_url": data_url(png())}] * 9, "Max is 8"),
        ([{"type": "image_url", "image_url": "data:image/png;base64,?"}], "Invalid base64"),
    ],
    ids=["type", "no address", "nine", "base64"],
)
def test_the_emulator_refuses_images_in_mistrals_words(llm_emulator, parts, said):
    message = {"role": "user", "content": [{"type": "text", "text": "What is it?"}, *parts]}
    body = {"model": "mistral-small-latest", "messages": [message]}
    assert said in refused(llm_emulator, "mistral", "/v1/chat/completions", body)
