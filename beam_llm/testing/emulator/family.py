"""OpenAI's dialect as others speak it: Together, Groq, OpenRouter, xAI, Fireworks, DeepInfra, each
with its own addresses, words and jobs over OpenAI's code.

Sources: the providers' documentation and SDKs (groq 1.7.0, together 3.1.1, openrouter 1.3.84,
fireworks-ai 1.2.30), recorded traffic of OpenRouter and xAI (2026-06, 2026-08); read 2026-11.
"""

from __future__ import annotations

import asyncio
import dataclasses
import re
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar

import orjson
from aiohttp import web

from beam_llm.testing.emulator import openai
from beam_llm.testing.emulator.chat import Answer
from beam_llm.testing.emulator.connection import before_work
from beam_llm.testing.emulator.dialects import (
    Asked,
    Dialect,
    Job,
    Line,
    LineResult,
    NewJob,
    Reply,
)
from beam_llm.testing.emulator.wire import WireError, json_response, with_json
from beam_llm.testing.emulator.work import CANCELLED, EXPIRED

UNDONE = (EXPIRED["code"], CANCELLED["code"])
"""Codes of lines that their job did not come to."""

_OVER = frozenset({"completed", "failed", "expired", "cancelled"})


class Family(openai.Wire):
    """OpenAI's wire under another prefix.

    Attributes:
      purposes: that a file may be uploaded for.
      fields: of a chat request; None: any are taken.
      tiers: values of `service_tier` that are taken; None: any.
    """

    purposes: ClassVar[tuple[str, ...]] = ("batch",)
    fields: ClassVar[frozenset[str] | None] = None
    tiers: ClassVar[tuple[str, ...] | None] = None

    @classmethod
    def environment(cls, url: str, key: str) -> dict[str, str]:
        base_url, api_key = cls.variables
        return {base_url: f"{url}/{cls.name}{cls.path}", api_key: key}

    def local_path(self, path: str) -> str | None:
        below = Dialect.local_path(self, path)
        return below.removeprefix(self.path) if below is not None else None

    def key_of(self, request: web.BaseRequest) -> str:
        return Dialect.key_of(self, request)

    def headers(self, number: int, seconds: float | None = None) -> dict[str, str]:
        return {"x-request-id": f"req_{self.house.started}_{number}", **self.house.limits.headers()}

    def _asked(self, body: Any, deployment: str | None) -> Asked | WireError:
        asked = super()._asked(body, None)
        if isinstance(asked, WireError):
            return asked
        for name in body:
            if self.fields is not None and name not in self.fields:
                return WireError(400, f"property '{name}' is unsupported", param=name)
        tier = body.get("service_tier")
        if tier is not None and self.tiers is not None and tier not in self.tiers:
            return WireError(
                400, f"Invalid value for 'service_tier': {tier!r}.", param="service_tier"
            )
        return asked

    def _check_input(self, file_id: str) -> WireError | None:
        meta = self.house.files.get(file_id)
        if meta is None:
            return WireError(400, f"Invalid file id '{file_id}': no such file.")
        if meta["purpose"] not in self.purposes:
            return WireError(400, f"The file's purpose must be '{self.purposes[0]}'.")
        return None


def _iso(seconds: float | None) -> str | None:
    if seconds is None:
        return None
    return datetime.fromtimestamp(seconds, UTC).isoformat().replace("+00:00", "Z")


