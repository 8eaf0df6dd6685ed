"""What the emulator needs of a model, whatever it is asked for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from beam_llm.testing.emulator.faults import Fault
from beam_llm.testing.emulator.wire import WireError

if TYPE_CHECKING:
    from beam_llm.testing.emulator.chat import Answer


CHAT, EMBED = "/chat/completions", "/embeddings"
"""The routes at which OpenAI's models are asked."""


class Model(Protocol):
    """An emulated model: `Chat`, `Embedder`.

    Attributes:
      most_job_texts: of one job, in all its requests together; None: any number.
    """

    most_job_texts: ClassVar[int | None]

    def check(self, body: Any) -> WireError | None:
        """What is wrong with a request, before any work."""

    def knows(self, model: Any) -> bool:
        """Whether it goes by that name."""

    def read(self, body: Mapping[str, Any]) -> Any:
        """A checked request, understood; its `texts` are the records'."""

    def tokens(self, body: Mapping[str, Any]) -> int:
        """Input tokens of a checked request."""

    def answer(
        self,
        body: Mapping[str, Any],
        question: Any,
        faults: tuple[Fault, ...] = (),
        reply_id: str = "",
    ) -> Answer:
        """Answers a checked request, which `read` has understood."""
