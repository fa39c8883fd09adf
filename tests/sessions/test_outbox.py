"""The outbox: frames leave in order, tokens joined, and a reader that does not read is waited for, then given up."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chat.protocol.codec import encode
from chat.protocol.frames import CloseCode, Pong, Saved, Token
from chat.sessions import outbox as module
from chat.sessions.outbox import Outbox, joined
from tests.support.hypothesis_profile import lenient

PONG = encode(Pong())
PATIENCE = 5.0
"""Seconds a test waits for what should happen at once before it fails."""


class Socket:
    """The far end: it takes what is sent while `open` is set, and keeps it."""

    def __init__(self) -> None:
        self.open = asyncio.Event()
        self.busy = asyncio.Event()
        self.sent: list[str] = []
        self.closed: CloseCode | None = None
        self.dropped: list[CloseCode] = []
        self.outbox = Outbox(self.dropped.append)

    async def send(self, text: str) -> None:
        """Take a frame, once the reader reads."""
        self.busy.set()
        await self.open.wait()
        self.sent.append(text)

    async def close(self, code: CloseCode) -> None:
        """Take the close."""
        self.closed = code

    def frames(self) -> list[Any]:
        """What was sent."""
        return [json.loads(text) for text in self.sent]

    async def until(self, condition: Callable[[], bool]) -> None:
        """Let the writer run on until this holds; it needs no time, only turns."""
        for _ in range(100):
            if condition():
                return
            await asyncio.sleep(0)
        raise AssertionError("it never held")


@pytest.fixture
async def socket() -> AsyncIterator[Socket]:
    """A socket whose writer runs."""
    far_end = Socket()
    writer = asyncio.create_task(far_end.outbox.run(far_end.send, far_end.close))
    yield far_end
    writer.cancel()
    await asyncio.wait([writer])


def token(seq: int, content: str, turn_id: str = "t") -> Token:
    return Token(seq, turn_id, content)


def frame(seq: int, content: str, turn_id: str = "t") -> dict[str, Any]:
    return {"type": "token", "seq": seq, "turn_id": turn_id, "content": content}


@st.composite
def pending(draw: st.DrawFn) -> list[Token | str]:
    """Tokens of some turns and other frames, under rising seqs, as a conversation tells them."""
    items: list[Token | str] = []
    seq = 0
    for kind in draw(st.lists(st.sampled_from("abca-!"), max_size=20)):
        seq += draw(st.integers(1, 3))
        if kind == "-":
            items.append(encode(Saved(seq, seq)))
        elif kind == "!":
            items.append(PONG)
        else:
            items.append(Token(seq, kind, draw(st.text(max_size=3))))
    return items


def runs(items: list[Any]) -> list[Any]:
    """The same frames with each run of tokens of one turn as (turn, text, last seq)."""
    result: list[Any] = []
    for item in items:
        if item["type"] != "token":
            result.append(item)
        elif result and isinstance(result[-1], tuple) and result[-1][0] == item["turn_id"]:
            result[-1] = (item["turn_id"], result[-1][1] + item["content"], item["seq"])
        else:
            result.append((item["turn_id"], item["content"], item["seq"]))
    return result


@lenient
@given(pending())
def test_joining_loses_nothing_and_moves_nothing(items: list[Token | str]) -> None:
    """Each run of tokens of one turn becomes one frame with all its text; all else is as it was, in its place."""
    put = [json.loads(item if isinstance(item, str) else encode(item)) for item in items]
    sent = [json.loads(text) for text in joined(items)]
    assert runs(sent) == runs(put)
    assert len(sent) == len(runs(put))
    seqs = [each["seq"] for each in sent if "seq" in each]
    assert seqs == sorted(set(seqs))


@lenient
@given(pending(), st.data())
def test_batches_of_any_size_say_the_same(items: list[Token | str], data: st.DataObject) -> None:
    """However the writer's pace cuts the stream, the reader is told the same."""
    cut = data.draw(st.integers(0, len(items)))
    in_two = [*joined(items[:cut]), *joined(items[cut:])]
    assert runs([json.loads(text) for text in in_two]) == runs([json.loads(text) for text in joined(items)])


