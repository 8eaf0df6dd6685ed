"""The emulator's HTTP face: routes, keys, faults of the connection. aiohttp's low-level server,
because it is the fast one.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import deque
from collections.abc import Sequence
from email.utils import formatdate
from pathlib import Path
from typing import Any

import orjson
from aiohttp import web

from beam_llm.testing.emulator.batches import Batches
from beam_llm.testing.emulator.billing import BilledCounter, Billing
from beam_llm.testing.emulator.brain import Brain
from beam_llm.testing.emulator.chat import Chat, prompt_tokens
from beam_llm.testing.emulator.connection import drop, flood, garbage, pause
from beam_llm.testing.emulator.faults import Fault, FaultScript, chance
from beam_llm.testing.emulator.limits import Limits
from beam_llm.testing.emulator.options import EmulatorOptions
from beam_llm.testing.emulator.small_files import read_json, write_json
from beam_llm.testing.emulator.wire import (
    json_response,
    missing_key,
    unknown_model,
    unknown_route,
    wrong_key,
)

_PREFIXES = ("/openai/v1", "/v1", "/openai")
_DEPLOYMENTS = "/openai/deployments/"


class Service:
    """Answers requests. Made and used on one event loop, but for the counters, which may be read
    from any thread.
    """

    def __init__(self, options: EmulatorOptions, folder: Path) -> None:
        self.options = options
        self.billing = Billing(folder / "billing", options.billing)
        self.requests: deque[dict[str, Any]] = deque(maxlen=options.keep_requests)
        self.calls = 0
        self.errors = 0
        self._folder = folder
        self._started = f"{time.time_ns():x}"
        self._numbers = itertools.count(1)
        self.limits = Limits(
            options.requests_per_minute, options.tokens_per_minute, options.max_concurrency
        )
        self._chat = Chat(Brain(options.fast), options.models)
        self.script = FaultScript()
        self.batches = Batches(options, folder, self._chat, self.billing)
        self.set_faults(options.faults, counts=read_json(folder / "faults.json"))
        self.batches.resume()

    def set_faults(self, faults: Sequence[Fault], counts: Any = None) -> None:
        """Another script; counts begin anew unless given."""
        self.script = FaultScript(
            faults,
            self.options.seed,
            counts,
            lambda now: write_json(self._folder / "faults.json", now),
        )
        self.batches.script = self.script

    async def close(self) -> None:
        await self.batches.close()
        self.billing.close()

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Every request ends here."""
        path, deployment = local_path(request.path)
        if path.startswith("/_emulator"):
            return await self._own(request, path)
        refused = self._check_key(request)
        if refused is not None:
            return refused
        if path == "/chat/completions" and request.method == "POST":
            return await self._complete(request, deployment)
        if path == "/models" and request.method == "GET":
            names = self.options.models or ("gpt-4.1-mini", "gpt-4.1", "gpt-4o-mini")
            models = [
                {"id": name, "object": "model", "created": 0, "owned_by": "emulator"}
                for name in names
            ]
            return self._dated(json_response({"object": "list", "data": models}))
        answer = await self.batches.handle(request, path)
        return self._dated(
            answer if answer is not None else unknown_route(request.method, request.path).response()
        )

    def _dated(self, answer: web.StreamResponse) -> web.StreamResponse:
        """With the time it is here; the server would take the machine's."""
        if not answer.prepared:
            answer.headers["Date"] = formatdate(self.options.clock(), usegmt=True)
        return answer

    def _check_key(self, request: web.BaseRequest) -> web.Response | None:
        if self.options.keys == ():
            return None
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        key = token.strip() if scheme.lower() == "bearer" else ""
        key = key or request.headers.get("api-key", "")
        if not key:
            return missing_key().response()
        if self.options.keys is not None and key not in self.options.keys:
            return wrong_key().response()
        return None

    async def _complete(
        self, request: web.BaseRequest, deployment: str | None
    ) -> web.StreamResponse:
        started = time.perf_counter()
        raw = await request.read()
        self.calls += 1
        self.limits.in_flight += 1
        self.limits.most_in_flight = max(self.limits.most_in_flight, self.limits.in_flight)
        try:
            return await self._complete_read(request, raw, deployment, started)
        finally:
            self.limits.in_flight -= 1

    async def _complete_read(
        self, request: web.BaseRequest, raw: bytes, deployment: str | None, started: float
    ) -> web.StreamResponse:
        try:
            body = orjson.loads(raw)
        except orjson.JSONDecodeError:
            body = None
        if deployment and isinstance(body, dict):
            body = {**body, "model": deployment}
        number = next(self._numbers)
        headers = self._headers(number)
        error = self._chat.check(body)
        if error is None and not self._chat.knows(body["model"]):
            error = unknown_model(body["model"])
        if error is not None:
            return self._failed(error.response(headers))
        if self.requests.maxlen:
            self.requests.append(body)
        self.limits.in_flight -= 1  # This call itself is no reason to turn it away.
        refused = self.limits.admit(body["model"], prompt_tokens(body))
        self.limits.in_flight += 1
        if refused is not None:
            return self._failed(refused.response({**headers, **self.limits.headers()}))
        return await self._work(request, body, number, headers, started)

    async def _work(
        self,
        request: web.BaseRequest,
        body: dict[str, Any],
        number: int,
        headers: dict[str, str],
        started: float,
    ) -> web.StreamResponse:
        question = self._chat.read(body)
        faults = self.script.strike("chat", question.texts) if self.script else ()
        kinds = {fault.kind for fault in faults}
        await self._pause(faults, number)
        if "drop_before" in kinds:
            return self._dropped(request)
        answer = self._chat.answer(body, question, faults, f"{self._started}-{number}")
        headers = {
            **headers,
            **self.limits.headers(),
            "openai-processing-ms": str(int((time.perf_counter() - started) * 1000)),
        }
        if answer.error is not None:
            return self._failed(answer.error.response(headers))
        self.billing.live(answer.texts, body, answer.input_tokens, answer.output_tokens)
        if "drop_after" in kinds:
            return self._dropped(request)
        if "garbage_body" in kinds:
            return garbage()
        if "endless_body" in kinds:
            return await flood(request)
        return json_response(answer.body, headers=headers)

    async def _pause(self, faults: tuple[Fault, ...], number: int) -> None:
        seconds = self.options.latency_ms / 1000
        if self.options.jitter_ms:
            seconds += self.options.jitter_ms / 1000 * chance(self.options.seed, "latency", number)
        if seconds or faults:
            await pause(faults, seconds)

    def _headers(self, number: int) -> dict[str, str]:
        return {
            "x-request-id": f"req_{self._started}_{number}",
            "openai-version": "2020-10-01",
            "openai-organization": "org-emulator",
        }

    def _failed(self, response: web.Response) -> web.Response:
        self.errors += 1
        return response

    def _dropped(self, request: web.BaseRequest) -> web.Response:
        self.errors += 1
        return drop(request)

    async def _own(self, request: web.BaseRequest, path: str) -> web.StreamResponse:
        """`/_emulator/ledger`, `/_emulator/faults`, `/_emulator/health`: not the provider's,
        ours.
        """
        if path == "/_emulator/ledger":
            loop = asyncio.get_running_loop()
            text = request.query.get("text")
            return json_response(
                await loop.run_in_executor(None, self.ledger, text, "summary" not in request.query)
            )
        if path == "/_emulator/totals":
            return json_response(self.totals())
        if path == "/_emulator/faults" and request.method == "POST":
            self.set_faults(
                [Fault.from_json(entry) for entry in orjson.loads(await request.read())]
            )
        if path == "/_emulator/faults":
            return json_response([fault.to_json() for fault in self.script.faults])
        if path == "/_emulator/health":
            return json_response({"ok": True})
        return unknown_route(request.method, path).response()

    def billed(self) -> BilledCounter:
        """Record → times billed, live and batch together."""
        total = self.billing.live_billed()
        total.update(self.billing.batch_billed(self.batches.billed_ids()))
        return total

    def totals(self) -> dict[str, Any]:
        """The book's sums: cheap, however many records there are."""
        live = {
            "requests": self.billing.calls,
            "records": self.billing.one_by_one,
            "input_tokens": self.billing.input_tokens,
            "output_tokens": self.billing.output_tokens,
            "price_factor": 1.0,
        }
        return {
            "calls": self.calls,
            "errors": self.errors,
            "live": live,
            "batch": {**self.batches.totals(), "price_factor": 0.5},
        }

    def ledger(self, text: str | None = None, records: bool = True) -> dict[str, Any]:
        """The whole book, or one record's line of it."""
        live, batch = (
            self.billing.live_billed(),
            self.billing.batch_billed(self.batches.billed_ids()),
        )
        if text is not None:
            return {
                "text": text,
                "live": live[text],
                "batch": batch[text],
                "times": live[text] + batch[text],
            }
        both = BilledCounter(live)
        both.update(batch)
        book: dict[str, Any] = {
            **self.totals(),
            "distinct_records": len(both),
            "most_times": max(both.values(), default=0),
            "billed_twice": sum(1 for times in both.values() if times > 1),
        }
        if records:
            book["records"] = both
            book["live_records"], book["batch_records"] = live, batch
            book["live_requests"] = self.billing.live_requests()
            book["batch_requests"] = self.billing.batch_requests(self.batches.billed_ids())
        return book


def local_path(path: str) -> tuple[str, str | None]:
    """`/v1/files` → (`/files`, None); `/openai/deployments/d/chat/completions` →
    (`/chat/completions`, `d`).
    """
    if path.startswith(_DEPLOYMENTS):
        deployment, _, rest = path[len(_DEPLOYMENTS) :].partition("/")
        return f"/{rest}", deployment
    for prefix in _PREFIXES:
        if path.startswith(f"{prefix}/"):
            return path[len(prefix) :], None
    return path, None
