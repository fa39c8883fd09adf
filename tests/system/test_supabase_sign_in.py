"""People with accounts: a real Supabase Auth signs their tokens, Supabase's own client signs them in."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest

from infra.local.supabase import find_node
from tests.conftest import Serve, Served
from tests.support.client import ChatClient
from tests.support.supabase import Supabase

SCRIPT = Path(__file__).resolve().parents[1] / "support" / "supabase_user.mjs"


class Project:
    """A server whose callers are a Supabase project's users."""

    def __init__(self, server: Served, supabase: Supabase) -> None:
        self.server = server
        self.http = server.http
        self._supabase = supabase

    async def user(self, email: str, what: str = "sign-in") -> dict[str, Any]:
        """What Supabase's client says of somebody who signs up, or in."""
        command = [find_node(), str(SCRIPT), self._supabase.url, self._supabase.anon_key, email, what]
        process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
        printed, _ = await asyncio.wait_for(process.communicate(), 30)
        assert process.returncode == 0
        said: dict[str, Any] = json.loads(printed)
        return said

    async def chat(self, token: str, session_id: str, content: str = "hello") -> None:
        """One exchange, stored."""
        async with await ChatClient.connect(self.server.url, session_id, token=token) as client:
            await client.until("ready")
            await client.say(content)
            done = await client.until("done")
            while (await client.until("saved"))["through"] < done["seq"]:
                pass

    async def ask(self, token: str, path: str) -> Any:
        """What our own HTTP says."""
        async with httpx.AsyncClient(base_url=self.http, trust_env=False) as http:
            answer = await http.get(path, headers={"Authorization": f"Bearer {token}"})
        return answer.json() if answer.is_success else answer.status_code


@pytest.fixture
async def project(serve: Serve, supabase: Supabase) -> AsyncIterator[Project]:
    """The server, set up as the README says: it finds out by itself that Supabase signs people in."""
    if not supabase.jwt_secret:
        pytest.skip("TEST_SUPABASE_JWT_SECRET is not set")
    more = {"supabase_publishable_key": supabase.anon_key, "supabase_jwt_secret": supabase.jwt_secret}
    async with serve(**supabase.names(), **more) as server:
        yield Project(server, supabase)


def an_email() -> str:
    return f"{uuid4().hex}@example.com"


async def test_an_account_has_its_own_sessions(project: Project) -> None:
    """They are stored under its id, and are there again after the next sign-in; another account's are not."""
    email, session_id = an_email(), uuid4().hex
    ann = await project.user(email)
    await project.chat(ann["token"], session_id)
    again = await project.user(email)
    assert again["user_id"] == ann["user_id"]
    row = await project.ask(again["token"], f"/sessions/{session_id}")
    assert row["user_id"] == ann["user_id"]
    ben = await project.user(an_email())
    assert await project.ask(ben["token"], f"/sessions/{session_id}") == 404
    async with await ChatClient.connect(project.server.url, session_id, token=ben["token"]) as client:
        assert await client.closed() == 4403


async def test_somebody_without_an_account_may_come_too(project: Project, supabase: Supabase) -> None:
    """An anonymous sign-in is a user like any other. The local server has none, so its token is made here."""
    token = supabase.user_token(str(uuid4()), is_anonymous=True)
    session_id = uuid4().hex
    await project.chat(token, session_id)
    assert [each["session_id"] for each in await project.ask(token, "/sessions")] == [session_id]


async def test_supabase_and_we_show_the_same_rows(project: Project) -> None:
    """What a user may read of the database directly is what our HTTP gives them, session by session."""
    email = an_email()
    ann, ben = await project.user(email), await project.user(an_email())
    for person, number in ((ann, 2), (ben, 1)):
        for _ in range(number):
            await project.chat(person["token"], uuid4().hex)
    theirs = await project.user(email, "read")
    ours = await project.ask(theirs["token"], "/sessions")
    assert sorted(each["session_id"] for each in ours) == [each["session_id"] for each in theirs["sessions"]]
    assert len(ours) == 2
    events = [
        event["event_id"]
        for each in ours
        for event in await project.ask(theirs["token"], f"/sessions/{each['session_id']}/events")
    ]
    assert sorted(events) == sorted(each["event_id"] for each in theirs["events"])
    assert len(events) >= 4


async def test_keys_are_no_tokens(project: Project, supabase: Supabase) -> None:
    """Neither the key that every page has nor the server's own lets anybody in."""
    for key in (supabase.anon_key, supabase.service_key):
        assert await project.ask(key, "/sessions") == 401
        async with await ChatClient.connect(project.server.url, token=key) as client:
            assert await client.closed() == 4401
            assert "API key" in client.frames[0]["message"]


async def test_a_page_is_told_where_to_sign_in(project: Project, supabase: Supabase) -> None:
    """The project's address and its publishable key; no other key, and no secret."""
    told = await project.ask("none", "/auth")
    assert told == {
        "auth": "supabase",
        "supabase_url": supabase.url,
        "supabase_publishable_key": supabase.anon_key,
        "providers": [],
    }
