"""Live requests: the engine that asks, and what limits it. Knows providers only as a protocol.

The walk of one prompt:

    engine.py    takes records from a bundle's thread, and gives back a future
    packing.py   the guard: some records are asked alone as well, prompts made smaller
    ask.py       one prompt's records, round after round, until each has an end
    round.py     one request and the reading of its reply
    call.py      one request, with its retries
    sender.py    one request, sent once

What decides on the way:

    policy.py    what is done about failures    outage.py       a server that fails for all
    breaker.py   what bad replies may cost      reply_limit.py  how long a reply can be
    limiter.py   slots and budgets              controller.py   how many slots, where none are given
    billing.py   what replies cost              prompt_size.py  how long a prompt may be

What is shared:

    endpoint.py  by all calls to one place      sharing.py      lends engines on endpoints
    state.py     by the parts of one ask        tally.py        what one ask did, to be counted
    loop_thread.py  the event loop of a process
"""

from beam_llm.calls.engine import Engine
from beam_llm.calls.sharing import borrow_engine, return_engine
from beam_llm.calls.tally import AskResult, Tally

__all__ = ["AskResult", "Engine", "Tally", "borrow_engine", "return_engine"]
