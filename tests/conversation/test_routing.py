"""Routing: the first message decides how a session is answered."""

import pytest

from chat.conversation.routing import PROMPTS, route
from infra.records import Mode


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
    assert route(message) == "analytical"


@pytest.mark.parametrize(
    "message", ["hello", "tell me a joke", "", "¿qué tal? 👋", "notable", "I gave 100 to my whyte cat", "comfortable"]
)
def test_all_else_is_casual(message: str) -> None:
    """A keyword inside another word is none."""
    assert route(message) == "casual"


@pytest.mark.parametrize("mode", PROMPTS)
def test_each_mode_has_a_prompt_that_names_it(mode: Mode) -> None:
    """The demo model reads its manner off the name, and a real one off the rest."""
    assert mode in PROMPTS[mode]
    assert not any(other in PROMPTS[mode] for other in PROMPTS if other != mode)
