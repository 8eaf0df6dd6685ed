"""Builds the page of a run, whichever command ran it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

import orjson

from beam_llm.cli.files.records import plain_value
from beam_llm.cli.predict_command import Report
from beam_llm.cli.reporting.call_log import CallLog, Slot
from beam_llm.cli.reporting.page import (
    Agreement,
    Bar,
    Chart,
    ErrorKind,
    Example,
    Figure,
    Page,
    Table,
)
from beam_llm.cli.reporting.shared import (
    ADVICE,
    TEXT_WIDTH,
    display_message,
    display_settings,
    job_table,
    spans,
    versions,
)
from beam_llm.cli.reporting.subject import Subject
from beam_llm.cli.summary import calls_of, guard_of, warnings_of
from beam_llm.cli.tally import Tally
from beam_llm.cli.words import describe_retries, dollars, duration, percent, price, shortened
from beam_llm.errors import plural

_MOST_BARS = 60


def page_of_run(subject: Subject, report: Report, log: CallLog, *, redacted: bool) -> Page:
    """What a run did, for people.

    Args:
      log: its calls over time.
      redacted: whether texts of prompts and records stay out.
    """
    models = (
        ", ".join(dict.fromkeys(settings.model for settings in subject.uses.values())) or "no model"
    )
    left_out = "Texts of prompts and records are left out (--redact)." if redacted else ""
    return Page(
        title=f"{plural(report.tally.records, 'record')}, {models}",
        subtitle=_subtitle(subject, report),
        headline=list(_headline(subject, report)),
        charts=list(_charts(report, log)),
        tables=list(_tables(subject, report)),
        warnings=list(_oddities(report)),
        errors=list(_errors(report, redacted)),
        jobs=spans(subject.jobs),
        agreement=list(_agreement(subject, report)),
        settings=list(_settings(subject, redacted)),
        versions=versions(_runner(subject.beam_options)),
        now=time.time(),
        notes=[note for note in (subject.note, left_out) if note],
    )


def _subtitle(subject: Subject, report: Report) -> str:
    began = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(report.began_at))
    return f"{subject.route}; begun {began}, {duration(report.seconds)}"


def _settings(subject: Subject, redacted: bool) -> Iterator[tuple[str, str]]:
    """The options of the first use, and those in which each further use differs from it."""
    first: dict[str, str] = {}
    for use, settings in subject.uses.items():
        own = dict(display_settings(settings, redacted))
        # Only options that differ from their defaults are shown, so what a use lacks is a default
        # there.
        left_out = dict.fromkeys(first.keys() - own.keys(), "default")
        for name, value in {**own, **left_out}.items():
            if name == "model" or first.get(name) != value:
                yield f"{use}: {name}" if use else name, value
        first = first or own


def _runner(beam_options: Sequence[str]) -> str:
    named = [option for option in beam_options if option.startswith("--runner=")]
    # Of a flag given twice the last one counts.
    return named[-1].removeprefix("--runner=") if named else "FnApiRunner"


# The headline


def _headline(subject: Subject, report: Report) -> Iterator[Figure]:
    tally = report.tally
    before = (
        f"{report.answered_before:,} answered by an earlier run" if report.answered_before else ""
    )
    yield Figure("records", f"{tally.records:,}", before)
    part = percent(tally.failed / tally.records) if tally.failed else "every record has an answer"
    yield Figure("errors", f"{tally.failed:,}", part, "bad" if tally.failed else "good")
    cost = price(None if tally.unpriced else tally.cost_usd)
    reused = f"{plural(tally.reused, 'answer')} re-used" if tally.reused else ""
    yield Figure("cost", cost, reused)
    yield from _savings(subject, report)
    calls, _, rest = calls_of(report).partition(" ")
    yield Figure("calls", calls, rest.strip("()"))
    yield Figure("tokens", f"{tally.input_tokens:,} in", f"{tally.output_tokens:,} out")
    yield Figure("time", duration(report.seconds))


def _savings(subject: Subject, report: Report) -> Iterator[Figure]:
    """What was saved against asking one by one, and against live calls of the same prompts."""
    others, cost, uses = subject.alternatives, report.tally.cost_usd, subject.uses.values()
    if others is None:
        return
    in_jobs = any(settings.mode == "batch_api" for settings in uses)
    if in_jobs or any(settings.batch_size != 1 for settings in uses):
        yield _saving("saved: one by one", others.one_by_one, cost, "one record a call")
    if in_jobs:
        yield _saving("saved: live", others.live, cost, "the same prompts, live")


def _saving(label: str, other: float, cost: float, against: str) -> Figure:
    saved = other - cost
    if not other:
        return Figure(label, "$0.00", against)
    note = f"{percent(saved / other)} of about {dollars(other)} ({against})"
    if saved < 0:
        return Figure(label, f"–{dollars(-saved)}", note, "bad")
    return Figure(label, dollars(saved), note, "good" if saved > 0 else "")


# Charts and tables


def _charts(report: Report, log: CallLog) -> Iterator[Chart]:
    seconds, slots = log.series()
    if any(slot.calls for slot in slots):
        yield _calls_chart(seconds, slots)
    elif report.counters.get("requests", 0):
        yield Chart("Calls over time", summary=_CALL_TIMES_UNKNOWN)
    counts = log.latencies()
    if counts:
        yield _latency_chart(counts, log)
    elif report.mean_latency_ms is not None:
        yield _remote_latency(report)


_CALL_TIMES_UNKNOWN = (
    "Not known here: the workers were in other processes, and only their sums come back, not when "
    "each call was made."
)


def _calls_chart(seconds: int, slots: Sequence[Slot]) -> Chart:
    """Answered calls, by the time at which their records came out."""
    # Rounded up, so that there are never more bars than `_MOST_BARS`.
    width = -(-len(slots) // _MOST_BARS)
    groups = [slots[at : at + width] for at in range(0, len(slots), width)]
    per_group = seconds * width
    bars = []
    for number, group in enumerate(groups):
        calls = sum(slot.calls for slot in group)
        retries = sum(slot.retries for slot in group)
        label = f"after {_in_whole_seconds(number * per_group)}: {plural(calls, 'call')}"
        bars.append(Bar(calls, f"{label}, {retries:,} of them again", retries))
    total = sum(slot.calls for slot in slots)
    most = max(bar.height for bar in bars)
    end = len(groups) * per_group
    return Chart(
        "Calls over time",
        bars,
        ("0 s", duration(end / 2), _in_whole_seconds(end)),
        f"{most:,.0f} per {_in_whole_seconds(per_group)}",
        f"{plural(total, 'call')} in {_in_whole_seconds(end)}; red: sent again.",
    )


def _in_whole_seconds(seconds: int) -> str:
    return f"{seconds} s" if seconds < 100 else duration(seconds)


def _latency_chart(counts: Sequence[tuple[float, float, int]], log: CallLog) -> Chart:
    bars = [
        Bar(count, f"{low:,.0f} to {high:,.0f} ms: {plural(count, 'call')}")
        for low, high, count in counts
    ]
    points = {name: log.percentile(part) or 0.0 for name, part in _PERCENTILES.items()}
    least, most = counts[0][0], counts[-1][1]
    return Chart(
        "Latency of calls",
        bars,
        # The axis is logarithmic: the geometric mean stands in its middle.
        (f"{least:,.0f} ms", f"{(least * most) ** 0.5:,.0f} ms", f"{most:,.0f} ms"),
        plural(int(max(bar.height for bar in bars)), "call"),
        ", ".join(f"{name} about {value:,.0f} ms" for name, value in points.items()) + ".",
    )


_PERCENTILES = {"half below": 0.5, "95 %": 0.95, "99 %": 0.99}


def _remote_latency(report: Report) -> Chart:
    """The latencies of workers in other processes, from which only sums come back."""
    least, most = report.latency_ms or (0.0, 0.0)
    mean = report.mean_latency_ms or 0.0
    bars = [
        Bar(value, f"{name}: {value:,.0f} ms")
        for name, value in (("least", least), ("mean", mean), ("most", most))
    ]
    text = (
        f"Least {least:,.0f} ms, mean {mean:,.0f} ms, most {most:,.0f} ms; the workers were in "
        "other processes, so single calls are not known here."
    )
    return Chart("Latency of calls", bars, ("least", "mean", "most"), f"{most:,.0f} ms", text)


def _model_table(tally: Tally) -> Table:
    rows = [
        (
            shortened(model, 60),
            f"{sums.records:,}",
            f"{sums.input_tokens:,}",
            f"{sums.output_tokens:,}",
            price(None if sums.unpriced else sums.cost_usd),
        )
        for model, sums in sorted(tally.by_model.items())
    ]
    header = ("model", "records", "tokens in", "tokens out", "cost")
    return Table("Models: tokens and cost", header, rows, (0,), _not_by_model(tally))


def _not_by_model(tally: Tally) -> str:
    others = tally.records - sum(sums.records for sums in tally.by_model.values())
    return f"{plural(others, 'record')} without a reply." if others else ""


def _tables(subject: Subject, report: Report) -> Iterator[Table]:
    if report.tally.by_model:
        yield _model_table(report.tally)
    if subject.jobs:
        yield job_table(subject.jobs)


# What went wrong, and what agreed


def _oddities(report: Report) -> Iterator[str]:
    counters = report.counters
    yield from describe_retries(
        *(counters.get(name, 0) for name in ("retries", "waits", "timeouts"))
    )
    for name, words in _COUNTER_TEXTS.items():
        if count := counters.get(name, 0):
            yield f"{plural(count, words[0])} {words[1]}"
    if report.bad_lines:
        yield f"{plural(report.bad_lines, 'line')} of the input skipped"
    yield from warnings_of(counters)


_COUNTER_TEXTS = {
    "splits": ("time", "a prompt was split"),
    "single_requests": ("call", "for one record alone"),
}


def _errors(report: Report, redacted: bool) -> Iterator[ErrorKind]:
    tally = report.tally
    for kind, count in tally.errors.most_common():
        examples = []
        for ordinal, message in tally.examples.get(kind, ()):
            place, fields = report.examples.get(ordinal, (f"record {ordinal + 1:,}", {}))
            text = "" if redacted or not fields else _record_text(fields)
            examples.append(Example(place, display_message(message, redacted), text))
        yield ErrorKind(kind, count, ADVICE.get(kind, ""), examples)


def _record_text(fields: object) -> str:
    data = orjson.dumps(fields, default=plain_value, option=orjson.OPT_NON_STR_KEYS)
    return shortened(data.decode(), TEXT_WIDTH)


def _agreement(subject: Subject, report: Report) -> Iterator[Agreement]:
    guard_share = guard_of(report)
    if guard_share is not None:
        yield Agreement("The guard: the same answer as given alone", guard_share)
    if report.truth is not None:
        yield Agreement(f"Right answers, by the field {subject.truth}", report.truth)
