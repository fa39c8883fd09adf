"""How fast one turn speaks. The clock is read at the first token of a round and at its end, never in between."""

from time import perf_counter

from chat.metrics import Metrics


class Pace:
    """A turn's stopwatch; it starts when it is made."""

    __slots__ = ("_began", "_metrics", "_since", "_tokens")

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._began = perf_counter()
        self._since = 0.0
        self._tokens = 0

    def speaks(self) -> None:
        """The first text of a round came."""
        self._since = perf_counter()
        if not self._tokens:
            self._metrics.first_token.observe(self._since - self._began)

    def fell_silent(self, tokens: int, *, to_call: bool) -> None:
        """A round is over, or was cut short, after so many pieces of text; `to_call` if it then asked for tools.

        Only the speed of an answer is measured: before a call the model also writes arguments, which nobody sees.
        """
        self._tokens += tokens
        if tokens > 1 and not to_call:
            self._metrics.speed.observe((tokens - 1) / (perf_counter() - self._since))

    def over(self) -> None:
        """The turn is over."""
        self._metrics.tokens_sent.inc(self._tokens)
