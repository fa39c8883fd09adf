"""What surrounds the Edge function: its settings, a store with its own ways, and the container that calls it."""

import asyncio
import re
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from uuid import uuid4

import httpx
import pytest

from infra.handoff.http import HttpHandoff
from infra.records import SessionEnded, utc_now
from infra.store.supabase import SupabaseStore
from tests.conftest import Serve, make_settings
from tests.support.client import PATIENCE, ChatClient
from tests.support.edge import SECRET, an_edge, call, variables
from tests.support.parity import Case, lived
from tests.support.supabase import Supabase, free_port, fresh


@pytest.fixture
async def store(supabase: Supabase, tmp_path: Path) -> AsyncIterator[SupabaseStore]:
    """The store the container writes to."""
    store = await SupabaseStore.open(make_settings(tmp_path, **supabase.names()))
    yield store
    await store.close()


def ended(session_id: str) -> str:
    """A message as the container sends it."""
    return SessionEnded(session_id=session_id, epoch=1, ended_at=utc_now(), reason="closed").to_json()


@pytest.mark.parametrize(
    ("missing", "status", "named"),
    [
        ("HANDOFF_SECRET", 401, "HANDOFF_SECRET"),
        ("SUPABASE_URL", 503, "SUPABASE_URL"),
        ("SUPABASE_SERVICE_ROLE_KEY", 503, "SUPABASE_SERVICE_ROLE_KEY"),
    ],
)
def test_a_missing_setting_is_named(supabase: Supabase, missing: str, status: int, named: str) -> None:
    """A missing setting is named in the answer, and the sender keeps the message."""
    given = {name: value for name, value in variables(supabase).items() if name != missing}
    with ExitStack() as ending:
        got, answer = call(an_edge(ending, given), ended("s1"), secret=SECRET)
    assert got == status
    assert named in answer["error"]


def test_the_old_secret_is_good_while_it_is_changed(supabase: Supabase) -> None:
    """With HANDOFF_SECRET_OLD set both are, and nothing else."""
    with ExitStack() as ending:
        edge = an_edge(ending, variables(supabase) | {"HANDOFF_SECRET_OLD": "before"})
        statuses = [call(edge, ended(fresh("s")), secret=secret)[0] for secret in ("before", SECRET, "neither")]
    assert statuses == [409, 409, 401]


def test_a_model_without_a_name_is_named(supabase: Supabase) -> None:
    """A key and no LLM_MODEL is a mistake, not a wish for the plain summary."""
    with ExitStack() as ending:
        status, answer = call(an_edge(ending, variables(supabase) | {"OPENAI_API_KEY": "sk-x"}), ended("s1"))
    assert (status, answer) == (503, {"error": "LLM_MODEL: not set"})


@pytest.mark.parametrize("given", [{"SUPABASE_SERVICE_ROLE_KEY": "sb_secret_wrong"}, {"SUPABASE_URL": ""}])
def test_a_store_that_does_not_answer_has_the_message_come_again(supabase: Supabase, given: dict[str, str]) -> None:
    """The key is refused, or nobody is there: 503, and no word of where or with what."""
    given = given if all(given.values()) else {"SUPABASE_URL": f"http://127.0.0.1:{free_port()}"}
    with ExitStack() as ending:
        status, answer = call(an_edge(ending, variables(supabase) | given), ended("s1"))
    assert status == 503
    assert answer["error"].startswith("Supabase: ")
    assert not re.search("127.0.0.1|sb_secret", answer["error"])


class Stingy:
    """A gateway before the store that sends no more than 130 rows at once, as a server may be set to."""

    def __init__(self, supabase: Supabase) -> None:
        self.pages: list[int] = []
        pages = self.pages

        class Gateway(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._pass_on("GET", re.sub(r"limit=\d+", "limit=130", self.path), b"")

            def do_POST(self) -> None:
                self._pass_on("POST", self.path, self.rfile.read(int(self.headers["Content-Length"])))

            def _pass_on(self, method: str, path: str, body: bytes) -> None:
                headers = {name: self.headers[name] for name in ("apikey", "content-type")}
                answer = httpx.request(method, f"{supabase.url}{path}", content=body, headers=headers)
                if "/events" in path:
                    pages.append(len(answer.json()))
                self.send_response(answer.status_code)
                self.end_headers()
                self.wfile.write(answer.content)

            def log_message(self, *_: Any) -> None:
                """Say nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Gateway)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()

    def close(self) -> None:
        """Stop."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def stingy(supabase: Supabase) -> Iterator[Stingy]:
    """Such a gateway."""
    stingy = Stingy(supabase)
    yield stingy
    stingy.close()


async def test_a_server_that_sends_few_rows_is_asked_until_it_has_sent_all(
    supabase: Supabase, store: SupabaseStore, stingy: Stingy
) -> None:
    """Of a session of 1102 events, all count, though no page is as long as was asked for."""
    session_id = await lived(store, Case.read("long"))
    with ExitStack() as ending:
        edge = an_edge(ending, variables(supabase) | {"SUPABASE_URL": stingy.url})
        assert await asyncio.to_thread(call, edge, ended(session_id)) == (200, {"outcome": "written"})
    assert stingy.pages == [130] * 8 + [62]
    session = await store.session(session_id)
    assert session
    assert session.final_summary == "A casual conversation of 1101 messages and 1 reply about pineapples and finally."


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> asyncio.Event:
    """Set when the function has taken what the container sent."""
    taken = asyncio.Event()
    send = HttpHandoff.send

    async def sending(self: HttpHandoff, ended: Sequence[SessionEnded]) -> list[SessionEnded]:
        left = await send(self, ended)
        if not left:
            taken.set()
        return left

    monkeypatch.setattr(HttpHandoff, "send", sending)
    return taken


async def test_from_the_goodbye_to_the_summary(
    supabase: Supabase, store: SupabaseStore, serve: Serve, taken: asyncio.Event
) -> None:
    """The container with HANDOFF_URL: a chat ends, and its row is finished, also when the function comes up later."""
    port, session_id = free_port(), f"walk-{uuid4().hex}"
    url = f"http://127.0.0.1:{port}/functions/v1/summary"
    async with serve(handoff_url=url, handoff_secret=SECRET, **supabase.names()) as server:
        async with await ChatClient.connect(server.url, session_id) as client:
            await client.say("tell me about apples")
            await client.until("done")
        with ExitStack() as ending:
            await asyncio.to_thread(an_edge, ending, variables(supabase), port)
            async with asyncio.timeout(PATIENCE):
                await taken.wait()
    session = await store.session(session_id)
    assert session
    assert session.final_summary == "A casual conversation of 1 message and 1 reply about apples."
    assert session.end_time
    assert session.duration is not None
