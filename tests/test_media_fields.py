"""What a field may hold that stands for an image, what else is said of it, and what an image counts:
in keys, sizes, tokens and limits.
"""

from __future__ import annotations

import base64
import itertools
import math
import os
import textwrap
from contextlib import closing
from typing import Any
from unittest import mock
from urllib.parse import quote

import hypothesis
import pytest
from hypothesis import strategies as st

from beam_llm import LLMPredict, UsageError
from beam_llm.config import settings
from beam_llm.errors import PromptError
from beam_llm.ledger.parts import PartReader, PartWriter
from beam_llm.prompting.batching import Batcher, prompt_caps
from beam_llm.prompting.chat_task import ChatTask
from beam_llm.prompting.image_files import size_of
from beam_llm.providers import compile_task, connect_batch, encode
from beam_llm.providers.images import CLAUDE_TOKENS, GEMINI_TOKENS, OPENAI_TOKENS, by_model
from beam_llm.stores.local import LocalStore
from beam_llm.values import Media, Message, Record
from tests.pictures import GIF, JPEG, PDF, WEBP, png

RED = png()
BASE64 = base64.b64encode(RED).decode()
DATA_URL = f"data:image/png;base64,{BASE64}"
JPEG_ODD = JPEG + b"\0" * ((1 - len(JPEG)) % 3)
BASE64_ODD = base64.b64encode(JPEG_ODD).decode()
"""Of a length that base64 fills up with two signs."""


def task_of(model: str = "openai:gpt-4.1-mini", **options: Any) -> Any:
    return compile_task(settings(model, **{"prompt": "{{ text }}", "media": ["photo"]} | options))


def media_of(value: Any, model: str = "openai:gpt-4.1-mini") -> tuple[Media, ...]:
    record: Record = task_of(model).record({"text": "a", "photo": value}, None)
    return record.media


def media(kind: str = "image/png", data: bytes = RED) -> Media:
    return Media("photo", kind, base64.b64encode(data).decode())


@pytest.mark.parametrize(
    ("value", "found"),
    [
        (RED, [media()]),
        (bytearray(RED), [media()]),
        (memoryview(RED), [media()]),
        (JPEG, [media("image/jpeg", JPEG)]),
        (WEBP, [media("image/webp", WEBP)]),
        (GIF, [media("image/gif", GIF)]),
        (DATA_URL, [media()]),
        (f"data:image/jpeg;charset=x;BASE64,{BASE64}\n", [media()]),
        (f"DATA:IMAGE/PNG;BASE64,{BASE64}", [media()]),
        (" data:image/png;base64,\n" + "\r\n".join(textwrap.wrap(BASE64, 20)), [media()]),
        (f"data:image/png;base64,{quote(BASE64, safe='')}", [media()]),
        (f"data:image/jpeg;base64,{BASE64_ODD.rstrip('=')}", [media("image/jpeg", JPEG_ODD)]),
        ("https://host/a%20cat.JPG?size=2", [Media("photo", "image/jpeg", uri="…")]),
        ("HTTP://host:8080/cat", [Media("photo", "", uri="…")]),
        ([RED, None, DATA_URL], [media(), media()]),
        ([math.nan, RED], [media()]),
        (math.nan, []),  # what pandas has for None
        ({"bytes": RED, "path": "cat.png"}, [media()]),
        ({"bytes": None, "path": None}, []),
        (None, []),
        ("", []),
        ([], []),
    ],
    ids=itertools.count(),
)
def test_what_stands_for_an_image(value, found):
    uris = [one._replace(uri=value) if one.uri else one for one in found]
    assert list(media_of(value)) == uris


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (PDF, "9 bytes, a PDF file: it has to be bytes (PNG, JPEG, WebP, GIF)"),
        (b"secret-data", "11 bytes, not an image that is known here"),
        (b"", "0 bytes"),
        ("/data/me/secret-data.png", "a text of 24 characters, which is not an image"),
        ("https://", "a text of 8 characters"),
        ("https://host/a secret-data", "a text of 26 characters"),
        ("https://[::1/secret-data", "a text of 24 characters"),
        ("ftp://host/secret-data.png", "a text of 26 characters"),
        ("gs://bucket/secret-data.png", "a text of 27 characters"),
        ("data:image/png,secret-data", "data is not base64"),
        ("data:image/png;base64,secret-data", "data is not base64"),
        ("data:image/png;base64,", "0 bytes"),
        (5, "type int"),
        ({"path": "secret-data"}, "type dict"),
        ([[RED]], "type list"),
    ],
    ids=itertools.count(),
)
def test_what_is_not_an_image_is_named_with_what_is_allowed_and_not_shown(value, said):
    with pytest.raises(PromptError) as caught:
        media_of(value)
    assert "'photo' holds" in str(caught.value)
    assert said in str(caught.value)
    assert "secret" not in str(caught.value)


