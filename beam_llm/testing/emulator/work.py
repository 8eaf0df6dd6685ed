"""What a batch job does with its file: check every line, then answer them. Plain functions, run in
a worker thread.
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

# More would not be read: a file with one mistake on each line has a million of them.
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
    """The emulator is closing; the work is done again in its next life."""


@dataclass(slots=True)
class Checked:
    """A file, validated.

    Attributes:
      errors: OpenAI's `errors.data`; empty where the file is good.
      tokens: input tokens of all lines; 0 where nobody asked.
      texts: of all lines, where a job may have so many only.
    """

    lines: int = 0
    model: str | None = None
    tokens: int = 0
    texts: int = 0
    errors: list[dict[str, Any]] = field(default_factory=list)

    def complain(self, code: str, message: str, param: str | None, line: int | None) -> None:
        if len(self.errors) < _MOST_ERRORS:
            self.errors.append({"code": code, "message": message, "param": param, "line": line})


def check_file(
    path: Path, endpoint: str, chat: Model, most_lines: int, count_tokens: bool
) -> Checked:
    """Validates like OpenAI: JSON lines, a unique `custom_id` each, one model, the job's endpoint,
    not too many.
    """
    checked = Checked()
    seen: set[bytes] = set()
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            checked.lines = number
            # All lines are counted, for the message; those beyond the limit are not looked at.
            if number <= most_lines:
                _check_line(checked, number, line, endpoint, chat, seen, count_tokens)
    if chat.most_job_texts is not None and checked.texts > chat.most_job_texts:
        problem = f"has {checked.texts} inputs; at most {chat.most_job_texts} are allowed."
        checked.complain("too_many_inputs", f"The input file {problem}", None, None)
    if checked.lines == 0:
        checked.complain("empty_file", "The input file is empty.", None, None)
    if checked.lines > most_lines:
        checked.complain(
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


def _request_of(checked: Checked, number: int, line: bytes) -> dict[str, Any] | None:
    """The line's request; None where it is none, which is complained of."""
    request = object_of(line)
    if request is None:
        checked.complain(
            "invalid_json_line", "This line is not parseable as valid JSON.", None, number
        )
        return None
    for name in ("custom_id", "method", "url", "body"):
        if not request.get(name):
            checked.complain(
                "missing_required_parameter", f"Missing required parameter: '{name}'.", name, number
            )
            return None
    if (wrong := misfit(request, _Line)) is not None:
        problem = misfit_error(wrong)
        checked.complain(str(problem.code), problem.message, problem.param, number)
        return None
    return request