class Groq(Family):
    name = "groq"
    variables = ("GROQ_BASE_URL", "GROQ_API_KEY")
    path = "/openai/v1"
    tiers = ("auto", "on_demand", "flex", "performance")
    fields = frozenset(
        (
            "citation_options", "compound_custom", "disable_tool_validation", "documents",
            "exclude_domains", "frequency_penalty", "function_call", "functions",
            "include_domains", "include_reasoning", "logit_bias", "logprobs",
            "max_completion_tokens", "max_tokens", "messages", "metadata", "model", "n",
            "parallel_tool_calls", "presence_penalty", "reasoning_effort", "reasoning_format",
            "response_format", "search_settings", "seed", "service_tier", "stop", "store",
            "stream", "stream_options", "temperature", "tool_choice", "tools", "top_logprobs",
            "top_p", "user",
        )
    )  # fmt: skip
    knows_schemas = re.compile(r"openai/gpt-oss|moonshotai/kimi-k2|meta-llama/llama-4")
    windows = re.compile(r"(2[4-9]|[3-9]\d|1[0-5]\d|16[0-8])h|[1-7]d")

    def _asked(self, body: Any, deployment: str | None) -> Asked | WireError:
        asked = super()._asked(body, deployment)
        if isinstance(asked, WireError):
            return asked
        form = body.get("response_format") or {}
        knows_schemas = re.match(
            r"openai/gpt-oss|moonshotai/kimi-k2|meta-llama/llama-4", body["model"]
        )
        if form.get("type") == "json_schema" and not knows_schemas:
            message = "This model does not support response format `json_schema`."
            return WireError(400, message, param="response_format")
        return asked

    def _check_window(self, window: str) -> WireError | None:
        if self.windows.fullmatch(window):
            return None
        return WireError(400, "completion_window must be between 24h and 7d", code="invalid_value")

    def reply(self, answer: Answer, asked: Asked, reply_id: str) -> Any:
        tier = asked.body.get("service_tier") or "on_demand"
        usage = {
            "queue_time": 0.01,
            "prompt_time": 0.001,
            "completion_time": 0.02,
            "total_time": 0.021,
            **answer.body["usage"],
        }
        return {
            **answer.body,
            "usage": usage,
            "x_groq": {"id": f"req_{reply_id}"},
            "service_tier": tier,
        }


class Together(Family):
    name = "together"
    variables = ("TOGETHER_BASE_URL", "TOGETHER_API_KEY")
    path = "/v1"
    purposes = ("batch-api",)
    _words: ClassVar[dict[str, str]] = {"finalizing": "IN_PROGRESS", "cancelling": "IN_PROGRESS"}

    async def handle(self, request: web.BaseRequest, path: str) -> Reply | None:
        if (request.method, path) == ("POST", "/files"):
            return WireError(400, "Upload with POST /files/upload")
        if (request.method, path) == ("POST", "/files/upload"):
            uploaded = await self.house.files.handle(request, "/files")
            return with_json(uploaded, self._file)
        if (request.method, path) == ("POST", "/batches"):
            made = await super().handle(request, path)
            return with_json(made, lambda job: {"job": job, "warning": ""})
        return await super().handle(request, path)

    async def _new_job(self, raw: bytes) -> NewJob | WireError:
        made = await super()._new_job(raw)
        if isinstance(made, WireError) or made.input_file_id is None:
            return made
        part = self.house.batches.part_path(made.job_id)
        errors = await asyncio.to_thread(self._rewrite, made.input_file_id, part)
        return dataclasses.replace(made, lines=part, errors=tuple(errors))

    def _rewrite(self, file_id: str, part: Path) -> list[dict[str, Any]]:
        """Lines of a `custom_id` and a `body` as OpenAI's; what is wrong with the first other."""
        target = {"method": "POST", "url": "/v1/chat/completions"}
        with open(self.house.files.path(file_id), "rb") as lines, open(part, "wb") as file:
            for number, data in enumerate(lines, 1):
                line = orjson.loads(data)
                if not {"custom_id", "body"} <= set(line):
                    problem = "custom_id and body are required"
                    return [{"code": "invalid_request", "message": problem, "line": number}]
                file.write(orjson.dumps({**line, **target}) + b"\n")
        return []

    def _file(self, meta: dict[str, Any]) -> dict[str, Any]:
        names = ("id", "object", "created_at", "filename", "bytes", "purpose")
        kept = {name: meta[name] for name in names}
        return {**kept, "Processed": True, "FileType": "jsonl", "LineCount": 0}

    def _page(self, request: web.BaseRequest, visible: list[Job]) -> Reply:
        return json_response([self.job(job) for job in visible])

    def job(self, job: Job) -> Any:
        status, over = self.house.batches.status(job), job["status"] in _OVER
        counts = self.house.batches.counts(job)
        done = (counts["completed"] or 0) + (counts["failed"] or 0)
        return {
            "id": job["id"],
            "user_id": "user-emulator",
            "input_file_id": job["input_file_id"] if self.house.options.inputs_shown else None,
            "file_size_bytes": 0,
            "status": self._words.get(status, status.upper()),
            "job_deadline": _iso(job["created"] + 86_400),
            "created_at": _iso(job["created"]),
            "endpoint": job["own"]["endpoint"],
            "progress": 100.0 * done / job["total"] if job["total"] else 0.0,
            "model_id": job["model"],
            "output_file_id": job["output_file_id"] if over else None,
            "error_file_id": job["error_file_id"] if over else None,
            "error": "; ".join(one["message"] for one in job["errors"] or ()),
            "completed_at": _iso(job["stamps"].get("completed_at")),
        }


