"""The arguments of `beam-llm demo`."""

from __future__ import annotations

from typing import Any

from beam_llm.cli.parser import add_command, file_name, positive


def add_parser(commands: Any) -> None:
    text = (
        "real reviews through LLMPredict on an emulated provider, live and by batch API: no "
        "key, no cloud"
    )
    parser = add_command(commands, "demo", "beam_llm.cli.demo:main", text)
    provider = "whose dialect the emulator speaks: openai (default), anthropic, gemini, …"
    parser.add_argument("--provider", default="openai", metavar="NAME", help=provider)
    records = "reviews to label (default: 2000, which is all there are)"
    parser.add_argument("--records", type=positive, default=2000, metavar="N", help=records)
    size = "records in one prompt (default: 20)"
    parser.add_argument("--batch-size", type=positive, default=20, metavar="N", help=size)
    folder = "folder for answers and staging (default: a new temporary folder)"
    parser.add_argument("--output", type=file_name, metavar="DIR", help=folder)
    parser.add_argument("--quiet", action="store_true", help="no progress")
