"""What was said in a session, as the events that are stored, and as the messages a model accepts.

There is one list, of stored events. The model's messages are derived from it each time, so a history read back
from the store after a crash is made valid by the same few lines as a live one.
"""

import sys
from collections.abc import Collection, Iterable, Iterator
from typing import Any

import msgspec

from infra.llm import Message, ToolCall
from infra.records import Event

NO_RESULT = '{"error": "interrupted before it answered"}'
"""What a model is told of a call that has no result: the turn was stopped, or the container died."""

MODEL_CHARS = 200_000
"""How much history a model is given, about 50,000 tokens: with more than fits, every turn would be refused."""


HISTORY_BYTES = 2 * 1024 * 1024
"""How much memory a session's events may take. A text takes up to four bytes a character."""
EVENT_BYTES = 1024
"""What an event takes besides its text."""


class History:
    """The last `limit` events of a session, fewer if they take more than `HISTORY_BYTES`.

    The turns that run or wait are kept in any case: their number and their messages are bounded elsewhere.
    """

    def __init__(self, events: Iterable[Event], limit: int) -> None:
        self._events = list(events)
        self._limit = limit
        self._forgot = len(self._events) > limit
        del self._events[:-limit]
        self._bytes = sum(map(bytes_of, self._events))
        self._drop_finished({self._events[-1].turn_id} if self._events else ())

    def anew(self, events: Iterable[Event]) -> "History":
        """Another history with the same limit, of these events."""
        return History(events, self._limit)

    @property
    def held_bytes(self) -> int:
        """About how much memory it takes."""
        return self._bytes

    def add(self, event: Event, running: str, waiting: Collection[str] = ()) -> None:
        """Append an event, and drop the oldest.

        Past the limit they go up to the `running` turn; past the bound in bytes, wherever they are, unless their turn
        is running or `waiting`.
        """
        self._events.append(event)
        self._bytes += bytes_of(event)
        while len(self._events) > self._limit and self._events[0].turn_id != running:
            self._drop(0)
        if self._bytes > HISTORY_BYTES:
            self._drop_finished({running, event.turn_id, *waiting})

    def _drop_finished(self, unfinished: Collection[str]) -> None:
        """Drop the oldest events until the rest is within the bound in bytes, but none of these turns."""
        at = 0
        while self._bytes > HISTORY_BYTES and at < len(self._events):
            if self._events[at].turn_id in unfinished:
                at += 1
            else:
                self._drop(at)

    def _drop(self, at: int) -> None:
        self._bytes -= bytes_of(self._events.pop(at))
        self._forgot = True

    def events(self, max_chars: int) -> list[Event]:
        """The latest events, oldest first: as many as fit into `max_chars`, but at least one."""
        total = 0
        for count, event in enumerate(reversed(self._events)):
            total += len(event.content)
            if count and total > max_chars:
                return self._events[-count:]
        return list(self._events)

    def has_more_than(self, latest: Collection[Event]) -> bool:
        """Whether anything was said before these, the latest events."""
        return self._forgot or len(latest) < len(self._events)

    def said(self) -> dict[str, tuple[str, str]]:
        """For each client's message id, the turn that answers it, and its words."""
        return {e.metadata["message_id"]: (e.turn_id, e.content) for e in self._events if "message_id" in e.metadata}

    def end_of(self, turn_id: str) -> Event | None:
        """The event that ended this turn, if it has ended and is not forgotten."""
        ends = (event for event in reversed(self._events) if event.turn_id == turn_id and "reason" in event.metadata)
        return next(ends, None)

    def unfinished(self) -> list[str]:
        """The turns that have no end, in the order in which they began."""
        ended = {event.turn_id for event in self._events if "reason" in event.metadata}
        return list(dict.fromkeys(event.turn_id for event in self._events if event.turn_id not in ended))

    def messages(self, without: Collection[str] = ()) -> list[Message]:
        """The history as a model accepts it, without these turns.

        Turns come one after another even if a message was recorded while the turn before it still ran; the
        first message is a user's; every tool call has exactly one answer, right after it. Of a long history these
        are the latest whole turns that fit into `MODEL_CHARS`, and the last one in any case.
        """
        turns: dict[str, list[Event]] = {}
        for event in self._events:
            turns.setdefault(event.turn_id, []).append(event)
        # A turn whose question was dropped is no longer a whole exchange.
        whole = [turn for name, turn in turns.items() if turn[0].role == "user" and name not in without]
        sizes = [sum(len(event.content) for event in turn) for turn in whole]
        first, total = 0, sum(sizes)
        while first < len(whole) - 1 and total > MODEL_CHARS:
            total -= sizes[first]
            first += 1
        return [message for turn in whole[first:] for message in _turn_messages(turn)]


def bytes_of(event: Event) -> int:
    """About how much memory an event takes. What a tool was given is kept twice, as text and as values."""
    opaque = len(str(event.metadata["opaque"])) if "opaque" in event.metadata else 0
    return EVENT_BYTES + sys.getsizeof(event.content) * (2 if event.role == "tool" else 1) + opaque


def _turn_messages(events: list[Event]) -> Iterator[Message]:
    """One turn: the user's messages, then rounds of (text, calls, results), the last of them text alone."""
    results = {e.metadata["call_id"]: e.content for e in events if e.metadata.get("kind") == "result"}
    text: str | None = None
    opaque: dict[str, Any] | None = None
    calls: list[ToolCall] = []
    answered = False
    for event in events:
        kind = event.metadata.get("kind")
        if event.role == "user":
            yield Message("user", event.content)
        elif kind == "result":
            answered = True
        elif kind == "call" and not answered:
            calls.append(_call(event))
        else:  # text, or a call after results: the model was asked again
            yield from _round(text, calls, results, opaque)
            text, calls = (None, [_call(event)]) if kind == "call" else (event.content, [])
            opaque = None if kind == "call" else event.metadata.get("opaque")
            answered = False
    yield from _round(text, calls, results, opaque)


def _round(
    text: str | None, calls: list[ToolCall], results: dict[str, str], opaque: dict[str, Any] | None
) -> Iterator[Message]:
    if text or calls:
        yield Message("assistant", text or "", tuple(calls), opaque=opaque)
    for call in calls:
        yield Message("tool", results.get(call.call_id, NO_RESULT), tool_call_id=call.call_id)


def _call(event: Event) -> ToolCall:
    # Providers refuse a history whose arguments are not an object, even where a model wrote them so itself.
    arguments = event.metadata["arguments"]
    text = msgspec.json.encode(arguments).decode() if isinstance(arguments, dict) else "{}"
    return ToolCall(event.metadata["call_id"], event.metadata["name"], text, event.metadata.get("opaque"))
