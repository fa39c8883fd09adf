"""The wire protocol: what a client may send, what it is told when it may not, and how frames look."""

import json
from datetime import UTC, datetime
from typing import Any, get_args

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from chat.protocol import frames as protocol
from chat.protocol.codec import ProtocolError, encode, is_unicode, parse
from chat.protocol.frames import Auth, Cancel, ClientFrame, CloseCode, ErrorCode, Message, Ping, ServerFrame
from infra.records import Event
from tests.support.hypothesis_profile import lenient

MOST = 50
DAWN = datetime(2025, 1, 2, 3, 4, 5, 6, tzinfo=UTC)
ANY_TEXT = st.text(st.characters(), max_size=80)  # surrogates, controls and all
JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=60),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(st.characters(), max_size=5), inner, max_size=3)
    ),
    max_leaves=8,
)
NEAR_FRAMES = st.fixed_dictionaries(
    {"type": st.sampled_from(["message", "cancel", "auth", "ping", "token"]) | JSON},
    optional={
        "content": JSON | ANY_TEXT,
        "message_id": JSON | st.text(max_size=200),
        "turn_id": JSON,
        "token": JSON,
        "x": JSON,
    },
)


def refusal(text: str) -> tuple[ErrorCode, str, str | None]:
    with pytest.raises(ProtocolError) as raised:
        parse(text, MOST)
    return raised.value.code, str(raised.value), raised.value.message_id


def parsed_or_refused(text: str) -> ClientFrame | None:
    """The frame, or None where it was refused with words that can be sent."""
    try:
        return parse(text, MOST)
    except ProtocolError as error:
        refused = error
    message = str(refused)
    assert isinstance(refused.code, ErrorCode)
    assert message.endswith(".")
    assert "\n" not in message
    assert "Traceback" not in message
    assert len(message) < 300
    encode(protocol.Error(1, refused.code, message, message_id=refused.message_id))
    return None


@lenient
@given(ANY_TEXT)
@example("{" * 100_000)
@example('{"type":"ping","x":' + "[" * 100_000)
@example('{"type":"message","content":"\\ud83d"}')
@example("{\ud83d")
def test_any_text_is_a_frame_or_refused(text: str) -> None:
    """Whatever is sent, it parses or raises `ProtocolError`, whose words can be sent back."""
    parsed_or_refused(text)


@lenient
@given(NEAR_FRAMES)
def test_whatever_looks_like_a_frame_is_one_or_refused(fields: dict[str, Any]) -> None:
    """Fields of any shape never raise anything else, and what is taken can be stored and sent."""
    frame = parsed_or_refused(json.dumps(fields))
    if isinstance(frame, Message):
        assert frame == Message(fields["content"], fields.get("message_id"))
        assert frame.content.strip()
        assert len(frame.content) <= MOST
        assert 1 <= len(frame.message_id or "x") <= 128
        (frame.content + (frame.message_id or "")).encode()
    elif frame:
        assert type(frame) is {"cancel": Cancel, "auth": Auth, "ping": Ping}[fields["type"]]


@lenient
@given(st.text(min_size=1, max_size=MOST).filter(lambda text: text.strip() and not text.lstrip().startswith("{")))
def test_what_is_no_object_is_the_users_own_words(text: str) -> None:
    """A frame that does not begin with a brace is a message, verbatim."""
    assert parse(text, MOST) == Message(text)


@lenient
@given(st.text(max_size=MOST).filter(str.strip), st.none() | st.text(min_size=1, max_size=128))
def test_a_message_frame_says_what_it_said(content: str, message_id: str | None) -> None:
    """Content and id arrive as they were, in either way of writing JSON."""
    fields = {"type": "message", "content": content, "message_id": message_id}
    for ascii_only in (True, False):
        text = json.dumps(fields, ensure_ascii=ascii_only)
        assert parse(text, MOST) == Message(content, message_id)


@pytest.mark.parametrize(
    ("text", "frame"),
    [
        ("hello", Message("hello")),
        ('"quoted"', Message('"quoted"')),
        ("[1]", Message("[1]")),
        (' \n{"type":"ping"} ', Ping()),
        ('{"type":"ping","extra":{"a":[1]}}', Ping()),
        ('{"type":"cancel"}', Cancel()),
        ('{"type":"cancel","turn_id":"t1"}', Cancel("t1")),
        ('{"content":"late type","type":"message"}', Message("late type")),
        ('{"type":"message","content":"' + "x" * MOST + '"}', Message("x" * MOST)),
    ],
)
def test_frames_that_are_taken(text: str, frame: ClientFrame) -> None:
    """Valid frames parse to what their sender meant; unknown fields are ignored."""
    assert parse(text, MOST) == frame


