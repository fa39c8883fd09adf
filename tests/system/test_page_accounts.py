"""People with accounts, on the page: a real Supabase Auth behind it, and its own client in the page."""

import asyncio
import subprocess
from contextlib import ExitStack
from uuid import uuid4

import pytest
from playwright.async_api import Page, Route, expect

from infra.local.postgres import Postgres
from tests.conftest import Serve
from tests.support.supabase import Supabase, a_lite, fresh_database
from tests.system import page as pages
from tests.system.page import OpenPage, replies, said, say, session_id, shows_status

# One browser serves them all, and a browser belongs to one event loop.
pytestmark = pytest.mark.asyncio(loop_scope="module")
browser, open_page = pages.browser, pages.open_page


@pytest.fixture(scope="module", autouse=True)
def _bundled(supabase: Supabase) -> None:
    """The page as `make page` makes it."""
    if not supabase.jwt_secret:
        pytest.skip("TEST_SUPABASE_JWT_SECRET is not set")
    subprocess.run(["make", "page"], check=True, capture_output=True, timeout=120)


def signing_in(supabase: Supabase) -> dict[str, str]:
    """The settings that have people sign in there."""
    more = {"supabase_publishable_key": supabase.anon_key, "supabase_jwt_secret": supabase.jwt_secret}
    return supabase.names() | more


async def _for_pages(route: Route) -> None:
    """Do as a project's gateway does, which the local server lacks: let pages of all origins read the answer.

    Preflights are taken for granted where a route is set.
    """
    answer = await route.fetch()
    await route.fulfill(response=answer, headers=answer.headers | {"access-control-allow-origin": "*"})


async def enter(page: Page, how: str, email: str, password: str = "correct horse battery") -> None:
    """Fill in the form, and press the button of this name."""
    await page.get_by_label("E-mail").fill(email)
    await page.get_by_label("Password").fill(password)
    await page.locator("#sign-in").get_by_role("button", name=how).click()


async def test_people_sign_in_chat_and_sign_out(serve: Serve, open_page: OpenPage, supabase: Supabase) -> None:
    """Each sees their own: another account on the same machine cannot open the first one's conversation."""
    ann, ben = (f"{name}-{uuid4().hex}@example.com" for name in ("ann", "ben"))
    async with serve(**signing_in(supabase), going_away_seconds=5) as server:
        page = await open_page(server.http)
        await page.context.route(f"{supabase.url}/**", _for_pages)
        await say(page, "hello")
        await expect(page.locator("#banner")).to_have_text("Sign in to chat.")
        await expect(page.locator("#user")).to_be_hidden()
        await enter(page, "Create account", ann)
        await expect(page.locator("#identity-name")).to_have_text(ann)
        await expect(replies(page)).to_contain_text("Happy to chat")
        await expect(page.locator("#sign-in")).to_be_hidden()
        session = await session_id(page)
        await page.reload()
        await shows_status(page, "Connected")
        await expect(said(page)).to_contain_text("hello")

        await page.get_by_role("button", name="Sign out").click()
        await expect(page.locator("#sign-in")).to_be_visible()
        await expect(said(page)).to_have_count(0)
        await enter(page, "Sign in", ann, "a wrong one")
        await expect(page.locator("#sign-in-status")).to_contain_text("Invalid login credentials")
        await enter(page, "Create account", ben)
        await expect(page.locator("#identity-name")).to_have_text(ben)
        await page.get_by_role("button", name="Disconnect").click()
        await page.get_by_label("Session", exact=True).fill(session)
        await page.get_by_role("button", name="Connect").click()
        await expect(page.locator("#banner")).to_contain_text("belongs to another user")

        await page.get_by_role("button", name="Sign out").click()
        await enter(page, "Sign in", ann)
        await expect(page.locator("#identity-name")).to_have_text(ann)


async def test_a_token_that_ends_is_renewed_without_a_cut(
    serve: Serve, open_page: OpenPage, supabase: Supabase, postgres: Postgres
) -> None:
    """Supabase's client brings a newer one by itself, or when the server asks; it goes to the socket that is open."""
    with ExitStack() as ending:
        lite = a_lite(fresh_database(postgres), ending, token_seconds=62)
        short = Supabase(lite.url, lite.service_key, lite.anon_key, lite.jwt_secret)
        async with serve(**signing_in(short)) as server:
            page = await open_page(server.http)
            await page.context.route(f"{short.url}/**", _for_pages)
            await say(page, "hello")
            async with page.expect_websocket() as opened:
                await enter(page, "Create account", f"{uuid4().hex}@example.com")
            socket = await opened.value
            frames: list[str] = []
            socket.on("framereceived", lambda text: frames.append(str(text)))
            await expect(replies(page)).to_contain_text("Happy to chat")
            async with asyncio.timeout(20):
                while not any('"authenticated"' in frame for frame in frames):
                    await socket.wait_for_event("framereceived")
            await say(page, "and again")
            await expect(replies(page)).to_have_count(2)
            assert not socket.is_closed()


async def test_a_page_without_its_bundle_says_so(serve: Serve, open_page: OpenPage, supabase: Supabase) -> None:
    """Where nobody ran `make page` it cannot sign anybody in, and does not pretend."""
    async with serve(**signing_in(supabase)) as server:
        page = await open_page(f"{server.http}/live")
        await page.route("**/vendor/*", lambda route: route.abort())
        await page.goto(server.http)
        await say(page, "hello")
        await expect(page.locator("#banner")).to_contain_text("make page")
