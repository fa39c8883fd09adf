"""What Lambda calls. Built on the first call and kept for the next ones, the store's connection with it."""

from functools import cache
from typing import Any

from functions import cold

with cold.imports():
    from mangum import Mangum

    from functions.aws import FLUSH_SECONDS, Numbers, bind_request, start
    from functions.summary.app import create_app
    from functions.summary.sqs import SqsBatch
    from functions.summary.summarize import Summarizer
    from infra import tracing
    from infra.llm import open_one
    from infra.settings import Settings
    from infra.store import open_store


def handler(event: dict[str, Any], context: Any) -> dict[str, Any]:
    """Take a batch of `SessionEnded` messages, and answer with those that failed; or one, as an HTTP request."""
    bind_request(context)
    try:
        return _adapter()(event, context)
    finally:
        tracing.flush(FLUSH_SECONDS)


@cache
def _adapter() -> Mangum:
    settings = start()
    secrets = [each.get_secret_value() for each in (settings.handoff_secret, settings.handoff_secret_old) if each]
    app = create_app(_Opened(settings).summarizer, Numbers("summary"), secrets)
    # No lifespan: Mangum would start and stop the application, and its connections, on every invocation.
    return Mangum(app, lifespan="off", custom_handlers=[SqsBatch])


class _Opened:
    """The summarizer, opened when it is first asked for: a store connects on the event loop it serves."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._summarizer: Summarizer | None = None

    async def summarizer(self) -> Summarizer:
        if self._summarizer is None:
            model = None if self._settings.llm_provider == "demo" else open_one(self._settings)
            self._summarizer = Summarizer(await open_store(self._settings), model)
        return self._summarizer
