"""A batch provider in memory, with knobs for failures: for tests of jobs that need neither HTTP nor
real time.

    fake = FakeBatches(clock)
    fake.answers_after = 5.0
    fake.create_faults = ["lost"]
    ...                            # run what is tested
    assert fake.billed[text] == 1

It answers `re: <text>` to every record's text, whether alone or in a prompt of several, and bills
each line that it answers.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import orjson

from beam_llm.errors import (
    CallError,
    CannotTell,
    InputGone,
    Kind,
    NotCreated,
    QueueFull,
    Rejected,
    Retryable,
    UnknownJob,
)
from beam_llm.protocols import BatchTraits, Clock, LineReply, Recovery, RemoteJob
from beam_llm.providers.job_search import find_jobs
from beam_llm.values import Completion, Finish, JobState, Message, Request, Usage

# The form of each record in a prompt of several: its text as JSON, on a separate line.
_INPUT = re.compile(r"^Input \d+: (.+)$", re.MULTILINE)


class FakeClock:
    """Time that passes only when a test says so.

    clock = FakeClock()
    clock.sleep(3600)  # at once; clock.time() is an hour later
    """

    def __init__(self, now: float = 1_000_000.0):
        self.now = now

    def time(self) -> float:
        """Seconds since the epoch."""
        return self.now

    def monotonic(self) -> float:
        """The same: nothing sets this clock back."""
        return self.now

    def sleep(self, seconds: float) -> None:
        """Advances the clock by `seconds`, without waiting."""
        # Always by a little: otherwise a loop that waits for some moment might never reach it.
        self.now += max(seconds, 0.001)


@dataclass
class _Job:
    job_id: str
    file_id: str
    name: str
    created_at: float
    state: JobState = JobState.WAITING
    word: str = ""
    cause: CallError | None = None
    files: tuple[str, ...] = ()
    errors: tuple[tuple[str, str, int | None], ...] = ()
    completed: int = 0
    failed: int = 0
    cancel_at: float | None = None

    def fail(self, cause: CallError) -> None:
        self.state, self.cause = JobState.FAILED, cause
        self.errors = (("token_limit_exceeded", cause.message, None),)


@dataclass
class FakeBatches:
    """A BatchProvider in memory. Its knobs are plain attributes, which may be changed at any time.

    Attributes:
      rung: its rung on the ladder of recovery. TOKEN: a name makes one job, however often it is
        created, and nothing can be found. CONTAINER, METADATA: jobs are listed with their names.
        LABEL: the same, unless `shows_names` is False. NONE: nothing can be found.
      shows_names, shows_inputs: whether jobs are listed with their names and inputs; newest_first:
        whether the newest comes first; shows_counts: whether a job says how many of its requests
        are done.
      running_word: the provider's word for a running job.
      stuck: whether jobs never end by themselves.
      answers_after: seconds from a job's creation to its end.
      create_faults: faults of the next creates, one for each: `lost` (created, answer lost), `late`
        (the same, but created `late_seconds` later), `500` (not created, no clear answer), `429`,
        `refused`, `queue` (accepted, then failed with token_limit_exceeded), `validation` (failed,
        line 1 at fault); "" is no fault.
      most_jobs: how many jobs may be under way; further creates find the queue full.
      token_limit: the most enqueued tokens of all jobs under way, as `tokens_of` counts a line's
        texts. A job beyond it is refused at once (`token_limit_at` is `create`) or fails as soon as
        it is looked at (`validation`). token_limit_said: whether the error names the limit.
      list_lag: how many seconds it takes until a created job is listed.
      can_list: False means that listing is refused, None that it fails.
      unknown_until: the time until which every job is a 404.
      expire_after, cancel_after: how many lines are answered before the job expires or ends as
        cancelled; None means all.
      drop_ids_every: one line in this many gets neither an answer nor an error; 0 means none.
      duplicate: whether each line is answered twice, the second time differently; strangers: how
        many results are for requests that nobody made; shuffle: whether results are in another
        order than requests.
      polls_fail, downloads_fail, uploads_fail: how many of the next ones fail.
      download_cuts: how many of the next downloads end half-way.
      tail: bytes after the last line of an output file.
      denies_files, hides_files: whether result files are a 404, and whether ended jobs name none.
      shows_lines: how many of their first lines result files hold, None for all; cuts_bytes: how
        many of their last bytes they lack; repeats_lines: whether they have each line twice.
      refuse, garble: texts whose line is refused, or answered with prose (without any text if the
        record is alone).
    """

    clock: Clock
    traits: BatchTraits = field(
        default_factory=lambda: BatchTraits(50_000, 190_000_000, 86_400.0, create_seconds=0.0)
    )
    rung: Recovery = Recovery.METADATA
    shows_names: bool = True
    shows_inputs: bool = True
    shows_counts: bool = True
    newest_first: bool = True
    late_seconds: float = 5.0
    running_word: str = ""
    answers_after: float = 10.0
    create_faults: list[str] = field(default_factory=list)
    most_jobs: int | None = None
    token_limit: int | None = None
    token_limit_at: str = "create"
    token_limit_said: bool = True
    tokens_of: Callable[[Sequence[str]], int] = len
    list_lag: float = 0.0
    can_list: bool | None = True
    unknown_until: float = 0.0
    expire_after: int | None = None
    cancel_after: int | None = None
    drop_ids_every: int = 0
    duplicate: bool = False
    strangers: int = 0
    shuffle: bool = True
    tail: bytes = b""
    stuck: bool = False
    refuse: frozenset[str] = frozenset()
    garble: frozenset[str] = frozenset()
    polls_fail: int = 0
    downloads_fail: int = 0
    download_cuts: int = 0
    denies_files: bool = False
    hides_files: bool = False
    shows_lines: int | None = None
    repeats_lines: bool = False
    cuts_bytes: int = 0
    uploads_fail: int = 0

    def __post_init__(self) -> None:
        self.traits = replace(self.traits, recovery=self.rung)
        self.files: dict[str, bytes] = {}
        self.jobs: list[_Job] = []
        self.billed: Counter[str] = Counter()
        self.calls: Counter[str] = Counter()
        self._count = 0

    # The methods of a BatchProvider. Lines have a form that no provider has, so that nothing in
    # jobs/ can depend on their content.

    def encode_line(self, custom_id: str, request: Request) -> bytes:
        """One line in a form that no provider has."""
        messages = [[message.role, _content(message)] for message in request.messages]
        return orjson.dumps({"custom_id": custom_id, "messages": messages, "model": request.model})

    def decode_line(self, line: bytes) -> LineReply:
        """The completion of a line, or its error."""
        facts = orjson.loads(line)
        if not isinstance(facts, dict):
            raise ValueError("a reply is a JSON object")
        if "error" in facts:
            kind, message = facts["error"]
            error: CallError = (
                Rejected(kind, message, status=400)
                if kind == Kind.REJECTED
                else Retryable(kind, message)
            )
            return LineReply.failed(facts["custom_id"], error)
        completion = Completion(
            facts["text"], Finish.STOP, Usage(*facts["usage"]), "fake-model", facts["custom_id"][:8]
        )
        return LineReply(facts["custom_id"], completion)

    def stage(self, lines: Path, name: str) -> str:
        """Stores the lines under a file id."""
        self.calls["upload"] += 1
        if self.uploads_fail:
            self.uploads_fail -= 1
            raise Retryable(Kind.UNAVAILABLE, "upload failed", status=500)
        with open(lines, "rb") as file:
            return self._keep(file.read())

    def create(self, name: str, staged: str | None, lines: Path | None = None) -> RemoteJob:
        """Creates a job, or fails as the next of `create_faults` says."""
        self.calls["create"] += 1
        fault = self.create_faults.pop(0) if self.create_faults else ""
        # A provider checks in this order: its queue, the input, and finally the job.
        active = sum(1 for job in self.jobs if not self.moved(job).state.has_ended)
        if fault == "429" or (self.most_jobs is not None and active >= self.most_jobs):
            raise NotCreated(QueueFull("Enqueued token limit reached for fake-model", status=429))
        if fault == "500":
            raise Retryable(Kind.UNAVAILABLE, "internal error", status=500)
        if fault == "refused":
            raise NotCreated(Rejected(Kind.REJECTED, "invalid request", status=400))
        if staged not in self.files:
            raise NotCreated(InputGone(Kind.REJECTED, f"No such File object: {staged}", status=404))
        if self.files[staged].count(b"\n") < self.traits.min_requests:
            raise NotCreated(Rejected(Kind.REJECTED, "too few requests", status=400))
        made = next((job for job in self.jobs if job.name == name), None)
        if made is not None and self.rung in (Recovery.TOKEN, Recovery.CONTAINER):
            return self.shown(self.moved(made))
        late = self.late_seconds if fault == "late" else 0.0
        job = _Job(self._new("batch"), staged, name, self.clock.time() + late)
        if self._is_over_limit(staged):
            full = QueueFull(
                "Enqueued token limit reached",
                limit_tokens=self.token_limit if self.token_limit_said else None,
            )
            if self.token_limit_at == "create":
                raise NotCreated(full)
            job.fail(full)
        if fault == "queue":
            job.fail(QueueFull("Enqueued token limit reached"))
        # Without a cause: the remedy for a faulty line concerns only that line, not the whole job.
        if fault == "validation":
            job.state, job.errors = JobState.FAILED, (("invalid_request", "line is bad", 1),)
        self.jobs.append(job)
        # After the job was created, so that the client does not know what happened.
        if fault in ("lost", "late"):
            raise Retryable(Kind.UNAVAILABLE, "connection reset")
        return self.shown(job)

    def _is_over_limit(self, file_id: str) -> bool:
        pending = [job.file_id for job in self.jobs if not self.moved(job).state.has_ended]
        return (
            self.token_limit is not None
            and sum(map(self._tokens, [*pending, file_id])) > self.token_limit
        )

    def _tokens(self, file_id: str) -> int:
        return sum(
            self.tokens_of(_texts(orjson.loads(line)))
            for line in self.files[file_id].split(b"\n")[:-1]
        )

    def look(self, job_id: str) -> RemoteJob:
        """The job as it is now."""
        self.calls["retrieve"] += 1
        if self.polls_fail:
            self.polls_fail -= 1
            raise Retryable(Kind.UNAVAILABLE, "bad gateway", status=502)
        if self.clock.time() < self.unknown_until:
            raise UnknownJob(Kind.REJECTED, "no such batch", status=404)
        for job in self.jobs:
            if job.job_id == job_id:
                return self.shown(self.moved(job))
        raise UnknownJob(Kind.REJECTED, "no such batch", status=404)

    def find(self, name: str, staged: str | None, since: float) -> list[RemoteJob]:
        """Jobs by name or input, as far as the rung shows them."""
        if self.rung in (Recovery.TOKEN, Recovery.NONE):
            raise CannotTell(f"a job can't be found again on the rung {self.rung.name}")
        return find_jobs(
            [self._list()], name, staged, since, keeps_names=self.rung is not Recovery.LABEL
        )

    def pending(self) -> list[RemoteJob]:
        """Jobs that are listed and have not ended."""
        return [job for job in self._list() if not job.state.has_ended]

    def _list(self) -> list[RemoteJob]:
        self.calls["list"] += 1
        if self.can_list is False:
            raise CannotTell("method not allowed", status=405)
        if self.can_list is None:
            raise Retryable(Kind.UNAVAILABLE, "bad gateway", status=502)
        jobs = sorted(self.jobs, key=lambda job: job.created_at, reverse=self.newest_first)
        visible = [job for job in jobs if self.clock.time() >= job.created_at + self.list_lag]
        return [self._as_listed(self.shown(self.moved(job))) for job in visible]

    def _as_listed(self, job: RemoteJob) -> RemoteJob:
        # Names may be dropped only on the rung LABEL: the other rungs promise that they are listed.
        keeps_name = self.shows_names or self.rung is not Recovery.LABEL
        return replace(
            job,
            name=job.name if keeps_name else None,
            staged=job.staged if self.shows_inputs else None,
        )

    def fetch(self, job: RemoteJob, path: Path) -> None:
        """Writes the result files, as far as the knobs leave them complete."""
        self.calls["download"] += 1
        if self.downloads_fail:
            self.downloads_fail -= 1
            raise Retryable(Kind.UNAVAILABLE, "bad gateway", status=502)
        lines: list[bytes] = []
        for file_id in job.result_files:
            if self.denies_files or file_id not in self.files:
                raise Rejected(Kind.REJECTED, f"No such File object: {file_id}", status=404)
            lines += self._readable_lines(file_id)
        if self.download_cuts:
            self.download_cuts -= 1
        lines.sort(key=lambda line: not line.endswith(b"\n"))  # a line that was cut off comes last
        with open(path, "wb") as file:
            file.writelines(lines)

    def _readable_lines(self, file_id: str) -> list[bytes]:
        """The lines of a result file that can be read now."""
        lines = self.files[file_id].splitlines(keepends=True)[: self.shows_lines]
        data = b"".join(lines * 2 if self.repeats_lines else lines)
        data = data[: len(data) - self.cuts_bytes]
        return (data[: len(data) // 2] if self.download_cuts else data).splitlines(keepends=True)

    def cancel(self, job_id: str) -> None:
        """Makes a job end as cancelled, with what it has done by then."""
        self.calls["cancel"] += 1
        for job in self.jobs:
            if job.job_id == job_id and not job.state.has_ended:
                job.cancel_at = self.clock.time()

    def forget(self, job: RemoteJob | None, staged: str | None) -> None:
        """Removes files; harmless if they are gone already."""
        for file_id in (*(job.result_files if job is not None else ()), staged):
            self.files.pop(file_id or "", None)

    def now(self) -> float | None:
        """The fake clock's time."""
        return self.clock.time()

    def close(self) -> None:
        """Does nothing."""

    # For tests: the provider's side

    def settle(self) -> None:
        """Advances every job as far as time allows, even those that nobody looks at, since they are
        billed as well.
        """
        for job in self.jobs:
            self.moved(job)

    def _new(self, word: str) -> str:
        self._count += 1
        return f"{word}_{self._count:04d}"

    def _keep(self, data: bytes) -> str:
        file_id = self._new("file")
        self.files[file_id] = data
        return file_id

    def shown(self, job: _Job) -> RemoteJob:
        """The job as `look` shows it; a test may override it."""
        # 0 if the input was removed: nobody needs the count of a job that was cleaned up.
        total = self.files.get(job.file_id, b"").count(b"\n")
        return RemoteJob(
            job_id=job.job_id,
            state=job.state,
            word=job.word
            or (self.running_word if job.state is JobState.RUNNING else "")
            or job.state.value,
            created_at=job.created_at,
            result_files=() if self.hides_files else job.files,
            name=job.name,
            staged=job.file_id,
            completed=job.completed if self.shows_counts else None,
            failed=job.failed if self.shows_counts else None,
            total=total if self.shows_counts else None,
            errors=job.errors,
            cause=job.cause,
        )

    def moved(self, job: _Job) -> _Job:
        """The job, advanced to its present state; a test may override it."""
        if job.state.has_ended:
            return job
        job.state = JobState.RUNNING
        if job.cancel_at is not None:
            self._run(job, self.cancel_after or 0, JobState.CANCELLED, Kind.CANCELLED)
        elif not self.stuck and self.clock.time() >= job.created_at + self.answers_after:
            ends = self.cancel_after if self.cancel_after is not None else self.expire_after
            early = (
                (JobState.CANCELLED, Kind.CANCELLED)
                if self.cancel_after is not None
                else (JobState.EXPIRED, Kind.EXPIRED)
            )
            self._run(job, ends, early[0] if ends is not None else JobState.COMPLETED, early[1])
        return job

    def _run(self, job: _Job, answered: int | None, state: JobState, kind: str) -> None:
        output, errors = [], []
        for index, line in enumerate(self.files[job.file_id].split(b"\n")[:-1]):
            request = orjson.loads(line)
            texts = _texts(request)
            if answered is not None and index >= answered:
                errors.append({"custom_id": request["custom_id"], "error": [kind, state.value]})
            elif any(text in self.refuse for text in texts):
                errors.append(
                    {
                        "custom_id": request["custom_id"],
                        "error": [Kind.REJECTED, "refused by the provider"],
                    }
                )
            # Neither billed nor in a file, as if the provider had forgotten the line.
            elif self.drop_ids_every and index % self.drop_ids_every == 0:
                continue
            else:
                self.billed.update(texts)
                output.append(self.answer(request, texts))
        # A provider counts requests, not the lines it writes.
        job.completed, job.failed = len(output), len(errors)
        if self.duplicate:
            output += [replace_text(line) for line in output]
        output += [
            {"custom_id": f"stranger-{number}", "text": "?", "usage": [1, 1, 0]}
            for number in range(self.strangers)
        ]
        # Seeded by the job's id: a different order for each job, but the same in each run. Of two
        # answers to one id the first has to win, so their order must not change.
        if self.shuffle and not self.duplicate:
            random.Random(job.job_id).shuffle(output)
        job.state = state
        job.files = tuple(
            self._keep(b"".join(orjson.dumps(line) + b"\n" for line in lines) + tail)
            for lines, tail in ((output, self.tail), (errors, b""))
        )

    def answer(self, request: dict[str, Any], texts: list[str]) -> dict[str, Any]:
        """The answer to a line: its custom id, text and usage; a test may override it."""
        # Unusual numbers, which add up only if each is counted once and in its own place.
        usage = [10 + sum(len(text) for text in texts), 3 * len(texts), 2]
        if any(text in self.garble for text in texts):
            return {
                "custom_id": request["custom_id"],
                "text": "I'd rather not count." if len(texts) > 1 else None,
                "usage": usage,
            }
        if _INPUT.search(request["messages"][-1][1]) is None:
            return {"custom_id": request["custom_id"], "text": f"re: {texts[0]}", "usage": usage}
        answers = [{"index": index, "value": f"re: {text}"} for index, text in enumerate(texts, 1)]
        return {
            "custom_id": request["custom_id"],
            "text": orjson.dumps({"answers": answers}).decode(),
            "usage": usage,
        }


def replace_text(line: dict[str, Any]) -> dict[str, Any]:
    """The same line with another answer, which readers must ignore."""
    return {**line, "text": "a second answer to one id"}


def _content(message: Message) -> str:
    """The message as one text, in which images are data URLs."""
    if not message.media:
        return message.content
    parts = message.parts()
    return "".join([part if isinstance(part, str) else part.data_url for part in parts])


def _texts(request: dict[str, Any]) -> list[str]:
    content = request["messages"][-1][1]
    found = [orjson.loads(text) for text in _INPUT.findall(content)]
    return found or [content]
