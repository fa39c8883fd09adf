"""One cancellable turn: the model speaks, asks for tools, gets their results, and speaks on.

The turn performs; the conversation decides. Everything that happens is reported to it through `dispatch`, which never
blocks, and it provides the messages for every round.
"""

import asyncio
from collections.abc import Sequence
from contextlib import aclosing
from itertools import count
from typing import Any, Protocol
from uuid import uuid4

from chat.conversation.inputs import (
    End,
    Input,
    ModeFound,
    ReplyFinished,
    ThoughtCame,
    TokenCame,
    ToolAnswered,
    ToolsAsked,
    TurnFailed,
)
from chat.conversation.open_turn import to_json
from chat.metrics import UNKNOWN_TOOL, Outcome
from chat.protocol.frames import ErrorCode, Usage
from chat.sessions.kit import TurnKit
from chat.sessions.mode_call import ask_mode
from chat.sessions.pace import Pace
from chat.tools.registry import MOST_ARGUMENT_CHARS, MOST_PROBLEM_CHARS, ToolContext, ToolError
from infra import tracing
from infra.llm import Finished, Message, ModelError, Reasoning, TextDelta, ToolCall, ToolSpec
from infra.llm.base import bounded, well_formed
from infra.llm.retries import Retries
from infra.patience import Patience
from infra.telemetry import bind, get_logger
from infra.tracing.base import NO_SPAN, Span

BACKSTOP = 1.5
"""How much longer than `stall_seconds` a model may be silent to the turn. One over HTTP measures its silence itself,
where any byte counts, and must be the first to notice: it may have others to ask."""
FAIR_SHARE = 32
"""Chunks a turn takes before it lets others run. A model whose answer is already there would never suspend."""
MOST_REPLY_CHARS = 512 * 1024
"""Where a reply is cut, as one that reached the model's own limit is: about 130,000 tokens."""
MOST_NAME_CHARS = 128
"""The longest name of a tool, and id of a call, that is kept of what a model invents."""

SORRY = "Something went wrong on our side; your message is kept."

log = get_logger("turn")


class Talk(Protocol):
    """What a turn needs of its session."""

    context: ToolContext
    trace: Span
    """What its turns belong to."""

    def dispatch(self, happened: Input) -> None:
        """Tell the conversation what happened."""

    def messages(self) -> list[Message]:
        """What to tell the model now."""

    def mode_question(self) -> list[Message] | None:
        """What to ask the model about the session's mode, if it is to be asked."""

    def has_room(self) -> bool:
        """Whether a reader keeps up."""

    async def room(self) -> None:
        """Wait until one does."""


