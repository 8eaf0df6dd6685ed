"""`beam-llm run`: its arguments; a pipeline from a file, SQL or YAML by the file's name."""

from __future__ import annotations

import argparse
import importlib
from typing import Any

from beam_llm.cli.exit_codes import IN_WORDS
from beam_llm.cli.flags import add_cells, add_existing, add_run_files
from beam_llm.cli.parser import add_command
from beam_llm.errors import UsageError

_DESCRIPTION = """\
Runs a pipeline that a file describes: SQL (.sql) or Beam YAML (.yaml).

  CREATE TABLE reviews (id STRING, text STRING)
    WITH ('connector' = 'filesystem', 'path' = 'reviews/*.jsonl', 'format' = 'json');
  CREATE TABLE labelled (id STRING, sentiment STRING, error STRING)
    WITH ('connector' = 'filesystem', 'path' = 'out/', 'format' = 'json');
  CREATE MODEL m INPUT (text STRING) OUTPUT (sentiment STRING)
    WITH ('provider' = 'openai', 'model' = 'gpt-4.1-mini', 'batch.size' = '20');
  INSERT INTO labelled SELECT id, ML_PREDICT('m', text) AS sentiment FROM reviews;

All of a SQL file is checked before any of it runs. A stopped run goes on where it was with the same
command, which skips what is finished. SQL needs pip install 'beam-llm[sql]', YAML
'apache-beam[yaml]'."""
_EPILOG = f"""{IN_WORDS}.
What stands after -- goes to Beam, such as -- --runner=FlinkRunner
(default of a SQL file: --runner=FnApiRunner)."""


def add_parser(commands: Any) -> None:
    parser = add_command(
        commands,
        "run",
        f"{__name__}:run",
        "a pipeline from a file: SQL or YAML",
        description=_DESCRIPTION,
        usage="beam-llm run FILE.sql|FILE.yaml [option …] [-- Beam's options]",
        epilog=_EPILOG,
    )
    parser.add_argument("file", metavar="FILE", help="a file of SQL statements, or a YAML pipeline")
    dry = "print the pipeline that would run, each model's options and the first request; no call"
    parser.add_argument("--dry-run", action="store_true", help=dry)
    add_existing(parser, "outputs")
    code = "the file may name code: parsers, and Beam's sources and sinks, as package.module.Name"
    parser.add_argument("--allow-code", action="store_true", help=code)
    keys = "the file may name keys that are in files: 'api.key' = 'file:PATH'"
    parser.add_argument("--allow-key-files", action="store_true", help=keys)
    add_run_files(parser)
    parser.add_argument("--quiet", action="store_true", help="no progress and no summary on stderr")
    add_cells(parser)


def run(args: argparse.Namespace) -> int:
    name = args.file.lower()
    if name.endswith((".yaml", ".yml")):
        _require("YAML", "apache-beam[yaml]", "apache_beam.yaml.yaml_transform")
        from beam_llm.cli.yaml import command as yaml_command

        return yaml_command.run(args)
    if not name.endswith(".sql"):
        raise UsageError(f"{args.file!r} is neither SQL nor YAML: name it FILE.sql or FILE.yaml")
    _require("SQL", "beam-llm[sql]", "duckdb", "sqlglot")
    from beam_llm.cli.sql import command

    return command.run(args)


def _require(language: str, package: str, *modules: str) -> None:
    """Raises UsageError where a module is missing that files of this language need."""
    for module in modules:
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise UsageError(
                f"{language} files need {error.name}, which is not installed: pip install "
                f"{package!r}"
            ) from None
