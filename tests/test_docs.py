"""The documents: short where they promise to be, linked to what is there, and with code that runs as it stands."""

import asyncio
import re
import sys
from pathlib import Path

import pytest
from playwright.async_api import expect

from chat.conversation import history, messages, routing
from chat.durability import journal
from chat.sessions import outbox, turn
from chat.tools import registry
from chat.web import admission, connection, conversations, endpoint, http, pages
from functions.summary import prompt
from infra.llm import base, sse
from infra.settings import Settings
from infra.store.base import MOST_COUNTED
from tests.conftest import Serve
from tests.system.browser import open_browser

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = ["README.md", "CONTRIBUTING.md", "realtime/PROTOCOL.md", "infra/RUNBOOK.md"]
DOCUMENTS += ["infra/PROVIDERS.md", "infra/aws/README.md", "infra/supabase/README.md", "infra/SECURITY.md"]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def code(language: str) -> str:
    """The README's example in this language."""
    (found,) = re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)
    return str(found)


def test_the_readme_is_short() -> None:
    """A newcomer reads it to the end."""
    assert len(README.splitlines()) <= 150


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_link_leads_somewhere(document: str) -> None:
    """Each file that a document links to, or shows, is there."""
    file = ROOT / document
    text = file.read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)#:]+)\)", text) + re.findall(r'(?:src|srcset)="([^"]+)"', text)
    assert not [link for link in links if not (file.parent / link).exists()]


async def test_the_python_example_runs(serve: Serve) -> None:
    """Copied as it is, it prints a reply."""
    async with serve() as server:
        example = code("python").replace("localhost:8000", f"127.0.0.1:{server.port}")
        process = await asyncio.create_subprocess_exec(sys.executable, "-c", example, stdout=asyncio.subprocess.PIPE)
        printed, _ = await asyncio.wait_for(process.communicate(), 20)
    assert process.returncode == 0
    assert "Happy to chat about" in printed.decode()


async def test_the_browser_example_runs(serve: Serve) -> None:
    """Copied as it is, it shows a reply, on a page that ALLOWED_ORIGINS lets in; here that is a page without origin."""
    async with serve(allowed_origins="null") as server, open_browser() as browser:
        page = await browser.new_page()
        await page.add_script_tag(content=code("js").replace("localhost:8000", f"127.0.0.1:{server.port}"))
        await expect(page.locator("body")).to_contain_text("Happy to chat about", timeout=10_000)


def test_the_recordings_are_as_many_as_written() -> None:
    """What PROVIDERS.md says was tried is there."""
    recorded = len(list((ROOT / "tests" / "events" / "providers").glob("*.json")))
    assert f"{recorded} recorded streams" in (ROOT / "infra" / "PROVIDERS.md").read_text(encoding="utf-8")


def test_what_holds_a_threat_is_there() -> None:
    """Every test that SECURITY.md names is one."""
    written = (ROOT / "infra" / "SECURITY.md").read_text(encoding="utf-8")
    there = "".join(file.read_text(encoding="utf-8") for file in (ROOT / "tests").rglob("test_*.py"))
    names = set(re.findall(r"`(test_\w+)`", written))
    assert len(names) > 10
    assert [name for name in names if f"def {name}(" not in there] == []
    for file in re.findall(r"`((?:\w+/)?test_\w+\.py)`", written):
        assert list((ROOT / "tests").rglob(file.split("/")[-1])), file


def test_the_bounds_are_as_written() -> None:
    """What SECURITY.md says a stranger may take is what the code lets them take."""
    written = (ROOT / "infra" / "SECURITY.md").read_text(encoding="utf-8")
    defaults, kib, mib = Settings(), 1024, 1024 * 1024
    for bound in (
        f"| {http.MOST_REQUEST_BYTES // kib} KiB | 431, closed |",
        f"| {http.HEAD_SECONDS:g} s | closed |",
        f"| {http.LEAST_READ_BYTES // kib} KiB must move every {http.STILL_SECONDS:g} s |",
        f"| {pages.PAGE_BYTES // mib} MiB, {conversations.MOST_EVENTS:,} events |",
        f"`MAX_FRAME_BYTES` {defaults.max_frame_bytes // kib} KiB,",
        f"`MAX_MESSAGE_CHARS` {defaults.max_message_chars:,} |",
        f"| {connection.MOST_IDLE_FRAMES} a second |",
        f"| {endpoint.FAIR_SHARE} | others get their turn |",
        f"| {outbox.SOFT_CHARS // kib} KiB, then the turn waits; {outbox.HARD_CHARS // mib} MiB; "
        f"`SLOW_READER_SECONDS` {defaults.slow_reader_seconds:g} |",
        f"`MAX_QUEUED_MESSAGES` {defaults.max_queued_messages} |",
        f"`HISTORY_EVENTS` {defaults.history_events} and {history.HISTORY_BYTES // mib} MiB of a session |",
        f"`REPLAY_BYTES` {defaults.replay_bytes // kib} KiB of a session |",
        f"| {messages.REMEMBERED_MESSAGES:,} of a session |",
        f"| {journal.MOST_SESSION_BYTES // mib} MiB of a session; {journal.MOST_BYTES // mib} MiB and "
        f"`JOURNAL_MAX_EVENTS` {defaults.journal_max_events:,} in all |",
        f"| {turn.MOST_REPLY_CHARS // kib} Ki characters;",
        f"| {base.MOST_OPAQUE_BYTES // kib} KiB | not kept |",
        f"| {sse.MOST_LINE_BYTES // mib} MiB | the turn fails | `infra/llm/sse.py` |",
        f"| {registry.MOST_ARGUMENT_CHARS // kib} Ki characters | the turn fails |",
        f"| {registry.MAX_RESULT_BYTES // kib} KiB, {registry.MOST_PROBLEM_CHARS:,} characters |",
        f"| {routing.ROUTED_CHARS:,} characters |",
        f"| their latest {MOST_COUNTED:,} sessions |",
        f"| {history.MODEL_CHARS:,} characters; {prompt.TRANSCRIPT_CHARS:,} for a summary |",
        f"| {prompt.SUMMARY_CHARS:,} characters | cut |",
        f"`LIMIT_CONNECTIONS` {defaults.limit_connections}, `LIMIT_REQUESTS` {defaults.limit_requests:,} a minute",
        f"`LIMIT_OPENINGS` {defaults.limit_openings:,}, `LIMIT_GUESTS` {defaults.limit_guests:,} an hour",
        f"`LIMIT_WAITING` {defaults.limit_waiting}, for {admission.AUTH_SECONDS:g} s",
        f"`LIMIT_MESSAGES` {defaults.limit_messages} a minute, "
        f"`LIMIT_USER_TOKENS` {defaults.limit_user_tokens:,} a day |",
        f"`LIMIT_SOCKETS` {defaults.limit_sockets}, `LIMIT_LIVE_SESSIONS` {defaults.limit_live_sessions} |",
        f"`LIMIT_SESSION_SOCKETS` {defaults.limit_session_sockets} |",
        f"`MAX_SESSIONS` {defaults.max_sessions:,} |",
        f"`MAX_SESSIONS_BYTES` {defaults.max_sessions_bytes // mib} MiB |",
    ):
        assert bound in written
