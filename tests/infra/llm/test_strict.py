"""Services that refuse what others take: what is sent to them, and what is learned from their refusals."""

import itertools
import json
from collections.abc import Callable
from typing import Any

import pytest
from structlog.testing import capture_logs

from infra.llm import Message, ToolCall
from infra.llm.chat_request import build
from infra.llm.quirks import Quirk
from infra.settings import SettingsError, load_settings
from tests.support.model_service import HELLO, WEATHER, Answer, Refusal, Strict, model_at

ROME = ToolCall("call_abc", "weather", '{"city":"Rome"}')
ASKED = [
    Message("system", "Be brief."),
    Message("user", "Weather in Rome?"),
    Message("assistant", "", (ROME,)),
    Message("tool", '{"sky":"blue"}', tool_call_id="call_abc"),
]


def alternating(body: dict[str, Any]) -> Refusal:
    """As Mistral, Gemma's and Llama's templates want it."""
    roles = [each["role"] for each in body["messages"] if each["role"] != "system"]
    if roles[0] != "user" or any(one == two != "tool" for one, two in itertools.pairwise(roles)):
        return 400, "Conversation roles must alternate user/assistant/user/assistant/..."
    if any(one == "tool" and two == "user" for one, two in itertools.pairwise(roles)):
        return 400, "Unexpected role 'user' after role 'tool'"
    return None


@pytest.mark.parametrize(
    "said",
    [
        [Message("user", "hello"), Message("user", "are you there?")],
        [Message("user", "a"), Message("assistant", "b"), Message("assistant", "c"), Message("user", "d")],
        [*ASKED[1:], Message("user", "never mind")],
    ],
    ids=["stopped before its first word", "two answers", "stopped behind a tool"],
)
async def test_roles_alternate(said: list[Message]) -> None:
    """Whatever was stopped, failed or merged before, a strict service takes the conversation, and all of it."""
    async with Strict(alternating) as service, model_at(service.base_url) as model:
        answer = await Answer.of(model, said, [WEATHER])
    assert answer.text == "Hi."
    (body,) = service.bodies
    sent = json.dumps(body["messages"])
    assert all(json.dumps(each.content)[1:-1] in sent for each in said if each.content)


@pytest.mark.parametrize("name", ["multi_tool_use.parallel", "größe", "x" * 200, ""])
def test_names_are_of_a_kind_that_every_service_takes(name: str) -> None:
    """Also those that a model made up: one that is refused would make every later request fail."""
    said = [
        Message("user", "a"),
        Message("assistant", "", (ToolCall("c", name, "{}"),)),
        Message("tool", "{}", (), "c"),
    ]
    (call,) = build("m", said, [], None, set())["messages"][1]["tool_calls"]
    sent = call["function"]["name"]
    assert 1 <= len(sent) <= 64
    assert sent.isascii()
    assert sent.replace("_", "").replace("-", "").isalnum() or set(sent) == {"_"}


def test_what_a_provider_wants_back_is_sent_back() -> None:
    """With the call, and with the message that made it; and with an answer's own message."""
    call = ToolCall("c", "weather", "{}", {"call": {"extra_content": {"s": 1}}}).with_message(
        {"reasoning_details": [2]}
    )
    said = [
        Message("user", "a"),
        Message("assistant", "", (call,)),
        Message("tool", "{}", (), "c"),
        Message("assistant", "b", opaque={"extra_content": {"s": 3}}),
    ]
    _, asked, _, answered = build("m", said, [], None, set())["messages"]
    assert asked["tool_calls"][0]["extra_content"] == {"s": 1}
    assert asked["reasoning_details"] == [2]
    assert answered["extra_content"] == {"s": 3}


