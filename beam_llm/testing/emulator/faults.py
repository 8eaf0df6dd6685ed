"""Scripted faults: what goes wrong, where, and when (by probability, by nth call, by record text).

    Emulator(
        faults=[
            Fault("rate_limit", probability=0.05, retry_after=0.1),
            Fault("poison", text="curse"),
            Fault("create_lost", nth=1),
        ]
    )

Decisions are hashes of the seed and of their subject, not draws from a shared random generator: the
same script affects the same calls in the same way, even after the emulator was killed and
restarted.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_ANSWERS = ("chat", "line")

# Every kind, with the operations that it affects unless `where` names another. A `line` is one
# request inside a batch job; a `job` fault is decided when the job is created, and stays with it.
KINDS: dict[str, tuple[str, ...]] = {
    # Answers with an error status, before any work; on any operation through `where`.
    "rate_limit": _ANSWERS,
    "insufficient_quota": _ANSWERS,
    "unauthorized": _ANSWERS,
    "forbidden": _ANSWERS,
    "model_not_found": _ANSWERS,
    "server_error": _ANSWERS,
    "poison": _ANSWERS,
    # The connection and the clock.
    "drop_before": ("chat",),
    "drop_after": ("chat",),
    "hang": ("chat",),
    "slow": ("chat",),
    "garbage_body": ("chat",),
    "endless_body": ("chat",),
    # The reply's form.
    "malformed_json": _ANSWERS,
    "prose": _ANSWERS,
    "fence": _ANSWERS,
    "truncated": _ANSWERS,
    "refusal": _ANSWERS,
    "content_filter": _ANSWERS,
    "empty_choices": _ANSWERS,
    "null_content": _ANSWERS,
    # The reply's answers.
    "missing": _ANSWERS,
    "shuffled": _ANSWERS,
    "duplicate": _ANSWERS,
    "conflicting": _ANSWERS,
    "unknown_index": _ANSWERS,
    "zero_based": _ANSWERS,
    "string_index": _ANSWERS,
    "invalid_value": _ANSWERS,
    # Lines of a batch job's result files.
    "line_missing": ("line",),
    "line_error": ("line",),
    "line_duplicate": ("line",),
    "line_conflicting": ("line",),
    "line_unknown": ("line",),
    # Files and jobs.
    "upload_cut": ("upload",),
    "file_pending": ("upload",),
    "content_cut": ("content",),
    "create_lost": ("create",),
    "create_late": ("create",),
    "token_limit_at_create": ("create",),
    "validation": ("job",),
    "token_limit": ("job",),
    "expire": ("job",),
    "stuck": ("job",),
    "status_word": ("job",),
    "output_missing": ("job",),
    "empty_error_file": ("job",),
    "null_counts": ("job",),
    "cut_last_line": ("job",),
    "input_order": ("job",),
    "list_lag": ("job",),
    "retrieve_missing": ("job",),
}
OPERATIONS = (
    "chat",
    "line",
    "upload",
    "file",
    "content",
    "create",
    "job",
    "retrieve",
    "list",
    "cancel",
    "delete",
)
# The first group of the table above: those that answer with an error status.
STATUS_KINDS = frozenset(list(KINDS)[:7])


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One thing that goes wrong. All given conditions have to hold; without any, it always happens.

    Attributes:
      kind: a word of `KINDS`.
      where: an operation of `OPERATIONS`; by default those that `KINDS` names.
      probability: 0 … 1, seeded.
      nth: which of the matching calls it affects, counted from 1 (a number or several); in a job,
        which line of the file.
      after: it happens only after this number of matching calls has succeeded, as with a withdrawn
        key or a spent quota.
      times: it happens at most this number of times.
      text: a substring of one of the call's records (or, for `job` faults, of the input file's
        first line).
      pattern: a regular expression found in one of the call's records.
      status: the HTTP status, where the kind leaves a choice (`server_error`: 500, 502, 503, 529;
        `rate_limit` on create: 409).
      code, message: those of the error body, in place of the usual ones; for `status_word`,
        `message` is the word.
      retry_after: the seconds in the reply's `retry-after` headers; None sends no such headers.
      seconds: how long it lasts, for `slow`, `hang`, `list_lag`, `retrieve_missing`, `status_word`
        and `stuck` (the last two: 0 means for ever); for `file_pending`, how long until a job may
        use an upload, as with Azure; for `create_late`, how much later the job is created, after
        the connection broke.
      lines: the 1-based numbers of the lines that a `validation` fault reports.
      done: how many lines of an expired job were done: a number, or a share below 1.
    """

    kind: str = dataclasses.field(kw_only=False)
    where: str | None = None
    probability: float = 1.0
    nth: int | tuple[int, ...] | None = None
    after: int = 0
    times: int | None = None
    text: str | None = None
    pattern: str | None = None
    status: int | None = None
    code: str | None = None
    message: str | None = None
    retry_after: float | None = None
    seconds: float = 0.0
    lines: tuple[int, ...] = (1,)
    done: float = 0.5

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"no fault {self.kind!r}; known: {', '.join(KINDS)}")
        if self.where is not None and self.where not in OPERATIONS:
            raise ValueError(f"no operation {self.where!r}; known: {', '.join(OPERATIONS)}")

    @property
    def operations(self) -> tuple[str, ...]:
        """The operations that it may affect."""
        return KINDS[self.kind] if self.where is None else (self.where,)

    def matches(self, text: str) -> bool:
        """Whether this fault applies to a record with this text."""
        return (self.text is None or self.text in text) and (
            self.pattern is None or re.search(self.pattern, text) is not None
        )

    @property
    def reads_text(self) -> bool:
        """Whether it applies to certain records only."""
        return self.text is not None or self.pattern is not None

    def to_json(self) -> dict[str, Any]:
        """The fault as an entry of a file of faults."""
        # Without attributes that are not set: nulls in a file of faults are refused.
        return {
            name: value for name, value in dataclasses.asdict(self).items() if value is not None
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Fault:
        """The fault that an entry of a file of faults describes."""
        values: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in data.items()
        }
        return cls(**values)


