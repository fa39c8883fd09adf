"""Which pages may use this server: by default its own alone. A client that is no browser names no origin."""

from collections.abc import Sequence

from starlette.types import Scope

ANY = "*"


class Origins:
    """The pages that may connect: the server's own, and those that the settings name."""

    def __init__(self, allowed: Sequence[str]) -> None:
        self._allowed = frozenset(each.lower().rstrip("/") for each in allowed)

    def allows(self, scope: Scope) -> bool:
        """Whether a connection comes from a page that may, or from no page."""
        headers = dict(scope["headers"])
        origin = headers.get(b"origin")
        if origin is None or ANY in self._allowed:
            return True
        named = origin.decode("latin-1").lower()
        own = headers.get(b"host", b"").decode("latin-1").lower()
        return named in self._allowed or named.partition("://")[2] == own
