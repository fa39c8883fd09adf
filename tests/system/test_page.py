"""The page, as people use it: a real browser and the real server."""

import asyncio

import pytest
from playwright.async_api import expect

from chat.protocol.frames import CloseCode, ErrorCode
from infra.llm import ModelError, ToolCall
from tests.conftest import Serve
from tests.support.client import ChatClient
from tests.support.scripted import ScriptedModel
from tests.system import page as pages
from tests.system.page import (
    FROM_DISK,
    OpenPage,
    height,
    replies,
    said,
    say,
    session_id,
    shows_status,
)

# One browser serves them all, and a browser belongs to one event loop.
pytestmark = pytest.mark.asyncio(loop_scope="module")
browser, open_page = pages.browser, pages.open_page


# Talking


async def test_reply_appears_as_it_is_written(serve: Serve, open_page: OpenPage) -> None:
    """Each token is shown when it comes; a screen reader is told of the reply once, when it is whole."""
    more = asyncio.Event()
    async with serve(model=ScriptedModel(["Hel", more, "lo there"])) as server:
        page = await open_page(server.http)
        await say(page, "hi")
        await expect(replies(page)).to_have_text("Hel")
        await expect(replies(page)).to_have_attribute("aria-busy", "true")
        await expect(page.locator("#announcer")).to_be_empty()
        more.set()
        await expect(replies(page)).to_have_text("Hello there")
        await expect(replies(page)).to_have_attribute("aria-busy", "false")
        await expect(page.locator("#announcer")).to_have_text("Hello there")


async def test_token_touches_nothing_but_its_text(serve: Serve, open_page: OpenPage) -> None:
    """However long the transcript, a token costs the change of one text node."""
    start, end = asyncio.Event(), asyncio.Event()
    words = [f" {number}" for number in range(300)]
    async with serve(model=ScriptedModel(["earlier"], ["0", start, *words, end])) as server:
        page = await open_page(server.http)
        await say(page, "one")
        await expect(replies(page)).to_have_text("earlier")
        await say(page, "two")
        await expect(replies(page).last).to_have_text("0")
        await page.evaluate(
            """() => {
                window.seen = [];
                new MutationObserver((records) => seen.push(...records)).observe(document.getElementById("log"),
                    { subtree: true, childList: true, characterData: true, attributes: true });
            }"""
        )
        await expect(page.get_by_text("Saved", exact=True)).to_have_count(2)
        await page.evaluate("seen.length = 0")
        start.set()
        await expect(replies(page).last).to_have_text("0" + "".join(words))
        touched = await page.evaluate("seen.map((record) => [record.type, record.target.parentNode.className])")
        assert touched
        assert {tuple(each) for each in touched} == {("characterData", "text")}
        end.set()
        await expect(replies(page).last).to_have_attribute("aria-busy", "false")


async def test_tools_are_shown_with_what_they_were_asked_and_gave(serve: Serve, open_page: OpenPage) -> None:
    """A call shows its name and arguments, its result is readable JSON, and the session has become analytical."""
    async with serve() as server:
        page = await open_page(server.http)
        await say(page, "fetch the sales data and my stats")
        calls, results = page.locator(".card.call"), page.locator(".card.result")
        await expect(calls).to_have_count(2)
        await expect(calls.first).to_contain_text("fetch_data")
        await expect(calls.first.locator("dl")).to_have_text("topicsales")
        await expect(calls.last).to_contain_text("No arguments")
        await expect(results).to_have_count(2)
        figures = await results.filter(has_text="fetch_data").locator("pre").text_content()
        assert '\n  "rows": [\n    { "month": "Jan", "value": ' in str(figures)
        await expect(results.filter(has_text="get_user_stats")).to_contain_text('"messages": 1')
        await expect(replies(page).last).to_contain_text("For sales there are 6 rows")
        await expect(page.locator("#mode")).to_have_text("analytical")


async def test_failed_tool_is_told_apart(serve: Serve, open_page: OpenPage) -> None:
    """What a tool could not do is said in words, on a card that is not a result's."""
    async with serve(model=ScriptedModel([ToolCall("c1", "no_such_tool", "{}")], ["Sorry."])) as server:
        page = await open_page(server.http)
        await say(page, "go")
        failed = page.get_by_label("Tool failed: no_such_tool")
        await expect(failed).to_contain_text("There is no tool named 'no_such_tool'")
        await expect(page.get_by_label("Tool result")).to_have_count(0)
        await expect(page.locator("#mode")).to_have_text("casual")


async def test_long_result_is_clipped_until_asked_for(serve: Serve, open_page: OpenPage) -> None:
    """Twelve months do not push the conversation off the screen; one button shows them, and hides them again."""
    call = ToolCall("c1", "fetch_data", '{"topic": "sales", "months": 12}')
    async with serve(model=ScriptedModel([call], ["There."])) as server:
        page = await open_page(server.http)
        await say(page, "go")
        await expect(replies(page)).to_have_text("There.")
        result = page.locator(".card.result pre")
        clipped = await height(result)
        await page.get_by_role("button", name="Show all 19 lines").click()
        assert await height(result) > clipped
        await page.get_by_role("button", name="Show less").click()
        assert await height(result) == clipped


