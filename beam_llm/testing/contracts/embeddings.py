"""What a provider of embeddings promises in addition: a vector for each text, in the place that the
reply names.

    class TestMyEmbeddings(EmbeddingContract, CompletionProviderContract):
        ...     # `provider` and `arrange`, as for any provider of live calls

    class TestMyEmbeddingJobs(EmbeddingBatchContract, BatchProviderContract):
        ...
"""

from __future__ import annotations

from typing import Any

from beam_llm.prompting.vectors import unpack
from beam_llm.testing.contracts.completions import Does
from beam_llm.values import Completion, Request


class EmbeddingContract:
    """Turns the questions of `CompletionProviderContract` into texts to embed; name it before that
    class among the bases.

    Attributes:
      embedding_model: the name of the model.
      dimensions: a number of dimensions that the model offers.
    """

    embedding_model = "contract-model"
    dimensions = 8
    # Only models that write text can do these.
    impossible = frozenset({Does.CUT, Does.REFUSE, Does.FILTER, Does.SAY_NOTHING})
    takes_images = False

    def request(self, *args: Any) -> Request:
        """A text that the server can embed."""
        [text] = args or ("How are you?",)
        return Request(
            self.embedding_model, (), inputs=(text,), dimensions=self.dimensions, input_tokens=10
        )

    def check_answer(self, completion: Completion) -> None:
        """Asserts that the completion has the text's vector in its place."""
        assert completion.text is None
        assert completion.vectors is not None
        [(place, numbers)] = completion.vectors
        assert place == 0
        assert len(unpack(numbers or b"")) == self.dimensions


class EmbeddingBatchContract(EmbeddingContract):
    """The same for `BatchProviderContract`; name it before that class among the bases."""

    impossible = frozenset()
