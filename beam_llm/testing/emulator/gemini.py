"""The Gemini API's wire format: generateContent, embeddings, files, and batches (inline or from a
file).

Source: Gemini API reference and guide to the batch API, google-genai 2.34, a recording of a batch
of 2026-08 (states and key sets), read 2026-11.
"""

from __future__ import annotations

import asyncio
import re
import uuid
from collections.abc import Iterable, Iterator
from typing import Annotated, Any

import msgspec
import orjson
from aiohttp import web
from msgspec import UNSET, UnsetType

from beam_llm.testing.emulator import embed_content, generate_content
from beam_llm.testing.emulator.chat import Answer
from beam_llm.testing.emulator.dialects import (
    Dialect,
    Job,
    Line,
    LineResult,
    ModelRequest,
    NewJob,
    Reply,
)
from beam_llm.testing.emulator.gemini_files import GeminiFiles, no_file
from beam_llm.testing.emulator.generate_content import precondition, rfc3339
from beam_llm.testing.emulator.models import EMBED
from beam_llm.testing.emulator.shapes import misfit
from beam_llm.testing.emulator.wire import WireError, json_of, json_response, page_of

# 20 MB, the number in the front end's own message: "exceeds the limit: 20971520 bytes".
MOST_INLINE_BYTES = 20_971_520
MOST_JOBS = 100
"""The most jobs at one time. Source: guide to the Gemini batch API, read 2026-11."""
_STATES = {
    "validating": "PENDING",
    "in_progress": "RUNNING",
    "finalizing": "RUNNING",
    "cancelling": "RUNNING",
    "completed": "SUCCEEDED",
}
_KIND = "type.googleapis.com/google.ai.generativelanguage.v1main.GenerateContentBatch"
_INPUT = "* BatchGenerateContentRequest.batch.input_config"
_VECTORS_KIND = "type.googleapis.com/google.ai.generativelanguage.v1main.EmbedContentBatch"
_MODEL = re.compile(
    r"/v1beta/models/([^/:]+):(generateContent|batchGenerateContent|embedContent|batchEmbedContents"
    r"|asyncBatchEmbedContent)"
)
_BATCH = re.compile(r"/v1beta/batches/([^/:]+)(:cancel)?")


class _Requests(msgspec.Struct, forbid_unknown_fields=True):
    requests: Annotated[list[Any], msgspec.Meta(min_length=1)]


class _Input(msgspec.Struct):
    requests: _Requests | UnsetType = UNSET
    fileName: str | UnsetType = UNSET


class _Batch(msgspec.Struct):
    inputConfig: _Input
    displayName: str | None = None


class _Create(msgspec.Struct):
    """Source: Gemini API reference (BatchGenerateContentRequest), read 2026-11."""

    batch: _Batch


