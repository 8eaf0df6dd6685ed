"""`beam-llm report --staging DIR`: the jobs of a staging location as one page."""

from __future__ import annotations

import argparse

from beam_llm.cli.exit_codes import ALL_ANSWERED
from beam_llm.cli.jobs import store_at
from beam_llm.cli.reporting.of_staging import page_of_staging
from beam_llm.cli.reporting.render import check_report_path, write_report
from beam_llm.errors import printable


def main(chosen: argparse.Namespace) -> int:
    """Writes the page and says where it is."""
    check_report_path(chosen.report)
    page = page_of_staging(store_at(chosen.staging_location), redacted=chosen.redact)
    write_report(chosen.report, page)
    print(printable(chosen.report))
    return ALL_ANSWERED
