"""What services that call themselves compatible send, recorded: one file of `tests/events/providers` for each manner.

A recording has the `stream`, piece by piece, and what is `right`: the text, the thoughts, the calls, the end.
"""

import asyncio
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from infra.llm import Finished, ModelError, Reasoning, TextDelta, ToolCall, ToolSpec
from infra.llm.base import Chunk
from tests.support.client import PATIENCE
from tests.support.model_service import HELLO, Service, model_at

FOLDER = Path(__file__).resolve().parents[2] / "events" / "providers"
RECORDED = {file.stem: json.loads(file.read_text(encoding="utf-8")) for file in sorted(FOLDER.glob("*.json"))}
TOOLS = [ToolSpec(name, "A tool.", {"type": "object", "properties": {}}) for name in ("fetch_data", "get_user_stats")]


def pieces(recording: dict[str, Any]) -> list[Any]:
    """The steps of a service that says this."""
    return [each if each == "hang" else each.encode() for each in recording["stream"]]


def bytes_by(size: int, recording: dict[str, Any]) -> list[Any]:
    """The same, cut into pieces of so many bytes, whatever they are in the middle of."""
    steps: list[Any] = []
    for each in pieces(recording):
        steps += [each] if each == "hang" else [each[at : at + size] for at in range(0, len(each), size)]
    return steps


async def made_of(steps: list[Any]) -> tuple[list[Chunk], ModelError | None]:
    """The chunks that come of it, and the error that ends them."""
    chunks: list[Chunk] = []
    try:
        async with Service(*steps) as service, model_at(service.base_url) as model, asyncio.timeout(PATIENCE):
            async for chunk in model.stream(HELLO, TOOLS):
                chunks.append(chunk)  # noqa: PERF401 - what came before an error counts as well
    except ModelError as error:
        return chunks, error
    return chunks, None


def assert_right(right: dict[str, Any], chunks: list[Chunk], error: ModelError | None) -> None:
    """That it is as the recording says."""
    assert "".join(chunk.text for chunk in chunks if isinstance(chunk, TextDelta)) == right.get("text", "")
    assert "".join(chunk.text for chunk in chunks if isinstance(chunk, Reasoning)) == right.get("thought", "")
    if problem := right.get("problem"):
        assert error
        assert error.code == problem
        assert "secret" not in str(error)
        return
    assert error is None
    calls = [ToolCall(*call) for call in right.get("calls", [])]
    assert [chunk for chunk in chunks if isinstance(chunk, ToolCall)] == calls
    end = chunks[-1]
    assert isinstance(end, Finished)
    assert end.reason == right.get("reason", "tool_calls" if calls else "complete")
    assert end.why == right.get("why", "")
    assert end.opaque == right.get("opaque")
    if tokens := right.get("tokens"):
        assert [end.input_tokens, end.output_tokens, end.cached_tokens, end.reasoning_tokens] == tokens


@pytest.mark.parametrize("name", RECORDED)
async def test_it_is_understood(name: str) -> None:
    """The reply is what was meant."""
    assert_right(RECORDED[name]["right"], *await made_of(pieces(RECORDED[name])))


@pytest.mark.parametrize("size", [1, 7])
@pytest.mark.parametrize("name", [name for name in RECORDED if "hang" not in RECORDED[name]["stream"]])
async def test_it_is_understood_however_the_network_cuts_it(name: str, size: int) -> None:
    """In pieces of one byte, or of seven: in the middle of a letter, a line end or a tag."""
    assert_right(RECORDED[name]["right"], *await made_of(bytes_by(size, RECORDED[name])))


async def test_whatever_comes_is_progress() -> None:
    """Comments and thoughts keep a model that is at work from being given up, however long they take."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n")
            thought, *answered = pieces(RECORDED["reasoning_content"])
            for step in [*[b": still at work\n\n", thought] * 6, *answered]:
                writer.write(step)
                await asyncio.sleep(0.05)
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    chunks = []
    async with (
        server,
        model_at(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1", llm_timeout_seconds=0.16) as model,
    ):
        async for chunk in model.stream(HELLO, []):
            chunks.append(chunk)
            if isinstance(chunk, Finished):
                break
    assert "".join(chunk.text for chunk in chunks if isinstance(chunk, TextDelta)) == "Hello world."
