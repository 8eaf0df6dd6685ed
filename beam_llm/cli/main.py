"""The command line: `beam-llm …`, the same as `python -m beam_llm …`.

Every option of `config.OPTIONS` is a flag here; its meaning and default come from there, its check too. Nothing heavy is imported before a
command needs it: `--help` answers without Beam.

Exit codes: 0 all records answered; 1 the command failed; 2 wrong usage; 3 finished, but some records ended as errors; 130 Ctrl-C.
"""

from __future__ import annotations

import argparse
import difflib
import importlib
import io
import json
import logging
import os
import re
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NoReturn

from beam_llm import __version__
from beam_llm.config import OPTIONS, Settings, key_of, settings_from_options
from beam_llm.errors import LLMError, UsageError, printable
from beam_llm.leftovers import remove_scratch
from beam_llm.redaction import redact

if TYPE_CHECKING:
    from beam_llm.cli.predict import Job, Report

ALL_ANSWERED, FAILED, WRONG_USAGE, SOME_ERRORS, INTERRUPTED = 0, 1, 2, 3, 130

_EXIT_CODES = "exit codes: 0 all records answered; 1 the command failed; 2 wrong usage; 3 finished, but some records ended as errors"
_FLAG_NAMES = {"output": "--output-type"}
_METAVARS = {"int": "N", "float": "X", "json": "JSON", "secret": "REFERENCE"}
_EVERY_COMMAND = (
    "model",
    "prompt",
    "system_prompt",
    "output",
    "batch_size",
    "mode",
    "staging_location",
    "api_key",
    "base_url",
    "output_field",
)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit code. What stderr says about a failure is one line, unless `--debug`."""
    if argv is None:
        _take_any_character()
    code = _run(list(sys.argv[1:] if argv is None else argv))
    if argv is None and code in (FAILED, INTERRUPTED):
        # Beam's threads of a broken run would keep the process waiting for ever.
        remove_scratch()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


def _take_any_character() -> None:
    """A terminal that is not Unicode shows an escape in place of `…`; it doesn't end the command."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _run(arguments: list[str]) -> int:
    own, beam_options = _split_at_dashes(arguments)
    if own[:1] == ["emulator"]:  # it has a parser of its own
        return _exit_code_of(argparse.Namespace(name="beam-llm emulator", debug=False, run=lambda _: _emulator(own[1:])))
    try:
        chosen = build_parser().parse_args(own)
        chosen.beam_options = beam_options
    except SystemExit as stop:  # argparse has said why
        return stop.code if isinstance(stop.code, int) else WRONG_USAGE
    _quieten(chosen.debug)
    return _exit_code_of(chosen)


def _emulator(arguments: Sequence[str]) -> int:
    from beam_llm.cli.demo import emulator

    return emulator(arguments)


def _exit_code_of(chosen: argparse.Namespace) -> int:
    """Runs the command; what it raises becomes one line on stderr and an exit code."""
    try:
        return int(chosen.run(chosen))
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # who read our stdout has left
        return FAILED
    except (LLMError, OSError, KeyboardInterrupt) as error:
        _print_failure(chosen, in_one_line(error))
        return _exit_code(error)
    except Exception as error:  # a mistake of ours: still one line, and how to see more
        _print_failure(chosen, f"{type(error).__name__}: {in_one_line(error)} (--debug shows where)")
        return FAILED


def _print_failure(chosen: argparse.Namespace, reason: str) -> None:
    """One line; before it, with `--debug`, the traceback of the exception at hand."""
    from beam_llm.cli.progress import write_line

    for line in traceback.format_exc().splitlines() if chosen.debug else ():
        write_line(line)
    write_line(f"{chosen.name}: {reason}")


def _split_at_dashes(arguments: list[str]) -> tuple[list[str], list[str]]:
    if "--" not in arguments:
        return arguments, []
    at = arguments.index("--")
    return arguments[:at], arguments[at + 1 :]


def _exit_code(error: BaseException) -> int:
    from beam_llm.cli.running import Interrupted

    if isinstance(error, (KeyboardInterrupt, Interrupted)):
        return INTERRUPTED
    return WRONG_USAGE if isinstance(error, UsageError) else FAILED


