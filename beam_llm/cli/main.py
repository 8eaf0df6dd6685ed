"""The command line: `beam-llm …`, the same as `python -m beam_llm …`.

Nothing heavy is imported before a command needs it: `--help` answers without Beam. Exit codes are
in `exit_codes`.
"""

from __future__ import annotations

import argparse
import io
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Sequence

from beam_llm import __version__
from beam_llm.cli.commands import compare, demo, emulator, estimate, jobs, predict, report, run
from beam_llm.cli.exit_codes import (
    FAILED,
    IN_WORDS,
    INTERRUPTED,
    TERMINATED,
    WRONG_USAGE,
)
from beam_llm.cli.files import remote
from beam_llm.cli.flags import as_flags
from beam_llm.cli.parser import Parser
from beam_llm.errors import LLMError, UsageError, printable
from beam_llm.leftovers import remove_scratch
from beam_llm.redaction import redact

_COMMANDS = (demo, predict, run, estimate, compare, jobs, report, emulator)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit code. A failure is one line on stderr, unless `--debug` is
    given.
    """
    if argv is None:
        _escape_unencodable()
    code = _run(list(sys.argv[1:] if argv is None else argv))
    if argv is None and code in (FAILED, INTERRUPTED, TERMINATED):
        # The threads that Beam leaves after a failed run would keep the process waiting for ever.
        remove_scratch()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


def _escape_unencodable() -> None:
    """Makes a terminal without Unicode show an escape in place of `…`, where the encoding error
    would end the command.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _run(arguments: list[str]) -> int:
    own, beam_options = _split_at_dashes(arguments)
    if own[:1] == ["emulator"]:  # it has a parser of its own
        return _run_command(emulator.command(own[1:]))
    try:
        args = build_parser().parse_args(own)
        args.beam_options = beam_options
        remote.set_beam_options(beam_options)
    except SystemExit as stop:  # argparse has printed why
        return stop.code if isinstance(stop.code, int) else WRONG_USAGE
    _quieten(args.debug)
    return _run_command(args)


def _split_at_dashes(arguments: list[str]) -> tuple[list[str], list[str]]:
    if "--" not in arguments:
        return arguments, []
    at = arguments.index("--")
    return arguments[:at], arguments[at + 1 :]


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    text = "Language models over data in Apache Beam."
    parser = Parser(prog="beam-llm", description=text, epilog=IN_WORDS)
    parser.add_argument("--version", action="version", version=f"beam-llm {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", dest="command", required=True)
    for command in _COMMANDS:
        command.add_parser(commands)
    return parser


def _run_command(args: argparse.Namespace) -> int:
    """Runs the command; what it raises becomes one line on stderr and an exit code."""
    # `run` takes its options from a file: messages spell them as that file does.
    flags = args.name.rpartition(" ")[2] != "run"
    try:
        return int(args.run(args))
    except BrokenPipeError:
        # The reader of stdout has left, and a last flush would fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except (LLMError, OSError, KeyboardInterrupt) as error:
        _print_failure(args, in_one_line(error, flags))
        return _exit_code(error)
    except Exception as error:  # a bug in this package: still one line, which says how to see more
        _print_failure(
            args, f"{type(error).__name__}: {in_one_line(error, flags)} (--debug shows where)"
        )
        return FAILED


def _print_failure(args: argparse.Namespace, reason: str) -> None:
    """Prints the reason in one line; with `--debug` after the current exception's traceback."""
    from beam_llm.cli.progress import write_line

    for line in traceback.format_exc().splitlines() if args.debug else ():
        write_line(line)
    write_line(f"{args.name}: {reason}")


def _exit_code(error: BaseException) -> int:
    from beam_llm.cli.running import Interrupted

    if isinstance(error, Interrupted):
        return TERMINATED if error.by_sigterm else INTERRUPTED
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED
    return WRONG_USAGE if isinstance(error, UsageError) else FAILED


def in_one_line(error: BaseException, flags: bool = True) -> str:
    """The error in one line that is safe to print on a terminal.

    Args:
      flags: whether options are spelled as command-line flags.
    """
    if isinstance(error, KeyboardInterrupt):
        return "stopped"
    if isinstance(error, OSError) and error.strerror:
        text = f"{error.filename or 'reading or writing a stream'}: {error.strerror}"
    else:
        text = str(error) or type(error).__name__
    line = " ".join(redact(text).split())
    return printable(as_flags(line) if flags else line)


def _quieten(debug: bool) -> None:
    """Silences Beam's own messages, which are for its developers; stderr is for the user."""
    from beam_llm.cli.progress import LogLines

    logging.basicConfig(
        level=logging.INFO if debug else logging.WARNING, handlers=[LogLines()], force=True
    )
    if not debug:
        # Beam logs "apitools not found" through the root logger.
        logging.getLogger().setLevel(logging.ERROR)
        logging.getLogger("apache_beam").setLevel(logging.CRITICAL)
        # It warns of unknown options after --; where they are unknown for certain, that is an error
        # here (`pipeline_options`).
        logging.getLogger("apache_beam.options.pipeline_options").setLevel(logging.WARNING)
        logging.getLogger("beam_llm").setLevel(logging.WARNING)
        warnings.simplefilter("ignore")
