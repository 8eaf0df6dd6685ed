"""OpenAI's dialect as other providers speak it: each has its own addresses and names, on top of
OpenAI's code. This module has those whose batch jobs are like OpenAI's, too: Together, Groq,
DeepInfra.

Sources: the providers' documentation and SDKs (groq 1.7.0, together 3.1.1); read 2026-11.
"""

from __future__ import annotations

import asyncio
import dataclasses
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar

import orjson
from aiohttp import web

from beam_llm.testing.emulator import openai
from beam_llm.testing.emulator.chat import Answer
from beam_llm.testing.emulator.clockwork import TERMINAL
from beam_llm.testing.emulator.dialects import (
    Dialect,
    Job,
    ModelRequest,
    NewJob,
    Reply,
)
from beam_llm.testing.emulator.models import CHAT
from beam_llm.testing.emulator.pictures import refusal
from beam_llm.testing.emulator.wire import (
    WireError,
    json_response,
    object_of,
    page_of,
    with_json,
)
from beam_llm.testing.emulator.work import CANCELLED, EXPIRED

UNPROCESSED = (EXPIRED["code"], CANCELLED["code"])
"""Codes of lines that their job did not process."""


class Family(openai.Wire):
    """OpenAI's wire format under another prefix.

    Attributes:
      purposes: the purposes that a job's input file may have.
      tiers: the values of `service_tier` that are accepted; None means any.
      most_images, image_kinds: the most images of a request, and their media types.
    """

    # Each of these providers has fields of its own besides OpenAI's (Together's `model_id`,
    # `priority`).
    create_shape: ClassVar[type[openai.Create]] = openai.Create
    upload_purposes: ClassVar[tuple[str, ...] | None] = None
    purposes: ClassVar[tuple[str, ...]] = ("batch",)
    tiers: ClassVar[tuple[str, ...] | None] = None
    most_images: ClassVar[int] = 500
    image_kinds: ClassVar[tuple[str, ...]] = ("image/png", "image/jpeg", "image/gif", "image/webp")

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
        # Without OpenAI's `openai-…` headers, from which a client might take the server for OpenAI.
        return {
            "x-request-id": f"req_{self.service.started}_{number}",
            **self.service.limits.headers(),
        }

    def _parse_request(self, body: Any, deployment: str | None) -> ModelRequest | WireError:
        # Only Azure has deployments in the path.
        parsed = super()._parse_request(body, None)
        if isinstance(parsed, WireError):
            return parsed
        images = refusal(parsed.body["messages"], self.most_images, self.image_kinds)
        if images is not None:
            return WireError(400, images.message, param=images.place, code=images.code)
        tier = body.get("service_tier")
        if tier is not None and self.tiers is not None and tier not in self.tiers:
            return WireError(
                400, f"Invalid value for 'service_tier': {tier!r}.", param="service_tier"
            )
        return parsed

    def _check_input(self, file_id: str) -> WireError | None:
        meta = self.service.files.get(file_id)
        if meta is None:
            return WireError(400, f"Invalid file id '{file_id}': no such file.")
        if meta["purpose"] not in self.purposes:
            return WireError(400, f"The file's purpose must be '{self.purposes[0]}'.")
        return None


def iso(seconds: float | None) -> str | None:
    if seconds is None:
        return None
    return datetime.fromtimestamp(seconds, UTC).isoformat().replace("+00:00", "Z")


