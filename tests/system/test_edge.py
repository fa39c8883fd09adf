"""The Edge function's contract, as its callers see it: in a real Deno, on a real database."""

import asyncio
import json
import re
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest

from infra.local.edge import Edge
from infra.records import Session, SessionEnded
from infra.store.supabase import SupabaseStore
from tests.conftest import make_settings
from tests.support.client import PATIENCE
from tests.support.edge import SECRET, call, edge  # noqa: F401 - a fixture
from tests.support.parity import Case, lived
from tests.support.supabase import Supabase

# ruff: noqa: F811 - the fixture again, as an argument
NOON = datetime(2026, 11, 24, 12, tzinfo=UTC)


@pytest.fixture
async def store(supabase: Supabase, tmp_path: Path) -> AsyncIterator[SupabaseStore]:
    """The store the container writes to."""
    store = await SupabaseStore.open(make_settings(tmp_path, **supabase.names()))
    yield store
    await store.close()


def ended(session_id: str, epoch: int = 1, at: datetime = NOON) -> str:
    """A message as the container sends it."""
    return SessionEnded(session_id=session_id, epoch=epoch, ended_at=at, reason="closed").to_json()


async def called(edge: Edge, body: str | bytes, **how: Any) -> tuple[int, dict[str, Any]]:
    """Call the function from the loop."""
    return await asyncio.to_thread(call, edge, body, **how)


async def found(store: SupabaseStore, session_id: str) -> Session:
    """The session's row."""
    session = await store.session(session_id)
    assert session
    return session


@pytest.mark.parametrize("secret", [None, "wrong", SECRET[:-1], f"{SECRET}x", SECRET.upper()])
async def test_without_the_secret_nothing_is_done(edge: Edge, store: SupabaseStore, secret: str | None) -> None:
    """Part of the secret opens nothing; the body is not even read."""
    session_id = await lived(store, Case.read("casual"))
    assert (await called(edge, ended(session_id), secret=secret))[0] == 401
    assert (await called(edge, "nonsense", secret=secret))[0] == 401
    assert (await found(store, session_id)).end_time is None


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "OPTIONS"])
def test_only_a_post_is_a_message(edge: Edge, method: str) -> None:
    """Anything else is refused, and told what would not be."""
    headers = {"Authorization": f"Bearer {SECRET}"}
    response = httpx.request(method, edge.url, headers=headers, timeout=PATIENCE)
    assert (response.status_code, response.headers["allow"]) == (405, "POST")


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"session_id": "a b"}, "session_id"),
        ({"epoch": "1"}, "epoch"),
        ({"ended_at": "2026-11-24T12:00:00"}, "ended_at"),
        ({"reason": "bored"}, "reason"),
        ({"version": 2}, "version"),
    ],
)
def test_a_malformed_message_is_refused_by_the_fields_name(edge: Edge, changed: dict[str, Any], named: str) -> None:
    """400, and the error begins with the field that is wrong."""
    status, answer = call(edge, json.dumps(json.loads(ended("s1")) | changed))
    assert (status, answer["error"].split()[0]) == (400, named)


async def test_a_database_webhook_brings_the_same_message(edge: Edge, store: SupabaseStore) -> None:
    """A row of a table that has the message's fields, as `pg_net` posts it, with the time as PostgreSQL writes it."""
    session_id = await lived(store, Case.read("casual"))
    record = {"id": 7, "session_id": session_id, "epoch": 1, "reason": "closed"}
    record["ended_at"] = "2026-11-24T12:00:00.123456+00:00"
    hook = {"type": "INSERT", "table": "endings", "schema": "public", "record": record, "old_record": None}
    assert await called(edge, json.dumps(hook)) == (200, {"outcome": "written"})
    assert await called(edge, json.dumps(hook | {"type": "UPDATE", "old_record": record})) == (
        200,
        {"outcome": "repeated"},
    )
    assert (await found(store, session_id)).end_time == NOON + timedelta(microseconds=123456)
    assert (await called(edge, json.dumps(hook | {"type": "DELETE", "record": None, "old_record": record})))[0] == 400


async def test_an_unknown_session_is_a_conflict_until_it_is_there(edge: Edge, store: SupabaseStore) -> None:
    """409 for an id nobody has seen, and for an epoch to come; with the row there, the same message is taken."""
    assert (await called(edge, ended(f"nobody-{uuid4().hex}")))[0] == 409
    session_id = await lived(store, Case.read("casual"))
    status, answer = await called(edge, ended(session_id, epoch=2))
    assert (status, answer) == (409, {"error": f"no session {session_id} at epoch 2"})
    await store.open_session(session_id, "ann", at=NOON, container_id="c")
    assert await called(edge, ended(session_id, epoch=2)) == (200, {"outcome": "written"})


async def test_of_many_at_once_one_writes(edge: Edge, store: SupabaseStore) -> None:
    """The same message, eight times at the same time: every one is taken, and the row is written once."""
    session_id = await lived(store, Case.read("casual"))
    messages = [ended(session_id, at=NOON + timedelta(seconds=number)) for number in range(8)]
    with ThreadPoolExecutor(8) as pool:
        answers = await asyncio.gather(
            *(asyncio.get_running_loop().run_in_executor(pool, call, edge, body) for body in messages)
        )
    assert [status for status, _ in answers] == [200] * 8
    outcomes = [answer["outcome"] for _, answer in answers]
    assert sorted(outcomes) == ["repeated"] * 7 + ["written"]
    assert (await found(store, session_id)).end_time == NOON + timedelta(seconds=outcomes.index("written"))


async def test_the_log_tells_what_happened_and_nothing_that_was_said(edge: Edge, store: SupabaseStore) -> None:
    """One line of JSON for each message, with its session; neither words of the conversation nor the secrets."""
    session_id = await lived(store, Case.read("casual"))
    await called(edge, ended(session_id))
    await called(edge, '{"secret words":')
    log = edge.log.read_text()
    lines = [json.loads(line) for line in log.splitlines() if line.startswith("{")]
    assert {"level": "info", "event": "written", "session_id": session_id, "epoch": 1, "reason": "closed"} in lines
    assert any(line["level"] == "error" for line in lines)
    assert not re.search(f"Momo|secret words|sb_secret|{SECRET}", log)
