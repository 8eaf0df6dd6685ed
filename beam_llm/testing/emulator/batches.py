"""Batch jobs, as the routes of dialects need them: create, look, list, cancel, delete and results,
each with the faults that are scripted for it.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Awaitable, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from aiohttp import web

from beam_llm.testing.emulator.billing import Billing
from beam_llm.testing.emulator.clockwork import TERMINAL, Clockwork, fault_of
from beam_llm.testing.emulator.connection import after_work, before_work, drop, send_lines
from beam_llm.testing.emulator.dialects import Dialect, Job, LineResult, NewJob, Reply
from beam_llm.testing.emulator.faults import FaultScript, chance
from beam_llm.testing.emulator.files import Files
from beam_llm.testing.emulator.models import Model
from beam_llm.testing.emulator.options import EmulatorOptions
from beam_llm.testing.emulator.wire import WireError, json_response, token_limit
from beam_llm.testing.emulator.work import line_results


class Batches:
    """The batch jobs of one emulator, used on its event loop.

    Attributes:
      clockwork: moves jobs through their states.

    Args:
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
        self.clockwork = Clockwork(options, folder, models, billing, dialects)
        self._options = options
        self._time = options.clock
        self._dialects = dialects
        # Lists are in the order of these numbers, which must keep growing across a restart.
        newest = max((job["number"] for job in self.clockwork.jobs.values()), default=0)
        self._numbers = itertools.count(newest + 1)

    @property
    def files(self) -> Files:
        return self.clockwork.files

    @property
    def script(self) -> FaultScript:
        """What goes wrong, and when."""
        return self.clockwork.script

    @script.setter
    def script(self, script: FaultScript) -> None:
        self.clockwork.script = script

    def resume(self) -> None:
        """Starts every unfinished job again; call it once the fault script is set."""
        self.clockwork.resume()

    async def close(self) -> None:
        """Stops all jobs where they are."""
        await self.clockwork.close()

    def billed_ids(self) -> list[str]:
        """The ids of jobs whose bill counts, since they have been worked on to some end."""
        # A copy of the values: tests call this from their own thread while the loop adds jobs.
        return [
            job["id"] for job in list(self.clockwork.jobs.values()) if job["result"] is not None
        ]

    def totals(self) -> dict[str, int]:
        """Sums over all jobs that have been worked on."""
        results = [
            job["result"] for job in list(self.clockwork.jobs.values()) if job["result"] is not None
        ]
        names = ("completed", "records", "input_tokens", "output_tokens")
        sums = {name: sum(result[name] for result in results) for name in names}
        return {"jobs": len(self.clockwork.jobs), "requests": sums.pop("completed"), **sums}

    @property
    def jobs(self) -> list[dict[str, Any]]:
        """All jobs as their APIs show them, oldest first."""
        return [
            self._dialects[job["dialect"]].job(job) for job in list(self.clockwork.jobs.values())
        ]

    def part_path(self, job_id: str) -> Path:
        """Where a dialect writes the lines of a job that it is about to create."""
        return self.clockwork.folder / f".{job_id}.part"

    # Building blocks of dialects' routes.

    async def serve(
        self,
        request: web.BaseRequest,
        dialect: Dialect,
        path: str,
        make: Callable[[bytes], Awaitable[NewJob | WireError]],
        page: Callable[[list[Job]], Reply],
    ) -> Reply | None:
        """Serves the routes of a dialect whose jobs are created and listed at one address, shown
        below it by their id, and cancelled below that. Returns None for any other route.

        Args:
          path: the path below the address.
          make, page: see `create` and `list_jobs`.
        """
        job_id, _, tail = path.lstrip("/").partition("/")
        match request.method, bool(job_id), tail:
            case "POST", False, "":
                return await self.create(request, dialect, make)
            case "GET", False, "":
                return await self.list_jobs(request, dialect, page)
            case "GET", True, "":
                return await self.look(request, dialect, job_id)
            case "POST", True, "cancel":
                return await self.cancel(request, dialect, job_id)
        return None

    async def create(
        self,
        request: web.BaseRequest,
        dialect: Dialect,
        make: Callable[[bytes], Awaitable[NewJob | WireError]],
    ) -> Reply:
        """Creates a job, with the faults that are scripted for creates.

        Args:
          make: returns the job that a body asks for, or what is wrong with the body.
        """
        raw = await request.read()
        # Decoded only where a fault may look at it: a body can have a quarter of a gigabyte.
        texts = (raw.decode("utf-8", "replace"),) if self.script.has("create") else ()
        faults = self.script.strike("create", texts)
        refused = await before_work(
            request, [fault for fault in faults if fault.kind not in ("slow", "hang")]
        )
        # Faults come before errors in the body: a server that is down doesn't look at the body.
        if refused is not None:
            return refused
        new_job = await make(raw)
        if isinstance(new_job, WireError):
            return new_job
        if (error := await self._limit_at_create(new_job)) is not None:
            return error
        late = next((fault.seconds for fault in faults if fault.kind == "create_late"), None)
        job = self._new_job(dialect, new_job, late or 0.0)
        self.clockwork.start(job)
        if late is not None:  # the client has long given up when the job is created
            return drop(request)
        # A slow create has created its job: what the client's timeout loses is the answer.
        await before_work(request, [fault for fault in faults if fault.kind in ("slow", "hang")])
        return after_work(request, faults) or json_response(dialect.job(job))

    async def _limit_at_create(self, new_job: NewJob) -> WireError | None:
        limit = self._options.enqueued_token_limit
        if limit is None or self._options.enqueued_limit_at != "create":
            return None
        checked = await self.clockwork.run_in_worker(self.clockwork.check, _source_of(new_job))
        if not self.clockwork.is_over_limit(checked.tokens):
            return None
        message = token_limit(checked.model, limit)
        return WireError(429, message, "tokens", "token_limit_exceeded")

    def _new_job(self, dialect: Dialect, new_job: NewJob, late_seconds: float) -> Job:
        source = _source_of(new_job)
        # The lines are moved to a file named after the job, so that a restart finds them.
        if new_job.lines is not None:
            source["lines"] = f"{new_job.job_id}.lines"
            os.replace(new_job.lines, self.clockwork.folder / source["lines"])
        job: Job = {
            "id": new_job.job_id,
            "dialect": dialect.name,
            "number": next(self._numbers),
            "created": self._time() + late_seconds,
            "status": "validating",
            **source,
            "own": new_job.own,
            "model": None,
            "total": 0,
            "tokens": 0,
            "errors": list(new_job.errors) or None,
            "result": None,
            "output_file_id": None,
            "error_file_id": None,
            "stamps": {},
        }
        # Only the first line is searched for a fault's text: there may be a million lines.
        first = _first_line(self.clockwork.source(job))
        job["faults"] = [fault.to_json() for fault in self.script.strike("job", (first,))]
        self.clockwork.jobs[job["id"]] = job
        self.clockwork.save(job)
        return job

    async def list_jobs(
        self,
        request: web.BaseRequest,
        dialect: Dialect,
        page: Callable[[list[Job]], Reply],
    ) -> Reply:
        """Shows jobs, with the faults that are scripted for lists.

        Args:
          page: makes the reply's page from all visible jobs, in the list's order (newest first,
            unless the emulator's options say otherwise).
        """
        if (refused := await before_work(request, self.script.strike("list"))) is not None:
            return refused
        now = self._time()
        visible = [
            job
            for job in reversed(self.clockwork.jobs.values())
            if job["dialect"] == dialect.name
            and not job.get("deleted")
            and now >= job["created"]  # the job of a late create does not exist yet
            and not _is_hidden(job, "list_lag", now)
        ]
        if self._options.list_order == "oldest":
            visible.reverse()
        elif self._options.list_order == "shuffled":
            visible.sort(key=lambda job: chance(self._options.seed, job["number"]))
        return page(visible)

    async def look(self, request: web.BaseRequest, dialect: Dialect, job_id: str) -> Reply:
        """Shows a job, with the faults that are scripted for that."""
        faults = self.script.strike("retrieve", (job_id,))
        if (refused := await before_work(request, faults)) is not None:
            return refused
        job = self.find(dialect, job_id)
        if job is None or _is_hidden(job, "retrieve_missing", self._time()):
            return dialect.no_job(job_id)
        return after_work(request, faults) or json_response(dialect.job(job))

    async def cancel(self, request: web.BaseRequest, dialect: Dialect, job_id: str) -> Reply:
        """Sets a job to cancelling, with the faults that are scripted for that."""
        faults = self.script.strike("cancel", (job_id,))
        if (refused := await before_work(request, faults)) is not None:
            return refused
        job = self.find(dialect, job_id)
        if job is None:
            return dialect.no_job(job_id)
        # A cancelled job may be cancelled again, as OpenAI's may (others' tests, read 2026-11).
        if job["status"] in TERMINAL - {"cancelled"}:
            return WireError(409, f"Cannot cancel a batch with status '{job['status']}'.")
        self.clockwork.cancel(job)
        return after_work(request, faults) or json_response(dialect.job(job))

    async def delete(
        self, request: web.BaseRequest, dialect: Dialect, job_id: str, gone: Any
    ) -> Reply:
        """Removes an ended job and its results, but not its bill, unless a scripted fault strikes.

        Args:
          gone: the reply's JSON.
        """
        if (refused := await before_work(request, self.script.strike("delete"))) is not None:
            return refused
        job = self.find(dialect, job_id)
        if job is None:
            return dialect.no_job(job_id)
        if job["status"] not in TERMINAL:
            return WireError(409, f"Cannot delete a batch with status '{job['status']}'.")
        # Marked rather than removed: its number and its bill still count.
        job["deleted"] = True
        self.clockwork.save(job)
        for name in ("output_file_id", "error_file_id"):
            self.files.remove(job[name])
        return json_response(gone)

    async def results(
        self,
        request: web.BaseRequest,
        job: Job,
        encode: Callable[[LineResult], Any],
    ) -> Reply:
        """Streams an ended job's results as JSON lines, with the faults that are scripted for that.

        Args:
          encode: turns a result into the dialect's line, as JSON.
        """
        faults = self.script.strike("content")
        if (refused := await before_work(request, faults)) is not None:
            return refused
        return await send_lines(
            request,
            (encode(result) for result in self.results_of(job)),
            cut_off=any(fault.kind == "content_cut" for fault in faults),
            cut_last=fault_of(job, "cut_last_line") is not None,
        )

    def results_of(self, job: Job) -> Iterator[LineResult]:
        """The result of each request of an ended job: answers first, then errors."""
        # Two files, whatever the dialect: dialects with a single file show both as one stream.
        for name in ("output_file_id", "error_file_id"):
            if job[name] is not None:
                yield from line_results(self.files.path(job[name]))

    def find(self, dialect: Dialect, job_id: str) -> Job | None:
        """The dialect's job with that id; None where there is none."""
        job = self.clockwork.jobs.get(job_id)
        return job if job and job["dialect"] == dialect.name and not job.get("deleted") else None

    def count_pending(self, dialect: Dialect) -> int:
        """The number of the dialect's jobs that have not ended."""
        jobs = list(self.clockwork.jobs.values())
        return sum(job["dialect"] == dialect.name and job["status"] not in TERMINAL for job in jobs)

    def status(self, job: Job) -> str:
        """The clockwork's word for a job's status, or the one that is scripted for it."""
        word = fault_of(job, "status_word")
        if word is not None and job["status"] == "in_progress":
            return word.message or "scheduling"
        return str(job["status"])

    def counts(self, job: Job) -> dict[str, int | None]:
        """`total`, `completed` and `failed` of a job now; None where that is scripted."""
        if fault_of(job, "null_counts") is not None:
            return {"total": job["total"], "completed": None, "failed": None}
        done, failed = self.clockwork.lines_done(job), 0
        if job["result"] is not None:
            done, failed = job["result"]["completed"], job["result"]["failed"]
        return {"total": job["total"], "completed": done, "failed": failed}


def _source_of(new_job: NewJob) -> dict[str, Any]:
    """Where a job's lines are."""
    return {
        "lines": str(new_job.lines) if new_job.lines is not None else None,
        "input_file_id": new_job.input_file_id,
        "endpoint": new_job.own.get("endpoint", ""),
    }


def _first_line(path: Path) -> str:
    with open(path, "rb") as file:
        return file.readline(2**20).decode("utf-8", "replace")


def _is_hidden(job: dict[str, Any], kind: str, now: float) -> bool:
    """Whether a young job is still hidden."""
    fault = fault_of(job, kind)
    return fault is not None and now < job["created"] + fault.seconds