async def test_suggestion_connects_and_is_sent(serve: Serve, open_page: OpenPage) -> None:
    """A visitor's first click is enough for a conversation; the suggestions then make room for it."""
    async with serve() as server:
        page = await open_page(server.http)
        await shows_status(page, "Disconnected")
        await page.get_by_role("button", name="Say hello").click()
        await shows_status(page, "Connected")
        await expect(said(page)).to_contain_text("Say hello")
        await expect(replies(page)).to_contain_text("Happy to chat")
        await expect(page.get_by_role("button", name="Say hello")).to_be_hidden()


async def test_stop_keeps_what_was_said(serve: Serve, open_page: OpenPage) -> None:
    """Stop ends the model's call, keeps the partial text, and marks it, also after a reload."""
    model = ScriptedModel(["Half a rep", asyncio.Event()])
    async with serve(model=model) as server:
        page = await open_page(server.http)
        await say(page, "hi")
        await expect(replies(page)).to_have_text("Half a rep")
        await page.get_by_role("button", name="Stop").click()
        await expect(replies(page)).to_have_text("Half a repStopped")
        await expect(page.get_by_role("button", name="Stop")).to_be_hidden()
        async with asyncio.timeout(10):
            await model.cut_short.wait()
        await page.reload()
        await expect(replies(page)).to_have_text("Half a repStopped")


async def test_message_that_waits_is_answered_below(serve: Serve, open_page: OpenPage) -> None:
    """A message sent during a reply waits under it, and each reply stands under its own question."""
    held = asyncio.Event()
    async with serve(model=ScriptedModel([held, "first reply"], ["second reply"])) as server:
        page = await open_page(server.http)
        await say(page, "one")
        await expect(page.get_by_text("Thinking")).to_be_visible()
        await say(page, "two")
        await expect(said(page).last).to_have_text("twoSaved")
        held.set()
        await expect(replies(page)).to_have_text(["first reply", "second reply"])
        await expect(page.locator("#log .text")).to_have_text(["one", "first reply", "two", "second reply"])


async def test_two_windows_share_a_session(serve: Serve, open_page: OpenPage) -> None:
    """What is said elsewhere in the session, and what is answered, is shown here too, and again after a reload."""
    async with serve() as server:
        page = await open_page(server.http)
        await page.get_by_role("button", name="Connect").click()
        await shows_status(page, "Connected")
        async with await ChatClient.connect(server.url, await session_id(page)) as elsewhere:
            await elsewhere.say("hello from afar")
            await expect(replies(page)).to_contain_text("hello from afar")
            await expect(said(page)).to_contain_text("hello from afar")
            await page.reload()
            await expect(said(page)).to_contain_text("hello from afar")


async def test_text_is_never_markup(serve: Serve, open_page: OpenPage) -> None:
    """What users, models and tools write is shown letter for letter, and runs nothing."""
    attack = '<img src=x onerror="window.hacked=true"><script>window.hacked=true</script>\n  two  spaces'
    call = ToolCall("c1", "fetch_data", '{"topic": "<img src=x onerror=\'window.hacked=true\'>"}')
    bad = ToolCall("c2", "<img src=x onerror='window.hacked=true'>", "{}")
    async with serve(model=ScriptedModel([call, bad], [attack])) as server:
        page = await open_page(server.http)
        await page.get_by_label("Message", exact=True).fill(attack)
        await page.get_by_role("button", name="Send").click()
        await expect(replies(page)).to_have_attribute("aria-busy", "false")
        assert await said(page).locator(".text").text_content() == attack
        assert await replies(page).locator(".text").text_content() == attack
        await expect(page.locator(".card")).to_have_count(4)
        await expect(page.locator(".card.result").first).to_contain_text("<img src=x onerror=")
        await page.reload()
        await expect(page.locator(".card")).to_have_count(4)
        assert await page.locator("#log img, #log script").count() == 0
        assert await page.evaluate("window.hacked") is None


# What goes wrong, in words


async def test_model_failure_is_said_in_words(serve: Serve, open_page: OpenPage) -> None:
    """A reply that failed says why, where the reply would be, and what came of it is marked as incomplete."""
    refused = ModelError("model_refused", "HTTP 400", retryable=False)
    async with serve(model=ScriptedModel(["Well, ", refused])) as server:
        page = await open_page(server.http)
        await say(page, "hi")
        await expect(page.locator(".notice")).to_have_text("The assistant declined to answer this.")
        await expect(replies(page)).to_have_text("Well, Interrupted: this reply is not complete")


async def test_refused_message_can_be_sent_again(serve: Serve, open_page: OpenPage) -> None:
    """Where the server takes no second message during a reply, the page says so at the message, and offers it again."""
    held = asyncio.Event()
    async with serve(model=ScriptedModel(["one", held], ["two"]), while_busy="reject") as server:
        page = await open_page(server.http)
        await say(page, "first")
        await expect(replies(page)).to_have_text("one")
        await say(page, "second")
        await expect(said(page).last).to_contain_text("A reply is still being written.")
        held.set()
        await expect(replies(page)).to_have_attribute("aria-busy", "false")
        await page.get_by_role("button", name="Send again").click()
        await expect(replies(page)).to_have_text(["one", "two"])
        await expect(said(page)).to_have_count(2)


