"""The page on a network that can break: nothing is doubled, and nothing lost."""

import asyncio
import re
from pathlib import Path

import pytest
from playwright.async_api import WebSocket, WebSocketRoute, expect

from infra.store.sqlite import SqliteStore
from tests.conftest import Serve
from tests.support.client import ChatClient
from tests.support.scripted import Pause, ScriptedModel
from tests.system import page as pages
from tests.system.browser import Relay
from tests.system.page import (
    FROM_DISK,
    OpenPage,
    replies,
    said,
    say,
    session_id,
    shows_status,
)
from tests.system.reported import Announced
from tests.system.test_http import get

# One browser serves them all, and a browser belongs to one event loop.
pytestmark = pytest.mark.asyncio(loop_scope="module")
browser, open_page = pages.browser, pages.open_page


async def test_broken_line_doubles_nothing(serve: Serve, open_page: OpenPage) -> None:
    """A turn goes on while the line is down; back on it, the page shows all of it, once."""
    down, end = asyncio.Event(), asyncio.Event()
    model = ScriptedModel(["said before,", down, " said while away,", end, " said after"])
    async with serve(model=model, linger_seconds=30) as server, Relay(server.port) as relay:
        page = await open_page(relay.http)
        await say(page, "hi")
        await expect(replies(page)).to_have_text("said before,")
        await relay.cut()
        await shows_status(page, "Reconnecting…")
        await expect(replies(page)).to_have_text("said before,")
        down.set()
        await relay.mend()
        await shows_status(page, "Connected")
        await expect(replies(page)).to_have_text("said before, said while away,")
        end.set()
        await expect(replies(page)).to_have_text("said before, said while away, said after")
        await expect(said(page)).to_have_count(1)


async def test_restart_of_the_server_doubles_nothing(serve: Serve, open_page: OpenPage) -> None:
    """A new server reads the conversation from the store; the page shows it as it was, and talks on."""
    async with Relay(0) as relay:
        async with serve(model=ScriptedModel(["one"])) as server:
            relay.target = server.port
            page = await open_page(relay.http)
            await say(page, "first")
            await expect(said(page)).to_contain_text("Saved")
            await expect(replies(page)).to_have_text("one")
        await shows_status(page, "Reconnecting…")
        async with serve(model=ScriptedModel(["two"])) as server:
            relay.target = server.port
            await shows_status(page, "Connected")
            await say(page, "second")
            await expect(replies(page)).to_have_text(["one", "two"])
            await expect(said(page).locator(".text")).to_have_text(["first", "second"])


async def test_message_not_accepted_is_sent_again_once(serve: Serve, open_page: OpenPage, tmp_path: Path) -> None:
    """Whether a message was lost on its way or only its receipt was, it is answered once."""
    model = ScriptedModel(["hello"], ["heard"], ["arrived"])
    async with serve(model=model, linger_seconds=30) as server, Relay(server.port) as relay:
        page = await open_page(relay.http)
        await say(page, "hi")
        await expect(said(page)).to_contain_text("Saved")
        relay.deaf = True
        async with await ChatClient.connect(server.url, await session_id(page)) as witness:
            await witness.until("ready")
            await say(page, "receipt lost")
            await witness.until("accepted")
        await expect(said(page).last).to_contain_text("Sending…")
        await relay.cut()
        await shows_status(page, "Reconnecting…")
        await say(page, "never left")
        await expect(said(page).last).to_contain_text("Waiting for the connection")
        await relay.mend()
        await expect(replies(page)).to_have_text(["hello", "heard", "arrived"])
        await expect(said(page).locator(".text")).to_have_text(["hi", "receipt lost", "never left"])
        await expect(said(page).last).to_contain_text("Saved")
        store = await SqliteStore.open(tmp_path / "realtime.db")
        events = await store.events(await session_id(page), limit=100)
        await store.close()
        assert [event.content for event in events if event.role == "user"] == ["hi", "receipt lost", "never left"]
        assert len(model.calls) == 3


async def test_silent_server_counts_as_lost(serve: Serve, open_page: OpenPage) -> None:
    """Where nothing answers the page's ping, it gives up the line, as a dead network would not tell it."""
    async with serve(linger_seconds=30) as server, Relay(server.port) as relay:
        page = await open_page(relay.http)
        sockets: list[WebSocket] = []
        page.on("websocket", lambda socket: sockets.append(socket))
        await page.clock.install()
        await page.get_by_role("button", name="Connect").click()
        await shows_status(page, "Connected")
        (socket,) = sockets
        async with socket.expect_event("framereceived", lambda text: "pong" in text):
            await page.clock.run_for(25_000)
        await page.clock.run_for(10_000)  # it was answered: nothing happens
        await shows_status(page, "Connected")
        assert len(sockets) == 1
        relay.deaf = True
        await page.clock.run_for(16_000)
        await shows_status(page, "Connected")
        await page.clock.run_for(10_000)
        await shows_status(page, "Reconnecting…")
        await relay.cut()
        await relay.mend()
        await shows_status(page, "Connected")


