"""Dialects, the providers' wire formats: what a dialect has to implement, and how it is mounted on
the emulator.

A dialect is a file in this folder, named in `NAMES`, with a class `Wire`:

    class Wire(Dialect):  # testing/emulator/acme.py, mounted at http://127.0.0.1:PORT/acme
        name = "acme"
        variables = ("ACME_BASE_URL", "ACME_API_KEY")

        async def handle(self, request: web.BaseRequest, path: str) -> Reply | None:
            if (request.method, path) == ("POST", "/v1/ask"):
                return await self.service.live(request, self, self._parse)
            return None  # no such route

        def _parse(self, body: Any) -> ModelRequest | WireError:  # strict: name what is unknown
            for name in set(body) - {"model", "question"}:
                return WireError(400, f"no such field: {name}")
            messages = [{"role": "user", "content": body["question"]}]
            return ModelRequest({"model": body["model"], "messages": messages})

        def reply(self, answer: Answer, parsed: ModelRequest, reply_id: str) -> Any:
            return {"id": reply_id, "text": answer.words, "why": answer.finish}

        def error(self, error: WireError) -> web.Response:
            return json_response({"oops": error.message}, error.status, error.headers)

The service handles faults, limits, latency, bills and recorded requests (`Service.live`), and the
states of jobs (`Batches`). A dialect's routes for jobs call `create`, `look`, `list_jobs`,
`cancel`, `delete` and `results`, which leave only the wire format to the dialect.

        async def _new_job(self, raw: bytes) -> NewJob | WireError:  # for `batches.create`
            job_id = f"job-{uuid.uuid4().hex}"
            part = self.service.batches.part_path(job_id)
            with open(part, "wb") as file:
                for entry in orjson.loads(raw)["tasks"]:
                    file.write(Line(entry["name"], self._parse(entry["ask"])).encode())
            return NewJob(job_id, part, own={"label": "mine"})

        def job(self, job: Job) -> Any:
            counts = self.service.batches.counts(job)
            return {"id": job["id"], "state": self.service.batches.status(job), **counts}

        def _result(self, result: LineResult) -> Any:  # for `batches.results`
            if result.answer is not None:
                reply = self.reply(result.answer, result.parsed, "")
                return {"name": result.custom_id, "is": reply}
            return {"name": result.custom_id, "went_wrong": result.code or result.error.message}

Files that a dialect's clients upload can be kept in `service.files` (`part_path`, `add`, `get`,
`path`, `remove`); `NewJob.own` may name them.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import orjson
from aiohttp import web

from beam_llm.testing.emulator.wire import WireError, missing_key, wrong_key

if TYPE_CHECKING:
    from beam_llm.testing.emulator.chat import Answer
    from beam_llm.testing.emulator.service import Service

# Each of these differs only a little from OpenAI's dialect, so they share a module.
_FAMILY = ("groq", "together", "deepinfra")

NAMES = (
    "openai",
    "anthropic",
    "gemini",
    "vertex",
    "mistral",
    "bedrock",
    *_FAMILY,
    "fireworks",
    "openrouter",
    "xai",
    "responses",
)
"""The dialects, each in a module of this folder or in one with others of its family. The first
dialect gets the routes that no other has.
"""

Reply = web.StreamResponse | WireError
"""What a route returns: a response, or an error that the dialect then translates."""

Job = dict[str, Any]
"""A job as `Batches` keeps it. It is a dict because it is written to a JSON file at every step."""


class ModelRequest(NamedTuple):
    """A request that is translated for the emulated model.

    Attributes:
      body: OpenAI's chat completion body, which the emulated model reads. Set `strict: False` in a
        `response_format`, or OpenAI's rules will be enforced.
      note: what the dialect needs to write the reply; JSON.
    """

    body: dict[str, Any]
    note: Any = None


class Line(NamedTuple):
    """One request of a job, as the dialect has read it. A request that it refused ends as an error
    of its own.

    Attributes:
      custom_id: None where the client gave none and the API doesn't require one.
    """

    custom_id: str | None
    parsed: ModelRequest | WireError

    def encode(self) -> bytes:
        """The line, with a newline, in OpenAI's form, which `Batches` works on."""
        # With a method and a URL, so that all dialects' lines can be read in the same way.
        line: dict[str, Any] = {
            "custom_id": self.custom_id,
            "method": "POST",
            "url": "/v1/chat/completions",
        }
        if isinstance(self.parsed, WireError):
            line.update(body={}, refused=self.parsed._asdict())
        else:
            line.update(body=self.parsed.body, note=self.parsed.note)
        return orjson.dumps(line) + b"\n"


