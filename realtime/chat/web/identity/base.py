"""Who somebody is, as far as this server cares, and what may tell it. Nothing outside this room reads tokens."""

import unicodedata
from typing import Any, Literal, Protocol

import msgspec

from chat.protocol.frames import ErrorCode

Kind = Literal["user", "guest", "service", "open"]
"""Somebody with an account; a browser that this server signed in itself; the operator; whoever comes, under `none`."""
MOST_USER_ID_CHARS = 128
MOST_TOKEN_CHARS = 16 * 1024
"""Real ones have one or two thousand. A longer one is not looked at."""


class Identity(msgspec.Struct, frozen=True):
    """One caller, made once at the door.

    `expires_at` is in Unix seconds, None where it lasts. `claims` are those of the token, for tools.
    """

    user_id: str
    kind: Kind
    expires_at: float | None = None
    claims: dict[str, Any] = {}


class Unauthorized(Exception):
    """The token does not say who it is, or cannot be checked now: then `retry_after` has the seconds to wait.

    The message says what is wrong, and never quotes the token.
    """

    def __init__(self, message: str, *, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.code = ErrorCode.UNAUTHORIZED if retry_after is None else ErrorCode.AUTH_UNAVAILABLE
        self.retry_after = retry_after


class TokenReader(Protocol):
    """One kind of tokens."""

    async def read(self, token: str) -> Identity:
        """Whose token it is.

        Raises:
            Unauthorized: it is not good, or cannot be checked now.
        """

    async def close(self) -> None:
        """Let go of connections."""


def is_user_id(value: Any) -> bool:
    """Whether this can be stored as somebody's id: 1 to 128 printable characters."""
    return (
        isinstance(value, str)
        and 1 <= len(value) <= MOST_USER_ID_CHARS
        and not any(unicodedata.category(character)[0] == "C" for character in value)
    )
