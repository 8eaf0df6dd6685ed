"""Live requests: the engine that asks, what limits it, and what it tells. Knows providers only as a protocol."""

from beam_llm.calls.engine import Engine
from beam_llm.calls.sharing import borrow_engine, return_engine
from beam_llm.calls.tally import Asked, Tally

__all__ = ["Asked", "Engine", "Tally", "borrow_engine", "return_engine"]
