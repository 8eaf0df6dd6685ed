"""`python -m tests`: lint, format, types and tests, the same on a laptop and in CI; then what
touches Beam on the lowest Beam, too.

Arguments go to pytest; with them, only the tests that they name are run, on the Beam that is
installed.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from tests.components import WORKERS, Unavailable, python_path, required
from tests.components.__main__ import PARTS
from tests.components.lowest_beam import test_command

ROOT = Path(__file__).parent.parent


def main(arguments: list[str]) -> int:
    # Hundreds of tests start processes, each of which would compile the package, and Beam, anew.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    # What some tests need to be fetched and built (Prism, Flink, a GCS server) is, beside lint and
    # types; later it is in the cache.
    fetching = _prepare(*(part for part in PARTS if part != "lowest_beam"))
    checks = {
        "lint": ["ruff", "check", "."],
        "format": ["ruff", "format", "--check", "."],
        "types": ["mypy"],
    }
    failed = [name for name, command in checks.items() if not _passes(name, command)]
    fetching.wait()
    on_lowest = not arguments and os.environ.get("BEAM_LLM_TEST_LOWEST_BEAM") != "none"
    # It takes minutes to install, and no test needs it.
    installing = _prepare("lowest_beam") if on_lowest else None
    tests = ["pytest", "-rs", "-n", str(WORKERS), "--dist", "loadgroup", *arguments]
    if not _passes("tests", tests):
        failed.append("tests")
    if installing is not None:
        installing.wait()
        if not _passes_on_the_lowest_beam():
            failed.append("tests on the lowest Beam")
    if failed:
        print(f"failed: {', '.join(failed)}", flush=True)
    return 1 if failed else 0


def _prepare(*parts: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-m", "tests.components", "prepare", *parts], cwd=ROOT)


def _passes_on_the_lowest_beam() -> bool:
    try:
        command = test_command()
    except Unavailable as reason:
        print(f"== tests on the lowest Beam skipped: {reason}", flush=True)
        return not required("lowest_beam")
    # Its venv has what the package needs, and not the package.
    return _succeeds(
        "tests on the lowest Beam", command, {**os.environ, "PYTHONPATH": python_path()}
    )


def _passes(name: str, module: list[str]) -> bool:
    return _succeeds(name, [sys.executable, "-m", *module])


def _succeeds(name: str, command: list[str], environment: Mapping[str, str] | None = None) -> bool:
    started = time.monotonic()
    print(f"== {name}: {' '.join(command)}", flush=True)
    passed = subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode == 0
    print(
        f"== {name} {'passed' if passed else 'FAILED'} in {time.monotonic() - started:.0f} s",
        flush=True,
    )
    return passed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
