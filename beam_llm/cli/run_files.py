"""Files that a command line names besides its data: the pipeline of `beam-llm run`, and the reports
of a run (`--summary FILE.json`, `--report FILE.html`).
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import orjson

from beam_llm import events
from beam_llm.cli.files.target import check_side_file, write_side_file
from beam_llm.cli.reporting.call_log import CallLog
from beam_llm.cli.reporting.render import check_report_path, write_report
from beam_llm.errors import UsageError

if TYPE_CHECKING:
    from beam_llm.cli.predict_command import Report
    from beam_llm.cli.reporting.subject import Subject


class RunFiles:
    """The files that report on a run.

        files = RunFiles(args)
        with files.listening():
            report = …
        files.write_summary(as_json(command, report))
        files.write_page(lambda: (subject_of_predict(command, report), report))

    Raises:
      UsageError: a file of that name can't be written; nothing was asked.
    """

    def __init__(self, args: argparse.Namespace):
        self._summary, self._page = args.summary, args.report
        self._redacted = args.redact
        self._log = CallLog()
        _refuse_one_name(args)
        if self._page is not None:
            check_report_path(self._page)
        if self._summary is not None:
            _check_summary_path(self._summary)

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Collects the events of this process's calls in the block, where a page is wanted."""
        if self._page is None:
            yield
            return
        with events.listening(self._log.hear):
            yield

    def write_summary(self, data: Any) -> None:
        """Writes the summary, where the command line names a file for it."""
        if self._summary is not None:
            # Checked again: the run itself may have written a table of this name.
            _check_summary_path(self._summary)
            data = orjson.dumps(data, option=orjson.OPT_INDENT_2)
            write_side_file(self._summary, data + b"\n")

    def write_page(self, content: Callable[[], tuple[Subject, Report]]) -> None:
        """Writes the page, where one is wanted; called last, so that an error here affects nothing
        else.

        Args:
          content: returns what the page is about; called only where a page is wanted.
        """
        if self._page is None:
            return
        from beam_llm.cli.reporting.run_page import page_of_run

        check_report_path(self._page)  # again, as for a summary
        write_report(self._page, page_of_run(*content(), self._log, redacted=self._redacted))


def _check_summary_path(path: str) -> None:
    check_side_file("--summary", path, "a summary", b'{\n  "format": ')


def _refuse_one_name(args: argparse.Namespace) -> None:
    """Raises UsageError where two of the files that the command writes have the same name."""
    flags: dict[str, str] = {}
    for flag in ("output", "summary", "report"):
        path = getattr(args, flag, None)
        other = flags.setdefault(os.path.realpath(path), flag) if path else flag
        if other != flag:
            raise UsageError(f"--{other} and --{flag} are both {path!r}: name another file")


MOST_BYTES = 1_000_000
"""The most bytes of a file of statements or steps; a larger one is taken for data."""


def text_of(path: str) -> str:
    """The file's text.

    Raises:
      UsageError: it can't be read, is too large, or not text.
    """
    try:
        with open(path, "rb") as file:
            data = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise UsageError(f"{path!r} can't be read: {error.strerror}") from None
    if len(data) > MOST_BYTES:
        raise UsageError(f"{path!r} has more than {MOST_BYTES:,} bytes: rows belong in tables")
    try:
        # Editors on Windows begin a file with a byte order mark, which isn't part of a statement.
        return data.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{path!r} is not text in UTF-8 (byte {error.start + 1:,}): save it as UTF-8"
        ) from None
