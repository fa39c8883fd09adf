"""The page, as people use it: a real browser, the real server, and a network that can break."""

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from playwright.async_api import Browser, Locator, Page, WebSocket, WebSocketRoute, expect

from chat.protocol.frames import CloseCode, ErrorCode
from chat.web.api import FRONTEND
from infra.llm import ModelError, ToolCall
from infra.records import utc_now
from infra.store.sqlite import SqliteStore
from tests.conftest import Serve
from tests.support.client import ChatClient
from tests.support.scripted import ScriptedModel
from tests.system.browser import Relay, open_browser

# One browser serves them all, and a browser belongs to one event loop.
pytestmark = pytest.mark.asyncio(loop_scope="module")

OpenPage = Callable[..., Awaitable[Page]]
FROM_DISK = (FRONTEND / "index.html").as_uri()
PATIENCE_MS = 10_000
NETWORK = re.compile(r"WebSocket connection to|net::ERR_")
"""What Chromium itself writes to the console when the network breaks; no page can keep it from doing so."""

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
        clipped = await _height(result)
        await page.get_by_role("button", name="Show all 19 lines").click()
        assert await _height(result) > clipped
        await page.get_by_role("button", name="Show less").click()
        assert await _height(result) == clipped


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


# The network


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
    """Without a web server the page asks for the server's address, and then is the same."""
    async with serve() as server:
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


# The summary


async def test_summary_appears_when_it_is_written(serve: Serve, open_page: OpenPage, tmp_path: Path) -> None:
    """After Disconnect the page waits for this session's end, and shows what was written about it."""
    async with serve() as server:
        page = await open_page(server.http)
        await say(page, "hello")
        await expect(replies(page)).to_have_attribute("aria-busy", "false")
        await page.get_by_role("button", name="Disconnect").click()
        await shows_status(page, "Disconnected")
        panel = page.get_by_label("Session summary")
        await expect(panel).to_contain_text("Writing the summary")
        await _finish(tmp_path, await session_id(page), 1, "They said hello <b>politely</b>.")
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
    async with serve() as server:
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
        await _finish(tmp_path, await session_id(page), 1, "Nothing was said.")
        await page.get_by_role("button", name="Check again").click()
        await page.clock.run_for(1_000)
        await expect(panel).to_contain_text("Nothing was said.")


# Everybody's page


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


# The conversation, without a network: what `reduce` makes of frames


@pytest.fixture
def reduced() -> str:
    """JavaScript that folds frames into a state, and gives what is shown of it."""
    return """(frames) => {
        const state = frames.reduce(Conversation.reduce, Conversation.initial("s"));
        const kept = Conversation.shown(state).map(({kind, text = null, status = null}) => [kind, text, status]);
        return { kept, unsent: Conversation.unsent(state).map((item) => item.messageId), open: state.open };
    }"""


def _ready(*history: dict[str, Any], seq: int = 0, epoch: int = 1, active: str | None = None) -> dict[str, Any]:
    return {"type": "ready", "seq": seq, "session_id": "s", "epoch": epoch, "mode": None, "history": history,
            "active_turn_id": active}  # fmt: skip


def _event(role: str, turn: str, content: str, row: int = 0, **metadata: Any) -> dict[str, Any]:
    return {"event_id": f"{turn}{role}{content}", "turn_id": turn, "role": role, "content": content, "id": row,
            "metadata": metadata}  # fmt: skip


SAID = {"type": "local_said", "message_id": "m", "content": "hi"}
ACCEPTED = {"type": "accepted", "seq": 1, "message_id": "m", "turn_id": "t", "content": "hello"}


def _token(seq: int, content: str) -> dict[str, Any]:
    return {"type": "token", "seq": seq, "turn_id": "t", "content": content}


async def test_reduce_joins_tokens_and_takes_each_once(open_page: OpenPage, reduced: str) -> None:
    """Tokens become one text; a frame whose `seq` was seen changes nothing, nor does a type of a newer server."""
    page = await open_page(FROM_DISK)
    told = [_ready(), SAID, ACCEPTED, _token(2, "Hel"), _token(3, "lo"), _token(3, "lo"), {"type": "new", "seq": 9}]
    assert await page.evaluate(reduced, told) == {
        "kept": [["user", "hi", "sent"], ["assistant", "Hello", "streaming"]],
        "unsent": [],
        "open": ["t"],
    }
    ended = [{"type": "done", "seq": 4, "turn_id": "t", "reason": "length"}, {"type": "saved", "seq": 5, "through": 4}]
    assert await page.evaluate(reduced, told + ended) == {
        "kept": [["user", "hi", "saved"], ["assistant", "Hello", "length"]],
        "unsent": [],
        "open": [],
    }


