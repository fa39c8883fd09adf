"""The documents: short where they promise to be, linked to what is there, and with code that runs as it stands."""

import asyncio
import re
import sys
from pathlib import Path

import pytest
from playwright.async_api import expect

from tests.conftest import Serve
from tests.system.browser import open_browser

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = ["README.md", "CONTRIBUTING.md", "realtime/PROTOCOL.md", "infra/RUNBOOK.md"]
DOCUMENTS += ["infra/aws/README.md", "infra/supabase/README.md", "infra/SECURITY.md"]
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
    """Copied as it is, it shows a reply."""
    async with serve() as server, open_browser() as browser:
        page = await browser.new_page()
        await page.goto(f"{server.http}/live")
        await page.add_script_tag(content=code("js").replace("localhost:8000", f"127.0.0.1:{server.port}"))
        await expect(page.locator("body")).to_contain_text("Happy to chat about", timeout=10_000)
