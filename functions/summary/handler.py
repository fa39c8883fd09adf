"""What Lambda calls. Built on the first call and kept for the next ones, the store's connection with it."""

import os
from functools import cache
from typing import Any

from mangum import Mangum

from functions.summary.app import create_app
from functions.summary.sqs import SqsBatch
from functions.summary.summarize import Summarizer
from infra.llm import open_model
from infra.settings import Settings, SettingsError, load_settings
from infra.store import open_store
from infra.telemetry import configure_logging


def handler(event: dict[str, Any], context: Any) -> dict[str, Any]:
    """Take a batch of `SessionEnded` messages, and answer with those that failed; or one, as an HTTP request."""
    return _adapter()(event, context)


@cache
def _adapter() -> Mangum:
    settings = load_settings()
    if _in_lambda() and not settings.supabase_url:
        raise SettingsError("SUPABASE_URL: needed in AWS Lambda, where a SQLite file would not last")
    configure_logging(settings.log_level, settings.log_format)
    secret = settings.handoff_secret.get_secret_value() if settings.handoff_secret else None
    app = create_app(_Opened(settings).summarizer, secret)
    # No lifespan: Mangum would start and stop the application, and its connections, on every invocation.
    return Mangum(app, lifespan="off", custom_handlers=[SqsBatch])


class _Opened:
    """The summarizer, opened when it is first asked for: a store connects on the event loop it serves."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._summarizer: Summarizer | None = None

    async def summarizer(self) -> Summarizer:
        if self._summarizer is None:
            model = None if self._settings.llm_provider == "demo" else open_model(self._settings)
            self._summarizer = Summarizer(await open_store(self._settings), model)
        return self._summarizer


def _in_lambda() -> bool:
    """Whether this is AWS's own Lambda; `sls invoke local` sets the function's name too, and IS_LOCAL."""
    return "AWS_LAMBDA_FUNCTION_NAME" in os.environ and "IS_LOCAL" not in os.environ
