"""Beam's Prism runner: a Go program from the module of the Beam version that is installed here.

PRISM_BINARY names one to take as it is. Cold about 1.5–3.5 min (most of it Go's own downloads and
compiling), then nothing.
"""

from __future__ import annotations

import functools
import os
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tests.components import Unavailable, build_once, cache_folder, go_install, require_tools


def prism_binary() -> Path:
    """The path of a Prism binary, built where there is none. Raises `Unavailable`."""
    named = os.environ.get("PRISM_BINARY")
    if named:
        if not os.access(named, os.X_OK):
            raise Unavailable(f"PRISM_BINARY names {named}, which is no program")
        return Path(named)
    beam = version("apache-beam")  # not imported: filling the cache takes no 3 s more than it must
    name = f"prism-{beam}"
    if not (cache_folder() / name).is_dir():
        require_tools("Prism", "go")
    module = f"github.com/apache/beam/sdks/v2/go/cmd/prism@v{beam}"
    return build_once(name, lambda folder: go_install("Prism", module, folder)) / "prism"


def prism_options() -> list[str]:
    """Pipeline flags that run a pipeline on Prism (workers are threads of this process; started on
    first use, ends with the process).
    """
    return ["--runner=PrismRunner", f"--prism_location={prism_binary()}", "--prism_log_level=warn"]


@functools.cache
def own_handle() -> Any:
    """What tests put in the place of `PrismRunner.shared_handle`.

    PrismRunner keeps the first server of a process for good, with the options it was first asked
    with, even one that never came up: a plain DirectRunner pipeline without network leaves such a
    one behind.
    """
    from apache_beam.utils.shared import Shared

    return Shared()
