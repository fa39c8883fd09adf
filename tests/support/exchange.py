"""The shortest conversation there is to summarise."""

from datetime import datetime
from uuid import uuid4

from infra.records import Event

SUMMARY = "A conversation of 1 message and 1 reply about apples."
"""What a function without a model writes of it."""


def an_exchange(session_id: str, at: datetime) -> list[Event]:
    """One question, and its answer, at that time."""
    question = Event(
        event_id=str(uuid4()),
        session_id=session_id,
        turn_id="t1",
        role="user",
        content="tell me about apples",
        timestamp=at,
        metadata={},
    )
    answer = Event(
        event_id=str(uuid4()),
        session_id=session_id,
        turn_id="t1",
        role="assistant",
        content="They are round.",
        timestamp=at,
        metadata={"reason": "complete"},
    )
    return [question, answer]
