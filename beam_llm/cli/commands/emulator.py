"""`beam-llm emulator` in the list of commands; the emulator parses its arguments itself."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any


def add_parser(commands: Any) -> None:
    text = "an emulated provider on this machine, to try things; prints the variables to export"
    commands.add_parser("emulator", help=text)


def command(arguments: Sequence[str]) -> argparse.Namespace:
    """The parsed command; the emulator's own parser will read its arguments."""

    def run(_: object) -> int:
        # Not at the top: the emulator loads a web server, which no other command needs.
        from beam_llm.testing import serve

        return serve(arguments)

    return argparse.Namespace(name="beam-llm emulator", debug=False, run=run)
