"""`beam-llm report --staging DIR`: a page of what the ledger there knows about all jobs, whoever
ran them.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence

from beam_llm import config
from beam_llm.cli.exit_codes import ALL_ANSWERED
from beam_llm.cli.jobs import store_at
from beam_llm.cli.reporting.page import ErrorKind, Example, Figure, Page, Table
from beam_llm.cli.reporting.render import check_report_path, write_report
from beam_llm.cli.reporting.shared import (
    ADVICE,
    display_message,
    job_table,
    spans,
    versions,
)
from beam_llm.cli.words import dollars, percent, price
from beam_llm.errors import LLMError, UsageError, plural, printable
from beam_llm.jobs import JobView, admin
from beam_llm.ledger import Ledger
from beam_llm.ledger.job_tree import JobTree
from beam_llm.ledger.outcomes import Outcomes
from beam_llm.pricing import Prices
from beam_llm.protocols import Store
from beam_llm.values import Usage

EXAMPLES = 3


def main(args: argparse.Namespace) -> int:
    """Writes the page and prints where it is."""
    check_report_path(args.report)
    page = page_of_staging(store_at(args.staging_location), redacted=args.redact)
    write_report(args.report, page)
    print(printable(args.report))
    return ALL_ANSWERED


def page_of_staging(store: Store, *, redacted: bool) -> Page:
    """All jobs of a ledger, for people. The provider is not asked.

    Raises:
      LedgerError: the ledger is damaged, or of a newer format.
    """
    jobs = admin.list_jobs(store)
    errors = _Errors(store)
    count = sum(job.kind != "live" for job in jobs)
    return Page(
        title=f"{plural(count, 'batch job')} in {store.location}",
        subtitle="What the ledger knows; the provider was not asked.",
        headline=list(_headline(jobs, errors)),
        tables=[_model_table(jobs), job_table(jobs)],
        warnings=list(_oddities(jobs)),
        errors=list(errors.error_kinds(redacted)),
        jobs=spans(jobs),
        versions=versions(),
        now=time.time(),
    )


def _headline(jobs: Sequence[JobView], errors: _Errors) -> Iterator[Figure]:
    states = ["done" if job.state == "done" else "open" for job in jobs if job.kind != "live"]
    still_open = states.count("open")
    yield Figure("jobs", f"{len(states):,}", f"{still_open:,} open" if still_open else "")
    # Records of follow-ups and halves are counted with their parents.
    records = sum(job.records for job in jobs if job.kind == "job")
    yield Figure("records", f"{records:,}", f"{errors.answered:,} answered")
    failed = sum(errors.counts.values())
    yield Figure("errors", f"{failed:,}", "", "bad" if failed else "good")
    cost = errors.paid_usd
    yield Figure("cost", dollars(cost), "known prices only" if _has_unpriced(jobs) else "")
    live = _live_cost(jobs)
    if live is not None and live > 0:
        paid = sum(job.cost_usd or 0.0 for job in jobs)
        note = f"{percent((live - paid) / live)} of {dollars(live)} (the same prompts, live)"
        yield Figure("saved: live", dollars(max(live - paid, 0.0)), note, "good")
    tokens_in = sum(job.input_tokens for job in jobs)
    tokens_out = sum(job.output_tokens for job in jobs)
    yield Figure("tokens", f"{tokens_in:,} in", f"{tokens_out:,} out")


def _has_unpriced(jobs: Sequence[JobView]) -> bool:
    return any(job.state == "done" and job.cost_usd is None for job in jobs)


def _live_cost(jobs: Sequence[JobView]) -> float | None:
    """What the same tokens cost by live calls; None where a price is not known."""
    total = 0.0
    for job in jobs:
        try:
            # Settings require a key and an address, though prices depend on the model alone.
            prices = Prices.of(config.settings(job.model, api_key="none", base_url="https://none"))
        except UsageError:
            return None
        cost = prices.total_usd(Usage(job.input_tokens, job.output_tokens), job.lines)
        if cost is None or (job.state == "done" and job.cost_usd is None):
            return None
        total += cost
    return total


def _model_table(jobs: Sequence[JobView]) -> Table:
    by_model: defaultdict[str, list[JobView]] = defaultdict(list)
    for job in jobs:
        by_model[job.model].append(job)
    rows = [
        (
            model,
            f"{sum(job.kind != 'live' for job in model_jobs):,}",
            f"{sum(job.answered for job in model_jobs):,}",
            f"{sum(job.input_tokens for job in model_jobs):,}",
            f"{sum(job.output_tokens for job in model_jobs):,}",
            price(
                None
                if _has_unpriced(model_jobs)
                else sum(job.cost_usd or 0.0 for job in model_jobs)
            ),
        )
        for model, model_jobs in sorted(by_model.items())
    ]
    header = ("model", "jobs", "answered", "tokens in", "tokens out", "cost")
    return Table("Models: tokens and cost", header, rows, (0,), "With live calls for leftovers.")


def _oddities(jobs: Sequence[JobView]) -> Iterator[str]:
    kinds = Counter(job.kind for job in jobs)
    if kinds["follow_up"]:
        yield f"{plural(kinds['follow_up'], 'follow-up')} for what a job left over"
    if kinds["half"]:
        yield f"{plural(kinds['half'], 'half')} of jobs too large for the provider's queue"
    again = sum(job.attempts - 1 for job in jobs)
    if again > 0:
        yield f"{plural(again, 'further attempt')} at creating a job"
    if doubles := sum(job.doubles for job in jobs):
        yield f"{plural(doubles, 'double')} found at the provider and cancelled"
    if live := sum(job.records for job in jobs if job.kind == "live"):
        yield f"{plural(live, 'record')} asked by live calls, since jobs had left them over"
    ended = Counter(job.ended for job in jobs if job.ended and job.kind != "live")
    for state, count in ended.most_common():
        yield f"{plural(count, 'job')} ended as {state}"
    if queued := sum(job.state in ("queued", "doubt") for job in jobs):
        yield f"{plural(queued, 'job')} queued or in doubt"


class _Errors:
    """How the records of all finished jobs ended.

    Attributes:
      answered: records with an answer.
      counts: records without one, by kind.
      paid_usd: what all of it cost, with live calls for leftovers.
    """

    def __init__(self, store: Store):
        self._store = store
        self._examples: dict[str, list[Example]] = {}
        self.counts: Counter[str] = Counter()
        self.paid_usd = 0.0
        ledger = Ledger(store)
        for intent in ledger.intents():
            tree = JobTree(ledger, intent.number)
            counts, paid = tree.totals()
            self.counts.update(counts)
            self.paid_usd += paid
            for intent, done in tree.nodes:
                if done is not None and done.outcomes is not None:
                    self._collect_examples(f"job {intent.job}", done.outcomes, done.counts)
        # The ledger counts answers under the empty kind.
        self.answered = self.counts.pop("", 0)

    def _collect_examples(self, place: str, name: str, counts: dict[str, int]) -> None:
        wanted = [
            kind
            for kind in counts
            if kind and counts[kind] and len(self._examples.get(kind, ())) < EXAMPLES
        ]
        if not wanted:
            return
        try:
            outcomes = Outcomes(self._store, name)
            for kind in wanted:
                self._add_examples(place, kind, outcomes)
            outcomes.close()
        except LLMError as error:  # the page is written nevertheless, and shows what is damaged
            self._examples.setdefault(wanted[0], []).append(Example(place, str(error), ""))

    def _add_examples(self, place: str, kind: str, outcomes: Outcomes) -> None:
        examples = self._examples.setdefault(kind, [])
        keys = outcomes.of_kinds(frozenset({kind}))[: EXAMPLES - len(examples)]
        positions = outcomes.positions(keys).tolist()
        for outcome in outcomes.many(positions, [True] * len(positions)):
            if outcome.failure is not None:
                examples.append(Example(place, outcome.failure.message, ""))

    def error_kinds(self, redacted: bool) -> Iterator[ErrorKind]:
        for kind, count in self.counts.most_common():
            examples = [
                example._replace(message=display_message(example.message, redacted))
                for example in self._examples.get(kind, ())
            ]
            yield ErrorKind(kind, count, ADVICE.get(kind, ""), examples)
