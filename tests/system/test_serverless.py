"""The function under the real Serverless CLI."""

import asyncio
import json
from pathlib import Path
from typing import Any

from infra.records import SessionEnded, utc_now
from infra.store.sqlite import SqliteStore
from tests.conftest import Serve
from tests.support.client import ChatClient
from tests.support.sls import ROOT, run_sls


async def invoke_local(event: Path, data_dir: Path) -> Any:
    """What the function returns for the event in this file, on the database there, without credentials."""
    arguments = ["invoke", "local", "-f", "summary", "--path", str(event)]
    printed = await asyncio.to_thread(run_sls, *arguments, environment={"DATA_DIR": str(data_dir)})
    _, brace, result = f"\n{printed}".rpartition("\n{\n")  # the CLI prints the function's logs first
    return json.loads(brace + result)


async def test_invoke_local_summarises_a_session(serve: Serve, tmp_path: Path) -> None:
    """`sls invoke local` with the recorded event prints an empty `batchItemFailures`, and the row has its summary."""
    async with serve() as server, await ChatClient.connect(server.url, "walkthrough") as client:
        await client.say("fetch the sales data")
        await client.until("done", reason="complete")
    recorded = ROOT / "tests" / "events" / "session-ended.json"
    assert await invoke_local(recorded, tmp_path) == {"batchItemFailures": []}
    store = await SqliteStore.open(tmp_path / "realtime.db")
    session = await store.session("walkthrough")
    await store.close()
    assert session is not None
    assert session.final_summary == (
        "An analytical conversation of 1 message and 1 reply about sales. Tools used: fetch_data."
    )


async def test_invoke_local_names_what_of_a_batch_failed(tmp_path: Path) -> None:
    """Of good, repeated, stale and malformed records only the malformed and the unknown must come again."""
    store = await SqliteStore.open(tmp_path / "realtime.db")
    for session_id, opens in (("good", 1), ("back", 2)):
        for _ in range(opens):
            await store.open_session(session_id, "ann", at=utc_now(), container_id="box")

    def ended(session_id: str) -> str:
        return SessionEnded(session_id=session_id, epoch=1, ended_at=utc_now(), reason="closed").to_json()

    bodies = {"good": ended("good"), "stale": ended("back"), "malformed": "{", "unknown": ended("nobody")}
    bodies["repeated"] = bodies["good"]
    recorded = json.loads((ROOT / "tests" / "events" / "session-ended.json").read_text())["Records"][0]
    event = tmp_path / "event.json"
    records = [recorded | {"messageId": name, "body": body} for name, body in bodies.items()]
    event.write_text(json.dumps({"Records": records}))
    failures = (await invoke_local(event, tmp_path))["batchItemFailures"]
    assert failures == [{"itemIdentifier": "malformed"}, {"itemIdentifier": "unknown"}]
    good, back = [await store.session(session_id) for session_id in ("good", "back")]
    await store.close()
    assert good
    assert back
    assert (good.final_summary, back.final_summary) == ("The session ended before anything was said.", None)
