"""How an ended session is announced: onto a queue, or by HTTP. `open_handoff` picks what the settings name."""

from infra import tracing
from infra.handoff.base import SQS_BATCH, Handoff, HandoffUnavailable
from infra.handoff.sqs import SqsHandoff, sqs_client
from infra.settings import Settings

__all__ = ["SQS_BATCH", "Handoff", "HandoffUnavailable", "SqsHandoff", "open_handoff", "sqs_client"]


async def open_handoff(settings: Settings) -> Handoff | None:
    """The hand-off these settings name, or None: then ended sessions are not summarised."""
    handoff = await _connect(settings)
    if handoff is None or not tracing.is_on():
        return handoff
    from infra.handoff.traced import TracedHandoff

    return TracedHandoff(handoff)


async def _connect(settings: Settings) -> Handoff | None:
    if settings.handoff_url:
        from infra.handoff.http import HttpHandoff

        return HttpHandoff.connect(settings)
    return await SqsHandoff.connect(settings) if settings.disconnect_queue_url else None
