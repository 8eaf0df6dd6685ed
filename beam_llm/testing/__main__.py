"""`python -m beam_llm.testing`: the emulator alone."""

import sys

from beam_llm.testing.command import serve

sys.exit(serve())