def test_a_missing_field_is_named():
    with pytest.raises(PromptError, match="media names the field 'photo', .* it has 'text'"):
        task_of().record({"text": "a"}, None)


anything = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.binary(max_size=60).map(lambda data: b"\x89PNG\r\n\x1a\n" + data)
    | st.binary(max_size=60).map(lambda data: b"\xff\xd8\xff" + data)
    | st.binary(max_size=60).map(lambda data: b"RIFF\0\0\0\0WEBP" + data)
    | st.binary(max_size=60)
    | st.text(max_size=40)
    | st.text(max_size=40).map(lambda text: f"data:image/png;base64,{text}")
    | st.text(max_size=40).map(lambda text: f"https://{text}"),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)


@hypothesis.given(anything)
@hypothesis.settings(deadline=None, max_examples=300)
def test_whatever_a_field_holds_it_is_asked_about_or_is_its_records_own_error(value):
    for model in ("openai:m", "gemini:m", "anthropic:m"):
        task = task_of(model)
        try:
            record = task.record({"text": "a", "photo": value}, None)
        except PromptError as error:
            said = str(error)
            hypothesis.event("its own error")
        else:
            said = ""
        assert len(said) < 400
        if said:
            continue
        assert all(type(part) is str for one in record.media for part in one)
        assert 0 < record.tokens < 100_000  # whatever size a file claims
        assert encode(task.settings, task.render([record]))


# How it stands in a prompt


def parts_of(message: Message) -> list[str]:
    return [part if isinstance(part, str) else f"<{part.name}>" for part in message.parts()]


def test_one_records_images_follow_its_text_and_several_fields_are_named():
    one = task_of(prompt="What is it? {{ text }}")
    (message,) = one.render([one.record({"text": "a", "photo": RED}, None)]).messages
    assert parts_of(message) == ["What is it? a", "<photo>"]
    both = task_of(media=["photo", "back"])
    record = both.record({"text": "a", "photo": [RED, RED], "back": RED}, None)
    (message,) = both.render([record]).messages
    expected = ["a\nphoto:", "<photo>", "\nphoto:", "<photo>", "\nback:", "<back>"]
    assert parts_of(message) == expected


def test_each_of_several_records_has_its_number_before_its_image():
    task = task_of(prompt="What is it? {{ text }}", batch_size=3)
    values = (RED, None, [RED, JPEG])
    records = [task.record({"text": f"t{n}", "photo": v}, None) for n, v in enumerate(values)]
    (message,) = task.render(records).messages
    first, *others = parts_of(message)
    assert first.endswith('\nInput 1: "t0"\nInput 1, photo:')
    assert others == [
        "<photo>",
        '\nInput 2: "t1"\nInput 3: "t2"\nInput 3, photo:',
        "<photo>",
        "\nInput 3, photo:",
        "<photo>",
    ]


@pytest.mark.parametrize(
    ("prompt", "text"),
    [
        ("{{ element }}", '{"text":"a","photo":"[photo]"}'),
        ("Look at {{ photo }}: {{ text }}", "Look at [photo]: a"),
        ("{% if photo %}yes{% endif %} {{ element.text }}", "yes a"),
        ("What is it?", "What is it?"),
    ],
    ids=["element", "field", "logic", "no text"],
)
def test_an_image_is_never_shown_as_text(prompt, text):
    task = task_of(prompt=prompt)
    fields = {"text": "a", "photo": RED}
    (message,) = task.render([task.record(fields, fields)]).messages
    assert parts_of(message) == [text, "<photo>"]


def test_an_element_that_is_an_image_itself_is_asked_about():
    task = task_of(prompt="What is it?", media=["element"], batch_size=2)
    record = task.record({}, RED)
    assert record.media == (media()._replace(name="element"),)
    text = parts_of(task.render([record, record]).messages[-1])
    assert text[-2:] == ["\nInput 2: {}\nInput 2, element:", "<element>"]


def test_what_all_prompts_have_in_common_is_marked_before_the_image():
    long = "Look closely at what is there, and at nothing else. " * 800
    for model in ("anthropic:claude-haiku-4-5", "bedrock:anthropic.claude-haiku-4-5"):
        with mock.patch.dict(os.environ, {"AWS_REGION": "us-east-1"}):
            task = task_of(model, prompt=f"{long}\n{{{{ text }}}}")
            body = encode(
                task.settings, task.render([task.record({"text": "a", "photo": RED}, None)])
            )
        mark = b"cache_control" if model.startswith("anthropic") else b"cachePoint"
        assert body.count(mark) == 1
        assert body.index(mark) < body.index(b'"text":"a"') < body.index(BASE64.encode())


# What it counts


