"""Where a connection carries its token: in a header, or, as a browser's socket cannot set one, in a subprotocol."""

from starlette.types import Scope

SUBPROTOCOL = "realtime.v1"
"""What this server answers with to a client that offers subprotocols, as RFC 6455 wants it."""
BEARER = "bearer."
"""What the subprotocol begins with that is the token: `realtime.v1, bearer.<token>`."""


def bearer(scope: Scope) -> str | None:
    """The token in `Authorization: Bearer`, or None."""
    given = dict(scope["headers"]).get(b"authorization", b"").decode("latin-1")
    kind, _, token = given.partition(" ")
    return token.strip() if kind.lower() == "bearer" else None


def offered(scope: Scope) -> tuple[str | None, str | None]:
    """The token that a socket comes with, or None; and the subprotocol to answer with, or None.

    A token in the address would be in every log on the way, and is not read.
    """
    protocols: list[str] = scope.get("subprotocols") or []
    token = next((each.removeprefix(BEARER) for each in protocols if each.startswith(BEARER)), None)
    return bearer(scope) or token, SUBPROTOCOL if SUBPROTOCOL in protocols else None
