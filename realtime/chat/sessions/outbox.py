"""What waits to be sent on one socket: ordered, joined, bounded.

A frame is sent at once, and so is the first token after a quiet step of the event loop. Tokens that follow in the same
step are sent together in the next step, those of one turn as one frame, and so on until a step brings none. At a human
pace that means token by token, without delay. When a model is fast, frames get bigger instead of the queue longer. If
sending would block, because the reader is slow or the server lacks our `Connection`, one writer task does it.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Iterator

from chat.protocol.codec import encode, join
from chat.protocol.frames import CloseCode, Token

SOFT_CHARS = 64 * 1024
"""Past this the turn waits for the reader."""
HARD_CHARS = 1024 * 1024
"""Past this the socket is given up, even before its deadline: with two readers, the turn waits for the faster."""


class Outbox:
    """The way out to one socket. `gone` is true once nothing more will be sent on it."""

    __slots__ = (
        "_batch_since",
        "_chars",
        "_drop",
        "_flushing",
        "_last_words",
        "_loop",
        "_pending",
        "_room",
        "_send_now",
        "_wake",
        "gone",
        "on_room",
        "wants_reasoning",
    )

    def __init__(self, drop: Callable[[CloseCode], None], send_now: Callable[[str], bool] | None = None) -> None:
        """`drop` closes the socket without waiting for its reader; `send_now` sends, or says that it would wait."""
        self._drop = drop
        self._send_now = send_now or _would_wait
        self._flushing = False
        self._loop = asyncio.get_running_loop()
        self._pending: list[Token | str] = []
        self._chars = 0
        self._wake: asyncio.Future[None] | None = None
        self._room: asyncio.Future[None] | None = None
        self._batch_since: float | None = None
        self._last_words: CloseCode | None = None
        self.on_room: Callable[[], None] = _nothing
        self.gone = False
        self.wants_reasoning = False
        """Whether its client asked for the model's thoughts."""

    def put_token(self, token: Token) -> None:
        """Send a token if none was sent in this step of the loop; else queue it, to be joined with its neighbours."""
        if not self._flushing and self._can_send() and self._send_now(encode(token)):
            self._flush_later()
        else:
            self._queue(token, len(token.content))

    def put(self, text: str) -> None:
        """Send an encoded frame, or queue it behind what waits."""
        if self._pending or not self._can_send() or not self._send_now(text):
            self._queue(text, len(text))

    def has_room(self) -> bool:
        """Whether the reader keeps up."""
        return self._chars <= SOFT_CHARS

    def held_bytes(self) -> int:
        """About how much memory takes what its reader has not read."""
        return self._chars

    async def room(self) -> None:
        """Wait until the reader has caught up, or is given up."""
        while not self.has_room() and not self.gone:
            if self._room is None:
                self._room = self._loop.create_future()
            await asyncio.shield(self._room)

    def close(self, code: CloseCode) -> None:
        """Send what is queued, then close the socket with this code."""
        self._last_words = code
        self._rouse()

    def is_closing(self) -> bool:
        """Whether `close` was called and the close has not been sent."""
        return self._last_words is not None and not self.gone

    def drop(self, code: CloseCode) -> None:
        """Give up on the reader: drop what is queued, and close the socket."""
        if not self.gone:
            self._drop(code)
            self.abandon()

    def abandon(self) -> None:
        """Send nothing more: drop what was queued, and release whoever waits for room."""
        self.gone = True
        self._pending.clear()
        self._made_room()

    def stuck_for(self, now: float) -> float:
        """For how many seconds the current batch has been stuck, at loop time `now`."""
        return 0.0 if self._batch_since is None else now - self._batch_since

    async def run(self, send: Callable[[str], Awaitable[None]], close: Callable[[CloseCode], Awaitable[None]]) -> None:
        """Send until the socket is closed or gone. The one task that writes to it."""
        while not self.gone:
            if self._pending:
                batch, self._pending = self._pending, []
                self._batch_since = self._loop.time()
                for text in joined(batch):
                    if self.gone:
                        return
                    await send(text)
                self._batch_since = None
                self._made_room()
            elif self._last_words is not None:
                await close(self._last_words)
                return
            else:
                self._wake = self._loop.create_future()
                await self._wake

    def _can_send(self) -> bool:
        """Whether the writer is idle: everything was sent, so nothing would be overtaken."""
        return self._wake is not None and not self.gone

    def _queue(self, item: Token | str, chars: int) -> None:
        if self.gone:
            return
        self._pending.append(item)
        self._chars += chars
        if self._wake is not None and not self._flushing:
            self._flush_later()
        # Only a reader that was behind already is given up: one long frame is not its fault.
        if self._chars > HARD_CHARS and self._chars - chars > SOFT_CHARS:
            self.drop(CloseCode.SLOW_READER)

    def _flush_later(self) -> None:
        self._flushing = True
        self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        """Send what was put in the previous step, if possible without the writer, and come back in the next one."""
        self._flushing = False
        if self._wake is None or not self._pending:
            return
        texts = list(joined(self._pending))
        sent = 0
        while sent < len(texts) and self._send_now(texts[sent]):
            sent += 1
        if sent:
            self._pending = list(texts[sent:])
            self._made_room()
        if self._pending:
            self._rouse()
        else:
            self._flush_later()

    def _rouse(self) -> None:
        wake = self._wake
        if wake is not None:
            self._wake = None
            if not wake.done():  # it is, if the writer was cancelled meanwhile
                wake.set_result(None)

    def _made_room(self) -> None:
        was_full = self._chars > SOFT_CHARS
        self._chars = sum(len(item) if isinstance(item, str) else len(item.content) for item in self._pending)
        if self._room is not None:
            self._room.set_result(None)
            self._room = None
        if was_full:
            self.on_room()


def joined(pending: Iterable[Token | str]) -> Iterator[str]:
    """The frames to send for these, in order: adjacent tokens of one turn become one `token` frame."""
    run: list[Token] = []
    for item in pending:
        if run and (isinstance(item, str) or item.turn_id != run[-1].turn_id):
            yield encode(join(run))
            run = []
        if isinstance(item, str):
            yield item
        else:
            run.append(item)
    if run:
        yield encode(join(run))


def _nothing() -> None:
    pass


def _would_wait(text: str) -> bool:
    return False
