"""The demo model: predictable, so that everything around it can be seen for what it is."""

import json
import time
from collections.abc import Sequence

import pytest

from chat.tools import standard_tools
from infra.llm import Finished, Message, TextDelta, ToolCall, ToolSpec
from infra.llm.demo import LONGEST_REPLY, TOKEN, WANTED, DemoModel
from tests.support.prompts import STANDARD

CASUAL = Message("system", STANDARD.modes["casual"].prompt)
ANALYTICAL = Message("system", STANDARD.modes["analytical"].prompt)
TOOLS = standard_tools().specs()


async def answer(
    *messages: Message, tools: Sequence[ToolSpec] = TOOLS
) -> tuple[list[str], list[tuple[str, str]], Finished]:
    """What the model says to this: the tokens, the (name, arguments) of its calls, and how it ended."""
    tokens: list[str] = []
    calls: list[ToolCall] = []
    ends: list[Finished] = []
    async for chunk in DemoModel(0).stream(messages, tools):
        assert not ends, "more after the end"
        if isinstance(chunk, TextDelta):
            tokens.append(chunk.text)
        elif isinstance(chunk, ToolCall):
            calls.append(chunk)
        else:
            assert isinstance(chunk, Finished)
            ends.append(chunk)
    assert len({call.call_id for call in calls}) == len(calls)
    return tokens, [(call.name, call.arguments) for call in calls], ends[0]


async def text(*messages: Message, tools: Sequence[ToolSpec] = TOOLS) -> str:
    return "".join((await answer(*messages, tools=tools))[0])


def user(content: str) -> Message:
    return Message("user", content)


def called(name: str, result: object) -> tuple[Message, Message]:
    """A round of one tool, as the history tells it."""
    return (
        Message("assistant", "", (ToolCall("c1", name, "{}"),)),
        Message("tool", json.dumps(result), tool_call_id="c1"),
    )


@pytest.mark.parametrize("question", ["hello", "fetch the sales data", "show my stats", "Write 20 words"])
async def test_the_same_history_has_the_same_answer(question: str) -> None:
    """Text, calls and usage."""
    assert await answer(CASUAL, user(question)) == await answer(CASUAL, user(question))


async def test_a_token_is_a_word_with_the_space_before_it() -> None:
    """Joined, they are the text; usage counts them, and the words that were read."""
    tokens, calls, end = await answer(CASUAL, user("hello there"))
    assert all(len(token.split()) == 1 and not token[-1].isspace() for token in tokens)
    assert (
        "".join(tokens)
        == "Happy to chat about “hello there”! Ask me to fetch some data or to show your stats, and I will."
    )
    assert calls == []
    assert end == Finished("complete", len(STANDARD.modes["casual"].prompt.split()) + 2, len(tokens))


@pytest.mark.parametrize(
    ("question", "calls"),
    [
        ("Fetch the sales figures", [("fetch_data", '{"topic": "sales"}')]),
        ("can you get me some DATA?", [("fetch_data", '{"topic": "sales"}')]),
        ("please fetch rainfall", [("fetch_data", '{"topic": "rainfall"}')]),
        ("show my stats", [("get_user_stats", "{}")]),
        ("fetch rain data and show my stats", [("fetch_data", '{"topic": "rain"}'), ("get_user_stats", "{}")]),
        ("the database is prefetched", []),
        ("hello", []),
    ],
)
async def test_keywords_ask_for_tools(question: str, calls: list[tuple[str, str]]) -> None:
    """Whole words decide, and one of them is the topic."""
    _, asked, end = await answer(CASUAL, user(question))
    assert asked == calls
    assert end.reason == ("tool_calls" if calls else "complete")


async def test_it_asks_for_nothing_that_is_not_offered() -> None:
    """Without tools it answers, which is what the last round of a turn needs."""
    question = user("fetch rain data and show my stats")
    tokens, calls, end = await answer(CASUAL, question, tools=[])
    assert (bool(tokens), calls, end.reason) == (True, [], "complete")
    fetch_only = [spec for spec in TOOLS if spec.name == "fetch_data"]
    assert (await answer(CASUAL, question, tools=fetch_only))[1] == [("fetch_data", '{"topic": "rain"}')]


