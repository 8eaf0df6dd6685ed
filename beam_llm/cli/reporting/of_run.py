"""The page of a `predict` run."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

import orjson

from beam_llm.cli.files.records import plain_value
from beam_llm.cli.files.sources import find_sources, is_special
from beam_llm.cli.predict_command import PredictCommand, Report
from beam_llm.cli.reporting.call_log import CallLog, Slot
from beam_llm.cli.reporting.page import (
    Agreed,
    Bar,
    Chart,
    ErrorKind,
    Example,
    Figure,
    Page,
    Table,
)
from beam_llm.cli.reporting.savings import OtherWays, other_ways
from beam_llm.cli.reporting.shared import (
    ADVICE,
    TEXT_WIDTH,
    cost_shown,
    job_table,
    message_shown,
    settings_shown,
    spans,
    versions,
)
from beam_llm.cli.summary import calls_of, guard_of, warnings_of
from beam_llm.cli.tally import Tally
from beam_llm.cli.words import dollars, duration, percent, shortened, tried_again
from beam_llm.config import Settings, is_template
from beam_llm.errors import LLMError, plural
from beam_llm.jobs import JobView, admin, open_store

_MOST_BARS = 60


def page_of_run(command: PredictCommand, report: Report, log: CallLog, *, redacted: bool) -> Page:
    """What a run did, for people.

    Args:
      log: what was heard of its calls.
      redacted: texts of prompts and records stay out.
    """
    jobs = _jobs(command.settings, report)
    return Page(
        title=f"{plural(report.tally.records, 'record')}, {command.settings.model}",
        subtitle=_subtitle(command, report),
        headline=list(_headline(command, report)),
        charts=list(_charts(report, log)),
        tables=[_model_table(report.tally), *([job_table(jobs)] if jobs else [])],
        warnings=list(_oddities(report)),
        errors=list(_errors(report, redacted)),
        jobs=spans(jobs),
        agreement=list(_agreement(command, report)),
        settings=settings_shown(command.settings, redacted),
        versions=versions(_runner(command.beam_options)),
        now=time.time(),
        notes=["Texts of prompts and records are left out (--redact)."] if redacted else [],
    )


def _subtitle(command: PredictCommand, report: Report) -> str:
    began = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(report.began_at))
    return (
        f"{', '.join(command.inputs)} → {command.output}; begun {began}, {duration(report.seconds)}"
    )


def _runner(beam_options: Sequence[str]) -> str:
    named = [option for option in beam_options if option.startswith("--runner=")]
    return named[-1].removeprefix("--runner=") if named else "FnApiRunner"


# The headline


def _headline(command: PredictCommand, report: Report) -> Iterator[Figure]:
    tally = report.tally
    before = f"{report.already:,} answered by an earlier run" if report.already else ""
    yield Figure("records", f"{tally.records:,}", before)
    part = percent(tally.failed / tally.records) if tally.failed else "every record has an answer"
    yield Figure("errors", f"{tally.failed:,}", part, "bad" if tally.failed else "good")
    cost = "unknown" if tally.unpriced else dollars(tally.cost_usd)
    reused = f"{plural(tally.reused, 'answer')} re-used" if tally.reused else ""
    yield Figure("cost", cost, reused)
    yield from _savings(command, report)
    calls, _, rest = calls_of(report).partition(" ")
    yield Figure("calls", calls, rest.strip("()"))
    yield Figure("tokens", f"{tally.input_tokens:,} in", f"{tally.output_tokens:,} out")
    yield Figure("time", duration(report.seconds))


def _savings(command: PredictCommand, report: Report) -> Iterator[Figure]:
    """Against asking one by one, and against live calls of the same prompts."""
    tally, known = report.tally, command.settings
    others = None if is_template(known.model) else _other_ways(command, report)
    if others is None:
        return
    if known.batch_size != 1 or known.mode == "batch_api":
        yield _saving("saved: one by one", others.one_by_one, tally.cost_usd, "one record a call")
    if known.mode == "batch_api":
        yield _saving("saved: live", others.live, tally.cost_usd, "the same prompts, live")


def _other_ways(command: PredictCommand, report: Report) -> OtherWays | None:
    """None also where the input can't be read again: it was a pipe, or is gone by now."""
    if list(command.inputs) == ["-"]:
        return None
    try:
        sources = [
            source._replace(skips_bad_lines=command.skips_bad_lines)
            for source in find_sources(command.inputs, command.input_format)
        ]
        if any(is_special(source.path) for source in sources):
            return None
        return other_ways(command.settings, sources, report.tally)
    except (LLMError, OSError):
        return None


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
    counts = log.latencies()
    if counts:
        yield _latency_chart(counts, log)
    elif report.mean_latency_ms is not None:
        yield _remote_latency(report)