async def test_message_too_long_can_be_edited(serve: Serve, open_page: OpenPage) -> None:
    """A message that is too long goes back to where it was written."""
    async with serve(max_message_chars=10) as server:
        page = await open_page(server.http)
        await say(page, "twelve chars")
        await expect(said(page)).to_contain_text(
            "This message is too long. The message has 12 characters; the most is 10."
        )
        await page.get_by_role("button", name="Edit").click()
        await expect(page.get_by_label("Message", exact=True)).to_have_value("twelve chars")
        await expect(said(page)).to_have_count(0)


async def test_frame_too_big_is_not_sent_for_ever(serve: Serve, open_page: OpenPage) -> None:
    """A message the server closes for is given back, so that connecting again does not send it again."""
    async with serve(max_frame_bytes=1024) as server:
        page = await open_page(server.http)
        await say(page, "long " * 1000)
        await shows_status(page, "Disconnected")
        await expect(page.locator("#banner")).to_contain_text("the message was too large")
        await expect(said(page)).to_contain_text("This message is too long.")
        await page.get_by_role("button", name="Connect").click()
        await shows_status(page, "Connected")
        await say(page, "short")
        await expect(replies(page)).to_contain_text("Happy to chat")


async def test_somebody_elses_session_is_not_tried_again(serve: Serve, open_page: OpenPage) -> None:
    """Where coming back cannot help, the page says what to do and stays away."""
    async with serve() as server:
        page = await open_page(server.http)
        await page.get_by_label("User").fill("ann")
        await page.get_by_role("button", name="Connect").click()
        await shows_status(page, "Connected")
        stranger = await open_page(server.http)
        await stranger.get_by_label("Session", exact=True).fill(await session_id(page))
        await stranger.get_by_label("User").fill("bob")
        await stranger.get_by_role("button", name="Connect").click()
        await expect(stranger.locator("#banner")).to_contain_text("This session belongs to another user.")
        await shows_status(stranger, "Disconnected")


async def test_every_code_has_words(open_page: OpenPage) -> None:
    """The page's tables name the server's close and error codes, all of them and no others."""
    page = await open_page(FROM_DISK)
    closes = await page.evaluate("Object.entries(Protocol.CLOSE_CODES).map(([code, it]) => [+code, it.reconnect])")
    assert dict(closes) == {each.code: each.reconnect for each in CloseCode}
    assert set(await page.evaluate("Object.keys(Protocol.ERRORS)")) == {each.value for each in ErrorCode}


async def test_a_double_click_on_a_suggestion_sends_it_once(serve: Serve, open_page: OpenPage) -> None:
    """A double click acts once."""
    async with serve() as server:
        page = await open_page(server.http)
        await page.get_by_role("button", name="Say hello").dblclick()
        await expect(replies(page)).to_have_attribute("aria-busy", "false")
        await expect(said(page)).to_have_count(1)


async def test_the_enter_that_ends_a_composition_does_not_send(serve: Serve, open_page: OpenPage) -> None:
    """Safari's comes after the composition, and is known by its key code alone."""
    async with serve() as server:
        page = await open_page(server.http)
        await page.get_by_label("Message", exact=True).fill("日本")
        await page.evaluate(
            """() => document.getElementById("message").dispatchEvent(new KeyboardEvent("keydown",
                { key: "Enter", keyCode: 229, bubbles: true, cancelable: true }))"""
        )
        await shows_status(page, "Disconnected")
        await page.keyboard.press("Enter")
        await expect(said(page)).to_contain_text("日本")


@pytest.mark.parametrize(("text", "direction"), [("مرحبا بالعالم", "rtl"), ("hello", "ltr")])
async def test_text_runs_the_way_it_is_read(serve: Serve, open_page: OpenPage, text: str, direction: str) -> None:
    """In the box, in the message and in the reply, whatever the page's own language is."""
    async with serve(model=ScriptedModel([text])) as server:
        page = await open_page(server.http)
        box = page.get_by_label("Message", exact=True)
        await box.fill(text)
        runs = "node => getComputedStyle(node).direction"
        assert await box.evaluate(runs) == direction
        await page.keyboard.press("Enter")
        await expect(replies(page)).to_have_attribute("aria-busy", "false")
        for shown in (said(page), replies(page)):
            assert await shown.locator(".text").first.evaluate(runs) == direction


async def test_a_window_that_joins_later_sees_what_is_saved(serve: Serve, open_page: OpenPage) -> None:
    """The conversation was quiet when it came, and nobody will tell it again."""
    async with serve() as server:
        first = await open_page(server.http)
        await say(first, "hello")
        await expect(said(first)).to_contain_text("Saved")
        await expect(replies(first)).to_have_attribute("aria-busy", "false")
        second = await open_page(server.http)
        await second.get_by_label("Session", exact=True).fill(await session_id(first))
        await second.get_by_role("button", name="Connect").click()
        await expect(said(second)).to_contain_text("Saved")
