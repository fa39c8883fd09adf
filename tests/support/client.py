"""A chat client for tests: a real WebSocket, and the few things one does with it."""

import asyncio
import json
from typing import Any, Self
from urllib.parse import urlencode

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

Frame = dict[str, Any]
PATIENCE = 10.0
"""Seconds a test waits for a frame before it fails."""


class ChatClient:
    """One connection; `frames` keeps every frame it was sent, in order."""

    def __init__(self, websocket: ClientConnection) -> None:
        self.websocket = websocket
        self.frames: list[Frame] = []

    @classmethod
    async def connect(cls, base_url: str, session_id: str = "s1", token: str | None = None, **query: str) -> Self:
        """Connect to `ws://…`, with this token in a header, and return without waiting for `ready`."""
        url = f"{base_url}/ws/session/{session_id}" + (f"?{urlencode(query)}" if query else "")
        headers = {"Authorization": f"Bearer {token}"} if token is not None else None
        return cls(await connect(url, proxy=None, max_size=None, additional_headers=headers))

    async def __aenter__(self) -> Self:
        """Use the client in a block; leaving it says goodbye."""
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close with 1000."""
        await self.websocket.close()

    async def send(self, frame: Frame | str | bytes) -> None:
        """Send a frame as JSON, or text and bytes as they are."""
        await self.websocket.send(json.dumps(frame) if isinstance(frame, dict) else frame)

    async def say(self, content: str, **fields: str) -> None:
        """Send a user message."""
        await self.send({"type": "message", "content": content, **fields})

    async def next(self) -> Frame:
        """The next frame, whatever it is."""
        async with asyncio.timeout(PATIENCE):
            frame: Frame = json.loads(await self.websocket.recv())
        self.frames.append(frame)
        return frame

    async def until(self, frame_type: str, **fields: Any) -> Frame:
        """Read on to the next frame of this type, with these fields."""
        while True:
            frame = await self.next()
            if frame["type"] == frame_type and all(frame.get(name) == value for name, value in fields.items()):
                return frame

    async def closed(self) -> int | None:
        """Read on to the close; its code."""
        try:
            while True:
                await self.next()
        except ConnectionClosed as closed:
            return closed.rcvd.code if closed.rcvd else None

    def text(self, turn_id: str | None = None) -> str:
        """The tokens read so far, joined: of one turn, or of all."""
        return "".join(f["content"] for f in self.frames if f["type"] == "token" and turn_id in (None, f["turn_id"]))

    def types(self) -> list[str]:
        """The types of the frames read so far, runs of tokens as one."""
        types: list[str] = []
        for frame in self.frames:
            if frame["type"] != "token" or types[-1:] != ["token"]:
                types.append(frame["type"])
        return types
