"""`python -m tests`: lint, format, types and tests, the same on a laptop and in CI. Arguments go to pytest."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent


def main(arguments: list[str]) -> int:
    # What some tests need to be fetched and built (Prism, Flink, a GCS server) is, beside lint and types; later it is in the cache.
    fetching = subprocess.Popen([sys.executable, "-m", "tests.components", "prepare", "all"], cwd=ROOT)
    checks = {
        "lint": ["ruff", "check", "."],
        "format": ["ruff", "format", "--check", "."],
        "types": ["mypy"],
        "tests": ["pytest", "-rs", "-n", "2", "--dist", "loadgroup", *arguments],
    }
    failed = []
    for name, command in checks.items():
        if name == "tests":
            fetching.wait()
        if not _passes(name, command):
            failed.append(name)
    if failed:
        print(f"failed: {', '.join(failed)}", flush=True)
    return 1 if failed else 0


def _passes(name: str, command: list[str]) -> bool:
    started = time.monotonic()
    print(f"== {name}: {' '.join(command)}", flush=True)
    passed = subprocess.run([sys.executable, "-m", *command], cwd=ROOT, check=False).returncode == 0
    print(f"== {name} {'passed' if passed else 'FAILED'} in {time.monotonic() - started:.0f} s", flush=True)
    return passed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
