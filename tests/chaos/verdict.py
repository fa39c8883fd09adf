"""What the database must hold when everything has calmed down: every promise kept, nothing twice."""

from collections import Counter, defaultdict
from typing import Any

import psycopg
from psycopg.rows import dict_row

from tests.chaos.visitor import Visitor


def open_sessions(database_url: str) -> int:
    """How many sessions have no end yet."""
    with psycopg.connect(database_url) as connection:
        row = connection.execute("SELECT count(*) FROM sessions WHERE end_time IS NULL").fetchone()
        assert row
        return int(row[0])


def losses(database_url: str, visitors: list[Visitor]) -> list[str]:
    """Every promise that was not kept, in words; empty if all were."""
    with psycopg.connect(database_url, row_factory=dict_row) as connection:
        sessions = {row["session_id"]: row for row in connection.execute("SELECT * FROM sessions").fetchall()}
        events: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for event in connection.execute("SELECT * FROM events ORDER BY id").fetchall():
            events[event["session_id"]].append(event)
    return [
        f"{visitor.session_id}: {problem}"
        for visitor in visitors
        for problem in _losses_of(visitor, sessions.get(visitor.session_id), events[visitor.session_id])
    ]


def _losses_of(visitor: Visitor, session: dict[str, Any] | None, events: list[dict[str, Any]]) -> list[str]:
    if session is None:
        return ["no session row"]
    found: list[str] = []
    promises = visitor.promises
    messages = [event for event in events if event["role"] == "user"]
    by_id = {event["metadata"]["message_id"]: event for event in messages}
    for message_id, times in Counter(event["metadata"]["message_id"] for event in messages).items():
        if times > 1:
            found.append(f"message {message_id} is stored {times} times")
    for message_id, content in promises.accepted.items():
        if message_id not in by_id:
            found.append(f"accepted message {message_id} is not stored")
        elif by_id[message_id]["content"] != content:
            found.append(f"message {message_id} is stored with other words")
    found += [f"saved message {name} is not stored" for name in promises.saved_messages if name not in by_id]
    ends = Counter(event["turn_id"] for event in events if "reason" in event["metadata"])
    found += [f"saved end of turn {turn_id} is not stored" for turn_id in promises.saved_turns if turn_id not in ends]
    found += [f"turn {turn_id} has {times} ends" for turn_id, times in ends.items() if times > 1]
    found += [f"turn {event['turn_id']} has no end" for event in messages if event["turn_id"] not in ends]
    for turn_id, text in promises.completed.items():
        stored = "".join(e["content"] for e in events if e["turn_id"] == turn_id and e["role"] == "assistant")
        if stored != text:
            found.append(f"completed reply {turn_id} is not stored whole: {len(stored)} of {len(text)} characters")
    if session["end_time"] is None or not session["final_summary"]:
        found.append("no summary")
    elif not session["final_summary"].count(f"{len(messages)} message"):
        found.append(f"the summary is not of all {len(messages)} messages: {session['final_summary']}")
    return found