def _calls_chart(seconds: int, slots: Sequence[Slot]) -> Chart:
    """Answered calls, by the time at which their records came out."""
    width = -(-len(slots) // _MOST_BARS)
    groups = [slots[at : at + width] for at in range(0, len(slots), width)]
    per_group = seconds * width
    bars = []
    for number, group in enumerate(groups):
        calls = sum(slot.calls for slot in group)
        retries = sum(slot.retries for slot in group)
        label = f"after {_whole_seconds(number * per_group)}: {plural(calls, 'call')}"
        bars.append(Bar(calls, f"{label}, {retries:,} of them again", retries))
    total = sum(slot.calls for slot in slots)
    most = max(bar.height for bar in bars)
    end = len(groups) * per_group
    return Chart(
        "Calls over time",
        bars,
        ("0 s", duration(end / 2), _whole_seconds(end)),
        f"{most:,.0f} per {_whole_seconds(per_group)}",
        f"{plural(total, 'call')} in {_whole_seconds(end)}; red: sent again.",
    )


def _whole_seconds(seconds: int) -> str:
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
        (f"{least:,.0f} ms", f"{(least * most) ** 0.5:,.0f} ms", f"{most:,.0f} ms"),
        plural(int(max(bar.height for bar in bars)), "call"),
        ", ".join(f"{name} about {value:,.0f} ms" for name, value in points.items()) + ".",
    )


_PERCENTILES = {"half below": 0.5, "95 %": 0.95, "99 %": 0.99}


def _remote_latency(report: Report) -> Chart:
    """Workers in other processes: their sums come back, single calls don't."""
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
            cost_shown(None if sums.unpriced else sums.cost_usd),
        )
        for model, sums in sorted(tally.by_model.items())
    ]
    header = ("model", "records", "tokens in", "tokens out", "cost")
    return Table("Models: tokens and cost", header, rows, (0,), _not_by_model(tally))


def _not_by_model(tally: Tally) -> str:
    others = tally.records - sum(sums.records for sums in tally.by_model.values())
    return f"{plural(others, 'record')} without a reply." if others else ""


def _jobs(known: Settings, report: Report) -> list[JobView]:
    """Those whose answers were waited for; from another process's workers: none are known."""
    if known.mode != "batch_api" or not report.job_numbers:
        return []
    try:
        return admin.list_jobs(open_store(str(known.staging_location)), report.job_numbers)
    except LLMError:  # the run is over, and its page must not fail for a ledger that is gone
        return []


# What went wrong, and what agreed


def _oddities(report: Report) -> Iterator[str]:
    counters = report.counters
    yield from tried_again(*(counters.get(name, 0) for name in ("retries", "waits", "timeouts")))
    for name, words in _COUNTED.items():
        if count := counters.get(name, 0):
            yield f"{plural(count, words[0])} {words[1]}"
    if report.bad_lines:
        yield f"{plural(report.bad_lines, 'line')} of the input skipped"
    yield from warnings_of(counters)


_COUNTED = {
    "splits": ("time", "the records of a prompt were parted"),
    "single_requests": ("call", "for one record alone"),
}


def _errors(report: Report, redacted: bool) -> Iterator[ErrorKind]:
    tally = report.tally
    for kind, count in tally.errors.most_common():
        examples = []
        for ordinal, message in tally.examples.get(kind, ()):
            place, fields = report.examples.get(ordinal, (f"record {ordinal + 1:,}", {}))
            text = "" if redacted or not fields else _record_shown(fields)
            examples.append(Example(place, message_shown(message, redacted), text))
        yield ErrorKind(kind, count, ADVICE.get(kind, ""), examples)


def _record_shown(fields: object) -> str:
    data = orjson.dumps(fields, default=plain_value, option=orjson.OPT_NON_STR_KEYS)
    return shortened(data.decode(), TEXT_WIDTH)


def _agreement(command: PredictCommand, report: Report) -> Iterator[Agreed]:
    guarded = guard_of(report)
    if guarded is not None:
        yield Agreed("The guard: the same answer as given alone", guarded)
    if report.truth is not None:
        yield Agreed(f"Right answers, by the field {command.truth}", report.truth)
