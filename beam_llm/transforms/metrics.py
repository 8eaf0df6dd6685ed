"""Posts what happened as Beam counters (namespace `beam_llm`), and tells listeners. Counters belong
to the thread and the step that posts them.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence, Set
from itertools import groupby

from apache_beam.metrics import Metrics

from beam_llm import events
from beam_llm.calls import Tally
from beam_llm.errors import Kind
from beam_llm.transforms.beam_internals import update_all
from beam_llm.values import Outcome, Usage

NAMESPACE = "beam_llm"
_log = logging.getLogger("beam_llm")
LOGGED: set[str] = set()
"""Warnings that this process has logged once; after that only the counters count."""
_OF_CALLS = (
    *("requests", "retries", "waits", "timeouts", "splits", "single_requests"),
    *("guard_compared", "guard_agreed", "guard_halvings"),
)
_OF_TOKENS = Usage._fields


class Meter:
    """Posts what happened. Built in a DoFn's `setup`, used on its thread.

    `requests` are live calls, retries included; `job_requests` the lines of batch jobs that were
    answered.

    Counters: records, errors, errors_<kind>, reused, cost_micro_usd, job_requests, requests,
    retries, waits (of `retries`, those for which the server had asked), timeouts, splits,
    single_requests, guard_compared (records that were asked alone as well), guard_agreed (of these,
    the same answer), guard_halvings (prompts made smaller for it), input_tokens, output_tokens,
    cached_tokens, cache_write_tokens, reasoning_tokens, warnings_<what> (of replies),
    jobs_twice (an intent for which two remote jobs were found, the younger cancelled),
    jobs_in_doubt (creates that got no clear answer and were looked for), jobs_resubmitted (in
    doubt, with `on_doubt="resubmit"`), cumulativeThrottlingSeconds.
    Distributions: latency_ms, records_per_request.
    """

    def __init__(self) -> None:
        names = (
            "records",
            "errors",
            "reused",
            "cost_micro_usd",
            "job_requests",
            *_OF_CALLS,
            *_OF_TOKENS,
        )
        self._counters = {name: Metrics.counter(NAMESPACE, name) for name in names}
        self._by_kind = {kind: Metrics.counter(NAMESPACE, f"errors_{kind}") for kind in Kind.ALL}
        self._latency = Metrics.distribution(NAMESPACE, "latency_ms")
        self._packed = Metrics.distribution(NAMESPACE, "records_per_request")
        # By this counter runners know that a step is being throttled; Dataflow does not scale it up
        # then.
        self._throttled = Metrics.counter(NAMESPACE, "cumulativeThrottlingSeconds")
        self._owed_seconds = 0.0
        self._owed_micro_usd = 0.0

    def calls(self, packed: Sequence[int], tally: Tally, *, tokens: bool = True) -> None:
        """Live requests made for prompt batches of so many records each; `tokens` False where
        `job_answers` will count theirs.
        """
        for name in (*_OF_CALLS, *_OF_TOKENS) if tokens else _OF_CALLS:
            count = getattr(tally, name)
            if count:
                self._counters[name].inc(count)
        update_all(self._latency, tally.latency_ms)
        if tally.requests:
            update_all(self._packed, packed)
        self.post(Counter({f"warnings_{what}": count for what, count in tally.warnings.items()}))
        self._owed_seconds += tally.throttled_seconds
        # Counters are whole numbers: the rest of a second is posted with the next ones.
        if self._owed_seconds >= 1:
            self._throttled.inc(int(self._owed_seconds))
            self._owed_seconds %= 1

    def outcomes(self, outcomes: Sequence[Outcome], tally: Tally | None = None) -> None:
        """Counts records that have ended, with the tally of their live calls, if they had some."""
        failures = [outcome.failure for outcome in outcomes if outcome.failure is not None]
        for failure in failures:
            self._by_kind[failure.kind].inc()
        reused = sum([outcome.reused for outcome in outcomes if outcome.failure is None])
        cost_usd = sum([outcome.cost_usd or 0.0 for outcome in outcomes])
        self._count(len(outcomes), len(failures), reused, cost_usd * 1e6)
        events.tell(
            "answered",
            records=len(outcomes),
            errors=len(failures),
            requests=0 if tally is None else tally.requests,
            retries=0 if tally is None else tally.retries,
            latency_ms=() if tally is None else tally.latency_ms,
            cost_usd=cost_usd,
        )

    def _count(self, records: int, errors: int, reused: int, micro_usd: float) -> None:
        self._counters["records"].inc(records)
        if errors:
            self._counters["errors"].inc(errors)
        if reused:
            self._counters["reused"].inc(reused)
        # A call may cost less than a micro-dollar: fractions are counted with the next ones.
        self._owed_micro_usd += micro_usd
        if self._owed_micro_usd >= 1:
            self._counters["cost_micro_usd"].inc(int(self._owed_micro_usd))
            self._owed_micro_usd %= 1

    def job_answers(self, outcomes: Sequence[Outcome], live: Set[str | None]) -> None:
        """Counts the tokens of answers from a batch job, or from live calls for its leftovers, and
        the job lines that they were in.

        A line is a run of outcomes with one request id; those in `live` were counted as calls.
        """
        # Transposed for speed: sums over attributes take three times as long.
        totals = [
            sum(column) for column in zip(*[outcome.usage for outcome in outcomes], strict=True)
        ]
        for name, total in zip(Usage._fields, totals, strict=False):
            if total:
                self._counters[name].inc(total)
        request_ids = [outcome.request_id for outcome in outcomes if not outcome.reused]
        alone = set(request_ids)
        # One record per line, as in most jobs.
        if len(alone) == len(request_ids) and alone.isdisjoint(live):
            lines = [1] * len(request_ids)
        else:
            lines = [
                sum(1 for _ in members)
                for request_id, members in groupby(request_ids)
                if request_id not in live
            ]
        if lines:
            self._counters["job_requests"].inc(len(lines))
            update_all(self._packed, lines)

    def post(self, counted: Counter[str]) -> None:
        """Posts what an engine or a driver counted, and clears it; the first of each kind is
        logged, too.
        """
        for name, count in counted.items():
            Metrics.counter(NAMESPACE, name).inc(count)
            if name.startswith("warnings_") and name not in LOGGED:
                LOGGED.add(name)
                _log.warning(
                    "%s; the counter %s counts more",
                    events.warning_in_words(name.removeprefix("warnings_")),
                    name,
                )
        counted.clear()
