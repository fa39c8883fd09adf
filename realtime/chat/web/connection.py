"""uvicorn's WebSocket connection, plus what a chat needs: sending without a task, and closing without a reader.

ASGI's `send` is a coroutine, so that each token would cost a task's step, and its close queues behind what the client
has not read. A client that stopped reading would hold its socket, and our memory, for as long as it likes.
"""

import contextlib
from collections.abc import Callable
from typing import Any

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.exceptions import InvalidState

from chat.metrics import LOST

SEND, DROP, LISTEN, CLOSED_WITH = "chat.send", "chat.drop", "chat.listen", "chat.closed_with"
"""The keys in the ASGI scope's extensions for `send_now`, `drop`, `listen` and `closed_with` of `Connection`."""
GRACE_SECONDS = 5.0
"""How long a reader that wakes up has to read its close code before the socket is torn down."""


class Connection(WebSocketsSansIOProtocol):
    """One client's WebSocket. Written against uvicorn 0.54, which `requirements.txt` pins."""

    _take: Callable[[str], bool] | None = None
    _may_take = False

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
        """Give a frame to who listens, or queue it."""
        take = self._take
        if take and self._may_take and self.queue.empty() and self.curr_msg_data_type == "text" and not self.close_sent:
            self._may_take = False
            with contextlib.suppress(UnicodeDecodeError):  # for the queue's side, which closes with 1007
                if take(b"".join(self.frames).decode()):
                    self.frames = []
                    return
        super().send_receive_event_to_app()

    def send_now(self, text: str) -> bool:
        """Send a text frame on an accepted connection, unless that would block; whether it was sent."""
        if self.close_sent or not self.writable.is_set() or self.transport.is_closing():
            return False
        try:
            self.conn.send_text(text.encode())
        except InvalidState:
            return False
        self.transport.write(b"".join(self.conn.data_to_send()))
        return True

    def drop(self, code: int, reason: str) -> None:
        """Close now. The application is told at once, and the client if it still reads; then the connection is cut."""
        if self.close_sent or self.transport.is_closing():
            return
        self.stop_keepalive()
        self.queue.put_nowait({"type": "websocket.disconnect", "code": code, "reason": reason})
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
        super().data_received(data)
        if not self.handshake_initiated and self.conn.handshake_exc is not None:
            self.transport.write(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
            self.transport.close()

    def handle_ping(self) -> None:
        """Answer a ping, unless the client does not read: the pongs would pile up in our memory."""
        if self.writable.is_set():
            super().handle_ping()
        else:
            self.conn.data_to_send()

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
