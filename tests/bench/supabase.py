"""What it costs to store in Supabase: our journal beside one insert per event, and the chat that goes on meanwhile."""

import asyncio
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

from pydantic import SecretStr

from chat.durability.journal import Journal
from chat.metrics import Metrics
from infra.local.postgres import Postgres
from infra.local.supabase import STANDALONE, Lite, push_migrations
from infra.records import Event, Role, utc_now
from infra.settings import Settings
from infra.store import Store
from infra.store.supabase import SupabaseStore
from tests.bench.guests import token_of
from tests.support.client import ChatClient
from tests.support.supabase import free_port

SESSIONS = 200
TURN: tuple[Role, ...] = ("user", "tool", "assistant")
JOURNAL_TURNS, SINGLE_TURNS = 20, 2
"""An insert per event is slow: fewer turns of it tell as much."""
LATENCY_TURNS = 4


@dataclass
class Cost:
    """Of writing events: how many a second, and what CPU time each took this process, in microseconds."""

    rate: float
    cpu_us: float


@contextmanager
def a_supabase() -> Iterator[Lite]:
    """A migrated Supabase on this machine, for as long as the block."""
    with ExitStack() as ending:
        folder = Path(ending.enter_context(tempfile.TemporaryDirectory()))
        folder.chmod(0o755)  # PostgreSQL does not run as root: its user must get in
        postgres = Postgres(folder, free_port())
        ending.callback(postgres.stop)
        postgres.start()
        postgres.run("postgres", STANDALONE)
        push_migrations(postgres.url())
        lite = Lite(folder, postgres.url(), free_port())
        ending.callback(lite.stop)
        lite.start()
        yield lite


def write_cost(lite: Lite) -> tuple[Cost, Cost]:
    """The journal's cost, and that of one insert per event: the same client, server and load."""
    return asyncio.run(_write_cost(lite, _through_journal)), asyncio.run(_write_cost(lite, _one_by_one))


async def _write_cost(lite: Lite, write: Callable[[Store, list[str]], Awaitable[int]]) -> Cost:
    settings = Settings(supabase_url=lite.url, supabase_key=SecretStr(lite.service_key))
    store = await SupabaseStore.open(settings)
    session_ids = [f"bench-{uuid4().hex}" for _ in range(SESSIONS)]
    for session_id in session_ids:
        await store.open_session(session_id, "bench", at=utc_now(), container_id="bench")
    cpu, began = time.process_time(), time.monotonic()
    events = await write(store, session_ids)
    cost = Cost(events / (time.monotonic() - began), (time.process_time() - cpu) * 1e6 / events)
    stored = [len(await store.events(session_id, limit=1000)) for session_id in session_ids]
    assert sum(stored) == events, f"{sum(stored)} of {events} events were stored"
    await store.close()
    return cost


async def _through_journal(store: Store, session_ids: list[str]) -> int:
    """Each session's next turn begins when its last one is saved."""
    journal = Journal(store, Metrics(), max_events=100_000)
    journal.start()

    async def chat(session_id: str) -> None:
        saved = asyncio.Event()

        def on_saved(through: int) -> None:
            if through == len(TURN):
                saved.set()

        for _ in range(JOURNAL_TURNS):
            saved.clear()
            for number, role in enumerate(TURN, 1):
                journal.record(_event(session_id, role), number, on_saved)
            await saved.wait()

    await asyncio.gather(*(chat(session_id) for session_id in session_ids))
    await journal.close(1)
    return len(session_ids) * JOURNAL_TURNS * len(TURN)


async def _one_by_one(store: Store, session_ids: list[str]) -> int:
    """What a server does that stores each event as it comes."""

    async def chat(session_id: str) -> None:
        for _ in range(SINGLE_TURNS):
            for role in TURN:
                await store.append([_event(session_id, role)])

    await asyncio.gather(*(chat(session_id) for session_id in session_ids))
    return len(session_ids) * SINGLE_TURNS * len(TURN)


def _event(session_id: str, role: Role) -> Event:
    return Event(
        event_id=str(uuid4()),
        session_id=session_id,
        turn_id=str(uuid4()),
        role=role,
        content="A stream is a promise kept one word at a time. " * 3,
        timestamp=utc_now(),
        metadata={"message_id": str(uuid4())},
    )


async def done_to_saved(port: int) -> tuple[float, float]:
    """Milliseconds from a turn's `done` to the `saved` that covers it, p50 and p99, in many sessions at once."""
    waits: list[float] = []

    async def chat(number: int, client: ChatClient) -> None:
        await asyncio.sleep(number / SESSIONS)  # people do not speak in chorus
        for _ in range(LATENCY_TURNS):
            await client.say("hello there")
            done = await client.until("done")
            began = time.monotonic()
            while (await client.until("saved"))["through"] < done["seq"]:
                pass
            waits.append(time.monotonic() - began)
            await asyncio.sleep(1)

    url, names = f"ws://127.0.0.1:{port}", [f"saved-{number}" for number in range(SESSIONS)]
    clients = [await ChatClient.connect(url, name, token_of(name)) for name in names]
    await asyncio.gather(*(client.until("ready") for client in clients))
    await asyncio.gather(*(chat(number, client) for number, client in enumerate(clients)))
    await asyncio.gather(*(client.websocket.close() for client in clients))
    waits.sort()
    return statistics.median(waits) * 1e3, waits[int(len(waits) * 0.99)] * 1e3
