"""What a store or a provider promises, as test suites to inherit: `pytest` runs them against your
own.

    from beam_llm.testing.contracts import StoreContract

    class TestMyStore(StoreContract):
        def store(self):
            return MyStore(f"my://bucket/{uuid.uuid4().hex}")

Each suite's docstring says what a subclass has to provide. The package's own stores, providers and
fakes pass the suites, too. They need pytest, which the rest of `beam_llm.testing` does not.

    stores                        stores
    completions, embeddings       live providers of texts and of vectors
    batches                       providers of batch jobs
"""

from beam_llm.testing.contracts.batches import BatchProviderContract
from beam_llm.testing.contracts.completions import CompletionProviderContract
from beam_llm.testing.contracts.embeddings import EmbeddingBatchContract, EmbeddingContract
from beam_llm.testing.contracts.stores import StoreContract

__all__ = [
    "BatchProviderContract",
    "CompletionProviderContract",
    "EmbeddingBatchContract",
    "EmbeddingContract",
    "StoreContract",
]
