"""Fixtures every room uses: settings of their own, and the real server on a real port."""

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from chat.main import open_backend
from chat.server import create_server, listen
from infra.settings import Settings
from infra.telemetry import configure_logging
from tests.support.gateway import gateway  # noqa: F401 - a fixture
from tests.support.queue import queue  # noqa: F401 - a fixture
from tests.support.supabase import postgres, supabase  # noqa: F401 - fixtures

Serve = Callable[..., AbstractAsyncContextManager["Served"]]


class Served:
    """A running server: `url` for WebSockets, `http` for the rest, `leave()` for what SIGTERM does."""

    def __init__(self, port: int, leave: Callable[[], None]) -> None:
        self.port = port
        self.leave = leave
        self.url = f"ws://127.0.0.1:{port}"
        self.http = f"http://127.0.0.1:{port}"


@pytest.fixture(scope="session", autouse=True)
def _surroundings() -> None:
    """No setting of the developer's machine reaches a test."""
    for name in list(os.environ):
        if name.lower() in Settings.model_fields:
            del os.environ[name]


@pytest.fixture(autouse=True)
def _quiet(_surroundings: None) -> None:
    """What a handler made of the logs, in its own test, is forgotten."""
    configure_logging("warning", "console")


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Defaults, with a data folder of the test's own, a flat-out demo model and little patience with who left."""
    return make_settings(tmp_path)


def make_settings(data_dir: Path, **changed: Any) -> Settings:
    """Settings for a test; `changed` wins."""
    defaults: dict[str, Any] = {
        "data_dir": data_dir,
        "demo_tokens_per_second": 0,
        "linger_seconds": 0.3,
        "going_away_seconds": 0.1,
        "tool_timeout_seconds": 1,
    }
    return Settings(**(defaults | changed))


@pytest.fixture
def serve(tmp_path: Path) -> Serve:
    """The server as the product runs it, on a free port: `async with serve(model=…, max_sessions=…) as server`.

    Parts (`store`, `model`, `tools`, `handoff`) replace those of the settings; the rest are settings.
    """

    @asynccontextmanager
    async def run(**given: Any) -> AsyncIterator[Served]:
        parts = {name: given.pop(name) for name in ("store", "model", "tools", "handoff") if name in given}
        settings = make_settings(tmp_path, **given)
        with listen("127.0.0.1", 0) as listener:
            async with open_backend(settings, **parts) as backend:
                server = create_server(backend, settings)
                serving = asyncio.create_task(server.serve(sockets=[listener]))
                try:
                    yield Served(listener.getsockname()[1], server.leave)
                finally:
                    server.should_exit = True
                    await serving

    return run
