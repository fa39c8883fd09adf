"""The summary on the page: it appears when it is written, and what keeps it from coming is said."""

import re
from pathlib import Path

import pytest
from playwright.async_api import expect

from tests.conftest import Serve
from tests.support.client import ChatClient
from tests.system import page as pages
from tests.system.browser import Relay
from tests.system.page import (
    OpenPage,
    finish,
    replies,
    say,
    session_id,
    shows_status,
)
from tests.system.reported import Announced

# One browser serves them all, and a browser belongs to one event loop.
pytestmark = pytest.mark.asyncio(loop_scope="module")
browser, open_page = pages.browser, pages.open_page


async def test_summary_appears_when_it_is_written(serve: Serve, open_page: OpenPage, tmp_path: Path) -> None:
    """After Disconnect the page waits for this session's end, and shows what was written about it."""
    async with serve(handoff=Announced()) as server:
        page = await open_page(server.http)
        await say(page, "hello")
        await expect(replies(page)).to_have_attribute("aria-busy", "false")
        await page.get_by_role("button", name="Disconnect").click()
        await shows_status(page, "Disconnected")
        panel = page.get_by_label("Session summary")
        await expect(panel).to_contain_text("Writing the summary")
        await finish(tmp_path, await session_id(page), 1, "They said hello <b>politely</b>.")
        await expect(panel).to_contain_text("They said hello <b>politely</b>.")
        await expect(panel).to_contain_text(re.compile(r"Duration\s*(under a second|\d+ s)"))
        assert await page.evaluate("[0, 59, 72, 3725].map(Summary.humanDuration)") == [
            "under a second", "59 s", "1 min 12 s", "1 h 2 min",
        ]  # fmt: skip
        await page.get_by_role("button", name="Connect").click()
        await shows_status(page, "Connected")
        await expect(panel).to_be_hidden()


async def test_summary_that_does_not_come_is_asked_for_again(serve: Serve, open_page: OpenPage, tmp_path: Path) -> None:
    """After half a minute the page says that there is none yet, and asks again when told to."""
    async with serve(handoff=Announced()) as server:
        page = await open_page(server.http)
        await page.get_by_role("button", name="Connect").click()
        await shows_status(page, "Connected")
        await page.clock.install(time=0)
        await page.clock.pause_at(1)
        await page.get_by_role("button", name="Disconnect").click()
        panel = page.get_by_label("Session summary")
        await expect(panel).to_contain_text("Writing the summary")
        await page.clock.fast_forward(31_000)
        await expect(panel).to_contain_text("The summary is not there yet. It may still be on its way.")
        await finish(tmp_path, await session_id(page), 1, "Nothing was said.")
        await page.get_by_role("button", name="Check again").click()
        await page.clock.run_for(1_000)
        await expect(panel).to_contain_text("Nothing was said.")


async def test_a_summary_that_nobody_writes_is_not_waited_for(serve: Serve, open_page: OpenPage) -> None:
    """A server without a queue says so at once."""
    async with serve() as server:
        page = await open_page(server.http)
        await page.get_by_role("button", name="Connect").click()
        await shows_status(page, "Connected")
        await page.get_by_role("button", name="Disconnect").click()
        await expect(page.get_by_label("Session summary")).to_contain_text("This server writes no summaries")


async def test_a_session_that_goes_on_in_another_window_has_no_summary_yet(serve: Serve, open_page: OpenPage) -> None:
    """Who leaves first learns why there is none, and may ask again."""
    async with serve(handoff=Announced()) as server:
        page = await open_page(server.http)
        await page.get_by_role("button", name="Connect").click()
        await shows_status(page, "Connected")
        async with await ChatClient.connect(server.url, await session_id(page)) as other:
            await other.until("ready")
            await page.get_by_role("button", name="Disconnect").click()
            panel = page.get_by_label("Session summary")
            await expect(panel).to_contain_text("Another window is still in this session")
            await expect(page.get_by_role("button", name="Check again")).to_be_visible()


async def test_a_server_that_is_gone_is_not_waited_for(serve: Serve, open_page: OpenPage) -> None:
    """Half a minute of hope would be a lie."""
    async with serve(handoff=Announced()) as server, Relay(server.port) as line:
        page = await open_page(line.http)
        await page.get_by_role("button", name="Connect").click()
        await shows_status(page, "Connected")
        await page.get_by_role("button", name="Disconnect").click()
        await line.cut()
        await expect(page.get_by_label("Session summary")).to_contain_text("The server could not be reached")
        await expect(page.get_by_role("button", name="Check again")).to_be_visible()
