"""One turn: rounds of the model and its tools, what is tried again and what is not, and how it is stopped."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

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
from chat.metrics import Metrics
from chat.protocol.frames import Usage
from chat.sessions.kit import TurnKit
from chat.sessions.turn import Turn
from chat.tools.registry import Registry, ToolContext, ToolError, tool
from infra.llm import Finished, Message, Model, ModelError, Reasoning, TextDelta, ToolCall, ToolSpec
from infra.llm.base import Chunk
from infra.llm.retries import ATTEMPTS
from infra.store.sqlite import SqliteStore
from infra.tracing.base import NO_SPAN
from tests.support.scripted import Pause, ScriptedModel, Step

ONE = Usage(1, 1)
HISTORY = [Message("user", "hello")]


def down() -> ModelError:
    return ModelError("model_unavailable", "The model is down.", retryable=True)


@tool
async def double(context: ToolContext, number: int) -> int:
    """Double a number."""
    return 2 * number


@tool
async def fail(how: str) -> None:
    """Fail, in words or not."""
    raise ToolError("not today") if how == "words" else RuntimeError("a secret")


@tool
async def hang() -> None:
    """Never answer."""
    await asyncio.Event().wait()


class Talk:
    """A session's side of a turn: it keeps what it is told, and can be a slow reader."""

    def __init__(self, context: ToolContext) -> None:
        self.context = context
        self.trace = NO_SPAN
        self.told: list[Input] = []
        self.question: list[Message] | None = None
        self.waited = 0
        self.readable = asyncio.Event()
        self.readable.set()
        self.heard = asyncio.Event()

    def dispatch(self, happened: Input) -> None:
        """See `chat.sessions.turn.Talk`."""
        self.told.append(happened)
        self.heard.set()

    def messages(self) -> list[Message]:
        """See `chat.sessions.turn.Talk`: the history so far, made of what was told."""
        return [*HISTORY, *(Message("assistant", repr(each)) for each in self.told if isinstance(each, ToolAnswered))]

    def mode_question(self) -> list[Message] | None:
        """See `chat.sessions.turn.Talk`."""
        return self.question

    def has_room(self) -> bool:
        """See `chat.sessions.turn.Talk`."""
        return self.readable.is_set()

    async def room(self) -> None:
        """See `chat.sessions.turn.Talk`."""
        self.waited += 1
        await self.readable.wait()

    async def hears(self, happened: Input) -> None:
        """Wait until this is told."""
        async with asyncio.timeout(5):
            while happened not in self.told:
                self.heard.clear()
                await self.heard.wait()


@pytest.fixture
async def talk(tmp_path: Path) -> AsyncIterator[Talk]:
    """With a real store in its context."""
    store = await SqliteStore.open(tmp_path / "turn.db")

    async def settled() -> None:
        pass

    yield Talk(ToolContext("s", "u", store, settled))
    await store.close()


