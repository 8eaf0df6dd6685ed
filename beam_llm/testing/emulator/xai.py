"""xAI's wire format: OpenAI's chat completions and files, and batch jobs with names and counts.

Source: docs.x.ai, recorded traffic of 2026-08; read 2026-11.
"""

from __future__ import annotations

import asyncio
import re
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import orjson
from aiohttp import web

from beam_llm.testing.emulator.chat import Answer
from beam_llm.testing.emulator.clockwork import TERMINAL
from beam_llm.testing.emulator.connection import before_work
from beam_llm.testing.emulator.dialects import Job, ModelRequest, NewJob, Reply
from beam_llm.testing.emulator.family import Family, iso
from beam_llm.testing.emulator.models import CHAT
from beam_llm.testing.emulator.wire import (
    WireError,
    json_of,
    json_response,
    object_of,
    page_of,
    with_json,
)
from beam_llm.testing.emulator.work import CANCELLED

_BATCHED = re.compile(r"(?!grok-(3-mini|4\.[5-9]|[5-9]|build))")
"""Models that jobs may name. Source: OpenRouter's notes on live jobs of 2026-08, read 2026-11."""


def _refusal(error: dict[str, Any]) -> str:
    """xAI's message about a job that it has cancelled because of a faulty file."""
    line = f"line {error['line']}: " if error.get("line") else ""
    return f"JSONL file validation failed: {line}{error['message']}"


class Wire(Family):
    """xAI's jobs have names and counts but no status; results come in pages."""

    name = "xai"
    embeds = False
    job_routes = (CHAT,)
    image_kinds = ("image/png", "image/jpeg")
    variables = ("XAI_BASE_URL", "XAI_API_KEY")
    path = "/v1"
    # xAI's files have no purpose.
    purposes = ("",)
    tiers = ("default", "priority")

    async def handle(self, request: web.BaseRequest, path: str) -> Reply | None:
        if (request.method, path) == ("POST", "/files"):
            uploaded = await self.service.files.handle(request, path, purpose="")
            return with_json(uploaded, lambda meta: {**meta, "purpose": ""})
        if request.method == "POST" and path.endswith(":cancel"):
            job_id = path.removeprefix("/batches/").removesuffix(":cancel")
            return await self.service.batches.cancel(request, self, job_id)
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

    def reply(self, answer: Answer, parsed: ModelRequest, reply_id: str) -> Any:
        """A reply in which reasoning tokens are counted in addition to the completion's tokens."""
        usage = answer.body["usage"]
        # A number other than 0: a client that leaves them out pays more than it thinks.
        thoughts = 7
        details = {**usage["completion_tokens_details"], "reasoning_tokens": thoughts}
        sums = {
            "total_tokens": usage["total_tokens"] + thoughts,
            "completion_tokens_details": details,
            "num_sources_used": 0,
            # At grok-4-fast's list price, in ticks of 1e-10 dollars. Results of jobs name no cost
            # and are priced by the list, so the two can be compared.
            "cost_in_usd_ticks": 2_000 * usage["prompt_tokens"]
            + 5_000 * (usage["completion_tokens"] + thoughts),
        }
        return {**answer.body, "usage": {**usage, **sums}}

    async def _new_job(self, raw: bytes) -> NewJob | WireError:
        body = json_of(raw)
        if not isinstance(body, dict) or not isinstance(body.get("name"), str):
            return WireError(422, "Failed to deserialize the JSON body: missing field `name`")
        if unknown := set(body) - {"name", "input_file_id"}:
            return WireError(422, f"Failed to deserialize: unknown field `{min(unknown)}`")
        error = self._check_input(str(body.get("input_file_id")))
        if error is not None:
            return error
        own = {"endpoint": "/v1/chat/completions", "name": body["name"]}
        file_id = body["input_file_id"]
        errors = await asyncio.to_thread(self._wrong_model, file_id)
        return NewJob(f"batch_{uuid.uuid4()}", input_file_id=file_id, own=own, errors=errors)

    def _wrong_model(self, file_id: str) -> tuple[dict[str, Any], ...]:
        """The error for a file whose model has no batch API; empty where it has one."""
        with open(self.service.files.path(file_id), "rb") as file:
            line = object_of(file.readline()) or {}
        body = line.get("body")
        model = body.get("model") if isinstance(body, dict) else None
        if not isinstance(model, str) or _BATCHED.match(model):
            return ()
        return ({"message": f"Model {model} is not supported for batch processing."},)

    def _page(self, request: web.BaseRequest, visible: list[Job]) -> Reply:
        return self._send_page(request, "batches", visible, self.job)

    def _send_page(
        self, request: web.BaseRequest, name: str, items: list[Any], show: Callable[[Any], Any]
    ) -> Reply:
        options, query = self.service.options, request.query
        page = page_of(items, options, query, "limit", 100, "pagination_token", 1_000)
        if page is None:
            return WireError(400, "Invalid limit or pagination_token.")
        return json_response({name: list(map(show, page.items)), "pagination_token": page.next})

    def job(self, job: Job) -> Any:
        counts, status = self.service.batches.counts(job), job["status"]
        done, bad = counts["completed"] or 0, counts["failed"] or 0
        ended = status in TERMINAL
        # There is no status: clients use the counts, which are 0 until all requests are read.
        started = status not in ("validating", "failed")
        failed = _refusal(job["errors"][0]) if job["errors"] else None
        stamp = job["stamps"].get("cancelled_at") or job["stamps"].get("failed_at")
        # Recorded jobs show a day and no time.
        day = datetime.fromtimestamp(job["created"], UTC).date()
        return {
            "batch_id": job["id"],
            "name": job["own"]["name"] if self.service.options.names_kept else "",
            "create_time": day.isoformat(),
            "expire_time": day.isoformat(),
            "create_api_key_id": "key",
            "cancel_time": iso(stamp) if ended and stamp else None,
            "cancel_by_xai_message": failed,
            "input_file_id": job["input_file_id"] if self.service.options.inputs_shown else None,
            "state": {
                "num_requests": job["total"] if started else 0,
                # At least one while the job runs: clients take a job without pending requests to
                # have ended.
                "num_pending": 0 if ended else max(job["total"] - done - bad, 1),
                "num_success": done,
                "num_error": bad,
                "num_cancelled": job["total"] - done - bad if status == "cancelled" else 0,
            },
        }

    async def _results(self, request: web.BaseRequest, job_id: str) -> Reply:
        faults = self.service.script.strike("content")
        if (refused := await before_work(request, faults)) is not None:
            return refused
        job = self.service.batches.find(self, job_id)
        if job is None:
            return self.no_job(job_id)
        found = list(self._lines(job)) if job["status"] in TERMINAL else []
        return self._send_page(request, "results", found, self._result)

    def _lines(self, job: Job) -> Any:
        for name in ("output_file_id", "error_file_id"):
            if job[name] is not None:
                with open(self.service.files.path(job[name]), "rb") as file:
                    yield from map(orjson.loads, file)

    def _result(self, line: dict[str, Any]) -> dict[str, Any]:
        response, error = line["response"], line["error"]
        result: dict[str, Any]
        if response is not None and response["status_code"] < 400:
            result = {"response": {"chat_get_completion": response["body"]}}
        else:  # a bare sentence, without a code
            error = response["body"]["error"] if response is not None else error
            is_cancelled = error.get("code") == CANCELLED["code"]
            result = {"error": "Batch cancelled" if is_cancelled else error["message"]}
        return {"batch_request_id": line["custom_id"], "batch_result": result}
