"""`python -m beam_llm …` is `beam-llm …`."""

from __future__ import annotations

import sys


def main() -> int:
    """Runs the command line; a Ctrl-C while it is still being loaded ends it without a traceback,
    as any later one does.
    """
    try:
        from beam_llm.cli.main import main as run

        return run()
    except KeyboardInterrupt:
        print("beam-llm: stopped", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
