"""Health, and reading sessions back."""

import asyncio
import json
import re
import sqlite3
import urllib.error
import urllib.request
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest

from infra.settings import Settings
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


@pytest.mark.parametrize(
    "path", ["/health", "/live", "/metrics", "/sessions/s1", "/sessions/s1/events", "/openapi.json", "/"]
)
async def test_head_is_answered_as_get_is(serve: Serve, path: str) -> None:
    """The same status and headers, and no body: what asks whether we are there must not hear 404."""
    async with (
        serve() as server,
        httpx.AsyncClient(base_url=server.http) as client,
        await ChatClient.connect(server.url) as visitor,
    ):
        await visitor.until("ready")
        wanted, head = await client.get(path), await client.head(path)
    assert (head.status_code, head.content) == (wanted.status_code, b"") == (200, b"")
    assert head.headers["content-type"] == wanted.headers["content-type"]


async def test_the_answers_have_types_and_the_docs_no_scripts_from_elsewhere(serve: Serve) -> None:
    """`/openapi.json` describes what is sent, field by field; pages that load from a CDN are not there."""
    async with serve() as server:
        _, described = await get(f"{server.http}/openapi.json")
        assert [(await get(f"{server.http}{path}"))[0] for path in ("/docs", "/redoc")] == [404, 404]
        async with await ChatClient.connect(server.url) as client:
            await client.say("hello")
            done = await client.until("done")
            await client.until("saved", through=done["seq"])
        for path, schema, sent in (
            ("/sessions/{session_id}", "Session", (await get(f"{server.http}/sessions/s1"))[1]),
            ("/sessions/{session_id}/events", "Event", (await get(f"{server.http}/sessions/s1/events"))[1][0]),
            ("/health", "Health", HEALTHY | {"failing": []}),
        ):
            answer = described["paths"][path]["get"]["responses"]["200"]["content"]["application/json"]["schema"]
            assert f"#/components/schemas/{schema}" in json.dumps(answer)
            assert set(described["components"]["schemas"][schema]["properties"]) == set(sent)


async def test_an_idle_connection_outlives_the_balancers(serve: Serve) -> None:
    """Idle HTTP connections outlive the balancer's, so that it is the balancer that closes them."""
    balancer = (Path(__file__).parents[2] / "infra/aws/balancer.yml").read_text()
    (idle,) = re.findall(r"idle_timeout.timeout_seconds, Value: '(\d+)'", balancer)
    settings = Settings()
    assert settings.keep_alive_seconds > int(idle)
    async with serve(keep_alive_seconds=1) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(b"GET /live HTTP/1.1\r\nHost: localhost\r\n\r\n")
        began = asyncio.get_running_loop().time()
        await asyncio.wait_for(reader.read(-1), 5)
        assert asyncio.get_running_loop().time() - began > 0.5
        writer.close()


async def test_health_names_a_store_that_fails(serve: Serve, tmp_path: Path) -> None:
    """With its tables gone `/health` is 503 and names the part; `/live` is still 200."""
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
