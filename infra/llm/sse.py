"""Server-sent events, read incrementally from bytes as they arrive.

The format is the HTML standard's ("Server-sent events", 9.2.6): lines end with CR, LF or CRLF, fields are joined until
an empty line, and what begins with a colon is a comment.
"""

MOST_LINE_BYTES = 1024 * 1024
"""The longest line that is taken, and the most that the data of one event may hold."""
BOM = b"\xef\xbb\xbf"


class TooLong(Exception):
    """A line, or an event, that is longer than `MOST_LINE_BYTES`."""


class EventReader:
    """Takes bytes, cut anywhere, and gives the events that are whole: their `event` field and their data."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self._size = 0
        self._began = self._after_cr = False
        self._name = b""
        self._data: list[bytes] = []

    def feed(self, received: bytes) -> list[tuple[bytes, bytes]]:
        """The events that end in these bytes, each as (`event` field or empty, data).

        Raises:
            TooLong: a line does not end.
        """
        if self._after_cr and received:
            received = received.removeprefix(b"\n")  # the rest of a CRLF that was cut in two
            self._after_cr = False
        if b"\n" not in received and b"\r" not in received:
            self._hold(received)
            return []
        if self._pieces:
            received = b"".join((*self._pieces, received))
            self._pieces.clear()
            self._size = 0
        if not self._began:
            received = received.removeprefix(BOM)
            self._began = True
        lines = received.splitlines()
        if received.endswith((b"\n", b"\r")):
            self._after_cr = received.endswith(b"\r")
        else:
            self._hold(lines.pop())
        return self._events(lines)

    def end(self) -> list[tuple[bytes, bytes]]:
        """The event that the stream ended in, though no empty line came after it, if it has any data."""
        last = b"".join(self._pieces)
        self._pieces.clear()
        return self._events([last.removeprefix(BOM), b""])

    def _hold(self, piece: bytes) -> None:
        self._pieces.append(piece)
        self._size += len(piece)
        if self._size > MOST_LINE_BYTES:
            raise TooLong

    def _events(self, lines: list[bytes]) -> list[tuple[bytes, bytes]]:
        events = []
        data = self._data
        for line in lines:
            if line.startswith(b"data:"):
                data.append(line[6:] if line[5:6] == b" " else line[5:])
            elif not line:
                if data:
                    events.append((self._name, data[0] if len(data) == 1 else b"\n".join(data)))
                    data.clear()
                self._name = b""
            elif line.startswith(b"event:"):
                self._name = line[6:].strip()
            elif line == b"data":
                data.append(b"")
        if len(data) > 1 and sum(map(len, data)) > MOST_LINE_BYTES:
            raise TooLong
        return events
