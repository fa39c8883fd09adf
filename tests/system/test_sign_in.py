"""Strangers at the door of the real server: who gets in, by which way, for how long, and as whom."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import pytest
from structlog.testing import capture_logs
from websockets.asyncio.client import connect
from websockets.typing import Subprotocol

from tests.conftest import Serve, Served
from tests.support.client import PATIENCE, ChatClient
from tests.support.scripted import Pause, ScriptedModel
from tests.support.sign_in import Issuer, a_guest, running_issuer


@pytest.fixture
def issuer() -> Iterator[Issuer]:
    """An issuer of tokens."""
    with running_issuer() as running:
        yield running


@pytest.fixture
async def guests(serve: Serve) -> AsyncIterator[Served]:
    """A server for guests."""
    async with serve(auth="guest") as server:
        yield server


async def talks(client: ChatClient) -> None:
    """It is in its session, and is answered."""
    await client.until("ready")
    await client.say("hello")
    assert (await client.until("done"))["reason"] == "complete"


async def test_a_header_is_a_way_in(guests: Served) -> None:
    """For clients that are no browsers."""
    async with await ChatClient.connect(guests.url, token=(await a_guest(guests.url)).token) as client:
        await talks(client)


async def test_a_subprotocol_is_a_way_in(guests: Served) -> None:
    """For browsers; the server answers with the other one, and never with the token."""
    token = (await a_guest(guests.url)).token
    offered = [Subprotocol("realtime.v1"), Subprotocol(f"bearer.{token}")]
    websocket = await connect(f"{guests.url}/ws/session/s1", subprotocols=offered, proxy=None)
    assert websocket.subprotocol == "realtime.v1"
    async with ChatClient(websocket) as client:
        await talks(client)


async def test_a_first_frame_is_a_way_in(guests: Served) -> None:
    """It is answered with who the client is taken for, before anything else."""
    guest = await a_guest(guests.url)
    async with await ChatClient.connect(guests.url) as client:
        await client.send({"type": "auth", "token": guest.token})
        frame = await client.next()
        assert (frame["type"], frame["user_id"]) == ("authenticated", guest.user_id)
        assert 3500 < frame["expires_in"] <= 3600
        await talks(client)


@pytest.mark.parametrize(
    "first",
    [
        {"type": "message", "content": "hello"},
        {"type": "ping"},
        {"type": "auth"},
        {"type": "auth", "token": 7},
        {"type": "auth", "token": "half"},
        "hello",
        "{",
        b"binary",
    ],
)
async def test_nobody_comes_in_without_a_token(guests: Served, first: Any) -> None:
    """Whatever comes first instead is answered by an error and 4401, and nothing of it is kept."""
    async with await ChatClient.connect(guests.url) as client:
        await client.send(first)
        assert await client.closed() == 4401
        assert [(frame["type"], frame["code"]) for frame in client.frames] == [("error", "unauthorized")]
    async with await ChatClient.connect(guests.url, token=(await a_guest(guests.url)).token) as client:
        assert (await client.until("ready"))["history"] == []


async def test_who_says_nothing_is_sent_away(guests: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """After five seconds, here fewer."""
    monkeypatch.setattr("chat.web.admission.AUTH_SECONDS", 0.05)
    async with await ChatClient.connect(guests.url) as client:
        assert await client.closed() == 4401


async def test_a_token_in_the_address_is_not_read(guests: Served) -> None:
    """It would be in every log on the way."""
    token = (await a_guest(guests.url)).token
    async with await ChatClient.connect(guests.url, access_token=token, user_id="ann") as client:
        await client.send({"type": "ping"})
        assert await client.closed() == 4401


async def test_nobody_names_themselves(guests: Served) -> None:
    """The user id in the address counts under AUTH=none alone."""
    guest = await a_guest(guests.url)
    async with await ChatClient.connect(guests.url, token=guest.token, user_id="somebody-else") as client:
        await talks(client)
    async with httpx.AsyncClient(base_url=guests.http, trust_env=False) as http:
        (row,) = (await http.get("/sessions", headers={"Authorization": f"Bearer {guest.token}"})).json()
        assert row["session_id"] == "s1"


async def test_a_session_is_its_guests_alone(guests: Served) -> None:
    """Another guest who knows the id is refused, live or not."""
    ann, ben = await a_guest(guests.url), await a_guest(guests.url)
    async with await ChatClient.connect(guests.url, token=ann.token) as client:
        await talks(client)
        async with await ChatClient.connect(guests.url, token=ben.token) as stranger:
            assert await stranger.closed() == 4403
            assert [frame["type"] for frame in stranger.frames] == ["error"]
    async with await ChatClient.connect(guests.url, token=ben.token) as stranger:
        assert await stranger.closed() == 4403


async def test_a_guest_comes_back_as_the_same(guests: Served) -> None:
    """By the same call, with the token it has."""
    guest = await a_guest(guests.url)
    again = await a_guest(guests.url, guest.token)
    assert again.user_id == guest.user_id
    assert (await a_guest(guests.url, "nonsense")).user_id != guest.user_id


async def test_guests_survive_a_restart(serve: Serve) -> None:
    """The secret that signs their tokens is kept, readable by nobody else."""
    async with serve(auth="guest") as server:
        guest = await a_guest(server.url)
    async with serve(auth="guest") as server, await ChatClient.connect(server.url, token=guest.token) as client:
        await client.until("ready")


async def test_a_token_is_renewed_on_the_socket(serve: Serve, issuer: Issuer) -> None:
    """The client is asked before it ends, sends a newer one, and nothing is cut."""
    async with serve(**issuer.settings()) as server:
        short = issuer.token(exp=int(time.time()) + 30)
        async with await ChatClient.connect(server.url, token=short) as client:
            assert 0 < (await client.until("auth_expiring"))["in_seconds"] <= 30
            await client.send({"type": "auth", "token": issuer.token(exp=int(time.time()) + 600)})
            assert (await client.until("authenticated"))["user_id"] == "ann"
            await client.say("hello")
            assert (await client.until("done"))["reason"] == "complete"


async def test_a_token_that_is_not_renewed_ends_the_socket_and_not_the_reply(
    serve: Serve, issuer: Issuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """4401 after the grace; with a new token the client resumes, and the reply went on meanwhile."""
    monkeypatch.setattr("chat.web.standing.GRACE_SECONDS", 0.05)
    model = ScriptedModel(["one ", pause := Pause(), "two"])
    async with serve(model=model, **issuer.settings(), linger_seconds=30) as server:
        client = await ChatClient.connect(server.url, token=issuer.token(exp=int(time.time()) + 2))
        epoch = (await client.until("ready"))["epoch"]
        await client.say("hello")
        token = await client.until("token")
        assert await client.closed() == 4401
        assert client.frames[-1]["code"] == "unauthorized"
        pause.set()
        where = {"epoch": str(epoch), "after": str(token["seq"])}
        async with await ChatClient.connect(server.url, token=issuer.token(), **where) as again:
            assert (await again.until("ready"))["resumed"]
            assert (await again.until("done"))["reason"] == "complete"
            assert again.text() == "two"


async def test_a_renewal_for_another_user_ends_the_socket(serve: Serve, issuer: Issuer) -> None:
    """4403: the session is not theirs."""
    async with (
        serve(**issuer.settings()) as server,
        await ChatClient.connect(server.url, token=issuer.token()) as client,
    ):
        await client.until("ready")
        await client.send({"type": "auth", "token": issuer.token("ben")})
        assert await client.closed() == 4403


async def test_a_renewal_that_is_not_good_changes_nothing(serve: Serve, issuer: Issuer) -> None:
    """It is answered by an error, twice in a second by another one, and the chat goes on."""
    async with (
        serve(**issuer.settings()) as server,
        await ChatClient.connect(server.url, token=issuer.token()) as client,
    ):
        await client.until("ready")
        await client.send({"type": "auth", "token": "half"})
        assert (await client.until("error"))["code"] == "unauthorized"
        await client.send({"type": "auth", "token": issuer.token()})
        assert (await client.until("error"))["code"] == "rate_limited"
        await client.say("hello")
        assert (await client.until("done"))["reason"] == "complete"


async def test_an_issuer_that_is_away_is_no_refusal(serve: Serve, issuer: Issuer) -> None:
    """The client is told to come back, by an error with `retry_after` and 4503; over HTTP by a 503."""
    issuer.status = 500
    async with serve(**issuer.settings()) as server:
        async with await ChatClient.connect(server.url, token=issuer.token()) as client:
            assert await client.closed() == 4503
            assert client.frames[0]["code"] == "auth_unavailable"
            assert client.frames[0]["retry_after"] > 0
        async with httpx.AsyncClient(base_url=server.http, trust_env=False) as http:
            answer = await http.get("/sessions", headers={"Authorization": f"Bearer {issuer.token()}"})
            assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")


async def test_no_token_is_ever_logged(serve: Serve, issuer: Issuer, capfd: pytest.CaptureFixture[str]) -> None:
    """Good or bad, by whichever way, at the lowest level of the log; nor in an error, nor in the metrics."""
    good, bad = issuer.token(), issuer.token(exp=1)
    async with serve(**issuer.settings(), log_level="debug") as server:
        with capture_logs() as logs:
            said: list[Any] = []
            for token in (good, bad):
                async with await ChatClient.connect(server.url, token=token) as client:
                    said.append(await client.next())
                async with await ChatClient.connect(server.url) as client:
                    await client.send({"type": "auth", "token": token})
                    said.append(await client.next())
                async with httpx.AsyncClient(base_url=server.http, trust_env=False) as http:
                    said.append((await http.get("/sessions", headers={"Authorization": f"Bearer {token}"})).text)
    everything = json.dumps([said, logs], default=str) + capfd.readouterr().err
    for token in (good, bad):
        assert all(part not in everything for part in token.split(".")[1:])


async def test_many_who_say_nothing_do_not_disturb_who_talks(serve: Serve) -> None:
    """Of their sockets only so many wait from one address; whoever shows a token at once is served meanwhile."""
    async with serve(auth="guest", limit_connections=0, limit_waiting=20) as server:
        guest = await a_guest(server.url)
        silent = [await ChatClient.connect(server.url) for _ in range(60)]
        async with await ChatClient.connect(server.url, token=guest.token) as client:
            async with asyncio.timeout(PATIENCE):
                await talks(client)
        refused = 0
        for each in silent:
            if each.websocket.close_code is None:
                with_code = asyncio.create_task(each.closed())
                done, _ = await asyncio.wait([with_code], timeout=0.01)
                if not done:
                    with_code.cancel()
                    continue
            refused += 1
            assert each.websocket.close_code == 4429
        assert refused == 40
        for each in silent:
            await each.websocket.close()


@pytest.mark.parametrize("auth", ["none", "guest"])
async def test_a_page_can_ask_how_to_sign_in(serve: Serve, auth: str) -> None:
    """`GET /auth` says; guests are made where there are guests."""
    async with serve(auth=auth) as server, httpx.AsyncClient(base_url=server.http, trust_env=False) as http:
        assert (await http.get("/auth")).json()["auth"] == auth
        assert (await http.post("/auth/guest")).status_code == (200 if auth == "guest" else 404)
