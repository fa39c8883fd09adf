"""What this container counts, for Prometheus to read at `/metrics`. No labels per session: there are too many.

A label takes its values from a list of ours, and never from what a client or a model says, so that nobody can add
series. They are there from the start, at 0: Prometheus sees no rise in a series that begins with its first count.
"""

from collections.abc import Iterable
from typing import Literal, get_args

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, generate_latest

from chat.protocol.frames import CloseCode, DoneReason, ErrorCode, Usage

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
"""Prometheus' text format, as its documentation names it."""
Outcome = Literal["ok", "error", "timeout"]
"""How a tool call went. One that was stopped with its turn is not counted."""
UNKNOWN_TOOL = "(unknown)"
"""Stands for every tool that the model made up. No Python function can have this name."""
LOST = 1006
"""RFC 6455's code of a connection that went without a close frame."""
CLOSE_CODES = frozenset({code.code for code in CloseCode} | {1001, 1002, 1005, LOST})
"""Our own codes, and those that a good client or the WebSocket library closes with. Others count as "other"."""
OPENING_REFUSALS = (
    ErrorCode.BAD_FIELD,
    ErrorCode.BAD_SESSION_ID,
    ErrorCode.BAD_USER_ID,
    ErrorCode.UNAUTHORIZED,
    ErrorCode.AUTH_UNAVAILABLE,
    ErrorCode.RATE_LIMITED,
    ErrorCode.QUOTA_EXCEEDED,
    ErrorCode.NOT_YOUR_SESSION,
    ErrorCode.AT_CAPACITY,
    ErrorCode.RESTARTING,
    ErrorCode.STORE_UNAVAILABLE,
    ErrorCode.INTERNAL,
)
MODEL_ERRORS = tuple(code.value for code in ErrorCode if code.value.startswith("model_"))
TOKEN_KINDS = ("input", "output", "cached", "reasoning")
LIMITS = (
    "connections",
    "requests",
    "guests",
    "openings",
    "messages",
    "tokens",
    "waiting",
    "sockets",
    "session_sockets",
    "live_sessions",
)
"""The limits of `chat.web.limits`, by name."""
UNNAMED = "(unnamed)"
"""Stands for a model that does not say its name, as the demo."""
FIRST_TOKEN_BUCKETS = (0.05, 0.1, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0, 30.0, 60.0)
"""In seconds: from what feels instant to when people have left."""
SPEED_BUCKETS = (1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 40.0, 60.0, 80.0, 100.0, 150.0, 200.0, 500.0, 1000.0)
"""In tokens per second. People read five to ten."""

disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series for each, which nobody would look at


