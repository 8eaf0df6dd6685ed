"""OpenRouter's wire format: OpenAI's chat completions, and batch jobs whose create carries their
requests.

Source: openrouter.ai/docs, SDK 1.3.84, recorded traffic of 2026-06; read 2026-11.
"""

from __future__ import annotations

import asyncio
import uuid
from typing import Any

import msgspec
import orjson
from aiohttp import web

from beam_llm.testing.emulator.chat import Answer
from beam_llm.testing.emulator.clockwork import TERMINAL
from beam_llm.testing.emulator.dialects import Job, Line, LineResult, ModelRequest, NewJob, Reply
from beam_llm.testing.emulator.family import UNPROCESSED, Family
from beam_llm.testing.emulator.models import CHAT
from beam_llm.testing.emulator.pictures import urls_in
from beam_llm.testing.emulator.shapes import misfit
from beam_llm.testing.emulator.wire import WireError, json_response, with_json


class _Entry(msgspec.Struct, forbid_unknown_fields=True):
    custom_id: str
    body: dict[str, Any]
    method: str | None = None
    url: str | None = None


class Wire(Family):
    """OpenRouter has no files: creates carry the requests, and jobs show their results."""

    name = "openrouter"
    embeds = False
    job_routes = (CHAT,)
    variables = ("OPENROUTER_BASE_URL", "OPENROUTER_API_KEY")
    path = "/api/v1"
    most_requests = 5_000
    most_bytes = 200_000_000
    price = 1e-6

    async def handle(self, request: web.BaseRequest, path: str) -> Reply | None:
        jobs = self.service.batches
        job_id = path.removeprefix("/batches/") if path.startswith("/batches/") else ""
        if path.startswith("/files") or "/" in job_id:  # no files, no cancelling
            return None
        if request.method == "DELETE" and job_id:
            return await jobs.delete(request, self, job_id, _deleted_job(job_id))
        if request.method == "GET" and job_id:
            found = await jobs.look(request, self, job_id)
            return with_json(found, lambda job: self._with_results(job))
        reply = await super().handle(request, path)
        # 202 means accepted, but not checked: the requests are validated after that.
        is_create = (request.method, path) == ("POST", "/batches")
        if is_create and isinstance(reply, web.Response) and reply.status == 200:
            reply.set_status(202)
        return reply

    def headers(self, number: int, seconds: float | None = None) -> dict[str, str]:
        return {"x-generation-id": f"gen-{self.service.started}-{number}"}

    def reply(self, answer: Answer, parsed: ModelRequest, reply_id: str) -> Any:
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
        return await asyncio.to_thread(self._read_job, raw)

    def _read_job(self, raw: bytes) -> NewJob | WireError:
        if len(raw) > self.most_bytes:
            return WireError(413, f"Request body is larger than {self.most_bytes} bytes")
        try:
            body = orjson.loads(raw)
        except orjson.JSONDecodeError:
            return WireError(400, "Invalid JSON")
        problem = self._problem(body)
        if problem is not None:
            return WireError(400, problem)
        job_id = f"batch_{uuid.uuid4().hex[:24]}"
        part = self.service.batches.part_path(job_id)
        # Errors that fail the whole job while it is `validating`.
        errors: list[dict[str, Any]] = []
        with open(part, "wb") as file:
            for entry in body["requests"]:
                parsed = self._parse_request({"model": body["model"], **entry["body"]}, None)
                file.write(Line(entry["custom_id"], parsed).encode())
                if isinstance(parsed, ModelRequest) and (
                    problem := self._request_problem(parsed.body, body)
                ):
                    named = f"{entry['custom_id']}: {problem}"
                    errors.append({"code": "invalid_request", "message": named})
        own = {"endpoint": body["endpoint"], "model": body["model"]}
        return NewJob(job_id, part, own=own, errors=tuple(errors[:1]))

    def _request_problem(self, one: dict[str, Any], body: dict[str, Any]) -> str | None:
        """The error of a request that would be answered live, but can't be part of this batch."""
        if any(url.startswith("data:") for _, _, url in urls_in(one["messages"])):
            return "images must be http(s) URLs"
        # For Google's models one schema applies to all requests.
        first = body["requests"][0]["body"].get("response_format")
        if body["model"].startswith("google/") and one.get("response_format") != first:
            return "response_format differs from that of the first request"
        return None

    def _problem(self, body: Any) -> str | None:
        if not isinstance(body, dict) or not isinstance(body.get("requests"), list):
            return "requests: expected an array"
        names = list(body)
        # OpenRouter reads the body as a stream, and has to know these before the requests.
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
        most = min(self.most_requests, self.service.options.max_batch_requests)
        if not 1 <= len(body["requests"]) <= most:
            return f"requests: between 1 and {most} are allowed"
        if not (isinstance(body["endpoint"], str) and isinstance(body["model"], str)):
            return "endpoint and model: expected strings"
        if (wrong := misfit(body["requests"], list[_Entry])) is not None:
            return f"requests{wrong.place}: {wrong.rule} {wrong.expected}".rstrip()
        ids = [entry["custom_id"] for entry in body["requests"]]
        if len(set(ids)) < len(ids) or not all(ids):
            return "requests: every custom_id must be a string of its own"
        if any(
            entry["body"].get("model", body["model"]) != body["model"] for entry in body["requests"]
        ):
            return "requests: a body's model must match the batch's"
        return None

    def job(self, job: Job) -> Any:
        over = job["status"] in TERMINAL
        ended = job["stamps"].get(f"{job['status']}_at") if over else None
        errors = "; ".join(one["message"] for one in job["errors"] or ())
        return {
            "id": job["id"],
            "object": "batch",
            "endpoint": job["own"]["endpoint"],
            "model": job["own"]["model"],
            "provider": "Emulator" if job["status"] != "validating" else None,
            "status": self.service.batches.status(job),
            "completion_window": "24h",
            "created_at": int(job["created"]),
            "expires_at": int(job["created"]) + 86_400,
            "finalized_at": int(ended) if over and ended is not None else None,
            "request_counts": self.service.batches.counts(job),
            "error": {"message": errors} if errors else None,
            "usage": None,
            "results": None,
        }

    def _with_results(self, shown: dict[str, Any]) -> dict[str, Any]:
        # Only a look shows results: a list would be as large as all of its jobs' answers.
        job = self.service.batches.find(self, shown["id"])
        if job is None or job["status"] not in TERMINAL:
            return shown
        results = [self._result(result) for result in self.service.batches.results_of(job)]
        return {**shown, "results": results}

    def _result(self, result: LineResult) -> dict[str, Any]:
        line: dict[str, Any] = {"id": result.reply_id, "custom_id": result.custom_id}
        line.update(response=None, error=None)
        if result.answer is not None:
            body = self.reply(result.answer, result.parsed, result.reply_id)
            line["response"] = {"status_code": 200, "request_id": result.reply_id, "body": body}
        elif result.error is not None and result.code not in UNPROCESSED:
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


def _deleted_job(job_id: str) -> dict[str, Any]:
    return {"id": job_id, "object": "batch", "deletion": {"openrouter": "deleted"}}
