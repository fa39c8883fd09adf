"""Models that think aloud write it into the text, between tags, before their answer: `<think>…</think>`."""

import re

OPENING = re.compile(r"\s*<(think|thinking|thought|reasoning)>\n?", re.IGNORECASE)
LONGEST_TAG = len("</reasoning>")
PREFIXES = tuple(
    f"<{name}>"[:length] for name in ("think", "thinking", "thought", "reasoning") for length in range(1, 12)
)
"""What a text may begin with of which the rest may make it a tag."""


class Thinking:
    """Tells what a model thinks from what it answers, wherever the text is cut.

    Only thoughts *before* the answer count: an answer may speak of the tags themselves.
    """

    def __init__(self) -> None:
        self._held = ""
        self._tag: str | None = None
        self._thought = self._answers = False

    def feed(self, text: str) -> tuple[str, str]:
        """What of this, and of what was held back before, is (thought, answer)."""
        if self._answers:
            return "", text
        self._held += text
        thought = ""
        while True:
            if self._tag is None:
                if opening := OPENING.match(self._held):
                    self._tag = f"</{opening[1].lower()}>"
                    self._held = self._held[opening.end() :]
                elif self._may_open():
                    return thought, ""
                else:
                    return thought, self._answer()
            at = self._held.lower().find(self._tag)
            if at < 0:
                keep = max(len(self._held) - LONGEST_TAG, 0)
                thought, self._held = thought + self._held[:keep], self._held[keep:]
                return thought, ""
            thought += self._held[:at]
            self._held = self._held[at + len(self._tag) :]
            self._tag, self._thought = None, True

    def rest(self) -> tuple[str, str]:
        """What was held back, at the end of the text."""
        held, self._held = self._held, ""
        if self._tag:
            return held, ""
        return "", held.lstrip() if self._thought else held

    def _may_open(self) -> bool:
        """Whether what is held may still become an opening tag: a space, and the beginning of one."""
        begun = self._held.lstrip().lower()
        return not begun or begun in PREFIXES

    def _answer(self) -> str:
        self._answers = True
        held, self._held = self._held, ""
        return held.lstrip() if self._thought else held
