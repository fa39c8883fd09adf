"""Whose is it: every route with the right user's token, the wrong one's, the operator's, and none."""

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from chat.metrics import Metrics
from chat.web.operations import metrics_at
from tests.conftest import Serve, Served
from tests.support.client import ChatClient
from tests.support.queue import Queue
from tests.support.sign_in import Guest, a_guest
from tests.support.supabase import free_port

ADMIN_TOKEN = "an-operators-own-token-of-32-letters"
VERBS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"]


class House:
    """A server with one guest's session in it, that was named and had one exchange."""

    def __init__(self, server: Served, http: httpx.AsyncClient, owner: Guest, other: Guest) -> None:
        self.server = server
        self.http = http
        self.tokens = {"owner": owner.token, "other": other.token, "operator": ADMIN_TOKEN, "nobody": None}

    async def ask(self, who: str, method: str, path: str, **options: Any) -> httpx.Response:
        """One request."""
        token = self.tokens[who]
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        return await self.http.request(method, path, headers=headers | options.pop("headers", {}), **options)


@pytest.fixture
async def house(serve: Serve) -> AsyncIterator[House]:
    """The server and its people."""
    async with serve(auth="guest", admin_token=ADMIN_TOKEN) as server:
        owner, other = await a_guest(server.url), await a_guest(server.url)
        async with await ChatClient.connect(server.url, "mine", token=owner.token) as client:
            await client.say("hello")
            done = await client.until("done")
            while (await client.until("saved"))["through"] < done["seq"]:
                pass
        async with httpx.AsyncClient(base_url=server.http, trust_env=False) as http:
            yield House(server, http, owner, other)


async def test_a_list_has_ones_own(house: House) -> None:
    """The owner's has the session; the other's is empty; nobody gets none, and a hint how."""
    (row,) = (await house.ask("owner", "GET", "/sessions")).json()
    assert (row["session_id"], row["messages"], row["mode"], row["title"]) == ("mine", 1, "casual", None)
    assert "epoch" not in row
    assert (await house.ask("other", "GET", "/sessions")).json() == []
    answer = await house.ask("nobody", "GET", "/sessions")
    assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")


async def test_who_may_read(house: House) -> None:
    """The owner and the operator; to others it is as if there were none, word for word."""
    for path in ("/sessions/mine", "/sessions/mine/events"):
        for who, status in (("owner", 200), ("operator", 200), ("other", 404), ("nobody", 401)):
            assert (await house.ask(who, "GET", path)).status_code == status, (who, path)
        answers = [await house.ask("other", "GET", each) for each in (path, path.replace("mine", "not-there"))]
        assert answers[0].content == answers[1].content
        assert answers[0].headers.items() - {("date", "")} >= {("content-type", "application/json")}


@pytest.mark.parametrize("who", ["other", "nobody"])
@pytest.mark.parametrize("path", ["/sessions/mine", "/sessions/mine/events", "/sessions"])
async def test_no_verb_of_a_strangers_does_anything(house: House, who: str, path: str) -> None:
    """Whatever is tried with the wrong token, nothing of the session is told or changed, and nothing fails."""
    before = (await house.ask("owner", "GET", "/sessions/mine")).json()
    for verb in VERBS:
        answer = await house.ask(who, verb, path, content=b'{"title": "Mine"}')
        assert answer.status_code in (200, 400, 401, 404, 405, 422), (verb, answer.text)
        assert "casual" not in answer.text
        assert "hello" not in answer.text
    assert (await house.ask("owner", "GET", "/sessions/mine")).json() == before


