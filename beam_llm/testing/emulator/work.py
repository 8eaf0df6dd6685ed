"""What a batch job does with its file: it checks all lines, then answers them. Plain functions,
which run in a worker thread.
"""

from __future__ import annotations

import hashlib
import mmap
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import orjson

from beam_llm.testing.emulator.billing import Billing
from beam_llm.testing.emulator.chat import Answer, misfit_error
from beam_llm.testing.emulator.dialects import LineResult, ModelRequest
from beam_llm.testing.emulator.faults import Fault, FaultScript
from beam_llm.testing.emulator.models import Model
from beam_llm.testing.emulator.shapes import misfit
from beam_llm.testing.emulator.wire import WireError, object_of

# Nobody reads more: a file with a mistake on each line may have a million of them.
_MOST_ERRORS = 50
EXPIRED = {
    "code": "batch_expired",
    "message": "This request could not be executed before the completion window expired.",
}
CANCELLED = {
    "code": "batch_cancelled",
    "message": "This request was not executed before the batch was cancelled.",
}


class Stopped(Exception):
    """Raised when the emulator is closing; the work is done again after a restart."""


@dataclass(slots=True)
class FileCheck:
    """The result of validating a file.

    Attributes:
      errors: errors in the form of OpenAI's `errors.data`; empty where the file is good.
      tokens: the input tokens of all lines; 0 where they were not counted.
      texts: the number of texts in all lines, counted where a job's texts are limited.
    """

    lines: int = 0
    model: str | None = None
    tokens: int = 0
    texts: int = 0
    errors: list[dict[str, Any]] = field(default_factory=list)

    def add_error(self, code: str, message: str, param: str | None, line: int | None) -> None:
        if len(self.errors) < _MOST_ERRORS:
            self.errors.append({"code": code, "message": message, "param": param, "line": line})


def check_file(
    path: Path, endpoint: str, chat: Model, most_lines: int, count_tokens: bool
) -> FileCheck:
    """Validates a file as OpenAI does: JSON lines, not too many, each with a unique `custom_id`,
    all for one model and the job's endpoint.
    """
    checked = FileCheck()
    seen: set[bytes] = set()
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            checked.lines = number
            # All lines are counted, for the message; those beyond the limit are not checked.
            if number <= most_lines:
                _check_line(checked, number, line, endpoint, chat, seen, count_tokens)
    if chat.most_job_texts is not None and checked.texts > chat.most_job_texts:
        problem = f"has {checked.texts} inputs; at most {chat.most_job_texts} are allowed."
        checked.add_error("too_many_inputs", f"The input file {problem}", None, None)
    if checked.lines == 0:
        checked.add_error("empty_file", "The input file is empty.", None, None)
    if checked.lines > most_lines:
        checked.add_error(
            "too_many_tasks",
            f"The input file has {checked.lines} requests; at most {most_lines} are allowed.",
            None,
            None,
        )
    return checked


class _Line(msgspec.Struct):
    custom_id: str
    method: str
    url: str
    body: dict[str, Any]


def _request_of(checked: FileCheck, number: int, line: bytes) -> dict[str, Any] | None:
    """The line's request; None where it is faulty, which is added to the errors."""
    request = object_of(line)
    if request is None:
        checked.add_error(
            "invalid_json_line", "This line is not parseable as valid JSON.", None, number
        )
        return None
    for name in ("custom_id", "method", "url", "body"):
        if not request.get(name):
            checked.add_error(
                "missing_required_parameter", f"Missing required parameter: '{name}'.", name, number
            )
            return None
    if (wrong := misfit(request, _Line)) is not None:
        problem = misfit_error(wrong)
        checked.add_error(str(problem.code), problem.message, problem.param, number)
        return None
    return request


def _check_line(
    checked: FileCheck,
    number: int,
    line: bytes,
    endpoint: str,
    chat: Model,
    seen: set[bytes],
    count_tokens: bool,
) -> None:
    request = _request_of(checked, number, line)
    if request is None:
        return
    # A digest where the id is long, since the ids of a million lines are held at once.
    custom_id = request["custom_id"].encode("utf-8", "surrogatepass")
    digest = (
        custom_id if len(custom_id) < 40 else hashlib.blake2b(custom_id, digest_size=16).digest()
    )
    if digest in seen:
        checked.add_error(
            "duplicate_custom_id",
            f"The custom_id '{request['custom_id']}' is used more than once.",
            "custom_id",
            number,
        )
    seen.add(digest)
    if request["method"] != "POST" or without_version(request["url"]) != without_version(endpoint):
        checked.add_error(
            "invalid_url",
            f"The URL provided for this request does not match the batch endpoint {endpoint}.",
            "url",
            number,
        )
    _check_body(checked, number, request["body"], chat)
    counts_texts = chat.most_job_texts is not None
    if (count_tokens or counts_texts) and chat.check(request["body"]) is None:
        checked.tokens += chat.tokens(request["body"]) if count_tokens else 0
        checked.texts += len(chat.read(request["body"]).texts) if counts_texts else 0