def in_one_line(error: BaseException) -> str:
    """The error in one line that a terminal shows as it is, with options spelled as flags."""
    if isinstance(error, KeyboardInterrupt):
        return "stopped"
    if isinstance(error, OSError) and error.strerror:
        text = f"{error.filename or 'reading or writing a stream'}: {error.strerror}"
    else:
        text = str(error) or type(error).__name__
    return printable(_as_flags(" ".join(redact(text).split())))


def _as_flags(text: str) -> str:
    """`batch_size is 'x': …; try batch.size=1` → `--batch-size is 'x': …; try --batch-size=1`."""
    for name in sorted(OPTIONS, key=len, reverse=True):
        flag = _flag(name)
        text = re.sub(rf"(?<![\w.'-]){re.escape(key_of(name))}=", f"{flag}=", text)
        if "_" in name:
            text = re.sub(rf"(?<![\w.'-]){name}\b", flag, text)
        else:
            text = re.sub(rf"^{name} (is|holds)\b", rf"{flag} \1", text)
    return text


def _quieten(debug: bool) -> None:
    """Beam's own chatter is for its developers; a command's stderr is for its user."""
    from beam_llm.cli.progress import LogLines

    logging.basicConfig(level=logging.INFO if debug else logging.WARNING, handlers=[LogLines()], force=True)
    if not debug:
        logging.getLogger().setLevel(logging.ERROR)  # "apitools not found": Beam logs it through the root logger
        logging.getLogger("apache_beam").setLevel(logging.CRITICAL)
        logging.getLogger("apache_beam.options.pipeline_options").setLevel(logging.WARNING)  # options after -- that it doesn't know
        logging.getLogger("beam_llm").setLevel(logging.WARNING)
        warnings.simplefilter("ignore")


# --- the parser


class _Parser(argparse.ArgumentParser):
    """One line instead of the usage text; a flag nearly right is named."""

    def __init__(self, **kwargs: Any):
        super().__init__(**{**kwargs, "allow_abbrev": False, "formatter_class": _Help})

    def error(self, message: str) -> NoReturn:
        if message.endswith((": COMMAND", ": ACTION")):
            self.print_help(sys.stderr)
            self.exit(WRONG_USAGE)
        found = re.match(r"unrecognized arguments: (\S+)", message)
        if found:
            message = f"unknown option {found[1]!r}{self._nearest(found[1])}"
        self.exit(WRONG_USAGE, f"{self.prog}: {printable(message)}; see {self.prog} --help\n")

    def _nearest(self, word: str) -> str:
        near = difflib.get_close_matches(word.partition("=")[0], self._option_string_actions, n=1)
        return f": did you mean {near[0]!r}?" if near else ""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """A command's own parser complains about what it doesn't know: it knows its flags, the outer one doesn't."""
        known, rest = super().parse_known_args(args, namespace)
        if rest and self._subparsers is None:
            self.error(f"unrecognized arguments: {' '.join(rest)}")
        return known, rest


class _Help(argparse.RawDescriptionHelpFormatter):
    def __init__(self, prog: str):
        super().__init__(prog, max_help_position=34, width=100)


def build_parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="beam-llm", description="Language models over data in Apache Beam.", epilog=_EXIT_CODES)
    parser.add_argument("--version", action="version", version=f"beam-llm {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", dest="command", required=True)
    _add_demo(commands)
    _add_predict(commands)
    _add_estimate(commands)
    _add_jobs(commands)
    _add_emulator(commands)
    return parser


def _command(commands: Any, name: str, run: str, text: str, **kwargs: Any) -> argparse.ArgumentParser:
    """A command whose function is named `module:function`, imported when it runs."""
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        usage=kwargs.pop("usage", None),
        help=text,
        description=kwargs.pop("description", text),
        epilog=kwargs.pop("epilog", _EXIT_CODES),
    )
    parser.set_defaults(run=_lazily(run), name=parser.prog)
    parser.add_argument("--debug", action="store_true", help="tracebacks and Beam's own messages")
    return parser


def _lazily(name: str) -> Callable[[Any], int]:
    module, _, function = name.partition(":")

    def run(chosen: Any) -> int:
        return int(getattr(importlib.import_module(module), function)(chosen))

    return run