@pytest.mark.parametrize(
    ("text", "refused"),
    [
        ("", (ErrorCode.EMPTY_MESSAGE, "The message is empty.", None)),
        (" \t\n", (ErrorCode.EMPTY_MESSAGE, "The message is empty.", None)),
        (
            '{"type":"message","content":" ","message_id":"m"}',
            (ErrorCode.EMPTY_MESSAGE, "The message is empty.", "m"),
        ),
        (
            '{"type":"message","content":"' + "x" * 51 + '","message_id":"m"}',
            (ErrorCode.MESSAGE_TOO_LONG, "The message has 51 characters; the most is 50.", "m"),
        ),
        ("x" * 51, (ErrorCode.MESSAGE_TOO_LONG, "The message has 51 characters; the most is 50.", None)),
        ('{"type":"token"}', (ErrorCode.UNKNOWN_TYPE, "`type` must be one of message, cancel, auth, ping.", None)),
        ('{"type":7}', (ErrorCode.UNKNOWN_TYPE, "`type` must be one of message, cancel, auth, ping.", None)),
        ("{}", (ErrorCode.UNKNOWN_TYPE, "`type` must be one of message, cancel, auth, ping.", None)),
        ('{"type":"message"}', (ErrorCode.BAD_FIELD, "Object missing required field `content`.", None)),
        (
            '{"type":"message","content":7}',
            (ErrorCode.BAD_FIELD, "Expected `str`, got `int` - at `$.content`.", None),
        ),
        (
            '{"type":"cancel","turn_id":7}',
            (ErrorCode.BAD_FIELD, "Expected `str | null`, got `int` - at `$.turn_id`.", None),
        ),
    ],
)
def test_frames_that_are_refused(text: str, refused: tuple[ErrorCode, str, str | None]) -> None:
    """Each is refused with its own code, and with the message id where there is one."""
    assert refusal(text) == refused


@pytest.mark.parametrize("text", ["{", "{nonsense", '{"type":"ping"} and more', "{'type':'ping'}", '{"a":NaN}'])
def test_an_object_that_is_no_json_is_refused(text: str) -> None:
    """What begins with a brace is meant as a frame, and says so when it is broken."""
    code, message, message_id = refusal(text)
    assert (code, message_id) == (ErrorCode.BAD_JSON, None)
    assert message.startswith("The frame is not valid JSON: ")


@pytest.mark.parametrize("text", ["half \ud83d of it", '{"type":"message","content":"\\ud83d"}', '{"a":"\ud83d"}'])
def test_half_a_surrogate_pair_is_refused(text: str) -> None:
    """Half of a surrogate pair is refused, however it is written."""
    assert refusal(text)[0] in (ErrorCode.BAD_FIELD, ErrorCode.BAD_JSON)


@pytest.mark.parametrize(("length", "good"), [(0, False), (1, True), (128, True), (129, False)])
def test_the_length_of_a_message_id(length: int, good: bool) -> None:
    """From 1 to 128 characters."""
    text = json.dumps({"type": "message", "content": "hi", "message_id": "m" * length})
    if good:
        assert parse(text, MOST) == Message("hi", "m" * length)
    else:
        assert refusal(text) == (ErrorCode.BAD_FIELD, "`message_id` must have 1 to 128 characters.", None)


@given(ANY_TEXT)
def test_unicode_is_what_utf8_can_write(text: str) -> None:
    """Text is valid exactly where UTF-8 can write it."""
    assert is_unicode(text) == (not any("\ud800" <= character <= "\udfff" for character in text))