def load_faults(path: str) -> list[Fault]:
    """Reads a JSON file: a list of objects such as `{"kind": "rate_limit", "probability": 0.05}`.

    Raises:
      ValueError: the file is not such a list; the message names the file and the entry.
    """
    with open(path, encoding="utf-8") as file:
        text = file.read()
    try:
        entries = _list_of(text)
        return [_read_fault(number, entry) for number, entry in enumerate(entries, 1)]
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _list_of(text: str) -> list[Any]:
    instead = 'expected a JSON list of faults, such as [{"kind": "rate_limit"}]'
    try:
        entries = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{error}: {instead}") from None
    if not isinstance(entries, list):
        raise ValueError(instead)
    return entries


def _read_fault(number: int, entry: Any) -> Fault:
    """Checks and reads a fault that somebody wrote by hand: a wrong type would fail only inside the
    server, at the fault's first call.
    """
    if not isinstance(entry, dict) or "kind" not in entry:
        raise ValueError(f'fault {number}: expected an object such as {{"kind": "rate_limit"}}')
    for name, value in entry.items():
        if name not in _TYPES:
            raise ValueError(
                f"fault {number} has no attribute {name!r}; known: {', '.join(_TYPES)}"
            )
        kind = _TYPES[name]
        values = value if isinstance(value, list) and name in ("nth", "lines") else [value]
        if not all(isinstance(one, kind) and not isinstance(one, bool) for one in values):
            raise ValueError(f"fault {number}: {name} is {value!r}, which is not {_WORDS[kind]}")
    return Fault.from_json(entry)