def _check_body(checked: FileCheck, number: int, body: Any, chat: Model) -> None:
    model = body.get("model") if isinstance(body, dict) else None
    if not isinstance(model, str):
        checked.add_error("invalid_request", "The request body has no model.", "body.model", number)
        return
    if checked.model is None:
        checked.model = model
        if not chat.knows(model):
            checked.add_error(
                "model_not_found",
                f"The provided model '{model}' is not supported by the Batch API.",
                "body.model",
                number,
            )
    elif model != checked.model:
        checked.add_error(
            "model_mismatch",
            f"All requests of a batch must use one model; found '{model}' beside "
            f"'{checked.model}'.",
            "body.model",
            number,
        )
    if body.get("stream"):
        checked.add_error(
            "streaming_unsupported",
            "Chat Completions: streaming is not supported in the Batch API.",
            "body.stream",
            number,
        )


def survey_file(path: Path, chat: Model, counts_tokens: bool) -> FileCheck:
    """Counts the lines of a dialect's file, which the dialect itself has validated."""
    checked = FileCheck()
    with open(path, "rb") as file:
        for line in file:
            checked.lines += 1
            if checked.model is None or counts_tokens:
                body = orjson.loads(line)["body"]
                checked.model = checked.model or body.get("model")
                if counts_tokens and chat.check(body) is None:
                    checked.tokens += chat.tokens(body)
    return checked


def without_version(url: str) -> str:
    """A URL without its version, so that `/v1/chat/completions` equals Azure's own form of it."""
    return url.removeprefix("/v1")


@dataclass(slots=True)
class Result:
    """The counts of a job's results, besides its files."""

    completed: int = 0
    failed: int = 0
    records: int = 0
    input_tokens: int = 0
    output_tokens: int = 0

    def add(self, answer: Answer) -> None:
        """Adds a line that was answered."""
        self.completed += 1
        self.records += len(answer.texts)
        self.input_tokens += answer.input_tokens
        self.output_tokens += answer.output_tokens


@dataclass(frozen=True, slots=True)
class Assignment:
    """The work of one job.

    Attributes:
      place: the place of the job among all, in the order of their creation. Scripted faults depend
        on it, since ids are random and would make a script strike differently in each run.
      done: how many lines are answered.
      unprocessed: the error of the other lines; None means that the results leave them out.
      in_order: whether result lines are in the order of the input, which no provider promises.
      cuts_last_line: whether the output's last line is cut off.
    """

    batch_id: str
    source: Path
    output: Path
    errors: Path
    bill: Path
    done: int
    unprocessed: Mapping[str, str] | None
    in_order: bool
    cuts_last_line: bool
    seed: int
    place: int


def answer_file(
    task: Assignment,
    chat: Model,
    billing: Billing,
    script: FaultScript,
    is_stopped: Callable[[], bool],
) -> Result:
    """Answers a job's lines, and writes the task's files, which the caller then puts in place
    together. The same task gives the same files.

    Lines are answered in a shuffled order, so that results are shuffled without being held in
    memory.
    """
    result = Result()
    with (
        open(task.output, "wb") as output,
        open(task.errors, "wb") as errors,
        open(task.bill, "wb") as bill,
    ):
        for place, (number, line) in enumerate(_lines(task)):
            # Often enough that the end of a test need not wait, and rarely enough to cost nothing.
            if place % 500 == 0 and is_stopped():
                raise Stopped
            request = orjson.loads(line)
            if place >= task.done:
                if task.unprocessed is not None:
                    errors.write(_error_line(task, number, request, task.unprocessed))
                    result.failed += 1
                continue
            faults = _line_faults(script, task, chat, request, number)
            _answer_line(
                task, number, request, chat, faults, billing, result, (output, errors, bill)
            )
    if task.cuts_last_line:
        _truncate_last_line(task.output)
    return result