def key_of(value: Any, text: str = "a", **options: Any) -> bytes:
    task = task_of(**options)
    key: bytes = task.key(task.record({"text": text, "photo": value}, None))
    return key


def test_the_same_text_with_another_image_is_another_question():
    keys = {key_of(value) for value in (RED, JPEG, None, [RED, RED], "https://host/cat.png")}
    assert len(keys) == 5
    assert key_of(RED) == key_of(DATA_URL) == key_of([RED]) == key_of(RED, batch_size=10)
    alone = task_of(media=None)
    assert alone.key(alone.record({"text": "a"}, None)) != key_of(None)


def test_a_text_that_looks_like_a_text_with_an_image_is_another_question():
    framed = f"1:a5:media5:photo9:image/png{len(BASE64)}:{BASE64}0:"
    assert key_of(None, framed) != key_of(RED)


def test_answers_to_texts_alone_stay_known():
    """The fingerprint of a task without images is as it was before there were any."""
    fields = {"prompt": "{{ text }}", "base_url": "http://h", "api_key": "none"}
    known = ChatTask(settings("openai:m", **fields)).fingerprint.hex()
    assert ChatTask(settings("openai:m", media=[], **fields)).fingerprint.hex() == known


def test_a_part_keeps_images_and_a_stream_does(tmp_path):
    task = task_of()
    records = [task.record({"text": "a", "photo": v}, None) for v in ([RED, JPEG], None)]
    with closing(PartWriter(LocalStore(str(tmp_path)))) as writer:
        for record in records:
            writer.add(task.key(record), record, b"envelope")
        part = writer.finish(0)
    reader = PartReader(LocalStore(str(tmp_path)), part.name)
    assert [reader.record(row) for row in range(2)] == records


