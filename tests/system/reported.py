"""What the tests of reported failures share: scripts that stop, hand-offs that tell, a container that can be killed."""

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from chat.sessions.door import Departure
from chat.sessions.outbox import Outbox
from chat.sessions.registry import Sessions
from chat.sessions.session import Session
from infra.records import Event, SessionEnded
from infra.store.sqlite import SqliteStore
from tests.support.client import PATIENCE, ChatClient, Frame
from tests.system.test_local import environment


class Announced:
    """A hand-off that keeps what it is given, and tells when a session's end came."""

    def __init__(self) -> None:
        self.ended: list[SessionEnded] = []
        self._came = asyncio.Condition()

    async def send(self, ended: Sequence[SessionEnded]) -> list[SessionEnded]:
        """See `Handoff.send`."""
        async with self._came:
            self.ended += ended
            self._came.notify_all()
        return []

    async def close(self) -> None:
        """See `Handoff.close`."""

    async def of(self, session_id: str) -> SessionEnded:
        """The end of this session, waiting for it."""
        async with asyncio.timeout(PATIENCE), self._came:
            await self._came.wait_for(lambda: session_id in [ended.session_id for ended in self.ended])
        return next(ended for ended in self.ended if ended.session_id == session_id)


def departures(monkeypatch: pytest.MonkeyPatch) -> "asyncio.Queue[str]":
    """The session of each socket, once the server has let it go."""
    queue: asyncio.Queue[str] = asyncio.Queue()
    detach = Sessions.detach

    def told(self: Sessions, session: Session, outbox: Outbox, departure: Departure) -> None:
        detach(self, session, outbox, departure)
        queue.put_nowait(session.session_id)

    monkeypatch.setattr(Sessions, "detach", told)
    return queue


@asynccontextmanager
async def container(data_dir: Path, port: int, **settings: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """The real container as a process, from when it listens; killed at the latest when the block is left."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "chat",
        env=environment(data_dir, port, **settings),
        cwd=data_dir,
        stderr=subprocess.DEVNULL,
    )
    try:
        async with asyncio.timeout(30):
            while True:
                try:
                    _, writer = await asyncio.open_connection("127.0.0.1", port)
                except OSError:
                    await asyncio.sleep(0.02)
                    continue
                writer.close()
                break
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def stored(data_dir: Path, session_id: str = "s1") -> list[Event]:
    """The session's events as they are in the store now."""
    store = await SqliteStore.open(data_dir / "realtime.db")
    try:
        return await store.events(session_id, limit=1000)
    finally:
        await store.close()


async def nothing_more(client: ChatClient) -> list[Frame]:
    """What is sent before the answer to a ping, the news of what is saved aside."""
    await client.send({"type": "ping"})
    frames = []
    while (frame := await client.next())["type"] != "pong":
        frames.append(frame)
    return [frame for frame in frames if frame["type"] != "saved"]
