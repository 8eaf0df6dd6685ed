"""`beam-llm run FILE.sql`: reads the file, says what is odd, runs it, and says how it ended."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from typing import Any

from beam_llm.cli.exit_codes import ALL_ANSWERED, SOME_ERRORS
from beam_llm.cli.predict_command import PredictCommand
from beam_llm.cli.progress import write_line
from beam_llm.cli.sql.dry_run import dry_run
from beam_llm.cli.sql.run import Ended, SqlCommand, SqlRunner, settings_of
from beam_llm.cli.summary import FORMAT, as_json, check_summary_path, summary, write_json_file
from beam_llm.cli.words import table
from beam_llm.config import Settings
from beam_llm.errors import UsageError
from beam_llm.fronts.sql.script import Job, Printed, Script, read_script
from beam_llm.fronts.sql.tables import Permissions

MOST_BYTES = 1_000_000
"""Of a SQL file: larger ones are data."""


def run(chosen: argparse.Namespace) -> int:
    """Runs the command; returns its exit code."""
    if chosen.summary is not None:
        check_summary_path(chosen.summary)
    script = read_script(
        _text_of(chosen.file),
        os.path.basename(chosen.file),
        Permissions(code=chosen.allow_code, key_files=chosen.allow_key_files),
    )
    for notice in script.notices if not chosen.quiet else ():
        write_line(notice)
    if chosen.dry_run:
        dry_run(script)
        return ALL_ANSWERED
    ended = _run_all(chosen, script)
    if chosen.summary is not None:
        _write_summary(chosen.summary, ended)
    return _exit_code(chosen, ended)


def _text_of(path: str) -> str:
    with open(path, "rb") as file:
        data = file.read(MOST_BYTES + 1)
    if len(data) > MOST_BYTES:
        raise UsageError(f"{path!r} has more than {MOST_BYTES:,} bytes: rows belong into tables")
    try:
        return data.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{path!r} is not text in UTF-8 (byte {error.start + 1:,}): save it as UTF-8"
        ) from None


def _run_all(chosen: argparse.Namespace, script: Script) -> list[Ended]:
    command = SqlCommand(chosen.beam_options, chosen.quiet, chosen.force, chosen.csv_safe)
    runner = SqlRunner(command, [step for step in script.steps if isinstance(step, Job)])
    ended = []
    try:
        for step in script.steps:
            if isinstance(step, Printed):
                print(_printed(step))
            elif (one := runner.run(step)) is not None:
                ended.append(one)
                _say_end(chosen, one)
    finally:
        runner.close()
    return ended


def _printed(step: Printed) -> str:
    if not step.header:
        return "\n".join(row[0] for row in step.rows)
    return table(step.header, step.rows, range(len(step.header)))


def _as_predict(one: Ended) -> PredictCommand:
    """The job as `predict` would have run it, for the same summary."""
    settings: Sequence[Settings] = [found for plan in one.plans for found in settings_of(plan)]
    output = ", ".join(one.outputs)
    return PredictCommand((), output, settings[0] if settings else Settings())


def _say_end(chosen: argparse.Namespace, one: Ended) -> None:
    if chosen.quiet:
        return
    for plan in one.plans:
        write_line(f"{plan.place}: {plan.text}")
    for line in summary(_as_predict(one), one.report).split("\n"):
        write_line(line)


def _write_summary(path: str, ended: Sequence[Ended]) -> None:
    statements: list[dict[str, Any]] = [
        {"places": [plan.place for plan in one.plans], **as_json(_as_predict(one), one.report)}
        for one in ended
    ]
    write_json_file(path, {"format": FORMAT, "statements": statements})


def _exit_code(chosen: argparse.Namespace, ended: Sequence[Ended]) -> int:
    failed = sum(one.report.tally.failed for one in ended)
    if not failed:
        return ALL_ANSWERED
    records = sum(one.report.tally.records for one in ended)
    write_line(f"{chosen.name}: {failed:,} of {records:,} records ended as errors")
    return SOME_ERRORS
