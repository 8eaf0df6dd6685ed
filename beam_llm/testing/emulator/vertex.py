"""Vertex AI's wire format: generateContent and embeddings in a project and a region, and batch
prediction jobs over gs://.

gs:// addresses are read and written where the environment says (STORAGE_EMULATOR_HOST): in the
emulator's own buckets (`buckets.py`), or through the package's store. `/token` gives tokens to
service accounts that have it as their `token_uri`. Source: Vertex AI REST reference (v1) and guide
to batch inference, google-genai 2.34, a recording of a live call of 2026-08, read 2026-11.
"""

from __future__ import annotations

import asyncio
import re
import uuid
from typing import Any

import msgspec
import orjson
from aiohttp import web

from beam_llm.stores import temporary_file
from beam_llm.testing.emulator import embed_content, generate_content
from beam_llm.testing.emulator.chat import Answer
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
from beam_llm.testing.emulator.generate_content import precondition, rfc3339
from beam_llm.testing.emulator.models import EMBED
from beam_llm.testing.emulator.shapes import misfit
from beam_llm.testing.emulator.wire import WireError, json_of, json_response, page_of, wrong_key

_STATES = {
    "validating": "PENDING",
    "in_progress": "RUNNING",
    "finalizing": "RUNNING",
    "completed": "SUCCEEDED",
}
# Google's SDK calls v1beta1, this package v1.
_PARENT = r"/v1(?:beta1)?/(projects/[^/]+/locations/[^/]+)"
_LIVE = re.compile(
    rf"{_PARENT}/publishers/google/models/([^/:]+):(generateContent|predict|embedContent)"
)
_JOBS = re.compile(rf"{_PARENT}/batchPredictionJobs(?:/([^/:]+)(:cancel)?)?")
_FIELDS = frozenset(
    (
        *("displayName", "model", "inputConfig", "outputConfig", "labels", "instanceConfig"),
        *("modelParameters", "dedicatedResources", "serviceAccount", "encryptionSpec"),
    )
)
_LABEL = re.compile(r"[a-z0-9_-]{0,63}")
MOST_REQUESTS = 200_000
"""The most requests of a job. Source: Vertex AI, "Batch inference with Gemini", 2026-11."""
MOST_TEXTS = 30_000
"""The most texts of a job for embeddings. Source: Vertex AI, "Get batch text embeddings
predictions", 2026-11."""


