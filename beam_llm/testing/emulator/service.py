"""Answers the emulator's HTTP requests: finds the dialect of a request, and does what live calls of
all dialects have in common. It uses aiohttp's low-level server, which is fast, since benchmarks run
against it.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from email.utils import formatdate
from pathlib import Path
from typing import Any

import orjson
from aiohttp import web

from beam_llm.testing.emulator.batches import Batches
from beam_llm.testing.emulator.billing import BilledCounter, Billing
from beam_llm.testing.emulator.brain import Brain
from beam_llm.testing.emulator.buckets import Buckets
from beam_llm.testing.emulator.chat import Chat
from beam_llm.testing.emulator.connection import drop, flood, garbage, pause
from beam_llm.testing.emulator.dialects import NAMES, Dialect, ModelRequest, Reply, dialect_class
from beam_llm.testing.emulator.embedder import Embedder
from beam_llm.testing.emulator.faults import Fault, FaultScript, chance
from beam_llm.testing.emulator.files import Files
from beam_llm.testing.emulator.limits import Limits
from beam_llm.testing.emulator.models import CHAT, EMBED, Model
from beam_llm.testing.emulator.options import EmulatorOptions
from beam_llm.testing.emulator.small_files import read_json, write_json
from beam_llm.testing.emulator.wire import WireError, json_of, json_response, unknown_route


class Service:
    """Answers requests. It is created and used on one event loop, except for the counters, which
    may be read from any thread.
    """

    def __init__(self, options: EmulatorOptions, folder: Path) -> None:
        self.options = options
        self.billing = Billing(folder / "billing", options.billing)
        self.requests: deque[dict[str, Any]] = deque(maxlen=options.keep_requests)
        self.url = ""
        self.calls = 0
        self.errors = 0
        self._folder = folder
        self.buckets = Buckets(folder / "buckets", lambda: self.url)
        self._has_own_time = options.clock is not time.time
        # Part of every id, so that ids differ after a restart of the emulator.
        self.started = f"{time.time_ns():x}"
        self._numbers = itertools.count(1)
        self._token_uses: Counter[str] = Counter()
        self.limits = Limits(
            options.requests_per_minute, options.tokens_per_minute, options.max_concurrency
        )
        self.chat = Chat(Brain(options.fast, options.reads), options.models)
        self.embedder = Embedder(options.models)
        self.script = FaultScript()
        models: dict[str, Model] = {CHAT: self.chat, EMBED: self.embedder}
        # Dialects and batches refer to each other: the dict is passed on empty, then filled.
        self.dialects: dict[str, Dialect] = {}
        self.batches = Batches(options, folder, models, self.billing, self.dialects)
        self.dialects.update((name, dialect_class(name)(self)) for name in NAMES)
        # The first dialect takes every path, so it is tried last.
        self._mounted = list(reversed(self.dialects.values()))
        self.set_faults(options.faults, counts=read_json(folder / "faults.json"))
        self.batches.resume()

    def set_faults(self, faults: Sequence[Fault], counts: Any = None) -> None:
        """Replaces the script of faults; counts start again unless they are given."""
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
        """Answers a request in its dialect; errors are translated into the dialect's form."""
        if request.path.startswith("/_emulator"):
            return await self._handle_control(request, request.path)
        if (found := await self.buckets.handle(request)) is not None:
            return found
        dialect, path = self._find_dialect(request.path)
        reply: Reply | None = dialect.refuse(request)
        if reply is None:
            reply = await dialect.handle(request, path)
        if reply is None:
            reply = unknown_route(request.method, request.path)
        return self._with_date(dialect.error(reply) if isinstance(reply, WireError) else reply)

    def _find_dialect(self, path: str) -> tuple[Dialect, str]:
        """The dialect whose prefix a path has, and the path after the prefix."""
        for dialect in self._mounted:
            local = dialect.local_path(path)
            if local is not None:
                return dialect, local
        raise AssertionError("the first dialect takes every path")

    def _with_date(self, answer: web.StreamResponse) -> web.StreamResponse:
        """The answer with the emulator's time as its date; the server would use the machine's."""
        if self._has_own_time and not answer.prepared:
            answer.headers["Date"] = formatdate(self.options.clock(), usegmt=True)
        return answer

    def has_expired(self, token: str) -> bool:
        """Counts another use of a cloud's temporary token; returns whether it is no longer good."""
        most = self.options.token_calls
        self._token_uses[token] += 1
        return most is not None and bool(token) and self._token_uses[token] > most

    async def live(
        self,
        request: web.BaseRequest,
        dialect: Dialect,
        parse: Callable[[Any], ModelRequest | WireError],
        model: Model | None = None,
    ) -> Reply:
        """Answers one live call: limits, latency, scripted faults and the bill included.

        Args:
          parse: translates a body (None if it was not JSON), or returns the error for it.
          model: the model that answers; the chat model by default.
        """
        model = model or self.chat
        started = time.perf_counter()
        # Counted once the body has arrived: a connection that broke before asked for nothing.
        raw = await request.read()
        self.calls += 1
        self.limits.in_flight += 1
        self.limits.most_in_flight = max(self.limits.most_in_flight, self.limits.in_flight)
        try:
            reply = await self._answer_live(request, dialect, raw, parse, model, started)
        finally:
            self.limits.in_flight -= 1
        if isinstance(reply, WireError):
            self.errors += 1
        return reply

    async def _answer_live(
        self,
        request: web.BaseRequest,
        dialect: Dialect,
        raw: bytes,
        parse: Callable[[Any], ModelRequest | WireError],
        model: Model,
        started: float,
    ) -> Reply:
        body = json_of(raw)
        number = next(self._numbers)
        # Errors of a call come before its limits: waiting would not help a faulty call.
        parsed = parse(body)
        if isinstance(parsed, WireError):
            return parsed.with_headers(dialect.headers(number))
        if self.requests.maxlen:
            self.requests.append(dialect.recorded_body(body, parsed))
        self.limits.in_flight -= 1  # this call itself must not count against it
        refused = self.limits.admit(parsed.body["model"], model.tokens(parsed.body))
        self.limits.in_flight += 1
        if refused is not None:
            return refused.with_headers(dialect.headers(number, time.perf_counter() - started))
        return await self._work(request, dialect, parsed, model, number, started)

    async def _work(
        self,
        request: web.BaseRequest,
        dialect: Dialect,
        parsed: ModelRequest,
        model: Model,
        number: int,
        started: float,
    ) -> Reply:
        question = model.read(parsed.body)
        faults = self.script.strike("chat", question.texts) if self.script else ()
        kinds = {fault.kind for fault in faults}
        # The delay comes first, whatever the result: here errors take as long as answers.
        await self._pause(faults, number)
        if "drop_before" in kinds:
            return self._drop_connection(request)
        reply_id = f"{self.started}-{number}"
        answer = model.answer(parsed.body, question, faults, reply_id)
        headers = dialect.headers(number, time.perf_counter() - started)
        if answer.error is not None:
            return answer.error.with_headers(headers)
        # Billed before it is sent: an answer that gets lost was produced, and is paid for.
        self.billing.live(answer.texts, parsed.body, answer.input_tokens, answer.output_tokens)
        if "drop_after" in kinds:
            return self._drop_connection(request)
        if "garbage_body" in kinds:
            return garbage()
        if "endless_body" in kinds:
            return await flood(request)
        headers = {**headers, **dialect.answer_headers(answer)}
        return json_response(dialect.reply(answer, parsed, reply_id), headers=headers)

    async def _pause(self, faults: tuple[Fault, ...], number: int) -> None:
        seconds = self.options.latency_ms / 1000
        if self.options.jitter_ms:
            seconds += self.options.jitter_ms / 1000 * chance(self.options.seed, "latency", number)
        if seconds or faults:
            await pause(faults, seconds)

    def _drop_connection(self, request: web.BaseRequest) -> web.Response:
        self.errors += 1
        return drop(request)

    async def _handle_control(self, request: web.BaseRequest, path: str) -> web.StreamResponse:
        """Answers the emulator's own routes, which tests use: `/_emulator/ledger`, `…/totals`,
        `…/faults`, `…/health`.
        """
        if path == "/_emulator/ledger":
            # In a thread, so that calls go on while the bills of a million records are read.
            loop = asyncio.get_running_loop()
            text = request.query.get("text")
            return json_response(
                await loop.run_in_executor(None, self.ledger, text, "summary" not in request.query)
            )
        if path == "/_emulator/totals":
            return json_response(self.totals())
        if path == "/_emulator/faults" and request.method == "POST":
            try:
                faults = [Fault.from_json(entry) for entry in orjson.loads(await request.read())]
            except (TypeError, ValueError) as error:
                return WireError(400, f"not a script of faults: {error}").response()
            self.set_faults(faults)
        if path == "/_emulator/faults":
            return json_response([fault.to_json() for fault in self.script.faults])
        if path == "/_emulator/health":
            return json_response({"ok": True})
        return unknown_route(request.method, path).response()

    @property
    def files(self) -> Files:
        """The files that clients have uploaded and jobs have written."""
        return self.batches.files

    def billed(self) -> BilledCounter:
        """Record text → how many times it was billed, live and batch together."""
        total = self.billing.live_bills()
        total.update(self.billing.batch_bills(self.batches.billed_ids()))
        return total

    def totals(self) -> dict[str, Any]:
        """The sums of all bills: cheap, however many records there are."""
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
        """All bills, or those of one record."""
        live, batch = (
            self.billing.live_bills(),
            self.billing.batch_bills(self.batches.billed_ids()),
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
