"""Live requests: the engine that asks, and what limits it. Knows providers only as a protocol.

engine.py    threads and hand-over          limiter.py      slots and budgets
ask.py       one ask, round after round     controller.py   how many slots, where nobody has said
round.py     one request and its reply      state.py        what is known meanwhile
call.py      one request with its retries   breaker.py      what may be spent on bad replies
outage.py    a server that fails for all
policy.py    what is done about failures    reply_limit.py  how long a reply can be
endpoint.py  what calls to one place share  billing.py      what replies cost
prompt_size.py  how long a prompt may be
packing.py   the guard: some asked alone as well, prompts made smaller
sharing.py   lends endpoints to engines     loop_thread.py  the event loop of a process
tally.py     what one ask did, to be counted
"""

from beam_llm.calls.engine import Engine
from beam_llm.calls.sharing import borrow_engine, return_engine
from beam_llm.calls.tally import Asked, Tally

__all__ = ["Asked", "Engine", "Tally", "borrow_engine", "return_engine"]
