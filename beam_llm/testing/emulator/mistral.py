"""Mistral's wire format: chat completions with parameters of its own, embeddings, files, and batch
jobs at `/v1/batch/jobs`.

Source: SDK mistralai 3.7.0, recorded traffic of 2026-08; read 2026-11.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Iterator
from typing import Annotated, Any, Literal

import msgspec
import orjson
from aiohttp import web

from beam_llm.testing.emulator.chat import Answer
from beam_llm.testing.emulator.clockwork import TERMINAL
from beam_llm.testing.emulator.connection import before_work, send_lines
from beam_llm.testing.emulator.dialects import (
    Dialect,
    Job,
    Line,
    LineResult,
    ModelRequest,
    NewJob,
    Reply,
)
from beam_llm.testing.emulator.models import EMBED
from beam_llm.testing.emulator.pictures import part_of_address, refusal
from beam_llm.testing.emulator.shapes import Misfit, PositiveInt, Share, by_pydantic, misfit
from beam_llm.testing.emulator.wire import (
    WireError,
    json_of,
    json_response,
    parse_page,
    unknown_model,
    with_json,
)
from beam_llm.testing.emulator.work import CANCELLED, EXPIRED, line_results, without_version

_FIELDS = frozenset(
    (
        "model", "messages", "temperature", "top_p", "max_tokens", "stream", "stop",
        "random_seed", "metadata", "response_format", "tools", "tool_choice",
        "presence_penalty", "frequency_penalty", "min_tokens", "repetition_penalty", "top_k",
        "logprobs", "top_logprobs", "n", "prediction", "parallel_tool_calls",
        "reasoning_effort", "prompt_mode", "guardrails", "prompt_cache_key", "service_tier",
        "safe_prompt",
    )
)  # fmt: skip
_JOB_FIELDS = frozenset(
    (
        "endpoint", "input_files", "requests", "model", "agent_id", "metadata", "timeout_hours",
    )
)  # fmt: skip


class _ImageUrl(msgspec.Struct, forbid_unknown_fields=True):
    url: str
    detail: str | None = None


class _Text(msgspec.Struct, tag_field="type", tag="text", forbid_unknown_fields=True):
    text: str


class _Image(msgspec.Struct, tag_field="type", tag="image_url", forbid_unknown_fields=True):
    image_url: str | _ImageUrl


_MOST_IMAGES = 8
"""The most images of a request; for the source, see `providers.images.MISTRAL_IMAGES`."""


class _Message(msgspec.Struct):
    role: Literal["system", "user", "assistant", "tool"]
    content: str | list[_Text | _Image] | None = None


class _Body(msgspec.Struct):
    """Types and bounds. Source: SDK mistralai 3.7.0 (ChatCompletionRequest)."""

    model: str
    messages: list[_Message]
    temperature: Annotated[float, msgspec.Meta(ge=0, le=1.5)] | None = None
    top_p: Share | None = None
    max_tokens: Annotated[int, msgspec.Meta(ge=0)] | None = None
    random_seed: int | None = None
    stop: str | list[str] | None = None
    n: PositiveInt | None = None
    metadata: dict[str, Any] | None = None
    safe_prompt: bool | None = None


class _EmbedBody(msgspec.Struct, forbid_unknown_fields=True):
    """Source: SDK mistralai 3.7.0 (EmbeddingRequest)."""

    model: str
    input: str | Annotated[list[str], msgspec.Meta(min_length=1)]
    output_dimension: PositiveInt | None = None
    output_dtype: Literal["float"] | None = None
    encoding_format: Literal["float", "base64"] | None = None
    metadata: dict[str, Any] | None = None


_MOST_TEXTS = 256
"""The most texts of a request for vectors. Source: rig-core 0.42, which was tried against the real
API, read 2026-11."""


class _Create(msgspec.Struct):
    endpoint: Literal["/v1/chat/completions", "/v1/embeddings"]
    model: str
    input_files: list[str] | None = None
    metadata: dict[str, str] | None = None
    timeout_hours: Annotated[int, msgspec.Meta(ge=1, le=168)] = 24


class _Entry(msgspec.Struct):
    """A line of an input. Its id may be left out, and is null in the results then."""

    body: dict[str, Any]
    custom_id: str | None = None


_WORDS = {
    "validating": "QUEUED",
    "in_progress": "RUNNING",
    "finalizing": "RUNNING",
    "cancelling": "CANCELLATION_REQUESTED",
    "completed": "SUCCESS",
    "failed": "FAILED",
    "expired": "TIMEOUT_EXCEEDED",
    "cancelled": "CANCELLED",
}


class Wire(Dialect):
    """Mistral's wire format under `/mistral`. As at the real API, errors are in pydantic's form:
    they name the place of what is wrong.
    """

    name = "mistral"
    variables = ("MISTRAL_BASE_URL", "MISTRAL_API_KEY")

    async def handle(self, request: web.BaseRequest, path: str) -> Reply | None:
        path = path.removeprefix("/v1")
        if path == "/chat/completions" and request.method == "POST":
            return await self.service.live(request, self, self._parse_request)
        if path == EMBED and request.method == "POST":
            parse = self._parse_embedding_request
            return await self.service.live(request, self, parse, self.service.embedder)
        if path == "/files" or path.startswith("/files/"):
            return await self._files(request, path)
        if path == "/batch/jobs" or path.startswith("/batch/jobs/"):
            return await self._jobs(request, path.removeprefix("/batch/jobs"))
        return None

    def error(self, error: WireError) -> web.Response:
        """Errors about a body are objects of their own; the gateway's errors are a bare
        `detail`.
        """
        if error.status == 401:
            is_usual = error.code == "invalid_api_key"
            detail = "Invalid API Key" if is_usual else error.message
            return json_response({"detail": detail}, 401, error.headers)
        if error.code == "invalid_file_format":
            wrong = {"message": error.message, "line_number": int(error.param or 0) + 1}
            found = {"description": "Found 1 error in this file.", "errors": [wrong]}
            return json_response({"detail": "Invalid file format.", **found}, 422, error.headers)
        if error.status == 422:
            message: Any = {"detail": [_detail(error)]}
        else:
            message = error.message
        body = {
            "object": "error",
            "message": message,
            "type": error.type,
            "param": None,
            "code": error.code,
            "raw_status_code": error.status,
        }
        return json_response(body, error.status, error.headers)

    def headers(self, number: int, seconds: float | None = None) -> dict[str, str]:
        named = {"mistral-correlation-id": f"{self.service.started}-{number}"}
        limits = self.service.limits.headers()
        for theirs, ours in (("req-minute", "requests"), ("tokens-minute", "tokens")):
            for kind in ("limit", "remaining"):
                if f"x-ratelimit-{kind}-{ours}" in limits:
                    named[f"x-ratelimit-{kind}-{theirs}"] = limits[f"x-ratelimit-{kind}-{ours}"]
        return named

    # Live calls.

    def _parse_request(self, body: Any) -> ModelRequest | WireError:
        problem = _problem(body)
        if problem is not None:
            return problem
        if not self.service.chat.knows(body["model"]):
            return unknown_model(body["model"])._replace(status=400, code="1500")
        # Fields that OpenAI doesn't know, or knows under another name, are removed.
        images = refusal(map(_in_openai_shape, body["messages"]), _MOST_IMAGES)
        if images is not None:
            return WireError(400, images.message, code="3051")
        messages = list(map(_in_openai_shape, body["messages"]))
        renamed = {**body, "seed": body.get("random_seed"), "messages": messages}
        for name in ("random_seed", "safe_prompt", "metadata"):
            renamed.pop(name, None)
        error = self.service.chat.check(renamed)
        return ModelRequest(renamed) if error is None else error

    def _parse_embedding_request(self, body: Any) -> ModelRequest | WireError:
        if (wrong := misfit(body, _EmbedBody)) is not None:
            return _misfit_error(wrong)
        if isinstance(body["input"], list) and len(body["input"]) > _MOST_TEXTS:
            message = "Too many inputs in request, split into more batches."
            return WireError(400, message, code="3210")
        if not self.service.embedder.knows(body["model"]):
            return unknown_model(body["model"])._replace(status=400, code="1500")
        renamed = {"dimensions": body.get("output_dimension")}
        renamed |= {name: body.get(name) for name in ("model", "input", "encoding_format")}
        translated = {name: value for name, value in renamed.items() if value is not None}
        error = self.service.embedder.check(translated)
        return ModelRequest(translated) if error is None else error

    def reply(self, answer: Answer, parsed: ModelRequest, reply_id: str) -> Any:
        usage = answer.body["usage"]
        named = {"id": uuid.uuid5(uuid.NAMESPACE_URL, reply_id).hex}
        if "data" in answer.body:
            return {**named, **answer.body, "usage": {**usage, "completion_tokens": 0}}
        choices = []
        for choice in answer.body["choices"]:
            content = choice["message"]["content"]
            # Mistral has no `refusal` field, and no word of its own for a filter.
            content = content if content is not None else choice["message"]["refusal"]
            message = {"role": "assistant", "tool_calls": None, "content": content}
            choices.append({**choice, "message": message})
            choices[-1].pop("logprobs", None)
        return {
            **named,
            "object": "chat.completion",
            "created": answer.body["created"],
            "model": answer.body["model"],
            "usage": {
                "prompt_tokens": usage["prompt_tokens"],
                "completion_tokens": usage["completion_tokens"],
                "total_tokens": usage["total_tokens"],
                "prompt_tokens_details": {
                    "cached_tokens": usage["prompt_tokens_details"]["cached_tokens"]
                },
                "service_tier": "standard",
            },
            "choices": choices,
        }

    # Files.

    async def _files(self, request: web.BaseRequest, path: str) -> Reply | None:
        file_id, _, tail = path.removeprefix("/files").lstrip("/").partition("/")
        meta = self.service.files.get(file_id) if file_id else None
        if tail == "content" and meta is not None and meta["purpose"] == "batch_output":
            return await self._results(request, file_id)
        reply = await self.service.files.handle(request, path)
        if request.method == "POST" and isinstance(reply, web.Response) and reply.status == 200:
            uploaded = orjson.loads(reply.body)["id"]  # type: ignore[arg-type]
            if (problem := await asyncio.to_thread(self._check_upload, uploaded)) is not None:
                return problem
        return with_json(reply, _file_object)

    def _check_upload(self, file_id: str) -> WireError | None:
        """The error for a file that is refused: lines are checked at the upload, not when a job is
        created from them.
        """
        with open(self.service.files.path(file_id), "rb") as file:
            for number, line in enumerate(file):
                try:
                    msgspec.json.decode(line, type=_Entry)
                except msgspec.MsgspecError as error:
                    self.service.files.remove(file_id)
                    code = "invalid_file_format"
                    return WireError(422, f"Invalid line: {error}", code=code, param=str(number))
        return None

    async def _results(self, request: web.BaseRequest, file_id: str) -> Reply:
        faults = self.service.script.strike("content")
        if (refused := await before_work(request, faults)) is not None:
            return refused
        return await send_lines(
            request,
            map(self._result, line_results(self.service.files.path(file_id))),
            content_type="application/octet-stream",
            cut_off=any(fault.kind == "content_cut" for fault in faults),
        )

    def _result(self, result: LineResult) -> dict[str, Any]:
        """One line of the results."""
        line: dict[str, Any] = {"id": f"batch-{result.reply_id}", "custom_id": result.custom_id}
        # The body of an answered line is an object; that of a failed line is JSON as a string, and
        # the line has no `error`.
        is_unprocessed = result.code in (EXPIRED["code"], CANCELLED["code"])
        if result.answer is not None:
            body: Any = self.reply(result.answer, result.parsed, result.reply_id)
            line["response"] = {"status_code": 200, "body": body}
        elif result.error is not None and not is_unprocessed:
            body = self.error(result.error).body
            text = body.decode() if isinstance(body, bytes) else ""
            line["response"] = {"status_code": result.error.status, "body": text}
        else:
            line["response"] = None
        line["error"] = {"code": result.code, "message": result.code} if is_unprocessed else None
        return line

    # Batch jobs.

    async def _jobs(self, request: web.BaseRequest, path: str) -> Reply | None:
        serve = self.service.batches.serve
        return await serve(
            request, self, path, self._new_job, lambda found: self._page(request, found)
        )

    async def _new_job(self, raw: bytes) -> NewJob | WireError:
        body = json_of(raw)
        problem = self._job_problem(body)
        if problem is not None:
            return problem
        return await asyncio.to_thread(self._read_job, body)

    def _job_problem(self, body: Any) -> WireError | None:
        if not isinstance(body, dict):
            return _validation_error(("body",), "Input should be a valid dictionary")
        for name in body:
            if name not in _JOB_FIELDS:
                return _validation_error(("body", name), "Extra inputs are not permitted")
        if (wrong := misfit(body, _Create)) is not None:
            return _misfit_error(wrong)
        for file_id in body.get("input_files") or [""]:
            meta = self.service.files.get(file_id)
            if meta is None or meta["purpose"] != "batch":
                return WireError(404, f"File not found: {file_id}", code="3001")
        return None

    def _read_job(self, body: dict[str, Any]) -> NewJob | WireError:
        job_id = str(uuid.uuid4())
        part = self.service.batches.part_path(job_id)
        parse = (
            self._parse_embedding_request
            if without_version(body["endpoint"]) == EMBED
            else self._parse_request
        )
        with open(part, "wb") as file:
            for line in self._lines(body["input_files"]):
                parsed = parse({**line["body"], "model": body["model"]})
                file.write(Line(line.get("custom_id"), parsed).encode())
        own = {
            "endpoint": body["endpoint"],
            "model": body["model"],
            "metadata": body.get("metadata"),
            "input_files": body["input_files"],
        }
        return NewJob(job_id, part, own=own)

    def _lines(self, file_ids: list[str]) -> Iterator[dict[str, Any]]:
        for file_id in file_ids:
            with open(self.service.files.path(file_id), "rb") as file:
                yield from map(orjson.loads, file)

    def _page(self, request: web.BaseRequest, visible: list[Job]) -> Reply:
        # Pages are requested by number, not by a token: a job that is created in between shifts all
        # of them.
        wanted = parse_page(request.query, "page_size", 100, "page", 1_000)
        if wanted is None:
            return _validation_error(("query", "page"), "Input should be a valid integer")
        size = min(wanted.size, self.service.options.list_page)
        start = wanted.start * size
        shown = [self.job(job) for job in visible[start : start + size]]
        return json_response({"data": shown, "object": "list", "total": len(visible)})

    def job(self, job: Job) -> Any:
        status, counts = self.service.batches.status(job), self.service.batches.counts(job)
        over, runs = job["status"] in TERMINAL, job["status"] != "validating"
        options, good, bad = self.service.options, counts["completed"], counts["failed"]
        known = good is not None and bad is not None
        return {
            "id": job["id"],
            "object": "batch",
            "input_files": job["own"]["input_files"] if options.inputs_shown else [],
            "metadata": job["own"]["metadata"] if options.names_kept else None,
            "endpoint": job["own"]["endpoint"],
            "model": job["own"]["model"],
            "agent_id": None,
            "output_file": job["output_file_id"] if over else None,
            "error_file": job["error_file_id"] if over else None,
            "errors": [{"message": one["message"], "count": 1} for one in job["errors"] or ()],
            "outputs": None,
            "status": _WORDS.get(status, status),
            "created_at": int(job["created"]),
            "total_requests": counts["total"] if runs else 0,
            "completed_requests": (good or 0) + (bad or 0) if known else None,
            "succeeded_requests": good,
            "failed_requests": bad,
            "started_at": _stamp(job, "in_progress_at"),
            "completed_at": _stamp(job, f"{job['status']}_at") if over else None,
        }

    def no_job(self, job_id: str) -> WireError:
        return WireError(404, f"Batch job {job_id} not found", code="3001")


def _file_object(shown: dict[str, Any]) -> dict[str, Any]:
    """A file, or a list of files, in Mistral's form."""
    if "data" in shown:
        files = [_file_object(file) for file in shown["data"]]
        return {"data": files, "object": "list", "total": len(files)}
    if "bytes" not in shown:
        return shown
    names = ("id", "object", "bytes", "created_at", "filename", "purpose")
    is_output = shown["purpose"] == "batch_output"
    return {
        **{name: shown[name] for name in names},
        "purpose": "batch",
        "sample_type": "batch_result" if is_output else "batch_request",
        "source": "mistral" if is_output else "upload",
        "num_lines": None,
        "mimetype": "application/jsonl",
        "signature": None,
        "expires_at": None,
        "visibility": "workspace",
    }


