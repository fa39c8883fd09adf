"""A user's page and its sockets, from the client's side, and the conversation that they are held against."""

import asyncio
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import msgspec

from chat.conversation.effects import Effect, Record, Reply, Send
from chat.conversation.history import History
from chat.conversation.inputs import Input
from chat.conversation.machine import Conversation
from chat.protocol.frames import (
    Accepted,
    Authenticated,
    AuthExpiring,
    Pong,
    Ready,
    Reasoning,
    Saved,
    StreamFrame,
    Token,
)
from chat.web.connection import DROP, SEND
from chat.web.endpoint import SessionSocket
from infra.records import Event, Session


class Overheard(Conversation):
    """A conversation that keeps what it decides, for us to hold against what arrives; a kill silences it."""

    def __init__(self, all_recorded: list[Event], session: Session, history: History, **given: Any) -> None:
        super().__init__(session, history, **given)
        self.before = history.events(2**40)
        self.sent: dict[int, StreamFrame] = {}
        self.replied: dict[int, StreamFrame] = {}
        self.records: list[Record] = []
        self.silent = False
        self._all_recorded = all_recorded

    def receive(self, happened: Input) -> tuple[Effect, ...]:
        """See `Conversation.receive`."""
        effects = () if self.silent else super().receive(happened)
        for effect in effects:
            if isinstance(effect, Send):
                self.sent[effect.frame.seq] = effect.frame
            elif isinstance(effect, Record):
                self.records.append(effect)
                self._all_recorded.append(effect.event)
            elif isinstance(effect, Reply) and not isinstance(
                effect.frame, Ready | Token | Reasoning | Authenticated | AuthExpiring | Pong
            ):
                self.replied[effect.frame.seq] = effect.frame
        return effects

    def saved(self) -> int:
        """How far it has told that all is stored."""
        return max((frame.through for frame in self.sent.values() if isinstance(frame, Saved)), default=-1)


def texts(said: Iterable[Event | StreamFrame]) -> dict[str, str]:
    """What the assistant said in each turn, as a page draws it."""
    drawn: dict[str, str] = defaultdict(str)
    for each in said:
        if isinstance(each, Token) or (isinstance(each, Event) and each.role == "assistant" and each.content):
            drawn[each.turn_id] += each.content
    return drawn


class Line:
    """One WebSocket, from the client's side: it reads while `reading` is set, until it has `ended`."""

    def __init__(self, door: SessionSocket, client: "Client", position: str, read: Callable[[str], None]) -> None:
        self.position = position
        self.reading = asyncio.Event()
        self.reading.set()
        self.answered = asyncio.Event()
        self.ready = self.ended = False
        self._read = read
        self._inbox: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._inbox.put_nowait({"type": "websocket.connect"})
        scope = {
            "path_params": {"session_id": client.session_id},
            "query_string": position.encode(),
            "headers": [],
            "extensions": {SEND: self._send_now, DROP: lambda code, reason: self.end(1006)},
        }
        self.task = asyncio.create_task(door(scope, self._inbox.get, self._send))

    def say(self, text: str) -> None:
        """Send a text frame."""
        self._inbox.put_nowait({"type": "websocket.receive", "text": text})

    def end(self, code: int = 0) -> None:
        """Read no more. Without a code the server does not notice."""
        self.ended = True
        self.reading.set()
        self.answered.set()
        if code:
            self._inbox.put_nowait({"type": "websocket.disconnect", "code": code})

    def _send_now(self, text: str) -> bool:
        if self.reading.is_set() and not self.ended:
            self._read(text)
            return True
        return False

    async def _send(self, message: Mapping[str, Any]) -> None:
        await self.reading.wait()
        if message["type"] == "websocket.close":
            self.end(1006)
        elif message["type"] == "websocket.send" and not self.ended:
            self._read(message["text"])


class Client:
    """A user's page: `seen` is all it has read since it last drew everything anew, on however many sockets."""

    def __init__(self, session_id: str, *, always_resumes: bool) -> None:
        self.session_id = session_id
        self.always_resumes = always_resumes
        self.seen: list[Any] = []
        self.accepted: set[str] = set()
        self.line: Line | None = None

    def position(self) -> str:
        """How far it has read, as a query."""
        return f"epoch={self.seen[0].epoch}&after={self.seen[-1].seq}" if self.seen else ""

    def read(self, text: str) -> None:
        """Take a frame, as the protocol has it."""
        assert self.line
        frame: Any = msgspec.json.decode(text, type=Ready | StreamFrame)
        if isinstance(frame, Ready):
            self.line.ready = True
            self.line.answered.set()
            if frame.resumed:
                assert self.line.position == f"epoch={frame.epoch}&after={frame.seq}"
            else:
                assert not (self.always_resumes and f"epoch={frame.epoch}&" in self.line.position), "not resumed"
            self.seen = self.seen if frame.resumed else [frame]
        elif not self.line.ready:
            assert frame.seq == 0, "it came before `ready`, and does not say why there is none"
        else:
            assert frame.seq > self.seen[-1].seq, "it came twice, or late"
            self.seen.append(frame)
            if isinstance(frame, Accepted):
                self.accepted.add(frame.message_id)

    def check(self, talk: Overheard) -> None:
        """What it has seen is what was said up to there: all of it, once, and nothing else."""
        ready, *rest = self.seen
        after = self.seen[-1].seq
        others = [frame for frame in rest if not isinstance(frame, Token)]
        assert all(frame == (talk.sent.get(frame.seq) or talk.replied.get(frame.seq)) for frame in others)
        start = ready.seq + 1 if isinstance((rest or self.seen)[0], Token) else ready.seq
        told = [seq for seq, frame in talk.sent.items() if start < seq <= after and not isinstance(frame, Token)]
        heard = [frame.seq for frame in others if frame.seq in talk.sent]
        assert told == heard, f"told {told}, and heard {heard}"
        said = [frame for seq, frame in talk.sent.items() if seq <= after]
        assert texts([*ready.history, *rest]) == texts([*talk.before, *said])
