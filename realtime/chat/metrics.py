"""What this container counts, for Prometheus to read at `/metrics`. No labels per session: there are too many."""

from prometheus_client import CollectorRegistry, Counter, generate_latest

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
"""Prometheus' text format, as its documentation names it."""


class Metrics:
    """The numbers of one container."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self.events_set_aside = Counter(
            "realtime_events_set_aside",
            "Events that the store refuses for good. Each is in the log; more than none is a bug or a changed schema.",
            registry=self._registry,
        )

    def exposition(self) -> bytes:
        """All numbers, in Prometheus' text format."""
        return generate_latest(self._registry)
