"""The input and the results of batch prediction jobs, as objects of a bucket.

<name>/input.jsonl   the requests, each with its custom_id as a label; or texts to be embedded
<name>/index         a line for each: digest of what is asked, custom_id
<name>/output/…      Vertex AI's results: prediction-model-<time>/predictions.jsonl, or several

A result line echoes its request. It belongs to the request whose label it has; where labels are
dropped, to one that asks the same. A text to be embedded has no place for a label: its vector
belongs to whoever has the very text that is echoed. Source: Vertex AI, "Batch inference from Cloud
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
_AT_ONCE_BYTES = 16_000_000
_ON_THE_WAY = "incremental_predictions"
# Without the echoed request, which is most of a line and of no use once its key is known.
_KEPT = ("response", "status", "error")


class Ids(NamedTuple):
    """What a job's lines ask.

    Attributes:
      digests: custom_id → digest of what it asks.
      waiting: digest → the custom_ids that ask it.
    """

    digests: dict[str, str]
    waiting: dict[str, deque[str]]


def in_storage(location: str, work: Callable[[], T]) -> T:
    """Runs `work` on objects; Cloud Storage's errors become CallErrors, without their texts."""
    try:
        return work()
    except CallError:
        raise
    except Exception as error:  # of a client library, of its credentials, of the network
        # Only its class is kept: the text of such an error may quote headers, and a token in them.
        status, name = getattr(error, "code", None), type(error).__name__
        refused = error_of(error)
    # Out here, so that it is not the new error's context.
    if refused is not None:
        raise refused
    if status in (400, 401, 403, 404):  # an object that is gone is no error of a store's
        raise Aborted(Kind.ABORTED, f"there is no bucket for {location}, or no access ({name})")
    raise Retryable(Kind.UNAVAILABLE, f"the objects at {location} can't be reached ({name})")


def put_input(store: Store, name: str, lines: Path, form: Form = REQUESTS) -> str:
    """Writes a job's input and index; returns the input's URI.

    Args:
      lines: as `VertexBatches.encode_line` gives them.
    """
    with temporary_file() as requests, temporary_file() as index:
        with open(lines, "rb") as given, open(requests, "wb") as made, open(index, "wb") as ids:
            for line in given:
                custom_id, request = parts_of(line)
                made.write(form.line_of(custom_id, request))
                digest = form.digest_of(orjson.loads(request))
                ids.write(f"{digest} {custom_id}\n".encode())
        # The index first: an input is only ever seen with the index that its results need.
        for part, path in ((INDEX, index), (INPUT, requests)):
            in_storage(store.location, partial(store.put_file, f"{name}/{part}", path))
    return f"{store.location}/{name}/{INPUT}"


def parts_of(line: bytes) -> tuple[str, bytes]:
    """The custom_id and the request of a line that `VertexBatches.encode_line` made."""
    head, _, request = line.rstrip(b"\n").partition(b'","request":')
    return head.removeprefix(b'{"key":"').decode(), request[:-1]


def name_in(store: Store, uri: str | None, rest: str) -> str | None:
    """The job's name in a URI `<location>/<name>/<rest>` of this store; None for any other URI."""
    head, tail = f"{store.location}/", f"/{rest}"
    if uri is None or not uri.startswith(head) or not uri.endswith(tail):
        return None
    name = uri[len(head) : -len(tail)]
    return name if re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*", name) else None


def fetch_results(
    store: Store, name: str, staged: str, path: Path, most_bytes: int, form: Form = REQUESTS
) -> None:
    """Writes all result lines, each with its key, as lines of the Gemini API's.

    Args:
      name: of the job.
      staged: of its input; an attempt at a job may take another's.

    Raises:
      Rejected: there is no index of that job, or its results are larger than `most_bytes`.
    """
    in_storage(store.location, lambda: _fetch(store, name, staged, path, most_bytes, form))


