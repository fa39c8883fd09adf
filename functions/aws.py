"""What both functions know of AWS Lambda: its environment, its requests and its metrics."""

import os
from collections.abc import Mapping
from typing import Any

from infra.proxy import prepare_proxies
from infra.settings import Settings, SettingsError, load_settings
from infra.telemetry import bind, configure_logging
from infra.tracing import start_tracing

FLUSH_SECONDS = 2.0
"""How long a call may take longer for its spans to be sent: between calls Lambda freezes the process."""
NAMESPACE = "RealtimeAIBackend"
"""Where CloudWatch keeps the functions' numbers; its dimension `service` is the function."""


def start() -> Settings:
    """The settings, checked, with the logs set up as they say.

    Raises:
        SettingsError: one is wrong or missing.
    """
    settings = load_settings()
    if in_lambda() and not settings.supabase_url:
        raise SettingsError("SUPABASE_URL: needed in AWS Lambda, where a SQLite file would not last")
    configure_logging(settings.log_level, settings.log_format)
    prepare_proxies(settings)
    start_tracing(settings, "function", os.environ.get("AWS_LAMBDA_LOG_STREAM_NAME", f"pid-{os.getpid()}"))
    return settings


def in_lambda() -> bool:
    """Whether this is AWS's own Lambda; `sls invoke local` sets the function's name too, and IS_LOCAL."""
    return "AWS_LAMBDA_FUNCTION_NAME" in os.environ and "IS_LOCAL" not in os.environ


def bind_request(context: Any) -> None:
    """Put the request's id on every line of the log from here on."""
    if request_id := getattr(context, "aws_request_id", None):
        bind(request_id=request_id)


class Numbers:
    """Counts for CloudWatch, in its embedded metric format: lines on standard output. Outside Lambda there are none."""

    def __init__(self, service: str) -> None:
        self._metrics: Any = None
        if in_lambda():
            from aws_lambda_powertools.metrics import Metrics  # nobody else needs it

            self._metrics = Metrics(namespace=NAMESPACE, service=service)

    def count(self, numbers: Mapping[str, int]) -> None:
        """Have these counted, in one line."""
        if self._metrics and numbers:
            for name, number in numbers.items():
                self._metrics.add_metric(name=name, unit="Count", value=number)
            self._metrics.flush_metrics()