def _add_demo(commands: Any) -> None:
    text = "real reviews through LLMPredict on an emulated provider, live and by batch API: no key, no cloud"
    parser = _command(commands, "demo", "beam_llm.cli.demo:main", text)
    parser.add_argument(
        "--records", type=_positive, default=2000, metavar="N", help="reviews to label (default: 2000, which is all there are)"
    )
    parser.add_argument("--batch-size", type=_positive, default=20, metavar="N", help="records in one prompt (default: 20)")
    parser.add_argument("--output", metavar="DIR", help="folder for answers and staging (default: a new temporary folder)")
    parser.add_argument("--quiet", action="store_true", help="no progress")


def _add_predict(commands: Any) -> None:
    parser = _command(
        commands,
        "predict",
        "beam_llm.cli.main:_predict",
        "files in, files out: every input field plus the model's answer",
        description=(
            "Asks a model about every record of the input files and writes the records with their answers.\n\n"
            "  beam-llm predict reviews.jsonl --output labelled.jsonl --model openai:gpt-4.1-mini \\\n"
            "    --prompt 'Sentiment of this review: {{ text }}' --output-type 'enum:positive|negative' --batch-size 20\n\n"
            "The output has every input field, the answer (--output-field, default: answer) and <field>_error, in the\n"
            "order of the input. Structured answers are JSON objects in .jsonl, JSON text in .csv, structs in .parquet.\n"
            "It appears under its name when it is complete. A stopped run goes on where it was with the same command;\n"
            "until then its answers are kept in OUT.partial-…/, each with its record's content: when the input changes,\n"
            "answers go with their records, and only new ones are asked."
        ),
        usage="beam-llm predict INPUT … --output OUT --model M --prompt P [option …] [-- Beam's options]",
        epilog=f"{_EXIT_CODES}.\nWhat stands after -- goes to Beam, such as -- --runner=PrismRunner (default: --runner=FnApiRunner).",
    )
    _add_inputs(parser)
    parser.add_argument("--output", metavar="OUT", help="file to write: .jsonl, .csv, .parquet, local or gs://; - is stdout")
    parser.add_argument("--output-format", choices=("jsonl", "csv", "parquet"), help="where OUT's name doesn't tell (default for -: jsonl)")
    existing = parser.add_mutually_exclusive_group()
    existing.add_argument("--force", action="store_true", help="replace an OUT that exists; without it nothing is asked then")
    existing.add_argument("--retry-errors", action="store_true", help="ask only the records that ended as errors in an OUT that exists")
    csv_cells = parser.add_mutually_exclusive_group()
    safe = "a text that a spreadsheet would run as a formula gets a ' before it, in every cell of a .csv (default: in answers' cells)"
    csv_cells.add_argument("--csv-safe", dest="csv_safe", action="store_const", const="all", default="answers", help=safe)
    csv_cells.add_argument("--csv-unsafe", dest="csv_safe", action="store_const", const="none", help="in no cell")
    parser.add_argument("--show", type=_positive, metavar="N", help="print the first N requests as they would be sent; no call is made")
    parser.add_argument("--summary", metavar="FILE.json", help="how the run ended, as JSON: counts, errors with messages, warnings, cost")
    parser.add_argument("--quiet", action="store_true", help="no progress and no summary on stderr")
    add_options(parser)


def _add_estimate(commands: Any) -> None:
    text = "what predict would cost: requests, tokens, cost and time at several batch sizes, without a call"
    parser = _command(commands, "estimate", "beam_llm.cli.estimate:main", text)
    _add_inputs(parser)
    parser.add_argument("--json", action="store_true", help="the table as JSON")
    for name in ("--output", "--output-format"):
        parser.add_argument(name, metavar="…", help="as for predict; nothing is written")
    parser.add_argument("--output-tokens", type=_positive, metavar="N", help="tokens of one answer (default: by --output-type)")
    parser.add_argument(
        "--latency-seconds", type=_positive_number, metavar="S", help="of one call (default: 0.5 and 1 per 60 output tokens)"
    )
    add_options(parser)


