"""How a client comes to a session and leaves it: why it is refused, and what its leaving means."""

from enum import Enum

from chat.protocol.frames import CloseCode, ErrorCode


class Departure(Enum):
    """How a socket's client left its session."""

    GOODBYE = "goodbye"
    """It is done: the session ends at once, and what runs is stopped."""
    GOING_AWAY = "going away"
    """A page was closed, or is only being reloaded: a running reply is finished, and the session waits a moment."""
    DROP = "drop"
    """The connection was lost: the session waits for it to come back."""


class Refused(Exception):
    """The session cannot be opened; `close_code` says whether to come back."""

    def __init__(self, close_code: CloseCode, code: ErrorCode, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.close_code = close_code
        self.code = code
        self.retry_after = retry_after


def not_yours() -> Refused:
    """The refusal of a session that belongs to somebody else."""
    return Refused(CloseCode.NOT_YOURS, ErrorCode.NOT_YOUR_SESSION, "This session belongs to another user.")
