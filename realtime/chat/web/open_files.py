"""The open files that this process may have: each connection is one, and so is whatever serves it."""

import resource
import time

from chat.metrics import Metrics
from infra.telemetry import get_logger

SPARE = 256
"""Open files besides the sockets of sessions: the store, the model, the queue, HTTP."""
RESERVED = 64
"""The last of them are for the store, the model and the queue: what is live must go on when nobody more is let in."""
LOG_SECONDS = 10.0
"""How often it is logged that connections are refused; the metric counts each."""

log = get_logger("files")


def make_room_for_sockets(sessions: int) -> None:
    """Raise the limit of open files to what so many sessions need, where it may be raised; else say so."""
    wanted = 2 * sessions + SPARE  # a page that comes back has two sockets for a moment
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
        if most < wanted:
            log.warning("too few open files for MAX_SESSIONS", limit=most, wanted=wanted)


class OpenFiles:
    """Says whether a connection may stay. Without it the event loop would close what it cannot accept, unseen."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._logged = float("-inf")

    def may_stay(self, descriptor: int) -> bool:
        """Whether the connection with this descriptor, the lowest that was free, leaves enough for the rest."""
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        if soft == resource.RLIM_INFINITY or descriptor < soft - RESERVED:
            return True
        self._metrics.connections_refused.inc()
        if (now := time.monotonic()) - self._logged > LOG_SECONDS:
            self._logged = now
            log.error("connections refused: too few open files are left", limit=soft)
        return False
