"""Anthropic's wire: messages, and message batches.

Source: Anthropic API reference and SDK 2.14, read 2026-11.
"""

from __future__ import annotations

import asyncio
import re
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import orjson
from aiohttp import web

from beam_llm.testing.emulator.chat import Answer
from beam_llm.testing.emulator.dialects import (
    Asked,
    Dialect,
    Job,
    Line,
    LineResult,
    NewJob,
    Reply,
)
from beam_llm.testing.emulator.wire import WireError, json_response, unknown_model

_FIELDS = frozenset(
    (
        *("cache_control", "container", "diagnostics", "inference_geo", "max_tokens", "messages"),
        *("metadata", "model", "output_config", "service_tier", "speed", "stop_sequences"),
        *("stream", "system", "temperature", "thinking", "tool_choice", "tools", "top_k", "top_p"),
    )
)
_ENDS = {
    "stop": "end_turn",
    "length": "max_tokens",
    "content_filter": "refusal",
    "refusal": "refusal",
    "empty": "end_turn",
}
_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    504: "timeout_error",
    529: "overloaded_error",
}


class Wire(Dialect):
    """`/v1/messages` and `/v1/messages/batches` under `/anthropic`."""

    name = "anthropic"
    variables = ("ANTHROPIC_BASE_URL", "ANTHROPIC_API_KEY")
    shows_cancelled = True

    def refuse(self, request: web.BaseRequest) -> WireError | None:
        refused = super().refuse(request)
        if refused is not None:
            return refused
        version = request.headers.get("anthropic-version")
        if version is None:
            return WireError(400, "anthropic-version: header is required")
        if version not in ("2023-01-01", "2023-06-01", "2026-10-21"):
            return WireError(400, f'"{version}" is not a valid value for anthropic-version')
        return None

    def key_of(self, request: web.BaseRequest) -> str:
        """In `x-api-key`, or as a bearer's, as SDK 2.14 sends it."""
        return request.headers.get("x-api-key", "") or super().key_of(request)

    async def handle(self, request: web.BaseRequest, path: str) -> Reply | None:
        if (request.method, path) == ("POST", "/v1/messages"):
            return await self.house.live(request, self, self.asked)
        if path == "/v1/messages/batches" or path.startswith("/v1/messages/batches/"):
            return await self._batches(request, path)
        return None

    def asked(self, body: Any) -> Asked | WireError:
        """A Messages body, checked and translated."""
        problem = _problem(body)
        if problem is not None:
            return WireError(400, problem)
        if not self.house.chat.knows(body["model"]):
            return unknown_model(body["model"])
        messages = [{"role": m["role"], "content": _text(m["content"])} for m in body["messages"]]
        if body.get("system"):
            messages.insert(0, {"role": "system", "content": _text(body["system"])})
        chat = {"model": body["model"], "messages": messages, "max_tokens": body["max_tokens"]}
        schema = ((body.get("output_config") or {}).get("format") or {}).get("schema")
        if schema is not None:
            named = {"name": "reply", "strict": False, "schema": schema}
            chat["response_format"] = {"type": "json_schema", "json_schema": named}
        return Asked(chat)

    def reply(self, answer: Answer, asked: Asked, reply_id: str) -> Any:
        words = answer.words
        return {
            "id": f"msg_{reply_id}",
            "type": "message",
            "role": "assistant",
            "model": answer.model,
            "content": [] if words is None else [{"type": "text", "text": words}],
            "stop_reason": _ENDS[answer.finish],
            "stop_sequence": None,
            "usage": {
                "input_tokens": answer.input_tokens,
                "cache_creation_input_tokens": 0,
                "cache_read_input_tokens": 0,
                "output_tokens": answer.output_tokens,
                "service_tier": "standard",
            },
        }

    def error(self, error: WireError) -> web.Response:
        return json_response(_error_body(error), error.status, error.headers)

    def headers(self, number: int, seconds: float | None = None) -> dict[str, str]:
        return {"request-id": f"req_{self.house.started}_{number}"}

    # Message batches.

    async def _batches(self, request: web.BaseRequest, path: str) -> Reply | None:
        jobs = self.house.batches
        job_id, _, tail = path[len("/v1/messages/batches/") :].partition("/")
        match request.method, bool(job_id), tail:
            case "POST", False, "":
                return await jobs.create(request, self, self._new_job)
            case "GET", False, "":
                return await jobs.list_jobs(request, self, lambda found: self._page(request, found))
            case "GET", True, "":
                return await jobs.look(request, self, job_id)
            case "GET", True, "results":
                return await self._results(request, job_id)
            case "POST", True, "cancel":
                return await jobs.cancel(request, self, job_id)
            case "DELETE", True, "":
                gone = {"id": job_id, "type": "message_batch_deleted"}
                return await jobs.delete(request, self, job_id, gone)
        return None

    async def _new_job(self, raw: bytes) -> NewJob | WireError:
        return await asyncio.to_thread(self._made, raw)

    def _made(self, raw: bytes) -> NewJob | WireError:
        """Lines with faulty params are taken, and end as errors of their own."""
        try:
            body = orjson.loads(raw)
        except orjson.JSONDecodeError:
            return WireError(400, "The request body is not valid JSON")
        problem = _batch_problem(body, self.house.options.max_batch_requests)
        if problem is not None:
            return WireError(400, problem)
        job_id = f"msgbatch_{uuid.uuid4().hex[:24]}"
        part = self.house.batches.part_path(job_id)
        with open(part, "wb") as file:
            for entry in body["requests"]:
                file.write(Line(entry["custom_id"], self.asked(entry["params"])).encode())
        return NewJob(job_id, part, own={"requests": len(body["requests"])})

    def _page(self, request: web.BaseRequest, visible: list[Job]) -> Reply:
        query, options = request.query, self.house.options
        limit = int(query.get("limit", "20"))
        if not 1 <= limit <= 1000:
            return WireError(400, "limit: Input should be less than or equal to 1000")
        ids = [job["id"] for job in visible]
        start = ids.index(query["after_id"]) + 1 if query.get("after_id") in ids else 0
        end = start + min(limit, options.list_page)
        shown = visible[start:end]
        return json_response(
            {
                "data": [self.job(job) for job in shown],
                "has_more": end < len(visible) or not options.list_ends,
                "first_id": shown[0]["id"] if shown else None,
                "last_id": shown[-1]["id"] if shown else None,
            }
        )

    def job(self, job: Job) -> Any:
        over = job["status"] in ("completed", "failed", "expired", "cancelled")
        status = self.house.batches.status(job)
        named = {"cancelling": "canceling"}.get(status, "in_progress")
        if job["status"] == "in_progress" and status != "in_progress":
            named = status  # scripted
        stamps = job["stamps"]
        ended = next((stamps[f"{word}_at"] for word in (job["status"],) if over), None)
        url = f"{self.house.url}/anthropic/v1/messages/batches/{job['id']}/results"
        return {
            "id": job["id"],
            "type": "message_batch",
            "processing_status": "ended" if over else named,
            "request_counts": self._counts(job, over),
            "ended_at": _rfc3339(ended),
            "created_at": _rfc3339(job["created"]),
            "expires_at": _rfc3339(job["created"] + 86_400),
            "archived_at": None,
            "cancel_initiated_at": _rfc3339(stamps.get("cancelling_at")),
            "results_url": url if over else None,
        }

    def _counts(self, job: Job, over: bool) -> dict[str, int]:
        """All zero but `processing` until the whole job has ended."""
        names = ("processing", "succeeded", "errored", "canceled", "expired")
        counts = dict.fromkeys(names, 0)
        if not over:
            return {**counts, "processing": job["own"]["requests"]}
        for result in self.house.batches.results_of(job):
            counts[_end_of(result)] += 1
        return counts

    async def _results(self, request: web.BaseRequest, job_id: str) -> Reply:
        job = self.house.batches.known(self, job_id)
        if job is None:
            return self.no_job(job_id)
        if self.job(job)["results_url"] is None:
            return WireError(404, f"Batch {job_id} has no available results.")
        return await self.house.batches.results(request, job, self._result)

    def _result(self, result: LineResult) -> Any:
        end = _end_of(result)
        ended: dict[str, Any] = {"type": end}
        if result.answer is not None:
            ended["message"] = self.reply(result.answer, result.asked, result.reply_id)
        elif end == "errored" and result.error is not None:
            ended["error"] = _error_body(result.error)
        return {"custom_id": result.custom_id, "result": ended}