class Wire(Dialect):
    """`/v1beta/…`, `/upload/v1beta/files` and `/download/v1beta/…` under `/gemini`."""

    name = "gemini"
    variables = ("GEMINI_BASE_URL", "GEMINI_API_KEY")

    def refuse(self, request: web.BaseRequest) -> WireError | None:
        # A wrong key is an invalid argument here, and a missing one is forbidden.
        refused = super().refuse(request)
        if refused is None or "upload_id" in request.query:  # an upload's id is enough
            return None
        if refused.code is None:
            message = (
                "Method doesn't allow unregistered callers (callers without established identity)."
            )
            return WireError(
                403, f"{message} Please use API Key or other form of API consumer identity."
            )
        message = "API key not valid. Please pass a valid API key."
        return WireError(400, message, code="invalid_api_key")

    def key_of(self, request: web.BaseRequest) -> str:
        return request.headers.get("x-goog-api-key", "") or request.query.get("key", "")

    async def handle(self, request: web.BaseRequest, path: str) -> Reply | None:
        if request.method == "POST" and (found := _MODEL.fullmatch(path)) is not None:
            return await self._call_model(request, *found.groups())
        if request.method == "GET" and path == "/v1beta/models":
            names = self.service.options.models or ("gemini-2.5-flash",)
            return json_response({"models": [{"name": f"models/{name}"} for name in names]})
        if path == "/v1beta/batches" and request.method == "GET":
            return await self.service.batches.list_jobs(
                request, self, lambda jobs: self._page(request, jobs)
            )
        if (found := _BATCH.fullmatch(path)) is not None:
            return await self._batch(request, found[1], found[2] is not None)
        return await GeminiFiles(self.service, self._results).handle(request, path)

    # Live calls.

    async def _call_model(self, request: web.BaseRequest, model: str, verb: str) -> Reply:
        if verb == "generateContent":
            return await self.service.live(
                request, self, lambda body: self.parse_request(body, model)
            )
        if verb in _EMBEDDINGS:
            parse, embedder = _EMBEDDINGS[verb], self.service.embedder
            return await self.service.live(
                request, self, lambda body: parse(body, model, embedder), embedder
            )
        embeds = verb == "asyncBatchEmbedContent"
        return await self.service.batches.create(
            request, self, lambda raw: asyncio.to_thread(self._new_job, raw, model, embeds)
        )

    def parse_request(self, body: Any, model: str) -> ModelRequest | WireError:
        """Checks a body, and translates it for the emulated model."""
        return generate_content.parse_request(body, model, self.service.chat)

    def reply(self, answer: Answer, parsed: ModelRequest, reply_id: str) -> Any:
        if "data" in answer.body:
            return embed_content.reply(answer, parsed)
        tier = parsed.note["tier"] if parsed.note else "standard"
        return generate_content.reply(answer, parsed, reply_id, {"serviceTier": tier})

    def error(self, error: WireError) -> web.Response:
        return generate_content.error_response(error)

    # Batches.

    def _new_job(self, raw: bytes, model: str, embeds: bool) -> NewJob | WireError:
        body, problem = _batch_of(raw)
        if problem is not None:
            return problem
        if self.service.batches.count_pending(self) >= MOST_JOBS:
            return WireError(429, f"You exceeded your quota of {MOST_JOBS} concurrent batches.")
        source, inline = body["inputConfig"], "requests" in body["inputConfig"]
        if inline:
            entries: Iterable[Any] = map(_entry_of, source["requests"]["requests"])
        else:
            meta = self.service.files.get(str(source["fileName"]).removeprefix("files/"))
            if meta is None:
                return no_file(str(source["fileName"]).removeprefix("files/"))
            if not self.service.files.is_processed(meta):
                message = (
                    f"The File {meta['id']} is not in an ACTIVE state and usage is not allowed."
                )
                return WireError(400, message, code="FAILED_PRECONDITION")
            entries = _lines_of(self.service.files.path(meta["id"]).read_bytes())
        # Meaningless letters and digits, as in the recording.
        job_id = uuid.uuid4().hex + "x"
        errors: list[dict[str, Any]] = []
        part = self.service.batches.part_path(job_id)
        with open(part, "wb") as file:
            for number, entry in enumerate(entries, 1):
                line = self._line(entry, number, model, embeds, errors)
                file.write(line.encode())
        own = {"model": model, "displayName": body.get("displayName"), "inline": inline}
        own |= {"endpoint": EMBED} if embeds else {}
        return NewJob(job_id, part, own=own, errors=tuple(errors))

    def _line(
        self, entry: Any, number: int, model: str, embeds: bool, errors: list[dict[str, Any]]
    ) -> Line:
        if not isinstance(entry, dict) or set(entry) != {"key", "request"} or not entry["key"]:
            message = f"Line {number} is not a JSON object with 'key' and 'request' alone."
            errors.append({"code": "INVALID_ARGUMENT", "message": message, "line": number})
            return Line(f"faulty-{number}", WireError(400, message))
        if embeds:
            parsed = embed_content.parse_request(entry["request"], model, self.service.embedder)
        else:
            parsed = self.parse_request(entry["request"], model)
        return Line(str(entry["key"]), parsed)

    async def _batch(self, request: web.BaseRequest, job_id: str, is_cancel: bool) -> Reply | None:
        jobs = self.service.batches
        match request.method, is_cancel:
            case "GET", False:
                return await jobs.look(request, self, job_id)
            case "POST", True:
                return precondition(await jobs.cancel(request, self, job_id))
            case "DELETE", False:
                return precondition(await jobs.delete(request, self, job_id, {}))
        return None

    def no_job(self, job_id: str) -> WireError:
        return WireError(404, f"Could not find the batch with name: batches/{job_id}.")

    def _page(self, request: web.BaseRequest, visible: list[Job]) -> Reply:
        options = self.service.options
        page = page_of(visible, options, request.query, "pageSize", 50, "pageToken", 1_000)
        if page is None:
            return WireError(400, "Request contains an invalid argument.")
        shown: list[Any] = [self.job(job) for job in page.items]
        if not options.list_ends and not shown:
            shown = [_older_job(page.start, options.clock())]
        fields = {"operations": shown, "nextPageToken": page.next}
        # proto3 leaves out empty fields.
        return json_response({name: value for name, value in fields.items() if value})

    def job(self, job: Job) -> Any:
        """The operation of a job; its output stands in it twice, as it does in the recording."""
        own, stamps = job["own"], job["stamps"]
        name = f"batches/{job['id']}"
        output = self._output(job)
        ended = stamps.get(f"{job['status']}_at") if job["status"] not in _STATES else None
        ended = stamps.get("completed_at", ended)
        counts = self._counts(job)
        batch = {
            "@type": _VECTORS_KIND if own.get("endpoint") == EMBED else _KIND,
            "model": f"models/{own['model']}",
            **({"displayName": own["displayName"]} if self.service.options.names_kept else {}),
            **({"output": output} if output else {}),
            "createTime": rfc3339(job["created"]),
            **({"endTime": rfc3339(ended)} if ended else {}),
            "updateTime": rfc3339(max([job["created"], *stamps.values()])),
            **({"batchStats": counts} if counts else {}),
            "state": f"BATCH_STATE_{self._state(job)}",
            "name": name,
        }
        shown = {"name": name, "metadata": batch}
        if ended is None:
            return shown
        if job["errors"]:
            error = generate_content.job_error(job["errors"][0])
            return {**shown, "done": True, "error": error}
        return {**shown, "done": True, **({"response": output} if output else {})}

    def _state(self, job: Job) -> str:
        status = self.service.batches.status(job)
        return _STATES.get(status, status.upper())

    def _counts(self, job: Job) -> dict[str, str]:
        """The counts of a job, as text. Those that are zero are left out; there are none where the
        script hides them.
        """
        found = self.service.batches.counts(job)
        total, done, failed = found["total"], found["completed"], found["failed"]
        if done is None or failed is None:
            return {}
        left = (total or 0) - done - failed
        named = {
            "requestCount": total,
            "successfulRequestCount": done,
            "failedRequestCount": failed,
        }
        return {
            name: str(count)
            for name, count in {**named, "pendingRequestCount": left}.items()
            if count
        }

    def _output(self, job: Job) -> dict[str, Any]:
        """Where the answers are; empty for a job that expired or failed, which has none."""
        # "Will not have any results to retrieve" (guide): what was done before the end is lost.
        if job["status"] not in ("completed", "cancelled"):
            return {}
        if not job["own"]["inline"]:
            return {"responsesFile": f"files/batch-{job['id']}"}
        responses = [
            self._inline_response(result) for result in self.service.batches.results_of(job)
        ]
        return {"inlinedResponses": {"inlinedResponses": responses}}

    async def _results(self, request: web.BaseRequest, job_id: str) -> Reply | None:
        """Streams the file of a job's results; None where there is no such file."""
        job = self.service.batches.find(self, job_id)
        if job is None or "responsesFile" not in self._output(job):
            return None
        return await self.service.batches.results(request, job, self._result)

    def _result(self, result: LineResult) -> Any:
        return {"key": result.custom_id, **self._response_or_error(result)}

    def _inline_response(self, result: LineResult) -> Any:
        shown = {**self._response_or_error(result), "metadata": {"key": result.custom_id}}
        if result.answer is not None and "data" in result.answer.body:
            shown["response"] = embed_content.inline_reply(result.answer, result.parsed)
        return shown

    def _response_or_error(self, result: LineResult) -> dict[str, Any]:
        if result.answer is not None:
            return {"response": self.reply(result.answer, result.parsed, result.reply_id)}
        # google.rpc's codes, not HTTP's: a line's error is a google.rpc.Status.
        status, message = 500, "Internal error encountered."
        if result.error is not None:
            status, message = result.error.status, result.error.message
        return {"error": {"code": generate_content.RPC_CODES.get(status, 13), "message": message}}


