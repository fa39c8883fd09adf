"""What a function costs before its first event: importing its handler, beside what a naive one imports."""

import os
import statistics
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HANDLER = "import functions.summary.handler"
WITH_STORE = "import functions.summary.handler, infra.store.supabase"
NAIVE = "import fastapi, mangum, supabase, boto3"
MEASURE = """
import resource, time
began = time.process_time()
{statement}
took = time.process_time() - began
print(took * 1e3, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""
"""In CPU time: a machine that is shared does not change it. Memory is in KiB on Linux (man getrusage)."""


@dataclass(frozen=True)
class Import:
    """What it took."""

    cpu_ms: float
    peak_mib: float


def measure(statement: str) -> Import:
    """Import this in a process of its own, whose modules are compiled already."""
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", MEASURE.format(statement=statement)]
    printed = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    return Import(*map(float, printed.split()))


def medians(rounds: int) -> tuple[Import, Import, Import]:
    """The handler's, the same with the store that its first call opens, and the naive function's."""
    statements = (HANDLER, WITH_STORE, NAIVE)
    seen: dict[str, list[Import]] = {statement: [] for statement in statements}
    for statement in statements:
        measure(statement)  # compiles
    for _ in range(rounds):
        for statement in statements:
            seen[statement].append(measure(statement))
    handler, with_store, naive = (
        Import(statistics.median(each.cpu_ms for each in times), statistics.median(each.peak_mib for each in times))
        for times in seen.values()
    )
    return handler, with_store, naive