class Wire(Dialect):
    """`/v1/projects/{p}/locations/{l}/…` under `/vertex`."""

    name = "vertex"
    variables = ("VERTEX_BASE_URL", "VERTEX_ACCESS_TOKEN")

    @classmethod
    def environment(cls, url: str, key: str) -> dict[str, str]:
        place = {"GOOGLE_CLOUD_PROJECT": "emulator", "GOOGLE_CLOUD_LOCATION": "global"}
        return {**super().environment(url, key), **place}

    def refuse(self, request: web.BaseRequest) -> WireError | None:
        if request.path.endswith("/token"):
            return None
        refused = super().refuse(request)
        if refused is None and self.service.has_expired(self.key_of(request)):
            refused = wrong_key()
        if refused is None:
            return None
        message = "Request had invalid authentication credentials. Expected OAuth 2 access token."
        return WireError(refused.status, message, code="UNAUTHENTICATED")

    async def handle(self, request: web.BaseRequest, path: str) -> Reply | None:
        if path == "/token" and request.method == "POST":
            keys = self.service.options.keys
            token = keys[0] if keys else f"token-{uuid.uuid4().hex}"
            granted = {"access_token": token, "expires_in": 3600, "token_type": "Bearer"}
            return json_response(granted)
        if request.method == "POST" and (found := _LIVE.fullmatch(path)) is not None:
            return await self._live(request, found[2], found[3])
        if (found := _JOBS.fullmatch(path)) is not None:
            return await self._jobs(request, found[1], found[2], found[3] is not None)
        return None

    # Live calls.

    async def _live(self, request: web.BaseRequest, model: str, verb: str) -> Reply:
        if verb == "generateContent":
            return await self.service.live(
                request, self, lambda body: self.parse_request(body, model)
            )
        embedder = self.service.embedder

        def parse(body: Any) -> ModelRequest | WireError:
            return embed_content.parse_vertex_request(body, model, verb, embedder)

        return await self.service.live(request, self, parse, embedder)

    def parse_request(self, body: Any, model: str) -> ModelRequest | WireError:
        """Checks a body, and translates it for the emulated model. The service tier is a header
        here, not a field.
        """
        if isinstance(body, dict) and {"serviceTier", "service_tier", "store"} & set(body):
            message = 'Unknown name "serviceTier": Cannot find field.'
            return WireError(400, f"Invalid JSON payload received. {message}")
        labels = body.get("labels", {}) if isinstance(body, dict) else {}
        if (wrong := misfit(labels, dict[str, str])) is not None:
            return WireError(400, generate_content.describe_misfit(wrong, "labels"))
        for name, value in labels.items():
            if not _LABEL.fullmatch(name) or not _LABEL.fullmatch(value):
                return WireError(400, f"Label {name!r}: {value!r} is not a valid label.")
        return generate_content.parse_request(body, model, self.service.chat, ("gs", "https"))

    def reply(self, answer: Answer, parsed: ModelRequest, reply_id: str) -> Any:
        if "data" in answer.body:
            return embed_content.vertex_reply(answer, parsed)
        return generate_content.reply(answer, parsed, reply_id, {"trafficType": "ON_DEMAND"})

    def error(self, error: WireError) -> web.Response:
        return generate_content.error_response(error)

    # Batch prediction jobs.

    async def _jobs(
        self, request: web.BaseRequest, parent: str, job_id: str | None, is_cancel: bool
    ) -> Reply | None:
        jobs = self.service.batches
        if job_id is not None and not is_cancel:
            await asyncio.to_thread(self._deliver, jobs.find(self, job_id))
        match request.method, job_id, is_cancel:
            case "POST", None, False:
                return await jobs.create(
                    request, self, lambda raw: asyncio.to_thread(self._new_job, raw, parent)
                )
            case "GET", None, False:
                return await jobs.list_jobs(request, self, lambda found: self._page(request, found))
            case "GET", str(), False:
                return await jobs.look(request, self, job_id)
            case "POST", str(), True:
                return precondition(await jobs.cancel(request, self, job_id))
            case "DELETE", str(), False:
                return precondition(await jobs.delete(request, self, job_id, {"done": True}))
        return None

    def _new_job(self, raw: bytes, parent: str) -> NewJob | WireError:
        try:
            body = orjson.loads(raw)
        except orjson.JSONDecodeError:
            return WireError(400, "Invalid JSON payload received. Unexpected token.")
        problem = _job_problem(body)
        if problem is not None:
            return WireError(400, problem)
        uri = body["inputConfig"]["gcsSource"]["uris"][0]
        # Nineteen digits, like Vertex AI's ids.
        job_id = str(uuid.uuid4().int)[:19]
        own = {"parent": parent, **{name: body[name] for name in _SHOWN if name in body}}
        model = body["model"].rpartition("/")[2]
        parameters = body.get("modelParameters", {}) if "embedding" in model else None
        own |= {} if parameters is None else {"endpoint": EMBED}
        part = self.service.batches.part_path(job_id)
        with open(part, "wb") as file, temporary_file() as given:
            folder, _, name = uri.rpartition("/")
            if not self.service.buckets.store_at(folder).get_file(name, given):
                message = f"The object {uri} does not exist, or the service agent can't read it."
                return WireError(400, message)
            lines = _lines_of(given)
            most = MOST_REQUESTS if parameters is None else MOST_TEXTS
            if len(lines) > most:
                return WireError(400, f"A job has at most {most} prompts.")
            for number, line in enumerate(lines, 1):
                file.write(self._line(line, number, model, parameters).encode())
        return NewJob(job_id, part, own=own)

    def _line(self, line: bytes, number: int, model: str, parameters: Any) -> Line:
        """One line of a job, under its number: clients match results by the echo of the request.

        Args:
          parameters: the parameters of a job for embeddings; None for other jobs.
        """
        entry = json_of(line)
        request = entry.get("request") if isinstance(entry, dict) else None
        if parameters is not None:
            request = entry
            parsed: ModelRequest | WireError = embed_content.parse_instance(
                entry, parameters, model, self.service.embedder
            )
        elif not isinstance(entry, dict) or set(entry) != {"request"}:
            parsed = WireError(400, "A line must have a request, and no more.")
        else:
            parsed = self.parse_request(request, model)
        if isinstance(parsed, ModelRequest):
            return Line(str(number), parsed._replace(note={**parsed.note, "echo": request}))
        return Line(str(number), parsed._replace(param=orjson.dumps(request).decode()))

    def _deliver(self, job: Job | None) -> None:
        """Writes the results of a job that has ended, before anybody learns that it has."""
        if job is None or job["status"] not in TERMINAL or job["own"].get("delivered"):
            return
        # Two files, since a large job has several: a client that reads one would lose half.
        prefix = job["own"]["outputConfig"]["gcsDestination"]["outputUriPrefix"]
        folder = f"{prefix.rstrip('/')}/prediction-model-{rfc3339(job['created'])}"
        embeds = job["own"].get("endpoint") == EMBED
        results = [orjson.dumps(self._result(found, embeds)) for found in self._results(job)]
        store, half = self.service.buckets.store_at(folder), (len(results) + 1) // 2
        for number, lines in enumerate((results[:half], results[half:]), 1):
            if lines:
                store.put(f"predictions_{number:05}.jsonl", b"\n".join([*lines, b""]))
        job["own"].update(delivered=True, folder=folder)

    def _results(self, job: Job) -> list[LineResult]:
        """The results of the requests that the job processed."""
        found = self.service.batches.results_of(job) if job["status"] != "failed" else ()
        return [result for result in found if result.code != "batch_expired"]

    def _result(self, result: LineResult, embeds: bool) -> Any:
        note = result.parsed.note or {}
        echo = note.get("echo")
        if result.answer is not None:
            reply = self.reply(result.answer, result.parsed, result.reply_id)
            if embeds:
                return {"instance": echo, "predictions": reply["predictions"], "status": ""}
            return {"status": "", "request": echo, "response": reply}
        error = result.error or WireError(500, "Internal error encountered.")
        if echo is None and error.param:
            echo = orjson.loads(error.param)
        error_text = orjson.dumps({"error": generate_content.error_object(error)}).decode()
        if embeds:
            return {"instance": echo, "predictions": [], "status": f"Bad Request: {error_text}"}
        return {"status": f"Bad Request: {error_text}", "request": echo, "response": {}}

    def _page(self, request: web.BaseRequest, visible: list[Job]) -> Reply:
        options = self.service.options
        page = page_of(visible, options, request.query, "pageSize", 50, "pageToken", 1_000)
        if page is None:
            return WireError(400, "Request contains an invalid argument.")
        shown = [self.job(job) for job in page.items]
        fields = {"batchPredictionJobs": shown, "nextPageToken": page.next}
        # proto3 leaves out empty fields.
        return json_response({name: value for name, value in fields.items() if value})

    def job(self, job: Job) -> Any:
        own, stamps, options = job["own"], job["stamps"], self.service.options
        # Not over before its results are in the bucket; looking at a job delivers them first.
        over = job["status"] in TERMINAL and bool(own.get("delivered"))
        hidden = {"inputConfig"} if not options.inputs_shown else set()
        hidden |= {"displayName"} if not options.names_kept else set()
        state = self._state(job, over)
        shown = {
            "name": f"{own['parent']}/batchPredictionJobs/{job['id']}",
            **{name: own[name] for name in _SHOWN if name in own and name not in hidden},
            "state": f"JOB_STATE_{state}",
            "createTime": rfc3339(job["created"]),
            "updateTime": rfc3339(max([job["created"], *stamps.values()])),
        }
        if over:
            shown["outputInfo"] = {"gcsOutputDirectory": own["folder"]}
            shown["endTime"] = shown["updateTime"]
            shown.update(self._counts(job))
        if over and job["errors"]:
            shown["error"] = generate_content.job_error(job["errors"][0])
        return shown

    def _state(self, job: Job, over: bool) -> str:
        if job["status"] in TERMINAL and not over:
            return "RUNNING"
        status = self.service.batches.status(job)
        return _STATES.get(status, status.upper())

    def _counts(self, job: Job) -> dict[str, Any]:
        found = self.service.batches.counts(job)
        done, failed = found["completed"], found["failed"]
        if done is None or failed is None:
            return {}
        left = (found["total"] or 0) - done - failed
        named = {"successfulCount": done, "failedCount": failed, "incompleteCount": left}
        return {"completionStats": {name: str(count) for name, count in named.items() if count}}

    def no_job(self, job_id: str) -> WireError:
        return WireError(404, f"The BatchPredictionJob {job_id} does not exist.")