_EMBEDDINGS = {
    "embedContent": embed_content.parse_request,
    "batchEmbedContents": embed_content.parse_batch_request,
}


def _batch_of(raw: bytes) -> tuple[dict[str, Any], WireError | None]:
    """The batch that a create asks for, or what is wrong with the create as a whole."""
    if len(raw) > MOST_INLINE_BYTES:
        message = f"Request payload size exceeds the limit: {MOST_INLINE_BYTES} bytes."
        return {}, WireError(400, message)
    try:
        body = orjson.loads(raw)
    except orjson.JSONDecodeError:
        return {}, WireError(400, "Invalid JSON payload received. Unexpected token.")
    config = body.get("batch", {}) if isinstance(body, dict) else {}
    config = config.get("inputConfig", {}) if isinstance(config, dict) else {}
    # Google's own client uses this spelling for embeddings; protobuf's JSON takes both.
    if isinstance(config, dict) and "file_name" in config:
        config["fileName"] = config.pop("file_name")
    found: Any = body
    for where, known in (
        ("", {"batch"}),
        ("batch", {"displayName", "inputConfig", "priority", "webhookConfig", "model"}),
        ("batch.input_config", {"requests", "fileName"}),
    ):
        for name in found if isinstance(found, dict) else ("the body",):
            if name not in known:
                place = f" at '{where}'" if where else ""
                message = f'Unknown name "{name}"{place}: Cannot find field.'
                return {}, WireError(400, f"Invalid JSON payload received. {message}")
        found = found.get("batch" if not where else "inputConfig", {})
    if (wrong := misfit(body, _Create)) is not None:
        return {}, WireError(400, generate_content.describe_misfit(wrong, ""))
    source = body["batch"]["inputConfig"]
    if len(source.keys() & {"fileName", "requests"}) != 1:
        return {}, WireError(400, f"{_INPUT}: one of requests and file_name is required.")
    return body["batch"], None


def _entry_of(request: Any) -> Any:
    """An inline request in the form of a file's line. A request without a key gets one."""
    if not isinstance(request, dict) or not set(request) <= {"request", "metadata"}:
        return None
    metadata = request.get("metadata") or {}
    if misfit(metadata, dict[str, str]) is not None:
        return None
    key = metadata.get("key") or f"unnamed-{uuid.uuid4().hex}"
    return {"key": key, "request": request.get("request")}


def _lines_of(data: bytes) -> Iterator[Any]:
    return (json_of(line) for line in data.split(b"\n") if line.strip())


def _older_job(depth: int, now: float) -> dict[str, Any]:
    """A made-up job of somebody else's for an endless list, older than those before it."""
    name = f"batches/older{depth}"
    created = rfc3339(now - depth - 1)
    batch = {"displayName": "another's", "createTime": created, "state": "BATCH_STATE_SUCCEEDED"}
    return {"name": name, "metadata": {"@type": _KIND, **batch, "name": name}, "done": True}
