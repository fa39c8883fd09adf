"""A model that needs no key and no network: deterministic, at a human pace.

It stands in for what a real model does with function calling: keywords in the last message (`fetch`, `data`,
`stats`) make it ask for tools, the results make its answer, and earlier turns come up again, so that streaming,
tool calls and multi-turn state can be seen and tested for what they are. "Write 200 words" gives a long reply.
"""

import asyncio
import json
import re
from collections.abc import AsyncGenerator, Sequence
from itertools import cycle, islice
from typing import Any
from uuid import uuid4

from infra.llm.base import Chunk, Finished, Message, TextDelta, ToolCall, ToolSpec

TOKEN = re.compile(r"(?<!\s)\s*+\S++")
"""A word with the space before it. It begins only where a run of spaces does, and takes the run whole: so the time is
linear in the text."""
WANTED = re.compile(r"(?<!\d)(\d{1,9})\d*+ words")
STOP_WORDS = frozenset(
    "a an about and any are can could data do fetch for from get give have i in is it latest let me my need of on "
    "our please pull s see set show some stats statistics tell that the then this to up us want we what with you "
    "your".split()
)
LONGEST_REPLY = 5_000
"""Words; "write 10000000 words" is a user's joke, not a reason to fill memory."""
FILLER = (
    "A stream is a promise kept one word at a time. Each token leaves as soon as it is ready, the page shows it at "
    "once, and nothing waits for the end. If the network drops, the turn goes on; if you press stop, it ends where it "
    "stands, and what was said is kept."
).split()

MARKDOWN = """\
## What a page may get

A reply may hold **bold** and *slanted* words, `code`, and [links](https://example.com).

1. A list with numbers,
2. whose second item has a list of its own:
   - one,
   - two.

| month | value |
|---|---|
| Jan | 12 |
| Feb | 15 |

```python
def greet(name: str) -> str:
    return f"Hello, {name}!"
```
"""
"""The reply to "show me markdown", for pages to be tried with."""


class DemoModel:
    """A `Model` that reads keywords. `tokens_per_second` 0 means as fast as it can."""

    def __init__(self, tokens_per_second: float) -> None:
        self._pause = 1 / tokens_per_second if tokens_per_second else 0.0

    async def stream(self, messages: Sequence[Message], tools: Sequence[ToolSpec]) -> AsyncGenerator[Chunk, None]:
        """See `Model.stream`. A token is a word with the space before it."""
        text, calls = answer(messages, {tool.name for tool in tools})
        tokens = TOKEN.findall(text)
        pause = self._pause
        for number, token in enumerate(tokens):
            if pause and number:
                await asyncio.sleep(pause)
            yield TextDelta(token)
        for call in calls:
            yield call
        words_read = sum(len(TOKEN.findall(message.content)) for message in messages)
        yield Finished("tool_calls" if calls else "complete", words_read, len(tokens))

    async def close(self) -> None:
        """See `Model.close`. There is nothing to close."""


def answer(messages: Sequence[Message], tools: set[str]) -> tuple[str, list[ToolCall]]:
    """The reply to a history: its text, and the tools it asks for. The same history gives the same reply."""
    analytical = any(m.role == "system" and "analytical" in m.content for m in messages)
    said = [m.content for m in messages if m.role == "user"]
    question = said[-1] if said else ""
    results = _results_since_last_question(messages)
    if results:
        return _from_results(results, analytical), []
    calls = _calls_for(question, tools)
    if calls:
        opening = "I will look at the figures first." if analytical else "Sure, let me look that up!"
        return opening, calls
    if "show me markdown" in question.lower():
        return MARKDOWN, []
    if wanted := WANTED.search(question):
        return " ".join(islice(cycle(FILLER), min(int(wanted[1]), LONGEST_REPLY))), []
    return _talk(question, said[:-1], analytical), []


def _calls_for(question: str, tools: set[str]) -> list[ToolCall]:
    words = re.findall(r"[a-z]+", question.lower())
    calls = []
    if "fetch_data" in tools and {"fetch", "data"} & set(words):
        topic = next((word for word in words if word not in STOP_WORDS), "sales")
        calls.append(_call("fetch_data", {"topic": topic}))
    if "get_user_stats" in tools and "stats" in words:
        calls.append(_call("get_user_stats", {}))
    return calls


def _call(name: str, arguments: dict[str, Any]) -> ToolCall:
    return ToolCall(f"call_{uuid4().hex[:12]}", name, json.dumps(arguments))


def _results_since_last_question(messages: Sequence[Message]) -> list[tuple[str, str]]:
    """The (tool name, result text) pairs that came after the user last spoke."""
    names: dict[str, str] = {}
    results: list[tuple[str, str]] = []
    for message in messages:
        if message.role == "user":
            results.clear()
        names.update((call.call_id, call.name) for call in message.tool_calls)
        if message.role == "tool":
            results.append((names.get(message.tool_call_id or "", "tool"), message.content))
    return results


def _from_results(results: list[tuple[str, str]], analytical: bool) -> str:
    parts = []
    for name, text in results:
        try:
            result = json.loads(text)
        except ValueError:
            result = None
        if isinstance(result, dict) and "error" in result:
            parts.append(f"The tool {name} could not help this time: {result['error']}.")
        elif name == "fetch_data" and isinstance(result, dict):
            values = [row["value"] for row in result["rows"]]
            best = max(result["rows"], key=lambda row: row["value"])
            parts.append(
                f"For {result['topic']} there are {len(values)} rows: mean {sum(values) / len(values):.1f}, "
                f"highest {best['value']} in {best['month']}, lowest {min(values)}."
                if analytical
                else f"Here is your {result['topic']} data: {len(values)} months, and {best['month']} was the best "
                f"with {best['value']}."
            )
        elif name == "get_user_stats" and isinstance(result, dict):
            parts.append(
                f"You have had {_count(result['sessions'], 'session')} and sent "
                f"{_count(result['messages'], 'message')}, {result['minutes']} minutes in all."
            )
        else:
            parts.append(f"The tool {name} answered: {text[:200]}")
    return " ".join(parts)


def _talk(question: str, earlier: list[str], analytical: bool) -> str:
    topic = _shorten(question)
    if analytical:
        reply = (
            f"Let us take “{topic}” step by step. First, what is known; second, what would change the answer; "
            "third, what to measure next. Ask me to fetch data and I will put numbers to it."
        )
    else:
        reply = f"Happy to chat about “{topic}”! Ask me to fetch some data or to show your stats, and I will."
    if earlier:
        reply += (
            f" Earlier you said “{_shorten(earlier[-1])}”, and I have that in mind: this is turn {len(earlier) + 1}."
        )
    return reply


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _shorten(text: str, limit: int = 60) -> str:
    text = " ".join(text.split())
    return text if len(text) <= limit else text[: limit - 1].rstrip() + "…"
