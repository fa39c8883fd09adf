"""The container's numbers: each moves when its thing happens, and nobody outside can add a series."""
# ruff: noqa: F811 - fixtures of other tests

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from structlog.testing import capture_logs

from chat.conversation.inputs import CancelAsked, UserSaid
from chat.metrics import Metrics
from chat.sessions.door import Departure
from chat.sessions.session import Session
from chat.web.connection import CLOSED_WITH
from infra.llm import Finished, ModelError, ToolCall
from infra.records import Event
from tests.sessions.test_registry import House, house  # noqa: F401 - a fixture
from tests.sessions.test_session import PATIENCE, Client, turns_of_the_loop
from tests.support.scrape import Scrape
from tests.support.scripted import Pause, Step

NOON = datetime(2025, 1, 2, 12, tzinfo=UTC)


def read(metrics: Metrics) -> Scrape:
    return Scrape(metrics.exposition())


def an_event(event_id: str, at: datetime) -> Event:
    return Event(event_id=event_id, session_id="s", turn_id="t", role="user", content="hi", timestamp=at, metadata={})


async def visit(house: House, session_id: str = "s", code: int = 1000) -> Scrape:
    """A socket comes and is closed with this code; the numbers while it was open, once it was served."""
    frames: asyncio.Queue[dict[str, Any]] = asyncio.Queue()

    async def send(message: Any) -> None:
        pass

    scope = {
        "path_params": {"session_id": session_id},
        "query_string": b"user_id=u",
        "headers": [],
        "extensions": {CLOSED_WITH: lambda: code},
    }
    frames.put_nowait({"type": "websocket.connect"})
    serving = asyncio.create_task(house.socket()(scope, frames.get, send))
    await turns_of_the_loop()
    meanwhile = read(house.metrics)
    frames.put_nowait({"type": "websocket.disconnect", "code": code})
    await asyncio.wait_for(serving, PATIENCE)
    return meanwhile


async def ask(house: House, *script: Step, session_id: str = "s") -> tuple[Client, Session]:
    """A client comes and says something, which the model answers like this."""
    session = await house.attach(client := house.client(), session_id)
    house.model.enqueue(*script)
    session.dispatch(UserSaid("hi"))
    return client, session


async def test_live_sessions_and_running_turns_rise_and_fall(house: House) -> None:
    """A session is live from its first client to its end, and its turn runs until it is done."""
    first, session = await ask(house, "Hel", speaking := Pause(), "lo")
    other = await house.attach(second := house.client(), "t")
    await first.hears("token")
    numbers = read(house.metrics)
    assert (numbers("realtime_sessions_live"), numbers("realtime_turns_running")) == (2, 1)
    speaking.set()
    await first.hears("done")
    house.sessions.detach(session, first.outbox, Departure.GOODBYE)
    numbers = read(house.metrics)
    assert (numbers("realtime_sessions_live"), numbers("realtime_turns_running")) == (1, 0)
    house.sessions.detach(other, second.outbox, Departure.GOODBYE)
    assert read(house.metrics)("realtime_sessions_live") == 0


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        (["Hi."], "complete"),
        (["Hi.", Finished("length", 1, 1)], "length"),
        ([ModelError("model_refused", "no", retryable=False)], "error"),
        (["Hi.", Pause()], "cancelled"),
    ],
)
async def test_a_turn_is_counted_by_how_it_ended(house: House, script: Sequence[Step], reason: str) -> None:
    """Once, under the reason that its clients are told, and under no other."""
    client, session = await ask(house, *script)
    if reason == "cancelled":
        await client.hears("token")
        session.dispatch(CancelAsked())
    assert (await client.hears("done"))["reason"] == reason
    assert read(house.metrics).by("realtime_turns_total", "reason") == {reason: 1}


