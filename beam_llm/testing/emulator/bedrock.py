"""Amazon Bedrock's wire format: Converse, InvokeModel, and batch inference jobs whose files are in
S3.

Each of the emulator's keys is both the id and the secret of an access key. Files are in the S3 that
the environment names (`AWS_ENDPOINT_URL_S3`), which may be the emulator's own (`buckets.py`): input
is read when a job is created, and results are written when it is first looked at after its end.

Source: botocore 1.44, `bedrock` and `bedrock-runtime`; Bedrock user guide, "Process multiple
prompts with batch inference"; AWS general reference, "Signature Version 4"; all read 2026-11.
"""

from __future__ import annotations

import asyncio
import re
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import orjson
from aiohttp import web

from beam_llm.stores import temporary_file
from beam_llm.testing.emulator import converse, embed_invoke
from beam_llm.testing.emulator.aws_signatures import access_key_of, has_signed
from beam_llm.testing.emulator.chat import Answer
from beam_llm.testing.emulator.dialects import (
    Dialect,
    Job,
    Line,
    LineResult,
    ModelRequest,
    NewJob,
    Reply,
)
from beam_llm.testing.emulator.models import EMBED
from beam_llm.testing.emulator.wire import WireError, json_response, page_of

_CONVERSE = re.compile(r"/model/(.{1,2048})/converse")
_INVOKE = re.compile(r"/model/(.{1,2048})/invoke")
_JOBS = "/model-invocation-jobs"
_JOB = "/model-invocation-job"
_ACCOUNT = "arn:aws:bedrock:us-east-1:123456789012"
# A job that ran out of time is "PartiallyCompleted"; "Expired" is a job that never began.
_STATES = {
    "validating": "Validating",
    "in_progress": "InProgress",
    "finalizing": "InProgress",
    "completed": "Completed",
    "failed": "Failed",
    "expired": "PartiallyCompleted",
    "cancelling": "Stopping",
    "cancelled": "Stopped",
}
_ERRORS = {
    400: "ValidationException",
    401: "UnrecognizedClientException",
    403: "AccessDeniedException",
    404: "ResourceNotFoundException",
    408: "ModelTimeoutException",
    409: "ConflictException",
    424: "ModelErrorException",
    429: "ThrottlingException",
    500: "InternalServerException",
    503: "ServiceUnavailableException",
}
_TOKEN_EXPIRED = "ExpiredTokenException"
_TOKEN_MISSING = "MissingAuthenticationTokenException"


class _Entry(msgspec.Struct):
    """A line of a job's input."""

    modelInput: Any
    recordId: str = ""


