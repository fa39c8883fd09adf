"""How much one visitor may have: each limit is met by a script at once, and says when to come back."""

import asyncio
from typing import Any

import httpx
import pytest
from websockets.asyncio.client import connect

from infra.llm import Finished
from tests.conftest import Serve, Served
from tests.support.client import ChatClient
from tests.support.scrape import Scrape
from tests.support.scripted import ScriptedModel, Step
from tests.support.sign_in import a_guest

ADMIN_TOKEN = "an-operators-own-token-of-32-letters"


async def limited(server: Served, limit: str) -> float:
    """How often this limit was reached."""
    async with httpx.AsyncClient(base_url=server.http, trust_env=False) as http:
        answer = await http.get("/metrics", headers={"Authorization": f"Bearer {ADMIN_TOKEN}"})
    return Scrape(answer.content)("realtime_limited_total", limit=limit)


def guests(serve: Serve, **settings: Any) -> Any:
    """A server for guests."""
    return serve(auth="guest", admin_token=ADMIN_TOKEN, **settings)


def http_of(server: Served) -> httpx.AsyncClient:
    """A client of its HTTP side."""
    return httpx.AsyncClient(base_url=server.http, trust_env=False)


async def turned_away(url: str, session_id: str = "s1", token: str | None = None) -> dict[str, Any]:
    """The error of a client that is sent away with 4429."""
    async with await ChatClient.connect(url, session_id, token=token) as client:
        assert await client.closed() == 4429
        (error,) = client.frames
    assert error["retry_after"] >= 1
    return error


async def test_messages_in_a_minute(serve: Serve) -> None:
    """A script's are refused past the limit, each with its id and when to come back; the socket lives."""
    async with guests(serve, while_busy="queue", max_queued_messages=99) as server:
        token = (await a_guest(server.url)).token
        async with await ChatClient.connect(server.url, token=token) as client:
            for number in range(50):
                await client.say("hi", message_id=f"m{number}")
            refused = [await client.until("error") for _ in range(20)]
            assert {error["code"] for error in refused} == {"rate_limited"}
            assert refused[0]["message_id"] == "m30"
            assert 1 <= refused[0]["retry_after"] <= 60
            await client.send({"type": "ping"})
            await client.until("pong")
        assert await limited(server, "messages") == 20


async def test_messages_are_counted_by_user(serve: Serve) -> None:
    """In all of one's sessions together; another user has their own."""
    async with guests(serve, limit_messages=2) as server:
        ann, ben = await a_guest(server.url), await a_guest(server.url)
        for session_id, token in (("a", ann.token), ("b", ann.token), ("c", ben.token)):
            async with await ChatClient.connect(server.url, session_id, token=token) as client:
                await client.say("hi")
                await client.until("done")
        async with await ChatClient.connect(server.url, "a", token=ann.token) as client:
            await client.say("hi")
            assert (await client.until("error"))["code"] == "rate_limited"


async def test_connections_of_an_address(serve: Serve) -> None:
    """Past the limit each gets 4429, good token or not."""
    async with guests(serve, limit_connections=3) as server:
        token = (await a_guest(server.url)).token
        for _ in range(3):
            async with await ChatClient.connect(server.url, token=token) as client:
                await client.until("ready")
        assert (await turned_away(server.url, token=token))["code"] == "rate_limited"
        assert await limited(server, "connections") == 1


async def test_sockets_and_sessions_of_a_user(serve: Serve) -> None:
    """So many of each at once; when one goes there is room again."""
    async with guests(serve, limit_sockets=3, limit_live_sessions=2, linger_seconds=0) as server:
        token = (await a_guest(server.url)).token
        first, second, third = [await ChatClient.connect(server.url, name, token=token) for name in ("a", "b", "b")]
        for client in (first, second, third):
            await client.until("ready")
        assert "connections open" in (await turned_away(server.url, "b", token))["message"]
        await third.websocket.close()
        assert "conversations open" in (await turned_away(server.url, "c", token))["message"]
        await first.websocket.close()
        await asyncio.wait_for(_until_let_in(server.url, "c", token), 5)


async def _until_let_in(url: str, session_id: str, token: str) -> None:
    while True:
        async with await ChatClient.connect(url, session_id, token=token) as client:
            if (await client.next())["type"] == "ready":
                return


