"""How much one visitor may have: by user, and by address, so that nobody takes the place of the others.

Windows are counted by the `limits` library, in memory; what is live is counted here. The defaults are what a person
never meets, and a script does at once. Under AUTH=none there is nobody to count: then nothing is limited.
"""

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import IPv6Address, ip_address, ip_network
from typing import Any

from limits import RateLimitItem, RateLimitItemPerHour, RateLimitItemPerMinute
from limits.strategies import FixedWindowRateLimiter
from starlette.types import Scope

from chat.metrics import Metrics
from chat.protocol.frames import CloseCode, ErrorCode
from chat.sessions.door import Refused
from chat.web.counters import Counters
from infra.settings import Settings
from infra.telemetry import get_logger

LIVE_RETRY_SECONDS = 10.0
"""When to come back where too much is live: nobody knows when that ends."""
UNKNOWN = "unknown"
"""Stands for an address that is none, as behind a Unix socket."""

log = get_logger("limits")


class TooMuch(Refused):
    """A limit is reached; `limit` is its name."""

    def __init__(self, limit: str, message: str, retry_after: float, code: ErrorCode = ErrorCode.RATE_LIMITED) -> None:
        super().__init__(CloseCode.TOO_FAST, code, message, retry_after)
        self.limit = limit


class Limits:
    """What is counted, for one container. Every method returns if there is room, and raises `TooMuch` if not."""

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self._on = settings.auth_kind != "none"
        self._metrics = metrics
        self._windows = FixedWindowRateLimiter(Counters())
        self._connections = RateLimitItemPerMinute(settings.limit_connections or 1)
        self._guests = RateLimitItemPerHour(settings.limit_guests or 1)
        self._openings = RateLimitItemPerHour(settings.limit_openings or 1)
        self._messages = RateLimitItemPerMinute(settings.limit_messages or 1)
        self._requests = RateLimitItemPerMinute(settings.limit_requests or 1)
        self._settings = settings
        self._live: Counter[tuple[str, str]] = Counter()

    def connection(self, address: str) -> None:
        """A socket comes from there."""
        if self._on and self._settings.limit_connections:
            self._window("connections", self._connections, address, "Too many connections from your network.")

    def request(self, address: str) -> None:
        """Somebody there asks by HTTP."""
        if self._on and self._settings.limit_requests:
            self._window("requests", self._requests, address, "Too many requests from your network.")

    def guest(self, address: str) -> None:
        """Somebody there wants to be a new guest."""
        if self._on and self._settings.limit_guests:
            self._window("guests", self._guests, address, "Too many new visitors from your network.")

    def opening(self, address: str) -> None:
        """Somebody there opens a session that is not live."""
        if self._on and self._settings.limit_openings:
            self._window("openings", self._openings, address, "Too many conversations were begun from your network.")

    def message(self, user_id: str) -> None:
        """The user says something."""
        if self._on and self._settings.limit_messages:
            self._window("messages", self._messages, user_id, "You are sending messages too fast.")

    def live_sessions(self, number: int) -> None:
        """The user has so many live sessions, and wants one more."""
        if self._on and self._settings.limit_live_sessions and number >= self._settings.limit_live_sessions:
            self._refuse("live_sessions", "You have too many conversations open.", LIVE_RETRY_SECONDS)

    @contextmanager
    def waiting(self, address: str) -> Iterator[None]:
        """Somebody there has a socket, and has not said who they are."""
        with self._held("waiting", address, self._settings.limit_waiting, "Too many connections from your network."):
            yield

    @contextmanager
    def socket(self, user_id: str, session_id: str) -> Iterator[None]:
        """The user has a socket in this session."""
        of_user, of_session = self._settings.limit_sockets, self._settings.limit_session_sockets
        with (
            self._held("sockets", user_id, of_user, "You have too many connections open."),
            self._held("session_sockets", session_id, of_session, "This conversation is open in too many windows."),
        ):
            yield

    @contextmanager
    def _held(self, limit: str, key: str, most: int, message: str) -> Iterator[None]:
        if not self._on or not most:
            yield
            return
        counted = (limit, key)
        if self._live[counted] >= most:
            self._refuse(limit, message, LIVE_RETRY_SECONDS)
        self._live[counted] += 1
        try:
            yield
        finally:
            self._live[counted] -= 1
            if not self._live[counted]:
                del self._live[counted]

    def _window(self, limit: str, item: RateLimitItem, key: str, message: str) -> None:
        if not self._windows.hit(item, limit, key):
            left = self._windows.get_window_stats(item, limit, key).reset_time - time.time()
            self._refuse(limit, message, max(1.0, round(left, 1)))

    def _refuse(self, limit: str, message: str, retry_after: float) -> None:
        self._metrics.limited.labels(limit).inc()
        raise TooMuch(limit, message, retry_after)


def address_of(scope: Scope) -> str:
    """Where a connection comes from: an address, or the /64 of an IPv6 one, which is what one subscriber has.

    Behind a proxy it is what the proxy says, if FORWARDED_ALLOW_IPS trusts it: uvicorn has put it there.
    """
    client: Any = scope.get("client")
    try:
        address = ip_address(str(client[0]).partition("%")[0] if client else "")
    except ValueError:
        return UNKNOWN
    if isinstance(address, IPv6Address):
        return str(address.ipv4_mapped or ip_network((address, 64), strict=False))
    return str(address)
