"""The life of batch jobs, whatever dialect made them: create, look, list, cancel, and the clockwork
that moves a job through its states.

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
from collections.abc import Awaitable, Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from aiohttp import web

from beam_llm.testing.emulator.billing import Billing
from beam_llm.testing.emulator.chat import Chat
from beam_llm.testing.emulator.connection import after_work, before_work, drop, send_lines
from beam_llm.testing.emulator.dialects import Dialect, Job, LineResult, NewJob, Reply
from beam_llm.testing.emulator.faults import Fault, FaultScript, chance
from beam_llm.testing.emulator.files import Files
from beam_llm.testing.emulator.options import EmulatorOptions
from beam_llm.testing.emulator.small_files import read_json, write_json
from beam_llm.testing.emulator.wire import WireError, json_response, token_limit
from beam_llm.testing.emulator.work import (
    CANCELLED,
    EXPIRED,
    Assignment,
    Checked,
    Result,
    Stopped,
    answer_file,
    check_file,
    line_results,
    survey_file,
)

T = TypeVar("T")
TERMINAL = frozenset({"completed", "failed", "expired", "cancelled"})
_FOR_EVER_SECONDS = 10.0**9


class Batches:
    """Files and batch jobs of one emulator. Lives on its loop; the work on lines is done in one
    thread.

    Args:
      dialects: by name; filled by the caller before the first request.
    """

    def __init__(
        self,
        options: EmulatorOptions,
        folder: Path,
        chat: Chat,
        billing: Billing,
        dialects: Mapping[str, Dialect],
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
        self._dialects = dialects
        self._closing = False
        self._worker = ThreadPoolExecutor(1, "llm-emulator-work")
        self._cancels: dict[str, asyncio.Event] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        jobs = sorted(
            (read_json(path) for path in self._folder.glob("*.json")), key=lambda job: job["number"]
        )
        self._jobs: dict[str, Job] = {job["id"]: job for job in jobs}
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
        """All jobs as their APIs show them, oldest first."""
        return [self._dialects[job["dialect"]].job(job) for job in list(self._jobs.values())]

    def part_path(self, job_id: str) -> Path:
        """Where a dialect writes the lines of a job that it is about to make."""
        return self._folder / f".{job_id}.part"

    # What dialects' routes are made of.

    async def create(
        self,
        request: web.BaseRequest,
        dialect: Dialect,
        make: Callable[[bytes], Awaitable[NewJob | WireError]],
    ) -> Reply:
        """Makes a job, with all that may befall a create.

        Args:
          make: the job that a body asks for, or what is wrong with the body.
        """
        raw = await request.read()
        texts = (raw.decode("utf-8", "replace"),) if self.script.has("create") else ()
        faults = self.script.strike("create", texts)
        refused = await before_work(
            request, [fault for fault in faults if fault.kind not in ("slow", "hang")]
        )
        if refused is not None:
            return refused
        made = await make(raw)
        if isinstance(made, WireError):
            return made
        if (error := await self._limit_at_create(made)) is not None:
            return error
        late = next((fault.seconds for fault in faults if fault.kind == "create_late"), None)
        job = self._new_job(dialect, made, late or 0.0)
        self._start(job)
        if late is not None:  # the client has long given up when it is made
            return drop(request)
        # A slow create has created: what the client's timeout loses is the answer.
        await before_work(request, [fault for fault in faults if fault.kind in ("slow", "hang")])
        return after_work(request, faults) or json_response(dialect.job(job))

    async def _limit_at_create(self, made: NewJob) -> WireError | None:
        limit = self._options.enqueued_token_limit
        if limit is None or self._options.enqueued_limit_at != "create":
            return None
        checked = await self._in_worker(self._check, _source_of(made))
        if not self._over_limit(checked.tokens):
            return None
        message = token_limit(checked.model, limit)
        return WireError(429, message, "tokens", "token_limit_exceeded")

    def _new_job(self, dialect: Dialect, made: NewJob, late_seconds: float) -> Job:
        source = _source_of(made)
        if made.lines is not None:
            source["lines"] = f"{made.job_id}.lines"
            os.replace(made.lines, self._folder / source["lines"])
        job: Job = {
            "id": made.job_id,
            "dialect": dialect.name,
            "number": next(self._numbers),
            "created": self._time() + late_seconds,
            "status": "validating",
            **source,
            "own": made.own,
            "model": None,
            "total": 0,
            "tokens": 0,
            "errors": list(made.errors) or None,
            "result": None,
            "output_file_id": None,
            "error_file_id": None,
            "stamps": {},
        }
        first = _first_line(self._source(job))
        job["faults"] = [fault.to_json() for fault in self.script.strike("job", (first,))]
        self._jobs[job["id"]] = job
        self._save(job)
        return job

    async def list_jobs(
        self,
        request: web.BaseRequest,
        dialect: Dialect,
        page: Callable[[list[Job]], Reply],
    ) -> Reply:
        """Shows jobs, with all that may befall a list.

        Args:
          page: the reply's page of all jobs that are to be seen, in the list's order (newest
            first unless the emulator was told otherwise).
        """
        if (refused := await before_work(request, self.script.strike("list"))) is not None:
            return refused
        now = self._time()
        visible = [
            job
            for job in reversed(self._jobs.values())
            if job["dialect"] == dialect.name
            and not job.get("deleted")
            and now >= job["created"]
            and not _hidden(job, "list_lag", now)
        ]
        if self._options.list_order == "oldest":
            visible.reverse()
        elif self._options.list_order == "shuffled":
            visible.sort(key=lambda job: chance(self._options.seed, job["number"]))
        return page(visible)

    async def look(self, request: web.BaseRequest, dialect: Dialect, job_id: str) -> Reply:
        """Shows a job, with all that may befall that."""
        faults = self.script.strike("retrieve", (job_id,))
        if (refused := await before_work(request, faults)) is not None:
            return refused
        job = self.known(dialect, job_id)
        if job is None or _hidden(job, "retrieve_missing", self._time()):
            return dialect.no_job(job_id)
        return after_work(request, faults) or json_response(dialect.job(job))

    async def cancel(self, request: web.BaseRequest, dialect: Dialect, job_id: str) -> Reply:
        """Sets a job to cancelling, with all that may befall that."""
        faults = self.script.strike("cancel", (job_id,))
        if (refused := await before_work(request, faults)) is not None:
            return refused
        job = self.known(dialect, job_id)
        if job is None:
            return dialect.no_job(job_id)
        if job["status"] in TERMINAL - {"cancelled"}:
            return WireError(409, f"Cannot cancel a batch with status '{job['status']}'.")
        if job["status"] not in ("cancelling", "cancelled"):
            job["done_at_cancel"] = self._done_by_now(job)
            self._move(job, "cancelling")
            self._cancels[job_id].set()
        return after_work(request, faults) or json_response(dialect.job(job))

    async def delete(
        self, request: web.BaseRequest, dialect: Dialect, job_id: str, gone: Any
    ) -> Reply:
        """Removes an ended job and its results, not its bill, with all that may befall that.

        Args:
          gone: the reply's JSON.
        """
        if (refused := await before_work(request, self.script.strike("delete"))) is not None:
            return refused
        job = self.known(dialect, job_id)
        if job is None:
            return dialect.no_job(job_id)
        if job["status"] not in TERMINAL:
            return WireError(409, f"Cannot delete a batch with status '{job['status']}'.")
        job["deleted"] = True
        self._save(job)
        for name in ("output_file_id", "error_file_id"):
            self.files.remove(job[name])
        return json_response(gone)

    async def results(
        self,
        request: web.BaseRequest,
        job: Job,
        encode: Callable[[LineResult], Any],
    ) -> Reply:
        """Streams an ended job's results as JSON lines, with all that may befall that.

        Args:
          encode: a result as the dialect's line; JSON.
        """
        faults = self.script.strike("content")
        if (refused := await before_work(request, faults)) is not None:
            return refused
        return await send_lines(
            request,
            (encode(result) for result in self.results_of(job)),
            cut_off=any(fault.kind == "content_cut" for fault in faults),
            cut_last=_fault(job, "cut_last_line") is not None,
        )

    def results_of(self, job: Job) -> Iterator[LineResult]:
        """What came of each request of an ended job: answers, then errors."""
        for name in ("output_file_id", "error_file_id"):
            if job[name] is not None:
                yield from line_results(self.files.path(job[name]))

    def known(self, dialect: Dialect, job_id: str) -> Job | None:
        """The dialect's job of that id, None where there is none."""
        job = self._jobs.get(job_id)
        return job if job and job["dialect"] == dialect.name and not job.get("deleted") else None

    def status(self, job: Job) -> str:
        """The clockwork's word for where a job stands, or the one that its script has for it."""
        word = _fault(job, "status_word")
        if word is not None and job["status"] == "in_progress":
            return word.message or "scheduling"
        return str(job["status"])

    def counts(self, job: Job) -> dict[str, int | None]:
        """`total`, `completed`, `failed` of a job as they are now; None where the script has it."""
        if _fault(job, "null_counts") is not None:
            return {"total": job["total"], "completed": None, "failed": None}
        done, failed = self._done_by_now(job), 0
        if job["result"] is not None:
            done, failed = job["result"]["completed"], job["result"]["failed"]
        return {"total": job["total"], "completed": done, "failed": failed}

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
        checked = await self._in_worker(self._check, job)
        if job["status"] != "validating":
            return
        job["total"], job["model"], job["tokens"] = checked.lines, checked.model, checked.tokens
        errors = (
            job["errors"]
            or checked.errors
            or _scripted_errors(job, checked)
            or self._limit_errors(job, checked)
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
        undone = EXPIRED if expire is not None else None
        result = await self._in_worker(self._answer, job, done, undone)
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
            shown = self._dialects[job["dialect"]].shows_cancelled
            done, undone = job["done_at_cancel"], CANCELLED if shown else None
            self._take_in(job, await self._in_worker(self._answer, job, done, undone))
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

    def _check(self, job: Mapping[str, Any]) -> Checked:
        path = self._source(job)
        counts_tokens = self._options.enqueued_token_limit is not None
        if not path.exists():
            checked = Checked()
            checked.complain(
                "invalid_request", "The input file was deleted.", "input_file_id", None
            )
            return checked
        if job["lines"] is not None:
            return survey_file(path, self._chat, counts_tokens)
        most = self._options.max_batch_requests
        return check_file(path, job["endpoint"], self._chat, most, counts_tokens)

    def _source(self, job: Mapping[str, Any]) -> Path:
        """The job's lines, in OpenAI's form."""
        if job["lines"] is None:
            return self.files.path(job["input_file_id"])
        return self._folder / str(job["lines"])

    def _answer(self, job: Job, done: int, undone: Mapping[str, str] | None) -> Result:
        job_id = job["id"]
        task = Assignment(
            batch_id=job_id.removeprefix("batch_"),
            source=self._source(job),
            output=self.files.part_path(f"{job_id}-output"),
            errors=self.files.part_path(f"{job_id}-errors"),
            bill=self.files.part_path(f"{job_id}-bill"),
            done=done,
            undone=undone,
            in_order=_fault(job, "input_order") is not None,
            cut=job["lines"] is None and _fault(job, "cut_last_line") is not None,
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
                    f"file-{job_id.removeprefix('batch_')}-{kind}",
                    f"{job_id}_{kind}.jsonl",
                    "batch_output",
                    part,
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


def _source_of(made: NewJob) -> dict[str, Any]:
    """Where a job's lines are."""
    return {
        "lines": str(made.lines) if made.lines is not None else None,
        "input_file_id": made.input_file_id,
        "endpoint": made.own.get("endpoint", ""),
    }


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
