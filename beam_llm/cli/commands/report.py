"""The arguments of `beam-llm report`."""

from __future__ import annotations

import argparse
from typing import Any

from beam_llm.cli.parser import add_command


def add_parser(commands: Any) -> None:
    text = "the batch jobs of a staging location as one page to look at"
    parser = add_command(commands, "report", "beam_llm.cli.reporting.of_staging:main", text)
    add_staging(parser)
    page = "the page (default: report.html)"
    # As a run calls its page, and as every other command calls what it writes.
    parser.add_argument("--report", "--output", default="report.html", metavar="FILE", help=page)
    add_redact(parser)


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
    parser.add_argument("--summary", metavar="FILE.json", help=summary)
    page = "the run as a page to look at: calls, latencies, cost, errors, jobs"
    parser.add_argument("--report", metavar="FILE.html", help=page)
    add_redact(parser)


def add_redact(parser: argparse.ArgumentParser) -> None:
    """Adds the flag that keeps texts out of a page."""
    redact = "texts of prompts and records, and what messages quote, stay out of the page"
    parser.add_argument("--redact", action="store_true", help=redact)