def _stamp(job: Job, name: str) -> int | None:
    return int(job["stamps"][name]) if name in job["stamps"] else None


def _validation_error(place: tuple[str, ...], message: str) -> WireError:
    return WireError(422, message, param=".".join(place))


def _detail(error: WireError) -> dict[str, Any]:
    place = (error.param or "body").split(".")
    return {"type": "value_error", "loc": place, "msg": error.message, "input": "…"}


def _in_openai_shape(message: dict[str, Any]) -> dict[str, Any]:
    """A message in OpenAI's form, in which an image's address stands in an object."""
    content = message.get("content")
    if not isinstance(content, list):
        return message
    parts = [
        part_of_address(part["image_url"])
        if part["type"] == "image_url" and isinstance(part["image_url"], str)
        else part
        for part in content
    ]
    return {**message, "content": parts}


def _problem(body: Any) -> WireError | None:
    if not isinstance(body, dict):
        return _validation_error(("body",), "Input should be a valid dictionary")
    for name in ("model", "messages"):
        if not body.get(name):
            return _validation_error(("body", name), "Field required")
    for name in body:
        if name not in _FIELDS:
            return _validation_error(("body", name), "Extra inputs are not permitted")
    wrong = misfit(body, _Body)
    return None if wrong is None else _misfit_error(wrong)


def _misfit_error(wrong: Misfit) -> WireError:
    return _validation_error(("body", *filter(None, wrong.dotted.split("."))), by_pydantic(wrong))
