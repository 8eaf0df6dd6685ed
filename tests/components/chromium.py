"""Headless Chromium, to look at the pages that the package writes: driven by its own protocol,
through the HTTP client that the package has.

CHROMIUM_BINARY names one to take as it is; else one on PATH; else, for the superuser of a machine
with apt, Debian's is installed (a minute).
"""

from __future__ import annotations

import asyncio
import base64
import os
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp

from tests.components import Program, Unavailable, run_quietly, tail

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_PORT_FILE = "DevToolsActivePort"


def chromium_binary() -> str:
    """The path of a Chromium. Raises `Unavailable`."""
    named = os.environ.get("CHROMIUM_BINARY") or next(filter(None, map(shutil.which, _NAMES)), None)
    if named is None:
        _install()
        named = shutil.which("chromium")
    if named is None or not os.access(named, os.X_OK):
        raise Unavailable(f"Chromium: {named or 'apt-get'} gave no program")
    return named


def _install() -> None:
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        raise Unavailable(
            "Chromium is not on PATH, and only the superuser can install it (apt-get install "
            "chromium): install it, or name one by CHROMIUM_BINARY"
        )
    here = Path("/")
    quiet = {"DEBIAN_FRONTEND": "noninteractive"}
    run_quietly("Chromium", ["apt-get", "update", "-qq"], cwd=here, seconds=300, env=quiet)
    command = ["apt-get", "install", "-y", "-qq", "--no-install-recommends", "chromium"]
    run_quietly("Chromium", command, cwd=here, seconds=600, env=quiet)


class Look(NamedTuple):
    """A page as it was shown.

    Attributes:
      facts: what the script gave.
      png: its picture, whole.
      requests: addresses that it asked for, the page's own among them.
      complaints: what it wrote to the console, or raised.
    """

    facts: Any
    png: bytes
    requests: tuple[str, ...]
    complaints: tuple[str, ...]


def looks_at(pages: list[tuple[Path, int, str]], script: str, folder: Path) -> list[Look]:
    """Shows each (page, width in pixels, `light` or `dark`), and runs the script in it."""

    async def look() -> list[Look]:
        async with _browser(folder) as show:
            return [await show(*page, script) for page in pages]

    return asyncio.run(look())


@asynccontextmanager
async def _browser(folder: Path) -> AsyncIterator[Callable[..., Awaitable[Look]]]:
    profile = folder / "profile"
    profile.mkdir()
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
    options += ["--remote-debugging-port=0", f"--user-data-dir={profile}", "about:blank"]
    program = Program("Chromium", [chromium_binary(), *options], folder / "chromium.log")
    try:
        program.wait_until((profile / _PORT_FILE).exists, 60)
        port = (profile / _PORT_FILE).read_text().splitlines()[0]
        async with aiohttp.ClientSession() as session:
            address = f"http://127.0.0.1:{port}/json/new?about:blank"
            async with session.put(address) as reply:
                target = (await reply.json())["webSocketDebuggerUrl"]
            async with session.ws_connect(target, max_msg_size=0) as socket:
                yield _Tab(socket, folder / "chromium.log").show
    finally:
        program.stop()


class _Tab:
    """One tab, over the DevTools protocol."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse, log: Path):
        self._socket = socket
        self._log = log
        self._number = 0
        self._heard: list[dict[str, Any]] = []

    async def show(self, path: Path, width: int, scheme: str, script: str) -> Look:
        for domain in ("Page", "Network", "Runtime", "Log"):
            await self._call(f"{domain}.enable")
        self._heard.clear()
        await self._call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=900,
            deviceScaleFactor=1,
            mobile=True,
        )
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        await self._call("Emulation.setEmulatedMedia", features=features)
        await self._call("Page.navigate", url=path.as_uri())
        await self._until("Page.loadEventFired")
        found = await self._call("Runtime.evaluate", expression=script, returnByValue=True)
        picture = await self._call("Page.captureScreenshot", captureBeyondViewport=True)
        return Look(
            found["result"].get("value"),
            base64.b64decode(picture["data"]),
            tuple(self._said("Network.requestWillBeSent", "request", "url")),
            (
                *self._said("Log.entryAdded", "entry", "text"),
                *self._said("Runtime.exceptionThrown", "exceptionDetails", "text"),
            ),
        )

    def _said(self, method: str, *path: str) -> list[str]:
        texts = []
        for message in self._heard:
            if message["method"] == method:
                value: Any = message["params"]
                for name in path:
                    value = value[name]
                texts.append(str(value))
        return texts

    async def _call(self, method: str, **params: Any) -> Any:
        self._number += 1
        number = self._number
        await self._socket.send_json({"id": number, "method": method, "params": params})
        while (message := await self._next()).get("id") != number:
            self._heard.append(message)
        assert "error" not in message, message
        return message["result"]

    async def _until(self, method: str) -> None:
        while not any(message["method"] == method for message in self._heard):
            self._heard.append(await self._next())

    async def _next(self) -> dict[str, Any]:
        try:
            async with asyncio.timeout(30):
                message: dict[str, Any] = await self._socket.receive_json()
        except (TimeoutError, TypeError) as error:
            raise RuntimeError(f"Chromium says nothing\n{tail(self._log)}") from error
        return message
