"""What the emulator needs of a model, whichever kind it is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from beam_llm.testing.emulator.faults import Fault
from beam_llm.testing.emulator.wire import WireError

if TYPE_CHECKING:
    from beam_llm.testing.emulator.chat import Answer


CHAT, EMBED = "/chat/completions", "/embeddings"
"""The routes of OpenAI's models."""


class Model(Protocol):
    """An emulated model: `Chat`, `Embedder`.

    Attributes:
      most_job_texts: the most texts in one job, over all its requests; None means any number.
    """

    most_job_texts: ClassVar[int | None]

    def check(self, body: Any) -> WireError | None:
        """The error for a faulty request, before any work; None where nothing is wrong."""

    def knows(self, model: Any) -> bool:
        """Whether there is an emulated model of this name."""

    def read(self, body: Mapping[str, Any]) -> Any:
        """Reads a checked request; the result's `texts` are the records' texts."""

    def tokens(self, body: Mapping[str, Any]) -> int:
        """Input tokens of a checked request."""

    def answer(
        self,
        body: Mapping[str, Any],
        question: Any,
        faults: tuple[Fault, ...] = (),
        reply_id: str = "",
    ) -> Answer:
        """Answers a checked request; `question` is what `read` made of it."""
