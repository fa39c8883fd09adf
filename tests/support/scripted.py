"""A model that says what a test tells it to: a real `Model`, driven by a script."""

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Literal

from infra.llm import Finished, Message, Reasoning, TextDelta, ToolCall, ToolSpec
from infra.llm.base import Chunk

Step = str | Reasoning | ToolCall | Finished | BaseException | asyncio.Event
"""Text to stream, a thought, a tool call, an end, an error to raise, or an event to wait for."""


class Pause(asyncio.Event):
    """A step at which a script, or a tool, stops until it is set; `reached` tells that it has come so far."""

    def __init__(self) -> None:
        super().__init__()
        self.reached = asyncio.Event()

    async def wait(self) -> Literal[True]:
        """Wait, and say so."""
        self.reached.set()
        return await super().wait()


class ScriptedModel:
    """Each call of `stream` plays the next script; `calls` keeps what it was asked, `closed` what was cut short."""

    def __init__(self, *scripts: Sequence[Step]) -> None:
        self._scripts = [list(script) for script in scripts]
        self.calls: list[list[Message]] = []
        self.offered: list[list[str]] = []
        self.cut_short = asyncio.Event()

    def enqueue(self, *script: Step) -> None:
        """Add a script to play."""
        self._scripts.append(list(script))

    async def stream(self, messages: Sequence[Message], tools: Sequence[ToolSpec]) -> AsyncGenerator[Chunk, None]:
        """See `Model.stream`."""
        self.calls.append(list(messages))
        self.offered.append([tool.name for tool in tools])
        script = self._scripts.pop(0)
        finished = asked = False
        try:
            for step in script:
                if isinstance(step, BaseException):
                    raise step
                if isinstance(step, asyncio.Event):
                    await step.wait()
                elif isinstance(step, str):
                    yield TextDelta(step)
                else:
                    finished = finished or isinstance(step, Finished)
                    asked = asked or isinstance(step, ToolCall)
                    yield step
            if not finished:
                yield Finished("tool_calls" if asked else "complete", 1, 1)
        except (asyncio.CancelledError, GeneratorExit):
            self.cut_short.set()
            raise

    async def close(self) -> None:
        """See `Model.close`."""


class RepliesTo(ScriptedModel):
    """Plays the script for the user's last message, however often it is asked; `default` for all others."""

    def __init__(self, scripts: Mapping[str, Sequence[Step]], default: Sequence[Step] = ("hi",)) -> None:
        super().__init__()
        self._by_message = scripts
        self._default = default

    def stream(self, messages: Sequence[Message], tools: Sequence[ToolSpec]) -> AsyncGenerator[Chunk, None]:
        """See `Model.stream`."""
        last = [message.content for message in messages if message.role == "user"][-1]
        self.enqueue(*self._by_message.get(last, self._default))
        return super().stream(messages, tools)
