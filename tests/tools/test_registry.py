"""Tools: what a model is told of them, what becomes of its arguments, and what it gets back."""

import json
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from pydantic import Field

from chat.tools import standard_tools
from chat.tools.fetch_data import fetch_data
from chat.tools.get_user_stats import get_user_stats
from chat.tools.registry import MAX_RESULT_BYTES, Registry, ToolContext, ToolError, tool
from infra.llm import ToolSpec
from infra.records import Event, utc_now
from infra.store import StoreUnavailable
from infra.store.sqlite import SqliteStore
from tests.support.flaky import FlakyStore


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[FlakyStore]:
    """A real store, whose weather can be chosen."""
    flaky = FlakyStore(await SqliteStore.open(tmp_path / "tools.db"))
    yield flaky
    await flaky.close()


@pytest.fixture
def context(store: FlakyStore) -> ToolContext:
    """User u asks in session s, and nothing waits to be written."""

    async def settled() -> None:
        pass

    return ToolContext("s", "u", store, settled)


@tool
async def look(
    context: ToolContext,
    where: Annotated[str, Field(description="Which room", min_length=2)],
    times: int = 1,
    how: Literal["well", "badly"] | None = None,
) -> dict[str, Any]:
    """Look somewhere.

    More than once, if need be.
    """
    return {"user": context.user_id, "where": where, "times": times, "how": how}


@tool
async def echo(value: Any) -> Any:
    """Give back what was given."""
    return value


async def problem(registry: Registry, name: str, arguments: str, context: ToolContext) -> str:
    with pytest.raises(ToolError) as raised:
        await registry.call(name, arguments, context)
    return str(raised.value)


def test_a_model_is_told_what_the_signature_says() -> None:
    """Types, descriptions, defaults and what is required; the context is ours to fill in."""
    parameters = {
        "type": "object",
        "additionalProperties": False,
        "properties": {
            "where": {"type": "string", "description": "Which room", "minLength": 2},
            "times": {"type": "integer", "default": 1},
            "how": {"anyOf": [{"type": "string", "enum": ["well", "badly"]}, {"type": "null"}], "default": None},
        },
        "required": ["where"],
    }
    assert look.spec == ToolSpec("look", "Look somewhere.\n\nMore than once, if need be.", parameters)


def test_a_tool_without_arguments_has_an_empty_schema() -> None:
    """An object all the same: providers demand one."""
    parameters = {"type": "object", "properties": {}, "additionalProperties": False}
    assert get_user_stats.spec.parameters == parameters


@pytest.mark.parametrize(
    ("arguments", "result"),
    [
        ('{"where": "hall"}', {"user": "u", "where": "hall", "times": 1, "how": None}),
        ('{"where": "hall", "times": 2, "how": "well"}', {"user": "u", "where": "hall", "times": 2, "how": "well"}),
    ],
)
async def test_a_call_gets_its_arguments_and_the_context(
    arguments: str, result: dict[str, Any], context: ToolContext
) -> None:
    """What the model left out has its default."""
    assert await Registry([look]).call("look", arguments, context) == result


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("{}", "bad arguments: where: Field required"),
        ('{"where": 1}', "bad arguments: where: Input should be a valid string"),
        (
            '{"where": "x", "times": "often"}',
            "bad arguments: where: String should have at least 2 characters; "
            "times: Input should be a valid integer, unable to parse string as an integer",
        ),
        ('{"where": "hall", "context": {}}', "bad arguments: context: Extra inputs are not permitted"),
        ("[1]", "bad arguments: Input should be an object"),
        ("{where", "bad arguments: Invalid JSON: key must be a string at line 1 column 2"),
    ],
)
async def test_arguments_that_do_not_fit_are_explained(arguments: str, message: str, context: ToolContext) -> None:
    """The model reads what is wrong and where, so that it can do better."""
    assert await problem(Registry([look]), "look", arguments, context) == message


async def test_an_unknown_tool_is_named_with_those_there_are(context: ToolContext) -> None:
    """A model that makes up a tool learns what it has."""
    unknown = await problem(Registry([look, echo]), "peek", "{}", context)
    assert unknown == "there is no tool named 'peek'; there are: look, echo"
    assert await problem(Registry([]), "peek", "{}", context) == "there is no tool named 'peek'; there are: none"


async def test_a_result_is_plain_json(context: ToolContext) -> None:
    """Whatever the tool returned, what follows deals with JSON values alone."""

    @tool
    async def shapes() -> Any:
        """Return what JSON has no word for but can say."""
        return {"tuple": (1, 2), "event": look.spec, 3: float("nan")}

    result = await Registry([shapes]).call("shapes", "{}", context)
    assert result == json.loads(json.dumps(result))
    assert (result["tuple"], result["3"], result["event"]["name"]) == ([1, 2], None, "look")


