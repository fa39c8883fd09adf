"""A client that never gives up, and notes what it was promised: it does what the page does, as plainly as can be."""

import asyncio
import contextlib
import random
from dataclasses import dataclass, field
from typing import Any

from websockets.exceptions import WebSocketException

from tests.support.client import ChatClient, Frame

RETRY_SECONDS = (0.05, 0.6)
SAYINGS = ("hello there", "fetch the sales data", "show my stats", "Write 40 words", "fetch data and stats", "why?")


@dataclass
class Promises:
    """What the server told this client: what it must find in the store at the end."""

    accepted: dict[str, str] = field(default_factory=dict)
    """Message id and content."""
    completed: dict[str, str] = field(default_factory=dict)
    """Turn id and the whole text of a reply that was seen to its end."""
    saved_messages: set[str] = field(default_factory=set)
    saved_turns: set[str] = field(default_factory=set)
    drops: int = 0
    resumed: int = 0
    restarted: int = 0


class Visitor:
    """One user in one session, through any number of connections."""

    def __init__(self, url: str, session_id: str, turns: int, dice: random.Random) -> None:
        self.session_id = session_id
        self.promises = Promises()
        self._url = url
        self._turns = turns
        self._dice = dice
        self._client: ChatClient | None = None
        self._position: tuple[int, int] | None = None
        self._text: dict[str, str] = {}
        self._told: list[tuple[int, str, str]] = []  # (seq, "message" or "turn", id), of this epoch, not saved yet
        self._unsaved: dict[str, str] = {}  # message id -> content
        self._turn_of: dict[str, str] = {}
        self._ended: set[str] = set()

    async def visit(self) -> None:
        """Say everything there is to say, each thing after the last one's end; then leave with a goodbye."""
        for number in range(self._turns):
            message_id = f"{self.session_id}-m{number}"
            self._unsaved[message_id] = f"{self._dice.choice(SAYINGS)} ({number})"
            await self._until_ended(message_id)
            await asyncio.sleep(self._dice.uniform(0, 0.4))
        while self._unsaved:
            await self._keep_connected()
            await self._step()
        while True:  # a goodbye that does not arrive is none
            await self._keep_connected()
            assert self._client
            await self._client.websocket.close(1000)
            if self._client.websocket.close_code == 1000:
                return
            self._lose()

    def drop(self) -> None:
        """Lose the connection, as a network does."""
        if self._client:
            self.promises.drops += 1
            self._client.websocket.transport.abort()

    async def _until_ended(self, message_id: str) -> None:
        cancel = self._dice.random() < 0.1
        sent_on: ChatClient | None = None
        while self._turn_of.get(message_id) not in self._ended:
            await self._keep_connected()
            if sent_on is not self._client and message_id not in self._turn_of:
                sent_on = self._client
                await self._send({"type": "message", "message_id": message_id, "content": self._unsaved[message_id]})
            await self._step()
            if cancel and message_id in self._turn_of:
                cancel = False
                await self._send({"type": "cancel", "turn_id": self._turn_of[message_id]})

    async def _send(self, frame: Frame) -> None:
        try:
            if self._client:
                await self._client.send(frame)
        except WebSocketException:
            self._lose()

    async def _keep_connected(self) -> None:
        while self._client is None:
            query: dict[str, str] = {"user_id": self.session_id}
            if self._position:
                query |= {"epoch": str(self._position[0]), "after": str(self._position[1])}
            with contextlib.suppress(OSError, WebSocketException, TimeoutError):
                self._client = await ChatClient.connect(self._url, self.session_id, **query)
                frame = await self._client.next()
                if frame["type"] == "ready":
                    self._ready(frame)
                    return
            self._lose()
            await asyncio.sleep(self._dice.uniform(*RETRY_SECONDS))

    async def _step(self) -> None:
        """Take in the next frame; a lost connection is one to be made anew."""
        if self._client is None:
            return
        try:
            self._take(await self._client.next())
        except (WebSocketException, TimeoutError):
            self._lose()

    def _lose(self) -> None:
        """Let the socket go: one that is kept open by nobody would keep its session open."""
        if self._client:
            self._client.websocket.transport.abort()
            self._client = None

    def _ready(self, frame: Frame) -> None:
        assert self._position is None or frame["epoch"] >= self._position[0], "an epoch went back"
        if frame["resumed"]:
            self.promises.resumed += 1
            return
        self.promises.restarted += 1
        self._position = (frame["epoch"], frame["seq"])
        self._told.clear()
        self._text.clear()
        known = {event["metadata"].get("message_id"): event["turn_id"] for event in frame["history"]}
        # What is neither saved nor in the history died with its container: it is sent again.
        self._turn_of = {message_id: turn_id for message_id, turn_id in known.items() if message_id}
        for event in frame["history"]:
            turn_id = event["turn_id"]
            if event["role"] == "assistant":
                self._text[turn_id] = self._text.get(turn_id, "") + event["content"]
            if "reason" in event["metadata"]:
                self._ended.add(turn_id)
            if event["role"] == "user" and event["id"]:
                self._unsaved.pop(event["metadata"].get("message_id"), None)
            elif event["role"] == "user":
                self._told.append((frame["seq"], "message", event["metadata"]["message_id"]))

    def _take(self, frame: Frame) -> None:
        seq = frame.get("seq", 0)
        if self._position and frame["type"] not in ("error", "pong"):
            epoch, last = self._position
            assert seq > last, f"{frame['type']} {seq} came after {last}"
            self._position = (epoch, seq)
        match frame["type"]:
            case "accepted":
                message_id, turn_id = frame["message_id"], frame["turn_id"]
                self.promises.accepted[message_id] = frame["content"]
                self._turn_of[message_id] = turn_id
                self._told.append((seq, "message", message_id))
            case "token":
                turn_id = frame["turn_id"]
                assert turn_id not in self._ended, "a token after its turn's end"
                self._text[turn_id] = self._text.get(turn_id, "") + frame["content"]
            case "done":
                self._done(frame)
            case "saved":
                self._saved(frame["through"])

    def _done(self, frame: Frame) -> None:
        turn_id = frame["turn_id"]
        self._ended.add(turn_id)
        self._told.append((frame["seq"], "turn", turn_id))
        if frame["reason"] == "complete" and turn_id in self._text:
            self.promises.completed[turn_id] = self._text[turn_id]

    def _saved(self, through: int) -> None:
        for _, kind, name in [told for told in self._told if told[0] <= through]:
            (self.promises.saved_messages if kind == "message" else self.promises.saved_turns).add(name)
            if kind == "message":
                self._unsaved.pop(name, None)
        self._told = [told for told in self._told if told[0] > through]


def totals(visitors: list[Visitor]) -> dict[str, Any]:
    """What all of them were promised, in numbers."""
    promises = [visitor.promises for visitor in visitors]
    return {
        "messages": sum(len(each.accepted) for each in promises),
        "replies": sum(len(each.completed) for each in promises),
        "saved": sum(len(each.saved_messages) + len(each.saved_turns) for each in promises),
        "drops": sum(each.drops for each in promises),
        "resumed": sum(each.resumed for each in promises),
        "restarted": sum(each.restarted for each in promises),
    }