@pytest.fixture(autouse=True)
def _retry_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits for a scripted model to recover."""
    monkeypatch.setattr("infra.llm.retries.backoff", lambda attempt, first, most: 0.0)


def a_turn(
    talk: Talk,
    model: Model,
    *,
    stall: float = 5.0,
    tool_seconds: float = 5.0,
    rounds: int = 3,
    metrics: Metrics | None = None,
    tools: Registry | None = None,
) -> Turn:
    kit = TurnKit(
        model=model,
        tools=tools or Registry([double, fail, hang]),
        stall_seconds=stall,
        tool_seconds=tool_seconds,
        max_tool_rounds=rounds,
        metrics=metrics or Metrics(),
    )
    return Turn("t", talk, kit)


def said(*texts: str) -> list[Input]:
    return [TokenCame("t", text) for text in texts]


def done(reason: Any = "complete", usage: Usage = ONE) -> ReplyFinished:
    return ReplyFinished("t", reason, usage)


async def test_a_plain_answer(talk: Talk) -> None:
    """Each piece of text is told as it comes, then the end with its reason and usage."""
    model = ScriptedModel(["Hel", "lo", Finished("length", 7, 2)])
    await a_turn(talk, model).run()
    assert talk.told == [*said("Hel", "lo"), done("length", Usage(7, 2))]
    assert model.calls == [HISTORY]
    assert model.offered == [["double", "fail", "hang"]]


async def test_the_mode_is_asked_for_before_the_answer(talk: Talk) -> None:
    """What the model says of it is told first, and is not shown; then comes the turn as usual."""
    talk.question = [Message("system", "Which?")]
    model = ScriptedModel(["casual"], ["Hello"])
    await a_turn(talk, model).run()
    assert talk.told == [ModeFound("t", "casual", ONE), *said("Hello"), done()]
    assert model.calls == [talk.question, HISTORY]


async def test_a_round_of_tools_and_an_answer(talk: Talk) -> None:
    """The calls are told when the round ends, each result as it comes, and the model is asked again with them."""
    calls = (ToolCall("c1", "double", '{"number": 2}'), ToolCall("c2", "double", '{"number": 3}'))
    model = ScriptedModel(["Let me see.", *calls], ["Four and six."])
    await a_turn(talk, model).run()
    results: list[Input] = [ToolAnswered("t", "c1", 4), ToolAnswered("t", "c2", 6)]
    assert talk.told == [*said("Let me see."), ToolsAsked("t", calls, ONE), *results, *said("Four and six."), done()]
    assert model.calls[1] == [*HISTORY, *(Message("assistant", repr(result)) for result in results)]


async def test_tools_run_side_by_side_each_with_its_own_time(talk: Talk) -> None:
    """One that hangs holds up neither the others nor, past its time, the turn."""
    calls = [ToolCall("c1", "hang", "{}"), ToolCall("c2", "double", '{"number": 2}'), ToolCall("c3", "hang", "{}")]
    await a_turn(talk, ScriptedModel(calls, ["Sorry."]), tool_seconds=0.02).run()
    late = "no answer within 0.02 s"
    assert talk.told[1] == ToolAnswered("t", "c2", 4)
    assert {repr(each) for each in talk.told[2:4]} == {
        repr(ToolAnswered("t", call_id, None, late)) for call_id in ("c1", "c3")
    }
    assert talk.told[4:] == [*said("Sorry."), done()]


@pytest.mark.parametrize(
    ("call", "problem"),
    [
        (ToolCall("c", "double", "{nonsense"), "bad arguments: Invalid JSON: key must be a string at line 1 column 2"),
        (ToolCall("c", "double", "{}"), "bad arguments: number: Field required"),
        (ToolCall("c", "peek", "{}"), "there is no tool named 'peek'; there are: double, fail, hang"),
        (ToolCall("c", "fail", '{"how": "words"}'), "not today"),
        (ToolCall("c", "fail", '{"how": "crash"}'), "the tool failed"),
    ],
)
async def test_whatever_goes_wrong_in_a_tool_is_a_result(talk: Talk, call: ToolCall, problem: str) -> None:
    """The model reads it and answers all the same; a crash's own words stay in the log."""
    with capture_logs() as logs:
        await a_turn(talk, ScriptedModel([call], ["I see."])).run()
    assert talk.told == [ToolsAsked("t", (call,), ONE), ToolAnswered("t", "c", None, problem), *said("I see."), done()]
    assert [line["event"] for line in logs] == (["tool failed"] if problem == "the tool failed" else [])


async def test_the_last_round_offers_no_tools(talk: Talk) -> None:
    """A model that asks and asks is at last offered none, and must answer with what it has."""
    call = ToolCall("", "double", '{"number": 1}')
    model = ScriptedModel([call], [call], ["Enough."])
    await a_turn(talk, model, rounds=2).run()
    assert model.offered == [["double", "fail", "hang"]] * 2 + [[]]
    assert talk.told[-2:] == [*said("Enough."), done()]


async def test_call_ids_are_unique_within_a_turn(talk: Talk) -> None:
    """Where a provider leaves ids out or repeats them, calls get ids of ours, and their results the same."""
    call = ToolCall("c", "double", '{"number": 1}')
    model = ScriptedModel([call, call, ToolCall("", "double", '{"number": 2}')], [call], ["Done."])
    await a_turn(talk, model).run()
    asked = [each.call_id for told in talk.told if isinstance(told, ToolsAsked) for each in told.calls]
    assert asked[0] == "c"
    assert len(set(asked)) == 4
    assert all(asked)
    assert sorted(told.call_id for told in talk.told if isinstance(told, ToolAnswered)) == sorted(asked)


async def test_a_model_that_fails_before_it_speaks_is_asked_again(talk: Talk) -> None:
    """Nothing was shown, so nobody notices: not a failure, not an end without an end, not a lost call."""
    broken_off: list[Step] = [ToolCall("c", "double", "{}"), down()]
    model = ScriptedModel([down()], broken_off, ["Hello"])
    await a_turn(talk, model).run()
    assert talk.told == [*said("Hello"), done()]
    assert len(model.calls) == 3


async def test_it_is_asked_only_so_often(talk: Talk) -> None:
    """When the retries are used up the failure is told, in the model client's words."""
    model = ScriptedModel(*[[down()]] * (ATTEMPTS + 1))
    await a_turn(talk, model).run()
    assert talk.told == [TurnFailed("t", "model_unavailable", "The model is down.")]
    assert len(model.calls) == ATTEMPTS


