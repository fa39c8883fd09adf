"""`make bench`: this server beside the floor, in one run, on one machine, driven by one client."""

import argparse
import asyncio
import os
import statistics

import uvloop

from tests.bench import cold, providers, resume
from tests.bench.servers import running
from tests.bench.streaming import CPU, PACE, SESSIONS, Load, bench_streaming, measure
from tests.bench.table import Table, progress


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
        load = Load("chat", PACE, 150, 2, supabase.SESSIONS, 3.0)
        rows: dict[str, list[float]] = {"Supabase": [], "SQLite": []}
        for number in range(2 * rounds):  # the two are close, and each varies by a tenth
            for kind in ("SQLite", "Supabase") if number % 2 else ("Supabase", "SQLite"):
                progress(f"chat on {kind}, round {number + 1} of {2 * rounds}")
                more = named if kind == "Supabase" else {}
                rows[kind].append(measure("ours", load, **more).cpu_us)
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


PARTS = {
    "streaming": bench_streaming,
    "providers": providers.bench_providers,
    "resume": bench_resume,
    "supabase": bench_supabase,
    "cold": bench_cold,
}


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