LEARNED: dict[str, tuple[Quirk, Callable[[dict[str, Any]], Refusal]]] = {
    "no tools": (Quirk.NO_TOOLS, lambda b: (400, "m does not support tools") if "tools" in b else None),
    "no tools at OpenRouter": (
        Quirk.NO_TOOLS,
        lambda b: (404, "No endpoints found that support tool use.") if "tools" in b else None,
    ),
    "no max_completion_tokens, unsaid": (
        Quirk.MAX_TOKENS,
        lambda b: (422, "Unprocessable") if "max_completion_tokens" in b else None,
    ),
    "no max_completion_tokens, said": (
        Quirk.MAX_TOKENS,
        lambda b: (400, "Unsupported: max_completion_tokens") if "max_completion_tokens" in b else None,
    ),
    "no stream_options": (
        Quirk.NO_STREAM_OPTIONS,
        lambda b: (400, "Unrecognized request argument: stream_options") if "stream_options" in b else None,
    ),
    "no system role": (
        Quirk.NO_SYSTEM,
        lambda b: (400, "System role not supported") if b["messages"][0]["role"] == "system" else None,
    ),
    "short ids": (
        Quirk.SHORT_IDS,
        lambda b: (
            (400, "Tool call id was call_abc but must be a-z, A-Z, 0-9, with a length of 9.")
            if any(len(each.get("tool_call_id", "123456789")) != 9 for each in b["messages"])
            else None
        ),
    ),
}


@pytest.mark.parametrize("case", LEARNED)
async def test_a_refusal_is_learned_from_once(case: str) -> None:
    """It is asked again in another way, which is remembered, and said once in the log."""
    quirk, refuses = LEARNED[case]
    async with Strict(refuses) as service, model_at(service.base_url, llm_max_tokens=9) as model:
        with capture_logs() as logs:
            answers = [await Answer.of(model, ASKED, [WEATHER]) for _ in range(3)]
    assert [answer.text for answer in answers] == ["Hi."] * 3
    assert len(service.bodies) == 4
    assert [line["quirks"] for line in logs if "quirks" in line] == [[quirk.value]]


@pytest.mark.parametrize("case", LEARNED)
async def test_what_is_known_from_the_start_is_not_refused(case: str) -> None:
    """With LLM_QUIRKS the first request is the right one."""
    quirk, refuses = LEARNED[case]
    async with (
        Strict(refuses) as service,
        model_at(service.base_url, llm_max_tokens=9, llm_quirks=quirk.value) as model,
    ):
        assert (await Answer.of(model, ASKED, [WEATHER])).text == "Hi."
    assert len(service.bodies) == 1


async def test_without_tools_earlier_calls_are_told_in_words() -> None:
    """A service that takes no calls in a history unless it is offered tools, as in a turn's last round."""

    def refuses(body: dict[str, Any]) -> Refusal:
        if "tools" not in body and any("tool_calls" in each for each in body["messages"]):
            return 400, "tools= param is required when messages contain tool calls"
        return None

    async with Strict(refuses) as service, model_at(service.base_url) as model:
        assert (await Answer.of(model, ASKED, [])).text == "Hi."
        assert (await Answer.of(model, ASKED, [WEATHER])).text == "Hi."
    assert len(service.bodies) == 3
    _, flat, offered = (json.dumps(body["messages"]) for body in service.bodies)
    assert "weather answered" in flat
    assert "tool_calls" in offered


@pytest.mark.parametrize(
    ("status", "text"),
    [(400, "Invalid schema for function 'weather'"), (400, "context length exceeded"), (401, "no"), (422, "no")],
)
async def test_what_cannot_be_helped_is_told(status: int, text: str) -> None:
    """A refusal of everything costs a few tries at the most, and nothing is learned from it."""
    async with Strict(lambda body: (status, text)) as service, model_at(service.base_url, llm_max_tokens=9) as model:
        answer = await Answer.of(model, HELLO, [WEATHER])
        assert answer.error
        assert not answer.error.retryable
        assert len(service.bodies) <= 3
        assert not model._quirks


def test_an_unknown_quirk_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a line that names those that there are; and the setting and the code agree on them."""
    monkeypatch.setenv("LLM_QUIRKS", "no_tools, telepathy")
    with pytest.raises(SettingsError, match=r"LLM_QUIRKS: telepathy is none of no_tools, "):
        load_settings(None)
    monkeypatch.setenv("LLM_QUIRKS", ", ".join(quirk.value for quirk in Quirk))
    assert load_settings(None).quirks == [quirk.value for quirk in Quirk]
