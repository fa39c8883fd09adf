"""The page in a real browser: what its tests share, a visitor and the few things one does."""

import re
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest_asyncio
from playwright.async_api import Browser, Locator, Page, expect

from chat.web.api import FRONTEND
from infra.records import utc_now
from infra.store.sqlite import SqliteStore
from tests.system.browser import open_browser

OpenPage = Callable[..., Awaitable[Page]]
FROM_DISK = (FRONTEND / "index.html").as_uri()
PATIENCE_MS = 10_000
NETWORK = re.compile(r"WebSocket connection to|net::ERR_|responded with a status of 400")
"""What Chromium itself writes to the console when the network breaks, or a sign-in is refused; no page can help it."""

expect.set_options(timeout=PATIENCE_MS)


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def browser() -> AsyncIterator[Browser]:
    async with open_browser() as browser:
        yield browser


@pytest_asyncio.fixture(loop_scope="module")
async def open_page(browser: Browser) -> AsyncIterator[OpenPage]:
    """Open a page as a visitor of its own, who goes when the test ends; nothing may be amiss on the console."""
    contexts = []
    errors: list[str] = []

    async def open_one(url: str, **options: Any) -> Page:
        context = await browser.new_context(**options)
        contexts.append(context)
        page = await context.new_page()
        page.set_default_timeout(PATIENCE_MS)
        page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: errors.append(str(error)))
        await page.goto(url)
        return page

    yield open_one
    for context in contexts:
        await context.close()
    assert [error for error in errors if not NETWORK.search(error)] == []


async def say(page: Page, text: str) -> None:
    await page.get_by_label("Message", exact=True).fill(text)
    await page.keyboard.press("Enter")


async def shows_status(page: Page, text: str) -> None:
    await expect(page.locator("#status-text")).to_have_text(text)


def replies(page: Page) -> Locator:
    return page.get_by_label("Assistant")


def said(page: Page) -> Locator:
    return page.get_by_label("You", exact=True)


async def session_id(page: Page) -> str:
    return await page.get_by_label("Session", exact=True).input_value()


async def height(shown: Locator) -> float:
    box = await shown.bounding_box()
    assert box
    return box["height"]


async def finish(data_dir: Path, session: str, epoch: int, summary: str) -> None:
    store = await SqliteStore.open(data_dir / "realtime.db")
    try:
        assert await store.finish_session(session, epoch, ended_at=utc_now(), summary=summary)
    finally:
        await store.close()
