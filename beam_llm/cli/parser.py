"""The argument parser: one line for what is wrong, the flag that was meant, and commands whose code
is imported when they run.
"""

from __future__ import annotations

import argparse
import difflib
import importlib
import re
import sys
from collections.abc import Callable
from typing import Any, NoReturn

from beam_llm.cli.exit_codes import IN_WORDS, WRONG_USAGE
from beam_llm.config import name_elsewhere
from beam_llm.errors import printable


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, without the usage text; names a flag that is nearly right."""

    def __init__(self, **kwargs: Any):
        # An abbreviation that is clear today means another flag, or two, once there is one option
        # more.
        super().__init__(**{**kwargs, "allow_abbrev": False, "formatter_class": _Help})

    def error(self, message: str) -> NoReturn:
        """Ends the command with one line, and help where a command is missing."""
        # Whoever names no command wants to see which there are, and not that one is missing.
        if message.endswith((": COMMAND", ": ACTION")):
            self.print_help(sys.stderr)
            self.exit(WRONG_USAGE)
        found = re.match(r"unrecognized arguments: (\S+)", message)
        if found and found[1].startswith("-"):
            message = f"unknown option {found[1]!r}{self._nearest(found[1])}"
        elif found:  # most often, of a prompt that the shell took apart
            message = (
                f"unexpected {found[1]!r}: a value with spaces has to stand in quotes, and what is "
                "not an option before the options"
            )
        self.exit(WRONG_USAGE, f"{self.prog}: {printable(message)}; see {self.prog} --help\n")

    def _nearest(self, word: str) -> str:
        flag, known = word.partition("=")[0], self._option_string_actions
        meant = f"option_{name_elsewhere(flag)}"
        near = [each for each, action in known.items() if action.dest == meant]
        near = near or difflib.get_close_matches(flag, known, n=1)
        return f": did you mean {near[0]!r}?" if near else ""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """A command's own parser complains about what it doesn't know: it knows its flags, the
        outer one doesn't.
        """
        known, rest = super().parse_known_args(args, namespace)
        if rest and self._subparsers is None:
            self.error(f"unrecognized arguments: {' '.join(rest)}")
        return known, rest


class _Help(argparse.RawDescriptionHelpFormatter):
    def __init__(self, prog: str):
        super().__init__(prog, max_help_position=34, width=100)


def add_command(
    commands: Any, name: str, run: str, text: str, **kwargs: Any
) -> argparse.ArgumentParser:
    """Adds a command and returns its parser.

    Args:
      run: `module:function`, imported when the command runs: `--help` answers without Beam.
      kwargs: `usage`, `description`, `epilog`, where they are not made of `text`.
    """
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        usage=kwargs.pop("usage", None),
        help=text,
        description=kwargs.pop("description", text),
        epilog=kwargs.pop("epilog", IN_WORDS),
    )
    parser.set_defaults(run=_import_when_called(run), name=parser.prog)
    parser.add_argument("--debug", action="store_true", help="tracebacks and Beam's own messages")
    return parser


def _import_when_called(name: str) -> Callable[[Any], int]:
    module, _, function = name.partition(":")

    def run(chosen: Any) -> int:
        return int(getattr(importlib.import_module(module), function)(chosen))

    return run


def file_name(text: str) -> str:
    """An argument's type: a name that isn't empty, as that of an unset variable of a shell is."""
    if not text.strip():
        raise argparse.ArgumentTypeError(f"{text!r} is not the name of a file")
    return text


def positive(text: str) -> int:
    """An argument's type: a whole number above 0."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def positive_number(text: str) -> float:
    """An argument's type: a finite number above 0."""
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    # NaN, too, is not above 0.
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return number
