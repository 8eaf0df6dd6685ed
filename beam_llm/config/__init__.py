"""Settings: every option with its default and its check, in one table. Options from Python, SQL,
YAML and the command line are all checked here.

    table.py   `Settings`: the table of options, each with default, rule and meaning
    kinds.py   what a value of each kind may be
    rules.py   rules between options, and defaults from the environment
    doors.py   `settings(…)` by Python names, `settings_from_options(…)` by string keys

An option has one name in two spellings: `batch_size` in Python, `batch.size` as a string key. To
add an option, add its line to `Settings`; `OPTIONS` lists them for the command line and the docs.
"""

from beam_llm.config.doors import (
    name_elsewhere,
    replace_options,
    settings,
    settings_from_options,
    with_fixed,
)
from beam_llm.config.kinds import load_dotted
from beam_llm.config.rules import is_template
from beam_llm.config.table import (
    AUTO_CALLS,
    EACH,
    MODES,
    OPTIONS,
    RESPONSE_FORMATS,
    TASKS,
    VECTOR,
    Settings,
    given_options,
    key_of,
    options_of,
)

__all__ = [
    "AUTO_CALLS",
    "EACH",
    "MODES",
    "OPTIONS",
    "RESPONSE_FORMATS",
    "TASKS",
    "VECTOR",
    "Settings",
    "given_options",
    "is_template",
    "key_of",
    "load_dotted",
    "name_elsewhere",
    "options_of",
    "replace_options",
    "settings",
    "settings_from_options",
    "with_fixed",
]
