"""What a client may have missed: the latest frames of the stream, up to a number of bytes.

Pure, like the conversation that owns it.
"""

from collections import deque
from collections.abc import Iterable, Iterator

from chat.protocol.codec import encode, join
from chat.protocol.frames import StreamFrame, Token

TOKEN_BYTES = 64
"""What a kept token takes besides its characters: the string's header, and its place in a list."""
FORGET_TOKENS = 64
"""How many tokens are dropped at once: removing the front of a list costs as much as the list is long."""


class _Run:
    """Tokens of one turn with consecutive `seq`s, from `first` on: only their texts need to be kept."""

    __slots__ = ("first", "texts", "turn_id")

    def __init__(self, token: Token) -> None:
        self.turn_id = token.turn_id
        self.first = token.seq
        self.texts = [token.content]

    def last(self) -> int:
        return self.first + len(self.texts) - 1


class Replay:
    """The latest frames. `after(seq)` gives those behind a position, if it reaches back so far."""

    __slots__ = ("_bytes", "_kept", "_most_bytes", "_reaches")

    def __init__(self, most_bytes: int) -> None:
        """Uses about `most_bytes` of memory, and more only for a single frame that is larger."""
        self._most_bytes = most_bytes
        self._kept: deque[_Run | tuple[StreamFrame, int]] = deque()
        self._bytes = 0
        self._reaches = 0

    def add(self, frame: StreamFrame) -> None:
        """Keep a frame, and let go of the oldest ones past the bound."""
        if type(frame) is Token:
            last = self._kept[-1] if self._kept else None
            if type(last) is _Run and last.turn_id == frame.turn_id and last.last() + 1 == frame.seq:
                last.texts.append(frame.content)
            else:
                self._kept.append(_Run(frame))
            self._bytes += TOKEN_BYTES + len(frame.content)
        else:
            size = len(encode(frame))
            self._kept.append((frame, size))
            self._bytes += size
        while self._bytes > self._most_bytes and self._forget(frame.seq):
            pass

    @property
    def held_bytes(self) -> int:
        """About how much memory it takes."""
        return self._bytes

    def forget(self, seq: int) -> None:
        """Let go of everything up to here: only a client that has read so far can still resume."""
        self._kept.clear()
        self._bytes = 0
        self._reaches = seq

    def _forget(self, latest: int) -> bool:
        """Drop the oldest frame, or some of the oldest tokens, but not the latest; whether there were any."""
        oldest = self._kept[0]
        if isinstance(oldest, _Run):
            some = min(FORGET_TOKENS, len(oldest.texts), latest - oldest.first)
            self._bytes -= sum(TOKEN_BYTES + len(text) for text in oldest.texts[:some])
            del oldest.texts[:some]
            oldest.first += some
            self._reaches = oldest.first - 1
            if not oldest.texts:
                self._kept.popleft()
            return some > 0
        if len(self._kept) == 1:
            return False
        self._kept.popleft()
        frame, size = oldest
        self._bytes -= size
        self._reaches = frame.seq
        return True

    def reaches(self, seq: int) -> bool:
        """Whether every frame behind this position is still kept."""
        return seq >= self._reaches

    def after(self, seq: int) -> list[StreamFrame]:
        """The frames behind this position, in order, adjacent tokens of a turn joined."""
        missed: list[StreamFrame] = []
        for kept in reversed(self._kept):
            if isinstance(kept, _Run):
                if kept.last() <= seq:
                    break
                text = "".join(kept.texts[max(0, seq + 1 - kept.first) :])
                missed.append(Token(kept.last(), kept.turn_id, text))
            else:
                frame = kept[0]
                if frame.seq <= seq:
                    break
                missed.append(frame)
        return list(_joined(reversed(missed)))


def _joined(frames: Iterable[StreamFrame]) -> Iterator[StreamFrame]:
    """The same in fewer frames: adjacent tokens of one turn become one. Gaps in `seq` were replies to one client."""
    run: list[Token] = []
    for frame in frames:
        if run and (type(frame) is not Token or frame.turn_id != run[-1].turn_id):
            yield join(run)
            run = []
        if type(frame) is Token:
            run.append(frame)
        else:
            yield frame
    if run:
        yield join(run)
