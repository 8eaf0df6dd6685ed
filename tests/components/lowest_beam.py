"""A Python with the lowest Beam that pyproject.toml allows, and what the tests need beside it, in a
venv of the cache.

BEAM_LLM_TEST_LOWEST_BEAM names a Python that has all that, to take as it is; `none` leaves those
tests out. Cold 1–2 min, then nothing.
"""

from __future__ import annotations

import hashlib
import os
import re
import sys
import tomllib
import venv
from pathlib import Path

from tests.components import REPOSITORY, WORKERS, Unavailable, build_once, run_quietly

# What touches Beam, without Prism and Flink: they are of the newest Beam.
TESTS = [
    f"tests/test_{name}.py"
    for name in (
        *(
            "beam_internals",
            "predict",
            "schemas",
            "elements",
            "batching_consumers",
            "envelopes",
            "plain_coders",
            "golden_state",
        ),
        *("streaming", "waiting", "runners", "metrics"),
    )
]
_EXTRAS = ("tokens", "schema", "demo", "test")
# What these tests do without: linters, and the clients and servers that others are tested with.
_LEFT_OUT = (
    *("beam-llm", "ruff", "mypy", "pdoc", "moto"),
    *("anthropic", "google-genai", "groq", "mistralai", "openai"),
)


def lowest_version() -> str:
    """The lowest Beam of pyproject.toml's range."""
    found = re.search(r">=([\d.]+)", next(filter(_is_beam, _project()["dependencies"])))
    assert found is not None
    return found[1]


def requirements() -> list[str]:
    """All that the tests need, with Beam held at its lowest version."""
    project = _project()
    optional = project["optional-dependencies"]
    wanted = [*project["dependencies"], *(line for extra in _EXTRAS for line in optional[extra])]
    others = [line for line in wanted if not _is_beam(line) and not line.startswith(_LEFT_OUT)]
    # Without the extras of what `TESTS` leaves out (Dataflow, YAML): theirs take pip many minutes
    # to settle.
    return [f"apache-beam[dataframe]=={lowest_version()}.*", *others]


def lowest_beam_python() -> Path:
    """The Python, its venv made where there is none. Raises `Unavailable`."""
    named = os.environ.get("BEAM_LLM_TEST_LOWEST_BEAM")
    if named == "none":
        raise Unavailable("BEAM_LLM_TEST_LOWEST_BEAM leaves it out")
    if named:
        return Path(named)
    what = hashlib.sha256("\n".join([sys.version, *requirements()]).encode()).hexdigest()[:8]
    return build_once(f"beam-{lowest_version()}-{what}", _build) / "bin" / "python"


def _build(folder: Path) -> None:
    venv.create(folder, with_pip=True)
    install = [
        str(folder / "bin" / "python"),
        "-m",
        "pip",
        "install",
        "-q",
        "--no-compile",
        *requirements(),
    ]
    run_quietly("a venv with the lowest Beam", install, cwd=folder, seconds=900)


def test_command() -> list[str]:
    """Runs `TESTS` there, on this checkout."""
    where = "not prism and not flink and not gcs"
    python = str(lowest_beam_python())
    return [
        python,
        "-m",
        "pytest",
        "-rs",
        "-n",
        str(WORKERS),
        # The package is not installed there, so its pytest plugin is named; and not found a second
        # time by the egg-info that an editable install of this checkout leaves beside the package.
        "-p",
        "no:beam_llm",
        "-p",
        "beam_llm.testing.plugin",
        "-m",
        where,
        "-k",
        "not prism",
        *TESTS,
    ]


def _is_beam(line: str) -> bool:
    return line.startswith("apache-beam")


def _project() -> dict[str, dict[str, list[str]]]:
    project: dict[str, dict[str, list[str]]] = tomllib.loads(
        (REPOSITORY / "pyproject.toml").read_text()
    )["project"]
    return project