async def test_goodbye_is_heeded(serve: Serve, open_page: OpenPage) -> None:
    """A server that asks for a pause gets it."""
    connections: list[WebSocketRoute] = []
    ready = '{"type":"ready","seq":0,"session_id":"%s","epoch":1,"resumed":false,"mode":null,"history":[],"protocol":1}'

    async def leave(socket: WebSocketRoute) -> None:
        connections.append(socket)
        socket.send(ready % socket.url.rpartition("/")[2])
        if len(connections) == 1:
            socket.send('{"type":"goodbye","seq":1,"reason":"restart","reconnect_in_ms":60000}')
            await socket.close(code=1012)

    async with serve() as server:
        page = await open_page(server.http)
        await page.clock.install()
        await page.route_web_socket(re.compile("/ws/session/"), leave)
        await page.get_by_role("button", name="Connect").click()
        await shows_status(page, "Reconnecting…")
        await expect(page.locator("#banner")).to_have_text("The server is restarting. Trying again…")
        await page.clock.run_for(55_000)
        await shows_status(page, "Reconnecting…")
        assert len(connections) == 1
        await page.clock.run_for(10_000)
        await shows_status(page, "Connected")
        await expect(page.locator("#banner")).to_be_hidden()


async def test_reload_keeps_the_session(serve: Serve, open_page: OpenPage) -> None:
    """The tab comes back to its conversation; another tab begins one of its own."""
    async with serve() as server:
        page = await open_page(server.http)
        await say(page, "hello")
        await expect(replies(page)).to_have_attribute("aria-busy", "false")
        before, reply = await session_id(page), await replies(page).inner_text()
        await page.reload()
        await shows_status(page, "Connected")
        assert await session_id(page) == before
        await expect(said(page)).to_contain_text("helloSaved")
        await expect(replies(page)).to_have_text(reply)
        assert await session_id(await open_page(server.http)) != before


async def test_opened_from_disk(serve: Serve, open_page: OpenPage) -> None:
    """Without a web server the page asks for the server's address, and then is the same; its origin is `null`."""
    async with serve(allowed_origins="null") as server:
        page = await open_page(FROM_DISK)
        await page.get_by_text("Settings").click()
        address = page.get_by_label("Server")
        await expect(address).to_have_value("http://localhost:8000")
        await address.fill("not an address")
        await page.get_by_role("button", name="Connect").click()
        await expect(page.locator("#banner")).to_contain_text("should look like http://localhost:8000")
        await address.fill(f"{server.http}/")
        await say(page, "show my stats")
        await expect(replies(page).last).to_contain_text("You have had 1 session and sent")
        await page.get_by_role("button", name="Disconnect").click()
        await expect(page.get_by_text("Writing the summary")).to_be_visible()


async def test_a_reload_in_the_middle_of_a_reply_cuts_nothing(serve: Serve, open_page: OpenPage) -> None:
    """The page comes back to the reply, which goes on meanwhile: one epoch, no end, and every word of it."""
    more = Pause()
    announced = Announced()
    async with serve(model=ScriptedModel(["Hel", more, "lo there"]), handoff=announced) as server:
        page = await open_page(server.http)
        await say(page, "hi")
        await expect(replies(page)).to_have_text("Hel")
        await page.reload()
        await shows_status(page, "Connected")
        await expect(replies(page)).to_have_text("Hel")
        more.set()
        await expect(replies(page)).to_have_text("Hello there")
        _, row = await get(f"{server.http}/sessions/{await session_id(page)}")
        assert (row["epoch"], row["end_time"], announced.ended) == (1, None, [])


async def test_a_device_that_goes_offline_is_seen_at_once(serve: Serve, open_page: OpenPage) -> None:
    """Not after half a minute; and back online it is connected at once."""
    async with serve() as server:
        page = await open_page(server.http)
        await page.get_by_role("button", name="Connect").click()
        await shows_status(page, "Connected")
        devtools = await page.context.new_cdp_session(page)
        rates = {"latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}
        await devtools.send("Network.emulateNetworkConditions", {"offline": True, **rates})
        await expect(page.locator("#status-text")).to_have_text("Reconnecting…", timeout=5_000)
        await expect(page.locator("#banner")).to_contain_text("This device is offline.")
        await devtools.send("Network.emulateNetworkConditions", {"offline": False, **rates})
        await expect(page.locator("#status-text")).to_have_text("Connected", timeout=5_000)


async def test_a_device_without_a_network_still_reaches_its_own_server(serve: Serve, open_page: OpenPage) -> None:
    """A laptop on a train, with the server on it, is told that it is offline, and stays connected."""
    async with serve() as server:
        page = await open_page(server.http)
        await say(page, "hello")
        await expect(replies(page)).to_have_attribute("aria-busy", "false")
        await page.evaluate("dispatchEvent(new Event('offline'))")
        await page.wait_for_timeout(1_500)  # longer than it waits for an answer
        await shows_status(page, "Connected")


async def test_a_double_click_on_connect_connects(serve: Serve, open_page: OpenPage) -> None:
    """The second click does not undo the first."""
    async with serve() as server:
        page = await open_page(server.http)
        await page.get_by_role("button", name="Connect").dblclick()
        await shows_status(page, "Connected")
