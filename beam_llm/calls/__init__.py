"""Live requests: the engine that asks, what limits it, and what it tells. Knows providers only as a protocol.

engine.py    threads and hand-over          limiter.py      slots and budgets; controller.py finds how many slots
ask.py       one ask's rounds               breaker.py      what may be spent on replies that are no good
call.py      one request with its retries   reply_limit.py  how long a reply can be
policy.py    what is done about failures    billing.py      what replies cost
endpoint.py  what all calls to one place share; sharing.py lends it to engines, loop_thread.py has its event loop
"""

from beam_llm.calls.engine import Engine
from beam_llm.calls.sharing import borrow_engine, return_engine
from beam_llm.calls.tally import Asked, Tally

__all__ = ["Asked", "Engine", "Tally", "borrow_engine", "return_engine"]
