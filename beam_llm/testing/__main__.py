"""`python -m beam_llm.testing`: runs the emulator on its own."""

import sys

from beam_llm.testing.emulator.command import serve

sys.exit(serve())
