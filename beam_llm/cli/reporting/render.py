"""A page as HTML: one file without a script, a font or an address; every text is escaped."""

from __future__ import annotations

import functools
import time
from importlib import resources

import jinja2

from beam_llm.cli.files.target import check_side_file, write_side_file
from beam_llm.cli.reporting import charts
from beam_llm.cli.reporting.page import Page
from beam_llm.cli.words import percent
from beam_llm.errors import printable

MARK = "<!-- a report of beam-llm -->"
"""Stands at the beginning of every page: a file that has it may be replaced."""


def html(page: Page) -> str:
    """The page's file as text, with control characters escaped as on a terminal."""
    text = _template().render(
        page=page,
        mark=MARK,
        bars=charts.bars,
        time_line=charts.time_line,
        interval=charts.interval,
        percent=percent,
        written=time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(page.now)),
    )
    return "\n".join(map(printable, text.split("\n")))


@functools.cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        autoescape=True,
        # A mistake in the template fails a test, instead of leaving an empty cell that nobody sees.
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    source = resources.files("beam_llm.cli.reporting").joinpath("page.html").read_text("utf-8")
    return environment.from_string(source)


def check_report_path(path: str) -> None:
    """Raises UsageError where no page can be written there, before anything is paid."""
    check_side_file("--report", path, "a report", MARK.encode())


def write_report(path: str, page: Page) -> None:
    """Writes the page in one step, readable by its owner alone, since it may quote records."""
    write_side_file(path, html(page).encode(), 0o600)
