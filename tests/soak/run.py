"""One soak: a container with its defaults, visitors, strangers, and what came of it."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from tests.chaos.world import ROOT, Process, start_supabase
from tests.soak.polite import Seen, missing, percentile, visit
from tests.soak.strangers import ATTACKS
from tests.support.supabase import free_port

MOST_BYTES = 400 * 1024 * 1024
SETTLE_SECONDS = 5.0


@dataclass
class Outcome:
    """What came of a soak."""

    seen: Seen
    struck: dict[str, int]
    """How often each kind of stranger did its worst; empty if their process failed."""
    most_bytes: int
    missing: int
    tracebacks: int

    def report(self) -> dict[str, object]:
        """The figures, for people."""
        waits = self.seen
        return {
            "messages": len(waits.waits),
            "refused": f"{len(waits.refused)} {dict(Counter(waits.refused)) or ''}",
            "cut off": waits.cut,
            "opening": _spread(waits.openings),
            "first token": _spread(waits.waits),
            "memory": f"{self.most_bytes / 1024 / 1024:.0f} MiB at most",
            "not stored": self.missing,
            "tracebacks": self.tracebacks,
            "attacks": self.struck,
        }

    def broken(self) -> list[str]:
        """The promises that did not hold; how long anybody waited is measured, and not judged here."""
        seen = self.seen
        promises = {
            "messages were refused": len(seen.refused),
            "visitors were cut off": seen.cut,
            "accepted messages are not stored": self.missing,
            "tracebacks are in the log": self.tracebacks,
            "bytes of memory over the bound": max(0, self.most_bytes - MOST_BYTES),
            "visitors who never got an answer": int(not seen.waits),
            "kinds of strangers that never struck": sum(not self.struck.get(each.__name__) for each in ATTACKS),
        }
        return [f"{number} {what}" for what, number in promises.items() if number]


def _spread(waits: Sequence[float]) -> str:
    return f"median {percentile(waits, 0.5) * 1000:.0f} ms, p99 {percentile(waits, 0.99) * 1000:.0f} ms"


def soak(folder: Path, store: str, visitors: int, seconds: float) -> Outcome:
    """Run it; `store` is "sqlite" or "supabase"."""
    with ExitStack() as ending:
        environment = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "TMPDIR") if name in os.environ}
        environment |= {"PYTHONPATH": f"{ROOT / 'realtime'}{os.pathsep}{ROOT}", "DATA_DIR": str(folder / "data")}
        if store == "supabase":
            _, lite = start_supabase(folder, ending)
            environment |= {"SUPABASE_URL": lite.url, "SUPABASE_KEY": lite.service_key}
        port = free_port()
        container = Process("container", folder, port, ["chat"], environment | {"PORT": str(port)})
        ending.callback(container.stop, signal.SIGTERM)
        container.start()
        command = [sys.executable, "-m", "tests.soak.strangers", str(port), str(seconds)]
        with (folder / "strangers.log").open("wb") as log:
            strangers = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=log)
        ending.callback(strangers.wait)
        ending.callback(strangers.kill)
        seen, most_bytes = asyncio.run(_visitors(container, visitors, seconds))
        struck: dict[str, int] = json.loads(strangers.communicate()[0] or b"{}")
        lost = _lost(port, seen)
    lines = (folder / "container.log").read_text(errors="replace")
    return Outcome(seen, struck, most_bytes, lost, lines.count("Traceback"))


def _lost(port: int, seen: Seen) -> int:
    """How many accepted messages are not stored, once the last ones have had their time."""
    deadline = time.monotonic() + SETTLE_SECONDS
    while lost := asyncio.run(missing(f"http://127.0.0.1:{port}", seen)):
        if time.monotonic() > deadline:
            return lost
    return 0


async def _visitors(container: Process, count: int, seconds: float) -> tuple[Seen, int]:
    """What so many visitors saw, and the most memory that the container took meanwhile."""
    seen, until = Seen(), asyncio.get_running_loop().time() + seconds
    url = f"ws://127.0.0.1:{container.port}"
    visits = [asyncio.create_task(visit(url, f"polite-{number}", until, seen)) for number in range(count)]
    most = 0
    while pending := [each for each in visits if not each.done()]:
        await asyncio.wait(pending, timeout=1)
        most = max(most, container.resident_bytes())
    for each in visits:
        each.result()
    return seen, most
