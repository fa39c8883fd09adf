"""Prompts for tests: those that the server brings, and some for which the model is asked."""

from chat.conversation.routing import PromptMode, Prompts
from chat.prompts import PACKAGED, parse_prompts

STANDARD = parse_prompts(PACKAGED.read_text(encoding="utf-8"))
"""What the server uses where no setting says otherwise."""

BY_MODEL = Prompts(
    {
        "support": PromptMode("You help with orders.", description="orders and refunds"),
        "sales": PromptMode("You sell."),
        "general": PromptMode("You chat.", description="everything else"),
    },
    default="general",
    by="model",
)
"""Three modes, one of which the model is asked to name."""
