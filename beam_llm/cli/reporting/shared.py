"""What both pages have: charts and tables of jobs, settings without secrets, versions, advice."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import Any

from beam_llm import __version__
from beam_llm.cli.reporting.page import Span, Table
from beam_llm.cli.tally import without_particulars
from beam_llm.cli.words import duration, price, shortened, value_in_words
from beam_llm.config import Settings, given_options, key_of
from beam_llm.errors import Kind
from beam_llm.jobs import JobView
from beam_llm.redaction import redact

MESSAGE_WIDTH = 300
TEXT_WIDTH = 200
MOST_JOBS = 200

ADVICE = {
    **dict.fromkeys(
        (Kind.RATE_LIMITED, Kind.UNAVAILABLE, Kind.EXPIRED, Kind.ABORTED, Kind.BUDGET),
        "run it again later: --retry-errors",
    ),
    Kind.TIMED_OUT: "a longer --request-timeout-ms, a smaller --batch-size",
    Kind.TRUNCATED: "a larger --max-output-tokens, or a smaller answer",
    **dict.fromkeys(
        (Kind.MISSING, Kind.INVALID, Kind.UNREADABLE),
        "look at replies with --log-data; a smaller --batch-size, a stronger model",
    ),
    Kind.CANCELLED: "--retry-cancelled in a later run",
    **dict.fromkeys(
        (Kind.REFUSED, Kind.REJECTED, Kind.TOO_LARGE, Kind.PROMPT),
        "the record, the prompt or the request itself: the message says what",
    ),
    Kind.DOUBTFUL: "a later run looks again; --on-doubt resubmit takes the risk",
}


def display_message(message: str, redacted: bool) -> str:
    """The message of an error on one line; where redacted, without quotations and numbers, which
    may be a record's.
    """
    text = shortened(redact(message), MESSAGE_WIDTH)
    return without_particulars(text) if redacted else text


_TEXTS = ("prompt", "system_prompt", "batch_prompt_template")
_KEYS_ONLY = ("extra_body", "provider_options")


def display_settings(settings: Settings, redacted: bool) -> list[tuple[str, str]]:
    """Options that differ from their defaults, by key: references to secrets as they are, only the
    keys of mappings that may hold a secret, addresses without credentials.
    """
    return [
        (key_of(name), redact(_display_value(name, value, redacted)))
        for name, value in given_options(settings)
    ]


def _display_value(name: str, value: Any, redacted: bool) -> str:
    if name in _TEXTS and redacted:
        return f"{len(str(value)):,} characters"
    if name in _KEYS_ONLY and isinstance(value, Mapping):
        return f"mapping of {', '.join(map(str, value))}"
    return value_in_words(value)


def versions(runner: str = "") -> list[tuple[str, str]]:
    """The versions of the software that ran, by name."""
    # From the installed package's metadata: importing Beam for this would take seconds.
    found = [("beam-llm", __version__), ("apache-beam", metadata.version("apache-beam"))]
    found += [("Python", platform.python_version()), ("system", platform.platform(terse=True))]
    return found + ([("runner", runner)] if runner else [])


def spans(jobs: Sequence[JobView]) -> list[Span]:
    """Jobs on a time line. Times by another machine's clock are put in order."""
    # Bounds the page: a ledger may have thousands of jobs.
    return [_span(job) for job in jobs[:MOST_JOBS]]


def _span(job: JobView) -> Span:
    is_done = job.state == "done"
    created = None if job.submitted_at is None else max(job.submitted_at, job.created_at)
    ended = job.ended_at if is_done else None
    if is_done and ended is None:
        ended = created or job.created_at
    if ended is not None:
        ended = max(ended, created or job.created_at)
    state = "open" if not is_done else "done" if job.answered or job.left else "failed"
    word = job.ended or job.state
    job_id = job.job_id or ("live calls" if job.kind == "live" else "not created")
    name = f"{job.job} · {word} · {shortened(job_id, 24)}"
    length = "" if ended is None else f", {duration(ended - (created or job.created_at))}"
    label = f"{job.job} · {word} · {job_id}{length}"
    return Span(name, job.created_at, created, ended, state, label)


def job_table(jobs: Sequence[JobView]) -> Table:
    """Tokens and cost by job."""
    header = ("job", "state", "records", "answered", "failed", "passed on", "tokens in")
    rows = [
        (
            job.job,
            job.ended or job.state,
            f"{job.records:,}",
            *(f"{count:,}" for count in (job.answered, job.failed, job.left, job.input_tokens)),
            f"{job.output_tokens:,}",
            price(job.cost_usd) if job.state == "done" or job.cost_usd is not None else "",
        )
        for job in jobs[:MOST_JOBS]
    ]
    more = f"The first {MOST_JOBS} of {len(jobs):,} jobs." if len(jobs) > MOST_JOBS else ""
    return Table("Jobs: tokens and cost", (*header, "tokens out", "cost"), rows, (0, 1), more)
