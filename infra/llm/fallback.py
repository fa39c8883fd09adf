"""Several models, asked in order: the next where one cannot be had, and only while nothing of a reply was shown."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

from infra.llm.base import Chunk, Message, Model, ModelError, Reasoning, TextDelta, ToolCall, ToolSpec
from infra.llm.errors import unavailable
from infra.llm.retries import Retries
from infra.telemetry import get_logger

FAILURES = 3
"""After this many failures in a row a model is left alone."""
REST_SECONDS = 30.0
"""For how long; then one call tries it again."""
OF_THE_REQUEST = frozenset({"model_refused", "model_bad_request"})
"""Failures that one conversation has, and no other: nobody may have a model left alone by what they say."""

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
        """`models` have names, for the log; `patience` is that of `Retries`."""
        self._models = [(name, model, Breaker()) for name, model in models]
        self._patience = patience

    async def stream(self, messages: Sequence[Message], tools: Sequence[ToolSpec]) -> AsyncGenerator[Chunk, None]:
        """See `Model.stream`."""
        now = asyncio.get_running_loop().time
        failure = unavailable()
        for name, model, breaker in self._models:
            if not breaker.lets_through(now()):
                continue
            retries = Retries(self._patience)
            while True:
                shown = False
                try:
                    async with aclosing(model.stream(messages, tools)) as chunks:
                        async for chunk in chunks:
                            shown = shown or type(chunk) is TextDelta or type(chunk) is ToolCall
                            yield chunk
                    breaker.worked()
                    return
                except ModelError as error:
                    if shown:
                        raise
                    failure = error
                yield Reasoning("")  # whoever waits is told that there is more to try
                if not await retries.again(failure):
                    break
            if failure.code not in OF_THE_REQUEST and breaker.failed(now()):
                log.error("model is left alone for a while", model=name, seconds=REST_SECONDS)
            log.warning("model cannot be had", model=name, code=failure.code, detail=failure.detail)
        failure.retryable = False
        raise failure

    async def close(self) -> None:
        """See `Model.close`."""
        for _, model, _ in self._models:
            await model.close()
