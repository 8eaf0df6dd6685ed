"""The package's options as flags, flags as settings, and the arguments that several commands share.

Every option of `config.OPTIONS` that is about each element is a flag; its meaning, its default and
its check come from there. Values stay text until `config` checks them, so that Python, SQL and the
command line have the same messages.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import json
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from beam_llm.cli.parser import file_name
from beam_llm.config import (
    EACH,
    OPTIONS,
    Settings,
    key_of,
    options_of,
    settings_from_options,
)
from beam_llm.errors import UsageError

_FLAG_NAMES = {"output": "--output-type"}
_METAVARS = {"int": "N", "float": "X", "json": "JSON", "secret": "REFERENCE"}
_COMMON = (
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
_MEANINGS = {
    "output": (
        "string, integer, number, boolean, enum:a|b|c, a JSON schema, a .json file with one, or "
        "package.module.Model (default: string)"
    ),
    "output_field": "the answer's field; its error is in <field>_error (default: answer)",
}
"""Help texts of options that the command line handles differently."""


def add_options(parser: argparse.ArgumentParser, leave_out: Sequence[str] = ()) -> None:
    """Adds a flag for every option that is about each element, the common ones first."""
    common = parser.add_argument_group("the question")
    further = parser.add_argument_group("further options")
    common.add_argument(
        "--provider", help="the part of --model before the colon, where it is given separately"
    )
    # Read from the table, so that a new option becomes a flag automatically.
    for name in [*_COMMON, *(name for name in options_of(*EACH) if name not in _COMMON)]:
        if name not in leave_out:
            add_option(common if name in _COMMON else further, name)
    further.add_argument(
        "--allow-code",
        action="store_true",
        help="--response-format may name a parser of yours, as package.module.function",
    )


def add_option(parser: Any, name: str) -> None:
    """Adds one option's flag."""
    rule = OPTIONS[name].metadata
    flags = ["--staging", "--staging-location"] if name == "staging_location" else [flag_of(name)]
    # None means "not given": `config` has the defaults, also where they depend on another flag.
    wanted: dict[str, Any] = {"dest": f"option_{name}", "default": None, "help": _help(name)}
    if rule["kind"] == "bool":
        parser.add_argument(*flags, action=argparse.BooleanOptionalAction, **wanted)
        return
    word = _METAVARS.get(rule["kind"], name.rpartition("_")[2].upper())
    parser.add_argument(*flags, metavar="|".join(rule.get("choices", ())) or word, **wanted)


def _help(name: str) -> str:
    option = OPTIONS[name]
    meaning = _MEANINGS.get(name) or str(option.metadata["meaning"]).replace("`", "")
    if option.default is not None and option.default != "" and "default" not in meaning:
        meaning += f" (default: {option.default})"
    # argparse formats help texts with `%`.
    return as_flags(meaning).replace("%", "%%")


