"""What becomes of a reply whose container died while it was being said."""

from datetime import UTC, datetime, timedelta
from typing import Any

from chat.conversation.draft import Draft, interruption, interruptions
from infra.records import Event, Role

DAWN = datetime(2025, 1, 2, 3, 4, 5, tzinfo=UTC)


def said(role: Role, content: str = "", turn: str = "t1", **metadata: Any) -> Event:
    """A stored event."""
    return Event(
        event_id=f"{turn}-{content}-{metadata}",
        session_id="s",
        turn_id=turn,
        role=role,
        content=content,
        timestamp=DAWN,
        metadata=metadata,
    )


def piece(text: str, *, turn: str = "t1", part: int = 0, after: int = 0) -> Draft:
    """A piece of a reply, kept so many seconds after dawn."""
    return Draft("s", turn, part, text, DAWN + timedelta(seconds=after))


def test_what_was_said_is_kept_in_order_up_to_its_last_moment() -> None:
    """One event for the turn, marked as interrupted, at the time of its last piece."""
    pieces = [piece("Hel"), piece("lo", after=1)]
    (event,) = interruptions(pieces, [said("user", "hi")])
    assert event == interruption("s", "t1", DAWN + timedelta(seconds=1), "Hello")
    assert event.metadata["interrupted"]


def test_a_turn_that_ended_after_all_is_left_as_it_is() -> None:
    """A finished turn whose pieces were left behind is not stored a second time."""
    assert interruptions([piece("Hel")], [said("user", "hi"), said("assistant", "Hello", reason="complete")]) == []


def test_words_that_are_stored_are_not_told_twice() -> None:
    """What was said before a tool call is an event of its own; what was said after it is not."""
    stored = [said("user", "hi"), said("assistant", "Let me see."), said("tool", "{}", kind="call", call_id="c")]
    pieces = [piece("Let me see."), piece("It is ", part=1), piece("raining.", part=1, after=2)]
    assert [event.content for event in interruptions(pieces, stored)] == ["It is raining."]
    assert [event.content for event in interruptions(pieces, stored[:1])] == ["Let me see.It is raining."]


def test_each_turn_has_its_own_words() -> None:
    """Of two turns that died, one before its first word, that one is marked when the session is reopened."""
    stored = [said("user", "hi"), said("user", "and you?", "t2")]
    assert [(event.turn_id, event.content) for event in interruptions([piece("Hel")], stored)] == [("t1", "Hel")]


def test_a_turn_that_the_store_does_not_know_is_forgotten() -> None:
    """An answer without its question would be of no use to anybody."""
    assert interruptions([piece("Hel")], []) == []


def test_whoever_marks_a_turn_marks_it_with_the_same_event() -> None:
    """The container that kept its words, and one that opens its session first: the store keeps one of them."""
    assert interruption("s", "t1", DAWN).event_id == interruption("s", "t1", DAWN, "Hello").event_id
