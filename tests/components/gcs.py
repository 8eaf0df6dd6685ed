"""A GCS server on loopback with real write preconditions: fsouza/fake-gcs-server, a Go program.

Writes with `if_generation_match` (0 or N) are enforced; preconditions of delete, compose, copy and
get are ignored by it (measured with 1.56.1), so no test may rest on those. GCS_SERVER_BINARY names
a binary to take as it is.
"""

from __future__ import annotations

import json
import os
import tempfile
import urllib.request
from pathlib import Path

from tests.components import (
    Program,
    Unavailable,
    answers,
    build_once,
    cache_folder,
    free_port,
    go_install,
    require_tools,
)

VERSION = "1.56.1"  # the one whose preconditions were measured


def gcs_binary() -> Path:
    """The path of the server's binary, built where there is none. Raises `Unavailable`."""
    named = os.environ.get("GCS_SERVER_BINARY")
    if named:
        if not os.access(named, os.X_OK):
            raise Unavailable(f"GCS_SERVER_BINARY names {named}, which is no program")
        return Path(named)
    name = f"fake-gcs-server-{VERSION}"
    if not (cache_folder() / name).is_dir():
        require_tools("the GCS server", "go")
    module = f"github.com/fsouza/fake-gcs-server@v{VERSION}"
    return (
        build_once(name, lambda folder: go_install("the GCS server", module, folder))
        / "fake-gcs-server"
    )


class GcsServer:
    """A running server with its objects in memory; a context manager. `environment` leads
    clients of gs:// to it.
    """

    def __init__(self) -> None:
        binary, port = gcs_binary(), free_port()
        self.url = f"http://127.0.0.1:{port}"
        self.environment = {"STORAGE_EMULATOR_HOST": self.url}
        self._folder = tempfile.TemporaryDirectory(prefix="beam-llm-gcs-")
        command = [
            str(binary),
            "-scheme",
            "http",
            "-host",
            "127.0.0.1",
            "-port",
            str(port),
            "-backend",
            "memory",
        ]
        command += [
            "-public-host",
            f"127.0.0.1:{port}",
            "-external-url",
            self.url,
            "-log-level",
            "error",
        ]
        self._program = Program("fake-gcs-server", command, Path(self._folder.name) / "server.log")

    def __enter__(self) -> GcsServer:
        try:
            self._program.wait_until(
                lambda: answers(f"{self.url}/storage/v1/b?project=tests"), seconds=30
            )
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._program.stop()
        self._folder.cleanup()

    def make_bucket(self, name: str) -> None:
        body = json.dumps({"name": name}).encode()
        request = urllib.request.Request(
            f"{self.url}/storage/v1/b?project=tests", body, {"Content-Type": "application/json"}
        )
        urllib.request.urlopen(request, timeout=10).close()