class Groq(Family):
    name = "groq"
    embeds = False
    job_routes = (CHAT,)
    most_images = 5
    variables = ("GROQ_BASE_URL", "GROQ_API_KEY")
    path = "/openai/v1"
    tiers = ("auto", "on_demand", "flex", "performance")
    unknown_field = "property '{}' is unsupported"
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
    # Models that enforce schemas; the others only know `json_object`.
    knows_schemas = re.compile(r"openai/gpt-oss|moonshotai/kimi-k2|meta-llama/llama-4")
    # 24 hours to 7 days, in hours or in days.
    windows = re.compile(r"(2[4-9]|[3-9]\d|1[0-5]\d|16[0-8])h|[1-7]d")

    def _parse_request(self, body: Any, deployment: str | None) -> ModelRequest | WireError:
        parsed = super()._parse_request(body, deployment)
        if isinstance(parsed, WireError):
            return parsed
        form = body.get("response_format") or {}
        if form.get("type") == "json_schema" and not self.knows_schemas.match(body["model"]):
            message = "This model does not support response format `json_schema`."
            return WireError(400, message, param="response_format")
        return parsed

    def _page(self, request: web.BaseRequest, visible: list[Job]) -> Reply:
        """A list in small pages, each with a cursor to the next; ids are not cursors here."""
        page = page_of(visible, self.service.options, request.query, "size", 20, "cursor", 20)
        if page is None:
            return WireError(400, "Invalid cursor.")
        shown, paging = list(map(self.job, page.items)), {"next_cursor": page.next}
        return json_response({"object": "list", "data": shown, "paging": paging})

    def _check_window(self, window: str) -> WireError | None:
        if self.windows.fullmatch(window):
            return None
        return WireError(400, "completion_window must be between 24h and 7d", code="invalid_value")

    def reply(self, answer: Answer, parsed: ModelRequest, reply_id: str) -> Any:
        tier = parsed.body.get("service_tier") or "on_demand"
        # Fields besides OpenAI's, which a reader of usage has to ignore.
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
    job_routes = (CHAT,)
    variables = ("TOGETHER_BASE_URL", "TOGETHER_API_KEY")
    path = "/v1"
    purposes = ("batch-api",)
    # It has no word for either of these; all others are OpenAI's words in capitals.
    _words: ClassVar[dict[str, str]] = {"finalizing": "IN_PROGRESS", "cancelling": "IN_PROGRESS"}

    async def handle(self, request: web.BaseRequest, path: str) -> Reply | None:
        if (request.method, path) == ("POST", "/files"):
            return WireError(400, "Upload with POST /files/upload")
        if (request.method, path) == ("POST", "/files/upload"):
            uploaded = await self.service.files.handle(request, "/files")
            return with_json(uploaded, self._file)
        if (request.method, path) == ("POST", "/batches"):
            made = await super().handle(request, path)
            return with_json(made, lambda job: {"job": job, "warning": ""})
        return await super().handle(request, path)

    async def _new_job(self, raw: bytes) -> NewJob | WireError:
        made = await super()._new_job(raw)
        if isinstance(made, WireError) or made.input_file_id is None:
            return made
        part = self.service.batches.part_path(made.job_id)
        errors = await asyncio.to_thread(self._rewrite, made.input_file_id, part)
        return dataclasses.replace(made, lines=part, errors=tuple(errors))

    def _rewrite(self, file_id: str, part: Path) -> list[dict[str, Any]]:
        """Rewrites lines with a `custom_id` and a `body` as OpenAI's lines. Stops at the first
        faulty line, and returns its error.
        """
        target = {"method": "POST", "url": "/v1/chat/completions"}
        with open(self.service.files.path(file_id), "rb") as lines, open(part, "wb") as file:
            for number, data in enumerate(lines, 1):
                line = object_of(data)
                if line is None or not {"custom_id", "body"} <= set(line):
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
        status, over = self.service.batches.status(job), job["status"] in TERMINAL
        counts = self.service.batches.counts(job)
        done = (counts["completed"] or 0) + (counts["failed"] or 0)
        return {
            "id": job["id"],
            "user_id": "user-emulator",
            "input_file_id": job["input_file_id"] if self.service.options.inputs_shown else None,
            "file_size_bytes": 0,
            "status": self._words.get(status, status.upper()),
            "job_deadline": iso(job["created"] + 86_400),
            "created_at": iso(job["created"]),
            "endpoint": job["own"]["endpoint"],
            "progress": 100.0 * done / job["total"] if job["total"] else 0.0,
            "model_id": job["model"],
            "output_file_id": job["output_file_id"] if over else None,
            "error_file_id": job["error_file_id"] if over else None,
            "error": "; ".join(one["message"] for one in job["errors"] or ()),
            "completed_at": iso(job["stamps"].get("completed_at")),
        }


class DeepInfra(Family):
    name = "deepinfra"
    variables = ("DEEPINFRA_BASE_URL", "DEEPINFRA_API_KEY")
    path = "/v1/openai"
    tiers = ("default", "priority")

    def reply(self, answer: Answer, parsed: ModelRequest, reply_id: str) -> Any:
        # A cost in dollars besides the tokens, from which the client computes a cost of its own.
        tokens = answer.input_tokens + answer.output_tokens
        return {
            **answer.body,
            "usage": {**answer.body["usage"], "estimated_cost": tokens * 1e-7},
        }


WIRES: dict[str, type[Dialect]] = {wire.name: wire for wire in (Groq, Together, DeepInfra)}
