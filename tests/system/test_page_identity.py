"""Who the visitor is, on the page: a guest at once, the same one tomorrow, another one when they sign out."""

import pytest
from playwright.async_api import Page, expect

from tests.conftest import Serve
from tests.system import page as pages
from tests.system.page import OpenPage, replies, said, say, session_id, shows_status

# One browser serves them all, and a browser belongs to one event loop.
pytestmark = pytest.mark.asyncio(loop_scope="module")
browser, open_page = pages.browser, pages.open_page


async def guest_id(page: Page) -> str:
    """The guest that the page is."""
    await expect(page.locator("#identity-name")).to_have_text("as a guest")
    return await page.locator("#identity-name").get_attribute("title") or ""


async def test_a_visitor_is_a_guest_at_once(serve: Serve, open_page: OpenPage) -> None:
    """Nothing has to be filled in; there is no field to be somebody else with; and a reload is the same guest."""
    async with serve(auth="guest", going_away_seconds=5) as server:
        page = await open_page(server.http)
        await say(page, "hello")
        await expect(replies(page)).to_contain_text("Happy to chat")
        guest, session = await guest_id(page), await session_id(page)
        assert guest.startswith("guest-")
        await expect(page.locator("#user")).to_be_hidden()
        await page.reload()
        await shows_status(page, "Connected")
        assert (await guest_id(page), await session_id(page)) == (guest, session)
        await expect(said(page)).to_contain_text("hello")


async def test_signing_out_leaves_nothing_to_the_next(serve: Serve, open_page: OpenPage) -> None:
    """The next one on the same machine is another guest, who cannot open the conversation by its id."""
    async with serve(auth="guest") as server:
        page = await open_page(server.http)
        await say(page, "hello")
        await expect(replies(page)).to_contain_text("Happy to chat")
        guest, session = await guest_id(page), await session_id(page)
        await page.get_by_role("button", name="Sign out").click()
        await expect(said(page)).to_have_count(0)
        await say(page, "me too")
        await expect(replies(page)).to_have_count(1)
        assert await guest_id(page) != guest
        await page.get_by_role("button", name="Disconnect").click()
        await page.get_by_label("Session", exact=True).fill(session)
        await page.get_by_role("button", name="Connect").click()
        await expect(page.locator("#banner")).to_contain_text("belongs to another user")


async def test_two_tabs_are_one_guest(serve: Serve, open_page: OpenPage) -> None:
    """They share the token, and may share a conversation."""
    async with serve(auth="guest") as server:
        page = await open_page(server.http)
        await say(page, "hello")
        await expect(replies(page)).to_contain_text("Happy to chat")
        other = await page.context.new_page()
        await other.goto(server.http)
        await other.get_by_label("Session", exact=True).fill(await session_id(page))
        await other.get_by_role("button", name="Connect").click()
        await expect(said(other)).to_contain_text("hello")
        assert await guest_id(other) == await guest_id(page)


async def test_a_token_that_ends_is_renewed_without_a_cut(
    serve: Serve, open_page: OpenPage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The page is asked for a newer one, sends it, and the chat goes on over the same socket."""
    monkeypatch.setattr("chat.web.identity.guest.GUEST_SECONDS", 61)
    async with serve(auth="guest") as server:
        page = await open_page(server.http)
        await page.evaluate("localStorage.clear()")
        async with page.expect_websocket() as opened:
            await say(page, "hello")
        socket = await opened.value
        frames: list[str] = []
        socket.on("framereceived", lambda text: frames.append(str(text)))
        await expect(replies(page)).to_contain_text("Happy to chat")
        async with page.expect_response("**/auth/guest") as renewed:
            pass
        assert (await (await renewed.value).json())["user_id"] == await guest_id(page)
        await say(page, "and again")
        await expect(replies(page)).to_have_count(2)
        assert not socket.is_closed()
        assert any('"authenticated"' in frame for frame in frames)


async def test_under_none_one_may_name_oneself(serve: Serve, open_page: OpenPage) -> None:
    """As before there was any sign-in."""
    async with serve() as server:
        page = await open_page(server.http)
        await page.locator("#user").fill("ann")
        await say(page, "hello")
        await expect(replies(page)).to_contain_text("Happy to chat")
        await expect(page.locator("#identity")).to_be_hidden()
        await expect(page.get_by_role("button", name="Sign out")).to_be_hidden()
