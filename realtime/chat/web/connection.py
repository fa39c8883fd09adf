"""uvicorn's WebSocket connection, plus what a chat needs: sending without a task, and closing without a reader.

ASGI's `send` is a coroutine, so that each token would cost a task's step, and its close queues behind what the client
has not read. A client that stopped reading would hold its socket, and our memory, for as long as it likes.
"""

import contextlib
from collections.abc import Callable
from struct import Struct
from typing import Any

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.exceptions import InvalidState
from websockets.protocol import State

from chat.metrics import LOST
from chat.protocol.frames import CloseCode

SEND, DROP, LISTEN, CLOSED_WITH = "chat.send", "chat.drop", "chat.listen", "chat.closed_with"
"""The keys in the ASGI scope's extensions for `send_now`, `drop`, `listen` and `closed_with` of `Connection`."""
MOST_IDLE_FRAMES = 500
"""How many frames without content (pings, pongs, empty parts of a message) a client may send in a second."""
SLICE_BYTES = 4096
"""How much of what arrived is parsed before the connection may be closed for it: a frame has two bytes at least."""
TEXT = 0x81
"""The first byte of a frame that is a whole text message."""
SHORT, LONG = Struct("!BBH"), Struct("!BBQ")
"""The heads of frames that are longer than their second byte can say."""
GRACE_SECONDS = 5.0
"""How long a reader that wakes up has to read its close code before the socket is torn down."""


def text_frame(payload: bytes) -> bytes:
    """A whole text message as RFC 6455 (5.2) has it from a server: final, unmasked, no extension.

    The library's own way leads through six calls and costs as much as the rest of a token does.
    """
    size = len(payload)
    if size < 126:
        return bytes((TEXT, size)) + payload
    if size < 1 << 16:
        return SHORT.pack(TEXT, 126, size) + payload
    return LONG.pack(TEXT, 127, size) + payload


class Connection(WebSocketsSansIOProtocol):
    """One client's WebSocket. Written against uvicorn 0.54, which `requirements.txt` pins."""

    _take: Callable[[str], bool] | None = None
    _may_take = False
    _idle_frames = 0
    _idle_since = 0.0

    def handle_connect(self, event: Any) -> None:
        """Offer what we add to the application, whose task has been made but has not run yet."""
        super().handle_connect(event)
        if not self.close_sent:
            extensions: dict[str, Any] = self.scope["extensions"]
            extensions |= {
                SEND: self.send_now,
                DROP: self.drop,
                LISTEN: self.listen,
                CLOSED_WITH: self.closed_with,
            }

    def listen(self, take: Callable[[str], bool] | None) -> None:
        """Offer the next text frame to `take` as it arrives, a step of the loop before `receive` would have it.

        Only one of a packet, and none while others wait, so that frames keep their order and a burst its place in
        the queue. A frame that `take` declines by returning False is received in the ordinary way.
        """
        self._take = take

    def send_receive_event_to_app(self) -> None:
        """Give a frame to who listens, or queue it. One that is not UTF-8 closes the connection."""
        if self.curr_msg_data_type == "text" and not self.close_sent:
            try:
                text = b"".join(self.frames).decode()
            except UnicodeDecodeError:  # uvicorn's own answer logs a traceback, and raises where a close came with it
                self.frames = []
                self.drop(CloseCode.BAD_UTF8.code, CloseCode.BAD_UTF8.reason)
                return
            if self._take and self._may_take and self.queue.empty():
                self._may_take = False
                if self._take(text):
                    self.frames = []
                    return
        super().send_receive_event_to_app()

    def send_now(self, text: str) -> bool:
        """Send a text frame on an accepted connection, unless that would block; whether it was sent."""
        if self.close_sent or not self.writable.is_set() or self.transport.is_closing():
            return False
        if self.conn.state is not State.OPEN:
            return False
        self.transport.write(text_frame(text.encode()))
        return True

    def drop(self, code: int, reason: str) -> None:
        """Close now. The application is told at once, and the client if it still reads; then the connection is cut."""
        if self.close_sent or self.transport.is_closing():
            return
        self.stop_keepalive()
        self.queue.put_nowait({"type": "websocket.disconnect", "code": code, "reason": reason})
        with contextlib.suppress(InvalidState):  # the client's own close came with what it is closed for
            self.conn.send_close(code, reason)
        self.transport.write(b"".join(self.conn.data_to_send()))
        self.close_sent = True
        self.transport.close()
        self.loop.call_later(GRACE_SECONDS, self.transport.abort)

    def closed_with(self) -> int:
        """The code that the connection was closed with, by whoever closed first; `LOST` if neither side sent one.

        `receive` does not know it where uvicorn itself gave the client up, as on a missing pong.
        """
        return self.conn.close_sent.code if self.conn.close_sent else LOST

    def data_received(self, data: bytes) -> None:
        """Take what arrived; answer also a handshake that only the HTTP parser could read, such as a 9 kB cookie."""
        self._may_take = True
        for start in range(0, len(data), SLICE_BYTES):
            super().data_received(data[start : start + SLICE_BYTES])
            if self.close_sent or self.transport.is_closing():
                break
        if not self.handshake_initiated and self.conn.handshake_exc is not None:
            self.transport.write(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
            self.transport.close()

    def handle_ping(self) -> None:
        """Answer a ping, unless the client does not read: the pongs would pile up in our memory."""
        if self._is_flooded():
            return
        if self.writable.is_set():
            super().handle_ping()
        else:
            self.conn.data_to_send()

    def handle_pong(self, event: Any) -> None:
        """Take a pong."""
        if not self._is_flooded():
            super().handle_pong(event)

    def handle_cont(self, event: Any) -> None:
        """Take a part of a message; an empty one is no part of anything."""
        if event.data or event.fin or not self._is_flooded():
            super().handle_cont(event)

    def _is_flooded(self) -> bool:
        """Count a frame without content; whether there are so many that the connection is closed."""
        if self.close_sent:
            return True
        now = self.loop.time()
        if now - self._idle_since > 1:
            self._idle_since, self._idle_frames = now, 0
        self._idle_frames += 1
        if self._idle_frames > MOST_IDLE_FRAMES:
            self.drop(CloseCode.TOO_FAST.code, CloseCode.TOO_FAST.reason)
        return self.close_sent

    def handle_close(self, event: Any) -> None:
        """Close, and cut the connection of a client that does not read the close frame."""
        super().handle_close(event)
        if self.transport.is_closing():
            self.loop.call_later(GRACE_SECONDS, self.transport.abort)

    def shutdown(self) -> None:
        """Close for a restart. uvicorn's own raises on a connection that is closing, and leaves the others open."""
        if self.transport.is_closing():
            self.transport.abort()
        else:
            super().shutdown()
