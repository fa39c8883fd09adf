"""What a schedule does in the cloud, on this machine: a handler that is called again and again."""

import threading

from infra.local.event_source import Handler
from infra.telemetry import get_logger

EVENT = {"source": "aws.events", "detail-type": "Scheduled Event", "detail": {}}
"""What of EventBridge's event does not change from call to call."""

log = get_logger("timer")


class Timer:
    """A thread that calls one handler, at once and then every so many seconds. A failed call does not stop it."""

    def __init__(self, handler: Handler, every_seconds: float) -> None:
        self._handler = handler
        self._every_seconds = every_seconds
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="timer", daemon=True)

    def start(self) -> None:
        """Begin, with the first call."""
        self._thread.start()

    def stop(self) -> None:
        """Begin no further call. One that runs is not waited for, and ends with the process at the latest."""
        self._stopping.set()

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                self._handler(dict(EVENT), None)
            except Exception as error:
                if not self._stopping.is_set():  # what it calls may be stopping, too
                    log.error("call failed", cause=f"{type(error).__name__}: {error}")
            self._stopping.wait(self._every_seconds)
