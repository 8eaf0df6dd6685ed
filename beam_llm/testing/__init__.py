"""Tools for tests: an emulated provider (a real HTTP server on loopback, with scripted faults, that
counts what it bills), fakes, and contract suites.

    from beam_llm.testing import Emulator, Fault

    with Emulator(faults=[Fault("rate_limit", probability=0.1)]) as emulator:
        ...  # base_url=emulator.base_url, api_key=emulator.api_key

`EmulatorProcess` runs the same emulator in a process of its own; `beam_llm.testing.plugin` has the
pytest fixture `llm_emulator`.

    emulator/               the emulated provider, with one dialect per provider
    fakes, fake_batches     a task and providers in memory, on a clock that is set by hand
    contracts/              tests to inherit: what a store or a provider promises
    sample                  2,000 real reviews
"""

from beam_llm.testing.emulator.command import serve
from beam_llm.testing.emulator.faults import Fault, load_faults
from beam_llm.testing.emulator.options import EmulatorOptions
from beam_llm.testing.emulator.process import EmulatorProcess
from beam_llm.testing.emulator.server import Emulator
from beam_llm.testing.sample import reviews, reviews_path

__all__ = [
    "Emulator",
    "EmulatorOptions",
    "EmulatorProcess",
    "Fault",
    "load_faults",
    "reviews",
    "reviews_path",
    "serve",
]