def _lines(task: Assignment) -> Iterator[tuple[int, bytes]]:
    """Yields (1-based number, line), shuffled unless they have to stay in order."""
    if task.source.stat().st_size == 0:
        return
    with (
        open(task.source, "rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data,
    ):
        # Only the starts of lines are held; the lines themselves stay in the file.
        starts, start = [0], data.find(b"\n") + 1
        while 0 < start < len(data):
            starts.append(start)
            start = data.find(b"\n", start) + 1
        numbers = list(range(len(starts)))
        # Seeded by the job's id, so that work done again after a kill gives the same files.
        if not task.in_order:
            random.Random(f"{task.seed}{task.batch_id}").shuffle(numbers)
        starts.append(len(data))
        for number in numbers:
            yield number + 1, data[starts[number] : starts[number + 1]]


def _line_faults(
    script: FaultScript, task: Assignment, chat: Model, request: dict[str, Any], number: int
) -> tuple[Fault, ...]:
    if not script.has("line"):
        return ()
    texts = chat.read(request["body"]).texts if chat.check(request["body"]) is None else ()
    return script.strike("line", texts, f"{task.place} {texts or request['custom_id']}", number)


def _answer_line(
    task: Assignment,
    number: int,
    request: dict[str, Any],
    chat: Model,
    faults: tuple[Fault, ...],
    billing: Billing,
    result: Result,
    files: tuple[Any, Any, Any],
) -> None:
    output, errors, bill = files
    body = request["body"]
    by_kind = {fault.kind: fault for fault in faults}
    if "line_missing" in by_kind:
        result.failed += 1
        return
    if "line_error" in by_kind:
        errors.write(_error_line(task, number, request, _scripted_error(by_kind["line_error"])))
        result.failed += 1
        return
    # A conflict is two answers: the first is the good one, the second is written below.
    usual = tuple(fault for fault in faults if fault.kind != "line_conflicting")
    answer = answer_line(chat, request, usual, f"{task.batch_id}-{number}")
    line = _reply_line(task, number, request, answer)
    if answer.status != 200:
        errors.write(line)
        result.failed += 1
        return
    output.write(line)
    result.add(answer)
    # Billed once for each line that was answered, however often its answer is written.
    bill.write(billing.line(answer.texts, body, answer.input_tokens, answer.output_tokens))
    if "line_duplicate" in by_kind:
        output.write(line)
    if "line_conflicting" in by_kind:
        other = answer_line(chat, request, faults, f"{task.batch_id}-{number}-again")
        output.write(_reply_line(task, number, request, other))
    if "line_unknown" in by_kind:
        unknown = {**request, "custom_id": f"unknown-{number}"}
        output.write(_reply_line(task, number, unknown, answer))


def _scripted_error(fault: Fault) -> dict[str, str]:
    return {
        "code": fault.code or "server_error",
        "message": fault.message or "The server had an error while processing your request.",
    }


def answer_line(
    chat: Model, request: dict[str, Any], faults: tuple[Fault, ...], reply_id: str
) -> Answer:
    """Checks and answers a line's request."""
    refused = request.get("refused")
    body = request["body"]
    error = chat.check(body) if refused is None else WireError(**refused)
    if error is not None:
        return Answer((), error.status, error.body, error=error)
    return chat.answer(body, chat.read(body), faults, reply_id)


def _reply_line(task: Assignment, number: int, request: Any, answer: Answer) -> bytes:
    response = {
        "status_code": answer.status,
        "request_id": f"req-{task.batch_id}-{number}",
        "body": answer.body,
    }
    return _result_line(task, number, request, response, None, answer.error)


def _error_line(task: Assignment, number: int, request: Any, error: Mapping[str, str]) -> bytes:
    return _result_line(task, number, request, None, error)


def _result_line(
    task: Assignment,
    number: int,
    request: dict[str, Any],
    response: Any,
    error: Any,
    refused: WireError | None = None,
) -> bytes:
    line = {
        "id": f"batch_req_{task.batch_id}-{number}",
        "custom_id": request["custom_id"],
        "response": response,
        "error": error,
    }
    # OpenAI's own lines are sent exactly as they are here, so they must hold nothing else.
    if "note" in request or "refused" in request:  # a dialect's line, which is read again
        line["note"] = request.get("note")
        line["refused"] = refused._asdict() if refused is not None else None
    return orjson.dumps(line) + b"\n"


def line_results(path: Path) -> Iterator[LineResult]:
    """Reads a result file of a dialect's job."""
    with open(path, "rb") as file:
        for line in file:
            yield _line_result(orjson.loads(line))


def _line_result(line: dict[str, Any]) -> LineResult:
    response, error, refused = line["response"], line["error"], line["refused"]
    answer = code = None
    failure = WireError(**refused) if refused is not None else None
    if failure is None and response is not None:
        usage = response["body"]["usage"]
        answer = Answer(
            (), 200, response["body"], usage["prompt_tokens"], usage.get("completion_tokens", 0)
        )
    elif error is not None:
        code = error["code"]
        failure = WireError(500, error["message"], "server_error", code)
    reply_id = line["id"].removeprefix("batch_req_")
    return LineResult(
        line["custom_id"], reply_id, answer, failure, code, ModelRequest({}, line["note"])
    )


def _truncate_last_line(path: Path) -> None:
    """Removes the second half of the last line."""
    with open(path, "rb+") as file:
        data = file.read()
        last = data.rstrip(b"\n").rfind(b"\n") + 1
        file.truncate(last + (len(data) - last) // 2)
