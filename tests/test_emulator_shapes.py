"""The emulator is as strict as the APIs it stands in for: a body that is wrong anywhere is refused,
by the field's name, with a status that a client must not try again.
"""

from __future__ import annotations

import copy
import http.client
import json
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest

from beam_llm.testing import Emulator
from beam_llm.testing.contracts.completions import PNG
from beam_llm.testing.emulator.shapes import Misfit, SchemaNode, misfit

YES = {
    "type": "object",
    "properties": {"value": {"type": "boolean"}},
    "required": ["value"],
    "additionalProperties": False,
}
BEARER = {"Authorization": "Bearer k"}
ANTHROPIC = {"x-api-key": "k", "anthropic-version": "2023-06-01"}
GOOGLE = {"x-goog-api-key": "k"}

OPENAI_BODY = {
    "model": "openai/gpt-oss-20b",
    "messages": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "hello"}]},
    ],
    "temperature": 0.5,
    "max_tokens": 50,
    "seed": 1,
    "stop": ["x"],
    "n": 1,
    "logprobs": False,
    "response_format": {
        "type": "json_schema",
        "json_schema": {"name": "r", "strict": True, "schema": YES},
    },
}
ANTHROPIC_BODY = {
    "model": "claude-haiku-4-5",
    "max_tokens": 50,
    "messages": [
        {
            "role": "user",
            "content": [
                {
                    "type": "text",
                    "text": "hi",
                    "cache_control": {"type": "ephemeral", "ttl": "5m"},
                }
            ],
        }
    ],
    "system": [{"type": "text", "text": "s"}],
    "temperature": 0.5,
    "top_k": 5,
    "stop_sequences": ["x"],
    "metadata": {"user_id": "u"},
    "output_config": {"format": {"type": "json_schema", "schema": YES}},
    "tools": [{"name": "reply", "description": "d", "input_schema": YES}],
    "tool_choice": {"type": "auto"},
    "thinking": {"type": "disabled"},
}
SMALL_BODY = {  # in a batch, where each change makes a job
    "model": "claude-haiku-4-5",
    "max_tokens": 50,
    "messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}],
}
GEMINI_BODY = {
    "contents": [{"role": "user", "parts": [{"text": "hi"}]}],
    "systemInstruction": {"parts": [{"text": "s"}]},
    "generationConfig": {
        "temperature": 0.5,
        "topP": 0.5,
        "candidateCount": 1,
        "maxOutputTokens": 50,
        "stopSequences": ["x"],
        "seed": 1,
        "responseMimeType": "application/json",
        "responseJsonSchema": YES,
    },
}
OPEN_API_BODY = {
    "contents": [{"role": "user", "parts": [{"text": "hi"}]}],
    "generationConfig": {
        "responseMimeType": "application/json",
        "responseSchema": {"type": "OBJECT", "properties": {"value": {"type": "BOOLEAN"}}},
    },
}
SHAPE = {"jsonSchema": {"schema": json.dumps(YES), "name": "r"}}
CONVERSE_BODY = {
    "messages": [{"role": "user", "content": [{"text": "hi"}]}],
    "system": [{"text": "s"}],
    "inferenceConfig": {"maxTokens": 50, "temperature": 0.5, "stopSequences": ["x"]},
    "outputConfig": {"textFormat": {"type": "json_schema", "structure": SHAPE}},
}
TOOL_SPEC = {"name": "reply", "inputSchema": {"json": YES}}
CONVERSE_TOOL_BODY = {
    "messages": [{"role": "user", "content": [{"text": "hi"}]}],
    "toolConfig": {
        "tools": [{"toolSpec": TOOL_SPEC}],
        "toolChoice": {"tool": {"name": "reply"}},
    },
    "serviceTier": {"type": "default"},
}
MISTRAL_BODY = {
    "model": "m",
    "messages": [{"role": "user", "content": "hi"}],
    "temperature": 0.5,
    "max_tokens": 50,
    "random_seed": 1,
    "stop": ["x"],
    "n": 1,
    "response_format": OPENAI_BODY["response_format"],
}


