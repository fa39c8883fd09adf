"""The page for everybody: by keyboard, on a phone, in either colour."""

import asyncio
import re

import pytest
from playwright.async_api import Page, expect

from infra.llm import ModelError, ToolCall
from tests.conftest import Serve
from tests.support.scripted import ScriptedModel
from tests.system import page as pages
from tests.system.browser import Relay
from tests.system.page import (
    OpenPage,
    replies,
    said,
    say,
    shows_status,
)

# One browser serves them all, and a browser belongs to one event loop.
pytestmark = pytest.mark.asyncio(loop_scope="module")
browser, open_page = pages.browser, pages.open_page


async def test_keyboard_is_enough(serve: Serve, open_page: OpenPage) -> None:
    """From writing to stopping to leaving, no mouse is needed, and the focus is never lost."""
    async with serve(model=ScriptedModel(["talking", asyncio.Event()])) as server:
        page = await open_page(server.http)
        focused = "document.activeElement.id"
        assert await page.evaluate(focused) == "message"
        await page.keyboard.type("two")
        await page.keyboard.press("Shift+Enter")
        await page.keyboard.type("lines")
        await page.keyboard.press("Enter")
        await expect(said(page).locator(".text")).to_have_text("two\nlines", use_inner_text=True)
        await expect(page.get_by_label("Message", exact=True)).to_have_value("")
        await expect(replies(page)).to_have_text("talking")
        await page.keyboard.press("Tab")
        assert await page.evaluate(focused) == "stop"
        await page.keyboard.press("Enter")
        await expect(replies(page)).to_have_text("talkingStopped")
        assert await page.evaluate(focused) == "message"
        await page.keyboard.press("Shift+Tab")
        assert await page.evaluate(focused) == "scroller"
        await page.keyboard.press("Shift+Tab")
        assert await page.evaluate(focused) == "connect"
        await page.keyboard.press("Space")
        await shows_status(page, "Disconnected")
        await expect(page.get_by_label("Session summary")).to_be_visible()
        assert await page.evaluate(focused) == "connect"


async def test_reader_is_not_dragged_to_the_end(serve: Serve, open_page: OpenPage) -> None:
    """The end stays in sight for who is there; who reads further up stays there, with a way back."""
    up, end = asyncio.Event(), asyncio.Event()
    lines = [f"line {number}\n" for number in range(200)]
    async with serve(model=ScriptedModel([*lines, up, *lines, end, "the end"])) as server:
        page = await open_page(server.http)
        at_end = "scroller.scrollHeight - scroller.scrollTop - scroller.clientHeight < 5"
        await say(page, "go")
        await expect(replies(page)).to_contain_text("line 199")
        await page.wait_for_function(at_end)
        jump = page.get_by_role("button", name="Jump to latest")
        await expect(jump).to_be_hidden()
        await page.evaluate("scroller.scrollTop = 100")
        await expect(jump).to_be_visible()
        up.set()
        await expect(replies(page)).to_contain_text(re.compile("line 199.*line 199", re.DOTALL))
        assert await page.evaluate("scroller.scrollTop") == 100
        await jump.click()
        await page.wait_for_function(at_end)
        await expect(jump).to_be_hidden()
        end.set()
        await expect(replies(page)).to_contain_text("the end")
        await page.wait_for_function(at_end)


async def test_fits_a_phone_and_can_be_read(serve: Serve, open_page: OpenPage) -> None:
    """At 360 pixels nothing sticks out sideways, and in both schemes every text has the contrast of WCAG AA."""
    failing = ToolCall("c2", "no_such_tool", '{"' + "k" * 80 + '": "' + "v" * 200 + '"}')
    script = [ToolCall("c1", "fetch_data", '{"topic": "sales", "months": 12}'), failing]
    end = ModelError("internal", "", retryable=False)
    model = ScriptedModel(script, ["unbreakable" * 40, end], ["so", asyncio.Event()])
    async with serve(model=model, linger_seconds=30) as server, Relay(server.port) as relay:
        page = await open_page(relay.http, viewport={"width": 360, "height": 640}, reduced_motion="reduce")
        await _fits_and_can_be_read(page)
        await say(page, "fetch " + "unbreakable" * 40)
        await expect(page.locator(".notice")).to_be_visible()
        await say(page, "more")
        await expect(page.get_by_role("button", name="Stop")).to_be_visible()
        await _fits_and_can_be_read(page)
        await relay.cut()
        await shows_status(page, "Reconnecting…")
        await _fits_and_can_be_read(page)
        await page.get_by_role("button", name="Disconnect").click()
        await expect(page.get_by_label("Session summary")).to_be_visible()
        await _fits_and_can_be_read(page)


async def _fits_and_can_be_read(page: Page) -> None:
    assert await page.evaluate(TOO_WIDE) == []
    for scheme in ("light", "dark"):
        await page.emulate_media(color_scheme=scheme)
        assert await page.evaluate(TOO_FAINT) == []


TOO_WIDE = """() => [...document.querySelectorAll("body, body *")]
    .filter((e) => !e.closest(".hidden, svg, .name") && (e.getBoundingClientRect().right > innerWidth + 0.5
        || (e.scrollWidth > e.clientWidth + 1 && ["auto", "scroll"].includes(getComputedStyle(e).overflowX) )))
    .map((e) => e.outerHTML.slice(0, 80))"""

TOO_FAINT = """() => {
    const parts = (color) => color.match(/[\\d.]+/g).map(Number);
    const luminance = (color) => parts(color).slice(0, 3).map((c) => c / 255)
        .map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4))
        .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
    const behind = (e) => {
        const color = e ? getComputedStyle(e).backgroundColor : "rgb(255, 255, 255)";
        return e && parts(color)[3] === 0 ? behind(e.parentElement) : color;
    };
    return [...document.querySelectorAll("body *")]
        .filter((e) => [...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim())
            && e.checkVisibility() && !e.closest(".hidden"))
        .map((e) => {
            const [a, b] = [luminance(getComputedStyle(e).color), luminance(behind(e))];
            return [(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), e.outerHTML.slice(0, 80)];
        })
        .filter(([ratio]) => ratio < 4.5);
}"""
