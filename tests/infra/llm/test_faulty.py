"""Services that fail in the middle of anything: each is told as what it is, and leaks nothing."""

import asyncio
import json
from contextlib import aclosing

import pytest

from infra.llm import ModelError, TextDelta
from infra.llm.sse import MOST_LINE_BYTES
from tests.conftest import Serve
from tests.support.client import PATIENCE, ChatClient
from tests.support.model_service import (
    HANG,
    HELLO,
    WEATHER,
    Service,
    Step,
    answer_to,
    call_piece,
    chunk,
    model_at,
    provider,
)
from tests.support.spooled import until

EMOJI = f"data: {json.dumps(chunk({'content': 'a🎉'}), ensure_ascii=False)}\n\n".encode()
HALF = call_piece(index=0, id="c1", function={"name": "weather", "arguments": '{"ci'})
POINTS: dict[str, tuple[Step, ...]] = {
    "before the headers": (),
    "behind the headers": (b"",),
    "in the middle": (chunk({"content": "One"}),),
    "in a chunk": (EMOJI[:20],),
    "in a character": (EMOJI[: EMOJI.index("🎉".encode()) + 2],),
    "in a call": (HALF,),
    "behind a comment": (b": at work\n\n",),
    "in its thoughts": (chunk({"reasoning_content": "Hm."}),),
}


@pytest.mark.parametrize("point", POINTS)
async def test_a_cancel_closes_the_request(point: str) -> None:
    """Wherever it comes, the service sees its connection close at once, and the client lives on."""
    async with Service(*POINTS[point], HANG) as service, model_at(service.base_url) as model:

        async def read() -> None:
            async with aclosing(model.stream(HELLO, [WEATHER])) as chunks:
                async for _ in chunks:
                    pass

        task = asyncio.create_task(read())
        async with asyncio.timeout(PATIENCE):
            await service.asked.wait()
            for _ in range(20):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])
            await service.left.wait()


@pytest.mark.parametrize("point", [name for name in POINTS if name != "before the headers"])
async def test_a_connection_that_breaks_is_told(point: str) -> None:
    """Wherever it breaks, what came is given out, and then the error, which may be tried again."""
    answer = await answer_to(*POINTS[point])
    assert answer.problem == ("model_unavailable", True)
    assert answer.calls == []


@pytest.mark.parametrize("point", POINTS)
async def test_a_silence_is_given_up(point: str) -> None:
    """Wherever it begins, and the connection is closed."""
    async with Service(*POINTS[point], HANG) as service, model_at(service.base_url, llm_timeout_seconds=0.1) as model:
        with pytest.raises(ModelError) as failure:
            async for _ in model.stream(HELLO, [WEATHER]):
                pass
        assert failure.value.code == "model_timeout"
        async with asyncio.timeout(PATIENCE):
            await service.left.wait()


async def test_a_line_without_an_end_is_given_up() -> None:
    """Past the longest line no more is read, however much more is sent."""
    endless = [b"data: " + b"x" * 65_536] + [b"x" * 65_536] * 160
    answer = await answer_to(*endless)
    assert len(endless) * 65_536 > 10 * MOST_LINE_BYTES
    assert answer.problem == ("model_unavailable", True)
    assert answer.chunks == []


async def test_a_reply_without_an_end_is_cut(serve: Serve) -> None:
    """Its reader is told that it reached its length, and the service that nobody wants more."""
    many = [chunk({"content": "word " * 2000})] * 60
    async with (
        Service(*many, HANG) as service,
        serve(**provider(service.base_url)) as server,
        await ChatClient.connect(server.url) as client,
    ):
        await client.say("hello")
        await client.until("done", reason="length")
        async with asyncio.timeout(PATIENCE):
            await service.left.wait()


async def test_many_failures_leave_no_connection_open() -> None:
    """After a hundred calls that failed in every way, the service has none of their connections."""
    open_now = 0

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal open_now
        open_now += 1
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                await reader.readexactly(int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0]))
                writer.write(
                    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
                )
                writer.write(b"%x\r\n%s\r\n" % (len(EMOJI), EMOJI))
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            open_now -= 1
            writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    async with server, model_at(url) as model:
        for _ in range(100):
            async with aclosing(model.stream(HELLO, [])) as chunks:
                async for piece in chunks:
                    if isinstance(piece, TextDelta):
                        break
        await until(lambda: open_now == 0)