def add_inputs(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments that say what is read, and how."""
    files = "files of records: .jsonl, .csv (also .gz), .parquet, globs, gs://; - is stdin"
    parser.add_argument("inputs", nargs="+", metavar="INPUT", help=files)
    formats = "for files whose names don't show it (default for -: jsonl)"
    parser.add_argument("--input-format", choices=("jsonl", "csv", "parquet"), help=formats)
    bad = (
        "a line that can't be read: error ends the command and names file and line; skip leaves "
        "it out, counted (default: error)"
    )
    parser.add_argument("--on-bad-line", choices=("error", "skip"), default="error", help=bad)


def add_provider(parser: argparse.ArgumentParser) -> None:
    """Adds the flags that say where jobs are, and with which key."""
    for name in ("model", "api_key", "base_url", "api_version", "provider_options"):
        add_option(parser, name)


def flag_of(name: str) -> str:
    """`batch_size` → `--batch-size`."""
    return _FLAG_NAMES.get(name, f"--{name.replace('_', '-')}")


def as_flags(text: str) -> str:
    """`batch_size is 'x': …; try batch.size=1` → `--batch-size is 'x': …; try --batch-size=1`."""
    return _option_spelling().sub(lambda found: _flags_by_spelling()[found[0]], text)


@functools.cache
def _flags_by_spelling() -> dict[str, str]:
    return {spelling: flag_of(name) for name in OPTIONS for spelling in (name, key_of(name))}


@functools.cache
def _option_spelling() -> re.Pattern[str]:
    """Options as texts name them: `batch.size=`, `batch_size`, and `model is` as a first word."""
    # The longest first, since one option's name may begin with another's.
    names = sorted(OPTIONS, key=len, reverse=True)
    keys = "|".join(re.escape(key_of(name)) for name in names)
    long = "|".join(name for name in names if "_" in name)
    # `model` and `output` are plain words as well, and are options only at the beginning of a
    # message.
    short = "|".join(name for name in names if "_" not in name)
    return re.compile(
        rf"(?<![\w.'-])(?:(?:{keys})(?==)|(?:{long})\b)|^(?:{short})(?= (?:is|holds)\b)"
    )


def settings_from_flags(args: argparse.Namespace, **fixed: Any) -> Settings:
    """The settings that the flags give, checked.

    Raises:
      UsageError: a value that `config` refuses.
    """
    named = {name: getattr(args, f"option_{name}", None) for name in OPTIONS}
    given = {key_of(name): value for name, value in named.items() if value is not None}
    if getattr(args, "provider", None):
        given["provider"] = args.provider
    elif "model" not in given:
        raise UsageError("no model given: add --model, such as --model openai:gpt-4.1-mini")
    if "output" in given:
        # Dotted names are looked up only here: the user typed this command line, while options from
        # elsewhere may be somebody else's.
        given["output"] = output_type(given["output"])
    with _importing_from_here():
        return settings_from_options(given, allow_code=getattr(args, "allow_code", False), **fixed)


@contextmanager
def _importing_from_here() -> Iterator[None]:
    """Makes modules in the current folder importable, as `python -m` does: a console script's
    `sys.path` lacks that folder.
    """
    sys.path.insert(0, "")
    try:
        yield
    finally:
        sys.path.remove("")


def output_type(text: str) -> Any:
    """The type that `--output-type` names: a word or schema that `config` knows, a file with a
    JSON schema, or a Python type by its dotted name.
    """
    if text.endswith(".json"):
        try:
            with open(text, "rb") as file:
                return json.load(file)
        except (OSError, ValueError, RecursionError) as error:
            raise UsageError(
                f"--output-type names {text!r}, which is not a readable JSON schema: "
                f"{getattr(error, 'strerror', None) or error}"
            ) from None
    if re.fullmatch(r"[A-Za-z_]\w*([.:][A-Za-z_]\w*)+", text) and not text.startswith("enum:"):
        module, _, name = text.replace(":", ".").rpartition(".")
        try:
            with _importing_from_here():
                return getattr(importlib.import_module(module), name)
        except Exception as error:  # a module runs when it is imported, and may raise anything
            raise UsageError(
                f"--output-type is {text!r}: it can't be imported ({type(error).__name__}: "
                f"{error}); name a type as package.module.Model"
            ) from None
    return text


def add_existing(parser: argparse.ArgumentParser, output: str) -> None:
    """Adds the flags that say what happens to an existing output.

    Args:
      output: what the command's help calls it.
    """
    existing = parser.add_mutually_exclusive_group()
    force = f"replace {output} that exists; without it the command stops before asking anything"
    existing.add_argument("--force", action="store_true", help=force)
    retry = f"ask only the records that ended as errors in {output} that exists"
    existing.add_argument("--retry-errors", action="store_true", help=retry)


def add_cells(parser: argparse.ArgumentParser) -> None:
    """Adds the flags that choose which cells of a CSV file are protected from being formulas."""
    cells = parser.add_mutually_exclusive_group()
    safe = (
        "a text that a spreadsheet would run as a formula gets a ' before it, in every cell of "
        "a .csv (default: in answers' cells)"
    )
    cells.add_argument(
        "--csv-safe", action="store_const", const="all", default="answers", help=safe
    )
    cells.add_argument(
        "--csv-unsafe", dest="csv_safe", action="store_const", const="none", help="in no cell"
    )


def add_ignored_flags(parser: argparse.ArgumentParser, *switches: str) -> None:
    """Adds the other flags of `predict`, which are ignored, so that a user can replace the word
    `predict` in a command line by another command.

    Args:
      switches: further flags that this command ignores.
    """
    for name in ("--output", "--output-format", "--report", "--summary"):
        parser.add_argument(name, metavar="…", help="as for predict; nothing is written")
    for name in ("--force", "--redact", "--csv-safe", "--csv-unsafe", *switches):
        parser.add_argument(name, action="store_true", help=argparse.SUPPRESS)


def add_staging(parser: argparse.ArgumentParser) -> None:
    """Adds the flag that says where the ledger is."""
    parser.add_argument(
        "--staging",
        "--staging-location",
        dest="staging_location",
        required=True,
        metavar="DIR",
        help="staging location: local folder, gs://, s3:// or az://",
    )


def add_run_files(parser: argparse.ArgumentParser) -> None:
    """Adds the flags that say where a run's summary and page go."""
    summary = "how the run ended, as JSON: counts, errors with messages, warnings, cost"
    parser.add_argument("--summary", type=file_name, metavar="FILE.json", help=summary)
    page = "the run as a page to look at: calls, latencies, cost, errors, jobs"
    parser.add_argument("--report", type=file_name, metavar="FILE.html", help=page)
    add_redact(parser)


def add_redact(parser: argparse.ArgumentParser) -> None:
    """Adds the flag that keeps texts out of a page."""
    redact = "texts of prompts and records, and what messages quote, stay out of the page"
    parser.add_argument("--redact", action="store_true", help=redact)