class Turn:
    """One turn of one session."""

    def __init__(self, turn_id: str, talk: Talk, kit: TurnKit) -> None:
        self._turn_id = turn_id
        self._talk = talk
        self._kit = kit
        self._call_ids: set[str] = set()
        self._pace = Pace(kit.metrics)
        self._span = NO_SPAN

    async def run(self) -> None:
        """Run to the end and tell it, unless the task is cancelled: then its session knows."""
        about = {"gen_ai.conversation.id": self._talk.context.session_id, "realtime.turn_id": self._turn_id}
        with tracing.span("turn", about, parent=self._talk.trace.header) as self._span:
            if self._span.header:
                bind(trace_id=self._span.header.split("-")[1])
            try:
                await self._run()
            except asyncio.CancelledError:
                self._span.set({"realtime.reason": "cancelled"})
                raise

    async def _run(self) -> None:
        talk, turn_id = self._talk, self._turn_id
        try:
            if question := talk.mode_question():
                name, spent = await ask_mode(self._kit.model, question)
                usage = self._kit.used(talk.context.user_id, spent) if spent else Usage()
                talk.dispatch(ModeFound(turn_id, name, usage))
            for round_number in count():
                # After the last round the model gets no tools: it must answer with what it has.
                tools = self._kit.tools.specs() if round_number < self._kit.max_tool_rounds else []
                calls, finished = await self._ask(tools)
                usage = self._kit.used(talk.context.user_id, finished)
                if not calls:
                    self._span.set({"realtime.reason": finished.reason})
                    end = End(finished.why, bounded(finished.opaque), finished.model)
                    talk.dispatch(ReplyFinished(turn_id, finished.reason, usage, end))
                    return
                talk.dispatch(ToolsAsked(turn_id, tuple(calls), usage))
                async with asyncio.TaskGroup() as running:
                    for call in calls:
                        running.create_task(self._answer(call))
        except ModelError as error:
            self._kit.metrics.model_errors.labels(error.code).inc()
            log.warning("model failed", code=error.code, cause=_name(error), detail=error.detail)
            self._span.failed(error.code)
            talk.dispatch(TurnFailed(turn_id, error.code, str(error)))
        except Exception:
            log.exception("turn failed")
            self._span.failed(ErrorCode.INTERNAL.value)
            talk.dispatch(TurnFailed(turn_id, ErrorCode.INTERNAL, SORRY))
        finally:
            self._pace.over()

    async def _ask(self, tools: Sequence[ToolSpec]) -> tuple[list[ToolCall], Finished]:
        """One round of the model, tried again only while nothing of it was shown."""
        retries = Retries(self._kit.stall_seconds)
        while True:
            try:
                return await self._stream(tools)
            except ModelError as error:
                if not await retries.again(error):
                    raise

    async def _stream(self, tools: Sequence[ToolSpec]) -> tuple[list[ToolCall], Finished]:
        """Pass the model's text on as it comes; return what it asks for at its end."""
        calls: list[ToolCall] = []
        finished: Finished | None = None
        taken = shown = chars = 0
        try:
            async with (
                Patience(BACKSTOP * self._kit.stall_seconds) as patience,
                aclosing(self._kit.model.stream(self._talk.messages(), tools)) as chunks,
            ):
                async for chunk in chunks:
                    patience.heard()
                    if type(chunk) is TextDelta:
                        if not shown:
                            self._pace.speaks()
                        self._talk.dispatch(TokenCame(self._turn_id, chunk.text))
                        shown += chunk.pieces
                        chars += len(chunk.text)
                    elif type(chunk) is Reasoning:
                        chars += self._think(chunk.text)
                    elif type(chunk) is ToolCall:
                        calls.append(self._unique(chunk))
                    elif type(chunk) is Finished:
                        finished = chunk
                    if chars > MOST_REPLY_CHARS:
                        log.warning("reply cut", chars=chars)
                        finished = Finished("length", 0, 0)
                        break
                    taken += 1
                    if taken % FAIR_SHARE == 0:
                        await asyncio.sleep(0)
                    if not self._talk.has_room():
                        patience.rest()  # waiting for a reader is not the model's stall
                        await self._talk.room()
                        patience.wake()
            finished = _whole(finished)
        except TimeoutError as error:
            raise ModelError("model_timeout", "The model did not answer in time.", retryable=not shown) from error
        except ModelError as error:
            error.retryable = error.retryable and not shown  # a reply that began cannot begin again
            raise
        finally:
            self._pace.fell_silent(shown, to_call=bool(calls))
        return calls, finished

    def _think(self, text: str) -> int:
        """Pass a thought on, if there is one: without it the provider only says that it is at work. Its length."""
        if text:
            self._talk.dispatch(ThoughtCame(self._turn_id, text))
        return len(text)

    async def _answer(self, call: ToolCall) -> None:
        """Run one tool; whatever goes wrong is a result that the model can read."""
        tool = call.name if call.name in self._kit.tools else UNKNOWN_TOOL
        about = {"gen_ai.operation.name": "execute_tool", "gen_ai.tool.name": tool, "gen_ai.tool.call.id": call.call_id}
        with tracing.span(f"execute_tool {tool}", about) as span:
            result, problem, outcome = await self._use(call)
            if problem is not None:
                span.failed(outcome)
            if tracing.has_contents():
                answer = to_json({"error": problem} if problem is not None else result)
                span.set({"gen_ai.tool.call.arguments": call.arguments, "gen_ai.tool.call.result": answer})
        self._kit.metrics.tool_calls.labels(tool, outcome).inc()
        self._talk.dispatch(ToolAnswered(self._turn_id, call.call_id, result, problem))

    async def _use(self, call: ToolCall) -> tuple[Any, str | None, Outcome]:
        """The tool's result, or what is wrong in words, and which of these it is."""
        result, problem = None, None
        outcome: Outcome = "error"
        try:
            async with Patience(self._kit.tool_seconds):
                result = await self._kit.tools.call(call.name, call.arguments, self._talk.context)
            outcome = "ok"
        except TimeoutError:
            problem, outcome = f"no answer within {self._kit.tool_seconds:g} s", "timeout"
        except ToolError as error:
            problem = well_formed(str(error)[:MOST_PROBLEM_CHARS])
        except asyncio.CancelledError:
            if (task := asyncio.current_task()) and task.cancelling():
                raise
            problem = "the tool gave up"  # its own doing, not a stop of ours
        except Exception:
            log.exception("tool failed", tool=call.name)
            problem = "the tool failed"
        return result, problem, outcome

    def _unique(self, call: ToolCall) -> ToolCall:
        """The call in Unicode, under an id that no other of this turn has: some leave ids out, or repeat them.

        Raises:
            ModelError: its arguments are too long for any tool.
        """
        if len(call.arguments) > MOST_ARGUMENT_CHARS:
            raise ModelError("model_refused", "The model's call of a tool was too long.", retryable=False)
        call_id = well_formed(call.call_id)[:MOST_NAME_CHARS]
        if not call_id or call_id in self._call_ids:
            call_id = f"call_{uuid4().hex[:12]}"
        self._call_ids.add(call_id)
        name = well_formed(call.name)[:MOST_NAME_CHARS]
        return ToolCall(call_id, name, well_formed(call.arguments), bounded(call.opaque))


def _whole(finished: Finished | None) -> Finished:
    if finished is None:
        raise ModelError("model_unavailable", "The model's answer broke off.", retryable=True)
    return finished


def _name(error: ModelError) -> str:
    """What went wrong, for the log, without the provider's own words: they can quote keys and prompts."""
    return f"{error} ({type(error.__cause__).__name__})" if error.__cause__ else str(error)
