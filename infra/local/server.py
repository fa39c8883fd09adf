"""A server that this machine runs beside the product: started, found to be ready, and ended."""

import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

START_SECONDS = 20.0
STOP_SECONDS = 10.0


class CannotStart(Exception):
    """One line that says what is missing."""


class Server:
    """A process that listens on a port, and what starts it again."""

    def __init__(self, port: int, log: Path) -> None:
        self.port = port
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None

    def _spawn(self, command: list[str], ready: Callable[[], bool], **options: Any) -> None:
        with self._log.open("ab") as log:
            # In a session of its own: Ctrl-C reaches whoever started it, who then stops everything in order.
            self._process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True, **options)
        deadline = time.monotonic() + START_SECONDS
        while not ready():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                last = self._log.read_text(errors="replace").strip().splitlines()[-3:]
                raise CannotStart(f"{Path(command[0]).name} did not start; {self._log} ends: {' / '.join(last)}")
            time.sleep(0.02)

    def stop(self, number: int = signal.SIGTERM) -> None:
        """End it by this signal; insist after a while."""
        process, self._process = self._process, None
        if process and process.poll() is None:
            process.send_signal(number)
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def is_listening(port: int) -> bool:
    """Whether something takes connections there."""
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True