class DeepInfra(Family):
    name = "deepinfra"
    variables = ("DEEPINFRA_BASE_URL", "DEEPINFRA_API_KEY")
    path = "/v1/openai"
    tiers = ("default", "priority")

    def reply(self, answer: Answer, asked: Asked, reply_id: str) -> Any:
        tokens = answer.input_tokens + answer.output_tokens
        return {
            **answer.body,
            "usage": {**answer.body["usage"], "estimated_cost": tokens * 1e-7},
        }


class Fireworks(Family):
    """Live calls; its batch API is of another kind."""

    name = "fireworks"
    variables = ("FIREWORKS_BASE_URL", "FIREWORKS_API_KEY")
    path = "/inference/v1"
    tiers = ("auto", "default", "flex", "priority")

    async def handle(self, request: web.BaseRequest, path: str) -> Reply | None:
        return await super().handle(request, path) if path == "/chat/completions" else None

    def error(self, error: WireError) -> web.Response:
        named = {"object": "error", "type": error.type, "code": error.code}
        body = {"error": {**named, "message": error.message}}
        return json_response(body, error.status, error.headers)


class OpenRouter(Family):
    """No files: a job's requests come in its create, its results stand in it."""

    name = "openrouter"
    variables = ("OPENROUTER_BASE_URL", "OPENROUTER_API_KEY")
    path = "/api/v1"
    most_requests = 5_000
    price = 1e-6

    async def handle(self, request: web.BaseRequest, path: str) -> Reply | None:
        jobs = self.house.batches
        job_id = path.removeprefix("/batches/") if path.startswith("/batches/") else ""
        if path.startswith("/files") or "/" in job_id:  # nor can jobs be cancelled
            return None
        if request.method == "DELETE" and job_id:
            return await jobs.delete(request, self, job_id, _gone(job_id))
        if request.method == "GET" and job_id:
            found = await jobs.look(request, self, job_id)
            return with_json(found, lambda job: self._with_results(job))
        reply = await super().handle(request, path)
        is_create = (request.method, path) == ("POST", "/batches")
        if is_create and isinstance(reply, web.Response) and reply.status == 200:
            reply.set_status(202)
        return reply

    def headers(self, number: int, seconds: float | None = None) -> dict[str, str]:
        return {"x-generation-id": f"gen-{self.house.started}-{number}"}

    def reply(self, answer: Answer, asked: Asked, reply_id: str) -> Any:
        body = answer.body
        choices = [
            {**choice, "native_finish_reason": choice["finish_reason"]}
            for choice in body["choices"]
        ]
        cost = (answer.input_tokens + answer.output_tokens) * self.price
        details = {**body["usage"]["prompt_tokens_details"], "cache_write_tokens": 0}
        usage = {
            **body["usage"],
            "prompt_tokens_details": details,
            "cost": cost,
            "is_byok": False,
            "cost_details": {"upstream_inference_cost": cost},
        }
        named = {"id": f"gen-{reply_id}", "provider": "Emulator", "service_tier": None}
        return {**body, **named, "choices": choices, "usage": usage}

    def error(self, error: WireError) -> web.Response:
        body = {"error": {"message": error.message, "code": error.status}, "user_id": "user_1"}
        return json_response(body, error.status, error.headers)

    async def _new_job(self, raw: bytes) -> NewJob | WireError:
        return await asyncio.to_thread(self._made, raw)

    def _made(self, raw: bytes) -> NewJob | WireError:
        try:
            body = orjson.loads(raw)
        except orjson.JSONDecodeError:
            return WireError(400, "Invalid JSON")
        problem = self._problem(body)
        if problem is not None:
            return WireError(400, problem)
        job_id = f"batch_{uuid.uuid4().hex[:24]}"
        part = self.house.batches.part_path(job_id)
        with open(part, "wb") as file:
            for entry in body["requests"]:
                asked = self._asked({"model": body["model"], **entry["body"]}, None)
                file.write(Line(entry["custom_id"], asked).encode())
        own = {"endpoint": body["endpoint"], "model": body["model"]}
        return NewJob(job_id, part, own=own)

    def _problem(self, body: Any) -> str | None:
        if not isinstance(body, dict) or not isinstance(body.get("requests"), list):
            return "requests: expected an array"
        names = list(body)
        for name in ("endpoint", "model"):
            if name not in names or names.index(name) > names.index("requests"):
                return f"'{name}' must come before 'requests'"
        if unknown := set(names) - {
            *("endpoint", "model", "requests", "completion_window"),
            *("callback_url", "provider"),
        }:
            return f"Unrecognized key: '{min(unknown)}'"
        if body.get("completion_window", "24h") != "24h":
            return "completion_window: only '24h' is supported"
        most = min(self.most_requests, self.house.options.max_batch_requests)
        if not 1 <= len(body["requests"]) <= most:
            return f"requests: between 1 and {most} are allowed"
        ids = [entry.get("custom_id") for entry in body["requests"]]
        if len(set(ids)) < len(ids) or not all(isinstance(one, str) and one for one in ids):
            return "requests: every custom_id must be a string of its own"
        if any(
            entry["body"].get("model", body["model"]) != body["model"] for entry in body["requests"]
        ):
            return "requests: a body's model must match the batch's"
        return None

    def job(self, job: Job) -> Any:
        over = job["status"] in _OVER
        ended = next((job["stamps"].get(f"{word}_at") for word in _OVER & {job["status"]}), None)
        errors = "; ".join(one["message"] for one in job["errors"] or ())
        return {
            "id": job["id"],
            "object": "batch",
            "endpoint": job["own"]["endpoint"],
            "model": job["own"]["model"],
            "provider": "Emulator" if job["status"] != "validating" else None,
            "status": self.house.batches.status(job),
            "completion_window": "24h",
            "created_at": int(job["created"]),
            "expires_at": int(job["created"]) + 86_400,
            "finalized_at": int(ended) if over and ended is not None else None,
            "request_counts": self.house.batches.counts(job),
            "error": {"message": errors} if errors else None,
            "usage": None,
            "results": None,
        }

    def _with_results(self, shown: dict[str, Any]) -> dict[str, Any]:
        job = self.house.batches.known(self, shown["id"])
        if job is None or job["status"] not in _OVER:
            return shown
        results = [self._result(result) for result in self.house.batches.results_of(job)]
        return {**shown, "results": results}

    def _result(self, result: LineResult) -> dict[str, Any]:
        line: dict[str, Any] = {"id": result.reply_id, "custom_id": result.custom_id}
        line.update(response=None, error=None)
        if result.answer is not None:
            body = self.reply(result.answer, result.asked, result.reply_id)
            line["response"] = {"status_code": 200, "request_id": result.reply_id, "body": body}
        elif result.error is not None and result.code not in UNDONE:
            error = {"message": result.error.message, "code": result.error.status}
            status = result.error.status
            line["response"] = {
                "status_code": status,
                "request_id": result.reply_id,
                "body": {"error": error},
            }
        else:
            line["error"] = {"message": result.code, "type": result.code, "param": None}
        return line


