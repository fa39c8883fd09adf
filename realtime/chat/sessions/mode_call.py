"""The call that has the model choose a session's mode: made once, for a short time, and without risk to the turn."""

import asyncio
from collections.abc import Sequence
from contextlib import aclosing

from infra.llm import Finished, Message, Model, ModelError, TextDelta
from infra.patience import Patience
from infra.telemetry import get_logger

MODE_SECONDS = 3.0
"""How long the model has to name a mode; the reply waits for it."""
MODE_CHARS = 200
"""How much of an answer is read. A name has at most 32 characters; a much longer text is no answer."""

log = get_logger("mode")


async def ask_mode(model: Model, question: Sequence[Message]) -> tuple[str, Finished | None]:
    """The model's words, and how they ended, which says what they took. It is not asked again.

    There are no words if it fails or is not done in time.
    """
    try:
        async with Patience(MODE_SECONDS):
            return await _answer(model, question)
    except TimeoutError:
        cause = "timeout"
    except ModelError as error:
        cause = error.code
    except asyncio.CancelledError:
        if (task := asyncio.current_task()) and task.cancelling():
            raise
        cause = "cancelled"  # by a library, not because the turn was stopped
    except Exception as error:
        cause = type(error).__name__  # its text could quote keys and prompts
    log.warning("the model named no mode", cause=cause)
    return "", None


async def _answer(model: Model, question: Sequence[Message]) -> tuple[str, Finished | None]:
    answer, finished = "", None
    async with aclosing(model.stream(question, [])) as chunks:
        async for chunk in chunks:
            if type(chunk) is TextDelta:
                answer += chunk.text
                if len(answer) > MODE_CHARS:
                    break
            elif type(chunk) is Finished:
                finished = chunk
    return answer, finished