async def test_reduce_redraws_to_the_same(open_page: OpenPage, reduced: str) -> None:
    """A history that says what was seen makes the same list, under the same keys, however often it comes."""
    page = await open_page(FROM_DISK)
    call: dict[str, Any] = {"call_id": "c", "name": "f", "arguments": {}}
    live = [
        _ready(), SAID, ACCEPTED, _token(2, "Let me see."),
        {"type": "tool_call", "seq": 3, "turn_id": "t", **call},
        {"type": "tool_result", "seq": 4, "turn_id": "t", "call_id": "c", "name": "f", "result": [1]},
        _token(5, "One."), {"type": "saved", "seq": 6, "through": 5},
    ]  # fmt: skip
    again = _ready(
        _event("user", "t", "hi", message_id="m"), _event("assistant", "t", "Let me see."),
        _event("tool", "t", "{}", kind="call", **call),
        _event("tool", "t", "[1]", kind="result", call_id="c", name="f", ok=True),
        seq=6, active="t",
    )  # fmt: skip
    same = """([live, again]) => {
        const items = (frames) =>
            JSON.stringify(Conversation.shown(frames.reduce(Conversation.reduce, Conversation.initial("s"))));
        const rest = {type: "token", seq: 7, turn_id: "t", content: "One."};
        return [items(live), items([...live, again, rest]), items([...live, again, rest, again, rest])];
    }"""
    once, twice, thrice = await page.evaluate(same, [live, again])
    assert once == twice == thrice


async def test_reduce_keeps_what_the_server_does_not_know(open_page: OpenPage, reduced: str) -> None:
    """A message that was accepted and died unsaved with the server is sent again; a saved one is not."""
    page = await open_page(FROM_DISK)
    crashed = _ready(epoch=2)
    lost = await page.evaluate(reduced, [_ready(), SAID, ACCEPTED, crashed])
    assert lost == {"kept": [["user", "hi", "sending"]], "unsent": ["m"], "open": []}
    arrived = _ready(_event("user", "t", "hi", message_id="m"), seq=1)
    receipt_lost = await page.evaluate(reduced, [_ready(), SAID, arrived])
    assert receipt_lost == {
        "kept": [["user", "hi", "sent"], ["assistant", "", "interrupted"]],
        "unsent": [],
        "open": [],
    }
    kept = _ready(_event("user", "t", "hi", row=1, message_id="m"), epoch=2)
    unanswered = await page.evaluate(reduced, [_ready(), SAID, ACCEPTED, _token(2, "x"), kept])
    assert unanswered == {
        "kept": [["user", "hi", "saved"], ["assistant", "", "interrupted"]],
        "unsent": [],
        "open": [],
    }


async def test_reduce_waits_for_no_turn_that_is_over(open_page: OpenPage, reduced: str) -> None:
    """A message sent again that was answered long ago, out of the history's reach, leaves nothing to wait for."""
    page = await open_page(FROM_DISK)
    over = {"type": "done", "seq": 2, "turn_id": "t", "reason": "complete"}
    again = await page.evaluate(reduced, [_ready(), SAID, ACCEPTED, over, _ready(seq=3), ACCEPTED | {"seq": 4}])
    assert again == {"kept": [["user", "hi", "sent"]], "unsent": [], "open": []}
    anew = await page.evaluate(reduced, [_ready(), SAID, ACCEPTED, _ready(epoch=2), ACCEPTED])
    assert anew == {"kept": [["user", "hi", "sent"], ["thinking", None, None]], "unsent": [], "open": ["t"]}


async def test_reduce_shows_that_a_reply_is_awaited(open_page: OpenPage, reduced: str) -> None:
    """A turn without a word yet is seen to be running, after a reconnect too; it is not once we left."""
    page = await open_page(FROM_DISK)
    awaited = [["user", "hi", "sent"], ["thinking", None, None]]
    assert (await page.evaluate(reduced, [_ready(), SAID, ACCEPTED]))["kept"] == awaited
    back = _ready(_event("user", "t", "hi", message_id="m"), seq=1, active="t")
    assert (await page.evaluate(reduced, [_ready(), SAID, ACCEPTED, back]))["kept"] == awaited
    left = await page.evaluate(reduced, [_ready(), SAID, ACCEPTED, {"type": "local_left"}])
    assert left["kept"] == [["user", "hi", "sent"], ["assistant", "", "interrupted"]]


async def _height(shown: Locator) -> float:
    box = await shown.bounding_box()
    assert box
    return box["height"]


async def _finish(data_dir: Path, session: str, epoch: int, summary: str) -> None:
    store = await SqliteStore.open(data_dir / "realtime.db")
    try:
        assert await store.finish_session(session, epoch, ended_at=utc_now(), summary=summary)
    finally:
        await store.close()
