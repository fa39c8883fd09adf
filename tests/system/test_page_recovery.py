"""The page in a real browser, over a container that is killed, restarted, or out of reach: it recovers by itself."""

import asyncio
import re
import signal
from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import CDPSession, Page, expect

from infra.llm import Message
from infra.llm.demo import answer
from tests.conftest import Serve
from tests.support.client import ChatClient
from tests.support.scripted import Pause, ScriptedModel
from tests.support.supabase import free_port
from tests.system import page as pages
from tests.system.browser import Relay
from tests.system.page import OpenPage, replies, said, say, session_id, shows_status
from tests.system.reported import container
from tests.system.test_http import get
from tests.system.test_resume import drop

# One browser serves them all, and a browser belongs to one event loop.
pytestmark = pytest.mark.asyncio(loop_scope="module")
browser, open_page = pages.browser, pages.open_page

LONG = "Write 100 words"
ALL_OF_IT = answer([Message("user", LONG)], set())[0]
PACE = {"DEMO_TOKENS_PER_SECOND": "40", "LINGER_SECONDS": "30"}


async def begin(page: Page) -> None:
    """Ask for a long reply, and wait until its question is stored and some of it is shown."""
    await say(page, LONG)
    await expect(said(page)).to_contain_text("Saved")
    await expect(replies(page)).to_contain_text("A stream is a promise")
    await expect(replies(page)).to_have_attribute("aria-busy", "true")


async def at_rest(page: Page) -> None:
    """Nothing on the page waits for anything."""
    await expect(page.get_by_text("Thinking")).to_have_count(0)
    await expect(page.get_by_role("button", name="Stop")).to_be_hidden()
    await expect(page.locator('[aria-busy="true"]')).to_have_count(0)


async def silence(devtools: CDPSession, on: bool) -> None:
    """Have the browser's network deliver nothing, or again."""
    rates = {"latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}
    await devtools.send("Network.emulateNetworkConditions", {"offline": on, **rates})


async def hear(witness: ChatClient, tokens: int) -> None:
    """Let the reply go on for so many tokens."""
    for _ in range(tokens):
        await witness.until("token")


async def stored(port: int, page: Page) -> list[dict[str, Any]]:
    """The session's events as they are in the store."""
    _, events = await get(f"http://127.0.0.1:{port}/sessions/{await session_id(page)}/events")
    return list(events)


async def test_a_replay_is_not_rendered_twice(serve: Serve, open_page: OpenPage) -> None:
    """However often the line breaks during a reply, each word appears once, under one question."""
    gates = [Pause() for _ in range(2)]
    script = [step for number, gate in enumerate(gates) for step in (f"part {number}, ", gate)]
    async with (
        serve(model=ScriptedModel([*script, "the end"]), linger_seconds=30) as server,
        Relay(server.port) as relay,
    ):
        page = await open_page(relay.http)
        await say(page, "hi")
        text = ""
        for number, gate in enumerate(gates):
            text += f"part {number}, "
            await expect(replies(page)).to_have_text(text)
            await relay.cut()
            await shows_status(page, "Reconnecting…")
            gate.set()
            await relay.mend()
            await shows_status(page, "Connected")
        await expect(replies(page)).to_have_text(f"{text}the end")
        await expect(page.locator("#log .text")).to_have_text(["hi", f"{text}the end"])


async def test_a_killed_container_leaves_no_spinner(open_page: OpenPage, tmp_path: Path) -> None:
    """After kill -9 and a restart the page shows what was stored, says that the reply was interrupted, and talks on."""
    port = free_port()
    async with container(tmp_path, port, **PACE) as process:
        page = await open_page(f"http://127.0.0.1:{port}")
        await begin(page)
        process.kill()
        await shows_status(page, "Reconnecting…")
    async with container(tmp_path, port):
        await shows_status(page, "Connected")
        await expect(said(page)).to_have_text(f"{LONG}Saved")
        await expect(replies(page)).to_have_text(re.compile("Interrupted"))
        await at_rest(page)
        await say(page, "hello again")
        await expect(replies(page).last).to_contain_text("Happy to chat about “hello again”!")
        await expect(said(page).locator(".text")).to_have_text([LONG, "hello again"])
        await at_rest(page)


async def test_a_network_that_comes_back_loses_no_token(open_page: OpenPage, tmp_path: Path) -> None:
    """Silent, then cut, in the middle of a reply: each token is there once, and the reply completes."""
    port = free_port()
    async with container(tmp_path, port, **PACE), Relay(port) as relay:
        page = await open_page(relay.http)
        await begin(page)
        witness = await ChatClient.connect(f"ws://127.0.0.1:{port}", await session_id(page))
        devtools = await page.context.new_cdp_session(page)
        await silence(devtools, True)  # Chromium keeps an open socket, and what comes on it to itself
        await hear(witness, 15)
        await silence(devtools, False)
        await expect(replies(page)).to_contain_text(witness.text())
        await relay.cut()
        await shows_status(page, "Reconnecting…")
        assert len(await replies(page).locator(".text").inner_text()) < len(ALL_OF_IT)
        await hear(witness, 15)
        await relay.mend()
        await expect(replies(page)).to_have_attribute("aria-busy", "false")
        await expect(replies(page)).to_have_text(ALL_OF_IT)
        await expect(said(page)).to_have_text(f"{LONG}Saved")
        await at_rest(page)
        await drop(witness)


async def test_a_message_typed_while_the_line_is_down_is_sent_once(open_page: OpenPage, tmp_path: Path) -> None:
    """It waits on the page, says so, and is stored and answered once, though the line breaks again after it."""
    port = free_port()
    async with container(tmp_path, port), Relay(port) as relay:
        page = await open_page(relay.http)
        await say(page, "hello")
        await expect(said(page)).to_contain_text("Saved")
        await relay.cut()
        await shows_status(page, "Reconnecting…")
        await say(page, "are you there?")
        await expect(said(page).last).to_contain_text("Waiting for the connection")
        await relay.mend()
        await expect(said(page).last).to_contain_text("Saved")
        await relay.cut()
        await shows_status(page, "Reconnecting…")
        await relay.mend()
        await shows_status(page, "Connected")
        await expect(replies(page)).to_have_count(2)
        await expect(replies(page).last).to_contain_text("are you there?")
        told = [event["content"] for event in await stored(port, page) if event["role"] == "user"]
        assert told == ["hello", "are you there?"]


async def test_a_restart_on_sigterm_goes_unnoticed(open_page: OpenPage, tmp_path: Path) -> None:
    """The reply that runs is finished first; then the page follows the container, and the conversation goes on."""
    port = free_port()
    async with container(tmp_path, port, **PACE) as process:
        page = await open_page(f"http://127.0.0.1:{port}")
        await begin(page)
        process.send_signal(signal.SIGTERM)
        await expect(replies(page)).to_have_text(ALL_OF_IT)
        await shows_status(page, "Reconnecting…")
        assert await asyncio.wait_for(process.wait(), 20) == 0
    async with container(tmp_path, port):
        await shows_status(page, "Connected")
        await expect(replies(page)).to_have_text(ALL_OF_IT)
        await at_rest(page)
        await say(page, "and now?")
        await expect(replies(page).last).to_contain_text(f"Earlier you said “{LONG}”")
        await expect(said(page).locator(".text")).to_have_text([LONG, "and now?"])
        assert [event["role"] for event in await stored(port, page)] == ["user", "assistant"] * 2
