"""The input and the results of batch prediction jobs, as objects of a bucket.

<name>/input.jsonl   the requests, each with its custom_id as a label; or texts to be embedded
<name>/index         a line for each request: its digest, its custom_id
<name>/output/…      Vertex AI's results: prediction-model-<time>/predictions.jsonl, or several

A result line echoes its request. It belongs to the request whose label it has; where labels are
dropped, to an equal one. A text to be embedded has no place for a label: its vector belongs to a
request for exactly the text that is echoed. Source: Vertex AI, "Batch inference from Cloud
Storage" and "Get batch text embeddings predictions" (`{"instance": …, "predictions": […], "status":
""}`), and googleapis/python-aiplatform#2621 (ids that get lost), read 2026-11.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import IO, Any, NamedTuple, TypeVar

import orjson

from beam_llm.errors import Aborted, CallError, Kind, Rejected, Retryable
from beam_llm.protocols import Store
from beam_llm.providers.gemini.job_objects import object_in
from beam_llm.providers.reply_json import loads_answer
from beam_llm.providers.result_files import is_complete_line
from beam_llm.providers.typed import loads
from beam_llm.providers.vertex.credentials import error_of
from beam_llm.providers.vertex.forms import LABEL, REQUESTS, TEXTS, Form
from beam_llm.stores import store_at, temporary_file

T = TypeVar("T")

INPUT, INDEX, OUTPUT = "input.jsonl", "index", "output"
# Large enough that requests to the bucket don't count, small beside a worker's memory.
_PIECE_BYTES = 16_000_000
_INCREMENTAL = "incremental_predictions"
# Without the echoed request, which is most of a line and of no use once its key is known.
_KEPT_FIELDS = ("response", "status", "error")


class RequestIds(NamedTuple):
    """The ids of a job's requests.

    Attributes:
      digests: custom_id → the digest of its request.
      waiting: digest → the custom_ids of its requests.
    """

    digests: dict[str, str]
    waiting: dict[str, deque[str]]


def run_in_storage(location: str, work: Callable[[], T]) -> T:
    """Runs `work` on objects; Cloud Storage's errors become CallErrors, without their texts."""
    try:
        return work()
    except CallError:
        raise
    except Exception as error:  # of a client library, its credentials or the network
        # Only its class is kept: the text of such an error may quote headers, and a token in them.
        status, name = getattr(error, "code", None), type(error).__name__
        refused = error_of(error)
    # Raised out here, so that `error` does not become the new one's context.
    if refused is not None:
        raise refused
    if status in (400, 401, 403, 404):  # a store doesn't raise for an object that is gone
        raise Aborted(Kind.ABORTED, f"there is no bucket for {location}, or no access ({name})")
    raise Retryable(Kind.UNAVAILABLE, f"the objects at {location} can't be reached ({name})")


def put_input(store: Store, name: str, lines: Path, form: Form = REQUESTS) -> str:
    """Writes a job's input and index; returns the input's URI.

    Args:
      lines: as `VertexBatches.encode_line` gives them.
    """
    with temporary_file() as requests, temporary_file() as index:
        with (
            open(lines, "rb") as line_file,
            open(requests, "wb") as request_file,
            open(index, "wb") as index_file,
        ):
            for line in line_file:
                custom_id, request = split_line(line)
                request_file.write(form.line_of(custom_id, request))
                digest = form.digest_of(orjson.loads(request))
                index_file.write(f"{digest} {custom_id}\n".encode())
        # The index first, so that there is never an input without the index that its results need.
        for part, path in ((INDEX, index), (INPUT, requests)):
            run_in_storage(store.location, partial(store.put_file, f"{name}/{part}", path))
    return f"{store.location}/{name}/{INPUT}"


def split_line(line: bytes) -> tuple[str, bytes]:
    """The custom_id and the request of a line that `VertexBatches.encode_line` made."""
    head, _, request = line.rstrip(b"\n").partition(b'","request":')
    return head.removeprefix(b'{"key":"').decode(), request[:-1]


def job_name_in(store: Store, uri: str | None, rest: str) -> str | None:
    """The job's name in a URI `<location>/<name>/<rest>` of this store; None for any other URI."""
    head, tail = f"{store.location}/", f"/{rest}"
    if uri is None or not uri.startswith(head) or not uri.endswith(tail):
        return None
    name = uri[len(head) : -len(tail)]
    return name if re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*", name) else None


