"""Recorded sessions, and how to have them: what both twins of the summary function are held to.

A case in `tests/events/parity` holds a session's events, the messages that end it, and what becomes of each message.
What the row should be it does not say: that is what the other twin wrote.
"""

import asyncio
import json
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

import httpx
import pytest

from functions.summary import handler as lambda_module
from infra.llm import Model, open_one
from infra.local.edge import Edge
from infra.records import Event
from infra.settings import Settings
from infra.store import Store, open_store
from infra.store.supabase import SupabaseStore
from tests.conftest import make_settings
from tests.support.edge import call
from tests.support.supabase import Supabase

T = TypeVar("T")
EVENTS = Path(__file__).parents[1] / "events"
CASES = EVENTS / "parity"
RECORD = json.loads((EVENTS / "session-ended.json").read_text())["Records"][0]
TAKEN = ("written", "repeated", "stale")


@dataclass(frozen=True)
class Case:
    """One recorded session."""

    name: str
    start: datetime
    opens: int
    mode: Any
    recorded: list[dict[str, Any]]
    messages: list[dict[str, Any]]
    outcomes: list[str]

    @classmethod
    def read(cls, name: str) -> "Case":
        """The case of this name."""
        case = json.loads((CASES / f"{name}.json").read_text())
        start = datetime.fromisoformat(case["start"])
        return cls(name, start, case["opens"], case["mode"], case["events"], case["messages"], case["outcomes"])

    def events(self, session_id: str) -> list[Event]:
        """Its events, as those of this session; `copies` of one, or one that says a thing so many `times`."""
        return [
            Event(
                event_id=str(uuid4()),
                session_id=session_id,
                turn_id=event["turn_id"],
                role=event["role"],
                content=event["content"] * event.get("times", 1),
                timestamp=datetime.fromisoformat(event["timestamp"]),
                metadata=event["metadata"],
            )
            for event in self.recorded
            for _ in range(event.get("copies", 1))
        ]

    def bodies(self, session_id: str) -> list[str]:
        """Its messages, as those of this session."""
        return [json.dumps({"session_id": session_id} | message) for message in self.messages]


def names() -> Sequence[str]:
    """The names of all cases."""
    return sorted(path.stem for path in CASES.glob("*.json"))


async def lived(store: Store, case: Case) -> str:
    """Store the case's session under an id of its own, as the container does; the id."""
    session_id = f"{case.name}-{uuid4().hex}"
    for _ in range(case.opens):
        await store.open_session(session_id, "ann", at=case.start, container_id="c")
    if case.mode:
        await store.set_modes({session_id: case.mode})
    events = case.events(session_id)
    for first in range(0, len(events), 1000):
        await store.append(events[first : first + 1000])
    return session_id


class Lambda:
    """The handler as AWS calls it, on the Supabase under test, and a store beside it on the same loop."""

    def __init__(self, supabase: Supabase, folder: Path, **given: str) -> None:
        self._patch = patch = pytest.MonkeyPatch()
        for name, value in ({"SUPABASE_URL": supabase.url, "SUPABASE_KEY": supabase.service_key} | given).items():
            patch.setenv(name, value)
        patch.chdir(folder)
        self._loop = asyncio.new_event_loop()
        asyncio.set_event_loop(self._loop)
        self._opened: list[Store | Model] = []
        patch.setattr(lambda_module, "open_store", self._open_store)
        patch.setattr(lambda_module, "open_one", self._open_one)
        lambda_module._adapter.cache_clear()
        self.store = self.run(SupabaseStore.open(make_settings(folder, **supabase.names())))
        self._opened.append(self.store)

    async def _open_store(self, settings: Settings) -> Store:
        store = await open_store(settings)
        self._opened.append(store)
        return store

    def _open_one(self, settings: Settings) -> Model:
        model = open_one(settings)
        self._opened.append(model)
        return model

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Have it done on the handler's loop."""
        return self._loop.run_until_complete(coroutine)

    def takes(self, body: str) -> bool:
        """Whether the message is done with."""
        answer = lambda_module.handler({"Records": [RECORD | {"body": body}]}, None)
        return answer == {"batchItemFailures": []}

    def close(self) -> None:
        """Let go of all it opened; AWS freezes it instead."""
        for opened in self._opened:
            self.run(opened.close())
        lambda_module._adapter.cache_clear()
        asyncio.set_event_loop(None)
        self._loop.close()
        self._patch.undo()


def row(supabase: Supabase, session_id: str) -> dict[str, Any]:
    """The session as it stands in the database, but for its id."""
    headers = {"apikey": supabase.service_key, "Authorization": f"Bearer {supabase.service_key}"}
    query = {"session_id": f"eq.{session_id}", "select": "*"}
    answer = httpx.get(f"{supabase.url}/rest/v1/sessions", params=query, headers=headers)
    (found,) = answer.json()
    return {name: value for name, value in found.items() if name != "session_id"}


def both(supabase: Supabase, aws: Lambda, edge: Edge, case: Case) -> dict[str, Any]:
    """Have the case lived twice and ended by each; the row, which is the same."""
    by_lambda, by_edge = (aws.run(lived(aws.store, case)) for _ in range(2))
    taken = [aws.takes(body) for body in case.bodies(by_lambda)]
    answers = [call(edge, body) for body in case.bodies(by_edge)]
    outcomes = [answer.get("outcome", "unknown" if status == 409 else "failed") for status, answer in answers]
    assert outcomes == case.outcomes
    assert taken == [outcome in TAKEN for outcome in outcomes]
    mine = row(supabase, by_edge)
    assert mine == row(supabase, by_lambda)
    assert (mine["final_summary"] is not None) == ("written" in outcomes)
    return mine
