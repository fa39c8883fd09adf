"""What there is of tracing while it is off, and what an implementation of it must do."""

from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

Kind = Literal["internal", "client", "producer", "consumer"]
Attributes = Mapping[str, Any]


class Span:
    """Something that takes a while. This one is recorded nowhere: it is what there is while tracing is off."""

    header: str | None = None
    """Its `traceparent`."""

    def set(self, attributes: Attributes) -> None:
        """Say more of it."""

    def failed(self, error_type: str) -> None:
        """Say that it failed, by a name that is no text of anybody's."""

    def end(self) -> None:
        """It is over."""


class Tracer:
    """Makes spans. This one makes none."""

    is_on = False
    contents = False
    """Whether what people, models and tools said may be in a span."""

    def begin(self, name: str, attributes: Attributes, *, parent: str | None, kind: Kind, links: Iterable[str]) -> Span:
        """A span that goes on until it is told to end."""
        return NO_SPAN

    def block(self, span: Span) -> AbstractContextManager[Span]:
        """A block that the span is the parent of, and ends with."""
        return NO_BLOCK

    def flush(self, within: float) -> None:
        """Send what has ended, for at most so many seconds."""

    def stop(self, within: float) -> None:
        """Send what has ended, for at most so many seconds, and make no more."""


NO_SPAN = Span()
NO_BLOCK = nullcontext(NO_SPAN)
