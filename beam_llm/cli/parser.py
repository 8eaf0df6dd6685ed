"""The argument parser: errors in one line, suggestions for misspelled flags, and commands whose
code is imported when they run.
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
    """Reports errors in one line, without the usage text; suggests the nearest flag."""

    def __init__(self, **kwargs: Any):
        # An abbreviation that is unique today may become ambiguous with the next new option.
        super().__init__(**{**kwargs, "allow_abbrev": False, "formatter_class": _Help})

    def error(self, message: str) -> NoReturn:
        """Ends the command with one line, or with the help where no command was given."""
        # The list of commands helps more than the complaint that one is missing.
        if message.endswith((": COMMAND", ": ACTION")):
            self.print_help(sys.stderr)
            self.exit(WRONG_USAGE)
        found = re.match(r"unrecognized arguments: (\S+)", message)
        if found and found[1].startswith("-"):
            message = f"unknown option {found[1]!r}{self._nearest(found[1])}"
        elif found:  # most often a part of a prompt that the shell has split
            message = (
                f"unexpected {found[1]!r}: a value with spaces has to be in quotes, and arguments "
                "that are not options come before the options"
            )
        self.exit(WRONG_USAGE, f"{self.prog}: {printable(message)}; see {self.prog} --help\n")

    def _nearest(self, word: str) -> str:
        flag, known = word.partition("=")[0], self._option_string_actions
        meant = f"option_{name_elsewhere(flag)}"
        near = [each for each, action in known.items() if action.dest == meant]
        near = near or difflib.get_close_matches(flag, known, n=1)
        return f": did you mean {near[0]!r}?" if near else ""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Lets a command's own parser report unknown arguments, since the outer one doesn't know
        its flags.
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
      run: `module:function`, imported when the command runs, so that `--help` needs no Beam.
      kwargs: `usage`, `description`, `epilog`, where they are not derived from `text`.
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

    def run(args: Any) -> int:
        return int(getattr(importlib.import_module(module), function)(args))

    return run


def file_name(text: str) -> str:
    """An argument's type: a file name; an empty one, as of an unset shell variable, is refused."""
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
    # False for NaN, too.
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return number
