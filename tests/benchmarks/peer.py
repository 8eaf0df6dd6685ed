"""openaivec, which packs records as we do, in a virtual environment of its own: it is no dependency
of this package, and has others.

`OPENAIVEC_PYTHON` may name a Python that has it; else one is made, once, in the user's cache.
"""

from __future__ import annotations

import gzip
import hashlib
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

VERSION = "2.9.3"
SCRIPT = Path(__file__).with_name("openaivec_run.py")

_FOLDER = Path.home() / ".cache" / "beam-llm-benchmarks"
_VOCABULARY = "https://openaipublic.blob.core.windows.net/encodings/o200k_base.tiktoken"
"""What tiktoken would fetch; it looks in its cache for the SHA-1 of the address first."""


class NotToBeHad(Exception):
    """The peer can't be run here, and why."""


def python_with_openaivec() -> str:
    """The path of a Python that has it.

    Raises:
      NotToBeHad: it can't be installed.
    """
    given = os.environ.get("OPENAIVEC_PYTHON")
    if given:
        return given
    folder = _FOLDER / f"openaivec-{VERSION}"
    python = folder / "bin" / "python"
    if not (folder / "ready").exists():
        try:
            _run(sys.executable, "-m", "venv", "--clear", str(folder))
            _run(str(python), "-m", "pip", "install", "--quiet", f"openaivec=={VERSION}")
        except (OSError, subprocess.CalledProcessError) as error:
            raise NotToBeHad(f"openaivec {VERSION} can't be installed: {error}") from error
        (folder / "ready").touch()
    return str(python)


def _run(*command: str) -> None:
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def tiktoken_cache() -> dict[str, str]:
    """The variable that leads tiktoken to the vocabulary that bpe-openai (our extra `tokens`) has,
    so that no run waits for a download.

    Raises:
      NotToBeHad: bpe-openai is not installed.
    """
    found = importlib.util.find_spec("bpe_openai")
    if found is None or found.origin is None:
        raise NotToBeHad("openaivec counts with tiktoken's vocabulary: install bpe-openai for it")
    folder = _FOLDER / "tiktoken"
    path = folder / hashlib.sha1(_VOCABULARY.encode(), usedforsecurity=False).hexdigest()
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        packed = Path(found.origin).with_name("data") / "o200k_base.tiktoken.gz"
        path.write_bytes(gzip.decompress(packed.read_bytes()))
    return {"TIKTOKEN_CACHE_DIR": str(folder)}
