"""What users of other realtime AI servers reported, as it must be here: bytes, slow readers, and lines that die."""

import asyncio
import sys
from typing import Literal, Self

import pytest
from websockets.asyncio.client import connect
from websockets.client import ClientProtocol
from websockets.frames import Frame, Opcode
from websockets.uri import parse_uri

import chat.sessions.turn
import chat.sessions.watch
import chat.web.connection
from chat.protocol.frames import Token
from chat.sessions.outbox import SOFT_CHARS, Outbox
from tests.conftest import Serve, Served
from tests.support.client import PATIENCE, ChatClient
from tests.support.scripted import RepliesTo, ScriptedModel, Step
from tests.system.reported import Announced, departures, nothing_more
from tests.system.test_faults import MEGABYTES


class Breath(asyncio.Event):
    """A step at which everybody else has a turn, so that what was said before goes out alone."""

    async def wait(self) -> Literal[True]:
        """See `asyncio.Event.wait`."""
        for _ in range(3):
            await asyncio.sleep(0)
        return True


@pytest.mark.parametrize("paced", [False, True])
async def test_a_reply_costs_as_many_bytes_as_it_is_long(serve: Serve, paced: bool) -> None:
    """Two thousand words, at once or one by one: no frame carries the text so far, and the bytes grow with the text."""
    words = [f"word{number:04} " for number in range(2000)]
    pause: list[Step] = [Breath()] if paced else []
    script = [step for word in words for step in [word, *pause]]
    async with serve(model=ScriptedModel(script)) as server, await ChatClient.connect(server.url) as client:
        await client.say("go")
        sizes = []
        while '"type":"done"' not in (text := str(await client.websocket.recv())):
            if '"type":"token"' in text:
                sizes.append(len(text))
        envelope = 90  # of a frame: its type, its `seq`, the turn's id
        most_words = 2 if paced else 200
        assert max(sizes) <= envelope + most_words * len(words[0])
        assert sum(sizes) < (2 if not paced else 13) * len("".join(words))


async def test_a_slow_reader_does_not_fill_the_memory(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader that does not read has a fraction of 16 MB buffered until 4408; others are served meanwhile."""
    monkeypatch.setattr(chat.sessions.watch, "WATCH_SECONDS", 0.05)
    monkeypatch.setattr(chat.web.connection, "GRACE_SECONDS", 60)  # the close code is read at the end of the test
    kept: list[int] = []
    queue = Outbox._queue

    def measured(self: Outbox, item: Token | str, chars: int) -> None:
        queue(self, item, chars)
        kept.append(self._chars)

    monkeypatch.setattr(Outbox, "_queue", measured)
    left = departures(monkeypatch)
    monkeypatch.setattr(chat.sessions.turn, "MOST_REPLY_CHARS", sys.maxsize)  # in one reply, to have it sooner
    model = RepliesTo({"flood me": MEGABYTES})
    async with (
        serve(model=model, slow_reader_seconds=1) as server,
        await ChatClient.connect(server.url, "neighbour") as neighbour,
    ):
        deaf = ChatClient(await connect(f"{server.url}/ws/session/s1", proxy=None, max_size=None, max_queue=1))
        await deaf.say("flood me")
        replies = 0
        while left.empty():
            await neighbour.say("hello")
            await neighbour.until("done", reason="complete")
            replies += 1
        assert await deaf.closed() == 4408
    assert replies > 10
    assert 0 < max(kept) <= SOFT_CHARS + len(MEGABYTES[0])


class RawSocket:
    """A WebSocket client that shows the control frames it is sent, and answers them, or not."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, protocol: ClientProtocol) -> None:
        self._reader = reader
        self._writer = writer
        self._protocol = protocol

    @classmethod
    async def connect(cls, server: Served) -> Self:
        """Connect to the session `s1`."""
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        protocol = ClientProtocol(parse_uri(f"{server.url}/ws/session/s1"))
        protocol.send_request(protocol.connect())
        raw = cls(reader, writer, protocol)
        raw._write()
        return raw

    async def ping(self, *, answer: bool) -> None:
        """Wait for the server's next ping."""
        async with asyncio.timeout(PATIENCE):
            while True:
                self._protocol.receive_data(await self._reader.read(65536))
                pings = [
                    e for e in self._protocol.events_received() if isinstance(e, Frame) and e.opcode == Opcode.PING
                ]
                if answer:
                    self._write()
                if pings:
                    return

    def abort(self) -> None:
        """Go without a goodbye."""
        self._writer.transport.abort()

    def _write(self) -> None:
        self._writer.writelines(self._protocol.data_to_send())


async def test_an_idle_socket_is_kept_warm(serve: Serve) -> None:
    """Pings come though nobody says anything, so no load balancer counts the line as idle; answered, it stays."""
    async with serve(ping_seconds=0.1) as server:
        raw = await RawSocket.connect(server)
        for _ in range(5):
            await raw.ping(answer=True)
        raw.abort()


async def test_a_half_open_socket_is_noticed(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who answers no ping is gone two intervals later; the session waits for it, and only then ends as dropped."""
    left = departures(monkeypatch)
    announced = Announced()
    async with serve(ping_seconds=0.5, handoff=announced, linger_seconds=1) as server:
        raw = await RawSocket.connect(server)
        await raw.ping(answer=False)
        async with asyncio.timeout(0.5 + 2):  # the second interval, and what a busy machine may add to it
            assert await left.get() == "s1"
        again = await ChatClient.connect(server.url, epoch="1", after="0")
        assert (await again.next())["resumed"] is True
        assert await nothing_more(again) == []
        assert announced.ended == []
        again.websocket.transport.abort()
        assert (await announced.of("s1")).reason == "dropped"
        raw.abort()
