"""Models behind a proxy of the environment, as their SDKs' users expect it."""

import asyncio

import pytest

from infra.llm import ModelError
from tests.support.model_service import HELLO, model_at


@pytest.mark.parametrize(
    ("url", "asked"),
    [("http://model.example/v1", b"POST http://model.example/v1/chat"), ("https://model.example/v1", b"CONNECT model")],
)
async def test_the_proxy_of_the_environment_is_asked(monkeypatch: pytest.MonkeyPatch, url: str, asked: bytes) -> None:
    """HTTP_PROXY for plain addresses, HTTPS_PROXY for the others; what the proxy refuses is told as unavailable."""
    seen: list[bytes] = []

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 502 Bad Gateway\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(refuse, "127.0.0.1", 0) as server:
        proxy = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        for name in ("HTTP_PROXY", "HTTPS_PROXY"):
            monkeypatch.setenv(name, proxy)
        async with model_at(url) as model:
            with pytest.raises(ModelError) as failure:
                async for _ in model.stream(HELLO, []):
                    pass
    assert failure.value.code == "model_unavailable"
    assert seen[0].startswith(asked)
