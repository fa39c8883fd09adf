"""One cancellable turn: the model speaks, asks for tools, gets their results, and speaks on.

The turn performs; what its findings mean is the conversation's to decide. It is told of each through
`dispatch`, which never blocks, and is asked for the messages of every round.
"""

import asyncio
from collections.abc import Sequence
from contextlib import aclosing
from itertools import count
from typing import Protocol
from uuid import uuid4

from chat.backoff import backoff
from chat.inputs import Input, ReplyFinished, TokenCame, ToolAnswered, ToolsAsked, TurnFailed
from chat.protocol import ErrorCode, Usage
from chat.tools.registry import Registry, ToolContext, ToolError
from infra.llm import Finished, Message, Model, ModelError, TextDelta, ToolCall, ToolSpec
from infra.telemetry import get_logger

MODEL_ATTEMPTS = 3
FAIR_SHARE = 32
"""Chunks a turn takes before it lets the others run. A model that has much at hand never suspends by itself."""
REARM_SECONDS = 1.0
"""How often the stall timeout is set anew. Once a chunk would cost a timer per token."""

log = get_logger("turn")


class Talk(Protocol):
    """What a turn needs of its session."""

    context: ToolContext

    def dispatch(self, happened: Input) -> None:
        """Tell the conversation what happened."""

    def messages(self) -> list[Message]:
        """What to tell the model now."""

    def has_room(self) -> bool:
        """Whether the readers and the store keep up."""

    async def room(self) -> None:
        """Wait until they do."""


class TurnRunner:
    """Runs turns with one model and one set of tools."""

    def __init__(
        self, model: Model, tools: Registry, *, stall_seconds: float, tool_seconds: float, max_tool_rounds: int
    ) -> None:
        self._model = model
        self._tools = tools
        self._stall_seconds = stall_seconds
        self._tool_seconds = tool_seconds
        self._max_tool_rounds = max_tool_rounds

    async def run(self, turn_id: str, talk: Talk) -> None:
        """Run the turn to its end, which is always told, unless it is cancelled: then whoever cancels knows."""
        try:
            for round_number in count():
                # After the last round the model gets no tools: it must answer with what it has.
                tools = self._tools.specs() if round_number < self._max_tool_rounds else []
                calls, finished = await self._ask(turn_id, talk, tools)
                usage = Usage(finished.input_tokens, finished.output_tokens)
                if not calls:
                    talk.dispatch(ReplyFinished(turn_id, finished.reason, usage))
                    return
                talk.dispatch(ToolsAsked(turn_id, calls, usage))
                async with asyncio.TaskGroup() as running:
                    for call in calls:
                        running.create_task(self._answer(turn_id, talk, call))
        except ModelError as error:
            log.warning("model failed", turn_id=turn_id, code=error.code, cause=repr(error.__cause__ or error)[:300])
            talk.dispatch(TurnFailed(turn_id, error.code, str(error)))
        except Exception:
            log.exception("turn failed", turn_id=turn_id)
            talk.dispatch(
                TurnFailed(turn_id, ErrorCode.INTERNAL, "Something went wrong on our side; your message is kept.")
            )

    async def _ask(self, turn_id: str, talk: Talk, tools: Sequence[ToolSpec]) -> tuple[tuple[ToolCall, ...], Finished]:
        """One round of the model, tried again only while nothing of it was shown."""
        attempt = 0
        while True:
            try:
                return await self._stream(turn_id, talk, tools)
            except ModelError as error:
                attempt += 1
                if not error.retryable or attempt == MODEL_ATTEMPTS:
                    raise
                log.info("model call is tried again", turn_id=turn_id, code=error.code, attempt=attempt)
            await asyncio.sleep(backoff(attempt - 1, first=0.25, most=4))

    async def _stream(
        self, turn_id: str, talk: Talk, tools: Sequence[ToolSpec]
    ) -> tuple[tuple[ToolCall, ...], Finished]:
        loop = asyncio.get_running_loop()
        calls: list[ToolCall] = []
        finished: Finished | None = None
        shown = False
        try:
            async with (
                asyncio.timeout(self._stall_seconds) as deadline,
                aclosing(self._model.stream(talk.messages(), tools)) as chunks,
            ):
                armed = loop.time()
                taken = 0
                async for chunk in chunks:
                    if type(chunk) is TextDelta:
                        talk.dispatch(TokenCame(turn_id, chunk.text))
                        shown = True
                    elif type(chunk) is ToolCall:
                        calls.append(_unique(chunk, calls))
                    elif type(chunk) is Finished:
                        finished = chunk
                    taken += 1
                    # The first token leaves at once; after it, turns with much at hand take turns.
                    if taken == 1 or taken % FAIR_SHARE == 0:
                        await asyncio.sleep(0)
                    if not talk.has_room():
                        deadline.reschedule(None)  # waiting for a reader is not the model's stall
                        await talk.room()
                        armed = 0.0
                    if (now := loop.time()) - armed > REARM_SECONDS:
                        deadline.reschedule(now + self._stall_seconds)
                        armed = now
            if finished is None:
                raise ModelError("model_unavailable", "The model's answer broke off.", retryable=True)
        except TimeoutError as error:
            stalled = ModelError("model_timeout", "The model did not answer in time.", retryable=not shown)
            raise stalled from error
        except ModelError as error:
            error.retryable = error.retryable and not shown  # a reply that began cannot begin again
            raise
        return tuple(calls), finished

    async def _answer(self, turn_id: str, talk: Talk, call: ToolCall) -> None:
        """Run one tool; whatever goes wrong is a result that the model can read."""
        try:
            async with asyncio.timeout(self._tool_seconds):
                result = await self._tools.call(call.name, call.arguments, talk.context)
        except TimeoutError:
            answered = ToolAnswered(turn_id, call.call_id, error=f"no answer within {self._tool_seconds:g} s")
        except ToolError as error:
            answered = ToolAnswered(turn_id, call.call_id, error=str(error))
        except Exception:
            log.exception("tool failed", turn_id=turn_id, tool=call.name)
            answered = ToolAnswered(turn_id, call.call_id, error="the tool failed")
        else:
            answered = ToolAnswered(turn_id, call.call_id, result)
        talk.dispatch(answered)


def _unique(call: ToolCall, others: Sequence[ToolCall]) -> ToolCall:
    """The call under an id that no other has: some providers leave ids out, or repeat them."""
    if call.call_id and all(call.call_id != other.call_id for other in others):
        return call
    return ToolCall(f"call_{uuid4().hex[:12]}", call.name, call.arguments)
