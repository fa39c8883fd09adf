"""How to answer: the first message makes a session analytical or casual, and the system prompt follows."""

import re

from infra.records import Mode

ANALYTICAL = re.compile(
    r"\b(analy[sz]\w*|average|benchmark|calculat\w*|chart|compar\w*|correlat\w*|data\w*|estimat\w*|"
    r"evaluat\w*|explain|fetch|figures?|forecast|graph|how (?:many|much)|metrics?|numbers?|percent\w*|report|"
    r"revenue|statistic\w*|stats|summar\w*|table|trend\w*|why)\b|\d+(?:\.\d+)?\s*%",
    re.IGNORECASE,
)

PROMPTS: dict[Mode, str] = {
    "analytical": (
        "You are an analytical assistant. Be precise and structured: state what is known, show the figures, say how "
        "sure you are. Use the tools when they can give you facts."
    ),
    "casual": (
        "You are a casual, friendly assistant. Keep it short and warm, in plain words. Use the tools when the user "
        "asks for something they can give."
    ),
}


def route(first_message: str) -> Mode:
    """The mode for a session that begins with this message."""
    return "analytical" if ANALYTICAL.search(first_message) else "casual"
