"""Finds the batch jobs that a run adds to its ledgers, by comparing them before and after."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property

from beam_llm.cli.progress import Meter
from beam_llm.config import Settings
from beam_llm.ledger import Ledger
from beam_llm.ledger.job_tree import JobTree
from beam_llm.ledger.log import numbers_in
from beam_llm.stores import open_store


def locations_of(uses: Iterable[Settings]) -> list[str]:
    """The staging locations of the settings that use the batch API, each once."""
    return list(dict.fromkeys(str(one.staging_location) for one in uses if one.mode == "batch_api"))


class NewJobs:
    """The jobs that a run adds to its models' ledgers; create it before the run.

        new = NewJobs([settings], here=True)
        …                                       # the run
        new.requests()

    Args:
      uses: settings of all models. Each ledger is looked at once, however many models use it.
      here: the workers are in this process, so that entries of other processes are left out.
    """

    def __init__(self, uses: Iterable[Settings], *, here: bool):
        self._here = here
        self._newest = {location: _newest_entry(location) for location in locations_of(uses)}

    @property
    def has_ledger(self) -> bool:
        """Whether the run uses the batch API at all."""
        return bool(self._newest)

    @cached_property
    def numbers(self) -> dict[str, frozenset[int]]:
        """Numbers of the jobs that were added, by their ledger's location."""
        return {location: self._new_numbers(location) for location in self._newest}

    def _new_numbers(self, location: str) -> frozenset[int]:
        ledger = Ledger(open_store(location))
        roots = ledger.intents(self._newest[location])
        return frozenset(
            root.number for root in roots if not self._here or ledger.was_appended_here(root.number)
        )

    def requests(self) -> int:
        """Requests in the jobs that were added."""
        return sum(_requests_of(location, numbers) for location, numbers in self.numbers.items())

    def awaited_jobs(self, meter: Meter) -> dict[str, frozenset[int]]:
        """The jobs whose answers the run waited for, by their ledger's location.

        Args:
          meter: has counted the run's events; is given the jobs whose events it could not receive.
        """
        if not self._here:  # events of workers elsewhere don't reach this process
            meter.note_jobs(number for numbers in self.numbers.values() for number in numbers)
        elif len(self._newest) == 1:  # numbers are unique in one ledger only
            return dict.fromkeys(self._newest, frozenset(meter.job_numbers))
        return self.numbers


def _newest_entry(location: str) -> int:
    """Number of the ledger's newest entry; 0 where there is none, or no ledger yet."""
    return max(numbers_in(open_store(location), "log/"), default=0)


def _requests_of(location: str, numbers: frozenset[int]) -> int:
    if not numbers:
        return 0
    ledger = Ledger(open_store(location))
    jobs = (intent for number in sorted(numbers) for intent in JobTree(ledger, number).intents())
    # A half's requests are counted with its parent, and live calls when they are made.
    return sum(intent.line_count for intent in jobs if intent.kind in ("job", "follow_up"))