class Metrics:
    """The numbers of one container."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._add_chat()
        self._add_connections()
        self._add_storage()

    def _add_chat(self) -> None:
        self.turns = self._counter(
            "realtime_turns",
            "Turns that have ended, by the reason that `done` gave; those stopped before they began are among them.",
            "reason",
        )
        self.turns_running = self._gauge("realtime_turns_running", "Turns that are being answered now.")
        self.tokens_sent = self._counter(
            "realtime_tokens_sent", "Pieces of text that the model streamed, counted when their turn is over."
        )
        self.first_token = Histogram(
            "realtime_time_to_first_token_seconds",
            "From a turn's start to its first text, tools before it and tries that failed included.",
            buckets=FIRST_TOKEN_BUCKETS,
            registry=self._registry,
        )
        self.speed = Histogram(
            "realtime_turn_tokens_per_second",
            "How fast a turn's answer came after its first token; slower also where the reader is.",
            buckets=SPEED_BUCKETS,
            registry=self._registry,
        )
        self.tool_calls = self._counter(
            "realtime_tool_calls",
            "Tool calls by tool and outcome (ok, error, timeout). A tool that the model made up is (unknown).",
            "tool",
            "outcome",
        )
        self.tokens = self._counter(
            "realtime_tokens",
            "Tokens as the provider counts them, by model and kind; cached ones are input, reasoning ones output.",
            "model",
            "kind",
        )
        for kind in TOKEN_KINDS:
            self.tokens.labels(UNNAMED, kind)
        self.model_errors = self._counter(
            "realtime_model_errors", "Calls of the model that failed for good, by the error that clients got.", "code"
        )
        for code in MODEL_ERRORS:
            self.model_errors.labels(code)
        for reason in get_args(DoneReason):
            self.turns.labels(reason)

    def _add_connections(self) -> None:
        self.sessions_live = self._gauge(
            "realtime_sessions_live", "Sessions in memory, those that wait for their client to come back included."
        )
        self.sessions_bytes = self._gauge(
            "realtime_sessions_bytes",
            "About how much memory the live sessions hold. Past MAX_SESSIONS_BYTES none opens.",
        )
        self.sessions_unloaded = self._counter(
            "realtime_sessions_unloaded",
            "Sessions that gave up their memory for others; they are read again when used.",
        )
        self.sockets_open = self._gauge("realtime_sockets_open", "WebSockets that are accepted and not closed.")
        self.sockets_closed = self._counter(
            "realtime_sockets_closed", "WebSockets that are closed, by code; 1006 is a lost connection.", "code"
        )
        self.openings_refused = self._counter(
            "realtime_openings_refused", "Sockets that could not have their session, by the error they got.", "code"
        )
        self.connections_refused = self._counter(
            "realtime_connections_refused", "Connections that were closed at once: too few open files are left."
        )
        self.limited = self._counter(
            "realtime_limited", "What was refused because a visitor had or did too much, by the limit.", "limit"
        )
        for limit in LIMITS:
            self.limited.labels(limit)
        for code in (*sorted(CLOSE_CODES), "other"):
            self.sockets_closed.labels(str(code))
        for refusal in OPENING_REFUSALS:
            self.openings_refused.labels(refusal.value)

    def _add_storage(self) -> None:
        self.events_set_aside = self._counter(
            "realtime_events_set_aside",
            "Events that the store refuses for good. Each is in the log; more than none is a bug or a changed schema.",
        )
        self.journal_depth = self._gauge(
            "realtime_journal_depth", "Events that wait for the store. New messages are refused at JOURNAL_MAX_EVENTS."
        )
        self.journal_lag = self._gauge(
            "realtime_journal_lag_seconds", "Age of the oldest event that waits for the store, or 0."
        )
        self.handoff_depth = self._gauge(
            "realtime_handoff_depth", "Ends of sessions that wait for the queue, and with them their summaries."
        )
        self.spool_depth = self._gauge(
            "realtime_spool_depth",
            "What waits for a store or queue that is down, and has its copy in DATA_DIR; by what carries it.",
            "courier",
        )
        self.spool_failures = self._counter(
            "realtime_spool_failures",
            "Writes that DATA_DIR did not take. While there are any, a kill loses what waits.",
        )

    def _counter(self, name: str, documentation: str, *labels: str) -> Counter:
        return Counter(name, documentation, labels, registry=self._registry)

    def _gauge(self, name: str, documentation: str, *labels: str) -> Gauge:
        return Gauge(name, documentation, labels, registry=self._registry)

    def offer(self, tools: Iterable[str]) -> None:
        """Begin to count these tools, and those that a model makes up."""
        for name in (*tools, UNKNOWN_TOOL):
            for outcome in get_args(Outcome):
                self.tool_calls.labels(name, outcome)

    def used(self, model: str, usage: Usage) -> None:
        """Count the tokens of one answer. The models are those of the settings."""
        for kind in TOKEN_KINDS:
            if number := getattr(usage, f"{kind}_tokens"):
                self.tokens.labels(model or UNNAMED, kind).inc(number)

    def closed(self, code: int) -> None:
        """Count an open socket as closed."""
        self.sockets_open.dec()
        self.sockets_closed.labels(str(code) if code in CLOSE_CODES else "other").inc()

    def exposition(self) -> bytes:
        """All numbers, in Prometheus' text format."""
        return generate_latest(self._registry)
