"""What a hand-off must do: the one message that passes between the halves, on its way out."""

from collections.abc import Sequence
from typing import Protocol

from infra.records import SessionEnded

SQS_BATCH = 10
"""Entries in one SendMessageBatch: SQS takes no more."""


class HandoffUnavailable(Exception):
    """None of the messages was taken; they may be later."""


class Handoff(Protocol):
    """Where ended sessions are announced, at least once each."""

    async def send(self, ended: Sequence[SessionEnded]) -> list[SessionEnded]:
        """Announce them, at most `SQS_BATCH` at once.

        Returns:
            Those that were not taken and should be sent again; empty when all is well.

        Raises:
            HandoffUnavailable: none was taken.
        """

    async def close(self) -> None:
        """Let go of connections."""
