"""What a client may have missed: the latest frames of the stream, as far back as a bound reaches.

Pure, like the conversation that owns it.
"""

from collections import deque
from collections.abc import Iterable, Iterator

from chat.protocol import StreamFrame, Token, encode, join

TOKEN_BYTES = 150
"""What a kept token takes besides its text: the struct, the string's header, the number, its place."""


class Replay:
    """The latest frames. `after(seq)` gives those behind a position, if it reaches back so far."""

    __slots__ = ("_bytes", "_frames", "_most_bytes", "_reaches")

    def __init__(self, most_bytes: int) -> None:
        """About `most_bytes` of memory are used, and more only for a single frame that is larger."""
        self._most_bytes = most_bytes
        self._frames: deque[tuple[StreamFrame, int]] = deque()
        self._bytes = 0
        self._reaches = 0

    def add(self, frame: StreamFrame) -> None:
        """Keep a frame, and let go of the oldest ones past the bound."""
        size = TOKEN_BYTES + len(frame.content) if type(frame) is Token else len(encode(frame))
        self._frames.append((frame, size))
        self._bytes += size
        while self._bytes > self._most_bytes and len(self._frames) > 1:
            oldest, its_size = self._frames.popleft()
            self._bytes -= its_size
            self._reaches = oldest.seq

    def reaches(self, seq: int) -> bool:
        """Whether every frame behind this position is still kept."""
        return seq >= self._reaches

    def after(self, seq: int) -> list[StreamFrame]:
        """The frames behind this position, in order, adjacent tokens of a turn joined."""
        missed: list[StreamFrame] = []
        for frame, _ in reversed(self._frames):
            if frame.seq <= seq:
                break
            missed.append(frame)
        return list(joined(reversed(missed)))


def joined(frames: Iterable[StreamFrame]) -> Iterator[StreamFrame]:
    """The same in fewer frames: adjacent tokens of one turn become one, with the last one's `seq`."""
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
