"""The arguments of `beam-llm jobs ls | show | attach | cancel | cleanup`."""

from __future__ import annotations

import argparse
from typing import Any

from beam_llm.cli.exit_codes import IN_WORDS
from beam_llm.cli.flags import add_options, add_provider, add_staging
from beam_llm.cli.parser import add_command, file_name

_ID = "number in the log, or the provider's job id"


def add_parser(commands: Any) -> None:
    text = "batch jobs in a staging location: look, collect, cancel, tidy"
    parser = commands.add_parser("jobs", help=text, description=text, epilog=IN_WORDS)
    actions = parser.add_subparsers(metavar="ACTION", required=True)
    _add_action(actions, "ls", "all jobs, one a line").add_argument(
        "--json", action="store_true", help="JSON lines"
    )
    _add_action(actions, "show", "one job in full").add_argument("id", metavar="ID", help=_ID)
    _add_attach(actions)
    cancel = _add_action(
        actions, "cancel", "asks the provider to cancel a job; what it has finished is kept"
    )
    cancel.add_argument("id", metavar="ID", help=_ID)
    add_provider(cancel)
    cleanup = _add_action(
        actions, "cleanup", "removes provider files and staging of finished jobs; asks first"
    )
    cleanup.add_argument("--yes", action="store_true", help="don't ask")
    add_provider(cleanup)


def _add_action(actions: Any, name: str, text: str, **kwargs: Any) -> argparse.ArgumentParser:
    parser = add_command(actions, name, f"beam_llm.cli.jobs:{name}", text, **kwargs)
    add_staging(parser)
    return parser


def _add_attach(actions: Any) -> None:
    attach = _add_action(
        actions,
        "attach",
        "waits for jobs, collects them and writes their records with their answers",
        usage="beam-llm jobs attach [ID …] --staging DIR --output OUT --model M --prompt P "
        "[option …]",
    )
    ids = "numbers in the log or job ids (default: all of this prompt, model and output)"
    attach.add_argument("ids", nargs="*", metavar="ID", help=ids)
    attach.add_argument(
        "--output",
        required=True,
        type=file_name,
        metavar="OUT",
        help="file to write: .jsonl; - is stdout",
    )
    attach.add_argument("--force", action="store_true", help="replace an OUT that exists")
    attach.add_argument("--quiet", action="store_true", help="no progress and no summary")
    # `attach` implies the mode, and --staging gives the location.
    add_options(attach, leave_out=("mode", "staging_location"))
