"""One live session: what the conversation decides is done, and nothing that goes wrong in it leaves a turn open."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, NoReturn
from uuid import uuid4

import pytest
from structlog.testing import capture_logs

from chat.conversation.history import History
from chat.conversation.inputs import UserSaid
from chat.conversation.machine import Conversation
from chat.durability.journal import Journal
from chat.metrics import Metrics
from chat.protocol.frames import CloseCode
from chat.sessions.kit import TurnKit
from chat.sessions.outbox import SOFT_CHARS, Outbox
from chat.sessions.session import Session
from chat.sessions.turn import SORRY
from chat.tools.registry import Registry, ToolContext, tool
from infra.llm import ToolCall
from infra.records import utc_now
from infra.store.sqlite import SqliteStore
from tests.support.prompts import STANDARD
from tests.support.scripted import Pause, ScriptedModel

PATIENCE = 5.0
"""Seconds a test waits for what should happen at once before it fails."""


class Client:
    """A socket with its outbox: `frames` is what it has read, and it reads while `reading` is set."""

    def __init__(self) -> None:
        self.frames: list[Any] = []
        self.reading = asyncio.Event()
        self.reading.set()
        self.closed: CloseCode | None = None
        self.dropped: list[CloseCode] = []
        self.outbox = Outbox(self.dropped.append)
        self._heard = asyncio.Event()
        self._writer = asyncio.create_task(self.outbox.run(self._read, self._close))

    async def _read(self, text: str) -> None:
        await self.reading.wait()
        self.frames.append(json.loads(text))
        self._heard.set()

    async def _close(self, code: CloseCode) -> None:
        self.closed = code

    async def hears(self, kind: str, count: int = 1) -> Any:
        """Wait until so many frames of this type were read; the last of these."""
        async with asyncio.timeout(PATIENCE):
            while len(found := self.all(kind)) < count:
                self._heard.clear()
                await self._heard.wait()
        return found[count - 1]

    def all(self, kind: str) -> list[Any]:
        """The frames of this type."""
        return [frame for frame in self.frames if frame["type"] == kind]

    def falls_behind(self) -> None:
        """Stop reading, with more on the way than a turn will add to."""
        self.reading.clear()
        self.outbox.put(json.dumps({"type": "much", "text": SOFT_CHARS * "x"}))

    async def leave(self) -> None:
        """End the writer, so that no task outlives its test."""
        self._writer.cancel()
        await asyncio.wait([self._writer])


async def turns_of_the_loop() -> None:
    """Let everything run that waits for nothing: what has not happened by now, is not going to by itself."""
    for _ in range(50):
        await asyncio.sleep(0)


@tool
async def give_up() -> NoReturn:
    """Behave like a library that cancels the task it runs in."""
    raise asyncio.CancelledError


class Room:
    """A session in its surroundings, all of them real but the model."""

    def __init__(self, session: Session, model: ScriptedModel, journal: Journal, store: SqliteStore) -> None:
        self.session = session
        self.model = model
        self.journal = journal
        self.store = store
        self.clients: list[Client] = []

    def joined(self) -> Client:
        """A new client, attached."""
        self.clients.append(client := Client())
        self.session.attach(client.outbox)
        return client

    def says(self, *contents: str) -> None:
        """Each is said, and answered by a turn of its own."""
        for content in contents:
            self.session.dispatch(UserSaid(content))


@pytest.fixture
async def room(tmp_path: Path) -> AsyncIterator[Room]:
    """A session that was just opened."""
    store = await SqliteStore.open(tmp_path / "session.db")
    row = await store.open_session("s", "u", at=utc_now(), container_id="box")
    metrics = Metrics()
    journal = Journal(store, metrics, max_events=100)
    journal.start()
    model = ScriptedModel()
    conversation = Conversation(
        row,
        History([], 200),
        prompts=STANDARD,
        while_busy="queue",
        max_waiting=8,
        replay_bytes=10_000,
        new_id=lambda: str(uuid4()),
        now=utc_now,
    )
    kit = TurnKit(model, Registry([give_up]), PATIENCE, PATIENCE, max_tool_rounds=3, metrics=metrics)
    opened = Room(
        Session(conversation, ToolContext("s", "u", store, journal.settled), journal, kit), model, journal, store
    )
    yield opened
    opened.session.end()
    await opened.session.stopped()
    await journal.close(within=PATIENCE)
    for client in opened.clients:
        await client.leave()
    await store.close()


async def test_clients_are_told_what_is_saved(room: Room) -> None:
    """Once the store has the message and the reply, up to the frame that told of the latter."""
    client = room.joined()
    room.model.enqueue("Fine.")
    room.says("one")
    done = await client.hears("done")
    async with asyncio.timeout(PATIENCE):
        while not client.all("saved") or client.all("saved")[-1]["through"] < done["seq"]:
            await client.hears("saved", len(client.all("saved")) + 1)
    assert [event.content for event in await room.store.events("s", limit=10)] == ["one", "Fine."]


async def test_what_is_told_is_recorded_first(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    """Events are recorded before frames are sent, so a kill in between loses nothing that a client was told."""
    order: list[str] = []
    record, put = room.journal.record, Outbox.put

    def recording(*event: Any) -> None:
        order.append("record")
        record(*event)

    def telling(outbox: Outbox, text: str) -> None:
        order.append(json.loads(text)["type"])
        put(outbox, text)

    client = room.joined()
    monkeypatch.setattr(room.journal, "record", recording)
    monkeypatch.setattr(Outbox, "put", telling)
    room.model.enqueue("Fine.")
    room.says("one")
    await client.hears("done")
    told = [each for each in order if each != "saved"]
    assert told == ["record", "accepted", "mode", "record", "done"]


async def test_who_waits_until_nothing_runs_is_told(room: Room) -> None:
    """A session is idle after its last turn, not between two turns."""
    room.joined()
    room.model.enqueue("Hel", first := Pause())
    room.model.enqueue("lo", second := Pause())
    room.says("one", "two")
    waiting = asyncio.create_task(room.session.idle())
    await first.reached.wait()
    first.set()
    await second.reached.wait()
    await turns_of_the_loop()
    assert not waiting.done()
    second.set()
    await asyncio.wait_for(waiting, PATIENCE)


async def test_a_model_client_that_cancels_itself_ends_its_turn_and_no_other(room: Room) -> None:
    """Such a turn cannot report its own end: it is ended for it, and the next message is answered."""
    client = room.joined()
    room.model.enqueue("Hel", asyncio.CancelledError())
    room.model.enqueue("Fine.")
    room.says("one", "two")
    await client.hears("done", 2)
    assert [(each["code"], each["message"]) for each in client.all("error")] == [("internal", SORRY)]
    assert [each["reason"] for each in client.all("done")] == ["error", "complete"]
    assert client.all("token")[-1]["content"] == "Fine."


async def test_a_tool_that_cancels_itself_is_a_tool_that_failed(room: Room) -> None:
    """The model reads that it gave up, and answers all the same."""
    client = room.joined()
    room.model.enqueue(ToolCall("c", "give_up", "{}"))
    room.model.enqueue("I see.")
    room.says("go")
    assert (await client.hears("done"))["reason"] == "complete"
    assert [each["error"] for each in client.all("tool_result")] == ["the tool gave up"]
    assert room.model.calls[1][-1].content == '{"error":"the tool gave up"}'


async def test_half_a_character_from_the_model_does_no_harm(room: Room) -> None:
    """A call whose id, name and arguments are not Unicode is told, stored and answered like any other."""
    client = room.joined()
    room.model.enqueue(ToolCall("c\ud800", "peek\ud800", '{"at": "\udfff"}'))
    room.model.enqueue("I see.")
    room.says("go")
    assert (await client.hears("done"))["reason"] == "complete"
    (call,) = client.all("tool_call")
    assert (call["call_id"], call["name"], call["arguments"]) == ("c�", "peek�", {"at": "�"})
    await room.journal.settled()
    assert [event.role for event in await room.store.events("s", limit=9)] == ["user", "tool", "tool", "assistant"]


async def test_an_effect_that_fails_takes_no_other_with_it(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    """The state has moved on by then: what else was decided is done, and the failure is logged."""

    def broken(*_: Any) -> NoReturn:
        raise RuntimeError("a bug")

    client = room.joined()
    room.model.enqueue("Hello.")
    with capture_logs() as logs, monkeypatch.context() as patch:
        patch.setattr(room.journal, "record", broken)
        room.says("hi")
    assert (await client.hears("done"))["reason"] == "complete"
    assert [frame["type"] for frame in client.frames[:3]] == ["ready", "accepted", "mode"]
    assert [(line["event"], line["effect"]) for line in logs] == [("effect failed", "Record")]


async def test_a_turn_keeps_pace_with_the_faster_of_two_readers(room: Room) -> None:
    """A client that does not read holds up nobody who does."""
    slow, fast = room.joined(), room.joined()
    slow.falls_behind()
    room.model.enqueue("a", "b", "c")
    room.says("go")
    assert room.session.has_room()
    await fast.hears("done")
    assert "".join(each["content"] for each in fast.all("token")) == "abc"
    assert slow.frames == []


@pytest.mark.parametrize("relief", ["one reads on", "one is given up", "a new one joins", "all leave"])
async def test_a_turn_waits_while_no_reader_keeps_up(room: Room, relief: str) -> None:
    """The model is not asked on until a reader has room, or nobody is there to wait for."""
    one, two = room.joined(), room.joined()
    one.falls_behind()
    two.falls_behind()
    further = Pause()
    room.model.enqueue("a", further)
    room.says("go")
    await turns_of_the_loop()
    assert len(room.model.calls) == 1
    assert not room.session.has_room()
    assert not further.reached.is_set()
    match relief:
        case "one reads on":
            two.reading.set()
        case "one is given up":
            two.outbox.drop(CloseCode.SLOW_READER)
        case "a new one joins":
            room.joined()
        case _:
            room.session.detach(one.outbox)
            await turns_of_the_loop()
            assert not further.reached.is_set()  # the one who is left does not read either
            room.session.detach(two.outbox)
    await asyncio.wait_for(further.reached.wait(), PATIENCE)
    assert room.session.has_room()


async def test_who_left_is_sent_nothing_more_and_the_turn_goes_on(room: Room) -> None:
    """A turn is the session's, not the socket's that asked for it."""
    asker, other, pause = room.joined(), room.joined(), Pause()
    room.model.enqueue("a", pause, "b")
    room.says("go")
    await asker.hears("token")
    room.session.detach(asker.outbox)
    pause.set()
    await other.hears("done")
    assert [each["content"] for each in asker.all("token")] == ["a"]
    assert asker.all("done") == []
