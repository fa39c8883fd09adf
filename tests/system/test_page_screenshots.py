"""Pictures of the page in a conversation, in both colours: for the README, and for whoever changes the page."""

import os
from pathlib import Path
from typing import Literal

import pytest
from playwright.async_api import expect

from tests.conftest import Serve
from tests.system import page as pages
from tests.system.page import OpenPage, replies, said, say

# One browser serves them all, and a browser belongs to one event loop.
pytestmark = pytest.mark.asyncio(loop_scope="module")
browser, open_page = pages.browser, pages.open_page

MOST_BYTES = 150_000


@pytest.mark.parametrize("colours", ["light", "dark"])
async def test_a_picture_is_taken(
    serve: Serve, open_page: OpenPage, tmp_path: Path, colours: Literal["light", "dark"]
) -> None:
    """A tool call, its result and the answer; into the folder that SCREENSHOTS names, where that is set."""
    folder = Path(os.environ.get("SCREENSHOTS", tmp_path))
    async with serve() as server:
        page = await open_page(server.http, color_scheme=colours, viewport={"width": 1200, "height": 800})
        await page.get_by_label("Session", exact=True).fill("quarterly-report")
        await say(page, "Fetch the sales data, please")
        await expect(replies(page).last).to_contain_text("mean")
        await expect(page.locator('[aria-busy="true"]')).to_have_count(0)
        await expect(said(page).last).to_contain_text("Saved")
        await page.get_by_label("Message", exact=True).blur()
        taken = await page.screenshot(path=folder / f"{colours}.png", animations="disabled")
    assert 10_000 < len(taken) < MOST_BYTES
