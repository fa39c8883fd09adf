"""What Prometheus reads at `/metrics` of the real server, after real clients did what is counted."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence

import httpx
import pytest

from infra.handoff import HandoffUnavailable
from infra.records import SessionEnded
from tests.conftest import Serve, Served
from tests.support.client import PATIENCE, ChatClient
from tests.support.scrape import Scrape
from tests.system.test_reported_lines import RawSocket


async def scrape(server: Served) -> Scrape:
    async with httpx.AsyncClient(trust_env=False) as http:
        answer = await http.get(f"{server.http}/metrics")
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    return Scrape(answer.text)


async def scraped(server: Served, come: Callable[[Scrape], bool]) -> Scrape:
    """The numbers once this has come; the last ones, should it never."""
    numbers = await scrape(server)
    for _ in range(round(PATIENCE / 0.05)):
        if come(numbers):
            break
        await asyncio.sleep(0.05)
        numbers = await scrape(server)
    return numbers


def closed(numbers: Scrape) -> dict[str, float]:
    return numbers.by("realtime_sockets_closed_total", "code")


async def test_a_chat_a_refusal_and_a_goodbye_show(serve: Serve) -> None:
    """A chat with a tool is one turn with its tokens and times; who is refused or leaves is counted by a code."""
    async with serve(max_sessions=1, linger_seconds=60) as server:
        client = await ChatClient.connect(server.url)
        await client.say("fetch the sales data")
        done = await client.until("done")
        await client.until("saved", through=done["seq"])
        refused = await ChatClient.connect(server.url, "s2")
        assert await refused.closed() == 1013
        numbers = await scraped(server, lambda numbers: bool(closed(numbers)))
        assert numbers("realtime_sessions_live") == numbers("realtime_sockets_open") == 1
        assert numbers("realtime_turns_running") == numbers("realtime_journal_depth") == 0
        assert numbers("realtime_journal_lag_seconds") == 0
        assert numbers.by("realtime_turns_total", "reason") == {"complete": 1}
        assert numbers("realtime_tokens_sent_total") >= sum(frame["type"] == "token" for frame in client.frames) > 1
        assert numbers("realtime_time_to_first_token_seconds_count") == 1
        assert numbers("realtime_turn_tokens_per_second_count") == 1
        assert numbers("realtime_tool_calls_total", tool="fetch_data", outcome="ok") == 1
        assert numbers.by("realtime_openings_refused_total", "code") == {"at_capacity": 1}
        await client.websocket.close(1001)
        numbers = await scraped(
            server, lambda numbers: len(closed(numbers)) == 2 and not numbers("realtime_sessions_live")
        )
    assert closed(numbers) == {"1013": 1, "1001": 1}
    assert numbers("realtime_sockets_open") == numbers("realtime_sessions_live") == 0


async def unreadable(client: ChatClient) -> None:
    await client.send(b"\x00")


async def long(client: ChatClient) -> None:
    await client.send("x" * 200_000)


async def invented(client: ChatClient) -> None:
    await client.websocket.close(3999)


async def wordless(client: ChatClient) -> None:
    client.websocket.transport.abort()


@pytest.mark.parametrize(
    ("go", "code"), [(unreadable, "1003"), (long, "1009"), (invented, "other"), (wordless, "1006")]
)
async def test_a_closed_socket_shows_by_its_code(
    serve: Serve, go: Callable[[ChatClient], Awaitable[None]], code: str
) -> None:
    """Whoever closed it: we, uvicorn or the client, or nobody; what a client made up shares one name."""
    async with serve(max_frame_bytes=100_000) as server:
        client = await ChatClient.connect(server.url)
        await client.until("ready")
        await go(client)
        numbers = await scraped(server, lambda numbers: bool(closed(numbers)))
    assert closed(numbers) == {code: 1}
    assert numbers("realtime_sockets_open") == 0


async def test_a_client_that_is_given_up_shows_as_such(serve: Serve) -> None:
    """One that answers no ping counts under 1011, which it may never read, and not as one more lost line."""
    async with serve(ping_seconds=0.2) as server:
        raw = await RawSocket.connect(server)
        await raw.ping(answer=False)
        numbers = await scraped(server, lambda numbers: bool(closed(numbers)))
        raw.abort()
    assert closed(numbers) == {"1011": 1}


async def test_an_end_that_the_queue_does_not_take_shows(serve: Serve) -> None:
    """It waits in the hand-off, with its copy in the spool, for as long as the queue is away."""

    class Away:
        async def send(self, endings: Sequence[SessionEnded]) -> Sequence[SessionEnded]:
            raise HandoffUnavailable("it rains")

        async def close(self) -> None:
            pass

    async with serve(handoff=Away()) as server:
        async with await ChatClient.connect(server.url) as client:
            await client.until("ready")
        numbers = await scraped(server, lambda numbers: numbers("realtime_handoff_depth") > 0)
    assert numbers("realtime_handoff_depth") == numbers("realtime_spool_depth", courier="endings") == 1
