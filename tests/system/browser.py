"""A real Chromium, and a network between it and the server that a test can break."""

import asyncio
import os
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from types import TracebackType
from typing import Self

import pytest
from playwright.async_api import Browser, async_playwright

FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@asynccontextmanager
async def open_browser() -> AsyncIterator[Browser]:
    """The machine's own Chromium; without one the test is skipped, except on CI, where it must not be missing."""
    names = ("chromium", "chromium-browser", "google-chrome")
    path = next((found for name in names if (found := shutil.which(name))), None)
    if path is None:
        missing = "Chromium is not installed: apt-get install chromium"
        if os.environ.get("CI") == "true":
            pytest.fail(missing)
        pytest.skip(missing)
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=path, args=FLAGS)
        try:
            yield browser
        finally:
            await browser.close()


class Relay:
    """A TCP line to a server's port. It keeps its own port, whatever happens behind it.

    It is *up* until `cut`, when it refuses connections, and again after `mend`. While it is up it may be told to
    be `deaf`: then what the server says is lost, as on a network that dies without a word.
    """

    def __init__(self, target: int) -> None:
        self.target = target
        self.port = 0
        self.deaf = False
        self._listener: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._lines: set[asyncio.Task[None]] = set()

    @property
    def http(self) -> str:
        """The address a browser is given."""
        return f"http://127.0.0.1:{self.port}"

    async def __aenter__(self) -> Self:
        """Take a port and carry."""
        await self.mend()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Cut the line for good."""
        await self.cut()

    async def mend(self) -> None:
        """Accept connections, on the port of before."""
        self.deaf = False
        self._listener = await asyncio.start_server(self._carry, "127.0.0.1", self.port)
        self.port = self._listener.sockets[0].getsockname()[1]

    async def cut(self) -> None:
        """Drop every connection and refuse new ones."""
        if self._listener:
            self._listener.close()
            self._listener = None
        for writer in self._writers:
            writer.transport.abort()
        if self._lines:
            await asyncio.wait(self._lines)

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        line = asyncio.current_task()
        assert line
        self._lines.add(line)
        self._writers.add(writer)
        try:
            with suppress(OSError):
                server_reader, server_writer = await asyncio.open_connection("127.0.0.1", self.target)
                self._writers.add(server_writer)
                try:
                    await asyncio.gather(
                        self._pump(reader, server_writer, answers=False),
                        self._pump(server_reader, writer, answers=True),
                    )
                finally:
                    server_writer.transport.abort()
                    self._writers.discard(server_writer)
        finally:
            writer.transport.abort()
            self._writers.discard(writer)
            self._lines.discard(line)

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, answers: bool) -> None:
        with suppress(OSError):
            while data := await reader.read(65536):
                if not (answers and self.deaf):
                    writer.write(data)
                    await writer.drain()
        with suppress(OSError, RuntimeError):
            writer.write_eof()
