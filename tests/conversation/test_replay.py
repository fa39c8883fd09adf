"""The replay buffer: what was missed, whole and in order, as far back as it reaches."""

from hypothesis import given
from hypothesis import strategies as st

from chat.conversation.replay import FORGET_TOKENS, TOKEN_BYTES, Replay
from chat.protocol.codec import encode
from chat.protocol.frames import Done, Error, Saved, StreamFrame, Token, Usage
from tests.support.hypothesis_profile import lenient


def frames_of(kinds: str) -> list[StreamFrame]:
    """A stream: a letter is a token of that turn, a dash another frame."""
    return [Saved(seq, 0) if kind == "-" else Token(seq, kind, f"{seq} ") for seq, kind in enumerate(kinds, 1)]


def text_and_others(frames: list[StreamFrame]) -> list[object]:
    """What a reader makes of them: words one by one, and the other frames."""
    read: list[object] = []
    for frame in frames:
        read += [(frame.turn_id, word) for word in frame.content.split()] if isinstance(frame, Token) else [frame]
    return read


@lenient
@given(st.text("abc-", max_size=40), st.integers(0, 45), st.sampled_from([0, 1000, 10**6]))
def test_what_is_behind_a_position_is_whole_or_refused(kinds: str, seq: int, most_bytes: int) -> None:
    """Everything after it, nothing before it, in order; and a small buffer says where it does not reach."""
    stream, replay = frames_of(kinds), Replay(most_bytes)
    for frame in stream:
        replay.add(frame)
    if replay.reaches(seq):
        assert text_and_others(replay.after(seq)) == text_and_others([frame for frame in stream if frame.seq > seq])
    else:
        assert most_bytes < 10**6


def test_adjacent_tokens_are_joined_and_the_last_seq_is_kept() -> None:
    """Across no other frame, and not across turns."""
    replay = Replay(10**6)
    for frame in frames_of("aa-aab"):
        replay.add(frame)
    assert replay.after(1) == [Token(2, "a", "2 "), Saved(3, 0), Token(5, "a", "4 5 "), Token(6, "b", "6 ")]


def test_the_oldest_go_when_the_bytes_are_used_up() -> None:
    """The buffer is bounded in bytes, not frames; a single frame larger than the bound is still kept."""
    replay = Replay(200 * TOKEN_BYTES)
    for seq in range(1, 1001):
        replay.add(Token(seq, "t", "x" * TOKEN_BYTES))
    kept = [seq for seq in range(1001) if replay.reaches(seq)]
    assert 1000 - 100 <= kept[0] <= 1000 - 100 + FORGET_TOKENS
    assert replay.after(kept[0]) == [Token(1000, "t", "x" * TOKEN_BYTES * (1000 - kept[0]))]
    replay.add(Token(1001, "t", "y" * 300 * TOKEN_BYTES))
    assert replay.reaches(1000)
    assert not replay.reaches(999)
    replay.add(Saved(1002, 1))
    assert replay.after(1001) == [Saved(1002, 1)]
    assert not replay.reaches(1000)


def test_the_latest_frame_is_kept_however_large() -> None:
    """What was just sent can be asked for again, even where nothing else can."""
    replay = Replay(10)
    replay.add(Token(1, "t", "x" * 100))
    replay.add(done := Done(2, "t", "complete", Usage()))
    assert replay.reaches(1)
    assert replay.after(1) == [done]
    assert not replay.reaches(0)


def test_as_many_go_as_a_large_one_needs() -> None:
    """Trimming goes by bytes, not one frame out for each that comes in: the bound always holds."""
    large = Error(6, "busy", "x" * 500)
    replay = Replay(len(encode(large)))
    for seq in range(1, 6):
        replay.add(Saved(seq, 0))
    replay.add(large)
    assert (replay.reaches(5), replay.reaches(4)) == (True, False)
    assert replay.after(5) == [large]


def test_numbers_that_others_replies_took_are_no_gap() -> None:
    """A `seq` that went to one connection alone is missing in the stream, and nothing else is."""
    replay = Replay(10**6)
    for seq in (1, 2, 5, 6, 9):
        replay.add(Token(seq, "t", f"{seq} "))
    assert replay.after(0) == [Token(9, "t", "1 2 5 6 9 ")]
    assert replay.after(2) == replay.after(3) == replay.after(4) == [Token(9, "t", "5 6 9 ")]
    assert replay.after(5) == [Token(9, "t", "6 9 ")]


def test_it_reaches_back_to_the_beginning_until_something_goes() -> None:
    """A client that has read nothing of a short stream gets all of it."""
    replay = Replay(10**6)
    assert replay.reaches(0)
    replay.add(Done(1, "t", "complete", Usage()))
    assert replay.after(0) == [Done(1, "t", "complete", Usage())]
    assert replay.after(1) == []
