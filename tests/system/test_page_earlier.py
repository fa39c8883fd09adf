"""A long conversation on the page: what was said before is loaded when one scrolls up."""

from pathlib import Path

import pytest
from playwright.async_api import Locator, Page, expect

from infra.store.sqlite import SqliteStore
from tests.conftest import Serve
from tests.support.client import ChatClient
from tests.system import page as pages
from tests.system.page import OpenPage, said, session_id, shows_status
from tests.system.test_strangers import fill

# One browser serves them all, and a browser belongs to one event loop.
pytestmark = pytest.mark.asyncio(loop_scope="module")
browser, open_page = pages.browser, pages.open_page

TURNS = 130
KEPT = {"history_events": 40}


async def talk(url: str, session: str) -> None:
    """Have a long conversation."""
    async with await ChatClient.connect(url, session) as client:
        for number in range(TURNS):
            await client.say(f"message {number}.")
            done = await client.until("done")
        await client.until("saved", through=done["seq"])


async def join(page: Page, session: str) -> None:
    """Come to it with a page."""
    await page.get_by_label("Session", exact=True).fill(session)
    await page.get_by_role("button", name="Connect").click()
    await shows_status(page, "Connected")


async def numbers(page: Page) -> list[int]:
    """The messages on the page, in order."""
    return [int(text.split()[1].split(".")[0]) for text in await said(page).all_inner_texts()]


async def place(shown: Locator) -> float:
    """How far down on the screen it is."""
    box = await shown.bounding_box()
    assert box
    return box["y"]


async def test_scrolling_up_brings_what_was_said_before(serve: Serve, open_page: OpenPage) -> None:
    """Page by page, in order, each once; and what is being read stays where it is."""
    async with serve(**KEPT) as server:
        page = await open_page(server.http)
        await talk(server.url, "long")
        await join(page, "long")
        await expect(said(page)).to_have_count(20)
        await expect(page.locator("#earlier")).to_be_attached()
        anchor = said(page).first
        await page.locator("#scroller").evaluate("node => { node.scrollTop = 100; }")
        top = await place(anchor)
        await expect(said(page)).to_have_count(70)
        anchor = said(page).nth(50)
        await expect(anchor).to_contain_text("message 110.")
        assert abs(await place(anchor) - top) < 3
        assert await numbers(page) == list(range(60, TURNS))
        await page.get_by_role("button", name="Show earlier messages").click()
        await expect(said(page)).to_have_count(120)
        await page.get_by_role("button", name="Show earlier messages").click()
        await expect(said(page)).to_have_count(TURNS)
        await expect(page.locator("#earlier")).to_be_hidden()
        assert await numbers(page) == list(range(TURNS))
        await expect(page.get_by_text("Sent", exact=True)).to_have_count(0)


async def test_pages_that_end_early_are_not_the_last(serve: Serve, open_page: OpenPage, tmp_path: Path) -> None:
    """Of large messages fewer come at once than were asked for: there are more, until there are none."""
    store = await SqliteStore.open(tmp_path / "large.db")
    await fill(store, "large", count=12, content="x" * 300_000)
    async with serve(store=store) as server:
        page = await open_page(server.http)
        await page.get_by_label("User (optional)").fill("u")
        await join(page, "large")
        earlier = page.locator("#earlier")
        await expect(earlier).to_be_visible()
        while await earlier.is_visible():
            shown = await said(page).count()
            await earlier.get_by_role("button").click()
            await expect(said(page)).not_to_have_count(shown)
            await expect(page.locator("#earlier-status")).to_be_empty()
        await expect(said(page)).to_have_count(12)


async def test_a_load_that_fails_says_so(serve: Serve, open_page: OpenPage) -> None:
    """And is tried again when one asks for it; the conversation goes on meanwhile."""
    async with serve(**KEPT) as server:
        page = await open_page(server.http)
        await talk(server.url, "long")
        await page.route("**/events?*", lambda route: route.abort())
        await join(page, "long")
        await page.locator("#scroller").evaluate("node => { node.scrollTop = 0; }")
        await expect(page.locator("#earlier-status")).to_have_text("They could not be loaded.")
        await page.unroute("**/events?*")
        await page.get_by_role("button", name="Try again").click()
        await expect(said(page)).to_have_count(70)
        await expect(page.locator("#earlier-status")).to_be_empty()
        assert await session_id(page) == "long"


async def test_a_short_conversation_has_nothing_before_it(serve: Serve, open_page: OpenPage) -> None:
    """No button that leads nowhere."""
    async with serve() as server:
        page = await open_page(server.http)
        await page.get_by_role("button", name="Say hello").click()
        await expect(said(page)).to_contain_text("Saved")
        await expect(page.locator("#earlier")).to_be_hidden()
