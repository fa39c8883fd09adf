"""What the page makes of frames, without a network: `Conversation.reduce`, fed by hand."""

from typing import Any

import pytest

from tests.system import page as pages
from tests.system.page import (
    FROM_DISK,
    OpenPage,
)

# One browser serves them all, and a browser belongs to one event loop.
pytestmark = pytest.mark.asyncio(loop_scope="module")
browser, open_page = pages.browser, pages.open_page


@pytest.fixture
def reduced() -> str:
    """JavaScript that folds frames into a state, and gives what is shown of it."""
    return """(frames) => {
        const state = frames.reduce(Conversation.reduce, Conversation.initial("s"));
        const kept = Conversation.shown(state).map(({kind, text = null, status = null}) => [kind, text, status]);
        return { kept, unsent: Conversation.unsent(state).map((item) => item.messageId), open: state.open };
    }"""


def _ready(*history: dict[str, Any], seq: int = 0, epoch: int = 1, active: str | None = None) -> dict[str, Any]:
    return {"type": "ready", "seq": seq, "session_id": "s", "epoch": epoch, "mode": None, "history": history,
            "active_turn_id": active}  # fmt: skip


def _event(role: str, turn: str, content: str, row: int = 0, **metadata: Any) -> dict[str, Any]:
    return {"event_id": f"{turn}{role}{content}", "turn_id": turn, "role": role, "content": content, "id": row,
            "metadata": metadata}  # fmt: skip


SAID = {"type": "local_said", "message_id": "m", "content": "hi"}
ACCEPTED = {"type": "accepted", "seq": 1, "message_id": "m", "turn_id": "t", "content": "hello"}


def _token(seq: int, content: str) -> dict[str, Any]:
    return {"type": "token", "seq": seq, "turn_id": "t", "content": content}


async def test_reduce_joins_tokens_and_takes_each_once(open_page: OpenPage, reduced: str) -> None:
    """Tokens become one text; a frame whose `seq` was seen changes nothing, nor does a type of a newer server."""
    page = await open_page(FROM_DISK)
    told = [_ready(), SAID, ACCEPTED, _token(2, "Hel"), _token(3, "lo"), _token(3, "lo"), {"type": "new", "seq": 9}]
    assert await page.evaluate(reduced, told) == {
        "kept": [["user", "hi", "sent"], ["assistant", "Hello", "streaming"]],
        "unsent": [],
        "open": ["t"],
    }
    ended = [{"type": "done", "seq": 4, "turn_id": "t", "reason": "length"}, {"type": "saved", "seq": 5, "through": 4}]
    assert await page.evaluate(reduced, told + ended) == {
        "kept": [["user", "hi", "saved"], ["assistant", "Hello", "length"]],
        "unsent": [],
        "open": [],
    }


async def test_reduce_redraws_to_the_same(open_page: OpenPage, reduced: str) -> None:
    """A history that says what was seen makes the same list, under the same keys, however often it comes."""
    page = await open_page(FROM_DISK)
    call: dict[str, Any] = {"call_id": "c", "name": "f", "arguments": {}}
    live = [
        _ready(), SAID, ACCEPTED, _token(2, "Let me see."),
        {"type": "tool_call", "seq": 3, "turn_id": "t", **call},
        {"type": "tool_result", "seq": 4, "turn_id": "t", "call_id": "c", "name": "f", "result": [1]},
        _token(5, "One."), {"type": "saved", "seq": 6, "through": 5},
    ]  # fmt: skip
    again = _ready(
        _event("user", "t", "hi", message_id="m"), _event("assistant", "t", "Let me see."),
        _event("tool", "t", "{}", kind="call", **call),
        _event("tool", "t", "[1]", kind="result", call_id="c", name="f", ok=True),
        seq=6, active="t",
    )  # fmt: skip
    same = """([live, again]) => {
        const items = (frames) =>
            JSON.stringify(Conversation.shown(frames.reduce(Conversation.reduce, Conversation.initial("s"))));
        const rest = {type: "token", seq: 7, turn_id: "t", content: "One."};
        return [items(live), items([...live, again, rest]), items([...live, again, rest, again, rest])];
    }"""
    once, twice, thrice = await page.evaluate(same, [live, again])
    assert once == twice == thrice


async def test_reduce_keeps_what_the_server_does_not_know(open_page: OpenPage, reduced: str) -> None:
    """A message that was accepted and died unsaved with the server is sent again; a saved one is not."""
    page = await open_page(FROM_DISK)
    crashed = _ready(epoch=2)
    lost = await page.evaluate(reduced, [_ready(), SAID, ACCEPTED, crashed])
    assert lost == {"kept": [["user", "hi", "sending"]], "unsent": ["m"], "open": []}
    arrived = _ready(_event("user", "t", "hi", message_id="m"), seq=1)
    receipt_lost = await page.evaluate(reduced, [_ready(), SAID, arrived])
    assert receipt_lost == {
        "kept": [["user", "hi", "sent"], ["assistant", "", "interrupted"]],
        "unsent": [],
        "open": [],
    }
    kept = _ready(_event("user", "t", "hi", row=1, message_id="m"), epoch=2)
    unanswered = await page.evaluate(reduced, [_ready(), SAID, ACCEPTED, _token(2, "x"), kept])
    assert unanswered == {
        "kept": [["user", "hi", "saved"], ["assistant", "", "interrupted"]],
        "unsent": [],
        "open": [],
    }


async def test_reduce_waits_for_no_turn_that_is_over(open_page: OpenPage, reduced: str) -> None:
    """A message sent again that was answered long ago, out of the history's reach, leaves nothing to wait for."""
    page = await open_page(FROM_DISK)
    over = {"type": "done", "seq": 2, "turn_id": "t", "reason": "complete"}
    again = await page.evaluate(reduced, [_ready(), SAID, ACCEPTED, over, _ready(seq=3), ACCEPTED | {"seq": 4}])
    assert again == {"kept": [["user", "hi", "sent"]], "unsent": [], "open": []}
    anew = await page.evaluate(reduced, [_ready(), SAID, ACCEPTED, _ready(epoch=2), ACCEPTED])
    assert anew == {"kept": [["user", "hi", "sent"], ["thinking", None, None]], "unsent": [], "open": ["t"]}


async def test_reduce_shows_that_a_reply_is_awaited(open_page: OpenPage, reduced: str) -> None:
    """A turn without a word yet is seen to be running, after a reconnect too; it is not once we left."""
    page = await open_page(FROM_DISK)
    awaited = [["user", "hi", "sent"], ["thinking", None, None]]
    assert (await page.evaluate(reduced, [_ready(), SAID, ACCEPTED]))["kept"] == awaited
    back = _ready(_event("user", "t", "hi", message_id="m"), seq=1, active="t")
    assert (await page.evaluate(reduced, [_ready(), SAID, ACCEPTED, back]))["kept"] == awaited
    left = await page.evaluate(reduced, [_ready(), SAID, ACCEPTED, {"type": "local_left"}])
    assert left["kept"] == [["user", "hi", "sent"], ["assistant", "", "interrupted"]]
