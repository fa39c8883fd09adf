"""What a turn tells the metrics: when it first spoke, how fast, how much, and how its tools fared."""
# ruff: noqa: F811 - fixtures of other tests

import asyncio
from typing import Literal

import pytest
from structlog.testing import capture_logs

from chat.metrics import Metrics
from infra.llm import ModelError, ToolCall
from tests.sessions.test_session import PATIENCE
from tests.sessions.test_turn import Talk, a_turn, talk  # noqa: F401 - a fixture
from tests.support.scrape import Scrape
from tests.support.scripted import Pause, ScriptedModel, Step


def read(metrics: Metrics) -> Scrape:
    return Scrape(metrics.exposition())


class Clock:
    """The pace's clock, which stands still but for what a script has pass."""

    def __init__(self) -> None:
        self.now = 50.0

    def __call__(self) -> float:
        """The time in seconds."""
        return self.now

    def passes(self, seconds: float) -> asyncio.Event:
        """A step of a script that takes so long."""
        clock = self

        class Passes(asyncio.Event):
            async def wait(self) -> Literal[True]:
                clock.now += seconds
                return True

        return Passes()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    monkeypatch.setattr("chat.sessions.pace.perf_counter", made := Clock())
    return made


async def test_first_token_and_speed_are_those_of_the_answer(talk: Talk, clock: Clock) -> None:
    """First-token time counts from the turn's start, speed from the answer's first token, without tools."""
    call = ToolCall("c", "double", '{"number": 2}')
    first_round: list[Step] = [clock.passes(2), "Let me", " see.", clock.passes(30), call]
    answer: list[Step] = [clock.passes(3), "Fo", clock.passes(0.5), "u", "r", ".", clock.passes(1.5)]
    metrics = Metrics()
    await a_turn(talk, ScriptedModel(first_round, answer), metrics=metrics).run()
    numbers = read(metrics)
    first, speed = "realtime_time_to_first_token_seconds", "realtime_turn_tokens_per_second"
    assert (numbers(f"{first}_count"), numbers(f"{first}_sum")) == (1, 2.0)
    assert (numbers(f"{first}_bucket", le="1.5"), numbers(f"{first}_bucket", le="2.0")) == (0, 1)
    assert (numbers(f"{speed}_count"), numbers(f"{speed}_sum")) == (1, 3 / 2.0)
    assert numbers("realtime_tokens_sent_total") == 6


async def test_a_stopped_turn_counts_what_it_said(talk: Talk) -> None:
    """Its tokens were sent, its first token was seen, and it had a speed."""
    metrics, speaking = Metrics(), Pause()
    running = asyncio.create_task(a_turn(talk, ScriptedModel(["a", "b", "c", speaking]), metrics=metrics).run())
    await asyncio.wait_for(speaking.reached.wait(), PATIENCE)
    assert read(metrics)("realtime_tokens_sent_total") == 0  # nothing is counted a token
    running.cancel()
    await asyncio.wait([running])
    numbers = read(metrics)
    assert numbers("realtime_tokens_sent_total") == 3
    assert numbers("realtime_time_to_first_token_seconds_count") == 1
    assert numbers("realtime_turn_tokens_per_second_count") == 1


@pytest.mark.parametrize(
    ("step", "first_tokens"), [(ModelError("model_refused", "no", retryable=False), 0), ("Yes.", 1)]
)
async def test_what_was_not_measured_is_not_told(talk: Talk, step: Step, first_tokens: int) -> None:
    """A turn that said nothing has no first token, and one of a single token has no speed."""
    metrics = Metrics()
    await a_turn(talk, ScriptedModel([step]), metrics=metrics).run()
    assert read(metrics)("realtime_time_to_first_token_seconds_count") == first_tokens
    assert read(metrics)("realtime_turn_tokens_per_second_count") == 0


@pytest.mark.parametrize(
    ("call", "tool", "outcome"),
    [
        (ToolCall("c", "double", '{"number": 2}'), "double", "ok"),
        (ToolCall("c", "double", "{nonsense"), "double", "error"),
        (ToolCall("c", "fail", '{"how": "words"}'), "fail", "error"),
        (ToolCall("c", "fail", '{"how": "crash"}'), "fail", "error"),
        (ToolCall("c", "hang", "{}"), "hang", "timeout"),
        (ToolCall("c", "invented", "{}"), "(unknown)", "error"),
    ],
)
async def test_a_tool_call_is_counted(talk: Talk, call: ToolCall, tool: str, outcome: str) -> None:
    """Under the tool's name and outcome; what the model made up has one name for all."""
    metrics = Metrics()
    with capture_logs():
        await a_turn(talk, ScriptedModel([call], ["I see."]), tool_seconds=0.02, metrics=metrics).run()
    assert read(metrics).by("realtime_tool_calls_total", "tool") == {tool: 1}
    assert read(metrics).by("realtime_tool_calls_total", "outcome") == {outcome: 1}