async def test_a_session_is_named(house: House) -> None:
    """By its owner, in words; what is none is refused."""
    assert (await house.ask("owner", "PATCH", "/sessions/mine", json={"title": "  About cats  "})).status_code == 204
    assert (await house.ask("owner", "GET", "/sessions")).json()[0]["title"] == "About cats"
    bad: Any
    for bad in ({"title": " "}, {"title": "x" * 201}, {"title": 7}, {"title": None}, {}, [], {"title": "a\nb"}):
        assert (await house.ask("owner", "PATCH", "/sessions/mine", json=bad)).status_code == 422, bad
    for raw in (b"{", b'{"title": "\\ud83d"}', b'{"title": "\xff"}', b"", b"null"):
        answer = await house.ask("owner", "PATCH", "/sessions/mine", content=raw)
        assert answer.status_code == 422, raw
        assert "ud83d" not in answer.text
    assert (await house.ask("owner", "GET", "/sessions")).json()[0]["title"] == "About cats"


async def test_a_session_is_removed(house: House) -> None:
    """It is gone for good, and its id is free."""
    assert (await house.ask("owner", "DELETE", "/sessions/mine")).status_code == 204
    assert (await house.ask("owner", "DELETE", "/sessions/mine")).status_code == 404
    assert (await house.ask("owner", "GET", "/sessions")).json() == []
    async with await ChatClient.connect(house.server.url, "mine", token=house.tokens["other"]) as client:
        assert (await client.until("ready"))["epoch"] == 1


async def test_a_live_session_is_ended_and_removed(serve: Serve, queue: Queue) -> None:
    """Its sockets are told, what runs is stopped, and nobody is asked for a summary of what is gone."""
    where = {"disconnect_queue_url": queue.url, "aws_endpoint_url": queue.settings.aws_endpoint_url}
    async with serve(**where, demo_tokens_per_second=20) as server:
        client = await ChatClient.connect(server.url, "mine")
        await client.say("Write 500 words")
        await client.until("token")
        async with httpx.AsyncClient(base_url=server.http, trust_env=False) as http:
            assert (await http.delete("/sessions/mine")).status_code == 204
            assert await client.closed() == 4404
            assert (await http.get("/sessions/mine")).status_code == 404
    assert queue.bodies() == []


async def test_metrics_and_documentation_are_the_operators(house: House) -> None:
    """Where people sign in; what says whether it lives is open."""
    for path in ("/metrics", "/openapi.json"):
        for who, status in (("operator", 200), ("owner", 403), ("nobody", 401)):
            assert (await house.ask(who, "GET", path)).status_code == status, (who, path)
    for path in ("/health", "/live", "/auth", "/"):
        assert (await house.ask("nobody", "GET", path)).status_code == 200


async def test_pages_of_other_origins_are_kept_out(house: House) -> None:
    """Nothing lets them read an answer, or open a socket in a visitor's name; ours may do both."""
    theirs = {"Origin": "https://evil.example"}
    answer = await house.ask("owner", "GET", "/sessions", headers=theirs)
    assert "access-control-allow-origin" not in answer.headers
    assert "access-control-allow-credentials" not in answer.headers
    asked = {"Access-Control-Request-Method": "DELETE", "Access-Control-Request-Headers": "authorization"}
    assert (await house.ask("nobody", "OPTIONS", "/sessions/mine", headers=theirs | asked)).status_code == 400


async def test_every_answer_is_safe_to_show(house: House) -> None:
    """Pages, JSON, refusals and what is not there: nothing from elsewhere, no framing, no guessing of types."""
    for path in ("/", "/main.js", "/sessions", "/sessions/mine", "/nothing-here", "/health"):
        headers = (await house.ask("nobody", "GET", path)).headers
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy
        assert (headers["x-content-type-options"], headers["referrer-policy"]) == ("nosniff", "no-referrer")
        assert "strict-transport-security" not in headers
    behind = await house.ask("nobody", "GET", "/", headers={"X-Forwarded-Proto": "https"})
    assert behind.headers["strict-transport-security"].startswith("max-age=")


async def test_metrics_may_have_a_port_of_their_own(serve: Serve) -> None:
    """There no token is asked for: see `metrics_at`."""
    port = free_port()
    patient = httpx.AsyncHTTPTransport(retries=20)
    async with metrics_at("127.0.0.1", port, Metrics()), httpx.AsyncClient(transport=patient) as http:
        answer = await http.get(f"http://127.0.0.1:{port}/metrics")
    assert "realtime_turns_total" in answer.text
