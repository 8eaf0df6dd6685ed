"""The wire format of OpenAI and Azure: chat completions, embeddings, files, batches, models."""

from __future__ import annotations

import functools
import itertools
import time
import uuid
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import msgspec
from aiohttp import web

from beam_llm.testing.emulator.chat import Answer, misfit_error
from beam_llm.testing.emulator.dialects import Dialect, Job, ModelRequest, NewJob, Reply
from beam_llm.testing.emulator.files import page
from beam_llm.testing.emulator.models import CHAT, EMBED
from beam_llm.testing.emulator.shapes import misfit
from beam_llm.testing.emulator.wire import WireError, json_of, json_response, unknown_model
from beam_llm.testing.emulator.work import without_version

if TYPE_CHECKING:
    from beam_llm.testing.emulator.service import Service

# The longer prefix first: `/openai/v1` is Azure's newer route, `/openai` its older one.
_PREFIXES = ("/openai/v1", "/v1", "/openai")
_DEPLOYMENTS = "/openai/deployments/"
_TERMINAL = frozenset({"completed", "failed", "expired", "cancelled"})
_WINDOW_SECONDS = 86_400
_STAMPS = (
    "in_progress_at",
    "finalizing_at",
    "completed_at",
    "failed_at",
    "expired_at",
    "cancelling_at",
    "cancelled_at",
)
_SNAPSHOTS = {
    "gpt-4.1": "gpt-4.1-2025-04-14",
    "gpt-4.1-mini": "gpt-4.1-mini-2025-04-14",
    "gpt-4.1-nano": "gpt-4.1-nano-2025-04-14",
    "gpt-4o": "gpt-4o-2024-08-06",
    "gpt-4o-mini": "gpt-4o-mini-2024-07-18",
    "gpt-5": "gpt-5-2025-08-07",
    "gpt-5-mini": "gpt-5-mini-2025-08-07",
    "gpt-5-nano": "gpt-5-nano-2025-08-07",
}
"""The model that a job names instead of an alias, once it is validated. Source: recorded traffic,
2026-08."""
_MOST_PAIRS, _MOST_KEY, _MOST_VALUE = 16, 64, 512


class _ExpiresAfter(msgspec.Struct, forbid_unknown_fields=True):
    anchor: Literal["created_at"]
    seconds: Annotated[int, msgspec.Meta(ge=3_600, le=2_592_000)]


class Create(msgspec.Struct):
    """The fields that the creation of a batch requires. Source: SDK openai 3.57
    (BatchCreateParams).
    """

    input_file_id: str
    endpoint: str
    completion_window: str
    output_expires_after: _ExpiresAfter | None = None


class _OwnCreate(Create, forbid_unknown_fields=True):
    """The same for OpenAI and Azure themselves, which allow no further fields."""

    metadata: Any = None


