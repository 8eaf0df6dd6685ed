"""Anthropic's wire format: messages and message batches.

Source: Anthropic API reference, SDK 2.14, and recordings of live traffic (crmne/ruby_llm), read
2026-11: key sets, order of states, header names.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import orjson
from aiohttp import web

from beam_llm.testing.emulator.anthropic_rules import batch_problem, body_problems, forced_tool
from beam_llm.testing.emulator.chat import Answer, tokens_of
from beam_llm.testing.emulator.clockwork import TERMINAL
from beam_llm.testing.emulator.dialects import (
    Dialect,
    Job,
    Line,
    LineResult,
    ModelRequest,
    NewJob,
    Reply,
)
from beam_llm.testing.emulator.pictures import image_part, join_parts, part_of_address
from beam_llm.testing.emulator.wire import WireError, json_response, object_of, unknown_model

if TYPE_CHECKING:
    from beam_llm.testing.emulator.service import Service

VERSIONS = ("2023-01-01", "2023-06-01", "2026-10-21")
_BATCHES = "/v1/messages/batches"
_WINDOW_SECONDS = 86_400
_KEPT_SECONDS = 29 * 86_400
"""How long results are kept, from the batch's creation on. After that they are gone, and
`archived_at` says so. Source: SDK anthropic 2.14 (MessageBatch.archived_at), guide to batch
processing, read 2026-11."""
MOST_BODY_BYTES, MOST_BATCH_BYTES = 32 * 2**20, 256 * 2**20
"""Source: Anthropic API, "Errors" ("Request size limits"), read 2026-11."""
_COUNTS = ("processing", "succeeded", "errored", "canceled", "expired")


# A few models of each kind; any other model caches from 1,024 tokens on. Source: Anthropic's guide
# to prompt caching, read 2026-11.
_CACHED_FROM = ((r"(opus|fable|mythos)-[5-9]", 512), (r"haiku-4-5|opus-4-[56]", 4_096))
# Replies to an alias name its snapshot, under which prices are looked up.
_DATED = {"claude-haiku-4-5": "20251001", "claude-sonnet-4-5": "20250929"}

_ENDS = {
    "stop": "end_turn",
    "length": "max_tokens",
    "content_filter": "refusal",
    "refusal": "refusal",
    "empty": "end_turn",
}
_TYPES = {
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    409: "conflict_error",
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

    def __init__(self, service: Service) -> None:
        super().__init__(service)
        # Cached prefixes never expire here, since no test takes five minutes.
        self._prefixes: set[bytes] = set()

    def refuse(self, request: web.BaseRequest) -> WireError | None:
        refused = super().refuse(request)
        if refused is not None:
            return refused._replace(message="invalid x-api-key")
        # Checked after the key: strangers don't learn which versions there are.
        version = request.headers.get("anthropic-version")
        if version is None:
            return WireError(400, "anthropic-version: header is required")
        if version not in VERSIONS:
            return WireError(400, f'"{version}" is not a valid value for anthropic-version')
        return None

    def key_of(self, request: web.BaseRequest) -> str:
        """The key in `x-api-key`, or a bearer token, which SDK 2.14 sends."""
        return request.headers.get("x-api-key", "") or super().key_of(request)

    async def handle(self, request: web.BaseRequest, path: str) -> Reply | None:
        # The newest version has no temperature, for any model.
        has_sampling = request.headers["anthropic-version"] != VERSIONS[-1]
        if (request.method, path) == ("POST", "/v1/messages"):
            if (request.content_length or 0) > MOST_BODY_BYTES:
                return WireError(413, "Request exceeds the maximum size")
            return await self.service.live(
                request, self, lambda body: self.parse_request(body, has_sampling, is_live=True)
            )
        if path != _BATCHES and not path.startswith(f"{_BATCHES}/"):
            return None
        jobs, below = self.service.batches, path.removeprefix(_BATCHES)
        job_id, _, tail = below[1:].partition("/")
        if job_id and (request.method, tail) == ("GET", "results"):
            return await self._results(request, job_id)
        if job_id and (request.method, tail) == ("DELETE", ""):
            gone = {"id": job_id, "type": "message_batch_deleted"}
            return await jobs.delete(request, self, job_id, gone)
        return await jobs.serve(
            request,
            self,
            below,
            lambda raw: asyncio.to_thread(self._read_job, raw, has_sampling),
            lambda found: self._page(request, found),
        )

    # Messages.

    def parse_request(
        self, body: Any, has_sampling: bool, *, is_live: bool
    ) -> ModelRequest | WireError:
        """Checks a Messages body, and translates it for the emulated model."""
        problem = next(body_problems(body, has_sampling, is_live), None)
        if problem is not None:
            return WireError(400, problem)
        model = body["model"]
        if not self.service.chat.knows(model):
            return unknown_model(model)
        messages = [
            {"role": m["role"], "content": join_parts(map(_part, _blocks(m["content"])))}
            for m in body["messages"]
        ]
        if body.get("system"):
            messages.insert(0, {"role": "system", "content": _text(body["system"])})
        chat = {"model": model, "messages": messages, "max_tokens": body["max_tokens"]}
        tool = forced_tool(body)
        form = (body.get("output_config") or {}).get("format") or {}
        schema = form.get("schema") if tool is None else tool["input_schema"]
        if schema is not None:
            named = {"name": "reply", "strict": False, "schema": schema}
            chat["response_format"] = {"type": "json_schema", "json_schema": named}
        note = {
            "tool": tool["name"] if tool is not None else None,
            "cache": self._cache_tokens(body),
            "tier": "standard" if is_live else "batch",
        }
        return ModelRequest(chat, note)

    def _cache_tokens(self, body: Mapping[str, Any]) -> list[int]:
        """Tokens read from the cache, written to it for five minutes, and written for an hour."""
        prefix, ttl = _marked_prefix(body)
        tokens = tokens_of(prefix)
        least = next((n for name, n in _CACHED_FROM if re.search(name, body["model"])), 1_024)
        if ttl is None or tokens < least:
            return [0, 0, 0]
        digest = hashlib.blake2b(prefix.encode("utf-8", "surrogatepass"), digest_size=12).digest()
        if digest in self._prefixes:
            return [tokens, 0, 0]
        self._prefixes.add(digest)
        return [0, 0, tokens] if ttl == "1h" else [0, tokens, 0]

    def reply(self, answer: Answer, parsed: ModelRequest, reply_id: str) -> Any:
        words, note, finish = answer.words, parsed.note, answer.finish
        content: list[dict[str, Any]] = []
        given = object_of(words) if words and finish == "stop" and note["tool"] else None
        if given is not None:
            used = {"name": note["tool"], "input": given}
            content = [{"type": "tool_use", "id": f"toolu_{reply_id}", **used}]
        elif words and finish not in ("refusal", "content_filter"):
            content = [{"type": "text", "text": words}]
        is_refusal = _ENDS[finish] == "refusal"
        is_tool = bool(content) and content[0]["type"] == "tool_use"
        dated = _DATED.get(answer.model)
        return {
            "id": f"msg_{reply_id}",
            "type": "message",
            "role": "assistant",
            "model": f"{answer.model}-{dated}" if dated else answer.model,
            "content": content,
            "stop_reason": "tool_use" if is_tool else _ENDS[finish],
            "stop_sequence": None,
            "stop_details": _refusal_details(words) if is_refusal else None,
            "usage": _usage(answer, note),
        }

    def error(self, error: WireError) -> web.Response:
        error = _as_anthropic(error)
        named = error.headers.get("request-id") or f"req_{uuid.uuid4().hex[:24]}"
        headers = {**error.headers, "request-id": named}
        return json_response(_error_body(error, named), error.status, headers)

    def headers(self, number: int, seconds: float | None = None) -> dict[str, str]:
        named = {
            "request-id": f"req_{self.service.started}_{number}",
            "anthropic-organization-id": "org-emulator",
        }
        if seconds is None:
            return named
        now = self.service.options.clock()
        # Two budgets for four headers: here input and output are limited together.
        for what, budget in (
            ("requests", "requests"),
            ("tokens", "tokens"),
            ("input-tokens", "tokens"),
            ("output-tokens", "tokens"),
        ):
            standing = self.service.limits.standing(budget)
            reset = datetime.fromtimestamp(now + standing.reset_seconds, UTC)
            start = f"anthropic-ratelimit-{what}"
            named[f"{start}-limit"] = str(standing.limit)
            named[f"{start}-remaining"] = str(standing.remaining)
            named[f"{start}-reset"] = reset.strftime("%Y-%m-%dT%H:%M:%SZ")
        return named

    # Message batches.

    def _read_job(self, raw: bytes, has_sampling: bool) -> NewJob | WireError:
        """Reads the requests of a new batch. Those with faulty params are accepted, and end as
        errors of their own.
        """
        if len(raw) > MOST_BATCH_BYTES:
            return WireError(413, "Request exceeds the maximum size")
        try:
            body = orjson.loads(raw)
        except orjson.JSONDecodeError:
            return WireError(400, "The request body is not valid JSON")
        problem = batch_problem(body, self.service.options.max_batch_requests)
        if problem is not None:
            return WireError(400, problem)
        job_id = f"msgbatch_{uuid.uuid4().hex[:24]}"
        part = self.service.batches.part_path(job_id)
        with open(part, "wb") as file:
            for entry in body["requests"]:
                parsed = self.parse_request(entry["params"], has_sampling, is_live=False)
                file.write(Line(entry["custom_id"], parsed).encode())
        return NewJob(job_id, part, own={"requests": len(body["requests"])})

    def _page(self, request: web.BaseRequest, visible: list[Job]) -> Reply:
        query, options = request.query, self.service.options
        limit = query.get("limit", "20")
        if not limit.isdecimal() or not 1 <= int(limit) <= 1000:
            return WireError(400, "limit: Input should be between 1 and 1000")
        # After an id that is not in the list, the list starts again from the beginning.
        ids = [job["id"] for job in visible]
        start = ids.index(query["after_id"]) + 1 if query.get("after_id") in ids else 0
        end = start + min(int(limit), options.list_page)
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
        is_over, stamps = job["status"] in TERMINAL, job["stamps"]
        status = self.service.batches.status(job)
        is_usual = status == job["status"]
        named = "canceling" if status == "cancelling" else "in_progress" if is_usual else status
        ended = stamps.get(f"{job['status']}_at") if is_over else None
        return {
            "id": job["id"],
            "type": "message_batch",
            "processing_status": "ended" if is_over else named,
            "request_counts": self._counts(job, is_over),
            "ended_at": _rfc3339(ended),
            "created_at": _rfc3339(job["created"]),
            "expires_at": _rfc3339(job["created"] + _WINDOW_SECONDS),
            "archived_at": _rfc3339(self._archive_time(job)),
            "cancel_initiated_at": _rfc3339(stamps.get("cancelling_at")),
            "results_url": f"{self.service.url}/anthropic{_BATCHES}/{job['id']}/results"
            if is_over
            else None,
        }

    def _archive_time(self, job: Job) -> float | None:
        end: float = job["created"] + _KEPT_SECONDS
        return end if self.service.options.clock() >= end else None

    def _counts(self, job: Job, is_over: bool) -> dict[str, int | None]:
        """The counts of a job: all but `processing` are zero until the whole job has ended."""
        if self.service.batches.counts(job)["completed"] is None:
            return dict.fromkeys(_COUNTS)
        if not is_over:
            return {**dict.fromkeys(_COUNTS, 0), "processing": job["own"]["requests"]}
        # Counted once: otherwise a list of a hundred ended jobs would read all of their results.
        if "counts" not in job["own"]:
            ends = [_end_of(result) for result in self.service.batches.results_of(job)]
            job["own"]["counts"] = {name: ends.count(name) for name in _COUNTS}
        return dict(job["own"]["counts"])

    async def _results(self, request: web.BaseRequest, job_id: str) -> Reply:
        job = self.service.batches.find(self, job_id)
        if job is None:
            return self.no_job(job_id)
        if job["status"] not in TERMINAL or self._archive_time(job) is not None:
            return WireError(404, f"Batch {job_id} has no available results.")
        return await self.service.batches.results(request, job, self._result)

    def _result(self, result: LineResult) -> Any:
        end = _end_of(result)
        ended: dict[str, Any] = {"type": end}
        if result.answer is not None:
            ended["message"] = self.reply(result.answer, result.parsed, result.reply_id)
        elif end == "errored" and result.error is not None:
            ended["error"] = _error_body(_as_anthropic(result.error), f"req_{result.reply_id}")
        return {"custom_id": result.custom_id, "result": ended}


def _end_of(result: LineResult) -> str:
    if result.answer is not None:
        return "succeeded"
    ends = {"batch_expired": "expired", "batch_cancelled": "canceled"}
    return ends.get(result.code or "", "errored")


def _rfc3339(seconds: float | None) -> str | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC).isoformat()


# Writing replies


def _usage(answer: Answer, note: Mapping[str, Any]) -> dict[str, Any]:
    read, minutes, hour = note["cache"]
    return {
        "input_tokens": max(0, answer.input_tokens - read - minutes - hour),
        "cache_creation_input_tokens": minutes + hour,
        "cache_read_input_tokens": read,
        "cache_creation": {"ephemeral_5m_input_tokens": minutes, "ephemeral_1h_input_tokens": hour},
        "output_tokens": answer.output_tokens,
        "service_tier": note["tier"],
        "inference_geo": "not_available",
    }


def _refusal_details(words: str | None) -> dict[str, Any]:
    return {"type": "refusal", "category": "general_harms", "explanation": words}


def _as_anthropic(error: WireError) -> WireError:
    """The same error with the status or message that Anthropic's API has for it."""
    if error.code == "insufficient_quota":
        return error._replace(status=402)
    if error.code == "token_limit_exceeded":
        return error._replace(message="This would exceed the batch requests in processing queue.")
    return error