EVENT = Event(event_id="e", session_id="s", turn_id="t", role="user", content="ü", timestamp=DAWN, metadata={"a": 1})
EVENT_FIELDS = {
    "event_id": "e",
    "session_id": "s",
    "turn_id": "t",
    "role": "user",
    "content": "ü",
    "timestamp": "2025-01-02T03:04:05.000006Z",
    "metadata": {"a": 1},
    "id": 0,
}
FRAMES: list[tuple[ServerFrame, dict[str, Any]]] = [
    (
        protocol.Ready(3, "s", 2, False, None, [EVENT], "t", unsaved=[3], more=True),
        {
            "type": "ready",
            "seq": 3,
            "session_id": "s",
            "epoch": 2,
            "resumed": False,
            "mode": None,
            "history": [EVENT_FIELDS],
            "active_turn_id": "t",
            "protocol": 1,
            "unsaved": [3],
            "more": True,
        },
    ),
    (
        protocol.Accepted(1, "m", "t", "hi"),
        {"type": "accepted", "seq": 1, "message_id": "m", "turn_id": "t", "content": "hi"},
    ),
    (protocol.ModeChosen(1, "casual"), {"type": "mode", "seq": 1, "mode": "casual"}),
    (protocol.Token(1, "t", " ü"), {"type": "token", "seq": 1, "turn_id": "t", "content": " ü"}),
    (
        protocol.ToolCalled(1, "t", "c", "look", {"a": None}),
        {"type": "tool_call", "seq": 1, "turn_id": "t", "call_id": "c", "name": "look", "arguments": {"a": None}},
    ),
    (
        protocol.ToolResult(1, "t", "c", "look", [1]),
        {"type": "tool_result", "seq": 1, "turn_id": "t", "call_id": "c", "name": "look", "result": [1]},
    ),
    (
        protocol.ToolResult(1, "t", "c", "look", error="no"),
        {"type": "tool_result", "seq": 1, "turn_id": "t", "call_id": "c", "name": "look", "error": "no"},
    ),
    (
        protocol.Done(1, "t", "length", protocol.Usage(5, 6, 3, 2)),
        {
            "type": "done",
            "seq": 1,
            "turn_id": "t",
            "reason": "length",
            "usage": {"input_tokens": 5, "output_tokens": 6, "cached_tokens": 3, "reasoning_tokens": 2},
        },
    ),
    (protocol.Reasoning("t", "hm"), {"type": "reasoning", "turn_id": "t", "content": "hm"}),
    (protocol.Saved(4, 3), {"type": "saved", "seq": 4, "through": 3}),
    (
        protocol.Error(1, ErrorCode.BUSY, "Wait.", message_id="m", retry_after=2.0),
        {"type": "error", "seq": 1, "code": "busy", "message": "Wait.", "message_id": "m", "retry_after": 2.0},
    ),
    (
        protocol.Goodbye(1, "restarting", 500),
        {"type": "goodbye", "seq": 1, "reason": "restarting", "reconnect_in_ms": 500},
    ),
    (protocol.Authenticated("u", 60), {"type": "authenticated", "user_id": "u", "expires_in": 60}),
    (protocol.AuthExpiring(60), {"type": "auth_expiring", "in_seconds": 60}),
    (protocol.Pong(), {"type": "pong"}),
]


@pytest.mark.parametrize(("frame", "fields"), FRAMES, ids=[fields["type"] for _, fields in FRAMES])
def test_how_a_frame_looks(frame: ServerFrame, fields: dict[str, Any]) -> None:
    """`type` comes first, then every field, and nothing else."""
    text = encode(frame)
    assert json.loads(text) == fields
    assert next(iter(json.loads(text))) == "type"
    assert text.isprintable()


def test_every_server_frame_is_shown_here_and_carries_seq() -> None:
    """The list above leaves none out; of them all, only these four are outside the stream."""
    kinds = set(get_args(ServerFrame))
    assert {type(frame) for frame, _ in FRAMES} == kinds
    outside = {protocol.Pong, protocol.Reasoning, protocol.Authenticated, protocol.AuthExpiring}
    assert {kind for kind in kinds if "seq" not in kind.__struct_fields__} == outside


@lenient
@given(JSON.filter(lambda value: is_unicode(json.dumps(value, ensure_ascii=False))), st.text())
def test_a_tools_result_is_carried_as_it_is(result: Any, words: str) -> None:
    """Whatever JSON a tool gave, and whatever text, reads back equal."""
    plain = msgspec.json.decode(msgspec.json.encode(result))  # as the registry leaves it: no NaN
    sent = json.loads(encode(protocol.ToolResult(1, "t", "c", words, plain)))
    assert sent["name"] == words
    assert sent.get("result") == plain


def test_every_code_is_one_of_a_kind() -> None:
    """No two errors share a value, no two closes a number, and none of ours is in the RFC's range."""
    assert len({code.value for code in ErrorCode}) == len(ErrorCode.__members__)
    numbers = [code.code for code in CloseCode]
    assert len(set(numbers)) == len(CloseCode.__members__) == len(numbers)
    assert all(1000 <= number <= 1013 or 4000 <= number <= 4999 for number in numbers)


@pytest.mark.parametrize("code", CloseCode)
def test_a_close_says_why_and_whether_to_come_back(code: CloseCode) -> None:
    """The reason fits into a close frame, which has 123 bytes for it."""
    assert 0 < len(code.reason.encode()) <= 123
    assert isinstance(code.reconnect, bool)