@pytest.mark.parametrize(
    "model", ["openai:gpt-4.1-mini", "mistral:m", "anthropic:claude-haiku-4-5", "gemini:m"]
)
@pytest.mark.parametrize("count", [1, 7])
def test_a_jobs_line_is_never_larger_than_it_was_counted(tmp_path, model, count, monkeypatch):
    for name in ("OPENAI", "MISTRAL", "ANTHROPIC", "GEMINI"):
        monkeypatch.setenv(f"{name}_API_KEY", "k")
    task = task_of(model, batch_size=count, mode="batch_api", staging_location=str(tmp_path))
    fields = {"text": 'say "so" \\ 16:9', "photo": [RED, png((1, 2, 3), 40, 40)]}
    fields["photo"] = fields["photo"][: 8 // count]
    record = task.record(fields, None)
    with closing(PartWriter(LocalStore(str(tmp_path)))) as writer:
        writer.add(task.key(record), record, b"")
        part = writer.finish(0)
    size = int(PartReader(LocalStore(str(tmp_path)), part.name).sizes[0])
    empty = task.size(task.render([record] * count)) - count * size
    line = connect_batch(task.settings).encode_line("r-1", task.render([record] * count))
    # As the planner adds it up: `_FRAME_BYTES` and 24 a record come on top.
    assert len(line) <= max(empty, 0) + count * (size + 24) + 400


@pytest.mark.parametrize(
    ("data", "size"),
    [
        (png((0, 0, 0), 640, 480), (640, 480)),
        (JPEG, (32, 16)),
        (GIF, (7, 5)),
        (WEBP, (9, 5)),
        (b"RIFF\0\0\0\0WEBPVP8X" + b"\0" * 8 + b"\x07\0\0\x03\0\0", (8, 4)),
        (b"RIFF\0\0\0\0WEBPVP8 " + b"\0" * 10 + b"\x20\0\x10\0", (32, 16)),
        (JPEG[:20], (0, 0)),
        (RED[:18], (0, 0)),
        (b"\xff\xd8" + b"\xff" * 50, (0, 0)),
        (PDF, (0, 0)),
    ],
    ids=itertools.count(),
)
def test_an_images_size_is_read_from_its_head(data, size):
    assert size_of(data) == size


@pytest.mark.parametrize(
    ("table", "model", "size", "tokens"),
    [
        (OPENAI_TOKENS, "gpt-4o", (1024, 1024), 765),
        (OPENAI_TOKENS, "gpt-4o", (2048, 4096), 1105),
        (OPENAI_TOKENS, "gpt-4.1-mini", (1024, 1024), 1660),
        (OPENAI_TOKENS, "gpt-4.1-mini", (1800, 2400), 2490),
        (CLAUDE_TOKENS, "claude-haiku-4-5", (1092, 1092), 1594),
        (CLAUDE_TOKENS, "claude-haiku-4-5", (4000, 4000), 1640),
        (CLAUDE_TOKENS, "claude-opus-4-8", (4000, 4000), 4900),
        (GEMINI_TOKENS, "gemini-2.5-flash", (384, 384), 258),
        (GEMINI_TOKENS, "gemini-2.5-flash", (960, 540), 258 * 6),
        (GEMINI_TOKENS, "gemini-3-pro", (10, 10), 1120),
    ],
    ids=itertools.count(),
)
def test_images_are_counted_as_their_providers_count_them(table, model, size, tokens):
    """The examples of their guides, where there is one."""
    count = by_model(table, model)
    assert tokens <= count(*size) <= tokens * 1.01 + 1
    assert count(0, 0) >= tokens


# Limits


@pytest.mark.parametrize(
    ("model", "options", "said"),
    [
        ("openai:gpt-3.5-turbo", {}, "takes no images"),
        ("groq:openai/gpt-oss-20b", {}, "takes no images"),
        ("groq:llama-4", {"batch_size": 6}, "takes 5 images a request; write batch_size=5"),
        ("mistral:m", {"batch_size": 5, "media": "photo, back"}, "write batch_size=4"),
        ("openai:m", {"batch_prompt_template": "{{ records }}"}, "no place for images"),
        ("openai:text-embedding-3-small", {"task": "embed"}, "an option of LLMPredict"),
        ("openai:m", {"media": 5}, "it has to be a list of names"),
        ("openai:m", {"media": ["photo", "photo"]}, "it has to name each field once"),
    ],
    ids=[
        "model",
        "model by server",
        "size",
        "fields",
        "template",
        "task",
        "type",
        "twice",
    ],
)
def test_what_can_never_be_sent_is_refused_where_the_pipeline_is_built(
    monkeypatch, model, options, said
):
    with pytest.raises(UsageError, match=said.replace("(", r"\(")):
        LLMPredict(model, "{{ text }}", **{"media": ["photo"], "api_key": "none", **options})


@pytest.mark.parametrize("model", ["azure:gpt-4", "openai:gpt-4"])
def test_a_name_of_somebodys_own_says_nothing_of_what_is_behind_it(model):
    at = {"base_url": "http://127.0.0.1:1/v1", "api_key": "none"}
    for text in ("", None):
        assert task_of(model, **at).record({"text": text, "photo": RED}, None).media


def test_a_record_with_more_images_than_its_share_is_its_own_error():
    task = task_of("groq:llama-4", batch_size=2)
    assert len(task.record({"text": "", "photo": [RED] * 2}, None).media) == 2
    with pytest.raises(PromptError, match="3 images; groq: takes 5 a request, which leaves 2"):
        task.record({"text": "", "photo": [RED] * 3}, None)


@pytest.mark.parametrize(
    ("model", "value", "said"),
    [
        ("gemini:m", GIF, "a GIF file: it has to be bytes (PNG, JPEG, WebP)"),
        ("gemini:m", "gs://bucket/cat.png", "a text of 19 characters"),
        ("gemini:m", "https://host/cat", "does not end in a kind of image"),
        ("xai:m", WEBP, "a WebP file"),
        ("anthropic:m", "http://host/cat.png", "an address with https://, a list"),
        ("anthropic:m", RED + b"\0" * 4_000_000, "takes 3,932,160; make it smaller"),
    ],
    ids=itertools.count(),
)
def test_what_one_provider_does_not_take_is_said_record_by_record(model, value, said):
    with pytest.raises(PromptError) as caught:
        media_of(value, model)
    assert said in str(caught.value)


def test_a_prompt_is_full_where_its_images_fill_a_request():
    task = task_of("groq:llama-4", batch_size=5)
    caps = prompt_caps(task.settings, task)
    assert (caps.records, caps.bytes) == (5, 3_900_000)
    large = RED + b"\0" * 1_000_000
    batcher: Batcher[int] = Batcher(caps)
    closed = []
    for n in range(4):
        record = task.record({"text": "a", "photo": large}, None)
        closed += batcher.add(record, n)
    sizes = [[n for _, n in batch] for batch in [*closed, *batcher.flush()]]
    assert sizes == [[0, 1], [2, 3]]
    huge = task.record({"text": "a", "photo": RED + b"\0" * 3_000_000}, None)
    assert batcher.is_too_large(huge)
    assert "the provider, or batch_max_bytes," in batcher.too_large_failure(huge).message


def test_a_line_of_a_job_may_hold_less_than_a_live_request(tmp_path):
    job = {"mode": "batch_api", "staging_location": str(tmp_path)}
    for options, most in (({}, 48_000_000), (job, 24_000_000)):
        task = task_of("xai:m", batch_size=5, **options)
        assert prompt_caps(task.settings, task).bytes == most


def test_auto_sizes_stay_within_the_images_of_a_request():
    task = task_of("mistral:m", batch_size="auto")
    assert prompt_caps(task.settings, task).records == 8
