"""`make bench`: this server beside the floor, in one run, on one machine, driven by one client."""

import argparse
import asyncio
import contextlib
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import uvloop
import websockets

from tests.bench import cold, resume
from tests.bench.load import connect, drive

ROOT = Path(__file__).resolve().parents[2]
SESSIONS = 1000
PACE = 50.0
CPU, RATE, MEMORY = "CPU per token, us", "tokens/s", "memory per session, KiB"
P50, P99 = "time to first token p50, ms", "time to first token p99, ms"
TICK = os.sysconf("SC_CLK_TCK")


@dataclass
class Row:
    """What one scenario measured of one server."""

    cpu_us: float
    rate: float
    p50_ms: float
    p99_ms: float


class ServerProcess:
    """A server under test, in a process of its own, on a core of its own where there are two."""

    def __init__(self, process: subprocess.Popen[bytes], port: int) -> None:
        self._process = process
        self.port = port

    def cpu_seconds(self) -> float:
        """User and system time so far, all threads."""
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICK

    def resident_bytes(self) -> int:
        """Memory it holds."""
        return int(Path(f"/proc/{self._process.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@contextlib.contextmanager
def running(kind: str, rate: float, **more: str) -> Iterator[ServerProcess]:
    """Run the floor or our server at so many tokens a second, with `more` in its environment."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory() as data_dir:
        environment = (
            os.environ
            | {
                "PYTHONPATH": os.pathsep.join([str(ROOT / "realtime"), str(ROOT)]),
                "PORT": str(port),
                "DATA_DIR": data_dir,
                "DEMO_TOKENS_PER_SECOND": str(rate),
                "MAX_SESSIONS": str(SESSIONS * 2),
                "LOG_LEVEL": "error",
            }
            | more
        )
        arguments = ["tests.bench.floor", str(port), str(rate)] if kind == "floor" else ["chat"]
        process = subprocess.Popen([sys.executable, "-m", *arguments], env=environment, cwd=data_dir)
        try:
            if len(cores := sorted(os.sched_getaffinity(0))) > 1:
                os.sched_setaffinity(process.pid, cores[:1])
            _wait_for(port)
            yield ServerProcess(process, port)
        finally:
            process.terminate()
            process.wait(15)


def _wait_for(port: int) -> None:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        time.sleep(0.05)
    raise TimeoutError("the server did not start")


def measure(
    kind: str, rate: float, words: int, turns: int, spread: float, sessions: int = SESSIONS, **more: str
) -> Row:
    """One scenario, from the moment all sockets are open to the last `done`."""
    with running(kind, rate, **more) as server:

        async def scenario() -> tuple[float, float, list[float]]:
            await check_reply(server.port, words)
            sockets = await connect(server.port, sessions)
            if kind == "ours":  # opening a session is not chatting
                await asyncio.gather(*(client.ready for client in sockets))
            await asyncio.sleep(0.5)
            before = server.cpu_seconds()
            result = await drive(sockets, words, turns, spread)
            return server.cpu_seconds() - before, result.elapsed, result.first_token

        cpu, elapsed, first = uvloop.run(scenario())
    tokens = sessions * words * turns
    assert len(first) == sessions * turns, "a turn had no first token"
    first.sort()
    return Row(
        cpu * 1e6 / tokens, tokens / elapsed, statistics.median(first) * 1e3, first[int(len(first) * 0.99)] * 1e3
    )


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
    async with websockets.connect(f"ws://127.0.0.1:{port}/ws/session/check", proxy=None) as client:
        await client.send(f"Write {words} words")
        said = ""
        while (frame := json.loads(await client.recv()))["type"] != "done":
            said += frame.get("content", "") if frame["type"] == "token" else ""
        assert len(said.split()) == words, f"{len(said.split())} of {words} words arrived"


def median_rows(rows: list[Row]) -> Row:
    """The median of each column."""
    return Row(*(statistics.median(column) for column in zip(*(vars(row).values() for row in rows), strict=True)))


class Table:
    """The rows as they are measured: ours, the other's, their ratio, and whether a target holds."""

    def __init__(self) -> None:
        self._lines = [f"{'scenario':<33} {'measure':<28} {'ours':>9} {'other':>9} {'ratio':>6}  target"]

    def add(
        self,
        scenario: str,
        measure: str,
        ours: float,
        other: float | None = None,
        target: str = "",
        holds: Callable[[float, float], bool] | None = None,
    ) -> None:
        """A row; `other` is the floor, or what a line above says."""
        numbers = f"{ours:>9.1f} {other:>9.1f} {ours / other:>6.3g}" if other is not None else f"{ours:>9.1f}{'':17}"
        verdict = f"{target} {'ok' if holds(ours, other or 0.0) else 'MISSED'}" if holds else target
        self._lines.append(f"{scenario:<33} {measure:<28} {numbers}  {verdict}".rstrip())

    def __str__(self) -> str:
        return "\n".join(self._lines)


def progress(text: str) -> None:
    """A line for whoever waits."""
    print(f"… {text}", file=sys.stderr)


def bench_streaming(table: Table, rounds: int) -> None:
    """Our server on SQLite beside the floor: paced, flat out, and idle."""
    paced, flat = f"paced, {SESSIONS} sessions x {PACE:g} tok/s", f"flat out, {SESSIONS} sessions"
    scenarios = {paced: (PACE, 150, 2, 3.0), flat: (0.0, 200, 2, 0.0)}
    targets: dict[tuple[str, str], tuple[str, Callable[[float, float], bool]]] = {
        (paced, CPU): ("<= 1.25 x", lambda ours, floor: ours <= 1.25 * floor),
        (paced, P99): ("<= +30 ms", lambda ours, floor: ours <= floor + 30),
        (flat, RATE): (">= 2 x", lambda ours, floor: ours >= 2 * floor),
        (flat, P50): ("<= 0.2 x", lambda ours, floor: ours <= 0.2 * floor),
    }
    for name, (rate, words, turns, spread) in scenarios.items():
        rows: dict[str, list[Row]] = {"ours": [], "floor": []}
        for number in range(rounds):
            for kind in ("floor", "ours") if number % 2 else ("ours", "floor"):
                progress(f"{name}: {kind}, round {number + 1} of {rounds}")
                rows[kind].append(measure(kind, rate, words, turns, spread))
        ours, floor = median_rows(rows["ours"]), median_rows(rows["floor"])
        for what, ours_value, floor_value in (
            (CPU, ours.cpu_us, floor.cpu_us),
            (RATE, ours.rate, floor.rate),
            (P50, ours.p50_ms, floor.p50_ms),
            (P99, ours.p99_ms, floor.p99_ms),
        ):
            table.add(name, what, ours_value, floor_value, *targets.get((name, what), ()))
    memory = {kind: statistics.median(idle_memory(kind) for _ in range(rounds)) for kind in ("ours", "floor")}
    table.add("idle", MEMORY, memory["ours"], memory["floor"], "<= 2 x", lambda ours, floor: ours <= 2 * floor)


def bench_supabase(table: Table, rounds: int) -> None:
    """Storing in Supabase: beside one insert per event, and beside SQLite."""
    from tests.bench import supabase

    with supabase.a_supabase() as lite:
        named = {"SUPABASE_URL": lite.url, "SUPABASE_KEY": lite.service_key}
        progress("Supabase: the journal, and one insert per event")
        costs = [supabase.write_cost(lite) for _ in range(rounds)]
        journal, single = (
            supabase.Cost(statistics.median(c.rate for c in side), statistics.median(c.cpu_us for c in side))
            for side in zip(*costs, strict=True)
        )
        name = "Supabase, beside single inserts"
        table.add(name, "events/s", journal.rate, single.rate, ">= 20 x", lambda ours, one: ours >= 20 * one)
        table.add(
            name, "CPU per event, us", journal.cpu_us, single.cpu_us, "<= 1/50", lambda ours, one: ours <= one / 50
        )
        rows: dict[str, list[float]] = {"Supabase": [], "SQLite": []}
        for number in range(2 * rounds):  # the two are close, and each varies by a tenth
            for kind in ("SQLite", "Supabase") if number % 2 else ("Supabase", "SQLite"):
                progress(f"chat on {kind}, round {number + 1} of {2 * rounds}")
                more = named if kind == "Supabase" else {}
                rows[kind].append(measure("ours", PACE, 150, 2, 3.0, supabase.SESSIONS, **more).cpu_us)
        on_supabase, on_sqlite = (statistics.median(rows[kind]) for kind in ("Supabase", "SQLite"))
        table.add(
            f"Supabase, beside SQLite, {supabase.SESSIONS} x {PACE:g}",
            CPU,
            on_supabase,
            on_sqlite,
            "<= 1.1 x",
            lambda ours, sqlite: ours <= 1.1 * sqlite,
        )
        progress("Supabase: from done to saved")
        with running("ours", 0.0, **named) as server:
            p50, p99 = asyncio.run(supabase.done_to_saved(server.port))
        table.add(f"Supabase, {supabase.SESSIONS} sessions", "done to saved p50, ms", p50)
        table.add(f"Supabase, {supabase.SESSIONS} sessions", "done to saved p99, ms", p99)


def bench_resume(table: Table, rounds: int) -> None:
    """Coming back: one long turn again, and everybody at once."""
    with running("ours", 0.0) as server:
        progress("resume: a long turn")
        cost = uvloop.run(resume.long_turn(server.port, server.cpu_seconds))
    table.add(f"resume, {resume.WORDS} tokens", "CPU, ms", cost, None, "<= 5 ms", lambda ours, _: ours <= 5)
    waits = []
    for number in range(rounds):
        progress(f"resume: {SESSIONS} clients at once, round {number + 1} of {rounds}")
        with running("ours", 0.0) as server:
            waits.append(uvloop.run(resume.everybody_at_once(server.port, SESSIONS)) * 1e3)
    name = f"resume, {SESSIONS} clients at once"
    table.add(name, "until resumed p99, ms", statistics.median(waits), None, "<= 2 s", lambda ours, _: ours <= 2000)


def bench_cold(table: Table, rounds: int) -> None:
    """A function's cold start: ours beside the imports of a naive one."""
    progress("cold start: packing the function, half a minute")
    handler, compiling, with_store, naive = cold.medians(rounds + 2)
    for name, ours, most in (("handler", handler, "<= 0.6 x"), ("handler and store", with_store, "")):
        holds = (lambda ours, other: ours <= 0.6 * other) if most else None
        table.add(f"cold start, {name}", "import, CPU ms", ours.cpu_ms, naive.cpu_ms, most, holds)
        table.add(f"cold start, {name}", "peak memory, MiB", ours.peak_mib, naive.peak_mib, most, holds)
        table.add(f"cold start, {name}", "of it by importing, MiB", ours.added_mib, naive.added_mib)
    table.add("cold start, without bytecode", "import, CPU ms", compiling.cpu_ms)


PARTS = {"streaming": bench_streaming, "resume": bench_resume, "supabase": bench_supabase, "cold": bench_cold}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="make bench")
    parser.add_argument("--rounds", type=int, default=3, help="how often each measurement is made; the median counts")
    parser.add_argument("--only", choices=PARTS, help="one part alone")
    arguments = parser.parse_args()
    if len(cores := sorted(os.sched_getaffinity(0))) > 1:
        os.sched_setaffinity(0, cores[1:])
    table = Table()
    for name, part in PARTS.items():
        if arguments.only in (None, name):
            part(table, arguments.rounds)
    print(table)


if __name__ == "__main__":
    main()