async def test_windows_of_one_session(serve: Serve) -> None:
    """So many sockets in it."""
    async with guests(serve, limit_session_sockets=1) as server:
        token = (await a_guest(server.url)).token
        async with await ChatClient.connect(server.url, "a", token=token) as client:
            await client.until("ready")
            assert "windows" in (await turned_away(server.url, "a", token))["message"]


async def test_sessions_opened_from_an_address(serve: Serve) -> None:
    """Two hundred of one user, or of many guests, come to an end."""
    async with guests(serve, limit_openings=2, linger_seconds=0) as server:
        for number in range(2):
            async with await ChatClient.connect(
                server.url, f"s{number}", token=(await a_guest(server.url)).token
            ) as client:
                await client.until("ready")
        token = (await a_guest(server.url)).token
        assert "begun" in (await turned_away(server.url, "s3", token))["message"]


async def test_http_requests_of_an_address(serve: Serve) -> None:
    """429, with when to come back; what says whether the server lives is not counted."""
    async with (
        guests(serve, limit_requests=2) as server,
        httpx.AsyncClient(base_url=server.http, trust_env=False) as http,
    ):
        statuses = [(await http.get("/sessions")).status_code for _ in range(3)]
        assert statuses == [401, 401, 429]
        answer = await http.get("/sessions")
        assert 1 <= int(answer.headers["retry-after"]) <= 60
        assert (await http.get("/health")).status_code == 200


async def test_new_guests_of_an_address(serve: Serve) -> None:
    """Only new ones count: who comes back is the same."""
    async with (
        guests(serve, limit_guests=1) as server,
        httpx.AsyncClient(base_url=server.http, trust_env=False) as http,
    ):
        guest = await a_guest(server.url)
        assert (await a_guest(server.url, guest.token)).user_id == guest.user_id
        answer = await http.post("/auth/guest")
        assert (answer.status_code, int(answer.headers["retry-after"]) >= 1) == (429, True)


async def test_a_days_tokens_survive_a_restart(serve: Serve) -> None:
    """They are counted from what is stored; past them a message is refused until midnight UTC."""
    script: list[Step] = ["hi", Finished("complete", 60, 40)]
    model = ScriptedModel(script, script, script)
    async with guests(serve, model=model, limit_user_tokens=150) as server:
        token = (await a_guest(server.url)).token
        async with await ChatClient.connect(server.url, token=token) as client:
            for _ in range(2):
                await client.say("hi")
                done = await client.until("done")
            while (await client.until("saved"))["through"] < done["seq"]:
                pass
            await client.say("hi")
            error = await client.until("error")
            assert error["code"] == "quota_exceeded"
            assert 1 <= error["retry_after"] <= 86_400
    async with guests(serve, model=model, limit_user_tokens=150) as server:
        async with await ChatClient.connect(server.url, "another", token=token) as client:
            await client.say("hi")
            assert (await client.until("error"))["code"] == "quota_exceeded"
        async with await ChatClient.connect(server.url, "other", token=(await a_guest(server.url)).token) as client:
            await client.say("hi")
            await client.until("done")
        assert await limited(server, "tokens") == 1


@pytest.mark.parametrize(("trusted", "code"), [("10.0.0.1", 4429), ("127.0.0.1", 1000)])
async def test_a_forged_address_is_not_believed(serve: Serve, trusted: str, code: int) -> None:
    """`X-Forwarded-For` counts where FORWARDED_ALLOW_IPS trusts who says it, and nowhere else."""
    async with guests(serve, limit_connections=1, forwarded_allow_ips=trusted) as server:
        token = (await a_guest(server.url)).token
        codes = []
        for number in range(2):
            headers = {"Authorization": f"Bearer {token}", "X-Forwarded-For": f"203.0.113.{number}"}
            websocket = await connect(f"{server.url}/ws/session/s1", additional_headers=headers, proxy=None)
            async with ChatClient(websocket) as client:
                frame = await client.next()
                codes.append(1000 if frame["type"] == "ready" else await client.closed())
        assert codes == [1000, code]


async def test_under_none_nothing_is_limited(serve: Serve) -> None:
    """There is nobody to count."""
    async with serve(limit_messages=1, limit_connections=1, limit_requests=1) as server:
        for _ in range(3):
            async with await ChatClient.connect(server.url) as client:
                await client.say("hi")
                await client.until("done")