class LineResult(NamedTuple):
    """How one request of a job ended.

    Attributes:
      answer: the model's answer; None where there is none.
      error: the error of a request that was refused or failed, else None.
      code: `batch_expired` or `batch_cancelled` where the request was never processed, or the code
        of its failure.
      parsed: the request, without its body.
    """

    custom_id: str | None
    reply_id: str
    answer: Answer | None
    error: WireError | None
    code: str | None
    parsed: ModelRequest


@dataclass(frozen=True, slots=True)
class NewJob:
    """A job that a dialect's client asks for in a create.

    Attributes:
      job_id: an id that looks like the provider's own.
      lines: a file of encoded `Line`s, which the job takes over. None means that the job works on
        the file `input_file_id` of `service.files`, which holds lines in OpenAI's form.
      own: what the dialect needs for the job later (a label, metadata, a model); JSON.
      errors: validation errors, in OpenAI's form, with which the job fails.
    """

    job_id: str
    lines: Path | None = None
    input_file_id: str | None = None
    own: dict[str, Any] = field(default_factory=dict)
    errors: tuple[dict[str, Any], ...] = ()


class Dialect:
    """One provider's wire format. See the module's docstring for how to write one.

    Attributes:
      name: the name of the provider, and of the path prefix under which the dialect is mounted.
      variables: the environment variables of the base URL and of the key.
      path: the path that a base URL has after the prefix.
      shows_cancelled: whether lines that a cancelled job did not process have results, too.
      service: the service on which it is mounted, with options, limits, faults and jobs.
    """

    name: ClassVar[str]
    variables: ClassVar[tuple[str, str]]
    path: ClassVar[str] = ""
    shows_cancelled: ClassVar[bool] = False

    def __init__(self, service: Service) -> None:
        self.service = service

    @classmethod
    def environment(cls, url: str, key: str) -> dict[str, str]:
        """Environment variables that direct this provider's clients to the emulator at `url`."""
        base_url, api_key = cls.variables
        return {base_url: f"{url}/{cls.name}{cls.path}", api_key: key}

    def local_path(self, path: str) -> str | None:
        """The path below the prefix; None for a path of another dialect."""
        # Compared with a slash at its end: `/xai2` is not a path below `/xai`.
        prefix = f"/{self.name}"
        return path[len(prefix) :] if path.startswith(f"{prefix}/") else None

    def refuse(self, request: web.BaseRequest) -> WireError | None:
        """The error for a request that is wrong whatever its route is, such as a wrong key or
        version; else None.
        """
        # None accepts any key, and an empty tuple requires no key: both are common in tests.
        keys = self.service.options.keys
        if keys == ():
            return None
        key = self.key_of(request)
        if not key:
            return missing_key()
        return wrong_key() if keys is not None and key not in keys else None

    def key_of(self, request: web.BaseRequest) -> str:
        """The API key of the request; empty where it has none."""
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        return token.strip() if scheme.lower() == "bearer" else ""

    async def handle(self, request: web.BaseRequest, path: str) -> Reply | None:
        """The reply to a request that was not refused; None where there is no such route."""
        raise NotImplementedError

    def recorded_body(self, body: Any, parsed: ModelRequest) -> Any:
        """The body of a live call that `Emulator.requests` keeps."""
        return body

    def reply(self, answer: Answer, parsed: ModelRequest, reply_id: str) -> Any:
        """A good answer in this provider's form; JSON."""
        raise NotImplementedError

    def error(self, error: WireError) -> web.Response:
        """An error in this provider's form. `error.code` tells scripted errors apart."""
        return error.response()

    def headers(self, number: int, seconds: float | None = None) -> dict[str, str]:
        """The headers of the reply to the call with this number.

        Args:
          seconds: how long the call has taken so far; None where it was refused before any work.
        """
        return {}

    def answer_headers(self, answer: Answer) -> dict[str, str]:
        """The headers of a good answer, in addition to `headers`."""
        return {}

    def job(self, job: Job) -> Any:
        """A job in this provider's form; JSON."""
        raise NotImplementedError

    def no_job(self, job_id: str) -> WireError:
        """The error for an unknown job."""
        return WireError(404, f"No batch found with id '{job_id}'.")


def dialect_class(name: str) -> type[Dialect]:
    """The dialect of a name in `NAMES`. Raises ValueError for any other name."""
    if name not in NAMES:
        raise ValueError(f"the emulator has no dialect {name!r}; it has {', '.join(NAMES)}")
    # Loaded on first use, since a client's environment needs only one dialect.
    module = "family" if name in _FAMILY else name
    loaded = importlib.import_module(f"beam_llm.testing.emulator.{module}")
    found: type[Dialect] = loaded.WIRES[name] if name in _FAMILY else loaded.Wire
    return found