def _end_of(result: LineResult) -> str:
    if result.answer is not None:
        return "succeeded"
    return {"batch_expired": "expired", "batch_cancelled": "canceled"}.get(
        result.code or "", "errored"
    )


def _rfc3339(seconds: float | None) -> str | None:
    if seconds is None:
        return None
    return datetime.fromtimestamp(seconds, UTC).isoformat()


_CUSTOM_ID = re.compile(r"[a-zA-Z0-9_-]{1,64}")


def _batch_problem(body: Any, most: int) -> str | None:
    """What the API refuses of a batch as a whole."""
    if not isinstance(body, dict) or not isinstance(body.get("requests"), list):
        return "requests: Field required"
    for name in body:
        if name != "requests":
            return f"{name}: Extra inputs are not permitted"
    if not 1 <= len(body["requests"]) <= most:
        return f"requests: List should have 1 to {most} items, not {len(body['requests'])}"
    seen = set()
    for place, entry in enumerate(body["requests"]):
        if not isinstance(entry, dict) or set(entry) != {"custom_id", "params"}:
            return f"requests.{place}: custom_id and params are required, and nothing else"
        if not _CUSTOM_ID.fullmatch(str(entry["custom_id"])):
            return f"requests.{place}.custom_id: String should match '^[a-zA-Z0-9_-]{{1,64}}$'"
        if entry["custom_id"] in seen:
            return f"requests.{place}.custom_id: {entry['custom_id']!r} is used more than once"
        seen.add(entry["custom_id"])
    return None


def _error_body(error: WireError) -> dict[str, Any]:
    kind = _TYPES.get(error.status, "api_error")
    return {
        "type": "error",
        "error": {"type": kind, "message": error.message},
        "request_id": error.headers.get("request-id"),
    }


def _problem(body: Any) -> str | None:
    """What the API would say of a body that is not as it should be."""
    if not isinstance(body, dict):
        return "The request body is not valid JSON"
    for name in ("model", "messages", "max_tokens"):
        if name not in body:
            return f"{name}: Field required"
    for name in body:
        if name not in _FIELDS:
            return f"{name}: Extra inputs are not permitted"
    if not isinstance(body["max_tokens"], int) or body["max_tokens"] < 1:
        return "max_tokens: Input should be greater than or equal to 1"
    return _message_problem(body["messages"])


def _message_problem(messages: Any) -> str | None:
    if not isinstance(messages, list) or not messages:
        return "messages: at least one message is required"
    for place, message in enumerate(messages):
        role = message.get("role") if isinstance(message, Mapping) else None
        if role not in ("user", "assistant"):
            return f'messages.{place}.role: Unexpected role "{role}"'
    return None


def _text(content: Any) -> str:
    """The words of a string or of text blocks."""
    if isinstance(content, str):
        return content
    return "".join(block.get("text", "") for block in content if isinstance(block, dict))