async def test_a_reply_that_began_does_not_begin_again(talk: Talk) -> None:
    """Once a word was shown, a failure is told instead of tried again."""
    model = ScriptedModel(["Hel", down()], ["Hello"])
    await a_turn(talk, model).run()
    assert talk.told == [*said("Hel"), TurnFailed("t", "model_unavailable", "The model is down.")]
    assert len(model.calls) == 1


async def test_a_round_after_tools_is_tried_again(talk: Talk) -> None:
    """What was shown in an earlier round does not count: the tools' results stand."""
    call = ToolCall("c", "double", '{"number": 1}')
    await a_turn(talk, ScriptedModel(["Well.", call], [down()], ["Two."])).run()
    assert talk.told == [
        *said("Well."),
        ToolsAsked("t", (call,), ONE),
        ToolAnswered("t", "c", 2),
        *said("Two."),
        done(),
    ]


async def test_a_refusal_is_final(talk: Talk) -> None:
    """A call that can never succeed is not retried."""
    refusal = ModelError("model_refused", "The model said no.", retryable=False)
    model = ScriptedModel([refusal], ["Hello"])
    await a_turn(talk, model).run()
    assert talk.told == [TurnFailed("t", "model_refused", "The model said no.")]
    assert len(model.calls) == 1


async def test_a_bug_is_told_without_its_words(talk: Talk) -> None:
    """An unexpected error is `internal` to the user; the log has the details."""
    with capture_logs() as logs:
        await a_turn(talk, ScriptedModel(["Hel", RuntimeError("secret")])).run()
    sorry = "Something went wrong on our side; your message is kept."
    assert talk.told == [*said("Hel"), TurnFailed("t", "internal", sorry)]
    assert [line["event"] for line in logs] == ["turn failed"]


async def test_a_stream_without_an_end_broke_off(talk: Talk) -> None:
    """A stream that simply stops is not a whole answer."""

    class Broken(ScriptedModel):
        async def stream(self, messages: Sequence[Message], tools: Sequence[ToolSpec]) -> AsyncGenerator[Chunk, None]:
            """See `Model.stream`."""
            yield TextDelta("Hel")

    await a_turn(talk, Broken()).run()
    assert talk.told == [*said("Hel"), TurnFailed("t", "model_unavailable", "The model's answer broke off.")]


@pytest.mark.parametrize("shown", [[], ["Hel"]])
async def test_a_model_that_stalls_is_given_up(talk: Talk, shown: list[str]) -> None:
    """Its stream is closed and the failure told: after retries while nothing was shown, at once if something was."""
    script: list[Step] = [*shown, asyncio.Event()]
    model = ScriptedModel(*[script] * ATTEMPTS)
    await a_turn(talk, model, stall=0.02).run()
    assert talk.told == [*said(*shown), TurnFailed("t", "model_timeout", "The model did not answer in time.")]
    assert len(model.calls) == (1 if shown else ATTEMPTS)
    assert model.cut_short.is_set()


async def test_a_slow_but_steady_model_is_no_stall(talk: Talk) -> None:
    """A stall is a gap between chunks, so a long answer of short gaps comes to its end."""

    class Steady(ScriptedModel):
        async def stream(self, messages: Sequence[Message], tools: Sequence[ToolSpec]) -> AsyncGenerator[Chunk, None]:
            """See `Model.stream`."""
            for n in range(10):
                await asyncio.sleep(0.03)
                yield TextDelta(str(n))
            yield Finished("complete", 1, 1)

    await a_turn(talk, Steady(), stall=0.2).run()
    assert talk.told == [*said(*map(str, range(10))), done()]


async def test_thoughts_are_told_apart_from_the_answer(talk: Talk) -> None:
    """They are passed on as they come, and one without words, which only says that the model works, is not."""
    model = ScriptedModel([Reasoning("A greeting."), Reasoning(""), "Hello", Finished("cut", 3, 2, 1, 1, "filter")])
    await a_turn(talk, model).run()
    usage = Usage(3, 2, 1, 1)
    cut = ReplyFinished("t", "cut", usage, End("filter"))
    assert talk.told == [ThoughtCame("t", "A greeting."), *said("Hello"), cut]


async def test_a_provider_is_left_alone_for_as_long_as_it_asks(talk: Talk, monkeypatch: pytest.MonkeyPatch) -> None:
    """`Retry-After` is waited; one that is longer than the model's time is not, and the failure told."""
    slept: list[float] = []

    async def wait(seconds: float) -> None:
        slept.append(seconds)

    busy = ModelError("model_rate_limited", "Busy.", retryable=True, retry_after=3)
    monkeypatch.setattr("infra.llm.retries._wait", wait)
    await a_turn(talk, ScriptedModel([busy], ["Hello"])).run()
    assert (slept, talk.told) == ([3], [*said("Hello"), done()])
    talk.told.clear()
    later = ModelError("model_rate_limited", "Busy.", retryable=True, retry_after=300)
    await a_turn(talk, ScriptedModel([later], ["Hello"])).run()
    assert (slept, talk.told) == ([3], [TurnFailed("t", "model_rate_limited", "Busy.")])