def _add_emulator(commands: Any) -> None:
    """For the list of commands only: its arguments are the emulator's own business."""
    commands.add_parser("emulator", help="an emulated provider on this machine, to try things; prints the variables to export")


def _add_jobs(commands: Any) -> None:
    parser = commands.add_parser("jobs", help="batch jobs in a staging location: look, collect, cancel, tidy", epilog=_EXIT_CODES)
    actions = parser.add_subparsers(metavar="ACTION", required=True)
    staging: dict[str, Any] = {
        "required": True,
        "metavar": "DIR",
        "dest": "staging_location",
        "help": "staging location: local folder or gs://",
    }

    def action(name: str, text: str) -> argparse.ArgumentParser:
        made = _command(actions, name, f"beam_llm.cli.jobs:{name}", text)
        made.add_argument("--staging", "--staging-location", **staging)
        return made

    action("ls", "all jobs, one a line").add_argument("--json", action="store_true", help="JSON lines")
    action("show", "one job in full").add_argument("id", metavar="ID", help="number in the log, or the provider's job id")
    attach = action("attach", "waits for jobs, collects them and writes their records with their answers")
    attach.add_argument(
        "ids", nargs="*", metavar="ID", help="numbers in the log or job ids (default: all of this prompt, model and output)"
    )
    attach.add_argument("--output", required=True, metavar="OUT", help="file to write: .jsonl; - is stdout")
    attach.add_argument("--force", action="store_true", help="replace an OUT that exists")
    attach.add_argument("--quiet", action="store_true", help="no progress and no summary")
    add_options(attach, leave_out=("mode", "staging_location"))
    cancel = action("cancel", "asks the provider to cancel a job; what it has finished is kept")
    cancel.add_argument("id", metavar="ID", help="number in the log, or the provider's job id")
    _add_provider(cancel)
    cleanup = action("cleanup", "removes provider files and staging of finished jobs; asks first")
    cleanup.add_argument("--yes", action="store_true", help="don't ask")
    _add_provider(cleanup)


def _add_provider(parser: argparse.ArgumentParser) -> None:
    for name in ("model", "api_key", "base_url", "api_version"):
        _add_option(parser, name)


def _add_inputs(parser: argparse.ArgumentParser) -> None:
    files = "files of records: .jsonl, .csv (also .gz), .parquet, globs, gs://; - is stdin"
    parser.add_argument("inputs", nargs="+", metavar="INPUT", help=files)
    parser.add_argument("--input-format", choices=("jsonl", "csv", "parquet"), help="where names don't tell (default for -: jsonl)")
    bad = "a line that can't be read: error ends the command and names file and line; skip leaves it out, counted (default: error)"
    parser.add_argument("--on-bad-line", choices=("error", "skip"), default="error", help=bad)


def add_options(parser: argparse.ArgumentParser, leave_out: Sequence[str] = ()) -> None:
    """A flag for every option of the package, the common ones first."""
    common = parser.add_argument_group("the question")
    further = parser.add_argument_group("further options")
    common.add_argument("--provider", help="the part of --model before the colon, where it is given apart")
    for name in [*_EVERY_COMMAND, *(name for name in OPTIONS if name not in _EVERY_COMMAND)]:
        if name not in leave_out:
            _add_option(common if name in _EVERY_COMMAND else further, name)
    further.add_argument(
        "--allow-code", action="store_true", help="--response-format may name a parser of yours, as package.module.function"
    )


def _flag(name: str) -> str:
    return _FLAG_NAMES.get(name, f"--{name.replace('_', '-')}")


