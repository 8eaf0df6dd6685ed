"""How a `predict` run ended: in a few lines for a person, and as JSON for a program (`--summary
FILE.json`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from beam_llm.cli.exit_codes import ALL_ANSWERED, SOME_ERRORS
from beam_llm.cli.predict_command import PredictCommand, Report
from beam_llm.cli.progress import write_line
from beam_llm.cli.tally import Tally
from beam_llm.cli.words import describe_retries, duration, percent, shortened
from beam_llm.errors import plural, printable
from beam_llm.events import warning_in_words
from beam_llm.prompting.agreement import Share
from beam_llm.values import Usage

FORMAT = 1
_MESSAGE_WIDTH = 300
_WARNINGS = "warnings_"
_JOB_COUNTERS = ("jobs_twice", "jobs_in_doubt", "jobs_resubmitted")


def print_summary(command: PredictCommand, report: Report) -> None:
    """The run in a few lines, on stderr."""
    for line in summary(command, report).split("\n"):
        write_line(line)


def exit_code_of(name: str, tally: Tally, hint: str = "") -> int:
    """A run's exit code. Where records ended as errors, a line on stderr says how many.

    Args:
      name: the command's name, for the line's beginning.
      hint: where to look, for the line's end.
    """
    if not tally.failed:
        return ALL_ANSWERED
    write_line(f"{name}: {tally.failed:,} of {tally.records:,} records ended as errors{hint}")
    return SOME_ERRORS


def summary(command: PredictCommand, report: Report) -> str:
    """The run in a few lines."""
    tally = report.tally
    lines = [
        f"records   {tally.records:,}"
        + (
            f" ({report.answered_before:,} answered by an earlier run)"
            if report.answered_before
            else ""
        )
    ]
    if report.bad_lines:
        lines.append(
            f"skipped   {plural(report.bad_lines, 'line')} that can't be read, the first: "
            f"{report.first_bad}"
        )
    lines += _labelled("errors", [f"{tally.failed:,}", *_errors(tally)] if tally.failed else [])
    lines += _labelled("warnings", list(warnings_of(report.counters)))
    lines.append(f"calls     {calls_of(report)}")
    lines.append(f"tokens    {_tokens(tally)}")
    lines.append(
        f"cost      {tally.cost()}"
        + (f" ({plural(tally.reused, 'answer')} re-used)" if tally.reused else "")
    )
    lines += _labelled("guard", [_guard(guard_share)] if (guard_share := guard_of(report)) else [])
    if report.truth is not None:
        lines.append(f"right     {_right(report.truth)}")
    lines.append(f"time      {duration(report.seconds)}")
    if command.output:
        lines.append(f"output    {'stdout' if command.output == '-' else command.output}")
    return "\n".join(map(printable, lines))


def guard_of(report: Report) -> Share | None:
    """Among the records that were asked alone as well, the share with the same answer; None where
    there were none.
    """
    compared = report.counters.get("guard_compared", 0)
    return Share(report.counters.get("guard_agreed", 0), compared) if compared else None


def _guard(share: Share) -> str:
    low, high = share.interval()
    return (
        f"{percent(share.rate or 0.0)} of {share.total:,} answers are the ones given alone "
        f"(95 % interval {percent(low)}–{percent(high)})"
    )


def _right(truth: Share) -> str:
    if truth.rate is None:
        return "unknown: no record's truth is a value of the output type"
    low, high = truth.interval()
    return (
        f"{percent(truth.rate)} of {truth.total:,} (95 % interval {percent(low)}–{percent(high)})"
    )


def _tokens(tally: Tally) -> str:
    """`1,200 in (900 cached), 80 out (30 of thoughts)`."""
    cached = {"cached": tally.cached_tokens, "written to the cache": tally.cache_write_tokens}
    of_input = ", ".join(f"{count:,} {what}" for what, count in cached.items() if count)
    thoughts = f" ({tally.reasoning_tokens:,} of thoughts)" if tally.reasoning_tokens else ""
    inputs = f"{tally.input_tokens:,} in" + (f" ({of_input})" if of_input else "")
    return f"{inputs}, {tally.output_tokens:,} out{thoughts}"


def _labelled(label: str, texts: list[str]) -> list[str]:
    """The texts as lines, with the label before the first."""
    return [f"{label if number == 0 else '':<10}{text}" for number, text in enumerate(texts)]


def _errors(tally: Tally) -> Iterator[str]:
    """`8 rate_limited: HTTP 429 …`; where only some of a kind have that message, how many do."""
    for kind, count in tally.errors.most_common():
        alike, message = tally.messages[kind].most_frequent()
        # 0: the sums are Beam's counters, which have no messages.
        share = "" if alike in (0, count) else f", {alike:,} of them"
        words = f": {message}" if message else ""
        yield shortened(f"{count:,} {kind}{share}{words}", _MESSAGE_WIDTH)


def warnings_of(counters: dict[str, int]) -> Iterator[str]:
    """Oddities that made no record fail, in words, the most frequent first."""
    for name, count in sorted(counters.items(), key=lambda item: -item[1]):
        if count and name.startswith(_WARNINGS):
            yield warning_in_words(name.removeprefix(_WARNINGS), count)
    if halvings := counters.get("guard_halvings", 0):
        yield (
            f"prompts made smaller {plural(halvings, 'time')}: too few answers were the ones given "
            "alone (guard)"
        )
    if doubts := counters.get("jobs_in_doubt", 0):
        yield (
            f"{plural(doubts, 'attempt')} to create a batch job got no clear answer: the job was "
            "looked for among the provider's jobs before anything else"
        )
    if again := counters.get("jobs_resubmitted", 0):
        yield (
            f"{plural(again, 'job')} submitted again in doubt (on_doubt='resubmit'): may be "
            "paid twice"
        )
    if twice := counters.get("jobs_twice", 0):
        yield (
            f"{plural(twice, 'job')} found twice at the provider: the younger was cancelled, "
            "and may have cost something"
        )


def calls_of(report: Report) -> str:
    """`100`, `100 (2 retries)`, `100 in 1 batch job`, `100 in 1 batch job and 3 live`, …"""
    jobs = f" in {plural(report.jobs, 'batch job')}" if report.jobs else ""
    # Requests outside of jobs were live calls: for the guard, or for what jobs left over.
    live = report.requests - report.lines
    if jobs and live:
        jobs += f" and {live:,} live"
    further = ", ".join(
        describe_retries(
            *(report.counters.get(name, 0) for name in ("retries", "waits", "timeouts"))
        )
    )
    return f"{report.lines if jobs else report.requests:,}{jobs}" + (
        f" ({further})" if further else ""
    )


def as_json(command: PredictCommand, report: Report) -> dict[str, Any]:
    """The summary as plain data. Counts of calls are about this run, counts of records about the
    output. `retries` includes the `waits`, as Beam's counters do; the summary's text separates
    them.
    """
    tally, counters = report.tally, report.counters
    return {
        "format": FORMAT,
        "model": command.settings.model,
        "mode": command.settings.mode,
        "output": command.output,
        "records": tally.records,
        "answered": tally.records - tally.failed,
        "answered_before": report.answered_before,
        "reused": tally.reused,
        "failed": tally.failed,
        "skipped_lines": report.bad_lines,
        "errors": {kind: _error(tally, kind, count) for kind, count in tally.errors.most_common()},
        "warnings": {
            name.removeprefix(_WARNINGS): count
            for name, count in counters.items()
            if name.startswith(_WARNINGS)
        },
        "requests": report.requests,
        **{name: counters.get(name, 0) for name in ("retries", "waits", "timeouts")},
        "jobs": report.jobs,
        **{name: counters.get(name, 0) for name in _JOB_COUNTERS},
        "doubtful": tally.errors.get("doubtful", 0),
        **{name: getattr(tally, name) for name in Usage._fields},
        # A sum over the priced part alone would be taken for the total.
        "cost_usd": None if tally.unpriced else tally.cost_usd,
        "guard": None if (guard_share := guard_of(report)) is None else share_json(guard_share),
        "guard_halvings": counters.get("guard_halvings", 0),
        "truth": None if report.truth is None else share_json(report.truth),
        "seconds": report.seconds,
        "mean_latency_ms": report.mean_latency_ms,
        "counters": counters,
    }


def share_json(share: Share) -> dict[str, Any]:
    """A share with its interval, as plain data."""
    low, high = share.interval()
    return {
        "same": share.hits,
        "compared": share.total,
        "rate": share.rate,
        "low": low,
        "high": high,
    }


def _error(tally: Tally, kind: str, count: int) -> dict[str, Any]:
    alike, message = tally.messages[kind].most_frequent()
    return {"records": count, "most_frequent": message, "most_frequent_records": alike}
