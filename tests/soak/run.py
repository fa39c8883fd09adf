"""One soak: a container with its defaults, visitors, strangers, and what came of it."""

import asyncio
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

from infra.local.postgres import Postgres
from infra.local.supabase import STANDALONE, Lite, push_migrations
from tests.chaos.world import ROOT, Process
from tests.soak.polite import Seen, missing, percentile, visit
from tests.support.supabase import free_port

MOST_BYTES = 400 * 1024 * 1024
SETTLE_SECONDS = 5.0


@dataclass
class Outcome:
    """What came of a soak."""

    seen: Seen
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
        }
        return [f"{number} {what}" for what, number in promises.items() if number]


def _spread(waits: Sequence[float]) -> str:
    return f"median {percentile(waits, 0.5) * 1000:.0f} ms, p99 {percentile(waits, 0.99) * 1000:.0f} ms"


def soak(folder: Path, store: str, visitors: int, seconds: float) -> Outcome:
    """Run it; `store` is "sqlite" or "supabase"."""
    with ExitStack() as ending:
        folder.chmod(0o755)  # PostgreSQL does not run as root: its user must get in
        environment = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "TMPDIR") if name in os.environ}
        environment |= {"PYTHONPATH": f"{ROOT / 'realtime'}{os.pathsep}{ROOT}", "DATA_DIR": str(folder / "data")}
        if store == "supabase":
            environment |= _supabase(folder, ending)
        port = free_port()
        container = Process("container", folder, port, ["chat"], environment | {"PORT": str(port)})
        ending.callback(container.stop, signal.SIGTERM)
        container.start()
        command = [sys.executable, "-m", "tests.soak.strangers", str(port), str(seconds)]
        strangers = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.DEVNULL)
        ending.callback(strangers.wait)
        ending.callback(strangers.kill)
        seen, most_bytes = asyncio.run(_visitors(port, visitors, seconds))
        strangers.wait()
        time.sleep(SETTLE_SECONDS)  # what was accepted last is on its way to the store
        lost = asyncio.run(missing(f"http://127.0.0.1:{port}", seen))
    log = (folder / "container.log").read_text(errors="replace")
    return Outcome(seen, most_bytes, lost, log.count("Traceback"))


def _supabase(folder: Path, ending: ExitStack) -> dict[str, str]:
    postgres = Postgres(folder, free_port())
    ending.callback(postgres.stop, signal.SIGQUIT)
    postgres.start()
    postgres.run("postgres", STANDALONE)
    push_migrations(postgres.url())
    lite = Lite(folder, postgres.url(), free_port())
    ending.callback(lite.stop, signal.SIGKILL)
    lite.start()
    return {"SUPABASE_URL": lite.url, "SUPABASE_KEY": lite.service_key}


async def _visitors(port: int, count: int, seconds: float) -> tuple[Seen, int]:
    """What so many visitors saw, and the most memory that the container took meanwhile."""
    seen, until = Seen(), asyncio.get_running_loop().time() + seconds
    visits = [
        asyncio.create_task(visit(f"ws://127.0.0.1:{port}", f"polite-{number}", until, seen)) for number in range(count)
    ]
    most = 0
    pid = _listener(port)
    while pending := [each for each in visits if not each.done()]:
        await asyncio.wait(pending, timeout=1)
        most = max(most, _resident_bytes(pid))
    for each in visits:
        each.result()
    return seen, most


def _resident_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _listener(port: int) -> int:
    """The process that listens on this port."""
    inode = next(
        line.split()[9]
        for line in Path("/proc/net/tcp").read_text().splitlines()[1:]
        if line.split()[1].endswith(f":{port:04X}") and line.split()[3] == "0A"
    )
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if any(os.readlink(fd) == f"socket:[{inode}]" for fd in (process / "fd").iterdir()):
                return int(process.name)
        except OSError:
            continue
    raise LookupError(f"nobody listens on {port}")
