"""Structured logs on standard error, one line per event.

`session_id`, `epoch`, `turn_id` and `request_id` are bound where they are known. Message contents and secrets are never
logged: what a user said belongs only in the store.
"""

import logging
import sys
from contextlib import suppress
from typing import Any, TextIO, cast

import structlog


class _StandardError:
    """Whatever standard error is now. A terminal or pipe that has gone away must not break the code that logs."""

    def write(self, text: str) -> None:
        with suppress(OSError, ValueError):
            sys.stderr.write(text)

    def flush(self) -> None:
        with suppress(OSError, ValueError):
            sys.stderr.flush()


def configure_logging(level: str, log_format: str) -> None:
    """Send structlog and the standard library's loggers to standard error.

    Args:
        level: "debug", "info", "warning" or "error".
        log_format: "json" for machines, "console" for people.
    """
    stamps: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
    ]
    render: list[Any] = (
        [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
        if log_format == "json"
        # Its own way with an exception shows what every variable held, tokens among them, where `rich` is installed.
        else [
            structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback)
        ]
    )
    structlog.configure(
        processors=stamps + render,
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        logger_factory=structlog.PrintLoggerFactory(file=cast(TextIO, _StandardError())),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(_StandardError())
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=stamps,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *render],
        )
    )
    # Libraries speak up only when something is wrong: uvicorn's access lines carry user ids, and one line
    # per request is the load balancer's job.
    logging.basicConfig(level=max(logging.WARNING, getattr(logging, level.upper())), handlers=[handler], force=True)


def bind(**values: Any) -> None:
    """Put these values on every line logged from now on by this task and by the tasks it starts."""
    structlog.contextvars.bind_contextvars(**values)


def get_logger(name: str, **bound: Any) -> structlog.typing.FilteringBoundLogger:
    """A logger that names its room, and adds `bound` to every line."""
    logger: structlog.typing.FilteringBoundLogger = structlog.get_logger(room=name, **bound)
    return logger