def _check_line(
    checked: Checked,
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
    # A digest where the id is longer: the ids of a million lines are held at once.
    custom_id = request["custom_id"].encode("utf-8", "surrogatepass")
    digest = (
        custom_id if len(custom_id) < 40 else hashlib.blake2b(custom_id, digest_size=16).digest()
    )
    if digest in seen:
        checked.complain(
            "duplicate_custom_id",
            f"The custom_id '{request['custom_id']}' is used more than once.",
            "custom_id",
            number,
        )
    seen.add(digest)
    if request["method"] != "POST" or bare(request["url"]) != bare(endpoint):
        checked.complain(
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


def _check_body(checked: Checked, number: int, body: Any, chat: Model) -> None:
    model = body.get("model") if isinstance(body, dict) else None
    if not isinstance(model, str):
        checked.complain("invalid_request", "The request body has no model.", "body.model", number)
        return
    if checked.model is None:
        checked.model = model
        if not chat.knows(model):
            checked.complain(
                "model_not_found",
                f"The provided model '{model}' is not supported by the Batch API.",
                "body.model",
                number,
            )
    elif model != checked.model:
        checked.complain(
            "model_mismatch",
            f"All requests of a batch must use one model; found '{model}' beside "
            f"'{checked.model}'.",
            "body.model",
            number,
        )
    if body.get("stream"):
        checked.complain(
            "streaming_unsupported",
            "Chat Completions: streaming is not supported in the Batch API.",
            "body.stream",
            number,
        )


def survey_file(path: Path, chat: Model, counts_tokens: bool) -> Checked:
    """A dialect's lines, counted: it has validated them itself."""
    checked = Checked()
    with open(path, "rb") as file:
        for line in file:
            checked.lines += 1
            if checked.model is None or counts_tokens:
                body = orjson.loads(line)["body"]
                checked.model = checked.model or body.get("model")
                if counts_tokens and chat.check(body) is None:
                    checked.tokens += chat.tokens(body)
    return checked


def bare(url: str) -> str:
    """Without the version: `/v1/chat/completions` and Azure's `/chat/completions` are one."""
    return url.removeprefix("/v1")


@dataclass(slots=True)
class Result:
    """What a job came to, beside its files."""

    completed: int = 0
    failed: int = 0
    records: int = 0
    input_tokens: int = 0
    output_tokens: int = 0

    def add(self, answer: Answer) -> None:
        """Counts a line that was answered."""
        self.completed += 1
        self.records += len(answer.texts)
        self.input_tokens += answer.input_tokens
        self.output_tokens += answer.output_tokens


@dataclass(frozen=True, slots=True)
class Assignment:
    """One job's work.

    Attributes:
      place: of the job among all, in the order of their creation. Ids are random, so a script that
        met them would strike anew each run.
      done: how many lines are answered.
      undone: the error of the others; None: nothing is said of them.
      in_order: result lines in the order of the input, which no provider promises.
      cut: the output's last line is cut.
    """

    batch_id: str
    source: Path
    output: Path
    errors: Path
    bill: Path
    done: int
    undone: Mapping[str, str] | None
    in_order: bool
    cut: bool
    seed: int
    place: int


def answer_file(
    task: Assignment,
    chat: Model,
    billing: Billing,
    script: FaultScript,
    stopped: Callable[[], bool],
) -> Result:
    """Answers the lines into the task's files, which the caller then takes in together. The same
    task gives the same files.

    Lines are taken in a shuffled order, so results are shuffled without being held in memory.
    """
    result = Result()
    with (
        open(task.output, "wb") as output,
        open(task.errors, "wb") as errors,
        open(task.bill, "wb") as bill,
    ):
        for place, (number, line) in enumerate(_lines(task)):
            # Often enough that a test's end does not wait, seldom enough to cost nothing.
            if place % 500 == 0 and stopped():
                raise Stopped
            request = orjson.loads(line)
            if place >= task.done:
                if task.undone is not None:
                    errors.write(_error_line(task, number, request, task.undone))
                    result.failed += 1
                continue
            faults = _line_faults(script, task, chat, request, number)
            _answer_line(
                task, number, request, chat, faults, billing, result, (output, errors, bill)
            )
    if task.cut:
        _truncate_last_line(task.output)
    return result


def _lines(task: Assignment) -> Iterator[tuple[int, bytes]]:
    """(1-based number, line), shuffled unless they are to stay in order."""
    if task.source.stat().st_size == 0:
        return
    with (
        open(task.source, "rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data,
    ):
        # Only where lines start is held; the lines themselves stay in the file.
        starts, start = [0], data.find(b"\n") + 1
        while 0 < start < len(data):
            starts.append(start)
            start = data.find(b"\n", start) + 1
        numbers = list(range(len(starts)))
        # By the job's id, so that the work done again after a kill gives the same files.
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
    # A conflict is two answers: the first is the good one, the second is made below.
    usual = tuple(fault for fault in faults if fault.kind != "line_conflicting")
    answer = answer_line(chat, request, usual, f"{task.batch_id}-{number}")
    line = _reply_line(task, number, request, answer)
    if answer.status != 200:
        errors.write(line)
        result.failed += 1
        return
    output.write(line)
    result.add(answer)
    # Once for each line that was answered, however often its answer is written.
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
    """A line's request, checked and answered."""
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
    # OpenAI's own lines are sent as they are here, so they must have nothing else in them.
    if "note" in request or "refused" in request:  # of a dialect, which reads them again
        line["note"] = request.get("note")
        line["refused"] = refused._asdict() if refused is not None else None
    return orjson.dumps(line) + b"\n"


def line_results(path: Path) -> Iterator[LineResult]:
    """A result file of a dialect's job, read again."""
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
    """Takes the second half of the last line away."""
    with open(path, "rb+") as file:
        data = file.read()
        last = data.rstrip(b"\n").rfind(b"\n") + 1
        file.truncate(last + (len(data) - last) // 2)