def fetch_results(
    store: Store, name: str, staged: str, path: Path, most_bytes: int, form: Form = REQUESTS
) -> None:
    """Writes all result lines, each with its key, in the form of the Gemini API's.

    Args:
      name: the job's name.
      staged: the name of its input; an attempt at a job may take another attempt's.

    Raises:
      Rejected: there is no index of that job, or its results are larger than `most_bytes`.
    """
    run_in_storage(store.location, lambda: _fetch(store, name, staged, path, most_bytes, form))


def _fetch(store: Store, name: str, staged: str, path: Path, most_bytes: int, form: Form) -> None:
    ids, bytes_left, cut = _read_index(store, staged), most_bytes, b""
    with open(path, "wb") as file:
        for folder, object_name in _result_objects(store, f"{name}/{OUTPUT}/"):
            for data in _pieces(folder, object_name):
                bytes_left -= len(data)
                if bytes_left < 0:
                    raise Rejected(
                        Kind.TOO_LARGE,
                        f"the results are larger than {most_bytes:,} bytes (max_file_bytes)",
                    )
                cut += _write_lines(data, ids, file, form)
        file.write(cut)


def _read_index(store: Store, name: str) -> RequestIds:
    data = store.get(f"{name}/{INDEX}")
    if data is None:
        raise Rejected(Kind.REJECTED, f"the job's index at {store.location}/{name} is gone")
    ids = RequestIds({}, {})
    for line in data.decode().split("\n")[:-1]:
        digest, _, custom_id = line.partition(" ")
        ids.digests[custom_id] = digest
        ids.waiting.setdefault(digest, deque()).append(custom_id)
    return ids


def _result_objects(store: Store, prefix: str) -> Iterator[tuple[Store, str]]:
    """Each result file, as a store at its folder and a name in it: Vertex AI names its folders by
    times, whose colons this package's object names can't have.

    Incremental results (`incremental_predictions`) are read only if the final ones are missing, as
    those of a cancelled job are.
    """
    names = [name for name in store.list(prefix) if name.endswith(".jsonl")]
    # Otherwise each answer would come twice.
    final = [name for name in names if _INCREMENTAL not in name[len(prefix) :]]
    for name in final or names:
        folder, _, last = name.rpartition("/")
        yield store_at(f"{store.location}/{folder}"), last


def _pieces(store: Store, name: str) -> Iterator[bytes]:
    """The object in pieces of complete lines, each with its newline; a cut line comes last."""
    start, rest = 0, b""
    while data := store.read(name, start, start + _PIECE_BYTES):
        start += len(data)
        complete, newline, rest = (rest + data).rpartition(b"\n")
        if newline:
            yield complete + newline
    if rest:
        yield rest + b"\n" if is_complete_line(rest) else rest


def _write_lines(data: bytes, ids: RequestIds, file: IO[bytes], form: Form) -> bytes:
    """Writes the lines. Returns a cut last one, since another object's lines may follow."""
    *lines, cut = data.split(b"\n")
    for line in lines:
        file.write(_keyed_line(line, ids, form))
    return cut


def _keyed_line(line: bytes, ids: RequestIds, form: Form) -> bytes:
    """The line with the key of its request; unchanged if that isn't known."""
    try:
        # Contradictory fields of a vector are noticed here: the line written has each field once.
        found = object_in((loads_answer if form is TEXTS else loads)(line))
        key = _key_of(found.get(form.echo), ids, form)
        if key is None:
            return line + b"\n"
        kept = {name: found[name] for name in _KEPT_FIELDS if name in found}
        return orjson.dumps({"key": key, **kept, **form.response_of(found)}) + b"\n"
    except (ValueError, TypeError, RecursionError):
        return line + b"\n"


def _key_of(request: Any, ids: RequestIds, form: Form) -> str | None:
    """The id that the label names, if the job has it; otherwise one of an equal request: those take
    turns. None if there is none, or if label and request don't belong together.
    """
    digest = form.digest_of(request)
    waiting = ids.waiting.get(digest)
    label = object_in(object_in(request).get("labels")).get(LABEL)
    if isinstance(label, str) and label in ids.digests:
        return label if waiting is None or ids.digests[label] == digest else None
    if waiting is None:
        return None
    # Equal requests are interchangeable, as long as each of them gets one of the answers.
    waiting.rotate(-1)
    return waiting[-1]


def forget_input(store: Store, name: str) -> None:
    """Deletes a job's input and index."""
    for part in (INPUT, INDEX):
        run_in_storage(store.location, partial(store.delete, f"{name}/{part}"))


def forget_results(store: Store, name: str) -> None:
    """Deletes all files of a job's results."""

    def forget() -> None:
        for found in list(store.list(f"{name}/{OUTPUT}/")):
            folder, _, last = found.rpartition("/")
            store_at(f"{store.location}/{folder}").delete(last)

    run_in_storage(store.location, forget)