async def test_an_idle_reader_gets_each_token_by_itself(socket: Socket) -> None:
    """While the writer keeps up, nothing is held back to be joined."""
    socket.open.set()
    for seq, content in enumerate(("a", "b", "c"), 1):
        socket.outbox.put_token(token(seq, content))
        await socket.until(lambda seq=seq: len(socket.sent) == seq)  # type: ignore[misc]
    assert socket.frames() == [frame(1, "a"), frame(2, "b"), frame(3, "c")]


async def test_tokens_that_pile_up_go_out_as_one(socket: Socket) -> None:
    """What comes while a send is under way leaves at once when it is through: joined, but never across a frame."""
    socket.outbox.put_token(token(1, "a"))
    await socket.busy.wait()
    for seq, content in enumerate("bcd", 2):
        socket.outbox.put_token(token(seq, content))
    socket.outbox.put(PONG)
    socket.outbox.put_token(token(5, "e"))
    socket.outbox.put_token(token(6, "f", "u"))
    socket.open.set()
    await socket.until(lambda: len(socket.sent) == 5)
    assert socket.frames() == [
        frame(1, "a"),
        frame(4, "bcd"),
        {"type": "pong"},
        frame(5, "e"),
        frame(6, "f", "u"),
    ]


async def test_room_waits_for_the_reader(socket: Socket) -> None:
    """Past the soft bound `room` waits until the reader has caught up, and `on_room` is called."""
    told: list[str] = []
    socket.outbox.on_room = lambda: told.append("room")
    await socket.outbox.room()
    socket.outbox.put("x" * module.SOFT_CHARS)
    assert socket.outbox.has_room()
    socket.outbox.put("y")
    assert not socket.outbox.has_room()
    waiting = asyncio.create_task(socket.outbox.room())
    await socket.busy.wait()
    assert not waiting.done()
    socket.open.set()
    await asyncio.wait_for(waiting, PATIENCE)
    assert socket.outbox.has_room()
    assert told == ["room"]
    assert [len(text) for text in socket.sent] == [module.SOFT_CHARS, 1]


async def test_what_piles_up_behind_a_blocked_send_takes_room(socket: Socket) -> None:
    """Frames under way count, until they are through."""
    socket.outbox.put("x" * module.SOFT_CHARS)
    await socket.busy.wait()
    assert socket.outbox.has_room()
    socket.outbox.put_token(token(1, "ü"))
    assert not socket.outbox.has_room()


