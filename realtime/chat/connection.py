"""uvicorn's WebSocket connection, with what a chat needs besides: sending without a task, closing without a reader.

ASGI's `send` is a coroutine, so that each token would cost a task's step, and its close queues behind what the client
has not read. A client that stopped reading would hold its socket, and our memory, for as long as it likes.
"""

from typing import Any

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.exceptions import InvalidState

SEND, DROP = "chat.send", "chat.drop"
"""The keys in the ASGI scope's extensions under which `Connection.send_now` and `Connection.drop` are offered."""
GRACE_SECONDS = 5.0
"""How long a reader that wakes up has to read its close code before the socket is torn down."""


class Connection(WebSocketsSansIOProtocol):
    """One client's WebSocket. Written against uvicorn 0.54, which `requirements.txt` pins."""

    def handle_connect(self, event: Any) -> None:
        """Offer what we add to the application, whose task has been made but has not run yet."""
        super().handle_connect(event)
        if not self.close_sent:
            extensions: dict[str, Any] = self.scope["extensions"]
            extensions |= {SEND: self.send_now, DROP: self.drop}

    def send_now(self, text: str) -> bool:
        """Send a text frame of an accepted connection, unless that would mean to wait; whether it was sent."""
        if self.close_sent or not self.writable.is_set() or self.transport.is_closing():
            return False
        try:
            self.conn.send_text(text.encode())
        except InvalidState:
            return False
        self.transport.write(b"".join(self.conn.data_to_send()))
        return True

    def drop(self, code: int, reason: str) -> None:
        """Close now: the application is told at once, the client if it still reads, and then the line is cut."""
        if self.close_sent or self.transport.is_closing():
            return
        self.stop_keepalive()
        self.queue.put_nowait({"type": "websocket.disconnect", "code": code, "reason": reason})
        self.conn.send_close(code, reason)
        self.transport.write(b"".join(self.conn.data_to_send()))
        self.close_sent = True
        self.transport.close()
        self.loop.call_later(GRACE_SECONDS, self.transport.abort)

    def data_received(self, data: bytes) -> None:
        """Answer also a handshake that the HTTP parser took and the WebSocket one does not, such as a 9 kB cookie."""
        super().data_received(data)
        if not self.handshake_initiated and self.conn.handshake_exc is not None:
            self.transport.write(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
            self.transport.close()

    def handle_ping(self) -> None:
        """Answer a ping, but not one of a client that does not read: its pongs would pile up in our memory."""
        if self.writable.is_set():
            super().handle_ping()
        else:
            self.conn.data_to_send()

    def handle_close(self, event: Any) -> None:
        """Say goodbye, and cut the line of a client that does not read it."""
        super().handle_close(event)
        if self.transport.is_closing():
            self.loop.call_later(GRACE_SECONDS, self.transport.abort)

    def shutdown(self) -> None:
        """Close for a restart. uvicorn's own raises on a connection that is closing, and leaves the others open."""
        if self.transport.is_closing():
            self.transport.abort()
        else:
            super().shutdown()