def _error_body(error: WireError, request_id: str) -> dict[str, Any]:
    other = "invalid_request_error" if error.status < 500 else "api_error"
    kind = _TYPES.get(error.status, other)
    named = {"type": kind, "message": error.message}
    return {"type": "error", "error": named, "request_id": request_id}


# Reading requests


def _text(content: Any) -> str:
    """The text of a string, or of text blocks."""
    if isinstance(content, str):
        return content
    return "".join(block.get("text", "") for block in content)


def _part(block: Mapping[str, Any]) -> str | dict[str, Any]:
    """A block in OpenAI's form: a text, or an image part."""
    if block["type"] == "text":
        return str(block["text"])
    source = block["source"]
    if source["type"] == "url":
        return part_of_address(source["url"])
    return image_part(source["media_type"], source["data"])


def _blocks(content: Any) -> list[dict[str, Any]]:
    return [{"type": "text", "text": content}] if isinstance(content, str) else list(content or ())


def _marked_prefix(body: Mapping[str, Any]) -> tuple[str, str | None]:
    """Everything up to the last cache mark, and how long to keep it; None without a mark."""
    # Tools, system, messages: the order in which the API puts a prompt together.
    parts: list[str] = [orjson.dumps([body["model"], body.get("tools")]).decode()]
    marked, ttl = "", None
    contents = [body.get("system"), *(message["content"] for message in body["messages"])]
    for block in (block for content in contents for block in _blocks(content)):
        parts.append(str(block.get("text", "")))
        if block.get("cache_control"):
            marked, ttl = "".join(parts), block["cache_control"].get("ttl", "5m")
    return marked, ttl