class Wire(Dialect):
    """`/model/{id}/converse`, `/model/{id}/invoke` for embedding models, and
    `/model-invocation-job…`, all under `/bedrock`.
    """

    name = "bedrock"
    variables = ("AWS_ENDPOINT_URL_BEDROCK_RUNTIME", "AWS_ACCESS_KEY_ID")

    @classmethod
    def environment(cls, url: str, key: str) -> dict[str, str]:
        return {
            "AWS_ENDPOINT_URL_BEDROCK_RUNTIME": f"{url}/bedrock",
            "AWS_ENDPOINT_URL_BEDROCK": f"{url}/bedrock",
            "AWS_ACCESS_KEY_ID": key,
            "AWS_SECRET_ACCESS_KEY": key,
            "AWS_REGION": "us-east-1",
        }

    def refuse(self, request: web.BaseRequest) -> WireError | None:
        if self.service.has_expired(request.headers.get("X-Amz-Security-Token", "")):
            return WireError(
                403, "The security token included in the request is expired", code=_TOKEN_EXPIRED
            )
        keys = self.service.options.keys
        if keys == ():
            return None
        key = self.key_of(request)
        # Only the id is checked here; the signature covers the body, which is read in `handle`.
        if not key:
            return WireError(403, "Missing Authentication Token", code=_TOKEN_MISSING)
        if keys is not None and key not in keys:
            return WireError(403, "The security token included in the request is invalid.")
        return None

    def key_of(self, request: web.BaseRequest) -> str:
        """The id of the access key that has signed the request, or a Bedrock API key given as a
        bearer token.
        """
        return access_key_of(request) or super().key_of(request)

    async def handle(self, request: web.BaseRequest, path: str) -> Reply | None:
        # Without keys of its own, the emulator has no secret with which to compute a signature.
        if self.service.options.keys and access_key_of(request):
            secret = access_key_of(request)
            if not has_signed(request, await request.read(), secret):
                return WireError(
                    403,
                    "The request signature we calculated does not match the signature you "
                    "provided.",
                    code="InvalidSignatureException",
                )
        if request.method == "POST" and (found := _CONVERSE.fullmatch(path)):
            model = found[1]
            return await self.service.live(
                request, self, lambda body: self.parse_request(body, model)
            )
        if request.method == "POST" and (found := _INVOKE.fullmatch(path)):
            parse = self._embedding_parser(found[1])
            return await self.service.live(request, self, parse, self.service.embedder)
        return await self._jobs(request, path)

    # Live calls.

    def parse_request(self, body: Any, model: str) -> ModelRequest | WireError:
        """Checks a Converse body, and translates it for the emulated model."""
        found = converse.parse_request(body, model)
        if isinstance(found, ModelRequest) and not self.service.chat.knows(model):
            return WireError(400, "The provided model identifier is invalid.")
        return found

    def _embedding_parser(self, model: str) -> Callable[[Any], ModelRequest | WireError]:
        return lambda body: embed_invoke.parse_request(body, model, self.service.embedder)

    def reply(self, answer: Answer, parsed: ModelRequest, reply_id: str) -> Any:
        if "data" in answer.body:
            return embed_invoke.reply(answer, parsed.note)
        return converse.reply(answer, parsed)

    def error(self, error: WireError) -> web.Response:
        # Bedrock has no 429 for a full queue: an exceeded quota of jobs is a 400 with its own name.
        is_quota = error.code == "token_limit_exceeded"
        status = 400 if is_quota else error.status
        name = "ServiceQuotaExceededException" if is_quota else _ERRORS.get(status)
        if error.code and error.code.endswith("Exception"):
            name = error.code
        # The header names the error, not the body: botocore reads the name up to the colon.
        named = {"x-amzn-errortype": f"{name or 'InternalServerException'}:http://internal/"}
        body = {"message": error.message}
        return json_response(body, status, {**named, **error.headers})

    def headers(self, number: int, seconds: float | None = None) -> dict[str, str]:
        return {"x-amzn-requestid": f"{self.service.started}-{number}"}

    def answer_headers(self, answer: Answer) -> dict[str, str]:
        is_vector = "data" in answer.body
        return {"x-amzn-bedrock-input-token-count": str(answer.input_tokens)} if is_vector else {}

    # Jobs.

    async def _jobs(self, request: web.BaseRequest, path: str) -> Reply | None:
        if (request.method, path) == ("GET", _JOBS):
            # A list shows ended jobs, too, and their results have to be there by then.
            for job in list(self.service.batches.clockwork.jobs.values()):
                await self._deliver(job if job["dialect"] == self.name else None)
            return await self.service.batches.list_jobs(
                request, self, lambda found: self._page(request, found)
            )
        if (request.method, path) == ("POST", _JOB):
            return await self._create(request)
        if not path.startswith(f"{_JOB}/"):
            return None
        name = path.removeprefix(f"{_JOB}/")
        if request.method == "POST" and name.endswith("/stop"):
            return await self._stop(request, _id_of(name.removesuffix("/stop")))
        return await self._look(request, _id_of(name)) if request.method == "GET" else None

    async def _create(self, request: web.BaseRequest) -> Reply:
        """Creates a job, at most one for each token: a repeat is answered with the existing job."""
        # Checked at every create: tokens are for creates whose first answer was lost.
        known = self._job_of_token(await request.read())
        if known is not None:
            return json_response({"jobArn": known})
        made = await self.service.batches.create(request, self, self._new_job)
        if isinstance(made, web.Response) and made.status == 200 and isinstance(made.body, bytes):
            return json_response({"jobArn": orjson.loads(made.body)["jobArn"]})
        return made

    def _job_of_token(self, raw: bytes) -> str | None:
        try:
            token = orjson.loads(raw).get("clientRequestToken")
        except (ValueError, AttributeError):
            return None
        jobs = self.service.batches.jobs if token else []
        return next((job["jobArn"] for job in jobs if job.get("clientRequestToken") == token), None)

    async def _new_job(self, raw: bytes) -> NewJob | WireError:
        return await asyncio.to_thread(self._read_job, raw)

    def _read_job(self, raw: bytes) -> NewJob | WireError:
        try:
            body = orjson.loads(raw)
        except ValueError:
            body = None
        problem = converse.job_problem(body)
        if problem is not None:
            return WireError(400, problem)
        job_id = uuid.uuid4().hex[:12]
        body |= {"endpoint": EMBED} if embed_invoke.embeds(body["modelId"]) else {}
        part = self.service.batches.part_path(job_id)
        with temporary_file() as copy:
            source = body["inputDataConfig"]["s3InputDataConfig"]["s3Uri"]
            bucket, name = _place(source)
            if not self.service.buckets.store_at(bucket).get_file(name, copy):
                return WireError(400, f"The S3 object {source} does not exist.")
            lines, faulty = self._translate(Path(copy), part, body)
        if faulty is not None:
            why = f"Line {faulty} of the input has no modelInput."
            wrong = {"code": "ValidationException", "message": why, "param": None, "line": faulty}
            return NewJob(job_id, part, own=body, errors=(wrong,))
        least = self.service.options.min_batch_requests
        few = f"The job contains less records ({lines}) than the required minimum of: {least}"
        error = {"code": "ValidationException", "message": few, "param": None, "line": None}
        return NewJob(job_id, part, own=body, errors=(error,) if lines < least else ())

    def _translate(self, source: Path, target: Path, job: dict[str, Any]) -> tuple[int, int | None]:
        """Translates a job's lines. Returns how many there are, and the number of the first faulty
        one, at which it stops; None where all are good.
        """
        count, model = 0, job["modelId"]
        read = self._parser_of(job)
        with open(source, "rb") as lines, open(target, "wb") as file:
            for line in lines:
                count += 1
                try:
                    entry = msgspec.json.decode(line, type=_Entry)
                except msgspec.MsgspecError:
                    return count, count
                parsed = read(entry.modelInput, model)
                # A record whose client gave no id gets one of eleven characters.
                file.write(Line(entry.recordId or f"CALL{count:07}", parsed).encode())
        return count, None

    def _parser_of(self, job: dict[str, Any]) -> Callable[[Any, str], ModelRequest | WireError]:
        if job.get("modelInvocationType") == "Converse":
            return self._parse_job_converse
        if not embed_invoke.embeds(job["modelId"]):
            return self._parse_invoke
        return lambda body, model: embed_invoke.parse_request(body, model, self.service.embedder)

    def _parse_job_converse(self, body: Any, model: str) -> ModelRequest | WireError:
        """Checks and translates a job's Converse body, which must have no tools. Source: Bedrock
        user guide, "Process multiple prompts with batch inference", read 2026-11.
        """
        if isinstance(body, dict) and "toolConfig" in body:
            return WireError(400, "Batch inference doesn't support tool calling with Converse.")
        return self.parse_request(body, model)

    def _parse_invoke(self, body: Any, model: str) -> ModelRequest | WireError:
        """Checks and translates an InvokeModel body for Claude: Anthropic's, without a model."""
        version = body.get("anthropic_version") if isinstance(body, dict) else None
        if version != "bedrock-2023-05-31":
            return WireError(400, "anthropic_version: Field required")
        own = {name: value for name, value in body.items() if name != "anthropic_version"}
        # The job names the model for all of its records.
        if "model" in own:
            return WireError(400, "model: Extra inputs are not permitted")
        parsed: ModelRequest | WireError = self._anthropic.parse_request(
            {**own, "model": model}, True, is_live=False
        )
        if isinstance(parsed, WireError):
            return parsed
        return parsed._replace(note={**parsed.note, "is_message": True})

    @property
    def _anthropic(self) -> Any:
        return self.service.dialects["anthropic"]

    async def _look(self, request: web.BaseRequest, job_id: str) -> Reply:
        await self._deliver(self.service.batches.find(self, job_id))
        return await self.service.batches.look(request, self, job_id)

    async def _deliver(self, job: Job | None) -> None:
        """Writes the results of a job that has ended, before anybody learns that it has."""
        has_results = job is not None and (job["output_file_id"] or job["error_file_id"])
        if job is not None and has_results and not job["own"].get("written"):
            await asyncio.to_thread(self._write, job)
            job["own"]["written"] = True

    def _write(self, job: Job) -> None:
        """Writes the results and their counts into the output folder; the results' file is named
        after the input.
        """
        folder = f"{job['own']['outputDataConfig']['s3OutputDataConfig']['s3Uri']}".rstrip("/")
        source = job["own"]["inputDataConfig"]["s3InputDataConfig"]["s3Uri"].rpartition("/")[2]
        with temporary_file() as path:
            with open(path, "wb") as file:
                for result in self.service.batches.results_of(job):
                    file.write(orjson.dumps(self._result(result)) + b"\n")
            bucket, name = _place(f"{folder}/{job['id']}")
            store = self.service.buckets.store_at(bucket)
            store.put_file(f"{name}/{source}.out", path)
            store.put(f"{name}/manifest.json.out", orjson.dumps(self._counts(job)))

    def _result(self, result: LineResult) -> dict[str, Any]:
        line: dict[str, Any] = {"recordId": result.custom_id, "modelInput": {}}
        if result.answer is not None:
            is_message = (result.parsed.note or {}).get("is_message")
            wire = self._anthropic if is_message else self
            line["modelOutput"] = wire.reply(result.answer, result.parsed, result.reply_id)
            return line
        is_over = result.code == "batch_expired"
        error = result.error or WireError(500, "")
        line["error"] = {
            "errorCode": error.status,
            "errorMessage": error.message,
            "expired": is_over,
            "retryable": error.status >= 500,
        }
        return line

    async def _stop(self, request: web.BaseRequest, job_id: str) -> Reply:
        stopped = await self.service.batches.cancel(request, self, job_id)
        if isinstance(stopped, WireError) or stopped.status != 200:
            return stopped
        return json_response({})

    def _page(self, request: web.BaseRequest, visible: list[Job]) -> Reply:
        query = request.query
        part = query.get("nameContains", "")
        found = [job for job in visible if part in job["own"]["jobName"]]
        page = page_of(found, self.service.options, query, "maxResults", 100, "nextToken", 1_000)
        if page is None:
            return WireError(
                400, "Value at 'maxResults' or 'nextToken' failed to satisfy constraint"
            )
        shown = {"invocationJobSummaries": [self.job(job) for job in page.items]}
        return json_response(shown | ({"nextToken": page.next} if page.next else {}))

    def job(self, job: Job) -> Any:
        own, status = job["own"], self.service.batches.status(job)
        kept = {name: own[name] for name in converse.JOB_FIELDS if name in own and name != "tags"}
        shown: dict[str, Any] = {
            **kept,
            "jobArn": f"{_ACCOUNT}:model-invocation-job/{job['id']}",
            "status": _STATES.get(status, status),
            "submitTime": _iso(job["created"]),
            "lastModifiedTime": _iso(max([job["created"], *job["stamps"].values()])),
            **self._counts(job),
        }
        if job["errors"]:
            shown["message"] = job["errors"][0]["message"]
        return shown

    def _counts(self, job: Job) -> dict[str, int]:
        counts = self.service.batches.counts(job)
        done, failed = counts["completed"], counts["failed"]
        if done is None or failed is None:
            return {}
        return {
            "totalRecordCount": counts["total"] or 0,
            "processedRecordCount": done + failed,
            "successRecordCount": done,
            "errorRecordCount": failed,
        }

    def no_job(self, job_id: str) -> WireError:
        return WireError(404, f"The batch inference job {job_id} can't be found.")


def _id_of(name: str) -> str:
    """The last part of an ARN, or the id itself."""
    return name.rpartition("/")[2]


def _iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat()


def _place(uri: str) -> tuple[str, str]:
    bucket, _, name = uri.removeprefix("s3://").partition("/")
    return f"s3://{bucket}", name
