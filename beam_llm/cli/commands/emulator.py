"""`beam-llm emulator`: in the list of commands; its arguments are the emulator's own business."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any


def add_parser(commands: Any) -> None:
    text = "an emulated provider on this machine, to try things; prints the variables to export"
    commands.add_parser("emulator", help=text)


def command(arguments: Sequence[str]) -> argparse.Namespace:
    """The command as a parsed one, for arguments that no parser here knows."""

    def run(_: object) -> int:
        # Not at the top: the emulator loads a web server, which no other command needs.
        from beam_llm.testing import serve

        return serve(arguments)

    return argparse.Namespace(name="beam-llm emulator", debug=False, run=run)
