"""Several models, asked in order: the next where one cannot be had, and only while nothing of a reply was shown."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

from infra.backoff import backoff
from infra.llm.base import Chunk, Message, Model, ModelError, TextDelta, ToolCall, ToolSpec
from infra.llm.errors import unavailable
from infra.telemetry import get_logger

ATTEMPTS = 3
"""How often one model is asked before the next is."""
FAILURES = 3
"""After this many failures in a row a model is left alone."""
REST_SECONDS = 30.0
"""For how long; then one call tries it again."""

log = get_logger("llm")


class Breaker:
    """Whether a model may be asked: not for a while after it has failed several times."""

    def __init__(self) -> None:
        self._failures = 0
        self._until = 0.0

    def lets_through(self, now: float) -> bool:
        """Whether to ask it now; of those who come after its rest one is let through, until that is told."""
        if self._failures < FAILURES:
            return True
        if now < self._until:
            return False
        self._until = now + REST_SECONDS
        return True

    def failed(self, now: float) -> bool:
        """Count a failure; whether it begins a rest."""
        self._failures += 1
        if self._failures < FAILURES:
            return False
        self._until = now + REST_SECONDS
        return self._failures == FAILURES

    def worked(self) -> None:
        """It answered."""
        self._failures = 0


class FallbackModel:
    """A `Model` that is several. It retries by itself, so its errors are final."""

    def __init__(self, models: Sequence[tuple[str, Model]], patience: float) -> None:
        """`models` have names, for the log; a `Retry-After` of more than `patience` seconds is not waited for."""
        self._models = [(name, model, Breaker()) for name, model in models]
        self._patience = patience

    async def stream(self, messages: Sequence[Message], tools: Sequence[ToolSpec]) -> AsyncGenerator[Chunk, None]:
        """See `Model.stream`."""
        now = asyncio.get_running_loop().time
        last = unavailable()
        for name, model, breaker in self._models:
            if not breaker.lets_through(now()):
                continue
            shown = False
            for attempt in range(ATTEMPTS):
                try:
                    async with aclosing(model.stream(messages, tools)) as chunks:
                        async for chunk in chunks:
                            shown = shown or type(chunk) is TextDelta or type(chunk) is ToolCall
                            yield chunk
                    breaker.worked()
                    return
                except ModelError as error:
                    last = error
                    if shown:
                        raise
                    wanted = error.retry_after or 0.0
                    if not error.retryable or attempt == ATTEMPTS - 1 or wanted > self._patience:
                        break
                    await _wait(max(wanted, backoff(attempt, first=0.25, most=4)))
            if breaker.failed(now()):
                log.error("model is left alone for a while", model=name, seconds=REST_SECONDS)
            log.warning("next model is asked", failed=name, code=last.code, detail=last.detail)
        last.retryable = False
        raise last

    async def close(self) -> None:
        """See `Model.close`."""
        for _, model, _ in self._models:
            await model.close()


async def _wait(seconds: float) -> None:
    await asyncio.sleep(seconds)