_SHOWN = ("displayName", "model", "inputConfig", "outputConfig")


class _Source(msgspec.Struct):
    uris: list[str]


class _Input(msgspec.Struct):
    instancesFormat: str
    gcsSource: _Source | None = None


class _Target(msgspec.Struct):
    outputUriPrefix: str


class _Output(msgspec.Struct):
    predictionsFormat: str
    gcsDestination: _Target | None = None


class _Create(msgspec.Struct):
    """Types only; a missing field has a message of its own."""

    displayName: str
    model: str
    inputConfig: _Input
    outputConfig: _Output


def _lines_of(path: str) -> list[bytes]:
    with open(path, "rb") as file:
        return [line for line in file.read().split(b"\n") if line.strip()]


def _job_problem(body: Any) -> str | None:
    if not isinstance(body, dict):
        return "Invalid JSON payload received. Root element must be a message."
    for name in body:
        if name not in _FIELDS:
            return f'Invalid JSON payload received. Unknown name "{name}": Cannot find field.'
    for name in ("displayName", "model", "inputConfig", "outputConfig"):
        if not body.get(name):
            return f"{name} is required."
    if (wrong := misfit(body, _Create)) is not None:
        return generate_content.describe_misfit(wrong, "batch_prediction_job")
    if "publishers/google/models/" not in body["model"]:
        return f"Model {body['model']!r} is not a publisher model."
    source, target = body["inputConfig"], body["outputConfig"]
    if source.get("instancesFormat") != "jsonl" or target.get("predictionsFormat") != "jsonl":
        return "instancesFormat and predictionsFormat must be jsonl."
    uris = (source.get("gcsSource") or {}).get("uris") or []
    prefix = (target.get("gcsDestination") or {}).get("outputUriPrefix") or ""
    if len(uris) != 1 or not all(str(uri).startswith("gs://") for uri in (*uris, prefix)):
        return "gcsSource.uris and gcsDestination.outputUriPrefix must be gs:// URIs."
    return None
