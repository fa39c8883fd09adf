"""The function as an ASGI application: one route, which takes a batch of queue records."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict

from functions.summary.summarize import Summarizer, UnknownSession
from infra.llm import ModelError
from infra.records import SessionEnded
from infra.store import StoreError
from infra.telemetry import get_logger

log = get_logger("summary")


class Record(BaseModel):
    """What we need of one SQS record; Lambda sends more."""

    model_config = ConfigDict(extra="ignore")

    messageId: str  # noqa: N815 - Lambda's name
    body: str


class Batch(BaseModel):
    """Lambda's SQS event."""

    Records: list[Record]


def create_app(summarizer: Callable[[], Awaitable[Summarizer]]) -> FastAPI:
    """The application. `summarizer` is awaited on each request, so that the first one may open the store."""
    app = FastAPI(title="Session summary", docs_url=None, redoc_url=None, openapi_url=None)

    @app.post("/sqs")
    async def sqs(batch: Batch) -> dict[str, Any]:
        """Handle each record for itself, all at once; name those that must come again."""
        ready = await summarizer()
        taken = await asyncio.gather(*(_take(ready, record) for record in batch.Records))
        failed = [record.messageId for record, good in zip(batch.Records, taken, strict=True) if not good]
        return {"batchItemFailures": [{"itemIdentifier": message_id} for message_id in failed]}

    return app


async def _take(summarizer: Summarizer, record: Record) -> bool:
    """Whether the record is done with. One that is not comes again, and in the end to the dead-letter queue."""
    try:
        await summarizer.summarize(SessionEnded.from_json(record.body))
    except (ValueError, UnknownSession, StoreError, ModelError) as error:
        log.error("record failed", message_id=record.messageId, cause=str(error))
    except Exception:
        log.exception("record failed", message_id=record.messageId)
    else:
        return True
    return False
