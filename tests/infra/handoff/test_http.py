"""`HttpHandoff` over real HTTP: what counts as taken, what comes again, and what is said of it."""

import asyncio
import json
import socket
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Semaphore, Thread
from typing import Any

import pytest
from structlog.testing import capture_logs

from infra.handoff import HandoffUnavailable, SqsHandoff, open_handoff
from infra.handoff.http import HttpHandoff
from infra.records import SessionEnded, utc_now
from infra.settings import Settings
from tests.conftest import Serve, make_settings
from tests.support.client import PATIENCE, ChatClient
from tests.support.supabase import free_port

SECRET = "hush-hush"
DONE = '{"outcome":"written"}'


class Function:
    """What answers at HANDOFF_URL: with the next of `script` for a session, and then with 200 as the function does."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, str | None, SessionEnded]] = []
        self.script: dict[str, list[tuple[int, str]]] = {}
        self._arrived = Semaphore(0)
        function = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                ended = SessionEnded.from_json(self.rfile.read(int(self.headers["Content-Length"])))
                function.requests.append((self.path, self.headers["Authorization"], ended))
                function._arrived.release()
                script = function.script.get(ended.session_id, [])
                status, body = script.pop(0) if script else (200, DONE)
                if status == 0:  # the answer gets lost
                    self.close_connection = True
                    self.connection.shutdown(socket.SHUT_RDWR)
                    return
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body.encode())

            def log_message(self, *_: Any) -> None:
                """Say nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/functions/v1/summary"
        self._thread = Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()

    async def arrivals(self, number: int) -> None:
        """Wait for so many requests."""
        for _ in range(number):
            assert await asyncio.to_thread(self._arrived.acquire, timeout=PATIENCE)

    def close(self) -> None:
        """Stop."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def function() -> Iterator[Function]:
    """A function that takes everything."""
    function = Function()
    yield function
    function.close()


def settings_for(url: str) -> Settings:
    """The settings that lead there."""
    return make_settings(Path(), handoff_url=url, handoff_secret=SECRET)


def ended(*session_ids: str) -> list[SessionEnded]:
    """The end of each session."""
    return [SessionEnded(session_id=it, epoch=1, ended_at=utc_now(), reason="closed") for it in session_ids]


async def send(url: str, batch: list[SessionEnded]) -> list[SessionEnded]:
    """Send these there; those to send again."""
    handoff = await open_handoff(settings_for(url))
    assert isinstance(handoff, HttpHandoff)
    try:
        async with asyncio.timeout(PATIENCE):
            return await handoff.send(batch)
    finally:
        await handoff.close()


async def test_each_message_is_posted_with_the_secret(function: Function) -> None:
    """One request a message, whole, to the URL as it was given; then there is nothing left to send."""
    batch = ended("a", "b", "c")
    assert await send(function.url, batch) == []
    assert sorted(request[2].session_id for request in function.requests) == ["a", "b", "c"]
    assert {request[2].ended_at for request in function.requests} == {one.ended_at for one in batch}
    assert {request[:2] for request in function.requests} == {("/functions/v1/summary", f"Bearer {SECRET}")}


@pytest.mark.parametrize("status", [400, 401, 403, 404, 405, 409, 429, 302, 500, 502, 503, 0])
async def test_what_is_not_taken_is_sent_again(function: Function, status: int) -> None:
    """Whatever the answer, or none at all: those that were not taken are named, and no others."""
    function.script = {"b": [(status, '{"error":"no"}')]}
    batch = ended("a", "b", "c")
    assert await send(function.url, batch) == [batch[1]]


async def test_an_answer_that_is_not_the_functions_takes_nothing(function: Function) -> None:
    """A page that says 200 to anything is no function: the message is kept, and the setting named."""
    function.script = {"a": [(200, "<html>welcome</html>")]}
    batch = ended("a", "b")
    with capture_logs() as logs:
        assert await send(function.url, batch) == [batch[0]]
    assert any("HANDOFF_URL" in line["event"] for line in logs if line["log_level"] == "error")


@pytest.mark.parametrize(
    ("status", "setting"),
    [(400, "HANDOFF_URL"), (401, "HANDOFF_SECRET"), (403, "HANDOFF_SECRET"), (404, "HANDOFF_URL")],
)
async def test_what_somebody_must_mend_is_an_error_that_names_the_setting(
    function: Function, status: int, setting: str
) -> None:
    """A wrong address or secret stands in the log as what it is, and the secret itself does not."""
    function.script = {"a": [(status, "")]}
    with capture_logs() as logs, pytest.raises(HandoffUnavailable):
        await send(function.url, ended("a"))
    (line,) = [line for line in logs if line["log_level"] == "error"]
    assert line["event"].startswith(setting)
    assert SECRET not in json.dumps(logs)


async def test_none_taken_is_said_with_the_functions_own_reason(function: Function) -> None:
    """When all fail alike, one line says why."""
    function.script = {it: [(503, '{"error":"Supabase: HTTP 503"}')] for it in "ab"}
    with pytest.raises(HandoffUnavailable, match=r"^HTTP 503: Supabase: HTTP 503$"):
        await send(function.url, ended("a", "b"))


async def test_nobody_there_is_unavailable() -> None:
    """A refused connection is told with the setting that names the address."""
    with pytest.raises(HandoffUnavailable, match="HANDOFF_URL: ConnectError"):
        await send(f"http://127.0.0.1:{free_port()}/", ended("a"))


async def test_the_container_announces_until_it_is_taken(function: Function, serve: Serve) -> None:
    """Down, then broken, then well: a session that ended in the meantime is announced in the end, and once more."""
    function.script = {"s1": [(0, ""), (503, "{}"), (401, "{}")]}
    async with serve(handoff_url=function.url, handoff_secret=SECRET) as server:
        async with await ChatClient.connect(server.url) as client:
            await client.until("ready")
        await function.arrivals(4)
    assert len(function.requests) == 4
    assert len({request[2].to_json() for request in function.requests}) == 1


async def test_a_queue_is_still_a_queue() -> None:
    """With DISCONNECT_QUEUE_URL sessions go to the queue; with neither setting nothing is handed off."""
    handoff = await open_handoff(make_settings(Path(), disconnect_queue_url="http://127.0.0.1:1/q"))
    assert isinstance(handoff, SqsHandoff)
    await handoff.close()
    assert await open_handoff(make_settings(Path())) is None


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"handoff_url": "https://x.test", "handoff_secret": "s", "disconnect_queue_url": "http://q.test"}, "not both"),
        ({"handoff_url": "https://x.test"}, "HANDOFF_SECRET: needed with HANDOFF_URL"),
        ({"handoff_url": "x.test", "handoff_secret": "s"}, "HANDOFF_URL: must begin with https://"),
        ({"handoff_url": "https://x.test", "handoff_secret": "sécret"}, "HANDOFF_SECRET: must be of ASCII"),
        ({"handoff_url": "https://x.test", "handoff_secret": "a b"}, "HANDOFF_SECRET: must be of ASCII"),
    ],
)
def test_settings_that_cannot_be_are_refused(given: dict[str, str], message: str) -> None:
    """The line says which setting it is, and what about it."""
    with pytest.raises(ValueError, match=message):
        make_settings(Path(), **given)
