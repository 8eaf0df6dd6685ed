"""An S3 server on loopback: moto's, in a process of its own.

It enforces `If-None-Match: *` on writes; a lock makes that one step, which in moto's own threads
are two. `ignores_preconditions` takes the header off before: a look-alike that lets every creator
win.
"""

from __future__ import annotations

import os
import sys
import tempfile
import threading
import urllib.request
from collections.abc import Callable, Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tests.components import Program, Unavailable, answers, free_port

KEYS = {
    "AWS_ACCESS_KEY_ID": "test-access-key",
    "AWS_SECRET_ACCESS_KEY": "test-secret-key-of-nobody",
    "AWS_REGION": "us-east-1",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_CONFIG_FILE": os.devnull,
    "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
}
"""Of nobody; and nothing of the machine's own is looked for."""


class S3Server:
    """A running server with its objects in memory; a context manager.

    Attributes:
      environment: what a process needs to find it.
    """

    def __init__(self, *, ignores_preconditions: bool = False) -> None:
        if find_spec("moto") is None or find_spec("flask") is None:
            raise Unavailable("the S3 server is moto's: pip install 'moto[server]'")
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        self.environment = {**KEYS, "AWS_ENDPOINT_URL_S3": self.url, "AWS_ALLOW_HTTP": "true"}
        self._folder = tempfile.TemporaryDirectory(prefix="beam-llm-s3-")
        weak = ["weak"] if ignores_preconditions else []
        self._program = Program(
            "moto",
            [sys.executable, "-m", "tests.components.s3", str(port), *weak],
            Path(self._folder.name) / "server.log",
            cwd=Path(__file__).parents[2],
        )

    def __enter__(self) -> S3Server:
        try:
            self._program.wait_until(lambda: answers(f"{self.url}/moto-api/data.json"), seconds=60)
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
        request = urllib.request.Request(f"{self.url}/{name}", method="PUT")
        urllib.request.urlopen(request, timeout=10).close()


def _one_by_one(application: Callable[..., Iterable[bytes]], is_weak: bool) -> Any:
    lock = threading.Lock()

    def serve(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        if is_weak:
            environ.pop("HTTP_IF_NONE_MATCH", None)
        with lock:
            return application(environ, start_response)

    return serve


def main(port: str, weak: str = "") -> None:
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import run_simple

    application = DomainDispatcherApplication(create_backend_app)
    served = _one_by_one(application, is_weak=bool(weak))
    run_simple("127.0.0.1", int(port), served, threaded=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
