"""Where `BatchJobRef` is known to elements in checkpoints that were written before it moved."""

from __future__ import annotations

from beam_llm.ledger.refs import BatchJobRef

__all__ = ["BatchJobRef"]
