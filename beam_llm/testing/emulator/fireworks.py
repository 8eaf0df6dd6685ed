"""Fireworks' wire format: OpenAI's chat completions, and batch jobs over datasets, under ids that
the clients choose.

Source: docs.fireworks.ai (batch inference, datasets), SDK fireworks-ai 1.2.30; read 2026-11.
"""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from aiohttp import web

from beam_llm.testing.emulator.connection import before_work, send_lines
from beam_llm.testing.emulator.dialects import Job, Line, LineResult, NewJob, Reply
from beam_llm.testing.emulator.family import UNPROCESSED, Family, iso
from beam_llm.testing.emulator.models import CHAT, EMBED
from beam_llm.testing.emulator.wire import (
    WireError,
    json_response,
    object_of,
    page_of,
    with_json,
)
from beam_llm.testing.emulator.work import line_results

if TYPE_CHECKING:
    from beam_llm.testing.emulator.service import Service


class Wire(Family):
    """Jobs over datasets, under ids that the clients choose; results are at signed addresses."""

    name = "fireworks"
    variables = ("FIREWORKS_BASE_URL", "FIREWORKS_API_KEY")
    path = "/inference/v1"
    tiers = ("auto", "default", "flex", "priority")
    most_images = 30
    _control_path = re.compile(
        r"/v1/accounts/([^/]+)/(datasets|batchInferenceJobs)(?:/([^/:]+))?(:\w+)?"
    )
    _words: ClassVar[dict[str, str]] = {
        "in_progress": "RUNNING",
        "finalizing": "WRITING_RESULTS",
        "cancelling": "CANCELLING",
    }

    def __init__(self, service: Service) -> None:
        super().__init__(service)
        # Name → file id; None between a dataset's creation and its upload, which are two calls.
        self._datasets: dict[str, str | None] = {}

    @classmethod
    def environment(cls, url: str, key: str) -> dict[str, str]:
        return {**super().environment(url, key), "FIREWORKS_ACCOUNT_ID": "emulator"}

    def refuse(self, request: web.BaseRequest) -> WireError | None:
        """As for other dialects, except that a signed address takes no key: storage refuses a
        request that has both.
        """
        if request.path.startswith("/fireworks/signed/"):
            has_key = "Authorization" in request.headers
            return WireError(400, "Only one auth mechanism allowed") if has_key else None
        return super().refuse(request)

    async def handle(self, request: web.BaseRequest, path: str) -> Reply | None:
        if path in (CHAT, EMBED):
            return await super().handle(request, path)
        if path.startswith("/signed/"):
            return await self._send_signed(request, path.removeprefix("/signed/"))
        found = self._control_path.fullmatch(path)
        if found is None:
            return None
        _, kind, name, verb = found.groups()
        if kind == "datasets":
            return await self._dataset(request, name, verb)
        return await self._jobs(request, name) if verb is None else None

    def error(self, error: WireError) -> web.Response:
        named = {"object": "error", "type": error.type, "code": error.code}
        body = {"error": {**named, "message": error.message}}
        return json_response(body, error.status, error.headers)

    # Datasets

    async def _dataset(
        self, request: web.BaseRequest, name: str | None, verb: str | None
    ) -> Reply | None:
        match request.method, name is not None, verb:
            case "POST", False, None:
                return await self._new_dataset(request)
            case "POST", True, ":upload":
                uploaded = await self.service.files.handle(request, "/files", purpose="dataset")
                return with_json(uploaded, lambda meta: self._note_file(str(name), meta))
            case "GET", True, None:
                return self._show_dataset(str(name))
            case "GET", True, ":getDownloadEndpoint":
                return await self._addresses(request, str(name))
            case "DELETE", True, None:
                return await self._remove(request, str(name))
        return None

    async def _new_dataset(self, request: web.BaseRequest) -> Reply:
        if (
            refused := await before_work(request, self.service.script.strike("upload"))
        ) is not None:
            return refused
        body = object_of(await request.read())
        if body is None:
            return WireError(400, "invalid JSON")
        if unknown := set(body) - {"datasetId", "dataset", "sourceDatasetId"}:
            return WireError(400, f"unknown field: {min(unknown)}")
        name = str(body.get("datasetId"))
        if not re.fullmatch(r"[a-z][a-z0-9-]{0,62}", name):
            return WireError(400, f"invalid dataset id {name!r}")
        # This shows that a lost create succeeded: repeating it is refused.
        if name in self._datasets:
            return WireError(409, f"dataset {name!r} already exists")
        self._datasets[name] = None
        return json_response({"name": f"accounts/emulator/datasets/{name}", "state": "UPLOADING"})

    def _note_file(self, name: str, meta: dict[str, Any]) -> dict[str, Any]:
        self._datasets[name] = meta["id"]
        return meta

    def _show_dataset(self, name: str) -> Reply:
        if name not in self._datasets:
            return WireError(404, f"dataset {name!r} not found")
        state = "READY" if self._is_ready(self._datasets[name]) else "UPLOADING"
        return json_response({"name": f"accounts/emulator/datasets/{name}", "state": state})

    def _is_ready(self, file_id: str | None) -> bool:
        meta = self.service.files.get(file_id) if file_id is not None else None
        return meta is not None and self.service.files.is_processed(meta)

    async def _remove(self, request: web.BaseRequest, name: str) -> Reply:
        if (
            refused := await before_work(request, self.service.script.strike("delete"))
        ) is not None:
            return refused
        # The name is that of an upload or of a job's results, which are a dataset as well.
        ids = [self._datasets.pop(name)] if name in self._datasets else list(self._outputs(name))
        gone = [self.service.files.remove(file_id) for file_id in ids]
        return json_response({}) if any(gone) else WireError(404, f"dataset {name!r} not found")

    def _outputs(self, name: str) -> dict[str, str]:
        """The files of a job's output dataset: id → name."""
        job = self.service.batches.find(self, name.removesuffix("-results"))
        kept = (("output_file_id", "BIJOutputSet.jsonl"), ("error_file_id", "error.jsonl"))
        ids = {job[field]: filename for field, filename in kept} if job is not None else {}
        return {one: ids[one] for one in ids if one and self.service.files.get(one) is not None}

    async def _addresses(self, request: web.BaseRequest, name: str) -> Reply:
        if (
            refused := await before_work(request, self.service.script.strike("content"))
        ) is not None:
            return refused
        outputs = self._outputs(name)
        if not outputs:
            return WireError(404, f"dataset {name!r} not found")
        base = f"{self.service.url}/fireworks/signed"
        urls = {filename: f"{base}/{file_id}" for file_id, filename in outputs.items()}
        return json_response({"filenameToSignedUrls": urls})

    async def _send_signed(self, request: web.BaseRequest, file_id: str) -> Reply:
        if self.service.files.get(file_id) is None:
            return WireError(404, "No such object")
        lines = map(self._result, line_results(self.service.files.path(file_id)))
        return await send_lines(request, lines)

    def _result(self, result: LineResult) -> dict[str, Any]:
        line: dict[str, Any] = {"custom_id": result.custom_id}
        if result.answer is not None:
            line["response"] = self.reply(result.answer, result.parsed, result.reply_id)
        elif result.error is not None and result.code not in UNPROCESSED:
            body = {"error": {"message": result.error.message, "code": result.error.code}}
            line["response"] = {"status_code": result.error.status, "body": body}
        else:
            line["error"] = {"code": result.code, "message": result.code}
        return line

    # Jobs

    async def _jobs(self, request: web.BaseRequest, name: str | None) -> Reply | None:
        jobs = self.service.batches
        if request.method == "POST" and name is None:
            wanted = request.query.get("batchInferenceJobId", "")
            return await jobs.create(request, self, lambda raw: self._read_job(wanted, raw))
        if request.method == "GET" and name is None:
            return await jobs.list_jobs(request, self, lambda found: self._page(request, found))
        if request.method == "GET":
            return await jobs.look(request, self, str(name))
        return None

    async def _read_job(self, job_id: str, raw: bytes) -> NewJob | WireError:
        body = object_of(raw)
        if body is None or not isinstance(body.get("model"), str):
            return WireError(400, "model is required")
        if unknown := set(body) - {
            *("displayName", "model", "inputDatasetId", "outputDatasetId"),
            *("inferenceParameters", "precision", "continuedFromJobName"),
        }:
            return WireError(400, f"unknown field: {min(unknown)}")
        if not re.fullmatch(r"[a-z][a-z0-9-]{0,62}", job_id):
            return WireError(400, f"invalid job id {job_id!r}")
        # The id is the client's own, so that a repeated create finds its job.
        if self.service.batches.find(self, job_id) is not None:
            return WireError(409, f"batch inference job {job_id!r} already exists")
        dataset = str(body.get("inputDatasetId"))
        file_id = self._datasets.get(dataset.rpartition("/")[2])
        if file_id is None or self.service.files.get(file_id) is None:
            return WireError(404, f"dataset {dataset!r} not found")
        if not self._is_ready(file_id):
            return WireError(400, f"dataset {dataset!r} is not READY")
        part = self.service.batches.part_path(job_id)
        problem = await asyncio.to_thread(self._write, file_id, part, body["model"])
        if problem is not None:
            return problem
        own = {name: body.get(name) for name in ("displayName", "model", "inputDatasetId")}
        return NewJob(job_id, part, own=own)

    def _write(self, file_id: str, part: Path, model: str) -> WireError | None:
        """Writes a dataset's lines as a job's lines. Stops at the first faulty line, and returns
        its error.
        """
        with open(self.service.files.path(file_id), "rb") as lines, open(part, "wb") as file:
            for number, data in enumerate(lines, 1):
                line = object_of(data) or {}
                if type(line.get("custom_id")) is not str or type(line.get("body")) is not dict:
                    return WireError(400, f"line {number}: custom_id and body are required")
                parsed = self._parse_request({**line["body"], "model": model}, None)
                file.write(Line(line["custom_id"], parsed).encode())
        return None

    def _page(self, request: web.BaseRequest, visible: list[Job]) -> Reply:
        options = self.service.options
        page = page_of(visible, options, request.query, "pageSize", 50, "pageToken", 200)
        if page is None:
            return WireError(400, "invalid page size or page token")
        return json_response(
            {
                "batchInferenceJobs": [self.job(job) for job in page.items],
                "nextPageToken": page.next or "",
                "totalSize": len(visible),
            }
        )

    def job(self, job: Job) -> Any:
        status, counts = self.service.batches.status(job), self.service.batches.counts(job)
        options, own = self.service.options, job["own"]
        problem = "; ".join(one["message"] for one in job["errors"] or ())
        return {
            "name": f"accounts/emulator/batchInferenceJobs/{job['id']}",
            "displayName": own["displayName"] if options.names_kept else "",
            "createTime": iso(job["created"]),
            "state": f"JOB_STATE_{self._words.get(status, status.upper())}",
            "status": {"code": "INVALID_ARGUMENT" if problem else "OK", "message": problem},
            "model": own["model"],
            "inputDatasetId": own["inputDatasetId"] if options.inputs_shown else "",
            "outputDatasetId": f"accounts/emulator/datasets/{job['id']}-results",
            "jobProgress": {
                "totalInputRequests": counts["total"],
                "successfullyProcessedRequests": counts["completed"],
                "failedRequests": counts["failed"],
            },
        }