def _add_option(parser: Any, name: str) -> None:
    """Values stay text here: `config` checks them, with one message for every door."""
    option = OPTIONS[name]
    flags = ["--staging", "--staging-location"] if name == "staging_location" else [_flag(name)]
    meaning = option.metadata["meaning"].replace("`", "")
    if option.default is not None and option.default != "" and name != "output" and "default" not in meaning:
        meaning += f" (default: {option.default})"
    if name == "output":
        meaning = (
            "string, integer, number, boolean, enum:a|b|c, a JSON schema, a file of one (.json), or package.module.Model (default: string)"
        )
    if name == "output_field":
        meaning = "the answer's field; its error is in <field>_error (default: answer)"
    wanted: dict[str, Any] = {"dest": f"option_{name}", "default": None, "help": _as_flags(meaning).replace("%", "%%")}
    if option.metadata["kind"] == "bool":
        parser.add_argument(*flags, action=argparse.BooleanOptionalAction, **wanted)
    else:
        choices = option.metadata.get("choices")
        parser.add_argument(
            *flags,
            metavar="|".join(choices) if choices else _METAVARS.get(option.metadata["kind"], name.rpartition("_")[2].upper()),
            **wanted,
        )


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def _positive_number(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return number


# --- from flags to settings


def chosen_settings(chosen: argparse.Namespace, **fixed: Any) -> Settings:
    """The settings that the flags say, checked.

    Raises:
      UsageError: a value that `config` refuses.
    """
    named = {name: getattr(chosen, f"option_{name}", None) for name in OPTIONS}
    given = {key_of(name): value for name, value in named.items() if value is not None}
    if getattr(chosen, "provider", None):
        given["provider"] = chosen.provider
    elif "model" not in given:
        raise UsageError("no model given: add --model, such as --model openai:gpt-4.1-mini")
    if "output" in given:
        given["output"] = output_type(given["output"])
    with _importing_from_here():
        return settings_from_options(given, allow_code=getattr(chosen, "allow_code", False), **fixed)


@contextmanager
def _importing_from_here() -> Iterator[None]:
    """A parser or a type beside the data is found, as by `python -m`; the console script's `sys.path` has no current folder."""
    sys.path.insert(0, "")
    try:
        yield
    finally:
        sys.path.remove("")


def output_type(text: str) -> Any:
    """What `--output-type` names: a word or schema that `config` knows, a file of a JSON schema, or a Python type by its dotted name."""
    if text.endswith(".json"):
        try:
            with open(text, "rb") as file:
                return json.load(file)
        except (OSError, ValueError) as error:
            raise UsageError(
                f"--output-type names {text!r}, which is not a readable JSON schema: {getattr(error, 'strerror', None) or error}"
            ) from None
    if re.fullmatch(r"[A-Za-z_]\w*([.:][A-Za-z_]\w*)+", text) and not text.startswith("enum:"):
        module, _, name = text.replace(":", ".").rpartition(".")
        try:
            with _importing_from_here():
                return getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError) as error:
            raise UsageError(f"--output-type is {text!r}: it can't be imported ({error}); name a type as package.module.Model") from None
    return text


# --- predict


def _predict(chosen: argparse.Namespace) -> int:
    from beam_llm.cli.predict import Job, predict
    from beam_llm.cli.summary import check_summary_path, write_summary

    if chosen.output is None and chosen.show is None:
        raise UsageError("no output given: add --output, such as --output answers.jsonl; or --show 3, to see the first requests only")
    if chosen.summary is not None:
        check_summary_path(chosen.summary)
    job = Job(
        inputs=chosen.inputs,
        output=chosen.output or "-",
        settings=chosen_settings(chosen),
        input_format=chosen.input_format,
        output_format=chosen.output_format,
        beam_options=chosen.beam_options,
        quiet=chosen.quiet,
        force=chosen.force,
        retry_errors=chosen.retry_errors,
        skips_bad_lines=chosen.on_bad_line == "skip",
        csv_safe=chosen.csv_safe,
    )
    if chosen.show is not None:
        return _show(job, chosen.show)
    report = predict(job)
    if chosen.summary is not None:
        write_summary(chosen.summary, job, report)
    return _report(chosen, job, report)


def _show(job: Job, most: int) -> int:
    from beam_llm.cli.show import show

    return SOME_ERRORS if show(job, most) else ALL_ANSWERED


def _report(chosen: argparse.Namespace, job: Job, report: Report) -> int:
    """What the run did, on stderr, and the command's exit code."""
    from beam_llm.cli.progress import write_line
    from beam_llm.cli.summary import summary

    for line in summary(job, report).split("\n") if not chosen.quiet else ():
        write_line(line)
    tally = report.tally
    if not tally.failed:
        return ALL_ANSWERED
    write_line(f"{chosen.name}: {tally.failed:,} of {tally.records:,} records ended as errors: see {job.answer_field}_error")
    return SOME_ERRORS
