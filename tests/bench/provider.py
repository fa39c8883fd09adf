"""A fast fake provider over loopback HTTP, in a process of its own: it streams as OpenAI and Anthropic stream.

It answers "Write N words" with N events, each an HTTP chunk of its own, at `rate` a second or as fast as the reader
takes them. The path says in which API's form; see `wire.py`. Where it stamps, each word says when it was due and when
it was sent; see `lateness.py`.
"""

import asyncio
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import uvloop

from infra.llm.demo import FILLER
from tests.bench.lateness import BLANK, stamp
from tests.bench.wire import END, HEAD, WIRES, Wire

AT_ONCE = 20
"""Words that are written in one step, where there is no rate."""


@cache
def reply(words: int) -> tuple[str, ...]:
    """The words of a reply."""
    return tuple(FILLER[number % len(FILLER)] + " " for number in range(words))


class Answering(asyncio.Protocol):
    """One connection: requests one after the other, each answered with a stream."""

    def __init__(self, rate: float, stamped: bool) -> None:
        self._rate = rate
        self._stamped = stamped
        self._received = b""
        self._task: asyncio.Task[None] | None = None
        self._writable = asyncio.Event()
        self._writable.set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the way back."""
        self._transport: asyncio.Transport = transport  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        """Answer once the request is whole."""
        self._received += data
        head, end, body = self._received.partition(b"\r\n\r\n")
        length = re.search(rb"content-length: *(\d+)", head, re.IGNORECASE)
        if end and length and len(body) >= int(length[1]):
            self._received = b""
            wire = WIRES[head.split(b" ", 2)[1].partition(b"?")[0]]
            texts = reply(int(re.findall(rb"Write (\d+) words", body)[-1]))
            self._task = asyncio.get_running_loop().create_task(self._answer(wire, texts))

    def pause_writing(self) -> None:
        """The reader is behind."""
        self._writable.clear()

    def resume_writing(self) -> None:
        """It has caught up."""
        self._writable.set()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop answering."""
        if self._task:
            self._task.cancel()

    async def _answer(self, wire: Wire, texts: tuple[str, ...]) -> None:
        self._transport.write(HEAD + wire.opening)
        if self._rate:
            loop = asyncio.get_running_loop()
            begun = loop.time()
            for number, text in enumerate(texts):
                due = begun + number / self._rate
                await asyncio.sleep(max(0.0, due - loop.time()))
                if self._stamped:
                    self._transport.write(wire.word(number, BLANK + " ").replace(BLANK.encode(), stamp(due)))
                else:
                    self._transport.write(wire.word(number, text))
        else:
            for first in range(0, len(texts), AT_ONCE):
                await self._writable.wait()
                some = enumerate(texts[first : first + AT_ONCE], first)
                self._transport.write(b"".join(wire.word(number, text) for number, text in some))
                await asyncio.sleep(0)
        self._transport.write(wire.closing(texts) + END)


@contextmanager
def providing(rate: float, *, stamped: bool = False) -> Iterator[str]:
    """Run it; the URL that the APIs' paths follow."""
    arguments = [str(rate), *(["stamped"] if stamped else [])]
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.bench.provider", *arguments], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout
        yield f"http://127.0.0.1:{process.stdout.readline().strip()}"
    finally:
        process.terminate()
        process.wait(10)


async def main() -> None:
    """Serve until somebody ends the process."""
    rate, stamped = float(sys.argv[1]), "stamped" in sys.argv
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Answering(rate, stamped), "127.0.0.1", 0, backlog=2048)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main())