@pytest.mark.parametrize("kind", ["frames", "tokens"])
async def test_past_the_hard_bound_the_reader_is_given_up(socket: Socket, kind: str) -> None:
    """It is dropped once, with its own code, and who waited for room is released."""
    socket.outbox.put("first")
    await socket.busy.wait()
    waiting = [asyncio.create_task(socket.outbox.room()) for _ in range(2)]
    for seq in range(3):
        big = "x" * (module.HARD_CHARS // 2)
        if kind == "frames":
            socket.outbox.put(big)
        else:
            socket.outbox.put_token(token(seq, big))
    await asyncio.wait_for(asyncio.gather(*waiting), PATIENCE)
    assert socket.dropped == [CloseCode.SLOW_READER]
    assert socket.outbox.gone
    socket.open.set()
    socket.outbox.drop(CloseCode.SLOW_READER)
    assert socket.dropped == [CloseCode.SLOW_READER]


@pytest.mark.parametrize("kind", ["frame", "token"])
async def test_one_long_frame_is_not_the_readers_fault(socket: Socket, kind: str) -> None:
    """A reader that keeps up gets a frame of any length."""
    long = "x" * (module.HARD_CHARS + 1)
    socket.outbox.put("first")
    await socket.busy.wait()
    if kind == "frame":
        socket.outbox.put(long)
    else:
        socket.outbox.put_token(token(1, long))
    socket.open.set()
    await socket.until(lambda: len(socket.sent) == 2)
    assert socket.sent[1] == (long if kind == "frame" else encode(token(1, long)))
    assert socket.dropped == []


async def test_closing_sends_first_what_is_queued(socket: Socket) -> None:
    """The frames that explain a close arrive before the close."""
    socket.open.set()
    socket.outbox.put_token(token(1, "a"))
    socket.outbox.put(PONG)
    socket.outbox.close(CloseCode.AT_CAPACITY)
    assert socket.outbox.is_closing()
    await socket.until(lambda: socket.closed is not None)
    assert socket.frames() == [frame(1, "a"), {"type": "pong"}]
    assert socket.closed is CloseCode.AT_CAPACITY
    assert socket.dropped == []


async def test_closing_an_idle_socket(socket: Socket) -> None:
    """With nothing queued it is closed at once."""
    await asyncio.sleep(0)  # the writer runs, finds nothing, and waits
    socket.outbox.close(CloseCode.BINARY_FRAME)
    await socket.until(lambda: socket.closed is CloseCode.BINARY_FRAME)


async def test_abandoning_releases_who_waits(socket: Socket) -> None:
    """Nobody waits for the room of a reader that is gone, and it is not closed a second time."""
    socket.outbox.put("x" * (module.SOFT_CHARS + 1))
    waiting = asyncio.create_task(socket.outbox.room())
    await socket.busy.wait()
    socket.outbox.abandon()
    await asyncio.wait_for(waiting, PATIENCE)
    await asyncio.wait_for(socket.outbox.room(), PATIENCE)
    assert socket.outbox.gone
    assert socket.dropped == []


async def test_a_waiter_that_is_cancelled_harms_no_other(socket: Socket) -> None:
    """A turn that is stopped while it waits for room does not take the others' room with it."""
    socket.outbox.put("x" * (module.SOFT_CHARS + 1))
    stopped, waiting = (asyncio.create_task(socket.outbox.room()) for _ in range(2))
    await socket.busy.wait()
    stopped.cancel()
    await asyncio.wait([stopped])
    socket.open.set()
    await asyncio.wait_for(waiting, PATIENCE)
    assert socket.outbox.has_room()


async def test_after_a_drop_nothing_more_is_sent(socket: Socket) -> None:
    """Neither the rest of what was being sent when the reader was given up, nor what comes later."""
    for n in range(3):
        socket.outbox.put(f'"{n}"')
    await socket.busy.wait()
    socket.outbox.drop(CloseCode.SLOW_READER)
    socket.outbox.put('"late"')
    socket.open.set()
    for _ in range(20):
        await asyncio.sleep(0)
    assert socket.frames() == ["0"]


async def test_nobody_waits_for_a_reader_that_is_gone(socket: Socket) -> None:
    """What is still put for it is let go, so that it never looks like a reader that is behind."""
    socket.outbox.abandon()
    socket.outbox.put("x" * module.SOFT_CHARS)
    socket.outbox.put_token(token(1, "x" * module.SOFT_CHARS))
    assert socket.outbox.has_room()


async def test_how_long_a_batch_is_stuck() -> None:
    """`stuck` is zero while nothing is being sent; otherwise the time since the batch began."""
    far_end = Socket()
    loop = asyncio.get_running_loop()
    writer = asyncio.create_task(far_end.outbox.run(far_end.send, far_end.close))
    assert far_end.outbox.stuck_for(loop.time() + 100) == 0.0
    far_end.outbox.put(PONG)
    before = loop.time()
    await far_end.busy.wait()
    assert 99 < far_end.outbox.stuck_for(before + 100) <= 100
    far_end.open.set()
    await far_end.until(lambda: bool(far_end.sent))
    await asyncio.sleep(0)
    assert far_end.outbox.stuck_for(before + 100) == 0.0
    writer.cancel()
    await asyncio.wait([writer])


class Line:
    """A socket that takes frames at once, as long as it is `willing`."""

    def __init__(self, willing: Iterable[bool] = ()) -> None:
        self._willing = iter(willing)
        self.sent: list[str] = []
        self.outbox = Outbox(lambda code: None, self.send_now)

    def send_now(self, text: str) -> bool:
        """Take the frame, or say that it would wait."""
        taken = next(self._willing, True)
        if taken:
            self.sent.append(text)
        return taken

    async def send(self, text: str) -> None:
        """Take the frame in the end."""
        await asyncio.sleep(0)
        self.sent.append(text)

    async def close(self, code: CloseCode) -> None:
        """Never asked."""

    @asynccontextmanager
    async def writing(self) -> AsyncIterator[Outbox]:
        """The outbox, while its writer runs."""
        writer = asyncio.create_task(self.outbox.run(self.send, self.close))
        await asyncio.sleep(0)
        yield self.outbox
        writer.cancel()
        await asyncio.wait([writer])


async def test_the_first_token_waits_for_nothing_and_those_behind_it_travel_together() -> None:
    """It is sent as it is put; what follows in the step is one frame of the next, until a step brings none."""
    line = Line()
    async with line.writing() as outbox:
        for seq, content in enumerate("abc", 1):
            outbox.put_token(token(seq, content))
        assert [json.loads(text) for text in line.sent] == [frame(1, "a")]
        await asyncio.sleep(0)
        for seq, content in enumerate("de", 4):
            outbox.put_token(token(seq, content))
        await asyncio.sleep(0)
        assert [json.loads(text) for text in line.sent] == [frame(1, "a"), frame(3, "bc"), frame(5, "de")]
        await asyncio.sleep(0)
        outbox.put_token(token(6, "f"))
        assert json.loads(line.sent[-1]) == frame(6, "f")


async def test_a_frame_leaves_at_once_unless_a_token_waits_before_it() -> None:
    """Frames that are not tokens are few, and nobody gains by waiting for them."""
    line = Line()
    async with line.writing() as outbox:
        outbox.put(PONG)
        outbox.put(PONG)
        outbox.put_token(token(1, "a"))
        outbox.put(PONG)
        assert line.sent == [PONG, PONG, encode(token(1, "a")), PONG]
        outbox.put_token(token(2, "b"))
        outbox.put(PONG)
        assert len(line.sent) == 4
        await asyncio.sleep(0)
        assert line.sent[4:] == [encode(token(2, "b")), PONG]


@lenient
@given(
    st.lists(st.tuples(st.sampled_from(["t", "u", None]), st.booleans()), max_size=30),
    st.lists(st.booleans(), max_size=10),
)
async def test_nothing_overtakes_what_cannot_be_sent_at_once(
    puts: list[tuple[str | None, bool]], willing: list[bool]
) -> None:
    """Whether the socket takes a frame or a token at once or the writer must wait, the order is that of `put`."""
    line = Line(willing)
    put: list[Token | str] = []
    async with line.writing() as outbox:
        for seq, (turn_id, step) in enumerate(puts, 1):
            put.append(encode(Saved(seq, seq)) if turn_id is None else Token(seq, turn_id, f"{seq} "))
            outbox.put(put[-1]) if isinstance(put[-1], str) else outbox.put_token(put[-1])
            if step:
                await asyncio.sleep(0)
        for _ in range(2 * len(puts) + 10):
            await asyncio.sleep(0)
    assert runs([json.loads(text) for text in line.sent]) == runs([json.loads(text) for text in joined(put)])


async def test_it_is_closing_until_it_is_closed() -> None:
    """`closing` holds from the request to close until nothing more is sent."""
    outbox = Outbox(lambda code: None)
    assert not outbox.is_closing()
    outbox.close(CloseCode.NORMAL)
    assert outbox.is_closing()
    outbox.abandon()
    assert not outbox.is_closing()
