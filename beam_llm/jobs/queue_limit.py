"""Jobs that don't fit the provider's queue: how much of one may be sent, decided once and written down before it is sent.

    limits/<digest>              what is known of a model's limit on enqueued tokens
    jobs/<number>/closed-<a>     of a refusal by the queue also: `limit` as stated, `alone`: nothing else was pending (null: not known)
    jobs/<number>/narrowed-<a>   from attempt a on the job sends only its first `lines` lines; the rest is left to the next link

A limit is on tokens, tokens here are estimates, and other jobs of the organization may be invisible. So narrowing is lavish (it costs
only a further link), and a record is given up only where it was tried alone.
"""

from __future__ import annotations

import hashlib
import logging
from itertools import takewhile
from typing import Any, NamedTuple

import numpy as np
import orjson

from beam_llm.config import Settings
from beam_llm.errors import CallError, Failure, Kind, QueueFull
from beam_llm.jobs.collect import Ending
from beam_llm.jobs.columns import Array
from beam_llm.jobs.documents import read_json
from beam_llm.jobs.failpoints import reached
from beam_llm.jobs.ledger import Intent
from beam_llm.jobs.manifest import Manifest
from beam_llm.jobs.parts import PartReader
from beam_llm.jobs.status import folder
from beam_llm.jobs.steps import translated
from beam_llm.prompting.batching import RECORD_OVERHEAD_TOKENS
from beam_llm.protocols import BatchProvider, Clock, RemoteJob, Store, Task

_LOG = logging.getLogger(__name__)

PATIENCE = 3
"""Refusals in a row, with nothing else pending, after which a job is taken to be too large itself."""
_LOOK_BACK = 12
LIMIT_SECONDS = 7 * 86_400.0
"""So long a limit is believed: organizations are moved to higher tiers, and nobody tells the ledger."""


def known_limit(store: Store, host: str, model: str, now: float) -> int | None:
    """Estimated tokens that one job of this model may have, as far as this ledger has learned."""
    doc = read_json(store, _limit_name(host, model))
    if doc is None or now - float(doc["at"]) > LIMIT_SECONDS:
        return None
    return min((int(doc[word]) for word in ("stated", "found") if doc.get(word)), default=None)


def note_limit(store: Store, host: str, model: str, now: float, **news: int | None) -> None:
    """Keeps a limit for later plans.

    Args:
      news: `stated` by the provider, or `found` by trying. What was found under another stated limit no longer holds.
    """
    before = read_json(store, _limit_name(host, model)) or {}
    doc = {"format": 1, "host": host, "model": model, "stated": before.get("stated"), "found": before.get("found"), **news}
    if "stated" in news and news["stated"] != before.get("stated"):
        doc["found"] = None
    if any(doc[word] != before.get(word) for word in ("stated", "found")) or now - float(before.get("at", now)) > LIMIT_SECONDS / 7:
        store.put(_limit_name(host, model), orjson.dumps({**doc, "at": now}))
        reached("limit.noted")


def _limit_name(host: str, model: str) -> str:
    return f"limits/{hashlib.sha256(f'{host} {model}'.encode()).hexdigest()[:32]}"


def line_tokens(store: Store, manifest: Manifest, task: Task) -> Array:
    """Estimated input tokens of each line, as the planner reckons them."""
    tokens = np.zeros(len(manifest), dtype=np.int64)
    for number, name in enumerate(manifest.parts):
        rows = np.flatnonzero(manifest.part == number)
        reader = PartReader(store, name)
        try:
            tokens[rows] = reader.tokens[manifest.row[rows]]
        finally:
            reader.close()
    assert manifest.line_starts is not None
    starts = manifest.line_starts.astype(np.int64)
    sums: Array = np.add.reduceat(tokens, starts[:-1]) + np.diff(starts) * RECORD_OVERHEAD_TOKENS + task.shared_tokens
    return sums