_TEXT, _INTEGER, _NUMBER = (str,), (int,), (int, float)
_WORDS = {_TEXT: "a text", _INTEGER: "a whole number", _NUMBER: "a number"}
_TYPES: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("kind", "where", "text", "pattern", "code", "message"), _TEXT),
    **dict.fromkeys(("nth", "after", "times", "status", "lines"), _INTEGER),
    **dict.fromkeys(("probability", "retry_after", "seconds", "done"), _NUMBER),
}


class FaultScript:
    """Decides which faults strike. Counts calls, thread-safe.

    Args:
      faults: the script.
      seed: with another seed, faults strike other calls.
      counts: for each fault, how many calls matched and how often it struck, before the emulator
        was restarted (`times` and `nth` go on counting).
      save: called with the new counts after a call that faults with `times`, `nth` or `after` might
        affect.
    """

    def __init__(
        self,
        faults: Iterable[Fault] = (),
        seed: int = 0,
        counts: Sequence[tuple[int, int]] | None = None,
        save: Callable[[list[tuple[int, int]]], None] | None = None,
    ) -> None:
        self._faults = tuple(faults)
        self._seed = seed
        self._save = save
        self._lock = threading.Lock()
        # Another script's counts belong to other faults; it is known by its number of faults.
        fits = counts is not None and len(counts) == len(self._faults)
        self._seen = [seen for seen, _ in counts] if fits and counts else [0] * len(self._faults)
        self._fired = [fired for _, fired in counts] if fits and counts else [0] * len(self._faults)
        self._by_operation = {
            name: [number for number, fault in enumerate(self._faults) if name in fault.operations]
            for name in OPERATIONS
        }

    def __bool__(self) -> bool:
        return bool(self._faults)

    @property
    def faults(self) -> tuple[Fault, ...]:
        return self._faults

    def has(self, operation: str) -> bool:
        """Whether any fault could strike that operation."""
        return bool(self._by_operation[operation])

    def strike(
        self, operation: str, texts: Sequence[str] = (), salt: str = "", number: int | None = None
    ) -> tuple[Fault, ...]:
        """The faults that strike one call, in the script's order.

        Args:
          texts: the records the call is about.
          salt: identifies the call where it may be repeated (a job's line); without it, the count
            of matching calls is used.
          number: the 1-based number for `nth`, where that isn't the count of matching calls.
        """
        # All faults are checked, even after one has struck: each counts its own matching calls.
        struck = []
        counted = False
        with self._lock:
            for place in self._by_operation[operation]:
                fault = self._faults[place]
                if self._strikes(place, fault, texts, salt, number):
                    self._fired[place] += 1
                    struck.append(fault)
                counted = (
                    counted or fault.times is not None or fault.nth is not None or fault.after > 0
                )
            # Lines are answered again after a kill, so their counts are saved at their end.
            if counted and self._save is not None and operation != "line":
                self._save(self.counts())
        return tuple(struck)

    def counts(self) -> list[tuple[int, int]]:
        return list(zip(self._seen, self._fired, strict=True))

    def keep(self) -> None:
        """Saves the counts now (after a job's lines, which are not saved one by one)."""
        if self._save is not None and self._faults:
            self._save(self.counts())

    def _strikes(
        self, place: int, fault: Fault, texts: Sequence[str], salt: str, number: int | None
    ) -> bool:
        # Calls to which the fault doesn't apply don't count: `nth` is the nth call about that text.
        if fault.reads_text and not any(fault.matches(text) for text in texts):
            return False
        self._seen[place] += 1
        if fault.times is not None and self._fired[place] >= fault.times:
            return False
        if self._seen[place] <= fault.after:
            return False
        if fault.nth is not None:
            wanted = (fault.nth,) if isinstance(fault.nth, int) else fault.nth
            if (number if number is not None else self._seen[place]) not in wanted:
                return False
        # By the call's identity, if known: a line that is done again meets the same faults.
        return (
            fault.probability >= 1.0
            or chance(self._seed, place, salt or self._seen[place]) < fault.probability
        )


def chance(*parts: Any) -> float:
    """A number in [0, 1) that depends only on `parts`."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64
