"""Whether a call of a model that failed is made again, and after how long."""

import asyncio

from infra.backoff import backoff
from infra.llm.base import ModelError
from infra.telemetry import get_logger

ATTEMPTS = 3
"""How often one model is asked."""

log = get_logger("llm")


class Retries:
    """The tries of one call. Ask it only while nothing of a reply was shown."""

    def __init__(self, patience: float) -> None:
        """A `Retry-After` of more than `patience` seconds is not waited for."""
        self._patience = patience
        self._failed = 0

    async def again(self, error: ModelError) -> bool:
        """Whether to call again; it has waited then."""
        self._failed += 1
        wanted = error.retry_after or 0.0
        if not error.retryable or self._failed == ATTEMPTS or wanted > self._patience:
            return False
        log.info("model call is tried again", code=error.code, attempt=self._failed, detail=error.detail)
        await _wait(max(wanted, backoff(self._failed - 1, first=0.25, most=4)))
        return True


async def _wait(seconds: float) -> None:
    await asyncio.sleep(seconds)
