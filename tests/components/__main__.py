"""`python -m tests.components prepare [prism|flink|gcs|azure|chromium|lowest_beam|all]`: fetches and builds what
the tests need, and says what it took.

Exits 0 also where a part can't be had (its tests then skip, and say why), except for parts named by
BEAM_LLM_TEST_REQUIRE: 1.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

from tests.components import Unavailable, required
from tests.components.azure import azurite_script
from tests.components.chromium import chromium_binary
from tests.components.flink import flink_jars, job_server_jar
from tests.components.gcs import gcs_binary
from tests.components.lowest_beam import lowest_beam_python
from tests.components.prism import prism_binary

PARTS: dict[str, tuple[Callable[[], object], ...]] = {
    "prism": (prism_binary,),
    "flink": (flink_jars, job_server_jar),
    "gcs": (gcs_binary,),
    "azure": (azurite_script,),
    "chromium": (chromium_binary,),
    "lowest_beam": (lowest_beam_python,),
}


def main(arguments: list[str]) -> int:
    if not arguments or arguments[0] != "prepare" or not {*arguments[1:]} <= {*PARTS, "all"}:
        print(__doc__)
        return 2
    names = [*PARTS] if not arguments[1:] or "all" in arguments[1:] else arguments[1:]
    return max(_prepare(name) for name in names)


def _prepare(name: str) -> int:
    started = time.monotonic()
    try:
        for fetch in PARTS[name]:
            fetch()
    except Unavailable as reason:
        print(f"{name}: not to be had: {reason}", flush=True)
        return int(required(name))
    print(f"{name}: ready after {time.monotonic() - started:.1f} s", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
