"""The caller's own figures, from the store."""

from chat.tools.registry import ToolContext, ToolError, tool
from infra.records import UserStats
from infra.store import StoreError


@tool
async def get_user_stats(context: ToolContext) -> UserStats:
    """Get the current user's own usage: number of sessions and of messages sent, minutes spent, and when last seen."""
    await context.settled()  # so that the question itself is counted
    try:
        return await context.store.user_stats(context.user_id)
    except StoreError:
        raise ToolError("the figures cannot be read at the moment") from None