class Wire(Dialect):
    """The first dialect: its routes are at the emulator's root as well, and it answers every path
    that no other dialect has.

    Attributes:
      fields: the fields of a chat request. None accepts any, since many servers have some of their
        own.
      unknown_field: the message that refuses any other field.
      create_shape: the shape of the body that creates a batch.
      upload_purposes: the purposes for which a file may be uploaded; None means any.
      embeds: whether there are live embeddings.
      job_routes: the routes that jobs may be for.
    """

    create_shape: ClassVar[type[Create]] = _OwnCreate
    # Source: SDK openai 3.57 (FilePurpose).
    upload_purposes: ClassVar[tuple[str, ...] | None] = (
        *("assistants", "batch", "fine-tune", "vision", "user_data", "evals"),
    )

    fields: ClassVar[frozenset[str] | None] = None
    unknown_field: ClassVar[str] = "Unknown parameter: '{}'."
    embeds: ClassVar[bool] = True
    job_routes: ClassVar[tuple[str, ...]] = (CHAT, EMBED)
    name = "openai"
    variables = ("OPENAI_BASE_URL", "OPENAI_API_KEY")

    def __init__(self, service: Service) -> None:
        super().__init__(service)
        self._control_calls = itertools.count(10**9)  # live calls have smaller numbers

    @classmethod
    def environment(cls, url: str, key: str) -> dict[str, str]:
        return {"OPENAI_BASE_URL": f"{url}/v1", "OPENAI_API_KEY": key}

    def local_path(self, path: str) -> str | None:
        return path

    def key_of(self, request: web.BaseRequest) -> str:
        return super().key_of(request) or request.headers.get("api-key", "")

    async def handle(self, request: web.BaseRequest, path: str) -> Reply | None:
        path, deployment = local_path(path)
        if path == CHAT and request.method == "POST":
            return await self.service.live(
                request, self, lambda body: self._parse_request(body, deployment)
            )
        if path == EMBED and request.method == "POST" and self.embeds:
            parse = functools.partial(self._parse_embedding_request, deployment=deployment)
            return await self.service.live(request, self, parse, self.service.embedder)
        # Control calls have the headers of live ones, under numbers of their own.
        started = time.perf_counter()
        reply = await self._control(request, path)
        headers = self.headers(next(self._control_calls), time.perf_counter() - started)
        if isinstance(reply, WireError):
            return reply.with_headers(headers)
        if reply is not None and not reply.prepared:
            reply.headers.update(headers)
        return reply

    async def _control(self, request: web.BaseRequest, path: str) -> Reply | None:
        if path == "/models" and request.method == "GET":
            return self._models()
        if path == "/files" or path.startswith("/files/"):
            return await self.service.files.handle(request, path, purposes=self.upload_purposes)
        if path == "/batches" or path.startswith("/batches/"):
            return await self._batches(request, path)
        return None

    def _models(self) -> Reply:
        names = self.service.options.models or ("gpt-4.1-mini", "gpt-4.1", "gpt-4o-mini")
        models = [
            {"id": name, "object": "model", "created": 0, "owned_by": "emulator"} for name in names
        ]
        return json_response({"object": "list", "data": models})

    # Live calls.

    def _parse_request(self, body: Any, deployment: str | None) -> ModelRequest | WireError:
        # Azure's older route names the model in the path, not in the body.
        if deployment and isinstance(body, dict):
            body = {**body, "model": deployment}
        error = self.service.chat.check(body) or self._unknown_field(body)
        if error is None and not self.service.chat.knows(body["model"]):
            error = unknown_model(body["model"])
        return ModelRequest(body) if error is None else error

    def _parse_embedding_request(
        self, body: Any, deployment: str | None
    ) -> ModelRequest | WireError:
        if deployment and isinstance(body, dict):
            body = {**body, "model": deployment}
        error = self.service.embedder.check(body)
        if error is None and not self.service.embedder.knows(body["model"]):
            error = unknown_model(body["model"])
        return ModelRequest(body) if error is None else error

    def _unknown_field(self, body: Mapping[str, Any]) -> WireError | None:
        """The error for the first unknown field; None where there is none."""
        name = next((name for name in body if self.fields and name not in self.fields), None)
        if name is None:
            return None
        message = self.unknown_field.format(name)
        return WireError(400, message, param=name, code="unknown_parameter")

    def recorded_body(self, body: Any, parsed: ModelRequest) -> Any:
        return parsed.body

    def reply(self, answer: Answer, parsed: ModelRequest, reply_id: str) -> Any:
        return answer.body

    def headers(self, number: int, seconds: float | None = None) -> dict[str, str]:
        named = {
            "x-request-id": f"req_{self.service.started}_{number}",
            "openai-version": "2020-10-01",
            "openai-organization": "org-emulator",
        }
        if seconds is not None:
            named.update(self.service.limits.headers())
            named["openai-processing-ms"] = str(int(seconds * 1000))
        return named

    # Batch jobs.

    async def _batches(self, request: web.BaseRequest, path: str) -> Reply | None:
        serve = self.service.batches.serve
        below = path.removeprefix("/batches")
        return await serve(
            request, self, below, self._new_job, lambda found: self._page(request, found)
        )

    async def _new_job(self, raw: bytes) -> NewJob | WireError:
        body = json_of(raw)
        error = self._check_create(body)
        if error is not None:
            return error
        own = {"endpoint": body["endpoint"], "metadata": body.get("metadata")}
        job_id = f"batch_{uuid.uuid4().hex[:24]}"
        return NewJob(job_id, input_file_id=body["input_file_id"], own=own)

    def _check_create(self, body: Any) -> WireError | None:
        if not isinstance(body, dict):
            return WireError(400, "We could not parse the JSON body of your request.")
        if (wrong := misfit(body, self.create_shape)) is not None:
            return misfit_error(wrong)
        if without_version(body["endpoint"]) not in self.job_routes:
            known = " and ".join(f"'/v1{route}'" for route in self.job_routes)
            return WireError(
                400,
                f"Invalid value: '{body['endpoint']}'. Supported: {known}.",
                param="endpoint",
                code="invalid_value",
            )
        # The file is checked when the job is created, its lines only while the job is `validating`.
        return (
            self._check_window(body["completion_window"])
            or self._check_input(body["input_file_id"])
            or _check_metadata(body.get("metadata"))
        )

    def _check_window(self, window: str) -> WireError | None:
        if window == "24h":
            return None
        return WireError(
            400,
            "Invalid value for 'completion_window': only '24h' is supported.",
            param="completion_window",
            code="invalid_value",
        )

    def _check_input(self, file_id: str) -> WireError | None:
        meta = self.service.files.get(file_id)
        if meta is None:
            problem = f"Invalid file id '{file_id}': no such file."
        elif meta["purpose"] != "batch":
            problem = "The input file's purpose must be 'batch'."
        elif not self.service.files.is_processed(meta):
            problem = f"The file '{file_id}' is not processed yet."
        else:
            return None
        return WireError(400, problem, param="input_file_id", code="invalid_request")

    def _page(self, request: web.BaseRequest, visible: list[Job]) -> Reply:
        options = self.service.options
        after, limit = request.query.get("after"), request.query.get("limit")
        # An endless list begins with the existing jobs, and goes on with made-up ones.
        if not options.list_ends and (after is not None or not visible):
            return json_response(_older_page(after or "", options.clock()))
        return page(
            visible,
            after,
            limit,
            20,
            100,
            self.job,
            page_size=options.list_page,
            ends=options.list_ends,
        )

    def job(self, job: Job) -> Any:
        """The batch object in the API's form; it names result files only in a terminal state."""
        over = job["status"] in _TERMINAL
        options, own = self.service.options, job["own"]
        return {
            "id": job["id"],
            "object": "batch",
            "endpoint": own["endpoint"],
            "model": _SNAPSHOTS.get(job["model"], job["model"]),
            "errors": {"object": "list", "data": job["errors"]} if job["errors"] else None,
            "input_file_id": job["input_file_id"] if options.inputs_shown else None,
            "completion_window": "24h",
            "status": self.service.batches.status(job),
            # The files exist earlier, from `finalizing` on, but are not shown before the end.
            "output_file_id": job["output_file_id"] if over else None,
            "error_file_id": job["error_file_id"] if over else None,
            "created_at": int(job["created"]),
            "expires_at": int(job["created"]) + _WINDOW_SECONDS,
            **{
                name: int(job["stamps"][name]) if name in job["stamps"] else None
                for name in _STAMPS
            },
            "request_counts": self.service.batches.counts(job),
            "usage": _usage(job["result"] if over else None),
            "metadata": own["metadata"] if options.names_kept else None,
        }


def _check_metadata(metadata: Any) -> WireError | None:
    if metadata is None:
        return None
    # Source: SDK openai 3.57 (shared_params.Metadata).
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


def _older_page(after: str, now: float) -> dict[str, Any]:
    """A page of an endless list: one job of somebody else's, older than that of the page before."""
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


def _usage(result: dict[str, int] | None) -> dict[str, Any]:
    """The token usage of a job: zeros until it has ended."""
    inputs = result["input_tokens"] if result is not None else 0
    outputs = result["output_tokens"] if result is not None else 0
    return {
        "input_tokens": inputs,
        "input_tokens_details": {"cached_tokens": 0},
        "output_tokens": outputs,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": inputs + outputs,
    }


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
