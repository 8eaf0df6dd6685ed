"""Facts → Beam counters (namespace `beam_llm`) and listeners. Counters belong to the thread and step that posts them."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Sequence, Set
from itertools import groupby
from typing import Any

from apache_beam.io.components.adaptive_throttler import ThrottlingSignaler
from apache_beam.metrics import Metrics
from apache_beam.metrics.execution import MetricsEnvironment

from beam_llm import events
from beam_llm.calls import Tally
from beam_llm.errors import Kind
from beam_llm.values import Outcome

NAMESPACE = "beam_llm"
_log = logging.getLogger("beam_llm")
_logged: set[str] = set()
"""What this process has said once: a storm of odd replies is for the counters."""
_TALLIED = (
    "requests", "retries", "waits", "timeouts", "splits", "single_requests", "input_tokens", "output_tokens", "cached_tokens",
)  # fmt: skip


class Meter:
    """Posts what happened. Built in a DoFn's `setup`, used on its thread.

    `requests` are live calls, retries included; `job_requests` the lines of batch jobs that were answered.

    Counters: records, errors, errors_<kind>, reused, cost_micro_usd, job_requests, requests, retries, waits (of `retries`, those
    for which the server had asked), timeouts, splits, single_requests, input_tokens, output_tokens, cached_tokens,
    warnings_<what> (of replies), jobs_twice (an intent for which two remote jobs were found, the younger cancelled),
    jobs_in_doubt (creates that got no clear answer and were looked for), jobs_resubmitted (in doubt, with `on_doubt="resubmit"`),
    cumulativeThrottlingSeconds.
    Distributions: latency_ms, records_per_request.
    """

    def __init__(self) -> None:
        names = ("records", "errors", "reused", "cost_micro_usd", "job_requests", *_TALLIED)
        self._counters = {name: Metrics.counter(NAMESPACE, name) for name in names}
        self._by_kind = {kind: Metrics.counter(NAMESPACE, f"errors_{kind}") for kind in Kind.ALL}
        self._latency = Metrics.distribution(NAMESPACE, "latency_ms")
        self._packed = Metrics.distribution(NAMESPACE, "records_per_request")
        self._throttled = ThrottlingSignaler(NAMESPACE)
        self._owed_seconds = 0.0
        self._owed_micro_usd = 0.0

    def calls(self, records: int, tally: Tally, *, tokens: bool = True) -> None:
        """Live requests made for one prompt batch of `records` records; `tokens` False where `job_answers` will count theirs."""
        for name in _TALLIED if tokens else _TALLIED[:-3]:
            count = getattr(tally, name)
            if count:
                self._counters[name].inc(count)
        for latency in tally.latency_ms:
            self._latency.update(latency)
        if tally.requests:
            self._packed.update(records)
        self.happened(Counter({f"warnings_{what}": count for what, count in tally.warnings.items()}))
        self._owed_seconds += tally.throttled_seconds
        if self._owed_seconds >= 1:
            self._throttled.signal_throttled(int(self._owed_seconds))
            self._owed_seconds %= 1

    def outcomes(self, outcomes: Sequence[Outcome], requests: int = 0, retries: int = 0) -> None:
        """Records that have ended."""
        failures = [outcome.failure for outcome in outcomes if outcome.failure is not None]
        for failure in failures:
            self._by_kind[failure.kind].inc()
        reused = sum([outcome.reused for outcome in outcomes if outcome.failure is None])
        cost_usd = sum([outcome.cost_usd or 0.0 for outcome in outcomes])
        self._post(len(outcomes), len(failures), reused, cost_usd * 1e6)
        events.tell("answered", records=len(outcomes), errors=len(failures), requests=requests, retries=retries, cost_usd=cost_usd)

    def _post(self, records: int, errors: int, reused: int, micro_usd: float) -> None:
        self._counters["records"].inc(records)
        if errors:
            self._counters["errors"].inc(errors)
        if reused:
            self._counters["reused"].inc(reused)
        # A call may cost less than a micro-dollar: what is not whole yet is counted with the next.
        self._owed_micro_usd += micro_usd
        if self._owed_micro_usd >= 1:
            self._counters["cost_micro_usd"].inc(int(self._owed_micro_usd))
            self._owed_micro_usd %= 1

    def job_answers(self, outcomes: Sequence[Outcome], live: Set[str | None]) -> None:
        """Tokens of answers that came by a batch job, or by live calls for what it left over; and the lines of jobs that they were in.

        A line is a run of outcomes with one request id; those in `live` were counted as calls.
        """
        totals = [sum(column) for column in zip(*[outcome.usage for outcome in outcomes], strict=True)]
        for name, total in zip(("input_tokens", "output_tokens", "cached_tokens"), totals, strict=False):
            if total:
                self._counters[name].inc(total)
        request_ids = [outcome.request_id for outcome in outcomes if not outcome.reused]
        alone = set(request_ids)
        if len(alone) == len(request_ids) and alone.isdisjoint(live):  # one record per line, as in most jobs
            lines = [1] * len(request_ids)
        else:
            lines = [sum(1 for _ in members) for request_id, members in groupby(request_ids) if request_id not in live]
        if lines:
            self._counters["job_requests"].inc(len(lines))
            self._update(self._packed, lines)

    def happened(self, counted: Counter[str]) -> None:
        """Posts what an engine or a driver counted, and clears it; the first of each kind is logged, too."""
        for name, count in counted.items():
            Metrics.counter(NAMESPACE, name).inc(count)
            if name.startswith("warnings_") and name not in _logged:
                _logged.add(name)
                _log.warning("%s; the counter %s counts more", events.warning_in_words(name.removeprefix("warnings_")), name)
        counted.clear()

    def _update(self, distribution: Any, values: Iterable[int]) -> None:
        """What `update` does for each of `values`, but finds its cell once: that takes five times as long as the rest."""
        container = MetricsEnvironment.current_container()
        if container is None:
            return  # outside of a bundle nothing is counted
        cell = container.get_distribution(distribution.metric_name)
        for value in values:
            cell.update(value)
