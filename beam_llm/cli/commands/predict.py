"""`beam-llm predict`: its arguments, its run, and the files that say how it went."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from beam_llm.cli.exit_codes import ALL_ANSWERED, IN_WORDS, SOME_ERRORS
from beam_llm.cli.flags import (
    add_cells,
    add_existing,
    add_inputs,
    add_options,
    add_run_files,
    settings_from_flags,
)
from beam_llm.cli.parser import add_command, file_name, positive
from beam_llm.errors import UsageError

if TYPE_CHECKING:
    from beam_llm.cli.predict_command import PredictCommand

_DESCRIPTION = """\
Asks a model about every record of the input files and writes the records with their answers.

  beam-llm predict reviews.jsonl --output labelled.jsonl --model openai:gpt-4.1-mini \\
    --prompt 'Sentiment of this review: {{ text }}' --output-type 'enum:positive|negative' \\
    --batch-size 20

The output has every input field, the answer (--output-field, default: answer) and <field>_error,
in the order of the input. Structured answers are JSON objects in .jsonl, JSON text in .csv,
structs in .parquet. It appears under its name when it is complete. A stopped run goes on where it
was with the same command; until then its answers are kept in OUT.partial-…/, each with its
record's content: when the input changes, answers go with their records, and only new ones are
asked."""
_EPILOG = f"""{IN_WORDS}.
What stands after -- goes to Beam, such as -- --runner=PrismRunner
(default: --runner=FnApiRunner)."""


def add_parser(commands: Any) -> None:
    parser = add_command(
        commands,
        "predict",
        f"{__name__}:run",
        "files in, files out: every input field plus the model's answer",
        description=_DESCRIPTION,
        usage="beam-llm predict INPUT … --output OUT --model M --prompt P [option …] [-- Beam's "
        "options]",
        epilog=_EPILOG,
    )
    add_inputs(parser)
    _add_output(parser)
    show = "print the first N requests as they would be sent; no call is made"
    parser.add_argument("--show", type=positive, metavar="N", help=show)
    add_run_files(parser)
    truth = "field of the input with the right answer: summary and report say how many are right"
    parser.add_argument("--truth", metavar="FIELD", help=truth)
    parser.add_argument("--quiet", action="store_true", help="no progress and no summary on stderr")
    add_options(parser)


def _add_output(parser: argparse.ArgumentParser) -> None:
    output = "file to write: .jsonl, .csv, .parquet, local or gs://; - is stdout"
    parser.add_argument("--output", type=file_name, metavar="OUT", help=output)
    formats = "where OUT's name doesn't show it (default for -: jsonl)"
    parser.add_argument("--output-format", choices=("jsonl", "csv", "parquet"), help=formats)
    add_existing(parser, "an OUT")
    add_cells(parser)


def run(args: argparse.Namespace) -> int:
    # Not at the top: `--help` would have to wait for them.
    from beam_llm.cli.predict import predict
    from beam_llm.cli.reporting.subject import subject_of_predict
    from beam_llm.cli.run_files import RunFiles
    from beam_llm.cli.show import show
    from beam_llm.cli.summary import as_json, exit_code_of, print_summary

    if args.output is None and args.show is None:
        raise UsageError(
            "no output given: add --output, such as --output answers.jsonl; or --show 3, to see "
            "the first requests only"
        )
    files = RunFiles(args)
    command = _command(args)
    # Before all that a run needs: nothing is asked, so no key is looked for.
    if args.show is not None:
        return SOME_ERRORS if show(command, args.show) else ALL_ANSWERED
    with files.listening():
        report = predict(command)
    files.write_summary(as_json(command, report))
    if not args.quiet:
        print_summary(command, report)
    code = exit_code_of(args.name, report.tally, f": see {command.answer_field}_error")
    files.write_page(lambda: (subject_of_predict(command, report), report))
    return code


def _command(args: argparse.Namespace) -> PredictCommand:
    from beam_llm.cli.predict_command import PredictCommand

    return PredictCommand(
        inputs=args.inputs,
        # Without --output there is --show, which writes nothing.
        output=args.output or "-",
        settings=settings_from_flags(args),
        input_format=args.input_format,
        output_format=args.output_format,
        beam_options=args.beam_options,
        quiet=args.quiet,
        force=args.force,
        retry_errors=args.retry_errors,
        skips_bad_lines=args.on_bad_line == "skip",
        csv_safe=args.csv_safe,
        truth=args.truth,
    )
