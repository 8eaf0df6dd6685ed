"""`python -m beam_llm …` is `beam-llm …`."""

import sys

from beam_llm.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
