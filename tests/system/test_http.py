"""Health, and reading sessions back."""

import json
import sqlite3
import urllib.error
import urllib.request
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Serve
from tests.support.client import ChatClient

HEALTHY = {
    "status": "healthy",
    "service": "Realtime AI Backend",
    "version": "1.0.0",
    "features": {
        "websocket_streaming": True,
        "llm_interaction": True,
        "tool_calling": True,
        "database_persistence": True,
        "post_session_processing": True,
    },
}


async def get(url: str) -> tuple[int, Any]:
    """The status and the JSON body, fetched on a thread."""
    import asyncio

    def fetch() -> tuple[int, Any]:
        try:
            with urllib.request.urlopen(url) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.load(error)

    return await asyncio.to_thread(fetch)


async def test_health_is_exactly_this(serve: Serve) -> None:
    """A healthy container answers 200 and the agreed body, to the letter and in this order."""
    async with serve() as server:
        status, body = await get(f"{server.http}/health")
    assert (status, json.dumps(body)) == (200, json.dumps(HEALTHY))


async def test_health_names_a_store_that_fails(serve: Serve, tmp_path: Path) -> None:
    """With its tables gone the container answers 503, unhealthy, and says which part it is; but it is live."""
    async with serve() as server:
        with closing(sqlite3.connect(tmp_path / "realtime.db")) as saboteur:
            saboteur.execute("DROP TABLE events")
            saboteur.execute("DROP TABLE sessions")
        status, body = await get(f"{server.http}/health")
        assert await get(f"{server.http}/live") == (200, {"status": "live"})
    assert (status, body) == (503, HEALTHY | {"status": "unhealthy", "failing": ["store"]})


async def test_a_session_and_its_events_can_be_read(serve: Serve) -> None:
    """The row as stored, and the events page by page."""
    async with serve() as server:
        async with await ChatClient.connect(server.url, user_id="ann") as client:
            await client.say("hello", message_id="m1")
            done = await client.until("done")
            await client.until("saved", through=done["seq"])
            status, row = await get(f"{server.http}/sessions/s1")
            assert status == 200
            assert (row["live"], row["summarised"]) == (True, False)
            assert {name: row[name] for name in ("user_id", "epoch", "mode", "end_time", "final_summary")} == {
                "user_id": "ann",
                "epoch": 1,
                "mode": "casual",
                "end_time": None,
                "final_summary": None,
            }
        _, first = await get(f"{server.http}/sessions/s1/events?limit=1")
        _, second = await get(f"{server.http}/sessions/s1/events?after={first[0]['id']}")
        _, before = await get(f"{server.http}/sessions/s1/events?before={second[0]['event_id']}")
    assert [(event["role"], event["metadata"].get("message_id")) for event in first] == [("user", "m1")]
    assert [(event["role"], event["content"]) for event in second] == [("assistant", client.text())]
    assert before == first


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/sessions/unknown", 404),
        ("/sessions/unknown/events", 404),
        ("/sessions/a%20b", 422),
        ("/sessions/s1/events?limit=0", 422),
        ("/sessions/s1/events?limit=1001", 422),
        ("/sessions/s1/events?after=x", 422),
        ("/sessions/s1/events?after=9223372036854775808", 422),
        ("/sessions/s1/events?before=1", 422),
    ],
)
async def test_a_bad_request_gets_a_clear_status(serve: Serve, path: str, status: int) -> None:
    """Unknown sessions are 404, bad parameters 422, both with a JSON body."""
    async with serve() as server:
        assert (await get(f"{server.http}{path}"))[0] == status
