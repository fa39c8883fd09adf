"""A model that always has something to say, and tools that do all that tools may do."""

import asyncio
from collections.abc import Sequence
from typing import Any, Literal

from chat.tools.registry import ToolError, tool
from infra.llm import Message, ToolSpec
from tests.support.scripted import ScriptedModel


@tool
async def work(how: str) -> str:
    """Answer, or not."""
    if how == "hangs":
        await asyncio.Event().wait()
    if how == "breaks":
        raise RuntimeError("a bug")
    if how == "fails":
        raise ToolError("not today")
    return how


class Breath(asyncio.Event):
    """A step that takes as long as the event loop needs to send what was said before it."""

    async def wait(self) -> Literal[True]:
        """Wait so long."""
        for _ in range(4):
            await asyncio.sleep(0)
        return True


class Improviser(ScriptedModel):
    """Says the same where nothing is left to play."""

    def stream(self, messages: Sequence[Message], tools: Sequence[ToolSpec]) -> Any:
        """See `Model.stream`."""
        if not self._scripts:
            self.enqueue("well ", Breath(), "that ", Breath(), "depends ", "on ", Breath(), "you")
        return super().stream(messages, tools)