def _gone(job_id: str) -> dict[str, Any]:
    return {"id": job_id, "object": "batch.deleted", "deletion": {"openrouter": "deleted"}}


class XAI(Family):
    """Jobs have names and counts, and no status; results come in pages."""

    name = "xai"
    variables = ("XAI_BASE_URL", "XAI_API_KEY")
    path = "/v1"
    purposes = ("",)
    tiers = ("default", "priority")

    async def handle(self, request: web.BaseRequest, path: str) -> Reply | None:
        if (request.method, path) == ("POST", "/files"):
            uploaded = await self.house.files.handle(request, path, purpose="")
            return with_json(uploaded, lambda meta: {**meta, "purpose": ""})
        if request.method == "POST" and path.endswith(":cancel"):
            job_id = path.removeprefix("/batches/").removesuffix(":cancel")
            return await self.house.batches.cancel(request, self, job_id)
        if request.method == "POST" and path.startswith("/batches/"):
            return None
        if path.startswith("/batches/") and path.endswith("/results"):
            return await self._results(request, path.removeprefix("/batches/")[: -len("/results")])
        return await super().handle(request, path)

    def error(self, error: WireError) -> web.Response:
        if error.code == "invalid_api_key":
            message = (
                "Incorrect API key provided. You can obtain an API key from https://console.x.ai."
            )
            body = {"code": "invalid-argument", "error": message}
            return json_response(body, 400, error.headers)
        body = {"code": error.code or error.type, "error": error.message}
        return json_response(body, error.status, error.headers)

    def reply(self, answer: Answer, asked: Asked, reply_id: str) -> Any:
        """Thoughts are counted beside the completion's tokens."""
        usage = answer.body["usage"]
        thoughts = 7
        details = {**usage["completion_tokens_details"], "reasoning_tokens": thoughts}
        sums = {
            "total_tokens": usage["total_tokens"] + thoughts,
            "completion_tokens_details": details,
            "num_sources_used": 0,
            "cost_in_usd_ticks": 1_000 * usage["total_tokens"],
        }
        return {**answer.body, "usage": {**usage, **sums}}

    async def _new_job(self, raw: bytes) -> NewJob | WireError:
        try:
            body = orjson.loads(raw)
        except orjson.JSONDecodeError:
            body = None
        if not isinstance(body, dict) or not isinstance(body.get("name"), str):
            return WireError(422, "Failed to deserialize the JSON body: missing field `name`")
        if unknown := set(body) - {"name", "input_file_id"}:
            return WireError(422, f"Failed to deserialize: unknown field `{min(unknown)}`")
        error = self._check_input(str(body.get("input_file_id")))
        if error is not None:
            return error
        own = {"endpoint": "/v1/chat/completions", "name": body["name"]}
        return NewJob(f"batch_{uuid.uuid4()}", input_file_id=body["input_file_id"], own=own)

    def _page(self, request: web.BaseRequest, visible: list[Job]) -> Reply:
        return self._paged(request, "batches", visible, self.job)

    def _paged(
        self, request: web.BaseRequest, name: str, items: list[Any], show: Callable[[Any], Any]
    ) -> Reply:
        options, query = self.house.options, request.query
        start = int(query.get("pagination_token", "0"))
        end = start + min(int(query.get("limit", "100")), options.list_page)
        more = end < len(items) or not options.list_ends
        token = str(end) if more else None
        return json_response({name: list(map(show, items[start:end])), "pagination_token": token})

    def job(self, job: Job) -> Any:
        counts, status = self.house.batches.counts(job), job["status"]
        done, bad = counts["completed"] or 0, counts["failed"] or 0
        ended = status in _OVER
        started = status not in ("validating", "failed")
        failed = "; ".join(one["message"] for one in job["errors"] or ()) or None
        stamp = job["stamps"].get("cancelled_at") or job["stamps"].get("failed_at")
        day = datetime.fromtimestamp(job["created"], UTC).date()
        return {
            "batch_id": job["id"],
            "name": job["own"]["name"] if self.house.options.names_kept else "",
            "create_time": day.isoformat(),
            "expire_time": day.isoformat(),
            "create_api_key_id": "key",
            "cancel_time": _iso(stamp) if ended and stamp else None,
            "cancel_by_xai_message": failed,
            "input_file_id": job["input_file_id"] if self.house.options.inputs_shown else None,
            "state": {
                "num_requests": job["total"] if started else 0,
                "num_pending": 0 if ended else max(job["total"] - done - bad, 1),
                "num_success": done,
                "num_error": bad,
                "num_cancelled": 0,
            },
        }

    async def _results(self, request: web.BaseRequest, job_id: str) -> Reply:
        faults = self.house.script.strike("content")
        if (refused := await before_work(request, faults)) is not None:
            return refused
        job = self.house.batches.known(self, job_id)
        if job is None:
            return self.no_job(job_id)
        found = list(self._lines(job)) if job["status"] in _OVER else []
        return self._paged(request, "results", found, self._result)

    def _lines(self, job: Job) -> Any:
        for name in ("output_file_id", "error_file_id"):
            if job[name] is not None:
                with open(self.house.files.path(job[name]), "rb") as file:
                    yield from map(orjson.loads, file)

    def _result(self, line: dict[str, Any]) -> dict[str, Any]:
        response, error = line["response"], line["error"]
        result: dict[str, Any]
        if response is not None and response["status_code"] < 400:
            result = {"response": {"chat_get_completion": response["body"]}}
        elif response is not None:
            code, inner = response["status_code"], response["body"]["error"]
            result = {"error": {"code": code, "message": inner["message"]}}
        else:
            result = {"error": error}
        return {"batch_request_id": line["custom_id"], "batch_result": result}


WIRES: dict[str, type[Dialect]] = {
    wire.name: wire for wire in (Groq, Together, DeepInfra, Fireworks, OpenRouter, XAI)
}
