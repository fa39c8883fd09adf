"""uvicorn's WebSocket connection, with a way to close it that does not wait for its reader.

ASGI's `websocket.close` queues behind what the client has not read, and uvicorn's own close then waits for the
peer without end. A client that stopped reading would hold its socket, and our memory, for as long as it likes.
"""

from typing import Any

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

DROP = "chat.drop"
"""The key in the ASGI scope's extensions under which `Connection.drop` is offered."""
GRACE_SECONDS = 5.0
"""How long a reader that wakes up has to read its close code before the socket is torn down."""


class Connection(WebSocketsSansIOProtocol):
    """One client's WebSocket. Written against uvicorn 0.54, which `requirements.txt` pins."""

    def handle_connect(self, event: Any) -> None:
        """Offer `drop` to the application, whose task has been made but has not run yet."""
        super().handle_connect(event)
        if not self.close_sent:
            extensions: dict[str, Any] = self.scope["extensions"]
            extensions[DROP] = self.drop

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