def _fetch(store: Store, name: str, staged: str, path: Path, most_bytes: int, form: Form) -> None:
    ids, left, cut = _index(store, staged), most_bytes, b""
    with open(path, "wb") as file:
        for folder, object_name in _result_objects(store, f"{name}/{OUTPUT}/"):
            for data in _pieces(folder, object_name):
                left -= len(data)
                if left < 0:
                    raise Rejected(
                        Kind.TOO_LARGE,
                        f"the results are larger than {most_bytes:,} bytes (max_file_bytes)",
                    )
                cut += _write(data, ids, file, form)
        file.write(cut)


def _index(store: Store, name: str) -> Ids:
    data = store.get(f"{name}/{INDEX}")
    if data is None:
        raise Rejected(Kind.REJECTED, f"the job's index at {store.location}/{name} is gone")
    ids = Ids({}, {})
    for line in data.decode().split("\n")[:-1]:
        digest, _, custom_id = line.partition(" ")
        ids.digests[custom_id] = digest
        ids.waiting.setdefault(digest, deque()).append(custom_id)
    return ids


def _result_objects(store: Store, prefix: str) -> Iterator[tuple[Store, str]]:
    """Each file of results, in a store at its own folder: Vertex AI's folders are named by times,
    whose colons this package's names don't have.

    What it wrote on the way (`incremental_predictions`) is read only where the whole is missing, as
    of a job that was cancelled.
    """
    names = [name for name in store.list(prefix) if name.endswith(".jsonl")]
    # Otherwise each answer would come twice.
    final = [name for name in names if _ON_THE_WAY not in name[len(prefix) :]]
    for name in final or names:
        folder, _, last = name.rpartition("/")
        yield store_at(f"{store.location}/{folder}"), last


def _pieces(store: Store, name: str) -> Iterator[bytes]:
    """The object in pieces of complete lines, each with its newline; a cut line comes last."""
    start, rest = 0, b""
    while data := store.read(name, start, start + _AT_ONCE_BYTES):
        start += len(data)
        complete, newline, rest = (rest + data).rpartition(b"\n")
        if newline:
            yield complete + newline
    if rest:
        yield rest + b"\n" if is_complete_line(rest) else rest


def _write(data: bytes, ids: Ids, file: IO[bytes], form: Form) -> bytes:
    """Writes the lines; returns a cut one at the end, as another object's lines may follow."""
    *lines, cut = data.split(b"\n")
    for line in lines:
        file.write(_with_its_id(line, ids, form))
    return cut


def _with_its_id(line: bytes, ids: Ids, form: Form) -> bytes:
    """The line with the id of its request; unchanged where that isn't known."""
    try:
        # A vector is read of what is written here, and that has each key once.
        found = object_in((loads_answer if form is TEXTS else loads)(line))
        key = _key_of(found.get(form.echo), ids, form)
        if key is None:
            return line + b"\n"
        kept = {name: found[name] for name in _KEPT if name in found}
        return orjson.dumps({"key": key, **kept, **form.response_of(found)}) + b"\n"
    except (ValueError, TypeError, RecursionError):
        return line + b"\n"


def _key_of(request: Any, ids: Ids, form: Form) -> str | None:
    """The id by the label, where that is one of ours, otherwise by the question: equal questions
    take turns. None where label and question belong to different requests.
    """
    digest = form.digest_of(request)
    waiting = ids.waiting.get(digest)
    label = object_in(object_in(request).get("labels")).get(LABEL)
    if isinstance(label, str) and label in ids.digests:
        return label if waiting is None or ids.digests[label] == digest else None
    if waiting is None:
        return None
    # Equal questions are interchangeable, as long as each of them gets one of the answers.
    waiting.rotate(-1)
    return waiting[-1]


def forget_input(store: Store, name: str) -> None:
    """Removes a job's input and index."""
    for part in (INPUT, INDEX):
        in_storage(store.location, partial(store.delete, f"{name}/{part}"))


def forget_results(store: Store, name: str) -> None:
    """Removes all files of a job's results."""

    def forget() -> None:
        for found in list(store.list(f"{name}/{OUTPUT}/")):
            folder, _, last = found.rpartition("/")
            store_at(f"{store.location}/{folder}").delete(last)

    in_storage(store.location, forget)
