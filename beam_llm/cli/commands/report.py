"""The arguments of `beam-llm report`."""

from __future__ import annotations

from typing import Any

from beam_llm.cli.flags import add_redact, add_staging
from beam_llm.cli.parser import add_command, file_name


def add_parser(commands: Any) -> None:
    text = "the batch jobs of a staging location as one page to look at"
    parser = add_command(commands, "report", "beam_llm.cli.reporting.staging_page:main", text)
    add_staging(parser)
    page = "the page (default: report.html)"
    # --report as for a run's page, and --output as for what every other command writes.
    parser.add_argument(
        "--report", "--output", default="report.html", type=file_name, metavar="FILE", help=page
    )
    add_redact(parser)