async def test_a_result_that_is_no_json_is_a_problem(context: ToolContext) -> None:
    """An object nobody can encode, and half a character, are told and not raised further."""

    @tool
    async def bad(kind: str) -> Any:
        """Return what cannot be sent."""
        return object() if kind == "object" else "\ud83d"

    for kind in ("object", "half"):
        message = await problem(Registry([bad]), "bad", json.dumps({"kind": kind}), context)
        assert message.startswith("the result is not JSON: ")


async def test_a_result_may_not_be_endless(context: ToolContext) -> None:
    """At the bound it is taken, past it the model is told how long it was."""
    registry = Registry([echo])
    most = "x" * (MAX_RESULT_BYTES - 2)
    assert await registry.call("echo", json.dumps({"value": most}), context) == most
    message = await problem(registry, "echo", json.dumps({"value": most + "x"}), context)
    assert message == "the result has 65537 bytes; the most is 65536"


def test_two_tools_of_one_name_are_a_mistake() -> None:
    """A model could not tell them apart."""
    with pytest.raises(ValueError, match="two tools are named look"):
        Registry([look, look])


def test_what_is_no_tool_is_refused_when_it_is_written() -> None:
    """A tool is async, documented and typed, or the process does not start."""

    def sync() -> None:
        """Not async."""

    async def silent() -> None:
        pass

    async def untyped(topic) -> None:  # type: ignore[no-untyped-def]
        """Without a hint."""

    with pytest.raises(TypeError, match="tool sync must be an async function"):
        tool(sync)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="tool silent needs a docstring"):
        tool(silent)
    with pytest.raises(TypeError, match="tool untyped: parameter topic needs a type hint"):
        tool(untyped)


def test_the_tools_on_offer() -> None:
    """Both are there, each with a description and a schema an API takes."""
    specs = standard_tools().specs()
    assert [spec.name for spec in specs] == ["fetch_data", "get_user_stats"]
    assert all(spec.description and spec.parameters["type"] == "object" for spec in specs)


async def test_fetched_data_are_the_same_every_time(context: ToolContext) -> None:
    """A topic has its figures, however it is spelled, and other topics have others."""

    async def fetched(**arguments: Any) -> Any:
        return await fetch_data.call(json.dumps(arguments), context)

    sales = await fetched(topic="sales")
    assert sales == await fetched(topic="sales", months=6)
    assert [row["month"] for row in sales["rows"]] == ["Jan", "Feb", "Mar", "Apr", "May", "Jun"]
    assert {name: value for name, value in sales.items() if name != "rows"} == {
        "topic": "sales",
        "unit": "units",
        "simulated": True,
    }
    assert (await fetched(topic=" Sales "))["rows"] == sales["rows"]
    assert (await fetched(topic="rain"))["rows"] != sales["rows"]
    assert (await fetched(topic="sales", months=12))["rows"][:6] == sales["rows"]


@pytest.mark.parametrize("arguments", ['{"topic": ""}', '{"topic": "x", "months": 0}', '{"topic": "x", "months": 13}'])
async def test_fetching_beyond_the_data_is_explained(arguments: str, context: ToolContext) -> None:
    """There are twelve months, and a topic has a name."""
    assert (await problem(Registry([fetch_data]), "fetch_data", arguments, context)).startswith("bad arguments: ")


async def test_user_stats_are_the_callers_own_after_all_is_written(store: FlakyStore) -> None:
    """They are read once everything said so far is stored, so that the question itself is counted."""
    start = utc_now()
    for session_id, user_id in (("s", "u"), ("other", "somebody")):
        await store.open_session(session_id, user_id, at=start, container_id="box")

    async def settled() -> None:
        for session_id in ("s", "other"):
            said = Event(
                event_id=session_id,
                session_id=session_id,
                turn_id="t",
                role="user",
                content="stats?",
                timestamp=start + timedelta(minutes=3),
            )
            await store.append([said])

    stats = await get_user_stats.call("{}", ToolContext("s", "u", store, settled))
    last_seen = (start + timedelta(minutes=3)).isoformat().replace("+00:00", "Z")
    assert stats == {"sessions": 1, "messages": 1, "minutes": 3.0, "last_seen": last_seen}


async def test_user_stats_without_a_store_are_a_problem_in_words(store: FlakyStore, context: ToolContext) -> None:
    """The model is told that they cannot be read, and nothing of the store's own words."""
    store.weather.append(StoreUnavailable("secret host is down"))
    message = await problem(standard_tools(), "get_user_stats", "{}", context)
    assert message == "the figures cannot be read at the moment"
