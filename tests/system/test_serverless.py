"""The function under the real Serverless CLI."""

import asyncio
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from infra.store.sqlite import SqliteStore
from tests.client import ChatClient
from tests.conftest import Serve

ROOT = Path(__file__).resolve().parents[2]
SLS = ROOT / "node_modules" / ".bin" / "sls"


@pytest.fixture
def sls() -> str:
    """The Serverless CLI that `package.json` pins."""
    missing = None if shutil.which("node") else "Node.js is not installed"
    if missing is None and not SLS.exists():
        missing = "the Serverless CLI is not installed: run npm ci"
    if missing and os.environ.get("CI") == "true":
        pytest.fail(missing)
    if missing:
        pytest.skip(missing)
    return str(SLS)


async def test_invoke_local_summarises_a_session(serve: Serve, tmp_path: Path, sls: str) -> None:
    """`sls invoke local` with the recorded event prints an empty `batchItemFailures`, and the row has its summary."""
    async with serve() as server, await ChatClient.connect(server.url, "walkthrough") as client:
        await client.say("fetch the sales data")
        await client.until("done", reason="complete")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    finished = await asyncio.to_thread(
        subprocess.run,
        [sls, "invoke", "local", "-f", "summary", "--path", "tests/events/session-ended.json"],
        cwd=ROOT,
        env=environment | {"DATA_DIR": str(tmp_path), "VIRTUAL_ENV": sys.prefix, "SLS_TELEMETRY_DISABLED": "1"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    _, brace, result = finished.stdout.partition("\n{")  # the CLI prints the function's logs first
    assert json.loads(brace + result) == {"batchItemFailures": []}
    store = await SqliteStore.open(tmp_path / "realtime.db")
    session = await store.session("walkthrough")
    await store.close()
    assert session is not None
    assert session.final_summary == (
        "An analytical conversation of 1 message and 1 reply about sales. Tools used: fetch_data."
    )