async def test_a_turn_that_was_stopped_while_it_waited_is_counted(house: House) -> None:
    """It ends like every other that was accepted, though no model was asked."""
    client, session = await ask(house, "Hi.", Pause())
    session.dispatch(UserSaid("and then?"))
    waiting = (await client.hears("accepted", 2))["turn_id"]
    session.dispatch(CancelAsked(waiting))
    assert read(house.metrics).by("realtime_turns_total", "reason") == {"cancelled": 1}


async def test_the_journals_lag_is_the_age_of_what_waits_longest(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """In seconds since the oldest event was recorded, also while it is on its way, and 0 when all are stored."""
    monkeypatch.setattr("chat.durability.journal.utc_now", lambda: NOON)
    await house.sqlite.open_session("s", "u", at=NOON, container_id="box")
    assert read(house.metrics)("realtime_journal_lag_seconds") == 0
    house.store.weather.append(gate := Pause())
    house.journal.record_mode("s", "casual")  # has no age, and is no event
    for number, minutes in enumerate((60, 30)):
        at = NOON - timedelta(minutes=minutes)
        house.journal.record(an_event(f"e{number}", at), 1, lambda through: None)
        await asyncio.wait_for(gate.reached.wait(), PATIENCE)
    assert read(house.metrics)("realtime_journal_lag_seconds") == 3600
    gate.set()
    await asyncio.wait_for(house.journal.settled(), PATIENCE)
    assert read(house.metrics)("realtime_journal_lag_seconds") == 0


async def test_ends_that_wait_for_the_queue_are_counted(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the moment they could be announced until the queue has them."""
    queue = Pause()

    async def hold_up(*_: Any, **__: Any) -> list[Any]:
        await queue.wait()
        return []

    monkeypatch.setattr(house.sqlite, "events", hold_up)  # which the house's queue asks
    client, session = await ask(house, "Hi.")
    await client.hears("done")
    house.sessions.detach(session, client.outbox, Departure.GOODBYE)
    await asyncio.wait_for(queue.reached.wait(), PATIENCE)
    assert read(house.metrics)("realtime_handoff_depth") == 1
    queue.set()
    await asyncio.wait_for(house.endings.settled(), PATIENCE)
    assert read(house.metrics)("realtime_handoff_depth") == 0


@pytest.mark.parametrize(("code", "label"), [(1000, "1000"), (1006, "1006"), (4408, "4408"), (3999, "other")])
async def test_a_socket_is_open_and_then_closed_with_a_code(house: House, code: int, label: str) -> None:
    """It is counted while it is open, and after that by its code; those that a client invents have one name for all."""
    meanwhile = await visit(house, code=code)
    assert meanwhile("realtime_sockets_open") == 1
    assert meanwhile.by("realtime_sockets_closed_total", "code") == {}
    numbers = read(house.metrics)
    assert numbers("realtime_sockets_open") == 0
    assert numbers.by("realtime_sockets_closed_total", "code") == {label: 1}


@pytest.mark.parametrize(("session_id", "error"), [("a b", "bad_session_id"), ("s", "internal")])
async def test_a_refused_opening_is_counted(
    house: House,
    monkeypatch: pytest.MonkeyPatch,
    session_id: str,
    error: str,
) -> None:
    """By the error that its client is told, be it the client's fault or ours."""
    if error == "internal":
        monkeypatch.setattr(house.sessions, "attach", None)
    with capture_logs():
        await visit(house, session_id)
    assert read(house.metrics).by("realtime_openings_refused_total", "code") == {error: 1}


async def test_nobody_adds_a_series(house: House) -> None:
    """Neither a session, nor a tool that a model makes up, nor a close code of a client's own."""
    before = read(house.metrics).series()
    for session_id in ("one", "two"):
        house.model.enqueue(ToolCall("c", session_id, "{}"))
        client, _ = await ask(house, "I see.", session_id=session_id)
        assert (await client.hears("done"))["reason"] == "complete"
    await visit(house, "three", 3001)
    await visit(house, "a b", 3002)
    assert read(house.metrics).series() == before