class _Fit(NamedTuple):
    """What a job may send: its first `lines` lines of so many `tokens` (None: not reckoned yet), since attempt `since`."""

    lines: int
    tokens: int | None
    since: int


class Narrower:
    """Decides how much of a job goes into its next attempt. Only the holder of the job's lease asks it to."""

    def __init__(self, settings: Settings, task: Task, store: Store, provider: BatchProvider, clock: Clock):
        self._settings, self._task, self._store, self._provider, self._time = settings, task, store, provider, clock.time

    def refused(self, intent: Intent, error: QueueFull) -> dict[str, Any]:
        """What the ledger is to remember of a refusal by the queue."""
        limit = error.limit_tokens
        if limit is not None:
            note_limit(self._store, intent.host, intent.model, self._time(), stated=limit)
        return {"limit": limit, "alone": self._is_alone(intent)}

    def lines(self, intent: Intent, attempt: int) -> int | Ending:
        """How many of the job's lines this attempt sends; or how the job ends, where not even one fits."""
        fit = self._newest(intent)
        refusals = self._refusals(intent.number, fit.since, attempt)
        stated = refusals[0]["limit"] if refusals else None
        limit = self._limit(intent, stated)
        if limit is None and not refusals:
            return fit.lines
        fit = self._reckoned(intent, fit)
        assert fit.tokens is not None
        alone = self._alone(refusals)
        if fit.lines == 1:
            return self._single(intent, fit.tokens, stated, alone, refusals[0]["alone"] is None) if refusals else 1
        if limit is not None and fit.tokens > limit:
            return self._narrowed(intent, attempt, fit, limit)
        if alone >= PATIENCE and (stated is None or fit.tokens > stated // 2):
            return self._narrowed(intent, attempt, fit, None)
        return fit.lines

    def went_through(self, intent: Intent, lines: int) -> None:
        """A job has ended well: where a limit was only found by trying, twice as much may be tried next."""
        doc = read_json(self._store, _limit_name(intent.host, intent.model)) or {}
        if doc.get("found"):
            fit = self._reckoned(intent, self._newest(intent))
            if fit.lines == lines and fit.tokens is not None and 2 * fit.tokens > doc["found"]:
                note_limit(self._store, intent.host, intent.model, self._time(), found=2 * fit.tokens)

    def _newest(self, intent: Intent) -> _Fit:
        prefix = folder(intent.number) + "narrowed-"
        names = sorted(self._store.list(prefix))
        doc = read_json(self._store, names[-1]) if names else None
        if doc is None:
            return _Fit(intent.line_count, intent.tokens if intent.root else None, 0)
        return _Fit(int(doc["lines"]), int(doc["tokens"]), int(names[-1].removeprefix(prefix)))

    def _reckoned(self, intent: Intent, fit: _Fit) -> _Fit:
        return fit if fit.tokens is not None else fit._replace(tokens=int(self._line_tokens(intent).sum()))

    def _line_tokens(self, intent: Intent) -> Array:
        return line_tokens(self._store, self._own_lines(intent), self._task)

    def _own_lines(self, intent: Intent) -> Manifest:
        return Manifest.read(self._store, intent.lines).first(intent.line_count)

    def _refusals(self, number: int, since: int, attempt: int) -> list[dict[str, Any]]:
        """Those of the latest attempts that the queue refused, newest first."""
        tried = range(attempt - 1, max(since, attempt - _LOOK_BACK) - 1, -1)
        docs = [read_json(self._store, f"{folder(number)}closed-{earlier:04d}") for earlier in tried]
        return [doc for doc in docs if doc is not None and "alone" in doc]

    def _alone(self, refusals: list[dict[str, Any]]) -> int:
        """How many of the last refusals in a row found nothing else pending; none, while a job may just not be listed yet."""
        row = list(takewhile(lambda doc: doc["alone"], refusals))
        return len(row) if row and row[0]["at"] - row[-1]["at"] >= self._settings.list_lag_seconds else 0

    def _limit(self, intent: Intent, stated: int | None) -> int | None:
        """What the last refusal said, and what the ledger knows; the latter only where the user has no number of their own."""
        known = None
        if self._settings.job_max_tokens is None:
            known = known_limit(self._store, intent.host, intent.model, self._time())
        return min((limit for limit in (stated, known) if limit is not None), default=None)

    def _narrowed(self, intent: Intent, attempt: int, fit: _Fit, limit: int | None) -> int:
        """Writes the narrowing down: to what fits `limit`, or else to half. Of several that do so at once the first decides."""
        sums = np.cumsum(self._line_tokens(intent)[: fit.lines])
        lines = fit.lines // 2 if limit is None else max(int(np.searchsorted(sums, limit, side="right")), 1)
        if lines >= fit.lines:
            return fit.lines
        tokens = int(sums[lines - 1])
        doc = {"format": 1, "lines": lines, "tokens": tokens, "limit": limit, "at": self._time()}
        if limit is None:
            note_limit(self._store, intent.host, intent.model, self._time(), found=tokens)
        if self._store.create(f"{folder(intent.number)}narrowed-{attempt:04d}", orjson.dumps(doc)):
            why = f"limit of {limit:,} enqueued tokens" if limit is not None else "queue, which refused it with nothing else pending"
            _LOG.info("job %d: sends %d of %d lines, for the provider's %s", intent.number, lines, intent.line_count, why)
        reached("narrowed")
        return self._newest(intent).lines

    def _single(self, intent: Intent, tokens: int, stated: int | None, alone: int, unseen: bool) -> int | Ending:
        """One line, refused. It is too large where its estimate says so and it was refused again and again with nothing else pending
        (`unseen`: where that can't be told, the estimate must say so by far). So is then every line as large, in tokens and records.

        Prompts of several records are asked record by record; a record alone has its error.
        """
        own = self._own_lines(intent)
        assert own.line_starts is not None
        counts = np.diff(own.line_starts)
        if stated is not None and tokens > stated and (alone >= PATIENCE or (tokens > 2 * stated and unseen)):
            failure = _too_large(tokens, stated)
        elif stated is None and alone >= 2 * PATIENCE:
            note_limit(self._store, intent.host, intent.model, self._time(), found=None)  # it was not the size
            said = f"the provider's queue refused even one request of about {tokens:,} tokens with nothing else pending, naming no limit"
            failure = Failure(Kind.RATE_LIMITED, said)
            if counts[0] == 1:
                return Ending("queue", failure, True, {})
        else:
            return 1
        sizes = line_tokens(self._store, own, self._task)
        as_large = np.flatnonzero((sizes >= sizes[0]) & (counts >= counts[0]))  # `tokens` may be another batch size's estimate
        return Ending("too_large", failure, True, dict.fromkeys(as_large.tolist(), failure), 1)

    def _is_alone(self, intent: Intent) -> bool | None:
        """Whether the provider has no other job under way, as far as it lists them; None where that can't be told."""
        try:
            pending = translated(self._provider.pending)
        except CallError:
            return None
        return all(self._is_of_another_model(job, intent) for job in pending)

    def _is_of_another_model(self, job: RemoteJob, intent: Intent) -> bool:
        """Limits are per model. Of jobs that are not this ledger's, the model is not known."""
        ledger, _, rest = (job.name or "").partition("-")
        number = rest.partition("-")[0]
        if ledger != intent.fingerprint.partition("-")[0] or not number.isdigit():
            return False
        other = read_json(self._store, f"log/{int(number):020d}") or {}
        return bool(other) and (other.get("model"), other.get("host")) != (intent.model, intent.host)


def _too_large(tokens: int, limit: int) -> Failure:
    return Failure(
        Kind.TOO_LARGE, f"a request of about {tokens:,} tokens exceeds the provider's limit of {limit:,} enqueued tokens for batch jobs"
    )
