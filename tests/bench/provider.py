"""A fast fake provider over loopback HTTP: chat completions, streamed as OpenAI streams them, in a process of its own.

It answers "Write N words" with N chunks of about 330 bytes, each an HTTP chunk of its own, at `rate` a second or as
fast as the reader takes them.
"""

import asyncio
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import uvloop

from infra.llm.demo import FILLER

HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ncache-control: no-cache\r\n"
    b"x-request-id: req_0123456789abcdef0123456789abcdef\r\ntransfer-encoding: chunked\r\n\r\n"
)
AT_ONCE = 20
"""Chunks that are written in one step, where there is no rate."""


def _http_chunk(event: str) -> bytes:
    data = f"data: {event}\n\n".encode()
    return b"%x\r\n%s\r\n" % (len(data), data)


def _chunk(delta: dict[str, str], finish: str | None = None) -> bytes:
    fields = {
        "id": "chatcmpl-C0123456789abcdefghijklmnopqr",
        "object": "chat.completion.chunk",
        "created": 1795000000,
        "model": "gpt-4o-mini-2024-07-18",
        "service_tier": "default",
        "system_fingerprint": "fp_0123456789",
        "choices": [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}],
        "usage": None,
        "obfuscation": "0123456789abcdef",
    }
    return _http_chunk(json.dumps(fields))


WORDS = [_chunk({"content": word + " "}) for word in FILLER]
FIRST, LAST = _chunk({"role": "assistant", "content": ""}), _chunk({}, "stop") + _http_chunk("[DONE]") + b"0\r\n\r\n"


class Answering(asyncio.Protocol):
    """One connection: requests one after the other, each answered with a stream."""

    def __init__(self, rate: float) -> None:
        self._rate = rate
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
            said = json.loads(body)["messages"][-1]["content"]
            self._task = asyncio.get_running_loop().create_task(self._answer(int(re.findall(r"\d+", said)[-1])))

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

    async def _answer(self, words: int) -> None:
        self._transport.write(HEAD + FIRST)
        if self._rate:
            loop = asyncio.get_running_loop()
            begun = loop.time()
            for number in range(words):
                await asyncio.sleep(max(0.0, begun + number / self._rate - loop.time()))
                self._transport.write(WORDS[number % len(WORDS)])
        else:
            for first in range(0, words, AT_ONCE):
                await self._writable.wait()
                some = range(first, min(first + AT_ONCE, words))
                self._transport.write(b"".join(WORDS[number % len(WORDS)] for number in some))
                await asyncio.sleep(0)
        self._transport.write(LAST)


@contextmanager
def providing(rate: float) -> Iterator[str]:
    """Run it; its base URL."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.bench.provider", str(rate)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout
        yield f"http://127.0.0.1:{process.stdout.readline().strip()}/v1"
    finally:
        process.terminate()
        process.wait(10)


async def main() -> None:
    """Serve until somebody ends the process."""
    rate = float(sys.argv[1])
    server = await asyncio.get_running_loop().create_server(lambda: Answering(rate), "127.0.0.1", 0, backlog=2048)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main())
