"""Which pages may use this server: by default its own alone. A client that is no browser names no origin."""

from collections.abc import Sequence
from urllib.parse import urlsplit

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from infra.settings import Settings

ANY = "*"
LOOPBACK = frozenset({"localhost", "127.0.0.1", "[::1]"})
"""What this machine calls itself."""


class Origins:
    """The pages that may connect: the server's own, and those that the settings name."""

    def __init__(self, allowed: Sequence[str]) -> None:
        self._allowed = frozenset(each.lower().rstrip("/") for each in allowed)

    def allows(self, scope: Scope) -> bool:
        """Whether a connection comes from a page that may, or from no page."""
        origin = _header(scope, b"origin")
        if origin is None or ANY in self._allowed or origin in self._allowed:
            return True
        own = _header(scope, b"host")
        return bool(own) and origin.partition("://")[2] == own


class KnownHosts:
    """An ASGI middleware for a server that asks nobody who they are, because only this machine can reach it.

    A page can, too: one whose own name is made to lead here (DNS rebinding) has the origin that its address says, and
    would read what it likes. So only this machine's names are answered to, and those of ALLOWED_ORIGINS.
    """

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app = app
        named = {urlsplit(origin).netloc.lower() for origin in settings.origins}
        self._known = LOOPBACK | {name.rpartition(":")[0] or name for name in named} | named
        self._open = settings.auth_kind != "none" or settings.auth_none_anywhere or ANY in settings.origins

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve, unless the request is for somebody else."""
        if self._open or self._knows(_header(scope, b"host")):
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close"})  # before accept: HTTP 403
        else:
            detail = "This server answers to localhost; name the page in ALLOWED_ORIGINS, or set AUTH=guest."
            await JSONResponse({"detail": detail}, 400)(scope, receive, send)

    def _knows(self, host: str | None) -> bool:
        if not host:
            return True
        name = host if host.endswith("]") else host.rpartition(":")[0] or host
        return host in self._known or name in self._known or name.endswith(".localhost")


def _header(scope: Scope, name: bytes) -> str | None:
    value = dict(scope["headers"]).get(name)
    return None if value is None else value.decode("latin-1").lower()
