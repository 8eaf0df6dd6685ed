"""What a page shows, as data. Texts are plain: rendering the page escapes them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from beam_llm.prompting.agreement import Share


class Figure(NamedTuple):
    """One number of the headline.

    Attributes:
      note: a few words below it.
      tone: `good`, `bad` or nothing.
    """

    label: str
    value: str
    note: str = ""
    tone: str = ""


class Bar(NamedTuple):
    """One bar of a chart; its `label` is shown under the mouse pointer."""

    height: float
    label: str
    marked: float = 0.0
    """The part of the height that is drawn in the colour of errors."""


@dataclass(frozen=True)
class Chart:
    """Bars side by side; without any, the sentence alone.

    Attributes:
      ticks: texts below the bars, spread evenly from the left edge to the right one.
      most: the value beside the highest bar.
      summary: what the chart says, in a sentence.
    """

    title: str
    bars: Sequence[Bar] = ()
    ticks: Sequence[str] = ()
    most: str = ""
    summary: str = ""


@dataclass(frozen=True)
class Table:
    """Rows under a header; columns in `left` are texts, all others numbers."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    left: Sequence[int] = (0,)
    note: str = ""

    @property
    def is_wide(self) -> bool:
        """Whether it needs the whole width."""
        return len(self.header) > 4


class Span(NamedTuple):
    """One job on the time line; times in seconds since the epoch, None where not known.

    Attributes:
      state: `done`, `failed` or `open`.
    """

    name: str
    planned: float
    created: float | None
    ended: float | None
    state: str
    label: str


class Example(NamedTuple):
    """One record that ended as an error."""

    place: str
    message: str
    text: str


class ErrorKind(NamedTuple):
    """Records that ended as errors of one kind."""

    kind: str
    records: int
    advice: str
    examples: Sequence[Example]


class Agreement(NamedTuple):
    """A share of answers that agree with something."""

    label: str
    share: Share


@dataclass(frozen=True)
class Page:
    """The content of a page.

    Attributes:
      jobs: those on the time line, which ends at `now` for open ones.
      agreement: of the answers with the truth, and with answers given alone.
      settings, versions: names and values.
    """

    title: str
    subtitle: str
    headline: Sequence[Figure]
    charts: Sequence[Chart] = ()
    tables: Sequence[Table] = ()
    warnings: Sequence[str] = ()
    errors: Sequence[ErrorKind] = ()
    jobs: Sequence[Span] = ()
    agreement: Sequence[Agreement] = ()
    settings: Sequence[tuple[str, str]] = ()
    versions: Sequence[tuple[str, str]] = ()
    now: float = 0.0
    notes: Sequence[str] = ()
