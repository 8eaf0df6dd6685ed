"""`python -m beam_llm.testing`: the emulator alone."""

import sys

from beam_llm.testing.emulator.command import serve

sys.exit(serve())
