"""`beam-llm run FILE.sql`: reads the file, prints notices, runs it, and prints how it ended."""

from __future__ import annotations

import argparse
import os

from beam_llm.cli.exit_codes import ALL_ANSWERED
from beam_llm.cli.predict_command import combine_reports
from beam_llm.cli.progress import write_line
from beam_llm.cli.run_files import RunFiles, text_of
from beam_llm.cli.sql.dry_run import dry_run
from beam_llm.cli.sql.reporting import (
    as_predict,
    report_of_file,
    subject_of_file,
    summary_of_file,
)
from beam_llm.cli.sql.run import JobResult, SqlCommand, SqlRunner
from beam_llm.cli.summary import exit_code_of, print_summary
from beam_llm.cli.words import table
from beam_llm.fronts.sql.script import Job, Listing, Script, read_script
from beam_llm.fronts.sql.tables import Permissions


def run(args: argparse.Namespace) -> int:
    """Runs the command; returns its exit code."""
    # First, so that a page that can't be written is an error before anything is read or paid for.
    files = RunFiles(args)
    script = read_script(
        text_of(args.file),
        os.path.basename(args.file),
        Permissions(code=args.allow_code, key_files=args.allow_key_files),
    )
    for notice in script.notices if not args.quiet else ():
        write_line(notice)
    if args.dry_run:
        dry_run(script)
        return ALL_ANSWERED
    with files.listening():
        results = _run_all(args, script)
    files.write_summary(summary_of_file(results))
    code = exit_code_of(args.name, combine_reports([one.report for one in results]).tally)
    files.write_page(lambda: (subject_of_file(results, args.beam_options), report_of_file(results)))
    return code


def _run_all(args: argparse.Namespace, script: Script) -> list[JobResult]:
    command = SqlCommand(
        args.beam_options, args.quiet, args.force, args.retry_errors, args.csv_safe
    )
    runner = SqlRunner(command, [step for step in script.steps if isinstance(step, Job)])
    results = []
    try:
        for step in script.steps:
            # In the file's order, so that output appears where the file asks for it.
            if isinstance(step, Listing):
                print(_format_listing(step))
            elif (one := runner.run(step)) is not None:
                results.append(one)
                if not args.quiet:
                    for plan in one.plans:
                        write_line(f"{plan.place}: {plan.text}")
                    print_summary(as_predict(one), one.report)
    finally:
        runner.close()
    return results


def _format_listing(step: Listing) -> str:
    if not step.header:
        return "\n".join(row[0] for row in step.rows)
    return table(step.header, step.rows, range(len(step.header)))
