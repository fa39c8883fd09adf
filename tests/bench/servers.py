"""The servers under test: ours as users run it, and the floor, each in a process of its own."""

import contextlib
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from tests.bench.guests import SETTINGS

ROOT = Path(__file__).resolve().parents[2]
TICK = os.sysconf("SC_CLK_TCK")


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
        return resident_bytes(self._process.pid)


@contextlib.contextmanager
def running(kind: str, rate: float, **more: str) -> Iterator[ServerProcess]:
    """Run the floor, a naive script or our server at so many tokens a second, with `more` in its environment.

    Its clients are guests. All other settings are the defaults, the log and its level among them: both write theirs to
    a file.
    """
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
            }
            | SETTINGS
            | more
        )
        environment.pop("LOG_LEVEL", None)
        module = "chat" if kind == "ours" else f"tests.bench.{kind}"
        arguments = [] if kind == "ours" else [str(port), str(rate)]
        with (Path(data_dir) / "log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", module, *arguments], env=environment, cwd=data_dir, stderr=log
            )
        try:
            if len(cores := sorted(os.sched_getaffinity(0))) > 1:
                os.sched_setaffinity(process.pid, cores[:1])
            _wait_for(port)
            yield ServerProcess(process, port)
        finally:
            process.terminate()
            process.wait(15)


def resident_bytes(pid: int) -> int:
    """The memory that a process holds."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _wait_for(port: int) -> None:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        time.sleep(0.05)
    raise TimeoutError("the server did not start")