async def test_results_make_the_answer() -> None:
    """The figures are read out of the tool's result, and no tool is asked for again."""
    rows = [{"month": "Jan", "value": 10}, {"month": "Feb", "value": 30}, {"month": "Mar", "value": 20}]
    history = (user("fetch rain data"), *called("fetch_data", {"topic": "rain", "rows": rows}))
    assert await text(ANALYTICAL, *history) == ("For rain there are 3 rows: mean 20.0, highest 30 in Feb, lowest 10.")
    assert await text(CASUAL, *history) == "Here is your rain data: 3 months, and Feb was the best with 30."
    assert (await answer(CASUAL, *history))[1] == []


async def test_a_users_stats_are_read_out() -> None:
    """With the numbers the store has."""
    stats = {"sessions": 2, "messages": 5, "minutes": 1.5, "last_seen": None}
    said = await text(CASUAL, user("my stats"), *called("get_user_stats", stats))
    assert said == "You have had 2 sessions and sent 5 messages, 1.5 minutes in all."


@pytest.mark.parametrize(
    ("name", "result", "said"),
    [
        (
            "fetch_data",
            {"error": "no answer within 1 s"},
            "The tool fetch_data could not help this time: no answer within 1 s.",
        ),
        ("other", [1, 2], "The tool other answered: [1, 2]"),
    ],
)
async def test_other_results_are_told_too(name: str, result: object, said: str) -> None:
    """A failure is explained, and an unknown tool's answer is quoted."""
    assert await text(CASUAL, user("fetch data"), *called(name, result)) == said


async def test_results_of_earlier_turns_are_history() -> None:
    """A new question is answered anew, even right after a turn with tools."""
    history = (user("my stats"), *called("get_user_stats", {}), Message("assistant", "There."))
    assert (await answer(CASUAL, *history, user("show my stats")))[1] == [("get_user_stats", "{}")]


async def test_it_refers_to_earlier_turns() -> None:
    """What was said before comes up again, shortened, with the number of the turn."""
    before = [user("I like " + "very " * 20 + "long walks"), Message("assistant", "Nice.")]
    said = await text(CASUAL, *before, user("hello"))
    assert said.endswith(
        " Earlier you said “I like very very very very very very very very very very ve…”, "
        "and I have that in mind: this is turn 2."
    )
    assert "Earlier" not in await text(CASUAL, user("hello"))


async def test_its_manner_follows_the_prompt() -> None:
    """Analytical or casual, with tools and without."""
    assert (await text(ANALYTICAL, user("hello"))).startswith("Let us take “hello” step by step.")
    assert (await text(CASUAL, user("hello"))).startswith("Happy to chat about “hello”!")
    assert await text(ANALYTICAL, user("fetch data")) == "I will look at the figures first."
    assert await text(CASUAL, user("fetch data")) == "Sure, let me look that up!"


@pytest.mark.parametrize(
    ("wanted", "given"), [("1", 1), ("200", 200), ("10000000", LONGEST_REPLY), ("9" * 5000, LONGEST_REPLY)]
)
async def test_it_writes_as_many_words_as_asked(wanted: str, given: int) -> None:
    """A long reply is bounded, however large the number that was asked for."""
    tokens, calls, end = await answer(CASUAL, user(f"Write {wanted} words"))
    assert (len(tokens), calls, end.output_tokens) == (given, [], given)


async def test_it_has_an_answer_to_nothing() -> None:
    """Even an empty history gets a reply that ends."""
    tokens, calls, end = await answer()
    assert (bool(tokens), calls, end.reason) == (True, [], "complete")


@pytest.mark.parametrize("character", [" ", "1", "x", "\u3000", "1 "])
def test_reading_takes_time_in_proportion(character: str) -> None:
    """Twice the text takes about twice the time, whatever it is made of: no pattern begins anew at every character."""

    def seconds(length: int) -> float:
        said = character * (length // len(character))
        times = []
        for _ in range(5):
            began = time.process_time()
            TOKEN.findall(said)
            WANTED.search(said)
            times.append(time.process_time() - began)
        return min(times)

    assert seconds(160_000) < 20 * seconds(20_000) + 0.01
