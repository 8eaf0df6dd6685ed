"""`/batches`: create, retrieve, list, cancel, and the clockwork that moves a job through its
states.

    validating ─► in_progress ─► finalizing ─► completed | expired
        └─► failed      └────────────┴─► cancelling ─► cancelled

A job is one JSON file, rewritten at every step; result files and bill are in place before the step
that shows them. A killed emulator picks every job up where its file says.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import time
import uuid
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import orjson
from aiohttp import web

from beam_llm.testing.emulator.billing import Billing
from beam_llm.testing.emulator.chat import Chat
from beam_llm.testing.emulator.connection import after_work, before_work, drop
from beam_llm.testing.emulator.faults import Fault, FaultScript, chance
from beam_llm.testing.emulator.files import Files, page
from beam_llm.testing.emulator.options import EmulatorOptions
from beam_llm.testing.emulator.small_files import read_json, write_json
from beam_llm.testing.emulator.wire import WireError, json_response, token_limit
from beam_llm.testing.emulator.work import (
    Assignment,
    Checked,
    Result,
    Stopped,
    answer_file,
    bare,
    check_file,
)

T = TypeVar("T")
TERMINAL = frozenset({"completed", "failed", "expired", "cancelled"})
_WINDOW_SECONDS = 86_400
_FOR_EVER_SECONDS = 10.0**9
_STAMPS = (
    "in_progress_at",
    "finalizing_at",
    "completed_at",
    "failed_at",
    "expired_at",
    "cancelling_at",
    "cancelled_at",
)
_MOST_PAIRS, _MOST_KEY, _MOST_VALUE = 16, 64, 512


class Batches:
    """Files and batch jobs of one emulator. Lives on its loop; the work on lines is done in one
    thread.
    """

    def __init__(
        self, options: EmulatorOptions, folder: Path, chat: Chat, billing: Billing
    ) -> None:
        self.script = FaultScript()
        self.files = Files(
            options, folder / "files", lambda operation: self.script.strike(operation)
        )
        self._options = options
        self._time = options.clock
        self._folder = folder / "batches"
        self._folder.mkdir(exist_ok=True)
        self._chat = chat
        self._billing = billing
        self._closing = False
        self._worker = ThreadPoolExecutor(1, "llm-emulator-work")
        self._cancels: dict[str, asyncio.Event] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        jobs = sorted(
            (read_json(path) for path in self._folder.glob("*.json")), key=lambda job: job["number"]
        )
        self._jobs: dict[str, dict[str, Any]] = {job["id"]: job for job in jobs}
        self._numbers = itertools.count(jobs[-1]["number"] + 1 if jobs else 1)

    def resume(self) -> None:
        """Sets every unfinished job going again; call it once the fault script is there."""
        for job in self._jobs.values():
            if job["status"] not in TERMINAL:
                self._start(job)

    async def close(self) -> None:
        """Stops all jobs where they are."""
        self._closing = True
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._worker.shutdown(wait=True)

    def billed_ids(self) -> list[str]:
        """Jobs whose bill counts."""
        return [job["id"] for job in list(self._jobs.values()) if job["result"] is not None]

    def totals(self) -> dict[str, int]:
        """Over all jobs that were worked on."""
        results = [job["result"] for job in list(self._jobs.values()) if job["result"] is not None]
        names = ("completed", "records", "input_tokens", "output_tokens")
        sums = {name: sum(result[name] for result in results) for name in names}
        return {"jobs": len(self._jobs), "requests": sums.pop("completed"), **sums}

    @property
    def jobs(self) -> list[dict[str, Any]]:
        """All jobs as the API shows them, oldest first."""
        return [self._shown(job) for job in list(self._jobs.values())]

    async def handle(self, request: web.BaseRequest, path: str) -> web.StreamResponse | None:
        """The answer to a request under `/files` or `/batches`, None for another route."""
        if path == "/files" or path.startswith("/files/"):
            return await self.files.handle(request, path)
        if path != "/batches" and not path.startswith("/batches/"):
            return None
        batch_id, _, tail = path[len("/batches/") :].partition("/")
        match request.method, bool(batch_id), tail:
            case "POST", False, "":
                return await self._create(request)
            case "GET", False, "":
                return await self._list(request)
            case "GET", True, "":
                return await self._retrieve(request, batch_id)
            case "POST", True, "cancel":
                return await self._cancel(request, batch_id)
        return None

    async def _create(self, request: web.BaseRequest) -> web.StreamResponse:
        raw = await request.read()
        faults = self.script.strike("create", (raw.decode("utf-8", "replace"),))
        if (
            refused := await before_work(
                request, [fault for fault in faults if fault.kind not in ("slow", "hang")]
            )
        ) is not None:
            return refused
        late = next((fault.seconds for fault in faults if fault.kind == "create_late"), None)
        try:
            body = orjson.loads(raw)
        except orjson.JSONDecodeError:
            body = None
        error = self._check_create(body)
        if (
            error is None
            and self._options.enqueued_token_limit is not None
            and self._options.enqueued_limit_at == "create"
        ):
            checked = await self._in_worker(self._check, body["input_file_id"], body["endpoint"])
            if self._over_limit(checked.tokens):
                error = WireError(
                    429,
                    token_limit(checked.model, self._options.enqueued_token_limit),
                    "tokens",
                    "token_limit_exceeded",
                )
        if error is not None:
            return error.response()
        job = self._new_job(body, late or 0.0)
        self._start(job)
        if late is not None:  # the client has long given up when it is made
            return drop(request)
        # A slow create has created: what the client's timeout loses is the answer.
        await before_work(request, [fault for fault in faults if fault.kind in ("slow", "hang")])
        return after_work(request, faults) or json_response(self._shown(job))

    def _check_create(self, body: Any) -> WireError | None:
        if not isinstance(body, dict):
            return WireError(400, "We could not parse the JSON body of your request.")
        for name in ("input_file_id", "endpoint", "completion_window"):
            if not isinstance(body.get(name), str):
                return WireError(
                    400,
                    f"Missing required parameter: '{name}'.",
                    code="missing_required_parameter",
                    param=name,
                )
        if bare(body["endpoint"]) != "/chat/completions":
            return WireError(
                400,
                f"Invalid value: '{body['endpoint']}'. Supported: '/v1/chat/completions'.",
                param="endpoint",
                code="invalid_value",
            )
        if body["completion_window"] != "24h":
            return WireError(
                400,
                "Invalid value for 'completion_window': only '24h' is supported.",
                param="completion_window",
                code="invalid_value",
            )
        meta = self.files.get(body["input_file_id"])
        if meta is None:
            return WireError(
                400,
                f"Invalid file id '{body['input_file_id']}': no such file.",
                param="input_file_id",
                code="invalid_request",
            )
        if meta["purpose"] != "batch":
            return WireError(
                400,
                "The input file's purpose must be 'batch'.",
                param="input_file_id",
                code="invalid_request",
            )
        return _check_metadata(body.get("metadata"))

    def _new_job(self, body: dict[str, Any], late_seconds: float = 0.0) -> dict[str, Any]:
        job_id = f"batch_{uuid.uuid4().hex[:24]}"
        first_line = _first_line(self.files.path(body["input_file_id"]))
        job: dict[str, Any] = {
            "id": job_id,
            "number": next(self._numbers),
            "created": self._time() + late_seconds,
            "status": "validating",
            "endpoint": body["endpoint"],
            "input_file_id": body["input_file_id"],
            "metadata": body.get("metadata"),
            "model": None,
            "total": 0,
            "tokens": 0,
            "errors": None,
            "result": None,
            "output_file_id": None,
            "error_file_id": None,
            "stamps": {},
            "faults": [fault.to_json() for fault in self.script.strike("job", (first_line,))],
        }
        self._jobs[job_id] = job
        self._save(job)
        return job

    async def _list(self, request: web.BaseRequest) -> web.StreamResponse:
        if (refused := await before_work(request, self.script.strike("list"))) is not None:
            return refused
        after, limit = request.query.get("after"), request.query.get("limit")
        now = self._time()
        visible = [
            job
            for job in reversed(self._jobs.values())
            if now >= job["created"] and not _hidden(job, "list_lag", now)
        ]
        if not self._options.list_ends and (after is not None or not visible):
            return json_response(_older_page(after or "", now))
        if self._options.list_order == "oldest":
            visible.reverse()
        elif self._options.list_order == "shuffled":
            visible.sort(key=lambda job: chance(self._options.seed, job["number"]))
        return page(
            visible,
            after,
            limit,
            20,
            100,
            self._shown,
            page_size=self._options.list_page,
            ends=self._options.list_ends,
        )

    async def _retrieve(self, request: web.BaseRequest, batch_id: str) -> web.StreamResponse:
        faults = self.script.strike("retrieve", (batch_id,))
        if (refused := await before_work(request, faults)) is not None:
            return refused
        job = self._jobs.get(batch_id)
        if job is None or _hidden(job, "retrieve_missing", self._time()):
            return _no_batch(batch_id).response()
        return after_work(request, faults) or json_response(self._shown(job))

    async def _cancel(self, request: web.BaseRequest, batch_id: str) -> web.StreamResponse:
        faults = self.script.strike("cancel", (batch_id,))
        if (refused := await before_work(request, faults)) is not None:
            return refused
        job = self._jobs.get(batch_id)
        if job is None:
            return _no_batch(batch_id).response()
        if job["status"] in TERMINAL - {"cancelled"}:
            return WireError(
                409, f"Cannot cancel a batch with status '{job['status']}'."
            ).response()
        if job["status"] not in ("cancelling", "cancelled"):
            job["done_at_cancel"] = self._done_by_now(job)
            self._move(job, "cancelling")
            self._cancels[batch_id].set()
        return after_work(request, faults) or json_response(self._shown(job))

    # The clockwork.

    def _start(self, job: dict[str, Any]) -> None:
        self._cancels[job["id"]] = asyncio.Event()
        task = asyncio.get_running_loop().create_task(self._run(job), name=job["id"])
        self._tasks[job["id"]] = task
        task.add_done_callback(
            lambda _: (self._tasks.pop(job["id"], None), self._cancels.pop(job["id"], None))
        )

    async def _run(self, job: dict[str, Any]) -> None:
        steps: dict[str, Callable[[dict[str, Any]], Awaitable[None]]] = {
            "validating": self._validate,
            "in_progress": self._progress,
            "finalizing": self._finalize,
            "cancelling": self._end_cancelled,
        }
        try:
            while job["status"] not in TERMINAL:
                await steps[job["status"]](job)
        except Stopped:
            pass

    async def _validate(self, job: dict[str, Any]) -> None:
        if await self._cancelled_by(job, job["created"] + self._options.stages[0]):
            return
        checked = await self._in_worker(self._check, job["input_file_id"], job["endpoint"])
        if job["status"] != "validating":
            return
        job["total"], job["model"], job["tokens"] = checked.lines, checked.model, checked.tokens
        errors = (
            checked.errors or _scripted_errors(job, checked) or self._limit_errors(job, checked)
        )
        if errors:
            job["errors"] = errors
            self._move(job, "failed")
        else:
            self._move(job, "in_progress")

    async def _progress(self, job: dict[str, Any]) -> None:
        end = job["stamps"]["in_progress_at"] + self._options.stages[1]
        word = _fault(job, "status_word")
        if word is not None:
            end += word.seconds or _FOR_EVER_SECONDS
        if await self._cancelled_by(job, end):
            return
        expire = _fault(job, "expire")
        done = job["total"] if expire is None else _share(expire.done, job["total"])
        result = await self._in_worker(self._answer, job, done, expire is not None)
        self._take_in(job, result)
        # A cancel that came meanwhile came too late: all was done.
        self._move(job, "finalizing" if job["status"] == "in_progress" else job["status"])

    async def _finalize(self, job: dict[str, Any]) -> None:
        end = job["stamps"]["finalizing_at"] + self._options.stages[2]
        stuck = _fault(job, "stuck")
        if stuck is not None:
            end += stuck.seconds or _FOR_EVER_SECONDS
        if await self._cancelled_by(job, end):
            return
        self._move(job, "completed" if _fault(job, "expire") is None else "expired")

    async def _end_cancelled(self, job: dict[str, Any]) -> None:
        if job["result"] is None:
            self._take_in(
                job, await self._in_worker(self._answer, job, job["done_at_cancel"], False)
            )
            self._save(job)
        await asyncio.sleep(
            max(0.0, job["stamps"]["cancelling_at"] + self._options.cancel_seconds - self._time())
        )
        self._move(job, "cancelled")

    async def _cancelled_by(self, job: dict[str, Any], end: float) -> bool:
        """Sleeps until `end`; True at once where the job is cancelled before."""
        event = self._cancels[job["id"]]
        while not event.is_set():
            left = end - self._time()
            try:
                await asyncio.wait_for(
                    event.wait(), max(0.0, left if self._time is time.time else min(left, 0.01))
                )
            except TimeoutError:
                if left <= 0.0 or self._time is time.time:
                    return False
        return True

    async def _in_worker(self, function: Callable[..., T], *arguments: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._worker, function, *arguments)

    def _check(self, file_id: str, endpoint: str) -> Checked:
        path = self.files.path(file_id)
        if not path.exists():
            checked = Checked()
            checked.complain(
                "invalid_request", "The input file was deleted.", "input_file_id", None
            )
            return checked
        return check_file(
            path,
            endpoint,
            self._chat,
            self._options.max_batch_requests,
            self._options.enqueued_token_limit is not None,
        )

    def _answer(self, job: dict[str, Any], done: int, expired: bool) -> Result:
        job_id = job["id"]
        task = Assignment(
            batch_id=job_id.removeprefix("batch_"),
            source=self.files.path(job["input_file_id"]),
            output=self.files.part_path(f"{job_id}-output"),
            errors=self.files.part_path(f"{job_id}-errors"),
            bill=self.files.part_path(f"{job_id}-bill"),
            done=done,
            expired=expired,
            in_order=_fault(job, "input_order") is not None,
            cut=_fault(job, "cut_last_line") is not None,
            seed=self._options.seed,
            place=list(self._jobs).index(job_id),
        )
        return answer_file(task, self._chat, self._billing, self.script, lambda: self._closing)

    def _take_in(self, job: dict[str, Any], result: Result) -> None:
        """Puts files and bill in place; the caller's next `_move` or `_save` makes them count, all
        at once.
        """
        job_id = job["id"]
        for kind, name in (("output", "output_file_id"), ("errors", "error_file_id")):
            part = self.files.part_path(f"{job_id}-{kind}")
            wanted = part.stat().st_size > 0 or (
                kind == "errors" and _fault(job, "empty_error_file") is not None
            )
            if wanted and not (kind == "output" and _fault(job, "output_missing") is not None):
                job[name] = self.files.add(
                    f"file-{job_id[6:]}-{kind}", f"{job_id}_{kind}.jsonl", "batch_output", part
                )["id"]
            part.unlink(missing_ok=True)
        os.replace(self.files.part_path(f"{job_id}-bill"), self._billing.bill_path(job_id))
        job["result"] = {name: getattr(result, name) for name in Result.__slots__}
        self.script.keep()

    def _limit_errors(self, job: dict[str, Any], checked: Checked) -> list[dict[str, Any]]:
        if not self._over_limit(checked.tokens, besides=job["id"]):
            return []
        return [_token_limit_error(checked.model, self._options.enqueued_token_limit)]

    def _over_limit(self, tokens: int, besides: str = "") -> bool:
        """Whether `tokens` more would exceed what may wait at once."""
        limit = self._options.enqueued_token_limit
        waiting = sum(
            job["tokens"]
            for job in self._jobs.values()
            if job["status"] not in TERMINAL and job["id"] != besides
        )
        return limit is not None and waiting + tokens > limit

    def _done_by_now(self, job: dict[str, Any]) -> int:
        """Lines that a running job has answered, by the clock."""
        if job["result"] is not None:
            return int(job["result"]["completed"] + job["result"]["failed"])
        if "in_progress_at" not in job["stamps"]:
            return 0
        spent = self._time() - job["stamps"]["in_progress_at"]
        return min(
            int(job["total"]), int(job["total"] * spent / max(self._options.stages[1], 1e-6))
        )

    def _move(self, job: dict[str, Any], status: str) -> None:
        job["status"] = status
        job["stamps"].setdefault(f"{status}_at", self._time())
        self._save(job)

    def _save(self, job: dict[str, Any]) -> None:
        write_json(self._folder / f"{job['id']}.json", job)

    def _shown(self, job: dict[str, Any]) -> dict[str, Any]:
        """The batch object as the API shows it; result files only in a terminal state."""
        over = job["status"] in TERMINAL
        word = _fault(job, "status_word")
        status = (
            (word.message or "scheduling")
            if word is not None and job["status"] == "in_progress"
            else job["status"]
        )
        return {
            "id": job["id"],
            "object": "batch",
            "endpoint": job["endpoint"],
            "model": job["model"],
            "errors": {"object": "list", "data": job["errors"]} if job["errors"] else None,
            "input_file_id": job["input_file_id"] if self._options.inputs_shown else None,
            "completion_window": "24h",
            "status": status,
            "output_file_id": job["output_file_id"] if over else None,
            "error_file_id": job["error_file_id"] if over else None,
            "created_at": int(job["created"]),
            "expires_at": int(job["created"]) + _WINDOW_SECONDS,
            **{
                name: int(job["stamps"][name]) if name in job["stamps"] else None
                for name in _STAMPS
            },
            "request_counts": self._counts(job),
            "usage": _usage(job["result"]) if over else None,
            "metadata": job["metadata"] if self._options.names_kept else None,
        }

    def _counts(self, job: dict[str, Any]) -> dict[str, int | None]:
        if _fault(job, "null_counts") is not None:
            return {"total": job["total"], "completed": None, "failed": None}
        if job["result"] is not None:
            return {
                "total": job["total"],
                "completed": job["result"]["completed"],
                "failed": job["result"]["failed"],
            }
        return {"total": job["total"], "completed": self._done_by_now(job), "failed": 0}


def _check_metadata(metadata: Any) -> WireError | None:
    if metadata is None:
        return None
    fits = isinstance(metadata, dict) and len(metadata) <= _MOST_PAIRS
    fits = fits and all(
        isinstance(value, str) and len(key) <= _MOST_KEY and len(value) <= _MOST_VALUE
        for key, value in metadata.items()
    )
    return (
        None
        if fits
        else WireError(
            400,
            "Invalid 'metadata': at most 16 pairs of strings, keys up to 64 and values up to "
            "512 characters.",
            param="metadata",
        )
    )


def _first_line(path: Path) -> str:
    with open(path, "rb") as file:
        return file.readline(2**20).decode("utf-8", "replace")


def _fault(job: dict[str, Any], kind: str) -> Fault | None:
    return next((Fault.from_json(entry) for entry in job["faults"] if entry["kind"] == kind), None)


def _hidden(job: dict[str, Any], kind: str, now: float) -> bool:
    """Whether a young job is still kept from view."""
    fault = _fault(job, kind)
    return fault is not None and now < job["created"] + fault.seconds


def _share(done: float, total: int) -> int:
    return min(total, int(total * done) if done < 1 else int(done))


def _scripted_errors(job: dict[str, Any], checked: Checked) -> list[dict[str, Any]]:
    fault = _fault(job, "validation")
    if fault is not None:
        code, message = (
            fault.code or "invalid_request",
            fault.message or "This line is not a valid request.",
        )
        return [
            {"code": code, "message": message, "param": "body", "line": line}
            for line in fault.lines
        ]
    fault = _fault(job, "token_limit")
    return [_token_limit_error(checked.model, None)] if fault is not None else []


def _token_limit_error(model: str | None, limit: int | None) -> dict[str, Any]:
    return {
        "code": "token_limit_exceeded",
        "message": token_limit(model, limit),
        "param": None,
        "line": None,
    }


def _older_page(after: str, now: float) -> dict[str, Any]:
    """A page of a list without end: one job of others, older than that of the page before."""
    depth = int(after.rpartition("_")[2]) + 1 if after.startswith("batch_older_") else 1
    older = {
        "id": f"batch_older_{depth}",
        "object": "batch",
        "status": "completed",
        "created_at": int(now) - depth,
        "metadata": None,
    }
    return {
        "object": "list",
        "data": [older],
        "first_id": older["id"],
        "last_id": older["id"],
        "has_more": True,
    }


def _no_batch(batch_id: str) -> WireError:
    return WireError(404, f"No batch found with id '{batch_id}'.")


def _usage(result: dict[str, int] | None) -> dict[str, Any] | None:
    if result is None:
        return None
    return {
        "input_tokens": result["input_tokens"],
        "input_tokens_details": {"cached_tokens": 0},
        "output_tokens": result["output_tokens"],
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": result["input_tokens"] + result["output_tokens"],
    }
