"""Routing: the first message decides how a session is answered."""

import re
from time import thread_time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chat.conversation.routing import ROUTED_CHARS, PromptMode, Prompts
from infra.records import Mode
from tests.support.prompts import BY_MODEL, STANDARD

REFERENCE = re.compile(
    r"\b(analy[sz]\w*|average|benchmark|calculat\w*|chart|compar\w*|correlat\w*|data\w*|estimat\w*|"
    r"evaluat\w*|explain|fetch|figures?|forecast|graph|how (?:many|much)|metrics?|numbers?|percent\w*|report|"
    r"revenue|statistic\w*|stats|summar\w*|table|trend\w*|why)\b|\d+(?:\.\d+)?\s*%",
    re.IGNORECASE,
)
"""The rules of the two modes, as one expression that is plain to read but slow on a long number."""
PIECES = [*re.findall(r"[a-z]{3,}", REFERENCE.pattern), *" \n%.3x_é", "how many", "HOW MUCH", "12.5", "s", "ing"]
SLOW_FOR_A_BAD_PATTERN = ["1", "1.", "1 ", " ", "how ", "data", "dat", "a", "_", "%", "0\n"]


@pytest.mark.parametrize(
    "message",
    [
        "Analyze last month",
        "please analyse this",
        "fetch the sales data",
        "show my stats",
        "How many users do we have?",
        "HOW MUCH is it",
        "compare the two",
        "why did it fall?",
        "up 12.5 % since May",
        "Summarize the report",
        "line one\nand the trends of line two",
    ],
)
def test_questions_of_fact_are_analytical(message: str) -> None:
    """Figures, comparisons and reasons, in any case and anywhere in the message."""
    assert STANDARD.route(message) == "analytical"


@pytest.mark.parametrize(
    "message", ["hello", "tell me a joke", "", "¿qué tal? 👋", "notable", "I gave 100 to my whyte cat", "comfortable"]
)
def test_all_else_is_casual(message: str) -> None:
    """A keyword inside another word does not count."""
    assert STANDARD.route(message) == "casual"


@given(st.lists(st.sampled_from(PIECES), max_size=8).map("".join) | st.text(max_size=20))
def test_the_packaged_rules_are_the_reference(message: str) -> None:
    """The packaged words and pattern together match what a single expression matches, and nothing else."""
    assert STANDARD.route(message) == ("analytical" if REFERENCE.search(message) else "casual")


@pytest.mark.parametrize("mode", STANDARD.modes)
def test_each_mode_has_a_prompt_that_names_it(mode: Mode) -> None:
    """The demo model reads its manner off the name, and a real one off the rest."""
    assert mode in STANDARD.prompt(mode)
    assert not any(other in STANDARD.prompt(mode) for other in STANDARD.modes if other != mode)


# Time


def seconds(prompts: Prompts, message: str) -> float:
    """CPU time of this thread to route the message: the best of several, so that a busy machine does not count."""

    def once() -> float:
        began = thread_time()
        prompts.route(message)
        return thread_time() - began

    return min(once() for _ in range(7))


@pytest.mark.parametrize("piece", SLOW_FOR_A_BAD_PATTERN)
def test_the_packaged_patterns_take_linear_time(piece: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Routing is linear in the message: twice the length takes about twice the time."""
    monkeypatch.setattr("chat.conversation.routing.ROUTED_CHARS", 10**9)
    message = piece * (16_000 // len(piece))
    once, twice = seconds(STANDARD, message), seconds(STANDARD, message * 2)
    assert twice < 3 * once + 0.001


def test_a_slow_pattern_sees_only_the_beginning() -> None:
    """An operator's quadratic pattern takes no more time when a message of 32,000 characters becomes twice as long."""
    slow = Prompts({"x": PromptMode("X", (re.compile(r"\d+(?:\.\d+)?\s*%"),))}, default="x")
    once, twice = seconds(slow, "1" * 32_000), seconds(slow, "1" * 64_000)
    assert twice < 2 * once + 0.001
    assert once < 1


def test_what_comes_late_in_a_message_is_not_looked_at() -> None:
    """The first 2,000 characters decide, by rules or by the model."""
    assert STANDARD.route("x " * (ROUTED_CHARS // 2 - 3) + " data") == "analytical"
    assert STANDARD.route("x " * (ROUTED_CHARS // 2) + " data") == "casual"
    assert BY_MODEL.question("x" * 32_000)[-1].content == "x" * ROUTED_CHARS


# Other prompts


def test_the_first_mode_that_matches_wins() -> None:
    """Rules apply in the order of the file; the default mode needs none."""
    first, second = PromptMode("1", (re.compile("both|one"),)), PromptMode("2", (re.compile("both|two"),))
    prompts = Prompts({"z": PromptMode("0"), "b": first, "a": second}, default="z")
    assert [prompts.route(message) for message in ("both", "one", "two", "hello")] == ["b", "b", "a", "z"]


def test_a_fixed_mode_looks_at_nothing() -> None:
    """Whatever is said, it is the default."""
    assert Prompts(STANDARD.modes, default="casual", by="default").route("fetch the data") == "casual"


@pytest.mark.parametrize("mode", [None, "general", "gone"])
def test_an_unknown_mode_has_the_default_prompt(mode: Mode | None) -> None:
    """A mode that the file no longer defines, or none yet, gets the default prompt."""
    assert BY_MODEL.prompt(mode) == "You chat."
    assert BY_MODEL.prompt("support") == "You help with orders."


def test_the_model_is_given_the_modes_and_the_message() -> None:
    """Each name, with its description where it has one; the user's words are in a message of their own."""
    assert BY_MODEL.route("where is my order?") is None
    system, user = BY_MODEL.question("where is my {order}?")
    assert system.content.endswith("\n\nsupport: orders and refunds\nsales\ngeneral: everything else")
    assert (system.role, user.role, user.content) == ("system", "user", "where is my {order}?")


@pytest.mark.parametrize(
    ("answer", "mode"),
    [
        ("support", "support"),
        (" Support.\n", "support"),
        ("**sales**", "sales"),
        ('The mode is "sales", as the user asks for a price.', "sales"),
        ("", "general"),
        ("supporting", "general"),
        ("support or sales", "general"),
        ("I cannot tell.", "general"),
        ("\ud800", "general"),
    ],
)
def test_an_answer_names_one_mode_or_the_default(answer: str, mode: Mode) -> None:
    """A mode is found among punctuation and sentences; an answer naming two modes, or none, decides nothing."""
    assert BY_MODEL.named_in(answer) == mode
