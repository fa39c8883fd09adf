"""One try of the model at the start: what is wrong with a key or a name is said before the first user finds it."""

import asyncio
from contextlib import aclosing

from infra.llm import Message, ModelError, open_one
from infra.settings import Settings

PROBE_SECONDS = 10.0


async def try_model(settings: Settings) -> str:
    """What the provider said to one small question, in words for whoever started the server."""
    model = open_one(settings)
    try:
        async with (
            asyncio.timeout(PROBE_SECONDS),
            aclosing(model.stream([Message("user", "Answer with the word: ready")], [])) as chunks,
        ):
            async for _ in chunks:
                return "answers"
    except ModelError as error:
        return f"FAILS: {error}" + (f" ({error.detail})" if error.detail else "")
    except TimeoutError:
        return f"FAILS: no answer within {PROBE_SECONDS:g} s"
    finally:
        await model.close()
    return "FAILS: an empty answer"
