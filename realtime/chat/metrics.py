"""What this container counts, for Prometheus to read at `/metrics`. No labels per session: there are too many."""

from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest

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
        self.journal_depth = Gauge(
            "realtime_journal_depth",
            "Events that wait for the store. New messages are refused at JOURNAL_MAX_EVENTS.",
            registry=self._registry,
        )
        self.spool_depth = Gauge(
            "realtime_spool_depth",
            "What waits for a store or queue that is down, and has its copy in DATA_DIR; by what carries it.",
            ["courier"],
            registry=self._registry,
        )
        self.spool_failures = Counter(
            "realtime_spool_failures",
            "Writes that DATA_DIR did not take. While there are any, a kill loses what waits.",
            registry=self._registry,
        )

    def exposition(self) -> bytes:
        """All numbers, in Prometheus' text format."""
        return generate_latest(self._registry)
