"""Our server on SQLite beside the floor: paced, flat out, and idle."""

import asyncio
import json
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import uvloop
import websockets

from tests.bench.guests import token_of
from tests.bench.load import Result, Socket, connect, drive
from tests.bench.servers import running
from tests.bench.table import Table, progress

SESSIONS = 1000
PACE = 50.0
CPU, RATE, MEMORY = "CPU per token, us", "tokens/s", "memory per session, KiB"
P50, P99 = "time to first token p50, ms", "time to first token p99, ms"

Target = tuple[str, Callable[[float, float], bool]]


@dataclass
class Row:
    """What one scenario measured of one server."""

    cpu_us: float
    rate: float
    p50_ms: float
    p99_ms: float


@dataclass
class Load:
    """So many sessions that ask so many times for so many words, at so many tokens a second; 0 is as fast as can be.

    Their first messages are spread over so many seconds.
    """

    name: str
    rate: float
    words: int
    turns: int
    sessions: int = SESSIONS
    spread: float = 0.0

    @property
    def tokens(self) -> int:
        """All that are sent."""
        return self.sessions * self.words * self.turns


LOADS = (
    Load(f"paced, {SESSIONS} x {PACE:g} tok/s, over capacity", PACE, 150, 2, spread=3.0),
    Load(f"paced, 300 x {PACE:g} tok/s", PACE, 150, 2, sessions=300, spread=3.0),
    Load("300 messages at once", PACE, 50, 1, sessions=300),
    Load(f"flat out, {SESSIONS} x 20 words", 0.0, 20, 10),
    Load(f"flat out, {SESSIONS} x 100 words", 0.0, 100, 4),
    Load(f"flat out, {SESSIONS} x 200 words", 0.0, 200, 2),
    Load(f"flat out, {SESSIONS} x 500 words", 0.0, 500, 1),
)
OVER, _, AT_ONCE, _, _, FLAT, _ = LOADS
TARGETS: dict[tuple[str, str], Target] = {
    (OVER.name, CPU): ("<= 1.25 x", lambda ours, floor: ours <= 1.25 * floor),
    (OVER.name, P99): ("<= +30 ms", lambda ours, floor: ours <= floor + 30),
    (AT_ONCE.name, P50): ("<= 2 x", lambda ours, floor: ours <= 2 * floor),
    (FLAT.name, RATE): (">= 2 x", lambda ours, floor: ours >= 2 * floor),
    (FLAT.name, P50): ("<= 0.2 x", lambda ours, floor: ours <= 0.2 * floor),
}


def play(kind: str, load: Load, client: type[Socket] = Socket, **more: str) -> tuple[float, Result]:
    """One load, from the moment all sockets are open to the last `done`: the server's CPU seconds, what clients saw.

    `more` is in the server's environment.
    """
    with running(kind, load.rate, **more) as server:

        async def scenario() -> tuple[float, Result]:
            await check_reply(server.port, load.words)
            sockets = await connect(server.port, load.sessions, client)
            if kind == "ours":  # opening a session is not chatting
                await asyncio.gather(*(each.ready for each in sockets))
            await asyncio.sleep(0.5)
            before = server.cpu_seconds()
            result = await drive(sockets, load.words, load.turns, load.spread)
            return server.cpu_seconds() - before, result

        return uvloop.run(scenario())


def as_row(load: Load, cpu: float, result: Result) -> Row:
    """What this load came to."""
    first = sorted(result.first_token)
    assert len(first) == load.sessions * load.turns, "a turn had no first token"
    p50, p99 = statistics.median(first), first[int(len(first) * 0.99)]
    return Row(cpu * 1e6 / load.tokens, load.tokens / result.elapsed, p50 * 1e3, p99 * 1e3)


def measure(kind: str, load: Load, **more: str) -> Row:
    """Play one load, with `more` in the server's environment."""
    return as_row(load, *play(kind, load, Socket, **more))


def idle_memory(kind: str) -> float:
    """KiB a connected session takes that says nothing."""
    with running(kind, 0) as server:

        async def scenario() -> float:
            warm = await connect(server.port, 20)
            before = server.resident_bytes()
            sockets = await connect(server.port, SESSIONS)
            await asyncio.sleep(1)
            grown = server.resident_bytes() - before
            for client in warm + sockets:
                client.finished.cancel()  # nobody waits for it
                client.transport.abort()
            return grown / len(sockets) / 1024

        return uvloop.run(scenario())


async def check_reply(port: int, words: int) -> None:
    """Read one reply with a real client: the fast one below counts no tokens, so what it measures must be whole."""
    url, headers = f"ws://127.0.0.1:{port}/ws/session/check", {"Authorization": f"Bearer {token_of('check')}"}
    async with websockets.connect(url, additional_headers=headers, proxy=None) as client:
        await client.send(f"Write {words} words")
        said = ""
        while (frame := json.loads(await client.recv()))["type"] != "done":
            said += frame.get("content", "") if frame["type"] == "token" else ""
        assert len(said.split()) == words, f"{len(said.split())} of {words} words arrived"


def median_rows(rows: list[Row]) -> Row:
    """The median of each column."""
    return Row(*(statistics.median(column) for column in zip(*(vars(row).values() for row in rows), strict=True)))


def compare(
    table: Table,
    rounds: int,
    load: Load,
    other: str,
    measured: Callable[[str, Load], Row],
    targets: Mapping[tuple[str, str], Target],
) -> None:
    """Our server and the other in turns, on this load: the medians of what is measured, beside each other."""
    rows: dict[str, list[Row]] = {"ours": [], other: []}
    for number in range(rounds):
        for kind in (other, "ours") if number % 2 else ("ours", other):
            progress(f"{load.name}: {kind}, round {number + 1} of {rounds}")
            rows[kind].append(measured(kind, load))
    ours, theirs = median_rows(rows["ours"]), median_rows(rows[other])
    for what, ours_value, their_value in (
        (CPU, ours.cpu_us, theirs.cpu_us),
        (RATE, ours.rate, theirs.rate),
        (P50, ours.p50_ms, theirs.p50_ms),
        (P99, ours.p99_ms, theirs.p99_ms),
    ):
        table.add(load.name, what, ours_value, their_value, *targets.get((load.name, what), ()))


def bench_streaming(table: Table, rounds: int) -> None:
    """Every load, our server and the floor in turns, and what an idle session takes."""
    for load in LOADS:
        compare(table, rounds, load, "floor", measure, TARGETS)
    memory = {kind: statistics.median(idle_memory(kind) for _ in range(rounds)) for kind in ("ours", "floor")}
    table.add("idle", MEMORY, memory["ours"], memory["floor"], "<= 2 x", lambda ours, floor: ours <= 2 * floor)
