"""The clockwork that moves batch jobs through their states, whichever dialect created them.

    validating ─► in_progress ─► finalizing ─► completed | expired
        └─► failed      └────────────┴─► cancelling ─► cancelled

A job is one JSON file, rewritten at every step. Result files and the bill are in place before the
step that shows them. An emulator that was killed resumes every job where its file says.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from beam_llm.testing.emulator.billing import Billing
from beam_llm.testing.emulator.dialects import Dialect, Job
from beam_llm.testing.emulator.faults import Fault, FaultScript
from beam_llm.testing.emulator.files import Files
from beam_llm.testing.emulator.models import CHAT, Model
from beam_llm.testing.emulator.options import EmulatorOptions
from beam_llm.testing.emulator.small_files import read_json, write_json
from beam_llm.testing.emulator.wire import token_limit
from beam_llm.testing.emulator.work import (
    CANCELLED,
    EXPIRED,
    Assignment,
    FileCheck,
    Result,
    Stopped,
    answer_file,
    check_file,
    survey_file,
    without_version,
)

T = TypeVar("T")
TERMINAL = frozenset({"completed", "failed", "expired", "cancelled"})
# Thirty years. Not infinity, because it is added to times that are stored as JSON.
_FOR_EVER_SECONDS = 10.0**9


class Clockwork:
    """Holds all jobs of one emulator, and moves them through their states. It is used on the
    emulator's event loop; the work on lines is done in one thread.

    Attributes:
      jobs: by id, in the order of their creation.
      files: the files that clients have uploaded and jobs have written.
      script: the script of faults.

    Args:
      folder: the folder for files, jobs and bills.
      models: by their routes; the chat model also answers jobs that name no route.
      dialects: by name; filled by the caller before the first request.
    """

    def __init__(
        self,
        options: EmulatorOptions,
        folder: Path,
        models: Mapping[str, Model],
        billing: Billing,
        dialects: Mapping[str, Dialect],
    ) -> None:
        self.script = FaultScript()
        self.files = Files(
            options, folder / "files", lambda operation: self.script.strike(operation)
        )
        self.folder = folder / "batches"
        self.folder.mkdir(exist_ok=True)
        self._options = options
        self._time = options.clock
        self._models = models
        self._billing = billing
        self._dialects = dialects
        self._closing = False
        # One thread: two jobs at once would take their faults in another order in each run.
        self._worker = ThreadPoolExecutor(1, "llm-emulator-work")
        self._cancels: dict[str, asyncio.Event] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._waits: dict[str, float] = {}
        found = (read_json(path) for path in self.folder.glob("*.json"))
        self.jobs: dict[str, Job] = {
            job["id"]: job for job in sorted(found, key=lambda job: job["number"])
        }

    def resume(self) -> None:
        """Starts every unfinished job again; call it once the fault script is set."""
        for job in self.jobs.values():
            if job["status"] not in TERMINAL:
                self.start(job)

    async def close(self) -> None:
        """Stops all jobs where they are."""
        self._closing = True
        # The flag stops the thread between lines; cancelling a task does not affect the thread.
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._worker.shutdown(wait=True)

    def is_settled(self) -> bool:
        """Whether every unfinished job waits for more time to pass. A test that doesn't check this
        may advance its clock ahead of the work. May be called from any thread.
        """
        now = self._time()
        unfinished = [job for job in list(self.jobs.values()) if job["status"] not in TERMINAL]
        return all(self._waits.get(job["id"], now) > now for job in unfinished)

    def cancel(self, job: Job) -> None:
        """Sets an unfinished job to cancelling; harmless if it is cancelling already."""
        if job["status"] not in ("cancelling", "cancelled"):
            # Recorded now: how much was done depends on when it was asked, not when it is written.
            job["done_at_cancel"] = self.lines_done(job)
            self.move(job, "cancelling")
            self._cancels[job["id"]].set()

    def start(self, job: dict[str, Any]) -> None:
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
            "cancelling": self._end_as_cancelled,
        }
        try:
            # The status alone says what comes next, so that a restart resumes wherever the emulator
            # was killed.
            while job["status"] not in TERMINAL:
                await steps[job["status"]](job)
        except Stopped:
            pass

    async def _validate(self, job: dict[str, Any]) -> None:
        if await self._sleep_until_cancelled(job, job["created"] + self._options.stages[0]):
            return
        checked = await self.run_in_worker(self.check, job)
        # The job was cancelled while the thread checked the file: the loop continues from there.
        if job["status"] != "validating":
            return
        job["total"], job["model"], job["tokens"] = checked.lines, checked.model, checked.tokens
        # What the dialect found at the create comes first. A full queue is checked last, because
        # only a good file would take up room in it.
        errors = (
            job["errors"]
            or checked.errors
            or _scripted_errors(job, checked)
            or self._limit_errors(job, checked)
        )
        if errors:
            job["errors"] = errors
            self.move(job, "failed")
        else:
            self.move(job, "in_progress")

    async def _progress(self, job: dict[str, Any]) -> None:
        end = job["stamps"]["in_progress_at"] + self._options.stages[1]
        word = fault_of(job, "status_word")
        if word is not None:
            end += word.seconds or _FOR_EVER_SECONDS
        if await self._sleep_until_cancelled(job, end):
            return
        # Here an expired job ends at once, not after a day: what matters is how much was done.
        expire = fault_of(job, "expire")
        done = job["total"] if expire is None else _share(expire.done, job["total"])
        unprocessed = EXPIRED if expire is not None else None
        result = await self.run_in_worker(self._answer, job, done, unprocessed)
        self._place_results(job, result)
        # A cancel that came in the meantime was too late: all lines were done.
        self.move(job, "finalizing" if job["status"] == "in_progress" else job["status"])

    async def _finalize(self, job: dict[str, Any]) -> None:
        end = job["stamps"]["finalizing_at"] + self._options.stages[2]
        stuck = fault_of(job, "stuck")
        if stuck is not None:
            end += stuck.seconds or _FOR_EVER_SECONDS
        if await self._sleep_until_cancelled(job, end):
            return
        self.move(job, "completed" if fault_of(job, "expire") is None else "expired")

    async def _end_as_cancelled(self, job: dict[str, Any]) -> None:
        # A job that was cancelled while finalizing has done all its lines, and keeps them.
        if job["result"] is None:
            shown = self._dialects[job["dialect"]].shows_cancelled
            done, unprocessed = job["done_at_cancel"], CANCELLED if shown else None
            self._place_results(job, await self.run_in_worker(self._answer, job, done, unprocessed))
            self.save(job)
        end = job["stamps"]["cancelling_at"] + self._options.cancel_seconds
        self._waits[job["id"]] = end
        while (left := end - self._time()) > 0.0:
            await asyncio.sleep(self._longest_sleep(left))
        self.move(job, "cancelled")

    async def _sleep_until_cancelled(self, job: dict[str, Any], end: float) -> bool:
        """Sleeps until `end`, then returns False; True at once if the job is cancelled before."""
        event = self._cancels[job["id"]]
        self._waits[job["id"]] = end
        while not event.is_set():
            left = end - self._time()
            try:
                await asyncio.wait_for(event.wait(), self._longest_sleep(left))
            except TimeoutError:
                if left <= 0.0 or self._time is time.time:
                    return False
        return True

    def _longest_sleep(self, left: float) -> float:
        """Of the seconds left by the clock, those until it is looked at again."""
        # A test's clock jumps without waking anything, so it is checked every 10 ms.
        return max(0.0, left if self._time is time.time else min(left, 0.01))

    async def run_in_worker(self, function: Callable[..., T], *arguments: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._worker, function, *arguments)

    def check(self, job: Mapping[str, Any]) -> FileCheck:
        path = self.source(job)
        counts_tokens = self._options.enqueued_token_limit is not None
        if not path.exists():
            checked = FileCheck()
            checked.add_error(
                "invalid_request", "The input file was deleted.", "input_file_id", None
            )
            return checked
        if job["lines"] is not None:
            return survey_file(path, self._model_of(job), counts_tokens)
        most = self._options.max_batch_requests
        return check_file(path, job["endpoint"], self._model_of(job), most, counts_tokens)

    def _model_of(self, job: Mapping[str, Any]) -> Model:
        return self._models.get(without_version(job["endpoint"]), self._models[CHAT])

    def source(self, job: Mapping[str, Any]) -> Path:
        """The file of the job's lines, in OpenAI's form."""
        if job["lines"] is None:
            return self.files.path(job["input_file_id"])
        return self.folder / str(job["lines"])

    def _answer(self, job: Job, done: int, unprocessed: Mapping[str, str] | None) -> Result:
        job_id = job["id"]
        task = Assignment(
            batch_id=job_id.removeprefix("batch_"),  # becomes part of the replies' ids
            source=self.source(job),
            output=self.files.part_path(f"{job_id}-output"),
            errors=self.files.part_path(f"{job_id}-errors"),
            bill=self.files.part_path(f"{job_id}-bill"),
            done=done,
            unprocessed=unprocessed,
            in_order=fault_of(job, "input_order") is not None,
            # Other dialects cut the lines that they send, which they write from these.
            cuts_last_line=job["lines"] is None and fault_of(job, "cut_last_line") is not None,
            seed=self._options.seed,
            place=list(self.jobs).index(job_id),
        )
        model = self._model_of(job)
        return answer_file(task, model, self._billing, self.script, lambda: self._closing)

    def _place_results(self, job: dict[str, Any], result: Result) -> None:
        """Puts the result files and the bill in place; the caller's next `move` or `save` makes
        them all count at once.
        """
        job_id = job["id"]
        # An empty file is left out, as by OpenAI; Azure shows an empty error file (a fault here).
        for kind, name in (("output", "output_file_id"), ("errors", "error_file_id")):
            part = self.files.part_path(f"{job_id}-{kind}")
            wanted = part.stat().st_size > 0 or (
                kind == "errors" and fault_of(job, "empty_error_file") is not None
            )
            if wanted and not (kind == "output" and fault_of(job, "output_missing") is not None):
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

    def _limit_errors(self, job: dict[str, Any], checked: FileCheck) -> list[dict[str, Any]]:
        if not self.is_over_limit(checked.tokens, besides=job["id"]):
            return []
        return [_token_limit_error(checked.model, self._options.enqueued_token_limit)]

    def is_over_limit(self, tokens: int, besides: str = "") -> bool:
        """Whether `tokens` more would exceed the limit of tokens that may be enqueued."""
        limit = self._options.enqueued_token_limit
        waiting = sum(
            job["tokens"]
            for job in self.jobs.values()
            if job["status"] not in TERMINAL and job["id"] != besides
        )
        return limit is not None and waiting + tokens > limit

    def lines_done(self, job: dict[str, Any]) -> int:
        """The number of lines that a running job has answered, by the clock."""
        if job["result"] is not None:
            return int(job["result"]["completed"] + job["result"]["failed"])
        if "in_progress_at" not in job["stamps"]:
            return 0
        spent = self._time() - job["stamps"]["in_progress_at"]
        return min(
            int(job["total"]), int(job["total"] * spent / max(self._options.stages[1], 1e-6))
        )

    def move(self, job: dict[str, Any], status: str) -> None:
        job["status"] = status
        job["stamps"].setdefault(f"{status}_at", self._time())
        self.save(job)

    def save(self, job: dict[str, Any]) -> None:
        write_json(self.folder / f"{job['id']}.json", job)


def fault_of(job: Job, kind: str) -> Fault | None:
    """The fault of this kind that was scripted for a job; None where there is none."""
    return next((Fault.from_json(entry) for entry in job["faults"] if entry["kind"] == kind), None)


def _share(done: float, total: int) -> int:
    return min(total, int(total * done) if done < 1 else int(done))


def _scripted_errors(job: dict[str, Any], checked: FileCheck) -> list[dict[str, Any]]:
    fault = fault_of(job, "validation")
    if fault is not None:
        code = fault.code or "invalid_request"
        message = fault.message or "This line is not a valid request."
        return [
            {"code": code, "message": message, "param": "body", "line": line}
            for line in fault.lines
        ]
    fault = fault_of(job, "token_limit")
    return [_token_limit_error(checked.model, None)] if fault is not None else []


def _token_limit_error(model: str | None, limit: int | None) -> dict[str, Any]:
    return {
        "code": "token_limit_exceeded",
        "message": token_limit(model, limit),
        "param": None,
        "line": None,
    }