@pytest.mark.parametrize("what", ["model", "tool"])
async def test_a_frozen_process_is_no_stall(talk: Talk, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    """After an hour of sleep, a laptop's say, what came meanwhile is read, and the turn goes on."""
    loop, pause = asyncio.get_running_loop(), Pause()

    @tool
    async def think() -> str:
        """Take time."""
        await pause.wait()
        return "ok"

    answer: list[Step] = ["Hel", "lo"]
    asks: list[Step] = [ToolCall("c1", "think", "{}")]
    scripts: list[list[Step]] = [["Hel", pause, "lo"]] if what == "model" else [asks, answer]
    running = asyncio.create_task(
        a_turn(talk, ScriptedModel(*scripts), tools=Registry([think]), stall=1, tool_seconds=1).run()
    )
    await pause.reached.wait()
    time = loop.time
    monkeypatch.setattr(loop, "time", lambda: time() + 3600)
    await asyncio.sleep(0)  # every timer that is due runs now
    await asyncio.sleep(0)
    pause.set()
    await running
    assert talk.told[-3:-1] == said("Hel", "lo")
    assert isinstance(talk.told[-1], ReplyFinished)
    assert [each.result for each in talk.told if isinstance(each, ToolAnswered)] == ([] if what == "model" else ["ok"])


async def test_waiting_for_a_reader_is_no_stall(talk: Talk) -> None:
    """While nobody reads, the model is not asked on and its time does not run; then the answer goes on."""
    talk.readable.clear()
    stall = 0.05
    running = asyncio.create_task(a_turn(talk, ScriptedModel(["a", "b"]), stall=stall).run())
    await talk.hears(TokenCame("t", "a"))
    await asyncio.sleep(3 * stall)
    assert talk.told == said("a")
    talk.readable.set()
    await running
    assert talk.told == [*said("a", "b"), done()]
    assert talk.waited == 1


async def test_cancelling_closes_the_models_stream(talk: Talk) -> None:
    """The provider is told to stop, and the turn says nothing more."""
    model = ScriptedModel(["Hel", asyncio.Event()])
    running = asyncio.create_task(a_turn(talk, model).run())
    await talk.hears(TokenCame("t", "Hel"))
    running.cancel()
    await asyncio.wait([running])
    assert running.cancelled()
    assert model.cut_short.is_set()
    assert talk.told == said("Hel")


async def test_cancelling_before_the_first_word_closes_it_too(talk: Talk) -> None:
    """A stop that comes while the model still thinks reaches it."""
    thinking = Pause()
    model = ScriptedModel([thinking])
    running = asyncio.create_task(a_turn(talk, model).run())
    await thinking.reached.wait()
    running.cancel()
    await asyncio.wait([running])
    assert model.cut_short.is_set()
    assert talk.told == []


async def test_cancelling_stops_the_tools(talk: Talk) -> None:
    """When a turn is stopped, no tool runs on and none answers late."""
    working, stopped = Pause(), asyncio.Event()

    @tool
    async def watched() -> None:
        """Hang, and tell when stopped."""
        try:
            await working.wait()
        finally:
            stopped.set()

    call = ToolCall("c", "watched", "{}")
    kit = TurnKit(
        ScriptedModel([call]),
        Registry([watched]),
        stall_seconds=5,
        tool_seconds=5,
        max_tool_rounds=3,
        metrics=Metrics(),
    )
    running = asyncio.create_task(Turn("t", talk, kit).run())
    await working.reached.wait()
    running.cancel()
    await asyncio.wait([running])
    assert running.cancelled()
    assert stopped.is_set()
    assert talk.told == [ToolsAsked("t", (call,), ONE)]


async def test_a_model_with_much_at_hand_lets_others_run(talk: Talk) -> None:
    """A long answer from a model that never pauses does not hold up other sessions."""
    heard_at_turn: list[int] = []

    async def bystander() -> None:
        while True:
            heard_at_turn.append(len(talk.told))
            await asyncio.sleep(0)

    watching = asyncio.create_task(bystander())
    await a_turn(talk, ScriptedModel(["word"] * 200)).run()
    watching.cancel()
    assert len(talk.told) == 201
    assert max(after - before for before, after in pairwise(heard_at_turn)) <= 32
