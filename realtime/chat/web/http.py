"""uvicorn's HTTP connection with bounds: what a request may take of our memory, and how long of our time."""

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from chat.web.open_files import OpenFiles
from infra.telemetry import get_logger

MOST_REQUEST_BYTES = 64 * 1024
"""A request with its headers, trailers and body: no route of ours reads a body. More is answered with 431."""
HEAD_SECONDS = 10.0
"""How long a client has to send its headers, from when it connected or began the request. Then it is cut off."""
STILL_SECONDS = 20.0
"""How often a client that is behind with reading its answer is looked at. For sockets there is SLOW_READER_SECONDS."""
LEAST_READ_BYTES = 16 * 1024
"""What it must have read since the last look. One that reads less is cut off: it would hold our memory for ever."""

TOO_LARGE = b"HTTP/1.1 431 Request Header Fields Too Large\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"

log = get_logger("http")


class HttpConnection(HttpToolsProtocol):
    """One client's HTTP connection; a WebSocket begins as one. Written against uvicorn 0.54, as `Connection` is."""

    _received = 0
    _head_timer: asyncio.TimerHandle | None = None
    _still_timer: asyncio.TimerHandle | None = None
    _answering: tuple[RequestResponseCycle, ...] = ()

    def __init__(self, *args: Any, files: OpenFiles, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._files = files

    def connection_made(self, transport: Any) -> None:
        """Begin to wait for a request."""
        super().connection_made(transport)
        if self._files.may_stay(transport.get_extra_info("socket").fileno()):
            self._await_head()
        else:
            transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop every timer, and tell every request that waits for its answer: uvicorn tells only the last."""
        self._head_came()
        self._moves()
        for cycle in self._answering:
            if not cycle.response_complete:
                cycle.disconnected = True
                cycle.message_event.set()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take what arrived, if the request is not too large by now."""
        if self.transport.is_closing():
            return
        self._received += len(data)
        super().data_received(data)
        if self._received > MOST_REQUEST_BYTES and self.transport.get_protocol() is self:
            self._refuse()

    def on_message_begin(self) -> None:
        """Count anew: another request begins."""
        super().on_message_begin()
        self._received = 0
        self._await_head()

    def on_headers_complete(self) -> None:
        """Answer, or hand over to the WebSocket."""
        self._head_came()
        super().on_headers_complete()
        if self.cycle:
            begun = (each for each in self._answering if not each.response_complete and each is not self.cycle)
            self._answering = (*begun, self.cycle)

    def pause_writing(self) -> None:
        """Watch a client that is behind with reading."""
        super().pause_writing()
        self._still_timer = self.loop.call_later(STILL_SECONDS, self._look, self.transport.get_write_buffer_size())

    def resume_writing(self) -> None:
        """It has caught up."""
        self._moves()
        super().resume_writing()

    def _await_head(self) -> None:
        self._head_came()
        self._head_timer = self.loop.call_later(HEAD_SECONDS, self._cut, "no request")

    def _head_came(self) -> None:
        if self._head_timer:
            self._head_timer.cancel()
            self._head_timer = None

    def _moves(self) -> None:
        if self._still_timer:
            self._still_timer.cancel()
            self._still_timer = None

    def _look(self, unread: int) -> None:
        left = self.transport.get_write_buffer_size()
        if unread - left < LEAST_READ_BYTES:
            self._cut("answer not read")
        else:
            self._still_timer = self.loop.call_later(STILL_SECONDS, self._look, left)

    def _refuse(self) -> None:
        log.info("request too large", bytes=self._received)
        if self.cycle is None or self.cycle.response_complete:
            self.transport.write(TOO_LARGE)
        self._head_came()
        self.transport.close()

    def _cut(self, why: str) -> None:
        log.debug("connection cut", cause=why)  # browsers open some ahead, and strangers any number
        self.transport.abort()
