"""A hand-off whose messages are traced: each is a span of the session that it announces."""

from collections.abc import Sequence

from infra import tracing
from infra.handoff.base import Handoff, HandoffUnavailable
from infra.records import SessionEnded


class TracedHandoff:
    """A `Handoff` that is another one."""

    def __init__(self, handoff: Handoff) -> None:
        self._handoff = handoff

    async def send(self, ended: Sequence[SessionEnded]) -> list[SessionEnded]:
        """See `Handoff.send`."""
        spans = [
            tracing.begin(
                "hand off session",
                {"gen_ai.conversation.id": each.session_id, "messaging.batch.message_count": len(ended)},
                parent=each.traceparent,
                kind="producer",
            )
            for each in ended
        ]
        try:
            again = await self._handoff.send(ended)
            for each, span in zip(ended, spans, strict=True):
                if each in again:
                    span.failed("refused")
            return again
        except HandoffUnavailable:
            for span in spans:
                span.failed(HandoffUnavailable.__name__)
            raise
        finally:
            for span in spans:
                span.end()

    async def close(self) -> None:
        """See `Handoff.close`."""
        await self._handoff.close()