class Route(NamedTuple):
    """Where a good body goes to."""

    path: str
    headers: dict[str, str]
    body: Any


ROUTES = {
    "openai": Route("/v1/chat/completions", BEARER, OPENAI_BODY),
    "openai's responses": Route(
        "/v1/responses",
        BEARER,
        {
            "model": "m",
            "instructions": "s",
            "input": [{"role": "user", "content": "hello"}],
            "temperature": 0.5,
            "max_output_tokens": 50,
            "text": {"format": {"type": "json_schema", "name": "r", "strict": True, "schema": YES}},
            "metadata": {"a": "b"},
            "store": False,
        },
    ),
    "groq": Route("/groq/openai/v1/chat/completions", BEARER, OPENAI_BODY),
    "xai": Route("/xai/v1/chat/completions", BEARER, OPENAI_BODY),
    "mistral": Route("/mistral/v1/chat/completions", BEARER, MISTRAL_BODY),
    "anthropic": Route("/anthropic/v1/messages", ANTHROPIC, ANTHROPIC_BODY),
    "gemini": Route("/gemini/v1beta/models/g:generateContent", GOOGLE, GEMINI_BODY),
    "gemini 2.0": Route("/gemini/v1beta/models/g:generateContent", GOOGLE, OPEN_API_BODY),
    "vertex": Route(
        "/vertex/v1/projects/p/locations/l/publishers/google/models/g:generateContent",
        BEARER,
        {**GEMINI_BODY, "labels": {"a": "b"}},
    ),
    "bedrock": Route("/bedrock/model/claude-sonnet-4-5/converse", BEARER, CONVERSE_BODY),
    "bedrock's tools": Route("/bedrock/model/claude-3/converse", BEARER, CONVERSE_TOOL_BODY),
    "anthropic's batches": Route(
        "/anthropic/v1/messages/batches",
        ANTHROPIC,
        {"requests": [{"custom_id": "a", "params": SMALL_BODY}]},
    ),
    "gemini's batches": Route(
        "/gemini/v1beta/models/g:batchGenerateContent",
        GOOGLE,
        {
            "batch": {
                "displayName": "x",
                "inputConfig": {
                    "requests": {"requests": [{"request": OPEN_API_BODY, "metadata": {"key": "a"}}]}
                },
            }
        },
    ),
    "openrouter's batches": Route(
        "/openrouter/api/v1/batches",
        BEARER,
        {
            "endpoint": "/api/v1/chat/completions",
            "model": "m",
            "requests": [{"custom_id": "a", "body": {"messages": MISTRAL_BODY["messages"]}}],
        },
    ),
}

_DATA_URL = f"data:image/png;base64,{PNG}"
_ASK = {"type": "text", "text": "What is it?"}
ROUTES |= {
    "openai's images": Route(
        *ROUTES["openai"][:2],
        {
            "model": "m",
            "messages": [
                {
                    "role": "user",
                    "content": [
                        _ASK,
                        {"type": "image_url", "image_url": {"url": _DATA_URL, "detail": "low"}},
                        {"type": "image_url", "image_url": {"url": "https://h/a.png"}},
                    ],
                }
            ],
        },
    ),
    "mistral's images": Route(
        *ROUTES["mistral"][:2],
        {
            "model": "m",
            "messages": [
                {
                    "role": "user",
                    "content": [
                        _ASK,
                        {"type": "image_url", "image_url": _DATA_URL},
                        {"type": "image_url", "image_url": {"url": _DATA_URL}},
                    ],
                }
            ],
        },
    ),
    "anthropic's images": Route(
        *ROUTES["anthropic"][:2],
        {
            "model": "m",
            "max_tokens": 5,
            "messages": [
                {
                    "role": "user",
                    "content": [
                        _ASK,
                        {
                            "type": "image",
                            "source": {"type": "base64", "media_type": "image/png", "data": PNG},
                        },
                        {"type": "image", "source": {"type": "url", "url": "https://h/a.png"}},
                    ],
                }
            ],
        },
    ),
    "gemini's images": Route(
        *ROUTES["gemini"][:2],
        {
            "contents": [
                {
                    "parts": [
                        {"text": "What is it?"},
                        {"inlineData": {"mimeType": "image/png", "data": PNG}},
                        {"inline_data": {"mime_type": "image/png", "data": PNG}},
                        {"fileData": {"mimeType": "image/png", "fileUri": "https://h/a.png"}},
                    ]
                }
            ]
        },
    ),
    "bedrock's images": Route(
        *ROUTES["bedrock"][:2],
        {
            "messages": [
                {
                    "role": "user",
                    "content": [
                        {"text": "What is it?"},
                        {"image": {"format": "png", "source": {"bytes": PNG}}},
                    ],
                }
            ]
        },
    ),
}

