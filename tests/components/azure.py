"""Azure Blob Storage on loopback: Azurite, a Node program of Microsoft's, with write preconditions."""

from __future__ import annotations

import base64
import hashlib
import hmac
import tempfile
import urllib.request
from datetime import UTC, datetime
from pathlib import Path

from tests.components import (
    Program,
    build_once,
    cache_folder,
    free_port,
    listening,
    require_tools,
    run_quietly,
)

VERSION = "3.35.0"
ACCOUNT = "devstoreaccount1"
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
"""Azurite's account and its key, the same for everybody. Source: Azurite's README, read 2026-11."""


def azurite_script() -> Path:
    """The path of the server's script, installed where there is none. Raises `Unavailable`."""
    name = f"azurite-{VERSION}"
    if not (cache_folder() / name).is_dir():
        require_tools("Azurite", "npm", "node")
    command = ["npm", "install", "--no-audit", "--no-fund", "--silent", f"azurite@{VERSION}"]

    def install(folder: Path) -> None:
        run_quietly("Azurite", command, cwd=folder, seconds=300)

    return build_once(name, install) / "node_modules" / ".bin" / "azurite-blob"


class AzureServer:
    """A running server with its blobs in memory; a context manager.

    Attributes:
      environment: what a process needs to find it.
    """

    def __init__(self) -> None:
        script, port = azurite_script(), free_port()
        require_tools("Azurite", "node")
        self._port, self.url = port, f"http://127.0.0.1:{port}/{ACCOUNT}"
        self.environment = {
            "AZURE_STORAGE_USE_EMULATOR": "true",
            "AZURITE_BLOB_STORAGE_URL": f"http://127.0.0.1:{port}",
        }
        self._folder = tempfile.TemporaryDirectory(prefix="beam-llm-azure-")
        command = ["node", str(script), "--blobHost", "127.0.0.1", "--blobPort", str(port)]
        command += ["--inMemoryPersistence", "--skipApiVersionCheck", "--silent"]
        self._program = Program("azurite", command, Path(self._folder.name) / "server.log")

    def __enter__(self) -> AzureServer:
        try:
            self._program.wait_until(lambda: listening(self._port), seconds=60)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._program.stop()
        self._folder.cleanup()

    def make_container(self, name: str) -> None:
        """By Azure's shared-key signature: obstore makes no containers."""
        date = datetime.now(UTC).strftime("%a, %d %b %Y %H:%M:%S GMT")
        headers = {"x-ms-date": date, "x-ms-version": "2021-12-02"}
        canonical = "".join(f"{header}:{value}\n" for header, value in sorted(headers.items()))
        resource = f"/{ACCOUNT}/{ACCOUNT}/{name}\nrestype:container"
        signed = f"PUT\n{chr(10) * 11}{canonical}{resource}"
        digest = hmac.new(base64.b64decode(KEY), signed.encode(), hashlib.sha256).digest()
        headers["Authorization"] = f"SharedKey {ACCOUNT}:{base64.b64encode(digest).decode()}"
        headers["Content-Length"] = "0"
        address = f"{self.url}/{name}?restype=container"
        request = urllib.request.Request(address, method="PUT", headers=headers)
        urllib.request.urlopen(request, timeout=10).close()