Call = Callable[..., tuple[int, bytes]]


@pytest.fixture(scope="module")
def call() -> Iterator[Call]:
    """Calls over one connection, which makes thousands of them cheap."""
    with Emulator(batch_seconds=0.0) as emulator:
        connection = http.client.HTTPConnection("127.0.0.1", emulator.port, timeout=20)

        def call_it(
            path: str, headers: dict[str, str], body: Any = None, method: str = "POST"
        ) -> tuple[int, bytes]:
            data = body if isinstance(body, bytes) else json.dumps(body)
            connection.request(method, path, data if method == "POST" else None, headers)
            answer = connection.getresponse()
            return answer.status, answer.read()

        yield call_it
        connection.close()


def upload(call: Call, path: str, purpose: str, data: bytes) -> tuple[int, Any]:
    parts = (
        b'--x\r\nContent-Disposition: form-data; name="purpose"\r\n\r\n' + purpose.encode(),
        b'\r\n--x\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\n' + data,
        b"\r\n--x--\r\n",
    )
    headers = {**BEARER, "Content-Type": "multipart/form-data; boundary=x"}
    status, answer = call(path, headers, b"".join(parts))
    return status, json.loads(answer)


def places(value: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where anything stands in a JSON value."""
    yield place
    inner = enumerate(value) if isinstance(value, list) else ()
    for name, part in value.items() if isinstance(value, dict) else inner:
        yield from places(part, (*place, name))


def changed(value: Any, place: tuple[Any, ...], other: Any) -> Any:
    if not place:
        return other
    made = copy.deepcopy(value)
    inside = made
    for name in place[:-1]:
        inside = inside[name]
    inside[place[-1]] = other
    return made


@pytest.mark.parametrize("route", ROUTES.values(), ids=ROUTES)
def test_whatever_stands_anywhere_in_a_body_it_is_answered_in_json_and_never_by_a_500(call, route):
    assert call(*route)[0] in (200, 202)
    for place in places(route.body):
        for other in (5, -1.5, "x", [], {}, [5], [{}], None, True):
            status, answer = call(*route._replace(body=changed(route.body, place, other)))
            assert status in (200, 202, 400, 404, 422), (place, other)
            assert json.loads(answer), (place, other)


@pytest.mark.parametrize(
    ("route", "place", "other", "words"),
    [
        ("openai", "temperature", 3, "Invalid 'temperature': decimal above maximum value. Expected a value <= 2"),
        ("openai", "temperature", "0.5", "Invalid type for 'temperature': expected a decimal, but got a string"),
        ("openai", "max_tokens", 0, "Invalid 'max_tokens': integer below minimum value. Expected a value >= 1"),
        ("openai", "seed", 1.5, "Invalid type for 'seed': expected an integer, but got a decimal"),
        ("openai", "messages.0.role", "bot", "Invalid value for 'messages[0].role'"),
        ("openai", "messages.1.content", 5, "Invalid type for 'messages[1].content': expected a string or an array"),
        ("openai", "messages.1", {}, "Missing required parameter: 'messages[1].role'"),
        ("openai", "response_format.json_schema.strikt", True, "Unknown parameter: 'response_format.json_schema.strikt'"),
        ("openai", "response_format.json_schema.name", "a b", "response_format.json_schema.name"),
        ("openai", "response_format.json_schema.schema.properties.value.type", "bool", "schema.properties"),
        ("mistral", "temperature", 1.6, "less than or equal to 1.5"),
        ("mistral", "random_seed", 1.5, "Input should be a valid integer"),
        ("mistral", "messages.0.role", "developer", "one of the values"),
        ("anthropic", "max_tokens", 64_001, "max_tokens: 64001 > 64000, which is the maximum allowed number"),
        ("anthropic", "max_tokens", "5", "max_tokens: Input should be a valid integer"),
        ("anthropic", "stop_sequences", "x", "stop_sequences: Input should be a valid list"),
        ("anthropic", "metadata.team", "x", "metadata.team: Extra inputs are not permitted"),
        ("anthropic", "messages.0.content.0.text", 5, "messages.0.content.0.text: Input should be a valid string"),
        ("anthropic", "tool_choice.type", "tol", "tool_choice.type: Input should be"),
        ("anthropic", "top_k", -1, "top_k: Input should be greater than or equal to"),
        ("gemini", "generationConfig.maxOutputTokens", "5x", "'generation_config.max_output_tokens' (TYPE_INT32)"),
        ("gemini", "generationConfig.seed", 2**31, "generation_config.seed: must be <"),
        ("gemini", "generationConfig.candidateCount", 9, "generation_config.candidate_count: must be <= 8"),
        ("gemini", "generationConfig.responseMimeType", "text/json", "'generation_config.response_mime_type' (TYPE_ENUM)"),
        ("gemini", "contents.0.parts.0", {}, "contents[0].parts[0].data: required oneof field 'data'"),
        ("gemini", "contents.0.parts.0.text", "", "required oneof field 'data' must have one initialized field"),
        ("gemini", "contents.0.parts.0.text", 5, "'contents[0].parts[0].text' (TYPE_STRING)"),
        ("gemini 2.0", "generationConfig.responseSchema.type", "THING", "response_schema.type' (TYPE_ENUM)"),
        ("vertex", "labels.a", 5, "(TYPE_STRING)"),
        ("bedrock", "inferenceConfig.temperature", -0.1, "Value at 'inferenceConfig.temperature' failed to satisfy constraint"),
        ("bedrock", "inferenceConfig.topP", 2, "Value at 'inferenceConfig.topP' failed to satisfy constraint"),
        ("bedrock", "messages.0.name", "x", "extraneous key [name] is not permitted"),
        ("bedrock", "messages.0.content.0.citations", {}, "extraneous key [citations] is not permitted"),
        ("bedrock", "outputConfig.textFormat.type", "json", "'outputConfig.textFormat.type' failed"),
        ("bedrock's tools", "toolConfig.tools", [], "'toolConfig.tools' failed to satisfy constraint"),
        ("bedrock's tools", "serviceTier.type", "slow", "'serviceTier.type' failed to satisfy constraint"),
        ("anthropic's batches", "requests.0.custom_id", 5, "custom_id: Input should be a valid string"),
        ("gemini's batches", "batch.inputConfig.requests.requests", [], "requests"),
        ("gemini's batches", "batch.displayName", 5, "display_name"),
        ("openrouter's batches", "requests.0.body", "x", "type object"),
        ("openrouter's batches", "requests.0.note", "x", "unknown"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_what_is_wrong_is_refused_by_its_place(call, route, place, other, words):
    path, headers, body = ROUTES[route]
    steps = tuple(int(step) if step.isdecimal() else step for step in place.split("."))
    status, answer = call(path, headers, changed(body, steps, other))
    assert status in (400, 422)
    assert words in json.dumps(json.loads(answer), ensure_ascii=False).replace('\\"', '"')


CREATE = {
    "endpoint": "/v1/chat/completions",
    "completion_window": "24h",
    "output_expires_after": {"anchor": "created_at", "seconds": 3_600},
}
LINE = {"custom_id": "a", "body": {"messages": [{"role": "user", "content": "hi"}]}}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"complete_window": "24h"}, "Unknown parameter: 'complete_window'"),
        ({"output_expires_after": {"anchor": "created_at", "seconds": 3_599}}, "'output_expires_after.seconds'"),
        ({"output_expires_after": {"anchor": "now", "seconds": 3_600}}, "'output_expires_after.anchor'"),
        ({"endpoint": 5}, "Invalid type for 'endpoint'"),
        ({"metadata": {"a": 5}}, "Invalid 'metadata'"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_openais_create_knows_its_fields(call, changes, words):
    _, file = upload(call, "/v1/files", "batch", b"{}\n")
    good = {**CREATE, "input_file_id": file["id"]}
    assert call("/v1/batches", BEARER, good)[0] == 200
    status, answer = call("/v1/batches", BEARER, {**good, **changes})
    assert status == 400
    assert words in json.loads(answer)["error"]["message"]


def test_openai_knows_what_a_file_may_be_for(call):
    assert upload(call, "/v1/files", "batch", b"{}\n")[0] == 200
    status, answer = upload(call, "/v1/files", "batches", b"{}\n")
    assert status == 400
    assert "'batches' is not one of" in answer["error"]["message"]


@pytest.mark.parametrize(
    ("changes", "code", "param"),
    [
        ({"custom_id": 5}, "invalid_type", "custom_id"),
        ({"url": 5}, "invalid_type", "url"),
        ({"method": ["POST"]}, "invalid_type", "method"),
        ({"body": "x"}, "invalid_type", "body"),
        ({"body": {"model": 5}}, "invalid_request", "body.model"),
        ({"url": None}, "missing_required_parameter", "url"),
    ],
    ids=lambda value: str(value),
)
def test_a_line_of_another_type_fails_openais_job_and_does_not_keep_it_validating(
    call, changes, code, param
):
    line = {**LINE, "method": "POST", "url": "/v1/chat/completions", **changes}
    _, file = upload(call, "/v1/files", "batch", json.dumps(line).encode() + b"\n")
    _, made = call("/v1/batches", BEARER, {**CREATE, "input_file_id": file["id"]})
    job = json.loads(made)
    while job["status"] == "validating":
        job = json.loads(call(f"/v1/batches/{job['id']}", BEARER, method="GET")[1])
    assert job["status"] == "failed"
    error = job["errors"]["data"][0]
    assert (error["code"], error["param"], error["line"]) == (code, param, 1)


@pytest.mark.parametrize(
    "line", [b"{", b"[]", b'{"custom_id": "a"}', b'{"custom_id": 5, "body": {}}'], ids=repr
)
def test_mistral_refuses_a_file_with_a_faulty_line_at_its_upload(call, line):
    good = json.dumps(LINE).encode() + b"\n"
    assert upload(call, "/mistral/v1/files", "batch", good)[0] == 200
    status, answer = upload(call, "/mistral/v1/files", "batch", good + line + b"\n")
    assert status == 422
    assert answer["errors"][0]["line_number"] == 2


@pytest.mark.parametrize(
    ("path", "headers"),
    [
        ("/gemini/v1beta/batches?pageToken=x", GOOGLE),
        ("/gemini/v1beta/batches?pageSize=-1", GOOGLE),
        ("/vertex/v1/projects/p/locations/l/batchPredictionJobs?pageSize=many", BEARER),
        ("/bedrock/model-invocation-jobs?nextToken=%C2%B2", BEARER),
        ("/bedrock/model-invocation-jobs?maxResults=0", BEARER),
        ("/fireworks/v1/accounts/a/batchInferenceJobs?pageToken=x", BEARER),
        ("/xai/v1/batches?pagination_token=x", BEARER),
        ("/v1/batches?limit=0", BEARER),
        ("/anthropic/v1/messages/batches?limit=1001", ANTHROPIC),
    ],
)
def test_a_page_that_cant_be_is_refused(call, path, headers):
    status, answer = call(path, headers, method="GET")
    assert status == 400
    assert json.loads(answer)


NO_BOUNDARY = {**BEARER, "Content-Type": "multipart/form-data"}
PARTS = {**BEARER, "Content-Type": "multipart/form-data; boundary=x"}
UPLOAD = {"X-Goog-Upload-Offset": "0", "X-Goog-Upload-Command": "upload, finalize", **GOOGLE}
VERTEX_JOBS = "/vertex/v1/projects/p/locations/l/batchPredictionJobs"
VERTEX_JOB = {
    "displayName": "x",
    "model": "publishers/google/models/g",
    "inputConfig": {"instancesFormat": "jsonl", "gcsSource": {"uris": ["gs://a/b"]}},
    "outputConfig": {
        "predictionsFormat": "jsonl",
        "gcsDestination": {"outputUriPrefix": "gs://a/c"},
    },
}
BEDROCK_JOB = {
    "jobName": "a",
    "roleArn": "arn:aws:iam::123456789012:role/x",
    "modelId": "m",
    "modelInvocationType": "Converse",
    "inputDataConfig": {"s3InputDataConfig": {"s3Uri": "s3://a/b"}},
    "outputDataConfig": {"s3OutputDataConfig": {"s3Uri": "s3://a/c"}},
}


@pytest.mark.parametrize(
    ("path", "headers", "body"),
    [
        ("/v1/files", NO_BOUNDARY, b"x"),
        ("/v1/files", PARTS, b""),
        ("/v1/files", PARTS, b"--x\r\nno header\r\n"),
        ("/mistral/v1/files", NO_BOUNDARY, b"x"),
        ("/gemini/upload/v1beta/files?upload_id=../../a-5", UPLOAD, b"12345"),
        ("/gemini/upload/v1beta/files?upload_id=0123456789ab-x", UPLOAD, b"12345"),
        ("/gemini/upload/v1beta/files?upload_id=0123456789ab-5", {**UPLOAD, "X-Goog-Upload-Offset": "x"}, b"12345"),
        ("/gemini/v1beta/models/g:batchGenerateContent", GOOGLE, b"{"),
        ("/fireworks/v1/accounts/a/datasets", BEARER, b"[]"),
        ("/mistral/v1/batch/jobs?page=x", BEARER, None),
        ("/_emulator/faults", {}, b"{"),
        ("/_emulator/faults", {}, b'[{"kind": "no such fault"}]'),
        *((VERTEX_JOBS, BEARER, {**VERTEX_JOB, name: 5}) for name in VERTEX_JOB),
        (VERTEX_JOBS, BEARER, changed(VERTEX_JOB, ("inputConfig", "gcsSource"), {"uris": 5})),
        *(("/bedrock/model-invocation-job", BEARER, {**BEDROCK_JOB, name: 5}) for name in BEDROCK_JOB),
        ("/bedrock/model-invocation-job", BEARER, {**BEDROCK_JOB, "timeoutDurationInHours": 23}),
    ],
)  # fmt: skip
def test_whatever_comes_to_another_route_is_refused_and_no_failure(call, path, headers, body):
    status, answer = call(path, headers, body, method="GET" if body is None else "POST")
    assert status in (400, 422)
    assert json.loads(answer)


def test_anthropic_takes_32_mb_of_a_live_call(call):
    body = {**ANTHROPIC_BODY, "system": "x" * 32 * 2**20}
    status, answer = call("/anthropic/v1/messages", ANTHROPIC, body)
    assert (status, json.loads(answer)["error"]["type"]) == (413, "request_too_large")


def test_a_word_of_the_body_is_not_taken_for_a_place():
    found = misfit({"type": "x` - at `$.y"}, SchemaNode)
    assert found == Misfit("type", "word")


def test_a_schema_that_is_too_deep_is_a_misfit():
    deep: dict[str, Any] = {}
    for _ in range(100_000):
        deep = {"items": deep}
    found = misfit(deep, SchemaNode)
    assert found is not None
    assert found.rule == "bound"
